"""Calibration of probabilities on held-out data: temperature and vector scaling, with any class frequencies."""

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
# Minimum gain in log evidence for the held-out class frequencies to count as different from those of training.
_MIN_EVIDENCE = 2.0
# A priori, the biases of the classes have a standard deviation of about 1/3 around the multiple of the log prior.
_RIDGE = 10.0


class UnboundedFitError(ValueError):
    """No finite temperature maximises the likelihood; `temperature` is the end of the range where it is largest."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        super().__init__(
            "labels: all predictions are right, so the likelihood grows without limit the more confident they are made"
            if temperature < 1
            else "labels: the likelihood is largest if the probabilities are ignored, as if the labels belonged to "
            "another model or to other classes"
        )


@dataclass(frozen=True)
class Scaling:
    """A scaling fitted to held-out data, to be passed to [`apply_temperature`].

    Attributes:
        method (`str`): ``"none"``, ``"temperature"`` or ``"vector"``.
        temperature (`float`): Above 1 if the probabilities are over-confident.
        bias (`list[float]`, *optional*): Added to the log-probability of each class, or to the log odds of each label.
        negative_log_likelihood (`dict[str, float]`): For each method, the mean over held-out examples that it was not
            fitted to; empty unless the method was ``"auto"``.
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
    r"""Fits a temperature, and optionally a bias per class, by the likelihood of held-out labels.

    Probabilities for a class prior π are first shifted to the class frequencies of the held-out data
    ([`shift_prior`]), since a temperature fitted at another prior would be wrong. The result applies to the
    probabilities at π. How far the held-out frequencies differ from π beyond chance is estimated from the counts under
    a Dirichlet distribution around π, or for several labels beta distributions (empirical Bayes).

    - ``"temperature"``: one scale (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    - ``"vector"``: a scale and one bias per class, which Alexandari et al. 2020 (https://arxiv.org/abs/1901.06852) call
      bias-corrected temperature scaling. Each bias is the sum of a multiple of the log prior, since a model trained
      with alpha follows alpha only partly, and a term fitted for each class with a ridge penalty.
    - ``"none"``: no change.
    - ``"auto"``: the one of these that is best on examples that it was not fitted to (5-fold cross-fitting).

    Args:
        posterior (`Tensor`): Probabilities of held-out examples, of any floating dtype: class probabilities of shape (..., C), or,
            for multi-label data, one independent probability per label, (N, L).
        labels (`Tensor`): As in [`fit_temperature`].
        method (`str`): One of the names above.
        class_prior (sequence of C `float`, *optional*): Class frequencies that the probabilities are for, those of the
            training data; for several labels, the share of examples with each. By default those of the held-out data.
        ridge (`float`): The penalty: half of `ridge` times the squared terms fitted for each class is added to the
            negative log likelihood, summed over all examples. 0 if the labels are exact probabilities, without
            sampling noise.
        sample_weight (sequence of N `float`, *optional*): Weight of each entry of the first dimension.
        multi_label (`bool`, *optional*): Whether an example has several labels; by default, if the labels have the shape
            of `posterior`.

    Returns:
        [`Scaling`]: To be passed to [`apply_temperature`]. A fitted scaling never lowers the likelihood of the
        held-out data.

    Raises:
        `UnboundedFitError`: If no temperature in [0.01, 100] is optimal.
        `ValueError`: If the shapes do not fit, there are no labels, they are neither class ids nor probabilities, or
            the method is unknown.

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
        # A class without held-out examples matters only if the classes compete for probability.
        is_absent = (held_out.counts()[0] == 0) & (not held_out.multi_label)
        offset, shift = shift.where(is_absent, 0), shift.where(~is_absent, 0)
        held_out = replace(held_out, logits=held_out.logits + shift, offset=offset)
        log_prior = _log_prior(held_out.logits, class_prior, held_out.multi_label)
        scores = {} if method != "auto" else _cross_fitted(held_out, log_prior, ridge)
        chosen = min(scores, key=scores.__getitem__) if scores else method
        fitted = held_out.fitted(chosen, log_prior, ridge)
        if chosen != "none" and (end := held_out.end_of(fitted)) is not None:
            raise UnboundedFitError(end)
        bias = fitted.scale * shift + fitted.bias - shift
        return Scaling(chosen, 1 / fitted.scale, bias.tolist() if bias.any() else None, scores)


def fit_temperature(posterior: Tensor, labels: Tensor, *, multi_label: bool | None = None) -> float:
    r"""The temperature that maximises the likelihood of held-out labels (Guo et al., https://arxiv.org/abs/1706.04599).

    It can be applied after [`class_posterior`], to correct what its formula does not capture (such as overfitting), or
    to the softmax instead of it: log-probabilities are logits up to a constant. The held-out data must have the class
    frequencies that the probabilities are for; [`fit_scaling`] also handles other frequencies.

    Args:
        posterior (`Tensor`): Probabilities of held-out examples, of any floating dtype: class probabilities of shape
            (..., C), or, for multi-label data, one independent probability per label, (N, L).
        labels (`Tensor`): Class ids of shape (...), where -100 is ignored; or, with ``multi_label=False``, rows of shape
            (..., C), one-hot or class probabilities, where a row of -100 is ignored. For multi-label data, 0 or 1, or
            their probabilities, of shape (N, L), where each -100 is ignored. For probabilities the expected log
            likelihood is maximised.
        multi_label (`bool`, *optional*): Whether an example has several labels; by default, if the labels have the shape
            of `posterior`.

    Returns:
        `float`: The temperature, above 1 if the probabilities are over-confident. It is limited to [0.01, 100], as
        there is no finite optimum if all held-out predictions are right.

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
    """The mean of -log p over the labels, in nats; its expectation if the labels are probabilities.

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
    """Scales probabilities by a temperature: softmax or sigmoid of ``logits / temperature + bias``.

    Args:
        posterior (`Tensor`): Class probabilities of shape (..., C), or independent ones of any shape.
        temperature (`float`): Above 0; the higher it is, the less confident are the probabilities, and 1 changes
            nothing.
        bias (sequence or `Tensor` of shape (C), *optional*): Added to the scaled logits, as returned by
            [`fit_scaling`].
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

    Attributes:
        logits: The logits of the probabilities, (n, C), float64.
        targets: Class ids (n), class probabilities (n, C), or several labels (n, C).
        weights: (n); for several labels (n, C), 0 where a label is unknown.
        groups: For each row, the index in the first dimension of the data that it came from, (n).
        offset: Added after scaling, (C): the shift of the classes without held-out examples, to which the scale must
            not apply, as it is not fitted to them.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor
    groups: Tensor
    multi_label: bool
    offset: Tensor

    def rows(self, mask: Tensor) -> "_HeldOut":
        return replace(
            self,
            logits=self.logits[mask],
            targets=self.targets[mask],
            weights=self.weights[mask],
            groups=self.groups[mask],
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
        log_scale, prior_factor, bias = torch.zeros(()).to(log_prior), torch.zeros(()).to(log_prior), log_prior * 0
        parameters = {"none": [], "temperature": [log_scale], "vector": [log_scale, prior_factor, bias]}[method]
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
            value = self.negative_log_likelihood(_scale(log_scale), prior_factor * log_prior + bias)
            value = (value + ridge / 2 * bias.square().sum()) / total
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(objective)
        return _Fitted(_scale(log_scale).item(), (prior_factor * log_prior + bias).detach())

    def end_of(self, fitted: _Fitted) -> float | None:
        """The end of the temperature range, if the likelihood increases up to it; None if there is an optimum inside.

        Checked separately, as the likelihood becomes too flat there for the optimizer."""
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
        """For each example, the largest logit of the other classes, (n)."""
        return self.logits.scatter(1, self.targets[:, None], -math.inf).amax(1)

    def counts(self) -> tuple[Tensor, Tensor]:
        """The weight of examples with each class, and of those where it is known whether they have it, both (C)."""
        if self.multi_label:
            return (self.targets.clamp_min(0) * self.weights).sum(0), self.weights.sum(0)
        if self.targets.dim() > 1:
            counts = (self.targets * self.weights[:, None]).sum(0)
        else:
            counts = self.targets.bincount(self.weights, self.logits.shape[-1])
        return counts, counts.sum().expand_as(counts)

    def log_shift(self, class_prior: Sequence[float] | Tensor | None) -> Tensor:
        """The shift of the logits from the class prior to the frequencies in these data, (C)."""
        none = torch.zeros(self.logits.shape[-1], dtype=torch.float64, device=self.logits.device)
        if class_prior is None:
            return none
        prior = torch.as_tensor(class_prior, dtype=torch.float64, device=self.logits.device)
        if prior.shape != none.shape:
            raise ValueError(f"class_prior: expected {len(none)} numbers, but got {prior.tolist()}")
        # The logits contain no information about a class that never occurred in training, or a label that always did.
        can_shift = (prior > 0) & (prior < (1 if self.multi_label else math.inf))
        counts, known = (part[can_shift] for part in self.counts())
        prior = prior[can_shift]
        answers, expected = [counts], [prior]
        if self.multi_label:
            answers, expected = [counts, known - counts], [prior, 1 - prior]
        else:
            known, expected = counts.sum(), [prior / prior.sum()]
        strength = torch.logspace(-1, 7, 161, dtype=torch.float64, device=prior.device)[:, None]
        per_answer = [
            torch.lgamma(strength * share + n) - torch.lgamma(strength * share) for n, share in zip(answers, expected)
        ]
        evidence = torch.stack(per_answer).sum(0)
        normaliser = torch.lgamma(strength) - torch.lgamma(strength + known)
        evidence = evidence.sum(-1) + (normaliser.sum(-1) if self.multi_label else normaliser[:, 0])
        if evidence.max() - evidence[-1] < _MIN_EVIDENCE:
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
            raise ValueError("sample_weight: expected at least one weight above 0, but got none")
        weights = weights / weights.mean()  # so that they sum to the number of examples
    if multi_label:
        weights = weights[:, None] * (labels != -100)
    logits = _logits(posterior.detach().reshape(-1, num_classes)[is_known], multi_label)
    targets = labels.double() if multi_label or is_distribution else labels.long()
    none = torch.zeros(num_classes, dtype=logits.dtype, device=logits.device)
    return _HeldOut(logits, targets.to(logits.device), weights.to(logits.device), groups, multi_label, none)


def _log_prior(logits: Tensor, class_prior: Sequence[float] | Tensor | None, multi_label: bool) -> Tensor:
    """The log prior of each class, or the log odds of each label, (C); zeros if there is no prior."""
    if class_prior is None:
        return torch.zeros_like(logits[0])
    prior = torch.as_tensor(class_prior, dtype=torch.float64, device=logits.device)
    prior = prior.clamp_min(prior[prior > 0].min())
    return prior.clamp_max(prior[prior < 1].max()).logit() if multi_label else prior.log()


def _cross_fitted(held_out: _HeldOut, log_prior: Tensor, ridge: float) -> dict[str, float]:
    """For each method, the mean negative log likelihood of examples under a fit to the other folds."""
    folds, methods = _folds(held_out), [method for method in METHODS if method != "auto"]
    sums = dict.fromkeys(methods, 0.0)
    for fold in range(min(_FOLDS, int(folds.max()) + 1)):
        others, left_out = held_out.rows(folds != fold), held_out.rows(folds == fold)
        for method in methods:
            fitted = others.fitted(method if len(others.targets) else "none", log_prior, ridge)
            sums[method] += left_out.negative_log_likelihood(*fitted).item()
    return {method: value / held_out.weights.sum().item() for method, value in sums.items()}


def _folds(held_out: _HeldOut) -> Tensor:
    """The fold of each row, (n). Groups are not split; if each has a single class, the folds are stratified."""
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
    """Logits in float64, finite even where a probability has been rounded to 0 or 1."""
    limits = torch.finfo(posterior.dtype)
    if multi_label:
        return posterior.double().clamp(limits.tiny, 1 - limits.eps / 2).logit()
    return posterior.double().clamp_min(limits.tiny).log()
