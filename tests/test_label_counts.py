"""Counts of every kind of labels in every kind of data, and what is refused."""

import json
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shared_alpha
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
)
from exactness import tiny_dataset
from processes import run_in_two_processes
from torch.utils.data import Subset, TensorDataset

from hf_focal import LabelDistribution, _label_sources, compute_alpha
from hf_focal._label_counts import count_labels


LABELS = [0] * 60 + [1] * 25 + [2] * 14 + [3]
NAMES = ["politics", "sports", "tech", "chess"]
MULTI_HOT = [[1, 0], [1, 1], [1, 0], [0, 0], [1, 0]]
PARTLY_KNOWN = [[1, 0, -100], [0, -100, -100], [1, 1, 0], [0, 0, 1], [-100, -100, -100]]
TOKENS = [[-100, 0, 0, 1, -100], [-100, 0, 2], [-100, -100]]
IDS = [[0, 2], [1], [], [2]]
WRAPS = 2**64 - 100
TWICE = pd.DataFrame([[0, 0], [1, 1]], columns=["label", "label"])


def dataset(labels=LABELS, feature=None, column="label"):
    return Dataset.from_dict({column: labels}, features=feature and Features({column: feature}))


def unsigned(labels):
    return Dataset(
        pa.table({"label": pa.array(labels, pa.list_(pa.uint64()) if isinstance(labels[0], list) else pa.uint64())})
    )


