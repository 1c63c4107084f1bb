"""The baselines: recipes, cells and sweeps, their cards, and the verification of a card by running it again."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from test_examples import (  # noqa: F401
    EXAMPLES,
    in_an_empty_folder,
    model_folder,
    multi_label_data,
    run,
    single_label_data,
    write,
)

from hf_focal.model_card import read_model_card


SCRIPT = EXAMPLES / "run_baselines.py"
ARMS = {"cross entropy": {"loss": "cross_entropy"}, "focal, inverse alpha": {"focal_alpha": "inverse"}}


def words_recipe(model_folder):  # noqa: F811
    """Content of a recipe of 2 arms, 2 learning rates and 2 seeds: 6 trainings of a tiny model."""
    files = {f"{split}_file": write(single_label_data(), f"{split}.csv") for split in ("train", "validation", "test")}
    flags = {"model_name_or_path": model_folder, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    return {
        "title": "words",
        "flags": flags | files | {"use_cpu": True},
        "grid": {"learning_rate": [0.02, 0.001]},
        "seeds": [1, 2],
        "arms": ARMS,
    }


@pytest.fixture
def recipe(model_folder):  # noqa: F811
    return words_recipe(model_folder)


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):  # noqa: F811
    """A folder with the data and the results of one arm and two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(EXAMPLES)
        recipe = {**words_recipe(model_folder), "grid": {}}
        run("--config", saved(recipe), "--learning_rate", "0.01", "--arms", "focal, inverse alpha", script=SCRIPT)
    return folder


