"""The pictures of a model card: how its classes are confused, and how its probabilities are borne out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ._markdown import one_line
from .operating_points import has_posterior, posterior_from_settings
from .settings import FocalSettings


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def readings(logits: Tensor, settings: FocalSettings, multi_label: bool) -> dict[str, Tensor]:
    """The probabilities that can be read out of logits (..., C), by name; the class posterior where there is one."""
    found = {"raw sigmoid": logits.sigmoid()} if multi_label else {"raw softmax": logits.softmax(-1)}
    if not has_posterior(settings, logits.shape[-1], multi_label):
        return found
    return {**found, "posterior": posterior_from_settings(logits, settings, multi_label=multi_label)}


def confusion_matrix(
    decided: Tensor, labels: Tensor, label_names: Sequence[str], label_counts: Sequence[int] | None
) -> "Figure":
    """Shares of each true class, the rows, by prediction; the most frequent class first, if their counts are known.

    Args:
        decided, labels (`Tensor`): Class ids, (N).
        label_names (sequence of `str`): The C class names.
        label_counts (sequence of `int`, *optional*): Of each class in training, (C).
    """
    from matplotlib.figure import Figure  # takes longer to import than the rest of a card takes

    num_classes = len(label_names)
    order = np.arange(num_classes) if label_counts is None else np.argsort(-np.asarray(label_counts), kind="stable")
    pairs = labels * num_classes + decided
    matrix = pairs.bincount(minlength=num_classes**2).reshape(num_classes, num_classes).numpy()[order][:, order]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = min(12, 3.5 + 0.25 * num_classes)
    figure = Figure(figsize=(size + 1, size), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    figure.colorbar(axes.imshow(share, vmin=0, vmax=1, cmap="Blues"), label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    if num_classes <= 60:
        names = [short(label_names[k]) for k in order]
        axes.set_xticks(range(num_classes), names, rotation=90)
        axes.set_yticks(range(num_classes), names)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_parse_math(False)
    if num_classes <= 12:
        for row, column in np.ndindex(*matrix.shape):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color)
    return figure


def reliability_diagram(probabilities: Mapping[str, Tensor], targets: Tensor, multi_label: bool) -> "Figure":
    """Confidence against accuracy, or for several labels probability against the share of positives, in 15 bins.

    Args:
        probabilities (mapping of `Tensor`): By name, (N, C).
        targets (`Tensor`): What they ought to be, (N, C): class probabilities, 0 or 1 where the class is known, or for
            several labels 0 or 1, or -100 where that is not known.
        multi_label (`bool`): Whether an example has several labels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="lightgray")
    for name, p in probabilities.items():
        if multi_label:
            confidence, outcome = p[targets != -100].numpy(), targets[targets != -100].numpy()
        else:
            confidence = p.amax(-1).numpy()
            outcome = targets.gather(-1, p.argmax(-1, keepdim=True)).flatten().numpy()
        bins = [k for k in np.array_split(np.argsort(confidence, kind="stable"), 15) if len(k)]
        axes.plot([confidence[k].mean() for k in bins], [outcome[k].mean() for k in bins], "o-", label=name)
    share = "share of positives" if multi_label else "accuracy"
    axes.set(xlabel="confidence", ylabel=f"{share} (15 bins of equal mass)", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()
    return figure


def short(text: str) -> str:
    """What a picture has room for."""
    text = one_line(text)
    return text if len(text) <= 24 else text[:23] + "…"
