"""Initial biases of a new head: those of the constant prediction with the least loss over the training data.

With biases of 0 the first steps are spent on learning that rare labels are rare, through the weights that should
distinguish the examples (Lin et al. 2017, https://arxiv.org/abs/1708.02002, section 4.1).
"""

import numpy as np
import torch
from torch import Tensor, nn

from .posterior import focal_logits, sigmoid_focal_logits
from .settings import FocalSettings


__all__ = ["find_new_head", "prior_logits"]


def find_new_head(model: nn.Module, num_labels: int) -> nn.Linear:
    """The last trainable linear layer with an output for each label, if it has no biases or all are 0 (a new head).

    Raises:
        `ValueError`: If there is none, it is sharded, or its biases are not 0; the message says which.
    """
    # PEFT's `modules_to_save` keeps the original next to the trained copy.
    heads = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == num_labels and module.weight.requires_grad
    ]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no trainable linear layer with {num_labels} outputs")
    head = heads[-1]
    if head.bias is None:
        return head
    if head.bias.numel() != num_labels:
        raise ValueError(f"the head of {type(model).__name__} is already sharded across processes before training")
    if head.bias.any():
        raise ValueError(f"the biases of the head of {type(model).__name__} are not 0, so it is not a new one")
    return head


def prior_logits(counts: np.ndarray, negatives: np.ndarray | None, settings: FocalSettings) -> Tensor:
    """The constant logits with the least loss, with half an example added to every count: float64, (C).

    Args:
        counts (`np.ndarray`): Number of examples of each class, or the sum of their weights, (C).
        negatives (`np.ndarray`, *optional*): For several labels, the same for examples without each label.
        settings ([`FocalSettings`]): The settings of the loss.

    Raises:
        `ValueError`: If gamma is a function of p_t.
    """
    gamma, gamma_neg = settings.gamma, settings.gamma_neg
    if isinstance(gamma, str) or isinstance(gamma_neg, str):
        raise ValueError("with a gamma that is a function of p_t, the prediction with the least loss is unknown")
    positives = torch.from_numpy(counts).double() + 0.5
    if negatives is None:
        logits = focal_logits(
            positives / positives.sum(), gamma=gamma, alpha=settings.alpha, label_smoothing=settings.label_smoothing
        )
        return logits - logits.mean()
    negative_counts = torch.from_numpy(negatives).double() + 0.5
    logits = sigmoid_focal_logits(
        positives / (positives + negative_counts),
        gamma=gamma,
        gamma_neg=gamma_neg,
        margin=settings.margin,
        alpha=settings.alpha,
    )
    return logits.clamp(-12, 12)  # with a margin the loss may have no minimum
