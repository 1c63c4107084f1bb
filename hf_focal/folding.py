"""Calibration folded into the weights of the head: the stock softmax or sigmoid then gives calibrated probabilities.

For ``logits = W h + b``, the scale a and biases c of calibration give ``a W h + (a b + c)``: new weights of the same
layer, which work in every library.
"""

import base64
import hashlib
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._checks import as_weights
from ._known_labels import known_labels
from ._model_kinds import is_multi_label
from .calibration import UnboundedFitError, fit_scaling, negative_log_likelihood
from .operating_points import decide, has_posterior, operating_point_scores, posterior_from_settings
from .settings import SMALLEST_SHARE, FocalSettings


__all__ = ["check_folded_weights", "find_head", "fold_calibration", "needs_held_out_data", "unfold_calibration"]

_VIEWS = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float64: torch.int64,
}


def fold_calibration(
    model: nn.Module,
    logits: Tensor | np.ndarray | None = None,
    labels: Tensor | np.ndarray | None = None,
    *,
    operating_point: str | None = None,
    prior: float | Sequence[float] | Tensor | None = None,
    sample_weight: Sequence[float] | np.ndarray | Tensor | None = None,
) -> dict[str, Any]:
    r"""Changes the last linear layer of a model so that its stock softmax or sigmoid is the calibrated class posterior.

    The probabilities apply to data where classes occur as in training, whatever their frequencies in the held-out data
    ([`fit_scaling`] shifts them), or to a `prior` if given.

    With a gamma of 0, alpha and the calibration stored by [`FocalTrainer.calibrate`] are folded exactly. With other
    losses a linear layer cannot represent the posterior exactly. With held-out labels, the scale and biases with the
    largest likelihood are used instead ([`fit_scaling`], ``method="vector"``, on the raw logits), which were better
    than the closed form where they have been compared; without labels, with a warning, those that are closest to the
    posterior of these logits. For sigmoid losses with one gamma for all labels, positives and negatives, and without a
    margin, the approximation is so close that no data are needed: within 0.001 for gamma 2 without alpha.

    Afterwards [`posterior_from_config`] and the pipelines of this package also return the stock probabilities. A stock
    pipeline then decides by the largest probability, or by the `operating_point` or `prior` that was folded. The
    pipelines of this package keep the operating point in the config, unless one is folded. [`unfold_calibration`]
    restores the original weights, bit for bit.

    Args:
        model (`nn.Module`): A model trained by [`FocalTrainer`]; its head and its config are changed in place.
        logits (`Tensor` or array, *optional*): The model's logits for held-out data, (..., C). Not needed for a gamma
            of 0 or for the sigmoid losses above.
        labels (`Tensor` or array, *optional*): As in [`calibrate_config`].
        operating_point (`str`, *optional*): ``"balanced"`` or ``"thresholds"``, to become the stock decision. With
            ``"balanced"`` the probabilities are for classes that occur equally often; with ``"thresholds"`` the stock
            scores are not probabilities.
        prior (as in [`decide`], *optional*): Class frequencies that the stock probabilities are to be for; they become
            the `class_prior` of the record.
        sample_weight (sequence of N `float`, *optional*): Weight of each entry of the first dimension of the logits.

    Returns:
        `dict`: ``scale`` and ``bias`` of the logits, and whether they are ``exact``. Also the ``largest_difference``
        and the ``mean_difference`` between the new probabilities and the previous posterior, and the share of
        ``equal_decisions`` of the stock pipeline before and after. These are weighted, and measured on the rows of
        logits that have a label, on all rows if there are no labels, or on a range of logits if the sigmoid losses
        above are folded without data. With labels, also the ``negative_log_likelihood_before`` (of the stock
        probabilities), ``..._of_posterior`` and ``..._after``.

    Raises:
        `ValueError`: If the model is folded already, there is no posterior, logits are needed but missing, or the head
            cannot be found or changed. The model is then left unchanged.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from hf_focal import fold_calibration, posterior_from_config
    >>> settings = {"gamma": 0.0, "alpha": [0.5, 2.0], "class_prior": [0.8, 0.2]}
    >>> shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    >>> model = BertForSequenceClassification(BertConfig(**shape, num_labels=2, focal_loss=settings)).eval()
    >>> before = posterior_from_config(model(torch.tensor([[1, 2]])).logits, model.config)
    >>> fold_calibration(model)["exact"]
    True
    >>> torch.allclose(model(torch.tensor([[1, 2]])).logits.softmax(-1), before, atol=1e-6)
    True

    ```
    """
    config: Any = model.config
    settings, multi_label = FocalSettings.from_config(config), bool(is_multi_label(config))
    if settings.folded is not None:
        raise ValueError("model: its calibration is folded already; call unfold_calibration(model) first")
    if not has_posterior(settings, multi_label):
        raise ValueError(
            "model: it has no class posterior to fold: gamma is a function of p_t, or a class has weight 0 in alpha"
        )
    if operating_point is not None and prior is not None:
        raise ValueError(f"prior: it is an operating point itself, but got {operating_point!r} as well")
    head = find_head(model)
    if logits is None and labels is not None:
        raise ValueError("logits: expected logits for the labels, but got None")
    is_exact = _is_affine(settings, multi_label)
    if logits is None and not is_exact and not needs_held_out_data(config):
        logits = torch.linspace(-8, 8, 321, dtype=torch.float64)[:, None].expand(-1, config.num_labels)
    held_out = None if logits is None else _held_out(logits, labels, sample_weight, multi_label)
    if is_exact:
        scale, bias = _exact(settings, config.num_labels, multi_label)
    else:
        scale, bias = _fitted(held_out, settings, multi_label, head)
    prior_shift, threshold_shift = _shifts(config, settings, multi_label, operating_point, prior)
    total = bias + prior_shift + threshold_shift
    if not multi_label:
        total = total - total.mean()  # softmax does not depend on it
    if head.bias is None and total.abs().max() > 1e-9:
        raise ValueError(
            f"model: the head of {type(model).__name__} has no bias, which is needed for alpha, another class "
            "prior or thresholds; train it without alpha, or use hf_focal's pipeline"
        )
    applied: dict[str, Any] = {"scale": scale, "bias": total.tolist(), "exact": is_exact}
    measured: dict[str, float] = {}
    if held_out is not None:
        after = held_out.logits * scale + total
        measured = _compare(held_out, after, prior_shift, threshold_shift, settings, config, multi_label)
    weight, undo = _scaled(head, scale)
    changed = _at_prior(settings, prior_shift, multi_label)
    if operating_point is not None or prior is not None:
        changed["operating_point"] = "as_trained"
    unfolded = {name: getattr(settings, name) for name in ("class_prior", "thresholds", "operating_point")}
    applied_shift = threshold_shift.tolist()
    folded = {**applied, "measured": measured, "shift": applied_shift, "unfolded_settings": unfolded, **undo}
    record = replace(settings, folded={**folded, "digests": {}}, **changed)  # validated before anything is changed
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(head.bias.double() * scale + total.to(head.bias.device))
    replace(record, folded={**folded, "digests": _digests(head)}).store_in(config)
    if not is_exact and labels is None:
        warnings.warn(
            "labels: without held-out labels the fold is fitted to the formula of the posterior, with differences "
            f"of up to {measured['largest_difference']:.2g}",
            stacklevel=2,
        )
    elif labels is not None and operating_point is None and prior is None:
        loss_before, loss_after = (measured[f"negative_log_likelihood_{when}"] for when in ("before", "after"))
        if loss_after > loss_before:
            warnings.warn(
                "labels: they are less likely after the fold than before, as these data have other class frequencies "
                "than the training data, which the probabilities are for; use prior= to fold for other frequencies",
                stacklevel=2,
            )
    return applied | measured


