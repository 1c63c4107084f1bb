"""The report of a recipe with `along`: results of each loss at each value of a flag, as tables and as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from baselines.decisions import baseline_of, decided_at, other_decision, with_posterior
from baselines.report import TITLES, settings, tested_cells, untested
from hf_focal.metrics import mean_and_interval
from hf_focal.model_card import escape_markdown, markdown_table, one_line


SHOWN = ("accuracy", "f1_micro", "f1_macro", "f1_tail", "negative_log_likelihood")
# The palette of Okabe and Ito, safe for colour-blind readers.
COLORS = ["#000000", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#0072b2", "#f0e442"]


def curve_points(records: list[dict]) -> dict[str, dict[str, dict[float, list[float]]]]:
    """By metric, loss and value, the results of all seeds on the test split; losses and values in order of appearance.

    Raises:
        `ValueError`: If the records of one value cannot be compared.
    """
    by_value: dict[float, list[dict]] = {}
    for record in records:
        by_value.setdefault(record["value"], []).append(record)
    points: dict[str, dict[str, dict[float, list[float]]]] = {}
    for value, value_records in by_value.items():
        tested = [record for record in value_records if record["stage"] == "test"]
        if not tested:
            continue
        tested_cells(value_records, tested[0]["arm"])
        first = baseline_of(record["loss"] for record in tested)
        point = other_decision(tested)
        shifted = decided_at(tested, point, [record["arm"] for record in tested if record["loss"] == first])
        is_multi_label = isinstance(tested[0]["labels"][0], list)
        for record in with_posterior(tested) + [r | {"loss": f"{first}, at {point}"} for r in shifted]:
            for metric in SHOWN:
                is_shown = metric in record["metrics"] and metric != ("accuracy" if is_multi_label else "f1_micro")
                if is_shown and record["metrics"][metric] is not None:
                    loss_points = points.setdefault(metric, {}).setdefault(record["loss"], {})
                    loss_points.setdefault(value, []).append(record["metrics"][metric])
    return points


def curve_tables(records: list[dict]) -> str:
    """Markdown: a table for each metric, a row for each loss, a column for each value."""
    points, name = curve_points(records), records[0]["along"].replace("_", " ")
    tables = []
    for metric, loss_curves in points.items():
        values = sorted({value for curve in loss_curves.values() for value in curve})
        rows = []
        for loss, curve in loss_curves.items():
            cells = []
            for value in values:
                mean, half = mean_and_interval(curve.get(value, []))
                cells.append("–" if np.isnan(mean) else f"{mean:.3f}" + ("" if np.isnan(half) else f" ± {half:.3f}"))
            rows.append([escape_markdown(loss), *cells])
        header = [f"{TITLES[metric]} by {escape_markdown(name)}", *(f"{value:g}" for value in values)]
        tables.append(markdown_table(header, rows))
    seeds = sorted({record["seed"] for record in records if record["stage"] == "test"})
    note = (
        f"Mean over the seeds {', '.join(map(str, seeds))} ± half the width of its 95 % interval (Student's t); with one seed, "
        "its value. Each model is that of the epoch that was best on the validation split."
    )
    tried = dict.fromkeys(settings(record["choice"]) for record in records if record["stage"] == "validation")
    if len(tried) > 1:
        note += f" The settings were chosen on the validation split for each loss and {name}, from {'; '.join(tried)}."
    if "negative_log_likelihood" in points:
        note += " NLL is that of the calibrated posterior."
    return "\n\n".join([*tables, note + untested(records)])


def draw_curves(records: list[dict], file: Path) -> None:
    """Draws a line through the means of each loss, with a band for the 95 % interval."""
    points, name = curve_points(records), one_line(records[0]["along"].replace("_", " "))
    panels = [metric for metric in ("accuracy", "f1_micro", "f1_macro", "f1_tail") if metric in points]
    figure = Figure(figsize=(4 * len(panels), 4.6), layout="constrained", dpi=150)
    plots = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, metric in zip(plots, panels):
        for color, (loss, curve) in zip(COLORS, points[metric].items()):
            values = sorted(curve)
            mean, half = np.transpose([mean_and_interval(curve[value]) for value in values])
            style = "--" if loss.endswith((", at balanced", ", at as_trained")) else "-"
            axes.plot(
                values, mean, style, color=color, marker="o", label=one_line(loss) if metric == panels[0] else None
            )
            low, high = (np.clip(end, 0, 1) for end in (mean - half, mean + half))  # as these metrics are
            axes.fill_between(values, low, high, color=color, alpha=0.12, linewidth=0)
        if min(values) > 0 and max(values) >= 8 * min(values):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xlabel(name, parse_math=False)
        axes.set_title(TITLES[metric], fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(file)
