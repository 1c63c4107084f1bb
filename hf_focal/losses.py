"""Softmax and sigmoid focal loss, in the margin form that keeps every digit of easy examples.

Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002) is ``-alpha_t (1 - p_t)^gamma log p_t``. With the margin
``m = logsumexp of the other classes' logits - logit of the true class``,

    log p_t = logsigmoid(-m)    and    log(1 - p_t) = logsigmoid(m),

so neither is ever taken from a probability that has rounded to 1, and no power of zero appears for ``gamma < 1``.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


__all__ = ["FocalLoss", "focal_loss", "sigmoid_focal_loss"]


def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Softmax focal loss, with the names, shapes and order of `torch.nn.functional.cross_entropy`.

    For a target distribution ``q`` over the classes (one-hot for class indices) the loss of one example is
    ``sum_k q_k alpha_k (1 - p_k)^gamma (-log p_k)``. ``gamma=0`` without alpha is cross entropy.

    Args:
        input (`Tensor`): Logits, (N, C) or (N, C, d1, ...), of any floating dtype. Minus infinity removes a class (but not
            under `label_smoothing`, which puts probability on every class: the loss is then infinite).
        target (`Tensor`): Class indices, (N) or (N, d1, ...), or class probabilities of the shape of `input`.
        gamma (`float`): Focusing parameter, at least 0: how strongly easy examples are suppressed.
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

    ```
    """
    gamma = _as_number("gamma", gamma)
    label_smoothing = _as_number("label_smoothing", label_smoothing, upper=1)
    _check_reduction(reduction)
    _check_tensors(input, target)
    if input.dim() < 2 or input.shape[1] == 0:
        raise ValueError(f"input: expected logits of shape (N, C) or (N, C, d1, ...), but got {tuple(input.shape)}")
    num_classes = input.shape[1]
    weight = _class_weight(alpha, num_classes, input)
    logits = _rows(input)
    probabilities = target.is_floating_point()
    if probabilities:
        _check_probabilities(target, input.shape)
        _check_distributions(target)
        target_shape = input.shape[:1] + input.shape[2:]
        q = _rows(target)
        valid = torch.ones(len(logits), dtype=torch.bool, device=input.device)
    else:
        _check_class_indices(target, input.shape, ignore_index)
        target_shape = target.shape
        target = target.reshape(-1).to(input.device, torch.long)
        valid = target != ignore_index
        # An ignored row may hold anything, NaN included: it is replaced, so that nothing of it reaches the gradient.
        target = target.masked_fill(~valid, 0)
        logits = logits.masked_fill(~valid.unsqueeze(1), 0)

    if probabilities or label_smoothing > 0:
        if not probabilities:
            q = F.one_hot(target, num_classes)
        q = (1 - label_smoothing) * q.to(input.device, _wide_dtype(input)) + label_smoothing / num_classes
        if weight is not None:
            q = q * weight
        # Probability 0 on a class that a logit of minus infinity removes is 0, not 0 times infinity.
        loss = (q * _loss_from_margin(_all_margins(logits).masked_fill(q == 0, 0), gamma)).sum(1)
    else:
        loss = _loss_from_margin(_margin(logits, target), gamma)
        if weight is not None:
            loss = loss * weight[target]
    loss = loss.masked_fill(~valid, 0)

    return _reduce(loss.reshape(target_shape), reduction, count=valid.sum()).to(_loss_dtype(input))


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Sigmoid focal loss: one independent binary decision per label, for multi-label targets.

    With ``p = sigmoid(input)`` the loss of one label is
    ``-y alpha (1 - p)^gamma log p - (1 - y) (1 - alpha) p^gamma log(1 - p)`` (Lin et al. 2017,
    https://arxiv.org/abs/1708.02002), both weights being 1 without alpha. ``gamma=0`` without alpha is
    `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input (`Tensor`): Logits of any shape and floating dtype, usually (N, L) for L labels.
        target (`Tensor`): Of the shape of `input`: 0 or 1, or the probability of 1.
        gamma (`float`): Focusing parameter, at least 0.
        alpha (`float`, sequence or `Tensor` of shape (L), *optional*): Weight in [0, 1] of positives, negatives get
            1 - alpha; one for all labels, or one per label (the last dimension of `input`).
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``, the mean being over all decisions, N L of them.

    Returns:
        `Tensor`: A scalar, or the shape of `input` for ``reduction="none"``, in nats. float64 for float64 logits,
        otherwise float32.

    Raises:
        `ValueError`: If an argument is out of its range or the shapes do not fit; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import sigmoid_focal_loss
    >>> sigmoid_focal_loss(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]]), alpha=0.25)
    tensor(0.0114)

    ```
    """
    gamma = _as_number("gamma", gamma)
    _check_reduction(reduction)
    _check_tensors(input, target)
    _check_probabilities(target, input.shape)
    logits = input.to(_wide_dtype(input))
    target = target.to(logits.device, logits.dtype)
    positive = target * _loss_from_margin(-logits, gamma)
    negative = (1 - target) * _loss_from_margin(logits, gamma)
    if alpha is not None:
        alpha = _positive_weight(alpha, logits)
        positive, negative = alpha * positive, (1 - alpha) * negative
    loss = positive + negative
    return _reduce(loss, reduction, count=torch.tensor(loss.numel(), device=loss.device)).to(_loss_dtype(input))


class FocalLoss(nn.Module):
    """`focal_loss` as a module: see there for the formula, the arguments and the shapes.

    Args:
        gamma (`float`): Focusing parameter, at least 0.
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): Weight of each class; a scalar for two classes.
            It is a buffer, so it moves with the module and is saved with it.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``.
        ignore_index (`int`): Class index of targets that do not count.
        label_smoothing (`float`): Share of the target spread evenly over the classes.

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
        gamma: float = 2.0,
        alpha: float | Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        _check_reduction(reduction)
        self.gamma = _as_number("gamma", gamma)
        self.register_buffer("alpha", None if alpha is None else _as_weights(alpha).float().clone())
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
        settings = [f"gamma={self.gamma:g}"]
        if self.alpha is not None:
            settings.append(f"alpha={self.alpha.cpu().double().round(decimals=4).tolist()}")
        settings.append(f"reduction={self.reduction!r}")
        if self.ignore_index != -100:
            settings.append(f"ignore_index={self.ignore_index}")
        if self.label_smoothing:
            settings.append(f"label_smoothing={self.label_smoothing}")
        return ", ".join(settings)