def needs_held_out_data(config: Any) -> bool:
    """Whether [`fold_calibration`] needs logits of held-out data.

    It does not if the posterior is exactly linear in the logits, or if one scale is a good approximation for every
    label: for sigmoid losses with one gamma for all labels, positives and negatives, and without a margin.
    """
    settings, multi_label = FocalSettings.from_config(config), bool(is_multi_label(config))
    if _is_affine(settings, multi_label):
        return False
    gammas = np.hstack([gamma for gamma in (settings.gamma, settings.gamma_neg) if gamma is not None])
    return not multi_label or bool(settings.margin) or len({*gammas.tolist()}) > 1


def unfold_calibration(model: nn.Module) -> None:
    """Undoes [`fold_calibration`]: restores the weights of the head, bit for bit, and the record.

    Args:
        model (`nn.Module`): A folded model, possibly loaded from a folder, in the precision in which it was folded.

    Raises:
        `ValueError`: If the model is not folded, or its weights or precision have changed since.
    """
    config: Any = model.config
    settings = FocalSettings.from_config(config)
    if settings.folded is None:
        raise ValueError("model: its calibration is not folded")
    check_folded_weights(model)
    head, folded = find_head(model), settings.folded
    dtype = str(head.weight.dtype).removeprefix("torch.")
    if dtype != folded["dtype"]:
        raise ValueError(f"model: expected {folded['dtype']}, in which it was folded, but got {dtype}")
    if _digests(head)[dtype] != folded["digests"].get(dtype):
        raise ValueError(
            "model: the weights of its head have been rounded since the fold, so the original ones cannot be restored"
        )
    with torch.no_grad():
        head.weight.copy_(_restored(head.weight, folded["scale"], folded["residual"]))
        if head.bias is not None:
            head.bias.copy_(torch.tensor(folded["unfolded_bias"], dtype=torch.float64))
    replace(settings, folded=None, **folded["unfolded_settings"]).store_in(config)


