"""Metrics for imbalanced classification: for `Trainer(compute_metrics=...)` and as an `evaluate` module."""

import warnings
from collections.abc import Iterable, Sequence
from math import isnan, nan
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import evaluate
import numpy as np
import torch
from datasets import Features, List, Value
from scipy.special import expit, log_expit, log_softmax
from scipy.stats import rankdata, t
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from ._checks import as_weights
from ._known_labels import known_labels


if TYPE_CHECKING:
    from transformers import EvalPrediction

__all__ = [
    "ImbalancedClassification",
    "class_groups",
    "classification_metrics",
    "compute_metrics",
    "mean_and_interval",
]

_IS_MULTI_LABEL = {"single_label_classification": False, "multi_label_classification": True}


def class_groups(label_counts: Sequence[float] | np.ndarray) -> dict[str, list[int]]:
    """Splits the classes into head, mid and tail: a third of the classes each, from most to least frequent.

    Classes with equal counts stay together, in the group of their average rank: with balanced data, all are mid.

    Args:
        label_counts (sequence or array, shape (C)): Training examples of each class.

    Raises:
        `ValueError`: If the counts are not numbers of at least 0.

    Example:

    ```python
    >>> from hf_focal.metrics import class_groups
    >>> class_groups([20, 900, 60, 5, 300])
    {'head': [1, 4], 'mid': [2], 'tail': [0, 3]}

    ```
    """
    counts = np.asarray(label_counts)
    if counts.ndim != 1 or not len(counts) or counts.dtype.kind not in "iuf" or not (counts >= 0).all():
        raise ValueError(f"label_counts: expected one number >= 0 per class, but got {label_counts!r}")
    group = 3 * (rankdata(-counts.astype(np.float64)) - 0.5) // len(counts)
    return {name: np.flatnonzero(group == i).tolist() for i, name in enumerate(("head", "mid", "tail"))}


