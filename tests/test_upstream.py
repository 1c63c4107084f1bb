"""Each private attribute of another library is taken away from the package: what it does then has the same result."""

import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value, concatenate_datasets, load_dataset
from datasets.distributed import split_dataset_by_node

from hf_focal import _upstream
from hf_focal._label_counts import count_labels


LABELS = [0] * 60 + [1] * 25 + [2] * 14 + [3]


@pytest.fixture
def hide(monkeypatch):
    """Hides an attribute of a class from `_upstream` alone, since the library itself could not work without it."""

    def hide(owner: type, name: str) -> None:
        inherited = owner.__getattribute__

        def get(self, attribute):
            if attribute == name and sys._getframe(1).f_globals["__name__"] == _upstream.__name__:
                raise AttributeError(name)
            return inherited(self, attribute)

        monkeypatch.setattr(owner, "__getattribute__", get)

    return hide


class TestIsTraced:
    @pytest.fixture(params=["with", "without"], autouse=True)
    def attribute(self, request, monkeypatch):
        if request.param == "without":
            monkeypatch.setattr(_upstream, "torch", SimpleNamespace(**{**vars(torch), "_C": SimpleNamespace()}))

    def test_outside_and_inside(self):
        seen = []

        def square(x):
            seen.append(_upstream.is_traced())
            return (x * x).sum()

        x = torch.arange(3.0, requires_grad=True)
        square(x).backward()
        with torch.no_grad():
            square(x)
        assert seen == [False, False]
        for transformed in (torch.func.grad(square), torch.func.vmap(square), torch.func.jacrev(square)):
            transformed(torch.arange(3.0))
        assert len(seen) == 5 and all(seen[2:])
        square(x)
        assert seen[-1] is False

    def test_inside_of_compile(self):
        compiled = torch.compile(lambda x: x + _upstream.is_traced(), backend="eager", fullgraph=True)
        assert compiled(torch.zeros(1)).item() == 1


class TestAssert:
    @pytest.fixture(params=["with", "without"], autouse=True)
    def attribute(self, request, monkeypatch):
        if request.param == "without":
            names = {name: value for name, value in vars(torch).items() if name != "_assert_async"}
            monkeypatch.setattr(_upstream, "torch", SimpleNamespace(**names))

    def test_raises_where_the_condition_is_false(self):
        labels = torch.tensor([0, 3])
        _upstream.assert_async((labels < 4).all(), "labels: too high")
        with pytest.raises(RuntimeError, match="labels: too high"):
            _upstream.assert_async((labels < 3).all(), "labels: too high")


def dataset(labels, feature=None):
    return Dataset.from_dict({"label": labels}, features=feature and Features({"label": feature}))


class TestStoredColumn:
    @pytest.mark.parametrize(
        "data",
        [
            dataset(LABELS),
            dataset(LABELS).shuffle(seed=0),
            dataset(LABELS).with_format("torch").select([5, 5, 99]),
            concatenate_datasets([dataset(LABELS[:50]), dataset(LABELS[50:])]).shuffle(seed=0),
            dataset([*LABELS, None]).select(range(1, 100)),
            dataset([str(label) for label in LABELS]).shuffle(seed=0),
            dataset(LABELS, ClassLabel(num_classes=5)).shuffle(seed=0),
            dataset([[1, 0], [1, 1], [0, 0]], List(Value("int8"), length=2)).select([2, 1]),
            dataset([[0, 300, -100], [], [7]]).select([2, 0, 1]),
            dataset(LABELS).with_transform(lambda rows: {"label": [9] * len(rows["label"])}).shuffle(seed=0),
        ],
    )
    @pytest.mark.parametrize("max_rows", [None, 2])
    def test_without_the_indices(self, hide, data, max_rows):
        arguments = {"max_rows": max_rows, "multi_label": False}
        before = count_labels(data, **arguments)
        assert len(_upstream.stored_column(data, "label")[0]) >= len(data)
        hide(Dataset, "_indices")
        labels, indices = _upstream.stored_column(data, "label")
        assert indices is None and len(labels) == len(data)
        after = count_labels(data, **arguments)
        assert after.counts.tolist() == before.counts.tolist()
        assert after[2:] == before[2:]


class TestSelectOnly:
    @pytest.fixture
    def parquet(self, tmp_path):
        pd.DataFrame({"label": LABELS, "text": "x"}).to_parquet(tmp_path / "data.parquet")
        return load_dataset("parquet", data_files=str(tmp_path / "data.parquet"), split="train", streaming=True)

    @staticmethod
    def columns_read(stream):
        return stream._ex_iterable.ex_iterable.generate_tables_fn.__self__.config.columns

    def test_reads_the_column_alone(self, parquet):
        assert self.columns_read(_upstream.select_only(parquet, "label")) == ["label"]

    @pytest.mark.parametrize("name", ["_ex_iterable", "ex_iterable", "generate_tables_fn"])
    def test_reads_all_where_the_builder_is_not_found(self, parquet, hide, name):
        owners = {
            "_ex_iterable": IterableDataset,
            "ex_iterable": type(parquet.select_columns("label")._ex_iterable),
            "generate_tables_fn": type(parquet._ex_iterable),
        }
        hide(owners[name], name)
        selected = _upstream.select_only(parquet, "label")
        assert self.columns_read(selected) is None
        assert [row["label"] for row in selected] == LABELS and set(next(iter(selected))) == {"label"}
        assert count_labels(parquet).counts.tolist() == [60, 25, 14, 1]

    def test_columns_that_were_chosen_stay(self, tmp_path):
        pd.DataFrame({"label": LABELS, "text": "x", "id": range(100)}).to_parquet(tmp_path / "data.parquet")
        data = load_dataset(
            "parquet",
            data_files=str(tmp_path / "data.parquet"),
            split="train",
            streaming=True,
            columns=["label", "id"],
        )
        assert count_labels(data).counts.tolist() == [60, 25, 14, 1]


class TestSplitByNode:
    @pytest.fixture(params=["with", "without"], autouse=True)
    def attribute(self, request, hide):
        if request.param == "without":
            if "strategy" not in inspect.signature(split_dataset_by_node).parameters:
                pytest.skip("a version with the attribute and without the other way")
            hide(IterableDataset, "_distributed")

    @pytest.mark.parametrize("num_shards", [1, 2, 3])
    def test_streams(self, num_shards):
        stream = dataset(LABELS).to_iterable_dataset(num_shards=num_shards)
        assert not _upstream.is_split_by_node(stream)
        assert not _upstream.is_split_by_node(stream.shuffle(seed=0).map(lambda row: row))
        for rank in (0, 1):
            part = split_dataset_by_node(stream, rank=rank, world_size=2)
            assert _upstream.is_split_by_node(part)
            assert _upstream.is_split_by_node(part.map(lambda row: row).take(3))

    @pytest.mark.parametrize("strategy", ["shards", "examples"])
    def test_each_strategy(self, strategy):
        if "strategy" not in inspect.signature(split_dataset_by_node).parameters:
            pytest.skip("a version with one strategy")
        stream = dataset(LABELS).to_iterable_dataset(num_shards=2)
        assert _upstream.is_split_by_node(split_dataset_by_node(stream, rank=1, world_size=2, strategy=strategy))

    def test_what_is_no_stream(self):
        rows = dataset(LABELS)
        for data in (rows, split_dataset_by_node(rows, rank=0, world_size=2), LABELS, np.array(LABELS), None):
            assert not _upstream.is_split_by_node(data)
