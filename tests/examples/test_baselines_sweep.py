"""Recipes, the order in which a sweep runs their cells, and that it survives what may happen to it."""

import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from baselines.recipe import Recipe
from baselines.records import of_chosen_settings
from baselines.sweep import Sweep
from processes import run_in_two_processes, start_process
from safetensors.torch import save_file
from toy_texts import EXAMPLES, run_baselines, single_label_data, write

from hf_focal.model_card import describe_hardware, package_versions, read_model_card


ARMS = {"cross entropy": {"loss": "cross_entropy"}, "focal, inverse alpha": {"focal_alpha": "inverse"}}
LABELS = ["chess", "money", "sport"]


def saved(recipe: dict, name: str = "words.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    return name


def records(folder: str | Path = "outputs/baselines/words") -> list[dict]:
    return [json.loads(line) for line in Path(folder, "results.jsonl").read_text().splitlines()]


@pytest.fixture
def recipe():
    """2 arms, 2 learning rates and 2 seeds: 6 trainings, for a model that is not there."""
    return {
        "title": "words",
        "flags": {"model_name_or_path": "missing", "train_file": "missing.csv"},
        "grid": {"learning_rate": [0.02, 0.001]},
        "seeds": [1, 2],
        "arms": ARMS,
    }


@dataclass
class StubCell:
    """Says what a training of this learning rate and seed could have come to, and remembers that it was asked."""

    flags: list[str]
    folder: Path
    runs: ClassVar[list[tuple[str, ...]]] = []
    seconds: ClassVar[float] = 0

    fingerprint: ClassVar[str] = "a1"

    @classmethod
    def origin_of(cls, flags):
        prints = {"data_fingerprint": cls.fingerprint, "model_fingerprint": "m1"}
        return {"flags": flags, "versions": package_versions()} | prints

    def train(self, callbacks=None):
        finished = self.folder / "training.json"
        if not finished.exists():
            self.runs.append(("train", *self.flags))
            time.sleep(self.seconds)
            rate = float(self.flags[self.flags.index("--learning_rate") + 1])
            # Cross entropy is better with the larger rate, focal loss with the smaller one.
            score = rate if "--loss" in self.flags else 1 - rate
            self.folder.mkdir(parents=True)
            training = {"validation_metrics": {"f1_macro": score}, "wall_seconds": 60.0 + rate, "resumed": False}
            training |= {"hardware": describe_hardware()} | self.origin_of(self.flags)
            finished.write_text(json.dumps(training))
        return json.loads(finished.read_text())

    def test(self, callbacks=None):
        record = self.train()
        self.runs.append(("test", *self.flags))
        logits, labels = torch.eye(3)[[0, 1, 2, 1]], torch.tensor([0, 1, 2, 2])
        save_file({"logits": logits, "labels": labels}, self.logits_file)
        focal_loss = {"gamma": 2.0, "alpha": None, "label_counts": [2, 6, 12], "class_prior": [0.1, 0.3, 0.6]}
        return record | {
            "label_names": LABELS,
            "label_counts": [2, 6, 12],
            "focal_loss": focal_loss | {"label_smoothing": 0.0},
            "per_class": {name: {"f1": 0.8} for name in LABELS},
            "metrics": {"accuracy": 0.75, "f1_macro": 0.8},
            "labels": labels.tolist(),
            "predictions": logits.argmax(-1).tolist(),
        }

    @property
    def logits_file(self):
        return self.folder / "test_logits.safetensors"


@pytest.fixture
def stub(monkeypatch):
    """Sweeps run cells that do not train."""
    monkeypatch.setattr(StubCell, "runs", [])
    monkeypatch.setattr("baselines.sweep.gc", SimpleNamespace(collect=lambda: None))  # takes a second, for no model
    monkeypatch.setattr("baselines.sweep.Sweep", partial(Sweep, cell_class=StubCell))
    return StubCell


class TestSchedule:
    def test_grid_then_seeds_then_test_split(self, recipe, stub, capsys):
        run_baselines("sweep", saved(recipe))
        found = records()
        stages = Counter((record["stage"], record["arm"], record["seed"]) for record in found)
        expected = {("validation", arm, 1): 2 for arm in ARMS} | {
            ("test", arm, seed): 1 for arm in ARMS for seed in (1, 2)
        }
        assert stages == expected
        for arm, rate in zip(ARMS, (0.02, 0.001)):
            trials = [r for r in found if r["stage"] == "validation" and r["arm"] == arm]
            best = max(trials, key=lambda r: r["validation_metrics"]["f1_macro"])
            tested = [r for r in found if r["stage"] == "test" and r["arm"] == arm]
            assert {r["choice"]["learning_rate"] for r in [*tested, best]} == {rate}
            # What the grid has trained is not trained again, and gave no metric of the test split.
            assert all("metrics" not in trial for trial in trials)
            assert tested[0]["wall_seconds"] == best["wall_seconds"] and tested[0]["flags"] == best["flags"]
        assert Counter(run[0] for run in stub.runs) == {"train": 6, "test": 4}
        assert Counter(stub.runs).most_common(1)[0][1] == 1
        printed = capsys.readouterr().out
        folder = Path("outputs/baselines/words")
        assert "| cross entropy (baseline) |" in printed and (folder / "results.md").read_text() in printed
        assert (folder / "results.png").stat().st_size > 1000
        for arm in ("cross_entropy", "focal_inverse_alpha"):
            card = read_model_card(folder / arm / "README.md")
            assert card.seeds == [1, 2] and (folder / arm / "confusion_matrix.png").exists()
            assert "time per run" in (folder / arm / "README.md").read_text()
            assert card.command[:4] == ["python", "-m", "baselines", "cell"]

    def test_finished_sweep_runs_nothing(self, recipe, stub):
        found = Sweep(Recipe(**recipe), Path("out"), stub).run()
        before, runs = records("out"), len(stub.runs)
        assert Sweep(Recipe(**recipe), Path("out"), stub).run() == found
        assert records("out") == before and len(stub.runs) == runs

    def test_the_mean_of_several_seeds_chooses(self, recipe, stub, monkeypatch):
        """Seed 1 alone would choose 0.02 for cross entropy; with seed 2 and 3, whose results are reversed, it is 0.001."""
        train = StubCell.train

        def reversed_later(cell, callbacks=None):
            training = train(cell)
            if cell.flags[-1] != "1":
                training["validation_metrics"] = {"f1_macro": 1 - training["validation_metrics"]["f1_macro"]}
            return training

        monkeypatch.setattr(StubCell, "train", reversed_later)
        recipe["seeds"] = [1, 2, 3, 4]
        rates = {}
        for seeds in (1, 3):
            Sweep(Recipe(**recipe, grid_seeds=seeds), Path("out"), stub).run()
            found = of_chosen_settings(records("out"))
            tested = [r for r in found if r["stage"] == "test" and r["arm"] == "cross entropy"]
            assert [r["seed"] for r in tested] == [1, 2, 3, 4]
            (rates[seeds],) = {r["choice"]["learning_rate"] for r in tested}
        assert rates == {1: 0.02, 3: 0.001}
        # 2 arms with 2 learning rates and 3 seeds, and with seed 4; with the other rate it was trained for the first sweep.
        assert Counter(run[0] for run in stub.runs)["train"] == 2 * (2 * 3 + 1) + 2

    def test_a_folder_with_results_of_other_flags(self, recipe, stub):
        Sweep(Recipe(**recipe), Path("out"), stub).run()
        before, runs = records("out"), len(stub.runs)
        others = {"weight_decay": "0.1", "learning_rate": "0.02"}
        message = (
            "out has results of other flags .*--learning_rate: None there, 0.02 here; --weight_decay: None there, 0.1"
        )
        with pytest.raises(ValueError, match=message):
            Sweep(Recipe(**recipe).with_flags(others), Path("out"), stub).run()
        assert len(stub.runs) == runs and records("out") == before

    def test_a_part_of_a_finished_sweep_leaves_tables_and_cards_of_the_whole(self, recipe, stub):
        run_baselines("sweep", saved(recipe))
        folder = Path("outputs/baselines/words")
        tables = (folder / "results.md").read_text()
        run_baselines("sweep", saved(recipe), "--arms", "focal, inverse alpha", "--seeds", "1", "2")
        assert (folder / "results.md").read_text() == tables
        with pytest.raises(ValueError, match="--seeds: the grid in .*words was trained with seed 1, .* name it first"):
            run_baselines("sweep", saved(recipe), "--seeds", "3")
        assert (folder / "results.md").read_text() == tables
        run_baselines("sweep", saved(recipe), "--seeds", "1", "3")
        assert "| focal, inverse alpha | lr 1e-3 | 3 |" in (folder / "results.md").read_text()
        assert read_model_card(folder / "focal_inverse_alpha/README.md").seeds == [1, 2, 3]

    def test_a_larger_grid_supersedes_what_was_chosen(self, recipe, stub):
        run_baselines("sweep", saved(recipe))
        tables = Path("outputs/baselines/words/results.md")
        assert "| cross entropy (baseline) | lr 2e-2 | 2 |" in tables.read_text()
        run_baselines("sweep", saved(recipe | {"grid": {"learning_rate": [0.02, 0.001, 0.03]}}))
        assert "| cross entropy (baseline) | lr 3e-2 | 2 |" in tables.read_text()
        assert "| focal, inverse alpha | lr 1e-3 | 2 |" in tables.read_text()
        chosen = [r["choice"] for r in records() if r["stage"] == "test" and r["arm"] == "cross entropy"]
        assert chosen == [{"learning_rate": 0.02}] * 2 + [{"learning_rate": 0.03}] * 2  # nothing is lost
        run_baselines("report", "outputs/baselines/words/results.jsonl")

    @pytest.mark.parametrize("changed", ["data", "versions"])
    def test_cells_of_other_data_or_versions_are_others(self, recipe, stub, monkeypatch, changed):
        first = Sweep(Recipe(**recipe), Path("out"), stub).run()
        before = records("out")
        if changed == "data":
            monkeypatch.setattr(stub, "fingerprint", "b2")
        else:
            monkeypatch.setattr(f"{__name__}.package_versions", lambda: {"torch": "3"})
        second = Sweep(Recipe(**recipe), Path("out"), stub).run()
        assert len(second) == len(first) and not any(record in first for record in second)
        assert records("out")[: len(before)] == before and len(stub.runs) == 20
        with pytest.raises(ValueError, match="data_fingerprint|versions"):
            run_baselines("report", "out/results.jsonl")

    def test_sweeps_of_different_flags_are_no_table(self, recipe, stub):
        for samples, arm in (("16", "cross entropy"), ("128", "focal, inverse alpha")):
            flags = ["--max_train_samples", samples, "--arms", arm, "--output_dir", samples]
            run_baselines("sweep", saved(recipe), *flags)
        Path("both.jsonl").write_text("".join(Path(f, "results.jsonl").read_text() for f in ("16", "128")))
        with pytest.raises(ValueError, match="shared_flags: expected .* as in the first record"):
            run_baselines("report", "both.jsonl")

    def test_data_that_change_while_it_runs(self, recipe, stub, monkeypatch):
        sweep = Sweep(Recipe(**recipe), Path("out"), stub)
        monkeypatch.setattr(stub, "fingerprint", "b2")
        with pytest.raises(ValueError, match="the data or installed packages changed while the sweep ran"):
            sweep.run()

    def test_lines_that_are_no_records(self, recipe, stub):
        Path("out").mkdir()
        Path("out/results.jsonl").write_text("null\n")
        with pytest.raises(ValueError, match="line 1: expected a record"):
            Sweep(Recipe(**recipe), Path("out"), stub).run()
        assert not stub.runs

    def test_of_a_loss_the_least_is_chosen(self, recipe, stub, monkeypatch):
        train = stub.train

        def with_loss(cell, callbacks=None):
            record = train(cell, callbacks)
            return record | {"validation_metrics": {"loss": record["validation_metrics"]["f1_macro"]}}

        monkeypatch.setattr(stub, "train", with_loss)
        found = Sweep(Recipe(**recipe, choose_by="loss"), Path("out"), stub).run()
        for arm, rate in zip(ARMS, (0.001, 0.02)):  # the other ones than of the F1 that this was
            tested = [r for r in found if r["stage"] == "test" and r["arm"] == arm]
            assert {r["choice"]["learning_rate"] for r in tested} == {rate}
            flags = tested[0]["flags"]
            assert flags[flags.index("--greater_is_better") + 1] == "false"

    def test_flags_of_the_command_win(self, recipe, stub):
        run_baselines("sweep", saved(recipe), "--learning_rate=0.3", "--seeds", 7, "--arms", "focal, inverse alpha")
        (record,) = records()
        assert record["flags"][-2:] == ["--seed", "7"] and record["choice"] == {}
        assert record["flags"][record["flags"].index("--learning_rate") + 1] == "0.3"

    def test_sweeps_share_a_folder(self, recipe, stub, monkeypatch):
        monkeypatch.setattr(stub, "seconds", 0.05)
        monkeypatch.setattr("baselines.sweep.time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100)))
        sweeps = [Sweep(Recipe(**recipe), Path("shared"), stub) for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            outcomes = [thread.result() for thread in [threads.submit(sweep.run) for sweep in sweeps]]
        assert [len(outcome) for outcome in outcomes] == [8, 8, 8]
        keys = Counter((record["stage"], *record["flags"]) for record in records("shared"))
        assert len(keys) == 8 and set(keys.values()) == {1}
        assert max(Counter(stub.runs).values()) == 1

    def test_a_torn_line_is_run_again(self, recipe, stub):
        sweep = Sweep(Recipe(**recipe), Path("torn"), stub)
        whole = sweep.run()
        lines = sweep.results.read_text().splitlines()
        sweep.results.write_text("\n".join([*lines[:-1], lines[-1][:50]]))
        assert Sweep(Recipe(**recipe), Path("torn"), stub).run() == whole
        assert sweep.results.read_text().splitlines()[-2:] == [lines[-1][:50], lines[-1]]


class TestNothingOfTheAuthor:
    def test_absolute_paths_and_secrets(self, recipe, stub):
        """Neither results nor cards, which people publish; two folders of one name are two models nevertheless."""
        here = Path.cwd()
        recipe["flags"] = {"train_file": here / "mine" / "train.csv", "hub_token": "tok_SECRET12345"}
        recipe["flags"] = {name: str(value) for name, value in recipe["flags"].items()}
        for owner in ("ann", "bob"):
            Sweep(Recipe(**recipe).with_flags({"model_name_or_path": f"/home/{owner}/model"}), Path("out"), stub).run()
        first, *_ = found = records("out")
        assert len(found) == 16 and len(stub.runs) == 20
        assert first["flags"][first["flags"].index("--train_file") + 1] == str(Path("mine/train.csv"))
        run_baselines("sweep", saved(recipe), "--output_dir", "out", "--model_name_or_path", "/home/ann/model")
        written = [path for path in Path("out").rglob("*") if path.suffix in (".jsonl", ".md")]
        assert len(written) == 4
        for file in written:
            assert not any(text in file.read_text() for text in (str(here), "/home", "ann", "SECRET"))
        assert "without their folders" in Path("out/cross_entropy/README.md").read_text()


class TestRecipe:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"arms": {}}, "arms: expected a dict with entries"),
            ({"seeds": [1, 1]}, "seeds: expected different ones"),
            ({"arms": {"a b": {}, "a-b": {}}}, "arms: expected names that differ"),
            ({"arms": {"1": {}, "-1": {}}}, "arms: expected names that differ"),
            ({"arms": {"Focal": {}, "focal": {}}}, "arms: expected names that differ"),
            ({"arms": {1: {}}}, "arms: expected names with a letter or digit"),
            ({"arms": {"..": {}}}, "arms: expected names with a letter or digit"),
            ({"arms": {"../../etc": {}, "cells": {}}}, "arms: expected names .* other than cells"),
            ({"arms": {"results.md": {}}}, "arms: expected names .* other than cells"),
            ({"arms": {"a" * 101: {}}}, "arms: expected names .* at most 100"),
            ({"arms": {"a": {"focal_alpha": "magic"}}}, "focal_alpha: expected none, one of"),
            ({"title": 2024}, "title, seeds: expected a text and whole numbers"),
            ({"seeds": ["1", "2"]}, "title, seeds: expected a text and whole numbers"),
            ({"grid": {"learning_rate": [0.02, 0.02]}}, "learning_rate: expected a list of different values"),
            ({"grid": {"learning_rate": "12"}}, "learning_rate: expected a list of different values"),
            ({"grid": {"learning_rate": []}}, "learning_rate: expected a list of different values"),
            ({"arms": {"a": None}}, "arms: expected a mapping of different flags"),
            (
                {"arms": {"a": {"loss": "focal"}, "b": {"loss": "focal"}}},
                "arms: expected a mapping of different flags",
            ),
            ({"flags": {"train_file": "a.csv", "seed": 3}}, "--seed: the recipe sets the seeds"),
            ({"flags": {"train_file": "a.csv", "metric_for_best_model": "accuracy"}}, "set choose_by in the recipe"),
            ({"flags": {"train-file": "a.csv"}}, "--train-file: not a flag of"),
            ({"flags": {"train_file": "a.csv", "learning_r": 1}}, "--learning_r: not a flag of"),
            ({"surprise": 1}, "recipe: expected the keys title, flags.* in words.yaml, but got 'surprise'"),
            ({"choose_by": "f1"}, "choose_by: expected one of accuracy.*, but got 'f1'"),
            ({"grid_seeds": 0}, "grid_seeds: expected a number of seeds, at least 1, but got 0"),
            ({"grid_seeds": [1, 2]}, "grid_seeds: expected a number of seeds"),
            ({"choose_by": ["f1_macro"]}, "choose_by: expected one of accuracy"),
            ({"along": {"learning_rate": [0.1, 0.2]}}, "--learning_rate: expected it in along or in grid"),
            ({"along": {"train_file": ["b.csv"]}}, "--train_file: expected it in along or in flags"),
            ({"along": {"loss": ["focal", "cross_entropy"]}}, "--loss: expected it in along or in arms"),
            ({"grid": {"loss": ["focal", "cross_entropy"]}}, "--loss: expected it in grid or in arms"),
            ({"grid": {"train_file": ["b.csv"]}}, "--train_file: expected it in grid or in flags"),
            ({"flags": {"num_train_epochs": -1}}, "--num_train_epochs: expected a number above 0, but got -1"),
            ({"flags": {"frozen_layers": -1}}, "--frozen_layers: expected at least 0, but got -1"),
            ({"flags": {"weight_decay": "much"}}, "^argument --weight_decay.*: invalid float value: 'much'$"),
        ],
    )
    def test_bad_recipe(self, recipe, change, message):
        with pytest.raises(ValueError, match=message):
            run_baselines("sweep", saved(recipe | change))
        assert not Path("outputs").exists()

    @pytest.mark.parametrize(
        "text, message",
        [
            ("title: [a", "recipe: words.yaml cannot be read as yaml: .*line 1"),
            ("- a", "recipe: expected words.yaml to be a mapping, but got \\['a'\\]"),
            ("title: a", "recipe: words.yaml has no flags, arms, seeds"),
        ],
    )
    def test_a_file_that_is_no_recipe(self, text, message):
        Path("words.yaml").write_text(text)
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            run_baselines("sweep", "words.yaml")

    def test_an_arm_of_a_curve_is_the_whole_curve(self, recipe):
        Path("curve.yaml").write_text(yaml.safe_dump(recipe | {"along": {"label_noise": [0, 0.2]}}))
        curve = Recipe.load(Path("curve.yaml"))
        chosen = curve.restricted_to(["focal, inverse alpha"], None)
        assert [*chosen.arms] == ["focal, inverse alpha, label_noise 0", "focal, inverse alpha, label_noise 0.2"]
        with pytest.raises(
            ValueError, match="expected some of .'cross entropy', 'focal, inverse alpha'., but got 'f'"
        ):
            curve.restricted_to(["f"], None)

    def test_unknown_flag(self, recipe):
        with pytest.raises(ValueError, match="learning_speed"):
            run_baselines("sweep", saved(recipe), "--learning_speed", "1")
        assert not Path("outputs").exists()

    def test_bad_command(self, recipe):
        with pytest.raises(ValueError, match="there is no file missing.yaml"):
            run_baselines("sweep", "missing.yaml")
        with pytest.raises(ValueError, match="--arms: expected some of .* but got 'focus'"):
            run_baselines("sweep", saved(recipe), "--arms", "focus")
        with pytest.raises(ValueError, match="--focal_alpha: the arms of the recipe set it"):
            run_baselines("sweep", saved(recipe), "--focal_alpha", "none")
        with pytest.raises(ValueError, match="pairs of --name and value"):
            run_baselines("sweep", saved(recipe), "--bf16")

    @pytest.mark.parametrize("path", sorted(EXAMPLES.glob("baselines/recipes/*.yaml")), ids=lambda path: path.stem)
    def test_recipes_of_this_repository(self, path):
        recipe = Recipe.load(path)
        assert len(recipe.arms) >= 4 and (recipe.along or "cross entropy" in next(iter(recipe.arms)))


