"""How the losses are computed: value and gradient together, block by block, or a differentiable formula.

With the margin ``m = logsumexp of the other classes' logits - logit of the true class``,

    -log p_t = softplus(m)    and    1 - p_t = sigmoid(m),

so neither is ever computed from a probability that has been rounded to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._upstream import is_traced


GammaOfTargets = float | Tensor | Callable[[Tensor], Tensor]

# Large enough for the overhead of the calls to be small, small enough for the cache of a core.
_CPU_BLOCK, _GPU_BLOCK = 2**19, 2**24
# Up to this size the overhead of the calls dominates: using the widest dtype throughout saves conversions.
_SMALL = 2**12
# Replaces infinity where that would be multiplied by 0. At this margin 1 - p_t has long been rounded to 1.
_HUGE = 1e30


@dataclass(frozen=True, eq=False)
class SoftmaxFocal:
    """Softmax focal loss of class indices (N, 1, ...) or of class probabilities (N, C, ...).

    Attributes:
        gamma: One for all classes, a wide tensor (C), or a function of p_t.
        alpha: A wide tensor (C), or None.
        ignore_index: Class index of ignored targets; None if there are none.
        label_smoothing: Share of the target that is spread evenly over the classes.
    """

    gamma: GammaOfTargets
    alpha: Tensor | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0

    def formula(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each target, (N, 1, ...), computed with differentiable operators."""
        logits, ignored = input.to(loss_dtype(input)), None
        if self.ignore_index is not None and not target.is_floating_point():
            ignored = target == self.ignore_index
            logits, target = logits.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
        weight: float | Tensor
        if self.label_smoothing or target.is_floating_point():
            num_classes = input.shape[1]
            q = target if target.is_floating_point() else torch.zeros_like(logits).scatter(1, target, 1)
            weight = q.to(wide_dtype(input))
            classes = torch.arange(num_classes, device=input.device).view(-1, *[1] * (input.dim() - 2))
            if self.alpha is not None:
                weight = weight * self.alpha[classes]
            # Alpha weights the example, whose smoothing mass is the same for all classes.
            mass = self.label_smoothing / num_classes * weight.sum(1, keepdim=True)
            weight = (1 - self.label_smoothing) * weight + mass
            # A class with target 0 and a logit of minus infinity contributes 0, not 0 times infinity.
            margin = all_margins(logits).masked_fill(weight == 0, 0)
        else:
            classes, margin = target, _margin(logits, target)
            weight = 1.0 if self.alpha is None else self.alpha[target]
        loss = (weight * _loss_from_margin(margin, _gamma_of(self.gamma, classes, margin))).sum(1, keepdim=True)
        return loss if ignored is None else loss.masked_fill(ignored, 0)

    def block(self, input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None) -> Tensor:
        r"""`scale` times the loss of each target; writes its gradient to `gradient`, unless that is None.

        With ``T = sum_{j != t} exp(z_j)`` the margin is ``m = log T - z_t``. Its derivatives are ``exp(z_j) / T`` for
        the other classes and -1 for the true class, so the gradient is ``dL/dm exp(z_j) / T`` and ``-dL/dm``. The
        exponentials are therefore the only tensor of the size of the input, and they become the gradient in place. The
        true class is left out of ``T``, from which 1 - p_t is computed, rather than subtracted, so that no digits
        cancel, however easy the example is.

        Tensors with one entry per target are float64: rounding m = -80 to float32 would cause an error of 4e-6 in
        exp(m).
        """
        if self.label_smoothing or target.is_floating_point():
            return _differentiated(self, input, target, scale, gradient)
        ignored = None if self.ignore_index is None else target == self.ignore_index
        if ignored is not None:
            # The logits of an ignored target may be anything, even NaN, and must not affect the gradient.
            input, target = input.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
        logits = input.to(wide_dtype(input) if input.numel() <= _SMALL else loss_dtype(input))
        others = gradient if gradient is not None and gradient.dtype == logits.dtype else None
        others, total, cross_entropy, error = _softmax_parts(logits, target, others)

        weight = scale if self.alpha is None else self.alpha[target] * scale
        gamma = self.gamma
        if not isinstance(gamma, float):
            gamma = gamma[target] if isinstance(gamma, Tensor) else gamma(1 - error)
        loss, focus = _focal(cross_entropy, error, gamma, weight, ignored)
        if gradient is not None:
            slope = _slope(loss, focus, error, gamma)
            _scale_rows(others, slope, total)
            others.scatter_(1, target, slope.neg_().type_as(others))
            if others is not gradient:
                gradient.copy_(others)
        return loss


