r"""The map between the outputs of a focal minimiser and the targets that it was shown, both ways.

With ``phi_g(v) = (1 - v)^g - g (1 - v)^(g - 1) v log v`` the softmax output v of a minimiser has ``v_i / phi(v_i)`` in
proportion to the weighted targets, and ``D_g(v) = phi_g(v) / v``, which falls strictly, is minus the slope of the loss by
the probability of the answer. There it is in closed form; the way back is a root. Charoenphakdee et al. 2021
(https://arxiv.org/abs/2011.09172); Komisarenko & Kull 2024 (https://arxiv.org/abs/2408.11598) call it the focal
calibration map.
"""

import math

import torch
from torch import Tensor


_MAX_STEPS = 200  # of Newton's method, where bisection has to help; 5 to 10 are usual
_BLOCK = 2**16  # numbers, which stay in the cache of a core
_LOG_HALF = math.log(0.5)


def log_share(margin: Tensor, gamma: float | Tensor) -> Tensor:
    """``log(v / phi(v))`` for ``v = sigmoid(-margin)``, from ``phi = (1 - v)^gamma (1 + gamma s)``.

    ``s = v (-log v) / (1 - v)`` is ``log(1 + e) / e`` for ``e = exp(margin)``. A series serves where e is small: some runtimes
    of exported graphs lose the e in 1 + e, or end with 0 / 0.
    """
    # Infinite for classes that minus infinity removes, and for those beside which no other is left.
    margin = margin.clamp(-1e30, 1e30)
    e = margin.clamp(-80, 80).exp()
    s = torch.where(e < 1e-7, 1 - e / 2 + e * e / 3, torch.log1p(e) / e)
    return log_sigmoid(-margin) - gamma * log_sigmoid(margin) - torch.log1p(gamma * s)


def log_sigmoid(x: Tensor) -> Tensor:
    """That of torch, also in exported graphs, where its own becomes the logarithm of a sigmoid that has rounded to 0."""
    return torch.where(x < 0, x - torch.log1p(x.clamp_max(0).exp()), -torch.log1p((-x.clamp_min(0)).exp()))


def asymmetric_log_odds(
    logits: Tensor, gamma: float | Tensor, gamma_neg: float | Tensor, margin: float, log_weight_ratio: float | Tensor
) -> Tensor:
    """The log odds of labels for which these logits have the least expected loss; minus infinity up to the margin.

    Args:
        logits (`Tensor`): Wide.
        gamma, gamma_neg (`float` or `Tensor`): Of positives and of negatives.
        margin (`float`): Probability that is taken off the negatives.
        log_weight_ratio (`float` or `Tensor`): Of the weight of negatives over that of positives.
    """
    shifted = logits if margin == 0 else _shifted_logits(logits, margin)
    log_odds = log_share(-logits, gamma) - log_share(shifted, gamma_neg) + log_weight_ratio
    return log_odds if margin == 0 else log_odds.masked_fill(torch.sigmoid(logits) <= margin, -math.inf)


