"""How the losses are computed: value and gradient together, block by block, or a formula that anything can transform.

With the margin ``m = logsumexp of the other classes' logits - logit of the true class``,

    -log p_t = softplus(m)    and    1 - p_t = sigmoid(m),

so neither is ever taken from a probability that has rounded to 1.
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

# Large enough that the calls cost little beside the work, small enough for the cache of a core.
_CPU_BLOCK, _GPU_BLOCK = 2**19, 2**24
# Up to this size calls cost more than the work: one dtype throughout, the widest, saves conversions.
_SMALL = 2**12
# In place of infinity, where that would be multiplied by 0: 1 - p_t has rounded to 1 long before.
_HUGE = 1e30


@dataclass(frozen=True, eq=False)
class SoftmaxFocal:
    """Softmax focal loss of class indices (N, 1, ...) or of class probabilities (N, C, ...).

    Attributes:
        gamma: One for all classes, a wide tensor (C), or a function of p_t.
        alpha: A wide tensor (C), or None.
        ignore_index: Of targets that do not count; None where there are none.
        label_smoothing: Share of the target that is spread evenly over the classes.
    """

    gamma: GammaOfTargets
    alpha: Tensor | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0

    def formula(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each target, (N, 1, ...), in differentiable operators."""
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
            # Alpha weighs the example, whose smoothing mass is the same for all classes.
            mass = self.label_smoothing / num_classes * weight.sum(1, keepdim=True)
            weight = (1 - self.label_smoothing) * weight + mass
            # Probability 0 on a class that a logit of minus infinity removes is 0, not 0 times infinity.
            margin = all_margins(logits).masked_fill(weight == 0, 0)
        else:
            classes, margin = target, _margin(logits, target)
            weight = 1.0 if self.alpha is None else self.alpha[target]
        loss = (weight * _loss_from_margin(margin, _gamma_of(self.gamma, classes, margin))).sum(1, keepdim=True)
        return loss if ignored is None else loss.masked_fill(ignored, 0)

    def block(self, input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None) -> Tensor:
        r"""`scale` times the loss of each target; writes its gradient to `gradient`, unless that is None.

        With ``T = sum_{j != t} exp(z_j)`` the margin is ``m = log T - z_t``. Its derivatives are ``exp(z_j) / T`` for
        the other classes and -1 for the true class, so the gradient is ``dL/dm exp(z_j) / T`` and ``-dL/dm``: the
        exponentials are all that is needed of the size of the input, and they become the gradient where they stand.
        The true class is left out of ``T``, from which 1 - p_t is made, rather than subtracted: no digit cancels,
        however easy the example.

        What has one entry per target is float64: m = -80 rounded to float32 would be an error of 4e-6 in exp(m).
        """
        if self.label_smoothing or target.is_floating_point():
            return _differentiated(self, input, target, scale, gradient)
        ignored = None if self.ignore_index is None else target == self.ignore_index
        if ignored is not None:
            # An ignored target may have any logits, NaN included: nothing of them may reach the gradient.
            input, target = input.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
        logits = input.to(wide_dtype(input) if input.numel() <= _SMALL else loss_dtype(input))
        others = gradient if gradient is not None and gradient.dtype == logits.dtype else None
        others, total, cross_entropy, rest = _softmax_parts(logits, target, others)

        weight = scale if self.alpha is None else self.alpha[target] * scale
        gamma = self.gamma
        if not isinstance(gamma, float):
            gamma = gamma[target] if isinstance(gamma, Tensor) else gamma(1 - rest)
        loss, focus = _focal(cross_entropy, rest, gamma, weight, ignored)
        if gradient is not None:
            slope = _slope(loss, focus, rest, gamma)
            _scale_rows(others, slope, total)
            others.scatter_(1, target, slope.neg_().type_as(others))
            if others is not gradient:
                gradient.copy_(others)
        return loss