def check_folded_weights(model: nn.Module) -> None:
    """Checks that the weights of a folded model are those that its record describes.

    Raises:
        `ValueError`: If they are not, so that the record does not apply.
    """
    settings = FocalSettings.find_in(getattr(model, "config", None))
    if settings is None or settings.folded is None:
        return
    current, recorded = _digests(find_head(model)), settings.folded["digests"]
    if not any(current.get(dtype) == digest for dtype, digest in recorded.items()):
        raise ValueError(
            "model: its config says that calibration is folded into the head, but the weights differ from those "
            "after the fold; load the weights that were saved with this config"
        )


def _digests(head: nn.Linear) -> dict[str, str]:
    """Digests of weights and biases, by dtype: as they are, and in the half precisions in which they may be loaded."""
    values = [part.detach().cpu() for part in (head.weight, head.bias) if part is not None]
    digests = {}
    for dtype in dict.fromkeys([head.weight.dtype, torch.bfloat16, torch.float16]):
        digest = hashlib.sha256()
        for part in values:
            digest.update(part.to(dtype).contiguous().view(_VIEWS[dtype]).numpy().tobytes())
        digests[str(dtype).removeprefix("torch.")] = digest.hexdigest()
    return digests


def find_head(model: nn.Module) -> nn.Linear:
    """The linear layer whose outputs are the logits, found by running the model if it takes tokens.

    Raises:
        `ValueError`: If there is none, there are several candidates, or its weights cannot be changed: because they
            are quantised, have an adapter or a parametrization, or are shared with another layer.
    """
    config: Any = model.config
    linear = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == config.num_labels
    }
    by_output = _heads_by_output(model, linear)
    heads = linear if by_output is None else by_output
    if any(name.endswith("base_layer") for name in heads or linear):
        raise ValueError("model: its head has an adapter; merge it first, with model.merge_and_unload()")
    if len(heads) != 1:
        raise ValueError(
            f"model: expected one linear layer of {type(model).__name__} whose outputs are the {config.num_labels} logits, but "
            f"found {len(heads)}: {', '.join(heads) or 'none'}"
        )
    (head,) = heads.values()
    if parametrize.is_parametrized(head) or not isinstance(head.weight, nn.Parameter):
        raise ValueError(
            "model: the weights of its head are parametrized (by weight_norm, for example); remove the parametrization"
        )
    if not head.weight.is_floating_point() or head.weight.dtype not in _VIEWS:
        raise ValueError(f"model: its head is quantised ({head.weight.dtype}); fold before quantising")
    sharing = [other for other, p in model.named_parameters(remove_duplicate=False) if p is head.weight]
    if len(sharing) > 1:
        raise ValueError(f"model: the weights of its head are shared: {', '.join(sharing)}")
    return head


