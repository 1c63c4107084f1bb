"""What a model decides at each operating point, and what that scores: by hand, by scikit-learn and by repetition."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score, recall_score
from transformers import BertConfig, EvalPrediction

from hf_focal import (
    FocalSettings,
    calibrate_config,
    compute_metrics,
    decide,
    evaluate_model,
    evaluate_operating_points,
    operating_point_scores,
    posterior_from_config,
)
from hf_focal.evaluation import operating_points_of


PRIOR = [0.7, 0.2, 0.1]


def config_of(num_labels=3, multi_label=False, **settings):
    kind = f"{'multi' if multi_label else 'single'}_label_classification"
    record = {"gamma": 2.0, "alpha": [0.4, 1.0, 4.0][:num_labels], "class_prior": PRIOR[:num_labels], **settings}
    return BertConfig(num_labels=num_labels, problem_type=kind, focal_loss=record)


def multi_label_config(**settings):
    weights = [[0.5, 0.6, 0.9], [2.0, 4.0, 9.0]]
    return config_of(multi_label=True, alpha=weights, thresholds=[0.2, 0.5, 0.7], **settings)


def random_data(multi_label=False, num=300, seed=0):
    rng = np.random.default_rng(seed)
    if multi_label:
        labels = (rng.random((num, 3)) < PRIOR).astype(float)
        return torch.tensor(rng.normal(2 * labels - 1, 1.5)), torch.tensor(labels)
    labels = rng.choice(3, num, p=PRIOR)
    return torch.tensor(rng.normal(1.5 * np.eye(3)[labels], 1.0)), torch.tensor(labels)


class TestDecide:
    def test_as_trained_is_the_default_and_the_decision_of_the_logits(self):
        logits, _ = random_data()
        for config in (config_of(), BertConfig(num_labels=3), config_of(temperature=0.3)):
            assert (decide(logits, config) == logits.argmax(-1)).all()
        assert (decide(logits, config_of()) != decide(logits, config_of(), "most_likely")).any()
        rows, _ = random_data(multi_label=True)
        rows[0] = torch.tensor([0.0, 1e-30, -1e-30])
        assert (decide(rows, multi_label_config()) == (rows > 0)).all()

    @pytest.mark.parametrize("point", ["most_likely", "balanced"])
    def test_the_others_decide_by_the_posterior(self, point):
        logits, _ = random_data()
        config = config_of()
        scores = operating_point_scores(posterior_from_config(logits, config), config, point)
        assert (decide(logits, config, point) == scores.argmax(-1)).all()

    def test_what_is_recorded_is_in_force(self):
        logits, _ = random_data()
        recorded = config_of(operating_point="balanced")
        assert (decide(logits, recorded) == decide(logits, config_of(), "balanced")).all()
        assert (decide(logits, recorded, "as_trained") == logits.argmax(-1)).all()
        # A prior is an operating point of its own.
        assert (decide(logits, recorded, prior=PRIOR) == decide(logits, recorded, "most_likely")).all()

    def test_thresholds(self):
        logits, _ = random_data(multi_label=True)
        config = multi_label_config(operating_point="thresholds")
        posterior = posterior_from_config(logits, config)
        assert (decide(logits, config) == (posterior >= torch.tensor([0.2, 0.5, 0.7]))).all()

    def test_costs_are_the_least_expected_ones(self):
        logits, _ = random_data()
        costs = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 1.0], [20.0, 3.0, 0.0]])
        posterior = posterior_from_config(logits, config_of())
        expected = [min(range(3), key=lambda j: sum(p[i] * costs[i, j] for i in range(3))) for p in posterior.tolist()]
        assert decide(logits, config_of(), costs=costs.tolist()).tolist() == expected
        # All errors alike is the most likely class.
        alike = 1 - torch.eye(3)
        assert (decide(logits, config_of(), costs=alike) == decide(logits, config_of(), "most_likely")).all()
        both = decide(logits, config_of(), costs=alike, prior=[0.1, 0.1, 0.8])
        assert (both == decide(logits, config_of(), prior=[0.1, 0.1, 0.8])).all()

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_too_little_confidence_is_no_decision(self, multi_label):
        logits, _ = random_data(multi_label)
        config = multi_label_config() if multi_label else config_of()
        plain, posterior = decide(logits, config), posterior_from_config(logits, config)
        confidence = (
            torch.where(plain == 1, posterior, 1 - posterior)
            if multi_label
            else posterior.gather(-1, plain[:, None])[:, 0]
        )
        unsure = decide(logits, config, min_confidence=0.8)
        assert ((unsure == -1) == (confidence < 0.8)).all() and 0 < (unsure == -1).double().mean() < 1
        assert (unsure[unsure != -1] == plain[unsure != -1]).all()

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            ("operating_point: expected one of as_trained, .* but got 'best'", {"operating_point": "best"}),
            ("prior: it is an operating point itself", {"operating_point": "as_trained", "prior": PRIOR}),
            ("costs: it is an operating point itself", {"operating_point": "balanced", "costs": [[0, 1], [1, 0]]}),
            ("costs: expected finite numbers of shape .3, 3.", {"costs": [[0, 1], [1, 0]]}),
            ("costs: expected finite numbers", {"costs": [[0, 1, float("nan")]] * 3}),
            ("costs: expected finite numbers .* but got 'high'", {"costs": "high"}),
            ("min_confidence: expected a finite number in .0, 1., but got 2", {"min_confidence": 2}),
            ("operating_point: 'thresholds' is for two classes or several labels", {"operating_point": "thresholds"}),
        ],
    )
    def test_wrong_arguments_are_refused(self, message, kwargs):
        with pytest.raises(ValueError, match=message):
            decide(torch.zeros(1, 3), config_of(), **kwargs)

    def test_costs_of_several_labels_are_refused(self):
        with pytest.raises(ValueError, match="costs: expected one class per example"):
            decide(torch.zeros(1, 3), multi_label_config(), costs=[[0, 1, 1]] * 3)

    def test_gamma_that_follows_p_t_decides_as_trained(self):
        config = config_of(gamma="flsd_53")
        assert decide(torch.tensor([[0.0, 2.0, 1.0]]), config).tolist() == [1]
        with pytest.raises(ValueError, match="no closed-form posterior"):
            decide(torch.zeros(1, 3), config, "balanced")


class TestRecord:
    def test_calibrate_keeps_the_choice(self):
        logits, labels = random_data()
        config = config_of(operating_point="balanced")
        calibrate_config(logits, labels, config)
        assert FocalSettings.from_config(config).operating_point == "balanced"

    @pytest.mark.parametrize(
        "message, settings",
        [
            ("operating_point: expected one of", {"operating_point": "best"}),
            ("operating_point: 'balanced' requires class_prior", {"operating_point": "balanced"}),
            ("operating_point: 'thresholds' requires thresholds", {"operating_point": "thresholds"}),
        ],
    )
    def test_what_cannot_be_decided_is_refused(self, message, settings):
        with pytest.raises(ValueError, match=message):
            FocalSettings(gamma=2.0, **settings)

    def test_points_that_a_model_has(self):
        assert operating_points_of(BertConfig()) == ["as_trained"]
        assert operating_points_of(config_of(gamma="flsd_53")) == ["as_trained"]
        assert operating_points_of(BertConfig(focal_loss={"gamma": 1})) == ["as_trained", "most_likely"]
        assert operating_points_of(multi_label_config()) == ["as_trained", "most_likely", "balanced", "thresholds"]


class TestEvaluateModel:
    def test_decisions_are_those_in_force_and_probabilities_the_posterior(self):
        logits, labels = random_data()
        config = config_of(operating_point="balanced", temperature=1.5)
        found = evaluate_model(logits, labels, config)
        decided, posterior = decide(logits, config), posterior_from_config(logits, config)
        assert found["f1_macro"] == pytest.approx(f1_score(labels, decided, average="macro"))
        assert found["accuracy"] == pytest.approx(accuracy_score(labels, decided))
        nll = -posterior[torch.arange(300), labels].log().mean().item()
        assert found["negative_log_likelihood"] == pytest.approx(nll, rel=1e-6)
        # Negative control: those of the logits are others.
        raw = compute_metrics(EvalPrediction(logits.numpy(), labels.numpy()))
        assert abs(raw["accuracy"] - found["accuracy"]) > 0.01
        assert abs(raw["negative_log_likelihood"] - nll) > 0.01

    def test_of_several_labels(self):
        logits, labels = random_data(multi_label=True)
        labels[::3, 0] = -100
        config = multi_label_config(operating_point="thresholds")
        found = evaluate_model(logits, labels, config)
        known = labels[:, 0] != -100
        of_first = f1_score(labels[known, 0], decide(logits, config)[known, 0])
        assert found["per_class"]["0"]["f1"] == pytest.approx(of_first)

    def test_cross_entropy_as_trained_is_what_compute_metrics_says(self):
        logits, labels = random_data()
        found = evaluate_model(logits, labels, BertConfig(num_labels=3))
        found.pop("per_class")
        assert found == pytest.approx(compute_metrics(EvalPrediction(logits.numpy(), labels.numpy())), rel=1e-6)


class TestEvaluateOperatingPoints:
    def test_of_two_classes_with_precision_and_recall_of_the_rarer_one(self):
        logits, labels = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 2
        config = BertConfig(num_labels=2, focal_loss={"gamma": 2.0, "class_prior": [0.1, 0.9]})
        for name, metrics in evaluate_operating_points(logits, labels, config).items():
            decided = decide(logits, config, name)
            expected = [score(labels == 0, decided == 0) for score in (precision_score, recall_score)]
            assert [metrics["precision"][0], metrics["recall"][0]] == pytest.approx(expected)

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_values_are_those_of_the_metrics(self, multi_label):
        logits, labels = random_data(multi_label)
        if multi_label:
            labels[::4, 1] = -100
        config = multi_label_config() if multi_label else config_of()
        found = evaluate_operating_points(logits, labels, config, label_counts=[70, 20, 10])
        assert [*found] == operating_points_of(config)
        for name, metrics in found.items():
            config.focal_loss = {**config.focal_loss, "operating_point": name}
            expected = evaluate_model(logits, labels, config, label_counts=[70, 20, 10])
            if multi_label:
                decided = decide(logits, config)[labels != -100]
                expected["precision_micro"] = precision_score(labels[labels != -100], decided)
                expected["recall_micro"] = recall_score(labels[labels != -100], decided)
            assert {metric: value for metric, (value, _, _) in metrics.items()} == pytest.approx(
                {metric: expected[metric] for metric in metrics}
            )
            assert {"f1_tail", "f1_macro", "accuracy"} <= metrics.keys()
            assert all(0 <= low <= value <= high <= 1 for value, low, high in metrics.values())

    def test_interval_is_that_of_repeated_data(self):
        """Of accuracy, 1.96 standard deviations to each side."""
        logits, labels = random_data(num=1000)
        value, low, high = evaluate_operating_points(logits, labels, config_of())["as_trained"]["accuracy"]
        half = 1.96 * (value * (1 - value) / 1000) ** 0.5
        assert (high - value) == pytest.approx(half, rel=0.15) and (value - low) == pytest.approx(half, rel=0.15)

    def test_tokens_of_an_example_are_drawn_together(self):
        """Ten equal tokens say no more than one."""
        logits, labels = random_data(num=400)
        alone = evaluate_operating_points(logits, labels, config_of())["balanced"]
        tokens = logits[:, None].expand(-1, 10, -1), labels[:, None].expand(-1, 10).clone()
        together = evaluate_operating_points(*tokens, config_of())["balanced"]
        assert {name: pytest.approx(values) for name, values in alone.items()} == together
        apart = evaluate_operating_points(tokens[0].flatten(0, 1), tokens[1].flatten(), config_of())["balanced"]
        assert apart["accuracy"][2] - apart["accuracy"][1] < 0.5 * (alone["accuracy"][2] - alone["accuracy"][1])

    def test_what_is_ignored_and_weights(self):
        logits, labels = random_data(num=60)
        labels[::5] = -100
        known = labels != -100
        weights = np.random.default_rng(1).integers(1, 5, 60)
        value = evaluate_operating_points(logits, labels, config_of(), sample_weight=weights)["as_trained"]
        guess = logits.argmax(-1)
        expected = balanced_accuracy_score(labels[known], guess[known], sample_weight=weights[known])
        assert value["balanced_accuracy"][0] == pytest.approx(expected)
        assert value["accuracy"][0] == pytest.approx(np.average((guess == labels)[known], weights=weights[known]))

    @pytest.mark.parametrize(
        "message, labels, kwargs",
        [
            ("labels: expected known labels, class ids from 0 to 2, but got 7", [0, 7], {}),
            ("labels: expected known labels, .* but got -1", [0, -1], {}),
            ("labels: expected known labels, .* but got none", [-100, -100], {}),
            ("sample_weight: expected finite numbers >= 0", [0, 1], {"sample_weight": [-1, 1]}),
            ("sample_weight: expected one number for each of 2", [0, 1], {"sample_weight": [1]}),
            ("replicates: expected at least 1", [0, 1], {"replicates": 0}),
            ("label_counts: expected one number >= 0 per class", [0, 1], {"label_counts": [-1, 1, 2]}),
            ("label_counts: expected 3 numbers, but got 2", [0, 1], {"label_counts": [1, 2]}),
        ],
    )
    def test_what_does_not_fit_is_refused(self, message, labels, kwargs):
        with pytest.raises(ValueError, match=message):
            evaluate_operating_points(torch.randn(2, 3), torch.tensor(labels), config_of(), **kwargs)


def test_one_logit_takes_a_problem_type():
    logits, record = torch.tensor([[1.0], [-1.0]]), {"gamma": 2.0}
    config = BertConfig(num_labels=1, problem_type="multi_label_classification", focal_loss=record)
    assert decide(logits, config).tolist() == [[1], [0]]
    assert evaluate_model(logits, torch.tensor([1, 1]), config)["accuracy"] == 0.5
    with pytest.raises(ValueError, match="config: a single logit for two classes requires problem_type"):
        decide(logits, BertConfig(num_labels=1, focal_loss=record))
