"""Models trained by `run_text_classification.py`, once per folder, and their logits for the held-out splits."""

from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from baselines.cell import FROZEN_LAYERS_CACHE, parse_cell
from baselines.data import load_baseline_splits
from baselines.frozen_layers import freeze_layers
from run_text_classification import own_logits, run, with_embedded_default
from safetensors.torch import load_file, save_file
from torch import Tensor


def train(folder: Path, flags: list[str]) -> None:
    """Runs `run_text_classification.py` in a folder, with a log, unless the folder holds a finished run.

    Args:
        folder (`Path`): The folder for model and logits.
        flags (list of `str`): Flags of the script, and those of `python -m baselines cell` that name data or freeze
            layers.
    """
    if _logits_file(folder).exists():
        return
    flags = ["--output_dir", str(folder), "--save_strategy", "no", *with_embedded_default(flags)]
    baseline_args, *arguments = parse_cell([*flags, "--output_dir", str(folder)])
    freeze = partial(freeze_layers, frozen_layers=baseline_args.frozen_layers, cache_dir=FROZEN_LAYERS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        _, outputs = run(
            *arguments,
            load_splits=load_baseline_splits,
            prepare_model=freeze if baseline_args.frozen_layers else None,
        )
    tensors = {}
    for split, output in outputs.items():
        tensors[f"{split}_logits"] = own_logits(output.predictions).contiguous()
        tensors[f"{split}_labels"] = torch.as_tensor(output.label_ids).contiguous()
    save_file(tensors, _logits_file(folder))


def held_out_logits(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits (N, C) in float64 and labels of the splits `validation` and `test`, of a finished run."""
    tensors = load_file(_logits_file(folder))
    return {
        split: (tensors[f"{split}_logits"].double(), tensors[f"{split}_labels"]) for split in ("validation", "test")
    }


def _logits_file(folder: Path) -> Path:
    return folder / "held_out_logits.safetensors"