def saved(recipe: dict, name: str = "words.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    return name


def records(folder: str = "outputs/baselines/words") -> list[dict]:
    return [json.loads(line) for line in Path(folder, "results.jsonl").read_text().splitlines()]


class TestSweep:
    def test_grid_then_seeds_then_test_split(self, recipe, capsys):
        run("--config", saved(recipe), script=SCRIPT)
        found = records()
        stages = Counter((record["stage"], record["arm"], record["seed"]) for record in found)
        expected = {("validation", arm, 1): 2 for arm in ARMS} | {
            ("test", arm, seed): 1 for arm in ARMS for seed in (1, 2)
        }
        assert stages == expected
        for arm in ARMS:
            trials = [r for r in found if r["stage"] == "validation" and r["arm"] == arm]
            best = max(trials, key=lambda r: r["validation_metrics"]["f1_macro"])
            assert {r["choice"]["learning_rate"] for r in found if r["stage"] == "test" and r["arm"] == arm} == {
                best["choice"]["learning_rate"]
            }
            # What the grid has trained is not trained again, and gave no metric of the test split.
            assert all("metrics" not in trial for trial in trials)
            (tested,) = [r for r in found if r["stage"] == "test" and r["arm"] == arm and r["seed"] == 1]
            assert tested["wall_seconds"] == best["wall_seconds"] and tested["flags"] == best["flags"]
        printed = capsys.readouterr().out
        folder = Path("outputs/baselines/words")
        assert "| cross entropy (baseline) |" in printed and (folder / "results.md").read_text() in printed
        assert (folder / "results.png").stat().st_size > 1000
        for arm in ("cross_entropy", "focal_inverse_alpha"):
            card = read_model_card(folder / arm / "README.md")
            assert card.seeds == [1, 2] and (folder / arm / "confusion_matrix.png").exists()

    def test_record_holds_what_made_it(self, recipe):
        run("--config", saved(recipe), "--arms", "focal, inverse alpha", script=SCRIPT)
        record = records()[-1]
        assert record["focal_loss"]["gamma"] == 2 and record["label_counts"] == [2, 6, 12]
        assert record["versions"].keys() >= {"torch", "transformers", "hf_focal"}
        assert "threads of each" in record["hardware"] and record["wall_seconds"] > 0
        assert len(record["data_fingerprint"]) == 64 and record["label_names"] == ["chess", "money", "sport"]
        right = sum(a == b for a, b in zip(record["labels"], record["predictions"]))
        assert len(record["labels"]) == 20 and record["metrics"]["accuracy"] == pytest.approx(right / 20)

    def test_finished_sweep_runs_nothing(self, recipe, monkeypatch):
        import baseline_cell

        run("--config", saved(recipe), script=SCRIPT)
        before = records()
        monkeypatch.setattr(baseline_cell, "run", None)
        run("--config", saved(recipe), script=SCRIPT)
        assert records() == before
        # Another setting is another cell.
        with pytest.raises(TypeError, match="NoneType"):
            run("--config", saved(recipe), "--weight_decay", "0.1", script=SCRIPT)

    def test_killed_sweep_goes_on(self, recipe):
        recipe["flags"]["num_train_epochs"] = 10
        del recipe["grid"]
        command = [sys.executable, SCRIPT, "--config", saved(recipe), "--learning_rate", "0.01"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        cell = Path("outputs/baselines/words/cells/cross_entropy_seed_2")
        wait_for(lambda: list(cell.glob("checkpoint-*/trainer_state.json")), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        results = Path("outputs/baselines/words/results.jsonl")
        assert len(records()) == 1
        with results.open("a") as file:
            file.write('{"stage": "test", "fla')  # and a torn line
        for name, state in {"checkpoint-998": None, "checkpoint-999": '{"epoch": 3'}.items():  # and torn checkpoints
            (cell / name).mkdir()
            if state is not None:
                (cell / name / "trainer_state.json").write_text(state)
        run(*command[2:], script=SCRIPT)
        lines = results.read_text().splitlines()
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        assert len(lines) == 5 and [r["resumed"] for r in whole] == [False, True, False, False]
        cards = [results.parent / name / "README.md" for name in ("cross_entropy", "focal_inverse_alpha")]
        assert ["time of a run" in card.read_text() for card in cards] == [False, True]
        uninterrupted = subprocess.run([*command, "--output_dir", "again"], capture_output=True)
        assert uninterrupted.returncode == 0
        for one, other in zip(whole, records("again")):
            assert one["metrics"] == other["metrics"] and one["predictions"] == other["predictions"]

    def test_two_sweeps_share_a_folder(self, recipe):
        command = [sys.executable, SCRIPT, "--config", saved(recipe)]
        sweeps = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        outputs = [sweep.communicate() for sweep in sweeps]
        assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
        keys = Counter((record["stage"], *record["flags"]) for record in records())
        assert len(keys) == 8 and set(keys.values()) == {1}

    def test_same_command_gives_the_same_numbers_and_weights(self, recipe):
        from baseline_cell import Cell
        from baseline_sweep import Recipe

        flags = Recipe(**recipe).cell_flags("focal, inverse alpha", {"learning_rate": 0.01}, 1)
        first, second = (Cell(flags, Path(folder)).test() for folder in ("one", "two"))
        for name in ("metrics", "per_class", "predictions", "data_fingerprint", "best_epoch"):
            assert first[name] == second[name]
        weights = [load_file(f"{folder}/model.safetensors") for folder in ("one", "two")]
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
        # Another seed is another run, or equality would say nothing.
        Cell([*flags, "--seed", "2"], Path("three")).train()
        other = load_file("three/model.safetensors")
        assert any((weights[0][name] != other[name]).any() for name in other)

    def test_with_two_processes(self, recipe):
        recipe["flags"]["use_cpu"] = True
        del recipe["grid"]
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        result = subprocess.run([*launch, SCRIPT, "--config", saved(recipe)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        found = records()
        assert len(found) == 4 and all("processes: 2" in record["hardware"] for record in found)
        assert result.stdout.count("(baseline)") == 1

    def test_multi_label(self, recipe):
        files = {split: write(multi_label_data(), f"{split}.json") for split in ("train", "validation", "test")}
        recipe["flags"] |= {f"{split}_file": file for split, file in files.items()}
        recipe["arms"] = ARMS | {"asymmetric": {"loss": "cross_entropy", "rival": "asymmetric"}}
        recipe["seeds"] = [1]
        run("--config", saved(recipe), script=SCRIPT)
        tested = [record for record in records() if record["stage"] == "test"]
        assert len(tested) == 3 and all(len(record["focal_loss"]["thresholds"]) == 3 for record in tested)
        for record in tested:
            hits = sum(len({*a} & {*b}) for a, b in zip(record["labels"], record["predictions"]))
            total = sum(map(len, record["labels"])) + sum(map(len, record["predictions"]))
            assert record["metrics"]["f1_micro"] == pytest.approx(2 * hits / total)

    def test_prior_bias(self, recipe):
        from baseline_cell import Cell

        file = write(multi_label_data(), "data.json")
        flags = ["--model_name_or_path", recipe["flags"]["model_name_or_path"], "--train_file", file]
        flags += ["--validation_file", file, "--use_cpu", "--prior_bias", "true"]
        for rate in ("0", "0.01"):
            Cell([*flags, "--learning_rate", rate, "--num_train_epochs", "1"], Path(rate)).train()
        untouched, trained = (load_file(Path(rate, "model.safetensors"))["classifier.bias"] for rate in ("0", "0.01"))
        counts = torch.tensor([2.0, 6.0, 13.0])  # of 20 examples
        torch.testing.assert_close(untouched, torch.log((counts + 0.5) / (20 - counts + 0.5)))
        assert (trained != untouched).all()

    def test_prior_bias_of_classes_is_refused(self, recipe):
        recipe["flags"]["prior_bias"] = True
        with pytest.raises(ValueError, match="--prior_bias: expected several labels per example"):
            run("--config", saved(recipe), script=SCRIPT)

    def test_prior_bias_needs_a_head(self):
        from baseline_cell import PriorBias

        loader = SimpleNamespace(dataset=Dataset.from_dict({"labels": [[0, 1, 1], [1, 0, 0]]}))
        for model in (torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 4)):
            with pytest.raises(ValueError, match="--prior_bias: expected a model with a linear head with a bias"):
                PriorBias().on_train_begin(None, SimpleNamespace(global_step=0), None, model, loader)


class TestRecipe:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"arms": {}}, "arms: expected a dict with entries"),
            ({"seeds": [1, 1]}, "seeds: expected different ones"),
            ({"arms": {"a b": {}, "a-b": {}}}, "arms: expected names that differ"),
            ({"arms": {"a": {"focal_alpha": "magic"}}}, "focal_alpha: expected none, one of"),
            ({"surprise": 1}, "--config: expected a mapping with the keys title, flags"),
        ],
    )
    def test_bad_recipe(self, recipe, change, message):
        with pytest.raises(ValueError, match=message):
            run("--config", saved(recipe | change), script=SCRIPT)
        assert not Path("outputs").exists()

    def test_unknown_flag(self, recipe):
        with pytest.raises(ValueError, match="learning_speed"):
            run("--config", saved(recipe), "--learning_speed", "1", script=SCRIPT)
        assert not Path("outputs").exists()

    def test_bad_command(self, recipe):
        with pytest.raises(ValueError, match="there is no file missing.yaml"):
            run("--config", "missing.yaml", script=SCRIPT)
        with pytest.raises(ValueError, match="--arms: expected some of .* but got 'focus'"):
            run("--config", saved(recipe), "--arms", "focus", script=SCRIPT)
        with pytest.raises(ValueError, match="--focal_alpha: the arms of the recipe differ in it"):
            run("--config", saved(recipe), "--focal_alpha", "none", script=SCRIPT)
        with pytest.raises(ValueError, match="pairs of --name and value"):
            run("--config", saved(recipe), "--bf16", script=SCRIPT)

    @pytest.mark.parametrize("path", sorted((EXAMPLES / "baselines").glob("*.yaml")), ids=lambda path: path.stem)
    def test_recipes_of_this_repository(self, path):
        from baseline_sweep import Recipe

        recipe = Recipe.load(path)
        assert "cross entropy" in next(iter(recipe.arms)) and len(recipe.arms) >= 5


