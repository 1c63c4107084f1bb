"""How far probabilities can be trusted: cross entropy and focal loss, raw, as posterior, with and without temperature.

    python calibration.py                                   # the embedded default, about 10 minutes on 2 CPU cores
    python calibration.py --output_dir outputs/calibration_r52 --dataset_name outputs/r52_data \
        --max_seq_length 64 --num_train_epochs 3 --learning_rate 2e-4 --per_device_train_batch_size 16 \
        --per_device_eval_batch_size 64 --bf16 --use_cpu --losses "cross entropy" "focal, alpha"    # Reuters R52 (data/reuters_r52.py), about an hour

Each cell is one run of `run_text_classification.py` with one loss and one seed; other flags are handed on to it. Finished
cells are not repeated. Temperatures are fitted on the validation split, everything is measured on the test split:
expected calibration error (15 bins of equal mass), Brier score and negative log likelihood, as mean and 95 % interval
(Student's t) over the seeds. Beside the table it draws reliability diagrams.
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm
from trained_model import data_arguments, held_out_logits, train
from transformers import AutoConfig, EvalPrediction

from hf_focal import (
    FocalSettings,
    apply_temperature,
    class_posterior,
    compute_metrics,
    fit_temperature,
    shift_prior,
)
from hf_focal.metrics import mean_and_interval
from hf_focal.model_card import markdown_table


LOSSES = {
    "cross entropy": ["--loss", "cross_entropy"],
    "focal": ["--focal_alpha", "none"],
    "focal, alpha": ["--focal_alpha", "sqrt_inverse"],
}
METRICS = {
    "accuracy": "accuracy",
    "expected_calibration_error": "ECE",
    "expected_calibration_error_floor": "ECE floor",
    "brier_score": "Brier",
    "negative_log_likelihood": "NLL",
}


def readings(logits: Tensor, config: AutoConfig, held_out_prior: Tensor | None) -> dict[str, Tensor]:
    """The ways to read probabilities out of logits."""
    settings = FocalSettings.from_config(config)
    found = {"raw": logits.softmax(-1)}
    posterior = class_posterior(
        logits, gamma=settings.gamma, alpha=settings.alpha, label_smoothing=settings.label_smoothing
    )
    if settings.gamma or settings.alpha:  # of cross entropy, raw is the posterior
        found["posterior"] = posterior
    if held_out_prior is not None:
        found["posterior, held-out prior"] = shift_prior(posterior, settings.class_prior, held_out_prior)
    return found


def measure(folder: Path, flags: list[str]) -> tuple[list[dict], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A row of metrics for each reading, without and with temperature; and the confidences for the picture."""
    config, data_args = AutoConfig.from_pretrained(folder), data_arguments(flags)
    splits = held_out_logits(folder, flags)
    # The training split of the embedded default is long-tailed, the others are balanced.
    is_embedded = data_args.dataset_name is None and not data_args.files
    prior = torch.full((config.num_labels,), 1 / config.num_labels) if is_embedded else None
    validation = readings(splits["validation"][0], config, prior)
    rows, confidences = [], {}
    for name, posterior in readings(splits["test"][0], config, prior).items():
        labels = splits["test"][1]
        temperature = fit_temperature(validation[name], splits["validation"][1])
        for suffix, scaled in (("", posterior), (" + temperature", apply_temperature(posterior, temperature))):
            log_posterior = scaled.clamp_min(torch.finfo(scaled.dtype).tiny).log()
            metrics = compute_metrics(EvalPrediction(log_posterior.numpy(), labels.numpy()))
            rows.append({"probabilities": name + suffix, "temperature": temperature if suffix else 1.0, **metrics})
        confidences[name] = posterior.amax(-1).numpy(), (posterior.argmax(-1) == labels).numpy()
    return rows, confidences


def reliability_diagram(confidences: pd.Series, file: Path) -> None:
    """Confidence against accuracy in 15 bins of equal mass, over all seeds; below the diagonal is over-confident."""
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
        cells, read = measure(folder, flags)
        rows += [{"loss": loss, **cell} for cell in cells]
        for reading, values in read.items():
            confidences.setdefault((loss, reading), []).append(values)
    table = pd.DataFrame(rows)
    table.to_json(args.output_dir / "calibration.jsonl", orient="records", lines=True)
    reliability_diagram(pd.Series(confidences), args.output_dir / "reliability.png")

    lines = []
    for (loss, probabilities), cells in table.groupby(["loss", "probabilities"], sort=False):
        intervals = [mean_and_interval(cells[metric]) for metric in METRICS]
        columns = [f"{mean:.3f} ± {half:.3f}" for mean, half in intervals]
        lines.append([loss, probabilities, f"{cells['temperature'].mean():.2f}", *columns])
    header = ["loss", "probabilities", "temperature", *METRICS.values()]
    print(f"\n{markdown_table(header, lines)}")
    print(f"\n{args.output_dir / 'reliability.png'} shows the same as a picture.")


if __name__ == "__main__":
    main()
