"""Labelled texts, including your own: their flags, the splits from the hub or from files, and checks."""

import codecs
import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from transformers.utils import logging


logger = logging.get_logger("labelled_texts")
_DECIMAL = re.compile(r"-?[0-9]*\.[0-9]+")


@dataclass
class DataArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the hub or local folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    train_file: str | None = field(default=None, metadata={"help": "Training data: csv, tsv, json or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "Validation data: csv, tsv, json or parquet."})
    test_file: str | None = field(default=None, metadata={"help": "Test data: csv, tsv, json or parquet."})
    delimiter: str | None = field(
        default=None,
        metadata={
            "help": "Delimiter of csv files. Default: whichever of comma, semicolon, tab and | the header uses."
        },
    )
    encoding: str | None = field(
        default=None,
        metadata={"help": "Encoding of csv files. Default: by the byte order mark, UTF-8, or otherwise Windows-1252."},
    )
    text_column_names: str = field(
        default="text", metadata={"help": "Column with the text; several, separated by commas, are joined by a space."}
    )
    label_column_name: str = field(
        default="label", metadata={"help": "Column with the label, or with a list of labels (multi-label)."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Texts are truncated to this number of tokens."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only this many training examples, drawn at random."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only this many validation examples, drawn at random."}
    )
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Use only the first test examples, this many."}
    )

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ValueError(f"--{name}: expected at least 1, but got {limit}")

        if self.dataset_name is not None and self.files:
            given = ", ".join(f"--{split}_file" for split in self.files)
            raise ValueError(
                f"--dataset_name: expected a name or files, but got both {self.dataset_name!r} and {given}"
            )

    @property
    def text_columns(self) -> list[str]:
        return [name.strip() for name in self.text_column_names.split(",")]

    @property
    def files(self) -> dict[str, str]:
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in files.items() if file is not None}


def limited(dataset: Dataset, split: str, data_args: DataArguments) -> Dataset:
    """At most as many rows as `data_args` allow, in their order.

    Those of training and validation are drawn at random, always the same ones, because many files are sorted by label.
    The test split keeps its first rows, whose predictions are numbered.
    """
    limits = {
        "train": data_args.max_train_samples,
        "validation": data_args.max_eval_samples,
        "test": data_args.max_predict_samples,
    }
    size = limits[split]
    if size is None or size >= len(dataset):
        return dataset
    return dataset.select(range(size) if split == "test" else sorted(Random(0).sample(range(len(dataset)), size)))


def load_splits(
    data_args: DataArguments, cache_dir: str | None, embedded_default: Callable[[], DatasetDict]
) -> DatasetDict:
    """The raw splits from the hub, from files or, if neither is named, from `embedded_default`."""
    if data_args.dataset_name is not None:
        try:
            return load_dataset(
                data_args.dataset_name,
                data_args.dataset_config_name,
                revision=data_args.dataset_revision,
                cache_dir=cache_dir,
            )
        except RuntimeError as error:  # a loading script, which would run code
            raise ValueError(f"--dataset_name: {data_args.dataset_name} cannot be read: {error}") from error
    if not data_args.files:
        return embedded_default()
    splits = DatasetDict()
    for split, file in data_args.files.items():
        kind = Path(file).suffix.lstrip(".").lower().replace("jsonl", "json")
        if kind not in ("csv", "tsv", "json", "parquet"):
            raise ValueError(f"--{split}_file: expected a csv, tsv, json or parquet file, but got {file}")
        if not Path(file).is_file():
            raise ValueError(f"--{split}_file: {file} does not exist")
        try:
            if kind in ("csv", "tsv"):
                splits[split] = _read_csv(file, split, data_args)
            else:
                splits[split] = load_dataset(
                    kind, data_files={"data": str(Path(file).resolve())}, cache_dir=cache_dir
                )["data"]
        except Exception as error:  # each reader raises its own kinds
            cause = error.__cause__ or error
            flags = "; for csv files, see --delimiter and --encoding" if kind in ("csv", "tsv") else ""
            raise ValueError(
                f"--{split}_file: {file} cannot be read as {kind} (is it empty or damaged?{flags}): {cause!r}"
            ) from error
    return splits


def _read_csv(file: str, split: str, data_args: DataArguments) -> Dataset:
    """Reads texts and labels literally: 01 is not 1, and NA is a text. Other columns are numbers if all cells are."""
    content = Path(file).read_bytes()
    encoding = data_args.encoding or _encoding(content, f"--{split}_file {file}")
    text = content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    delimiter = data_args.delimiter
    if text.lower().startswith("sep="):  # Excel reads and writes this
        first, _, text = text.partition("\n")
        delimiter = delimiter or first[4:5]
    wanted = [*data_args.text_columns, data_args.label_column_name]
    delimiter = delimiter or _delimiter(text.partition("\n")[0], wanted)
    table = pd.read_csv(StringIO(text), sep=delimiter, dtype=str, keep_default_na=False)
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus columns as row names
        raise ValueError(
            f"rows have more fields than the header has names; put quotes around texts that contain {delimiter!r}"
        )
    table.columns = table.columns.str.strip()
    for column in table.columns.difference(wanted):
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.notna().all():
            table[column] = numbers
    return Dataset.from_pandas(table, preserve_index=False)


def _encoding(content: bytes, source: str) -> str:
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    for mark, encoding in marks.items():
        if content.startswith(mark):
            return encoding
    if b"\0" in content:
        raise ValueError("it has null bytes, as UTF-16 does, but no byte order mark; try --encoding utf-16-le")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        logger.warning(
            f"{source}: line {line} is not UTF-8, so the file is read as Windows-1252; if letters are wrong, pass "
            "another --encoding"
        )
        return "cp1252"
    return "utf-8"


def _delimiter(header: str, wanted: list[str]) -> str:
    """The delimiter with which the header has the most of the wanted columns, and then the most columns."""

    def columns(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return sum(name in names for name in wanted), len(names)

    return max(",;\t|", key=columns)


def check_columns(splits: DatasetDict, data_args: DataArguments, needed: list[str]) -> None:
    for split in needed:
        if split not in splits:
            wanted_by = {"train": "--do_train", "validation": "--do_eval", "test": "--do_predict"}[split]
            source = f"; pass one with --{split}_file" if data_args.files else ""
            raise ValueError(
                f"{wanted_by}: a {split} split is needed, but the dataset has only {', '.join(splits)}{source}"
            )
        dataset = splits[split]
        if len(dataset) == 0:
            raise ValueError(f"the {split} split is empty")
        columns = data_args.text_columns + [data_args.label_column_name]
        missing = {column for column in columns if column not in dataset.column_names}
        if split == "test":  # without labels it is predicted but not scored
            missing -= {data_args.label_column_name}
        if missing:
            is_of_tokens = {"tokens", "ner_tags"} <= {*dataset.column_names} and not {*columns} & {
                "tokens",
                "ner_tags",
            }
            hint = "; for words with tags use run_token_classification.py" if is_of_tokens else ""
            raise ValueError(f"the {split} split has no column {sorted(missing)}, only {dataset.column_names}{hint}")
        for column in {*columns} & {*dataset.column_names}:
            is_label = column == data_args.label_column_name
            empty = [n for n, value in enumerate(dataset[column], 1) if value is None or (is_label and value == "")]
            if empty and not (is_label and split == "test" and len(empty) == len(dataset)):
                shown = ", ".join(map(str, empty[:5])) + (" and more" if len(empty) > 5 else "")
                raise ValueError(
                    f"column {column!r} of the {split} split is empty in {len(empty)} rows (counted from 1): {shown}"
                )


def read_labels(dataset: Dataset, column: str) -> list[list[str]] | None:
    """The names of each example's labels (one in single-label data), or None if the data are unlabelled."""
    if column not in dataset.column_names:
        return None
    feature, labels = dataset.features[column], dataset[column]
    if hasattr(feature, "feature"):  # a list: the type of its entries
        feature = feature.feature
        if any(None in row for row in labels):
            raise ValueError(f"column {column!r}: expected lists of labels, but some entries are empty")
        if {label for row in labels for label in row} <= {0, 1} and any(len({*row}) < len(row) for row in labels):
            raise ValueError(f"column {column!r}: expected lists of labels; rows of 0 and 1 are not supported")
        labels = [[*dict.fromkeys(row)] for row in labels]  # one row of Reuters-21578 has a label twice
    elif all(label in (-1, "-1", "") for label in labels):  # as in published test splits of challenges
        return None
    elif feature.dtype in ("string", "large_string") and all(_DECIMAL.fullmatch(label) for label in labels):
        raise ValueError(f"column {column!r}: expected labels as strings or integers, but got {labels[0]}")
    else:
        labels = [[label] for label in labels]
    if not isinstance(feature, (ClassLabel, Value)) or feature.dtype.startswith("float"):
        raise ValueError(f"column {column!r}: expected labels as strings or integers, but got {feature}")
    name = feature.int2str if isinstance(feature, ClassLabel) else str
    return [[name(label) for label in row] for row in labels]


def class_names(dataset: Dataset, column: str, labels: list[list[str]]) -> list[str]:
    feature = getattr(dataset.features[column], "feature", dataset.features[column])
    if isinstance(feature, ClassLabel):
        return feature.names
    names = {name for row in labels for name in row}
    are_integers = all(re.fullmatch("0|-?[1-9][0-9]*", name) for name in names)  # leading zeros are not integers
    return sorted(names, key=int if are_integers else None)


def encode_labels(labels: list[list[str]], names: list[str], multi_label: bool, split: str) -> list:
    if unknown := sorted({name for row in labels for name in row} - set(names)):
        raise ValueError(f"the {split} split has labels that are not in the training data: {unknown[:10]}")
    index = {name: i for i, name in enumerate(names)}
    if not multi_label:
        return [index[row[0]] for row in labels]
    rows = np.zeros((len(labels), len(names)))  # transformers recognises multi-label targets by their float type
    for i, row in enumerate(labels):
        rows[i, [index[name] for name in row]] = 1
    return rows.tolist()