def _heads_by_output(model: nn.Module, linear: dict[str, nn.Linear]) -> dict[str, nn.Linear] | None:
    """The layers whose outputs are the logits of a few tokens; None if the model does not take tokens."""
    config: Any = model.config
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    last = getattr(text_config, "eos_token_id", None)
    last = last if isinstance(last, int) else 1
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 1, last]], device=device)  # some heads read the last end-of-sentence token
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda layer, inputs, output: outputs.__setitem__(name, output)

    hooks = [layer.register_forward_hook(remember(name)) for name, layer in linear.items()]
    was_training = model.training
    try:
        with torch.no_grad():
            result = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:  # the model may take images or audio
        return None
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    logits = result[0] if isinstance(result, tuple) else result.logits
    rows = logits.reshape(-1, 1, logits.shape[-1])
    return {
        name: linear[name]
        for name, output in outputs.items()
        if isinstance(output, Tensor) and (rows == output.reshape(1, -1, output.shape[-1])).all(-1).any(-1).all()
    }


def _is_affine(settings: FocalSettings, multi_label: bool) -> bool:
    """Whether the log odds of the posterior are linear in the logits."""
    focusing = [settings.gamma, settings.gamma_neg or 0, settings.margin]
    smoothing = 0 if multi_label else settings.label_smoothing
    return not any(np.any(value) for value in [*focusing, smoothing])


def _exact(settings: FocalSettings, num_labels: int, multi_label: bool) -> tuple[float, Tensor]:
    """Scale and biases from logits to those of the calibrated posterior."""
    scale, bias = 1 / (settings.temperature or 1.0), torch.zeros(num_labels, dtype=torch.float64)
    weights = settings.class_weights(num_labels, multi_label)
    if weights is not None:
        log_weights = weights.double().log()
        bias = bias - scale * (log_weights[1] - log_weights[0] if multi_label else log_weights)
    if settings.calibration_bias is not None:
        bias = bias + torch.tensor(settings.calibration_bias, dtype=torch.float64)
    return scale, bias


def _fitted(
    held_out: "_HeldOut | None", settings: FocalSettings, multi_label: bool, head: nn.Linear
) -> tuple[float, Tensor]:
    if held_out is None:
        raise ValueError(
            "logits: expected logits of held-out data, with their labels: with this loss (gamma, a margin or label "
            "smoothing) the posterior is not linear in the logits, so the fold has to be fitted"
        )
    labels = held_out.labels
    counts = None if labels is None or multi_label else _class_counts(labels, held_out)
    if counts is not None and (counts > 0).sum() == 1:
        raise ValueError("labels: they are all the same, so nothing can be fitted; fold with other held-out data")
    # Correcting for the class frequencies of the held-out data takes biases.
    options: dict[str, Any] = {"class_prior": None if head.bias is None else settings.class_prior}
    if labels is None:
        labels = posterior_from_settings(held_out.logits, settings, multi_label=multi_label)
        options = {"ridge": 0.0}
    options |= {"sample_weight": held_out.weights, "multi_label": multi_label}
    method = "temperature" if head.bias is None else "vector"
    stock = _stock(held_out.logits, multi_label)
    try:
        scaling = fit_scaling(stock, labels, method=method, **options)
    except UnboundedFitError as error:
        raise ValueError(f"{error}; fold with other held-out data") from error
    scale = 1 / scaling.temperature
    bias = torch.zeros(stock.shape[-1]).double() if scaling.bias is None else torch.tensor(scaling.bias).double()
    if counts is None or head.bias is None:
        return scale, bias
    return scale, _with_absent_classes(scale, bias, counts == 0, held_out, settings)


