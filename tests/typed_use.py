"""What a type checker makes of typical calls: checked by mypy, not run."""

import numpy as np
import torch
from torch import Tensor
from typing_extensions import assert_type

from hf_focal import LabelDistribution, compute_alpha, focal_loss


def class_weights(labels: list[int], method: str) -> None:
    assert_type(compute_alpha(labels), Tensor)
    assert_type(compute_alpha(labels, "sqrt_inverse", max_ratio=10.0), Tensor)
    assert_type(compute_alpha(labels, lambda counts: 1 / np.sqrt(counts)), Tensor)
    assert_type(compute_alpha(labels, method), Tensor | None)
    assert_type(LabelDistribution.from_dataset(labels).alpha(), Tensor)
    assert_type(LabelDistribution.from_dataset(labels).alpha("effective_number", beta=0.99), Tensor)
    assert_type(LabelDistribution.from_dataset(labels).alpha(method), Tensor | None)


def loss_with_class_weights(input: Tensor, target: Tensor, labels: list[int], method: str) -> None:
    assert_type(focal_loss(input, target, alpha=compute_alpha(labels)), Tensor)
    assert_type(focal_loss(input, target, alpha=compute_alpha(labels, method)), Tensor)
    assert_type(focal_loss(input, target, alpha=compute_alpha(labels, "none")), Tensor)
    torch.nn.functional.cross_entropy(input, target, weight=compute_alpha(labels, "inverse"))
