"""The metrics against their formulas, and on data where classes are missing."""

import warnings
from functools import partial

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score
from transformers import EvalPrediction

from hf_focal.metrics import ImbalancedClassification, class_groups, compute_metrics, mean_and_interval


@pytest.fixture(autouse=True)
def offline_and_quiet(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("network"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_data(num_examples=200, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(
        num_classes, num_examples, p=np.arange(num_classes, 0, -1) / (num_classes * (num_classes + 1) / 2)
    )
    return rng.normal(size=(num_examples, num_classes)) + 2 * np.eye(num_classes)[labels], labels


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "counts, groups",
    [
        ([5, 9], ([1], [], [0])),
        ([1, 2, 3], ([2], [1], [0])),
        ([20, 900, 60, 5, 300], ([1, 4], [2], [0, 3])),
        ([7, 7, 7, 7], ([], [0, 1, 2, 3], [])),
        ([9, 9, 1, 1], ([0, 1], [], [2, 3])),
    ],
)
def test_class_groups(counts, groups):
    assert tuple(class_groups(counts).values()) == groups


@pytest.mark.parametrize("counts", [[], [[1, 2]], [1, -1], [1, float("nan")], ["a"]])
def test_class_groups_refuses(counts):
    with pytest.raises(ValueError, match="label_counts: expected one number >= 0 per class"):
        class_groups(counts)


def test_single_label_formulas():
    logits, labels = random_data()
    result = ImbalancedClassification().compute(predictions=logits, references=labels, label_counts=[9, 5, 2, 1])
    p, guess = softmax(logits), logits.argmax(1)
    f1 = np.array(
        [2 * ((guess == k) & (labels == k)).sum() / ((guess == k).sum() + (labels == k).sum()) for k in range(4)]
    )
    expected = {
        "accuracy": (guess == labels).mean(),
        "balanced_accuracy": np.mean([(guess[labels == k] == k).mean() for k in range(4)]),
        "f1_macro": f1.mean(),
        "f1_micro": (guess == labels).mean(),
        "f1_weighted": f1 @ np.bincount(labels) / len(labels),
        "f1_head": f1[0],
        "f1_mid": f1[1:3].mean(),
        "f1_tail": f1[3],
        "brier_score": ((p - np.eye(4)[labels]) ** 2).sum(1).mean(),
        "negative_log_likelihood": -np.log(p[np.arange(len(p)), labels]).mean(),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result["per_class"]["2"]["support"] == (labels == 2).sum()
    assert -1 <= result["matthews_correlation"] <= 1
    assert result["f1_macro"] != pytest.approx(
        f1_score(labels, guess, average="weighted")
    )  # a macro, not a weighted one


def test_multi_label_formulas():
    rng = np.random.default_rng(0)
    labels = (rng.random((100, 3)) < [0.5, 0.2, 0]).astype(float)
    logits = rng.normal(size=(100, 3)) + labels
    result = ImbalancedClassification("multilabel").compute(
        predictions=logits, references=labels, label_names=list("abc")
    )
    p = 1 / (1 + np.exp(-logits))
    precision = [average_precision_score(labels[:, k], logits[:, k]) for k in range(2)]
    assert result["average_precision_macro"] == pytest.approx(np.mean(precision))  # the third label never occurs
    assert result["per_class"]["b"]["average_precision"] == pytest.approx(precision[1])
    assert "average_precision" not in result["per_class"]["c"]
    assert result["brier_score"] == pytest.approx(((p - labels) ** 2).mean())
    likelihood = np.where(labels == 1, p, 1 - p)
    assert result["negative_log_likelihood"] == pytest.approx(-np.log(likelihood).mean())
    assert result["accuracy"] == pytest.approx(((logits > 0) == labels).all(1).mean())


def test_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 20_000)
    is_right = rng.random(20_000) < p
    labels = np.where(is_right, 0, 1)
    logits = np.stack([np.log(p), np.log(1 - p)], 1)
    error = partial(ImbalancedClassification().compute, references=labels)
    assert error(predictions=logits)["expected_calibration_error"] < 0.015
    assert error(predictions=3 * logits)["expected_calibration_error"] > 0.05  # over-confident
    constant = np.tile(np.log([0.7, 0.3]), (10, 1))
    result = ImbalancedClassification().compute(predictions=constant, references=[0] * 4 + [1] * 6)
    assert result["expected_calibration_error"] == pytest.approx(0.3)


def calibration_error(confidence, is_right):
    """Of binary examples whose most likely class, 0, has these probabilities."""
    p = np.asarray(confidence, dtype=float)
    logits = np.stack([np.log(p), np.log1p(-p)], 1)
    labels = np.where(is_right, 0, 1)
    return ImbalancedClassification().compute(predictions=logits, references=labels)["expected_calibration_error"]


def test_bins_of_the_calibration_error():
    """15 of equal mass. In 30 examples of different confidence each holds two, whose gaps cancel only within it."""
    confidence = np.linspace(0.6, 0.9, 30)
    is_right = np.arange(30) % 2 == 0
    pairs = (is_right - confidence).reshape(15, 2)
    assert calibration_error(confidence, is_right) == pytest.approx(np.abs(pairs.sum(1)).sum() / 30)
    shuffled = np.random.default_rng(0).permutation(30)
    same = calibration_error(confidence[shuffled], is_right[shuffled])
    assert same == pytest.approx(np.abs(pairs.sum(1)).sum() / 30)


def test_equal_confidences_share_a_bin():
    """Where an edge is the confidence of many examples, they are all above it, and not with the lower ones."""
    confidence, is_right = np.array([0.6] + [0.7] * 15), np.arange(16) == 0
    assert (np.quantile(confidence, np.arange(1, 15) / 15) == 0.7).all()
    gaps = is_right - confidence
    expected = (abs(gaps[0]) + abs(gaps[1:].sum())) / 16
    assert calibration_error(confidence, is_right) == pytest.approx(expected)
    assert expected != pytest.approx(abs(gaps.sum()) / 16)


@pytest.mark.parametrize("references", [[0, 0, 0], [1, 1, 1], [0, 3, 0]])
@pytest.mark.parametrize("guess", [[0, 0, 0], [2, 1, 0]])
def test_absent_classes(references, guess):
    logits = 1e4 * np.eye(4)[guess]
    result = ImbalancedClassification().compute(predictions=logits, references=references, label_counts=[4, 3, 2, 1])
    numbers = [value for name, value in result.items() if name != "per_class"]
    assert np.isfinite(numbers).all() and len(result["per_class"]) == 4


def test_a_group_without_examples_has_no_score():
    result = ImbalancedClassification().compute(predictions=[[1.0, 0, 0]], references=[0], label_counts=[3, 2, 1])
    assert result["f1_head"] == 1 and "f1_tail" not in result


def test_batches_and_combination():
    logits, labels = random_data()
    metric = ImbalancedClassification()
    for rows in np.split(np.arange(200), 4):
        metric.add_batch(predictions=logits[rows], references=labels[rows])
    whole = ImbalancedClassification().compute(predictions=logits, references=labels)
    assert metric.compute() == whole
    assert evaluate.combine([ImbalancedClassification()]).compute(predictions=logits, references=labels) == whole


def test_tokens_for_trainer():
    logits, labels = random_data(60)
    masked = labels.copy()
    masked[::3] = -100
    tokens = EvalPrediction(predictions=(logits.reshape(10, 6, 4), None), label_ids=masked.reshape(10, 6))
    valid = EvalPrediction(predictions=logits[masked >= 0], label_ids=labels[masked >= 0])
    names = partial(compute_metrics, label_names=["O", "PER", "LOC", "ORG"], per_class=True)
    assert names(tokens) == names(valid) and 0 < names(tokens)["PER_f1"] < 1
    assert all(isinstance(value, (float, int)) for value in names(tokens).values())
    assert (
        compute_metrics(EvalPrediction(predictions=logits.reshape(10, 6, 4), label_ids=np.full((10, 6), -100))) == {}
    )


def test_multi_label_for_trainer():
    labels = np.array([[1.0, 0], [0, 1], [1, 1]])
    result = compute_metrics(EvalPrediction(predictions=10 * labels - 5, label_ids=labels))
    assert result["f1_micro"] == result["average_precision_macro"] == 1 and "balanced_accuracy" not in result


def test_mean_and_interval():
    values = [0.9, 0.8, 0.85, 0.7]
    mean, half = mean_and_interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert (mean - half, mean + half) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    assert mean_and_interval([*values, float("nan")]) == (mean, half)  # what is not known does not count
    assert mean_and_interval(np.array(values)) == mean_and_interval(iter(values)) == (mean, half)
    assert mean_and_interval([2, 2]) == (2, 0) and type(mean_and_interval(np.float32([1, 2]))[1]) is float
    assert mean_and_interval([0.5]) == (0.5, pytest.approx(float("nan"), nan_ok=True))
    assert np.isnan(mean_and_interval([])).all() and np.isnan(mean_and_interval([float("nan")])).all()


@pytest.mark.parametrize(
    "message, predictions, references, options",
    [
        ("references: expected -100 or class ids from 0 to 1, but got 2", [[0.0, 1]], [2], {}),
        ("references: expected at least one label other than -100", [[0.0, 1]], [-100], {}),
        ("predictions: expected finite logits", [[float("nan"), 1]], [0], {}),
        ("label_names: expected 2 different names", [[0.0, 1]], [0], {"label_names": ["a"]}),
        ("label_counts: expected 2 numbers, but got 3", [[0.0, 1]], [0], {"label_counts": [1, 2, 3]}),
    ],
)
def test_refuses(message, predictions, references, options):
    with pytest.raises(ValueError, match=message):
        ImbalancedClassification().compute(predictions=predictions, references=references, **options)


def test_unknown_configuration_is_refused():
    with pytest.raises(ValueError, match="config_name: expected None, 'default' or 'multilabel'"):
        ImbalancedClassification("tokens")
