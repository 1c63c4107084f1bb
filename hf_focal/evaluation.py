"""Metrics of a model's decisions: at the operating point in force, and at all operating points with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from ._checks import as_weights
from ._known_labels import known_labels
from ._model_kinds import is_multi_label
from .metrics import class_groups, classification_metrics
from .operating_points import decide, decision_scores, has_posterior
from .settings import OPERATING_POINTS, FocalSettings


__all__ = ["decision_metrics", "evaluate_model", "evaluate_operating_points", "operating_points_of"]


def evaluate_model(
    logits: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    config: Any,
    *,
    label_names: Sequence[str] | None = None,
    label_counts: Sequence[float] | None = None,
    sample_weight: Sequence[float] | np.ndarray | None = None,
) -> dict[str, Any]:
    """The metrics of the decisions and of the probabilities of a model's pipeline.

    The decisions are those of [`decide`], the probabilities are the calibrated class posterior. `compute_metrics`,
    which monitors training, uses the logits for both.

    Args:
        logits (`Tensor` or array): (N, C), or (N, L, C) for tokens.
        labels (`Tensor` or array): Class ids of shape (N) or (N, L), or rows of the shape of `logits`; -100 is ignored.
        config (`PreTrainedConfig`): The model's config.
        label_names, label_counts, sample_weight: As in [`ImbalancedClassification`].

    Returns:
        `dict`: The metrics of [`ImbalancedClassification`], with ``per_class``.

    Raises:
        `ValueError`: As [`decide`] and [`ImbalancedClassification`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from hf_focal import evaluate_model
    >>> settings = {"gamma": 0.0, "class_prior": [0.9, 0.1], "operating_point": "balanced"}
    >>> config = BertConfig(num_labels=2, focal_loss=settings)
    >>> logits, labels = torch.tensor([[4.0, 0.0], [5.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> evaluate_model(logits, labels, config)["accuracy"]
    1.0

    ```
    """
    multi_label, logits = bool(is_multi_label(config)), torch.as_tensor(logits).detach()
    p = decision_scores(logits, config)[1].double()
    posterior_logits = p.clamp(1e-12, 1 - 1e-12).logit() if multi_label else p.log()
    weights = as_weights(sample_weight, len(logits))
    decided = decide(logits, config).numpy()
    labels = np.asarray(labels)
    return classification_metrics(
        posterior_logits.numpy(), labels, weights, multi_label, label_names, label_counts, decided
    )


def operating_points_of(config: Any) -> list[str]:
    """The names of the operating points that a model has according to its config; see [`decide`].

    Example:

    ```python
    >>> from transformers import BertConfig
    >>> from hf_focal.evaluation import operating_points_of
    >>> operating_points_of(BertConfig(focal_loss={"gamma": 2.0, "class_prior": [0.9, 0.1]}))
    ['as_trained', 'most_likely', 'balanced']

    ```
    """
    settings, multi_label = FocalSettings.find_in(config), bool(is_multi_label(config))
    if settings is None or not has_posterior(settings, multi_label):
        return ["as_trained"]
    shares = settings.class_prior or [0.0]  # a share of 0, or with several labels of 1, cannot be shifted
    has_prior = all(0 < share < 1 + (not multi_label) for share in shares)
    has = {"balanced": has_prior, "thresholds": settings.thresholds is not None}
    return [name for name in OPERATING_POINTS if has.get(name, True)]


def evaluate_operating_points(
    logits: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    config: Any,
    *,
    label_counts: Sequence[float] | None = None,
    sample_weight: Sequence[float] | np.ndarray | None = None,
    replicates: int = 1000,
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """The metrics of a model's decisions at each of its operating points, with 95 % intervals.

    Args:
        logits (`Tensor` or array): (N, C), or (N, L, C) for tokens.
        labels (`Tensor` or array): Class ids of shape (N) or (N, L), or rows of the shape of `logits`; -100 is ignored.
            Class probabilities count as the most probable class.
        config (`PreTrainedConfig`): The model's config.
        label_counts, sample_weight: As in [`ImbalancedClassification`].
        replicates (`int`): The number of bootstrap replicates. Each draws N of the N examples with replacement (all
            tokens of an example together); the interval is the percentile interval. All operating points use the same
            draws.

    Returns:
        `dict`: For each of [`operating_points_of`], the value of each metric, named as in
            [`ImbalancedClassification`],
        and the ends of its interval. For two classes also ``precision`` and ``recall`` of the class that the recorded
        thresholds are for or, without thresholds, of the one that is rarer in training; for several labels
        ``precision_micro`` and ``recall_micro``.

    Raises:
        `ValueError`: As [`decide`], or if labels and logits do not fit.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from hf_focal import evaluate_operating_points
    >>> config = BertConfig(num_labels=2, focal_loss={"gamma": 0.0, "class_prior": [0.9, 0.1]})
    >>> logits, labels = torch.tensor([[4.0, 0.0], [5.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> {name: metrics["accuracy"][0] for name, metrics in evaluate_operating_points(logits, labels, config).items()}
    {'as_trained': 0.666..., 'most_likely': 0.666..., 'balanced': 1.0}

    ```
    """
    multi_label, logits = bool(is_multi_label(config)), torch.as_tensor(logits).detach()
    if replicates < 1:
        raise ValueError(f"replicates: expected at least 1, but got {replicates!r}")
    num_classes, num_examples = logits.shape[-1], len(logits)
    is_known, targets = (part.numpy() for part in known_labels(logits.shape, torch.as_tensor(labels), multi_label))
    if targets.ndim == 2 and not multi_label:
        targets = targets.argmax(1)
    is_label = np.isin(targets, [0, 1, -100] if multi_label else range(num_classes))
    if not targets.size or not is_label.all():
        expected = "0, 1 or -100" if multi_label else f"class ids from 0 to {num_classes - 1}"
        actual = "none" if not targets.size else targets[~is_label].flat[0]
        raise ValueError(f"labels: expected known labels, {expected}, but got {actual}")
    rows = np.flatnonzero(is_known) // max(len(is_known) // num_examples, 1)  # the example of each target
    weights = as_weights(sample_weight, num_examples)
    if label_counts is not None and len(label_counts) != num_classes:
        raise ValueError(f"label_counts: expected {num_classes} numbers, but got {len(label_counts)}")
    has_rarer, settings = num_classes == 2 and not multi_label, FocalSettings.find_in(config)
    positive_label = settings.rarer_or_positive_label if has_rarer and settings is not None else 1
    groups = {} if label_counts is None else class_groups(label_counts)

    def counted(is_one: np.ndarray) -> csr_array:
        """How often each class occurs in each example, (C, N), from rows of the targets, (n, C)."""
        position, classes = np.nonzero(is_one)
        return csr_array((np.ones(len(position)), (classes, rows[position])), shape=(num_classes, num_examples))

    def precision_and_recall(true: np.ndarray, guessed: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
        """Those of the positive label of two classes, or the micro averages of several labels."""
        if not (multi_label or has_rarer):
            return {}
        chosen = slice(None) if multi_label else [positive_label]
        hits, true, guessed = (part[chosen].sum(0) for part in (hits, true, guessed))
        with np.errstate(invalid="ignore"):
            suffix = "_micro" if multi_label else ""
            return {f"precision{suffix}": hits / guessed, f"recall{suffix}": hits / true}

    names = operating_points_of(config)
    counts = [csr_array(np.bincount(rows, minlength=num_examples)[None])]
    for name in names:
        decided = decide(logits, config, name).numpy()
        decided = decided.reshape(-1, *decided.shape[logits.dim() - 1 :])[is_known]
        if multi_label:
            truth, guess = targets == 1, (decided == 1) & (targets != -100)
        else:
            truth, guess = (ids[:, None] == np.arange(num_classes) for ids in (targets, decided))
        is_right = csr_array(np.bincount(rows, (truth == guess).all(1), num_examples)[None])
        counts += [is_right, *map(counted, (truth, guess, truth & guess))]
    # The counts of a replicate are linear in how often each example is drawn.
    sums = np.concatenate([vstack(counts) @ times for times in _drawn(weights, replicates)], axis=1)
    total, *sums_by_point = np.split(sums, [1 + k * (1 + 3 * num_classes) for k in range(len(names))])
    results = {}
    for name, (right, *class_sums) in zip(names, sums_by_point):
        true, guessed, hits = np.reshape(class_sums, (3, num_classes, -1))
        metrics = {
            "accuracy": right / np.maximum(total[0], np.finfo(float).tiny),
            **decision_metrics(true, guessed, hits, groups, multi_label),
            **precision_and_recall(true, guessed, hits),
        }
        results[name] = {
            metric: (float(values[0]), float(low), float(high))
            for metric, values in metrics.items()
            if not np.isnan(values[0])
            for low, high in [np.nanquantile(values[1:], [0.025, 0.975])]
        }
    return results


def _drawn(weights: np.ndarray, replicates: int) -> Iterator[np.ndarray]:
    """How much each example counts, first in the data themselves, then in each replicate; blocks of shape (N, b)."""
    num_examples, draws = len(weights), np.random.default_rng(0)
    yield weights[:, None]
    at_once = max(1, 2**24 // max(num_examples, 1))
    for start in range(0, replicates, at_once):
        drawn = [
            np.bincount(draws.integers(num_examples, size=num_examples), minlength=num_examples)
            for _ in range(min(at_once, replicates - start))
        ]
        yield weights[:, None] * np.stack(drawn, axis=1)


def decision_metrics(
    true: np.ndarray, guessed: np.ndarray, hits: np.ndarray, groups: Mapping[str, Sequence[int]], multi_label: bool
) -> dict[str, np.ndarray]:
    """The metrics of [`ImbalancedClassification`] that depend only on counts, for B sets of examples at once.

    Args:
        true, guessed, hits (array, shape (C, B)): How often each class is true, is decided, and both.
        groups (mapping): Classes of head, mid and tail, as returned by [`class_groups`].
        multi_label (`bool`): Whether an example has several labels.

    Returns:
        `dict[str, array]`: B values of each metric; NaN for a group none of whose classes occurs. For several labels
        there is no ``accuracy``, which these counts do not determine.
    """
    total, f1, occurs = true.sum(0), 2 * hits / np.maximum(true + guessed, np.finfo(float).tiny), true + guessed > 0
    with np.errstate(invalid="ignore"):
        group_f1 = {f"f1_{group}": f1[classes].sum(0) / occurs[classes].sum(0) for group, classes in groups.items()}
        if multi_label:
            f1_micro = 2 * hits.sum(0) / np.maximum((true + guessed).sum(0), np.finfo(float).tiny)
            return {"f1_macro": f1.mean(0), "f1_micro": f1_micro, **group_f1}
        # Gorodkin's R_K; 0 if all true labels, or all decisions, are of one class.
        spread = (total**2 - (true**2).sum(0)) * (total**2 - (guessed**2).sum(0))
        covariance = hits.sum(0) * total - (true * guessed).sum(0)
        return {
            "accuracy": hits.sum(0) / total,
            "balanced_accuracy": (hits / np.maximum(true, np.finfo(float).tiny)).sum(0) / (true > 0).sum(0),
            "f1_macro": f1.sum(0) / occurs.sum(0),
            "matthews_correlation": np.where(spread > 0, covariance / np.sqrt(spread), 0.0),
            **group_f1,
        }