class Examples:
    """Examples as a `DataLoader` takes them, of no class of torch."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, row):
        return {"text": "x", "label": LABELS[row]}


def stream(labels=LABELS):
    return IterableDataset.from_generator(lambda: ({"text": "x", "label": label} for label in labels))


@pytest.fixture(params=["one block", "many blocks"])
def blocks(monkeypatch, request):
    if request.param == "many blocks":
        monkeypatch.setattr(_label_sources, "_BLOCK", 7)
        monkeypatch.setattr(_label_sources, "_ROWS", 2)


@pytest.mark.usefixtures("blocks")
class TestSources:
    @pytest.mark.parametrize(
        "data",
        [
            LABELS,
            tuple(LABELS),
            np.array(LABELS),
            np.array(LABELS, dtype=np.uint8),
            torch.tensor(LABELS),
            torch.tensor(LABELS, dtype=torch.int8),
            torch.tensor([*LABELS, -100, -100]),
            torch.tensor(LABELS).reshape(10, 10),
            [torch.tensor(label) for label in LABELS],
            dataset(),
            dataset(column="labels"),
            dataset(feature=ClassLabel(names=NAMES)),
            dataset([NAMES[k] for k in LABELS], feature=ClassLabel(names=NAMES)),
            dataset([[k, -100] for k in LABELS], feature=List(ClassLabel(names=NAMES))),
            dataset(feature=Value("int32")),
            dataset([*LABELS, 1, 1]).select(range(100)),
            dataset().shuffle(seed=0),
            dataset()["label"],
            dataset().shuffle(seed=0)["label"],
            concatenate_datasets([dataset(LABELS[:50]), dataset(LABELS[50:]).shuffle(seed=0)]),
            concatenate_datasets([dataset(LABELS[:50]), dataset(LABELS[50:])]).shuffle(seed=0),
            concatenate_datasets([dataset(LABELS[:90]), dataset([*LABELS[90:], -100])]).filter(
                lambda row: row["label"] >= 0
            ),
            dataset([*LABELS, -100]).shuffle(seed=0),
            dataset([label + 300 for label in LABELS]).map(lambda row: {"label": row["label"] - 300}),
            dataset().to_iterable_dataset(),
            dataset().to_iterable_dataset(num_shards=3).shuffle(seed=0, buffer_size=10),
            dataset(feature=ClassLabel(names=NAMES)).to_iterable_dataset().with_format("torch"),
            stream(),
            stream().map(lambda row: row),
            TensorDataset(torch.zeros(100, 2), torch.tensor(LABELS)),
            Examples(),
            [{"text": "x", "label": label} for label in LABELS],
            Subset(TensorDataset(torch.zeros(101, 2), torch.tensor([7, *LABELS])), range(1, 101)),
            pd.Series(LABELS),
            pd.DataFrame({"label": LABELS, "text": "x"}),
            pa.array(LABELS),
            pa.chunked_array([LABELS[:50], LABELS[50:]]),
        ],
    )
    def test_class_ids(self, data):
        assert count_labels(data).counts.tolist() == [60, 25, 14, 1]

    @pytest.mark.parametrize(
        "data",
        [
            MULTI_HOT,
            np.array(MULTI_HOT),
            np.array(MULTI_HOT, dtype=bool),
            torch.tensor(MULTI_HOT).float(),
            torch.tensor(MULTI_HOT).bfloat16(),
            dataset(MULTI_HOT),
            dataset([[float(x) for x in row] for row in MULTI_HOT], feature=List(Value("float32"))),
            dataset(MULTI_HOT, feature=List(Value("float32"), length=2)),
            dataset([[0, 1], *MULTI_HOT]).select(range(1, 6)),
        ],
    )
    def test_multi_label_rows(self, data):
        counts = count_labels(data)
        assert counts.counts.tolist() == [4, 1] and counts.negatives.tolist() == [1, 4]

    @pytest.mark.parametrize(
        "data, multi_label",
        [
            (PARTLY_KNOWN, True),
            (np.array(PARTLY_KNOWN, dtype=np.int8), True),
            (torch.tensor(PARTLY_KNOWN).float(), None),
            (dataset(PARTLY_KNOWN), True),
            (dataset([[float(x) for x in row] for row in PARTLY_KNOWN], feature=List(Value("float32"))), None),
            (dataset(PARTLY_KNOWN).to_iterable_dataset(), True),
        ],
    )
    def test_multi_label_rows_of_which_some_is_not_known(self, data, multi_label):
        counts = count_labels(data, multi_label=multi_label)
        assert (counts.counts.tolist(), counts.negatives.tolist()) == ([2, 1, 1], [2, 2, 1])

    def test_integers_of_which_some_are_not_known_may_be_those_of_tokens(self):
        rows = [[0, 1, -100], [1, -100, -100]]
        assert count_labels(rows, multi_label=False).counts.tolist() == [1, 2]
        with pytest.raises(ValueError, match="which may be several labels of an example, some of them unknown, or"):
            count_labels(rows)

    @pytest.mark.parametrize("data", [TOKENS, dataset(TOKENS), dataset(TOKENS, feature=List(Value("int8")))])
    def test_token_labels(self, data):
        counts = count_labels(data)
        assert counts.counts.tolist() == [3, 1, 1] and counts.negatives is None

    @pytest.mark.parametrize(
        "data",
        [
            [NAMES[k] for k in LABELS],
            np.array([NAMES[k] for k in LABELS]),
            dataset([NAMES[k] for k in LABELS]),
            dataset([NAMES[k] for k in LABELS]).shuffle(seed=0),
            stream([NAMES[k] for k in LABELS]),
            pd.Series([NAMES[k] for k in LABELS]),
            pd.Series([NAMES[k] for k in LABELS], dtype="category"),
        ],
    )
    def test_strings_are_in_the_order_of_class_encode_column(self, data):
        counts = count_labels(data)
        assert counts.names == sorted(NAMES) and counts.counts.tolist() == [1, 60, 25, 14]
        encoded = dataset([NAMES[k] for k in LABELS]).class_encode_column("label")
        assert encoded.features["label"].names == counts.names

    @pytest.mark.parametrize(
        "data", [[False, True, True], np.array([False, True, True]), dataset([False, True, True])]
    )
    def test_booleans(self, data):
        assert count_labels(data).counts.tolist() == [1, 2]

    @pytest.mark.parametrize(
        "data", [IDS, dataset(IDS), dataset(IDS, feature=List(ClassLabel(names=["a", "b", "c"]))), stream(IDS)]
    )
    def test_lists_of_label_ids(self, data):
        counts = count_labels(data, multi_label=True)
        assert counts.counts.tolist() == [1, 1, 2] and counts.negatives.tolist() == [3, 3, 2]
        assert count_labels(data, multi_label=False).negatives is None
        with pytest.raises(ValueError, match="labels of an example or of its tokens; set multi_label"):
            count_labels(data)

    @pytest.mark.parametrize(
        "data",
        [
            [[0, 1, 0], [1, 0, 0], [0, 1, 0]],
            [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
            np.array([[0, 1, 0], [1, 0, 0], [0, 1, 0]], bool),
            dataset([[0, 1, 0], [1, 0, 0], [0, 1, 0]]).shuffle(seed=0),
        ],
    )
    def test_one_hot_rows_are_one_class_each(self, data):
        counts = count_labels(data, num_labels=3, one_hot=True)
        assert counts.counts.tolist() == [1, 2, 0] and counts.negatives is None and counts.num_rows == 3

    def test_one_hot_rows_by_what_they_are(self):
        # Integers may be token labels, of which these are four of class 0 and two of class 1; floats may not.
        assert count_labels([[0, 1, 0], [1, 0, 0]], multi_label=False).counts.tolist() == [4, 2]
        assert count_labels([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], multi_label=False).counts.tolist() == [1, 1, 0]
        # Class ids are class ids, and one row with two classes makes the rows those of tokens.
        assert count_labels([2, 0, 2], num_labels=3, one_hot=True).counts.tolist() == [1, 0, 2]
        assert count_labels([[1, 1, 0], [1, 0, 0]], num_labels=3, one_hot=True).counts.tolist() == [3, 3, 0]

    def test_a_label_counts_once_in_a_row(self):
        counts = count_labels([[3, 0, 3], [0]], multi_label=True)
        assert counts.counts.tolist() == [2, 0, 0, 1] and counts.negatives.tolist() == [0, 2, 2, 1]

    def test_ids_that_do_not_fit_a_byte(self):
        ids = [0, 255, 256, 256, 300, 65_536]
        expected = np.bincount(ids).tolist()
        for labels in (ids, [*ids, -100]):  # in fewer bytes they would be other ids
            assert count_labels(labels).counts.tolist() == expected
            assert count_labels(dataset(labels).shuffle(seed=0)).counts.tolist() == expected
        # Row 0 has the label 256 and row 1 the label 0, row 1 has 65,536 and row 2 has 0.
        rows = [[256, 1], [0, 65_536], [0, 256], [1]]
        for data in (rows, dataset(rows), dataset(rows).select(range(4)), stream(rows)):
            counts = count_labels(data, multi_label=True)
            assert [counts.counts[k] for k in (0, 1, 256, 65_536)] == [2, 2, 2, 1] and counts.counts.sum() == 7
            assert counts.negatives.tolist() == (4 - counts.counts).tolist()

    def test_lists_of_label_names(self):
        counts = count_labels(dataset([["b", "a"], ["b"]]), multi_label=True)
        assert (counts.names, counts.counts.tolist(), counts.negatives.tolist()) == (["a", "b"], [1, 2], [1, 0])

    def test_multi_hot_streams(self):
        counts = count_labels(stream(MULTI_HOT))
        assert counts.counts.tolist() == [4, 1] and counts.negatives.tolist() == [1, 4]

    def test_token_labels_of_one_length_with_two_classes(self):
        # Rows as long as there are classes are taken for multi-label; with num_labels the others are not.
        assert count_labels([[0, 1, 1], [0, 0, 0]], num_labels=2).counts.tolist() == [4, 2]
        feature = List(ClassLabel(names=["O", "NAME"]))
        assert count_labels(dataset([[0, 1], [0, 0]], feature=feature)).counts.tolist() == [3, 1]

    def test_column(self):
        data = Dataset.from_dict({"label": [0, 1], "topic": [0, 0], "other": [1, 0]})
        assert count_labels(data, column="topic").counts.tolist() == [2]

    def test_num_labels(self):
        assert count_labels([0, 1, 1], num_labels=3).counts.tolist() == [1, 2, 0]

    def test_the_dataset_is_left_as_it_was(self):
        data = dataset().with_format("torch")
        compute_alpha(data)
        assert data.format["type"] == "torch"

    @pytest.mark.parametrize(
        "data", [np.arange(100) // 25, dataset([k // 25 for k in range(100)]), TensorDataset(torch.arange(100) // 25)]
    )
    def test_a_sample_is_spread_over_the_rows(self, data):
        counts = count_labels(data, max_rows=8)
        assert counts.counts.tolist() == [2, 2, 2, 2] and counts.num_rows == 8 and counts.is_sample
        assert not count_labels(data, max_rows=100).is_sample and not count_labels(data).is_sample

    def test_a_sample_of_a_stream_reads_no_further(self):
        def examples():
            for label in LABELS[:50]:
                yield {"label": label}
            raise AssertionError("read on")

        data = IterableDataset.from_generator(examples, features=Features({"label": Value("int64")}))
        counts = count_labels(data, max_rows=10)
        assert counts.counts.tolist() == [10] and counts.num_rows == 10 and counts.is_sample

    @pytest.mark.parametrize("features", [None, Features({"label": Value("int64")})])
    def test_a_sample_of_a_stream_ends_inside_of_a_block(self, features):
        data = IterableDataset.from_generator(lambda: ({"label": k} for k in range(20)), features=features)
        for max_rows in (1, 5, 9):
            counts = count_labels(data, max_rows=max_rows)
            assert counts.counts.tolist() == [1] * max_rows and counts.num_rows == max_rows and counts.is_sample

    def test_of_a_parquet_stream_only_the_label_column_is_read(self, tmp_path, monkeypatch):
        frame = pd.DataFrame({"label": LABELS, "text": [str(k) * 1000 for k in range(100)]})
        frame.to_parquet(tmp_path / "data.parquet")
        data = load_dataset("parquet", data_files=str(tmp_path / "data.parquet"), split="train", streaming=True)
        read = []

        def spy(fragment, *args, **kwargs):
            for batch in to_batches(fragment, *args, **kwargs):
                read.append(batch.schema.names)
                yield batch

        from datasets.packaged_modules.parquet import parquet

        to_batches = pa.dataset.ParquetFileFragment.to_batches
        make_fragment = parquet.ds.ParquetFileFormat.make_fragment

        class Spy:
            def __init__(self, inner):
                self.inner, self.row_groups, self.num_row_groups = inner, inner.row_groups, inner.num_row_groups

            def to_batches(self, **kwargs):
                return spy(self.inner, **kwargs)

        class Format(parquet.ds.ParquetFileFormat):
            def make_fragment(self, *args, **kwargs):
                return Spy(make_fragment(self, *args, **kwargs))

        monkeypatch.setattr(parquet.ds, "ParquetFileFormat", Format)
        assert count_labels(data).counts.tolist() == [60, 25, 14, 1]
        assert read and all(names == ["label"] for names in read)
        read.clear()
        assert set(next(iter(data))) == {"label", "text"}  # the user's stream is as it was
        assert read[0] == ["label", "text"]

    def test_memory_mapped_and_saved(self, tmp_path):
        dataset(feature=ClassLabel(names=NAMES)).save_to_disk(tmp_path, num_shards=3)
        assert count_labels(Dataset.load_from_disk(tmp_path)).counts.tolist() == [60, 25, 14, 1]


@pytest.mark.parametrize(
    "message, data, kwargs",
    [
        ("num_labels: expected a positive integer, but got '2'", [0, 1], {"num_labels": "2"}),
        (r"expected class ids from 0 to 2 .*also holds \[7\]", [0, 1, 2, 7], {"num_labels": 3}),
        (r"expected class ids from 0 to 1 .*also holds \[-1\]", [0, 1, -1], {}),
        ("column: expected exactly one of 'label' and 'labels'.*columns are \\['y'\\]", dataset(column="y"), {}),
        ("column: expected 'y'.*columns are \\['label'\\]", dataset(), {"column": "y"}),
        ("expected exactly one of", Dataset.from_dict({"label": [0], "labels": [0]}), {}),
        ("only tables have columns", [0, 1], {"column": "label"}),
        ("column 'label' holds no labels", dataset([-1, -1]), {}),
        ("column 'label' holds no labels", dataset([None, None]), {}),
        ("column 'label' holds no labels", dataset([[-100], [-100, -100]]), {}),
        ("holds no labels", [], {}),
        ("2 labels are missing", dataset([0, None, 1, None]), {}),
        ("1 labels are missing", [[0], None, [1]], {}),
        ("3 labels are missing .null. in data", [[0, None], [1, None, None]], {}),
        ("2 labels are missing .null. in data", [[0, None], [None, 1]], {"multi_label": True}),
        ("1 labels are missing .null. in data", [[2, None], [0], [1, 2, 0]], {"multi_label": False}),
        ("1 labels are missing .null. in column", dataset([[0, 1], [0, None], [1, 1]]).select([2, 1]), {}),
        (
            "3 labels are missing .null. in column",
            dataset([[1.0, None], None, [None, 0.0]], List(Value("float32"))),
            {},
        ),
        ("1 labels are missing .null. in column", dataset([["a", None], ["b"]]), {"multi_label": True}),
        ("1 labels are missing .null. in column", stream([[0, 1], [0, None]]), {}),
        ("column 'label' holds no labels", dataset([[None], [None, None]], List(Value("int64"))), {}),
        ("holds float64 values", [0.5, 1.5], {}),
        ("holds float64 values in rows of 2", [[0.5, 1.0], [1.0, 0.0]], {}),
        ("multi-label rows of 3 entries .* in rows of 2", [[0.0, 1.0], [1.0, 0.0]], {"num_labels": 3}),
        ("the labels could not be read", [[0, 1], "a"], {}),
        ("choose one of \\['train', 'test'\\]", DatasetDict(train=dataset(), test=dataset()), {}),
        ("expected a datasets.Dataset, a torch Dataset, a list, .* but got generator", (x for x in "ab"), {}),
        ("one or two dimensions, but data holds struct", pa.array([{"label": 0}]), {}),
        ("expected a datasets.Dataset, .* but got str", "labels.csv", {}),
        ("column: expected 'y'.*columns are \\['text', 'label'\\]", stream(), {"column": "y"}),
        ("column: expected 'y'.*columns are \\['label'\\]", pd.DataFrame({"label": [0]}), {"column": "y"}),
        ("holds no labels", stream([-1]), {}),
        ("holds no labels", torch.full((2, 3), -100.0), {}),
        ("1 labels are missing", stream([0, None, 1]), {}),
        ("1 labels are missing", pd.Series([0, None, 1]), {}),
        ("max_rows: expected a positive integer, but got 0", [0, 1], {"max_rows": 0}),
        ("multi_label: expected rows .* holds one label per row", [0, 1], {"multi_label": True}),
        ("num_labels: 3, but data holds 2 different strings", ["a", "b"], {"num_labels": 3}),
        (r"also holds \[2000000000\]", [0, 2_000_000_000], {}),
        ("one or two dimensions", np.zeros((2, 2, 2), dtype=int), {}),
        ("one or two dimensions, but data holds list", [[[0]], [[1]]], {}),
        # In int64 they would be -100, which is ignored.
        (r"also holds \[18446744073709551516\]; map", np.array([0, 1, WRAPS], np.uint64), {}),
        (r"also holds \[18446744073709551516\]; map", np.array([[0, 1, 1], [WRAPS, 0, 0]], np.uint64), {}),
        (
            r"also holds \[18446744073709551516\]; map",
            torch.tensor([0, 1, WRAPS], dtype=torch.uint64),
            {"num_labels": 3},
        ),
        (r"also holds \[18446744073709551516\]; map", pd.DataFrame({"label": [0, 1, WRAPS]}), {}),
        (r"also holds \[18446744073709551516\]; map", unsigned([0, 1, WRAPS]), {}),
        (r"also holds \[18446744073709551516\]; map", unsigned([0, 1, WRAPS]).shuffle(seed=0), {}),
        (r"also holds \[18446744073709551516\]; map", unsigned([0, 1, WRAPS]).to_iterable_dataset(), {}),
        (r"also holds \[18446744073709551516\]; map", unsigned([[0, 1], [WRAPS, 2]]), {"multi_label": True}),
        (r"also holds \[9223372036854775808\]; map", pd.Series([0, 2**63]), {}),
        ("expected class ids, but got integers that do not fit int64", [0, 1, 2**70], {}),
        ("expected class ids, but got integers that do not fit int64", [[0, 1], [1, -(2**70)]], {}),
        (
            "expected class ids, but got integers that do not fit int64",
            np.array([0, 2**70], object),
            {"num_labels": 2},
        ),
        ("expected class ids, but got integers that do not fit int64", pd.Series([0, 2**70]), {}),
        ("expected class ids, but got integers that do not fit int64", [{"label": 0}, {"label": 2**70}], {}),
        ("expected class ids, but got integers that do not fit int64", stream([0, 2**70]), {}),
        # Beside an id of row 1 that is 2**32 lower, label 0 of row 0 would be no other.
        (r"also holds \[-4294967296\]", [[0, 1], [-(2**32), 5]], {"multi_label": True}),
        (r"also holds \[4294967296\]", dataset([0, 2**32, -100]).shuffle(seed=0), {}),
        ("num_labels: expected at most 16777216, but got 1180591620717411303424", [0, 1], {"num_labels": 2**70}),
        ("the labels could not be read", pd.Series([0, "a"]), {}),
        (r"exactly one of .* whose columns are \['label', 'label'\]", TWICE, {}),
        (r"\[3\]; map the labels to 0..C-1, or set num_labels$", [0, 3], {"num_labels": 2}),
        (r"\[-1, 3\]; map the labels to 0..C-1$", [0, 3, -1], {"num_labels": 2}),
        (
            "or one-hot rows of C entries .* holds float64 values in rows of 2$",
            [[0.5, 0.5], [1.0, 0.0]],
            {"one_hot": True},
        ),
        (
            "one-hot rows of C entries .* holds float64 values in rows of 2$",
            [[1.0, 1.0], [1.0, 0.0]],
            {"one_hot": True},
        ),
        ("one_hot: expected False with multi_label=True", [[0, 1]], {"one_hot": True, "multi_label": True}),
        ("1 labels are missing", [None, "a"], {}),
    ],
)
@pytest.mark.usefixtures("blocks")
def test_refuses(message, data, kwargs):
    with pytest.raises(ValueError, match=message):
        count_labels(data, **kwargs)


def test_two_processes(tmp_path):
    run_in_two_processes(shared_alpha.run, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    # A stream that is cut by process is summed over the processes.
    assert first["ids"] == second["ids"] == [[4, 1, 1], None, None]
    assert first["strings"] == second["strings"] == [[2, 1, 3], None, ["a", "b", "c"]]
    assert first["multi_hot"] == second["multi_hot"] == [[3, 1], [1, 3], None]
    # It is a sample if one process has not read all of its part.
    assert first["sample"] == second["sample"] == [[2, 1], 3, True]
    assert first["no_sample"] == second["no_sample"] == [[2, 2], 4, False]
    # What one process finds wrong, all say, rather than wait for it.
    assert first["missing"] == second["missing"] and "1 labels are missing" in first["missing"]
    # The trainer counts once: the main process for all, or each its shard.
    alpha = compute_alpha(tiny_dataset(), num_labels=3).tolist()
    assert (first["trainer"], second["trainer"]) == ({"alpha": alpha, "counted": 1}, {"alpha": alpha, "counted": 0})
    alpha = compute_alpha([0, 0, 0, 0, 1, 2]).tolist()
    assert first["trainer_with_shards"] == second["trainer_with_shards"] == {"alpha": alpha, "counted": 1}
    errors = [seen["trainer_with_an_empty_class"]["error"] for seen in (first, second)]
    assert errors[0] == errors[1] and errors[0].startswith("train_dataset: no examples of class 3, ")


def test_an_error_can_be_sent_to_another_process():
    with pytest.raises(ValueError) as raised:
        count_labels([0, 3], num_labels=2)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("rows", [[[1, 0, -100], [0, -100, -100], [1, 1, 0]], torch.tensor([[1, -100], [0, 1]])])
def test_whole_numbers_with_unknown_labels_may_be_tokens(rows):
    with pytest.raises(
        ValueError, match="rows of 0, 1 and -100, which may be several labels of an example, some of them unknown"
    ):
        LabelDistribution.from_dataset(rows)
    several, tokens = (LabelDistribution.from_dataset(rows, multi_label=answer) for answer in (True, False))
    assert several.negatives is not None and tokens.negatives is None and tokens.num_labels == 2
    # With another width, or classes, or rows of several widths, they are tokens.
    assert LabelDistribution.from_dataset(rows, num_labels=4).negatives is None
    assert LabelDistribution.from_dataset([[1, 0, -100], [0, 1, 1, -100]]).negatives is None
