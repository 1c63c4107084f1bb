"""The labels that a trainer feeds to its model: counted as what they are there, class ids."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import ClassLabel, Dataset
from torch import nn

from ._model_kinds import LANGUAGE_MODELS, TOKEN_CLASSIFIERS, is_multi_label, is_one_of, num_classes_of
from ._upstream import is_split_by_node
from .alpha import LabelDistribution


def count_training_labels(dataset: Any, model: nn.Module, column: str | None) -> LabelDistribution:
    """Counted by the main process for all of them, or by all where each has a shard of a stream.

    Args:
        dataset: The training data.
        model (`nn.Module`): Without wrappers.
        column (`str`, *optional*): The name of the labels, if it is not ``label`` or ``labels``.

    Raises:
        `ValueError`: If they cannot be counted, or are strings that are none of the model's `label2id`.
    """
    config = getattr(model, "config", None)
    multi_label = is_multi_label(config)
    if is_one_of(model, LANGUAGE_MODELS | TOKEN_CLASSIFIERS):
        multi_label = False
    num_labels = num_classes_of(model)
    is_binary = multi_label and num_labels == 1
    if is_binary:  # the labels are those of two classes, whether or not each stands in a row of its own
        num_labels, multi_label, dataset = 2, False, _with_class_ids(dataset, column)
    count = partial(
        LabelDistribution.from_dataset, dataset, column=column, num_labels=num_labels, multi_label=multi_label
    )
    counted = count() if is_split_by_node(dataset) else _on_main_process(count)
    if is_binary:
        negatives, positives = counted.counts
        return replace(counted, counts=np.array([positives]), negatives=np.array([negatives]), names=None)
    if counted.names is None or _has_class_label(dataset, ["label", "labels"] if column is None else [column]):
        return counted
    return _by_id(counted, names_by_id(config))


def names_by_id(config: Any) -> list[str]:
    """The class names of a model's `label2id`, in the order of the ids."""
    ids: dict[str, int] = getattr(config, "label2id", None) or {}
    return sorted(ids, key=lambda name: ids[name])


def check_strings_are_mapped(dataset: Any, collator: Any, label_names: Sequence[str] | None) -> None:
    """Refuses strings for labels that neither a transform nor a collator of the user turns into class ids.

    Raises:
        `ValueError`: If there are such strings; the message says how to make ids of them.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return
    if not getattr(collator, "__module__", type(collator).__module__).startswith("transformers."):
        return
    for name in sorted({*(label_names or []), "label", "labels"} & {*dataset.column_names}):
        feature = dataset.features[name]
        if getattr(getattr(feature, "feature", feature), "dtype", None) in ("string", "large_string"):
            raise ValueError(
                f"labels: column {name!r} of train_dataset holds strings, which cannot reach the model; make class ids of "
                f"them, with dataset.class_encode_column({name!r}) or a mapping of your own"
            )


def _by_id(counted: LabelDistribution, names: list[str]) -> LabelDistribution:
    """Of strings, which are counted in the order of the alphabet: in that of the ids that a model gives them."""
    unknown = [name for name in counted.names or [] if name not in names]
    if unknown:
        raise ValueError(
            f"labels: the training data hold strings, of which {unknown[:5]} are none of the model's label2id, {names}; make "
            "class ids of them, with dataset.class_encode_column(column) or a label2id of your own"
        )
    counts = np.zeros(len(names), np.int64)
    counts[[names.index(name) for name in counted.names or []]] = counted.counts
    negatives = None if counted.negatives is None else (counted.num_rows or 0) - counts
    return replace(counted, counts=counts, negatives=negatives, names=names)


def _with_class_ids(dataset: Any, column: str | None) -> Any:
    """With class ids for the whole numbers in floats that losses of one logit ask for."""
    names = {"label", "labels"} if column is None else {column}
    features = dataset.features if isinstance(dataset, Dataset) and dataset.format["type"] != "custom" else {}
    for name in names & features.keys():
        feature = features[name]
        if getattr(getattr(feature, "feature", feature), "dtype", "").startswith("float"):
            labels = np.asarray(dataset.select_columns(name).with_format("numpy")[:][name]).ravel()
            if (labels == np.rint(labels)).all():
                return Dataset.from_dict({name: labels.astype(np.int64)})
    return dataset


def _has_class_label(dataset: Any, columns: Sequence[str]) -> bool:
    """Whether the names are those of a `ClassLabel`, whose order is that of the ids."""
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        return False
    features = getattr(dataset, "features", None) or {}
    labels = [features.get(name) for name in columns]
    return any(isinstance(getattr(feature, "feature", feature), ClassLabel) for feature in labels)


def _on_main_process(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises on the main process, on every process."""
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