def _loss_from_margin(margin: Tensor, gamma: float) -> Tensor:
    return torch.exp(gamma * F.logsigmoid(margin)) * -F.logsigmoid(-margin)


def _margin(logits: Tensor, target: Tensor) -> Tensor:
    """logsumexp over the classes other than `target`, minus the logit of `target`: (N) from (N, C) and (N)."""
    target = target.unsqueeze(1)
    others = logits.scatter(1, target, -math.inf)
    # The sum does not depend on the shift, so no gradient flows through it. Both floors matter only where minus
    # infinity removes every other class: the margin is then hugely negative, but finite.
    shift = others.detach().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    # In float32 a margin of 80 is off by 4e-6, and exp makes that a relative error of the loss, gamma + 1 times.
    wide = _wide_dtype(logits)
    total = (others - shift).exp().sum(1, keepdim=True, dtype=wide).clamp_min(1)
    return (shift.to(wide) - logits.gather(1, target).to(wide) + total.log()).squeeze(1)


def _all_margins(logits: Tensor) -> Tensor:
    """The margin of every class: (N, C) from (N, C)."""
    logits = logits.to(_wide_dtype(logits))
    shift, top = logits.detach().max(1, keepdim=True)
    exp = (logits - shift).exp()
    # Subtracting a class from the total is exact enough for all but the largest, of which nothing would remain.
    others = (exp.sum(1, keepdim=True) - exp).scatter(1, top, 1)
    margins = others.log() + shift - logits
    return margins.scatter(1, top, _margin(logits, top.squeeze(1)).unsqueeze(1))


def _rows(tensor: Tensor) -> Tensor:
    """(N, C, d1, ...) to (N d1 ..., C), in float32 at least."""
    rows = tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
    return rows.to(_loss_dtype(tensor))


def _reduce(loss: Tensor, reduction: str, count: Tensor) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / count.clamp_min(1)


