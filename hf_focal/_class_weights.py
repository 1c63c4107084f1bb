"""What alpha means: the weight of each class, or of the positives of each label."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import as_numbers, check_length
from ._upstream import is_traced


Alpha = float | Sequence[float] | Tensor | None


def softmax_weights(alpha: Alpha, num_classes: int) -> Tensor | None:
    """The weight of each class, (C): a scalar is that of class 1 of two, class 0 has the rest."""
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
            raise ValueError(f"alpha: a scalar weighs class 1, and 1 - alpha class 0; expected at most 1, got {alpha}")
        weights = torch.stack([1 - weights, weights])
    check_length("alpha", weights, num_classes)
    return weights


def sigmoid_weights(alpha: Alpha, num_labels: int) -> Tensor | None:
    """The weight of positives, negatives having the rest to 1: one for each label, (L), or a scalar for all."""
    if alpha is None:
        return None
    weights = as_numbers("alpha", alpha)
    if not is_traced() and (weights > 1).any():
        raise ValueError(f"alpha: expected weights of positives in [0, 1], but got {weights.tolist()}")
    check_length("alpha", weights, num_labels)
    return weights
