"""Cross entropy against focal loss on the embedded default, over several seeds, as a Markdown table.

    python compare_losses.py --seeds 1 2 3 4 5

Each run is `run_text_classification.py` with one loss and one seed and takes about a minute on 2 CPU cores; any other
flag is handed on to it. A finished run is not repeated, so a comparison that was stopped goes on where it was; another
setting needs another `--output_dir`.
"""

import json
from argparse import ArgumentParser
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from trained_model import train


LOSSES = {
    "cross entropy": ["--loss", "cross_entropy"],
    "cross entropy, inverse alpha": ["--focal_gamma", "0"],
    "focal loss, gamma 2, no alpha": ["--focal_alpha", "none"],
    "focal loss, gamma 2, inverse alpha": [],
}
METRICS = {"test_f1_macro": "macro-F1", "test_accuracy": "accuracy"}


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/compare_losses"))
    args, flags = parser.parse_known_args()

    rows = []
    for loss, seed in tqdm([(loss, seed) for seed in args.seeds for loss in LOSSES], desc="Runs"):
        folder = args.output_dir / f"{loss} seed {seed}".replace(",", "").replace(" ", "_")
        train(folder, [*LOSSES[loss], "--seed", str(seed), *flags])
        rows.append({"loss": loss, **json.loads((folder / "test_results.json").read_text())})
    scores = pd.DataFrame(rows).groupby("loss")[list(METRICS)]
    mean, deviation = scores.mean(), scores.std()

    print(f"\n| mean ± standard deviation, {len(args.seeds)} seeds | {' | '.join(METRICS.values())} |")
    print("|---|" + "---|" * len(METRICS))
    for loss in LOSSES:
        cells = [f"{mean.loc[loss, metric]:.3f} ± {deviation.loc[loss, metric]:.3f}" for metric in METRICS]
        print(f"| {loss} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
