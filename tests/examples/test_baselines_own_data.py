"""From a csv to a model that decides, with one command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from data.labelled_texts import DataArguments
from datasets import Dataset
from toy_texts import WORDS, multi_label_data, python_in, run_baselines, single_label_data, write
from transformers import AutoConfig

from hf_focal.model_card import read_model_card


# Of a few texts that a model has learned by heart.
pytestmark = [
    pytest.mark.filterwarnings("ignore:labels. (all predictions|the likelihood)"),
    pytest.mark.usefixtures("without_drawing"),
]


def numbered(data, times=4):
    """Distinct texts: the words of a class, and a number."""
    rows = pd.concat([data] * times, ignore_index=True)
    rows["text"] = [f"{text} {WORDS['sport'][k % 3]} number{k}" for k, text in enumerate(rows["text"])]
    return rows


@pytest.fixture
def quick(monkeypatch):
    """One epoch of one learning rate."""
    from baselines import own_data

    plan = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 64,
        "use_cpu": "true",
    }
    said = {"flags": plan, "learning_rates": [0.01], "num_seeds": 1, "said": "Plan: little"}
    monkeypatch.setattr(own_data, "_plan", lambda common, arguments: said)


def test_from_a_file_to_a_model(model_folder, capsys, quick):
    data = numbered(multi_label_data())
    file = write(data, "mine.json")
    flags = ["--train_file", file, "--model_name_or_path", model_folder, "--max_seq_length", "8"]
    run_baselines(*flags)
    printed = capsys.readouterr().out
    splits = {
        split: Dataset.from_parquet(f"outputs/mine/data/{split}.parquet") for split in ("train", "validation", "test")
    }
    texts = [text for split in splits.values() for text in split["text"]]
    assert sorted(texts) == sorted(data["text"]) and len({*texts}) == len(texts)
    assert (
        f"Examples, of all classes and of each: train {len(splits['train'])}" in printed
        and "  sport: train " in printed
    )
    assert all(arm in printed for arm in ("cross entropy (baseline)", "weighted cross entropy", "square-root alpha"))
    assert printed.count("Recommended: ") == 1
    assert (Path("outputs/mine/model") / "model.safetensors").exists()
    card = read_model_card("outputs/mine/model/README.md")
    assert (card.dataset_split, card.num_examples) == ("test", len(splits["test"]))
    exec(python_in(printed), {})
    records = [json.loads(line) for line in Path("outputs/mine/results.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == ["test"] * 4
    # What has been done is not done again, and no checkpoint takes room.
    written = Path("outputs/mine/model/model.safetensors").stat().st_mtime_ns
    run_baselines(*flags)
    assert Path("outputs/mine/model/model.safetensors").stat().st_mtime_ns == written
    assert not [*Path("outputs/mine/model").glob("checkpoint-*")]
    assert len(Path("outputs/mine/results.jsonl").read_text().splitlines()) == 4


def test_a_wanted_precision_is_handed_on(model_folder, quick):
    data = numbered(single_label_data({"sport": 12, "money": 6}))
    data.loc[::9, "label"] = "money"
    flags = ["--train_file", write(data, "mine.csv"), "--model_name_or_path", model_folder, "--max_seq_length", "8"]
    save = tmp_model_of_two(model_folder)
    run_baselines(
        *flags[:2], "--model_name_or_path", save, *flags[4:], "--wanted_recall", "0.8", "--output_dir", "out"
    )
    record = AutoConfig.from_pretrained("out/model").focal_loss
    assert record["threshold_criterion"] == "recall 0.8" and record["operating_point"] == "thresholds"


def tmp_model_of_two(folder):
    from toy_texts import save_toy_model

    return save_toy_model(Path("model_of_two"), num_labels=2)


def test_what_is_wrong_is_said(model_folder):
    with pytest.raises(ValueError, match="--train_file: expected the file with the training data"):
        run_baselines("--minutes", "3")
    with pytest.raises(ValueError, match="--minutes: expected a number above 0"):
        run_baselines("--train_file", "a.csv", "--minutes", "0")
    with pytest.raises(ValueError, match="not used by the HfArgumentParser.*--learning_rate"):
        run_baselines("--train_file", "a.csv", "--learning_rate", "1")
    file = write(single_label_data({"sport": 2, "money": 2}), "mine.csv")
    with pytest.raises(ValueError, match="--test_file: required, as there are too few training data to split off 20%"):
        run_baselines("--train_file", file, "--model_name_or_path", model_folder)


def test_nothing_is_trained_for_what_cannot_be_decided(model_folder, capsys):
    file = write(numbered(single_label_data()), "mine.csv")
    with pytest.raises(ValueError, match="--wanted_precision: thresholds are for two classes or several labels"):
        run_baselines("--train_file", file, "--model_name_or_path", model_folder, "--wanted_precision", "0.9")
    assert not Path("outputs/mine/results.jsonl").exists()


def test_a_folder_of_other_data_is_not_gone_on_with(model_folder, quick, capsys):
    from baselines.own_data import OwnDataArguments, check_folder

    data = numbered(single_label_data())
    data.loc[:3, "text"] = ""
    flags = ["--train_file", write(data, "mine.csv"), "--model_name_or_path", model_folder, "--wanted_recall", "0.9"]
    with pytest.raises(ValueError, match="thresholds are for"):
        run_baselines(*flags)
    assert "- train split, rows 1, 2, 3, 4: blank text" in capsys.readouterr().out
    # What was refused blocks nothing; what was begun does, with other data or another base model in its place.
    assert not Path("outputs/mine/made_from.txt").exists()
    arguments = OwnDataArguments(train_file="mine.csv", model_name_or_path=model_folder, wanted_recall=0.9)
    Path("outputs/mine/made_from.txt").write_text(check_folder(arguments, Path("outputs/mine")))
    check_folder(arguments, Path("outputs/mine"))
    shutil.copytree(model_folder, "other_model")
    Path("other_model/config.json").write_text(Path("other_model/config.json").read_text() + " ")
    with pytest.raises(ValueError, match="holds a run with other data"):
        check_folder(replace(arguments, model_name_or_path="other_model"), Path("outputs/mine"))
    write(numbered(single_label_data(), 5), "mine.csv")
    with pytest.raises(ValueError, match="--output_dir: outputs/mine holds a run with other data or flags"):
        run_baselines(*flags)


def test_more_time_is_more_of_everything(model_folder, capsys):
    from baselines.own_data import OwnDataArguments, planned, write_splits

    file, plans = write(numbered(single_label_data(), 20), "mine.csv"), []
    for minutes in (1e-4, 60):
        arguments = OwnDataArguments(
            train_file=file, model_name_or_path=str(model_folder), minutes=minutes, max_seq_length=8
        )
        files = write_splits(arguments, Path(f"out{minutes}/data"))
        common = {f"{split}_file": path for split, path in files.items()}
        plans.append(planned({**common, "model_name_or_path": str(model_folder)}, arguments, Path(f"out{minutes}")))
    short, long = plans
    assert len(short.seeds) == 1 and len(short.grid["learning_rate"]) == 1
    assert len(long.seeds) == 5 and len(long.grid["learning_rate"]) == 2
    printed = capsys.readouterr().out
    assert "Left out to save time: the learning rate 0.0001, more seeds." in printed and printed.count("Left out") == 1


def test_seeds_cut_other_texts():
    from baselines.data import cut_validation
    from datasets import DatasetDict

    data = DatasetDict(train=Dataset.from_pandas(numbered(single_label_data())))
    cuts = [cut_validation(data, DataArguments(), 0.2, seed=seed)["validation"]["text"][:] for seed in (0, 0, 1)]
    assert cuts[0] == cuts[1] != cuts[2]


def test_texts_without_a_label_are_in_every_split():
    from baselines.data import cut_validation
    from datasets import DatasetDict

    labels = [["a"], []] * 50
    data = DatasetDict(train=Dataset.from_dict({"text": [f"text {k}" for k in range(100)], "label": labels}))
    cut = cut_validation(data, DataArguments(), 0.2)
    assert len(cut["validation"]) == 20 and sum(not row for row in cut["validation"]["label"]) == 10


class TestRecommendation:
    """Of 40 examples, half of them of each class."""

    labels = [0, 1] * 20

    def record(self, arm, score, num_errors):
        predictions = [1 - label if k < num_errors else label for k, label in enumerate(self.labels)]
        common = {"stage": "test", "seed": 1, "choice": {}, "wall_seconds": 1.0, "resumed": False, "metrics": {}}
        data = {"labels": self.labels, "predictions": predictions, "label_names": ["a", "b"], "label_counts": [20, 20]}
        return {**common, **data, "arm": arm, "validation_metrics": {"f1_macro": score}}

    def said(self, *cells):
        from baselines.own_data import best_arm, recommendation

        records = [self.record(*cell) for cell in cells]
        return recommendation(records, best_arm(records)[0], "plain")

    def test_of_arms_that_are_equally_good_it_is_the_plain_one_and_the_others_are_not_called_worse(self):
        said = self.said(("plain", 1.0, 6), ("focal", 1.0, 0), ("alpha", 0.9, 20))
        assert said.startswith("Recommended: plain, tied with focal on the validation split. Compared with plain")
        assert "focal is better (+0.1" in said and "alpha is worse (-0.3" in said and "worth" not in said

    def test_a_better_arm_that_does_not_differ(self):
        said = self.said(("plain", 0.8, 3), ("focal", 0.9, 2), ("alpha", 0.7, 20))
        assert said.startswith("Recommended: focal, the best on the validation split. Compared with plain")
        assert "focal does not clearly differ (+0.0" in said and "alpha" not in said


def test_each_arm_has_an_interval():
    from baselines.report import interval_table

    records = [TestRecommendation().record("plain", 1.0, 4)]
    (row,) = [line for line in interval_table(records, "plain").splitlines() if line.startswith("| plain")]
    assert "0.900 [0.8" in row and "0.975]" in row
