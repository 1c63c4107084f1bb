"""Counts how often each class occurs, in data of any kind and size: block by block, without a copy of the labels."""

from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ._checks import ArgumentError
from ._label_sources import LabelSource, open_labels


__all__ = ["LabelCounts", "count_labels"]

_IGNORE_INDEX = -100
_MAX_CLASSES = 2**24


class LabelCounts(NamedTuple):
    """The fields of `LabelDistribution`, which documents them."""

    counts: np.ndarray
    negatives: np.ndarray | None
    names: list[str] | None
    num_rows: int
    is_sample: bool


def count_labels(
    data: Any,
    *,
    column: str | None = None,
    num_labels: int | None = None,
    multi_label: bool | None = None,
    max_rows: int | None = None,
    one_hot: bool = False,
) -> LabelCounts:
    """Counts the examples of each class; arguments and errors as in `LabelDistribution.from_dataset`.

    Example:

    ```python
    >>> from hf_focal._label_counts import count_labels
    >>> count_labels([[0, 2, -100], [2, 2]]).counts  # token labels
    array([1, 0, 3])

    ```
    """
    for name, number in (("num_labels", num_labels), ("max_rows", max_rows)):
        if number is not None and not (isinstance(number, Integral) and not isinstance(number, bool) and number > 0):
            raise ArgumentError(name, f"expected a positive integer, but got {number!r}")
    if num_labels is not None and num_labels > _MAX_CLASSES:
        raise ArgumentError("num_labels", f"expected at most {_MAX_CLASSES}, but got {num_labels}")
    if one_hot and multi_label:
        raise ArgumentError("one_hot", "expected False with multi_label=True, but got True")
    multi_label = False if one_hot else multi_label
    labels = open_labels(data, column)
    counter = _LabelCounter(labels.name, labels.class_names, num_labels, multi_label, one_hot)
    if labels.is_shard:
        return _sum_over_processes(lambda: _count(labels, counter, max_rows))
    return _count(labels, counter, max_rows)


def _count(labels: LabelSource, counter: "_LabelCounter", max_rows: int | None) -> LabelCounts:
    for block in labels.blocks(max_rows):
        counter.add(block)
    is_sample = counter.num_rows == max_rows and labels.num_rows != max_rows
    return counter.counts(is_sample)


def _sum_over_processes(count: Callable[[], LabelCounts]) -> LabelCounts:
    outcome: LabelCounts | Exception
    try:
        outcome = count()
    except Exception as error:  # raised after the gather, for which the other processes wait
        outcome = error
    outcomes: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(outcomes, outcome)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    parts: list[LabelCounts] = outcomes
    names = parts[0].names
    if any(part.names != names for part in parts):  # strings, of which each process may have seen only some
        names = sorted({name for part in parts for name in part.names or []})
    counts = np.zeros(max(len(part.counts) for part in parts) if names is None else len(names), np.int64)
    unknown = np.zeros_like(counts)
    for part in parts:
        classes = range(len(part.counts)) if names is None else [names.index(name) for name in part.names or []]
        counts[classes] += part.counts
        if part.negatives is not None:
            unknown[classes] += part.num_rows - part.counts - part.negatives
    num_rows = sum(part.num_rows for part in parts)
    negatives = None if parts[0].negatives is None else num_rows - counts - unknown
    return LabelCounts(counts, negatives, names, num_rows, any(part.is_sample for part in parts))


