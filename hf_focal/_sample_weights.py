"""A column of the data that holds a weight for each example."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ._checks import describe
from ._upstream import assert_async


# What such a column is called elsewhere, in scikit-learn and Keras for one.
USUAL_NAMES = frozenset({"weight", "weights", "sample_weight", "sample_weights"})


def check_sample_weights(dataset: Any, column: str) -> None:
    """Looks at all weights of a dataset in memory, and of others whether there is the column, if they say so.

    Raises:
        `ValueError`: If there is no such column, or its values are not numbers of at least 0.
    """
    names = getattr(dataset, "column_names", None)
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        return  # its transform may make the column
    if names is not None and column not in names:
        raise ValueError(f"sample_weight_column: train_dataset has no column {column!r}, but {', '.join(names)}")
    if isinstance(dataset, Dataset):
        weights = dataset.select_columns(column).with_format("arrow")[:][column].to_numpy()
        is_number = weights.dtype.kind in "iuf"
        if not is_number or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise ValueError(
                f"sample_weight_column: expected a number >= 0 for each example in column {column!r}, and not 0 for all, but "
                f"got {f'{weights.min():g} to {weights.max():g}' if is_number else dataset.features[column]}"
            )


def weights_of(dataset: Any, column: str | None) -> np.ndarray | None:
    """Those of the examples, float64, (N), where the dataset has them as the trainer's evaluations do."""
    if column is None or not isinstance(dataset, Dataset) or column not in dataset.column_names:
        return None
    return np.asarray(dataset.select_columns(column).with_format("numpy")[:][column], np.float64)


def weigh_targets(weights: Tensor, targets: Tensor) -> Tensor:
    """The weight of each target, which is that of its example: of the shape of `targets`, whose first dimension is theirs."""
    return weights.to(targets.device, torch.float32).reshape(-1, *[1] * (targets.dim() - 1)).expand(targets.shape)


def sum_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """The sum of the weights of all targets that are not -100, and their number: float32, shape (2).

    Raises:
        `ValueError`: If the weights are not one number for each example.
    """
    if not isinstance(weights, Tensor) or weights.shape not in (labels.shape[:1], (*labels.shape[:1], 1)):
        raise ValueError(
            f"sample_weight_column: expected one number for each of {len(labels)} examples of a batch, but got "
            f"{describe(weights)}"
        )
    assert_async((weights >= 0).all(), "sample_weight_column: expected numbers >= 0, but got others")
    is_target = (labels != -100).float()
    return torch.stack([(weigh_targets(weights, labels) * is_target).sum(), is_target.sum()])
