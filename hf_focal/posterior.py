r"""From the logits of a model trained with focal loss to class posteriors, also under another prior.

Focal loss and alpha both distort the probabilities of a trained model, in a way that can be undone exactly. Let v be
the softmax of the logits and

$$\varphi_\gamma(v) = (1 - v)^\gamma - \gamma \, (1 - v)^{\gamma - 1} \, v \log v.$$

Where the expected loss is minimal, its derivatives with respect to the logits are zero, so the targets have the
distribution

$$q_i \propto \frac{v_i}{\alpha_i \, \varphi_{\gamma_i}(v_i)}.$$
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._calibration_map import asymmetric_log_odds, log_share, sigmoid_minimiser, softmax_minimiser
from ._checks import (
    as_gamma,
    as_margin,
    as_number,
    as_numbers,
    check_distributions,
    check_floating,
    check_length,
    extremes,
)
from ._class_weights import Alpha, sigmoid_weights, softmax_weights
from ._kernels import all_margins, beside, loss_dtype, wide_dtype
from ._upstream import is_traced


__all__ = [
    "PriorEstimate",
    "class_posterior",
    "estimate_prior",
    "focal_logits",
    "shift_prior",
    "sigmoid_class_posterior",
    "sigmoid_focal_logits",
]

ConstantGamma = float | Sequence[float] | Tensor
Prior = Sequence[float] | Tensor


def class_posterior(
    logits: Tensor, *, gamma: ConstantGamma, alpha: Alpha = None, label_smoothing: float = 0.0
) -> Tensor:
    r"""Converts the logits of a model trained with [`focal_loss`] to class posterior probabilities.

    The softmax of such logits is not the class posterior: with two classes and gamma 2 a true 0.95 comes out as 0.75,
    and alpha shifts probability to the classes with large weights. Both can be undone: for logits with the least
    expected loss the result is the exact class posterior under the distribution of the training examples (which
    includes a balanced sampler, but not alpha), and for a model close to that minimum it is close to the posterior.
    The formula is that of Charoenphakdee et al. 2021 (https://arxiv.org/abs/2011.09172), extended to alpha
    and to one gamma per class.

    With one gamma for all classes the argmax of the logits equals that of alpha times the posterior, with any label
    smoothing. So without alpha both predict the same class, while with inverse frequencies as alpha the logits aim at
    balanced accuracy and the posterior at accuracy.

    The function is twice differentiable. Under `torch.compile` and the transforms of `torch.func`, values are not
    checked.

    Args:
        logits (`Tensor`): Logits as models return them, (..., C), of any floating dtype, with the classes in the last
            dimension. Minus infinity removes a class: its posterior is 0.
        gamma (`float`, sequence or `Tensor` of shape (C)): The focusing parameter of the loss, one for all classes or
            one per class. If it is a function of p_t, there is no such inverse.
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): The alpha of the loss, but above 0, as the
            logits contain no information about a class without weight. A scalar is for two classes, as in
            [`focal_loss`].
        label_smoothing (`float`): The label smoothing of the loss, below 1. It gives every class a target share of
            ``label_smoothing / C``, whatever alpha is. A class whose logit stands for less, which cannot happen at the
            minimum of the loss, gets the posterior 0.

    Returns:
        `Tensor`: Probabilities of the shape of `logits` that sum to 1 over the last dimension. float64 for float64
        logits, otherwise float32.

    Raises:
        `ValueError`: If an argument is out of its range, the shapes do not fit, a logit is NaN or infinity, or all logits
        of a row are minus infinity; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import class_posterior
    >>> logits = torch.tensor([[0.0, 1.1]])
    >>> logits.softmax(-1)
    tensor([[0.2497, 0.7503]])
    >>> class_posterior(logits, gamma=2.0)
    tensor([[0.0497, 0.9503]])
    >>> class_posterior(logits, gamma=2.0, alpha=[1.0, 4.0])
    tensor([[0.1729, 0.8271]])

    ```
    """
    label_smoothing = _smoothing_below_one(label_smoothing)
    check_floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., C), but got {tuple(logits.shape)}")
    num_classes = logits.shape[-1]
    gamma = _constant_gamma("gamma", gamma, num_classes, logits)
    weights = softmax_weights(alpha, num_classes)
    _check_above_zero(weights, alpha)
    if not is_traced():
        _check_largest(logits.detach().amax(-1), "a finite largest logit in every row")

    log_shares = log_share(all_margins(logits.reshape(-1, num_classes)), gamma)
    if label_smoothing:
        # The largest share is at least 1 / C, so it stays above 0. Alpha does not weight the smoothing mass.
        share = (log_shares.softmax(-1) - label_smoothing / num_classes).clamp_min(0)
        share = share if weights is None else share / weights.to(share)
        posterior = share / share.sum(-1, keepdim=True)
    else:
        posterior = (log_shares if weights is None else log_shares - weights.to(log_shares).log()).softmax(-1)
    return posterior.reshape(logits.shape).to(loss_dtype(logits))


def sigmoid_class_posterior(
    logits: Tensor,
    *,
    gamma: ConstantGamma,
    gamma_neg: ConstantGamma | None = None,
    margin: float = 0.0,
    alpha: Alpha = None,
) -> Tensor:
    r"""Converts the logits of a model trained with [`sigmoid_focal_loss`] to posterior probabilities of the labels.

    As [`class_posterior`], with one independent decision per label. With p the sigmoid of the logit,
    $q = \max(p - margin, 0)$, $D_\gamma(p) = \varphi_\gamma(p) / p$, and the weights $\alpha_0$ of negatives and
    $\alpha_1$ of positives, the odds of the posterior are

    $$\frac{\alpha_0 \, D_{\gamma_{neg}}(1 - q)}{\alpha_1 \, D_\gamma(p)},$$

    and 0 for ``p <= margin``, where negatives have no loss.

    Args:
        logits (`Tensor`): Logits of any shape and floating dtype, usually (N, L) for L labels. Minus infinity gives
            probability 0.
        gamma (`float`, sequence or `Tensor` of shape (L)): The focusing parameter of the loss, one for all labels or one
            per label (the last dimension of `logits`).
        gamma_neg (like `gamma`, *optional*): The focusing parameter of negatives; `gamma` if not given.
        margin (`float`): The margin of the loss, in [0, 1).
        alpha (`float`, sequence or `Tensor` of shape (L) or (2, L), *optional*): The alpha of the loss, as in
            [`sigmoid_focal_loss`], but with both weights above 0.

    Returns:
        `Tensor`: Probabilities in [0, 1], of the shape of `logits`. float64 for float64 logits, otherwise float32.

    Raises:
        `ValueError`: If an argument is out of its range, the shapes do not fit, or a logit is NaN or infinity; the message
        names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import sigmoid_class_posterior
    >>> logits = torch.tensor([[1.1, 0.0, -1.1]])
    >>> sigmoid_class_posterior(logits, gamma=2.0)
    tensor([[0.9503, 0.5000, 0.0497]])
    >>> sigmoid_class_posterior(logits, gamma=2.0, alpha=[[1, 1, 1], [1, 3, 9]])
    tensor([[0.9503, 0.2500, 0.0058]])
    >>> sigmoid_class_posterior(logits, gamma=1.0, gamma_neg=4.0, margin=0.05)  # asymmetric loss
    tensor([[0.7985, 0.1473, 0.0021]])

    ```
    """
    check_floating("logits", logits)
    num_labels = logits.shape[-1] if logits.dim() else 1
    loss = _label_loss(gamma, gamma_neg, margin, alpha, num_labels, logits)
    if not is_traced():
        lowest = torch.finfo(logits.dtype).min
        _check_largest(logits.detach().clamp_min(lowest), "finite logits or -inf")
    wide = logits.to(wide_dtype(logits))
    return asymmetric_log_odds(wide, *loss).sigmoid().to(loss_dtype(logits))


def focal_logits(
    posterior: Tensor, *, gamma: ConstantGamma, alpha: Alpha = None, label_smoothing: float = 0.0
) -> Tensor:
    r"""The logits that minimise the expected [`focal_loss`] if the classes have these probabilities.

    The inverse of [`class_posterior`]. For class frequencies, it is the constant prediction that minimises the loss,
    from which a new head should start. The logits are found in float64 by root finding, not by minimising the loss.

    Args:
        posterior (`Tensor`): Class probabilities of any floating dtype, (..., C), that sum to 1 over the last dimension.
        gamma (`float`, sequence or `Tensor` of shape (C)): The focusing parameter of the loss, one for all classes or one
            per class.
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): The alpha of the loss, above 0.
        label_smoothing (`float`): The label smoothing of the loss, below 1.

    Returns:
        `Tensor`: Log-softmax values of the shape of `posterior`; minus infinity for a class with target probability 0.
        float64 for a float64 posterior, otherwise float32.

    Raises:
        `ValueError`: If an argument is out of its range or the shapes do not fit; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import focal_logits
    >>> prior = torch.tensor([0.95, 0.05])
    >>> focal_logits(prior, gamma=0.0).softmax(-1)
    tensor([0.9500, 0.0500])
    >>> focal_logits(prior, gamma=2.0).softmax(-1)
    tensor([0.7498, 0.2502])
    >>> focal_logits(prior, gamma=2.0, alpha=[1 / 1.9, 10.0]).softmax(-1)  # weights that balance the classes
    tensor([0.5000, 0.5000])

    ```
    """
    label_smoothing = _smoothing_below_one(label_smoothing)
    _check_posterior(posterior)
    num_classes = posterior.shape[-1]
    gamma = torch.as_tensor(_constant_gamma("gamma", gamma, num_classes, posterior), dtype=torch.float64)
    weights = softmax_weights(alpha, num_classes)
    _check_above_zero(weights, alpha)
    rows = posterior.detach().reshape(-1, num_classes).double()
    targets = rows if weights is None else rows * weights.to(rows)
    targets = targets / targets.sum(-1, keepdim=True)
    targets = (1 - label_smoothing) * targets + label_smoothing / num_classes
    logits = softmax_minimiser(targets.log(), gamma.to(rows).expand(num_classes))
    return logits.reshape(posterior.shape).to(loss_dtype(posterior))


def sigmoid_focal_logits(
    posterior: Tensor,
    *,
    gamma: ConstantGamma,
    gamma_neg: ConstantGamma | None = None,
    margin: float = 0.0,
    alpha: Alpha = None,
) -> Tensor:
    r"""The logits that minimise the expected [`sigmoid_focal_loss`] if the labels have these probabilities.

    The inverse of [`sigmoid_class_posterior`], as [`focal_logits`] is the inverse of [`class_posterior`].

    Args:
        posterior (`Tensor`): Probabilities in [0, 1] of any shape and floating dtype, usually (N, L) for L labels.
        gamma, gamma_neg, margin, alpha: As in [`sigmoid_class_posterior`].

    Returns:
        `Tensor`: Logits of the shape of `posterior`. A posterior of 0 gives minus infinity; 1 is treated as the
        largest number below it. With a margin, all posteriors for which negatives have no loss left get the logit of
        the margin (with `gamma_neg` 0 this is a wide range), and there may be no minimum, as the loss of negatives is
        bounded: the logits are therefore limited to [-37, 37]. float64 for a float64 posterior, otherwise float32.

    Raises:
        `ValueError`: If an argument is out of its range or the shapes do not fit; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import sigmoid_focal_logits
    >>> prior = torch.tensor([0.3, 0.01])
    >>> sigmoid_focal_logits(prior, gamma=0.0)  # the log odds
    tensor([-0.8473, -4.5951])
    >>> sigmoid_focal_logits(prior, gamma=2.0)
    tensor([-0.3165, -1.7065])
    >>> sigmoid_focal_logits(prior, gamma=1.0, gamma_neg=4.0, margin=0.05)
    tensor([ 0.2813, -0.7471])

    ```
    """
    check_floating("posterior", posterior)
    num_labels = posterior.shape[-1] if posterior.dim() else 1
    probabilities = posterior.detach().double()
    low, high = extremes(probabilities) if probabilities.numel() else (0, 0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"posterior: expected probabilities in [0, 1], but got values from {low:g} to {high:g}")
    loss = _label_loss(gamma, gamma_neg, margin, alpha, num_labels, probabilities)
    log_odds = probabilities.clamp_max(1 - 2**-53).logit()
    logits = sigmoid_minimiser(log_odds, *loss)
    if margin:
        logits = torch.where(log_odds == -math.inf, logits, logits.clamp(-37, 37))
    return logits.to(loss_dtype(posterior))


def shift_prior(posterior: Tensor, source_prior: Prior, target_prior: Prior) -> Tensor:
    r"""Adjusts class posteriors to class frequencies that differ from those in training.

    By Bayes' rule the posterior under the prior ``target`` is proportional to ``posterior * target / source``, as long as
    the examples within each class have the same distribution in both places. With a uniform target prior its argmax
    aims at balanced accuracy. The input has to be a posterior, which the raw softmax of focal logits is not: use
    [`class_posterior`] first.

    Args:
        posterior (`Tensor`): Class posteriors under the source prior, (..., C), of any floating dtype, summing to 1 over
            the last dimension. For independent labels, stack 1 - p and p there, one label at a time.
        source_prior (sequence or `Tensor` of shape (C)): Frequencies of the classes in the training data, summing to 1
            within 0.001. May be 0 only for classes whose posterior is 0 everywhere, which stays 0.
        target_prior (sequence or `Tensor` of shape (C)): Frequencies of the classes where the model is used; 0 for
            classes that do not occur there.

    Returns:
        `Tensor`: Probabilities of the shape of `posterior`. float64 for a float64 posterior, otherwise float32.

    Raises:
        `ValueError`: If the arguments are not probabilities or the shapes do not fit, a class with a posterior above 0
        has source prior 0, or all such classes of an example have target prior 0; the message names the argument.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import shift_prior
    >>> posterior = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    >>> shift_prior(posterior, source_prior=[0.9, 0.1], target_prior=[0.5, 0.5])
    tensor([[0.5000, 0.5000],
            [0.1000, 0.9000]])

    ```
    """
    _check_posterior(posterior)
    source = _as_prior("source_prior", source_prior, posterior)
    target = _as_prior("target_prior", target_prior, posterior)
    shifted = posterior.to(wide_dtype(posterior)) * target * _inverse_prior(source, posterior)
    total = shifted.sum(-1, keepdim=True)
    if not is_traced() and (total == 0).any():
        raise ValueError(
            "target_prior: expected a number above 0 for at least one class with a posterior above 0 in each example, "
            f"but got 0 for all of them in {int((total == 0).sum())} examples"
        )
    return (shifted / total).to(loss_dtype(posterior))


class PriorEstimate(NamedTuple):
    """The result of [`estimate_prior`].

    Attributes:
        prior (`Tensor` of float64, shape (C)): The estimated prior.
        iterations (`int`): Number of iterations.
        converged (`bool`): Whether the last iteration changed the prior by no more than the tolerance.
        change (`float`): The largest change of an entry in the last iteration.
    """

    prior: Tensor
    iterations: int
    converged: bool
    change: float


def estimate_prior(
    posterior: Tensor, source_prior: Prior, *, max_iterations: int = 1000, tolerance: float = 1e-6
) -> PriorEstimate:
    r"""Estimates the class prior of unlabelled examples from their posteriors under the training prior.

    The maximum likelihood estimate, by expectation maximisation (Saerens et al. 2002,
    https://doi.org/10.1162/089976602753284446): the prior is the mean of the posteriors under that prior, so the two
    are updated in turn. It makes the same assumption as [`shift_prior`], to which the result can be passed, and needs
    calibrated posteriors, for focal logits those of [`class_posterior`]. The less the classes overlap, the fewer
    iterations it takes.

    Args:
        posterior (`Tensor`): Class posteriors of the examples under the source prior, (..., C) with at least one example,
            of any floating dtype, summing to 1 over the last dimension.
        source_prior (sequence or `Tensor` of shape (C)): As in [`shift_prior`].
        max_iterations (`int`): Number of iterations after which to stop, with a warning, without convergence.
        tolerance (`float`): The estimate has converged when no entry changes by more than this in an iteration.

    Returns:
        [`PriorEstimate`]: The prior, in float64, and information about convergence. It is not differentiable.

    Raises:
        `ValueError`: If the arguments are not probabilities, out of range or the shapes do not fit, or a class that occurs
        has source prior 0; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import estimate_prior
    >>> posterior = torch.tensor([[0.95, 0.05], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95]])
    >>> estimate = estimate_prior(posterior, source_prior=[0.8, 0.2])
    >>> estimate.converged, estimate.prior
    (True, tensor([0.1561, 0.8439], dtype=torch.float64))

    ```
    """
    if not (isinstance(max_iterations, int) and max_iterations >= 1):
        raise ValueError(f"max_iterations: expected a whole number >= 1, but got {max_iterations!r}")
    tolerance = as_number("tolerance", tolerance)
    _check_posterior(posterior)
    if posterior.numel() == 0:
        raise ValueError(f"posterior: expected at least one example, but got shape {tuple(posterior.shape)}")
    prior = _as_prior("source_prior", source_prior, posterior)
    inverse_source = _inverse_prior(prior, posterior)
    rows = posterior.detach().reshape(-1, posterior.shape[-1]).to(wide_dtype(posterior))
    for iteration in range(1, max_iterations + 1):
        ratio = prior * inverse_source
        # The mean of the shifted posteriors, without materialising them.
        mean = ratio * ((rows @ ratio).reciprocal() @ rows) / len(rows)
        change = (mean - prior).abs().max().item()
        prior = mean
        if change <= tolerance:
            return PriorEstimate(prior, iteration, True, change)
    warnings.warn(
        f"estimate_prior: not converged, the prior still changes by {change:.1e} in iteration {iteration}, more than "
        f"the tolerance of {tolerance:.1e}",
        stacklevel=2,
    )
    return PriorEstimate(prior, iteration, False, change)


def _label_loss(
    gamma: ConstantGamma,
    gamma_neg: ConstantGamma | None,
    margin: float,
    alpha: Alpha,
    num_labels: int,
    like: Tensor,
) -> tuple[float | Tensor, float | Tensor, float, float | Tensor]:
    """The checked settings of the loss: gamma of positives, gamma of negatives, margin, log ratio of the weights."""
    positive_gamma = _constant_gamma("gamma", gamma, num_labels, like)
    negative_gamma = positive_gamma
    if gamma_neg is not None:
        negative_gamma = _constant_gamma("gamma_neg", gamma_neg, num_labels, like)
    weights = sigmoid_weights(alpha, num_labels)
    if weights is None:
        return positive_gamma, negative_gamma, as_margin(margin), 0.0
    if not is_traced() and (weights == 0).any():
        raise ValueError(
            "alpha: expected weights above 0 for negatives and for positives, since the logits contain no information "
            f"about an answer without weight, but got {alpha!r}"
        )
    negative, positive = beside(weights, like).log()
    return positive_gamma, negative_gamma, as_margin(margin), negative - positive


def _constant_gamma(name: str, gamma: ConstantGamma, num_classes: int, logits: Tensor) -> float | Tensor:
    if callable(gamma):
        raise ValueError(
            f"{name}: expected a number or one per class, since with a gamma that depends on p_t the loss has no such "
            f"inverse, but got {getattr(gamma, '__name__', repr(gamma))}"
        )
    return beside(as_gamma(name, gamma, num_classes), logits)


def _check_above_zero(weights: Tensor | None, alpha: Alpha) -> None:
    if weights is not None and not is_traced() and (weights == 0).any():
        raise ValueError(
            "alpha: expected weights > 0, since the logits contain no information about a class without weight, but "
            f"got {alpha!r}"
        )


def _smoothing_below_one(label_smoothing: float) -> float:
    number = as_number("label_smoothing", label_smoothing, upper=1)
    # Close to 1, only rounding errors of the posterior are left.
    if 1 - number < 1e-6:
        raise ValueError(
            "label_smoothing: expected a number below 1, since at 1 all targets are equal, but got "
            + repr(label_smoothing)
        )
    return number


def _as_prior(name: str, prior: Prior, posterior: Tensor) -> Tensor:
    """The checked prior, with the device and dtype for computations with `posterior`."""
    num_classes = posterior.shape[-1]
    numbers = as_numbers(name, prior)
    if numbers.dim() == 0:
        raise ValueError(f"{name}: expected one probability for each of {num_classes} classes, but got {prior!r}")
    check_length(name, numbers, num_classes)
    check_distributions(name, numbers, tolerance=1e-3)
    return numbers.to(posterior.device, wide_dtype(posterior))


def _inverse_prior(source: Tensor, posterior: Tensor) -> Tensor:
    """One over the prior, and 0 for classes that do not occur."""
    absent = source == 0
    if not is_traced():
        occurs = (posterior > 0).reshape(-1, len(source)).any(0)
        if (absent & occurs).any():
            classes = (absent & occurs).nonzero().flatten().tolist()
            raise ValueError(
                f"source_prior: expected numbers above 0 for all classes that occur, but got 0 for classes {classes}, "
                "whose posterior is above 0"
            )
    return source.reciprocal().masked_fill(absent, 0)


def _check_largest(largest: Tensor, expected: str) -> None:
    is_wrong = ~largest.isfinite()
    if is_wrong.any():
        raise ValueError(f"logits: expected {expected}, but got {largest[is_wrong][0].item()}")


def _check_posterior(posterior: Tensor) -> None:
    check_floating("posterior", posterior)
    if posterior.dim() == 0 or posterior.shape[-1] == 0:
        raise ValueError(f"posterior: expected shape (..., C), but got {tuple(posterior.shape)}")
    check_distributions("posterior", posterior)