class TestVerify:
    @pytest.fixture
    def card(self, finished, in_an_empty_folder):  # noqa: F811
        shutil.copytree(finished, ".", dirs_exist_ok=True)
        return Path("outputs/baselines/words/focal_inverse_alpha/README.md")

    def verify(self, card, *flags):
        with pytest.raises(SystemExit) as stopped:
            run("--verify", card, *flags, script=SCRIPT)
        return stopped.value.code

    def test_card_is_reproduced_to_the_last_digit(self, card, capsys):
        before = sorted(Path().rglob("*"))
        assert self.verify(card) == 0
        printed = capsys.readouterr().out
        assert "python baseline_cell.py --model_name_or_path" in printed.splitlines()[0]
        assert "the same hardware and versions, tolerance 0: 0 differ" in printed
        assert self.verify(card, "--seeds", 2) == 0
        assert sorted(Path().rglob("*")) == before

    def edited(self, card, old, new):
        text = card.read_text()
        assert old in text
        card.write_text(text.replace(old, new))

    def test_number_edited_in_a_table(self, card):
        line = next(line for line in card.read_text().splitlines() if line.startswith("| Macro-F1"))
        self.edited(card, line, line.replace("0.", "0.9", 1))
        with pytest.raises(ValueError, match="no such line: . Macro-F1"):
            run("--verify", card, script=SCRIPT)

    def test_number_edited_everywhere(self, card, capsys):
        from hf_focal.model_card import write_model_card

        contents = read_model_card(card)
        contents.metrics["f1_macro"][0] -= 1e-9
        contents.per_class["chess"]["recall"][0] += 0.5
        write_model_card(card.parent, contents)
        assert self.verify(card) == 1
        printed = capsys.readouterr().out
        assert "| 'f1_macro' |" in printed and "| 'chess' 'recall' |" in printed and ": 2 differ" in printed
        assert self.verify(card, "--seeds", 2) == 0  # those numbers are of the first seed

    def test_other_versions_are_compared_within_the_tolerance(self, card, capsys):
        from hf_focal.model_card import write_model_card

        contents = read_model_card(card)
        contents.versions["torch"] = "1.0"
        contents.metrics["f1_macro"][0] -= 0.9 * contents.tolerance
        write_model_card(card.parent, contents)
        assert self.verify(card) == 0
        contents.metrics["f1_macro"][0] -= 0.2 * contents.tolerance
        write_model_card(card.parent, contents)
        assert self.verify(card) == 1

    def test_unstable_runs_are_compared_more_loosely_on_another_machine(self, card):
        from hf_focal.model_card import write_model_card

        contents = read_model_card(card)
        contents.hardware, contents.seeds, contents.wall_seconds = "another", [1, 2, 3], []
        for metrics in (contents.metrics, *contents.per_class.values()):
            for values in metrics.values():
                values.append(values[1])
        found = contents.metrics["f1_macro"][0]
        contents.metrics["f1_macro"][1:] = [0.2, 0.5]
        for off, exit_status in ((0.29, 0), (0.31, 1)):  # its own number does not widen what is allowed
            contents.metrics["f1_macro"][0] = found - off
            write_model_card(card.parent, contents)
            assert self.verify(card, "--seeds", 1) == exit_status

    def test_few_examples_are_compared_more_loosely_on_another_machine(self, card, capsys):
        from hf_focal.model_card import write_model_card

        contents = read_model_card(card)
        contents.hardware = "another"
        supports = {label: by_name["support"][0] for label, by_name in contents.per_class.items()}
        for label, metrics in contents.per_class.items():
            metrics["recall"][0] += 0.99 * supports[label] ** -0.5
        write_model_card(card.parent, contents)
        assert self.verify(card) == 0
        contents.per_class["chess"]["recall"][0] += 0.02 * supports["chess"] ** -0.5
        write_model_card(card.parent, contents)
        assert self.verify(card) == 1
        assert "| 'chess' 'recall' |" in (printed := capsys.readouterr().out) and ": 1 differ" in printed

    def test_card_of_the_script(self, model_folder, in_an_empty_folder, capsys, monkeypatch):  # noqa: F811
        from hf_focal.model_card import write_model_card

        files = [part for split in ("train", "validation") for part in (f"--{split}_file", f"{split}.csv")]
        for file in files[1::2]:
            write(single_label_data(), file)
        flags = ["--model_name_or_path", model_folder, *files, "--use_cpu", "--learning_rate", "0.01", "--seed", "5"]
        flags += "--do_train --do_eval --num_train_epochs 2 --load_best_model_at_end --output_dir out".split()
        flags += "--eval_strategy epoch --save_strategy epoch".split()
        command = ["python", "examples/run_text_classification.py", *flags]
        monkeypatch.setattr(sys, "orig_argv", command)
        run(*flags)
        card = Path("out/README.md").rename("README.md")
        shutil.rmtree("out")
        contents = read_model_card(card)
        assert contents.command == command and contents.seeds == [5]

        # Publishing is left out.
        contents.command += ["--push_to_hub", "--hub_model_id", "me/words"]
        write_model_card(Path(), contents)
        assert self.verify(card) == 0
        printed = capsys.readouterr().out
        assert "the same hardware and versions, tolerance 0: 0 differ" in printed
        assert "Runs in a temporary folder: python run_text_classification.py" in printed and not Path("out").exists()

        contents.command += ["--learning_rate", "0.03"]
        write_model_card(Path(), contents)
        assert self.verify(card) == 1

    def test_other_data(self, card, capsys):
        write(single_label_data({"sport": 12, "money": 6, "chess": 3}), "validation.csv")
        assert self.verify(card) == 1
        assert "| data fingerprint |" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "command, message",
        [
            (["sh", "-c", "touch pwned"], "expected python, one of baseline_cell.py and"),
            (["python", "evil.py"], "expected python, one of baseline_cell.py and"),
            (["python", "-c", "open('pwned', 'w')"], "expected python, one of baseline_cell.py and"),
            (["python", "baseline_cell.py", "--output_dir", "pwned"], "'--output_dir' is no flag"),
            (["python", "baseline_cell.py", "--output-dir=pwned"], "'--output-dir' is no flag"),
            (["python", "baseline_cell.py", "--output", "pwned"], "'--output' is no flag"),
            (["python", "baseline_cell.py", "--push_to_hub"], "'--push_to_hub' is no flag"),
            (["python", "baseline_cell.py", "--deepspeed", "pwned.json"], "'--deepspeed' is no flag"),
            (["python", "baseline_cell.py", "--resume_from_checkpoint", "pwned"], "is no flag"),
            (["python", "baseline_cell.py", "--seed", "x; touch pwned"], "expected flags of baseline_cell.py"),
            (["python", "baseline_cell.py", "--rival", "$(touch pwned)"], "--rival|expected flags"),
            (["python", "baseline_cell.py", "pwned.json"], "expected flags of baseline_cell.py"),
            (["python", "run_text_classification.py", "--deepspeed", "pwned.json"], "'--deepspeed' is no flag"),
            (["python", "run_text_classification.py", "pwned.json"], "expected flags of run_text_classification.py"),
            (["python", "-u", "run_text_classification.py"], "expected python, one of"),
        ],
    )
    def test_a_card_cannot_run_anything_else(self, card, command, message):
        from hf_focal.model_card import write_model_card

        contents = read_model_card(card)
        contents.command = command
        write_model_card(card.parent, contents)
        with pytest.raises(ValueError, match=message):
            run("--verify", card, script=SCRIPT)
        assert not Path("pwned").exists()

    def test_command_line(self, card):
        with pytest.raises(ValueError, match="expected one of the card's seeds"):
            run("--verify", card, "--seeds", 7, script=SCRIPT)
        with pytest.raises(ValueError, match="expected nothing else"):
            run("--verify", card, "--learning_rate", 0.1, script=SCRIPT)
        with pytest.raises(ValueError, match="expected a model card"):
            run("--verify", "missing.md", script=SCRIPT)


