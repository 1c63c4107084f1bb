"""Reads the labels of any kind of data, in blocks that fit the cache. Only the label column of a table is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.arrow_dataset import Column
from datasets.utils import tqdm
from torch import Tensor

from ._checks import ArgumentError
from ._upstream import is_split_by_node, select_only, stored_column


__all__ = ["LabelSource", "open_labels"]

_BLOCK = 2**20  # labels per block
_ROWS = 2**13  # rows per block, for rows of labels and for streams

Blocks = Iterator[pa.Array | np.ndarray]


@dataclass(frozen=True)
class LabelSource:
    """Labels to be read in blocks: `blocks` takes the maximum number of rows, or None for all."""

    blocks: Callable[[int | None], Blocks]
    name: str = "data"
    class_names: list[str] | None = None
    num_rows: int | None = None
    is_shard: bool = False  # the other shards belong to other processes


def open_labels(data: Any, column: str | None) -> LabelSource:
    """Raises a `ValueError` if the type of `data` is not supported, or it has no such column."""
    if isinstance(data, (DatasetDict, IterableDatasetDict)):
        raise ArgumentError("data", f"expected one split, but got a {type(data).__name__}; choose one of {list(data)}")
    if isinstance(data, Column) and isinstance(data.source, Dataset):
        data, column = data.source, data.column_name
    if isinstance(data, Dataset) and data.format["type"] == "custom":
        return _open_torch_dataset(data, column)  # a transform may return labels other than those stored
    if isinstance(data, Dataset):
        return _open_dataset(data, _label_column(data.column_names, column))
    if isinstance(data, IterableDataset):
        return _open_stream(data, column)
    if isinstance(data, torch.utils.data.Dataset) or _has_examples(data):
        return _open_torch_dataset(data, column)
    if isinstance(data, pd.DataFrame):
        column = _label_column(list(data.columns), column)
        return _open_array(_as_arrow(data[column]), f"column {column!r}")
    if column is not None:
        raise ArgumentError("column", f"only tables have columns, but got a {type(data).__name__}")
    return _open_array(_as_array(data))


def _has_examples(data: Any) -> bool:
    """Whether it is a map-style dataset for a `DataLoader`, without being a torch class: has a length and an index."""
    if isinstance(data, Sequence) and len(data) and isinstance(data[0], Mapping):
        return True
    holds_labels = isinstance(data, (Sequence, Mapping, Tensor, np.ndarray, pd.DataFrame, pd.Series, pa.Array))
    has_rows = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return has_rows and not holds_labels and not isinstance(data, pa.ChunkedArray)


def _as_array(data: Any) -> pa.Array | np.ndarray:
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        return (data.float() if data.is_floating_point() else data).numpy()
    if isinstance(data, np.ndarray) and data.dtype.kind in "iubf":
        return data
    if isinstance(data, pd.Series):
        return _as_arrow(data)
    if isinstance(data, pa.ChunkedArray):
        return data.combine_chunks()
    if isinstance(data, pa.Array):
        return data
    if not isinstance(data, (Sequence, np.ndarray)) or isinstance(data, (str, bytes)):
        raise ArgumentError(
            "data",
            "expected a datasets.Dataset, a torch Dataset, a list, an array, a tensor or a pandas object that holds "
            f"labels, but got {type(data).__name__}",
        )
    return _as_arrow(list(data))


def _as_arrow(labels: list | pd.Series) -> pa.Array:
    try:
        if isinstance(labels, pd.Series):
            return pa.Array.from_pandas(labels)
        return pa.array([label.tolist() if hasattr(label, "tolist") else label for label in labels])
    except OverflowError as error:
        raise ArgumentError("data", "expected class ids, but got integers that do not fit int64") from error
    except pa.ArrowException as error:
        raise ArgumentError(
            "data", f"expected class ids or rows of them, but the labels could not be read: {error}"
        ) from error


def _open_array(labels: pa.Array | np.ndarray, name: str = "data") -> LabelSource:
    if isinstance(labels, np.ndarray) and labels.ndim not in (1, 2):
        raise ArgumentError("data", f"expected labels in one or two dimensions, but got shape {labels.shape}")

    def blocks(max_rows: int | None) -> Blocks:
        if max_rows is None:
            return _slices(labels)
        rows = _spread(len(labels), max_rows)
        return _slices(labels[rows] if isinstance(labels, np.ndarray) else labels.take(rows))

    return LabelSource(blocks, name, num_rows=len(labels))


def _open_dataset(data: Dataset, column: str) -> LabelSource:
    def blocks(max_rows: int | None) -> Blocks:
        rows = data if max_rows is None else data.select(_spread(len(data), max_rows))
        labels, indices = stored_column(rows, column)
        if indices is None:
            for chunk in labels.chunks:
                yield from _slices(chunk)
        elif pa.types.is_integer(labels.type) and not labels.null_count:
            yield from _gathered(labels, indices)
        else:
            joined = labels.combine_chunks()  # `take` on chunks would combine them each time
            for chunk in indices.chunks:
                for start in range(0, len(chunk), _ROWS):
                    yield joined.take(chunk[start : start + _ROWS])

    return LabelSource(blocks, f"column {column!r}", _class_names(data.features, column), len(data))


def _gathered(labels: pa.ChunkedArray, indices: pa.ChunkedArray) -> Blocks:
    """The labels at `indices`.

    The speed is limited by memory latency: hence threads, and a copy in the narrowest dtype, to fit more in the cache.
    """
    numbers = [chunk.to_numpy() for chunk in labels.chunks if len(chunk)]
    ends = [end for chunk in numbers for end in (chunk.min(), chunk.max())]
    narrowest = np.result_type(*map(np.min_scalar_type, ends))
    if narrowest.kind == "f":  # numpy's result if some ids are negative and others need uint64
        narrowest = numbers[0].dtype
    copied = np.empty(len(labels), narrowest)
    np.concatenate(numbers, out=copied, casting="unsafe")
    blocks = (block for chunk in indices.chunks for block in _slices(chunk.to_numpy().view(np.int64)))
    with ThreadPoolExecutor() as pool:
        while group := list(islice(blocks, 8)):
            yield from pool.map(partial(copied.take, mode="clip"), group)


def _open_stream(data: IterableDataset, column: str | None) -> LabelSource:
    names = data.column_names or next((list(example) for example in data.take(1)), [])
    column = _label_column(names, column)

    def blocks(max_rows: int | None) -> Blocks:
        # Without features, the Arrow type would be inferred from the first batch and might not fit the next one.
        stream = select_only(data, column).with_format(None if data.features is None else "arrow")
        with tqdm(desc=f"Counting {column}", unit=" rows", total=max_rows) as progress:
            for batch in stream.iter(batch_size=min(_ROWS, max_rows or _ROWS)):
                labels = _as_arrow(batch[column]) if isinstance(batch, dict) else batch.column(column).combine_chunks()
                yield labels if max_rows is None else labels[: max_rows - progress.n]
                progress.update(len(labels))
                if max_rows is not None and progress.n >= max_rows:
                    return

    is_shard = is_split_by_node(data) and torch.distributed.is_initialized()
    return LabelSource(blocks, f"column {column!r}", _class_names(data.features, column), is_shard=is_shard)


def _open_torch_dataset(data: Any, column: str | None) -> LabelSource:
    num_rows = len(data) if hasattr(data, "__len__") else None

    def examples(max_rows: int | None) -> Iterator:
        if num_rows is None or not hasattr(data, "__getitem__"):
            return islice(data, max_rows)
        return (data[int(row)] for row in (range(num_rows) if max_rows is None else _spread(num_rows, max_rows)))

    def blocks(max_rows: int | None) -> Blocks:
        total = num_rows if max_rows is None else max_rows
        labels = (_label_of(example, column) for example in examples(max_rows))
        labels = iter(tqdm(labels, desc="Counting labels", unit=" rows", total=total))
        while batch := list(islice(labels, _ROWS)):
            yield _as_arrow(batch)

    return LabelSource(blocks, num_rows=num_rows)


def _label_of(example: Any, column: str | None) -> Any:
    if isinstance(example, Mapping):
        return example[_label_column(list(example), column)]
    if isinstance(example, (tuple, list)) and column is None:
        return example[-1]
    raise ArgumentError(
        "data",
        f"expected examples that are dicts, or tuples that end with the label, but got {type(example).__name__}",
    )


def _label_column(names: list[str], column: str | None) -> str:
    candidates = ["label", "labels"] if column is None else [column]
    matches = [name for name in names if name in candidates]
    if len(matches) != 1:
        raise ArgumentError(
            "column",
            f"expected {'exactly one of ' if column is None else ''}{' and '.join(map(repr, candidates))} in the data, "
            f"whose columns are {names}",
            remedy="column" if column is None else None,
        )
    return matches[0]


def _class_names(features: Features | None, column: str) -> list[str] | None:
    feature = (features or {}).get(column)
    feature = getattr(feature, "feature", feature)
    return feature.names if isinstance(feature, ClassLabel) else None


def _slices(labels: pa.Array | np.ndarray) -> Blocks:
    is_flat = labels.ndim == 1 if isinstance(labels, np.ndarray) else labels.type.num_fields == 0
    size = _BLOCK if is_flat else _ROWS
    return (labels[start : start + size] for start in range(0, len(labels), size))


def _spread(num_rows: int, max_rows: int) -> np.ndarray:
    """At most `max_rows` evenly spaced row numbers: if sorted by class, the first rows would all be of one class."""
    return np.linspace(0, num_rows - 1, min(num_rows, max_rows)).round().astype(np.int64)
