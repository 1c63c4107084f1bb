"""The model card of a [`FocalTrainer`]: what it, its log, its data and its process know, as [`ModelCardContents`]."""

import hashlib
import json
import random
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, DatasetInfo, IterableDataset
from huggingface_hub import metadata_load, metadata_save
from torch import nn
from transformers import Trainer
from transformers.modelcard import TrainingSummary
from transformers.trainer_utils import PredictionOutput, has_length
from transformers.utils import logging

from ._command import publishable_command
from ._known_labels import known_labels
from ._model_kinds import class_names, is_multi_label, task_of
from ._sample_weights import weights_of
from .evaluation import evaluate_model, evaluate_operating_points
from .model_card import TOLERANCE, ModelCardContents, describe_hardware, write_model_card
from .settings import FocalSettings


__all__ = ["fingerprint", "write_trainer_card"]

# What Trainer adds to the metrics of an evaluation.
_NO_METRIC = re.compile(
    r"runtime|samples_per_second|steps_per_second|jit_compilation_time|model_preparation_time|mem_.*"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A card of ours, of the Trainer or of PEFT, which nobody has written.
_OF_PROGRAMS = ("```json hf_focal", "generated automatically", "[More Information Needed]")

logger = logging.get_logger(__name__)


@dataclass
class _Results:
    """What is known of the model in memory: logits (N, C) and labels only if it could predict.

    The labels are class ids (N), class probabilities (N, C), or of several labels 0 and 1 (N, C); the weights (N). The name
    is that of the dataset where there are several.
    """

    dataset: Any = None
    name: str | None = None
    split: str | None = None

    metrics: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    operating_points: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None


def write_trainer_card(
    trainer: Trainer,
    model: nn.Module,
    settings: FocalSettings,
    language: str | None,
    license: str | None,
    tags: str | list[str] | None,
    model_name: str | None,
    finetuned_from: str | None,
    tasks: str | list[str] | None,
    dataset_tags: str | list[str] | None,
    dataset: str | list[str] | None,
    dataset_args: str | list[str] | None,
    test_dataset: Dataset | None = None,
    test_split: str | None = None,
    predictions: PredictionOutput | None = None,
    calibrated: dict[str, Any] | None = None,
) -> Path:
    """Writes README.md and the pictures into the trainer's `output_dir`.

    Args:
        trainer ([`~transformers.Trainer`]): Whose model in memory it is about, usually a [`FocalTrainer`].
        model (`nn.Module`): That model without wrappers, a classifier with a config.
        settings ([`FocalSettings`]): What trained it.
        language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args:
            As in [`~transformers.Trainer.create_model_card`].
        test_dataset (`Dataset`, *optional*): What the results are from, instead of the trainer's `eval_dataset`.
        test_split (`str`, *optional*): Its name.
        predictions (`PredictionOutput`, *optional*): What `predict` has found for that dataset.
        calibrated (`dict`, *optional*): What `calibrate` has found for another.

    Returns:
        `Path`: Of the README.md.

    Raises:
        `ValueError`: If what is known does not make a card; the message says what.
    """
    folder, config = Path(trainer.args.output_dir or "."), cast(Any, model.config)
    existing = _existing_metadata(folder / "README.md")
    summary = TrainingSummary.from_trainer(
        trainer,
        language=_as_list(language) or _as_list(existing.get("language")),
        license=license or next(iter(_as_list(existing.get("license"))), None),
        tags=[*_as_list(tags), *_as_list(existing.get("tags"))],
        model_name=model_name or folder.absolute().name,
        finetuned_from=finetuned_from,
        tasks=_as_list(tasks) or [task_of(model)],
        dataset_tags=_as_list(dataset_tags),
        dataset=_as_list(dataset) or _as_list(dataset_tags),
        dataset_args=_as_list(dataset_args),
    )
    label_names = class_names(config)
    results = _results(trainer, model, settings, label_names, test_dataset, predictions)
    results.split = test_split
    contents = _contents(trainer, bool(is_multi_label(config)), settings, label_names, summary, results)
    contents.thresholds_reached = _thresholds_reached(calibrated or {}, settings, label_names)
    path = write_model_card(folder, contents, results.logits, results.labels)
    wrapped = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(wrapped, "create_or_update_model_card"):  # PEFT's, which replaces the tags
        written = metadata_load(path) or {}
        wrapped.create_or_update_model_card(str(folder))
        metadata = metadata_load(path) or {}
        all_tags = [*_as_list(written.get("tags")), *_as_list(metadata.get("tags"))]
        metadata_save(path, {**metadata, "tags": list(dict.fromkeys(all_tags))})
    return path


def _contents(
    trainer: Trainer,
    multi_label: bool,
    settings: FocalSettings,
    label_names: list[str],
    summary: TrainingSummary,
    results: _Results,
) -> ModelCardContents:
    args, state = trainer.args, trainer.state
    name = results.name
    tokens = [getattr(args, key, None) for key in ("hub_token", "push_to_hub_token")]
    command, lacks = publishable_command(["python", *sys.orig_argv[1:]], [token for token in tokens if token])
    limits = {
        f"Written during training, after step {state.global_step} of {state.max_steps}.": trainer.is_in_train,
        f"The results are those of the dataset {name!r}, one of several that it was evaluated on.": name is not None,
        "The results are those in the log of the training: decided as trained, with the probabilities of the logits themselves.": (
            results.logits is None and results.metrics.keys() > {"loss"}
        ),
        f"An example counts in the metrics by its weight, in column {_weight_column(trainer)!r}.": results.weights
        is not None,
        **dict.fromkeys(lacks, True),
    }
    return ModelCardContents(
        model_name=str(summary.model_name),
        **_data(summary, trainer, results),
        fitted_on_split=_fitted_on(trainer, settings, results),
        **_where_to_find(trainer, summary),
        label_names=label_names,
        settings=_without_weights(settings),
        seeds=[args.seed],
        metrics={name: [value] for name, value in results.metrics.items()},
        per_class={
            label: {name: [value] for name, value in metrics.items()} for label, metrics in results.per_class.items()
        },
        operating_points=results.operating_points,
        command=command,
        tolerance=TOLERANCE,
        multi_label=multi_label,
        base_model=_name_of(summary.finetuned_from),
        task=_as_list(summary.tasks)[0],
        language=_as_list(summary.language),
        license=summary.license,
        tags=[tag for tag in dict.fromkeys(_as_list(summary.tags)) if tag not in ("focal-loss", "hf_focal")],
        hyperparameters={**(summary.hyperparameters or {}), "step_of_this_model": _step_of_model(trainer)},
        limits=[limit for limit, holds in limits.items() if holds],
        wall_seconds=[entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry][-1:],
        hardware=describe_hardware(args.world_size),
    )


def _results(
    trainer: Trainer,
    model: nn.Module,
    settings: FocalSettings,
    label_names: list[str],
    test_dataset: Dataset | None,
    output: PredictionOutput | None,
) -> _Results:
    multi_label = is_multi_label(model.config)
    name, dataset = _evaluated(trainer) if test_dataset is None else (None, test_dataset)
    # Trainer lets one process write the card, which would wait for the others forever if it predicted; during training
    # a prediction is in the way; and a stream may be readable only once.
    cannot_predict = trainer.args.world_size > 1 or trainer.is_in_train or not _num_examples(dataset)
    if output is None and cannot_predict and test_dataset is not None:
        raise ValueError(
            "test_dataset: expected predictions=trainer.predict(test_dataset) beside it, made by all processes after the "
            "training, as the card cannot predict there, nor an empty dataset or a stream"
        )
    if output is None and cannot_predict:
        prefix = "eval_" if name is None else f"eval_{name}_"
        logged = _numbers(_logged_evaluation(trainer, prefix), prefix)
        return _Results(dataset, name, None, *_by_class(logged, label_names))
    if output is None:
        with _same_random_numbers(trainer.args.device):
            output = trainer.predict(dataset)
    _check_predictions(output, dataset)
    results = _Results(dataset, name, None, *_by_class(_numbers(output.metrics or {}, _prefix(output)), label_names))
    if trainer.preprocess_logits_for_metrics is None:  # whose output need not be logits
        results.logits, results.labels, results.weights = _targets(
            output, weights_of(dataset, _weight_column(trainer)), multi_label
        )
    if results.logits is not None:
        config, counts, weights = (
            cast(Any, model.config),
            settings.label_counts,
            weights_of(dataset, _weight_column(trainer)),
        )
        found = evaluate_model(
            results.logits,
            cast(np.ndarray, results.labels),
            config,
            label_names=label_names,
            label_counts=counts,
            sample_weight=results.weights,
        )
        # By example, of which each may have many tokens.
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        points = evaluate_operating_points(
            logits, cast(np.ndarray, output.label_ids), config, label_counts=counts, sample_weight=weights
        )
        results.operating_points = {
            point: {name: [*values] for name, values in metrics.items()} for point, metrics in points.items()
        }
        results.per_class = found.pop("per_class")
        others = {name: value for name, value in results.metrics.items() if name not in found}
        results.metrics = {**_numbers(found), **others}
    return results


def _targets(
    output: PredictionOutput, weights: np.ndarray | None, multi_label: bool | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | tuple[None, None, None]:
    """Logits, labels and weights as in `_Results`, of all examples or tokens that have a label."""
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    labels = output.label_ids
    if not (isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray) and logits.ndim > 1):
        return None, None, None
    shapes = [] if multi_label is None else [logits.shape]  # of rows, whose meaning only the config can tell
    if not multi_label or logits.shape[-1] == 1:
        shapes += [logits.shape[:-1], (*logits.shape[:-1], 1)]
    if labels.shape not in shapes:
        return None, None, None
    known = known_labels(logits.shape, torch.tensor(labels), bool(multi_label))
    is_known, labels = (part.numpy() for part in known)
    logits = logits.reshape(-1, logits.shape[-1])[is_known]
    if weights is not None:
        weights = weights.repeat(len(is_known) // len(weights))[is_known]
    return (logits, labels, weights) if labels.size else (None, None, None)


def _check_predictions(output: PredictionOutput, dataset: Any) -> None:
    """Whether they can be those of the dataset."""
    labels, expected = output.label_ids, _num_examples(dataset)
    if isinstance(labels, np.ndarray) and expected and len(labels) != expected:
        raise ValueError(f"predictions: expected those of the {expected} examples of the data, but got {len(labels)}")


def _prefix(output: PredictionOutput) -> str:
    """Of the names of its metrics: "test_", say."""
    names = (name for name in output.metrics or {} if name.endswith("_runtime"))
    return next((name.removesuffix("runtime") for name in names), "test_")


def _without_weights(settings: FocalSettings) -> FocalSettings:
    """A card does not hold what it takes to restore the weights of a folded model, which is as large as these."""
    if settings.folded is None:
        return settings
    return replace(settings, folded={**settings.folded, "residual": "", "unfolded_bias": None})


def _fitted_on(trainer: Trainer, settings: FocalSettings, results: _Results) -> list[str]:
    """What was fitted on the data of the results, as far as the trainer knows: that on its own held-out data was."""
    held_out = trainer.eval_dataset
    known = held_out.values() if isinstance(held_out, dict) else [held_out]
    if not any(_is_same(results.dataset, one) for one in known):
        return []
    fitted = {
        "the calibration": settings.is_calibrated,
        "the thresholds": settings.thresholds is not None,
        "the choice of the checkpoint": _is_best(trainer),
    }
    return [name for name, is_fitted in fitted.items() if is_fitted]


def _thresholds_reached(
    found: dict[str, Any], settings: FocalSettings, label_names: list[str]
) -> dict[str, dict[str, list[float]]]:
    """Of what `calibrate` has found, unless other thresholds have been stored since."""
    stored = settings.thresholds if settings.folded is None else settings.folded["unfolded_settings"]["thresholds"]
    if found.get("thresholds") != stored:
        return {}
    known = {
        name: {score: [*values] for score, values in scores.items() if np.isfinite(values).all()}
        for name, scores in found.get("reached", {}).items()
    }
    known |= {name: {} for name in found.get("not_reachable", [])}
    return {name: known[name] for name in label_names if name in known}


def _is_same(dataset: Any, other: Any) -> bool:
    if dataset is other or not (isinstance(dataset, Dataset) and isinstance(other, Dataset)):
        return dataset is other
    return len(dataset) == len(other) and fingerprint(dataset) == fingerprint(other)


def _where_to_find(trainer: Trainer, summary: TrainingSummary) -> dict[str, Any]:
    """What a user of the model loads. Of an adapter it takes the base model as well, which only its user knows."""
    if hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config"):
        return {}
    hub_id, base = trainer.hub_model_id, summary.finetuned_from  # an id, once there is a repository
    has_tokenizer = trainer.processing_class is not None
    folder = Path(trainer.args.output_dir or ".").absolute().name
    is_known = has_tokenizer or not base or Path(base).is_absolute()
    return {"model_id": hub_id or folder, "tokenizer_id": None if is_known else base}


def _name_of(model: str | None) -> str | None:
    """Of a folder only the name, as nobody else has it."""
    return (Path(model).name if Path(model).is_absolute() else model) if model else None


def _weight_column(trainer: Trainer) -> str | None:
    return getattr(trainer, "sample_weight_column", None)


def _evaluated(trainer: Trainer) -> tuple[str | None, Any]:
    """The dataset that the results are from, and its name where there are several: that which selects the best model."""
    datasets = trainer.eval_dataset
    if not isinstance(datasets, dict):
        return None, datasets
    metric = (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    if not datasets:
        return None, None
    name = max(datasets, key=lambda name: metric.startswith(f"{name}_") * len(name))
    return name, datasets[name]


def _num_examples(dataset: Any) -> int:
    """0 for what has no length, a stream."""
    return len(dataset) if has_length(dataset) else 0


def _logged_evaluation(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """The first evaluation in the log that is of the model in memory; later ones may be on other data."""
    step = _step_of_model(trainer)
    entries = (entry for entry in trainer.state.log_history if entry.get("step") == step)
    return next((entry for entry in entries if f"{prefix}loss" in entry), {})


def _step_of_model(trainer: Trainer) -> int:
    """How many steps the model in memory was trained for. At its end, training loads the best one, if it is told to."""
    state = trainer.state
    return state.best_global_step or 0 if _is_best(trainer) else state.global_step


def _is_best(trainer: Trainer) -> bool:
    has_ended = any("train_runtime" in entry for entry in trainer.state.log_history)
    return has_ended and trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None


def _numbers(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The metrics that are finite numbers, without their prefix."""
    named = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return {name: value for name, value in named.items() if not _NO_METRIC.fullmatch(name) and _is_finite(value)}


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and -1e100 <= float(value) <= 1e100


def _by_class(
    metrics: dict[str, float], label_names: list[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics, and apart from them those that `compute_metrics(..., per_class=True)` has made of each class."""
    keys = ("precision", "recall", "f1", "support")
    whole = [label for label in label_names if all(f"{label}_{key}" in metrics for key in keys)]
    names = {label: {key: f"{label}_{key}" for key in keys} for label in whole}
    taken = {name for by_key in names.values() for name in by_key.values()}
    per_class = {label: {key: metrics[name] for key, name in by_key.items()} for label, by_key in names.items()}
    return {name: value for name, value in metrics.items() if name not in taken}, per_class


def _data(summary: TrainingSummary, trainer: Trainer, results: _Results) -> dict[str, Any]:
    """What is known of the data; arguments win."""
    dataset, has_results = results.dataset, bool(results.metrics)
    source = trainer.train_dataset if dataset is None else dataset
    info = source.info if isinstance(source, Dataset | IterableDataset) else DatasetInfo()
    known_name = None if info.dataset_name == info.builder_name else info.dataset_name  # "csv", say, names no data
    version = None if info.version is None or str(info.version) == "0.0.0" else str(info.version)
    return {
        "dataset_name": ", ".join(_as_list(summary.dataset)) or known_name or "an unknown dataset",
        "dataset_id": next(iter(_as_list(summary.dataset_tags)), None),
        "dataset_config": next(iter(_as_list(summary.dataset_args)), info.config_name),
        "dataset_revision": _commit(source) or version,
        "dataset_split": _split(trainer, results) if has_results else None,
        "num_examples": _num_examples(dataset) or None if has_results else None,
        "dataset_fingerprint": fingerprint(dataset) if has_results and isinstance(dataset, Dataset) else None,
    }


def _split(trainer: Trainer, results: _Results) -> str | None:
    """Its name, if that is known: parts of one split, as `train_test_split` makes them, are all called as it was."""
    if results.split is not None:
        return results.split
    held_out, train = results.dataset, trainer.train_dataset
    split, split_of_train = (one.split if isinstance(one, Dataset) else None for one in (held_out, train))
    if split is not None and (split != split_of_train or held_out is train):
        return str(split)
    is_of_trainer = isinstance(trainer.eval_dataset, dict) or held_out is trainer.eval_dataset
    return results.name if is_of_trainer else "test"


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the rows. That of datasets also depends on the code that made them, and on where it was imported."""
    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=100):
        for row in table.to_pylist():
            digest.update(json.dumps(row, default=repr).encode())
    return digest.hexdigest()


def _commit(dataset: Any) -> str | None:
    """The commit of the Hub that a dataset was loaded from: since version 2.16 of datasets its folder in the cache."""
    files = dataset.cache_files if isinstance(dataset, Dataset) else []
    folders = {Path(file["filename"]).parent.name for file in files}
    folder = folders.pop() if len(folders) == 1 else ""
    return folder if _COMMIT.fullmatch(folder) else None


def _existing_metadata(readme: Path) -> dict[str, Any]:
    if not readme.is_file():
        return {}
    try:
        metadata = {**(metadata_load(readme) or {})}
    except Exception as error:  # there are many ways to break the parser
        warnings.warn(
            f"{readme}: its metadata cannot be read ({type(error).__name__}), so nothing of it is in the new card; the old one "
            f"is kept as {_kept(readme)}",
            stacklevel=5,
        )
        return {}
    if not any(mark in readme.read_text("utf-8") for mark in _OF_PROGRAMS):
        logger.warning("%s: the card that was there is kept as %s.", readme, _kept(readme))
    return metadata


def _kept(readme: Path) -> str:
    """The name of a copy."""
    taken = {path.name for path in readme.parent.glob("README.md.bak*")}
    names = ["README.md.bak", *(f"README.md.bak{number}" for number in range(1, len(taken) + 1))]
    name = next(name for name in names if name not in taken)
    shutil.copyfile(readme, readme.with_name(name))
    return name


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Restores the random number generators, so that what is drawn inside changes nothing afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _as_list(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, str)]
