"""The model card: results with the settings, data and command that produced them, to read and to reproduce.

Its text is determined by [`ModelCardContents`], which it contains as a JSON record. So [`read_model_card`] can check
that tables and metadata still agree with the record.
"""

import json
import math
import os
import platform
import re
import shlex
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from hashlib import sha256
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import Tensor

from . import __version__
from ._card_pictures import (
    confusion_matrix,
    precision_recall_curves,
    prior_note,
    readings,
    reliability_diagram,
)
from ._command import publishable_command
from ._known_labels import known_labels
from ._markdown import escape_markdown, markdown_table, one_line
from ._picture_text import drawable, has_matplotlib, numbered
from ._rendered_card import check_pictures, check_sections, fenced
from .alpha import LabelDistribution
from .metrics import mean_and_interval
from .operating_points import decide, has_posterior
from .settings import OPERATING_POINTS, FocalSettings


__all__ = [
    "TOLERANCE",
    "ModelCardContents",
    "describe_hardware",
    "escape_markdown",
    "markdown_table",
    "one_line",
    "package_versions",
    "publishable_command",
    "read_model_card",
    "write_model_card",
]

# Other hardware or versions round differently, so that training takes another path: the results differ about as much
# as those of another seed, and the standard deviation of the macro-F1 over seeds is 0.01 to 0.08 in the README.
TOLERANCE = 0.05

_RECORD = "json hf_focal"
_FOCUSING = ("gamma", "gamma_neg", "margin")  # settings that turn cross entropy into focal loss
# Title, name of the Hub's metric and its arguments, if they do not follow from our name.
_METRICS = {
    "f1_macro": ("Macro-F1", "f1", {"average": "macro"}),
    "f1_micro": ("Micro-F1", "f1", {"average": "micro"}),
    "f1_weighted": ("Weighted F1", "f1", {"average": "weighted"}),
    "matthews_correlation": ("MCC", "matthews_correlation", None),
    "expected_calibration_error": ("ECE", "expected_calibration_error", None),
    "expected_calibration_error_floor": (
        "ECE of a perfectly calibrated model",
        "expected_calibration_error_floor",
        None,
    ),
}

# Not a result of the model: the score that a perfectly calibrated model would get.
_NOT_IN_METADATA = "expected_calibration_error_floor"
# The ranges of metrics; the other classification metrics lie in [0, 1].
_RANGES = {
    "matthews_correlation": (-1.0, 1.0),
    "brier_score": (0.0, 2.0),
    "negative_log_likelihood": (0.0, math.inf),
    "loss": (0.0, math.inf),
}
_SHARES = re.compile(
    r"accuracy|balanced_accuracy|(f1|precision|recall|average_precision|expected_calibration_error).*"
)
_DIGITS = 4  # in the metadata
_DEEPEST_METADATA = 20
_PICTURES = {
    "label_distribution.png": "Labels of the training data",
    "confusion_matrix.png": "Confusion matrix",
    "reliability_diagram.png": "Reliability diagram",
    "precision_recall.png": "Precision and recall",
}
_LARGEST_CARD, _LARGEST_METADATA, _MOST_METRICS = 2**21, 2**16, 100
# For each task, our pipeline that reads the settings stored by FocalTrainer, and an example input.
_PIPELINES = {
    "text-classification": ("FocalTextClassificationPipeline", "Profits doubled in the second quarter."),
    "token-classification": ("FocalTokenClassificationPipeline", "Mary Smith works in London."),
}

Value = str | bool | float | list[float] | None


