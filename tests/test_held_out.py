"""What held-out data tell of a model is fitted, chosen and stored; and nothing is lost where they tell nothing."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score
from transformers import BertConfig

from hf_focal import (
    FocalSettings,
    apply_temperature,
    calibrate_config,
    decide,
    estimate_prior,
    fit_temperature,
    fit_thresholds,
    operating_point_scores,
    posterior_from_config,
)


def config_of(num_labels=3, multi_label=False, **settings):
    problem_type = f"{'multi' if multi_label else 'single'}_label_classification"
    return BertConfig(num_labels=num_labels, problem_type=problem_type, focal_loss={"gamma": 2.0, **settings})


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
            2, class_prior=[[0.95, 0.05][k] for k in order], alpha=None, operating_point="thresholds", **settings
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
        assert operating_point_scores(posterior, config, "thresholds").argmax(-1).tolist() == [1, 0]

    @pytest.mark.parametrize(
        "message, num_labels, positive_label",
        [
            (r"positive_label: expected 0, 1 or one of \['LABEL_0', 'LABEL_1'\], but got 'fraud'", 2, "fraud"),
            ("positive_label: expected 0, 1 or one of .* but got 2", 2, 2),
            ("positive_label: expected two classes", 3, 1),
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
        chosen = {"method": "vector"}
        found = calibrate_config(logits, labels.masked_fill(ignored, -100), config_of(2), **chosen)
        assert found == calibrate_config(logits[~ignored], labels[~ignored], config_of(2), **chosen)
        assert found != calibrate_config(logits, labels, config_of(2), **chosen) and len(found["thresholds"]) == 1

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
                "config: labels of the shape of the logits require a problem_type",
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
        labels = torch.arange(9) % 3
        logits = torch.nn.functional.one_hot(labels, 3) + torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
        found = calibrate_config(logits, labels, config)
        stored = {name: found[name] for name in ("temperature", "calibration_bias")}
        assert found.keys() == {*stored, "method", "negative_log_likelihood"}
        assert FocalSettings.from_config(config) == replace(before, **stored)

    def test_nothing_is_lost_where_nothing_can_be_fitted(self):
        config = config_of(temperature=9.0)
        before = dict(config.focal_loss)
        with pytest.raises(ValueError, match="labels: expected"):
            calibrate_config(torch.randn(9, 3), torch.full((9,), -100), config)
        assert config.focal_loss == before

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_labels_that_are_all_the_same_tell_nothing(self, multi_label):
        config = config_of(2, multi_label, temperature=9.0, thresholds=[0.4] * (1 + multi_label))
        before = dict(config.focal_loss)
        labels = torch.zeros(20, 2) if multi_label else torch.zeros(20, dtype=torch.long)
        with pytest.warns(UserWarning, match="labels: they are all the same.*nothing is stored"):
            assert calibrate_config(torch.randn(20, 2), labels, config) == {}
        assert config.focal_loss == before

    def test_a_model_that_is_always_wrong_is_not_calibrated(self):
        """A temperature of 100 would make "balanced" one class for everything."""
        config = config_of(3, class_prior=[0.6, 0.3, 0.1], temperature=2.0)
        before = dict(config.focal_loss)
        labels = torch.arange(60) % 3
        logits = 5.0 * torch.nn.functional.one_hot((labels + 1) % 3, 3)
        with pytest.warns(UserWarning, match="the probabilities are ignored.*nothing is stored"):
            assert calibrate_config(logits, labels, config) == {}
        assert config.focal_loss == before

    def test_data_without_an_error_have_thresholds_but_no_temperature(self):
        config = config_of(2, temperature=2.0)
        labels = torch.tensor([0] * 30 + [1] * 10)
        logits = torch.stack([torch.zeros(40), torch.where(labels == 1, 2.0, -1.0)], 1)
        with pytest.warns(UserWarning, match="more confident they are made; the probabilities are left as they are"):
            found = calibrate_config(logits, labels, config)
        assert found["temperature"] == 2.0 and found["method"] == "none"
        assert found["reached"]["LABEL_1"]["recall"][0] == 1.0
        assert decide(logits, config, "thresholds").tolist() == labels.tolist()

    def test_inference_mode(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(80, 3, generator=generator, dtype=torch.float64)
        labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
        expected = calibrate_config(logits, labels, config_of())
        with torch.inference_mode():
            assert calibrate_config(logits * 1, labels * 1, config_of()) == expected

    def test_no_method(self):
        logits, labels = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
        found = calibrate_config(logits, labels, config := config_of(2), method="none")
        assert found["temperature"] is None and config.focal_loss["thresholds"] == found["thresholds"]
        with pytest.raises(
            ValueError, match="method: expected one of auto, none, temperature, vector, but got 'platt'"
        ):
            calibrate_config(logits, labels, config, method="platt")

    def test_sample_weights_count_as_repetitions_do(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(90, 2, generator=generator)
        labels = torch.bernoulli((2 * logits).softmax(-1)[:, 1], generator=generator).long()
        times = torch.arange(90) % 3
        weighted = calibrate_config(logits, labels, config_of(2), method="temperature", sample_weight=times)
        rows = torch.arange(90).repeat_interleave(times)
        repeated = calibrate_config(logits[rows], labels[rows], config_of(2), method="temperature")
        assert weighted["temperature"] == pytest.approx(repeated["temperature"])
        assert weighted["thresholds"] == pytest.approx(repeated["thresholds"])


class TestWanted:
    """A rare class that is told apart with errors."""

    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(2000, generator=generator) < 0.1).long()
    logits = torch.stack([torch.zeros(2000), 3.0 * labels - 2.5 + 1.2 * torch.randn(2000, generator=generator)], 1)

    @pytest.mark.parametrize(
        "wanted, score, other",
        [("precision", precision_score, recall_score), ("recall", recall_score, precision_score)],
    )
    def test_is_reached_by_the_recorded_decision(self, wanted, score, other):
        config = config_of(2)
        found = calibrate_config(self.logits, self.labels, config, **{f"wanted_{wanted}": 0.8})
        record = FocalSettings.from_config(config)
        assert record.threshold_criterion == found["threshold_criterion"] == f"{wanted} 0.8"
        decided = decide(self.logits, config, "thresholds")
        reached = found["reached"]["LABEL_1"]
        assert 0.8 <= score(self.labels, decided) == pytest.approx(reached[wanted][0])
        assert other(self.labels, decided) > 0.3

    def test_what_no_threshold_reaches_is_not_stored(self):
        config = config_of(2, thresholds=[0.3], operating_point="thresholds")
        logits = self.logits.clone()
        logits[self.labels.argmin()] = torch.tensor([0.0, 99.0])  # a negative above all positives
        with pytest.warns(UserWarning) as warned:
            found = calibrate_config(logits, self.labels, config, wanted_precision=1.0)
        messages = " ".join(str(warning.message) for warning in warned)
        assert "wanted_precision: 1 is not reachable for LABEL_1; no thresholds are stored" in messages
        assert "operating_point: changed from 'thresholds'" in messages
        assert found["not_reachable"] == ["LABEL_1"] and "thresholds" not in found
        record = FocalSettings.from_config(config)
        assert record.threshold_criterion == "precision 1"
        assert record.thresholds is None and record.operating_point == "as_trained" and record.temperature is not None

    def test_labels_that_do_not_reach_it_are_never_decided(self):
        logits = torch.cat([self.logits[:, 1:], -self.logits[:, 1:]], 1)
        logits[self.labels.argmin(), 1] = 8.0
        labels = torch.stack([self.labels, self.labels], 1)
        config = config_of(2, multi_label=True)
        with pytest.warns(UserWarning, match="not reachable for LABEL_1; these are never predicted"):
            found = calibrate_config(logits, labels, config, wanted_precision=0.8, method="none")
        decided = decide(logits, config, "thresholds")
        assert precision_score(labels[:, 0], decided[:, 0]) >= 0.8 and not decided[:, 1].any()
        assert found["not_reachable"] == ["LABEL_1"]

    @pytest.mark.parametrize("wanted", [{"wanted_precision": 0.8}, {"wanted_recall": 0.8}])
    def test_a_label_without_positives_is_named(self, wanted):
        logits, labels = torch.cat([self.logits[:, 1:], self.logits[:, 1:]], 1), torch.stack([self.labels] * 2, 1)
        labels[:, 1] = 0
        config = config_of(2, multi_label=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = calibrate_config(logits, labels, config, method="none", **wanted)
        name = "not_reachable" if "wanted_precision" in wanted else "without_positives"
        assert found[name] == ["LABEL_1"]
        assert not ("wanted_precision" in wanted and decide(logits, config, "thresholds")[:, 1].any())

    def test_more_than_two_classes_have_no_thresholds(self):
        with pytest.raises(ValueError, match="recall 0.9: thresholds are for two classes or several labels"):
            calibrate_config(torch.randn(9, 3), torch.arange(9) % 3, config_of(), wanted_recall=0.9)


def test_classes_that_training_saw_equally_often_are_told_apart_by_these_data():
    labels = torch.tensor([0] * 8 + [1] * 32)
    logits = torch.nn.functional.one_hot(labels, 2) + torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    for order in ([0, 1], [1, 0]):
        config = config_of(2, class_prior=[0.5, 0.5])
        rare = order[0]
        found = calibrate_config(logits[:, order], labels if rare == 0 else 1 - labels, config)
        assert found["positive_label"] == rare


def test_an_unknown_prior_is_estimated_from_what_is_corrected():
    """A model that has taken in a part of its class prior only would put the rest of it into the estimate."""
    generator = torch.Generator().manual_seed(0)
    prior, deployed = torch.tensor([0.8, 0.15, 0.05]).double(), torch.tensor([0.4, 0.3, 0.3]).double()

    def drawn(frequencies):
        labels = frequencies.multinomial(4000, replacement=True, generator=generator)
        x = torch.nn.functional.one_hot(labels, 3) * 4 + 2 * torch.randn(4000, 3, generator=generator).double()
        return x + 0.4 * prior.log(), labels

    config = config_of(gamma=0.0, class_prior=prior.tolist())
    found = calibrate_config(*drawn(prior), config)
    assert found["method"] == "vector"
    logits, labels = drawn(deployed)
    share = labels.bincount() / len(labels)
    errors = [
        (estimate_prior(posterior, prior).prior - share).abs().max()
        for posterior in (logits.softmax(-1), posterior_from_config(logits, config))
    ]
    assert errors[1] < 0.03 < 0.08 < errors[0], errors


def test_arrays_are_as_good_as_tensors():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    logits[np.arange(200), labels] += 1.5
    configs = [config_of(), config_of()]
    calibrate_config(logits, labels, configs[0])
    calibrate_config(torch.tensor(logits), torch.tensor(labels), configs[1])
    assert configs[0].focal_loss == configs[1].focal_loss