class ImbalancedClassification(evaluate.Metric):
    """An `evaluate` metric that shows what accuracy hides on imbalanced data; nothing is loaded from the Hub.

    `compute` takes logits as `predictions`, shape (N, C). Its `references` are class ids, shape (N), where -100 is
    ignored, or one-hot rows or class probabilities, shape (N, C), where a row of -100 is ignored; or, with the
    configuration ``"multilabel"``, rows of 0 and 1, shape (N, C), with -100 where it is not known whether an example
    has a label. A single logit, C = 1, is that of a label in any configuration. Optional arguments are `label_names`
    (C different strings), `label_counts` (training examples of each class, shape (C)), `sample_weight` (how much each
    example counts, a number >= 0, shape (N)) and `decisions` (the result of [`decide`], with -1 for no decision; by
    default the class of the highest logit or, for multi-label data, every class with a logit above 0). A logit may be
    -inf (a masked class). It returns:

    - `accuracy` (for multi-label data, a row is right if all its known labels are); for single-label data also
      `balanced_accuracy`, the mean recall of the classes in the references, and `matthews_correlation`, 0 if
      references or predictions have only one class.
    - `f1_macro` over the classes that occur in references or predictions (for multi-label data, over all), `f1_micro`,
      `f1_weighted`; as in scikit-learn, with 0 for 0/0.
    - With `label_counts`: `f1_head`, `f1_mid`, `f1_tail`, the mean F1 of the classes of each group of [`class_groups`]
      that occur in references or predictions. A group without any has no entry.
    - `expected_calibration_error` over 15 bins of equal mass, the "adaptive" one of
      [Nixon et al. (2019)](https://arxiv.org/abs/1904.01685); equal confidences share a bin. It is about the
      probability of the predicted class; for multi-label data, about that of each label, averaged over the labels. All
      bins have the same number of examples; weights apply to the means within the bins and to the bins, not to their
      edges.
    - `expected_calibration_error_floor`: the mean score of a perfectly calibrated model with the same confidences on
      the same number of examples (over 50 draws of the outcomes, the same in every call). It is not 0, as the mean of
      few outcomes is not their probability; differences of this size are noise. Not for class probabilities, since
      their outcomes are not drawn.
    - `brier_score`, per example the sum over classes, 0 to 2, as in
      [Brier (1950)](https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), and `negative_log_likelihood`,
      infinite if a true class was masked; for multi-label data, both are means over the labels of all rows.
    - For multi-label data, `average_precision_macro` over the labels that occur in the references, if any do.
    - `per_class`: `precision`, `recall`, `f1`, `support` of each class by its name (without names, ``"0"``, ``"1"``, ...),
      and for multi-label data the calibration error with its floor, and the `average_precision` of classes that occur in the
      references.

    The class of an example with class probabilities is the most probable one, the first one in case of ties. Its
    calibration error, Brier score and likelihood are expectations: as if the example occurred once with each class,
    weighted by its probability.

    An example with a `sample_weight` of 2 counts as if it occurred twice, and with 0 as if it did not occur.
    Exceptions are the bins of the calibration error and its floor (two examples have independent outcomes), and
    `support`, which counts examples whatever their weights.

    Args:
        config_name (`str`, *optional*): ``"multilabel"`` for multi-label data.
        keep_in_memory (`bool`, defaults to `True`): Whether batches stay in memory; must be `False` with
            `num_process`.
        kwargs: For [`~evaluate.Metric`].

    Raises:
        `ValueError`: For any other configuration. By `compute`, if there are no labels, labels are not as above, logits
            contain NaN, +inf or a row of only -inf, names or counts are not one per class, or weights are not one per
            example, finite, >= 0 and above 0 for at least one labelled example.

    Example:

    ```python
    >>> from hf_focal.metrics import ImbalancedClassification
    >>> metric = ImbalancedClassification()
    >>> metric.add_batch(predictions=[[2.0, 0.0], [1.0, 0.0]], references=[0, 0])
    >>> metric.add_batch(predictions=[[0.5, 0.0], [3.0, 0.0]], references=[1, 0])
    >>> results = metric.compute(label_names=["ham", "spam"], label_counts=[950, 50])
    >>> results["accuracy"], results["balanced_accuracy"], results["f1_tail"]
    (0.75, 0.5, 0.0)
    >>> results["per_class"]["ham"]
    {'precision': 0.75, 'recall': 1.0, 'f1': 0.857..., 'support': 3}

    ```
    """

    def __init__(self, config_name: str | None = None, *, keep_in_memory: bool = True, **kwargs: Any):
        if config_name not in (None, "default", "multilabel"):
            raise ValueError(f"config_name: expected None, 'default' or 'multilabel', but got {config_name!r}")
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        # Multi-hot rows are floats, because Arrow would silently turn a soft label of 0.7 into 0.
        rows, ids = List(Value("float64")), Value("int64")
        forms = [rows] if self.config_name == "multilabel" else [ids, rows]
        return evaluate.MetricInfo(
            description="Metrics for imbalanced classification, from logits.",
            citation="",
            inputs_description=type(self).__doc__,
            features=[Features({"predictions": rows, "references": references}) for references in forms],
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list,
        label_names: Sequence[str] | None = None,
        label_counts: Sequence[float] | np.ndarray | None = None,
        sample_weight: Sequence[float] | np.ndarray | None = None,
        decisions: Sequence | np.ndarray | None = None,
    ) -> dict[str, Any]:
        weights = as_weights(sample_weight, len(references))
        return classification_metrics(
            np.asarray(predictions),
            np.asarray(references),
            weights,
            self.config_name == "multilabel",
            label_names,
            label_counts,
            None if decisions is None else np.asarray(decisions),
        )


