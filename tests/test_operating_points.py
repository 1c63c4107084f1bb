"""From a model's stored settings to its posterior, and from that to the decision that each operating point is best at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from transformers import BertConfig

from hf_focal import (
    FocalSettings,
    apply_temperature,
    calibrate_config,
    class_posterior,
    decide,
    fit_temperature,
    fit_thresholds,
    flsd_53,
    operating_point_scores,
    posterior_from_config,
    shift_prior,
    sigmoid_class_posterior,
)


PRIOR = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)


def config_of(num_labels=3, multi_label=False, **settings):
    problem_type = f"{'multi' if multi_label else 'single'}_label_classification"
    return BertConfig(num_labels=num_labels, problem_type=problem_type, focal_loss={"gamma": 2.0, **settings})


def gaussian_classes(prior, num_examples=40000):
    """Class ids drawn by the prior, and the exact posterior under `PRIOR` of an observation of each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(prior, num_examples, replacement=True, generator=generator)
    centres = torch.eye(3, dtype=torch.float64)
    seen = centres[labels] + 0.6 * torch.randn(num_examples, 3, generator=generator, dtype=torch.float64)
    log_density = -((seen[:, None] - centres) ** 2).sum(-1) / (2 * 0.6**2)
    return labels, (log_density + PRIOR.log()).softmax(-1)


class TestPosterior:
    def test_single_label(self):
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        config = config_of(gamma=[0.5, 1.0, 3.0], alpha=[1.0, 2.0, 4.0], label_smoothing=0.1)
        expected = class_posterior(logits, gamma=[0.5, 1.0, 3.0], alpha=[1.0, 2.0, 4.0], label_smoothing=0.1)
        torch.testing.assert_close(posterior_from_config(logits, config), expected)

    def test_multi_label(self):
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        config = config_of(
            multi_label=True, alpha=[0.2, 0.5, 0.9], label_smoothing=0.1
        )  # smoothing has no effect there
        expected = sigmoid_class_posterior(logits, gamma=2.0, alpha=[0.2, 0.5, 0.9])
        torch.testing.assert_close(posterior_from_config(logits, config), expected)

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_temperature(self, multi_label):
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        before = posterior_from_config(logits, config_of(multi_label=multi_label))
        after = posterior_from_config(logits, config_of(multi_label=multi_label, temperature=2.0))
        torch.testing.assert_close(after, apply_temperature(before, 2.0, multi_label=multi_label))
        assert not torch.allclose(after, before, atol=1e-2)

    @pytest.mark.parametrize(
        "message, config",
        [
            ("config: expected the settings that FocalTrainer stores under focal_loss", BertConfig()),
            ("gamma: missing from focal_loss, which holds alpha", BertConfig(focal_loss={"alpha": None})),
            ("config: trained with gamma 'flsd_53', a function of p_t", config_of(gamma=flsd_53.__name__)),
            ("alpha: expected one number for each of 3 classes, but got 2", config_of(alpha=[1.0, 2.0])),
        ],
    )
    def test_what_cannot_be_inverted_is_refused(self, message, config):
        with pytest.raises(ValueError, match=message):
            posterior_from_config(torch.zeros(1, 3), config)


