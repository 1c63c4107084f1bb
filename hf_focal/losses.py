"""Softmax and sigmoid focal loss: definitions, arguments and checks. The computation is in `_kernels.py`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ._checks import (
    as_gamma,
    as_margin,
    as_number,
    as_numbers,
    check_distributions,
    check_ignore_index,
    checked_gamma,
    describe,
    extremes,
)
from ._class_weights import Alpha, sigmoid_weights, softmax_weights
from ._kernels import GammaOfTargets, SigmoidFocal, SoftmaxFocal, beside, evaluate
from ._upstream import is_traced


__all__ = ["FocalLoss", "SigmoidFocalLoss", "flsd_53", "focal_loss", "sigmoid_focal_loss"]

Gamma = float | Sequence[float] | Tensor | Callable[[Tensor], Tensor]


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

    With p the softmax of the logits and a target distribution q over the classes (one-hot for class indices), the loss
    of one example is

    $$-\sum_k q_k \, \alpha_k \, (1 - p_k)^{\gamma_k} \log p_k.$$

    ``gamma=0`` without alpha is cross entropy. Label smoothing e replaces the weights $q_k \alpha_k$ by
    $(1 - e) \, q_k \alpha_k + \frac{e}{C} \sum_j q_j \alpha_j$: alpha_y scales the whole loss
    of an example, but not how its smoothing is shared among the classes. This differs from `cross_entropy` with both
    options, whose minimiser favours the class with the largest weight for every input once the ratio of the largest
    weight to the smallest is above 1 + C (1 - e) / e.

    The gradient with respect to `input` is computed together with the loss, in blocks of rows that stay in the cache;
    no other tensor of the size of `input` is allocated, whatever the dtype. Double backward, `torch.compile` (also
    ``fullgraph=True``) and the transforms of `torch.func` work; under the last two, values are not checked.

    Args:
        input (`Tensor`): Logits, (N, C) or (N, C, d1, ...), of any floating dtype. Minus infinity removes a class
            (except with `label_smoothing`, which puts probability on every class: the loss is then infinite).
        target (`Tensor`): Class indices, (N) or (N, d1, ...), or class probabilities of the shape of `input`.
        gamma (`float`, sequence or `Tensor` of shape (C), or callable): Focusing parameter, at least 0: how strongly
            easy examples are suppressed; one for all classes or one per class. Or a function that maps p_t, a tensor
            with one probability per target, to the gamma of each target, such as [`flsd_53`].
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): Weight of each class, at least 0, and not 0 for
            all. A scalar in [0, 1] is for two classes: alpha for class 1 and 1 - alpha for class 0, as in the paper.
        ignore_index (`int`): Class index of targets that are excluded from the loss and from its mean.
        label_smoothing (`float`): In [0, 1]: the share of the target that is spread evenly over the classes. Without
            alpha, the same as in `cross_entropy`.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``. The mean divides by the number of targets that are not
            ignored, whatever alpha is; with no targets at all it is 0.

    Returns:
        `Tensor`: A scalar, or the shape of the class indices for ``reduction="none"``, in nats. float64 for float64
        logits, otherwise float32: half-precision logits are computed in float32, so their sum does not overflow.

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
    label_smoothing = as_number("label_smoothing", label_smoothing, upper=1)
    check_ignore_index(ignore_index)
    _check_reduction(reduction)
    _check_tensors(input, target)
    if input.dim() < 2 or input.shape[1] == 0:
        raise ValueError(f"input: expected logits of shape (N, C) or (N, C, d1, ...), but got {tuple(input.shape)}")
    num_classes = input.shape[1]
    gamma = checked_gamma("gamma", as_gamma("gamma", gamma, num_classes))
    alpha = softmax_weights(alpha, num_classes)
    target = target.to(input.device)
    num_valid: int | Tensor
    if target.is_floating_point():
        _check_probabilities(target, input.shape)
        num_valid, present_index = max(target[:, :1].numel(), 1), None
    else:
        _check_class_index_shape(target, input.shape)
        target = target.long().unsqueeze(1)
        expected = f"class indices from 0 to {num_classes - 1}"
        num_valid, present_index = _count_valid(target, num_classes - 1, ignore_index, expected)
    kernel = SoftmaxFocal(beside(gamma, input), beside(alpha, input), present_index, label_smoothing)
    loss = evaluate(kernel, input, target, num_valid, reduction)
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

    With p the sigmoid of the logit and y the target, the loss of one label is

    $$-y \, \alpha_1 (1 - p)^{\gamma} \log p - (1 - y) \, \alpha_0 \, q^{\gamma_{neg}} \log (1 - q),
    \quad q = \max(p - margin, 0),$$

    where both weights are 1 without alpha. With one gamma, alpha_0 = 1 - alpha_1 and no margin it is the loss of Lin
    et al. 2017 (https://arxiv.org/abs/1708.02002). With a separate gamma for negatives and a margin it is the
    asymmetric loss of Ridnik et al. 2021 (https://arxiv.org/abs/2009.14119): negatives with ``p <= margin`` drop out.
    With ``gamma=0`` and nothing else it is `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input (`Tensor`): Logits of any shape and floating dtype, usually (N, L) for L labels. For infinite logits,
            right or wrong, the loss is NaN or infinite wherever `binary_cross_entropy_with_logits` is.
        target (`Tensor`): Same shape as `input`: 0 or 1, or the probability of 1, or `ignore_index`.
        gamma (`float`, sequence or `Tensor` of shape (L), or callable): Focusing parameter, at least 0; one for all
            labels, one per label (the last dimension of `input`), or a function of p_t as in [`focal_loss`].
        gamma_neg (like `gamma`, *optional*): Focusing parameter of negatives; `gamma` if not given.
        margin (`float`): Probability in [0, 1) that is subtracted from p for negatives.
        alpha (`float`, sequence or `Tensor` of shape (L) or (2, L), *optional*): Weight in [0, 1] of positives, while
            negatives get 1 - alpha; one for all labels, or one per label. Or a pair per label: the weights of
            negatives, then those of positives, any numbers >= 0, as returned by [`LabelDistribution.alpha`].
            ``[[1, ...], pos_weight]`` is equivalent to the `pos_weight` of `binary_cross_entropy_with_logits`.
        ignore_index (`int`): Target of unknown labels, which are excluded from the loss and from its mean.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``; the mean is over all targets that are not ignored.

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
    margin = as_margin(margin)
    check_ignore_index(ignore_index)
    _check_reduction(reduction)
    _check_tensors(input, target)
    if target.shape != input.shape:
        raise ValueError(f"target: expected the shape of input, {tuple(input.shape)}, but got {describe(target)}")
    num_labels = input.shape[-1] if input.dim() else 1
    gamma = checked_gamma("gamma", as_gamma("gamma", gamma, num_labels))
    if gamma_neg is not None:
        gamma_neg = checked_gamma("gamma_neg", as_gamma("gamma_neg", gamma_neg, num_labels))
    alpha = sigmoid_weights(alpha, num_labels)
    target = target.to(input.device)
    num_valid, present_index = _count_valid(target, 1 + 1e-5, ignore_index, "probabilities in [0, 1]")
    kernel = SigmoidFocal(beside(gamma, input), beside(gamma_neg, input), margin, beside(alpha, input), present_index)
    # A flat tensor can be split into blocks anywhere, but settings per label need the label dimension.
    is_per_label = any(isinstance(value, Tensor) and value.dim() for value in (gamma, gamma_neg))
    is_per_label |= alpha is not None and alpha.dim() == 2
    shape = (-1, num_labels) if is_per_label else (-1,)
    loss = evaluate(kernel, input.reshape(shape), target.reshape(shape), num_valid, reduction)
    return loss.reshape(input.shape) if reduction == "none" else loss


def flsd_53(p_t: Tensor) -> Tensor:
    """Gamma 5 for hard targets (p_t < 0.2) and 3 for the others: FLSD-53 of Mukhoti et al. 2020.

    Pass it as ``gamma``. In their experiments (https://arxiv.org/abs/2002.09437) models were better calibrated with it
    than with one gamma for all targets.

    Args:
        p_t (`Tensor`): Probabilities of the true classes, of any shape.

    Returns:
        `Tensor`: The gamma of each target, of the same shape.

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
    """Module form of [`focal_loss`], which documents the formula, the arguments and the shapes.

    Args:
        gamma (`float`, sequence or `Tensor` of shape (C), or callable): Focusing parameter, at least 0.
        alpha (`float`, sequence or `Tensor` of shape (C), *optional*): Weight of each class; a scalar for two classes.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``.
        ignore_index (`int`): Class index of targets that are ignored.
        label_smoothing (`float`): Share of the target spread evenly over the classes.

    Alpha, and gamma if it is given per class, are buffers: they move with the module and are saved with it.

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

    gamma: GammaOfTargets
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
        check_ignore_index(ignore_index)
        _store(self, "gamma", as_gamma("gamma", gamma))
        weights = None if alpha is None else as_numbers("alpha", alpha, may_be_all_zero=False)
        self.register_buffer("alpha", None if weights is None else weights.float().clone())
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = as_number("label_smoothing", label_smoothing, upper=1)

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
        settings = [f"gamma={_format_setting(self.gamma)}"]
        if self.alpha is not None:
            settings.append(f"alpha={_format_setting(self.alpha)}")
        settings.append(f"reduction={self.reduction!r}")
        if self.ignore_index != -100:
            settings.append(f"ignore_index={self.ignore_index}")
        if self.label_smoothing:
            settings.append(f"label_smoothing={self.label_smoothing}")
        return ", ".join(settings)


class SigmoidFocalLoss(nn.Module):
    """Module form of [`sigmoid_focal_loss`], which documents the formula, the arguments and the shapes.

    Args:
        gamma (`float`, sequence or `Tensor` of shape (L), or callable): Focusing parameter, at least 0.
        alpha (`float`, sequence or `Tensor` of shape (L) or (2, L), *optional*): Weight in [0, 1] of positives, or the
            weights of negatives, then of positives.
        reduction (`str`): ``"none"``, ``"sum"`` or ``"mean"``.
        gamma_neg (like `gamma`, *optional*): Focusing parameter of negatives; `gamma` if not given.
        margin (`float`): Probability in [0, 1) that is subtracted from p for negatives.
        ignore_index (`int`): Target of unknown labels.

    Alpha, and any gamma that is given per label, are buffers: they move with the module and are saved with it.

    Raises:
        `ValueError`: If an argument is out of its range; the message names it.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import SigmoidFocalLoss, compute_alpha
    >>> labels = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 1]])
    >>> criterion = SigmoidFocalLoss(gamma=2, alpha=compute_alpha(labels))
    >>> criterion
    SigmoidFocalLoss(gamma=2, alpha=[[0.6667, 1.0], [2.0, 1.0]], reduction='mean')
    >>> criterion(torch.zeros(4, 2), labels)
    tensor(0.1733)

    ```
    """

    gamma: GammaOfTargets
    gamma_neg: GammaOfTargets | None
    alpha: Tensor | None

    def __init__(
        self,
        gamma: Gamma = 2.0,
        alpha: Alpha = None,
        reduction: str = "mean",
        *,
        gamma_neg: Gamma | None = None,
        margin: float = 0.0,
        ignore_index: int = -100,
    ):
        super().__init__()
        _check_reduction(reduction)
        check_ignore_index(ignore_index)
        _store(self, "gamma", as_gamma("gamma", gamma))
        _store(self, "gamma_neg", None if gamma_neg is None else as_gamma("gamma_neg", gamma_neg))
        weights = None if alpha is None else as_numbers("alpha", alpha, max_dim=2)
        if weights is not None:
            # The number of labels is known only from the input, so alpha is checked against its own length.
            sigmoid_weights(weights, weights.shape[-1] if weights.dim() else 1)
        self.register_buffer("alpha", None if weights is None else weights.float().clone())
        self.reduction = reduction
        self.margin = as_margin(margin)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal_loss(
            input,
            target,
            gamma=self.gamma,
            gamma_neg=self.gamma_neg,
            margin=self.margin,
            alpha=self.alpha,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        settings = [f"gamma={_format_setting(self.gamma)}"]
        if self.alpha is not None:
            settings.append(f"alpha={_format_setting(self.alpha)}")
        settings.append(f"reduction={self.reduction!r}")
        if self.gamma_neg is not None:
            settings.append(f"gamma_neg={_format_setting(self.gamma_neg)}")
        if self.margin:
            settings.append(f"margin={self.margin:g}")
        if self.ignore_index != -100:
            settings.append(f"ignore_index={self.ignore_index}")
        return ", ".join(settings)


def _store(module: nn.Module, name: str, setting: GammaOfTargets | None) -> None:
    """Stores the setting as an attribute of the module, or as a buffer if it is a tensor."""
    if isinstance(setting, Tensor):
        module.register_buffer(name, setting.float().clone())
    else:
        setattr(module, name, setting)


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', but got {reduction!r}")


def _check_tensors(input: Tensor, target: Tensor) -> None:
    if not (isinstance(input, Tensor) and input.is_floating_point()):
        raise ValueError(f"input: expected a floating point tensor of logits, but got {describe(input)}")
    if not isinstance(target, Tensor) or target.is_complex():
        raise ValueError(f"target: expected a tensor of class indices or probabilities, but got {describe(target)}")
    # Values beyond the range of int64 would wrap around to other indices, such as -100.
    if target.dtype == torch.uint64 and not is_traced() and target.numel() and extremes(target)[0] < 0:
        raise ValueError("target: expected class indices or probabilities, but got integers that do not fit int64")


def _check_class_index_shape(target: Tensor, input_shape: torch.Size) -> None:
    expected = input_shape[:1] + input_shape[2:]
    if target.dtype == torch.bool or target.shape != expected:
        raise ValueError(
            f"target: expected class indices of shape {tuple(expected)} or class probabilities of shape "
            f"{tuple(input_shape)} for input of shape {tuple(input_shape)}, but got {describe(target)}"
        )


def _count_valid(target: Tensor, highest: float, ignore_index: int, expected: str) -> tuple[int | Tensor, int | None]:
    """The number of targets that are not ignored (at least 1), and `ignore_index`, or None if no target has it."""
    if is_traced():
        return (target != ignore_index).sum().clamp_min(1), ignore_index
    if target.numel() == 0:
        return 1, None
    valid, (low, high) = target, extremes(target)
    has_ignored = low <= ignore_index <= high
    if has_ignored:
        valid = target[target != ignore_index]
        low, high = extremes(valid) if valid.numel() else (0, 0)
    if not (low >= 0 and high <= highest):
        raise ValueError(
            f"target: expected {expected} or ignore_index={ignore_index}, but got values from {low:g} to {high:g}"
        )
    return max(valid.numel(), 1), ignore_index if has_ignored else None


def _check_probabilities(target: Tensor, input_shape: torch.Size) -> None:
    if target.shape != input_shape:
        raise ValueError(
            f"target: expected the shape of input, {tuple(input_shape)}, for probabilities, but got {describe(target)}"
        )
    check_distributions("target", target, dim=1, advice="; for independent labels use sigmoid_focal_loss")


def _format_setting(setting: float | Tensor | Callable) -> str:
    if not isinstance(setting, Tensor):
        return f"{setting:g}" if isinstance(setting, float) else getattr(setting, "__name__", repr(setting))
    if setting.is_meta:
        return f"<{len(setting)} on meta>" if setting.dim() else "<meta>"
    return str(setting.cpu().double().round(decimals=4).tolist())
