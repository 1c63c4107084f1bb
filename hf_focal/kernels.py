"""How the losses are computed: value and gradient together, block by block, or a formula that anything can transform.

With the margin ``m = logsumexp of the other classes' logits - logit of the true class``,

    -log p_t = softplus(m)    and    1 - p_t = sigmoid(m),

so neither is ever taken from a probability that has rounded to 1.
"""

import math
from collections.abc import Callable
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor


def evaluate(
    input: Tensor, target: Tensor, formula: Callable, block: Callable, num_valid: int | Tensor, reduction: str
) -> Tensor:
    """Reduces the losses that `formula` gives, or `block` in less time and memory."""
    scale = 1 / num_valid if reduction == "mean" else 1.0
    is_reduced = reduction != "none"
    if is_traced() or input.numel() == 0 or target.requires_grad:
        loss = formula(input, target)
        return (loss.sum() * scale if is_reduced else loss).to(loss_dtype(input))
    if torch.is_grad_enabled() and input.requires_grad:
        return _Blockwise.apply(input, target, formula, block, scale, is_reduced)
    return _in_blocks(block, input, target, scale, None, is_reduced)


class _Blockwise(torch.autograd.Function):
    """A loss whose gradient is made in the forward pass, for a unit incoming gradient: backward only scales it.

    `block` gives the loss and the gradient of a block of targets, `formula` the same loss in differentiable operators,
    for the derivatives of the gradient.
    """

    @staticmethod
    def forward(ctx, input, target, formula, block, scale, is_reduced):
        ctx.save_for_backward(input, target)
        ctx.formula, ctx.block, ctx.scale = formula, block, scale
        # What is too small for float16 can be in its range after the incoming gradient, which has the scale of a
        # GradScaler: there it is made in the backward pass.
        ctx.gradient = None if input.dtype == torch.float16 else torch.empty_like(input)
        return _in_blocks(block, input, target, scale, ctx.gradient, is_reduced)

    @staticmethod
    def backward(ctx, grad_output):
        gradient, ctx.gradient = ctx.gradient, None
        if torch.is_grad_enabled():  # create_graph=True
            input, target = ctx.saved_tensors
            loss = ctx.formula(input, target) * ctx.scale
            grad_output = grad_output.to(loss.dtype).expand_as(loss)
            (gradient,) = torch.autograd.grad(loss, input, grad_output, create_graph=True)
        elif gradient is None:  # or when a retained graph is walked again
            input, target = ctx.saved_tensors
            gradient = torch.empty_like(input)
            _in_blocks(ctx.block, input, target, grad_output * ctx.scale, gradient, is_reduced=True)
        elif not _is_one(grad_output):
            gradient.mul_(grad_output)
        return gradient, None, None, None, None, None


def _is_one(grad_output: Tensor) -> bool:
    return grad_output.dim() == 0 and grad_output.device.type == "cpu" and grad_output.item() == 1


# Large enough that the calls cost little beside the work, small enough for the cache of a core.
_CPU_BLOCK, _GPU_BLOCK = 2**19, 2**24
# Up to this size calls cost more than the work: one dtype throughout, the widest, saves conversions.
_SMALL = 2**12


