"""The verification of a model card: what it says was run is run again, and every number compared.

A card is untrusted. Its command has to be `python -m baselines cell` or `python run_text_classification.py`, with flags
that change nothing but the data, the model and the training; they are parsed here, and no shell sees them.
"""

import json
import math
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import fields, replace
from enum import IntEnum
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import load_dataset_builder
from run_text_classification import parse_flags, run

from baselines.cards import card_contents
from baselines.cell import CELL_COMMAND, Cell, parse_cell
from hf_focal import FocalTrainingArguments
from hf_focal.model_card import ModelCardContents, markdown_table, one_line, read_model_card


# Twice the largest standard deviation over seeds that macro-F1 has in the README: a card may ask for less, not for more.
LARGEST_TOLERANCE = 0.16
# Nothing that writes elsewhere, talks to others or loads code.
_FLAGS = set(
    "loss operating_point positive_label f_beta wanted_precision wanted_recall calibration_method fold_calibration dataset_name "
    "dataset_config_name dataset_revision text_column_names "
    "label_column_name max_seq_length max_train_samples max_eval_samples max_predict_samples train_file "
    "validation_file test_file model_name_or_path model_revision tokenizer_name ignore_mismatched_sizes "
    "metric_for_best_model seed data_seed label_smoothing_factor learning_rate "
    "lr_scheduler_type warmup_steps weight_decay num_train_epochs max_steps max_grad_norm "
    "gradient_accumulation_steps adam_beta1 adam_beta2 adam_epsilon per_device_train_batch_size "
    "per_device_eval_batch_size bf16 fp16 use_cpu full_determinism".split()
) | {field.name for field in fields(FocalTrainingArguments) if field.name.startswith("focal_")}
_CELL_FLAGS = _FLAGS | {"rival", "frozen_layers", "validation_share"}
_SCRIPT_FLAGS = _FLAGS | set(
    "do_train do_eval do_predict eval_strategy eval_steps save_strategy save_steps save_total_limit "
    "load_best_model_at_end greater_is_better logging_strategy logging_steps "
    # These have no effect, as `_run_script` sets them, or what makes them work.
    "output_dir report_to push_to_hub hub_model_id hub_private_repo hub_strategy".split()
)


# What a run gives of the data and the model, beside the settings and the scores; the rest is the author's to say. The revision
# may be a later one of the same data, which the fingerprint tells.
_DESCRIBED = (
    "settings label_names multi_label task dataset_id dataset_config dataset_split num_examples base_model "
    "fitted_on_split"
).split()


class Verdict(IntEnum):
    """What came of a verification; the numbers are exit statuses."""

    SAME = 0
    DIFFERENT = 1
    WITHIN_TOLERANCE = 3
    NOT_COMPARABLE = 4


def verify_card(path: Path, seed: int | None = None) -> Verdict:
    """Runs one seed of a card again, by default the first; prints what differs, and how much was compared how tightly.

    On the same hardware with the same versions every number has to be the same to the last digit, elsewhere within the
    tolerance of the card, but for small classes of no more than `LARGEST_TOLERANCE`. With other data, or a card without
    metrics, there is nothing to compare.
    """
    contents = read_model_card(path)
    seed = contents.seeds[0] if seed is None else seed
    if seed not in contents.seeds:
        raise ValueError(f"--seed: expected one of the card's seeds, {contents.seeds}, but got {seed}")
    if not contents.metrics:
        print("Not comparable: the card has no results.")
        return Verdict.NOT_COMPARABLE
    entry, flags = card_command(contents.command)
    flags += ["--seed", str(seed)]
    print(one_line(f"Runs in a temporary folder: {entry} {shlex.join(flags)}"))
    show_what_is_read(entry, flags, path.parent)
    with TemporaryDirectory() as folder:
        record = _ENTRIES[entry][0](flags, Path(folder))
    if record["data_fingerprint"] not in (contents.dataset_fingerprint or "").split("; "):
        of_card = one_line(str(contents.dataset_fingerprint))
        print(
            f"Not comparable: the data are others, {record['data_fingerprint']}, than those of the card, {of_card:.500}."
        )
        return Verdict.NOT_COMPARABLE
    is_same_machine = contents.hardware == record["hardware"] and contents.versions == record["versions"]
    rows = described_otherwise(contents, record["contents"])
    rows += differences(contents, contents.seeds.index(seed), record, is_same_machine)
    count = len(contents.metrics) + sum(map(len, contents.per_class.values()))
    count += 3 * sum(map(len, contents.operating_points.values()))
    where = "the same hardware and versions" if is_same_machine else "other hardware or versions"
    if len(contents.seeds) > 1:
        where = f"seed {seed}, one of {len(contents.seeds)} of the card, {where}"
    if rows:
        print(f"Different, on {where}: {len(rows)} differences, {count} values compared")
        print(markdown_table(["", "card", "this run", "difference"], [[*map(one_line, row)] for row in rows]))
        return Verdict.DIFFERENT
    if not differences(contents, contents.seeds.index(seed), record, is_same_machine=True):
        print(f"The same to the last digit: {count} values, on {where}")
        return Verdict.SAME
    print(
        f"Within the tolerance, on {where}: {count} values, within {min(contents.tolerance, LARGEST_TOLERANCE):g}, as far apart as "
        f"the other seeds are but no more than {LARGEST_TOLERANCE:g}, or within 1/√n for a class of n examples"
    )
    return Verdict.WITHIN_TOLERANCE