class TestScores:
    def test_each_operating_point_is_the_best_at_what_it_aims_at(self):
        config = config_of(class_prior=PRIOR.tolist())
        labels, posterior = gaussian_classes(PRIOR)
        elsewhere = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64)
        deployed_labels, deployed = gaussian_classes(elsewhere)
        points = {"most_likely": {}, "balanced": {"operating_point": "balanced"}, "prior": {"prior": elsewhere}}
        scores = {
            name: {
                "most_likely": accuracy_score(labels, decisions(posterior, config, **chosen)),
                "balanced": balanced_accuracy_score(labels, decisions(posterior, config, **chosen)),
                "prior": accuracy_score(deployed_labels, decisions(deployed, config, **chosen)),
            }
            for name, chosen in points.items()
        }
        for aim in points:
            others = [scores[name][aim] for name in points if name != aim]
            assert scores[aim][aim] > max(others) + 0.01

    def test_most_likely_is_the_posterior(self):
        posterior = gaussian_classes(PRIOR, 10)[1]
        torch.testing.assert_close(operating_point_scores(posterior, BertConfig()), posterior)

    def test_a_prior_is_bayes_rule(self):
        posterior = gaussian_classes(PRIOR, 10)[1]
        scores = operating_point_scores(posterior, config_of(class_prior=PRIOR.tolist()), prior=[0.2, 0.3, 0.5])
        torch.testing.assert_close(scores, shift_prior(posterior, PRIOR, [0.2, 0.3, 0.5]))

    def test_multi_label_shifts_each_label(self):
        config = config_of(multi_label=True, class_prior=[0.9, 0.2, 0.01])
        posterior = torch.tensor([[0.9, 0.2, 0.01], [0.5, 1.0, 0.0]])
        balanced = operating_point_scores(posterior, config, "balanced")
        torch.testing.assert_close(balanced, torch.tensor([[0.5, 0.5, 0.5], [0.1, 1.0, 0.0]]))
        shares = operating_point_scores(posterior, config, prior=[0.1, 0.2, 0.03])
        torch.testing.assert_close(shares[0], torch.tensor([0.1, 0.2, 0.03]))
        pairs = [shift_prior(torch.stack([1 - p, p], -1), [0.8, 0.2], [0.7, 0.3])[:, 1] for p in posterior.unbind(1)]
        torch.testing.assert_close(operating_point_scores(posterior, config, prior=0.3)[:, 1], pairs[1])

    def test_shares_of_0_and_1_leave_no_doubt(self):
        config = config_of(multi_label=True, class_prior=[0.9, 0.2, 0.5])
        for posterior in ([1.0, 0.0, 0.3], [0.0, 1.0, 1.0]):
            scores = operating_point_scores(torch.tensor([posterior]), config, prior=[0.0, 1.0, 0.5])
            assert scores[0, :2].tolist() == [0, 1] and scores[0, 2].item() == pytest.approx(posterior[2])

    @pytest.mark.parametrize(
        "chosen", [{"operating_point": "balanced"}, {"operating_point": "f1"}, {"prior": [0.1, 0.5, 0.9]}]
    )
    def test_several_labels_can_be_exported(self, chosen):
        config = config_of(multi_label=True, class_prior=[0.9, 0.2, 0.5], thresholds=[0.1, 0.5, 0.9], alpha=None)

        class Decides(torch.nn.Module):
            def forward(self, logits):
                return operating_point_scores(posterior_from_config(logits, config), config, **chosen)

        logits = torch.randn(4, 3)
        exported = torch.export.export(Decides(), (logits,)).module()
        torch.testing.assert_close(exported(logits), Decides()(logits))

    def test_thresholds_come_to_lie_at_a_half(self):
        config = config_of(multi_label=True, thresholds=[0.3, 0.5, 0.9])
        posterior = torch.tensor([[0.3, 0.5, 0.9], [0.31, 0.49, 0.91]])
        scores = operating_point_scores(posterior, config, "f1")
        torch.testing.assert_close(scores[0], torch.full((3,), 0.5))
        assert (scores[1] > 0.5).tolist() == [True, False, True]
        binary = operating_point_scores(torch.tensor([[0.6, 0.4]]), config_of(2, thresholds=[0.4]), "f1")
        torch.testing.assert_close(binary, torch.tensor([[0.5, 0.5]]))

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            (
                "operating_point: expected one of as_trained, most_likely, balanced, f1, but got 'best'",
                {"operating_point": "best"},
            ),
            ("prior: it is an operating point itself", {"operating_point": "balanced", "prior": [0.5, 0.5, 0]}),
            ("target_prior: expected probabilities that sum to 1", {"prior": [0.5, 0.5, 0.5]}),
            ("target_prior: expected one", {"prior": [0.5, 0.5]}),
            ("config: focal_loss holds no thresholds; FocalTrainer.calibrate finds them", {"operating_point": "f1"}),
        ],
    )
    def test_wrong_arguments_are_refused(self, message, kwargs):
        with pytest.raises(ValueError, match=message):
            operating_point_scores(torch.tensor([[0.5, 0.3, 0.2]]), config_of(class_prior=[0.6, 0.2, 0.2]), **kwargs)

    def test_a_prior_that_is_no_number(self):
        config = config_of(multi_label=True, class_prior=[0.6, 0.2, 0.2])
        with pytest.raises(
            ValueError, match="prior: expected a share of examples, or one for each label, but got 'rare'"
        ):
            operating_point_scores(torch.full((1, 3), 0.5), config, prior="rare")

    def test_a_class_without_examples_has_no_balanced_score(self):
        with pytest.raises(ValueError, match="source_prior: expected more than 0 for every class that occurs"):
            operating_point_scores(torch.tensor([[0.6, 0.4]]), config_of(2, class_prior=[1.0, 0.0]), "balanced")
        config = config_of(2, multi_label=True, class_prior=[0.4, 0.0])
        with pytest.raises(ValueError, match=r"config: the class prior of labels \[1\] is 0 or 1"):
            operating_point_scores(torch.tensor([[0.6, 0.4]]), config, "balanced")

    @pytest.mark.parametrize("prior", [1.5, [0.1, 0.2], [0.1, 0.2, float("nan")]])
    def test_wrong_shares_are_refused(self, prior):
        config = config_of(multi_label=True, class_prior=[0.6, 0.2, 0.2])
        with pytest.raises(ValueError, match="prior: expected a share of examples in"):
            operating_point_scores(torch.rand(1, 3), config, prior=prior)

    def test_unknown_class_prior_is_refused(self):
        with pytest.raises(ValueError, match="config: focal_loss holds no class_prior"):
            operating_point_scores(torch.rand(1, 3), config_of(class_prior=None), "balanced")


