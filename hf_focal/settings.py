"""The record in ``config.focal_loss``: the loss that a model was trained with, and what was fitted afterwards."""

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
# With a larger gamma every loss would vanish, and the posterior would have no accuracy left.
HIGHEST_GAMMA = 1e4
# Shares are divisors; smaller ones could become 0 in float32.
SMALLEST_SHARE = 1e-12
_ADAPTER_FILE = "focal_loss.json"
_HIGHEST_BIAS = 1e3
_CRITERION = re.compile(r"f[0-9.e+-]+|(precision|recall) [0-9.e-]+")


@dataclass(kw_only=True)
class FocalSettings:
    r"""The settings of the loss that a model was trained with, and what was fitted on held-out data.

    [`FocalTrainer`] stores them in the model's `config.json` under ``focal_loss``, or in `focal_loss.json` next to a
    PEFT adapter, which has no config. The record is a JSON object with the attributes below as keys (None is null),
    and ``format_version``, 1. Records without a version are from hf_focal 0.1, which had only some of the keys.
    Missing keys have their defaults, except for gamma, which is required. Unknown keys are an error, but are ignored
    in records from 0.1.

    Attributes:
        gamma (`float`, list of C or `str`): Focusing parameter; one for all classes or one per class. If it was a
            function of p_t, its name.
        gamma_neg (like `gamma`, *optional*): For several labels, the focusing parameter of negatives, if it is not
            `gamma`.
        margin (`float`): For several labels, the probability in [0, 1) that is subtracted from p for negatives.
        alpha (`float`, list of C or two lists of L, *optional*): Class weights. For several labels, the weights of
            negatives, then those of positives; or only those of positives, in [0, 1], while negatives get 1 - alpha. A
            number is for two classes or for all labels. As in [`focal_loss`] and [`sigmoid_focal_loss`].
        label_smoothing (`float`): In [0, 1].
        prior_bias (`bool`): Whether the head was initialised to the constant prediction with the least loss.
        label_counts (list of C `int`, *optional*): Number of examples (for token labels, tokens) of each class in the
            training data.
        class_prior (list of C `float`, *optional*): Shares of the classes in training, which sum to 1; for several
            labels, the share of examples with each label.
        temperature (`float`, *optional*): The temperature of the class posterior, in [0.01, 100].
        calibration_bias (list of C `float`, *optional*): Added to the log-probability of each class, or to the log
            odds of each label, after the temperature; see [`fit_scaling`].
        thresholds (list of L `float`, *optional*): The probability from which each label is predicted, in
            [1e-12, 1 - 1e-12], where the upper end means never; for two classes one threshold, that of
            `positive_label`.
        threshold_criterion (`str`): What the thresholds were chosen for on held-out data: ``"f1"`` or another F-beta,
            such as ``"f2"``; ``"precision 0.9"``, the largest recall with this precision; or ``"recall 0.9"``, the
            reverse.
        positive_label (`int`): For two classes, the id of the one that the threshold applies to.
        folded (`dict`, *optional*): Set by [`fold_calibration`], which puts the calibrated posterior into the weights;
            gamma, alpha, temperature and biases then describe the weights before the fold. It holds the ``scale`` and
            ``bias`` applied to the logits and whether they are ``exact``; how well they fit, as ``measured``; the
            ``shift`` of each class for an operating point; and for [`unfold_calibration`] the ``unfolded_bias``, the
            ``residual`` (the rounding errors of the weights), the ``dtype``, the ``digests`` of the folded weights,
            and as ``unfolded_settings`` the previous values of the settings that the fold may change.
        operating_point (`str`): How the model decides by default, one of `OPERATING_POINTS`; see [`decide`].

    Raises:
        `ValueError`: If a value has the wrong type or is out of its range; the message names it.

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
                "threshold_criterion: expected an F-beta such as 'f1', or 'precision 0.9' or 'recall 0.9', but got "
                f"{self.threshold_criterion!r:.80}"
            )
        if self.thresholds is not None:
            self.thresholds = _numbers("thresholds", self.thresholds, SMALLEST_SHARE, 1 - SMALLEST_SHARE)
        if self.positive_label not in (0, 1) or isinstance(self.positive_label, bool):
            raise ValueError(f"positive_label: expected 0 or 1, but got {self.positive_label!r:.80}")
        if self.folded is not None:
            self.folded = _folded(self.folded)
        if self.operating_point not in OPERATING_POINTS:
            raise ValueError(
                f"operating_point: expected one of {', '.join(OPERATING_POINTS)}, but got {self.operating_point!r:.80}"
            )
        needed = {"balanced": "class_prior", "thresholds": "thresholds"}.get(self.operating_point)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"operating_point: {self.operating_point!r} requires {needed}, but got None")
        lengths = self._lengths()
        first = next(iter(lengths), "")
        for name, length in lengths.items():
            is_binary_threshold = name == "thresholds" and length == 1 and lengths[first] == 2
            if length != lengths[first] and not is_binary_threshold:
                raise ValueError(
                    f"{name}: expected one number for each of {lengths[first]} classes, as {first} has, but got {length}"
                )

    @property
    def training_prior(self) -> list[float] | None:
        """Shares of the classes in the training data, even if the weights were folded for another prior."""
        return self.class_prior if self.folded is None else self.folded["unfolded_settings"]["class_prior"]

    @property
    def is_calibrated(self) -> bool:
        """Whether probabilities were fitted to held-out labels, by the calibration or by a fold."""
        if self.temperature is not None or self.calibration_bias is not None:
            return True
        return (
            self.folded is not None
            and not self.folded["exact"]
            and "negative_log_likelihood_after" in self.folded["measured"]
        )

    @property
    def rarer_or_positive_label(self) -> int:
        """For two classes, the id of the one that precision and recall refer to: `positive_label` or the rarer one."""
        return self.rarer_class([]) if self.thresholds is None else self.positive_label

    def rarer_class(self, frequencies: Sequence[float]) -> int:
        """For two classes, the id of the rarer one: in the training data, or if they do not tell, by `frequencies`."""
        for counts in (self.training_prior, self.label_counts, frequencies):
            if counts and counts[0] != counts[1]:
                return int(counts[1] < counts[0])
        return 1

    def check_fits(self, num_labels: int, multi_label: bool) -> None:
        """Checks that the settings fit a model.

        Raises:
            `ValueError`: If a list has another length, a setting is for several labels but each example has one class,
            there are thresholds for more than two classes, or a class prior does not sum to 1 though each example has
            one class; the message names it.
        """
        if (self.gamma_neg is not None or self.margin) and not multi_label:
            name = "margin" if self.gamma_neg is None else "gamma_neg"
            raise ValueError(f"{name}: it is for several labels, but here each example has one class")
        if _is_pair(self.alpha) and not multi_label:
            raise ValueError(
                "alpha: expected one number per class, but got weights of negatives and of positives, which are for "
                "several labels"
            )
        for name, length in self._lengths().items():
            expected = 1 if name == "thresholds" and num_labels == 2 and not multi_label else num_labels
            if name == "thresholds" and num_labels > 2 and not multi_label:
                raise ValueError(
                    f"thresholds: expected two classes or several labels, but there are {num_labels} classes"
                )
            if length != expected:
                raise ValueError(f"{name}: expected one number for each of {expected} classes, but got {length}")
        if self.class_prior is not None and not multi_label:
            check_distributions("class_prior", torch.tensor(self.class_prior, dtype=torch.float64), tolerance=1e-3)

    def class_weights(self, num_labels: int, multi_label: bool) -> Tensor | None:
        """Alpha as one weight per class.

        Returns:
            `Tensor`: The weight of each class, float64, (C); for several labels the weights of negatives, then of
            positives, (2, L). None without alpha.

        Raises:
            `ValueError`: If alpha is one number for more than two classes, or has another length.
        """
        if not multi_label:
            return softmax_weights(self.alpha, num_labels)
        weights = sigmoid_weights(self.alpha, num_labels)
        return None if weights is None else weights.reshape(2, -1).expand(2, num_labels)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "FocalSettings":
        """Creates settings from a record, as stored in a config.

        Raises:
            `ValueError`: If it is not a record, has a later format, lacks gamma, or has an unknown key or an invalid
            value; the message names it.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"focal_loss: expected an object with gamma, alpha, ..., but got {record!r}")
        version = record.get("format_version")
        if version is not None and (isinstance(version, bool) or version != FORMAT_VERSION):
            is_later = isinstance(version, int) and version > FORMAT_VERSION
            advice = "; a later version of hf_focal can read it" if is_later else ""
            raise ValueError(f"format_version: expected {FORMAT_VERSION}, but got {version!r}{advice}")
        if "gamma" not in record:
            raise ValueError(f"gamma: missing from focal_loss, which holds {_join_keys(record) or 'nothing'}")
        known = {field.name for field in fields(cls)}
        unknown = [str(name) for name in record if name not in known | {"format_version"}]
        if unknown and version is not None:
            raise ValueError(f"focal_loss: expected only {', '.join(sorted(known))}, but got {_join_keys(unknown)}")
        values = {name: record[name] for name in record if name in known}
        for name in ("margin", "label_smoothing"):  # may be null in records from 0.1
            if values.get(name, 0) is None:
                del values[name]
        return cls(**values)

    @classmethod
    def find_in(cls, config: Any) -> "FocalSettings | None":
        """The settings in a model's config, or None if there are none.

        Raises:
            `ValueError`: As [`FocalSettings.from_dict`] does.
        """
        record = getattr(config, "focal_loss", None)
        return None if record is None else cls.from_dict(record)

    @classmethod
    def from_config(cls, config: Any) -> "FocalSettings":
        """The settings in a model's config.

        Args:
            config (`PreTrainedConfig`): The model's config.

        Raises:
            `ValueError`: If there are none; and as [`FocalSettings.from_dict`] does.
        """
        settings = cls.find_in(config)
        if settings is None:
            raise ValueError(
                "config: expected the settings that FocalTrainer stores under focal_loss, but there are none; for a model "
                "trained with cross entropy, add them with FocalSettings(gamma=0).store_in(config)"
            )
        return settings

    @classmethod
    def find_in_folder(cls, folder: str | Path) -> "FocalSettings | None":
        """The settings of a saved model or adapter in a folder, or None if there are none.

        Raises:
            `ValueError`: If a file is not valid JSON; and as [`FocalSettings.from_dict`] does.
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
            name_or_path (`str` or `Path`): The folder, or an id on the Hub. Cached files are also found offline.
            kwargs: Passed to [`~huggingface_hub.hf_hub_download`], such as `revision`, `token` or `cache_dir`.

        Raises:
            `ValueError`: If there are none, or they cannot be downloaded; and as [`FocalSettings.find_in_folder`]
            does.

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
            settings, reason = cls.find_in_folder(name_or_path), None
        else:
            settings, reason = cls._find_on_hub(str(name_or_path), kwargs)
        if settings is None:
            raise ValueError(
                f"{name_or_path}: expected {_ADAPTER_FILE}, which FocalTrainer writes next to an adapter, or a "
                f"config.json with focal_loss, but {reason or 'there is neither'}"
            ) from reason
        return settings

    @classmethod
    def _find_on_hub(cls, name: str, kwargs: dict[str, Any]) -> "tuple[FocalSettings | None, Exception | None]":
        """The settings, or None; and if that is not certain, the error that prevented looking."""
        reason: Exception | None = None
        for file in (_ADAPTER_FILE, "config.json"):
            try:
                folder = Path(hf_hub_download(name, file, **kwargs)).parent
            except LocalEntryNotFoundError as error:  # offline: the file may exist on the Hub
                reason = error
                continue
            except EntryNotFoundError:
                continue
            except (HFValidationError, HfHubHTTPError, OSError) as error:
                return None, error
            settings = cls.find_in_folder(folder)
            if settings is not None:
                return settings, None
        return None, reason

    def to_dict(self) -> dict[str, Any]:
        """The record, made of plain numbers, lists and strings."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"format_version": FORMAT_VERSION, **deepcopy(values)}

    def store_in(self, config: Any) -> None:
        """Stores the record in a model's config, to be saved with it."""
        config.focal_loss = self.to_dict()

    def store_in_folder(self, folder: str | Path) -> Path:
        """Writes `focal_loss.json` next to an adapter, and returns the path of the file."""
        path = Path(folder, _ADAPTER_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return path

    def _lengths(self) -> dict[str, int]:
        """The length of each setting that is a list, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if _is_pair(self.alpha):
            values["alpha"] = values["alpha"][0]
        if self.folded is not None:
            values |= {"folded, bias": self.folded["bias"], "folded, shift": self.folded["shift"]}
            del values["folded"]
        return {name: len(value) for name, value in values.items() if isinstance(value, list)}


def _join_keys(keys: Iterable[object]) -> str:
    return one_line(", ".join(map(str, keys)))[:500]


def _number(name: str, value: Any, low: float, high: float) -> float:
    value = _plain(value)
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # JSON integers can have any size
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
            f"length {', '.join(str(len(weights)) for weights in pair)}"
        )
    return pair


def _folded(value: Any) -> dict[str, Any]:
    numbers = {"scale", "bias", "exact", "measured", "shift", "unfolded_bias"}
    mappings = ("measured", "unfolded_settings", "digests")
    names = numbers | {"dtype", "residual", *mappings}
    is_complete = isinstance(value, Mapping) and value.keys() == names
    if not is_complete or not all(isinstance(value[name], Mapping) for name in mappings):
        raise ValueError(f"folded: expected an object with {', '.join(sorted(names))}, but got {value!r:.80}")
    bias, measured, previous = value["unfolded_bias"], value["measured"], value["unfolded_settings"]
    if previous.keys() != {"class_prior", "thresholds", "operating_point"}:
        raise ValueError(
            f"folded, unfolded_settings: expected class_prior, thresholds, operating_point, but got {previous!r:.80}"
        )
    unfolded = FocalSettings(gamma=0.0, **previous)
    return {
        "exact": value["exact"] is True,
        "unfolded_settings": {name: getattr(unfolded, name) for name in previous},
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
    """Converts arrays and tensors to lists and numbers."""
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
        raise ValueError(f"{file}: expected JSON, but it cannot be parsed: {error}") from error
