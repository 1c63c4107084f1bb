r"""The map from the outputs of a model that minimises the focal loss to the targets, and its inverse.

With ``phi_g(v) = (1 - v)^g - g (1 - v)^(g - 1) v log v`` the softmax output v of a minimiser has ``v_i / phi(v_i)``
proportional to the weighted targets. ``D_g(v) = phi_g(v) / v``, which is strictly decreasing, is minus the derivative
of the loss with respect to the probability of the answer. The map has a closed form; its inverse is found by root
finding. See Charoenphakdee et al. 2021 (https://arxiv.org/abs/2011.09172). Komisarenko & Kull 2024
(https://arxiv.org/abs/2408.11598) call it the focal calibration map.
"""

import math

import torch
from torch import Tensor


_MAX_STEPS = 200  # of Newton's method with bisection as a fallback; 5 to 10 are typical
_BLOCK = 2**16  # numbers per block, to stay in the cache of a core
_LOG_HALF = math.log(0.5)


def log_share(margin: Tensor, gamma: float | Tensor) -> Tensor:
    """``log(v / phi(v))`` for ``v = sigmoid(-margin)``, from ``phi = (1 - v)^gamma (1 + gamma s)``.

    ``s = v (-log v) / (1 - v)`` is ``log(1 + e) / e`` for ``e = exp(margin)``. For small e a series is used: some
    runtimes of exported graphs lose the e in 1 + e, or compute 0 / 0.
    """
    # Infinite for classes removed by a logit of minus infinity, or if all other classes are removed.
    margin = margin.clamp(-1e30, 1e30)
    e = margin.clamp(-80, 80).exp()
    s = torch.where(e < 1e-7, 1 - e / 2 + e * e / 3, torch.log1p(e) / e)
    return log_sigmoid(-margin) - gamma * log_sigmoid(margin) - torch.log1p(gamma * s)


def log_sigmoid(x: Tensor) -> Tensor:
    """`logsigmoid` that stays accurate in exported graphs, where torch's becomes the log of a sigmoid rounded to 0."""
    return torch.where(x < 0, x - torch.log1p(x.clamp_max(0).exp()), -torch.log1p((-x.clamp_min(0)).exp()))


def asymmetric_log_odds(
    logits: Tensor, gamma: float | Tensor, gamma_neg: float | Tensor, margin: float, log_weight_ratio: float | Tensor
) -> Tensor:
    """The log odds of labels for which these logits have the least expected loss; minus infinity up to the margin.

    Args:
        logits (`Tensor`): Logits of the wide dtype.
        gamma, gamma_neg (`float` or `Tensor`): Focusing parameters of positives and of negatives.
        margin (`float`): Probability that is subtracted from p for negatives.
        log_weight_ratio (`float` or `Tensor`): Log of the weight of negatives divided by that of positives.
    """
    shifted = logits if margin == 0 else _shifted_logits(logits, margin)
    log_odds = log_share(-logits, gamma) - log_share(shifted, gamma_neg) + log_weight_ratio
    return log_odds if margin == 0 else log_odds.masked_fill(torch.sigmoid(logits) <= margin, -math.inf)