@pytest.fixture
def words(recipe, model_folder):
    """A recipe that can be run: one arm and two seeds of a tiny model."""
    files = {f"{split}_file": write(single_label_data(), f"{split}.csv") for split in ("train", "validation", "test")}
    flags = {"model_name_or_path": model_folder, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    arms = {"focal, inverse alpha": {"focal_alpha": "inverse"}}
    return recipe | {"flags": flags | files | {"use_cpu": True}, "grid": {}, "arms": arms}


def test_killed_sweep_goes_on(words):
    words["flags"]["num_train_epochs"] = 10
    process = start_process(run_baselines, "sweep", saved(words))
    cells = Path("outputs/baselines/words/cells")
    wait_for(lambda: any(map(is_whole, cells.glob("*_seed_2_*/checkpoint-*/trainer_state.json"))), process)
    process.kill()
    process.join()
    assert len(records()) == 1
    (cell,) = cells.glob("*_seed_2_*")
    for name, state in {"checkpoint-998": None, "checkpoint-999": '{"epoch": 3'}.items():  # and torn checkpoints
        (cell / name).mkdir()
        if state is not None:
            (cell / name / "trainer_state.json").write_text(state)
    run_baselines("sweep", saved(words))
    assert [record["resumed"] for record in records()] == [False, True]
    assert "time per run" not in Path("outputs/baselines/words/focal_inverse_alpha/README.md").read_text()
    run_baselines("sweep", saved(words), "--output_dir", "again")
    for one, other in zip(records(), records("again"), strict=True):
        assert one["metrics"] == other["metrics"] and one["predictions"] == other["predictions"]


def test_two_sweeps_in_one_folder_of_which_one_is_killed(words):
    """The other one goes on where it was, and nothing is there twice."""
    words |= {"flags": words["flags"] | {"num_train_epochs": 10}, "seeds": [1, 2, 3]}
    first, second = [start_process(run_baselines, "sweep", saved(words)) for _ in range(2)]
    cells = Path("outputs/baselines/words/cells")
    wait_for(lambda: any(map(is_whole, cells.glob("*/checkpoint-*/trainer_state.json"))), first)
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0
    assert sorted(record["seed"] for record in records()) == [1, 2, 3]
    run_baselines("sweep", saved(words), "--output_dir", "again")
    of_seed = {record["seed"]: record for record in records()}
    for record in records("again"):
        assert record["predictions"] == of_seed[record["seed"]]["predictions"]


def is_whole(state: Path) -> bool:
    """Whether the state of a checkpoint, the last of its files, was written to its end."""
    try:
        return bool(json.loads(state.read_text()))
    except (json.JSONDecodeError, FileNotFoundError):  # an old checkpoint is removed meanwhile
        return False


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes(words):
    words["flags"] |= {"num_train_epochs": 1}
    words["seeds"] = [1]
    printed = "".join(run_in_two_processes(run_baselines, "sweep", saved(words)))
    (record,) = records()
    assert "processes: 2" in record["hardware"] and printed.count("(baseline)") == 2
