"""Your own texts, from files to a model: compares losses, then trains, calibrates and saves a model with the best one.

    python -m baselines --train_file mine.csv --minutes 30

Missing validation and test splits are split off the training file. Four losses are compared, each with its own
learning rate, and with several seeds if time allows; the loss is chosen on the validation split.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from data.data_check import check_data
from data.labelled_texts import DataArguments, check_columns, class_names, load_splits, read_labels
from datasets import Dataset, DatasetDict
from run_text_classification import (
    check_decision,
    load_embedded_default,
    model_path,
    parse_flags,
    print_next_steps,
    run,
)
from transformers import AutoConfig, AutoModelForSequenceClassification, HfArgumentParser

from baselines.cell import FROZEN_LAYERS_CACHE
from baselines.data import cut_validation, model_fingerprint
from baselines.frozen_layers import freeze_layers
from baselines.recipe import Recipe
from baselines.report import difference_table, differences, interval_table, report_table
from baselines.sweep import Sweep
from hf_focal.model_card import one_line


ARMS = {
    "cross entropy": {"loss": "cross_entropy"},
    "weighted cross entropy": {"focal_gamma": 0, "focal_alpha": "sqrt_inverse"},
    "focal": {"focal_alpha": "none"},
    "focal, square-root alpha": {"focal_alpha": "sqrt_inverse"},
}
HELD_OUT = {"test": 0.2, "validation": 0.15}
# Flags that are passed on to `run_text_classification.py`.
_OF_DATA = ("text_column_names", "label_column_name", "max_seq_length")
_OF_DECISION = ("wanted_precision", "wanted_recall", "positive_label")


@dataclass
class OwnDataArguments(DataArguments):
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model on the hub or local folder. Default: MiniLM-L6 from its package."}
    )
    minutes: float = field(default=30.0, metadata={"help": "Approximate time limit in minutes."})
    seed: int = field(default=1, metadata={"help": "Seed of the splits, and the first seed for training."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the results. Default: outputs/ plus the name of the file."}
    )
    wanted_precision: float | None = field(default=None, metadata={"help": "As in run_text_classification.py."})
    wanted_recall: float | None = field(default=None, metadata={"help": "As in run_text_classification.py."})
    positive_label: str | None = field(default=None, metadata={"help": "As in run_text_classification.py."})

    def __post_init__(self):
        super().__post_init__()
        if self.train_file is None:
            raise ValueError("--train_file: expected the file with the training data, but got none")
        if not self.minutes > 0:
            raise ValueError(f"--minutes: expected a number above 0, but got {self.minutes}")


def compare(flags: list[str]) -> None:
    """Runs the command."""
    (arguments,) = HfArgumentParser(OwnDataArguments).parse_args_into_dataclasses(flags, look_for_args_file=False)
    folder = Path(arguments.output_dir or Path("outputs", Path(arguments.train_file).stem))
    made_from = check_folder(arguments, folder)
    files = write_splits(arguments, folder / "data")
    check_wanted(arguments, files)
    (folder / "made_from.txt").write_text(made_from)
    common = {f"{split}_file": file for split, file in files.items()}
    common |= {name: getattr(arguments, name) for name in _OF_DATA}
    if arguments.model_name_or_path is not None:
        common["model_name_or_path"] = arguments.model_name_or_path
    recipe = planned(common, arguments, folder)
    records = Sweep(recipe, folder).run()
    first = next(iter(recipe.arms))
    parts = [report_table(records, first), interval_table(records, first), difference_table(records, first)]
    tables = "\n\n".join(parts) + "\n"
    (folder / "results.md").write_text(tables)
    print(f"\n{tables}")
    arm, record = best_arm(records)
    print(recommendation(records, arm, first))
    save_best(arm, recipe.cell_flags(arm, record["choice"], record["seed"]), arguments, folder)
    print(f"The tables are in {folder / 'results.md'}, the splits in {folder / 'data'}.")


def check_folder(arguments: OwnDataArguments, folder: Path) -> str:
    """A digest of data, base model and flags; raises an error if the folder holds a run with another digest."""
    values = {name: value for name, value in asdict(arguments).items() if name != "output_dir"}
    digest = hashlib.sha256(json.dumps(values).encode())
    for file in arguments.files.values():
        if Path(file).is_file():  # otherwise, reading it raises an error
            digest.update(Path(file).read_bytes())
    model_args, _, _ = parse_flags([])
    model_args.model_name_or_path = arguments.model_name_or_path
    digest.update(model_fingerprint(model_args).encode())
    made_from = folder / "made_from.txt"
    if made_from.exists() and made_from.read_text() != digest.hexdigest():
        raise ValueError(f"--output_dir: {folder} holds a run with other data or flags; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return digest.hexdigest()


def check_wanted(arguments: OwnDataArguments, files: dict[str, str]) -> None:
    """Rejects, before any training, decision options that do not fit the labels."""
    train, column = Dataset.from_parquet(files["train"]), arguments.label_column_name
    names = class_names(train, column, read_labels(train, column))
    model_args, _, training_args = parse_flags(
        ["--output_dir", "unused", "--do_train", "--do_eval", *_decision(arguments)]
    )
    check_decision(model_args, training_args, names, hasattr(train.features[column], "feature"))


def _decision(arguments: OwnDataArguments) -> list[str]:
    """The decision flags for `run_text_classification.py`."""
    given = {name: getattr(arguments, name) for name in _OF_DECISION}
    return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]


def write_splits(arguments: OwnDataArguments, folder: Path) -> dict[str, str]:
    """Writes a file for each split, the same ones every time; prints the numbers of examples."""
    splits = load_splits(arguments, None, load_embedded_default)
    check_columns(splits, arguments, [*splits])
    column = arguments.label_column_name
    labels = {split: read_labels(dataset, column) for split, dataset in splits.items()}
    if findings := check_data(splits, labels, arguments.text_columns):
        print("Is this intended? Rows are numbered from 1, not counting a header.", *findings, sep="\n- ")
    for split, share in HELD_OUT.items():
        if split not in splits:
            cut = cut_validation(DatasetDict(train=splits["train"]), arguments, share, seed=arguments.seed)
            splits["train"], splits[split] = cut["train"], cut["validation"]
            if len(splits[split]) == 0:
                raise ValueError(
                    f"--{split}_file: required, as there are too few training data to split off {share:.0%}"
                )
    folder.mkdir(parents=True, exist_ok=True)
    files, counts = {}, {}
    for split, dataset in splits.items():
        files[split] = str(folder / f"{split}.parquet")
        dataset.to_parquet(files[split])
        names = [name for row in read_labels(dataset, column) or [] for name in row]
        counts[split] = {name: names.count(name) for name in {*names}}
    classes = sorted(counts["train"], key=lambda name: -counts["train"][name])
    print("Examples, of all classes and of each: " + ", ".join(f"{split} {len(splits[split])}" for split in splits))
    for name in classes[:20]:
        print(f"  {one_line(name)}: " + ", ".join(f"{split} {counts[split].get(name, 0)}" for split in splits))
    if len(classes) > 20:
        print(f"  and {len(classes) - 20} more")
    missing = [name for name in classes if any(not split_counts.get(name) for split_counts in counts.values())]
    if missing:
        print(f"Classes too rare to be in every split: {one_line(', '.join(missing[:20]))}")
    return files


def planned(common: dict, arguments: OwnDataArguments, folder: Path) -> Recipe:
    """A recipe that fits in the time limit: number of trained layers, epochs, learning rates and seeds."""
    plan_file = folder / "plan.json"  # exists if a run is resumed
    if plan_file.exists():
        plan = json.loads(plan_file.read_text())
    else:
        plan = _plan(common, arguments)
        plan_file.parent.mkdir(parents=True, exist_ok=True)
        plan_file.write_text(json.dumps(plan))
    print(plan["said"])
    return Recipe(
        title=folder.name,
        flags=common | plan["flags"],
        arms=ARMS,
        grid={"learning_rate": plan["learning_rates"]},
        seeds=[arguments.seed + k for k in range(plan["num_seeds"])],
    )


def _plan(common: dict, arguments: OwnDataArguments) -> dict:
    size, batch = len(Dataset.from_parquet(common["train_file"])), 16
    config = AutoConfig.from_pretrained(arguments.model_name_or_path or model_path(parse_flags([])[0]))
    seconds = _seconds_per_example(config, arguments)
    epochs, budget = (5 if size < 3000 else 3), arguments.minutes * 60
    one_training = size * epochs * seconds
    frozen, rates, left_out = 0, [2e-5, 5e-5], []
    if config.hidden_size < 512:  # small models need larger learning rates
        rates = [1e-4, 3e-4]
    can_freeze = config.model_type == "bert" and config.num_hidden_layers > 1
    if can_freeze and one_training * 4 * len(rates) > budget:
        frozen, rates = config.num_hidden_layers - 1, [5e-4, 1e-3]
        one_training = size * seconds / 2 + size * epochs * seconds / config.num_hidden_layers
        epochs *= 2
        left_out.append(f"training the other {frozen} layers")
    # The grid with one seed, a test of the best cell of each arm, and the saved model; each further seed adds one per
    # arm.
    trainings, per_seed = 4 * len(rates) + 5, 4
    if one_training * trainings > budget:
        left_out.append(f"the learning rate {rates[0]:g}")
        rates, trainings = rates[-1:], 5
    num_seeds = 1 + int(np.clip((budget - one_training * trainings) / (one_training * per_seed), 0, 4))
    minutes = one_training * (trainings + per_seed * (num_seeds - 1)) / 60
    flags = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 64,
        "warmup_steps": max(1, size * epochs // batch // 10),
    }
    if frozen:
        flags["frozen_layers"] = frozen
    if not torch.cuda.is_available():
        flags["use_cpu"] = "true"
    if num_seeds == 1:
        left_out.append("more seeds")
    layers = "the last layer and the head" if frozen else "all layers"
    seeds = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}"
    summary = (
        f"Plan: train {layers} for {epochs} epochs, with 4 losses, {' or '.join(f'{rate:g}' for rate in rates)} as learning "
        f"rate, and {seeds}; about {max(minutes, 1):.0f} minutes."
        + (f" Left out to save time: {', '.join(left_out)}." if left_out else "")
    )
    return {"flags": flags, "learning_rates": rates, "num_seeds": num_seeds, "said": summary}


def _seconds_per_example(config, arguments: OwnDataArguments) -> float:
    """The time of a training step per example, measured on a model of this shape."""
    model = AutoModelForSequenceClassification.from_config(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    length = min(arguments.max_seq_length, getattr(config, "max_position_embeddings", 512))
    ids = torch.ones(8, length, dtype=torch.long, device=device)
    labels = torch.zeros(8, dtype=torch.long, device=device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        times.append(time.perf_counter() - start)
    return min(times) / 8


def best_arm(records: Sequence[dict]) -> tuple[str, dict]:
    """The arm with the best mean over seeds on the validation split, and the record of its best training there.

    In case of ties it is the first arm, which has the fewest settings.
    """
    scores = _validation_scores(records)
    arm = max(scores, key=scores.__getitem__)
    arm_records = [record for record in records if record["stage"] == "test" and record["arm"] == arm]
    return arm, max(arm_records, key=lambda record: record["validation_metrics"]["f1_macro"])


def _validation_scores(records: Sequence[dict]) -> dict[str, float]:
    """The mean validation macro-F1 of each arm."""
    scores: dict[str, list[float]] = {}
    for record in records:
        if record["stage"] == "test":
            scores.setdefault(record["arm"], []).append(record["validation_metrics"]["f1_macro"])
    return {arm: float(np.mean(values)) for arm, values in scores.items()}


def recommendation(records: list[dict], arm: str, first: str) -> str:
    """The arm chosen on the validation split, and the differences to the first arm on the test split."""
    scores = _validation_scores(records)
    equal = [name for name, score in scores.items() if score == scores[arm] and name != arm]
    why = f"tied with {' and '.join(equal)} on the validation split" if equal else "the best on the validation split"
    table = differences(records, first)
    compared = table[(table["metric"] == "f1_macro") & ((table["arm"] == arm) | (arm == first))]
    verdicts = [
        f"{row.arm} {'is better' if row.low > 0 else 'is worse' if row.high < 0 else 'does not clearly differ'} "
        f"({row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}])"
        for row in compared.itertuples()
    ]
    return f"Recommended: {arm}, {why}. Compared with {first} in macro-F1 on the test split, {', '.join(verdicts)}."


def save_best(arm: str, flags: list[str], arguments: OwnDataArguments, folder: Path) -> None:
    """Trains the best arm once more in the same way, calibrates it, and saves it with operating point and card."""
    model_folder = folder / "model"
    if (model_folder / "README.md").exists():  # written last
        print(f"\nThe best model ({arm}) is in {model_folder}; its card says how to use it.")
        return
    taken = dict(zip(flags[::2], flags[1::2]))
    frozen = taken.pop("--frozen_layers", None)
    flags = [part for pair in taken.items() for part in pair]
    flags += _decision(arguments)
    flags += ["--output_dir", str(model_folder), "--do_train", "--do_eval", "--do_predict", "--report_to", "none"]
    flags += [
        "--eval_strategy",
        "epoch",
        "--save_strategy",
        "epoch",
        "--save_total_limit",
        "1",
        "--load_best_model_at_end",
    ]
    model_args, data_args, training_args = parse_flags(flags)
    prepare = None
    if frozen is not None:
        prepare = partial(freeze_layers, frozen_layers=int(frozen), cache_dir=FROZEN_LAYERS_CACHE)
    print(f"\nTraining the best model ({arm}) again, to calibrate and save it.")
    trainer, _ = run(model_args, data_args, training_args, prepare_model=prepare, writes_card=True)
    for checkpoint in model_folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    print_next_steps(trainer, str(model_folder), "text-classification", "Profits doubled.")
