"""Records of the same models at other operating points: cross entropy at `balanced` is a rival to any loss."""

from collections.abc import Iterable


# The losses that others are compared with, whatever the order of the records.
BASELINES = ("cross entropy", "binary cross entropy")


def baseline_of(names: Iterable[str]) -> str | None:
    """The one of these losses that is cross entropy, if any."""
    names = [*names]
    return next((name for name in BASELINES if name in names), None)


def other_decision(records: Iterable[dict]) -> str:
    """The operating point at which cross entropy is a rival too.

    With one class per example it is `balanced`. Several labels, which are decided by thresholds, are compared with
    decisions as trained: for the F1 of rare labels, balanced accuracy reports far too many.
    """
    tested = next((record for record in records if record["stage"] == "test"), None)
    return "as_trained" if tested is not None and isinstance(tested["labels"][0], list) else "balanced"


def decided_at(records: Iterable[dict], point: str, arms: Iterable[str]) -> list[dict]:
    """The test records of these arms with the decisions at an operating point, as separate arms."""
    arms, decided = [*arms], []
    for record in records:
        other = record.get("other_decisions", {}).get(point)
        if record["stage"] == "test" and record["arm"] in arms and other is not None:
            decided.append(record | other | {"arm": f"{record['arm']}, at {point}"})
    return decided


def with_posterior(records: Iterable[dict]) -> list[dict]:
    """The records with the metrics of the calibrated posterior, if any: by these all losses can be compared."""
    return [record | {"metrics": record.get("metrics", {}) | _of_posterior(record)} for record in records]


def _of_posterior(record: dict) -> dict[str, float]:
    metrics = record.get("other_decisions", {}).get("most_likely", {}).get("metrics", {})
    prefixes = ("negative_log_likelihood", "brier_score", "expected_calibration_error")
    return {name: value for name, value in metrics.items() if name.startswith(prefixes)}
