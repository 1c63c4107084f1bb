"""The labels that a trainer feeds to its model, counted as the class ids that the model sees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import ClassLabel, Dataset
from torch import nn

from ._checks import ArgumentError
from ._model_kinds import LANGUAGE_MODELS, TOKEN_CLASSIFIERS, is_multi_label, is_one_of, num_classes_of
from ._upstream import is_split_by_node
from .alpha import LabelDistribution


# The names under which users of the trainer know the arguments of `LabelDistribution.from_dataset` and its `alpha`.
_NAMES = {
    "data": "train_dataset",
    "column": "args.label_names",
    "multi_label": "model.config.problem_type",
    "num_labels": "model.config.num_labels",
    "method": "alpha",
    "beta": "focal_beta",
    "max_ratio": "alpha_max_ratio (the flag --focal_alpha_max_ratio)",
    "empty_weight": "alpha_empty_weight (the flag --focal_alpha_empty_weight)",
}
_REMEDIES = {
    "column": "name the column with TrainingArguments(label_names=[...])",
    "multi_label": 'set model.config.problem_type to "multi_label_classification" or, for token labels, to '
    '"single_label_classification"',
    "num_labels": "create the model with that many num_labels",
    "empty_weight": "choose their weight with alpha_empty_weight (the flag --focal_alpha_empty_weight)",
}


def as_trainer_error(error: ArgumentError) -> ValueError:
    """The same error in the trainer's terms, without the argument names of the functions behind it."""
    return ValueError(error.for_caller(_NAMES, _REMEDIES))


def count_training_labels(dataset: Any, model: nn.Module, column: str | None) -> LabelDistribution:
    """Counts the labels: on the main process for all, or on every process if each has a shard of a stream.

    Args:
        dataset: The training data.
        model (`nn.Module`): Without wrappers.
        column (`str`, *optional*): The name of the label column, if it is not ``label`` or ``labels``.

    Raises:
        `ValueError`: If the labels cannot be counted, or are strings that are not in the model's `label2id`.
    """
    config = getattr(model, "config", None)
    multi_label = is_multi_label(config)
    labels_tokens = is_one_of(model, LANGUAGE_MODELS | TOKEN_CLASSIFIERS)
    num_labels = num_classes_of(model)
    columns = ["label", "labels"] if column is None else [column]
    if labels_tokens:
        rows = _rows_of_tokens(dataset, columns) if multi_label and num_labels != 1 else None
        multi_label = rows is not None
        dataset = dataset if rows is None else rows
    features = _label_features(dataset, columns)
    is_binary = multi_label and num_labels == 1
    if is_binary:  # the labels are those of two classes, of shape (N) or (N, 1)
        num_labels, multi_label, dataset = 2, False, _with_class_ids(dataset, columns)
    elif any(_holds_strings(feature) for feature in features):
        num_labels = None  # the data may lack some classes; the model knows all their names
    count = partial(
        LabelDistribution.from_dataset,
        dataset,
        column=column,
        num_labels=num_labels,
        multi_label=multi_label,
        one_hot=multi_label is False and num_labels is not None and not (labels_tokens or is_binary),
    )
    try:
        counted = count() if is_split_by_node(dataset) else _on_main_process(count)
    except ArgumentError as error:
        raise as_trainer_error(error) from error
    if is_binary:
        negatives, positives = counted.counts
        return replace(counted, counts=np.array([positives]), negatives=np.array([negatives]), names=None)
    if counted.names is None or any(isinstance(feature, ClassLabel) for feature in features):
        return counted
    return _by_id(counted, names_by_id(config))


