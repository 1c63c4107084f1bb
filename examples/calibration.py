"""How well probabilities are calibrated after cross entropy and focal loss: raw, as posterior, and after scaling.

    python calibration.py                       # the embedded default with three losses, half an hour on one CPU core

The tables of the README take some minutes each, but half an hour the first time, which caches the output of frozen
layers:

    python calibration.py --losses "focal, alpha" --output_dir outputs/calibration_bbc --dataset_name bbc_longtail \
        --max_seq_length 64 --num_train_epochs 3 --learning_rate 2e-4 --warmup_steps 30 \
        --per_device_train_batch_size 8 --per_device_eval_batch_size 64
    python calibration.py --losses "focal, alpha" --output_dir outputs/calibration_r52 --dataset_name reuters_r52 \
        --max_seq_length 64 --frozen_layers 5 --num_train_epochs 8 --learning_rate 5e-4 --warmup_steps 100 \
        --per_device_train_batch_size 32 --per_device_eval_batch_size 64
    python calibration.py --losses "focal, alpha" --output_dir outputs/calibration_newsgroups \
        --dataset_name newsgroups_longtail --max_seq_length 128 --frozen_layers 5 --num_train_epochs 8 \
        --learning_rate 5e-4 --warmup_steps 50 --per_device_train_batch_size 32 --per_device_eval_batch_size 64
    python calibration.py --losses "focal, alpha" --output_dir outputs/calibration_reuters90 --dataset_name reuters90 \
        --label_column_name labels --validation_share 0.1 --max_seq_length 64 --frozen_layers 5 --num_train_epochs 10 \
        --learning_rate 1e-3 --warmup_steps 100 --per_device_train_batch_size 32 --per_device_eval_batch_size 64

The last one needs a folder reuters90, made as described in baselines/README.md. Each cell is one run of
`run_text_classification.py` with one loss and one seed; other flags are passed on to it, or are those of
`python -m baselines cell`. Finished cells are not repeated. Everything is fitted on the validation split and measured
on the test split, as mean and 95 % interval (Student's t) over the seeds: negative log-likelihood, Brier score,
accuracy, macro-F1 (for several labels, at 0.5), and expected calibration error (15 bins of equal mass) beside that of
a perfectly calibrated model. If validation and test split are balanced but the training data are not, posteriors are
shifted to the balanced prior. It also draws reliability diagrams.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm
from trained_model import held_out_logits, train
from transformers import AutoConfig, EvalPrediction

from hf_focal import FocalSettings, apply_temperature, compute_metrics, shift_prior
from hf_focal.calibration import Scaling, UnboundedFitError, fit_scaling
from hf_focal.metrics import mean_and_interval
from hf_focal.model_card import markdown_table
from hf_focal.operating_points import posterior_from_settings


LOSSES = {
    "cross entropy": ["--loss", "cross_entropy"],
    "focal": ["--focal_alpha", "none"],
    "focal, alpha": ["--focal_alpha", "sqrt_inverse"],
}
METRICS = {
    "negative_log_likelihood": "NLL",
    "brier_score": "Brier",
    "accuracy": "accuracy",
    "f1_macro": "macro-F1",
    "expected_calibration_error": "ECE",
    "expected_calibration_error_floor": "ECE floor",
}
METHODS = {"temperature": "temperature", "vector": "vector scaling", "auto": "chosen"}


def readings(
    logits: Tensor, held_out: tuple[Tensor, Tensor], settings: FocalSettings, multi_label: bool = False
) -> dict[str, tuple[Tensor, str]]:
    """The probabilities by each method, by its name; with the scaling that was chosen, if there was a choice."""
    held_out_logits, labels = held_out
    closed_form_posterior = partial(
        posterior_from_settings,
        settings=replace(settings, temperature=None, calibration_bias=None),
        multi_label=multi_label,
    )
    stock = torch.sigmoid if multi_label else partial(torch.softmax, dim=-1)
    counts = None if multi_label else labels.bincount(minlength=logits.shape[-1])
    is_balanced = counts is not None and bool((counts == counts[0]).all()) and len({*settings.class_prior}) > 1

    def at_test_prior(posterior: Tensor) -> Tensor:
        prior = torch.full((logits.shape[-1],), 1 / logits.shape[-1])
        return shift_prior(posterior, settings.class_prior, prior) if is_balanced else posterior

    def scaled(read: Callable[[Tensor], Tensor], method: str) -> tuple[Tensor, Scaling]:
        known = {"class_prior": settings.class_prior, "multi_label": multi_label}
        try:
            scaling = fit_scaling(read(held_out_logits), labels, method=method, **known)
        except UnboundedFitError:  # no errors in the held-out data
            scaling = Scaling("none")
        p = apply_temperature(read(logits), scaling.temperature, bias=scaling.bias, multi_label=multi_label)
        return at_test_prior(p), scaling

    closed_form = closed_form_posterior(logits)
    results = {f"raw {'sigmoid' if multi_label else 'softmax'}": (stock(logits), ""), "closed form": (closed_form, "")}
    if is_balanced:
        results["closed form, shifted"] = at_test_prior(closed_form), ""
    for method, name in METHODS.items():
        p, scaling = scaled(closed_form_posterior, method)
        results[name] = p, scaling.method if method == "auto" else ""
    return {**results, "folded into the head": (scaled(stock, "vector")[0], "")}  # as fold_calibration does


def measure(folder: Path) -> tuple[list[dict], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A row of metrics for each method; and, for the picture, the confidences with their outcomes."""
    config = AutoConfig.from_pretrained(folder)
    settings, multi_label = FocalSettings.from_config(config), config.problem_type == "multi_label_classification"
    splits = held_out_logits(folder)
    logits, labels = splits["test"]
    rows, confidences = [], {}
    for name, (p, chosen) in readings(logits, splits["validation"], settings, multi_label).items():
        p = p.clamp_min(torch.finfo(p.dtype).tiny)
        log_odds = p.clamp_max(1 - 1e-16).logit() if multi_label else p.log()
        prediction = EvalPrediction(log_odds.numpy(), labels.numpy())
        rows.append(
            {"probabilities": name, "chosen": chosen, **compute_metrics(prediction, problem_type=config.problem_type)}
        )
        are_right = labels.bool() if multi_label else p.argmax(-1) == labels
        confidences[name] = (p if multi_label else p.amax(-1)).flatten().numpy(), are_right.flatten().numpy()
    return rows, confidences