def _run_cell(flags: list[str], folder: Path) -> dict[str, Any]:
    record = Cell(flags, folder, use_safetensors=True).test()
    named = {"recipe": "", "arm": "", "seed": int(flags[-1]), "flags": flags[:-2]}
    return record | {"contents": card_contents([record | named], "")}


def _run_script(flags: list[str], folder: Path) -> dict[str, Any]:
    overrides = [
        "--output_dir",
        str(folder),
        "--report_to",
        "none",
        "--push_to_hub",
        "false",
        "--disable_tqdm",
        "true",
    ]
    model_args, data_args, training_args = parse_flags([*flags, *overrides])
    run(model_args, data_args, training_args, writes_card=True, use_safetensors=True)
    contents = read_model_card(folder / "README.md")
    return {
        "contents": contents,
        "hardware": contents.hardware,
        "versions": contents.versions,
        "data_fingerprint": contents.dataset_fingerprint,
        "metrics": {name: values[0] for name, values in contents.metrics.items()},
        "per_class": {
            label: {name: values[0] for name, values in metrics.items()}
            for label, metrics in contents.per_class.items()
        },
        "operating_points": contents.operating_points,
    }


# What runs and what parses the flags of a command, and those that a card may set.
_CELL, _SCRIPT = " ".join(CELL_COMMAND), "python run_text_classification.py"
_ENTRIES: dict[str, tuple[Callable, Callable, set[str]]] = {
    _CELL: (_run_cell, parse_cell, _CELL_FLAGS),
    _SCRIPT: (_run_script, parse_flags, _SCRIPT_FLAGS),
}


def card_command(command: list[str]) -> tuple[str, list[str]]:
    """The entry of `_ENTRIES` that a card's command is, and its flags, if they are nothing but harmless."""
    if command[:4] == CELL_COMMAND:
        entry, flags = _CELL, command[4:]
    elif [*command[:1], *(Path(script).name for script in command[1:2])] == _SCRIPT.split():
        entry, flags = _SCRIPT, command[2:]
    else:
        raise ValueError(f"command: expected `{_CELL}` or `{_SCRIPT}`, and flags, but got {shlex.join(command):.200}")
    _, parse, allowed = _ENTRIES[entry]
    for flag in flags:
        if flag.startswith("-") and not re.fullmatch(r"-[\d.].*", flag):
            name = flag.removeprefix("--").split("=")[0].replace("-", "_")
            if name not in allowed:
                raise ValueError(f"command: {flag.split('=')[0]!r} is no flag that a card may set")
    try:
        with redirect_stderr(StringIO()):  # argparse shows what it cannot parse as it is
            parse(flags)
    except (SystemExit, ValueError) as error:
        raise ValueError(f"command: expected flags of `{entry}`, but got {shlex.join(flags):.200}") from error
    return entry, flags