def decisions(posterior, config, **chosen):
    return operating_point_scores(posterior, config, **chosen).argmax(-1)


class TestThresholds:
    def test_no_other_threshold_has_a_larger_f1(self):
        generator = torch.Generator().manual_seed(0)
        posterior = torch.rand(200, 5, generator=generator) ** 3
        labels = torch.bernoulli(posterior, generator=generator).long()
        for k, threshold in enumerate(fit_thresholds(posterior, labels)):
            thresholds = torch.cat([torch.tensor([threshold, 0.5]), posterior[:, k]])
            predicted = (posterior[:, k] >= thresholds[:, None]).long()
            best, at_half, *others = 2 * predicted @ labels[:, k] / (predicted.sum(1) + labels[:, k].sum())
            assert best == pytest.approx(max(others)) and best > at_half

    def test_is_half_the_best_f1_for_calibrated_probabilities(self):
        generator = torch.Generator().manual_seed(0)
        posterior = torch.rand(200_000, generator=generator) ** 2
        labels = torch.bernoulli(posterior, generator=generator)
        (threshold,) = fit_thresholds(posterior, labels)
        assert threshold == pytest.approx(f1_score(labels, posterior >= threshold) / 2, abs=0.02)

    def test_label_without_positives_keeps_its_default(self):
        posterior, labels = torch.rand(10, 2), torch.tensor([[1, 0]] * 10)
        assert fit_thresholds(posterior, labels)[1] == 0.5
        assert fit_thresholds(posterior, labels, default=0.4)[1] == 0.4

    def test_label_of_a_poor_f1_keeps_its_default(self):
        posterior = torch.linspace(0.01, 0.4, 40).repeat(2, 1).T
        labels = torch.zeros(40, 2)
        labels[10, 0] = labels[39, 1] = 1  # in the middle, and on top
        everything, top = fit_thresholds(posterior, labels)
        assert (posterior[:, 0] >= everything).sum() == 30 and (posterior[:, 1] >= top).sum() == 1
        assert fit_thresholds(posterior, labels, min_f1=2 / 31 + 1e-9) == [0.5, top]
        assert fit_thresholds(posterior, labels, min_f1=2 / 31 - 1e-9) == [everything, top]
        assert fit_thresholds(posterior, labels, min_f1=0.9, default=0.7) == [0.7, top]

    def test_labels_of_few_positives_share_a_threshold(self):
        generator = torch.Generator().manual_seed(0)
        posterior = torch.rand(200, 4, generator=generator)
        labels = torch.rand(200, 4, generator=generator) < posterior * torch.tensor([1.0, 0.05, 0.04, 0.03])
        labels = labels.long()
        labels[:20, 3] = -100
        alone = fit_thresholds(posterior, labels)
        rare = int((labels == 1)[:, 1:].sum(0).max()) + 1
        first, *others = fit_thresholds(posterior, labels, min_positives=rare)
        known = labels[:, 1:] != -100
        (pooled,) = fit_thresholds(posterior[:, 1:][known], labels[:, 1:][known])
        assert first == alone[0] and others == [pooled] * 3 and len({*alone}) == 4

    def test_lies_between_two_probabilities(self):
        assert fit_thresholds(torch.tensor([0.2, 0.6]), torch.tensor([0, 1])) == [pytest.approx(0.4)]
        assert fit_thresholds(torch.tensor([0.2, 0.6]), torch.tensor([1, 1])) == [pytest.approx(0.1)]
        assert 0 < fit_thresholds(torch.tensor([0.0, 0.0]), torch.tensor([1, 1]))[0] < 1

    @pytest.mark.parametrize(
        "message, posterior, labels",
        [
            (
                r"labels: expected the shape of posterior.* but got \(3,\) for \(2, 3\)",
                torch.rand(2, 3),
                torch.zeros(3),
            ),
            ("labels: expected the shape of posterior", torch.rand(0, 3), torch.zeros(0, 3)),
            (r"labels: expected values in \[0, 1\], but got 0 to 2", torch.rand(2), torch.tensor([0, 2])),
            (r"posterior: expected values in \[0, 1\]", torch.tensor([0.5, float("nan")]), torch.tensor([0, 1])),
        ],
    )
    def test_wrong_arguments_are_refused(self, message, posterior, labels):
        with pytest.raises(ValueError, match=message):
            fit_thresholds(posterior, labels)

    @pytest.mark.parametrize("name, value", [("default", 2.0), ("min_f1", -0.1), ("min_positives", -1)])
    def test_settings_out_of_their_range_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name}: expected a (finite )?number .*, but got {value}"):
            fit_thresholds(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), **{name: value})


