"""Class weights from the label distribution of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from torch import Tensor


__all__ = ["ALPHA_METHODS", "LabelCounts", "check_beta", "compute_alpha", "count_labels"]

ALPHA_METHODS = ("inverse", "sqrt_inverse", "effective_number")

_IGNORE_INDEX = -100


@dataclass(frozen=True)
class LabelCounts:
    """How often each class occurs.

    Attributes:
        positives (`np.ndarray` of int64, shape (C)): Examples (for token labels, tokens) of each class.
        negatives (`np.ndarray` of int64, shape (C), *optional*): For multi-label rows, the rows without each label.
        names (`list[str]`, *optional*): The class names, where the dataset has them.
    """

    positives: np.ndarray
    negatives: np.ndarray | None = None
    names: list[str] | None = None


def compute_alpha(
    data: "Dataset | Sequence | np.ndarray | Tensor",
    method: str = "inverse",
    *,
    column: str | None = None,
    num_labels: int | None = None,
    beta: float = 0.999,
) -> Tensor:
    r"""Class weights for focal loss from the label distribution, so that rare classes weigh more.

    With ``n_k`` examples of class k the weights are proportional to

    - ``"inverse"``: ``1 / n_k`` (what scikit-learn calls "balanced"),
    - ``"sqrt_inverse"``: ``n_k ** -0.5``,
    - ``"effective_number"``: ``(1 - beta) / (1 - beta ** n_k)`` (Cui et al. 2019, https://arxiv.org/abs/1901.05555),

    and scaled so that their average over the examples is 1: alpha does not change the scale of the loss. For
    multi-label rows the weights of a label's positives and negatives are computed in the same way from their two
    counts and scaled to sum to 1; the result is the weight of the positives, as `sigmoid_focal_loss` takes it, so
    ``"inverse"`` is one minus the share of rows that have the label.

    Args:
        data (`datasets.Dataset`, sequence, `np.ndarray` or `Tensor`): What holds the labels: class ids, rows of 0 and
            1 of one length (multi-label), or sequences of class ids (token labels). Ids of -100 are ignored.
        method (`str`): ``"inverse"``, ``"sqrt_inverse"`` or ``"effective_number"``.
        column (`str`, *optional*): Label column of a `Dataset`; by default ``label`` or ``labels``.
        num_labels (`int`, *optional*): Number of classes C. By default what the dataset's `ClassLabel` says, or else
            the highest id plus 1.
        beta (`float`): For ``"effective_number"``, in [0, 1): 0 weighs all classes alike, towards 1 it becomes
            ``"inverse"``.

    Returns:
        `Tensor`: float32, shape (C).

    Raises:
        `ValueError`: For a missing or unlabelled column, ids out of range, a class without examples, an unknown method
        or a beta out of its range.

    Example:

    ```python
    >>> from hf_focal import compute_alpha
    >>> compute_alpha([0, 0, 0, 0, 0, 0, 1, 1])
    tensor([0.6667, 2.0000])
    >>> compute_alpha([[1, 0], [0, 1], [0, 1], [0, 1]])  # multi-label
    tensor([0.7500, 0.2500])

    ```
    """
    if method not in ALPHA_METHODS:
        raise ValueError(f"method: expected one of {', '.join(ALPHA_METHODS)}, but got {method!r}")
    check_beta(beta)
    counts = count_labels(data, column=column, num_labels=num_labels)
    _check_every_class_occurs(counts)

    weights = _unscaled_weights(counts.positives, method, beta)
    if counts.negatives is None:
        weights *= counts.positives.sum() / (weights * counts.positives).sum()
    else:
        weights /= weights + _unscaled_weights(counts.negatives, method, beta)
    return torch.from_numpy(weights).float()


def count_labels(
    data: "Dataset | Sequence | np.ndarray | Tensor", *, column: str | None = None, num_labels: int | None = None
) -> LabelCounts:
    """Count the examples of each class; arguments and errors as in `compute_alpha`.

    Example:

    ```python
    >>> from hf_focal.alpha import count_labels
    >>> count_labels([[0, 2, -100], [2, 2]]).positives  # token labels
    array([1, 0, 3])

    ```
    """
    if num_labels is not None and not (isinstance(num_labels, Integral) and num_labels > 0):
        raise ValueError(f"num_labels: expected a positive integer, but got {num_labels!r}")
    labels, names, source = _read_labels(data, column)
    if names is not None and num_labels is None:
        num_labels = len(names)
    values, width = _flatten(labels, source)

    # Lists of a ClassLabel hold ids of classes, whatever their values.
    is_multi_hot = width is not None and width == (num_labels or width) and names is None
    if is_multi_hot and len(values) and np.isin(values, (0, 1)).all():
        positives = values.reshape(-1, width).sum(axis=0, dtype=np.int64)
        return LabelCounts(positives, negatives=len(values) // width - positives)

    if values.dtype.kind not in "iub":
        raise ValueError(
            f"data: expected integer class ids, or multi-label rows of {num_labels or 'C'} entries that are 0 or 1, but "
            f"{source} holds {values.dtype} values{'' if width is None else f' in rows of {width}'}; cast class ids to "
            "integers"
        )
    values = values[values != _IGNORE_INDEX].astype(np.int64)
    if not len(values) or (values == -1).all():
        raise ValueError(f"data: {source} holds no labels (is it the test split of a challenge?)")
    if num_labels is None:
        num_labels = int(values.max()) + 1
    outside = np.unique(values[(values < 0) | (values >= num_labels)])
    if len(outside):
        raise ValueError(
            f"data: expected class ids from 0 to {num_labels - 1} (or {_IGNORE_INDEX}, ignored), but {source} also "
            f"holds {outside[:5].tolist()}; map the labels to 0..C-1, or set num_labels"
        )
    return LabelCounts(np.bincount(values, minlength=num_labels), names=names)


def check_beta(beta: float) -> None:
    """Raises a `ValueError` unless beta is a number in [0, 1)."""
    if not isinstance(beta, Real) or not 0 <= beta < 1:
        raise ValueError(f"beta: expected a number in [0, 1), but got {beta!r}")


def _unscaled_weights(counts: np.ndarray, method: str, beta: float) -> np.ndarray:
    if method == "inverse":
        return 1 / counts
    if method == "sqrt_inverse":
        return counts**-0.5
    if beta == 0:
        return np.ones(len(counts))
    return (1 - beta) / -np.expm1(counts * np.log(beta))


def _check_every_class_occurs(counts: LabelCounts) -> None:
    for kind, per_class in (("examples", counts.positives), ("negative examples", counts.negatives)):
        if per_class is None or per_class.all():
            continue
        empty = np.flatnonzero(per_class == 0).tolist()
        names = dict(enumerate(counts.names or []))
        described = ", ".join(f"{k} ({names[k]!r})" if k in names else str(k) for k in empty[:10])
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        raise ValueError(
            f"data: no {kind} of class {described}{more}, so there is no weight to compute; add examples, leave the "
            "classes out of the labels, or pass your own weights as alpha"
        )


def _read_labels(data: Any, column: str | None) -> tuple[Any, list[str] | None, str]:
    """The labels as an Arrow or numpy array, the class names if known, and what to call the source in errors."""
    if isinstance(data, DatasetDict):
        raise ValueError(f"data: expected one split, but got a DatasetDict; choose one of {list(data)}")
    if isinstance(data, Dataset):
        column = _label_column(data, column)
        feature = data.features[column]
        feature = getattr(feature, "feature", feature)
        names = feature.names if isinstance(feature, ClassLabel) else None
        table = data.select_columns(column).with_format("arrow")[:]
        return table.column(column).combine_chunks(), names, f"column {column!r}"
    if column is not None:
        raise ValueError(f"column: only a datasets.Dataset has columns, but data is a {type(data).__name__}")
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        return (data.float() if data.is_floating_point() else data).numpy(), None, "data"
    if isinstance(data, np.ndarray):
        return data, None, "data"
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)):
        raise ValueError(
            f"data: expected a datasets.Dataset, a list, an array or a tensor of labels, but got {type(data).__name__}"
        )
    try:
        return pa.array([row.tolist() if isinstance(row, Tensor) else row for row in data]), None, "data"
    except pa.ArrowException as error:
        raise ValueError(
            f"data: expected class ids or rows of them, but the list could not be read: {error}"
        ) from error


def _label_column(data: Dataset, column: str | None) -> str:
    candidates = ["label", "labels"] if column is None else [column]
    found = [name for name in candidates if name in data.column_names]
    if len(found) != 1:
        raise ValueError(
            f"column: expected {'exactly one of ' if column is None else ''}{' and '.join(map(repr, candidates))} in "
            f"the dataset, whose columns are {data.column_names}; name the label column with column=..."
        )
    return found[0]


def _flatten(labels: Any, source: str) -> tuple[np.ndarray, int | None]:
    """All label values in one dimension, and the length of the rows if they are nested and all of one length."""
    if isinstance(labels, np.ndarray):
        if labels.ndim not in (1, 2):
            raise ValueError(f"data: expected labels in one or two dimensions, but {source} has {labels.shape}")
        return labels.reshape(-1), labels.shape[1] if labels.ndim == 2 else None

    width = None
    missing = labels.null_count
    if (
        pa.types.is_list(labels.type)
        or pa.types.is_large_list(labels.type)
        or pa.types.is_fixed_size_list(labels.type)
    ):
        lengths = pc.unique(pc.list_value_length(labels))
        width = lengths[0].as_py() if len(lengths) == 1 else None
        labels = pc.list_flatten(labels)
        missing += labels.null_count
    if pa.types.is_null(labels.type):
        raise ValueError(f"data: {source} holds no labels")
    if missing:
        raise ValueError(f"data: {missing} labels are missing (null) in {source}; filter those rows out")
    if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
        raise ValueError(
            f"data: {source} holds strings; turn them into class ids, for a datasets.Dataset with "
            "dataset.class_encode_column(column)"
        )
    return labels.to_numpy(zero_copy_only=False), width