def describe_hardware(num_processes: int = 1) -> str:
    """One line with this machine's processor, cores and GPUs, and the processes and threads that share them."""
    cpuinfo = Path("/proc/cpuinfo")
    model_name = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
    processor = model_name[1] if model_name else platform.processor() or platform.machine()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    shares = [f"processes: {num_processes}", f"threads of each: {torch.get_num_threads()}"]
    return ", ".join([processor, f"{os.cpu_count()} cores", *gpus, *shares])


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the results."""
    packages = {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")}
    return {"python": platform.python_version(), **packages, "hf_focal": __version__}


@dataclass(kw_only=True)
class ModelCardContents:
    """The contents of a model card. Texts may be any strings: they are escaped when the card is written.

    Attributes:
        model_name (`str`): The title.
        dataset_name (`str`): Human-readable name of the data.
        label_names (`list[str]`): The C class names.
        settings ([`FocalSettings`]): The loss settings of the training. A `dict`, such as a config's ``focal_loss``,
            is converted.
        seeds (`list[int]`): Seed of each of the S runs.
        metrics (`dict[str, list[float]]`): The finite value of each run, by name as in [`ImbalancedClassification`];
            for one run, a number will do.
        command (`list[str]`): The command that was run, as in `sys.orig_argv`.
        tolerance (`float`): The largest absolute deviation expected with other hardware or versions, such as
            `TOLERANCE`; see also [`ModelCardContents.tolerance_of`].
        per_class (`dict[str, dict[str, list[float]]]`): The same for each class, by its name.
        operating_points (`dict[str, dict[str, list[float]]]`): With one run, for each operating point of the model,
            the value of each metric and the ends of its 95 % interval, as returned by [`evaluate_operating_points`].
        thresholds_reached (`dict[str, dict[str, list[float]]]`): By label, the scores that the thresholds reach on the
            data they were fitted on, as returned by [`calibrate_config`]; empty for a label whose criterion cannot be
            met.
        multi_label (`bool`): Whether the labels of an example are independent.
        base_model (`str`, *optional*): Hub id (or another name) of the model that was fine-tuned.
        dataset_id (`str`, *optional*): Hub id of the data, if they are on the Hub.
        dataset_config, dataset_revision, dataset_split, dataset_fingerprint (`str`, *optional*): The exact data; the
            split is the one that the results are from.
        num_examples (`int`, *optional*): The number of examples that the results are from.
        fitted_on_split (`list[str]`, *optional*): What else was fitted on them, for example "temperature", which makes
            the results optimistic; an empty list if nothing was, None if that is not known.
        model_id (`str`, *optional*): Hub id or folder of the model, for the section "How to use".
        tokenizer_id (`str`, *optional*): The same for its tokenizer, if it is not saved beside the model.
        task (`str`): The pipeline tag.
        language, tags (`list[str]`): For the metadata; the tags besides "focal-loss" and "hf_focal".
        license (`str`, *optional*): License of the model, if known.
        hyperparameters (`dict`): Settings of the training, as text or numbers.
        limits (`list[str]`): Limits in addition to those that follow from the other attributes.
        wall_seconds (`list[float]`): Duration of each run, if known.
        hardware (`str`), versions (`dict[str, str]`): By default those of this process.

    Raises:
        `ValueError`: If a value is of the wrong type or does not fit the others; the message names it.
    """

    model_name: str
    dataset_name: str
    label_names: list[str]
    settings: FocalSettings
    seeds: list[int]
    metrics: dict[str, list[float]]
    command: list[str]
    tolerance: float
    per_class: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    operating_points: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    thresholds_reached: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    multi_label: bool = False
    base_model: str | None = None
    dataset_id: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_split: str | None = None
    dataset_fingerprint: str | None = None
    num_examples: int | None = None
    fitted_on_split: list[str] | None = None
    model_id: str | None = None
    tokenizer_id: str | None = None
    task: str = "text-classification"
    language: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    license: str | None = None
    hyperparameters: dict[str, Value] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    hardware: str = field(default_factory=describe_hardware)
    versions: dict[str, str] = field(default_factory=package_versions)

    def __post_init__(self) -> None:
        self.metrics, self.per_class = _per_seed(self.metrics), _per_seed(self.per_class)
        if not isinstance(self.settings, FocalSettings):
            self.settings = FocalSettings.from_dict(_as_python(self.settings))
        for name, kind in get_type_hints(type(self)).items():
            setattr(self, name, _checked(name, getattr(self, name), kind))
        num_seeds, num_classes = len(self.seeds), len(self.label_names)
        _check("seeds", self.seeds, "at least one, each once", num_seeds > 0 and len({*self.seeds}) == num_seeds)
        _check("tolerance", self.tolerance, "a number >= 0", self.tolerance >= 0)
        _check("num_examples", self.num_examples, "a number >= 0", (self.num_examples or 0) >= 0)
        _check("label_names", self.label_names, "different names", len(set(self.label_names)) == num_classes)
        _check("per_class", list(self.per_class), "classes of label_names", {*self.per_class} <= {*self.label_names})
        points = [*self.operating_points]
        _check("operating_points", points, "none, as there are several seeds", not points or num_seeds == 1)
        _check("operating_points", points, f"some of {OPERATING_POINTS}", {*points} <= {*OPERATING_POINTS})
        reached = [*self.thresholds_reached]
        _check("thresholds_reached", reached, "classes of label_names", {*reached} <= {*self.label_names})
        for kind in ("metrics", "per_class", "operating_points", "thresholds_reached"):
            groups = [self.metrics] if kind == "metrics" else getattr(self, kind).values()
            names = {name for group in groups for name in group}
            _check(kind, f"{len(names)} of them", f"at most {_MOST_METRICS} metrics", len(names) <= _MOST_METRICS)
        for kind in ("operating_points", "thresholds_reached"):
            for name, values in (pair for metrics in getattr(self, kind).values() for pair in metrics.items()):
                is_interval = len(values) == 3 and values[1] <= values[2]
                _check(f"{kind}, {name}", values, "a value and the ends of its interval", is_interval)
        self.settings.check_fits(num_classes, self.multi_label)
        _alpha(self)  # checks alpha if it is one number
        runs = [*self.metrics.items(), *(pair for metrics in self.per_class.values() for pair in metrics.items())]
        for name, values in [*runs, *([("wall_seconds", self.wall_seconds)] if self.wall_seconds else [])]:
            _check(name, values, f"one number for each of {num_seeds} seeds", len(values) == num_seeds)

    def tolerance_of(self, index: int, name: str, label: str | None = None, at_most: float = math.inf) -> float:
        """The largest deviation of a number that is expected with other hardware or versions.

        This is the largest of three: `tolerance`; the range of the other seeds; and, for a class with n test examples,
        1 / sqrt(n), twice the largest possible standard deviation of a proportion of n examples.

        Args:
            index (`int`): Position of the run in `seeds`.
            name (`str`): The metric.
            label (`str`, *optional*): The class, for a metric of `per_class`.
            at_most (`float`): Upper limit of the first two, whatever the card says.
        """
        metrics = self.metrics if label is None else self.per_class[label]
        others = [value for i, value in enumerate(metrics[name]) if i != index]
        support = 0.0 if label is None else metrics.get("support", [0.0] * len(self.seeds))[index]
        class_tolerance = support**-0.5 if support >= 1 else 0.0
        tolerance = max(self.tolerance, max(others, default=0.0) - min(others, default=0.0))
        return max(min(tolerance, at_most), class_tolerance)


def write_model_card(
    folder: str | Path,
    contents: ModelCardContents,
    logits: Tensor | np.ndarray | None = None,
    labels: Tensor | np.ndarray | None = None,
) -> Path:
    """Writes README.md and, beside it, those pictures for which there is data.

    These are label_distribution.png and, with logits and labels (of one run), reliability_diagram.png, for two classes
    and for multi-label precision_recall.png and, except for multi-label, confusion_matrix.png. A class whose name
    cannot be drawn with any installed font is shown as a number, which the card explains. Pictures require matplotlib
    (`pip install 'hf_focal[plots]'`); without it there is a warning, and the card has none.

    Args:
        folder (`str` or `Path`): The folder to write to; created if it does not exist.
        contents ([`ModelCardContents`]): The contents of the card.
        logits (`Tensor` or array, *optional*): Of the examples that the results are from, (..., C).
        labels (`Tensor` or array, *optional*): Class ids of the shape of `logits` without the last dimension, where
            -100 is ignored, or class probabilities of the shape of `logits`; for multi-label, 0 or 1 of the shape of
            `logits`. A row of -100 is ignored.

    Returns:
        `Path`: The README.md.

    Raises:
        `ValueError`: If only one of logits and labels is given, their shapes do not fit, or the labels are not as
            above.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_focal.model_card import ModelCardContents, read_model_card, write_model_card
    >>> contents = ModelCardContents(
    ...     model_name="spam filter",
    ...     dataset_name="inbox",
    ...     label_names=["ham", "spam"],
    ...     settings={"gamma": 2.0, "alpha": None, "label_counts": [950, 50]},
    ...     seeds=[1, 2, 3],
    ...     metrics={"f1_macro": [0.81, 0.83, 0.82]},
    ...     command=["python", "train.py", "--gamma", "2"],
    ...     tolerance=0.02,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_model_card(folder, contents)
    ...     print(next(line for line in path.read_text().splitlines() if line.startswith("| Macro-F1")))
    ...     read_model_card(path).command
    | Macro-F1 | 0.8200 | 0.7952 to 0.8448 |
    ['python', 'train.py', '--gamma', '2']

    ```
    """
    if (logits is None) != (labels is None):
        raise ValueError("labels: expected logits and labels, or neither, but got only one of them")
    examples = None if logits is None else _examples(contents, torch.as_tensor(logits), torch.as_tensor(labels))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw(folder, contents, examples)
    text = f"---\n{_metadata(contents).to_yaml()}\n---\n\n{_body(contents, pictures)}"
    (folder / "README.md").write_text(text, encoding="utf-8", newline="")
    return folder / "README.md"


def read_model_card(path: str | Path) -> ModelCardContents:
    """The contents of a card written by [`write_model_card`]. Nothing in the card is executed.

    Sections, prose and metadata may have been added to the card, and prose after its sections, but no HTML. Everything
    that follows from the record must be unchanged, as rendered from Markdown: each part once and under its heading.

    Args:
        path (`str` or `Path`): The README.md.

    Raises:
        `ValueError`: If the file or its record does not exist; if the record lacks a key, has a duplicate or unknown
            key,
        or a value of the wrong type; or if a section, the license, base model, datasets or results in the metadata
        differ from the record. The message names the line. Cards of version 0.1 cannot be read.
    """
    card = _loaded(Path(path))
    text = card.text.replace("\r\n", "\n").replace("\r", "\n")
    blocks = fenced(text, _RECORD)
    _check(str(path), f"{len(blocks)} of them", f"one block of {_RECORD}", len(blocks) == 1)
    try:
        record = json.loads(blocks[0].content, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"record: expected JSON, but got {error!r:.500}") from error
    _check("record", record, "an object", isinstance(record, dict))
    record = {"thresholds_reached": {}, **record}  # left out of the card if empty
    for name in sorted(get_type_hints(ModelCardContents).keys() ^ record.keys()):
        raise ValueError(
            f"record: expected {'no' if name in record else 'a'} key {name!r}, but got {sorted(record)!r:.500}"
        )
    contents = ModelCardContents(**record)
    by_title, title = _sections(contents, {}), f"# {escape_markdown(contents.model_name)}"
    sections = {f"## {title}": section for title, section in by_title.items() if section}
    sections = {title: _introduction(contents)} | sections
    sections = {title: section.partition(f"\n\n```{_RECORD}")[0] for title, section in sections.items()}
    known = [title for title in by_title if title != "Pictures"]
    check_sections(str(path), text, sections, ["Results", *known], _RECORD)
    check_pictures(str(path), text, [f"![{title}]({file})" for file, title in _PICTURES.items()], _RECORD)
    _check_metadata(str(path), card, contents)
    return contents


def _loaded(path: Path) -> ModelCard:
    """Loads the card, but rejects aliases in the metadata: a few lines of them can expand beyond any memory."""
    _check(str(path), "no such file", "a model card", path.is_file())
    size = path.stat().st_size
    _check(str(path), f"{size:,}", f"at most {_LARGEST_CARD:,} bytes", size <= _LARGEST_CARD)
    depth = 0
    try:
        metadata = REGEX_YAML_BLOCK.search(path.read_text("utf-8-sig"))
        content = metadata[2] if metadata else ""
        if len(content) > _LARGEST_METADATA:
            raise ValueError(f"more than {_LARGEST_METADATA:,} characters of metadata")
        for event in yaml.parse(content, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST_METADATA:
                raise ValueError(f"metadata with aliases or with more than {_DEEPEST_METADATA} levels")
        _check_keys(yaml.compose(content, yaml.SafeLoader))
        card = ModelCard.load(path)
    except Exception as error:  # the parser of the metadata can fail in many ways
        raise ValueError(f"{path}: expected a model card, but got {error!r:.500}") from error
    return card


def _check_keys(node: yaml.Node | None) -> None:
    """Rejects duplicate keys, for which parsers may choose different values."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = [name.value for name, _ in pairs if isinstance(name, yaml.ScalarNode)]
    if len({*names}) < len(names):
        raise ValueError("metadata with a duplicate key")
    inner = [value for _, value in pairs] if pairs else node.value if isinstance(node, yaml.SequenceNode) else []
    for value in inner:
        _check_keys(value)


def _check_metadata(path: str, card: ModelCard, contents: ModelCardContents) -> None:
    """Compares the metadata with the record; authors may add what the record does not know, such as a license."""
    actual, expected = card.data.to_dict(), _metadata(contents).to_dict()
    for name in ("license", "base_model", "datasets", "pipeline_tag", "language", "metrics"):
        if name in expected:
            _check(f"{path}: {name}", actual.get(name), repr(expected[name]), actual.get(name) == expected[name])
    tags = actual.get("tags")
    _check(
        f"{path}: tags",
        tags,
        f"{expected['tags']}",
        isinstance(tags, list) and {*expected["tags"]} <= {*map(str, tags)},
    )
    library = actual.get("library_name")  # PEFT overwrites it with its own name
    _check(f"{path}: library_name", library, "'transformers'", library in ("transformers", "peft"))
    results = getattr(card.data, "eval_results", None) or []
    named = [(result.metric_name, result.metric_value) for result in results]
    _check(f"{path}: model-index", named, "the results of the record", results == _eval_results(contents))
    if results:
        title = getattr(card.data, "model_name", None)
        _check(f"{path}: model-index", title, repr(contents.model_name), title == _for_yaml(contents.model_name))


def _metadata(contents: ModelCardContents) -> ModelCardData:
    results, dataset_id = _eval_results(contents), _hub_id(contents.dataset_id)
    return ModelCardData(
        language=contents.language or None,
        license=contents.license and _for_yaml(contents.license),
        library_name="transformers",
        pipeline_tag=contents.task,
        base_model=_hub_id(contents.base_model),
        datasets=None if dataset_id is None else [dataset_id],
        tags=["focal-loss", "hf_focal", *map(_for_yaml, contents.tags)],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=_for_yaml(contents.model_name) if results else None,  # a model-index needs results
        eval_results=results or None,
    )


def _eval_results(contents: ModelCardContents) -> list[EvalResult]:
    slug = re.sub(r"[^A-Za-z0-9]+", "-", contents.dataset_name).strip("-")
    results = []
    for name, values in contents.metrics.items():
        if name == _NOT_IN_METADATA:
            continue
        title, metric, arguments = _metric(name)
        result = EvalResult(
            task_type=contents.task,
            dataset_type=_for_yaml(contents.dataset_id or "") or slug or "unknown",  # required for a result
            dataset_name=_for_yaml(contents.dataset_name),
            dataset_config=contents.dataset_config and _for_yaml(contents.dataset_config),
            dataset_split=contents.dataset_split and _for_yaml(contents.dataset_split),
            dataset_revision=contents.dataset_revision and _for_yaml(contents.dataset_revision),
            metric_type=_for_yaml(metric),
            metric_name=_for_yaml(title),
            metric_args=arguments,
            metric_value=round(fmean(values), _DIGITS),
        )
        results.append(result)
    return results


def _for_yaml(text: str) -> str:
    """The text without the line break (U+0085) that YAML turns into a space."""
    return text.replace("\x85", " ")


def _body(contents: ModelCardContents, pictures: dict[str, str]) -> str:
    sections = _sections(contents, pictures)
    written = [f"## {title}\n\n{section}" for title, section in sections.items() if section]
    return "\n\n".join([f"# {escape_markdown(contents.model_name)}", _introduction(contents), *written]) + "\n"


def _introduction(contents: ModelCardContents) -> str:
    focusing = {name: value for name, value in _shown_settings(contents).items() if name in _FOCUSING}
    named = ", ".join(f"{name} {_format_value(value)}" for name, value in focusing.items())
    loss = f"focal loss ({escape_markdown(named)})" if _is_focal(contents) else "cross entropy"
    alpha = "" if contents.settings.alpha is None else " and class weights (alpha)"
    source = "Trained" if contents.base_model is None else f"Fine-tuned from {escape_markdown(contents.base_model)}"
    return f"{source} on {escape_markdown(contents.dataset_name)} with {loss}{alpha}, using hf\\_focal."


def _sections(contents: ModelCardContents, pictures: dict[str, str]) -> dict[str, str]:
    """The sections by heading, in order; those without content are empty."""
    images = "\n\n".join(f"![{title}]({file})" for file, title in pictures.items())
    numbers = [f"{shown} is {name}" for shown, name in numbered(contents.label_names).items()] if pictures else []
    return {
        "How to use": _how_to_use(contents),
        _results_title(contents): "\n\n".join(part for part in (_results(contents), _fitted_on(contents)) if part),
        "Operating points": _operating_points(contents),
        "Thresholds": _thresholds(contents),
        "Results per class": _per_class(contents),
        "Pictures": "\n\n".join(
            [images, *([f"In the pictures, {_listed(numbers, len(numbers))}."] if numbers else [])]
        ),
        "Settings": _settings(contents),
        "Labels of the training data": _training_labels(contents),
        "Limits": "\n".join(f"- {limit}" for limit in _limits(contents)),
        "Data, machine and versions": _origin(contents),
        "Reproduce": _reproduce(contents),
    }


def _folded(settings: FocalSettings, folded: dict[str, Any]) -> str:
    if any(folded["shift"]):
        return (
            "The thresholds are folded into the weights: predict the class with the largest score or, with several labels, "
            "every label with a score of 0.5 or more. The scores are therefore not probabilities; "
            "`hf_focal.posterior_from_config` returns those, for the class frequencies of the training data."
        )
    calibrated = ", calibrated on held-out data," if settings.is_calibrated else ""
    measured = folded["measured"]
    how_near = ""
    if measured and not folded["exact"]:
        is_of_data = "negative_log_likelihood_after" in measured
        how_near = (
            f"{' On the data used for folding, it' if is_of_data else ' It'} differs from the posterior of the formula by at most "
            f"{measured['largest_difference']:.2g}, on average by {measured['mean_difference']:.2g}."
        )
    other = settings.class_prior != settings.training_prior
    where = (
        " It is for the class frequencies in `class_prior` of the record, which are not those of the training data."
        if other
        else ""
    )
    return (
        f"The class posterior{calibrated} is folded into the weights, so that every pipeline returns it as the score."
        f"{where}{how_near}"
    )


def _how_to_use(contents: ModelCardContents) -> str:
    """Example code, to be run in the parent of the model's folder."""
    settings, model_id, tokenizer_id = contents.settings, contents.model_id, contents.tokenizer_id
    if model_id is None or contents.task not in _PIPELINES:
        return ""
    pipeline_class, example = _PIPELINES[contents.task]
    is_of_texts = contents.task == "text-classification"
    is_ours = has_posterior(settings, contents.multi_label) and (
        settings.folded is None or settings.operating_point != "as_trained"
    )
    calibrated = ", calibrated on held-out data" if settings.is_calibrated else ""
    arguments = {
        "model=model": True,
        f"tokenizer={_quoted(tokenizer_id or '')}": tokenizer_id is not None,
        f"pipeline_class={pipeline_class}": is_ours,
        "truncation=True": is_of_texts,
        "top_k=None": is_of_texts and contents.multi_label,  # all labels, each with its decision
        'aggregation_strategy="first"': not is_of_texts,  # the token of each word that is labelled in training
    }
    given = [argument for argument, holds in arguments.items() if holds]
    lines = [
        "from transformers import pipeline",
        *(["", f"from hf_focal import {pipeline_class}", ""] if is_ours else [""]),
        f"model = {_quoted(model_id)}  # the folder of this card, or the model's id on the Hub",
        f"classify = pipeline({', '.join([_quoted(contents.task), *given])})",
        f"print(classify([{_quoted(example)}]))",
    ]
    scores = f"A score is the class posterior{calibrated}; predictions use the operating point `{settings.operating_point}`."
    if settings.folded is not None:
        scores = _folded(settings, settings.folded)
        if is_ours:
            scores += f" Predictions use the operating point `{settings.operating_point}`, which stock pipelines do not support."
    elif not is_ours:
        scores = "The scores are the softmax or sigmoid of the logits, which are not class probabilities."
    return "\n".join(["```python", *lines, "```", "", scores])


def _results_title(contents: ModelCardContents) -> str:
    if contents.num_examples is None:
        return "Results"
    split = contents.dataset_split
    where = "the evaluation data" if split is None else f"the {escape_markdown(split)} split"
    return f"Results on {where}, {contents.num_examples:,} examples"


def _fitted_on(contents: ModelCardContents) -> str:
    fitted = contents.fitted_on_split
    if fitted is None or not contents.metrics:
        return ""
    if not fitted:
        return "Nothing was fitted on these examples."
    return f"The results are optimistic, because these examples were also used for: {_listed(fitted)}."


def _results(contents: ModelCardContents) -> str:
    num_seeds = len(contents.seeds)
    if num_seeds == 1:
        return _table(["metric", "value"], [[_metric(k)[0], f"{v[0]:.4f}"] for k, v in contents.metrics.items()])
    rows = []
    for name, values in contents.metrics.items():
        mean, half = mean_and_interval(values)
        low, high = _range(name)
        rows.append([_metric(name)[0], f"{mean:.4f}", f"{max(mean - half, low):.4f} to {min(mean + half, high):.4f}"])
    return _table(["metric", f"mean of {num_seeds} seeds", "95 % interval (Student's t)"], rows)


def _operating_points(contents: ModelCardContents) -> str:
    """A table with a row for each operating point."""
    points = contents.operating_points
    if not points:
        return ""
    columns = list(dict.fromkeys(name for metrics in points.values() for name in metrics))
    rows = [
        [
            f"{name} (in force)" if name == contents.settings.operating_point else name,
            *("{:.3f} ({:.3f} to {:.3f})".format(*metrics[column]) if column in metrics else "" for column in columns),
        ]
        for name, metrics in points.items()
    ]
    table = _table(["operating point", *(_metric(name)[0] for name in columns)], rows)
    rare = contents.label_names[contents.settings.rarer_or_positive_label] if "precision" in columns else ""
    label_note = f" Precision and recall are for {escape_markdown(rare)}." if rare else ""
    makes = f"`{_PIPELINES[contents.task][0]}`" if contents.task in _PIPELINES else "`hf_focal.decide`"
    return (
        f"{table}\n\nIn brackets: 95 % bootstrap intervals over the examples. The results above are for the operating point in force, "
        f"which {makes} uses; a stock pipeline decides `as_trained`. The documentation of `hf_focal.decide` explains them."
        f"{label_note}"
    )


def _thresholds(contents: ModelCardContents) -> str:
    """The scores that the thresholds reach on the data they were fitted on, and the criteria that cannot be met."""
    if not contents.thresholds_reached:
        return ""
    columns = list(dict.fromkeys(name for scores in contents.thresholds_reached.values() for name in scores))
    rows = [
        [
            name,
            *("{:.3f} ({:.3f} to {:.3f})".format(*scores[column]) if column in scores else "" for column in columns),
        ]
        for name, scores in contents.thresholds_reached.items()
        if scores
    ]
    missing = [name for name, scores in contents.thresholds_reached.items() if not scores]
    wanted = contents.settings.threshold_criterion
    reached = (
        f"Fitted for {wanted} on held-out examples. Scores on the same examples, with 95 % intervals:\n\n"
        f"{_table(['label', *(_metric(name)[0] for name in columns)], rows)}"
    )
    not_reached = f"No threshold reaches {wanted} on the held-out examples for: {_listed(missing)}."
    return "\n\n".join([reached] * bool(rows) + [not_reached] * bool(missing))


def _per_class(contents: ModelCardContents) -> str:
    columns = list(dict.fromkeys(name for metrics in contents.per_class.values() for name in metrics))
    rows = [
        [label, *(_format_mean(metrics[name]) if name in metrics else "" for name in columns)]
        for label, metrics in contents.per_class.items()
    ]
    return _table(["class", *(escape_markdown(_metric(name)[0]) for name in columns)], rows)


def _settings(contents: ModelCardContents) -> str:
    settings = [*_shown_settings(contents).items(), *contents.hyperparameters.items()]
    return _table(["setting", "value"], [[name, _format_value(value)] for name, value in settings])


def _shown_settings(contents: ModelCardContents) -> dict[str, Value]:
    """Gamma, alpha and the other settings in use; the label distribution has its own table."""
    values = {field.name: (getattr(contents.settings, field.name), field.default) for field in fields(FocalSettings)}
    return {
        name: value
        for name, (value, default) in values.items()
        if name in ("gamma", "alpha") or (name not in ("label_counts", "class_prior", "folded") and value != default)
    }


def _training_labels(contents: ModelCardContents) -> str:
    distribution = _distribution(contents, contents.label_names)
    return "" if distribution is None else f"{distribution.summary()}\n\n{distribution.to_markdown(_alpha(contents))}"


def _limits(contents: ModelCardContents) -> list[str]:
    settings, alpha = contents.settings, contents.settings.alpha
    remedy = "`hf_focal.posterior_from_config(logits, model.config)` corrects this"
    if isinstance(settings.gamma, str) or isinstance(settings.gamma_neg, str):
        remedy = "for a gamma that depends on the probability, no formula corrects this"
    causes = ["focal loss"] * _is_focal(contents) + ["alpha"] * (alpha is not None)
    cause = f"{' and '.join(causes)} distort{'s' * (len(causes) == 1)}"
    counts = settings.label_counts or []
    rare = [name for name, count in zip(contents.label_names, counts) if count < 10]
    untested = [name for name, metrics in contents.per_class.items() if not any(metrics.get("support", [1]))]
    reading = "sigmoid" if contents.multi_label else "softmax"
    is_shifted = settings.class_prior != settings.training_prior
    usual = "in `class_prior` of the record" if is_shifted else "of the training data"
    limits = {
        f"The {reading} of the logits is not the class posterior, as {cause} it; {remedy}.": (
            settings.folded is None and (_is_focal(contents) or alpha is not None)
        ),
        "The scores of stock pipelines are shifted by the thresholds, so they are not probabilities.": (
            settings.folded is not None and any(settings.folded["shift"])
        ),
        "Alpha shifts decisions towards the classes with larger weights, at the expense of the others.": (
            alpha is not None and settings.folded is None
        ),
        f"Not suitable for data whose class frequencies are far from those {usual}, unless the posterior is shifted "
        "(`hf_focal.shift_prior`).": True,
        "Focal loss is sensitive to wrong training labels: they look like the hard examples that it concentrates on.": (
            _is_focal(contents)
        ),
        "Trained with one seed only: how much the results vary between seeds is not known.": len(contents.seeds) == 1,
        "Neither a revision nor a fingerprint of the data is known, so the data may have changed.": not (
            contents.dataset_revision or contents.dataset_fingerprint
        ),
        "The probabilities were not calibrated on held-out data.": not settings.is_calibrated,
        "The license is not known.": contents.license is None,
        f"Classes without test examples: {_listed(untested)}.": untested,
        f"Classes with fewer than 10 training examples: {_listed(rare)}.": rare,
    }
    return [limit for limit, holds in limits.items() if holds] + [
        f"Note: {escape_markdown(limit)}" for limit in contents.limits
    ]


def _origin(contents: ModelCardContents) -> str:
    names = ("name", "id", "config", "revision", "split", "fingerprint")
    rows = [[f"data, {name}", getattr(contents, f"dataset_{name}")] for name in names]
    rows.append(["hardware", contents.hardware])
    if contents.wall_seconds:
        rows.append(["time per run", str(timedelta(seconds=round(fmean(contents.wall_seconds))))])
    return _table(["", ""], [row for row in [*rows, *contents.versions.items()] if row[1] is not None])


def _reproduce(contents: ModelCardContents) -> str:
    # These two characters occur only within JSON strings, where their escapes mean the same.
    values = {**asdict(contents), "settings": contents.settings.to_dict()}
    if not contents.thresholds_reached:
        del values["thresholds_reached"]
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
    record = ",\n".join(lines).replace("`", "\\u0060").replace("<", "\\u003c")
    tolerances = [f"{contents.tolerance:g}"]
    tolerances += ["1/√n for a class with n test examples"] * any("support" in m for m in contents.per_class.values())
    tolerances += ["the range of the other seeds"] * (len(contents.seeds) > 2)
    tolerance = {1: "", 2: "the larger of "}.get(len(tolerances), "the largest of ") + _enumerated(tolerances)
    return (
        f"{_command(contents)}\n\nSeeds: {_listed(map(str, contents.seeds))}. With the hardware and versions above, "
        f"the numbers should be identical; otherwise they should differ by at most {tolerance}. The record "
        f"below has all digits, and its SHA-256 is {sha256(record.encode()).hexdigest()}; "
        f"`hf_focal.model_card.read_model_card` reads it.\n\n```{_RECORD}\n{{\n{record}\n}}\n```"
    )


def _command(contents: ModelCardContents) -> str:
    command = " ".join(map(_shell_word, contents.command))
    fence = "`" * max(3, *(len(run) + 1 for run in ["", *re.findall("`+", command)]))
    return f"{fence}bash\n{command}\n{fence}"


def _shell_word(text: str) -> str:
    """The word quoted for bash, with characters that could control a terminal escaped."""
    text = text.encode(errors="backslashreplace").decode()  # file names need not be valid text
    unsafe = {c for c in {*text} if not c.isspace() or c == "\r" if one_line(f"a{c}b") != f"a{c}b"}
    if not unsafe:
        return shlex.quote(text)
    return "$'" + "".join(_escaped(c) if c in unsafe or c in "\\'" else c for c in text) + "'"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def _draw(folder: Path, contents: ModelCardContents, examples: tuple[Tensor, Tensor] | None) -> dict[str, str]:
    """Saves the pictures; returns the title of each file."""
    if not has_matplotlib():
        warnings.warn("the model card has no pictures without matplotlib: pip install 'hf_focal[plots]'", stacklevel=3)
        return {}
    drawn, settings, alpha = [], contents.settings, _alpha(contents)
    distribution = _distribution(contents, contents.label_names)
    if distribution is not None:
        distribution.plot(alpha, folder / "label_distribution.png", f"Training data, {distribution.summary()}")
        drawn.append("label_distribution.png")
    if examples is None:
        return _titled(drawn)
    logits, targets = examples
    problem_type = f"{'multi' if contents.multi_label else 'single'}_label_classification"
    decided = decide(logits, SimpleNamespace(problem_type=problem_type, focal_loss=settings.to_dict()))
    split, names = contents.dataset_split, contents.label_names
    data = "evaluation data" if split is None else drawable(f"{split} split", "evaluation data")
    where = f"{data}, n = {len(logits):,}"
    if not contents.multi_label:
        figure = confusion_matrix(
            decided, targets.argmax(-1), names, settings.label_counts, f"Confusion matrix, {where}"
        )
        figure.savefig(folder / "confusion_matrix.png")
        drawn.append("confusion_matrix.png")
    probabilities = readings(logits, settings, contents.multi_label)
    note = prior_note(targets, settings.training_prior, names, contents.multi_label)
    figure = reliability_diagram(probabilities, targets, contents.multi_label, f"Reliability, {where}", note)
    figure.savefig(folder / "reliability_diagram.png")
    drawn.append("reliability_diagram.png")
    _, p = probabilities.popitem()  # the posterior, if there is one
    title = f"Precision and recall, {where}"
    curves = precision_recall_curves(p, targets, decided, names, settings, contents.multi_label, title)
    if curves is not None:
        curves.savefig(folder / "precision_recall.png")
        drawn.append("precision_recall.png")
    return _titled(drawn)


def _titled(files: Iterable[str]) -> dict[str, str]:
    return {file: _PICTURES[file] for file in files}


def _examples(contents: ModelCardContents, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets, (N, C) in float64; targets are class probabilities, or for multi-label 0, 1 or -100."""
    num_classes, multi_label = len(contents.label_names), contents.multi_label
    fits = logits.dim() > 1 and logits.shape[-1] == num_classes
    _check("logits", tuple(logits.shape), f"shape (..., {num_classes})", fits)
    is_known, labels = known_labels(logits.shape, labels.cpu(), multi_label)
    logits = logits.detach().cpu().double().flatten(0, -2)[is_known]
    if not multi_label and labels.dim() > 1:
        return logits, labels
    highest = 1 if multi_label else num_classes - 1
    known = labels[labels != -100]
    is_label = known.numel() > 0 and bool(torch.isin(known, torch.arange(highest + 1)).all())
    _check("labels", labels, f"values from 0 to {highest}, or -100, and not only -100", is_label)
    return logits, (labels if multi_label else F.one_hot(labels.long(), num_classes)).double()


def _is_focal(contents: ModelCardContents) -> bool:
    values = [getattr(contents.settings, name) for name in _FOCUSING]
    return any(isinstance(value, str) or (value is not None and np.any(value)) for value in values)


def _alpha(contents: ModelCardContents) -> Tensor | None:
    """One weight per class, (C), or the weights of negatives and of positives, (2, C)."""
    return contents.settings.class_weights(len(contents.label_names), contents.multi_label)


def _distribution(contents: ModelCardContents, names: list[str]) -> LabelDistribution | None:
    shares = contents.settings.training_prior
    if contents.settings.label_counts is None:
        return None
    counts, negatives = np.asarray(contents.settings.label_counts), None
    if contents.multi_label and shares is not None and max(shares) > 0:
        most = counts.max() / max(shares)  # for labels without positives, the number of negatives is not known
        totals = [count / share if share else most for count, share in zip(counts, shares)]
        negatives = np.rint(totals).astype(np.int64) - counts
    return LabelDistribution(counts, negatives, names)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of plain texts, which are escaped."""
    return markdown_table(header, [[escape_markdown(cell) for cell in row] for row in rows])


def _listed(texts: Iterable[str], most: int = 10) -> str:
    texts = list(texts)
    ending = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(map(escape_markdown, texts[:most])) + ending


def _enumerated(texts: Sequence[str]) -> str:
    return " and ".join([part for part in (", ".join(texts[:-1]), texts[-1]) if part])


def _range(name: str) -> tuple[float, float]:
    """The range of a metric."""
    return _RANGES.get(name, (0.0, 1.0) if _SHARES.fullmatch(name) else (-math.inf, math.inf))


def _quoted(text: str) -> str:
    """The text as a Python string literal."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else ascii(text)


def _metric(name: str) -> tuple[str, str, dict[str, str] | None]:
    return _METRICS.get(name, (name.replace("_", " ").capitalize(), name, None))


def _format_value(value: Value) -> str:
    if isinstance(value, list) and isinstance(value[0], list):  # alpha with several labels
        return "; ".join(
            f"{answer}: {_format_value(weights)}" for answer, weights in zip(("negatives", "positives"), value)
        )
    if isinstance(value, list) and len(value) > 8:
        return f"{min(value):.4g} to {max(value):.4g}, one for each of {len(value)} classes"
    if isinstance(value, list):
        return ", ".join(f"{one:.4g}" for one in value)
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def _format_mean(values: list[float]) -> str:
    return f"{fmean(values):,.0f}" if all(isinstance(value, int) for value in values) else f"{fmean(values):.3f}"


def _hub_id(name: str | None) -> str | None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _per_seed(values: Any) -> Any:
    """Turns single numbers into lists for one seed."""
    if isinstance(values, dict):
        return {name: _per_seed(value) for name, value in values.items()}
    return values if isinstance(values, list) else [values]


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    _check("record", names, "every key once", len(set(names)) == len(names))
    return dict(pairs)


def _check(name: str, value: Any, expected: str, is_met: bool) -> None:
    if not is_met:
        raise ValueError(f"{one_line(name)}: expected {expected}, but got {value!r:.500}")


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Checks that `value` is of the type `kind`; converts NumPy numbers to Python numbers."""
    value = _as_python(value)
    _check(name, value, str(kind) if get_args(kind) else kind.__name__, _is_a(kind, value))
    return value


def _as_python(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_python(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_as_python(one) for one in value]
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def _is_a(kind: Any, value: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType):
        return any(_is_a(one, value) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(inner[0], k) and _is_a(inner[1], v) for k, v in value.items())
    if origin is list:
        return isinstance(value, list) and all(_is_a(inner[0], one) for one in value)
    if kind in (int, float) and not isinstance(value, bool):
        is_number = isinstance(value, int | float if kind is float else int)
        return is_number and -1e100 <= value <= 1e100  # neither NaN nor so large that a mean is infinite
    return isinstance(value, kind) and kind not in (int, float)
