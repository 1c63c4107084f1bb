"""The records of other decisions of the same models: cross entropy that decides at `balanced` is a rival of any loss."""

from collections.abc import Iterable


# What others are compared with, by whatever order their records have.
BASELINES = ("cross entropy", "binary cross entropy")


def baseline_of(names: Iterable[str]) -> str | None:
    """Which of these losses is cross entropy, if one is."""
    names = [*names]
    return next((name for name in BASELINES if name in names), None)


def decided_at(records: Iterable[dict], point: str, arms: Iterable[str]) -> list[dict]:
    """The test records of these arms as those of arms of their own, whose models decide at an operating point."""
    arms, found = [*arms], []
    for record in records:
        other = record.get("other_decisions", {}).get(point)
        if record["stage"] == "test" and record["arm"] in arms and other is not None:
            found.append(record | other | {"arm": f"{record['arm']}, at {point}"})
    return found


def with_posterior(records: Iterable[dict]) -> list[dict]:
    """The records with the probabilities of the calibrated posterior, by which all losses can be compared, where they have them."""
    return [record | {"metrics": record.get("metrics", {}) | _of_posterior(record)} for record in records]


def _of_posterior(record: dict) -> dict[str, float]:
    metrics = record.get("other_decisions", {}).get("most_likely", {}).get("metrics", {})
    of_probabilities = ("negative_log_likelihood", "brier_score", "expected_calibration_error")
    return {name: value for name, value in metrics.items() if name.startswith(of_probabilities)}
