"""Finds likely mistakes in labelled texts before a model is trained, and reports them with row numbers."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from datasets import DatasetDict


_LIST_AS_TEXT = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_SHOWN = 5


def check_data(
    splits: DatasetDict, labels: Mapping[str, Sequence[Sequence[str]] | None], text_columns: Sequence[str]
) -> list[str]:
    """A line for each likely mistake; rows are counted from 1, without the header.

    Args:
        splits: The splits that are used.
        labels: For each split, the label names of each row, or None.
        text_columns: The columns with the text.

    Raises:
        `ValueError`: If the texts are lists of words, which are for another script.
    """
    texts = {split: _texts(splits[split], text_columns, split) for split in labels}
    findings = []
    for split, split_texts in texts.items():
        blank = [row for row, text in enumerate(split_texts, 1) if not text.strip()]
        findings += _finding(blank, split, "blank text")
        rows = labels[split] or []
        written = [n for n, row in enumerate(rows, 1) if len(row) == 1 and _LIST_AS_TEXT.fullmatch(row[0])]
        what = "a list of labels written as text; in a json file it would be read as several labels"
        findings += _finding(written, split, what)
    findings += _spellings(labels)
    findings += _contradictions(texts, labels)
    findings += _duplicates(texts)
    if labels.get("train"):
        findings += _rare_classes(labels)
    return findings


def _texts(dataset, columns: Sequence[str], split: str) -> list[str]:
    parts = [dataset[column] for column in columns]
    for column, values in zip(columns, parts):
        if any(isinstance(value, (list, tuple)) for value in values[:1]):
            raise ValueError(
                f"column {column!r} of the {split} split holds lists of words, which are for "
                "run_token_classification.py; expected strings"
            )
    return [" ".join(map(str, row)) for row in zip(*parts)]


def _finding(rows: Sequence[int], split: str, what: str) -> list[str]:
    return [f"{split} split, {_listed(rows)}: {what}"] if rows else []


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN]))
    ending = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{ending}"


def _spellings(labels: Mapping[str, Sequence[Sequence[str]] | None]) -> list[str]:
    """Labels that differ only by case or blanks."""
    counts = Counter(name for rows in labels.values() for row in rows or [] for name in row)
    same = defaultdict(list)
    for name in counts:
        same[" ".join(name.split()).casefold()].append(name)
    return [
        "labels that differ only by case or blanks: "
        + ", ".join(f"{name!r} ({counts[name]})" for name in sorted(names))
        for names in same.values()
        if len(names) > 1
    ]


def _contradictions(
    texts: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[Sequence[str]] | None]
) -> list[str]:
    """Texts that occur with different labels, in one split or in two."""
    labels_of = defaultdict(set)
    for split, split_texts in texts.items():
        for text, names in zip(split_texts, labels[split] or []):
            labels_of[text].add(frozenset(names))
    findings = []
    for split, split_texts in texts.items():
        rows = [n for n, (text, _) in enumerate(zip(split_texts, labels[split] or []), 1) if len(labels_of[text]) > 1]
        findings += _finding(rows, split, "the same text has other labels elsewhere")
    return findings


def _duplicates(texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Texts that occur in more than one split."""
    seen, findings = {split: {*split_texts} for split, split_texts in texts.items()}, []
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if split in texts and other in texts:
            rows = [row for row, text in enumerate(texts[split], 1) if text in seen[other]]
            findings += _finding(rows, split, f"the text is in the {other} split too, so results are too good")
    return findings


def _rare_classes(labels: Mapping[str, Sequence[Sequence[str]] | None]) -> list[str]:
    def counted(split: str) -> Counter:
        names = (name for row in labels.get(split) or [] for name in row)
        return Counter(name for name in names if not _LIST_AS_TEXT.fullmatch(name))  # reported separately

    train, findings = counted("train"), []
    single = sorted(name for name, count in train.items() if count == 1)
    if single:
        findings.append(f"classes with one training example: {_names(single)}")
    if labels.get("validation"):
        missing = sorted(train.keys() - counted("validation").keys())
        if missing:
            findings.append(f"classes without a validation example, so without validation results: {_names(missing)}")
    return findings


def _names(names: Iterable[str]) -> str:
    names = [*names]
    ending = f" and {len(names) - 2 * _SHOWN} more" if len(names) > 2 * _SHOWN else ""
    return ", ".join(map(repr, names[: 2 * _SHOWN])) + ending