def show_what_is_read(entry: str, flags: list[str], folder: Path) -> None:
    """Prints what a card has read from elsewhere than its folder, and refuses models whose weights could be code."""
    *_, model_args, data_args, _ = _ENTRIES[entry][1](flags)
    models = [name for name in (model_args.model_name_or_path, model_args.tokenizer_name) if name is not None]
    data = data_args.files.values() if data_args.dataset_name is None else [data_args.dataset_name]
    for name in [*models, *data]:
        where = Path(name)
        if not where.exists():
            print(one_line(f"Reads from the Hub, or from what is installed: {name}"))
        elif not where.resolve().is_relative_to(folder.resolve()):
            print(one_line(f"Reads, outside the folder of the card: {where.resolve()}"))
        if where.is_dir():
            for path in sorted({path.resolve() for path in [*where.rglob("*"), *_named_in(where)]}):
                if not path.is_relative_to(where.resolve()):
                    print(one_line(f"Reads, by a name in {name}: {path}"))
        if name in models and where.is_dir():
            _check_model(where)


def _named_in(folder: Path) -> list[Path]:
    """Files that a model or a dataset names: shards of weights, and data files."""
    found = []
    for index in folder.glob("*.index.json"):
        try:
            found += [folder / shard for shard in {*json.loads(index.read_text())["weight_map"].values()}]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"command: {index} is no index of weights") from error
    if (folder / "README.md").is_file() and not (folder / "config.json").is_file():
        of_splits = load_dataset_builder(str(folder)).config.data_files or {}
        found += [Path(file) for files in of_splits.values() for file in files]
    return found


def _check_model(folder: Path) -> None:
    """Refuses what is another model's, or code from the Hub."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"command: expected a model, but {folder} is an adapter, which names another model")
    config = folder / "config.json"
    try:
        of_hub = (
            re.search(r'"_?attn_implementation"\s*:\s*(\{[^}]*/|"[^"]*/)', config.read_text())
            if config.is_file()
            else None
        )
    except ValueError as error:
        raise ValueError(f"command: {config} is no text") from error
    if of_hub:
        raise ValueError(f"command: the attention of {folder} is code from the Hub, which is not run")


def described_otherwise(contents: ModelCardContents, again: ModelCardContents) -> list[tuple[str, str, str, str]]:
    """What a card says of the data, the model and the settings where the run that it names says something else."""
    rows = []
    for name in _DESCRIBED:
        said, found = getattr(contents, name), getattr(again, name)
        if name == "settings":  # of several seeds each has a temperature and thresholds of its own
            own = (
                {} if len(contents.seeds) == 1 else {"temperature": None, "thresholds": None, "calibration_bias": None}
            )
            said, found = replace(said, **own), replace(found, **own)
            if not is_close(said.to_dict(), found.to_dict()):
                rows.append((name, f"{said.to_dict()!r:.200}", f"{found.to_dict()!r:.200}", ""))
        elif said != found:
            rows.append((name, f"{said!r:.200}", f"{found!r:.200}", ""))
    return rows


def is_close(one: Any, other: Any) -> bool:
    """The same but for what is fitted, of which another machine has other digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        fitted = ("temperature", "thresholds", "calibration_bias", "folded")
        return one.keys() == other.keys() and all(name in fitted or is_close(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def differences(
    contents: ModelCardContents, index: int, record: dict[str, Any], is_same_machine: bool
) -> list[tuple[str, str, str, str]]:
    """What a card says of its run of this index, where a record of the same run says something else."""
    rows = []
    compared = [(name, values, record["metrics"]) for name, values in contents.metrics.items()]
    for label, metrics in contents.per_class.items():
        compared += [(name, values, record["per_class"].get(label, {}), label) for name, values in metrics.items()]
    for point, metrics in contents.operating_points.items():
        found = record.get("operating_points", {}).get(point, {})
        for name, (value, low, high) in metrics.items():
            parts = zip((name, f"{name}, low", f"{name}, high"), (value, low, high), found.get(name, [math.nan] * 3))
            allowed = 0 if is_same_machine else min(contents.tolerance, LARGEST_TOLERANCE)
            for part, expected, new in parts:
                if not abs(new - expected) <= allowed:
                    rows.append((f"{point}, {part}", repr(expected), repr(new), f"{new - expected:+.3g}"))
    for name, values, found, *label in compared:
        value, new = values[index], found.get(name, math.nan)
        is_exact = is_same_machine or name == "support"
        if not abs(new - value) <= (
            0 if is_exact else contents.tolerance_of(index, name, *label, at_most=LARGEST_TOLERANCE)
        ):  # NaN as well
            rows.append((" ".join(map(repr, [*label, name])), repr(value), repr(new), f"{new - value:+.3g}"))
    return rows
