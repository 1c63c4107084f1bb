"""Decision rules for a trained model: as trained, most likely class, balanced accuracy, a prior, thresholds, costs.

The settings that a model was trained with are read from its config, where [`FocalTrainer`] stores them under
``focal_loss``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import as_number
from ._kernels import loss_dtype
from ._model_kinds import is_multi_label
from ._upstream import is_traced
from .calibration import apply_temperature
from .posterior import class_posterior, shift_prior, sigmoid_class_posterior
from .settings import OPERATING_POINTS, SMALLEST_SHARE, FocalSettings


__all__ = [
    "decide",
    "decision_scores",
    "has_posterior",
    "operating_point_scores",
    "posterior_from_config",
    "posterior_from_settings",
]


def posterior_from_config(logits: Tensor, config: Any) -> Tensor:
    r"""Converts the logits of a model trained with [`FocalTrainer`] to class posterior probabilities.

    Applies [`class_posterior`], or for multi-label models [`sigmoid_class_posterior`], with the settings of the loss
    that the model was trained with, and then the temperature and biases stored by [`FocalTrainer.calibrate`].

    Args:
        logits (`Tensor`): Logits of the model, (..., C), of any floating dtype.
        config (`PreTrainedConfig`): The model's config.

    Returns:
        `Tensor`: Probabilities of the shape of `logits`. float64 for float64 logits, otherwise float32.

    Raises:
        `ValueError`: If the config holds no focal loss settings, they do not fit the logits, or a logit is NaN.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from hf_focal import posterior_from_config
    >>> config = BertConfig(num_labels=2, focal_loss={"gamma": 2.0, "alpha": None, "label_counts": [30, 10]})
    >>> posterior_from_config(torch.tensor([[0.0, 1.1]]), config)
    tensor([[0.0497, 0.9503]])

    ```
    """
    return posterior_from_settings(logits, FocalSettings.from_config(config), multi_label=bool(is_multi_label(config)))


def posterior_from_settings(logits: Tensor, settings: FocalSettings, *, multi_label: bool = False) -> Tensor:
    r"""Converts the logits of a model trained with these settings to class posterior probabilities.

    Like [`posterior_from_config`], but without a config.

    Args:
        logits (`Tensor`): Logits of the model, (..., C), of any floating dtype.
        settings ([`FocalSettings`]): Settings of the loss and of the calibration.
        multi_label (`bool`): Whether an example has several labels.

    Returns:
        `Tensor`: Probabilities of the shape of `logits`. float64 for float64 logits, otherwise float32.

    Raises:
        `ValueError`: If the settings do not fit the logits, gamma is a function of p_t, or a logit is NaN.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal import FocalSettings
    >>> from hf_focal.operating_points import posterior_from_settings
    >>> posterior_from_settings(torch.tensor([[0.0, 1.1]]), FocalSettings(gamma=2.0))
    tensor([[0.0497, 0.9503]])

    ```
    """
    gamma, gamma_neg, alpha = settings.gamma, settings.gamma_neg, settings.alpha
    if isinstance(gamma, str) or isinstance(gamma_neg, str):
        function = gamma if isinstance(gamma, str) else gamma_neg
        raise ValueError(
            f"config: trained with gamma {function!r}, a function of p_t, which has no closed-form posterior"
        )
    if logits.dim():
        settings.check_fits(logits.shape[-1], multi_label)
    if settings.folded is not None:
        return _folded_posterior(logits, settings.folded["shift"], multi_label)
    if multi_label:
        posterior = sigmoid_class_posterior(
            logits, gamma=gamma, gamma_neg=gamma_neg, margin=settings.margin, alpha=alpha
        )
    else:
        posterior = class_posterior(logits, gamma=gamma, alpha=alpha, label_smoothing=settings.label_smoothing)
    temperature, bias = settings.temperature, settings.calibration_bias
    if temperature is None and bias is None:
        return posterior
    return apply_temperature(posterior, temperature or 1.0, bias=bias, multi_label=multi_label)


def _folded_posterior(logits: Tensor, shift: list[float], multi_label: bool) -> Tensor:
    """The posterior if it was folded into the weights: softmax or sigmoid, without the shift of an operating point."""
    wide = logits.double() - torch.tensor(shift, dtype=torch.float64, device=logits.device)
    return (wide.sigmoid() if multi_label else wide.softmax(-1)).to(loss_dtype(logits))


def has_posterior(settings: FocalSettings, multi_label: bool) -> bool:
    """Whether the logits determine the class posterior.

    They do not if gamma is a function of p_t, or if a class (or an answer for a label) has weight 0.
    """
    is_function = isinstance(settings.gamma, str) or isinstance(settings.gamma_neg, str)
    return not is_function and all(weight > 0 for weight in _weights(settings.alpha, multi_label))


def _weights(alpha: Any, multi_label: bool) -> list[float]:
    """All weights in alpha: of classes, or of both answers of labels. Plain numbers, as they decide during export."""
    if alpha is None:
        return []
    weights = alpha if isinstance(alpha, list) else [alpha]
    if isinstance(weights[0], list):
        return [*weights[0], *weights[1]]
    is_share = multi_label or not isinstance(alpha, list)  # 1 - weight is the weight of negatives or of class 0
    return [*weights, *(1 - weight for weight in weights if is_share)]


def decide(
    logits: Tensor | np.ndarray,
    config: Any,
    operating_point: str | None = None,
    *,
    prior: float | Sequence[float] | Tensor | None = None,
    costs: Sequence[Sequence[float]] | Tensor | None = None,
    min_confidence: float = 0.0,
) -> Tensor:
    r"""The decisions of a model: the class of each example, or which labels it has.

    By default it uses the operating point recorded in the model's config, or ``"as_trained"`` if there is none: the
    decision of the logits themselves, which every stock pipeline makes too. The others decide by the class posterior:

    - ``"most_likely"``: the class with the largest posterior. It is right most often if classes occur as in training.
    - ``"balanced"``: the class with the largest posterior divided by the class prior, which aims at balanced accuracy.
    - ``"thresholds"``, for two classes and for several labels: the thresholds fitted by [`FocalTrainer.calibrate`].
    - a `prior`: the class with the largest posterior if classes occur with these frequencies ([`shift_prior`]).
    - `costs`: the class with the least expected cost.

    Args:
        logits (`Tensor` or array): Logits of the model, (..., C), of any floating dtype.
        config (`PreTrainedConfig`): The model's config.
        operating_point (`str`, *optional*): One of the names above.
        prior (`float`, sequence or `Tensor` of shape (C), *optional*): Class frequencies where the model is used,
            instead of a name; for several labels, the share of examples with each label, one for all or one per label.
        costs (sequence or `Tensor` of shape (C, C), *optional*): In row i and column j, the cost of deciding class j
            if class i is right; for one class per example. Can be combined with a `prior`, but not with a name.
        min_confidence (`float`): If the probability of the decision is below this, the result is -1.

    Returns:
        `Tensor`: Class ids, int64, of shape (...), or for several labels 0 and 1 of the shape of `logits`; -1 where the
        confidence is too low.

    Raises:
        `ValueError`: For an unknown operating point, an invalid prior or costs, or if the config lacks settings that
            are required.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from hf_focal import decide
    >>> settings = {"gamma": 0.0, "alpha": None, "label_counts": [90, 10], "class_prior": [0.9, 0.1]}
    >>> config, logits = BertConfig(num_labels=2, focal_loss=settings), torch.tensor([[1.4, 0.0], [5.0, 0.0]])
    >>> decide(logits, config)
    tensor([0, 0])
    >>> decide(logits, config, "balanced")
    tensor([1, 0])
    >>> decide(logits, config, costs=[[0, 1], [10, 0]])  # a miss of class 1 costs ten times a false alarm
    tensor([1, 0])
    >>> decide(logits, config, min_confidence=0.9)
    tensor([-1,  0])

    ```
    """
    as_number("min_confidence", min_confidence, 1)
    logits = torch.as_tensor(logits)
    scores, probabilities = decision_scores(logits, config, operating_point, prior=prior, costs=costs)
    if is_multi_label(config):
        decided = (scores >= 0.5).long()
        confidence = torch.where(decided == 1, probabilities, 1 - probabilities)
    else:
        decided = scores.argmax(-1)
        confidence = probabilities.gather(-1, decided[..., None])[..., 0]
    return torch.where(confidence < min_confidence, -1, decided) if min_confidence else decided


def decision_scores(
    logits: Tensor,
    config: Any,
    operating_point: str | None = None,
    *,
    prior: float | Sequence[float] | Tensor | None = None,
    costs: Sequence[Sequence[float]] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scores that [`decide`] is based on, and the class probabilities.

    Args:
        logits, config, operating_point, prior, costs: As in [`decide`].

    Returns:
        `tuple[Tensor, Tensor]`: Scores of the shape of `logits`, of which the largest wins, or for several labels each
        of 0.5 or more; and class probabilities of the same shape, independent of the operating point: the posterior,
        under `prior` if given. Without a posterior ([`has_posterior`]) they are those of softmax or sigmoid.

    Raises:
        `ValueError`: As [`decide`] does.
    """
    settings = FocalSettings.find_in(config) or FocalSettings(gamma=0.0)
    multi_label = bool(is_multi_label(config))
    if logits.shape[-1] == 1 and not multi_label:
        raise ValueError(
            "config: a single logit for two classes requires problem_type='multi_label_classification', but got "
            f"{getattr(config, 'problem_type', None)!r}"
        )
    is_custom = not (prior is None and costs is None)
    if operating_point is not None and is_custom:
        name = "costs" if prior is None else "prior"
        raise ValueError(f"{name}: it is an operating point itself, but got {operating_point!r} as well")
    if operating_point is None:
        operating_point = "most_likely" if is_custom else settings.operating_point
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if operating_point == "as_trained":
        scores = logits.double().sigmoid() if multi_label else logits.double().softmax(-1)
        if multi_label:  # a logit of 0 means "no", as in the metrics
            scores = torch.where(logits > 0, scores.clamp_min(0.5), scores.clamp_max(0.5 - 2**-54))
        if not has_posterior(settings, multi_label):
            return scores, scores
        return scores, posterior_from_settings(logits, settings, multi_label=multi_label)
    posterior = posterior_from_settings(logits, settings, multi_label=multi_label)
    scores = operating_point_scores(posterior, config, operating_point, prior=prior)
    if prior is not None:
        posterior = scores
    if costs is not None:
        num_classes = posterior.shape[-1]
        if multi_label:
            raise ValueError("costs: expected one class per example; with several labels, each has its own threshold")
        try:
            matrix = torch.as_tensor(costs, dtype=torch.float64, device=posterior.device)
        except (TypeError, ValueError, RuntimeError):
            matrix = torch.full((), torch.nan)
        if matrix.shape != (num_classes, num_classes) or not matrix.isfinite().all():
            raise ValueError(
                f"costs: expected finite numbers of shape ({num_classes}, {num_classes}), but got {costs!r:.200}"
            )
        scores = -(posterior.double() @ matrix)
    return scores, posterior


def operating_point_scores(
    posterior: Tensor,
    config: Any,
    operating_point: str = "most_likely",
    *,
    prior: float | Sequence[float] | Tensor | None = None,
) -> Tensor:
    r"""The scores of an operating point: the class with the largest score is decided, or each label of 0.5 or more.

    - ``"most_likely"``: the posterior itself. Its decisions are right most often if classes occur as in training.
    - ``"balanced"``: the posterior divided by the class prior, which aims at balanced accuracy.
    - a `prior`: the posterior if classes occur with these frequencies ([`shift_prior`]), for a deployment that differs
      from the training data. [`estimate_prior`] estimates it from unlabelled examples.
    - ``"thresholds"``, for two classes and for multi-label: the thresholds fitted by [`FocalTrainer.calibrate`]; the
      odds are scaled so that the threshold becomes 0.5.

    Args:
        posterior (`Tensor`): The result of [`posterior_from_config`], (..., C).
        config (`PreTrainedConfig`): The model's config, which holds the class prior and the thresholds.
        operating_point (`str`): One of the names above.
        prior (`float`, sequence or `Tensor` of shape (C), *optional*): Class frequencies where the model is used,
            instead of a name; for multi-label, the share of examples with each label, one for all or one per label.

    Returns:
        `Tensor`: Scores in [0, 1] of the shape of `posterior`. float64 for a float64 posterior, otherwise float32.

    Raises:
        `ValueError`: For an unknown operating point, an invalid prior, or if the config lacks settings that are
        required.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from hf_focal import operating_point_scores
    >>> settings = {"gamma": 2.0, "alpha": None, "label_counts": [90, 10], "class_prior": [0.9, 0.1]}
    >>> config = BertConfig(num_labels=2, focal_loss=settings)
    >>> posterior = torch.tensor([[0.8, 0.2]])
    >>> operating_point_scores(posterior, config, "balanced")
    tensor([[0.3077, 0.6923]])
    >>> operating_point_scores(posterior, config, prior=[0.99, 0.01])
    tensor([[0.9778, 0.0222]])

    ```
    """
    if operating_point == "as_trained":
        raise ValueError(
            "operating_point: 'as_trained' decides by the logits, not by the posterior; use decide(), which takes them"
        )
    if operating_point not in OPERATING_POINTS:
        raise ValueError(
            f"operating_point: expected one of {', '.join(OPERATING_POINTS)}, but got {operating_point!r}"
        )
    if prior is not None and operating_point != "most_likely":
        raise ValueError(f"prior: it is an operating point itself, but got {operating_point!r} as well")
    if prior is None and operating_point == "most_likely":
        return posterior
    settings, num_classes = FocalSettings.from_config(config), posterior.shape[-1]
    multi_label = bool(is_multi_label(config))
    settings.check_fits(num_classes, multi_label)
    if operating_point == "thresholds":
        source = settings.thresholds
        if source is None and not multi_label and num_classes > 2:
            raise ValueError(
                f"operating_point: 'thresholds' is for two classes or several labels, but there are {num_classes} classes; "
                "use 'most_likely', 'balanced', prior or costs"
            )
        if source is None:
            raise ValueError("config: focal_loss holds no thresholds; FocalTrainer.calibrate fits them")
        if not multi_label:
            source = [1 - source[0], source[0]] if settings.positive_label == 1 else [source[0], 1 - source[0]]
    else:
        source = settings.class_prior
        if source is None:
            raise ValueError(
                "config: focal_loss holds no class_prior; FocalTrainer stores it if it can count the training data"
            )
    if multi_label:
        scores = _shift_shares(posterior, source, 0.5 if prior is None else prior)
        if operating_point != "thresholds":
            return scores
        is_never = torch.tensor(source, dtype=torch.float64, device=scores.device) >= 1 - SMALLEST_SHARE
        # Even a probability of 1 must not reach the threshold of such a label.
        return torch.where(is_never, scores.clamp_max(0.499), scores)
    if isinstance(prior, (int, float)):
        raise ValueError(f"prior: expected one probability for each of {num_classes} classes, but got {prior!r}")
    try:
        return shift_prior(posterior, source, [1 / num_classes] * num_classes if prior is None else prior)
    except ValueError as error:
        raise ValueError(str(error).replace("target_prior", "prior")) from error


def _shift_shares(posterior: Tensor, source: list[float], target: float | Sequence[float] | Tensor) -> Tensor:
    """[`shift_prior`] for independent labels; with a target share of 0 or 1 that is the result."""
    p = posterior.double()
    try:
        shares = torch.as_tensor(target, dtype=torch.float64, device=p.device)
    except (TypeError, ValueError) as error:
        raise ValueError(f"prior: expected a share of examples, or one for each label, but got {target!r}") from error
    does_not_fit = shares.dim() and shares.shape != p.shape[-1:]
    if does_not_fit or not (is_traced() or ((shares >= 0) & (shares <= 1)).all()):
        raise ValueError(
            f"prior: expected a share of examples in [0, 1], for all or for each of {p.shape[-1]} labels, but got "
            f"{shares.tolist()}"
        )
    never_or_always = [label for label, share in enumerate(source) if not 0 < share < 1]
    if never_or_always:
        raise ValueError(
            f"config: the class prior of labels {never_or_always} is 0 or 1, which cannot be shifted to another prior"
        )
    source_shares = torch.tensor(source, dtype=torch.float64, device=p.device)
    positive, negative = p * shares / source_shares, (1 - p) * (1 - shares) / (1 - source_shares)
    is_certain = (shares == 0) | (shares == 1)
    shifted = torch.where(is_certain, shares, positive / (positive + negative).where(~is_certain, 1))
    return shifted.to(loss_dtype(posterior))
