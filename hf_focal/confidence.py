"""The confidence required for a prediction to be reported: a cutoff for a wanted precision or recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._known_labels import known_labels
from ._model_kinds import class_names, is_multi_label
from .operating_points import decide, decision_scores
from .thresholds import wilson_interval


__all__ = ["MinConfidence", "fit_min_confidence"]


@dataclass(frozen=True)
class MinConfidence:
    """A cutoff, and its precision and recall on the data that it was fitted to.

    Attributes:
        min_confidence (`float`): Predictions with a lower probability are not reported.
        precision (`tuple[float, float, float]`): The share of reported predictions that are right, and the ends of its
            95 % interval ([Wilson (1927)](https://doi.org/10.1080/01621459.1927.10502953), which assumes independent
            targets).
        recall (`tuple[float, float, float]`): The share of the targets to be reported that are reported with the right
            class, and the ends of its interval.
    """

    min_confidence: float
    precision: tuple[float, float, float]
    recall: tuple[float, float, float]


def fit_min_confidence(
    logits: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    config: Any,
    *,
    wanted_precision: float | None = None,
    wanted_recall: float | None = None,
    ignore_labels: Sequence[str] = ("O",),
    operating_point: str | None = None,
    prior: Sequence[float] | Tensor | None = None,
    costs: Sequence[Sequence[float]] | Tensor | None = None,
) -> MinConfidence:
    """Fits the `min_confidence` of [`FocalTokenClassificationPipeline`] to a wanted precision or recall.

    A decision is reported if it is not in `ignore_labels` and its probability reaches the cutoff. Among the cutoffs
    with the wanted precision the smallest is chosen, which reports the most; among those with the wanted recall the
    largest, which makes the fewest errors. If only the first token of a word has a label, as in
    `run_token_classification.py`, precision and recall refer to the words of the data. With
    ``aggregation_strategy="first"`` the pipeline decides for the same words, except where the tokenizer splits at more
    than blanks: it splits "12%" into two words, of which the second was never labelled in training. The score of an
    entity of several words is the mean of their scores.

    Args:
        logits (`Tensor` or array): Logits of held-out data, (N, L, C) or (N, C), such as
            `trainer.predict(dataset).predictions`.
        labels (`Tensor` or array): Class ids of shape (N, L) or (N), such as its `label_ids`; -100 is ignored.
        config (`PreTrainedConfig`): The model's config.
        wanted_precision, wanted_recall (`float`): One of them, above 0 and up to 1.
        ignore_labels (sequence of `str`): Names of the classes that are not reported; by default "O", if there is such
            a class.
        operating_point, prior, costs: As in [`decide`].

    Returns:
        [`MinConfidence`]: The cutoff, midway between two probabilities of the data, or 0, with its precision and
        recall.

    Raises:
        `ValueError`: If the wanted precision or recall is not reachable (the message says what is), if not exactly one
        of the two is given, if the data have nothing to be reported, and as [`decide`] does.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from hf_focal import fit_min_confidence
    >>> config = BertConfig(id2label={0: "O", 1: "NAME"}, focal_loss={"gamma": 0.0})
    >>> logits = torch.tensor([[[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [5.0, 0.0]]])
    >>> found = fit_min_confidence(logits, torch.tensor([[1, 1, 0, 0]]), config, wanted_precision=0.9)
    >>> round(found.min_confidence, 2), found.precision[0], found.recall[0]
    (0.81, 1.0, 1.0)

    ```
    """
    logits, labels = torch.as_tensor(logits).detach(), torch.as_tensor(labels)
    name, wanted = _wanted(wanted_precision, wanted_recall)
    if is_multi_label(config):
        raise ValueError("config: expected one class per target, but there are several labels, each with a threshold")
    names = class_names(config, logits.shape[-1])
    if ignore_labels == ("O",) and "O" not in names:
        ignore_labels = ()
    if unknown := {*ignore_labels} - {*names}:
        raise ValueError(f"ignore_labels: expected names among {names}, but got {sorted(unknown)}")

    chosen: dict[str, Any] = {"operating_point": operating_point, "prior": prior, "costs": costs}
    decided = decide(logits, config, **chosen)
    confidence = decision_scores(logits, config, **chosen)[1].gather(-1, decided[..., None])
    is_known, targets = known_labels(logits.shape, labels, False)
    if targets.dim() == 2 or not ((targets >= 0) & (targets < len(names))).all():
        raise ValueError(f"labels: expected class ids from 0 to {len(names) - 1} or -100, but got others")
    decided, confidence = decided.flatten()[is_known], confidence.flatten()[is_known]
    is_wanted = torch.tensor([name not in ignore_labels for name in names])
    num_wanted = int(is_wanted[targets].sum())
    if not num_wanted:
        raise ValueError(f"labels: expected some that are not in {list(ignore_labels)}, but got none")

    # Reported predictions by descending confidence. A cutoff lies between two different confidences.
    is_reported = is_wanted[decided]
    confidences = confidence[is_reported].double().numpy()
    order = np.argsort(-confidences, kind="stable")
    confidences, hits = confidences[order], (decided == targets)[is_reported].numpy()[order].cumsum()
    reported = np.arange(1, len(confidences) + 1)
    reached = hits / (reported if name == "precision" else num_wanted)
    below = np.append(confidences[1:], 0.0)
    is_cutoff = confidences > below
    is_reached = (reached >= wanted) & is_cutoff
    if not is_reached.any():
        at_best = f"at most {reached[is_cutoff].max():.3f} is" if len(confidences) else "nothing is reported at all"
        raise ValueError(
            f"wanted_{name}: {wanted:g} is not reachable on these {len(targets)} targets, {at_best}; choose a lower "
            "value or another operating_point"
        )
    # The lowest cutoff with the wanted precision, or the highest with the wanted recall.
    last = np.flatnonzero(is_reached)[-1 if name == "precision" else 0]
    cutoff = 0.0 if last + 1 == len(confidences) else float((confidences[last] + below[last]) / 2)
    return MinConfidence(cutoff, wilson_interval(hits[last], reported[last]), wilson_interval(hits[last], num_wanted))


def _wanted(precision: float | None, recall: float | None) -> tuple[str, float]:
    """The name and the value of the one that is given."""
    given = {name: share for name, share in (("precision", precision), ("recall", recall)) if share is not None}
    if len(given) != 1:
        values = " and ".join(map(repr, given.values())) or "neither"
        raise ValueError(f"wanted_precision: expected either wanted_precision or wanted_recall, but got {values}")
    ((name, wanted),) = given.items()
    if not 0 < wanted <= 1:
        raise ValueError(f"wanted_{name}: expected a share above 0 and up to 1, but got {wanted!r}")
    return name, wanted