@dataclass(frozen=True, eq=False)
class SigmoidFocal:
    """Sigmoid focal loss of targets of any shape, with the labels in the last dimension.

    An infinite logit means that the model has diverged, not that it is right: the loss is NaN or infinite wherever
    binary cross entropy is, and the gradient is its limit.

    Attributes:
        gamma: One for all labels, a wide tensor (L), or a function of p_t.
        gamma_neg: The same for negatives; None if it is gamma.
        margin: Probability that is subtracted from p for negatives.
        alpha: Weights of negatives, then of positives, a wide tensor (2, L) or (2), or None.
        ignore_index: Value of ignored targets; None if there are none.
        has_soft_targets: Whether some targets are neither 0 nor 1; None if this has to be checked from the values.
    """

    gamma: GammaOfTargets
    gamma_neg: GammaOfTargets | None = None
    margin: float = 0.0
    alpha: Tensor | None = None
    ignore_index: int | None = None
    has_soft_targets: bool | None = None

    def formula(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each target, computed with differentiable operators."""
        logits = input.to(wide_dtype(input))
        labels, ignored = target.to(logits.dtype), None
        if self.ignore_index is not None:
            ignored = target == self.ignore_index
            logits, labels = logits.masked_fill(ignored, 0), labels.masked_fill(ignored, 0)
        finite = logits.nan_to_num(nan=math.nan, posinf=_HUGE, neginf=-_HUGE)  # with the derivative 0 at infinity
        excess = logits - finite  # infinite, with the derivative 1, where the logits are; 0 elsewhere
        gamma_neg = self.gamma if self.gamma_neg is None else self.gamma_neg
        positive = labels * (_loss_from_margin(-finite, _gamma_of(self.gamma, ..., -finite)) + F.relu(-excess))
        if self.margin > 0:
            # Never 0, where a power below 1 has no derivative.
            p = (torch.sigmoid(finite) - self.margin).clamp_min(torch.finfo(logits.dtype).tiny)
            negative = p ** _gamma_of(gamma_neg, ..., torch.logit(p)) * -torch.log1p(-p)
        else:
            negative = _loss_from_margin(finite, _gamma_of(gamma_neg, ..., finite))
        negative = (1 - labels) * (negative + F.relu(excess))
        if self.alpha is not None:
            negative, positive = self.alpha[0] * negative, self.alpha[1] * positive
        loss = positive + negative + 0 * logits.clamp_max(0)  # the last term is NaN for minus infinity
        return loss if ignored is None else loss.masked_fill(ignored, 0)

    def block(self, input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None) -> Tensor:
        """As [`SoftmaxFocal.block`]; the margin is the logit of the wrong answer."""
        # All digits of gamma matter where 1 - p is tiny.
        is_narrow = _fits_float32(self.gamma) and (self.gamma_neg is None or _fits_float32(self.gamma_neg))
        dtype = loss_dtype(input) if is_narrow else wide_dtype(input)
        logits, labels = input.to(dtype), target.to(dtype)
        ignored = None if self.ignore_index is None else target == self.ignore_index
        if ignored is not None:
            logits, labels = logits.masked_fill(ignored, 0), labels.masked_fill(ignored, 0)
        sign = torch.add(1, labels, alpha=-2)
        has_soft_targets, may_be_infinite = self.has_soft_targets, True
        if has_soft_targets is None:
            # A single reduction to one number: below 1 if a target is soft, NaN if a logit is infinite or NaN.
            has_soft_targets = sign.numel() > 0 and not sign.abs().add_(logits, alpha=0).amin().item() >= 1
            may_be_infinite = False
        if has_soft_targets:
            return _differentiated(self, input, target, scale, gradient)
        margin = logits * sign
        gamma = _gamma_of(self.gamma, ..., margin)
        if self.gamma_neg is not None:
            positive_gamma = torch.as_tensor(gamma, dtype=dtype)
            negative_gamma = torch.as_tensor(_gamma_of(self.gamma_neg, ..., margin), dtype=dtype)
            gamma = torch.where(labels == 1, positive_gamma, negative_gamma)
        weight = scale
        if self.alpha is not None:
            negative_weight, positive_weight = self.alpha.to(dtype)
            weight = torch.lerp(negative_weight, positive_weight, labels) * scale
        if self.margin == 0:
            cross_entropy, error = _softplus(margin), margin.sigmoid_()
            loss, focus = _focal(cross_entropy, error, gamma, weight, ignored)
            finite = loss.clamp_max(_HUGE) if may_be_infinite else loss
            slope = None if gradient is None else _slope(finite, focus, error, gamma)
        else:
            shift = self.margin * (1 - labels)
            loss, focus, error = _shifted_focal(margin, gamma, weight, ignored, shift)
            slope = None if gradient is None else _shifted_slope(loss, focus, error, gamma, margin, shift)
        if slope is not None:
            torch.mul(slope, sign, out=gradient)
        if not may_be_infinite:
            return loss
        # NaN wherever binary cross entropy is: for minus infinity, right or wrong, and for plus infinity where right.
        return loss.add_(torch.minimum(logits, logits * sign).clamp_max_(0), alpha=0)


FocalKernel = SoftmaxFocal | SigmoidFocal


def evaluate(kernel: FocalKernel, input: Tensor, target: Tensor, num_valid: int | Tensor, reduction: str) -> Tensor:
    """Computes and reduces the losses, if possible with the kernel's `block`, which takes less time and memory."""
    scale = 1 / num_valid if reduction == "mean" else 1.0
    is_reduced = reduction != "none"
    if is_traced() or input.numel() == 0 or target.requires_grad:
        loss = kernel.formula(input, target)
        return (loss.sum() * scale if is_reduced else loss).to(loss_dtype(input))
    if torch.is_grad_enabled() and input.requires_grad:
        return _Blockwise.apply(input, target, kernel, scale, is_reduced)
    return _in_blocks(kernel, input, target, scale, None, is_reduced)


class _Blockwise(torch.autograd.Function):
    """A loss whose gradient is computed in the forward pass, for an incoming gradient of 1: backward only scales it.

    The kernel's `block` computes the loss and the gradient of a block of targets; its `formula` computes the same loss
    with differentiable operators, for derivatives of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, kernel: FocalKernel, scale: float | Tensor, is_reduced: bool
    ) -> Tensor:
        ctx.save_for_backward(input, target)
        ctx.kernel, ctx.scale = kernel, scale
        # A gradient too small for float16 may be in range once multiplied by the incoming gradient, which contains the
        # scale of a GradScaler. So for float16 it is computed in the backward pass.
        ctx.gradient = None if input.dtype == torch.float16 else torch.empty_like(input)
        return _in_blocks(kernel, input, target, scale, ctx.gradient, is_reduced)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if torch.is_grad_enabled():  # create_graph=True
            input, target = ctx.saved_tensors
            loss = ctx.kernel.formula(input, target) * ctx.scale
            grad_output = grad_output.to(loss.dtype).expand_as(loss)
            (gradient,) = torch.autograd.grad(loss, input, grad_output, create_graph=True)
        elif gradient is None:  # float16, or backward through a retained graph again
            input, target = ctx.saved_tensors
            gradient = torch.empty_like(input)
            _in_blocks(ctx.kernel, input, target, grad_output * ctx.scale, gradient, is_reduced=True)
        elif not _is_one(grad_output):
            gradient.mul_(grad_output)
        return gradient, None, None, None, None


def _is_one(grad_output: Tensor) -> bool:
    return grad_output.dim() == 0 and grad_output.device.type == "cpu" and grad_output.item() == 1


def _in_blocks(
    kernel: FocalKernel,
    input: Tensor,
    target: Tensor,
    scale: float | Tensor,
    gradient: Tensor | None,
    is_reduced: bool,
) -> Tensor:
    """The losses of all targets, or their sum; (N, 1, ...) for targets with a class dimension."""
    size = _CPU_BLOCK * torch.get_num_threads() if input.device.type == "cpu" else _GPU_BLOCK
    if input.numel() <= size:
        loss = kernel.block(input, target, scale, gradient)
        loss = loss.sum() if is_reduced else loss
    else:
        dim = max((dim for dim in range(input.dim()) if dim != 1), key=input.size)
        length = max(1, size * input.shape[dim] // input.numel())
        scales = scale.split(length, dim) if isinstance(scale, Tensor) and scale.dim() else repeat(scale)
        gradients = repeat(None) if gradient is None else gradient.split(length, dim)
        losses = map(kernel.block, input.split(length, dim), target.split(length, dim), scales, gradients)
        loss = torch.stack([loss.sum() for loss in losses]).sum() if is_reduced else torch.cat(list(losses), dim)
    return loss.to(loss_dtype(input))


def _softmax_parts(logits: Tensor, target: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``exp(z_j)``, 0 for the true class, its sum ``T``, both up to a factor per row; ``-log p_t``; ``1 - p_t``."""
    wide = wide_dtype(logits)
    # With so few classes, finding the largest logit would take longer than everything else.
    if logits.device.type == "cpu" and logits.shape[1] < 64:
        others = torch.exp(logits, out=out)
        true = others.gather(1, target).to(wide)
        others.scatter_(1, target, torch.zeros_like(target, dtype=logits.dtype))
        total = others.sum(1, keepdim=True).to(wide)
        if _is_in_range(total) and _is_in_range(true):
            odds = total / true  # the odds that the class is another one: the exponential of the margin
            return others, total, odds.log1p(), odds.div_(odds + 1)
    lowest = torch.full_like(target, torch.finfo(logits.dtype).min, dtype=logits.dtype)
    others = torch.scatter(logits, 1, target, lowest, out=out)
    shift = others.amax(1, keepdim=True)
    # exp can take three times as long as exp2. Rounding the product matters little: far from 0 the result is tiny.
    others.sub_(shift).mul_(1 / math.log(2)).exp2_()
    total = others.sum(1, keepdim=True, dtype=wide)
    true = logits.gather(1, target)
    # An infinite true logit means that the model has diverged, not that it is right.
    margin = total.log().add_(shift).sub_(true).masked_fill_(true == math.inf, math.nan)
    return others, total, _softplus(margin), margin.sigmoid_()


def _softplus(margin: Tensor) -> Tensor:
    """Softplus with full float64 precision: the identity used above the default threshold of 20 is off by 1e-10."""
    return F.softplus(margin, threshold=40)


def _is_in_range(exponentials: Tensor) -> bool:
    """Whether no gradient above 1e-30 is lost to the range of float32."""
    low, high = exponentials.aminmax()
    return low.item() > 1e-8 and high.item() < 1e8


def _scale_rows(exponentials: Tensor, slope: Tensor, total: Tensor) -> None:
    """Multiplies by ``slope / total``; in two steps if the quotient may be too small for float32."""
    is_narrow = exponentials.dtype != torch.float64
    if is_narrow and exponentials.device.type == "cpu" and slope.amin().item() < 1e-29:
        exponentials.div_(total.type_as(exponentials)).mul_(slope.type_as(exponentials))
    else:
        exponentials.mul_((slope / total).type_as(exponentials))


def _focal(
    cross_entropy: Tensor, error: Tensor, gamma: float | Tensor, weight: float | Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``weight (1 - p)^gamma (-log p)``, overwriting ``-log p``, and its first two factors; `error` is ``1 - p``."""
    focus = error.pow(gamma).mul_(weight)
    if ignored is not None:
        focus.masked_fill_(ignored, 0)
    return cross_entropy.mul_(focus), focus


def _slope(loss: Tensor, focus: Tensor, error: Tensor, gamma: float | Tensor) -> Tensor:
    """The derivative of the loss with respect to the margin: ``(1 - p) focus + p gamma loss``."""
    return (gamma * loss).lerp_(focus, error)


def _shifted_focal(
    margin: Tensor, gamma: float | Tensor, weight: float | Tensor, ignored: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_focal`, with ``max(1 - p - shift, 0)`` in place of ``1 - p``, which is returned, too."""
    wrong = margin.sigmoid()
    error = (wrong - shift).clamp_min_(0)
    cross_entropy = torch.where(shift == 0, _softplus(margin), -torch.log1p(-error))
    return *_focal(cross_entropy, error, gamma, weight, ignored), error


def _shifted_slope(
    loss: Tensor, focus: Tensor, error: Tensor, gamma: float | Tensor, margin: Tensor, shift: Tensor
) -> Tensor:
    """As `_slope`, with the chain rule through the shift; without a shift both quotients are 1."""
    wrong, right, tiny = margin.sigmoid(), torch.sigmoid(-margin), torch.finfo(margin.dtype).tiny
    right_after_shift = torch.where(shift == 0, right, 1 - error)
    slope = focus * wrong * ((right + tiny) / (right_after_shift + tiny)) + gamma * loss * right * (wrong / error)
    return slope.masked_fill_(error == 0, 0)


def _differentiated(
    kernel: FocalKernel, input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None
) -> Tensor:
    """The same result as `block`, by differentiating the formula."""
    if gradient is None:
        return kernel.formula(input, target) * scale
    with torch.enable_grad():
        input = input.detach().requires_grad_()
        loss = kernel.formula(input, target) * scale
        gradient.copy_(torch.autograd.grad(loss.sum(), input)[0])
    return loss.detach()


def _margin(logits: Tensor, target: Tensor) -> Tensor:
    """logsumexp over the classes other than `target`, minus the logit of `target`: (N, 1, ...)."""
    others = logits.scatter(1, target, -math.inf)
    # The result does not depend on the shift, so no gradient flows through it. Both floors matter only where minus
    # infinity removes every other class: the margin is then very negative, but finite.
    shift = others.detach().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    wide = wide_dtype(logits)
    total = (others - shift).exp().sum(1, keepdim=True, dtype=wide).clamp_min(1)
    true = logits.gather(1, target).to(wide)
    return (shift.to(wide) - true + total.log()).masked_fill(true == math.inf, math.nan)


def all_margins(logits: Tensor) -> Tensor:
    """The margin of every class, in the shape of `logits`, (N, C, ...)."""
    logits = logits.to(wide_dtype(logits))
    shift, top = logits.detach().max(1, keepdim=True)
    exp = (logits - shift).exp()
    # Subtracting a class from the total is accurate enough except for the largest class, where the digits cancel.
    others = (exp.sum(1, keepdim=True) - exp).scatter(1, top, 1)
    margins = others.log() + shift - logits
    return margins.scatter(1, top, _margin(logits, top))


def _loss_from_margin(margin: Tensor, gamma: float | Tensor) -> Tensor:
    return torch.exp(gamma * F.logsigmoid(margin)) * -F.logsigmoid(-margin)


def _gamma_of(gamma: GammaOfTargets, classes: Any, margin: Tensor) -> float | Tensor:
    """The gamma of targets with these classes (an index) and margins."""
    if isinstance(gamma, Tensor):
        return gamma[classes]
    return gamma(torch.sigmoid(-margin.detach())) if callable(gamma) else gamma


def _fits_float32(gamma: GammaOfTargets) -> bool:
    return isinstance(gamma, float) and gamma < 2**12 and (gamma * 2**12).is_integer()


def beside(setting: Any, input: Tensor) -> Any:
    """Moves a tensor of settings to the device of the input and to the dtype of tensors with one entry per target."""
    return setting.to(input.device, wide_dtype(input)) if isinstance(setting, Tensor) else setting


def loss_dtype(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def wide_dtype(input: Tensor) -> torch.dtype:
    return torch.float32 if input.device.type == "mps" else torch.float64  # Apple GPUs have no float64
