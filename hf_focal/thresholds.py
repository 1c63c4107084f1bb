"""Thresholds for two classes and for several labels: the best F-beta, a wanted precision or a wanted recall."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from sklearn.metrics import precision_recall_curve
from torch import Tensor

from ._checks import as_number, as_weights


__all__ = ["ThresholdCriterion", "fit_thresholds", "reached_by", "wilson_interval"]

_TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class ThresholdCriterion:
    """The criterion by which thresholds are chosen.

    Args:
        f_beta (`float`): Maximises F-beta, (1 + beta²) P R / (beta² P + R) with precision P and recall R. A beta above
            1 gives more weight to recall.
        wanted_precision (`float`, *optional*): Instead, maximises recall with at least this precision.
        wanted_recall (`float`, *optional*): Instead, maximises precision with at least this recall.

    Raises:
        `ValueError`: If a number is out of range, or there is more than one criterion.
    """

    f_beta: float = 1.0
    wanted_precision: float | None = None
    wanted_recall: float | None = None

    def __post_init__(self) -> None:
        if as_number("f_beta", self.f_beta) == 0:
            raise ValueError(f"f_beta: expected a number above 0, but got {self.f_beta!r}")
        wanted = {name: value for name, value in (*self._wanted,) if value is not None}
        for name, value in wanted.items():
            if as_number(name, value, 1) == 0:
                raise ValueError(f"{name}: expected a share above 0, but got {value!r}")
        if len(wanted) + (self.f_beta != 1) > 1:
            criteria = [*(["f_beta"] * (self.f_beta != 1)), *wanted]
            raise ValueError(f"{criteria[1]}: expected only one criterion, but got {' and '.join(criteria)}")

    @property
    def _wanted(self) -> tuple[tuple[str, float | None], ...]:
        return ("wanted_precision", self.wanted_precision), ("wanted_recall", self.wanted_recall)

    @property
    def is_f_beta(self) -> bool:
        """Whether the criterion is an F-beta."""
        return all(value is None for _, value in self._wanted)

    def __str__(self) -> str:
        """The form in which it is recorded, such as ``"f1"`` or ``"precision 0.9"``."""
        wanted = [f"{name.removeprefix('wanted_')} {value:g}" for name, value in self._wanted if value is not None]
        return wanted[0] if wanted else f"f{self.f_beta:g}"

    def best(self, precision: np.ndarray, recall: np.ndarray) -> int | None:
        """The index of the best threshold, given the values at ascending thresholds; None if none qualifies."""
        if self.wanted_precision is not None:
            qualifies, score = precision >= self.wanted_precision - 1e-12, recall
        elif self.wanted_recall is not None:
            qualifies, score = recall >= self.wanted_recall - 1e-12, precision
        else:
            qualifies, score = np.ones(len(recall), bool), self.f_score(precision, recall)
        return int(np.where(qualifies, score, -1).argmax()) if qualifies.any() else None

    def f_score(self, precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
        weight = self.f_beta**2
        return (1 + weight) * precision * recall / np.maximum(weight * precision + recall, _TINY)


def fit_thresholds(
    posterior: Tensor,
    labels: Tensor,
    *,
    f_beta: float = 1.0,
    wanted_precision: float | None = None,
    wanted_recall: float | None = None,
    default: float = 0.5,
    min_f1: float = 0.0,
    min_positives: int = 0,
    sample_weight: Sequence[float] | np.ndarray | Tensor | None = None,
) -> list[float]:
    r"""Finds the best threshold of each label on held-out data, by default the one with the largest F1.

    A label is predicted if its probability reaches the threshold, which lies midway between two probabilities of the
    data. For calibrated probabilities the best threshold is half the best F1 (Lipton et al. 2014,
    https://arxiv.org/abs/1402.1892). If the probabilities of a label are uninformative, it is therefore best to
    predict it for every example, and with few positives this can happen by chance. `min_f1` is the usual remedy in
    text categorization (Fan & Lin 2007, https://www.csie.ntu.edu.tw/~cjlin/papers/threshold.pdf).

    Args:
        posterior (`Tensor`): Probabilities of held-out examples, (N, L), or (N) for one label.
        labels (`Tensor`): 0 or 1, or -100, which is ignored, of the same shape.
        f_beta, wanted_precision, wanted_recall (`float`): The criterion, as in [`ThresholdCriterion`].
        default (`float`): The threshold, in [0, 1], of a label without positive examples, to which none can be fitted.
            Not used if the label shares a threshold by `min_positives`, or with `wanted_precision`, which is then
            unreachable.
        min_f1 (`float`): A label whose best F-beta is below this gets the default threshold, too.
        min_positives (`int`): Labels with fewer positive examples share one threshold, the best for all of them
            together (Huang et al. 2021, https://arxiv.org/abs/2109.04712, use one for all labels).
        sample_weight (sequence of N `float`, *optional*): Weight of each example.

    Returns:
        `list[float]`: One threshold per label, between 0 and 1; NaN where the wanted precision cannot be reached.

    Raises:
        `ValueError`: If the shapes differ, there are no examples, or values are out of range.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import fit_thresholds
    >>> posterior = torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.4, 0.3], [0.2, 0.4]])
    >>> labels = torch.tensor([[0, 0], [1, 0], [1, 0], [0, 0]])
    >>> [round(threshold, 2) for threshold in fit_thresholds(posterior, labels)]
    [0.25, 0.5]
    >>> fit_thresholds(posterior[:, 1], torch.tensor([0, 1, 0, 0]), wanted_precision=0.9)
    [nan]

    ```
    """
    if posterior.shape != labels.shape or posterior.dim() not in (1, 2) or posterior.numel() == 0:
        raise ValueError(
            "labels: expected the shape of posterior, (N, L) or (N) with N above 0, but got "
            f"{tuple(labels.shape)} for {tuple(posterior.shape)}"
        )
    criterion = ThresholdCriterion(f_beta, wanted_precision, wanted_recall)
    for name, value in (("default", default), ("min_f1", min_f1)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, but got {value!r}")
    probabilities = posterior.detach().double().cpu().reshape(len(posterior), -1).numpy()
    truth = labels.cpu().reshape(len(labels), -1).numpy()
    is_known = truth != -100
    for name, values in (("posterior", probabilities), ("labels", truth[is_known])):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name}: expected values in [0, 1], but got {values.min():g} to {values.max():g}")
    if not np.isin(truth, [0, 1, -100]).all():
        raise ValueError("labels: expected 0, 1 or -100, but got others; if they are probabilities, round them")
    weights = np.broadcast_to(as_weights(sample_weight, len(truth))[:, None], truth.shape)
    as_number("min_positives", min_positives)
    is_rare = ((truth == 1) & is_known).sum(0) < min_positives

    def fit(labels: np.ndarray) -> float:
        is_used = is_known[:, labels] & (weights[:, labels] > 0)
        p, positive, weight = (part[:, labels][is_used] for part in (probabilities, truth, weights))
        if not positive.any():
            return default if criterion.wanted_precision is None else math.nan
        precision, recall, values = precision_recall_curve(positive, p, sample_weight=weight)
        best = criterion.best(precision[:-1], recall[:-1])  # the last entry has no threshold
        if best is None:
            return math.nan
        if criterion.f_score(precision[best], recall[best]) < min_f1:
            return default
        middle = (values[best] + p[p < values[best]].max(initial=0.0)) / 2
        return float(np.clip(middle, 1e-6, 1 - 1e-6))

    shared = fit(is_rare) if is_rare.any() else default
    each = np.eye(len(is_rare), dtype=bool)
    return [shared if is_rare[k] else fit(each[k]) for k in range(len(is_rare))]


def reached_by(
    decided: np.ndarray,
    truth: np.ndarray,
    f_beta: float = 1.0,
    sample_weight: Sequence[float] | Tensor | np.ndarray | None = None,
    replicates: int = 1000,
) -> Mapping[str, tuple[float, float, float]]:
    """Precision, recall and F-beta of the decisions on one label, each with a 95 % interval.

    Args:
        decided, truth (array of N `bool`): Whether the label is predicted, and whether it is present.
        f_beta (`float`): The beta of F-beta.
        sample_weight (sequence of N `float`, *optional*): Weight of each example.
        replicates (`int`): Number of bootstrap replicates for the interval of F-beta.

    Returns:
        `dict`: ``precision``, ``recall`` and, for beta 1, ``f1``: the value and the ends of the interval, which is
        Wilson's, or for F-beta from a bootstrap over the examples. NaN if the label is never predicted, or never
        present.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_focal.thresholds import reached_by
    >>> decided, truth = np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 1], bool)
    >>> {name: [round(v, 2) for v in values] for name, values in reached_by(decided, truth).items()}["recall"]
    [0.67, 0.21, 0.94]

    ```
    """
    weights = as_weights(sample_weight, len(truth))
    weights = weights / weights.mean()
    cells = np.array([(weights * cell).sum() for cell in (decided & truth, decided & ~truth, ~decided & truth)])
    hits, false_alarms, misses = cells
    true_negatives = max(len(truth) - cells.sum(), 0.0)
    drawn = np.random.default_rng(0).multinomial(
        len(truth), np.array([*cells, true_negatives]) / (cells.sum() + true_negatives), size=replicates
    )
    beta = f_beta**2

    def f_score(hits, false_alarms, misses):
        total = (1 + beta) * hits + beta * misses + false_alarms
        return np.where(total > 0, (1 + beta) * hits / np.maximum(total, _TINY), np.nan)

    scores = f_score(*drawn[:, :3].T)
    low, high = np.nanquantile(scores, [0.025, 0.975]) if np.isfinite(scores).any() else (math.nan, math.nan)
    return {
        "precision": wilson_interval(hits, hits + false_alarms),
        "recall": wilson_interval(hits, hits + misses),
        f"f{f_beta:g}": (float(f_score(hits, false_alarms, misses)), float(low), float(high)),
    }


def wilson_interval(hits: float, total: float) -> tuple[float, float, float]:
    """A proportion and the ends of its 95 % interval (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Args:
        hits, total (`float`): Number of hits, and the total number; with weights, their sums, in units of examples.

    Returns:
        `tuple[float, float, float]`: The proportion and the ends; NaN if `total` is 0.

    Example:

    ```python
    >>> from hf_focal.thresholds import wilson_interval
    >>> [round(end, 3) for end in wilson_interval(9, 10)]
    [0.9, 0.596, 0.982]

    ```
    """
    hits, total = float(hits), float(total)
    if total <= 0:
        return math.nan, math.nan, math.nan
    share, z2 = hits / total, float(norm.isf(0.025)) ** 2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return share, min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)
