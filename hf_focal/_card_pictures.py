"""The pictures of a model card: confusion matrix, reliability diagram, and precision and recall by threshold."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from ._picture_text import picture_names, set_plain
from .operating_points import has_posterior, posterior_from_settings
from .settings import FocalSettings
from .thresholds import wilson_interval


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "confusion_matrix",
    "precision_recall_curves",
    "prior_note",
    "readings",
    "reliability_diagram",
    "spread",
]

# Of the reliability diagram, whose axes give each bin equal space because most confidences are near 0 or 1.
BIN_EDGES = (0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
# With fewer positives, a curve would be only a few steps.
_MIN_POSITIVES = 10


def readings(logits: Tensor, settings: FocalSettings, multi_label: bool) -> dict[str, Tensor]:
    """The probabilities computed from logits (..., C), by name; with the class posterior, if there is one."""
    raw = {"raw sigmoid": logits.sigmoid()} if multi_label else {"raw softmax": logits.softmax(-1)}
    if not has_posterior(settings, multi_label):
        return raw
    return {**raw, "posterior": posterior_from_settings(logits, settings, multi_label=multi_label)}


def confusion_matrix(
    decided: Tensor, labels: Tensor, label_names: Sequence[str], label_counts: Sequence[int] | None, title: str = ""
) -> "Figure":
    """Shares of the predictions for each true class (the rows); the most frequent class first if counts are known.

    Args:
        decided, labels (`Tensor`): Class ids, (N).
        label_names (sequence of `str`): The C class names.
        label_counts (sequence of `int`, *optional*): Training examples of each class, (C).
        title (`str`): Above the picture.
    """
    from matplotlib.figure import Figure  # importing it takes longer than writing the rest of a card

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
    set_plain([axes.set_title(title, fontsize="medium")])
    if num_classes <= 60:
        names = picture_names(label_names)
        axes.set_xticks(range(num_classes), [names[k] for k in order], rotation=90)
        axes.set_yticks(range(num_classes), [names[k] for k in order])
        set_plain([*axes.get_xticklabels(), *axes.get_yticklabels()])
    if num_classes <= 12:
        for row, column in np.ndindex(*matrix.shape):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color)
    return figure


def reliability_diagram(
    probabilities: Mapping[str, Tensor], targets: Tensor, multi_label: bool, title: str = "", note: str = ""
) -> "Figure":
    """Bars of the accuracy (for several labels, of the share of positives) by confidence, above bars of the counts.

    The bars of a calibrated model end at their black marks, the mean confidences. The axes are not linear: each bin
    has equal space, so that the extremes, where most confidences are, can be seen.

    Args:
        probabilities (mapping of `Tensor`): By name, (N, C).
        targets (`Tensor`): The targets, (N, C): class probabilities, which are 0 or 1 if the class is known, or for
            several labels 0 or 1, or -100 if that is not known.
        multi_label (`bool`): Whether an example has several labels.
        title, note (`str`): Above and below the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), layout="constrained", dpi=150)
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    width = 0.9 / len(probabilities)
    lowest, first = 1.0, len(BIN_EDGES) - 5
    for place, ((name, p), color) in enumerate(zip(probabilities.items(), _COLORS)):
        if multi_label:
            confidence, outcome = p[targets != -100].numpy(), targets[targets != -100].numpy()
        else:
            confidence = p.amax(-1).numpy()
            outcome = targets.gather(-1, p.argmax(-1, keepdim=True)).flatten().numpy()
        bin_of_each = np.clip(np.searchsorted(BIN_EDGES, confidence, side="right") - 1, 0, len(BIN_EDGES) - 2)
        bins, bin_of_each, counts = np.unique(bin_of_each, return_inverse=True, return_counts=True)
        means, shares = (np.bincount(bin_of_each, values) / counts for values in (confidence, outcome))
        low, high = np.transpose([wilson_interval(*pair)[1:] for pair in zip(shares * counts, counts)])
        at, mark = bins + 0.05 + width * (place + 0.5), width / 2
        above.bar(at, spread(shares), width, color=color, alpha=0.45, label=name)
        above.vlines(at, spread(low), spread(high), color=color, label="95 % interval (Wilson)" if not place else None)
        label = "mean confidence: where the bar of a calibrated model ends" if not place else None
        above.hlines(spread(means), at - mark, at + mark, color="black", linewidth=2.5, label=label)
        bars = below.bar(at, counts, width, color=color, alpha=0.45)
        below.bar_label(bars, [f"{count:,}" for count in counts], padding=2, fontsize=7, rotation=90)
        lowest, first = min(lowest, low.min(), means.min()), min(first, bins.min())
    floor = np.floor(spread(lowest))
    edges = [f"{edge:g}" for edge in BIN_EDGES]
    above.set_ylim(floor, len(BIN_EDGES) - 1 + 0.1)
    above.set_yticks(range(int(floor), len(edges)), edges[int(floor) :])
    above.set_ylabel("share of positives" if multi_label else "accuracy")
    above.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    below.set_yscale("symlog", linthresh=1, linscale=0.3)
    below.margins(y=0.35)
    below.set_ylim(bottom=0)
    below.yaxis.set_ticks([])
    below.yaxis.set_ticks([], minor=True)
    below.set_xlim(first, len(BIN_EDGES) - 1)
    below.set_xticks(range(first, len(edges)), edges[first:], rotation=45)
    below.set(xlabel="probability" if multi_label else "confidence", ylabel="count, log scale")
    for panel in (above, below):
        panel.spines[["top", "right"]].set_visible(False)
    set_plain([figure.suptitle(title, fontsize="medium"), figure.supxlabel(note, fontsize="small")])
    return figure


