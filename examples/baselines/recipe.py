"""The recipe of a sweep: the data, the losses to compare, and the grid for each of them."""

import re
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import yaml

from baselines.cell import cell_flag_names, parse_cell
from baselines.records import greater_is_better
from baselines.report import TITLES
from hf_focal.model_card import publishable_command


CHOOSABLE = {*TITLES, "loss", "f1_weighted"} - {"expected_calibration_error_floor"}
OWN_FLAGS = {
    "seed": "the recipe sets the seeds; use --seeds for others",
    "metric_for_best_model": "set choose_by in the recipe instead",
    "greater_is_better": "it follows from choose_by in the recipe",
    "output_dir": "each cell has its own folder",
}


@dataclass(kw_only=True)
class Recipe:
    """The contents of a yaml file.

    Attributes:
        title (`str`): A human-readable title.
        flags (`dict`): Flags of `python -m baselines cell` for all arms.
        arms (`dict[str, dict]`): Further flags of each arm; the first arm is the baseline.
        grid (`dict[str, list]`): Values of flags; for each arm, the best ones on the validation split are chosen.
        along (`dict[str, list]`): One flag and its values, for a curve: each arm is repeated for each value.
        seeds (`list[int]`): The seeds.
        grid_seeds (`int`): The number of seeds, from the first, with which the grid is trained; their mean decides.
        takes (`str`): The duration, for people.
        choose_by (`str`): The metric on the validation split by which epochs and grid points are chosen.
    """

    title: str
    flags: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    grid: dict[str, list] = field(default_factory=dict)
    along: dict[str, list] = field(default_factory=dict)
    seeds: list[int]
    grid_seeds: int = 1
    choose_by: str = "f1_macro"
    takes: str = ""

    def __post_init__(self):
        for name, kind in (("flags", dict), ("arms", dict), ("grid", dict), ("along", dict), ("seeds", list)):
            value = getattr(self, name)
            if not isinstance(value, kind) or (not value and name not in ("grid", "along")):
                raise ValueError(f"{name}: expected a {kind.__name__} with entries, but got {value!r}")
        if type(self.grid_seeds) is not int or self.grid_seeds < 1:
            raise ValueError(f"grid_seeds: expected a number of seeds, at least 1, but got {self.grid_seeds!r}")
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds: expected different ones, but got {self.seeds}")
        names = [slug(str(arm)) for arm in self.arms]
        if len({name.casefold() for name in names}) < len(names):
            raise ValueError(f"arms: expected names that differ in letters and digits, but got {[*self.arms]}")
        for arm, name in zip(self.arms, names):  # each has its own folder, beside those of the sweep
            if (
                not isinstance(arm, str)
                or not 0 < len(name) <= 100
                or name.split(".")[0] in ("cells", "locks", "results")
            ):
                raise ValueError(
                    "arms: expected names with a letter or digit, at most 100 characters long, and other than cells, "
                    f"locks and results, but got {arm!r:.120}"
                )
        self._check_entries()
        if len(self.along) > 1:
            raise ValueError(f"along: expected one flag, but got {', '.join(self.along)}")
        for arm, choice in product(self.arms, self.choices):
            parse_cell(self.cell_flags(arm, choice, self.seeds[0]))

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        if not path.is_file():
            raise ValueError(f"recipe: expected a yaml file, but there is no file {path}")
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe: {path} cannot be read as yaml: {error}") from error
        known, needed = cls.__dataclass_fields__.keys(), ("title", "flags", "arms", "seeds")
        if not isinstance(content, dict):
            raise ValueError(f"recipe: expected {path} to be a mapping, but got {content!r:.80}")
        if missing := [key for key in needed if key not in content]:
            raise ValueError(f"recipe: {path} has no {', '.join(missing)}")
        if unknown := [f"{key!r:.40}" for key in content if key not in known]:
            raise ValueError(f"recipe: expected the keys {', '.join(known)} in {path}, but got {', '.join(unknown)}")
        recipe = cls(**content)
        for name, values in recipe.along.items():
            if any(name in arm_flags for arm_flags in recipe.arms.values()):
                raise ValueError(f"--{name}: expected it in along or in arms, but it is in both")
            arms = {
                f"{arm}, {name} {value}": arm_flags | {name: value}
                for arm, arm_flags in recipe.arms.items()
                for value in values
            }
            return replace(recipe, arms=arms)
        return recipe

    def with_flags(self, flags: dict[str, str]) -> "Recipe":
        """The recipe with these flags instead of its own and of those in its grid."""
        if in_arms := {name for arm_flags in self.arms.values() for name in arm_flags} & flags.keys():
            raise ValueError(f"--{min(in_arms)}: the arms of the recipe set it, so it cannot be set for all of them")
        grid = {name: values for name, values in self.grid.items() if name not in flags}
        return replace(self, flags=self.flags | flags, grid=grid)

    def restricted_to(self, arms: list[str] | None, seeds: list[int] | None) -> "Recipe":
        """The recipe with these arms only, of a curve at all values, and with these seeds instead of its own."""
        names = {arm: self.point(arm).get("loss", arm) for arm in self.arms}
        if unknown := {*(arms or [])} - {*names.values()}:
            raise ValueError(f"--arms: expected some of {[*dict.fromkeys(names.values())]}, but got {min(unknown)!r}")
        chosen = [arm for wanted in arms or [] for arm, name in names.items() if name == wanted] or [*self.arms]
        return replace(self, arms={arm: self.arms[arm] for arm in chosen}, seeds=seeds or self.seeds)

    def in_order(self, records: list[dict]) -> list[dict]:
        """The records in the order of these arms and seeds; those of others come last."""
        arms, seeds = [*self.arms], self.seeds

        def place(record: dict) -> tuple[int, int]:
            arm, seed = record["arm"], record["seed"]
            return arms.index(arm) if arm in arms else len(arms), seeds.index(seed) if seed in seeds else len(seeds)

        return sorted(records, key=place)

    def point(self, arm: str) -> dict[str, Any]:
        """The curve of an arm, and its position on it; empty for a recipe without curves."""
        for name in self.along:
            value = self.arms[arm][name]
            return {"loss": arm.removesuffix(f", {name} {value}"), "along": name, "value": value}
        return {}

    @property
    def shared_flags(self) -> dict[str, str]:
        """The flags that all arms have in common; records with others cannot be compared."""
        pairs = [publishable_command([f"--{name}", str(value)])[0] for name, value in self.flags.items()]
        shared = {pair[0].removeprefix("--"): pair[1] for pair in pairs if len(pair) == 2}
        return shared | {"metric_for_best_model": self.choose_by}

    def _check_entries(self) -> None:
        if not isinstance(self.title, str) or not all(type(seed) is int for seed in self.seeds):
            raise ValueError(
                f"title, seeds: expected a text and whole numbers, but got {self.title!r}, {self.seeds!r}"
            )
        if str(self.choose_by) not in CHOOSABLE:
            raise ValueError(
                f"choose_by: expected one of {', '.join(sorted(CHOOSABLE))}, but got {self.choose_by!r:.80}"
            )
        for name, values in (self.grid | self.along).items():
            texts = [*map(str, values)] if isinstance(values, list) else []
            if not texts or len({*texts}) < len(texts):
                raise ValueError(f"{name}: expected a list of different values, but got {values!r}")
        flags = [*self.arms.values()]
        if not all(isinstance(arm_flags, dict) for arm_flags in flags) or len({*map(repr, flags)}) < len(flags):
            raise ValueError(f"arms: expected a mapping of different flags for each, but got {self.arms!r:.300}")
        self._check_that_none_is_set_twice()
        names = {*self.flags, *self.grid, *self.along, *chain(*flags)}
        for name in sorted(names):
            if name in OWN_FLAGS:
                raise ValueError(f"--{name}: {OWN_FLAGS[name]}")
            if name not in cell_flag_names():
                raise ValueError(
                    f"--{name}: not a flag of `python -m baselines cell` (flags are written with underscores)"
                )

    def _check_that_none_is_set_twice(self) -> None:
        """Except that an arm may set what is in `flags`, and that a curve is a part of the arms once it is loaded."""
        of_arms = {*chain(*self.arms.values())}
        for first, second, both in (
            ("grid", "flags", self.grid.keys() & self.flags.keys()),
            ("grid", "arms", self.grid.keys() & of_arms),
            ("along", "grid", self.along.keys() & self.grid.keys()),
            ("along", "flags", self.along.keys() & self.flags.keys()),
        ):
            if both:
                raise ValueError(f"--{min(both)}: expected it in {first} or in {second}, but it is in both")

    @property
    def greater_is_better(self) -> bool:
        return greater_is_better(self.choose_by)

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [dict(zip(self.grid, values)) for values in product(*self.grid.values())]

    @property
    def seeds_of_grid(self) -> list[int]:
        return self.seeds[: self.grid_seeds]

    def cell_flags(self, arm: str, choice: dict[str, Any], seed: int) -> list[str]:
        chosen = {"metric_for_best_model": self.choose_by}
        if not self.greater_is_better:
            chosen["greater_is_better"] = "false"
        flags = self.flags | chosen | self.arms[arm] | choice | {"seed": seed}
        return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def slug(text: str) -> str:
    """The text as a file name: letters, digits, dots and underscores."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("._")
