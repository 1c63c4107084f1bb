"""A column of the data that holds a weight for each example."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ._checks import describe
from ._upstream import assert_async


# Usual names of such a column, for example in scikit-learn and Keras.
USUAL_NAMES = frozenset({"weight", "weights", "sample_weight", "sample_weights"})


def check_sample_weights(dataset: Any, column: str) -> None:
    """Checks all weights of an in-memory dataset; for others only that the column exists, if they list their columns.

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
                f"sample_weight_column: expected a number >= 0 for each example in column {column!r}, not all of them "
                f"0, but got {f'{weights.min():g} to {weights.max():g}' if is_number else dataset.features[column]}"
            )


def weights_of(dataset: Any, column: str | None) -> np.ndarray | None:
    """The weights of the examples, float64, (N), or None if the dataset has no such column."""
    if column is None or not isinstance(dataset, Dataset) or column not in dataset.column_names:
        return None
    return np.asarray(dataset.select_columns(column).with_format("numpy")[:][column], np.float64)


def weigh_targets(weights: Tensor, targets: Tensor) -> Tensor:
    """The weight of each target, that of its example, in the shape of `targets` (first dimension: examples)."""
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
