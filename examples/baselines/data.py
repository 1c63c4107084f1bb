"""The data of the baselines: by name from installed packages, or read as in `run_text_classification.py`.

If there is no validation split, one is split off the training data, so that no choice depends on the test split.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from data.bbc_longtail import load_bbc_longtail
from data.labelled_texts import DataArguments, load_splits, read_labels
from data.newsgroups_longtail import load_newsgroups_longtail
from data.reuters_r52 import load_reuters_r52
from datasets import ClassLabel, DatasetDict
from run_text_classification import ModelArguments, model_path


MADE_LONG_TAILED = {"bbc_longtail": load_bbc_longtail, "newsgroups_longtail": load_newsgroups_longtail}
PACKAGED = {**MADE_LONG_TAILED, "reuters_r52": load_reuters_r52}


@dataclass
class BaselineDataArguments(DataArguments):
    validation_share: float | None = field(
        default=None, metadata={"help": "Share of the training texts to validate on, if there is no such split."}
    )
    imbalance: float | None = field(
        default=None,
        metadata={
            "help": "For bbc_longtail and newsgroups_longtail: training texts of the largest class for each of the "
            "smallest. Default: 50."
        },
    )
    label_noise: float = field(
        default=0.0,
        metadata={"help": "Share of the training and validation texts that get a random wrong class."},
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"--label_noise: expected a number from 0 to below 1, but got {self.label_noise}")
        if self.imbalance is not None:
            if self.dataset_name not in MADE_LONG_TAILED:
                raise ValueError(
                    f"--imbalance: expected --dataset_name to be one of {', '.join(MADE_LONG_TAILED)}, but got "
                    f"{self.dataset_name!r}"
                )
            if not 1 <= self.imbalance < math.inf:
                raise ValueError(f"--imbalance: expected a number of at least 1, but got {self.imbalance}")


def load_baseline_splits(data_args: BaselineDataArguments, cache_dir: str | None) -> DatasetDict:
    """The splits `train`, `validation` and `test`."""
    splits, share = _load(data_args, cache_dir), data_args.validation_share
    if "validation" not in splits:
        if share is None:
            raise ValueError(
                "--validation_share: expected a share of the training data, as there is no validation split"
            )
        splits = cut_validation(splits, data_args, share)
    elif share is not None:
        raise ValueError(f"--validation_share: there is a validation split already, but got {share}")
    return with_label_noise(splits, data_args, data_args.label_noise) if data_args.label_noise else splits


def _load(data_args: BaselineDataArguments, cache_dir: str | None) -> DatasetDict:
    if data_args.imbalance is not None:
        try:
            return MADE_LONG_TAILED[data_args.dataset_name](imbalance=data_args.imbalance)
        except ValueError as error:  # too few texts for it
            raise ValueError(f"--imbalance: {error}") from error
    if data_args.dataset_name in PACKAGED:
        return PACKAGED[data_args.dataset_name]()
    return load_splits(data_args, cache_dir, load_bbc_longtail)


def cut_validation(splits: DatasetDict, data_args: DataArguments, share: float, seed: int = 0) -> DatasetDict:
    """Moves distinct texts from `train` to `validation`, always the same ones for a seed.

    From each label, this share of its distinct texts is moved, rounded, as far as texts with several labels allow:
    labels with few texts lose none, and no text is in both splits.
    """
    if not 0 < share < 1:
        raise ValueError(f"--validation_share: expected a number between 0 and 1, but got {share}")
    train = splits["train"]
    texts = list(zip(*(train[column] for column in data_args.text_columns)))
    labels_of = defaultdict(set)
    for text, labels in zip(texts, read_labels(train, data_args.label_column_name)):
        labels_of[text].update(
            labels or [None]
        )  # texts without labels form a group too; otherwise all of them would be moved
    quota = {
        label: round(share * count) for label, count in Counter(l for ls in labels_of.values() for l in ls).items()
    }
    candidates = sorted(labels_of, key=repr)
    Random(seed).shuffle(candidates)
    held_out = set()
    for text in candidates:
        if all(quota[label] for label in labels_of[text]):
            held_out.add(text)
            for label in labels_of[text]:
                quota[label] -= 1
    rows = {True: [], False: []}
    for i, text in enumerate(texts):
        rows[text in held_out].append(i)
    return DatasetDict({**splits, "train": train.select(rows[False]), "validation": train.select(rows[True])})


def with_label_noise(splits: DatasetDict, data_args: DataArguments, share: float, seed: int = 0) -> DatasetDict:
    """Gives this share of the rows of `train` and `validation` a random wrong class; the test split is not changed."""
    column, noisy = data_args.label_column_name, {}
    if not isinstance(splits["train"].features[column], ClassLabel):
        raise ValueError(
            f"--label_noise: expected column {column!r} to be a ClassLabel, but got {splits['train'].features[column]}"
        )
    for split in ("train", "validation"):
        draws = np.random.default_rng(seed)
        dataset, num_classes = splits[split], splits["train"].features[column].num_classes
        labels = np.array(dataset[column])
        is_wrong = draws.random(len(labels)) < share
        labels[is_wrong] = (labels + draws.integers(1, num_classes, size=len(labels)))[is_wrong] % num_classes
        feature = dataset.features[column]
        noisy[split] = dataset.remove_columns(column).add_column(column, labels.tolist(), feature=feature)
    return DatasetDict({**splits, **noisy})


def data_fingerprint(splits: DatasetDict, data_args: DataArguments, weight_column: str | None = None) -> str:
    """SHA-256 of the texts, labels and weights of all splits: the same on any machine, however the data are stored."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        columns = [splits[split][column] for column in data_args.text_columns]
        for row in zip(*columns, read_labels(splits[split], data_args.label_column_name)):
            digest.update(json.dumps([split, *row]).encode())
        if weight_column in splits[split].column_names:
            digest.update(json.dumps([split, splits[split][weight_column][:]]).encode())
    return digest.hexdigest()


def model_fingerprint(model_args: ModelArguments) -> str:
    """SHA-256 of the files in the folder of a base model, or of its name and revision on the Hub."""
    folder, digest = Path(model_path(model_args)), hashlib.sha256()
    if not folder.is_dir():
        return hashlib.sha256(json.dumps([str(folder), model_args.model_revision]).encode()).hexdigest()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".txt", ".model", ".safetensors", ".bin") and file.name != "training_args.bin":
            digest.update(json.dumps([file.name, hashlib.sha256(file.read_bytes()).hexdigest()]).encode())
    return digest.hexdigest()
