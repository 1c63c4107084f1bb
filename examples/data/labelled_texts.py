"""Texts with labels, your own too: the flags that name them, the splits from the hub or from files, and their checks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset


@dataclass
class DataArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the hub or local folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    train_file: str | None = field(default=None, metadata={"help": "Training data: csv, json or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "Validation data: csv, json or parquet."})
    test_file: str | None = field(default=None, metadata={"help": "Test data: csv, json or parquet."})
    text_column_names: str = field(
        default="text", metadata={"help": "Column with the text; several, separated by commas, are joined by a space."}
    )
    label_column_name: str = field(
        default="label", metadata={"help": "Column with the label, or with a list of labels (multi-label)."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Texts are cut to this number of tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training examples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many validation examples."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use only so many test examples."})

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ValueError(f"--{name}: expected at least 1, but got {limit}")

    @property
    def text_columns(self) -> list[str]:
        return [name.strip() for name in self.text_column_names.split(",")]

    @property
    def files(self) -> dict[str, str]:
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in files.items() if file is not None}


def load_splits(
    data_args: DataArguments, cache_dir: str | None, embedded_default: Callable[[], DatasetDict]
) -> DatasetDict:
    """The raw splits from the hub, from files or, if neither is named, what `embedded_default` returns."""
    if data_args.dataset_name is not None:
        return load_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            revision=data_args.dataset_revision,
            cache_dir=cache_dir,
        )
    if not data_args.files:
        return embedded_default()
    splits = DatasetDict()
    for split, file in data_args.files.items():
        kind = Path(file).suffix.lstrip(".").replace("jsonl", "json")
        if kind not in ("csv", "json", "parquet"):
            raise ValueError(f"--{split}_file: expected a csv, json or parquet file, but got {file}")
        if not Path(file).is_file():
            raise ValueError(f"--{split}_file: {file} does not exist")
        try:
            splits[split] = load_dataset(kind, data_files={"data": file}, cache_dir=cache_dir)["data"]
        except Exception as error:  # each reader has its own
            cause = error.__cause__ or error
            raise ValueError(
                f"--{split}_file: {file} cannot be read as {kind} (is it empty or damaged?): {cause!r}"
            ) from error
    return splits


def check_columns(splits: DatasetDict, data_args: DataArguments, needed: list[str]) -> None:
    for split in needed:
        if split not in splits:
            raise ValueError(f"a {split} split is needed, but the dataset has only {', '.join(splits)}")
        dataset = splits[split]
        if len(dataset) == 0:
            raise ValueError(f"the {split} split is empty")
        columns = data_args.text_columns + [data_args.label_column_name]
        missing = {column for column in columns if column not in dataset.column_names}
        if split == "test":  # it may come without labels, and is then predicted but not scored
            missing -= {data_args.label_column_name}
        if missing:
            raise ValueError(f"the {split} split has no column {sorted(missing)}, only {dataset.column_names}")
        for column in {*columns} & {*dataset.column_names}:
            if empty := sum(value is None for value in dataset[column]):
                raise ValueError(
                    f"column {column!r} of the {split} split is empty in {empty} rows (csv readers take NA and None "
                    "for empty)"
                )


def read_labels(dataset: Dataset, column: str) -> list[list[str]] | None:
    """The names of each example's labels (one in single-label data), or None if the data is unlabelled."""
    if column not in dataset.column_names:
        return None
    feature, labels = dataset.features[column], dataset[column]
    if hasattr(feature, "feature"):  # a list: the type of its entries
        feature = feature.feature
        if any(None in row for row in labels):
            raise ValueError(f"column {column!r}: expected lists of labels, but some entries are empty")
        if {label for row in labels for label in row} <= {0, 1} and any(len({*row}) < len(row) for row in labels):
            raise ValueError(f"column {column!r}: expected lists of labels; rows of 0 and 1 are not supported")
        labels = [[*dict.fromkeys(row)] for row in labels]  # a row of Reuters-21578 holds a label twice
    elif all(label == -1 for label in labels):  # how the test splits of challenges are published
        return None
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
    return sorted({name for row in labels for name in row}, key=int if "int" in feature.dtype else None)


def encode_labels(labels: list[list[str]], names: list[str], multi_label: bool, split: str) -> list:
    if unknown := sorted({name for row in labels for name in row} - set(names)):
        raise ValueError(f"the {split} split has labels that are not in the training data: {unknown[:10]}")
    index = {name: i for i, name in enumerate(names)}
    if not multi_label:
        return [index[row[0]] for row in labels]
    rows = np.zeros((len(labels), len(names)))  # float is how transformers recognises multi-label targets
    for i, row in enumerate(labels):
        rows[i, [index[name] for name in row]] = 1
    return rows.tolist()
