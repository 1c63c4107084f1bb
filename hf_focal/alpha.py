"""The label distribution of a dataset, and class weights from it. Command line: `python -m hf_focal.alpha --help`."""

import math
import unicodedata
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from numpy.typing import ArrayLike
from torch import Tensor

from ._checks import ArgumentError, as_numbers
from ._label_counts import count_labels
from ._markdown import escape_markdown, markdown_table
from ._picture_text import check_matplotlib, numbered, picture_names, set_plain


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ALPHA_METHODS", "AlphaMethod", "LabelDistribution", "check_alpha_method", "check_beta", "compute_alpha"]

_ALPHA_HEADERS = ((), ("alpha",), ("alpha of negatives", "alpha of positives"))

_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}

ALPHA_METHODS = ("inverse", "balanced", "sqrt_inverse", "effective_number")

WeighingMethod = Literal["inverse", "balanced", "sqrt_inverse", "effective_number"] | Callable[[np.ndarray], ArrayLike]
AlphaMethod = str | Callable[[np.ndarray], ArrayLike]


@dataclass(frozen=True, repr=False, eq=False)
class LabelDistribution:
    """How often each class occurs, created by [`LabelDistribution.from_dataset`] or from the counts directly.

    Attributes:
        counts (`np.ndarray` of int64, shape (C)): Examples (for token labels, tokens) of each class.
        negatives (`np.ndarray` of int64, shape (C), *optional*): For multi-label data, the number of rows without each
            label.
        names (sequence of `str`, *optional*): The class names, if the data has them; stored as a list of strings.
        num_rows (`int`, *optional*): Number of rows read.
        is_sample (`bool`): Whether only these rows of a larger dataset were read.

    Raises:
        `ValueError`: If the counts are not whole numbers of at least 0, or there is not one name per class.

    Example:

    ```python
    >>> from hf_focal import LabelDistribution
    >>> distribution = LabelDistribution.from_dataset(["ham"] * 950 + ["spam"] * 50)
    >>> distribution
    LabelDistribution: 1,000 labels of 2 classes, 19.0 : 1
    class  count    share
    ham      950  95.00 %
    spam      50   5.00 %
    >>> distribution.imbalance_ratio
    19.0
    >>> distribution.alpha("sqrt_inverse")
    tensor([0.8562, 3.7321])
    >>> print(distribution.to_markdown(distribution.alpha()))
    | class | count | share | alpha |
    | --- | ---: | ---: | ---: |
    | ham | 950 | 95.00 % | 0.526 |
    | spam | 50 | 5.00 % | 10 |

    ```
    """

    counts: np.ndarray
    negatives: np.ndarray | None = None
    names: list[str] | None = None
    num_rows: int | None = None
    is_sample: bool = False

    def __post_init__(self):
        for field in ("counts", "negatives"):
            given = getattr(self, field)
            if given is None and field == "negatives":
                continue
            try:
                counts = np.asarray(given)
            except (TypeError, ValueError, RuntimeError):  # ragged rows, a tensor that requires grad
                counts = np.empty(0)
            if counts.ndim != 1 or not len(counts) or counts.dtype.kind not in "iu" or (counts < 0).any():
                raise ValueError(f"{field}: expected one whole number >= 0 per class, but got {given!r}")
            if counts.sum(dtype=np.float64) >= 2**63:
                raise ValueError(f"{field}: expected whole numbers whose sum is less than 2**63, but got {given!r}")
            object.__setattr__(self, field, counts.astype(np.int64))
        if self.names is not None:
            if isinstance(self.names, str) or not isinstance(self.names, Iterable):
                raise ValueError(f"names: expected one for each class, but got {self.names!r}")
            object.__setattr__(self, "names", [str(name) for name in self.names])  # a name of a ClassLabel may be None
        for field in ("negatives", "names"):
            if getattr(self, field) is not None and len(getattr(self, field)) != len(self.counts):
                raise ValueError(
                    f"{field}: expected one for each of {len(self.counts)} classes, but got {len(getattr(self, field))}"
                )

    @classmethod
    def from_dataset(
        cls,
        data: Any,
        *,
        column: str | None = None,
        num_labels: int | None = None,
        multi_label: bool | None = None,
        max_rows: int | None = None,
        one_hot: bool = False,
    ) -> "LabelDistribution":
        """Counts the labels of any kind of data.

        An Arrow-backed dataset is counted in place, without a copy. Only the label column of a stream is kept, and
        only that column of a Parquet stream is read; streams and torch datasets show a progress bar. A stream that
        `split_dataset_by_node` has split into one shard per process is counted by all processes together, so all of
        them have to make this call.

        Args:
            data (dataset, sequence, array, `Tensor` or pandas object): A `Dataset` or `IterableDataset` of `datasets`
                or of torch (whose examples are dicts, or tuples that end with the label), or the labels themselves: class
                ids, booleans or strings; rows of 0 and 1 of equal length (multi-hot); or rows of class ids or strings,
                which are the labels of an example or of its tokens. Ids of -100 are ignored.
            column (`str`, *optional*): Label column of a table; by default ``label`` or ``labels``.
            num_labels (`int`, *optional*): Number of classes C. By default the number given by `ClassLabel`, the
                number of distinct strings (in alphabetical order, as in `class_encode_column`), or the highest id plus 1.
            multi_label (`bool`, *optional*): Whether each row holds the labels of one example. By default, rows of 0
                and 1 are read in that way, and rows with repeated or ignored ids as token labels; rows that could be
                either are refused.
            max_rows (`int`, *optional*): Maximum number of rows to read: the first ones of a stream, evenly spaced
                ones otherwise.
            one_hot (`bool`): Whether each row is the one-hot class of an example: one entry per class, of which one is
                1 and the others are 0. For float rows, which cannot be token labels, ``multi_label=False`` has the
                same effect. Class probabilities are refused, as they cannot be counted as whole examples.

        Raises:
            `ValueError`: For data without labels, a missing column, missing labels, ids out of range, or rows that could
            be read in two ways.
        """
        label_counts = count_labels(
            data, column=column, num_labels=num_labels, multi_label=multi_label, max_rows=max_rows, one_hot=one_hot
        )
        return cls(*label_counts)

    @property
    def num_labels(self) -> int:
        """Number of classes C."""
        return len(self.counts)

    @property
    def total(self) -> int:
        """Number of labels."""
        return int(self.counts.sum())

    @property
    def shares(self) -> np.ndarray:
        """Share of each class among the labels; for multi-label data, share of the rows with each label. float64, (C).

        NaN for a label that is known in no row."""
        with np.errstate(invalid="ignore"):
            return self.counts / (self.total if self.negatives is None else self.counts + self.negatives)

    @property
    def imbalance_ratio(self) -> float:
        """The largest count over the smallest; infinite if a class has no examples."""
        return float(self.counts.max() / self.counts.min()) if self.counts.min() else math.inf

    @overload
    def alpha(
        self,
        method: WeighingMethod = "inverse",
        *,
        beta: float = 0.999,
        max_ratio: float | None = None,
        empty_weight: float | None = None,
    ) -> Tensor: ...

    @overload
    def alpha(
        self,
        method: Literal["none"],
        *,
        beta: float = 0.999,
        max_ratio: float | None = None,
        empty_weight: float | None = None,
    ) -> None: ...

    @overload
    def alpha(
        self,
        method: str,
        *,
        beta: float = 0.999,
        max_ratio: float | None = None,
        empty_weight: float | None = None,
    ) -> Tensor | None: ...

    def alpha(
        self,
        method: AlphaMethod = "inverse",
        *,
        beta: float = 0.999,
        max_ratio: float | None = None,
        empty_weight: float | None = None,
    ) -> Tensor | None:
        r"""Class weights for focal loss that give rare classes more weight.

        With $n_k$ examples of class k the weights are proportional to

        - ``"inverse"``, or ``"balanced"`` as scikit-learn calls it: $1 / n_k$,
        - ``"sqrt_inverse"``: $1 / \sqrt{n_k}$,
        - ``"effective_number"``: $(1 - \beta) / (1 - \beta^{n_k})$ (Cui et al. 2019,
          https://arxiv.org/abs/1901.05555),
        - a function: the values it returns for the array of the $n_k$,

        and scaled so that their average over the examples is 1, so alpha does not change the scale of the loss. For
        multi-label data the negatives and positives of each label are weighted like two classes, so that the average
        within each label is 1; with ``"inverse"``, their total weights are equal. ``"none"`` means no alpha.

        Args:
            method (`str` or callable): One of the above.
            beta (`float`): For ``"effective_number"``, in [0, 1): 0 gives all classes the same weight; towards 1 it
                approaches ``"inverse"``.
            max_ratio (`float`, *optional*): Maximum ratio of the largest weight to the smallest, at least 1; for
                multi-label data, of the two weights of each label.
            empty_weight (`float`, *optional*): Weight of classes without examples (for multi-label data, of the
                positives or negatives of a label that has none), clipped to the range that `max_ratio` allows. Without
                it, such classes are an error.

        Returns:
            `Tensor`: float32, shape (C); for multi-label data (2, C), the weights of negatives, then of positives.
            None for the method ``"none"``.

        Raises:
            `ValueError`: For an unknown method, arguments out of their range, a function that does not return one
            number >= 0 per class, or a class without examples.
        """
        _check_arguments(method, beta, max_ratio, empty_weight)
        if method == "none":
            return None
        if empty_weight is None:
            self._check_every_class_occurs()
        if not self.counts.any():
            raise ArgumentError("data", "no class has examples, so weights cannot be computed")
        if self.negatives is None:
            counts = self.counts
            alpha = _weigh(counts, method, beta, max_ratio, empty_weight)
        else:
            counts = np.stack([self.negatives, self.counts])
            alpha = np.stack([_weigh(pair, method, beta, max_ratio, empty_weight) for pair in counts.T], axis=1)
        if method == "effective_number":
            _warn_if_equal(alpha[counts > 0], counts[counts > 0], beta)
        return torch.from_numpy(alpha).float()

    def __repr__(self) -> str:
        return "\n".join([f"LabelDistribution: {self.summary()}", *_aligned(self._table(max_classes=20))])

    def summary(self) -> str:
        """The number of labels, classes and rows, and the imbalance, in one line."""
        ratio = self.imbalance_ratio
        imbalance = f"{ratio:,.1f} : 1" if ratio < math.inf else f"{(self.counts == 0).sum()} without examples"
        rows = ""
        if self.num_rows is not None and (self.is_sample or self.num_rows != self.total):
            rows = f" in {self.num_rows:,} rows"
        sample = " (a sample)" if self.is_sample else ""
        return f"{self.total:,} labels of {self.num_labels:,} classes{rows}{sample}, {imbalance}"

    def to_text(self, alpha: Tensor | None = None) -> str:
        """The table of all classes, the largest first, with their weights if `alpha` is given."""
        return "\n".join(_aligned(self._table(alpha)))

    def to_markdown(self, alpha: Tensor | None = None) -> str:
        """The same as Markdown; class names are escaped."""
        header, *rows = self._table(alpha)
        return markdown_table(header, [[escape_markdown(cell) for cell in row] for row in rows])

    def plot(self, alpha: Tensor | None = None, file: str | Path | None = None, title: str | None = None) -> "Figure":
        """Plots the counts as sorted bars, on a logarithmic scale if they differ a lot, and alpha below them.

        A class whose name cannot be drawn with the installed fonts is shown by its id, such as ``#3``.

        Args:
            alpha (`Tensor` of shape (C) or (2, C), *optional*): The weights to show.
            file (`str` or `Path`, *optional*): Where to save the picture; the extension determines the format.
            title (`str`, *optional*): By default the [`LabelDistribution.summary`].

        Returns:
            `matplotlib.figure.Figure`: The picture.

        Raises:
            `ImportError`: Without matplotlib, which `pip install 'hf_focal[plots]'` installs.
        """
        check_matplotlib("plot")
        from matplotlib.figure import Figure  # slow to import, compared to counting

        order, weights = np.argsort(-self.counts, kind="stable"), self._rows_of(alpha)
        classes, is_few, is_many = np.arange(len(order)), len(order) <= 6, len(order) > 60
        heights = [4, 1.3] if len(weights) else [4]
        width = min(14, max(6, 0.3 * len(order)))
        figure = Figure(figsize=(width, sum(heights)), layout="constrained", dpi=150)
        panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
        above, below = panels[0, 0], panels[-1, 0]
        bars = above.bar(classes, self.counts[order], width=1 if is_many else 0.8, color="tab:blue")
        if max(self.counts) > 20 * max(1, min(self.counts)):
            above.set_yscale("symlog", linthresh=1, linscale=0.3)  # from 0, so that a count of 1 has a bar
        above.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
        if len(order) <= 120:
            numbers = [f"{count:,}" for count in self.counts[order]]
            rotation, size = (0, "small") if len(order) <= 12 else (90, 5 if is_many else 7)
            above.bar_label(bars, numbers, padding=2, rotation=rotation, fontsize=size)
        above.margins(x=0.01, y=0.2)
        above.set_ylim(bottom=0)
        above.set_ylabel("count")
        above.set_title(self.summary() if title is None else title, fontsize="medium")
        for weight, name, color in zip(weights, _ALPHA_HEADERS[len(weights)], ("tab:orange", "tab:red")):
            below.plot(classes, weight[order], "-" if is_many else "o", color=color, label=name)
        if len(weights):
            below.margins(x=0.01, y=0.2)
            below.set_ylim(bottom=0)
            below.set_ylabel("alpha")
        if len(weights) > 1:
            below.legend(fontsize="small")
        if is_many:
            below.set_xlabel("class, by count")
        else:
            names = picture_names([self._name(k) for k in range(len(order))])
            below.set_xticks(classes, [names[k] for k in order], rotation=0 if is_few else 60)
            for label in below.get_xticklabels():
                label.set(horizontalalignment="center" if is_few else "right", rotation_mode="anchor")
        for panel in panels.flat:
            panel.spines[["top", "right"]].set_visible(False)
        set_plain([above.title, *below.get_xticklabels()])
        if file is not None:
            figure.savefig(file)
        return figure

    def _name(self, class_id: int) -> str:
        return str(class_id) if self.names is None else self.names[class_id]

    def _table(self, alpha: Tensor | None = None, max_classes: int | None = None) -> list[list[str]]:
        order, shares = np.argsort(-self.counts, kind="stable"), self.shares
        weights = self._rows_of(alpha)
        rows = [
            [self._name(k), f"{self.counts[k]:,}", "–" if np.isnan(shares[k]) else f"{100 * shares[k]:.2f} %"]
            + [f"{weight:.3g}" for weight in weights[:, k]]
            for k in order
        ]
        if max_classes is not None and len(rows) > max_classes:
            rows[max_classes // 2 : -max_classes // 2] = [["...", "", ""]]
        return [["class", "count", "share", *_ALPHA_HEADERS[len(weights)]], *rows]

    def _rows_of(self, alpha: Tensor | None) -> np.ndarray:
        """Alpha as an array of 0 rows (None), 1 row, or 2 rows (negatives, then positives)."""
        if alpha is None:
            return np.zeros((0, len(self.counts)))
        weights = as_numbers("alpha", alpha, max_dim=2).double().cpu().numpy()
        if weights.shape not in ((len(self.counts),), (2, len(self.counts))):
            raise ValueError(
                f"alpha: expected one weight for each of {len(self.counts)} classes, or the weights of negatives, "
                f"then of positives, but got shape {weights.shape}"
            )
        return np.atleast_2d(weights)

    def _check_every_class_occurs(self) -> None:
        for kind, per_class in (("examples", self.counts), ("negative examples", self.negatives)):
            if per_class is None or per_class.all():
                continue
            empty = np.flatnonzero(per_class == 0).tolist()
            names = dict(enumerate(self.names or []))
            described = ", ".join(f"{k} ({names[k]!r})" if k in names else str(k) for k in empty[:10])
            omitted = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            raise ArgumentError(
                "data",
                f"no {kind} of class {described}{omitted}, so its weight cannot be computed",
                advice="add examples, give counts to LabelDistribution(counts), leave the classes out of the labels",
                remedy="empty_weight",
            )


@overload
def compute_alpha(
    data: Any,
    method: WeighingMethod = "inverse",
    *,
    column: str | None = None,
    num_labels: int | None = None,
    multi_label: bool | None = None,
    max_rows: int | None = None,
    beta: float = 0.999,
    max_ratio: float | None = None,
    empty_weight: float | None = None,
) -> Tensor: ...


@overload
def compute_alpha(
    data: Any,
    method: Literal["none"],
    *,
    column: str | None = None,
    num_labels: int | None = None,
    multi_label: bool | None = None,
    max_rows: int | None = None,
    beta: float = 0.999,
    max_ratio: float | None = None,
    empty_weight: float | None = None,
) -> None: ...


@overload
def compute_alpha(
    data: Any,
    method: str,
    *,
    column: str | None = None,
    num_labels: int | None = None,
    multi_label: bool | None = None,
    max_rows: int | None = None,
    beta: float = 0.999,
    max_ratio: float | None = None,
    empty_weight: float | None = None,
) -> Tensor | None: ...


def compute_alpha(
    data: Any,
    method: AlphaMethod = "inverse",
    *,
    column: str | None = None,
    num_labels: int | None = None,
    multi_label: bool | None = None,
    max_rows: int | None = None,
    beta: float = 0.999,
    max_ratio: float | None = None,
    empty_weight: float | None = None,
) -> Tensor | None:
    r"""Class weights for focal loss from the labels of `data`, which give rare classes more weight.

    A shortcut for [`LabelDistribution.from_dataset`], which documents `data`, `column`, `num_labels`, `multi_label`
    and `max_rows`, followed by [`LabelDistribution.alpha`], which documents the formulas and the other arguments.

    Returns:
        `Tensor`: float32, shape (C), or (2, C) for multi-label data; or None for the method ``"none"``.

    Raises:
        `ValueError`: As these two do; arguments are checked before any data is read.

    Example:

    ```python
    >>> from hf_focal import compute_alpha
    >>> compute_alpha([0, 0, 0, 0, 0, 0, 1, 1])
    tensor([0.6667, 2.0000])
    >>> compute_alpha([[1, 0], [0, 1], [0, 1], [0, 1]])  # multi-label: negatives, then positives
    tensor([[0.6667, 2.0000],
            [2.0000, 0.6667]])
    >>> compute_alpha(["a", "a", "a", "b"], lambda counts: 1 / (counts + 1), max_ratio=1.5)
    tensor([0.8889, 1.3333])

    ```
    """
    _check_arguments(method, beta, max_ratio, empty_weight)
    distribution = LabelDistribution.from_dataset(
        data, column=column, num_labels=num_labels, multi_label=multi_label, max_rows=max_rows
    )
    return distribution.alpha(method, beta=beta, max_ratio=max_ratio, empty_weight=empty_weight)


def check_alpha_method(method: AlphaMethod) -> None:
    """Raises a `ValueError` unless `method` is a function or the name of a method."""
    if not (callable(method) or method == "none" or method in ALPHA_METHODS):
        raise ArgumentError(
            "method",
            f"expected one of {', '.join(ALPHA_METHODS)}, none, or a function of the counts, but got {method!r}",
        )


def check_beta(beta: float) -> None:
    """Raises a `ValueError` unless beta is a number in [0, 1)."""
    if not (_is_number(beta) and 0 <= beta < 1):
        raise ArgumentError("beta", f"expected a number in [0, 1), but got {beta!r}")


def _check_arguments(method: AlphaMethod, beta: float, max_ratio: float | None, empty_weight: float | None) -> None:
    check_alpha_method(method)
    check_beta(beta)
    if max_ratio is not None and not (_is_number(max_ratio) and max_ratio >= 1):
        raise ArgumentError("max_ratio", f"expected a number >= 1, but got {max_ratio!r}")
    if empty_weight is not None and not (_is_number(empty_weight) and empty_weight >= 0):
        raise ArgumentError("empty_weight", f"expected a finite number >= 0, but got {empty_weight!r}")


def _is_number(value: Any) -> bool:
    """Whether it is a real number that fits float32, the dtype of alpha."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and abs(value) <= torch.finfo(torch.float32).max


def _weigh(
    counts: np.ndarray, method: AlphaMethod, beta: float, max_ratio: float | None, empty_weight: float | None
) -> np.ndarray:
    """The weights of classes, with an average of 1 over their examples."""
    occurs = counts > 0
    if not occurs.any():  # a label that is known in no row
        return np.full(len(counts), empty_weight, np.float64)
    examples = counts[occurs]
    weights = _capped(_weights(examples, method, beta), max_ratio)
    weights = weights / weights.max()  # a function may use any scale: no sum may overflow or underflow
    weights = weights * (examples.sum() / (weights * examples).sum())
    if empty_weight is not None and max_ratio is not None:
        empty_weight = np.clip(empty_weight, weights.max() / max_ratio, weights.min() * max_ratio)
    alpha = np.full(len(counts), empty_weight, np.float64)
    alpha[occurs] = weights
    return alpha


def _weights(counts: np.ndarray, method: AlphaMethod, beta: float) -> np.ndarray:
    """The weights of classes that occur, up to a constant factor."""
    if callable(method):
        return _check_weights(method(counts.copy()), counts.shape)
    if method in ("inverse", "balanced"):
        return 1 / counts
    if method == "sqrt_inverse":
        return counts**-0.5
    if beta == 0:
        return np.ones(len(counts))
    return (1 - beta) / -np.expm1(counts * np.log(beta))


def _check_weights(given: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The return value of a user's function, as float64."""
    try:
        weights = np.asarray(given, dtype=None if np.iscomplexobj(given) else np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        weights = np.empty(0)
    is_real = weights.dtype == np.float64 and weights.shape == shape
    if not (is_real and np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ArgumentError(
            "method",
            f"expected a function that returns one number >= 0 per class, and not 0 for all, but got {given!r}",
        )
    return weights


def _capped(weights: np.ndarray, max_ratio: float | None) -> np.ndarray:
    """Lowers the largest weights until they are `max_ratio` times the smallest."""
    if max_ratio is None:
        return weights
    if not weights.all():
        raise ArgumentError(
            "max_ratio", f"expected weights above 0, so that they have a ratio, but got {weights.tolist()}"
        )
    return np.minimum(weights, max_ratio * weights.min())


def _warn_if_equal(weights: np.ndarray, counts: np.ndarray, beta: float) -> None:
    """Effective numbers saturate at 1 / (1 - beta): classes that are all larger than that get the same weight."""
    largest = counts.max()
    if weights.max() < 1.01 * weights.min() and beta > 0 and largest > 1.5 * counts.min():
        warnings.warn(
            f"beta: with {beta} the weights of all classes are equal within 1 %, as it does not distinguish classes "
            f"of more than {5 / (1 - beta):,.0f} examples; the largest class has {largest:,}, for which "
            f"beta={1 - 1 / largest:.8g} would be suitable",
            stacklevel=3,
        )


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(_width(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            [name + " " * (widths[0] - _width(name)), *(cell.rjust(width) for cell, width in zip(cells, widths[1:]))]
        ).rstrip()
        for name, *cells in table
    ]


def _width(text: str) -> int:
    """Width in terminal columns: wide characters (such as Chinese) take two, accents and joiners none."""
    columns = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else columns.get(unicodedata.east_asian_width(c), 1)
        for c in text
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = ArgumentParser("python -m hf_focal.alpha", description="Show how often each class occurs, and alpha.")
    parser.add_argument(
        "data", help="a csv, json, jsonl or parquet file, a folder written by save_to_disk, or a dataset on the Hub"
    )
    parser.add_argument("--config_name", help="configuration of a dataset on the Hub")
    parser.add_argument("--split", default="train", help="split of a saved dataset or one on the Hub (default: train)")
    parser.add_argument("--column", help="label column (default: label or labels)")
    parser.add_argument("--num_labels", type=int, help="number of classes (default: inferred from the data)")
    parser.add_argument("--method", default="inverse", choices=[*ALPHA_METHODS, "none"])
    parser.add_argument("--beta", type=float, default=0.999, help="beta of effective_number (default: 0.999)")
    parser.add_argument("--max_ratio", type=float, help="maximum ratio of the largest weight to the smallest")
    parser.add_argument("--empty_weight", type=float, help="weight of classes without examples (default: an error)")
    parser.add_argument(
        "--multi_label", action="store_true", default=None, help="each row of ids holds the labels of one example"
    )
    parser.add_argument("--max_rows", type=int, help="read at most this many rows")
    parser.add_argument("--plot", metavar="FILE", help="write a picture: png, svg, pdf, ...")
    args = parser.parse_args(arguments)
    try:
        if args.plot is not None:
            check_matplotlib("--plot")
        distribution = LabelDistribution.from_dataset(
            _load(args.data, args.config_name, args.split),
            column=args.column,
            num_labels=args.num_labels,
            multi_label=args.multi_label,
            max_rows=args.max_rows,
        )
        alpha = distribution.alpha(
            args.method, beta=args.beta, max_ratio=args.max_ratio, empty_weight=args.empty_weight
        )
        print(f"{distribution.summary()}\n\n{distribution.to_text(alpha)}")
        if args.plot is not None:
            distribution.plot(alpha, args.plot)
            numbers = numbered(distribution.names or [])
            print("\n".join([f"\n{args.plot}", *(f"{shown} there is {name}" for shown, name in numbers.items())]))
    except Exception as error:  # whatever is wrong with the data, report it in one line
        flags = {name: f"--{name}" for name in vars(args) if name != "data"}
        message = error.for_caller(flags, {}) if isinstance(error, ArgumentError) else str(error)
        parser.exit(1, f"{parser.prog}: error: {' '.join(message.split())}\n")


def _load(data: str, config_name: str | None, split: str) -> Dataset | IterableDataset:
    path = Path(data)
    if path.is_dir() and not any(path.glob("*.arrow")) and not (path / "dataset_dict.json").is_file():
        return load_dataset(data, config_name, split=split, streaming=True)
    if path.is_dir():
        saved = load_from_disk(data)
        if isinstance(saved, Dataset):
            return saved
        if split not in saved:
            raise ValueError(f"--split: expected one of {', '.join(saved)}, but got {split!r}")
        return saved[split]
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise ValueError(f"{data}: expected a file with one of the extensions {', '.join(_FORMATS)}")
        return load_dataset(_FORMATS[path.suffix], data_files=data, split="train", streaming=True)
    if path.suffix in _FORMATS or path.is_absolute() or data.startswith("."):
        raise ValueError(f"{data}: no such file or folder")
    return load_dataset(data, config_name, split=split, streaming=True)


if __name__ == "__main__":
    main()
