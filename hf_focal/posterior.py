"""From the logits of a model trained with focal loss to class posteriors, and from these to those under another prior.

Focal loss and alpha both distort the probabilities that a model ends with, in a way that can be undone exactly. Let
``v = softmax(logits)`` and ``phi_g(v) = (1 - v)^g - g (1 - v)^(g - 1) v log v``. Where the expected loss is least, its
derivatives by the logits vanish, which says that the targets are distributed as

    q_i ~ v_i / (alpha_i phi_{gamma_i}(v_i)).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import as_gamma, as_number, as_numbers, check_distributions, check_floating, check_length
from ._class_weights import Alpha, sigmoid_weights, softmax_weights
from ._kernels import all_margins, beside, loss_dtype, wide_dtype
from ._upstream import is_traced


__all__ = ["PriorEstimate", "class_posterior", "estimate_prior", "shift_prior", "sigmoid_class_posterior"]

ConstantGamma = float | Sequence[float] | Tensor
Prior = Sequence[float] | Tensor


def class_posterior(
    logits: Tensor, *, gamma: ConstantGamma, alpha: Alpha = None, label_smoothing: float = 0.0
) -> Tensor:
    r"""The class probabilities that the logits of a model trained with [`focal_loss`] stand for.

    Softmax of such logits is not the class posterior: with two classes and gamma 2 a true 0.95 comes out as 0.75, and
    alpha moves probability to the classes with large weights. Both can be undone: from logits with the least expected
    loss this makes the exact class posterior under the distribution of the training examples (of which a balanced sampler
    is a part, but alpha is not), and from those of a model that is close to it, a close one. The formula is that of
    Charoenphakdee et al. 2021 (https://arxiv.org/abs/2011.09172), extended to alpha and to one gamma per class.

    With one gamma the argmax of the logits is that of alpha times the posterior, whatever the label smoothing. So it is the same
    class without alpha, while with inverse frequencies as alpha the logits aim at balanced accuracy, and the posterior at
    accuracy.

    It is differentiable, twice too. Under `torch.compile` and the transforms of `torch.func`, values are not checked.

    Args:
        logits (`Tensor`): Logits as models return them, (..., C), of any floating dtype: the last dimension is that of the
            classes. Minus infinity removes a class, whose posterior is 0.
        gamma (`float`, sequence or `Tensor` of shape (C)): The focusing parameter of the loss, one for all classes or one
            per class. For a function of p_t there is no such inverse.
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): The alpha of the loss, but above 0: the
            logits tell nothing of a class without weight. A scalar is for two classes, as in [`focal_loss`].
        label_smoothing (`float`): The label smoothing of the loss, below 1. It leaves every class a share of
            ``label_smoothing / C``, whatever alpha is; logits that give a class less, which no minimiser does, give it the posterior 0.

    Returns:
        `Tensor`: Probabilities of the shape of `logits` that sum to 1 over the last dimension. float64 for float64 logits,
        otherwise float32.

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
    gamma = _constant_gamma(gamma, num_classes, logits)
    weights = softmax_weights(alpha, num_classes)
    if weights is not None and not is_traced() and (weights == 0).any():
        raise ValueError(
            f"alpha: expected weights > 0, since the logits tell nothing of a class without weight, but got {alpha!r}"
        )
    if not is_traced():
        _check_largest(logits.detach().amax(-1), "a finite largest logit in every row")

    log_share = _log_share(all_margins(logits.reshape(-1, num_classes)), gamma)
    if label_smoothing:
        # The largest is at least 1 / C and so remains above 0. Alpha does not weigh the smoothing mass.
        share = (log_share.softmax(-1) - label_smoothing / num_classes).clamp_min(0)
        share = share if weights is None else share / weights.to(share)
        posterior = share / share.sum(-1, keepdim=True)
    else:
        posterior = (log_share if weights is None else log_share - weights.to(log_share).log()).softmax(-1)
    return posterior.reshape(logits.shape).to(loss_dtype(logits))


