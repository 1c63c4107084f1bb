"""Where a new head starts: at the constant prediction with the least loss over the training data.

From biases of 0 the first steps are spent on making rare labels rare, through the weights that should tell examples apart
(Lin et al. 2017, https://arxiv.org/abs/1708.02002, section 4.1).
"""

import numpy as np
import torch
from torch import Tensor, nn

from .posterior import focal_logits, sigmoid_focal_logits
from .settings import FocalSettings


__all__ = ["find_new_head", "prior_logits"]


def find_new_head(model: nn.Module, num_labels: int) -> nn.Linear:
    """The last linear layer with an output for each label, without biases or with those of a new head, all exactly 0.

    Raises:
        `ValueError`: If there is none, or its biases are others; the message says which.
    """
    # In PEFT's `modules_to_save` the original stands beside the copy that is trained.
    heads = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == num_labels and module.weight.requires_grad
    ]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no linear layer with {num_labels} outputs that is trained")
    head = heads[-1]
    if head.bias is None:
        return head
    if head.bias.numel() != num_labels:
        raise ValueError(f"the head of {type(model).__name__} is sharded among processes before the training")
    if head.bias.any():
        raise ValueError(f"the biases of the head of {type(model).__name__} are not those of a new one, which are 0")
    return head


def prior_logits(counts: np.ndarray, negatives: np.ndarray | None, settings: FocalSettings) -> Tensor:
    """The constant logits with the least loss, with half an example added to every count: float64, (C).

    Args:
        counts (`np.ndarray`): Examples of each class, or what they weigh, (C).
        negatives (`np.ndarray`, *optional*): Of several labels, those without each.
        settings ([`FocalSettings`]): Of the loss.

    Raises:
        `ValueError`: If the loss has a gamma that is a function of p_t.
    """
    gamma, gamma_neg = settings.gamma, settings.gamma_neg
    if isinstance(gamma, str) or isinstance(gamma_neg, str):
        raise ValueError("of a gamma that is a function of p_t, nobody knows the least loss")
    positives = torch.from_numpy(counts).double() + 0.5
    if negatives is None:
        logits = focal_logits(
            positives / positives.sum(), gamma=gamma, alpha=settings.alpha, label_smoothing=settings.label_smoothing
        )
        return logits - logits.mean()
    of_negatives = torch.from_numpy(negatives).double() + 0.5
    logits = sigmoid_focal_logits(
        positives / (positives + of_negatives),
        gamma=gamma,
        gamma_neg=gamma_neg,
        margin=settings.margin,
        alpha=settings.alpha,
    )
    return logits.clamp(-12, 12)  # with a margin the loss may have no minimum