def softmax_minimiser(log_targets: Tensor, gamma: Tensor) -> Tensor:
    """The log-probabilities for which ``v_i / phi(v_i)`` is proportional to the targets.

    What the factor is, is one equation for each row. Where a class, `top`, has more than a half, it says that the others
    leave it what its own target asks for, so that no digits of the others cancel; elsewhere, that the sum is 1.

    Args:
        log_targets (`Tensor`): float64, (N, C); minus infinity where a class has none.
        gamma (`Tensor`): float64, (C).
    """
    rows = max(1, _BLOCK // log_targets.shape[-1])
    return torch.cat([_softmax_minimiser(block, gamma) for block in log_targets.split(rows)])


def sigmoid_minimiser(
    log_odds: Tensor,
    gamma: float | Tensor,
    gamma_neg: float | Tensor,
    margin: float,
    log_weight_ratio: float | Tensor,
) -> Tensor:
    """The logits that `asymmetric_log_odds` maps to these log odds; all arguments are float64."""
    num_labels = log_odds.shape[-1] if log_odds.dim() else 1
    of_labels = [
        torch.as_tensor(x, dtype=torch.float64).expand(num_labels) for x in (gamma, gamma_neg, log_weight_ratio)
    ]
    blocks = log_odds.reshape(-1, num_labels).split(max(1, _BLOCK // num_labels))
    logits = torch.cat([_sigmoid_minimiser(block, margin, *of_labels) for block in blocks])
    return logits.reshape(log_odds.shape)


def _softmax_minimiser(log_targets: Tensor, gamma: Tensor) -> Tensor:
    num_classes = log_targets.shape[-1]
    at_half = log_share(torch.zeros_like(gamma), gamma) - log_targets  # the factor with which a class has a half
    high, top = at_half.min(-1, keepdim=True)
    gamma_of_top, log_target_of_top = gamma[top], log_targets.gather(-1, top)
    others = log_targets.scatter(-1, top, -math.inf)
    log_p, _ = _invert_log_share(others + high, gamma)
    is_peaked = log_p.exp().sum(-1, keepdim=True) < 0.5
    at_uniform = log_share(torch.full_like(gamma, math.log(max(num_classes - 1, 1))), gamma) - log_targets
    low = torch.where(is_peaked, high, at_uniform.amin(-1, keepdim=True))  # no class has more than 1 / C
    second = at_half.scatter(-1, top, math.inf).amin(-1, keepdim=True)
    high = torch.where(is_peaked, torch.minimum(second, low + 1e4), high)
    log_factor = torch.where(is_peaked, low, -log_targets.logsumexp(-1, keepdim=True))
    solved = torch.where(is_peaked, others, log_targets)
    start: Tensor | None = None
    for _ in range(_MAX_STEPS):
        log_p, slope = _invert_log_share(solved + log_factor, gamma, start)
        p = log_p.exp()
        total, slope_of_total = p.sum(-1, keepdim=True), (p / slope).sum(-1, keepdim=True)
        rest = total.clamp(1e-300, 0.75)  # a class that is alone leaves nothing
        of_top, slope_of_top = _share_and_slope(torch.log1p(-rest), rest.log(), 1 - rest, rest, gamma_of_top)
        left = of_top - log_target_of_top - log_factor
        step_where_peaked = left / (1 + slope_of_top * slope_of_total / (rest * (1 - rest)))
        step = torch.where(is_peaked, step_where_peaked, -total.log() * total / slope_of_total)
        step = step.masked_fill(total == 0, 0)
        low, high = torch.where(step > 0, log_factor, low), torch.where(step > 0, high, log_factor)
        updated = log_factor + step
        updated = torch.where((updated >= low) & (updated <= high), updated, (low + high) / 2)
        start, log_factor = log_p + (updated - log_factor) / slope, updated
        if _is_small(step, log_factor):
            break
    log_p, _ = _invert_log_share(solved + log_factor, gamma, start)
    rest = log_p.exp().sum(-1, keepdim=True)
    log_p = log_p.masked_fill(solved == -math.inf, -math.inf)
    return torch.where(is_peaked, log_p.scatter(-1, top, torch.log1p(-rest)), log_p)


def _sigmoid_minimiser(
    log_odds: Tensor, margin: float, gamma: Tensor, gamma_neg: Tensor, log_weight_ratio: Tensor
) -> Tensor:
    target = log_odds.clamp(-1e4, 1e4) - log_weight_ratio
    high = target.abs() + 50
    low = -high
    logits = target
    if margin:
        low, high = torch.full_like(low, math.log(margin / (1 - margin))), torch.full_like(high, 40.0)
        logits = (low + high) / 2
    for _ in range(_MAX_STEPS):
        near = logits.clamp(-700, 700)
        tail = torch.exp(-near.abs())
        log_p, log_not_p = near.clamp_max(0) - torch.log1p(tail), -near.clamp_min(0) - torch.log1p(tail)
        p = torch.where(near >= 0, 1.0, tail) / (1 + tail)
        not_p = torch.where(near >= 0, tail, 1.0) / (1 + tail)
        of_positive, slope = _share_and_slope(log_p, log_not_p, p, not_p, gamma)
        q, not_q, log_q, log_not_q = p, not_p, log_p, log_not_p
        if margin:
            q = (p - margin).clamp_min(1e-300)
            not_q, log_q, log_not_q = 1 - q, q.log(), torch.log1p(-q)
        of_negative, slope_of_negative = _share_and_slope(log_not_q, log_q, not_q, q, gamma_neg)
        stretch = p * not_p / (q * not_q) if margin else 1.0
        missing = target - of_positive + of_negative
        step = missing / (slope + slope_of_negative * stretch)
        low, high = torch.where(missing > 0, logits, low), torch.where(missing > 0, high, logits)
        updated = logits + step
        logits = torch.where((updated >= low) & (updated <= high), updated, (low + high) / 2)
        if _is_small(step, logits):
            break
    return torch.where(log_odds == -math.inf, log_odds, logits)


def _invert_log_share(log_shares: Tensor, gamma: Tensor, log_p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``log v`` with ``log(v / phi(v)) = log_shares`` for v up to a half, from a start; and the slope there.

    Newton's method, as the slope by log v is that of a line but next to a half.
    """
    finite = log_shares.clamp_min(-1e4)
    log_p = (finite if log_p is None else log_p).clamp_max(_LOG_HALF)
    for _ in range(_MAX_STEPS):
        p = log_p.exp()
        found, slope = _share_and_slope(log_p, torch.log1p(-p), p, 1 - p, gamma)
        slope = slope / (1 - p)
        step = (finite - found) / slope
        log_p = (log_p + step).clamp_max(_LOG_HALF)
        if _is_small(step, log_p):
            break
    return log_p, slope


def _share_and_slope(
    log_v: Tensor, log_w: Tensor, v: Tensor, w: Tensor, gamma: float | Tensor
) -> tuple[Tensor, Tensor]:
    """``log(v / phi(v))`` and its derivative by the logit of v, which is gamma where v is 1 and 1 where it is 0; w is 1 - v."""
    focused = 1 - gamma * v * log_v / w  # 1 + gamma s
    return log_v - gamma * log_w - focused.log(), w + gamma * v * (1 + (log_v + w) / (w * focused))


def _is_small(step: Tensor, at: Tensor) -> bool:
    """Whether Newton's method, whose errors are squared in each step, has come to the last digit with this one."""
    return bool((step.abs() <= 1e-8 * (1 + at.abs())).all())


def _shifted_logits(logits: Tensor, margin: float) -> Tensor:
    """Those of the probability less the margin."""
    p = (torch.sigmoid(logits) - margin).clamp_min(torch.finfo(logits.dtype).tiny)
    return p.log() - torch.log1p(-p)
