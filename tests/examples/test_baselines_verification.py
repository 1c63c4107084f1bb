"""The verification of a card by running it again: what is compared how closely, and that a card can do no harm."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from baselines.recipe import Recipe
from baselines.records import read_records
from baselines.verification import card_command
from toy_texts import EXAMPLES, run, run_baselines, single_label_data, write

from hf_focal.model_card import read_model_card, write_model_card


pytestmark = pytest.mark.usefixtures("without_drawing")


CARD = Path("outputs/baselines/words/focal_inverse_alpha/README.md")


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A folder with the data and the results of one arm and two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        splits = ("train", "validation", "test")
        files = {f"{split}_file": write(single_label_data(), f"{split}.csv") for split in splits}
        shutil.copytree(model_folder, "model")
        flags = {"model_name_or_path": "model", "num_train_epochs": 2, "per_device_train_batch_size": 4}
        arms = {"cross entropy": {"loss": "cross_entropy"}, "focal, inverse alpha": {"focal_alpha": "inverse"}}
        recipe = {"title": "words", "flags": flags | files | {"use_cpu": True}, "seeds": [1, 2], "arms": arms}
        Path("words.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        run_baselines("sweep", "words.yaml", "--learning_rate", "0.01", "--arms", "focal, inverse alpha")
    return folder


@pytest.fixture
def card(finished, in_an_empty_folder):
    shutil.copytree(finished, ".", dirs_exist_ok=True)
    return CARD


@pytest.fixture
def remembered(finished, monkeypatch):
    """What the cells have come to is remembered rather than run again."""

    @dataclass
    class RememberedCell:
        flags: list[str]
        folder: Path
        use_safetensors: bool

        def test(self):
            seed = int(self.flags[-1])
            return next(
                record
                for record in read_records(finished / CARD.parents[1] / "results.jsonl")
                if record["seed"] == seed
            )

    monkeypatch.setattr("baselines.verification.Cell", RememberedCell)


def verify(card, *flags):
    with pytest.raises(SystemExit) as stopped:
        run_baselines("verify", card, *flags)
    return stopped.value.code


def rewritten(card, **changes):
    contents = read_model_card(card)
    for name, value in changes.items():
        setattr(contents, name, value)
    return write_model_card(card.parent, contents)


def test_card_is_reproduced_to_the_last_digit(card, capsys):
    before = sorted(Path().rglob("*"))
    assert verify(card, "--seed", 2) == 0
    printed = capsys.readouterr().out
    assert "python -m baselines cell --model_name_or_path" in printed.splitlines()[0]
    assert "The same to the last digit: " in printed and "the same hardware and versions" in printed
    assert sorted(Path().rglob("*")) == before


def test_other_data(card, capsys):
    write(single_label_data({"sport": 12, "money": 6, "chess": 3}), "validation.csv")
    assert verify(card) == 4
    assert "Not comparable: the data, " in capsys.readouterr().out


def test_card_of_the_script(model_folder, capsys, monkeypatch):
    files = [part for split in ("train", "validation") for part in (f"--{split}_file", f"{split}.csv")]
    for file in files[1::2]:
        write(single_label_data(), file)
    flags = ["--model_name_or_path", os.path.relpath(model_folder), *files, "--use_cpu", "--learning_rate", "0.01"]
    flags += ["--seed", "5"]
    flags += "--do_train --do_eval --num_train_epochs 2 --load_best_model_at_end --output_dir out".split()
    flags += "--eval_strategy epoch --save_strategy epoch --operating_point balanced".split()
    command = ["python", "examples/run_text_classification.py", *flags]
    monkeypatch.setattr(sys, "orig_argv", command)
    run("run_text_classification.py", *flags)
    card = Path("out/README.md").rename("README.md")
    shutil.rmtree("out")
    contents = read_model_card(card)
    assert contents.command == command and contents.seeds == [5]

    # Publishing is left out.
    rewritten(card, command=[*command, "--push_to_hub", "--hub_model_id", "me/words"])
    assert verify(card) == 0
    printed = capsys.readouterr().out
    assert "The same to the last digit: " in printed
    assert "Running in a temporary folder: python run_text_classification.py" in printed and not Path("out").exists()

    points = {name: dict(metrics) for name, metrics in contents.operating_points.items()}
    value, low, high = points["most_likely"]["accuracy"]
    points["most_likely"]["accuracy"] = [value, low, high + 1e-9]
    rewritten(card, command=command, operating_points=points)
    assert verify(card) == 1 and "most_likely, accuracy, high" in capsys.readouterr().out

    rewritten(card, command=[*command, "--learning_rate", "0.03"], operating_points=contents.operating_points)
    assert verify(card) == 1


@pytest.mark.usefixtures("remembered")
class TestComparison:
    def test_seeds(self, card, capsys):
        assert verify(card) == 0 and "--seed 1" in capsys.readouterr().out.splitlines()[0]
        assert verify(card, "--seed", 2) == 0

    def test_number_edited_in_a_table(self, card):
        text = card.read_text()
        line = next(line for line in text.splitlines() if line.startswith("| Macro-F1"))
        card.write_text(text.replace(line, line.replace("0.", "0.9", 1)))
        with pytest.raises(ValueError, match="expected the line '. Macro-F1"):
            run_baselines("verify", card)

    def test_number_edited_everywhere(self, card, capsys):
        contents = read_model_card(card)
        contents.metrics["f1_macro"][0] -= 1e-9
        contents.per_class["chess"]["recall"][0] += 0.5
        write_model_card(card.parent, contents)
        assert verify(card) == 1
        printed = capsys.readouterr().out
        assert "| 'f1_macro' |" in printed and "| 'chess' 'recall' |" in printed and ": 2 differences" in printed
        assert verify(card, "--seed", 2) == 0  # those numbers are of the first seed

    def test_other_versions_are_compared_within_the_tolerance(self, card):
        contents = read_model_card(card)
        contents.versions["torch"] = "1.0"
        write_model_card(card.parent, contents)
        assert verify(card) == 0
        contents.metrics["f1_macro"][0] -= 0.9 * contents.tolerance
        write_model_card(card.parent, contents)
        assert verify(card) == 3
        contents.metrics["f1_macro"][0] -= 0.2 * contents.tolerance
        write_model_card(card.parent, contents)
        assert verify(card) == 1

    def test_unstable_runs_are_compared_more_loosely_on_another_machine(self, card):
        contents = read_model_card(card)
        contents.hardware, contents.seeds, contents.wall_seconds = "another", [1, 2, 3], []
        for metrics in (contents.metrics, *contents.per_class.values()):
            for values in metrics.values():
                values.append(values[1])
        found = contents.metrics["f1_macro"][0]
        contents.metrics["f1_macro"][1:] = [0.2, 0.3]
        for off, exit_status in ((0.09, 3), (0.11, 1)):  # its own number does not widen what is allowed
            contents.metrics["f1_macro"][0] = found - off
            write_model_card(card.parent, contents)
            assert verify(card, "--seed", 1) == exit_status

    def test_few_examples_are_compared_more_loosely_on_another_machine(self, card, capsys):
        contents = read_model_card(card)
        contents.hardware = "another"
        supports = {label: by_name["support"][0] for label, by_name in contents.per_class.items()}
        for label, metrics in contents.per_class.items():
            metrics["recall"][0] += 0.99 * supports[label] ** -0.5
        write_model_card(card.parent, contents)
        assert verify(card) == 3
        contents.per_class["chess"]["recall"][0] += 0.02 * supports["chess"] ** -0.5
        write_model_card(card.parent, contents)
        assert verify(card) == 1
        assert "| 'chess' 'recall' |" in (printed := capsys.readouterr().out) and ": 1 differences" in printed

    def test_a_card_cannot_ask_for_more_than_the_code_knows(self, card, capsys):
        contents = read_model_card(card)
        contents.hardware, contents.tolerance = "another", 1e9
        found = contents.metrics["f1_macro"][0]
        contents.metrics["f1_macro"][0] = found - 0.2
        write_model_card(card.parent, contents)
        assert verify(card) == 1
        contents.tolerance, contents.seeds, contents.wall_seconds = 0.05, [1, 2, 3], []
        for metrics in (contents.metrics, *contents.per_class.values()):
            for values in metrics.values():
                values.append(values[1])
        contents.metrics["f1_macro"] = [found - 0.5, 0.0, 1.0]
        write_model_card(card.parent, contents)
        assert verify(card) == 1

    def test_a_card_without_results_verifies_nothing(self, card, capsys):
        rewritten(card, metrics={}, per_class={}, operating_points={})
        assert verify(card) == 4 and "Not comparable: the card has no results" in capsys.readouterr().out

    def test_a_seed_counts_once(self, card):
        with pytest.raises(ValueError, match="seeds: expected at least one, each once"):
            replace(read_model_card(card), seeds=[1, 1])


CELL = ["python", "-m", "baselines", "cell"]


@pytest.mark.parametrize(
    "command, message",
    [
        (["sh", "-c", "touch pwned"], "expected `python -m baselines cell` or `python run_text_classification.py`"),
        (["python", "evil.py"], "expected `python -m baselines cell` or"),
        (["python", "-c", "open('pwned', 'w')"], "expected `python -m baselines cell` or"),
        (["python", "-m", "baselines", "sweep", "evil.yaml"], "expected `python -m baselines cell` or"),
        (["python", "-m", "baselines"], "expected `python -m baselines cell` or"),
        (["python", "baseline_cell.py"], "expected `python -m baselines cell` or"),
        (["python", "-u", "run_text_classification.py"], "expected `python -m baselines cell` or"),
        ([], "expected `python -m baselines cell` or"),
        ([*CELL, "--output_dir", "pwned"], "'--output_dir' is not a flag"),
        ([*CELL, "--output-dir=pwned"], "'--output-dir' is not a flag"),
        ([*CELL, "--output", "pwned"], "'--output' is not a flag"),
        ([*CELL, "--push_to_hub"], "'--push_to_hub' is not a flag"),
        ([*CELL, "--deepspeed", "pwned.json"], "'--deepspeed' is not a flag"),
        ([*CELL, "--resume_from_checkpoint", "pwned"], "is not a flag"),
        ([*CELL, "--seed", "x; touch pwned"], "expected flags of `python -m baselines cell`"),
        ([*CELL, "--rival", "$(touch pwned)"], "--rival|expected flags"),
        ([*CELL, "pwned.json"], "expected flags of `python -m baselines cell`"),
        (["python", "run_text_classification.py", "--deepspeed", "pwned.json"], "'--deepspeed' is not a flag"),
        (["python", "run_text_classification.py", "pwned.json"], "expected flags of `python run_text"),
    ],
)
def test_a_card_cannot_run_anything_else(card, command, message):
    rewritten(card, command=command)
    with pytest.raises(ValueError, match=message):
        run_baselines("verify", card)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("baselines/recipes/*.yaml")), ids=lambda path: path.stem)
def test_cards_of_all_recipes_can_be_verified(path):
    recipe = replace(Recipe.load(path), choose_by="negative_log_likelihood")  # adds --greater_is_better
    flags = recipe.flags | {name: value for arm_flags in recipe.arms.values() for name, value in arm_flags.items()}
    command = replace(recipe, arms={"all flags": flags}).cell_flags("all flags", recipe.choices[0], seed=1)
    assert card_command([*CELL, *command])[1] == command


@pytest.mark.parametrize("command", [CELL, ["python", "run_text_classification.py"]])
def test_a_card_may_say_how_its_file_is_read(command):
    flags = ["--train_file", "a.csv", "--delimiter", ";", "--encoding", "cp1250"]
    assert card_command([*command, *flags])[1] == flags


def test_the_code_of_a_model_is_not_run(card, monkeypatch):
    contents = read_model_card(card)
    Path("evil").mkdir()
    Path("evil/code.py").write_text("open('pwned', 'w')")
    of_code = {
        "AutoConfig": "code.C",
        "AutoModelForSequenceClassification": "code.M",
        "AutoTokenizer": ["code.T", None],
    }
    Path("evil/config.json").write_text(json.dumps({"model_type": "evil", "auto_map": of_code}))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asks"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    at = contents.command.index("--model_name_or_path") + 1
    rewritten(card, command=[*contents.command[:at], "evil", *contents.command[at + 1 :]])
    with pytest.raises(ValueError, match="trust_remote_code"):
        run_baselines("verify", card)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"num_examples": 1_000_000},
        {"base_model": "meta-llama/Llama-3-70B"},
        {"dataset_split": "hidden"},
        {"dataset_id": "imagenet"},
        {"gamma": 5.0},
        {"alpha": [1.0, 2.0, 3.0]},
        {"label_counts": [20, 60, 120]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_a_card_says_of_data_model_and_settings_is_compared(card, changed, remembered, capsys):
    contents = read_model_card(card)
    settings = {name: value for name, value in changed.items() if name in ("gamma", "alpha", "label_counts")}
    others = {name: value for name, value in changed.items() if name not in settings}
    rewritten(card, settings=replace(contents.settings, **settings), **others)
    assert verify(card) == 1
    printed = capsys.readouterr().out
    assert f"| {next(iter(others), 'settings')} |" in printed
    assert ": 1 differences" in printed and "seed 1, one of 2 of the card" in printed


def with_model(card, model):
    contents = read_model_card(card)
    at = contents.command.index("--model_name_or_path") + 1
    return rewritten(card, command=[*contents.command[:at], model, *contents.command[at + 1 :]])


class Evil:
    def __reduce__(self):
        return open, ("pwned", "w")


def test_weights_that_could_be_code_are_not_loaded(card, model_folder):
    shutil.copytree(model_folder, "evil")
    Path("evil/model.safetensors").unlink()
    torch.save({"weight": Evil()}, "evil/pytorch_model.bin")
    with_model(card, "evil")
    with pytest.raises(OSError, match="safetensors"):
        run_baselines("verify", card)
    shutil.copytree(model_folder, "adapter")
    Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil"}))
    with_model(card, "adapter")
    with pytest.raises(ValueError, match="adapter is an adapter, which names another model"):
        run_baselines("verify", card)
    assert not Path("pwned").exists()


def test_a_dataset_with_a_script_is_not_run(card):
    contents = read_model_card(card)
    Path("words").mkdir()
    Path("words/words.py").write_text("open('pwned', 'w')")
    at = contents.command.index("--train_file")
    rewritten(card, command=[*contents.command[:at], "--dataset_name", "words", *contents.command[at + 6 :]])
    with pytest.raises(ValueError, match="--dataset_name: words cannot be read: Dataset scripts"):
        run_baselines("verify", card)
    assert not Path("pwned").exists()


def test_what_is_read_elsewhere_is_shown_first(card, capsys, monkeypatch):
    """Also where nothing comes of it."""
    monkeypatch.setattr("baselines.verification.Cell", lambda *args, **options: pytest.exit("reads"))
    with pytest.raises(pytest.exit.Exception):
        run_baselines("verify", card)
    printed = capsys.readouterr().out
    assert f"Reads from outside the folder of the card: {Path('train.csv').resolve()}\n" in printed
    shutil.copy("train.csv", card.parent)
    contents = read_model_card(card)
    own = [str(card.parent / part) if part == "train.csv" else part for part in contents.command]
    rewritten(card, command=own)
    with pytest.raises(pytest.exit.Exception):
        run_baselines("verify", card)
    printed = capsys.readouterr().out
    assert str(Path("train.csv").resolve()) not in printed and "validation.csv" in printed
    with_model(card, "some/model\x1b[2J")
    with pytest.raises(pytest.exit.Exception):
        run_baselines("verify", card)
    printed = capsys.readouterr().out
    assert "Reads from the Hub or from an installed package: some/model\n" in printed and "\x1b" not in printed


@pytest.mark.parametrize("command", [CELL, ["python", "run_text_classification.py"]])
def test_a_card_may_set_all_that_makes_the_loss(command):
    flags = "--focal_gamma 1 --focal_gamma_neg 4 --focal_margin 0.05 --focal_alpha inverse --focal_alpha_max_ratio 9"
    flags = [*flags.split(), "--focal_alpha_empty_weight", "1", "--focal_prior_bias", "true", "--dataset_name", "x"]
    assert card_command([*command, *flags])[1] == flags


def test_what_is_read_by_a_name_in_a_folder_is_shown(card, model_folder, capsys, monkeypatch):
    monkeypatch.setattr("baselines.verification.Cell", lambda *args, **options: pytest.exit("reads"))
    Path("private").mkdir()
    shutil.copy("train.csv", "private/secret.csv")
    data = card.parent / "data"
    data.mkdir()
    (data / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {Path('private/secret.csv').resolve()}\n---\n"
    )
    shutil.copytree(model_folder, card.parent / "model")
    (card.parent / "model/tokenizer.json").unlink()
    (card.parent / "model/tokenizer.json").symlink_to(Path("model/tokenizer.json").resolve())
    (card.parent / "model/model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../../private.safetensors"}}'
    )
    with_model(card, str(card.parent / "model"))
    contents = read_model_card(card)
    at = contents.command.index("--train_file")
    rewritten(card, command=[*contents.command[:at], "--dataset_name", str(data), *contents.command[at + 6 :]])
    with pytest.raises(pytest.exit.Exception):
        run_baselines("verify", card)
    printed = capsys.readouterr().out
    for path in ("private/secret.csv", "model/tokenizer.json"):
        assert re.search(rf"Reads, as .* refers to it: {re.escape(str(Path(path).resolve()))}\n", printed)
    assert "private.safetensors" in printed


def test_attention_of_the_hub_is_not_run(card, model_folder):
    shutil.copytree(model_folder, "evil")
    config = json.loads(Path("evil/config.json").read_text())
    Path("evil/config.json").write_text(json.dumps(config | {"attn_implementation": "evil/kernel"}))
    with_model(card, "evil")
    with pytest.raises(ValueError, match="the attention of evil would be code from the Hub"):
        run_baselines("verify", card)


def test_streams_are_plain(capsys):
    from baselines.plain_streams import plain_streams

    with plain_streams():
        print("a\x1b[2J\u202eb\rc", "d  e", sep="\n")
        print("\u200bf\x9b31m", file=sys.stderr)
    assert capsys.readouterr() == ("a b c\nd  e\n", "f\n")


def test_a_crash_is_no_verdict(card, model_folder):
    """In a process of its own: a traceback would exit with 1, which says that the numbers are others."""
    shutil.copytree(model_folder, "evil")
    config = json.loads(Path("evil/config.json").read_text())
    Path("evil/config.json").write_text(json.dumps(config | {"hidden_act": "no\x1b[2Jsuch"}))
    with_model(card, "evil")
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent}"}
    command = [sys.executable, "-m", "baselines", "verify", str(card)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "Error" in result.stderr and "\x1b" not in result.stdout + result.stderr


def test_command_line(card, capsys):
    with pytest.raises(ValueError, match="expected one of the card's seeds"):
        run_baselines("verify", card, "--seed", 7)
    assert verify(card, "--learning_rate", 0.1) == 2
    with pytest.raises(ValueError, match="expected one of the card's seeds"):
        run_baselines("--verify", card, "--seed", 7)
    assert "unrecognized arguments: --learning_rate" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected a model card"):
        run_baselines("verify", "missing.md")


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("baselines/results/*/*/README.md")), ids=lambda path: "/".join(path.parts[-3:-1])
)
def test_commands_of_the_cards_of_this_repository_may_be_run(path):
    entry, flags = card_command(read_model_card(path).command)
    assert entry.startswith("python -m baselines cell") and flags
