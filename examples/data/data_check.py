"""What is likely to be wrong with labelled texts: found before a model is trained on it, and said with the numbers of the rows."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from datasets import DatasetDict


_LIST_AS_TEXT = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_SHOWN = 5


def check_data(
    splits: DatasetDict, labels: Mapping[str, Sequence[Sequence[str]] | None], text_columns: Sequence[str]
) -> list[str]:
    """A line for each thing that is likely to be wrong; rows are counted from 1, without the header.

    Args:
        splits: Of the data, those that are used.
        labels: Of each split the names of the labels of each row, or None.
        text_columns: Which hold the text.

    Raises:
        `ValueError`: If the texts are lists of words, which another script takes.
    """
    texts = {split: _texts(splits[split], text_columns, split) for split in labels}
    found = []
    for split, of_split in texts.items():
        blank = [row for row, text in enumerate(of_split, 1) if not text.strip()]
        found += _finding(blank, split, "blank text")
        rows = labels[split] or []
        written = [n for n, row in enumerate(rows, 1) if len(row) == 1 and _LIST_AS_TEXT.fullmatch(row[0])]
        how = "a list of labels written as text; in json it is read as several labels"
        found += _finding(written, split, how)
    found += _spellings(labels)
    found += _contradictions(texts, labels)
    found += _duplicates(texts)
    if labels.get("train"):
        found += _rare_classes(labels)
    return found


def _texts(dataset, columns: Sequence[str], split: str) -> list[str]:
    parts = [dataset[column] for column in columns]
    for column, values in zip(columns, parts):
        if any(isinstance(value, (list, tuple)) for value in values[:1]):
            raise ValueError(
                f"column {column!r} of the {split} split holds lists of words, which are for run_token_classification.py; here "
                "a text is a string"
            )
    return [" ".join(map(str, row)) for row in zip(*parts)]


def _finding(rows: Sequence[int], split: str, what: str) -> list[str]:
    return [f"{split} split, {_listed(rows)}: {what}"] if rows else []


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN]))
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def _spellings(labels: Mapping[str, Sequence[Sequence[str]] | None]) -> list[str]:
    """Labels that differ by case or blanks only."""
    counts = Counter(name for rows in labels.values() for row in rows or [] for name in row)
    same = defaultdict(list)
    for name in counts:
        same[" ".join(name.split()).casefold()].append(name)
    return [
        "labels that differ by case or blanks only: "
        + ", ".join(f"{name!r} ({counts[name]})" for name in sorted(names))
        for names in same.values()
        if len(names) > 1
    ]


def _contradictions(
    texts: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[Sequence[str]] | None]
) -> list[str]:
    """The same text with other labels, in one split or in two."""
    labels_of = defaultdict(set)
    for split, of_split in texts.items():
        for text, names in zip(of_split, labels[split] or []):
            labels_of[text].add(frozenset(names))
    found = []
    for split, of_split in texts.items():
        rows = [n for n, (text, _) in enumerate(zip(of_split, labels[split] or []), 1) if len(labels_of[text]) > 1]
        found += _finding(rows, split, "the same text has other labels elsewhere")
    return found


def _duplicates(texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Texts that a model is trained on and then judged by, or chosen by."""
    seen, found = {split: {*of_split} for split, of_split in texts.items()}, []
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if split in texts and other in texts:
            rows = [row for row, text in enumerate(texts[split], 1) if text in seen[other]]
            found += _finding(rows, split, f"the text is in the {other} split too, so results are too good")
    return found


def _rare_classes(labels: Mapping[str, Sequence[Sequence[str]] | None]) -> list[str]:
    def counted(split: str) -> Counter:
        names = (name for row in labels.get(split) or [] for name in row)
        return Counter(name for name in names if not _LIST_AS_TEXT.fullmatch(name))  # of which there is another line

    train, found = counted("train"), []
    single = sorted(name for name, count in train.items() if count == 1)
    if single:
        found.append(f"classes with one training example: {_names(single)}")
    if labels.get("validation"):
        missing = sorted(train.keys() - counted("validation").keys())
        if missing:
            found.append(f"classes without a validation example, of which nothing is known: {_names(missing)}")
    return found


def _names(names: Iterable[str]) -> str:
    names = [*names]
    more = f" and {len(names) - 2 * _SHOWN} more" if len(names) > 2 * _SHOWN else ""
    return ", ".join(map(repr, names[: 2 * _SHOWN])) + more
