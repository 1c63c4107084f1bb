"""The verification of a model card: runs its command again, and compares every number.

A card is untrusted. Its command must be `python -m baselines cell` or `python run_text_classification.py`, with flags
that only change the data, the model and the training; they are parsed here and never passed to a shell.
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

from data.labelled_texts import DataArguments
from datasets import load_dataset_builder
from run_text_classification import parse_flags, run

from baselines.cards import card_contents
from baselines.cell import CELL_COMMAND, BaselineArguments, Cell, parse_cell
from baselines.data import BaselineDataArguments
from hf_focal import FocalTrainingArguments
from hf_focal.model_card import ModelCardContents, markdown_table, one_line, read_model_card


# Twice the largest standard deviation of the macro-F1 over seeds in the README: cards may set a smaller tolerance
# only.
LARGEST_TOLERANCE = 0.16
# No flags that write elsewhere, access services or load code.
_FLAGS = set(
    "loss operating_point positive_label f_beta wanted_precision wanted_recall calibration_method fold_calibration "
    "model_name_or_path model_revision tokenizer_name ignore_mismatched_sizes metric_for_best_model greater_is_better "
    "seed data_seed label_smoothing_factor learning_rate lr_scheduler_type warmup_steps weight_decay num_train_epochs max_steps max_grad_norm "
    "gradient_accumulation_steps adam_beta1 adam_beta2 adam_epsilon per_device_train_batch_size "
    "per_device_eval_batch_size bf16 fp16 use_cpu full_determinism".split()
)
_FLAGS |= {field.name for field in fields(FocalTrainingArguments) if field.name.startswith("focal_")}
_FLAGS |= {field.name for field in fields(DataArguments)}
_CELL_FLAGS = _FLAGS | {field.name for field in (*fields(BaselineArguments), *fields(BaselineDataArguments))}
_SCRIPT_FLAGS = _FLAGS | set(
    "do_train do_eval do_predict eval_strategy eval_steps save_strategy save_steps save_total_limit "
    "load_best_model_at_end logging_strategy logging_steps "
    # These have no effect, because `_run_script` overrides them or the flags they depend on.
    "output_dir report_to push_to_hub hub_model_id hub_private_repo hub_strategy".split()
)


# The parts of a card besides the scores that a run determines; the others are up to the author. The revision may be a
# later one of the same data, which the fingerprint verifies.
_DESCRIBED = (
    "settings label_names multi_label task dataset_id dataset_config dataset_split num_examples base_model "
    "fitted_on_split"
).split()


class Verdict(IntEnum):
    """The result of a verification; the numbers are exit statuses."""

    SAME = 0
    DIFFERENT = 1
    WITHIN_TOLERANCE = 3
    NOT_COMPARABLE = 4


def verify_card(path: Path, seed: int | None = None) -> Verdict:
    """Runs one seed of a card again, by default the first; prints differences, the number of values and the tolerance.

    On the same hardware with the same versions, all numbers must be the same to the last digit; otherwise they must be
    within the tolerance of the card, limited to `LARGEST_TOLERANCE` except for small classes. With other data, or a
    card without metrics, there is nothing to compare.
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
    print(one_line(f"Running in a temporary folder: {entry} {shlex.join(flags)}"))
    show_what_is_read(entry, flags, path.parent)
    with TemporaryDirectory() as folder:
        record = _ENTRIES[entry][0](flags, Path(folder))
    if record["data_fingerprint"] not in (contents.dataset_fingerprint or "").split("; "):
        of_card = one_line(str(contents.dataset_fingerprint))
        print(f"Not comparable: the data, {record['data_fingerprint']}, are not those of the card, {of_card:.500}.")
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
        f"Within the tolerance, on {where}: {count} values, within {min(contents.tolerance, LARGEST_TOLERANCE):g}, "
        f"the range of the other seeds (at most {LARGEST_TOLERANCE:g}), or 1/√n for a class of n examples"
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


# For each command: the functions that run it and parse its flags, and the flags that a card may set.
_CELL, _SCRIPT = " ".join(CELL_COMMAND), "python run_text_classification.py"
_ENTRIES: dict[str, tuple[Callable, Callable, set[str]]] = {
    _CELL: (_run_cell, parse_cell, _CELL_FLAGS),
    _SCRIPT: (_run_script, parse_flags, _SCRIPT_FLAGS),
}


def card_command(command: list[str]) -> tuple[str, list[str]]:
    """The key in `_ENTRIES` of a card's command, and its flags; raises an error if any is not allowed."""
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
                raise ValueError(f"command: {flag.split('=')[0]!r} is not a flag that a card may set")
    try:
        with redirect_stderr(StringIO()):  # argparse prints invalid flags unescaped
            parse(flags)
    except (SystemExit, ValueError) as error:
        raise ValueError(f"command: expected flags of `{entry}`, but got {shlex.join(flags):.200}") from error
    return entry, flags