def _class_counts(labels: Tensor, held_out: "_HeldOut") -> Tensor:
    """The total weight of the examples of each class, for class ids or class probabilities."""
    if labels.dim() == 1:
        return labels.bincount(held_out.weights, minlength=held_out.logits.shape[-1])
    return (labels * held_out.weights[:, None]).sum(0)


def _with_absent_classes(
    scale: float, bias: Tensor, is_absent: Tensor, held_out: "_HeldOut", settings: FocalSettings
) -> Tensor:
    """Sets the biases of classes without a held-out example so that their mean probability is that of the formula."""
    if not is_absent.any():
        return bias
    warnings.warn(
        f"labels: there are no held-out examples of {int(is_absent.sum())} classes, such as id "
        f"{is_absent.nonzero()[0].item()}; their mean probabilities are set to those of the formula",
        stacklevel=4,
    )
    posterior = posterior_from_settings(held_out.logits, settings, multi_label=False)[:, is_absent]
    weights = (held_out.weights / held_out.weights.sum())[:, None]
    wanted, bias = (posterior * weights).sum(0).clamp_min(SMALLEST_SHARE), bias.clone()
    for _ in range(100):
        p = (scale * held_out.logits + bias).softmax(-1)[:, is_absent]
        bias[is_absent] += (wanted / (p * weights).sum(0).clamp_min(SMALLEST_SHARE)).log()
    return bias


