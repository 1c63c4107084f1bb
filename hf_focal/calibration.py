"""Calibration of probabilities on held-out data: temperature and vector scaling, at the class frequencies of these data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import as_weights
from ._known_labels import known_labels


__all__ = [
    "METHODS",
    "Scaling",
    "UnboundedFitError",
    "apply_temperature",
    "fit_scaling",
    "fit_temperature",
    "negative_log_likelihood",
]

METHODS = ("auto", "none", "temperature", "vector")
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0

_FOLDS = 5
# By how much frequencies have to be likelier, in log evidence, to be taken for others than those of training.
_CHANCE = 2.0
# Biases of the classes are taken to be a third of a natural logarithm from what their prior says, until data say otherwise.
_RIDGE = 10.0


class UnboundedFitError(ValueError):
    """No finite temperature makes these labels most likely; `temperature` is the end that they ask for."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        super().__init__(
            "labels: the more confident the probabilities are made, the likelier they are, as there is no error among them"
            if temperature < 1
            else "labels: the less the probabilities say, the likelier they are, as if they were of another model or of other "
            "classes"
        )


@dataclass(frozen=True)
class Scaling:
    """What held-out data say of probabilities, as [`apply_temperature`] takes it.

    Attributes:
        method (`str`): ``"none"``, ``"temperature"`` or ``"vector"``.
        temperature (`float`): Above 1 where the probabilities are over-confident.
        bias (`list[float]`, *optional*): What is added to the log-probability of each class, or to the log odds of each label.
        negative_log_likelihood (`dict[str, float]`): By method, that of held-out examples which it was not fitted to; empty
            where nothing was to choose.
    """

    method: str
    temperature: float = 1.0
    bias: list[float] | None = None
    negative_log_likelihood: dict[str, float] = field(default_factory=dict)


