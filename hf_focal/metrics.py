"""The metrics of imbalanced classification: for `Trainer(compute_metrics=...)` and as an `evaluate` module."""

from collections.abc import Iterable, Sequence
from math import isnan, nan
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy.special import expit, log_expit, log_softmax
from scipy.stats import rankdata, t
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)


if TYPE_CHECKING:
    from transformers import EvalPrediction

__all__ = ["ImbalancedClassification", "class_groups", "compute_metrics", "mean_and_interval"]


def class_groups(label_counts: Sequence[float] | np.ndarray) -> dict[str, list[int]]:
    """Splits the classes into head, mid and tail: a third of the classes each, from most to least frequent.

    Classes of equal count stay together, in the group of their average rank: those of balanced data are all mid.

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

    `compute` takes logits as `predictions`, shape (N, C), and as `references` class ids, shape (N), where -100 is ignored;
    or, with the configuration ``"multilabel"``, rows of 0 and 1, shape (N, C). Optional are `label_names` (C different
    strings) and `label_counts` (training examples of each class, shape (C)). The predicted class is the one of the highest
    logit; for multi-label data, every class with a logit above 0. A logit may be -inf (a masked class). It returns:

    - `accuracy` (for multi-label data, of whole rows); for single-label data also `balanced_accuracy`, the mean recall
      of the classes in the references, and `matthews_correlation`, 0 where either side has one class only.
    - `f1_macro` over the classes that occur in references or predictions (for multi-label data, over all), `f1_micro`,
      `f1_weighted`; as in scikit-learn, with 0 for 0/0.
    - With `label_counts`: `f1_head`, `f1_mid`, `f1_tail`, the mean F1 of those classes of a group of [`class_groups`] that
      occur in references or predictions. A group without any has no entry.
    - `expected_calibration_error` over 15 bins of equal mass, the "adaptive" one of
      [Nixon et al. (2019)](https://arxiv.org/abs/1904.01685); equal confidences share a bin. What is calibrated is the
      probability of the predicted class; for multi-label data, that of every label of every row, pooled.
    - `brier_score`, per example the sum over classes, 0 to 2, as in
      [Brier (1950)](https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), and `negative_log_likelihood`,
      infinite if a true class was masked; for multi-label data, both are means over the labels of all rows.
    - For multi-label data, `average_precision_macro` over the labels that occur in the references, if any do.
    - `per_class`: `precision`, `recall`, `f1`, `support` of each class by its name (without names, ``"0"``, ``"1"``, ...),
      and the `average_precision` of multi-label classes that occur in the references.

    Args:
        config_name (`str`, *optional*): ``"multilabel"`` for multi-label data.
        keep_in_memory (`bool`, defaults to `True`): Whether batches stay in memory; has to be `False` with `num_process`.
        kwargs: For [`~evaluate.Metric`].

    Raises:
        `ValueError`: For another configuration. By `compute`, for no labels at all, labels that are not as above, NaN or
        +inf among the logits, a row of nothing but -inf, or names or counts that are not one per class.

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
        # Multi-hot rows are floats, because Arrow would make a 0 of a soft label of 0.7 without a word.
        references = List(Value("float64")) if self.config_name == "multilabel" else Value("int64")
        return evaluate.MetricInfo(
            description="The metrics of imbalanced classification, from logits.",
            citation="",
            inputs_description=type(self).__doc__,
            features=Features({"predictions": List(Value("float64")), "references": references}),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list,
        label_names: Sequence[str] | None = None,
        label_counts: Sequence[float] | np.ndarray | None = None,
    ) -> dict[str, Any]:
        return _metrics(np.asarray(predictions), np.asarray(references), label_names, label_counts)


def compute_metrics(
    eval_prediction: "EvalPrediction",
    label_names: Sequence[str] | None = None,
    label_counts: Sequence[float] | np.ndarray | None = None,
    per_class: bool = False,
) -> dict[str, float]:
    """The metrics of [`ImbalancedClassification`] for `Trainer(compute_metrics=...)`.

    Args:
        eval_prediction (`EvalPrediction`): Logits of shape (N, C), or (N, L, C) for tokens, alone or the first of a tuple.
            The labels are class ids of shape (N), (N, 1) or (N, L), where -100 is ignored, or rows of 0 and 1 of the shape
            (N, C), which are multi-label.
        label_names (sequence of `str`, *optional*): Name of each class; bind it with `functools.partial`.
        label_counts (sequence or array, shape (C), *optional*): Training examples of each class, for `f1_head`, `f1_mid`
            and `f1_tail`.
        per_class (`bool`, defaults to `False`): Whether to add `spam_precision`, `spam_recall`, ... for every class.

    Returns:
        `dict[str, float]`: One number per name, without `per_class`; empty if there are no labels but -100.

    Raises:
        `ValueError`: As [`ImbalancedClassification`] does.

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
    if labels.shape != logits.shape and labels.shape in (logits.shape[:-1], (*logits.shape[:-1], 1)):
        logits, labels = logits.reshape(labels.size, -1) if labels.size else logits, labels.ravel()
    if (labels == -100).all():
        return {}
    metrics = _metrics(logits, labels, label_names, label_counts)
    by_name = metrics.pop("per_class")
    if per_class:
        metrics |= {f"{name}_{key}": value for name, values in by_name.items() for key, value in values.items()}
    return metrics


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean of a number over runs, and how far its 95 % interval reaches to each side.

    The interval is that of Student's t ([Student (1908)](https://doi.org/10.1093/biomet/6.1.1)), t s / sqrt(n) with the
    standard deviation s of the n values, t the 0.975 quantile at n - 1 degrees of freedom. It holds for runs that differ by
    chance alone, by their seeds for example.

    Args:
        values (iterable of `float`): The number of each run. NaN, for one that is not known, does not count.

    Returns:
        `tuple[float, float]`: Mean, NaN if there are no values, and half the width of the interval, NaN for fewer than two.

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