def sigmoid_class_posterior(logits: Tensor, *, gamma: ConstantGamma, alpha: Alpha = None) -> Tensor:
    r"""The probabilities of labels that the logits of a model trained with [`sigmoid_focal_loss`] stand for.

    As [`class_posterior`], with one independent decision per label: with ``D(p) = phi_gamma(p) / p`` for
    ``p = sigmoid(logits)``,

        posterior = (1 - alpha) D(1 - p) / (alpha D(p) + (1 - alpha) D(1 - p)),

    for a loss without `gamma_neg` and `margin`.

    Args:
        logits (`Tensor`): Logits of any shape and floating dtype, usually (N, L) for L labels. Minus infinity is
            probability 0.
        gamma (`float`, sequence or `Tensor` of shape (L)): The focusing parameter of the loss, one for all labels or one
            per label (the last dimension of `logits`).
        alpha (`float`, sequence or `Tensor` of shape (L), *optional*): The weight of positives in the loss, but neither 0
            nor 1, where one of the answers had no weight; one for all labels, or one per label.

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
    >>> sigmoid_class_posterior(logits, gamma=2.0, alpha=[0.5, 0.75, 0.9])
    tensor([[0.9503, 0.2500, 0.0058]])

    ```
    """
    check_floating("logits", logits)
    num_labels = logits.shape[-1] if logits.dim() else 1
    gamma = _constant_gamma(gamma, num_labels, logits)
    weights = sigmoid_weights(alpha, num_labels)
    if weights is not None and not is_traced() and (weights == 0).any():
        raise ValueError(
            "alpha: expected weights above 0 for negatives and for positives, since the logits tell nothing of an answer "
            f"without weight, but got {alpha!r}"
        )
    if not is_traced():
        lowest = torch.finfo(logits.dtype).min
        _check_largest(logits.detach().clamp_min(lowest), "finite logits or -inf")

    wide = logits.to(wide_dtype(logits))
    posterior_logit = _log_share(-wide, gamma) - _log_share(wide, gamma)
    if weights is not None:
        negative, positive = weights.to(posterior_logit).log()
        posterior_logit = posterior_logit + (negative - positive)
    return posterior_logit.sigmoid().to(loss_dtype(logits))