def reliability_diagram(confidences: pd.Series, file: Path) -> None:
    """Confidence against accuracy, or probability against the share of positives, over all seeds.

    There are 15 bins of equal mass. Points below the diagonal are over-confident.
    """
    losses = list(dict.fromkeys(loss for loss, _ in confidences.index))
    figure = Figure(figsize=(4 * len(losses), 4), layout="constrained", dpi=100)
    for axes, loss in zip(np.atleast_1d(figure.subplots(1, len(losses), sharey=True)), losses):
        axes.plot([0, 1], [0, 1], color="lightgray")
        for reading, cells in confidences[loss].items():
            confidence, is_right = (np.concatenate(parts) for parts in zip(*cells))
            order = np.array_split(np.argsort(confidence), 15)
            axes.plot([confidence[k].mean() for k in order], [is_right[k].mean() for k in order], "o-", label=reading)
        axes.set(title=loss, xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend()
    figure.supylabel("accuracy")
    figure.savefig(file)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=[*LOSSES])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/calibration"))
    args, flags = parser.parse_known_args()
    flags = ["--do_train", "--do_eval", "--do_predict", *flags]

    rows, confidences = [], {}
    for loss, seed in tqdm([(loss, seed) for seed in args.seeds for loss in args.losses], desc="Runs"):
        folder = args.output_dir / f"{loss.replace(', ', '_').replace(' ', '_')}_seed_{seed}"
        train(folder, [*flags, *LOSSES[loss], "--seed", str(seed)])
        cells, read = measure(folder)
        rows += [{"loss": loss, **cell} for cell in cells]
        for reading, values in read.items():
            confidences.setdefault((loss, reading), []).append(values)
    table = pd.DataFrame(rows)
    table.to_json(args.output_dir / "calibration.jsonl", orient="records", lines=True)
    reliability_diagram(pd.Series(confidences), args.output_dir / "reliability.png")

    # With several labels, nearly all are absent, which makes the means over them small.
    lines, digits = [], 4 if "raw sigmoid" in table["probabilities"].values else 3
    for (loss, probabilities), cells in table.groupby(["loss", "probabilities"], sort=False):
        intervals = [mean_and_interval(cells[metric]) for metric in METRICS]
        columns = [f"{mean:.{digits}f} ± {half:.{digits}f}" for mean, half in intervals]
        chosen = ", ".join(sorted({*cells["chosen"]} - {""}))
        lines.append([loss, f"{probabilities} ({chosen})" if chosen else probabilities, *columns])
    print(f"\n{markdown_table(['loss', 'probabilities', *METRICS.values()], lines)}")
    print(f"\n{args.output_dir / 'reliability.png'} shows the reliability diagrams.")


if __name__ == "__main__":
    main()