def _metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str] | None,
    label_counts: Sequence[float] | np.ndarray | None,
) -> dict[str, Any]:
    """The metrics of logits (N, C) and labels, class ids (N) or rows of 0 and 1 (N, C)."""
    if logits.ndim != 2 or labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            "predictions: expected logits of shape (N, C) for references of shape (N) or (N, C), but got shapes "
            f"{logits.shape} and {labels.shape}"
        )
    num_classes, is_multi_label = logits.shape[1], labels.ndim == 2
    if not is_multi_label:
        logits, labels = logits[labels != -100], labels[labels != -100]
    if not labels.size:
        raise ValueError("references: expected at least one label other than -100, but got none")
    is_label = np.isin(labels, [0, 1] if is_multi_label else range(num_classes))
    if not is_label.all():
        expected = "rows of 0 and 1" if is_multi_label else f"-100 or class ids from 0 to {num_classes - 1}"
        raise ValueError(f"references: expected {expected}, but got {labels[~is_label][0]}")
    logits = logits.astype(np.float64)
    if not np.isfinite(logits.max(1)).all():
        raise ValueError(
            "predictions: expected finite logits (some of a row may be -inf), but got NaN, +inf or only -inf"
        )
    names = [str(i) for i in range(num_classes)] if label_names is None else list(label_names)
    if len(set(names)) != num_classes or len(names) != num_classes:
        raise ValueError(f"label_names: expected {num_classes} different names, but got {names}")

    if is_multi_label:
        truth, guess, p = labels == 1, logits > 0, expit(logits)
        log_likelihood = log_expit(np.where(truth, logits, -logits))
        confidence, outcome, squares = p.ravel(), truth.ravel(), (p - truth) ** 2
    else:
        truth, guess = (ids[:, None] == np.arange(num_classes) for ids in (labels, logits.argmax(1)))
        log_p = log_softmax(logits, axis=1)
        p, log_likelihood = np.exp(log_p), log_p[truth]
        confidence, outcome, squares = p.max(1), truth[guess], ((p - truth) ** 2).sum(1)
    # In one column scikit-learn would see two classes, 0 and 1; with a second one it sees labels.
    padded = [np.pad(rows.astype(int), ((0, 0), (0, 1))) for rows in (truth, guess)]
    settings = {"labels": range(num_classes), "zero_division": 0}
    precision, recall, f1, support = precision_recall_fscore_support(*padded, **settings)
    occurs = (truth | guess).any(0)

    metrics: dict[str, Any] = {"accuracy": (truth == guess).all(1).mean()}
    if not is_multi_label:
        metrics["balanced_accuracy"] = recall[support > 0].mean()
        has_classes = truth.any(0).sum() > 1 and guess.any(0).sum() > 1
        metrics["matthews_correlation"] = matthews_corrcoef(labels, logits.argmax(1)) if has_classes else 0.0
    metrics["f1_macro"] = (f1 if is_multi_label else f1[occurs]).mean()
    for average in ("micro", "weighted"):
        metrics[f"f1_{average}"] = f1_score(*padded, average=average, **settings)
    if label_counts is not None:
        if len(label_counts) != num_classes:
            raise ValueError(f"label_counts: expected {num_classes} numbers, but got {len(label_counts)}")
        for group, classes in class_groups(label_counts).items():
            if occurs[classes].any():
                metrics[f"f1_{group}"] = f1[classes][occurs[classes]].mean()
    edges = np.quantile(confidence, np.arange(1, 15) / 15)
    gaps = np.bincount(np.searchsorted(edges, confidence, side="right"), weights=outcome - confidence)
    metrics["expected_calibration_error"] = np.abs(gaps).sum() / len(confidence)
    metrics["brier_score"] = squares.mean()
    metrics["negative_log_likelihood"] = abs(log_likelihood.mean())

    per_class = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    metrics["per_class"] = {name: {key: per_class[key][i].item() for key in per_class} for i, name in enumerate(names)}
    if is_multi_label and truth.any():
        ranks = rankdata(logits, method="dense", axis=0)  # all that matters, and finite
        found = {i: float(average_precision_score(truth[:, i], ranks[:, i])) for i in np.flatnonzero(support)}
        for i, average_precision in found.items():
            metrics["per_class"][names[i]]["average_precision"] = average_precision
        metrics["average_precision_macro"] = np.mean(list(found.values()))
    return {name: value if name == "per_class" else float(value) for name, value in metrics.items()}