def weigh_distribution(
    counted: LabelDistribution, dataset: Any, columns: Sequence[str], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The summed weights of the targets of each class, (C), and for several labels those of the negatives.

    Args:
        counted ([`LabelDistribution`]): The result of [`count_training_labels`].
        dataset: The training data.
        columns (sequence of `str`): One of them holds the labels.
        weights (`np.ndarray`): One for each example.

    Returns:
        None if counting the stored labels does not reproduce `counted`, for example because a transform or a collator
        makes other labels.
    """
    name = next((name for name in columns if name in (getattr(dataset, "column_names", None) or [])), None)
    if name is None or not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return None
    labels = dataset.select_columns(name).with_format("arrow")[:][name]
    weights = weights / weights.mean()
    if pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):
        weights = weights.repeat(pc.list_value_length(labels).to_numpy())
        labels = pc.list_flatten(labels)
    if pa.types.is_string(labels.type) and counted.names is not None:
        labels = pc.index_in(labels, pa.array(counted.names))
    values = labels.to_numpy()
    if values.dtype.kind not in "iubf" or values.size != weights.size or (values != np.rint(values)).any():
        return None
    num_labels, is_known = len(counted.counts), values != -100

    def sums(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if counted.negatives is None:
            ids = values[is_known].astype(np.int64)
            return np.bincount(ids, weights[is_known], minlength=num_labels), None
        rows = (-1, num_labels)
        positives, known = ((weights * part).reshape(rows).sum(0) for part in (values == 1, is_known))
        return positives, known - positives

    try:
        unweighted = sums(np.ones(len(values)))
    except ValueError:  # a negative id, or rows of another length
        return None
    is_same = all(
        np.array_equal(actual, expected)
        for actual, expected in zip(unweighted, (counted.counts, counted.negatives))
        if actual is not None and expected is not None
    )
    return sums(weights) if is_same else None


def names_by_id(config: Any) -> list[str]:
    """The class names of a model's `label2id`, in the order of the ids."""
    ids: dict[str, int] = getattr(config, "label2id", None) or {}
    return sorted(ids, key=lambda name: ids[name])


def check_strings_are_mapped(dataset: Any, collator: Any, label_names: Sequence[str] | None) -> None:
    """Rejects string labels that neither a transform nor the user's collator turns into class ids.

    Raises:
        `ValueError`: If there are such strings; the message says how to convert them to ids.
    """
    if not getattr(collator, "__module__", type(collator).__module__).startswith("transformers."):
        return
    # Only lists are checked by their first example: for others that could run code, and a stream would lose its first
    # row.
    first = dataset[0] if isinstance(dataset, (list, tuple)) and dataset and isinstance(dataset[0], Mapping) else {}
    for name in sorted({*(label_names or []), "label", "labels"}):
        holds_strings = any(_holds_strings(feature) for feature in _label_features(dataset, [name]))
        if holds_strings or isinstance(first.get(name), str):
            feature = (getattr(dataset, "features", None) or {}).get(name)
            remedy = (
                f"class ids with dataset.class_encode_column({name!r}) or your own mapping"
                if feature is None or _holds_strings(feature)
                else "one class id per token, or for several labels per example to rows of 0 and 1"
            )
            raise ValueError(
                f"labels: column {name!r} of train_dataset holds strings, which the model cannot use; convert them to {remedy}"
            )


def _by_id(counted: LabelDistribution, names: list[str]) -> LabelDistribution:
    """Reorders the counts of strings from alphabetical order to that of the model's class ids."""
    unknown = [name for name in counted.names or [] if name not in names]
    if unknown:
        raise ValueError(
            f"labels: the training data hold strings that are not in the model's label2id {names}: {unknown[:5]}; "
            "convert them to class ids with dataset.class_encode_column(column), or set label2id"
        )
    counts = np.zeros(len(names), np.int64)
    counts[[names.index(name) for name in counted.names or []]] = counted.counts
    negatives = None if counted.negatives is None else (counted.num_rows or 0) - counts
    return replace(counted, counts=counts, negatives=negatives, names=names)


def _rows_of_tokens(dataset: Any, columns: Sequence[str]) -> Dataset | None:
    """The multi-label rows of all tokens, concatenated, if each example has a list of rows."""
    if not isinstance(dataset, Dataset):
        return None
    for name in columns:
        if any(getattr(feature, "feature", None) is not None for feature in _label_features(dataset, [name])):
            labels = dataset.select_columns(name).with_format("arrow")[:][name]
            return Dataset(pa.table({name: pc.list_flatten(labels)}))
    return None


def _with_class_ids(dataset: Any, columns: Sequence[str]) -> Any:
    """The dataset with float labels, as losses of one logit need, converted to class ids if they are whole numbers."""
    if not isinstance(dataset, Dataset):
        return dataset
    for name in columns:
        if any(getattr(feature, "dtype", "").startswith("float") for feature in _label_features(dataset, [name])):
            labels = np.asarray(dataset.select_columns(name).with_format("numpy")[:][name]).ravel()
            if (labels == np.rint(labels)).all():
                return Dataset.from_dict({name: labels.astype(np.int64)})
    return dataset


def _label_features(dataset: Any, columns: Sequence[str]) -> list[Any]:
    """The features of those columns that exist (of lists, their elements); none if a transform may change them."""
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        return []
    features = getattr(dataset, "features", None) or {}
    return [getattr(features[name], "feature", features[name]) for name in columns if name in features]


def _holds_strings(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _on_main_process(function: Callable[[], Any]) -> Any:
    """Runs `function` on the main process; returns its result, or raises its exception, on every process."""
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            outcome = [function()]
        except Exception as error:  # the other processes wait for it
            outcome = [error]
    (result,) = broadcast_object_list(outcome)
    if isinstance(result, Exception):
        raise result
    return result