class TestValidationSplit:
    def split(self, data, share=0.2, label="label"):
        from baseline_data import cut_validation
        from text_data import DataArguments

        splits = DatasetDict(train=Dataset.from_pandas(data, preserve_index=False))
        return cut_validation(splits, DataArguments(label_column_name=label), share)

    def test_each_class_gives_its_share_and_none_its_last_text(self):
        data = single_label_data({"sport": 50, "money": 10, "chess": 2})
        data["text"] += [f" {i}" for i in range(len(data))]
        splits = self.split(data)
        assert Counter(splits["validation"]["label"]) == {"sport": 10, "money": 2}
        assert Counter(splits["train"]["label"]) == {"sport": 40, "money": 8, "chess": 2}
        assert self.split(data)["validation"]["text"] == splits["validation"]["text"]

    def test_texts_that_occur_twice_are_on_one_side(self):
        splits = self.split(single_label_data({"sport": 50, "money": 10}), share=0.3)
        assert not {*splits["train"]["text"]} & {*splits["validation"]["text"]}
        assert len(splits["train"]) + len(splits["validation"]) == 60 and len(splits["validation"]) > 0

    def test_multi_label(self):
        rows = [(f"text {i}", ["common"] + ["rare"] * (i % 10 == 0)) for i in range(50)]
        splits = self.split(
            Dataset.from_dict({"text": [r[0] for r in rows], "label": [r[1] for r in rows]}).to_pandas()
        )
        counts = Counter(label for labels in splits["validation"]["label"] for label in labels)
        assert counts["common"] == 10 and counts["rare"] <= 1

    def test_share_and_split_exclude_each_other(self, recipe):
        with pytest.raises(ValueError, match="--validation_share: there is a validation split already"):
            run("--config", saved(recipe), "--validation_share", "0.1", script=SCRIPT)
        del recipe["flags"]["validation_file"]
        with pytest.raises(ValueError, match="--validation_share: expected a share"):
            run("--config", saved(recipe), script=SCRIPT)


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