def precision_recall_curves(
    probabilities: Tensor,
    targets: Tensor,
    decided: Tensor,
    label_names: Sequence[str],
    settings: FocalSettings,
    multi_label: bool,
    title: str = "",
) -> "Figure | None":
    """Precision and recall at each threshold; points mark the chosen threshold and the actual decisions.

    With two classes it is the curve of the positive class: that of the threshold or, without one, the rarer class.
    With several labels there is a curve of all decisions together and one of each of the rarest labels that have
    enough positives.

    Args:
        probabilities (`Tensor`): (N, C).
        targets (`Tensor`): As in [`reliability_diagram`].
        decided (`Tensor`): Class ids, (N), or for several labels 0 and 1, (N, C).
        label_names (sequence of `str`): The C class names.
        settings ([`FocalSettings`]): With the thresholds, the training counts and the operating point in force.
        multi_label (`bool`): Whether an example has several labels.
        title (`str`): Above the picture.

    Returns:
        `Figure`: None for more than two classes, and if there are only positives or no positives.
    """
    from matplotlib.figure import Figure

    names, thresholds, counts = picture_names(label_names), settings.thresholds, settings.label_counts
    figure = Figure(figsize=(7, 5.5), layout="constrained", dpi=150)
    axes = figure.add_subplot()

    def draw(name: str, score: np.ndarray, truth: np.ndarray, color: str, threshold: float | None) -> None:
        precision, recall, _ = precision_recall_curve(truth, score)
        chosen = "" if threshold is None else f", threshold {threshold:.3g} (dot)"
        average = average_precision_score(truth, score)
        label = f"average precision {average:.3f}, {truth.sum():,} positives{chosen}: {name}"
        axes.plot(recall, precision, color=color, label=label, drawstyle="steps-post")
        if threshold is not None:
            axes.plot(*_point(score >= threshold, truth), "o", color=color)

    if multi_label:
        is_known, is_positive, p = (targets != -100).numpy(), (targets == 1).numpy(), probabilities.numpy()
        if not is_positive.any() or is_positive[is_known].all():
            return None
        draw("all labels", p[is_known], is_positive[is_known], "black", None)
        guess, truth = decided.numpy()[is_known] == 1, is_positive[is_known]
        rarity = np.argsort(is_positive.sum(0) if counts is None else counts, kind="stable")
        drawn = [k for k in rarity if is_positive[:, k].sum() >= _MIN_POSITIVES][: len(_COLORS) - 1]
        for k, color in zip(drawn if len(names) > 1 else [], _COLORS):
            rows = is_known[:, k]
            draw(names[k], p[rows, k], is_positive[rows, k], color, None if thresholds is None else thresholds[k])
    elif len(names) == 2:
        rarer = settings.rarer_class(targets.sum(0).tolist())
        positive = rarer if thresholds is None else settings.positive_label
        truth, guess = (targets.argmax(-1) == positive).numpy(), (decided == positive).numpy()
        if not 0 < truth.sum() < len(truth):
            return None
        threshold = None if thresholds is None else thresholds[0]
        draw(names[positive], probabilities[:, positive].numpy(), truth, _COLORS[0], threshold)
        axes.axhline(truth.mean(), color="gray", linestyle=":", label="chance level")
    else:
        return None
    axes.plot(
        *_point(guess, truth), "D", color="black", fillstyle="none", label=f"decisions at {settings.operating_point}"
    )
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    texts = axes.legend(fontsize="small", loc="lower left").get_texts()
    set_plain([axes.set_title(title, fontsize="medium"), *texts])
    return figure


def prior_note(
    targets: Tensor, class_prior: Sequence[float] | None, label_names: Sequence[str], multi_label: bool
) -> str:
    """A note on whether the classes are as frequent as in training, up to chance; if not, with the largest difference.

    Args:
        targets (`Tensor`): As in [`reliability_diagram`].
        class_prior (sequence of `float`, *optional*): The shares of the classes in training.
        label_names (sequence of `str`): The C class names.
        multi_label (`bool`): Whether an example has several labels.
    """
    if class_prior is None:
        return ""
    prior = np.asarray(class_prior)
    known = np.maximum((targets != -100).numpy().sum(0) if multi_label else len(targets), 1)
    shares = (targets.where(targets != -100, 0)).numpy().sum(0) / known
    errors = np.sqrt(np.maximum(prior * (1 - prior), 1e-12) / known)
    differences = np.abs(shares - prior) / errors
    most = int(differences.argmax())
    if differences[most] < norm.isf(0.001 / len(prior)):
        return "Class frequencies here are the same as in training, up to chance"
    return (
        "Class frequencies here differ from those in training, which shifts probabilities; the largest difference: "
        f"{100 * shares[most]:.3g} % here and {100 * prior[most]:.3g} % in training for {picture_names(label_names)[most]}"
    )


def spread(probabilities: np.ndarray | float) -> np.ndarray:
    """The position of a probability on an axis that gives equal space to each bin of the reliability diagram."""
    return np.asarray(np.interp(probabilities, BIN_EDGES, range(len(BIN_EDGES))))


def _point(guess: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Recall and precision; if nothing is decided, the precision is 1, as at the end of a curve."""
    hits = (guess & truth).sum()
    return hits / truth.sum(), hits / guess.sum() if guess.any() else 1.0