def show_what_is_read(entry: str, flags: list[str], folder: Path) -> None:
    """Prints what a card's command reads from outside its folder, and rejects models that could run code."""
    *_, model_args, data_args, _ = _ENTRIES[entry][1](flags)
    models = [name for name in (model_args.model_name_or_path, model_args.tokenizer_name) if name is not None]
    data = data_args.files.values() if data_args.dataset_name is None else [data_args.dataset_name]
    for name in [*models, *data]:
        where = Path(name)
        if not where.exists():
            print(one_line(f"Reads from the Hub or from an installed package: {name}"))
        elif not where.resolve().is_relative_to(folder.resolve()):
            print(one_line(f"Reads from outside the folder of the card: {where.resolve()}"))
        if where.is_dir():
            for path in sorted({path.resolve() for path in [*where.rglob("*"), *_named_in(where)]}):
                if not path.is_relative_to(where.resolve()):
                    print(one_line(f"Reads, as {name} refers to it: {path}"))
        if name in models and where.is_dir():
            _check_model(where)


def _named_in(folder: Path) -> list[Path]:
    """Files that a model or a dataset refers to: shards of weights, and data files."""
    files = []
    for index in folder.glob("*.index.json"):
        try:
            files += [folder / shard for shard in {*json.loads(index.read_text())["weight_map"].values()}]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"command: {index} is not an index of weights") from error
    if (folder / "README.md").is_file() and not (folder / "config.json").is_file():
        by_split = load_dataset_builder(str(folder)).config.data_files or {}
        files += [Path(file) for split_files in by_split.values() for file in split_files]
    return files


def _check_model(folder: Path) -> None:
    """Rejects adapters, which name another model, and code from the Hub."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"command: expected a model, but {folder} is an adapter, which names another model")
    config = folder / "config.json"
    try:
        hub_attention = (
            re.search(r'"_?attn_implementation"\s*:\s*(\{[^}]*/|"[^"]*/)', config.read_text())
            if config.is_file()
            else None
        )
    except ValueError as error:
        raise ValueError(f"command: {config} is not a text file") from error
    if hub_attention:
        raise ValueError(f"command: the attention of {folder} would be code from the Hub, which is never run")


def described_otherwise(contents: ModelCardContents, again: ModelCardContents) -> list[tuple[str, str, str, str]]:
    """Differences between card and run in the description of the data, the model and the settings."""
    rows = []
    for name in _DESCRIBED:
        of_card, of_run = getattr(contents, name), getattr(again, name)
        if name == "settings":  # with several seeds, each has its own temperature and thresholds
            per_seed = (
                {} if len(contents.seeds) == 1 else {"temperature": None, "thresholds": None, "calibration_bias": None}
            )
            of_card, of_run = replace(of_card, **per_seed), replace(of_run, **per_seed)
            if not is_close(of_card.to_dict(), of_run.to_dict()):
                rows.append((name, f"{of_card.to_dict()!r:.200}", f"{of_run.to_dict()!r:.200}", ""))
        elif of_card != of_run:
            rows.append((name, f"{of_card!r:.200}", f"{of_run!r:.200}", ""))
    return rows


def is_close(one: Any, other: Any) -> bool:
    """Whether two values are the same, except for fitted values, whose digits depend on the machine."""
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
    """Differences between the numbers of a card for its run of this index and those of a record of the same run."""
    rows = []
    compared = [(name, values, record["metrics"]) for name, values in contents.metrics.items()]
    for label, metrics in contents.per_class.items():
        compared += [(name, values, record["per_class"].get(label, {}), label) for name, values in metrics.items()]
    for point, metrics in contents.operating_points.items():
        reproduced = record.get("operating_points", {}).get(point, {})
        for name, (value, low, high) in metrics.items():
            new_values = reproduced.get(name, [math.nan] * 3)
            parts = zip((name, f"{name}, low", f"{name}, high"), (value, low, high), new_values)
            allowed = 0 if is_same_machine else min(contents.tolerance, LARGEST_TOLERANCE)
            for part, expected, new in parts:
                if not abs(new - expected) <= allowed:
                    rows.append((f"{point}, {part}", repr(expected), repr(new), f"{new - expected:+.3g}"))
    for name, values, reproduced, *label in compared:
        value, new = values[index], reproduced.get(name, math.nan)
        is_exact = is_same_machine or name == "support"
        if not abs(new - value) <= (
            0 if is_exact else contents.tolerance_of(index, name, *label, at_most=LARGEST_TOLERANCE)
        ):  # NaN as well
            rows.append((" ".join(map(repr, [*label, name])), repr(value), repr(new), f"{new - value:+.3g}"))
    return rows