def _loss_dtype(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _wide_dtype(input: Tensor) -> torch.dtype:
    return torch.float32 if input.device.type == "mps" else torch.float64  # Apple GPUs have no float64


def _as_weights(alpha: float | Sequence[float] | Tensor) -> Tensor:
    try:
        weights = alpha.detach() if isinstance(alpha, Tensor) else torch.as_tensor(alpha, dtype=torch.float64)
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"alpha: expected a number or one weight per class, but got {alpha!r}") from error
    if weights.dim() > 1 or weights.is_complex():
        raise ValueError(f"alpha: expected a number or one weight per class, but got shape {tuple(weights.shape)}")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(f"alpha: expected finite weights >= 0, but got {weights.tolist()}")
    return weights


def _class_weight(alpha: float | Sequence[float] | Tensor | None, num_classes: int, input: Tensor) -> Tensor | None:
    if alpha is None:
        return None
    weights = _as_weights(alpha)
    if weights.dim() == 0:
        if num_classes != 2:
            raise ValueError(
                f"alpha: a scalar is for two classes, but input has {num_classes}, where it would only rescale the "
                "loss; expected one weight per class"
            )
        if weights > 1:
            raise ValueError(f"alpha: a scalar weighs class 1, and 1 - alpha class 0; expected at most 1, got {alpha}")
        weights = torch.stack([1 - weights, weights])
    if len(weights) != num_classes:
        raise ValueError(f"alpha: expected one weight for each of {num_classes} classes, but got {len(weights)}")
    return weights.to(input.device, _wide_dtype(input))


def _positive_weight(alpha: float | Sequence[float] | Tensor, logits: Tensor) -> Tensor:
    weights = _as_weights(alpha)
    if (weights > 1).any():
        raise ValueError(f"alpha: expected weights of positives in [0, 1], but got {weights.tolist()}")
    if weights.dim() == 1 and weights.shape != logits.shape[-1:]:
        raise ValueError(
            f"alpha: expected one weight for each of the labels in the last dimension of input, "
            f"{tuple(logits.shape)}, but got {len(weights)}"
        )
    return weights.to(logits.device, logits.dtype)


def _as_number(name: str, value: float, upper: float = math.inf) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= upper):
        limits = ">= 0" if upper == math.inf else f"in [0, {upper}]"
        raise ValueError(f"{name}: expected a finite number {limits}, but got {value!r}")
    return number


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', but got {reduction!r}")


def _check_tensors(input: Tensor, target: Tensor) -> None:
    if not (isinstance(input, Tensor) and input.is_floating_point()):
        raise ValueError(f"input: expected a floating point tensor of logits, but got {_describe(input)}")
    if not isinstance(target, Tensor) or target.is_complex():
        raise ValueError(f"target: expected a tensor of class indices or probabilities, but got {_describe(target)}")


def _check_class_indices(target: Tensor, input_shape: torch.Size, ignore_index: int) -> None:
    expected = input_shape[:1] + input_shape[2:]
    if target.dtype == torch.bool or target.shape != expected:
        raise ValueError(
            f"target: expected class indices of shape {tuple(expected)} or class probabilities of shape "
            f"{tuple(input_shape)} for input of shape {tuple(input_shape)}, but got {_describe(target)}"
        )
    target = target.long()
    wrong = target[((target < 0) | (target >= input_shape[1])) & (target != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"target: expected class indices from 0 to {input_shape[1] - 1} or ignore_index={ignore_index}, "
            f"but got {wrong.unique()[:5].tolist()}"
        )


def _check_probabilities(target: Tensor, shape: torch.Size) -> None:
    if target.shape != shape:
        raise ValueError(
            f"target: expected the shape of input, {tuple(shape)}, for probabilities, but got {_describe(target)}"
        )
    if not ((target >= 0) & (target <= 1 + 1e-5)).all():
        raise ValueError(
            f"target: expected probabilities in [0, 1], but got values from {target.min():g} to {target.max():g}"
        )


def _check_distributions(target: Tensor) -> None:
    totals = target.to(_wide_dtype(target)).sum(1)
    off = totals[(totals - 1).abs() > 0.01]
    if off.numel():
        raise ValueError(
            f"target: expected class probabilities that sum to 1, but got a sum of {off[0]:g}; for independent labels "
            "use sigmoid_focal_loss"
        )


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
