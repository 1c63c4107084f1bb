"""The metrics against their formulas, and on data where classes are missing."""

import warnings
from functools import partial

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
)
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


as_single_label = partial(compute_metrics, problem_type="single_label_classification", per_class=True)


@pytest.mark.parametrize("dtype", [int, bool, np.float32])
def test_one_hot_rows_of_a_single_label_are_class_ids(dtype):
    logits, labels = random_data(60)
    rows = np.eye(4, dtype=dtype)[labels]
    expected = as_single_label(EvalPrediction(logits, labels))
    assert as_single_label(EvalPrediction(logits, rows)) == expected
    assert as_single_label(EvalPrediction(logits.reshape(10, 6, 4), rows.reshape(10, 6, 4))) == expected
    whole = ImbalancedClassification().compute(predictions=logits, references=rows)
    assert whole == ImbalancedClassification().compute(predictions=logits, references=labels)


def test_rows_of_tokens_without_a_label_do_not_count():
    logits, labels = random_data(60)
    rows = np.eye(4)[labels]
    labels[::3], rows[::3] = -100, -100
    tokens = EvalPrediction(logits.reshape(10, 6, 4), rows.reshape(10, 6, 4))
    assert as_single_label(tokens) == as_single_label(EvalPrediction(logits, labels))
    assert as_single_label(EvalPrediction(logits, np.full((60, 4), -100))) == {}


def test_rows_of_several_labels_that_are_not_known_do_not_count():
    rng = np.random.default_rng(0)
    rows = (rng.random((60, 4)) < 0.4).astype(int)
    logits = rng.normal(size=rows.shape) + rows
    rows[::3] = -100
    expected = compute_metrics(EvalPrediction(logits[rows[:, 0] >= 0], rows[rows[:, 0] >= 0]))
    assert compute_metrics(EvalPrediction(logits, rows)) == expected
    assert compute_metrics(EvalPrediction(logits.reshape(10, 6, 4), rows.reshape(10, 6, 4))) == expected


def test_one_logit_is_that_of_a_label():
    rows = (np.random.default_rng(0).random((60, 1)) < 0.4).astype(int)
    logits = np.random.default_rng(1).normal(size=rows.shape) + rows
    expected = compute_metrics(EvalPrediction(logits, rows))
    assert expected["accuracy"] == ((logits > 0) == rows).mean()
    for problem_type in (None, "single_label_classification", "multi_label_classification"):
        for labels in (rows, rows[:, 0]):
            assert compute_metrics(EvalPrediction(logits, labels), problem_type=problem_type) == expected
    whole = ImbalancedClassification().compute(predictions=logits, references=rows[:, 0])
    assert whole == ImbalancedClassification("multilabel").compute(predictions=logits, references=rows)