class _LabelCounter:
    """Counts class ids and, as long as rows may be multi-hot (or one-hot), the ones and unknown entries per column."""

    def __init__(
        self, source: str, names: list[str] | None, num_labels: int | None, multi_label: bool | None, one_hot: bool
    ):
        self.source, self.names, self.multi_label, self.one_hot = source, names, multi_label, one_hot
        self.num_labels = num_labels or (names and len(names))
        self.num_rows = self.num_values = self.num_missing = 0
        self.class_counts = np.zeros(self.num_labels or 0, np.int64)
        self.outside: set[int] = set()
        self.id_of_string: dict[str, int] = {}
        self.widths: set[int] = set()
        self.ones = self.unknown = np.zeros(1, np.int64)  # grow to the length of the rows with the first one
        # Lists of a ClassLabel hold class ids, whatever their values.
        self.may_be_multi_hot = self.may_be_partly_known = names is None
        self.has_ignored = self.has_repeats = False
        self.wrong_dtype: np.dtype | None = None

    def add(self, block: pa.Array | np.ndarray) -> None:
        """Adds an array of labels, or of rows of labels."""
        self.num_rows += len(block)
        widths = None
        if isinstance(block, np.ndarray):
            if block.ndim == 2:
                widths = np.full(len(block), block.shape[1])
            values = block.reshape(-1)
        else:
            self.num_missing += block.null_count
            if _is_nested(block.type):
                widths = pc.list_value_length(block).drop_null().to_numpy(zero_copy_only=False)
                block = pc.list_flatten(block)
                self.num_missing += block.null_count
            if pa.types.is_nested(block.type):
                raise ArgumentError(
                    "data", f"expected labels in one or two dimensions, but {self.source} holds {block.type}"
                )
            if widths is not None and block.null_count:  # without the nulls, rows would be shorter than their widths
                self.num_values += len(block) - block.null_count
                return  # `counts` raises the error, once all missing labels are counted
            values = self._numbers(block.drop_null() if block.null_count else block)
        self.num_values += len(values)
        if widths is not None:
            self.widths.update(np.unique(widths).tolist())
            self._add_multi_hot(values)
        if values.dtype.kind not in "iub":
            self.wrong_dtype = values.dtype
        elif len(values):
            ids = values.astype(np.int64, copy=False)
            if values.dtype == np.uint64 and ids.min() < 0:  # beyond int64, where they wrap around, even to -100
                is_large = ids < 0
                self.outside.update(np.unique(values[is_large]).tolist())
                ids[is_large] = _IGNORE_INDEX
            if widths is not None and (self.multi_label or not self.has_repeats):
                distinct = _distinct_in_rows(ids, widths)
                self.has_repeats |= len(distinct) < len(ids)
                ids = distinct if self.multi_label else ids
            self._add_ids(ids)

    def counts(self, is_sample: bool) -> LabelCounts:
        """The result, after checking that the labels are valid and of a single kind."""
        if self.num_missing and self.num_values:
            raise ArgumentError(
                "data",
                f"{self.num_missing} labels are missing (null) in {self.source}",
                advice="filter those rows out",
            )
        is_in_columns = self.multi_label is not False or self.one_hot or self.wrong_dtype is not None
        if self.may_be_multi_hot and self.widths and self.num_values and is_in_columns:
            if (self.unknown == self.num_rows).all():
                raise ArgumentError("data", f"{self.source} holds no labels (is it the test split of a challenge?)")
            negatives = None if self.multi_label is False else self.num_rows - self.ones - self.unknown
            return LabelCounts(self.ones, negatives, None, self.num_rows, is_sample)
        if self.wrong_dtype is not None:
            kind = "one-hot" if self.multi_label is False else "multi-label"
            rows = f" in rows of {min(self.widths)}" if len(self.widths) == 1 else ""
            raise ArgumentError(
                "data",
                f"expected integer class ids, or {kind} rows of {self.num_labels or 'C'} entries that are 0 or 1, but "
                f"{self.source} holds {self.wrong_dtype} values{rows}",
                advice=None if rows else "cast class ids to integers",
            )
        if not self.class_counts.any() and self.outside <= {-1}:
            raise ArgumentError("data", f"{self.source} holds no labels (is it the test split of a challenge?)")
        if self.outside:
            num_labels = self.num_labels or len(self.class_counts)
            is_too_few = self.num_labels is not None and all(num_labels <= k < _MAX_CLASSES for k in self.outside)
            raise ArgumentError(
                "data",
                f"expected class ids from 0 to {num_labels - 1} (or {_IGNORE_INDEX}, ignored), but {self.source} also "
                f"holds {sorted(self.outside)[:5]}",
                advice="map the labels to 0..C-1",
                remedy="num_labels" if is_too_few else None,
            )
        counts, names = self.class_counts, self.names
        if self.id_of_string:
            names = sorted(self.id_of_string)  # the order of class_encode_column of datasets
            if self.num_labels not in (None, len(names)):
                raise ArgumentError(
                    "num_labels",
                    f"{self.num_labels}, but {self.source} holds {len(names)} different strings",
                    advice="map them to class ids, with your own mapping or dataset.class_encode_column(column)",
                )
            counts = counts[[self.id_of_string[name] for name in names]]
        elif names is not None:
            names = [*names, *map(str, range(len(names), len(counts)))][: len(counts)]
        negatives = self.num_rows - counts if self._is_multi_label() else None
        return LabelCounts(counts, negatives, names, self.num_rows, is_sample)

    def _numbers(self, labels: pa.Array) -> np.ndarray:
        """Labels as numbers; strings get ids in order of first occurrence."""
        if pa.types.is_dictionary(labels.type):
            labels = labels.dictionary_decode()
        if pa.types.is_null(labels.type):
            return np.zeros(0, np.int64)
        if not (pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)):
            return labels.to_numpy(zero_copy_only=False)
        encoded = labels.dictionary_encode()
        strings = encoded.dictionary.to_pylist()
        for string in strings:
            self.id_of_string.setdefault(string, len(self.id_of_string))
        self.may_be_multi_hot = False
        return np.array([self.id_of_string[string] for string in strings], np.int64)[encoded.indices.to_numpy()]

    def _add_ids(self, ids: np.ndarray) -> None:
        num_classes = _MAX_CLASSES if self.num_labels is None or self.id_of_string else self.num_labels
        if ids.view(np.uint64).max() >= num_classes:  # as unsigned, negative ids are too large as well
            is_outside = (ids < 0) | (ids >= num_classes)
            outside = set(np.unique(ids[is_outside]).tolist())
            self.has_ignored |= _IGNORE_INDEX in outside
            self.outside |= outside - {_IGNORE_INDEX}
            ids = ids[~is_outside]
        counts = np.bincount(ids, minlength=len(self.class_counts))
        counts[: len(self.class_counts)] += self.class_counts
        self.class_counts = counts

    def _add_multi_hot(self, values: np.ndarray) -> None:
        self.may_be_partly_known = (
            self.may_be_partly_known
            and len(self.widths) == 1
            and self.widths <= {self.num_labels or min(self.widths)}
            and bool(np.isin(values, [0, 1, _IGNORE_INDEX]).all())
        )
        self.may_be_multi_hot = (
            self.may_be_multi_hot
            and len(self.widths) == 1
            and not (self.multi_label and self.widths == {1} and self.num_labels != 1)  # one id in each row
            and self.widths <= {self.num_labels or min(self.widths)}
            and self._are_answers(values)
        )
        if self.may_be_multi_hot:
            rows = values.reshape(-1, max(1, *self.widths))
            is_one, is_unknown = rows == 1, rows == _IGNORE_INDEX
            self.ones = self.ones + is_one.sum(axis=0)
            self.unknown = self.unknown + is_unknown.sum(axis=0)
            self.may_be_multi_hot = self.multi_label is not False or bool(
                (is_one.sum(axis=1) + is_unknown.all(axis=1) == 1).all()
            )

    def _are_answers(self, values: np.ndarray) -> bool:
        """Whether all values are 0, 1 or -100; integers with -100 count only if they cannot be token labels."""
        is_answer = (values == 0) | (values == 1)
        if is_answer.all():
            return True
        may_be_unknown = self.multi_label or values.dtype.kind == "f" or self.one_hot
        return bool(may_be_unknown and (is_answer | (values == _IGNORE_INDEX)).all())

    def _is_multi_label(self) -> bool:
        """Whether the ids of a row are the labels of one example, rather than token labels."""
        if self.multi_label and not self.widths:
            raise ArgumentError("multi_label", f"expected rows of labels, but {self.source} holds one label per row")
        if self.multi_label:
            return True
        has_plain_ids = not (self.has_repeats or self.has_ignored or self.widths <= {1})
        is_ambiguous = has_plain_ids or (self.may_be_partly_known and self.has_ignored and not self.widths <= {1})
        if self.multi_label is None and is_ambiguous:
            raise ArgumentError(
                "data",
                f"{self.source} holds rows of labels, which may be the labels of an example or of its tokens"
                if has_plain_ids
                else f"{self.source} holds rows of 0, 1 and {_IGNORE_INDEX}, which may be several labels of an "
                "example, some of them unknown, or the labels of its tokens",
                remedy="multi_label",
            )
        return False


def _is_nested(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)


def _distinct_in_rows(ids: np.ndarray, widths: np.ndarray) -> np.ndarray:
    row = np.repeat(np.arange(len(widths)), widths)
    # Ids of more than 32 bits, which are all out of range, would collide with ids of other rows.
    _, first = np.unique(row * 2**32 + ids.clip(-(2**31), 2**31 - 1), return_index=True)
    return ids[first]
