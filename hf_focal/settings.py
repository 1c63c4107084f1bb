"""The record under ``config.focal_loss``: what trained a model, and what was fitted to its probabilities afterwards."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from ._checks import as_margin, check_distributions
from ._class_weights import sigmoid_weights, softmax_weights
from ._markdown import one_line
from .calibration import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE


__all__ = ["OPERATING_POINTS", "FocalSettings"]

OPERATING_POINTS = ("as_trained", "most_likely", "balanced", "thresholds")

FORMAT_VERSION = 1
# A larger gamma leaves no example a loss, and no posterior a digit.
HIGHEST_GAMMA = 1e4
# Smaller ones, of which float32 makes 0, would be divided by.
SMALLEST_SHARE = 1e-12
_ADAPTER_FILE = "focal_loss.json"
_HIGHEST_BIAS = 1e3
_CRITERION = re.compile(r"f[0-9.e+-]+|(precision|recall) [0-9.e-]+")


@dataclass(kw_only=True)
class FocalSettings:
    r"""The settings of the loss that trained a model, and what was fitted on held-out data.

    [`FocalTrainer`] stores them in the model's `config.json` under ``focal_loss``, and beside a PEFT adapter, which has no
    config, in `focal_loss.json`. There they are one JSON object with the attributes below as keys (None is null), and
    ``format_version``, 1. Records without a version are those of hf_focal 0.1, which has some of the keys only; keys that
    a record lacks have their default, but gamma, which every record holds. Keys that hf_focal does not know are an error,
    but for records of 0.1, whose own are ignored.

    Attributes:
        gamma (`float`, list of C or `str`): Focusing parameter; one for all classes or one per class. Of a gamma that is a
            function of p_t, its name.
        gamma_neg (like `gamma`, *optional*): For several labels, that of negatives, where it is not `gamma`.
        margin (`float`): For several labels, the probability that is taken off the negatives, in [0, 1).
        alpha (`float`, list of C or two lists of L, *optional*): Class weights, or for several labels the weights of
            negatives, then those of positives; or in [0, 1], the weights of positives, which negatives have the rest of. A
            number is for two classes or for all labels. As in [`focal_loss`] and [`sigmoid_focal_loss`].
        label_smoothing (`float`): In [0, 1].
        prior_bias (`bool`): Whether the head started at the constant prediction with the least loss.
        label_counts (list of C `int`, *optional*): Examples (for token labels, tokens) of each class in the training data.
        class_prior (list of C `float`, *optional*): Shares of the classes where the model was trained, which sum to 1; for
            several labels, the share of examples with each.
        temperature (`float`, *optional*): That of the class posterior, in [0.01, 100].
        calibration_bias (list of C `float`, *optional*): What is added to the log-probability of each class, or to the log odds
            of each label, after the temperature; see [`fit_scaling`].
        thresholds (list of L `float`, *optional*): From which probability on each label is predicted, in [1e-12, 1 - 1e-12], the
            last of which is for labels that never are; for two classes one, that of `positive_label`.
        threshold_criterion (`str`): What they were chosen for on held-out data: ``"f1"`` or another F-beta, ``"f2"`` say;
            ``"precision 0.9"``, the largest recall with this precision; or ``"recall 0.9"``, the reverse.
        positive_label (`int`): Of two classes, the id of the one that the threshold is for.
        folded (`dict`, *optional*): After [`fold_calibration`], which has put the calibrated posterior into the weights: then gamma,
            alpha, temperature and biases are those of the weights before. What was done, ``scale`` and ``bias`` of the logits
            and whether that is ``exact``; how near it came, as ``measured``; the ``shift`` of each class that an operating
            point took; and for [`unfold_calibration`] ``unfolded_bias``, ``residual`` (what rounding took from the weights),
            ``dtype``, the ``digests`` of the folded weights, and of the ``unfolded_settings`` those that the fold has changed.
        operating_point (`str`): How the model decides unless it is told otherwise, one of `OPERATING_POINTS`; see [`decide`].

    Raises:
        `ValueError`: If a value is of another kind or out of its range; the message names it.

    Example:

    ```python
    >>> from hf_focal import FocalSettings
    >>> FocalSettings.from_dict({"gamma": 2, "alpha": [0.6, 3.0], "label_counts": [20, 4]}).alpha
    [0.6, 3.0]
    >>> FocalSettings(gamma=2.0, temperature=0.0)
    Traceback (most recent call last):
    ValueError: temperature: expected a number from 0.01 to 100, but got 0.0

    ```
    """

    gamma: float | list[float] | str
    gamma_neg: float | list[float] | str | None = None
    margin: float = 0.0
    alpha: float | list[float] | list[list[float]] | None = None
    label_smoothing: float = 0.0
    prior_bias: bool = False
    label_counts: list[int] | None = None
    class_prior: list[float] | None = None
    temperature: float | None = None
    calibration_bias: list[float] | None = None
    thresholds: list[float] | None = None
    threshold_criterion: str = "f1"
    positive_label: int = 1
    folded: dict[str, Any] | None = None
    operating_point: str = "as_trained"

    def __post_init__(self) -> None:
        self.gamma = _gamma("gamma", self.gamma)
        if self.gamma_neg is not None:
            self.gamma_neg = _gamma("gamma_neg", self.gamma_neg)
        self.margin = as_margin(_number("margin", self.margin, 0, 1))
        if self.alpha is not None:
            self.alpha = _alpha(self.alpha)
        self.label_smoothing = _number("label_smoothing", self.label_smoothing, 0, 1)
        if not isinstance(self.prior_bias, bool):
            raise ValueError(f"prior_bias: expected true or false, but got {self.prior_bias!r:.80}")
        if self.label_counts is not None:
            counts = _list("label_counts", self.label_counts)
            if not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 0 for n in counts):
                raise ValueError(f"label_counts: expected whole numbers >= 0, but got {counts!r}")
            self.label_counts = [int(n) for n in counts]
        if self.class_prior is not None:
            self.class_prior = _numbers("class_prior", self.class_prior, 0, 1)
            if any(0 < share < SMALLEST_SHARE for share in self.class_prior):
                raise ValueError(f"class_prior: expected 0 or at least {SMALLEST_SHARE}, but got {self.class_prior}")
        if self.temperature is not None:
            self.temperature = _number("temperature", self.temperature, LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)
        if self.calibration_bias is not None:
            self.calibration_bias = _numbers("calibration_bias", self.calibration_bias, -_HIGHEST_BIAS, _HIGHEST_BIAS)
        if not isinstance(self.threshold_criterion, str) or not _CRITERION.fullmatch(self.threshold_criterion):
            raise ValueError(
                "threshold_criterion: expected 'f1' or another F-beta, 'precision 0.9' or 'recall 0.9', say, but got "
                f"{self.threshold_criterion!r:.80}"
            )
        if self.thresholds is not None:
            self.thresholds = _numbers("thresholds", self.thresholds, SMALLEST_SHARE, 1 - SMALLEST_SHARE)
        if self.positive_label not in (0, 1) or isinstance(self.positive_label, bool):
            raise ValueError(
                f"positive_label: expected the id of one of two classes, but got {self.positive_label!r:.80}"
            )
        if self.folded is not None:
            self.folded = _folded(self.folded)
        if self.operating_point not in OPERATING_POINTS:
            raise ValueError(
                f"operating_point: expected one of {', '.join(OPERATING_POINTS)}, but got {self.operating_point!r:.80}"
            )
        needed = {"balanced": "class_prior", "thresholds": "thresholds"}.get(self.operating_point)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"operating_point: {self.operating_point!r} takes {needed}, but there are none")
        lengths = self._lengths()
        first = next(iter(lengths), "")
        for name, length in lengths.items():
            is_of_two_classes = name == "thresholds" and length == 1 and lengths[first] == 2
            if length != lengths[first] and not is_of_two_classes:
                raise ValueError(
                    f"{name}: expected one number for each of {lengths[first]} classes, as {first} has, but got {length}"
                )

    @property
    def training_prior(self) -> list[float] | None:
        """Shares of the classes in the training data, also where the weights hold a fold for others."""
        return self.class_prior if self.folded is None else self.folded["unfolded_settings"]["class_prior"]

    @property
    def is_calibrated(self) -> bool:
        """Whether probabilities were fitted to held-out labels, before a fold or by it."""
        if self.temperature is not None or self.calibration_bias is not None:
            return True
        return (
            self.folded is not None
            and not self.folded["exact"]
            and "negative_log_likelihood_after" in self.folded["measured"]
        )

    @property
    def rarer_or_positive_label(self) -> int:
        """Of two classes, the id of the one that precision and recall are of: the threshold's, or else the rarer one."""
        return self.rarer_class([]) if self.thresholds is None else self.positive_label

    def rarer_class(self, frequencies: Sequence[float]) -> int:
        """Of two classes, the id of the one that is rarer in the training data; if they do not tell, by `frequencies`, else 1."""
        for counts in (self.training_prior, self.label_counts, frequencies):
            if counts and counts[0] != counts[1]:
                return int(counts[1] < counts[0])
        return 1

    def check_fits(self, num_labels: int, multi_label: bool) -> None:
        """Whether what is one per class is so for a model.

        Raises:
            `ValueError`: If a list has another length, thresholds are of another number of classes than two, or a class
            prior does not sum to 1 where each example has one class; the message names it.
        """
        if (self.gamma_neg is not None or self.margin) and not multi_label:
            name = "margin" if self.gamma_neg is None else "gamma_neg"
            raise ValueError(f"{name}: it is for several labels, but here each example has one class")
        if _is_pair(self.alpha) and not multi_label:
            raise ValueError(
                "alpha: expected one number per class, but got weights of negatives and of positives, which are those of "
                "several labels"
            )
        for name, length in self._lengths().items():
            expected = 1 if name == "thresholds" and num_labels == 2 and not multi_label else num_labels
            if name == "thresholds" and num_labels > 2 and not multi_label:
                raise ValueError(
                    f"thresholds: they are for two classes or several labels, but there are {num_labels} classes"
                )
            if length != expected:
                raise ValueError(f"{name}: expected one number for each of {expected} classes, but got {length}")
        if self.class_prior is not None and not multi_label:
            check_distributions("class_prior", torch.tensor(self.class_prior, dtype=torch.float64), tolerance=1e-3)

    def class_weights(self, num_labels: int, multi_label: bool) -> Tensor | None:
        """Alpha written out.

        Returns:
            `Tensor`: The weight of each class, float64, (C); for several labels those of negatives, then of positives,
            (2, L). None without alpha.

        Raises:
            `ValueError`: If alpha is one number for more than two classes, or of another length.
        """
        if not multi_label:
            return softmax_weights(self.alpha, num_labels)
        weights = sigmoid_weights(self.alpha, num_labels)
        return None if weights is None else weights.reshape(2, -1).expand(2, num_labels)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "FocalSettings":
        """The settings of a record, as it stands in a config.

        Raises:
            `ValueError`: If it is no record, of a later format, without a gamma, or a value does not fit; the message names
            what.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"focal_loss: expected an object with gamma, alpha, ..., but got {record!r}")
        version = record.get("format_version")
        if version is not None and (isinstance(version, bool) or version != FORMAT_VERSION):
            is_later = isinstance(version, int) and version > FORMAT_VERSION
            advice = "; a later version of hf_focal reads it" if is_later else ""
            raise ValueError(f"format_version: expected {FORMAT_VERSION}, but got {version!r}{advice}")
        if "gamma" not in record:
            raise ValueError(f"gamma: missing from focal_loss, which holds {_named(record) or 'nothing'}")
        known = {field.name for field in fields(cls)}
        unknown = [str(name) for name in record if name not in known | {"format_version"}]
        if unknown and version is not None:
            raise ValueError(f"focal_loss: expected only {', '.join(sorted(known))}, but got {_named(unknown)}")
        values = {name: record[name] for name in record if name in known}
        for name in ("margin", "label_smoothing"):  # 0.1 may hold null
            if values.get(name, 0) is None:
                del values[name]
        return cls(**values)

    @classmethod
    def find_in(cls, config: Any) -> "FocalSettings | None":
        """The settings that a model's config holds, if it holds any.

        Raises:
            `ValueError`: As [`FocalSettings.from_dict`] does.
        """
        record = getattr(config, "focal_loss", None)
        return None if record is None else cls.from_dict(record)

    @classmethod
    def from_config(cls, config: Any) -> "FocalSettings":
        """The settings that a model's config holds.

        Args:
            config (`PreTrainedConfig`): The model's config.

        Raises:
            `ValueError`: If it holds none; and as [`FocalSettings.from_dict`] does.
        """
        settings = cls.find_in(config)
        if settings is None:
            raise ValueError(
                "config: expected the settings that FocalTrainer stores under focal_loss, but there are none; for a model "
                "trained otherwise, with cross entropy say, FocalSettings(gamma=0).store_in(config) adds them"
            )
        return settings

    @classmethod
    def find_in_folder(cls, folder: str | Path) -> "FocalSettings | None":
        """The settings of a saved model or adapter, if there are any.

        Raises:
            `ValueError`: If a file is no JSON; and as [`FocalSettings.from_dict`] does.
        """
        adapter, config = Path(folder, _ADAPTER_FILE), Path(folder, "config.json")
        if adapter.is_file():
            return cls.from_dict(_json(adapter))
        content = _json(config) if config.is_file() else {}
        record = content.get("focal_loss") if isinstance(content, dict) else None
        return None if record is None else cls.from_dict(record)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "FocalSettings":
        """The settings of a saved model or adapter, in a folder or on the Hub.

        Args:
            name_or_path (`str` or `Path`): The folder, or an id on the Hub. What is in the cache serves offline, too.
            kwargs: For [`~huggingface_hub.hf_hub_download`], such as `revision`, `token` or `cache_dir`.

        Raises:
            `ValueError`: If there are none, or they cannot be reached; and as [`FocalSettings.find_in_folder`] does.

        Example:

        ```python
        >>> import tempfile
        >>> from hf_focal import FocalSettings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = FocalSettings(gamma=2.0).store_in_folder(folder)
        ...     FocalSettings.from_pretrained(folder).gamma
        2.0

        ```
        """
        if Path(name_or_path).is_dir():
            settings, why = cls.find_in_folder(name_or_path), None
        else:
            settings, why = cls._find_on_hub(str(name_or_path), kwargs)
        if settings is None:
            raise ValueError(
                f"{name_or_path}: expected {_ADAPTER_FILE}, which FocalTrainer writes beside an adapter, or a config.json with "
                f"focal_loss, but {why or 'there is neither'}"
            ) from why
        return settings

    @classmethod
    def _find_on_hub(cls, name: str, kwargs: dict[str, Any]) -> "tuple[FocalSettings | None, Exception | None]":
        """The settings, if there are any; and what is in the way of knowing."""
        why: Exception | None = None
        for file in (_ADAPTER_FILE, "config.json"):
            try:
                folder = Path(hf_hub_download(name, file, **kwargs)).parent
            except LocalEntryNotFoundError as error:  # offline: it may be there
                why = error
                continue
            except EntryNotFoundError:
                continue
            except (HFValidationError, HfHubHTTPError, OSError) as error:
                return None, error
            settings = cls.find_in_folder(folder)
            if settings is not None:
                return settings, None
        return None, why

    def to_dict(self) -> dict[str, Any]:
        """The record: plain numbers, lists and texts."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"format_version": FORMAT_VERSION, **deepcopy(values)}

    def store_in(self, config: Any) -> None:
        """Makes this the record of a model's config, with which it is saved."""
        config.focal_loss = self.to_dict()

    def store_in_folder(self, folder: str | Path) -> Path:
        """Writes `focal_loss.json` beside an adapter; the path of the file."""
        path = Path(folder, _ADAPTER_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return path

    def _lengths(self) -> dict[str, int]:
        """How many classes each list has a number for."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if _is_pair(self.alpha):
            values["alpha"] = values["alpha"][0]
        if self.folded is not None:
            values |= {"folded, bias": self.folded["bias"], "folded, shift": self.folded["shift"]}
            del values["folded"]
        return {name: len(value) for name, value in values.items() if isinstance(value, list)}


def _named(keys: Iterable[object]) -> str:
    return one_line(", ".join(map(str, keys)))[:500]


def _number(name: str, value: Any, low: float, high: float) -> float:
    value = _plain(value)
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # JSON has integers of any size
        number = math.inf
    if not (low <= number <= high and number < math.inf):
        limits = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a number {limits}, but got {value!r:.80}")
    return number


def _list(name: str, values: Any) -> list[Any]:
    values = _plain(values)
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{name}: expected a list of one number per class, but got {values!r:.80}")
    return list(values)


def _numbers(name: str, values: Any, low: float, high: float) -> list[float]:
    return [_number(name, value, low, high) for value in _list(name, values)]


def _number_or_list(name: str, value: Any, low: float, high: float) -> float | list[float]:
    value = _plain(value)
    return _numbers(name, value, low, high) if isinstance(value, (list, tuple)) else _number(name, value, low, high)


def _gamma(name: str, value: Any) -> float | list[float] | str:
    if not isinstance(value, str):
        return _number_or_list(name, value, 0, HIGHEST_GAMMA)
    if not value or _is_numeric(value):
        raise ValueError(f"{name}: expected a number, a list or the name of a function, but got {value!r}")
    return value


def _alpha(value: Any) -> float | list[float] | list[list[float]]:
    value = _plain(value)
    if not isinstance(value, (list, tuple)):
        return _number("alpha", value, 0, 1)
    if not _is_pair(value):
        return _numbers("alpha", value, 0, math.inf)
    pair = [_numbers("alpha", weights, 0, math.inf) for weights in value]
    if len({len(weights) for weights in pair}) > 1 or len(pair) != 2:
        raise ValueError(
            "alpha: expected two lists of the same length, the weights of negatives, then of positives, but got lists of "
            f"{', '.join(str(len(weights)) for weights in pair)}"
        )
    return pair


def _folded(value: Any) -> dict[str, Any]:
    numbers = {"scale", "bias", "exact", "measured", "shift", "unfolded_bias"}
    mappings = ("measured", "unfolded_settings", "digests")
    names = numbers | {"dtype", "residual", *mappings}
    is_complete = isinstance(value, Mapping) and value.keys() == names
    if not is_complete or not all(isinstance(value[name], Mapping) for name in mappings):
        raise ValueError(f"folded: expected an object with {', '.join(sorted(names))}, but got {value!r:.80}")
    bias, measured, of_settings = value["unfolded_bias"], value["measured"], value["unfolded_settings"]
    if of_settings.keys() != {"class_prior", "thresholds", "operating_point"}:
        raise ValueError(
            f"folded, unfolded_settings: expected class_prior, thresholds, operating_point, but got {of_settings!r:.80}"
        )
    unfolded = FocalSettings(gamma=0.0, **of_settings)
    return {
        "exact": value["exact"] is True,
        "unfolded_settings": {name: getattr(unfolded, name) for name in of_settings},
        "bias": _numbers("folded, bias", value["bias"], -_HIGHEST_BIAS, _HIGHEST_BIAS),
        "measured": {str(name): _number(f"folded, {name}", number, 0, math.inf) for name, number in measured.items()},
        "shift": _numbers("folded, shift", value["shift"], -_HIGHEST_BIAS, _HIGHEST_BIAS),
        "scale": _number("folded, scale", value["scale"], 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE),
        "digests": {str(dtype): str(digest) for dtype, digest in value["digests"].items()},
        "unfolded_bias": None if bias is None else _numbers("folded, unfolded_bias", bias, -1e38, 1e38),
        **{name: str(value[name]) for name in ("dtype", "residual")},
    }


def _is_pair(alpha: Any) -> bool:
    return isinstance(alpha, (list, tuple)) and any(isinstance(weights, (list, tuple)) for weights in alpha)


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, but it cannot be read: {error}") from error
