"""One training of the baselines and its test: what its record holds, and that it can be had again."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from baselines.cell import Cell, parse_cell
from baselines.data import cut_validation, load_baseline_splits, with_label_noise
from data.labelled_texts import DataArguments
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from safetensors.torch import load_file
from toy_texts import multi_label_data, single_label_data, write
from transformers import TrainerCallback


pytestmark = pytest.mark.usefixtures("without_drawing")


def cell_flags(model_folder, data, kind="csv", **flags):
    files = {f"{split}_file": write(data, f"{split}.{kind}") for split in ("train", "validation", "test")}
    defaults = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "use_cpu": True}
    flags = {"model_name_or_path": model_folder, **files, **defaults, **flags}
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def test_record_holds_what_made_it_and_is_the_same_again(model_folder):
    flags = cell_flags(model_folder, single_label_data(), focal_alpha="inverse", seed=1)
    record = Cell(flags, Path("one")).test()
    assert record["focal_loss"]["gamma"] == 2 and record["label_counts"] == [2, 6, 12]
    assert record["versions"].keys() >= {"torch", "transformers", "hf_focal"}
    assert "threads of each" in record["hardware"] and record["wall_seconds"] > 0
    assert record["classes_without_validation"] == []
    assert len(record["data_fingerprint"]) == 64 and record["label_names"] == ["chess", "money", "sport"]
    right = sum(a == b for a, b in zip(record["labels"], record["predictions"]))
    assert len(record["labels"]) == 20 and record["metrics"]["accuracy"] == pytest.approx(right / 20)

    again = Cell(flags, Path("two")).test()
    for name in ("metrics", "per_class", "predictions", "data_fingerprint", "best_epoch"):
        assert record[name] == again[name]
    # Another seed is another run, or equality would say nothing.
    Cell([*flags, "--seed", "2"], Path("three")).train()
    first, second, other = (load_file(f"{folder}/model.safetensors") for folder in ("one", "two", "three"))
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


class TestOrigin:
    """A folder is of one training: with other flags, data or versions nothing there is gone on with."""

    @pytest.fixture
    def flags(self, model_folder):
        return cell_flags(model_folder, single_label_data(), max_train_samples=8, num_train_epochs=1)

    def started_anew(self, flags, capsys, **changed):
        record = Cell(flags, Path("cell")).train()
        expected = Cell(flags, Path("elsewhere")).train()
        for name in ("loss", "f1_macro"):
            assert record["validation_metrics"][name] == expected["validation_metrics"][name]
        for name in ("best_epoch", "flags", "data_fingerprint", "versions", "resumed"):
            assert record[name] == expected[name]
        assert "starting anew" in capsys.readouterr().out
        return record

    @pytest.mark.parametrize("change", [("--max_train_samples", "16"), ("--num_train_epochs", "3"), ("--seed", "5")])
    def test_other_flags(self, flags, change, capsys):
        first = Cell(flags, Path("cell")).train()
        record = self.started_anew([*flags, *change], capsys)
        assert record["validation_metrics"]["loss"] != first["validation_metrics"]["loss"]

    def test_other_data(self, flags, capsys):
        first = Cell(flags, Path("cell")).train()
        file = Path("train.csv")
        file.write_bytes(file.read_bytes() + file.read_bytes().splitlines(keepends=True)[-1])
        record = self.started_anew(flags, capsys)
        assert record["data_fingerprint"] != first["data_fingerprint"]

    def test_other_versions(self, flags, capsys, monkeypatch):
        Cell(flags, Path("cell")).train()
        monkeypatch.setattr("baselines.cell.package_versions", lambda: {"torch": "3"})
        assert self.started_anew(flags, capsys)["versions"] == {"torch": "3"}

    def test_a_checkpoint_of_other_flags(self, flags, capsys):
        Cell(flags, Path("cell")).train()
        Path("cell/training.json").unlink()  # as a killed one leaves it
        Path("cell/checkpoint-1").mkdir()
        self.started_anew([*flags, "--seed", "5"], capsys)
        assert not Path("cell/checkpoint-1").exists()

    def test_the_same_is_not_done_again(self, flags, capsys):
        first = Cell(flags, Path("cell")).train()
        weights = Path("cell/model.safetensors").stat().st_mtime_ns
        assert Cell(flags, Path("cell")).train() == first
        assert Path("cell/model.safetensors").stat().st_mtime_ns == weights

    def test_another_model_or_other_weights(self, flags, model_folder, capsys):
        data = single_label_data()
        weighted = cell_flags(model_folder, data.assign(weight=1.0), max_train_samples=8, num_train_epochs=1)
        weighted += ["--focal_sample_weight_column", "weight"]
        first = Cell(weighted, Path("cell")).train()
        cell_flags(model_folder, data.assign(weight=[1.0 + k % 3 for k in range(len(data))]))
        second = self.started_anew(weighted, capsys)
        assert first["data_fingerprint"] != second["data_fingerprint"]
        shutil.copytree(model_folder, "model")
        flags = [*flags, "--model_name_or_path", "model"]
        Cell(flags, Path("exchanged")).train()
        config = Path("model/config.json")
        config.write_text(config.read_text().replace('"hidden_dropout_prob": 0.0', '"hidden_dropout_prob": 0.5') + " ")
        Cell(flags, Path("exchanged")).train()
        assert "exchanged: the training there had other flags, model, data or versions" in capsys.readouterr().out

    def test_a_folder_of_others(self, flags):
        Path("cell/checkpoint-7").mkdir(parents=True)
        with pytest.raises(ValueError, match="--output_dir: cell holds an unrelated training"):
            Cell(flags, Path("cell")).train()
        assert Path("cell/checkpoint-7").exists()


def test_other_decisions_are_of_the_same_logits(model_folder):
    """Of balanced sampling too, whose logits stand for equally likely classes."""
    flags = cell_flags(model_folder, single_label_data(), loss="cross_entropy", rival="balanced_sampling")
    record = Cell(flags, Path("cell")).test()
    tensors = load_file("cell/test_logits.safetensors")
    shares = torch.tensor(record["label_counts"]).double() / sum(record["label_counts"])
    temperature = record["focal_loss"]["temperature"] or 1.0
    bias = torch.tensor(record["focal_loss"].get("calibration_bias") or [0.0] * 3).double()
    balanced = (tensors["logits"] / temperature + bias).softmax(-1)
    posterior = balanced * shares / (balanced * shares).sum(-1, keepdim=True)
    others = record["other_decisions"]
    assert others["most_likely"]["predictions"] == posterior.argmax(-1).tolist()
    assert others["balanced"]["predictions"] == balanced.argmax(-1).tolist()
    likelihood = -posterior.log().gather(1, tensors["labels"][:, None]).mean()
    for point in ("most_likely", "balanced"):
        assert others[point]["metrics"]["negative_log_likelihood"] == pytest.approx(likelihood.item(), rel=1e-5)
    right = [a == b for a, b in zip(record["labels"], others["most_likely"]["predictions"])]
    assert others["most_likely"]["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))


class TestEarlyStopping:
    FLAGS = {"early_stopping_patience": 2, "num_train_epochs": 8, "learning_rate": 1e-9, "calibration_method": "none"}

    def test_ends_after_the_patience(self, model_folder):
        record = Cell(cell_flags(model_folder, single_label_data(), **self.FLAGS), Path("cell")).train()
        assert record["best_epoch"] == 1.0
        state = json.loads(Path("cell/trainer_state.json").read_text())
        assert state["epoch"] == 3.0

    def test_a_killed_training_has_not_forgotten_what_it_waited_for(self, model_folder, monkeypatch):
        """Resumed after each epoch, it ends where it would have ended."""
        flags = cell_flags(model_folder, single_label_data(), **self.FLAGS)

        class Kill(TrainerCallback):
            def on_save(self, args, state, control, **kwargs):
                raise KeyboardInterrupt

        for _ in range(3):  # the last time after the epoch that ends it
            with pytest.raises(KeyboardInterrupt):
                Cell(flags, Path("cell")).train([Kill()])
        Cell(flags, Path("cell")).train()
        assert json.loads(Path("cell/trainer_state.json").read_text())["epoch"] == 3.0

    def test_a_patience_below_1(self, model_folder):
        with pytest.raises(ValueError, match="--early_stopping_patience: expected at least 1"):
            Cell(cell_flags(model_folder, single_label_data(), early_stopping_patience=0), Path("cell")).train()


class TestLabelNoise:
    def test_as_many_are_wrong_and_the_test_split_is_right(self):
        features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
        rows = {"text": [str(k) for k in range(3000)], "label": [k % 3 for k in range(3000)]}
        splits = DatasetDict({split: Dataset.from_dict(rows, features) for split in ("train", "validation", "test")})
        noisy = with_label_noise(splits, DataArguments(), 0.2)
        for split in ("train", "validation"):
            changed = [a != b for a, b in zip(noisy[split]["label"], rows["label"])]
            assert sum(changed) / 3000 == pytest.approx(0.2, abs=0.03)
            to = Counter((b - a) % 3 for a, b in zip(rows["label"], noisy[split]["label"]) if a != b)
            assert to[1] == pytest.approx(to[2], rel=0.2) and noisy[split].features == splits[split].features
        assert noisy["test"]["label"][:] == rows["label"]
        assert with_label_noise(splits, DataArguments(), 0.2)["train"]["label"][:] == noisy["train"]["label"][:]

    @pytest.mark.parametrize("share", ["-0.1", "1", "1.5", "nan"])
    def test_a_share_of_no_training_data(self, model_folder, share):
        flags = cell_flags(model_folder, single_label_data())
        with pytest.raises(ValueError, match="--label_noise: expected a number from 0 to below 1"):
            Cell([*flags, "--label_noise", share], Path("cell")).train()


class TestImbalance:
    def test_ratio_of_the_largest_class_to_the_smallest_and_the_same_test_split(self):
        def splits(*flags):
            return load_baseline_splits(parse_cell(["--dataset_name", "bbc_longtail", *flags])[2], None)

        strong, extreme = splits(), splits("--imbalance", "300")
        assert [*Counter(strong["train"]["label"]).values()] == [300, 113, 42, 16, 6]
        assert [*Counter(extreme["train"]["label"]).values()] == [300, 72, 17, 4, 1]
        for split in ("validation", "test"):
            assert strong[split]["text"][:] == extreme[split]["text"][:]

    @pytest.mark.parametrize(
        "flags, message",
        [
            (["--dataset_name", "bbc_longtail", "--imbalance", "0.5"], "--imbalance: expected a number of at least 1"),
            (["--dataset_name", "bbc_longtail", "--imbalance", "nan"], "--imbalance: expected a number of at least 1"),
            (["--dataset_name", "bbc_longtail", "--imbalance", "1000"], "--imbalance: expected at least 1 training"),
            (["--dataset_name", "bbc_longtail", "--imbalance", "1"], "--imbalance: expected .* no more documents"),
            (
                ["--dataset_name", "reuters_r52", "--imbalance", "9"],
                "--imbalance: expected --dataset_name to be one of",
            ),
            (["--train_file", "train.csv", "--imbalance", "9"], "--imbalance: expected --dataset_name to be one of"),
        ],
    )
    def test_what_cannot_be_made_is_refused(self, flags, message):
        with pytest.raises(ValueError, match=message):
            load_baseline_splits(parse_cell(flags)[2], None)


class TestOtherDataIsAnotherTraining:
    @pytest.mark.parametrize("flags", [["--imbalance", "40"], ["--label_noise", "0.1"]])
    def test_fingerprint(self, flags):
        of_bbc = ["--dataset_name", "bbc_longtail", "--model_name_or_path", "no/model"]
        data = [Cell.origin_of([*of_bbc, *more])["data_fingerprint"] for more in ([], flags)]
        assert data[0] != data[1]


@pytest.mark.parametrize("loss", [{"focal_alpha": "inverse"}, {"focal_gamma_neg": 4, "focal_margin": 0.05}])
def test_multi_label(model_folder, loss):
    record = Cell(cell_flags(model_folder, multi_label_data(), "json", **loss), Path("cell")).test()
    assert len(record["focal_loss"]["thresholds"]) == 3
    hits = sum(len({*a} & {*b}) for a, b in zip(record["labels"], record["predictions"]))
    total = sum(map(len, record["labels"])) + sum(map(len, record["predictions"]))
    assert record["metrics"]["f1_micro"] == pytest.approx(2 * hits / total)


class TestValidationSplit:
    def split(self, data, share=0.2, label="label"):
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

    def test_share_and_split_exclude_each_other(self, model_folder):
        flags = cell_flags(model_folder, single_label_data())
        with pytest.raises(ValueError, match="--validation_share: there is a validation split already"):
            Cell([*flags, "--validation_share", "0.1"], Path("cell")).train()
        at = flags.index("--validation_file")
        with pytest.raises(ValueError, match="--validation_share: expected a share"):
            Cell(flags[:at] + flags[at + 2 :], Path("cell")).train()
