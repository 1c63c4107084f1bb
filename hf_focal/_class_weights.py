"""Converts alpha to the weight of each class, or of the negatives and the positives of each label."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import as_numbers, check_length
from ._upstream import is_traced


Alpha = float | Sequence[float] | Sequence[Sequence[float]] | Tensor | None


def softmax_weights(alpha: Alpha, num_classes: int) -> Tensor | None:
    """The weight of each class, (C). A scalar is for two classes: class 1 gets alpha, and class 0 gets 1 - alpha."""
    if alpha is None:
        return None
    weights = as_numbers("alpha", alpha, may_be_all_zero=False)
    if weights.dim() == 0:
        if num_classes != 2:
            raise ValueError(
                f"alpha: a scalar is for two classes, but input has {num_classes}, where it would only rescale the "
                "loss; expected one weight per class"
            )
        if not is_traced() and weights > 1:
            raise ValueError(
                f"alpha: expected a scalar of at most 1, as class 1 gets alpha and class 0 1 - alpha, but got {alpha}"
            )
        weights = torch.stack([1 - weights, weights])
    check_length("alpha", weights, num_classes)
    return weights


def sigmoid_weights(alpha: Alpha, num_labels: int) -> Tensor | None:
    """The weights of negatives, then of positives: a pair for each label, (2, L), or one for all labels, (2).

    Numbers that are not pairs are the weights of positives, and negatives get 1 - alpha.
    """
    if alpha is None:
        return None
    weights = as_numbers("alpha", alpha, max_dim=2)
    check_length("alpha", weights, num_labels)
    if weights.dim() == 2:
        if len(weights) != 2:
            raise ValueError(
                "alpha: expected weights of negatives, then of positives, shape (2, L), but got shape "
                f"{tuple(weights.shape)}"
            )
        return as_numbers("alpha", weights, may_be_all_zero=False, max_dim=2)
    if not is_traced() and (weights > 1).any():
        raise ValueError(
            "alpha: expected weights of positives in [0, 1], or of negatives and of positives, shape (2, L), but got "
            f"{weights.tolist()}"
        )
    return torch.stack([1 - weights, weights])