class TestTwoClasses:
    """950 of one and 50 of the other, under any order of their names."""

    def data(self, rare):
        rng = np.random.default_rng(0)
        labels = np.array([0] * 950 + [1] * 50)
        logits = np.stack([np.zeros(1000), rng.normal(3.0 * labels - 3.5, 1.5)], 1)
        order = [0, 1] if rare == 1 else [1, 0]
        return torch.tensor(logits[:, order]), torch.tensor(labels if rare == 1 else 1 - labels), order

    def config(self, order, **settings):
        names = [["good", "bad"][k] for k in order]
        config = config_of(
            2, class_prior=[[0.95, 0.05][k] for k in order], alpha=None, operating_point="f1", **settings
        )
        config.id2label = dict(enumerate(names))
        return config

    @pytest.mark.parametrize("positive_label", [None, "bad", "good"])
    def test_the_names_decide_nothing(self, positive_label):
        decided = []
        for rare in (0, 1):
            logits, labels, order = self.data(rare)
            config = self.config(order, thresholds=[0.5])
            found = calibrate_config(logits, labels, config, positive_label=positive_label)
            assert config.id2label[found["positive_label"]] == positive_label or positive_label is None
            decided.append([config.id2label[k] for k in decide(logits, config).tolist()])
        assert decided[0] == decided[1]

    def test_the_rare_class_has_the_best_f1(self):
        logits, labels, order = self.data(rare=0)
        scores = {}
        for name in ("good", "bad", None):
            config = self.config(order, thresholds=[0.5])
            calibrate_config(logits, labels, config, positive_label=name)
            scores[name] = f1_score(labels, decide(logits, config), pos_label=0)
        assert scores[None] == scores["bad"] > scores["good"] + 0.01

    def test_older_records_have_the_threshold_of_class_1(self):
        config = self.config([0, 1], thresholds=[0.3])
        posterior = torch.tensor([[0.69, 0.31], [0.71, 0.29]])
        assert operating_point_scores(posterior, config, "f1").argmax(-1).tolist() == [1, 0]

    @pytest.mark.parametrize(
        "message, num_labels, positive_label",
        [
            (r"positive_label: expected 0, 1 or one of \['LABEL_0', 'LABEL_1'\], but got 'fraud'", 2, "fraud"),
            ("positive_label: expected 0, 1 or one of .* but got 2", 2, 2),
            ("positive_label: it is for two classes", 3, 1),
        ],
    )
    def test_other_labels_are_refused(self, message, num_labels, positive_label):
        config = config_of(num_labels)
        before = dict(config.focal_loss)
        with pytest.raises(ValueError, match=message):
            labels = torch.arange(6) % num_labels
            calibrate_config(torch.randn(6, num_labels), labels, config, positive_label=positive_label)
        assert config.focal_loss == before


