"""From a model's stored settings to its posterior, and from that to the decision that each operating point is best at."""

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import BertConfig

from hf_focal import (
    apply_temperature,
    class_posterior,
    decide,
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
        "chosen", [{"operating_point": "balanced"}, {"operating_point": "thresholds"}, {"prior": [0.1, 0.5, 0.9]}]
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
        scores = operating_point_scores(posterior, config, "thresholds")
        torch.testing.assert_close(scores[0], torch.full((3,), 0.5))
        assert (scores[1] > 0.5).tolist() == [True, False, True]
        binary = operating_point_scores(torch.tensor([[0.6, 0.4]]), config_of(2, thresholds=[0.4]), "thresholds")
        torch.testing.assert_close(binary, torch.tensor([[0.5, 0.5]]))

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            (
                "operating_point: expected one of as_trained, most_likely, balanced, thresholds, but got 'best'",
                {"operating_point": "best"},
            ),
            ("prior: it is an operating point itself", {"operating_point": "balanced", "prior": [0.5, 0.5, 0]}),
            ("^prior: expected probabilities that sum to 1", {"prior": [0.5, 0.5, 0.5]}),
            ("^prior: expected one", {"prior": [0.5, 0.5]}),
            (
                "operating_point: 'thresholds' is for two classes or several labels, but there are 3 classes; use 'most_lik",
                {"operating_point": "thresholds"},
            ),
        ],
    )
    def test_wrong_arguments_are_refused(self, message, kwargs):
        with pytest.raises(ValueError, match=message):
            operating_point_scores(torch.tensor([[0.5, 0.3, 0.2]]), config_of(class_prior=[0.6, 0.2, 0.2]), **kwargs)

    def test_thresholds_that_were_not_fitted(self):
        with pytest.raises(
            ValueError, match="config: focal_loss holds no thresholds; FocalTrainer.calibrate fits them"
        ):
            operating_point_scores(torch.tensor([[0.6, 0.4]]), config_of(class_prior=[0.6, 0.4]), "thresholds")

    def test_a_prior_that_is_no_number(self):
        config = config_of(multi_label=True, class_prior=[0.6, 0.2, 0.2])
        with pytest.raises(
            ValueError, match="prior: expected a share of examples, or one for each label, but got 'rare'"
        ):
            operating_point_scores(torch.full((1, 3), 0.5), config, prior="rare")

    def test_a_class_without_examples_has_no_balanced_score(self):
        with pytest.raises(ValueError, match="source_prior: expected numbers above 0 for all classes that occur"):
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


def test_scores_of_half_precision_are_float32():
    settings = {"gamma": 2.0, "class_prior": [0.25, 0.5]}
    config = BertConfig(num_labels=2, problem_type="multi_label_classification", focal_loss=settings)
    scores = operating_point_scores(torch.tensor([[0.25, 0.5]]).half(), config, "balanced")
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.5]]))


def test_decisions_of_an_array_are_those_of_its_tensor():
    logits = torch.tensor([[0.6, 0.4], [0.1, 2.0]])
    config = config_of(class_prior=[0.6, 0.4])
    assert decide(logits.numpy(), config, "balanced").tolist() == decide(logits, config, "balanced").tolist()
