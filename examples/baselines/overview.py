"""Overview of several results: which losses are better than the baseline, for each dataset and over all of them."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from baselines.decisions import baseline_of, decided_at, other_decision
from baselines.report import TITLES, replicated_differences
from hf_focal.model_card import escape_markdown, markdown_table, one_line


OVER_ALL = "all"


def compare(results: Mapping[str, list[dict]], metric: str = "f1_macro", replicates: int = 2000) -> pd.DataFrame:
    """The difference of each loss to (for several labels, binary) cross entropy, for each dataset and over all.

    Columns are dataset, arm, difference, low and high (a 95 % interval), p (two-sided, from the bootstrap) and holm (p
    corrected for the dataset's number of losses by Holm's method). "Over all" is the mean of the datasets'
    differences, for losses that all of them have. Cross entropy with [`other_decision`] counts as a loss too.

    Raises:
        `ValueError`: If a dataset has no cross entropy, or records that cannot be compared.
    """
    rows, by_dataset = [], {}
    for dataset, records in results.items():
        if any("along" in record for record in records):
            raise ValueError(f"{dataset}: expected losses to compare, but got curves; their report is of one file")
        baseline = baseline_of(record["arm"] for record in records)
        if baseline is None:
            raise ValueError(f"{dataset}: expected an arm 'cross entropy' or 'binary cross entropy' to compare with")
        point = other_decision(records)
        shifted = {f"{baseline}, at {point}": f"cross entropy, at {point}"}
        drawn = replicated_differences(
            [*records, *decided_at(records, point, [baseline])], baseline, metric, replicates
        )
        by_dataset[dataset] = {shifted.get(arm, arm): gaps for arm, gaps in drawn.items()}
    arms = dict.fromkeys(chain(*by_dataset.values()))
    shared = [arm for arm in arms if all(arm in drawn for drawn in by_dataset.values())]
    if len(by_dataset) > 1 and shared:
        by_dataset[OVER_ALL] = {arm: np.mean([drawn[arm] for drawn in by_dataset.values()], axis=0) for arm in shared}
    for dataset, drawn in by_dataset.items():
        summaries = [{"dataset": dataset, "arm": arm, **_summary(gaps)} for arm, gaps in drawn.items()]
        for row, p in zip(summaries, holm([row["p"] for row in summaries])):
            rows.append(row | {"holm": p})
    return pd.DataFrame(rows)


def _summary(gaps: np.ndarray) -> dict[str, float]:
    """Summary of a difference, the first entry, and of its bootstrap replicates, the others."""
    difference, replicates = gaps[0], gaps[1:]
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    at_most = min((1 + np.sum(replicates <= 0)), (1 + np.sum(replicates >= 0))) / (1 + len(replicates))
    return {"difference": difference, "low": low, "high": high, "p": min(1.0, 2 * at_most)}


def holm(values: list[float]) -> list[float]:
    corrected, largest = [0.0] * len(values), 0.0
    for rank, k in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[k]))
        corrected[k] = largest
    return corrected


def overview_table(table: pd.DataFrame, metric: str = "f1_macro") -> str:
    """Markdown: a row for each loss, the best over all first; bold if Holm's p for the difference is below 0.05."""
    datasets = [*dict.fromkeys(table["dataset"])]
    by_cell = {(row.arm, row.dataset): row for row in table.itertuples()}
    order = table[table["dataset"] == datasets[-1]].sort_values("difference", ascending=False)["arm"]
    rows = []
    for arm in dict.fromkeys([*order, *table["arm"]]):
        cells = []
        for dataset in datasets:
            row = by_cell.get((arm, dataset))
            text = "–" if row is None else f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            cells.append(f"**{text}**" if row is not None and row.holm < 0.05 else text)
        rows.append([escape_markdown(arm), *cells])
    header = [f"{TITLES[metric]}, difference from cross entropy", *map(escape_markdown, datasets)]
    note = (
        "Mean difference over the seeds that both losses have, with the 95 % interval of a bootstrap of seeds and test "
        "examples. **Bold**: p below 0.05 for the difference, after Holm's correction for the number of losses in the column."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def draw_overview(table: pd.DataFrame, file: Path, metric: str = "f1_macro") -> None:
    """A forest plot: a panel for each dataset, a line for each loss; right of 0 is better than cross entropy."""
    datasets = [*dict.fromkeys(table["dataset"])]
    order = table[table["dataset"] == datasets[-1]].sort_values("difference", ascending=False)["arm"]
    arms = [*dict.fromkeys([*order, *table["arm"]])]
    figure = Figure(figsize=(3 + 2.6 * len(datasets), 1.2 + 0.36 * len(arms)), layout="constrained", dpi=150)
    plots = np.atleast_1d(figure.subplots(1, len(datasets), sharey=True))
    for axes, dataset in zip(plots, datasets):
        for row in table[table["dataset"] == dataset].itertuples():
            y, is_sure = arms.index(row.arm), row.holm < 0.05
            color = ("#0072b2" if row.difference > 0 else "#d55e00") if is_sure else "#999999"
            axes.plot([row.low, row.high], [y, y], color=color, linewidth=2)
            axes.plot(row.difference, y, "D", color=color)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(one_line(dataset), fontsize="medium", parse_math=False)
        axes.tick_params(left=False)
        axes.locator_params(axis="x", nbins=4)  # more of them overlap
        axes.spines[["top", "left", "right"]].set_visible(False)
    plots[0].set_yticks(range(len(arms)), [one_line(arm) for arm in arms], parse_math=False)
    plots[0].set_ylim(len(arms) - 0.5, -0.5)
    figure.supxlabel(
        f"difference in {TITLES[metric]} from cross entropy, 95 % intervals   blue: better, orange: worse (Holm's p < 0.05)",
        fontsize="small",
        color="#525252",
    )
    figure.savefig(file)