class TestCalibrateConfig:
    def test_ignored_labels_of_two_classes(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(40, 5, 2, generator=generator)
        labels = torch.bernoulli((2 * logits).softmax(-1)[..., 1], generator=generator).long()
        ignored = torch.rand(40, 5, generator=generator) < 0.3
        found = calibrate_config(logits, labels.masked_fill(ignored, -100), config_of(2))
        assert found == calibrate_config(logits[~ignored], labels[~ignored], config_of(2))
        assert found != calibrate_config(logits, labels, config_of(2)) and len(found["thresholds"]) == 1

    @pytest.mark.parametrize("num_labels", [2, 3])
    @pytest.mark.parametrize("dtype", [torch.long, torch.float32])
    def test_one_hot_rows_of_a_single_label_are_class_ids(self, num_labels, dtype):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(60, 3, num_labels, generator=generator)
        labels = logits.flatten(0, 1).softmax(-1).multinomial(1, generator=generator).reshape(60, 3)
        rows = torch.nn.functional.one_hot(labels, num_labels).to(dtype)
        expected = calibrate_config(logits, labels, config_of(num_labels))
        assert calibrate_config(logits, rows, config_of(num_labels)) == expected
        labels[::4], rows[::4] = -100, -100
        expected = calibrate_config(logits, labels, config_of(num_labels))
        assert calibrate_config(logits, rows, config_of(num_labels)) == expected

    def test_class_probabilities(self):
        """The temperature is that of `fit_temperature`, the threshold that of the most probable class."""
        generator = torch.Generator().manual_seed(0)
        logits, noise = torch.randn(2, 80, 2, generator=generator)
        probabilities = (3 * logits + noise).softmax(-1)
        found = calibrate_config(logits, probabilities, config_of(2))
        posterior = posterior_from_config(logits, config_of(2))
        assert found["temperature"] == fit_temperature(posterior, probabilities, multi_label=False)
        scaled = apply_temperature(posterior, found["temperature"])
        positive = found["positive_label"]
        is_positive = (probabilities.argmax(-1) == positive).long()
        assert found["thresholds"] == fit_thresholds(scaled[:, positive], is_positive)

    def test_rows_of_several_labels_that_are_not_known(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(80, 3, generator=generator)
        labels = torch.bernoulli(logits.sigmoid(), generator=generator)
        labels[::4] = -100
        known = labels[:, 0] >= 0
        expected = calibrate_config(logits[known], labels[known], config_of(3, multi_label=True))
        assert calibrate_config(logits, labels, config_of(3, multi_label=True)) == expected

    def test_labels_of_one_logit(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(80, 1, generator=generator)
        labels = torch.bernoulli(logits.sigmoid(), generator=generator).long()
        expected = calibrate_config(logits, labels, config_of(1, multi_label=True))
        assert calibrate_config(logits, labels[:, 0], config_of(1, multi_label=True)) == expected

    def test_probabilities_of_several_labels(self):
        generator = torch.Generator().manual_seed(0)
        logits, noise = torch.randn(2, 80, 2, generator=generator)
        probabilities = (logits + noise).sigmoid()
        found = calibrate_config(logits, probabilities, config := config_of(2, multi_label=True))
        expected = fit_thresholds(posterior_from_config(logits, config), (probabilities > 0.5).long(), min_f1=0.2)
        assert found["thresholds"] == expected

    @pytest.mark.parametrize(
        "message, labels, config",
        [
            ("labels: expected probabilities that sum to 1, but got sums from 1 to 2", [[1, 1], [0, 1]], config_of(2)),
            ("labels: expected probabilities in", [[-100.0, 1.0], [0.0, 1.0]], config_of(2)),
            ("labels: expected shape", [0, 1, 1], config_of(2)),
            (
                "config: labels of the shape of the logits take a problem_type",
                [[1.0, 0.0], [0.0, 1.0]],
                BertConfig(num_labels=2, focal_loss={"gamma": 2.0, "alpha": None}),
            ),
        ],
    )
    def test_rows_that_are_refused(self, message, labels, config):
        before = dict(config.focal_loss)
        with pytest.raises(ValueError, match=message):
            calibrate_config(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), torch.tensor(labels), config)
        assert config.focal_loss == before

    def test_a_rare_label_of_several_is_not_predicted_nearly_everywhere(self):
        generator = torch.Generator().manual_seed(0)
        scores, chance = torch.randn(800, generator=generator), torch.randn(800, generator=generator) / 10
        labels = torch.bernoulli(scores.sigmoid(), generator=generator)
        unlucky = torch.zeros(800)
        unlucky[chance.argsort()[100]] = 1
        logits = torch.stack([scores, chance - 5], 1)
        found = calibrate_config(logits, torch.stack([labels, unlucky], 1), config := config_of(multi_label=True))
        posterior = posterior_from_config(logits, config)
        assert found["thresholds"] == [fit_thresholds(posterior, torch.stack([labels, unlucky], 1))[0], 0.5]
        assert (posterior[:, 1] >= fit_thresholds(posterior[:, 1], unlucky)[0]).float().mean() > 0.8
        # The only label of a model is searched for at any price.
        two_classes = torch.stack([torch.zeros(800), chance - 5], 1)
        assert calibrate_config(two_classes, unlucky.long(), config_of(2))["thresholds"][0] < 0.1

    def test_settings_stay_as_they_were(self):
        config = config_of(alpha=[1.0, 2.0, 4.0], temperature=9.0)
        before = FocalSettings.from_config(config)
        found = calibrate_config(torch.randn(9, 3), torch.arange(9) % 3, config)
        assert found.keys() == {"temperature"}
        assert FocalSettings.from_config(config) == replace(before, **found)

    def test_nothing_is_lost_where_nothing_can_be_fitted(self):
        config = config_of(temperature=9.0)
        before = dict(config.focal_loss)
        with pytest.raises(ValueError, match="labels: expected"):
            calibrate_config(torch.randn(9, 3), torch.full((9,), -100), config)
        assert config.focal_loss == before


def test_thresholds_refuse_what_is_no_answer_and_no_number_of_positives():
    posterior = torch.tensor([0.2, 0.7])
    with pytest.raises(ValueError, match="^labels: expected 0, 1 or -100"):
        fit_thresholds(posterior, torch.tensor([0.3, 0.7]))
    with pytest.raises(ValueError, match="^min_positives: expected a finite number >= 0, but got None"):
        fit_thresholds(posterior, torch.tensor([0, 1]), min_positives=None)


def test_scores_of_half_precision_are_float32():
    settings = {"gamma": 2.0, "class_prior": [0.25, 0.5]}
    config = BertConfig(num_labels=2, problem_type="multi_label_classification", focal_loss=settings)
    scores = operating_point_scores(torch.tensor([[0.25, 0.5]]).half(), config, "balanced")
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.5]]))
