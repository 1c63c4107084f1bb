"""`results.jsonl`, one record per line, treated as untrusted input when read."""

import hashlib
import json
import warnings
import zlib
from base64 import b64decode, b64encode
from pathlib import Path

from hf_focal.model_card import one_line


KINDS = {
    "stage": str,
    "recipe": str,
    "arm": str,
    "seed": int,
    "choice": dict,
    "flags": list,
    "data_fingerprint": str,
    "versions": dict,
}
LOWER_IS_BETTER = ("loss", "negative_log_likelihood", "brier_score", "expected_calibration_error")
LARGEST_FILE = 2**28
# Entries only for programs, compressed: with thousands of test examples they are larger than all others together.
PACKED = ("labels", "predictions", "label_names", "per_class", "focal_loss", "other_decisions")
LARGEST_UNPACKED = 2**28


def flags_digest(flags: list[str]) -> str:
    """Distinguishes flags that are the same in a record, because it omits its author's folders."""
    return hashlib.sha256(json.dumps(flags).encode()).hexdigest()[:16]


def cell_key(record: dict) -> str:
    """Identifies a cell: the same for records with the same stage, flags, base model, data and versions."""
    digest = record.get("flags_digest") or flags_digest(record["flags"])
    origin = [record.get("model_fingerprint"), record["data_fingerprint"], record["versions"]]
    return json.dumps([record["stage"], digest, *origin], sort_keys=True)


def greater_is_better(metric: str) -> bool:
    return not metric.startswith(LOWER_IS_BETTER)


def of_chosen_settings(records: list[dict]) -> list[dict]:
    """The records without the tests of settings that were chosen from a smaller grid, and would not be any more."""
    by_arm: dict[str, list[dict]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], []).append(record)
    chosen = {arm: best_settings(arm_records) for arm, arm_records in by_arm.items()}
    return [r for r in records if r["stage"] != "test" or r["choice"] == (chosen[r["arm"]] or r["choice"])]


def best_settings(records: list[dict]) -> dict | None:
    """The settings of an arm with the best mean on the validation split, over the seeds of its grid.

    `None` if there is no grid, or nothing in it that all of these seeds were trained with.
    """
    seeds = {record["seed"] for record in records if record["stage"] == "validation"}
    scores: dict[str, dict[int, float]] = {}
    for record in records:
        if record["seed"] in seeds:
            scores.setdefault(json.dumps(record["choice"]), {})[record["seed"]] = _score(record)
    means = {choice: sum(of.values()) / len(of) for choice, of in scores.items() if of.keys() == seeds}
    return json.loads(max(means, key=means.get)) if means else None


def _score(record: dict) -> float:
    """The greater, the better."""
    metric = record["shared_flags"]["metric_for_best_model"]
    value = record["validation_metrics"][metric]
    return value if greater_is_better(metric) else -value


def packed(record: dict) -> dict:
    """The record as written in a line of the file."""
    return record | {name: _packed(record[name]) for name in PACKED if name in record}


def _packed(value: object) -> dict[str, str]:
    return {"zlib": b64encode(zlib.compress(json.dumps(value).encode(), 9)).decode()}


def _is_packed(value: object) -> bool:
    return isinstance(value, dict) and {*value} == {"zlib"}


def _unpacked(value: dict[str, str], most: int) -> tuple[object, int]:
    """The value, and its size in bytes."""
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(b64decode(value["zlib"], validate=True), max(most, 1))
    if not unpacker.eof:
        raise ValueError(f"more than {LARGEST_UNPACKED:,} bytes in all, or truncated")
    return json.loads(content), len(content)


def read_records(file: Path) -> list[dict]:
    """The records of a file; lines left incomplete by a killed process are skipped with a warning.

    Raises:
        `ValueError`: For a line that is not a record, a duplicate cell, or more than 256 MiB, packed or unpacked.
    """
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{file}: expected at most {LARGEST_FILE:,} bytes, but got {file.stat().st_size:,}")
    records: dict[str, dict] = {}
    lines: dict[str, int] = {}
    unpacked = 0
    for number, line in enumerate(file.read_text(errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        shown = one_line(line[-60:])
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            warnings.warn(f"{file}, line {number}: expected a record, but got {shown!r} at its end; skipped")
            continue
        except (ValueError, RecursionError):  # for example numbers with thousands of digits
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number}: expected a record, but got {shown!r} at its end")
        for name, kind in KINDS.items():
            if not isinstance(record.get(name), kind):
                raise ValueError(
                    f"{file}, line {number}: expected a record whose {name!r} is a {kind.__name__}, but got "
                    f"{record.get(name)!r:.60}"
                )
        try:
            for name in [name for name in PACKED if _is_packed(record.get(name))]:
                record[name], size = _unpacked(record[name], LARGEST_UNPACKED - unpacked)
                unpacked += size
        except (ValueError, TypeError, zlib.error, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: expected packed values, but {error}") from error
        key = cell_key(record)
        if key in records:
            raise ValueError(
                f"{file}, lines {lines[key]} and {number}: {record['arm']!r}, seed {record['seed']}, stage "
                f"{record['stage']!r:.20}, are the same cell; remove one of the lines"
            )
        records[key], lines[key] = record, number
    return [*records.values()]