def compute_metrics(
    eval_prediction: "EvalPrediction",
    label_names: Sequence[str] | None = None,
    label_counts: Sequence[float] | np.ndarray | None = None,
    per_class: bool = False,
    *,
    problem_type: str | None = None,
    sample_weight: Sequence[float] | np.ndarray | None = None,
) -> dict[str, float]:
    """The metrics of [`ImbalancedClassification`] for `Trainer(compute_metrics=...)`.

    Args:
        eval_prediction (`EvalPrediction`): Logits of shape (N, C), or (N, L, C) for tokens, alone or first in a tuple.
            The labels are class ids of shape (N), (N, 1) or (N, L), where -100 is ignored, or rows of the shape of the
            logits; see `problem_type`.
        label_names (sequence of `str`, *optional*): Name of each class; bind it with `functools.partial`.
        label_counts (sequence or array, shape (C), *optional*): Training examples of each class, for `f1_head`, `f1_mid`
            and `f1_tail`.
        per_class (`bool`, defaults to `False`): Whether to add `spam_precision`, `spam_recall`, ... for every class.
        problem_type (`str`, *optional*): That of the model's config, also to be bound. It determines the meaning of
            rows of labels: with ``"single_label_classification"`` they are one-hot or class probabilities, with
            ``"multi_label_classification"`` 0 and 1 for each of several labels. -100 is ignored. Without it, rows are
            multi-label, as for a model of transformers whose config does not say, with a warning if each row has a
            single 1.
        sample_weight (sequence or array, shape (N), *optional*): How much each example, or each of its tokens, counts;
            at least 0.

    Returns:
        `dict[str, float]`: One number per name, without `per_class`; empty if all labels are -100.

    Raises:
        `ValueError`: As [`ImbalancedClassification`], and for any other `problem_type`.

    Example:

    ```python
    >>> from functools import partial
    >>> import numpy as np
    >>> from transformers import EvalPrediction
    >>> from hf_focal.metrics import compute_metrics
    >>> for_trainer = partial(compute_metrics, label_names=["ham", "spam"], per_class=True)
    >>> logits, labels = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 1, 1])
    >>> metrics = for_trainer(EvalPrediction(predictions=logits, label_ids=labels))
    >>> metrics["f1_macro"], metrics["spam_recall"]
    (0.666..., 0.5)

    ```
    """
    logits, labels = eval_prediction.predictions, np.asarray(eval_prediction.label_ids)
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    if problem_type not in (None, *_IS_MULTI_LABEL):
        raise ValueError(f"problem_type: expected one of {', '.join(_IS_MULTI_LABEL)}, but got {problem_type!r}")
    weights = as_weights(sample_weight, len(labels))
    if (labels == -100).all():
        return {}
    is_multi_label = labels.shape == logits.shape if problem_type is None else _IS_MULTI_LABEL[problem_type]
    if problem_type is None and is_multi_label:
        _check_multi_hot(labels)
    metrics = classification_metrics(logits, labels, weights, is_multi_label, label_names, label_counts)
    by_name = metrics.pop("per_class")
    if per_class:
        metrics |= {f"{name}_{key}": value for name, values in by_name.items() for key, value in values.items()}
    return metrics


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean of a number over runs, and the half-width of its 95 % interval.

    The interval is based on Student's t ([Student (1908)](https://doi.org/10.1093/biomet/6.1.1)): its half-width is
    t s / sqrt(n), with the standard deviation s of the n values and the 0.975 quantile t at n - 1 degrees of freedom.
    It is valid for runs that differ only by chance, for example by their seeds.

    Args:
        values (iterable of `float`): The number of each run. NaN stands for an unknown one and is ignored.

    Returns:
        `tuple[float, float]`: The mean, NaN without values, and the half-width, NaN with fewer than two.

    Example:

    ```python
    >>> from hf_focal.metrics import mean_and_interval
    >>> mean, half = mean_and_interval([0.81, 0.83, 0.82])
    >>> f"{mean:.3f} ± {half:.3f}"
    '0.820 ± 0.025'

    ```
    """
    known = [float(value) for value in values if not isnan(value)]
    if len(known) < 2:
        return (known[0] if known else nan), nan
    return fmean(known), float(t.ppf(0.975, len(known) - 1)) * stdev(known) / len(known) ** 0.5


def _check_multi_hot(rows: np.ndarray) -> None:
    """Rejects rows that cannot be multi-label, and warns of rows that probably are not."""
    rows = rows[(rows != -100).any(-1)]
    is_label = np.isin(rows, [0, 1, -100])
    if not is_label.all():
        raise ValueError(
            f"references: expected rows of 0, 1 and -100, but got {rows[~is_label][0]}; for class probabilities bind "
            "problem_type='single_label_classification' with functools.partial"
        )
    if rows.shape[-1] > 1 and ((rows == 1).sum(-1) == 1).all() and (rows != -100).all():
        warnings.warn(
            "compute_metrics: every row of labels has a single 1, but the rows are treated as multi-label; with "
            "functools.partial, bind problem_type='single_label_classification' if each example has one class, "
            "'multi_label_classification' otherwise",
            stacklevel=3,
        )


def classification_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    is_multi_label: bool,
    label_names: Sequence[str] | None = None,
    label_counts: Sequence[float] | np.ndarray | None = None,
    decisions: np.ndarray | None = None,
) -> dict[str, Any]:
    """The metrics of [`ImbalancedClassification`].

    Args:
        logits (array): (N, ..., C).
        labels (array): Class ids of shape (N, ...), or rows of the shape of `logits`.
        weights (array): How much each example counts, (N).
        is_multi_label (`bool`): Whether an example has several labels.
        label_names, label_counts: As in [`ImbalancedClassification`].
        decisions (array, *optional*): As in [`ImbalancedClassification`], (N, ...), or for several labels (N, ..., C).

    Returns:
        `dict`: The metrics, with ``per_class``.

    Raises:
        `ValueError`: As [`ImbalancedClassification`].
    """
    if logits.ndim < 2:
        raise ValueError(f"predictions: expected logits of shape (N, C) or (N, L, C), but got {logits.shape}")
    num_classes = logits.shape[-1]
    is_multi_label = is_multi_label or num_classes == 1
    known = known_labels(logits.shape, torch.tensor(labels), is_multi_label, "references")
    is_known, labels = (part.numpy() for part in known)
    shape = logits.shape if is_multi_label else logits.shape[:-1]
    if decisions is None:
        decisions = (logits > 0).astype(int) if is_multi_label else logits.argmax(-1)
    if decisions.shape != shape:
        raise ValueError(f"decisions: expected shape {shape}, but got {decisions.shape}")
    decisions = decisions.reshape(-1, *shape[logits.ndim - 1 :])[is_known]
    logits = logits.reshape(-1, num_classes)[is_known]
    weights = weights.repeat(len(is_known) // len(weights))[is_known]  # of each token, if there are any
    if not labels.size:
        raise ValueError("references: expected at least one label other than -100, but got none")
    if not weights.any():
        raise ValueError("sample_weight: expected a number above 0 for at least one labelled example, but got none")
    logits, labels, decisions, weights = (part[weights > 0] for part in (logits, labels, decisions, weights))
    is_label = np.isin(labels, [0, 1, -100] if is_multi_label else range(num_classes))
    if (is_multi_label or labels.ndim == 1) and not is_label.all():
        expected = "rows of 0, 1 and -100" if is_multi_label else f"-100 or class ids from 0 to {num_classes - 1}"
        raise ValueError(f"references: expected {expected}, but got {labels[~is_label][0]}")
    logits = logits.astype(np.float64)
    if not np.isfinite(logits.max(1)).all():
        raise ValueError(
            "predictions: expected finite logits (some in a row may be -inf), but got NaN, +inf or only -inf"
        )
    names = [str(i) for i in range(num_classes)] if label_names is None else list(label_names)
    if len(set(names)) != num_classes or len(names) != num_classes:
        raise ValueError(f"label_names: expected {num_classes} different names, but got {names}")

    if is_multi_label:
        # Unknown labels count as correct negatives, which F1 ignores.
        is_answered = labels != -100
        truth, guess, p = labels == 1, (decisions == 1) & is_answered, expit(logits)
        log_likelihood = log_expit(np.where(truth, logits, -logits))[is_answered]
        squares = ((p - truth) ** 2)[is_answered]
        masses = np.broadcast_to(weights[:, None], is_answered.shape)[is_answered]  # of each label
    else:
        ids, guessed = labels if labels.ndim == 1 else labels.argmax(1), decisions
        truth, guess = (classes[:, None] == np.arange(num_classes) for classes in (ids, guessed))
        target = truth.astype(np.float64) if labels.ndim == 1 else labels
        log_p = log_softmax(logits, axis=1)
        p = np.exp(log_p)
        log_likelihood = np.multiply(target, log_p, out=np.zeros_like(log_p), where=target > 0).sum(1)
        masses = weights
        squares = ((p - target) ** 2).sum(1) + (target * (1 - target)).sum(
            1
        )  # the second term is the variance of the class
    # scikit-learn would take a single column as two classes, 0 and 1; with a second column it sees labels.
    padded = [np.pad(rows.astype(int), ((0, 0), (0, 1))) for rows in (truth, guess)]
    settings = {"labels": range(num_classes), "zero_division": 0, "sample_weight": weights}
    precision, recall, f1, _ = precision_recall_fscore_support(*padded, **settings)
    support, occurs = truth.sum(0), (truth | guess).any(0)

    metrics: dict[str, Any] = {"accuracy": np.average((truth == guess).all(1), weights=weights)}
    if not is_multi_label:
        metrics["balanced_accuracy"] = recall[support > 0].mean()
        has_classes = truth.any(0).sum() > 1 and guess.any(0).sum() > 1
        metrics["matthews_correlation"] = (
            matthews_corrcoef(ids, guessed, sample_weight=weights) if has_classes else 0.0
        )
    metrics["f1_macro"] = (f1 if is_multi_label else f1[occurs]).mean()
    for average in ("micro", "weighted"):
        metrics[f"f1_{average}"] = f1_score(*padded, average=average, **settings)
    if label_counts is not None:
        if len(label_counts) != num_classes:
            raise ValueError(f"label_counts: expected {num_classes} numbers, but got {len(label_counts)}")
        for group, classes in class_groups(label_counts).items():
            if occurs[classes].any():
                metrics[f"f1_{group}"] = f1[classes][occurs[classes]].mean()
    metrics["brier_score"] = np.average(squares, weights=masses)
    metrics["negative_log_likelihood"] = abs(np.average(log_likelihood, weights=masses))

    per_class = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    metrics["per_class"] = {name: {key: per_class[key][i].item() for key in per_class} for i, name in enumerate(names)}
    if not is_multi_label:
        calibration = _calibration_error(p.max(1), target[range(len(p)), p.argmax(1)], weights)
        if labels.ndim > 1:  # expected outcomes do not vary as drawn ones do
            del calibration["expected_calibration_error_floor"]
        return _as_floats(metrics | calibration)
    ranks = rankdata(logits, method="dense", axis=0)  # only the order matters, and ranks are finite
    for i in np.flatnonzero(is_answered.any(0)):
        rows = is_answered[:, i]
        of_label = _calibration_error(p[rows, i], truth[rows, i], weights[rows])
        if support[i]:
            precision_of_label = average_precision_score(truth[rows, i], ranks[rows, i], sample_weight=weights[rows])
            of_label["average_precision"] = float(precision_of_label)
        metrics["per_class"][names[i]] |= of_label
    for name in ("expected_calibration_error", "expected_calibration_error_floor", "average_precision"):
        values = [of_label[name] for of_label in metrics["per_class"].values() if name in of_label]
        if values:
            metrics[f"{name}_macro" if name == "average_precision" else name] = np.mean(values)
    return _as_floats(metrics)


def _calibration_error(confidence: np.ndarray, outcome: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The error of confidences (N) with outcomes 0 to 1 (N), and its expectation if each confidence is right."""
    edges = np.quantile(confidence, np.arange(1, 15) / 15)
    bins = np.searchsorted(edges, confidence, side="right")

    def error(outcome: np.ndarray) -> float:
        return np.abs(np.bincount(bins, weights=weights * (outcome - confidence))).sum() / weights.sum()

    draws = np.random.default_rng(0)
    drawn = [error(draws.random(len(confidence), np.float32) < confidence) for _ in range(50)]
    return {
        "expected_calibration_error": float(error(outcome)),
        "expected_calibration_error_floor": float(np.mean(drawn)),
    }


def _as_floats(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "per_class" else float(value) for name, value in metrics.items()}
