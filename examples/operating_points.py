"""One model, several operating points: train once, then choose which errors matter.

    python operating_points.py                                          # the embedded default, some 2 minutes
    python operating_points.py --output_dir outputs/r52 --dataset_name outputs/r52_data --focal_alpha sqrt_inverse

Flags are those of `run_text_classification.py`, which trains the model; a folder with a finished run is not trained again.
It prints the scores of each operating point on the test split, and draws the recall of each class. `accuracy at the
training prior` is the accuracy if classes were as frequent in the test split as in training; `most_likely` should be
best there, and `balanced` in balanced accuracy. The prior is estimated from the test texts, without their labels.
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from trained_model import held_out_logits, train
from transformers import AutoConfig

from hf_focal import FocalSettings, estimate_prior, operating_point_scores, posterior_from_config


def recall_plot(recalls: pd.DataFrame, file: Path) -> None:
    """Bars of the recall of each class (rows, the most frequent first) at each operating point (columns)."""
    figure = Figure(figsize=(min(16, 3 + 1.2 * len(recalls)), 4), layout="constrained", dpi=100)
    axes = figure.subplots()
    rotation = 0 if len(recalls) <= 8 else 90
    recalls.plot.bar(
        ax=axes, width=0.8, rot=rotation, ylabel="recall", xlabel="class, most frequent in training first"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=len(recalls.columns), frameon=False)
    figure.savefig(file)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/operating_points"))
    args, flags = parser.parse_known_args()
    flags = ["--do_train", "--do_eval", "--do_predict", *flags]
    train(args.output_dir, flags)

    config = AutoConfig.from_pretrained(args.output_dir)
    logits, labels = held_out_logits(args.output_dir)["test"]
    posterior = posterior_from_config(logits, config)
    class_prior = torch.tensor(FocalSettings.from_config(config).class_prior)
    estimate = estimate_prior(posterior, class_prior)
    chosen = {
        "as_trained": logits,
        "most_likely": operating_point_scores(posterior, config),
        "balanced": operating_point_scores(posterior, config, "balanced"),
        "prior=estimated": operating_point_scores(posterior, config, prior=estimate.prior),
    }

    names = [config.id2label[k] for k in range(config.num_labels)]
    rows, recalls = {}, {}
    for point, scores in chosen.items():
        predictions = scores.argmax(-1)
        recall = recall_score(labels, predictions, labels=range(len(names)), average=None, zero_division=np.nan)
        weights = np.where(np.isnan(recall), 0, class_prior)
        rows[point] = {
            "accuracy": accuracy_score(labels, predictions),
            "accuracy at the training prior": np.nansum(weights * recall) / weights.sum(),
            "balanced accuracy": balanced_accuracy_score(labels, predictions),
            "macro-F1": f1_score(labels, predictions, average="macro", zero_division=0),
        }
        recalls[point] = recall
    print(f"\n{pd.DataFrame(rows).T.to_string(float_format='%.3f')}")

    priors = {
        "training": class_prior,
        "estimated": estimate.prior,
        "test": torch.bincount(labels, minlength=len(names)) / len(labels),
    }
    print(f"\nClass priors; the estimate took {estimate.iterations} iterations")
    print(pd.DataFrame(priors, index=names).to_string(float_format="%.3f"))
    order = class_prior.argsort(descending=True, stable=True).numpy()
    recall_plot(pd.DataFrame(recalls, index=names).iloc[order], args.output_dir / "recall.png")
    print(f"\n{args.output_dir / 'recall.png'} shows the recall of each class.")


if __name__ == "__main__":
    main()
