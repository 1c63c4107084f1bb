"""The data of the baselines: by name from installed packages, or read as in `run_text_classification.py`.

If there is no validation split, one is split off the training data, so that no choice depends on the test split.
"""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import numpy as np
from data.bbc_longtail import load_bbc_longtail
from data.labelled_texts import DataArguments, load_splits, read_labels
from data.newsgroups_longtail import load_newsgroups_longtail
from data.reuters_r52 import load_reuters_r52
from datasets import ClassLabel, DatasetDict
from run_text_classification import ModelArguments, model_path


PACKAGED = {
    "bbc_longtail": load_bbc_longtail,
    "newsgroups_longtail": load_newsgroups_longtail,
    "reuters_r52": load_reuters_r52,
}


def load_baseline_splits(
    data_args: DataArguments, cache_dir: str | None, validation_share: float | None = None
) -> DatasetDict:
    """The splits `train`, `validation` and `test`; `validation_share` as in [`cut_validation`]."""
    if data_args.dataset_name in PACKAGED:
        splits = PACKAGED[data_args.dataset_name]()
    else:
        splits = load_splits(data_args, cache_dir, load_bbc_longtail)
    if "validation" not in splits:
        if validation_share is None:
            raise ValueError(
                "--validation_share: expected a share of the training data, as there is no validation split"
            )
        splits = cut_validation(splits, data_args, validation_share)
    elif validation_share is not None:
        raise ValueError(f"--validation_share: there is a validation split already, but got {validation_share}")
    return splits


def cut_validation(splits: DatasetDict, data_args: DataArguments, share: float, seed: int = 0) -> DatasetDict:
    """Moves distinct texts from `train` to `validation`, always the same ones for a seed.

    From each label, this share of its distinct texts is moved, rounded, as far as texts with several labels allow:
        labels
    with few texts lose none, and no text is in both splits.
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
    if not 0 < share < 1:
        raise ValueError(f"--label_noise: expected a number from 0 to below 1, but got {share}")
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
