"""Fits to held-out data what cannot be known from training, and stores it in the model's config."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import as_weights
from ._known_labels import known_labels
from ._model_kinds import class_names, is_multi_label
from .calibration import UnboundedFitError, fit_scaling
from .operating_points import posterior_from_settings
from .settings import SMALLEST_SHARE, FocalSettings
from .thresholds import ThresholdCriterion, fit_thresholds, reached_by


__all__ = ["calibrate_config"]

# With several labels, one whose best F1 is lower keeps the default threshold: it would have over 8 errors per hit.
_MIN_F1 = 0.2
# With fewer positives the best threshold of a label is too uncertain, so such labels share one.
_MIN_POSITIVES = 10


def calibrate_config(
    logits: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    config: Any,
    *,
    method: str = "auto",
    positive_label: int | str | None = None,
    f_beta: float = 1.0,
    wanted_precision: float | None = None,
    wanted_recall: float | None = None,
    sample_weight: Sequence[float] | np.ndarray | Tensor | None = None,
) -> dict[str, Any]:
    r"""Fits calibration and thresholds to held-out data, and stores them in the model's config.

    These are a temperature for the class posterior, with a bias for each class if that is better ([`fit_scaling`]);
    and, for two classes and for multi-label, the best threshold of each label ([`fit_thresholds`]). With several
    labels, those with fewer than 10 positives share the threshold of their best F1, and those with an F1 below 0.2
    keep 0.5. With two classes the threshold is that of the rarer one by default, whatever its id is. Previously stored
    values are replaced, unless nothing can be fitted.

    Args:
        logits (`Tensor` or array): Logits of examples that were not trained on, (..., C), of any floating dtype.
        labels (`Tensor` or array): Class ids of shape (...), where -100 is ignored; or rows of the logits' shape,
            whose kind is determined by the config's `problem_type`: one-hot or class probabilities for one class per
            example; 0 or 1, or their probabilities, for several labels. A row of -100 is ignored, and with several
            labels any single -100. For probabilities the expected likelihood is maximised, and the thresholds use the
            most probable class or answer.
        config (`PreTrainedConfig`): The model's config.
        method (`str`): As in [`fit_scaling`].
        positive_label (`int` or `str`, *optional*): For two classes, the id or the name of the one that the threshold
            applies to; by default the one that is rarer in the training data or, if that is unknown or undecided, in
            these data.
        f_beta, wanted_precision, wanted_recall (`float`): The criterion for the thresholds, as in
            [`ThresholdCriterion`].
        sample_weight (sequence of N `float`, *optional*): Weight of each entry of the first dimension.

    Returns:
        `dict`: The stored values: ``temperature``, ``calibration_bias``, and if there are thresholds, ``thresholds``,
        ``threshold_criterion`` and, for two classes, ``positive_label``. Also the ``method``; the
        ``negative_log_likelihood`` that it was chosen by; the precision, recall and F-beta ``reached`` by the
        thresholds on these data, per label, with intervals ([`reached_by`]); and the labels for which the wanted
        precision is ``not_reachable``, or which are ``without_positives`` in these data. Empty, with a warning, if all
        labels are the same, or their likelihood is largest if the probabilities are ignored.

    Raises:
        `ValueError`: If the config holds no focal loss settings, gamma was a function of p_t, the labels do not fit,
            they are rows and the config has no `problem_type`, or a threshold criterion is given for more than two
            classes.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from hf_focal import calibrate_config
    >>> config = BertConfig(num_labels=2, focal_loss={"gamma": 0.0, "alpha": None})
    >>> logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    >>> found = calibrate_config(logits, torch.tensor([0, 1, 1, 1]), config, method="temperature")
    >>> round(found["temperature"], 2), round(found["thresholds"][0], 2), found["positive_label"]
    (2.0, 0.77, 0)
    >>> found["reached"]["LABEL_0"]["recall"][0]
    1.0

    ```
    """
    logits, labels = (torch.as_tensor(part).detach().cpu() for part in (logits, labels))
    recorded = FocalSettings.from_config(config)
    if recorded.folded is not None:
        raise ValueError("config: calibration is folded into the weights; call unfold_calibration(model) first")
    if is_multi_label(config) is None and labels.shape == logits.shape:
        raise ValueError(
            "config: labels of the shape of the logits require a problem_type, 'single_label_classification' for "
            "class probabilities or 'multi_label_classification', but got None"
        )
    multi_label, num_classes = bool(is_multi_label(config)), logits.shape[-1]
    criterion, is_binary = (
        ThresholdCriterion(f_beta, wanted_precision, wanted_recall),
        num_classes == 2 and not multi_label,
    )
    if criterion != ThresholdCriterion() and not (multi_label or is_binary):
        raise ValueError(
            f"{criterion}: thresholds are for two classes or several labels, but there are {num_classes} classes"
        )
    if positive_label is not None and not is_binary:
        raise ValueError(
            "positive_label: expected two classes, one per example; with several labels each has its own threshold"
        )
    positive_id = None if positive_label is None else _class_id(config, positive_label)
    is_known, answers = _answers(logits, labels, multi_label)
    if len(answers[answers != -100].unique()) == 1:
        warnings.warn("labels: they are all the same, so nothing can be fitted and nothing is stored", stacklevel=2)
        return {}

    settings = replace(
        recorded, temperature=None, calibration_bias=None, thresholds=None, operating_point="as_trained"
    )
    details: dict[str, Any] = {"method": "none"}
    try:
        scaling = fit_scaling(
            posterior_from_settings(logits, settings, multi_label=multi_label),
            labels,
            method=method,
            class_prior=settings.class_prior,
            sample_weight=sample_weight,
            multi_label=multi_label,
        )
    except UnboundedFitError as error:
        consequence = "nothing is stored" if error.temperature > 1 else "the probabilities are left as they are"
        warnings.warn(f"{error}; {consequence}", stacklevel=2)
        if error.temperature > 1:
            return {}
        settings = replace(settings, temperature=recorded.temperature, calibration_bias=recorded.calibration_bias)
    else:
        details = {"method": scaling.method, "negative_log_likelihood": scaling.negative_log_likelihood}
        temperature = None if method == "none" else scaling.temperature
        settings = replace(settings, temperature=temperature, calibration_bias=scaling.bias)
    stored: dict[str, Any] = {"temperature": settings.temperature, "calibration_bias": settings.calibration_bias}

    if multi_label or is_binary:
        posterior = posterior_from_settings(logits, settings, multi_label=multi_label).flatten(0, -2)[is_known]
        names = class_names(config, num_classes)
        if is_binary:
            stored["positive_label"] = k = (
                settings.rarer_class(answers.bincount(minlength=2).tolist()) if positive_id is None else positive_id
            )
            posterior, answers, names = posterior[:, [k]], (answers == k).long()[:, None], [names[k]]
        per_example = len(is_known) // len(logits)
        weights = as_weights(sample_weight, len(logits)).repeat(per_example)[is_known.numpy()]
        fitted, threshold_details = _thresholds(posterior, answers, names, criterion, weights, multi_label)
        stored, details = stored | fitted, details | threshold_details
    point = recorded.operating_point
    if point == "thresholds" and "thresholds" not in stored:
        point = "as_trained"
        warnings.warn(
            "operating_point: changed from 'thresholds' to 'as_trained', as no thresholds are stored", stacklevel=2
        )
    replace(settings, **stored, operating_point=point).store_in(config)
    return stored | details


def _answers(logits: Tensor, labels: Tensor, multi_label: bool) -> tuple[Tensor, Tensor]:
    """Which rows have a label; and for these the class ids, (n), or for several labels 0, 1 and -100, (n, L)."""
    is_known, targets = known_labels(logits.shape, labels, multi_label)
    if multi_label:
        return is_known, (targets > 0.5).long().where(targets != -100, -100)
    return is_known, targets if targets.dim() == 1 else targets.argmax(-1)


def _thresholds(
    posterior: Tensor,
    answers: Tensor,
    names: Sequence[str],
    criterion: ThresholdCriterion,
    weights: np.ndarray,
    multi_label: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fits thresholds to probabilities and answers of shape (n, L): the settings to store, and further details."""
    rare: dict[str, Any] = (
        {"min_f1": _MIN_F1, "min_positives": _MIN_POSITIVES} if multi_label and criterion.is_f_beta else {}
    )
    thresholds = fit_thresholds(posterior, answers, **asdict(criterion), **rare, sample_weight=weights)
    not_reachable = [name for name, threshold in zip(names, thresholds) if math.isnan(threshold)]
    if not_reachable:
        is_for_all = len(not_reachable) == len(names)
        omitted = f" and {len(not_reachable) - 5} more" if len(not_reachable) > 5 else ""
        warnings.warn(
            f"wanted_precision: {criterion.wanted_precision:g} is not reachable for {', '.join(not_reachable[:5])}"
            f"{omitted}; " + ("no thresholds are stored" if is_for_all else "these are never predicted"),
            stacklevel=3,
        )
        if is_for_all:
            return {"threshold_criterion": str(criterion)}, {"not_reachable": not_reachable}
    thresholds = [1 - SMALLEST_SHARE if math.isnan(threshold) else threshold for threshold in thresholds]
    without = [name for name, has in zip(names, (answers == 1).any(0)) if not has and name not in not_reachable]
    is_known, decided, truth = (answers != -100).numpy(), posterior.numpy() >= thresholds, (answers == 1).numpy()
    reached = {
        name: reached_by(decided[rows, k], truth[rows, k], criterion.f_beta, weights[rows])
        for k, (name, rows) in enumerate(zip(names, is_known.T))
        if rows.any()
    }
    stored = {"thresholds": thresholds, "threshold_criterion": str(criterion)}
    return stored, {"reached": reached, "not_reachable": not_reachable, "without_positives": without}


def _class_id(config: Any, label: int | str) -> int:
    """The id of one of two classes, given its id or its name."""
    names = class_names(config, 2)
    class_id = names.index(label) if isinstance(label, str) and label in names else label
    if isinstance(class_id, bool) or not isinstance(class_id, int) or class_id not in (0, 1):
        raise ValueError(f"positive_label: expected 0, 1 or one of {names}, but got {label!r}")
    return class_id
