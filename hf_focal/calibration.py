"""Temperature scaling: the one-parameter calibration of probabilities on held-out data."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._known_labels import known_labels


__all__ = ["apply_temperature", "fit_temperature"]

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0


def fit_temperature(posterior: Tensor, labels: Tensor, *, multi_label: bool | None = None) -> float:
    r"""The temperature that makes held-out labels most likely (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    It may follow [`class_posterior`], for what its formula cannot know (that the model overfits, say), or, on softmax,
    stand in its place: log-probabilities are logits up to a constant.

    Args:
        posterior (`Tensor`): Probabilities of held-out examples, of any floating dtype: class probabilities of shape
            (..., C), or, for multi-label data, one independent probability per label, (N, L).
        labels (`Tensor`): Class ids of shape (...), where -100 is ignored; or, with ``multi_label=False``, rows of shape
            (..., C), one-hot or class probabilities, where a row of -100 is ignored. For multi-label data, 0 or 1, or
            their probabilities, of shape (N, L), where each -100 is ignored. Of probabilities it is the expected likelihood that is the largest.
        multi_label (`bool`, *optional*): Whether an example has several labels; by default, if the labels have the shape
            of `posterior`.

    Returns:
        `float`: The temperature, above 1 where the probabilities are over-confident. Held-out data without an error have
        no finite optimum, so it is held between 0.01 and 100.

    Raises:
        `ValueError`: If the shapes do not fit, there are no labels, or they are neither class ids nor probabilities.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import apply_temperature, fit_temperature
    >>> posterior = torch.tensor([[0.99, 0.01]] * 4)
    >>> temperature = fit_temperature(posterior, torch.tensor([0, 0, 0, 1]))
    >>> apply_temperature(posterior, temperature)[0]
    tensor([0.7500, 0.2500])

    ```
    """
    if multi_label is None:
        multi_label = labels.shape == posterior.shape
    is_known, labels = known_labels(posterior.shape, labels, multi_label)
    num_classes = posterior.shape[-1]
    posterior = posterior.reshape(-1, num_classes)[is_known]
    if multi_label:  # each answer is a decision of its own
        is_known = labels != -100
        posterior, labels = posterior[is_known], labels[is_known]
    if labels.numel() == 0:
        raise ValueError("labels: expected at least one that is not -100, but got none")
    is_distribution = not multi_label and labels.dim() > 1
    low, high = labels.min().item(), labels.max().item()
    largest = 1 if multi_label else num_classes - 1
    if not (is_distribution or (low >= 0 and high <= largest)):
        raise ValueError(f"labels: expected values from 0 to {largest}, but got values from {low:g} to {high:g}")

    logits, labels = _logits(posterior, multi_label).detach(), labels.detach()
    log_temperature = torch.zeros((), dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")
    loss = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
    targets = labels.double() if multi_label or is_distribution else labels.long()

    def negative_log_likelihood() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits / log_temperature.exp().clamp(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE), targets)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(negative_log_likelihood)
    return log_temperature.exp().clamp(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE).item()


def apply_temperature(posterior: Tensor, temperature: float, *, multi_label: bool = False) -> Tensor:
    """Probabilities proportional to ``posterior ** (1 / temperature)``, which is softmax or sigmoid of logits over it.

    Args:
        posterior (`Tensor`): Class probabilities of shape (..., C), or independent ones of any shape.
        temperature (`float`): Above 0; more makes the probabilities less confident, 1 leaves them as they are.
        multi_label (`bool`): Whether the probabilities are independent of each other.

    Returns:
        `Tensor`: Probabilities of the shape of `posterior`. float64 for a float64 posterior, otherwise float32.

    Raises:
        `ValueError`: If the temperature is not a finite number above 0.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a finite number above 0, but got {temperature!r}")
    logits = _logits(posterior, multi_label) / temperature
    scaled = logits.sigmoid() if multi_label else logits.softmax(-1)
    return scaled.to(torch.promote_types(posterior.dtype, torch.float32))


def _logits(posterior: Tensor, multi_label: bool) -> Tensor:
    """Logits in float64, finite also where rounding has left a probability of 0 or 1."""
    limits = torch.finfo(posterior.dtype)
    if multi_label:
        return posterior.double().clamp(limits.tiny, 1 - limits.eps / 2).logit()
    return posterior.double().clamp_min(limits.tiny).log()