def shift_prior(posterior: Tensor, source_prior: Prior, target_prior: Prior) -> Tensor:
    r"""Class posteriors where the classes occur with other frequencies than in training.

    By Bayes' rule the posterior under the prior ``target`` is proportional to ``posterior * target / source``, as long as
    the examples of each class look alike in both places. With a uniform target prior its argmax aims at balanced
    accuracy. A posterior has to come in, which raw softmax of focal logits is not: use [`class_posterior`] first.

    Args:
        posterior (`Tensor`): Class posteriors under the source prior, (..., C), of any floating dtype, summing to 1 over
            the last dimension. For independent labels, stack 1 - p and p there, one label at a time.
        source_prior (sequence or `Tensor` of shape (C)): Frequencies of the classes in the training data, to sum to 1
            within 0.001. A frequency of 0 is for classes whose posterior is 0 everywhere, and stays so.
        target_prior (sequence or `Tensor` of shape (C)): The same where the model is used; 0 for classes that do not
            occur there.

    Returns:
        `Tensor`: Probabilities of the shape of `posterior`. float64 for a float64 posterior, otherwise float32.

    Raises:
        `ValueError`: If the arguments are not probabilities or the shapes do not fit, a class that occurs has source prior
        0, or all classes that an example may have by its posterior have target prior 0; the message names it.

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
            "target_prior: expected a class above 0 among those that each example may have, but got 0 for all of them in "
            f"{int((total == 0).sum())} examples"
        )
    return (shifted / total).to(loss_dtype(posterior))


class PriorEstimate(NamedTuple):
    """What [`estimate_prior`] found.

    Attributes:
        prior (`Tensor` of float64, shape (C)): The estimated prior.
        iterations (`int`): Iterations made.
        converged (`bool`): Whether the last one changed the prior by no more than the tolerance.
        change (`float`): The largest change of an entry in the last iteration.
    """

    prior: Tensor
    iterations: int
    converged: bool
    change: float


def estimate_prior(
    posterior: Tensor, source_prior: Prior, *, max_iterations: int = 1000, tolerance: float = 1e-6
) -> PriorEstimate:
    r"""The class prior of unlabelled examples, from their posteriors under the prior of training.

    The maximum likelihood estimate, by the expectation maximisation of Saerens et al. 2002
    (https://doi.org/10.1162/089976602753284446): the prior is the mean of the posteriors under that prior, found by
    taking turns. It assumes what [`shift_prior`] does, to which it can be passed, and posteriors that are calibrated: of
    focal logits, those of [`class_posterior`]. The less the classes overlap, the fewer iterations it takes.

    Args:
        posterior (`Tensor`): Class posteriors of the examples under the source prior, (..., C) with at least one example,
            of any floating dtype, summing to 1 over the last dimension.
        source_prior (sequence or `Tensor` of shape (C)): As in [`shift_prior`].
        max_iterations (`int`): Where to stop, with a warning, if the estimate has not converged.
        tolerance (`float`): The estimate has converged when no entry changes by more than this in an iteration.

    Returns:
        [`PriorEstimate`]: The prior, in float64, and how the iteration ended. It is not differentiable.

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
        # The mean of the shifted posteriors, without having them all at a time.
        mean = ratio * ((rows @ ratio).reciprocal() @ rows) / len(rows)
        change = (mean - prior).abs().max().item()
        prior = mean
        if change <= tolerance:
            return PriorEstimate(prior, iteration, True, change)
    warnings.warn(
        f"estimate_prior: the prior still changes by {change:.1e} in iteration {iteration}, more than the tolerance of "
        f"{tolerance:.1e}",
        stacklevel=2,
    )
    return PriorEstimate(prior, iteration, False, change)


def _log_share(margin: Tensor, gamma: float | Tensor) -> Tensor:
    """``log(v / phi(v))`` for ``v = sigmoid(-margin)``, from ``phi = (1 - v)^gamma (1 + gamma s)``.

    ``s = v (-log v) / (1 - v)`` is 1 at v = 1, and so it is from a margin of -40 on, below which both parts of the
    fraction would end as 0.
    """
    # Infinite for classes that minus infinity removes, and for those beside which no other is left.
    margin = margin.clamp(-1e30, 1e30)
    near = margin.clamp_min(-40)
    s = torch.sigmoid(-near) * -F.logsigmoid(-near) / torch.sigmoid(near)
    return F.logsigmoid(-margin) - gamma * F.logsigmoid(margin) - torch.log1p(gamma * s)


def _constant_gamma(gamma: ConstantGamma, num_classes: int, logits: Tensor) -> float | Tensor:
    if callable(gamma):
        raise ValueError(
            "gamma: expected a number or one per class, since a gamma that depends on p_t has no such inverse, but got "
            f"{getattr(gamma, '__name__', repr(gamma))}"
        )
    return beside(as_gamma("gamma", gamma, num_classes), logits)


def _smoothing_below_one(label_smoothing: float) -> float:
    number = as_number("label_smoothing", label_smoothing, upper=1)
    # Next to 1, what remains of the posterior is rounding.
    if 1 - number < 1e-6:
        raise ValueError(
            "label_smoothing: expected a number below 1, since at 1 all targets are alike, but got "
            + repr(label_smoothing)
        )
    return number


def _as_prior(name: str, prior: Prior, posterior: Tensor) -> Tensor:
    """The prior, of the device and the width of computations with `posterior`."""
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
                f"source_prior: expected more than 0 for every class that occurs, but got 0 for classes {classes}, whose "
                "posterior is above 0"
            )
    return source.reciprocal().masked_fill(absent, 0)


def _check_largest(largest: Tensor, expected: str) -> None:
    wrong = ~largest.isfinite()
    if wrong.any():
        raise ValueError(f"logits: expected {expected}, but got {largest[wrong][0].item()}")


def _check_posterior(posterior: Tensor) -> None:
    check_floating("posterior", posterior)
    if posterior.dim() == 0 or posterior.shape[-1] == 0:
        raise ValueError(f"posterior: expected shape (..., C), but got {tuple(posterior.shape)}")
    check_distributions("posterior", posterior)