def fit_scaling(
    posterior: Tensor,
    labels: Tensor,
    *,
    method: str = "auto",
    class_prior: Sequence[float] | Tensor | None = None,
    ridge: float = _RIDGE,
    sample_weight: Sequence[float] | np.ndarray | Tensor | None = None,
    multi_label: bool | None = None,
) -> Scaling:
    r"""The temperature, and what more each class takes, that make held-out labels most likely.

    Probabilities of a class prior π are fitted where classes occur as they do in the held-out data: at first they are
    shifted there ([`shift_prior`]), as one temperature for another class prior is a wrong one. The result is for the
    probabilities at π again. How far the held-out frequencies are from π, and not only by chance, is what their counts say
    under a Dirichlet distribution around π, or, for several labels, beta distributions (empirical Bayes).

    - ``"temperature"``: one scale (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    - ``"vector"``: a scale and one bias per class, which Alexandari et al. 2020 (https://arxiv.org/abs/1901.06852) call
      bias-corrected temperature scaling. The biases are a multiple of the log prior, as a model that alpha was to lead away
      from the frequent classes has gone a part of that way only, and for each class what its examples say, under a ridge.
    - ``"none"``: they stay as they are.
    - ``"auto"``: which of them is the best for examples that it was not fitted to (5-fold cross-fitting).

    Args:
        posterior (`Tensor`): Probabilities of held-out examples, of any floating dtype: class probabilities of shape (..., C), or,
            for multi-label data, one independent probability per label, (N, L).
        labels (`Tensor`): As in [`fit_temperature`].
        method (`str`): One of the names above.
        class_prior (sequence of C `float`, *optional*): Frequencies of the classes that the probabilities are for, those of
            training; for several labels, the share of examples with each. Without, those of the held-out data.
        ridge (`float`): Half of it, times the squares of the biases less what the log prior makes of them, is added to the
            negative log likelihood of all examples; 0 where probabilities stand for labels, without chance.
        sample_weight (sequence of N `float`, *optional*): How much each entry of the first dimension counts.
        multi_label (`bool`, *optional*): Whether an example has several labels; by default, if the labels have the shape
            of `posterior`.

    Returns:
        [`Scaling`]: For [`apply_temperature`]. Fitted ones have a likelihood of the held-out data that is no less than before.

    Raises:
        `UnboundedFitError`: If no temperature in [0.01, 100] is the best one.
        `ValueError`: If the shapes do not fit, there are no labels, they are neither class ids nor probabilities, or the method
            is unknown.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal.calibration import fit_scaling
    >>> posterior = torch.tensor([[0.99, 0.01]] * 4 + [[0.01, 0.99]] * 4)
    >>> scaling = fit_scaling(posterior, torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]), method="temperature")
    >>> round(scaling.temperature, 2), scaling.bias
    (4.18, None)

    ```
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, but got {method!r}")
    with torch.inference_mode(False), torch.no_grad():
        held_out = _held_out(posterior, labels, sample_weight, multi_label)
        shift = held_out.log_shift(class_prior)
        # Only where classes compete for the probability can one of them take it from the others.
        is_absent = (held_out.counts()[0] == 0) & (not held_out.multi_label)
        of_absent, shift = shift.where(is_absent, 0), shift.where(~is_absent, 0)
        held_out = replace(held_out, logits=held_out.logits + shift, offset=of_absent)
        log_prior = _log_prior(held_out.logits, class_prior, held_out.multi_label)
        scores = {} if method != "auto" else _cross_fitted(held_out, log_prior, ridge)
        chosen = min(scores, key=scores.__getitem__) if scores else method
        fitted = held_out.fitted(chosen, log_prior, ridge)
        if chosen != "none" and (end := held_out.end_of(fitted)) is not None:
            raise UnboundedFitError(end)
        bias = fitted.scale * shift + fitted.bias - shift
        return Scaling(chosen, 1 / fitted.scale, bias.tolist() if bias.any() else None, scores)


def fit_temperature(posterior: Tensor, labels: Tensor, *, multi_label: bool | None = None) -> float:
    r"""The temperature that makes held-out labels most likely (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    It may follow [`class_posterior`], for what its formula cannot know (that the model overfits, say), or, on softmax,
    stand in its place: log-probabilities are logits up to a constant. The class frequencies of the held-out data have to be
    those that the probabilities are for; [`fit_scaling`] takes others too.

    Args:
        posterior (`Tensor`): Probabilities of held-out examples, of any floating dtype: class probabilities of shape
            (..., C), or, for multi-label data, one independent probability per label, (N, L).
        labels (`Tensor`): Class ids of shape (...), where -100 is ignored; or, with ``multi_label=False``, rows of shape
            (..., C), one-hot or class probabilities, where a row of -100 is ignored. For multi-label data, 0 or 1, or
            their probabilities, of shape (N, L), where each -100 is ignored. Of probabilities it is the expected likelihood that is the largest.
        multi_label (`bool`, *optional*): Whether an example has several labels; by default, if the labels have the shape
            of `posterior`.

    Returns:
        `float`: The temperature, above 1 where the probabilities are over-confident. Held-out data without an error have
        no finite optimum, so it is held between 0.01 and 100.

    Raises:
        `ValueError`: If the shapes do not fit, there are no labels, or they are neither class ids nor probabilities.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import apply_temperature, fit_temperature
    >>> posterior = torch.tensor([[0.99, 0.01]] * 4)
    >>> temperature = fit_temperature(posterior, torch.tensor([0, 0, 0, 1]))
    >>> apply_temperature(posterior, temperature)[0]
    tensor([0.7500, 0.2500])

    ```
    """
    with torch.inference_mode(False), torch.no_grad():
        held_out = _held_out(posterior, labels, None, multi_label)
        return 1 / held_out.fitted("temperature", torch.zeros_like(held_out.logits[0])).scale


def negative_log_likelihood(
    posterior: Tensor,
    labels: Tensor,
    *,
    sample_weight: Sequence[float] | np.ndarray | Tensor | None = None,
    multi_label: bool | None = None,
) -> float:
    """The mean of -log p over the labels, or of its expectation where labels are probabilities, in nats.

    Args:
        posterior, labels, sample_weight, multi_label: As in [`fit_scaling`].

    Raises:
        `ValueError`: As [`fit_scaling`] does.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal.calibration import negative_log_likelihood
    >>> round(negative_log_likelihood(torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1])), 3)
    0.458

    ```
    """
    held_out = _held_out(posterior, labels, sample_weight, multi_label)
    return (held_out.negative_log_likelihood(1.0, held_out.logits[0] * 0) / held_out.weights.sum()).item()


def apply_temperature(
    posterior: Tensor, temperature: float, *, bias: Sequence[float] | Tensor | None = None, multi_label: bool = False
) -> Tensor:
    """Probabilities proportional to ``posterior ** (1 / temperature)``, which is softmax or sigmoid of logits over it.

    Args:
        posterior (`Tensor`): Class probabilities of shape (..., C), or independent ones of any shape.
        temperature (`float`): Above 0; more makes the probabilities less confident, 1 leaves them as they are.
        bias (sequence or `Tensor` of shape (C), *optional*): Added to the logits afterwards, as [`fit_scaling`] finds it.
        multi_label (`bool`): Whether the probabilities are independent of each other.

    Returns:
        `Tensor`: Probabilities of the shape of `posterior`. float64 for a float64 posterior, otherwise float32.

    Raises:
        `ValueError`: If the temperature is not a finite number above 0.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a finite number above 0, but got {temperature!r}")
    logits = _logits(posterior, multi_label) / temperature
    if bias is not None:
        logits = logits + torch.as_tensor(bias, dtype=torch.float64, device=logits.device)
    scaled = logits.sigmoid() if multi_label else logits.softmax(-1)
    return scaled.to(torch.promote_types(posterior.dtype, torch.float32))


class _Fitted(NamedTuple):
    scale: float
    bias: Tensor


@dataclass(frozen=True)
class _HeldOut:
    """Examples that were not trained on.

    The logits are those of the probabilities, (n, C) in float64; the targets class ids (n), class probabilities (n, C), or of
    several labels (n, C); the weights (n), or of several labels (n, C), 0 where a label is not known; the group of each row
    is the entry of the first dimension that it came from. The offset (C) is added after any scaling: what makes a class
    rare that does not occur here, about which a scale would be a guess.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor
    groups: Tensor
    multi_label: bool
    offset: Tensor

    def rows(self, kept: Tensor) -> "_HeldOut":
        return replace(
            self,
            logits=self.logits[kept],
            targets=self.targets[kept],
            weights=self.weights[kept],
            groups=self.groups[kept],
        )

    def negative_log_likelihood(self, scale: float | Tensor, bias: Tensor) -> Tensor:
        """The sum over the examples."""
        logits = self.logits * scale + bias + self.offset
        if self.multi_label:
            losses = F.binary_cross_entropy_with_logits(logits, self.targets.clamp_min(0), reduction="none")
        else:
            losses = F.cross_entropy(logits, self.targets, reduction="none")
        return (losses * self.weights).sum()

    def fitted(self, method: str, log_prior: Tensor, ridge: float = _RIDGE) -> _Fitted:
        log_scale, of_prior, bias = torch.zeros(()).to(log_prior), torch.zeros(()).to(log_prior), log_prior * 0
        parameters = {"none": [], "temperature": [log_scale], "vector": [log_scale, of_prior, bias]}[method]
        if not parameters:
            return _Fitted(1.0, bias)
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )
        total = self.weights.sum()

        def objective() -> Tensor:
            optimizer.zero_grad()
            value = self.negative_log_likelihood(_scale(log_scale), of_prior * log_prior + bias)
            value = (value + ridge / 2 * bias.square().sum()) / total
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(objective)
        return _Fitted(_scale(log_scale).item(), (of_prior * log_prior + bias).detach())

    def end_of(self, fitted: _Fitted) -> float | None:
        """The temperature at the end of its range, if the likelihood rises up to there, where it becomes too flat to climb."""
        lowest = torch.tensor(1 / HIGHEST_TEMPERATURE).to(self.logits).requires_grad_()
        with torch.enable_grad():
            self.negative_log_likelihood(lowest, fitted.bias).backward()
        if lowest.grad is None or lowest.grad >= 0:
            return HIGHEST_TEMPERATURE
        if self.multi_label:
            is_right = torch.where(self.targets > 0.5, self.logits > 0, self.logits < 0) & (self.targets % 1 == 0)
        elif self.targets.dim() > 1:
            return None
        else:
            is_right = self.logits.gather(1, self.targets[:, None])[:, 0] > self._largest_other()
        return LOWEST_TEMPERATURE if is_right[self.weights > 0].all() else None

    def _largest_other(self) -> Tensor:
        """Of each example, (n), the logit that is the largest beside that of its class."""
        return self.logits.scatter(1, self.targets[:, None], -math.inf).amax(1)

    def counts(self) -> tuple[Tensor, Tensor]:
        """How often each class occurs, and how often it is known whether it does, both (C)."""
        if self.multi_label:
            return (self.targets.clamp_min(0) * self.weights).sum(0), self.weights.sum(0)
        if self.targets.dim() > 1:
            counts = (self.targets * self.weights[:, None]).sum(0)
        else:
            counts = self.targets.bincount(self.weights, self.logits.shape[-1])
        return counts, counts.sum().expand_as(counts)

    def log_shift(self, class_prior: Sequence[float] | Tensor | None) -> Tensor:
        """What takes the logits of a class prior to the frequencies here, (C)."""
        none = torch.zeros(self.logits.shape[-1], dtype=torch.float64, device=self.logits.device)
        if class_prior is None:
            return none
        prior = torch.as_tensor(class_prior, dtype=torch.float64, device=self.logits.device)
        if prior.shape != none.shape:
            raise ValueError(f"class_prior: expected {len(none)} numbers, but got {prior.tolist()}")
        # Of a class that training never showed, or of a label that it always did, the logits tell nothing to shift.
        can_shift = (prior > 0) & (prior < (1 if self.multi_label else math.inf))
        counts, known = (part[can_shift] for part in self.counts())
        prior = prior[can_shift]
        answers, expected = [counts], [prior]
        if self.multi_label:
            answers, expected = [counts, known - counts], [prior, 1 - prior]
        else:
            known, expected = counts.sum(), [prior / prior.sum()]
        strength = torch.logspace(-1, 7, 161, dtype=torch.float64, device=prior.device)[:, None]
        of_answers = [
            torch.lgamma(strength * share + n) - torch.lgamma(strength * share) for n, share in zip(answers, expected)
        ]
        evidence = torch.stack(of_answers).sum(0)
        of_all = torch.lgamma(strength) - torch.lgamma(strength + known)
        evidence = evidence.sum(-1) + (of_all.sum(-1) if self.multi_label else of_all[:, 0])
        if evidence.max() - evidence[-1] < _CHANCE:
            return none
        best = strength[evidence.argmax()]
        shares = [(n + best * share) / (known + best) for n, share in zip(answers, expected)]
        shift = shares[0].log() - expected[0].log()
        if self.multi_label:
            shift = shift - shares[1].log() + expected[1].log()
        return none.masked_scatter(can_shift, shift)


def _held_out(
    posterior: Tensor,
    labels: Tensor,
    sample_weight: Sequence[float] | np.ndarray | Tensor | None,
    multi_label: bool | None,
) -> _HeldOut:
    if multi_label is None:
        multi_label = labels.shape == posterior.shape
    num_groups, num_classes = (len(posterior) if posterior.dim() > 1 else 1), posterior.shape[-1]
    is_known, labels = known_labels(posterior.shape, labels.detach(), multi_label)
    groups = torch.arange(len(is_known), device=is_known.device) // max(len(is_known) // max(num_groups, 1), 1)
    groups = groups[is_known]
    if labels.numel() == 0:
        raise ValueError("labels: expected at least one that is not -100, but got none")
    is_distribution = not multi_label and labels.dim() > 1
    known = labels[labels != -100]
    low, high, largest = known.min().item(), known.max().item(), 1 if multi_label else num_classes - 1
    if not (is_distribution or (low >= 0 and high <= largest)):
        raise ValueError(f"labels: expected values from 0 to {largest}, but got values from {low:g} to {high:g}")
    weights = torch.ones(len(groups), dtype=torch.float64, device=groups.device)
    if sample_weight is not None:
        weights = torch.from_numpy(as_weights(sample_weight, num_groups)).to(groups.device)[groups]
        if not weights.any():
            raise ValueError("sample_weight: expected some above 0")
        weights = weights / weights.mean()  # as many examples as there are
    if multi_label:
        weights = weights[:, None] * (labels != -100)
    logits = _logits(posterior.detach().reshape(-1, num_classes)[is_known], multi_label)
    targets = labels.double() if multi_label or is_distribution else labels.long()
    none = torch.zeros(num_classes, dtype=logits.dtype, device=logits.device)
    return _HeldOut(logits, targets.to(logits.device), weights.to(logits.device), groups, multi_label, none)


def _log_prior(logits: Tensor, class_prior: Sequence[float] | Tensor | None, multi_label: bool) -> Tensor:
    """Of each class, (C), or the log odds of each label; zeros if it is not known."""
    if class_prior is None:
        return torch.zeros_like(logits[0])
    prior = torch.as_tensor(class_prior, dtype=torch.float64, device=logits.device)
    prior = prior.clamp_min(prior[prior > 0].min())
    return prior.clamp_max(prior[prior < 1].max()).logit() if multi_label else prior.log()


def _cross_fitted(held_out: _HeldOut, log_prior: Tensor, ridge: float) -> dict[str, float]:
    """The mean negative log likelihood of examples by what the others say, for each method."""
    folds, methods = _folds(held_out), [method for method in METHODS if method != "auto"]
    sums = dict.fromkeys(methods, 0.0)
    for fold in range(min(_FOLDS, int(folds.max()) + 1)):
        rest, left_out = held_out.rows(folds != fold), held_out.rows(folds == fold)
        for method in methods:
            fitted = rest.fitted(method if len(rest.targets) else "none", log_prior, ridge)
            sums[method] += left_out.negative_log_likelihood(*fitted).item()
    return {method: value / held_out.weights.sum().item() for method, value in sums.items()}


def _folds(held_out: _HeldOut) -> Tensor:
    """Of each row, (n): whole entries of the first dimension; of one class each, with as much of every class as can be."""
    groups, row_of = held_out.groups.cpu().unique(return_inverse=True)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    if held_out.targets.dim() == 1 and len(groups) == len(row_of):
        order = order[held_out.targets.cpu()[order].argsort(stable=True)]
    folds = torch.empty_like(order)
    folds[order] = torch.arange(len(order)) % _FOLDS
    return folds[row_of].to(held_out.logits.device)


def _scale(log_scale: Tensor) -> Tensor:
    return log_scale.exp().clamp(1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE)


def _logits(posterior: Tensor, multi_label: bool) -> Tensor:
    """Logits in float64, finite also where rounding has left a probability of 0 or 1."""
    limits = torch.finfo(posterior.dtype)
    if multi_label:
        return posterior.double().clamp(limits.tiny, 1 - limits.eps / 2).logit()
    return posterior.double().clamp_min(limits.tiny).log()
