"""Softmax and sigmoid focal loss: what they are, what they take and what they refuse. How: `kernels.py`."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .kernels import (
    differentiated,
    evaluate,
    gamma_of_targets,
    is_traced,
    loss_dtype,
    sigmoid_block,
    sigmoid_formula,
    softmax_block,
    softmax_formula,
    wide_dtype,
)


__all__ = ["FocalLoss", "flsd_53", "focal_loss", "sigmoid_focal_loss"]

Gamma = float | Sequence[float] | Tensor | Callable[[Tensor], Tensor]
Alpha = float | Sequence[float] | Tensor | None


def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Gamma = 2.0,
    alpha: Alpha = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Softmax focal loss, with the names, shapes and order of `torch.nn.functional.cross_entropy`.

    For a target distribution ``q`` over the classes (one-hot for class indices) the loss of one example is
    ``sum_k q_k alpha_k (1 - p_k)^gamma_k (-log p_k)``. ``gamma=0`` without alpha is cross entropy.

    The gradient with respect to `input` is made together with the loss, in blocks of rows that stay in the cache;
    beside it there is no other tensor of the size of `input`, whatever its dtype. Differentiating twice,
    `torch.compile` (also ``fullgraph=True``) and the transforms of `torch.func` work; under the last two, values are
    not checked.

    Args:
        input (`Tensor`): Logits, (N, C) or (N, C, d1, ...), of any floating dtype. Minus infinity removes a class (but not
            under `label_smoothing`, which puts probability on every class: the loss is then infinite).
        target (`Tensor`): Class indices, (N) or (N, d1, ...), or class probabilities of the shape of `input`.
        gamma (`float`, sequence or `Tensor` of shape (C), or callable): Focusing parameter, at least 0: how strongly easy
            examples are suppressed; one for all classes or one per class. Or a function from p_t, a tensor with one
            probability per target, to the gamma of each target, such as [`flsd_53`].
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): Weight of each class, at least 0. A scalar in
            [0, 1] is for two classes: alpha for class 1 and 1 - alpha for class 0, as in the paper.
        ignore_index (`int`): Class index of targets that count neither in the loss nor in its mean.
        label_smoothing (`float`): ``q`` becomes ``(1 - label_smoothing) q + label_smoothing / C``, as in
            `cross_entropy`.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``. The mean is over the targets that are not ignored,
            whatever alpha is; over no targets at all it is 0.

    Returns:
        `Tensor`: A scalar, or the shape of the class indices for ``reduction="none"``, in nats. float64 for float64
        logits, otherwise float32: half-precision logits are computed in float32 and a sum over them does not overflow.

    Raises:
        `ValueError`: If an argument is out of its range or the shapes do not fit; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import focal_loss
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> focal_loss(logits, torch.tensor([0, 1]), gamma=2.0)
    tensor(0.0122)
    >>> focal_loss(logits, torch.tensor([0, 1]), gamma=0.0)  # cross entropy
    tensor(0.2201)
    >>> focal_loss(logits, torch.tensor([0, 1]), gamma=[0.0, 2.0])  # the first class is not suppressed
    tensor(0.0748)

    ```
    """
    label_smoothing = _as_number("label_smoothing", label_smoothing, upper=1)
    _check_reduction(reduction)
    _check_tensors(input, target)
    if input.dim() < 2 or input.shape[1] == 0:
        raise ValueError(f"input: expected logits of shape (N, C) or (N, C, d1, ...), but got {tuple(input.shape)}")
    num_classes = input.shape[1]
    gamma = gamma_of_targets(_as_gamma("gamma", gamma, num_classes), input)
    alpha = _class_weight(alpha, num_classes, input)
    target = target.to(input.device)
    if target.is_floating_point():
        _check_distributions(target, input.shape)
        num_valid, ignore_index = max(target[:, :1].numel(), 1), None
    else:
        _check_class_index_shape(target, input.shape)
        target = target.long().unsqueeze(1)
        expected = f"class indices from 0 to {num_classes - 1}"
        num_valid, ignore_index = _count_valid(target, num_classes - 1, ignore_index, expected)
    settings = {"gamma": gamma, "alpha": alpha, "ignore_index": ignore_index}
    formula = partial(softmax_formula, label_smoothing=label_smoothing, **settings)
    if label_smoothing or target.is_floating_point():
        block = partial(differentiated, formula=formula)
    else:
        block = partial(softmax_block, **settings)
    loss = evaluate(input, target, formula, block, num_valid, reduction)
    return loss.squeeze(1) if reduction == "none" else loss


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Gamma = 2.0,
    gamma_neg: Gamma | None = None,
    margin: float = 0.0,
    alpha: Alpha = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Sigmoid focal loss: one independent binary decision per label, for multi-label targets.

    With ``p = sigmoid(input)`` the loss of one label is

        -y alpha (1 - p)^gamma log p - (1 - y) (1 - alpha) q^gamma_neg log(1 - q),    q = max(p - margin, 0),

    both weights being 1 without alpha. With one gamma and no margin it is the loss of Lin et al. 2017
    (https://arxiv.org/abs/1708.02002), with its own gamma for negatives and a margin the asymmetric loss of Ridnik et
    al. 2021 (https://arxiv.org/abs/2009.14119): negatives with ``p <= margin`` drop out. With ``gamma=0`` and nothing
    else it is `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input (`Tensor`): Logits of any shape and floating dtype, usually (N, L) for L labels.
        target (`Tensor`): Of the shape of `input`: 0 or 1, or the probability of 1, or `ignore_index`.
        gamma (`float`, sequence or `Tensor` of shape (L), or callable): Focusing parameter, at least 0; one for all
            labels, one per label (the last dimension of `input`), or a function of p_t as in [`focal_loss`].
        gamma_neg (like `gamma`, *optional*): Focusing parameter of negatives, `gamma` if not given.
        margin (`float`): Probability in [0, 1] that is taken off the negatives.
        alpha (`float`, sequence or `Tensor` of shape (L), *optional*): Weight in [0, 1] of positives, negatives get
            1 - alpha; one for all labels, or one per label.
        ignore_index (`int`): Target of decisions that are not known: they count neither in the loss nor in its mean.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``, the mean being over all decisions that are not ignored.

    Returns:
        `Tensor`: A scalar, or the shape of `input` for ``reduction="none"``, in nats. float64 for float64 logits,
        otherwise float32.

    Raises:
        `ValueError`: If an argument is out of its range or the shapes do not fit; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import sigmoid_focal_loss
    >>> logits = torch.tensor([[2.0, -1.0, 0.5]])
    >>> sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0, 1.0]]), alpha=0.25)
    tensor(0.0114)
    >>> sigmoid_focal_loss(logits, torch.tensor([[1, 0, -100]]), gamma=1, gamma_neg=4, margin=0.05)  # asymmetric
    tensor(0.0078)

    ```
    """
    margin = _as_number("margin", margin, upper=1)
    _check_reduction(reduction)
    _check_tensors(input, target)
    if target.shape != input.shape:
        raise ValueError(f"target: expected the shape of input, {tuple(input.shape)}, but got {_describe(target)}")
    num_labels = input.shape[-1] if input.dim() else 1
    gamma = _as_gamma("gamma", gamma, num_labels)
    if gamma_neg is not None:
        gamma_neg = _as_gamma("gamma_neg", gamma_neg, num_labels)
    alpha = _positive_weight(alpha, num_labels, input)
    target = target.to(input.device)
    num_valid, ignore_index = _count_valid(target, 1 + 1e-5, ignore_index, "probabilities in [0, 1]")
    settings = {
        "gamma": gamma_of_targets(gamma, input),
        "gamma_neg": None if gamma_neg is None else gamma_of_targets(gamma_neg, input),
        "margin": margin,
        "alpha": alpha,
        "ignore_index": ignore_index,
    }
    formula = partial(sigmoid_formula, **settings)
    # The digits of gamma count where 1 - p is tiny.
    fits = _fits_float32(gamma) and (gamma_neg is None or _fits_float32(gamma_neg))
    dtype = loss_dtype(input) if fits else wide_dtype(input)
    block = partial(sigmoid_block, **settings, dtype=dtype, formula=formula)
    # Decisions can be cut into blocks anywhere, unless each label has numbers of its own.
    has_own = any(isinstance(value, Tensor) and value.dim() for value in (gamma, gamma_neg, alpha))
    shape = (-1, num_labels) if has_own else (-1,)
    loss = evaluate(input.reshape(shape), target.reshape(shape), formula, block, num_valid, reduction)
    return loss.reshape(input.shape) if reduction == "none" else loss


def flsd_53(p_t: Tensor) -> Tensor:
    """Gamma 5 for hard targets, those with p_t < 0.2, and 3 for the others: FLSD-53 of Mukhoti et al. 2020.

    Pass it as ``gamma``; it calibrated better than one gamma for all in their experiments
    (https://arxiv.org/abs/2002.09437).

    Args:
        p_t (`Tensor`): Probabilities of the true classes, of any shape.

    Returns:
        `Tensor`: The gamma of each, of the same shape.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import flsd_53, focal_loss
    >>> flsd_53(torch.tensor([0.1, 0.9]))
    tensor([5., 3.])
    >>> focal_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([1]), gamma=flsd_53)
    tensor(1.1275)

    ```
    """
    return torch.where(p_t < 0.2, 5.0, 3.0)


class FocalLoss(nn.Module):
    """`focal_loss` as a module: see there for the formula, the arguments and the shapes.

    Args:
        gamma (`float`, sequence or `Tensor` of shape (C), or callable): Focusing parameter, at least 0.
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): Weight of each class; a scalar for two classes.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``.
        ignore_index (`int`): Class index of targets that do not count.
        label_smoothing (`float`): Share of the target spread evenly over the classes.

    Alpha, and gamma where it differs by class, are buffers: they move with the module and are saved with it.

    Raises:
        `ValueError`: If an argument is out of its range; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import FocalLoss
    >>> criterion = FocalLoss(gamma=2, alpha=[0.5, 1.0, 4.0])
    >>> criterion
    FocalLoss(gamma=2, alpha=[0.5, 1.0, 4.0], reduction='mean')
    >>> criterion(torch.zeros(2, 3), torch.tensor([0, 2]))
    tensor(1.0986)

    ```
    """

    alpha: Tensor | None

    def __init__(
        self,
        gamma: Gamma = 2.0,
        alpha: Alpha = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        _check_reduction(reduction)
        gamma = _as_gamma("gamma", gamma)
        if isinstance(gamma, Tensor):
            self.register_buffer("gamma", gamma.float().clone())
        else:
            self.gamma = gamma
        self.register_buffer("alpha", None if alpha is None else _as_numbers("alpha", alpha).float().clone())
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = _as_number("label_smoothing", label_smoothing, upper=1)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return focal_loss(
            input,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        settings = [f"gamma={_shown(self.gamma)}"]
        if self.alpha is not None:
            settings.append(f"alpha={_shown(self.alpha)}")
        settings.append(f"reduction={self.reduction!r}")
        if self.ignore_index != -100:
            settings.append(f"ignore_index={self.ignore_index}")
        if self.label_smoothing:
            settings.append(f"label_smoothing={self.label_smoothing}")
        return ", ".join(settings)


def _fits_float32(gamma: float | Tensor | Callable) -> bool:
    return isinstance(gamma, float) and gamma < 2**12 and (gamma * 2**12).is_integer()


def _as_gamma(name: str, gamma: Gamma, num_classes: int | None = None) -> float | Tensor | Callable:
    if callable(gamma):
        return gamma
    if isinstance(gamma, (int, float, str)):
        return _as_number(name, gamma)
    gamma = _as_numbers(name, gamma)
    _check_length(name, gamma, num_classes)
    return gamma if gamma.dim() else gamma.item()


def _class_weight(alpha: Alpha, num_classes: int, input: Tensor) -> Tensor | None:
    if alpha is None:
        return None
    weights = _as_numbers("alpha", alpha)
    if weights.dim() == 0:
        if num_classes != 2:
            raise ValueError(
                f"alpha: a scalar is for two classes, but input has {num_classes}, where it would only rescale the "
                "loss; expected one weight per class"
            )
        if not is_traced() and weights > 1:
            raise ValueError(f"alpha: a scalar weighs class 1, and 1 - alpha class 0; expected at most 1, got {alpha}")
        weights = torch.stack([1 - weights, weights])
    _check_length("alpha", weights, num_classes)
    return weights.to(input.device, wide_dtype(input))


def _positive_weight(alpha: Alpha, num_labels: int, input: Tensor) -> Tensor | None:
    if alpha is None:
        return None
    weights = _as_numbers("alpha", alpha)
    if not is_traced() and (weights > 1).any():
        raise ValueError(f"alpha: expected weights of positives in [0, 1], but got {weights.tolist()}")
    _check_length("alpha", weights, num_labels)
    return weights.to(input.device, wide_dtype(input))


def _as_numbers(name: str, values: float | Sequence[float] | Tensor) -> Tensor:
    """A tensor of dimension 0 or 1, in float32 at least."""
    try:
        if isinstance(values, Tensor):
            numbers = values.detach().to(loss_dtype(values))
        else:
            numbers = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected a number or one per class, but got {values!r}") from error
    if numbers.dim() > 1 or numbers.is_complex():
        raise ValueError(f"{name}: expected a number or one per class, but got shape {tuple(numbers.shape)}")
    if not (is_traced() or numbers.is_meta) and numbers.numel():
        low, high = numbers.aminmax()
        if not (low.item() >= 0 and high.item() < math.inf):
            raise ValueError(f"{name}: expected finite numbers >= 0, but got {numbers.tolist()}")
    return numbers


def _as_number(name: str, value: float, upper: float = math.inf) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= upper):
        limits = ">= 0" if upper == math.inf else f"in [0, {upper}]"
        raise ValueError(f"{name}: expected a finite number {limits}, but got {value!r}")
    return number


def _check_length(name: str, numbers: Tensor, num_classes: int | None) -> None:
    if num_classes is not None and numbers.dim() and len(numbers) != num_classes:
        raise ValueError(f"{name}: expected one number for each of {num_classes} classes, but got {len(numbers)}")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', but got {reduction!r}")


def _check_tensors(input: Tensor, target: Tensor) -> None:
    if not (isinstance(input, Tensor) and input.is_floating_point()):
        raise ValueError(f"input: expected a floating point tensor of logits, but got {_describe(input)}")
    if not isinstance(target, Tensor) or target.is_complex():
        raise ValueError(f"target: expected a tensor of class indices or probabilities, but got {_describe(target)}")


def _check_class_index_shape(target: Tensor, input_shape: torch.Size) -> None:
    expected = input_shape[:1] + input_shape[2:]
    if target.dtype == torch.bool or target.shape != expected:
        raise ValueError(
            f"target: expected class indices of shape {tuple(expected)} or class probabilities of shape "
            f"{tuple(input_shape)} for input of shape {tuple(input_shape)}, but got {_describe(target)}"
        )


def _count_valid(target: Tensor, highest: float, ignore_index: int, expected: str) -> tuple[int | Tensor, int | None]:
    """The number of targets that count, at least 1; and `ignore_index`, but None if no target has it."""
    if is_traced():
        return (target != ignore_index).sum().clamp_min(1), ignore_index
    if target.numel() == 0:
        return 1, None
    valid, (low, high) = target, _extremes(target)
    has_ignored = low <= ignore_index <= high
    if has_ignored:
        valid = target[target != ignore_index]
        low, high = _extremes(valid) if valid.numel() else (0, 0)
    if not (low >= 0 and high <= highest):
        raise ValueError(
            f"target: expected {expected} or ignore_index={ignore_index}, but got values from {low:g} to {high:g}"
        )
    return max(valid.numel(), 1), ignore_index if has_ignored else None


def _check_distributions(target: Tensor, input_shape: torch.Size) -> None:
    if target.shape != input_shape:
        raise ValueError(
            f"target: expected the shape of input, {tuple(input_shape)}, for probabilities, but got {_describe(target)}"
        )
    if is_traced() or target.numel() == 0:
        return
    low, high = _extremes(target)
    if not (low >= 0 and high <= 1 + 1e-5):
        raise ValueError(f"target: expected probabilities in [0, 1], but got values from {low:g} to {high:g}")
    low, high = _extremes(target.sum(1))
    if low < 0.99 or high > 1.01:
        raise ValueError(
            f"target: expected class probabilities that sum to 1, but got sums from {low:g} to {high:g}; for "
            "independent labels use sigmoid_focal_loss"
        )


def _extremes(tensor: Tensor) -> tuple[float, float]:
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        tensor = tensor.long()  # torch orders no other unsigned integers
    low, high = tensor.aminmax()
    return low.item(), high.item()


def _shown(setting: float | Tensor | Callable) -> str:
    if not isinstance(setting, Tensor):
        return f"{setting:g}" if isinstance(setting, float) else getattr(setting, "__name__", repr(setting))
    if setting.is_meta:
        return f"<{len(setting)} on meta>" if setting.dim() else "<meta>"
    return str(setting.cpu().double().round(decimals=4).tolist())


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
