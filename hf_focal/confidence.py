"""How sure a model has to be of what it reports: a cutoff for a wanted precision or recall."""

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
    """A cutoff, and what it reaches on the data that it was fitted on.

    Attributes:
        min_confidence (`float`): Below which probability nothing is reported.
        precision (`tuple[float, float, float]`): The share of what is reported that is right, and the ends of its 95 %
            interval ([Wilson (1927)](https://doi.org/10.1080/01621459.1927.10502953), as if targets erred independently).
        recall (`tuple[float, float, float]`): The share of what there is to be reported that is, and rightly.
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
    """The `min_confidence` of [`FocalTokenClassificationPipeline`] for a wanted precision or recall.

    What is decided is reported if it is none of `ignore_labels` and its probability reaches the cutoff. Of the cutoffs with
    the wanted precision it is the smallest, which reports the most; of those with the wanted recall the largest, which
    errs the least. Where only the first token of a word has a label, as in `run_token_classification.py`, precision and
    recall are those of the words of the data. With ``aggregation_strategy="first"`` the pipeline decides for the same words,
    but where the tokenizer splits at more than blanks: of "12%" it makes two words, the second of which no training has
    labelled. Entities of several words have the mean of their scores.

    Args:
        logits (`Tensor` or array): Of held-out data, (N, L, C) or (N, C), as `trainer.predict(dataset).predictions` has them.
        labels (`Tensor` or array): Class ids of shape (N, L) or (N), `label_ids` there; -100 is ignored.
        config (`PreTrainedConfig`): The model's config.
        wanted_precision, wanted_recall (`float`): One of them, above 0 and up to 1.
        ignore_labels (sequence of `str`): The names of the classes that are not reported; by default "O", if that is one.
        operating_point, prior, costs: As in [`decide`].

    Returns:
        [`MinConfidence`]: The cutoff, midway between two probabilities of the data, or 0; and what it reaches.

    Raises:
        `ValueError`: If what is wanted is not reachable: the message says what is. If not one of `wanted_precision` and
        `wanted_recall` is given, or there is nothing to be reported in the data; and as [`decide`] does.

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
        raise ValueError("config: expected one label per target, but there are several, each with a threshold")
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
        raise ValueError(f"labels: expected some that are not {list(ignore_labels)}, but got none")

    # From the surest on, what is reported with each cutoff. Between equal ones there is none.
    is_reported = is_wanted[decided]
    sure = confidence[is_reported].double().numpy()
    order = np.argsort(-sure, kind="stable")
    sure, hits = sure[order], (decided == targets)[is_reported].numpy()[order].cumsum()
    reported = np.arange(1, len(sure) + 1)
    reached = hits / (reported if name == "precision" else num_wanted)
    below = np.append(sure[1:], 0.0)
    is_cutoff = sure > below
    is_reached = (reached >= wanted) & is_cutoff
    if not is_reached.any():
        at_best = f"at most {reached[is_cutoff].max():.3f} is" if len(sure) else "nothing at all is reported"
        raise ValueError(
            f"wanted_{name}: {wanted:g} is not reachable on these {len(targets)} targets, {at_best}; want less, or another "
            "operating_point"
        )
    # The surest that suffice for a recall, all that are still right enough for a precision.
    last = np.flatnonzero(is_reached)[-1 if name == "precision" else 0]
    cutoff = 0.0 if last + 1 == len(sure) else float((sure[last] + below[last]) / 2)
    return MinConfidence(cutoff, wilson_interval(hits[last], reported[last]), wilson_interval(hits[last], num_wanted))


def _wanted(precision: float | None, recall: float | None) -> tuple[str, float]:
    """Which of them is wanted, and how much of it."""
    given = {name: share for name, share in (("precision", precision), ("recall", recall)) if share is not None}
    if len(given) != 1:
        found = " and ".join(map(repr, given.values())) or "neither"
        raise ValueError(f"wanted_precision: expected either it or wanted_recall, but got {found}")
    ((name, wanted),) = given.items()
    if not 0 < wanted <= 1:
        raise ValueError(f"wanted_{name}: expected a share above 0 and up to 1, but got {wanted!r}")
    return name, wanted