def test_class_probabilities_by_hand():
    logits = np.log([[0.8, 0.2], [0.3, 0.7]])
    result = as_single_label(EvalPrediction(logits, np.array([[0.6, 0.4], [0.75, 0.25]])))
    expected = {
        "accuracy": 0.5,  # the most probable class is 0 both times
        "0_recall": 0.5,
        "0_support": 2,
        "negative_log_likelihood": -(0.6 * np.log(0.8) + 0.4 * np.log(0.2) + 0.75 * np.log(0.3) + 0.25 * np.log(0.7))
        / 2,
        # 2 * 0.2 ** 2 with a probability of 0.6, 2 * 0.8 ** 2 with one of 0.4; and so on
        "brier_score": (0.6 * 0.08 + 0.4 * 1.28 + 0.75 * 0.98 + 0.25 * 0.18) / 2,
        "expected_calibration_error": (abs(0.6 - 0.8) + abs(0.25 - 0.7)) / 2,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_class_probabilities_are_each_class_weighted_by_its_probability():
    logits, _ = random_data(60)
    probabilities = softmax(random_data(60, seed=1)[0])
    soft = ImbalancedClassification().compute(predictions=logits, references=probabilities)
    spread = ImbalancedClassification().compute(
        predictions=logits.repeat(4, 0), references=np.tile(range(4), 60), sample_weight=probabilities.ravel()
    )
    of_argmax = ImbalancedClassification().compute(predictions=logits, references=probabilities.argmax(1))
    expected = {**of_argmax, **{name: spread[name] for name in ("brier_score", "negative_log_likelihood")}}
    assert "expected_calibration_error_floor" not in soft
    del soft["expected_calibration_error"], expected["expected_calibration_error"]
    del expected["expected_calibration_error_floor"]
    assert soft.pop("per_class") == expected.pop("per_class") and soft == pytest.approx(expected)


def test_a_masked_class_without_probability_costs_nothing():
    logits = np.array([[0.0, 0.0, -np.inf]])
    result = as_single_label(EvalPrediction(logits, np.array([[0.25, 0.75, 0.0]])))
    assert result["negative_log_likelihood"] == pytest.approx(np.log(2))
    result = as_single_label(EvalPrediction(logits, np.array([[0.25, 0.5, 0.25]])))
    assert result["negative_log_likelihood"] == np.inf


def test_what_rows_mean_has_to_be_said():
    logits, labels = random_data(60)
    one_hot = EvalPrediction(logits, np.eye(4)[labels])
    with pytest.warns(
        UserWarning, match="every row of labels has a single 1.*bind problem_type='single_label"
    ) as found:
        unsaid = compute_metrics(one_hot)
    assert unsaid == compute_metrics(one_hot, problem_type="multi_label_classification")
    assert len(found) == 1 and found[0].filename == __file__
    assert unsaid["accuracy"] < as_single_label(one_hot)["accuracy"] == (logits.argmax(1) == labels).mean()
    with pytest.raises(
        ValueError, match="but got 0.25; for class probabilities bind problem_type='single_label_class"
    ):
        compute_metrics(EvalPrediction(logits[:1], np.full((1, 4), 0.25)))
    one_label = EvalPrediction(logits[:, :1], np.ones((60, 1)))
    assert compute_metrics(one_label)["f1_micro"] > 0  # without a warning: there is no class but one


@pytest.mark.parametrize("weighted", [False, True])
def test_labels_that_are_not_known_do_not_count(weighted):
    """Every metric of a label is that of the examples where it is known, by scikit-learn."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 3)), rng.integers(0, 2, (60, 3))
    known, weights = rng.random((60, 3)) < 0.7, rng.uniform(0.5, 2, 60) if weighted else np.ones(60)
    found = ImbalancedClassification("multilabel").compute(
        predictions=logits, references=np.where(known, labels, -100), sample_weight=weights if weighted else None
    )
    of_cells = np.broadcast_to(weights[:, None], known.shape)[known]
    p = 1 / (1 + np.exp(-logits[known]))
    assert found["negative_log_likelihood"] == pytest.approx(log_loss(labels[known], p, sample_weight=of_cells))
    assert found["brier_score"] == pytest.approx(np.average((labels[known] - p) ** 2, weights=of_cells))
    assert found["f1_micro"] == pytest.approx(f1_score(labels[known], p > 0.5, sample_weight=of_cells))
    right = ((logits > 0) == labels) | ~known
    is_known = known.any(1)
    assert found["accuracy"] == pytest.approx(np.average(right.all(1)[is_known], weights=weights[is_known]))
    for k in range(3):
        rows, of_label = known[:, k], found["per_class"][str(k)]
        arguments = {"y_true": labels[rows, k], "sample_weight": weights[rows]}
        assert of_label["f1"] == pytest.approx(f1_score(y_pred=logits[rows, k] > 0, **arguments))
        expected = average_precision_score(y_score=logits[rows, k], **arguments)
        assert of_label["average_precision"] == pytest.approx(expected)
        assert of_label["support"] == labels[rows, k].sum()


@pytest.mark.parametrize(
    "message, labels, problem_type",
    [
        ("problem_type: expected one of single_label_classification, multi_label_classification", [0], "regression"),
        (r"references: expected shape \(1, 2\), but got \(1,\)", [0], "multi_label_classification"),
        ("references: expected rows of 0, 1 and -100, but got 0.5", [[0.5, 0.5]], "multi_label_classification"),
        ("references: expected probabilities that sum to 1", [[1, 1]], "single_label_classification"),
        (r"references: expected probabilities in \[0, 1\]", [[1.0, -100.0]], "single_label_classification"),
        ("references: expected probabilities in .* nan to nan", [[1.0, np.nan]], "single_label_classification"),
        ("references: expected -100 or class ids from 0 to 1, but got 2", [2], "single_label_classification"),
    ],
)
def test_labels_that_do_not_fit_the_problem_type(message, labels, problem_type):
    with pytest.raises(ValueError, match=message):
        compute_metrics(EvalPrediction(np.array([[0.0, 1.0]]), np.array(labels)), problem_type=problem_type)


def without_bins(metrics):
    """All but the support, which counts examples, and the calibration error: its bins do not heed weights, and its floor
    is higher for one example of weight 2, which is right or wrong as a whole."""
    return {
        name: value for name, value in metrics.items() if "calibration_error" not in name and "support" not in name
    }


@pytest.mark.parametrize("kind", ["ids", "probabilities", "multi_label", "tokens"])
def test_a_weight_is_as_many_examples(kind):
    rng = np.random.default_rng(3)
    logits, labels = random_data(60, seed=3)
    weights = rng.integers(4, size=60)
    weights[labels == 3] = 0  # a class that does not count at all
    if kind == "probabilities":
        labels = softmax(logits + rng.normal(size=logits.shape))
    elif kind == "multi_label":
        labels = (rng.random((60, 4)) < 0.3).astype(float)
    elif kind == "tokens":
        labels[::5] = -100
        logits, labels, weights = logits.reshape(20, 3, 4), labels.reshape(20, 3), weights[:20]
    problem_type = f"{'multi' if kind == 'multi_label' else 'single'}_label_classification"
    metrics = partial(compute_metrics, problem_type=problem_type, per_class=True, label_counts=[4, 3, 2, 1])
    weighted = metrics(EvalPrediction(logits, labels), sample_weight=weights)
    repeated = metrics(EvalPrediction(logits.repeat(weights, 0), labels.repeat(weights, 0)))
    assert without_bins(weighted) == pytest.approx(without_bins(repeated), rel=1e-12)
    assert metrics(EvalPrediction(logits, labels), sample_weight=weights / 7) == pytest.approx(weighted)
    unweighted = metrics(EvalPrediction(logits, labels))
    assert metrics(EvalPrediction(logits, labels), sample_weight=np.ones(len(logits))) == unweighted
    assert without_bins(weighted) != pytest.approx(without_bins(unweighted), rel=0.01)
    counted = metrics(EvalPrediction(logits[weights > 0], labels[weights > 0]))
    assert {name: counted[name] for name in counted if "support" in name}.items() <= weighted.items()


def test_weights_as_in_scikit_learn():
    logits, labels = random_data()
    weights, guess, p = np.random.default_rng(0).random(200), logits.argmax(1), softmax(logits)
    result = ImbalancedClassification().compute(predictions=logits, references=labels, sample_weight=weights)
    expected = {
        "accuracy": accuracy_score(labels, guess, sample_weight=weights),
        "balanced_accuracy": balanced_accuracy_score(labels, guess, sample_weight=weights),
        "matthews_correlation": matthews_corrcoef(labels, guess, sample_weight=weights),
        "f1_macro": f1_score(labels, guess, average="macro", sample_weight=weights),
        "f1_micro": f1_score(labels, guess, average="micro", sample_weight=weights),
        "f1_weighted": f1_score(labels, guess, average="weighted", sample_weight=weights),
        "negative_log_likelihood": log_loss(labels, p, sample_weight=weights),
        "brier_score": np.average(((p - np.eye(4)[labels]) ** 2).sum(1), weights=weights),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    rows = (np.random.default_rng(1).random((200, 4)) < 0.3).astype(float)
    result = ImbalancedClassification("multilabel").compute(
        predictions=logits, references=rows, sample_weight=list(weights)
    )
    assert result["average_precision_macro"] == pytest.approx(
        average_precision_score(rows, logits, average="macro", sample_weight=weights)
    )


def test_weights_of_the_calibration_error():
    """They weigh the examples of a bin and the bins, which hold two examples each whatever their weights."""
    confidence, is_right = np.linspace(0.6, 0.9, 30), np.arange(30) % 2 == 0
    weights = np.random.default_rng(0).integers(1, 9, 30)
    pairs = (weights * (is_right - confidence)).reshape(15, 2)
    logits = np.stack([np.log(confidence), np.log1p(-confidence)], 1)
    result = compute_metrics(EvalPrediction(logits, np.where(is_right, 0, 1)), sample_weight=weights)
    assert result["expected_calibration_error"] == pytest.approx(np.abs(pairs.sum(1)).sum() / weights.sum())


@pytest.mark.parametrize(
    "message, weights",
    [
        ("expected one number for each of 2 examples, but got shape \\(3,\\)", [1, 1, 1]),
        ("expected one number for each of 2 examples, but got shape \\(2, 1\\)", [[1], [1]]),
        ("expected finite numbers >= 0, but got", [1, -1]),
        ("expected finite numbers >= 0, but got", [1, float("nan")]),
        ("expected finite numbers >= 0, but got", [1, float("inf")]),
        ("expected finite numbers >= 0, but got", ["a", "b"]),
        ("expected a number above 0 for at least one labelled example", [0, 1]),
    ],
)
def test_weights_that_are_refused(message, weights):
    logits, labels = np.zeros((2, 2)), np.array([1, -100])
    with pytest.raises(ValueError, match=f"sample_weight: {message}"):
        compute_metrics(EvalPrediction(logits, labels), sample_weight=weights)
    with pytest.raises(ValueError, match=f"sample_weight: {message}"):
        ImbalancedClassification().compute(predictions=logits, references=labels, sample_weight=weights)


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


class TestFloorOfTheCalibrationError:
    def of(self, p, seed, sample_weight=None):
        """Of two classes, the outcomes drawn with the probabilities p of class 0."""
        labels = (np.random.default_rng(seed).random(len(p)) >= p).astype(int)
        logits = np.stack([np.log(p), np.log1p(-p)], 1)
        return compute_metrics(EvalPrediction(logits, labels), sample_weight=sample_weight)

    @pytest.mark.parametrize("num_examples", [150, 2500])
    def test_is_the_mean_of_a_calibrated_model(self, num_examples):
        p = np.random.default_rng(0).beta(8, 1, num_examples).clip(0.51, 0.999)
        results = [self.of(p, seed) for seed in range(1, 200)]
        errors = [result["expected_calibration_error"] for result in results]
        floors = {result["expected_calibration_error_floor"] for result in results}
        assert len(floors) == 1  # it is known before the outcomes are
        assert floors.pop() == pytest.approx(np.mean(errors), rel=0.12)

    def test_weights_raise_it(self):
        """Few that weigh much are as good as few."""
        p = np.full(1500, 0.8)
        weights = np.where(np.arange(1500) % 10, 0.01, 1)
        plain, weighted = (self.of(p, 1, sample_weight=w)["expected_calibration_error_floor"] for w in (None, weights))
        # Of one bin, sqrt(2 / pi) of a standard deviation
        assert plain == pytest.approx((2 / np.pi * 0.16 / 1500) ** 0.5, rel=0.3)
        assert weighted == pytest.approx((2 / np.pi * 0.16 * (weights**2).sum()) ** 0.5 / weights.sum(), rel=0.3)

    def test_is_0_for_a_certain_model(self):
        logits = np.where(np.eye(2)[[0, 1] * 20], 0.0, -np.inf)
        metrics = as_single_label(EvalPrediction(logits, np.array([0, 1] * 20)))
        assert metrics["expected_calibration_error_floor"] == metrics["expected_calibration_error"] == 0


class TestCalibrationErrorOfSeveralLabels:
    RATES = np.array([0.4, 0.1, 0.02, 0.004])

    def compute(self, p):
        labels = (np.random.default_rng(0).random((5000, 4)) < self.RATES).astype(float)
        logits = np.broadcast_to(np.log(p) - np.log1p(-p), (5000, 4))
        return labels, ImbalancedClassification("multilabel").compute(
            predictions=logits, references=labels, label_names=list("abcd")
        )

    def test_is_the_mean_of_that_of_each_label(self):
        """Pooled, the same rate for all labels would be nearly perfect."""
        rate = self.RATES.mean()
        labels, result = self.compute(np.full(4, rate))
        gaps = np.abs(labels.mean(0) - rate)
        assert [one["expected_calibration_error"] for one in result["per_class"].values()] == pytest.approx(list(gaps))
        assert result["expected_calibration_error"] == pytest.approx(gaps.mean()) and gaps.mean() > 0.1
        assert abs(labels.mean() - rate) < 0.005

    def test_the_rate_of_each_label_is_near_the_floor(self):
        _, result = self.compute(self.RATES)
        assert result["expected_calibration_error"] < 3 * result["expected_calibration_error_floor"]
        for one in result["per_class"].values():
            assert one["expected_calibration_error_floor"] > 0

    def test_what_is_not_known_plays_no_part(self):
        logits = np.random.default_rng(1).normal(size=(60, 2))
        labels = (np.random.default_rng(2).random((60, 2)) < 0.5).astype(float)
        labels[:30, 0], labels[:, 1] = -100, -100
        partly = ImbalancedClassification("multilabel").compute(predictions=logits, references=labels)
        rest = ImbalancedClassification("multilabel").compute(predictions=logits[30:, :1], references=labels[30:, :1])
        for name in ("expected_calibration_error", "expected_calibration_error_floor"):
            assert partly["per_class"]["0"][name] == rest["per_class"]["0"][name] == partly[name]
            assert name not in partly["per_class"]["1"]
