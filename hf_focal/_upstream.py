"""The private parts of datasets and torch that the package uses, with fallbacks for versions without them.

No other module accesses private attributes of other libraries. Of transformers, only public methods are used.
"""

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


if TYPE_CHECKING:  # the losses import this module, and need only torch
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

__all__ = ["assert_async", "is_split_by_node", "is_traced", "select_only", "stored_column"]


def is_traced() -> bool:
    """Whether the values of tensors cannot be read: in `torch.compile` and in the transforms of `torch.func`.

    Uses `torch._C._are_functorch_transforms_active`; without it, tries an autograd function that does not support
    transforms. That takes microseconds.
    """
    if torch.compiler.is_compiling():
        return True
    try:
        return torch._C._are_functorch_transforms_active()
    except AttributeError:
        pass
    try:
        _NotForTransforms.apply(torch.empty(()))
    except RuntimeError:
        return True
    return False


class _NotForTransforms(torch.autograd.Function):
    """Has no `setup_context`, so it cannot be used inside a transform."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.clone()


def assert_async(condition: Tensor, message: str) -> None:
    """Raises a `RuntimeError` if the condition, a tensor with one entry, is false; does not wait for a GPU.

    Uses `torch._assert_async`; on a GPU its error is a kernel error raised by a later call. Without it, the condition
    is read, which waits for the GPU.
    """
    try:
        check = torch._assert_async
    except AttributeError:
        if not condition.item():
            raise RuntimeError(message) from None
        return
    check(condition, message)


def stored_column(dataset: "Dataset", column: str) -> tuple["pa.ChunkedArray", "pa.ChunkedArray | None"]:
    """A column as it is stored, and the indices of the dataset's rows in it, in order, or None for all rows.

    Uses `Dataset._indices`; without it, the column is copied row by row.
    """
    try:
        indices = dataset._indices
    except AttributeError:
        return dataset.select_columns(column).with_format("arrow")[:].column(column), None
    return dataset.data.column(column), None if indices is None else indices.column(0)


def select_only(stream: "IterableDataset", column: str) -> "IterableDataset":
    """The stream with one column; if the source is Parquet, only that column is read.

    `IterableDataset.select_columns` selects after reading; only the builder can restrict what is read from Parquet. It
    is accessed through `IterableDataset._ex_iterable`; if it is not found, all columns are read.
    """
    selected = stream.select_columns(column)
    selection: Any = getattr(selected, "_ex_iterable", None)
    source: Any = getattr(selection, "ex_iterable", None)
    generate: Any = getattr(source, "generate_tables_fn", None)
    builder: Any = getattr(generate, "__self__", None)
    config: Any = getattr(builder, "config", None)
    if not hasattr(config, "columns") or config.columns is not None:
        return selected
    narrow = object.__new__(type(builder))
    vars(narrow).update(vars(builder))  # copy() would share its __dict__
    narrow.config = copy(config)
    narrow.config.columns = [column]
    narrow.info = builder.info.copy()
    if narrow.info.features is not None:
        narrow.info.features = type(narrow.info.features)({column: narrow.info.features[column]})
    source = copy(source)
    source.generate_tables_fn = getattr(narrow, generate.__name__)
    selection.ex_iterable = source
    return selected


def is_split_by_node(data: Any) -> bool:
    """Whether it is a stream that `datasets.distributed.split_dataset_by_node` has split over processes.

    Uses `IterableDataset._distributed`; without it, tests whether the stream refuses a second split of another kind.
    """
    from datasets import IterableDataset

    if not isinstance(data, IterableDataset):
        return False
    try:
        split = data._distributed
    except AttributeError:
        return _refuses_another_split(data)
    return split is not None and split.world_size > 1


def _refuses_another_split(stream: "IterableDataset") -> bool:
    from datasets.distributed import split_dataset_by_node

    for strategy in ("shards", "examples"):
        try:
            split_dataset_by_node(stream, rank=0, world_size=1, strategy=strategy)
        except ValueError:  # a split stream accepts only the strategy of its first split
            return True
    return False