@dataclass(frozen=True, eq=False)
class SigmoidFocal:
    """Sigmoid focal loss of decisions of any shape, whose last dimension is that of the labels.

    A logit of infinity is a model that has diverged, not one that is right: the loss is NaN or infinite as binary cross
    entropy is, and the gradient is its limit.

    Attributes:
        gamma: One for all labels, a wide tensor (L), or a function of p_t.
        gamma_neg: The same of negatives; None where it is gamma.
        margin: Probability that is taken off the negatives.
        alpha: Weights of negatives, then of positives, a wide tensor (2, L) or (2), or None.
        ignore_index: Of decisions that do not count; None where there are none.
        has_soft_targets: Whether some targets are neither 0 nor 1; None if the numbers have to be looked at.
    """

    gamma: GammaOfTargets
    gamma_neg: GammaOfTargets | None = None
    margin: float = 0.0
    alpha: Tensor | None = None
    ignore_index: int | None = None
    has_soft_targets: bool | None = None

    def formula(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each decision, in differentiable operators."""
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
            # Never 0, of which a power below 1 has no derivative.
            p = (torch.sigmoid(finite) - self.margin).clamp_min(torch.finfo(logits.dtype).tiny)
            negative = p ** _gamma_of(gamma_neg, ..., torch.logit(p)) * -torch.log1p(-p)
        else:
            negative = _loss_from_margin(finite, _gamma_of(gamma_neg, ..., finite))
        negative = (1 - labels) * (negative + F.relu(excess))
        if self.alpha is not None:
            negative, positive = self.alpha[0] * negative, self.alpha[1] * positive
        loss = positive + negative + 0 * logits.clamp_max(0)  # which is NaN for minus infinity
        return loss if ignored is None else loss.masked_fill(ignored, 0)

    def block(self, input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None) -> Tensor:
        """As [`SoftmaxFocal.block`]; the margin of a decision is the logit of the wrong answer."""
        # The digits of gamma count where 1 - p is tiny.
        is_narrow = _fits_float32(self.gamma) and (self.gamma_neg is None or _fits_float32(self.gamma_neg))
        dtype = loss_dtype(input) if is_narrow else wide_dtype(input)
        logits, labels = input.to(dtype), target.to(dtype)
        ignored = None if self.ignore_index is None else target == self.ignore_index
        if ignored is not None:
            logits, labels = logits.masked_fill(ignored, 0), labels.masked_fill(ignored, 0)
        sign = torch.add(1, labels, alpha=-2)
        has_soft_targets, may_be_infinite = self.has_soft_targets, True
        if has_soft_targets is None:
            # One number tells whether both answers are wrong to a degree, and by being NaN whether a logit is infinite.
            has_soft_targets = sign.numel() > 0 and not sign.abs().add_(logits, alpha=0).amin().item() >= 1
            may_be_infinite = False
        if has_soft_targets:
            return _differentiated(self, input, target, scale, gradient)
        margin = logits * sign
        gamma = _gamma_of(self.gamma, ..., margin)
        if self.gamma_neg is not None:
            of_positives = torch.as_tensor(gamma, dtype=dtype)
            of_negatives = torch.as_tensor(_gamma_of(self.gamma_neg, ..., margin), dtype=dtype)
            gamma = torch.where(labels == 1, of_positives, of_negatives)
        weight = scale
        if self.alpha is not None:
            of_negatives, of_positives = self.alpha.to(dtype)
            weight = torch.lerp(of_negatives, of_positives, labels) * scale
        if self.margin == 0:
            cross_entropy, rest = _softplus(margin), margin.sigmoid_()
            loss, focus = _focal(cross_entropy, rest, gamma, weight, ignored)
            finite = loss.clamp_max(_HUGE) if may_be_infinite else loss
            slope = None if gradient is None else _slope(finite, focus, rest, gamma)
        else:
            shift = self.margin * (1 - labels)
            loss, focus, rest = _shifted_focal(margin, gamma, weight, ignored, shift)
            slope = None if gradient is None else _shifted_slope(loss, focus, rest, gamma, margin, shift)
        if slope is not None:
            torch.mul(slope, sign, out=gradient)
        if not may_be_infinite:
            return loss
        # NaN where binary cross entropy is: for minus infinity, right or wrong, and for an infinity that is right.
        return loss.add_(torch.minimum(logits, logits * sign).clamp_max_(0), alpha=0)


FocalKernel = SoftmaxFocal | SigmoidFocal


def evaluate(kernel: FocalKernel, input: Tensor, target: Tensor, num_valid: int | Tensor, reduction: str) -> Tensor:
    """Reduces the losses that the kernel's formula gives, or its block in less time and memory."""
    scale = 1 / num_valid if reduction == "mean" else 1.0
    is_reduced = reduction != "none"
    if is_traced() or input.numel() == 0 or target.requires_grad:
        loss = kernel.formula(input, target)
        return (loss.sum() * scale if is_reduced else loss).to(loss_dtype(input))
    if torch.is_grad_enabled() and input.requires_grad:
        return _Blockwise.apply(input, target, kernel, scale, is_reduced)
    return _in_blocks(kernel, input, target, scale, None, is_reduced)


class _Blockwise(torch.autograd.Function):
    """A loss whose gradient is made in the forward pass, for a unit incoming gradient: backward only scales it.

    The kernel's block gives the loss and the gradient of a block of targets, its formula the same loss in
    differentiable operators, for the derivatives of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, kernel: FocalKernel, scale: float | Tensor, is_reduced: bool
    ) -> Tensor:
        ctx.save_for_backward(input, target)
        ctx.kernel, ctx.scale = kernel, scale
        # What is too small for float16 can be in its range after the incoming gradient, which has the scale of a
        # GradScaler: there it is made in the backward pass.
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
        elif gradient is None:  # or when a retained graph is walked again
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
    """The losses of all targets, or their sum; (N, 1, ...) for targets with a dimension of classes."""
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
    """``exp(z_j)``, 0 for the true class, and their sum ``T``, both up to a factor per row; ``-log p_t``; ``1 - p_t``."""
    wide = wide_dtype(logits)
    # To find the largest of so few takes longer than all the rest.
    if logits.device.type == "cpu" and logits.shape[1] < 64:
        others = torch.exp(logits, out=out)
        true = others.gather(1, target).to(wide)
        others.scatter_(1, target, torch.zeros_like(target, dtype=logits.dtype))
        total = others.sum(1, keepdim=True).to(wide)
        if _is_in_range(total) and _is_in_range(true):
            odds = total / true  # that the example is of another class: the exponential of the margin
            return others, total, odds.log1p(), odds.div_(odds + 1)
    lowest = torch.full_like(target, torch.finfo(logits.dtype).min, dtype=logits.dtype)
    others = torch.scatter(logits, 1, target, lowest, out=out)
    shift = others.amax(1, keepdim=True)
    # exp can take three times as long as exp2. The rounding of the product matters little: what is far from 0 is small.
    others.sub_(shift).mul_(1 / math.log(2)).exp2_()
    total = others.sum(1, keepdim=True, dtype=wide)
    true = logits.gather(1, target)
    # A true logit of infinity is a model that has diverged, not one that is right.
    margin = total.log().add_(shift).sub_(true).masked_fill_(true == math.inf, math.nan)
    return others, total, _softplus(margin), margin.sigmoid_()


def _softplus(margin: Tensor) -> Tensor:
    """To the last digit of float64 too: above its usual threshold of 20 the argument itself is 1e-10 off."""
    return F.softplus(margin, threshold=40)


def _is_in_range(exponentials: Tensor) -> bool:
    """Whether the range of float32 costs no gradient above 1e-30."""
    low, high = exponentials.aminmax()
    return low.item() > 1e-8 and high.item() < 1e8


def _scale_rows(exponentials: Tensor, slope: Tensor, total: Tensor) -> None:
    """Multiplies by ``slope / total``; by one after the other where the quotient may be too small for float32."""
    is_narrow = exponentials.dtype != torch.float64
    if is_narrow and exponentials.device.type == "cpu" and slope.amin().item() < 1e-29:
        exponentials.div_(total.type_as(exponentials)).mul_(slope.type_as(exponentials))
    else:
        exponentials.mul_((slope / total).type_as(exponentials))


def _focal(
    cross_entropy: Tensor, rest: Tensor, gamma: float | Tensor, weight: float | Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``weight (1 - p)^gamma (-log p)``, in place of ``-log p``, and its factor without the logarithm."""
    focus = rest.pow(gamma).mul_(weight)
    if ignored is not None:
        focus.masked_fill_(ignored, 0)
    return cross_entropy.mul_(focus), focus


def _slope(loss: Tensor, focus: Tensor, rest: Tensor, gamma: float | Tensor) -> Tensor:
    """The loss differentiated by the margin: ``(1 - p) focus + p gamma loss``."""
    return (gamma * loss).lerp_(focus, rest)


def _shifted_focal(
    margin: Tensor, gamma: float | Tensor, weight: float | Tensor, ignored: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_focal` with `shift` taken off 1 - p, which ends at 0; and what is left of it."""
    wrong = margin.sigmoid()
    rest = (wrong - shift).clamp_min_(0)
    cross_entropy = torch.where(shift == 0, _softplus(margin), -torch.log1p(-rest))
    return *_focal(cross_entropy, rest, gamma, weight, ignored), rest


def _shifted_slope(
    loss: Tensor, focus: Tensor, rest: Tensor, gamma: float | Tensor, margin: Tensor, shift: Tensor
) -> Tensor:
    """As `_slope`, by the chain rule through the shift; without one both quotients are 1."""
    wrong, right, tiny = margin.sigmoid(), torch.sigmoid(-margin), torch.finfo(margin.dtype).tiny
    right_after_shift = torch.where(shift == 0, right, 1 - rest)
    slope = focus * wrong * ((right + tiny) / (right_after_shift + tiny)) + gamma * loss * right * (wrong / rest)
    return slope.masked_fill_(rest == 0, 0)


def _differentiated(
    kernel: FocalKernel, input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None
) -> Tensor:
    """What a block gives, by differentiating the formula."""
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
    # The sum does not depend on the shift, so no gradient flows through it. Both floors matter only where minus
    # infinity removes every other class: the margin is then hugely negative, but finite.
    shift = others.detach().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    wide = wide_dtype(logits)
    total = (others - shift).exp().sum(1, keepdim=True, dtype=wide).clamp_min(1)
    true = logits.gather(1, target).to(wide)
    return (shift.to(wide) - true + total.log()).masked_fill(true == math.inf, math.nan)


def all_margins(logits: Tensor) -> Tensor:
    """The margin of every class, of the shape of `logits`, (N, C, ...)."""
    logits = logits.to(wide_dtype(logits))
    shift, top = logits.detach().max(1, keepdim=True)
    exp = (logits - shift).exp()
    # Subtracting a class from the total is exact enough for all but the largest, of which nothing would remain.
    others = (exp.sum(1, keepdim=True) - exp).scatter(1, top, 1)
    margins = others.log() + shift - logits
    return margins.scatter(1, top, _margin(logits, top))


def _loss_from_margin(margin: Tensor, gamma: float | Tensor) -> Tensor:
    return torch.exp(gamma * F.logsigmoid(margin)) * -F.logsigmoid(-margin)


def _gamma_of(gamma: GammaOfTargets, classes: Any, margin: Tensor) -> float | Tensor:
    """Gamma of targets, of these classes (an index) and with these margins."""
    if isinstance(gamma, Tensor):
        return gamma[classes]
    return gamma(torch.sigmoid(-margin.detach())) if callable(gamma) else gamma


def _fits_float32(gamma: GammaOfTargets) -> bool:
    return isinstance(gamma, float) and gamma < 2**12 and (gamma * 2**12).is_integer()


def beside(setting: Any, input: Tensor) -> Any:
    """A tensor of settings on the device of the input, in the width of what has one entry per target."""
    return setting.to(input.device, wide_dtype(input)) if isinstance(setting, Tensor) else setting


def loss_dtype(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def wide_dtype(input: Tensor) -> torch.dtype:
    return torch.float32 if input.device.type == "mps" else torch.float64  # Apple GPUs have no float64