def _shifts(
    config: Any,
    settings: FocalSettings,
    multi_label: bool,
    operating_point: str | None,
    prior: float | Sequence[float] | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The shift of the log posterior to another class prior, and the further shift to thresholds, both (C).

    With the latter, the result is not a posterior.
    """
    num_labels = config.num_labels
    none = torch.zeros(num_labels, dtype=torch.float64)
    if operating_point in (None, "most_likely") and prior is None:
        return none, none
    # The shift does not depend on the probabilities, so use equal ones.
    even = torch.full((num_labels,), 0.5 if multi_label else 1 / num_labels, dtype=torch.float64)
    scores = operating_point_scores(even, config, operating_point or "most_likely", prior=prior)
    shift = _log_odds(scores, multi_label)
    if not shift.isfinite().all():
        raise ValueError("prior: expected shares above 0, as the biases would be infinite")
    shift = shift if multi_label else shift - shift.mean()
    return (none, shift) if operating_point == "thresholds" else (shift, none)


def _scaled(head: nn.Linear, scale: float) -> tuple[Tensor, dict[str, Any]]:
    """The weights of the head times the scale, and what is recorded to restore the original weights."""
    weight = head.weight.detach()
    scaled = (weight.double() * scale).to(weight.dtype)
    if not scaled.isfinite().all():
        raise ValueError(f"model: with a scale of {scale:g} the weights of its head overflow {weight.dtype}")
    view = _VIEWS[weight.dtype]
    residual = weight.view(view).long() - (scaled.double() / scale).to(weight.dtype).view(view).long()
    packed = zlib.compress(residual.cpu().numpy().astype("<i4").tobytes(), 9)
    return scaled, {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "residual": base64.b64encode(packed).decode(),
        "unfolded_bias": None if head.bias is None else head.bias.detach().double().tolist(),
    }


def _restored(weight: Tensor, scale: float, residual: str) -> Tensor:
    """The weights before the fold; the residual corrects for rounding."""
    view = _VIEWS[weight.dtype]
    steps = np.frombuffer(zlib.decompress(base64.b64decode(residual)), "<i4").astype(np.int64)
    near = (weight.detach().double() / scale).to(weight.dtype).view(view).long().cpu()
    return (near + torch.from_numpy(steps).reshape(weight.shape)).to(view).view(weight.dtype)


def _at_prior(settings: FocalSettings, shift: Tensor, multi_label: bool) -> dict[str, Any]:
    """The class prior and thresholds after the probabilities are shifted to other class frequencies."""
    shifted_settings: dict[str, Any] = {}
    if settings.class_prior is not None and shift.any():
        prior = torch.tensor(settings.class_prior, dtype=torch.float64)
        shifted_settings["class_prior"] = _stock(_log_odds(prior, multi_label) + shift, multi_label).tolist()
    if settings.thresholds is not None:
        k = settings.positive_label
        label_shift = shift if multi_label else shift[[k]] - shift[[1 - k]]
        thresholds = torch.tensor(settings.thresholds, dtype=torch.float64)
        shifted = (thresholds.logit() + label_shift).sigmoid().clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE)
        shifted_settings["thresholds"] = torch.where(thresholds < 1 - SMALLEST_SHARE, shifted, thresholds).tolist()
    return shifted_settings


def _stock(logits: Tensor, multi_label: bool) -> Tensor:
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def _log_odds(probabilities: Tensor, multi_label: bool) -> Tensor:
    return probabilities.logit() if multi_label else probabilities.log()


@dataclass(frozen=True)
class _HeldOut:
    """Logits (n, C), float64, labels and weights (n); only the rows that have a label, if there are labels."""

    logits: Tensor
    labels: Tensor | None
    weights: Tensor


def _held_out(
    logits: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | None,
    sample_weight: Sequence[float] | np.ndarray | Tensor | None,
    multi_label: bool,
) -> _HeldOut:
    logits = torch.as_tensor(logits).detach().cpu().double()
    weights = torch.from_numpy(as_weights(sample_weight, len(logits)))
    rows = logits.reshape(-1, logits.shape[-1])
    weights = weights.repeat_interleave(len(rows) // max(len(weights), 1))
    if not weights.any():
        raise ValueError("logits: expected rows with a sample_weight above 0, but got none")
    if labels is None:
        return _HeldOut(rows, None, weights)
    is_known, known = known_labels(logits.shape, torch.as_tensor(labels).detach().cpu(), multi_label)
    return _HeldOut(rows[is_known], known, weights[is_known])


def _compare(
    held_out: _HeldOut,
    after: Tensor,
    prior_shift: Tensor,
    threshold_shift: Tensor,
    settings: FocalSettings,
    config: Any,
    multi_label: bool,
) -> dict[str, float]:
    """Compares the probabilities after the fold to those before, and to the posterior at the same class prior."""
    logits, labels, weights = held_out.logits, held_out.labels, held_out.weights
    posterior = posterior_from_settings(logits, settings, multi_label=multi_label)
    probabilities = {
        "before": _stock(logits, multi_label),
        "of_posterior": _stock(_log_odds(posterior, multi_label) + prior_shift, multi_label),
        "after": _stock(after - threshold_shift, multi_label),
    }
    likelihoods: dict[str, float] = {}
    if labels is not None:
        options: dict[str, Any] = {"sample_weight": weights, "multi_label": multi_label}
        for name, p in probabilities.items():
            likelihoods[f"negative_log_likelihood_{name}"] = negative_log_likelihood(p, labels, **options)
    difference = (probabilities["after"] - probabilities["of_posterior"]).abs()
    decided = (after > 0).long() if multi_label else after.argmax(-1)
    is_equal = (decide(logits, config, "as_trained") == decided).double().reshape(len(logits), -1)
    return likelihoods | {
        "largest_difference": difference[weights > 0].max().item(),
        "mean_difference": np.average(difference.mean(-1), weights=weights).item(),
        "equal_decisions": np.average(is_equal.mean(-1), weights=weights).item(),
    }
