"""What the package needs of the private parts of datasets and torch, and what it does in a version without them.

No other module touches a private attribute of another library. Transformers is used through its public methods alone.
"""

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


if TYPE_CHECKING:  # the losses come by here, and need torch alone
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

__all__ = ["assert_async", "is_split_by_node", "is_traced", "select_only", "stored_column"]


def is_traced() -> bool:
    """Whether the values of tensors cannot be looked at: in `torch.compile` and in the transforms of `torch.func`.

    `torch._C._are_functorch_transforms_active`; without it, whether an autograd function is refused that is not made for
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
    """Has no `setup_context`, without which it may not be used inside of a transform."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.clone()


def assert_async(condition: Tensor, message: str) -> None:
    """Raises a `RuntimeError` if the condition, a tensor with one entry, is false; on a GPU without waiting for it.

    `torch._assert_async`, whose error on a GPU is that of the kernel and comes at a later call. Without it, the condition
    is read, for which a GPU has to finish what it is doing.
    """
    try:
        check = torch._assert_async
    except AttributeError:
        if not condition.item():
            raise RuntimeError(message) from None
        return
    check(condition, message)


def stored_column(dataset: "Dataset", column: str) -> tuple["pa.ChunkedArray", "pa.ChunkedArray | None"]:
    """A column as it is stored, and the rows of it that the dataset has, in their order; None for all of them.

    `Dataset._indices`; without it, the column is copied row by row.
    """
    try:
        indices = dataset._indices
    except AttributeError:
        return dataset.select_columns(column).with_format("arrow")[:].column(column), None
    return dataset.data.column(column), None if indices is None else indices.column(0)


def select_only(stream: "IterableDataset", column: str) -> "IterableDataset":
    """The stream with one column, which is also all that is read, where the source is Parquet.

    `IterableDataset.select_columns` selects from what has been read; it is the builder that can tell Parquet what to
    read. It is reached through `IterableDataset._ex_iterable`; where it is not found, all columns are read.
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
    vars(narrow).update(vars(builder))  # copy() would share them
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
    """Whether it is a stream of which `datasets.distributed.split_dataset_by_node` has left this process a part.

    `IterableDataset._distributed`; without it, whether the stream refuses to be split once more in another way.
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
        except ValueError:  # it keeps to the strategy of the first split, which is at most one of these
            return True
    return False
