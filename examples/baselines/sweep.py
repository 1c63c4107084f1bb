"""The sweep over the cells of a recipe: resumable, and several sweeps can share the work in one folder."""

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import TrainerCallback

from baselines.cell import Cell, parse_cell
from baselines.recipe import Recipe, slug
from baselines.records import best_settings, cell_key, flags_digest, packed, read_records
from hf_focal.model_card import publishable_command


STAGES = ("validation", "test")


@dataclass(frozen=True)
class Task:
    """A cell to be run: only on the validation split, to choose in the grid, or also on the test split."""

    stage: str
    arm: str
    choice: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def name(self) -> str:
        """The name of the training, which both stages share."""
        choice = "".join(f" {name} {value}" for name, value in self.choice)
        return slug(f"{self.arm}{choice} seed {self.seed}")


class Sweep:
    """Runs the cells of a recipe, with results.jsonl and all other files in one folder.

    Args:
        recipe (`Recipe`): The recipe to be run.
        folder (`Path`): The folder; created if it does not exist.
        cell_class (`type[Cell]`): The class that trains and tests.
    """

    def __init__(self, recipe: Recipe, folder: Path, cell_class: type[Cell] = Cell):
        self.recipe, self.folder, self.cell_class = recipe, folder, cell_class
        self.results = folder / "results.jsonl"
        with PartialState().main_process_first():
            self._origins = self._find_origins()
        (folder / "locks").mkdir(parents=True, exist_ok=True)

    def run(self) -> list[dict]:
        """Runs the unfinished cells, with all processes of `accelerate launch`; returns the records of all cells."""
        self._check_folder()
        num_choices, num_seeds = len(self.recipe.choices), len(self.recipe.seeds)
        num_tried = len(self.recipe.seeds_of_grid)
        trainings = len(self.recipe.arms) * (num_choices * num_tried + num_seeds - num_tried)
        bar_format = "{l_bar}{bar}| {n:.2f}/{total} trainings [{elapsed}<{remaining}{postfix}]"
        with tqdm(total=trainings, bar_format=bar_format, disable=not PartialState().is_main_process) as bar:
            while self._run_next(bar):
                pass
        return self.records()

    def records(self) -> list[dict]:
        """The finished cells of this recipe, in order, without those with other flags, data or versions."""
        finished = {cell_key(record): record for record in read_records(self.results)} if self.results.exists() else {}
        recipe = self.recipe
        tasks = [
            Task(stage, arm, tuple(choice.items()), seed)
            for arm in recipe.arms
            for choice in recipe.choices
            for seed in recipe.seeds
            for stage in STAGES
        ]
        return [finished[key] for key in map(self._key, tasks) if key in finished]

    def comparable_records(self) -> list[dict]:
        """The finished cells of this sweep, and others in its folder of the same data, model and versions.

        These are of other arms or seeds, as in a sweep of a part of a recipe.
        """
        found = self.records()
        ours = [
            {name: value for name, value in origin.items() if name != "flags"} for origin in self._origins.values()
        ]
        places = [self._place(record) for record in found]
        for record in read_records(self.results):
            if {name: record.get(name) for name in ours[0]} in ours and self._place(record) not in places:
                found.append(record)
        return found

    @staticmethod
    def _place(record: dict) -> tuple:
        return record["stage"], record["arm"], record["choice"], record["seed"]

    def open_tasks(self) -> list[Task]:
        """The tasks that can be run now: the grid of each arm or, once complete, its seeds; earlier seeds first."""
        records = self.records()
        finished = {cell_key(record) for record in records}
        choices = [tuple(choice.items()) for choice in self.recipe.choices]
        open_tasks = []
        for arm in self.recipe.arms:
            tasks = self._open_trials(arm, choices, finished) if len(choices) > 1 else []
            if not tasks:
                best = best_settings([record for record in records if record["arm"] == arm])
                chosen = choices[0] if best is None else tuple(best.items())
                tests = [Task("test", arm, chosen, seed) for seed in self.recipe.seeds]
                tasks = [task for task in tests if self._key(task) not in finished]
            open_tasks += tasks
        return sorted(open_tasks, key=lambda task: (STAGES.index(task.stage), self.recipe.seeds.index(task.seed)))

    def _open_trials(self, arm: str, choices: list[tuple], finished: set[str]) -> list[Task]:
        """The unfinished part of an arm's grid; a training that was tested already is not repeated."""
        tried = [Task("validation", arm, choice, seed) for choice in choices for seed in self.recipe.seeds_of_grid]
        return [task for task in tried if not {self._key(task), self._key(replace(task, stage="test"))} & finished]

    def _check_folder(self) -> None:
        """Refuses a folder with records of other flags, or a grid of other seeds, with which its tables would be replaced."""
        ours, seeds = self.recipe.shared_flags, self.recipe.seeds_of_grid
        for record in read_records(self.results) if self.results.exists() else []:
            theirs = record.get("shared_flags", {})
            if differing := sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)):
                flags = [f"--{name}: {theirs.get(name)} there, {ours.get(name)} here" for name in differing]
                raise ValueError(
                    f"--output_dir: {self.folder} has results of other flags ({'; '.join(flags)}); choose another folder"
                )
            if record["stage"] == "validation" and record["arm"] in self.recipe.arms and record["seed"] not in seeds:
                raise ValueError(
                    f"--seeds: the grid in {self.folder} was trained with seed {record['seed']}, which is not among the first "
                    f"{len(seeds)} here; name it first, or choose another folder"
                )

    def _run_next(self, bar: tqdm) -> bool:
        """Runs the next task, chosen by the main process for all; returns whether there was one."""
        with self._claim() if PartialState().is_main_process else nullcontext() as task:
            (task,) = broadcast_object_list([task])
            bar.n = len({(record["arm"], *record["flags"]) for record in self.records()})
            if task is None:
                return False
            bar.set_postfix_str(f"{task.arm}, seed {task.seed}" + "".join(f", {name} {v}" for name, v in task.choice))
            cell = self._cell(task)
            run = cell.train if task.stage == "validation" else cell.test
            names = {"recipe": self.recipe.title, "name": cell.folder.name, "choice": dict(task.choice)}
            record = asdict(task) | names | {"shared_flags": self.recipe.shared_flags, **self.recipe.point(task.arm)}
            record |= run(callbacks=[_Progress(bar)])
            if cell_key(record) != self._key(task):
                raise ValueError(f"the data or installed packages changed while the sweep ran: {bar.postfix}")
            record |= dict(zip(("flags", "left_out"), publishable_command(cell.flags)))
            record["flags_digest"] = flags_digest(cell.flags)
            if PartialState().is_main_process:
                if task.stage == "test":
                    shutil.move(cell.logits_file, self.folder / f"{cell.folder.name}.safetensors")
                self._append(record)
                if task.stage == "test":
                    shutil.rmtree(cell.folder)
        gc.collect()  # models and their trainers form reference cycles
        return True

    @contextmanager
    def _claim(self) -> Iterator[Task | None]:
        """Locks and yields a task that no other sweep is running; waits if there is none, `None` once all are done."""
        while tasks := self.open_tasks():
            for task in tasks:
                try:
                    lock = FileLock(self.folder / "locks" / self._cell(task).folder.name, timeout=0).acquire()
                except Timeout:
                    continue
                with lock:
                    if task in self.open_tasks():  # another sweep may just have finished it
                        yield task
                        return
            time.sleep(2)
        yield None

    def _append(self, record: dict) -> None:
        with FileLock(self.folder / "locks" / "results"), self.results.open("a+", errors="replace") as file:
            file.seek(0)
            if not file.read().endswith("\n") and file.tell():
                file.write("\n")  # after an incomplete line
            file.write(json.dumps(packed(record)) + "\n")

    def _cell(self, task: Task) -> Cell:
        origin = self._origin(task)
        digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:8]
        return self.cell_class(origin["flags"], self.folder / "cells" / f"{task.name}_{digest}")

    def _key(self, task: Task) -> str:
        return cell_key({"stage": task.stage, **self._origin(task)})

    def _origin(self, task: Task) -> dict[str, Any]:
        flags = self.recipe.cell_flags(task.arm, dict(task.choice), task.seed)
        return self._origins[task.arm, task.choice] | {"flags": flags}

    def _find_origins(self) -> dict[tuple[str, tuple[tuple[str, Any], ...]], dict[str, Any]]:
        """The origins by arm and choice; data and models that they have in common are read only once."""
        origins, known = {}, {}
        for arm, choice in product(self.recipe.arms, self.recipe.choices):
            flags = self.recipe.cell_flags(arm, choice, self.recipe.seeds[0])
            _, model_args, data_args, training_args = parse_cell(flags)
            read = [model_args.model_name_or_path, model_args.model_revision, training_args.focal_sample_weight_column]
            key = repr((data_args, read))
            if key not in known:
                known[key] = self.cell_class.origin_of(flags)
            origins[arm, tuple(choice.items())] = known[key]
        return origins


class _Progress(TrainerCallback):
    """Advances the progress bar of the sweep by the share of a training that each step is."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(min(1 / state.max_steps, self.bar.total - self.bar.n))