def _in_blocks(
    block: Callable, input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None, is_reduced: bool
) -> Tensor:
    """The losses of `block` over all targets, or their sum; (N, 1, ...) for targets with a dimension of classes."""
    size = _CPU_BLOCK * torch.get_num_threads() if input.device.type == "cpu" else _GPU_BLOCK
    if input.numel() <= size:
        loss = block(input, target, scale, gradient)
        loss = loss.sum() if is_reduced else loss
    else:
        dim = max((dim for dim in range(input.dim()) if dim != 1), key=input.size)
        length = max(1, size * input.shape[dim] // input.numel())
        scales = scale.split(length, dim) if isinstance(scale, Tensor) and scale.dim() else repeat(scale)
        gradients = repeat(None) if gradient is None else gradient.split(length, dim)
        losses = map(block, input.split(length, dim), target.split(length, dim), scales, gradients)
        loss = sum(loss.sum() for loss in losses) if is_reduced else torch.cat(list(losses), dim)
    return loss.to(loss_dtype(input))


def softmax_block(
    input: Tensor,
    target: Tensor,
    scale: float | Tensor,
    gradient: Tensor | None,
    *,
    gamma: Callable,
    alpha: Tensor | None,
    ignore_index: int | None,
) -> Tensor:
    r"""`scale` times the loss of class indices (n, 1, ...); writes its gradient to `gradient`, unless that is None.

    With ``T = sum_{j != t} exp(z_j)`` the margin is ``m = log T - z_t``. Its derivatives are ``exp(z_j) / T`` for the
    other classes and -1 for the true class, so the gradient is ``dL/dm exp(z_j) / T`` and ``-dL/dm``: the exponentials
    are all that is needed of the size of the input, and they become the gradient where they stand. The true class is
    left out of ``T``, from which 1 - p_t is made, rather than subtracted: no digit cancels, however easy the example.

    What has one entry per target is float64: m = -80 rounded to float32 would be an error of 4e-6 in exp(m).
    """
    ignored = None if ignore_index is None else target == ignore_index
    if ignored is not None:
        # An ignored target may have any logits, NaN included: nothing of them may reach the gradient.
        input, target = input.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    logits = input.to(wide_dtype(input) if input.numel() <= _SMALL else loss_dtype(input))
    others = gradient if gradient is not None and gradient.dtype == logits.dtype else None
    others, total, log_total = _exponentials(logits, target, others)
    margin = log_total.sub_(logits.gather(1, target))

    gamma = gamma(target, margin)
    loss, focus, rest = _focal(margin, gamma, scale if alpha is None else alpha[target] * scale, ignored)
    if gradient is not None:
        slope = _slope(loss, focus, rest, gamma)
        _scale_rows(others, slope, total)
        others.scatter_(1, target, slope.neg_().type_as(others))
        if others is not gradient:
            gradient.copy_(others)
    return loss


def _exponentials(logits: Tensor, target: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``exp(z_j)``, 0 for the true class, and their sum ``T``, both up to a factor per row; and ``log T``."""
    wide = wide_dtype(logits)
    # To find the largest of so few takes longer than all the rest.
    if logits.device.type == "cpu" and logits.shape[1] < 64:
        others = torch.exp(logits, out=out).scatter_(1, target, torch.zeros_like(target, dtype=logits.dtype))
        total = others.sum(1, keepdim=True, dtype=wide)
        low, high = total.aminmax()
        if low.item() > 1e-8 and high.item() < 1e8:  # the range of float32 costs no gradient above 1e-30
            return others, total, total.log()
    lowest = torch.full_like(target, torch.finfo(logits.dtype).min, dtype=logits.dtype)
    others = torch.scatter(logits, 1, target, lowest, out=out)
    shift = others.amax(1, keepdim=True)
    # exp can take three times as long as exp2. The rounding of the product matters little: what is far from 0 is small.
    others.sub_(shift).mul_(1 / math.log(2)).exp2_()
    total = others.sum(1, keepdim=True, dtype=wide)
    return others, total, total.log().add_(shift)


def _scale_rows(exponentials: Tensor, slope: Tensor, total: Tensor) -> None:
    """Multiplies by ``slope / total``; by one after the other where the quotient may be too small for float32."""
    if exponentials.device.type == "cpu" and slope.amin().item() < 1e-29:
        exponentials.div_(total.type_as(exponentials)).mul_(slope.type_as(exponentials))
    else:
        exponentials.mul_((slope / total).type_as(exponentials))


def sigmoid_block(
    input: Tensor,
    target: Tensor,
    scale: float | Tensor,
    gradient: Tensor | None,
    *,
    gamma: Callable,
    gamma_neg: Callable | None,
    margin: float,
    alpha: Tensor | None,
    ignore_index: int | None,
    dtype: torch.dtype,
    formula: Callable,
) -> Tensor:
    """As `softmax_block`, for decisions of any shape; the margin of a decision is the logit of the wrong answer."""
    logits, labels = input.to(dtype), target.to(dtype)
    ignored = None if ignore_index is None else target == ignore_index
    if ignored is not None:
        logits, labels = logits.masked_fill(ignored, 0), labels.masked_fill(ignored, 0)
    sign = torch.add(1, labels, alpha=-2)
    if sign.numel() and sign.abs().amin().item() < 1:  # probabilities: both answers are wrong to a degree
        return differentiated(input, target, scale, gradient, formula=formula)
    decision_margin = logits * sign
    exponent = gamma(..., decision_margin)
    if gamma_neg is not None:
        exponents = exponent, gamma_neg(..., decision_margin)
        exponent = torch.where(labels == 1, *(torch.as_tensor(e, dtype=dtype) for e in exponents))
    weight = scale if alpha is None else torch.lerp((1 - alpha).to(dtype), alpha.to(dtype), labels) * scale
    if margin == 0:
        loss, focus, rest = _focal(decision_margin, exponent, weight, ignored)
        slope = None if gradient is None else _slope(loss, focus, rest, exponent)
    else:
        shift = margin * (1 - labels)
        loss, focus, rest = _shifted_focal(decision_margin, exponent, weight, ignored, shift)
        slope = None if gradient is None else _shifted_slope(loss, focus, rest, exponent, decision_margin, shift)
    if gradient is not None:
        torch.mul(slope, sign, out=gradient)
    return loss


def _focal(margin: Tensor, gamma: float | Tensor, weight: float | Tensor, ignored: Tensor | None) -> tuple:
    """``weight (1 - p)^gamma (-log p)``, its factor without the logarithm, and 1 - p, in place of the margin."""
    cross_entropy = F.softplus(margin)
    rest = margin.sigmoid_()
    focus = rest.pow(gamma).mul_(weight)
    if ignored is not None:
        focus.masked_fill_(ignored, 0)
    return cross_entropy.mul_(focus), focus, rest


def _slope(loss: Tensor, focus: Tensor, rest: Tensor, gamma: float | Tensor) -> Tensor:
    """The loss differentiated by the margin: ``(1 - p) focus + p gamma loss``."""
    return (gamma * loss).lerp_(focus, rest)


def _shifted_focal(
    margin: Tensor, gamma: float | Tensor, weight: float | Tensor, ignored: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_focal`, with `shift` taken off 1 - p, which ends at 0."""
    wrong = margin.sigmoid()
    rest = (wrong - shift).clamp_min_(0)
    cross_entropy = torch.where(shift == 0, F.softplus(margin), -torch.log1p(-rest))
    focus = rest.pow(gamma).mul_(weight)
    if ignored is not None:
        focus.masked_fill_(ignored, 0)
    return focus * cross_entropy, focus, rest


def _shifted_slope(
    loss: Tensor, focus: Tensor, rest: Tensor, gamma: float | Tensor, margin: Tensor, shift: Tensor
) -> Tensor:
    """As `_slope`, by the chain rule through the shift; without one both quotients are 1."""
    wrong, right, tiny = margin.sigmoid(), torch.sigmoid(-margin), torch.finfo(margin.dtype).tiny
    right_after_shift = torch.where(shift == 0, right, 1 - rest)
    slope = focus * wrong * ((right + tiny) / (right_after_shift + tiny)) + gamma * loss * right * (wrong / rest)
    return slope.masked_fill_(rest == 0, 0)


def differentiated(
    input: Tensor, target: Tensor, scale: float | Tensor, gradient: Tensor | None, *, formula: Callable
) -> Tensor:
    """As `softmax_block`, for any formula."""
    if gradient is None:
        return formula(input, target) * scale
    with torch.enable_grad():
        input = input.detach().requires_grad_()
        loss = formula(input, target) * scale
        gradient.copy_(torch.autograd.grad(loss.sum(), input)[0])
    return loss.detach()


def softmax_formula(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Callable,
    alpha: Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
) -> Tensor:
    """The loss of each target, (N, 1, ...), in differentiable operators."""
    logits = input.to(loss_dtype(input))
    ignored = None
    if ignore_index is not None:
        ignored = target == ignore_index
        logits, target = logits.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    if label_smoothing or target.is_floating_point():
        num_classes = input.shape[1]
        q = target if target.is_floating_point() else torch.zeros_like(logits).scatter(1, target, 1)
        q = (1 - label_smoothing) * q.to(wide_dtype(input)) + label_smoothing / num_classes
        classes = torch.arange(num_classes, device=input.device).view(-1, *[1] * (input.dim() - 2))
        # Probability 0 on a class that a logit of minus infinity removes is 0, not 0 times infinity.
        margin = _all_margins(logits).masked_fill(q == 0, 0)
    else:
        q, classes = 1.0, target
        margin = _margin(logits, target)
    if alpha is not None:
        q = q * alpha[classes]
    loss = (q * _loss_from_margin(margin, gamma(classes, margin))).sum(1, keepdim=True)
    return loss if ignored is None else loss.masked_fill(ignored, 0)


def _margin(logits: Tensor, target: Tensor) -> Tensor:
    """logsumexp over the classes other than `target`, minus the logit of `target`: (N, 1, ...)."""
    others = logits.scatter(1, target, -math.inf)
    # The sum does not depend on the shift, so no gradient flows through it. Both floors matter only where minus
    # infinity removes every other class: the margin is then hugely negative, but finite.
    shift = others.detach().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    wide = wide_dtype(logits)
    total = (others - shift).exp().sum(1, keepdim=True, dtype=wide).clamp_min(1)
    return shift.to(wide) - logits.gather(1, target).to(wide) + total.log()


def _all_margins(logits: Tensor) -> Tensor:
    """The margin of every class, of the shape of `logits`."""
    logits = logits.to(wide_dtype(logits))
    shift, top = logits.detach().max(1, keepdim=True)
    exp = (logits - shift).exp()
    # Subtracting a class from the total is exact enough for all but the largest, of which nothing would remain.
    others = (exp.sum(1, keepdim=True) - exp).scatter(1, top, 1)
    margins = others.log() + shift - logits
    return margins.scatter(1, top, _margin(logits, top))


def sigmoid_formula(
    input: Tensor,
    target: Tensor,
    *,
    gamma: Callable,
    gamma_neg: Callable | None,
    margin: float,
    alpha: Tensor | None,
    ignore_index: int | None,
) -> Tensor:
    """The loss of each decision, in differentiable operators."""
    logits = input.to(wide_dtype(input))
    labels = target.to(logits.dtype)
    ignored = None
    if ignore_index is not None:
        ignored = target == ignore_index
        logits, labels = logits.masked_fill(ignored, 0), labels.masked_fill(ignored, 0)
    positive = labels * _loss_from_margin(-logits, gamma(..., -logits))
    if margin > 0:
        # Never 0, of which a power below 1 has no derivative.
        p = (torch.sigmoid(logits) - margin).clamp_min(torch.finfo(logits.dtype).tiny)
        negative = p ** (gamma_neg or gamma)(..., torch.logit(p)) * -torch.log1p(-p)
    else:
        negative = _loss_from_margin(logits, (gamma_neg or gamma)(..., logits))
    negative = (1 - labels) * negative
    if alpha is not None:
        positive, negative = alpha * positive, (1 - alpha) * negative
    loss = positive + negative
    return loss if ignored is None else loss.masked_fill(ignored, 0)


def _loss_from_margin(margin: Tensor, gamma: float | Tensor) -> Tensor:
    return torch.exp(gamma * F.logsigmoid(margin)) * -F.logsigmoid(-margin)


def gamma_of_targets(gamma: float | Tensor | Callable, input: Tensor) -> Callable:
    """Gamma as a function of the classes and the margins of targets."""
    if callable(gamma):
        return lambda classes, margin: gamma(torch.sigmoid(-margin.detach()))
    if isinstance(gamma, Tensor):
        gamma = gamma.to(input.device, wide_dtype(input))
        return lambda classes, margin: gamma[classes]
    return lambda classes, margin: gamma


def loss_dtype(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def wide_dtype(input: Tensor) -> torch.dtype:
    return torch.float32 if input.device.type == "mps" else torch.float64  # Apple GPUs have no float64


def is_traced() -> bool:
    """Whether the values of tensors cannot be looked at."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