def softmax_minimiser(log_targets: Tensor, gamma: Tensor) -> Tensor:
    """The log-probabilities for which ``v_i / phi(v_i)`` is proportional to the targets.

    The factor of proportionality is the root of one equation per row. If a class, `top`, has a probability above 1/2,
    the equation is that 1 minus the sum of the others is the probability that its own target requires, so that no
    digits of the others cancel; otherwise, that the probabilities sum to 1.

    Args:
        log_targets (`Tensor`): float64, (N, C); minus infinity for a target of 0.
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
    per_label = [
        torch.as_tensor(x, dtype=torch.float64).expand(num_labels) for x in (gamma, gamma_neg, log_weight_ratio)
    ]
    blocks = log_odds.reshape(-1, num_labels).split(max(1, _BLOCK // num_labels))
    logits = torch.cat([_sigmoid_minimiser(block, margin, *per_label) for block in blocks])
    return logits.reshape(log_odds.shape)


def _softmax_minimiser(log_targets: Tensor, gamma: Tensor) -> Tensor:
    num_classes = log_targets.shape[-1]
    at_half = log_share(torch.zeros_like(gamma), gamma) - log_targets  # the factor that gives a class probability 1/2
    high, top = at_half.min(-1, keepdim=True)
    top_gamma, top_log_target = gamma[top], log_targets.gather(-1, top)
    others = log_targets.scatter(-1, top, -math.inf)
    log_p, _ = _invert_log_share(others + high, gamma)
    is_peaked = log_p.exp().sum(-1, keepdim=True) < 0.5
    at_uniform = log_share(torch.full_like(gamma, math.log(max(num_classes - 1, 1))), gamma) - log_targets
    low = torch.where(is_peaked, high, at_uniform.amin(-1, keepdim=True))  # where no class exceeds 1 / C
    second = at_half.scatter(-1, top, math.inf).amin(-1, keepdim=True)
    high = torch.where(is_peaked, torch.minimum(second, low + 1e4), high)
    log_factor = torch.where(is_peaked, low, -log_targets.logsumexp(-1, keepdim=True))
    solved = torch.where(is_peaked, others, log_targets)
    start: Tensor | None = None
    for _ in range(_MAX_STEPS):
        log_p, slope = _invert_log_share(solved + log_factor, gamma, start)
        p = log_p.exp()
        total, total_slope = p.sum(-1, keepdim=True), (p / slope).sum(-1, keepdim=True)
        others_p = total.clamp(1e-300, 0.75)  # it is 0 if there are no other classes
        top_share, top_slope = _share_and_slope(
            torch.log1p(-others_p), others_p.log(), 1 - others_p, others_p, top_gamma
        )
        residual = top_share - top_log_target - log_factor
        step_if_peaked = residual / (1 + top_slope * total_slope / (others_p * (1 - others_p)))
        step = torch.where(is_peaked, step_if_peaked, -total.log() * total / total_slope)
        step = step.masked_fill(total == 0, 0)
        low, high = torch.where(step > 0, log_factor, low), torch.where(step > 0, high, log_factor)
        updated = log_factor + step
        updated = torch.where((updated >= low) & (updated <= high), updated, (low + high) / 2)
        start, log_factor = log_p + (updated - log_factor) / slope, updated
        if _is_small(step, log_factor):
            break
    log_p, _ = _invert_log_share(solved + log_factor, gamma, start)
    others_p = log_p.exp().sum(-1, keepdim=True)
    log_p = log_p.masked_fill(solved == -math.inf, -math.inf)
    return torch.where(is_peaked, log_p.scatter(-1, top, torch.log1p(-others_p)), log_p)


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
        positive_share, slope = _share_and_slope(log_p, log_not_p, p, not_p, gamma)
        q, not_q, log_q, log_not_q = p, not_p, log_p, log_not_p
        if margin:
            q = (p - margin).clamp_min(1e-300)
            not_q, log_q, log_not_q = 1 - q, q.log(), torch.log1p(-q)
        negative_share, negative_slope = _share_and_slope(log_not_q, log_q, not_q, q, gamma_neg)
        stretch = p * not_p / (q * not_q) if margin else 1.0
        residual = target - positive_share + negative_share
        step = residual / (slope + negative_slope * stretch)
        low, high = torch.where(residual > 0, logits, low), torch.where(residual > 0, high, logits)
        updated = logits + step
        logits = torch.where((updated >= low) & (updated <= high), updated, (low + high) / 2)
        if _is_small(step, logits):
            break
    return torch.where(log_odds == -math.inf, log_odds, logits)


def _invert_log_share(log_shares: Tensor, gamma: Tensor, log_p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Solves ``log(v / phi(v)) = log_shares`` for ``log v``, v <= 1/2, starting at `log_p`; also the slope there.

    Uses Newton's method, as the function is nearly linear in log v except close to 1/2.
    """
    finite = log_shares.clamp_min(-1e4)
    log_p = (finite if log_p is None else log_p).clamp_max(_LOG_HALF)
    for _ in range(_MAX_STEPS):
        p = log_p.exp()
        value, slope = _share_and_slope(log_p, torch.log1p(-p), p, 1 - p, gamma)
        slope = slope / (1 - p)
        step = (finite - value) / slope
        log_p = (log_p + step).clamp_max(_LOG_HALF)
        if _is_small(step, log_p):
            break
    return log_p, slope


def _share_and_slope(
    log_v: Tensor, log_w: Tensor, v: Tensor, w: Tensor, gamma: float | Tensor
) -> tuple[Tensor, Tensor]:
    """``log(v / phi(v))``, and its derivative by the logit of v: gamma at v = 1, and 1 at v = 0; w is 1 - v."""
    focused = 1 - gamma * v * log_v / w  # 1 + gamma s
    return log_v - gamma * log_w - focused.log(), w + gamma * v * (1 + (log_v + w) / (w * focused))


def _is_small(step: Tensor, at: Tensor) -> bool:
    """Whether Newton's method, which squares the error in each step, has reached full precision with this step."""
    return bool((step.abs() <= 1e-8 * (1 + at.abs())).all())


def _shifted_logits(logits: Tensor, margin: float) -> Tensor:
    """The logits of the probability minus the margin."""
    p = (torch.sigmoid(logits) - margin).clamp_min(torch.finfo(logits.dtype).tiny)
    return p.log() - torch.log1p(-p)
