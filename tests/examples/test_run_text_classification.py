"""Text classification runs, from the embedded default to two processes, and says clearly what is wrong with its input."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from datasets import ClassLabel, Dataset, Features, Value
from exactness import tiny_model
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from toy_texts import (
    EXAMPLES,
    WORDS,
    common_flags,
    counted_predictions,
    in_a_fresh_process,
    multi_label_data,
    python_in,
    run,
    single_label_data,
    write,
)
from transformers import AutoConfig, Trainer, pipeline

from hf_focal import FocalTextClassificationPipeline
from hf_focal.model_card import read_model_card


SCRIPT = "run_text_classification.py"
# Of a few texts that a model has learned by heart.
pytestmark = [
    pytest.mark.filterwarnings("ignore:labels. (all predictions|the likelihood)"),
    pytest.mark.usefixtures("without_drawing"),
]


def test_embedded_default_without_arguments(shorten_bbc, capsys):
    """With the real model, and on a part of its data."""
    shorten_bbc(imbalance=5, head=48, validation=10, test=20)
    run(SCRIPT)
    printed, progress = capsys.readouterr()
    lines = printed.splitlines()
    distribution = next(i for i, line in enumerate(lines) if line.split() == ["examples", "share", "alpha"])
    assert [line.split()[:2] for line in lines[distribution + 1 : distribution + 6]] == [
        ["business", "48"],
        ["entertainment", "32"],
        ["politics", "21"],
        ["sports", "14"],
        ["tech", "10"],
    ]
    report = lines.index("Results on the test split, 100 examples, operating point as_trained") + 1
    assert lines[report].split() == ["precision", "recall", "f1-score", "support"]
    assert lines[report + 2].split()[0] == "business" and lines[report + 2].split()[-1] == "20"
    header = next(i for i, line in enumerate(lines) if i > report and "balanced_accuracy" in line)
    assert lines[header].split() == ["accuracy", "balanced_accuracy", "f1_macro", "f1_tail"]
    shown = [line.split("  ")[0].strip() for line in lines[header + 1 : header + 4]]
    assert shown == ["as_trained (in force)", "most_likely", "balanced"]
    assert "training: 100%" in progress and "48/48" in progress
    for name in ("validation split", "test split"):
        assert f"\r{name}: 100%" in progress

    folder = Path("outputs/bbc_longtail")
    scores = json.loads((folder / "test_results.json").read_text())
    assert scores["test_f1_macro"] > 0.75
    predict = pipeline("text-classification", model=str(folder))
    assert predict("The striker scored twice in the second half of the cup final.")[0]["label"] == "sports"
    settings = AutoConfig.from_pretrained(folder).focal_loss
    assert settings["gamma"] == 2 and settings["label_counts"] == [48, 32, 21, 14, 10]


def test_a_column_of_sample_weights(model_folder):
    """Examples of weight 0 are not learned: the model says nothing of their class."""
    data = single_label_data()
    data["importance"] = (data["label"] != "sport").astype(float)
    file = write(data, "train.csv")
    flags = [*common_flags(model_folder), "--train_file", file, "--validation_file", file, "--do_train", "--do_eval"]
    run(SCRIPT, *flags, "--num_train_epochs", 10, "--focal_sample_weight_column", "importance")
    assert json.loads(Path("out/eval_results.json").read_text())["eval_accuracy"] == 1.0
    assert {pipeline("text-classification", model="out")(word)[0]["label"] for word in WORDS["sport"]} <= {
        "chess",
        "money",
    }


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_single_label_files(model_folder, capsys, kind):
    files = [write(single_label_data(), f"{split}.{kind}") for split in ("train", "valid", "test")]
    run(
        SCRIPT,
        *common_flags(model_folder),
        *("--train_file", files[0], "--validation_file", files[1], "--test_file", files[2]),
        *("--do_train", "--do_eval", "--do_predict", "--focal_gamma", 1, "--focal_alpha", "sqrt_inverse"),
    )
    config = AutoConfig.from_pretrained("out")
    assert config.id2label == {0: "chess", 1: "money", 2: "sport"}
    assert config.focal_loss["label_counts"] == [2, 6, 12] and config.focal_loss["gamma"] == 1
    assert {"eval_loss", "eval_f1_macro"} <= json.loads(Path("out/eval_results.json").read_text()).keys()
    predictions = Path("out/predict_results.txt").read_text().splitlines()
    assert predictions[0] == "index\tprediction\tprobability" and len(predictions) == 21
    printed = capsys.readouterr().out
    assert "share" in printed and "f1-score" in printed and "balanced_accuracy" in printed
    assert pipeline("text-classification", model="out")("king")[0]["label"] in WORDS


def test_scalar_alpha_of_two_classes(model_folder, capsys):
    file = write(single_label_data({"sport": 12, "money": 4}), "train.csv")
    run(
        SCRIPT,
        *common_flags(model_folder),
        "--train_file",
        file,
        "--do_train",
        "--focal_alpha",
        "0.2",
        "--ignore_mismatched_sizes",
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["money", "4", "0.250", "0.800"] in rows and ["sport", "12", "0.750", "0.200"] in rows


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_multi_label_files(model_folder, capsys, kind):
    file = write(multi_label_data(), f"data.{kind}")
    run(
        SCRIPT,
        *common_flags(model_folder),
        *("--train_file", file, "--validation_file", file, "--test_file", file),
        *("--do_train", "--do_eval", "--do_predict", "--focal_alpha", "inverse"),
    )
    config = AutoConfig.from_pretrained("out")
    assert config.problem_type == "multi_label_classification"
    assert config.focal_loss["label_counts"] == [2, 6, 13]
    of_negatives, of_positives = config.focal_loss["alpha"]
    assert of_negatives == pytest.approx([20 / 36, 20 / 28, 20 / 14])
    assert of_positives == pytest.approx([20 / 4, 20 / 12, 20 / 26])
    assert "test_f1_micro" in json.loads(Path("out/test_results.json").read_text())
    printed = capsys.readouterr().out
    assert "alpha of negatives  alpha of positives" in printed and "samples avg" in printed


@pytest.mark.parametrize("point", ["as_trained", "balanced", "thresholds"])
@pytest.mark.parametrize("is_multi_label", [False, True])
def test_what_is_reported_is_what_the_pipeline_decides(model_folder, capsys, point, is_multi_label):
    """Each number again, from the saved model and the data alone."""
    if point == "thresholds" and not is_multi_label:
        pytest.skip("there are no thresholds of three classes")
    data = multi_label_data() if is_multi_label else single_label_data()
    file = write(data, "data.json")
    flags = ["--train_file", file, "--validation_file", file, "--test_file", file, "--operating_point", point]
    run(
        SCRIPT,
        *common_flags(model_folder),
        *flags,
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--focal_alpha",
        "inverse",
    )
    classify = pipeline("text-classification", model="out", pipeline_class=FocalTextClassificationPipeline)
    found = classify(data["text"].tolist())
    names = [*classify.model.config.id2label.values()]

    rows = pd.read_csv("out/predict_results.txt", sep="\t")
    if is_multi_label:
        scores = [{result["label"]: result["score"] for result in results} for results in found]
        for labels, probabilities, expected in zip(rows["prediction"], rows["probability"], scores):
            written = dict(zip(json.loads(labels), json.loads(probabilities)))
            assert written == pytest.approx(expected, abs=1e-5)
        decided = np.array([[name in results for name in names] for results in scores])
        truth = np.array([[name in labels for name in names] for labels in data["label"]])
        average = {"average": "macro", "zero_division": 0}
    else:
        assert rows["prediction"].tolist() == [result["label"] for result in found]
        assert rows["probability"].tolist() == pytest.approx([result["score"] for result in found], abs=1e-5)
        decided, truth = rows["prediction"], data["label"]
        average = {"average": "macro", "zero_division": 0, "labels": sorted({*decided, *truth})}
    expected = {"accuracy": accuracy_score(truth, decided), "f1_macro": f1_score(truth, decided, **average)}

    results = json.loads(Path("out/test_results.json").read_text())
    card = read_model_card("out/README.md")
    printed = next(
        line for line in reversed(capsys.readouterr().out.splitlines()) if line.startswith(f"{point} (in force)")
    )
    for name, value in expected.items():
        assert results[f"test_{name}"] == pytest.approx(value)
        assert results["test_operating_points"][point][name][0] == pytest.approx(value)
        assert card.metrics[name] == [pytest.approx(value)]
        assert card.operating_points[point][name][0] == pytest.approx(value)
        assert f"{value:.3f} (" in printed
    assert card.settings.operating_point == point


ODD_NAMES = ["a,b", 'say "hi"', "tab\there", "100%", "naïve ☕", "1", "LABEL_0", "line\nbreak"]


def test_odd_names_are_the_same_in_report_files_card_and_a_fresh_process(model_folder, capsys):
    texts = [f"{first} {second}" for first in sum(WORDS.values(), []) for second in ("ball", "bank", "king", "queen")]
    data = pd.DataFrame({"text": texts, "label": [ODD_NAMES[k % 8] for k in range(len(texts))]})
    file = write(data, "data.csv")
    flags = ["--train_file", file, "--validation_file", file, "--test_file", file, "--operating_point", "balanced"]
    flags += ["--do_train", "--do_predict", "--ignore_mismatched_sizes", "--focal_alpha", "sqrt_inverse"]
    run(SCRIPT, *common_flags(model_folder), *flags)
    printed = capsys.readouterr().out
    found = in_a_fresh_process("FocalTextClassificationPipeline", "text-classification", texts)
    rows = pd.read_csv("out/predict_results.txt", sep="\t")
    assert rows["prediction"].tolist() == [result["label"] for result in found]
    assert rows["probability"].tolist() == pytest.approx([result["score"] for result in found], abs=1e-5)
    scores = f1_score(data["label"], rows["prediction"], average=None, labels=ODD_NAMES, zero_division=0)
    expected = dict(zip(ODD_NAMES, scores))
    card, results = read_model_card("out/README.md"), json.loads(Path("out/test_results.json").read_text())
    assert {name: metrics["f1"] for name, metrics in card.per_class.items()} == {
        name: [pytest.approx(f1)] for name, f1 in expected.items()
    }
    assert (
        len(re.findall(r"^ *line break( +[0-9.]+){4}$", printed, re.MULTILINE)) == 1
    )  # of which there is no second line
    occurring = {*data["label"], *rows["prediction"]}
    f1_macro = np.mean([expected[name] for name in occurring])
    assert results["test_f1_macro"] == pytest.approx(f1_macro) and f"{f1_macro:.3f} (" in printed


def test_the_card_is_that_of_the_test_split_and_each_split_is_predicted_once(model_folder, monkeypatch):
    counts = {
        "train": {"sport": 12, "money": 6},
        "validation": {"sport": 6, "money": 4},
        "test": {"sport": 5, "money": 2},
    }
    files = [
        part
        for split, of_split in counts.items()
        for part in (f"--{split}_file", write(single_label_data(of_split), f"{Path.cwd()}/{split}.csv"))
    ]
    predicted = counted_predictions(monkeypatch)
    flags = [
        *common_flags(model_folder),
        *files,
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--ignore_mismatched_sizes",
    ]
    run(SCRIPT, *flags)
    assert predicted == [10, 7]
    card, results = read_model_card("out/README.md"), json.loads(Path("out/test_results.json").read_text())
    assert (card.dataset_split, card.num_examples, card.fitted_on_split) == ("test", 7, [])
    assert card.metrics["accuracy"] == [results["test_accuracy"]]
    assert card.metrics["negative_log_likelihood"] == [results["test_negative_log_likelihood"]]
    assert card.operating_points == results["test_operating_points"]
    assert (
        card.dataset_name == "train.csv, validation.csv, test.csv"
        and card.model_id == "out"
        and card.settings.thresholds
    )
    assert Path("out/precision_recall.png").is_file()


def test_the_card_of_an_unlabelled_test_split_is_that_of_the_validation_split(model_folder, monkeypatch):
    data = single_label_data({"sport": 12, "money": 6})
    flags = ["--train_file", write(data, "train.csv"), "--validation_file", write(data, "validation.csv")]
    flags += ["--test_file", write(data[["text"]][:5], "test.csv"), "--ignore_mismatched_sizes"]
    predicted = counted_predictions(monkeypatch)
    run(SCRIPT, *common_flags(model_folder), *flags, "--do_train", "--do_eval", "--do_predict")
    assert predicted == [18, 5]
    card, results = read_model_card("out/README.md"), json.loads(Path("out/eval_results.json").read_text())
    assert (card.dataset_split, card.num_examples) == ("validation", 18)
    assert card.fitted_on_split == ["the training", "the thresholds"]  # without an error there is no calibration
    assert card.metrics["accuracy"] == [results["eval_accuracy"]]


def test_names_in_chinese_are_aligned(model_folder, capsys):
    data = single_label_data({"sport": 12, "money": 6}).replace({"label": {"sport": "體育", "money": "財"}})
    run(
        SCRIPT,
        *common_flags(model_folder),
        "--train_file",
        write(data, "train.csv"),
        "--do_train",
        "--ignore_mismatched_sizes",
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("體育", "財"))]
    assert len(lines) == 2 and len({line.index("0.") + sum(ord(c) > 255 for c in line) for line in lines}) == 1


@pytest.mark.parametrize("is_multi_label", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_macro_f1(model_folder, capsys, is_multi_label, weighted):
    """That of the report is that of the table, also where classes of the training are not in the split."""
    data = multi_label_data() if is_multi_label else single_label_data()
    data["importance"] = [1.0, 2.0] * 10
    kind = "json" if is_multi_label else "csv"
    train = write(data, f"train.{kind}")
    test = write(data[[row != "money" and row != ["money"] for row in data["label"]]], f"test.{kind}")
    flags = ["--focal_sample_weight_column", "importance"] * weighted
    files = ["--train_file", train, "--test_file", test, "--do_train", "--do_predict"]
    run(
        SCRIPT, *common_flags(model_folder), *files, *flags, "--num_train_epochs", 4, "--operating_point", "as_trained"
    )
    lines = capsys.readouterr().out.splitlines()
    assert ("Classes neither in the split nor predicted: money" in lines) == (not is_multi_label)
    (of_report,) = (line.split()[4] for line in lines if line.strip().startswith("macro avg"))
    at = next(i for i, line in enumerate(lines) if line.startswith("as_trained (in force)"))
    of_table = re.findall(r"([\d.]+) \(", lines[at])[lines[at - 1].split().index("f1_macro")]
    of_results = json.loads(Path("out/test_results.json").read_text())["test_f1_macro"]
    assert of_report == of_table == f"{of_results:.3f}"
    assert 0.1 < of_results < 1


def test_the_last_lines_run_as_they_stand(model_folder, capsys):
    file = write(single_label_data(), "data.csv")
    flags = ["--train_file", file, "--test_file", file, "--do_train", "--do_predict"]
    run(SCRIPT, *common_flags(model_folder), *flags)
    printed = capsys.readouterr().out
    assert f"The model is in out, its card in {Path('out/README.md')}" in printed
    assert f"The predictions for the test split are in {Path('out/predict_results.txt')}" in printed
    exec(python_in(printed), {})
    assert "'label'" in capsys.readouterr().out


def test_the_last_lines_of_a_model_that_was_not_trained_here(model_folder, capsys):
    """It is where it was, and without settings the stock pipeline serves it."""
    file = write(single_label_data().drop(columns="label"), "data.csv")
    run(SCRIPT, *common_flags(model_folder), "--test_file", file, "--do_predict")
    printed = capsys.readouterr().out
    assert f"The model is in {model_folder}\n" in printed and "Focal" not in python_in(printed)
    exec(python_in(printed), {})
    assert "'label'" in capsys.readouterr().out


def test_thresholds_of_three_classes_are_refused_before_the_training(model_folder):
    file = write(single_label_data(), "train.csv")
    flags = [*common_flags(model_folder), "--train_file", file, "--validation_file", file, "--do_train", "--do_eval"]
    with pytest.raises(ValueError, match="--operating_point thresholds: .* but there are 3 classes$"):
        run(SCRIPT, *flags, "--operating_point", "thresholds")
    assert not Path("out/model.safetensors").exists()


@pytest.mark.parametrize("positive_label", ["money", "sport"])
def test_the_class_whose_f1_counts(model_folder, positive_label):
    file = write(single_label_data({"sport": 12, "money": 6}), "data.csv")
    flags = [
        "--train_file",
        file,
        "--validation_file",
        file,
        "--do_train",
        "--do_eval",
        "--operating_point",
        "thresholds",
    ]
    flags += ["--ignore_mismatched_sizes", "true"]
    run(SCRIPT, *common_flags(model_folder), *flags, "--positive_label", positive_label)
    config = AutoConfig.from_pretrained("out")
    assert config.id2label[config.focal_loss["positive_label"]] == positive_label
    with pytest.raises(ValueError, match="--positive_label: expected one of two classes, but got 'spam'; classes"):
        run(SCRIPT, *common_flags(model_folder), *flags, "--positive_label", "spam")


def test_an_operating_point_for_the_predictions_of_a_trained_model(model_folder):
    file = write(single_label_data(), "train.csv")
    flags = [*common_flags(model_folder, "trained"), "--train_file", file, "--do_train", "--focal_alpha", "inverse"]
    run(SCRIPT, *flags)
    for point in ("as_trained", "most_likely"):
        flags = ["--test_file", file, "--do_predict", "--operating_point", point]
        run(SCRIPT, *common_flags("trained", point), *flags)
    lines = [Path(point, "predict_results.txt").read_text() for point in ("as_trained", "most_likely")]
    assert lines[0] != lines[1]


def two_classes_with_errors() -> pd.DataFrame:
    """Some texts of "sport" are about money, and the other way round."""
    data = single_label_data({"sport": 60, "money": 20})
    data.loc[::9, "text"], data.loc[60::5, "text"] = "bank", "ball"
    return data


@pytest.mark.parametrize("wanted", ["precision", "recall"])
def test_a_wanted_precision_or_recall(model_folder, capsys, wanted):
    data = two_classes_with_errors()
    file = write(data, "data.csv")
    flags = ["--train_file", file, "--validation_file", file, "--test_file", file, "--ignore_mismatched_sizes", "true"]
    flags += ["--do_train", "--do_eval", "--do_predict", f"--wanted_{wanted}", "0.7", "--max_seq_length", "7"]
    run(SCRIPT, *common_flags(model_folder), *flags)
    printed = capsys.readouterr().out
    record = AutoConfig.from_pretrained("out").focal_loss
    assert record["operating_point"] == "thresholds" and record["threshold_criterion"] == f"{wanted} 0.7"
    assert f"Thresholds for {wanted} 0.7" in printed and "thresholds (in force)" in printed
    classify = pipeline("text-classification", model="out", pipeline_class=FocalTextClassificationPipeline)
    decided = [result["label"] for result in classify(data["text"].tolist())]
    score = {"precision": precision_score, "recall": recall_score}[wanted]
    reached = score(data["label"], decided, pos_label="money")  # the rarer class
    assert reached >= 0.7 and f"{reached:.3f} (" in printed
    found = json.loads(Path("out/calibration_results.json").read_text())
    assert found["reached"]["money"][wanted][0] == pytest.approx(reached)
    card = read_model_card("out/README.md")
    assert card.thresholds_reached["money"][wanted][0] == card.operating_points["thresholds"][wanted][0]
    text = Path("out/README.md").read_text()
    assert f"## Thresholds\n\nFitted for {wanted} 0.7" in text and "Precision and recall are for money." in text
    assert classify.tokenizer.model_max_length == 7  # texts are cut where the scored ones were


@pytest.mark.filterwarnings("ignore:wanted_precision")
def test_a_precision_that_is_not_reachable_is_said_in_the_card(model_folder, capsys):
    data = two_classes_with_errors()
    data["text"] = "goal"  # nothing tells them apart
    data.loc[:3, "text"] = "ball"
    file = write(data, "data.csv")
    flags = ["--train_file", file, "--validation_file", file, "--ignore_mismatched_sizes", "true"]
    flags += ["--do_train", "--do_eval", "--wanted_precision", "0.99", "--max_seq_length", "7"]
    run(SCRIPT, *common_flags(model_folder), *flags)
    assert "No threshold reaches precision 0.99 for: money" in capsys.readouterr().out
    assert json.loads(Path("out/calibration_results.json").read_text())["not_reachable"] == ["money"]
    assert AutoConfig.from_pretrained("out").focal_loss["threshold_criterion"] == "precision 0.99"
    assert (
        "No threshold reaches precision 0.99 on the held-out examples for: money." in Path("out/README.md").read_text()
    )


@pytest.mark.parametrize(
    "message, counts, flags",
    [
        ("--wanted_recall: needs --do_train and --do_eval", None, ["--do_train", "--wanted_recall", "0.9"]),
        ("--positive_label: needs --do_train and --do_eval", None, ["--do_predict", "--positive_label", "sport"]),
        ("--wanted_precision: thresholds are for two classes or several labels, but there are 3 classes", None, ["--do_train", "--do_eval", "--wanted_precision", "0.9"]),
        ("--wanted_precision: expected a finite number in", None, ["--do_train", "--do_eval", "--wanted_precision", "90"]),
        ("--wanted_recall: expected only one criterion", None, ["--do_eval", "--wanted_precision", "0.9", "--wanted_recall", "0.9"]),
    ],
)  # fmt: skip
def test_decisions_that_cannot_be_made_are_refused_before_the_training(model_folder, message, counts, flags):
    file = write(single_label_data(), "train.csv")
    files = ["--train_file", file, "--validation_file", file, "--test_file", file]
    with pytest.raises(ValueError, match=message):
        run(SCRIPT, *common_flags(model_folder), *files, *flags)
    assert not Path("out").exists()


def test_a_class_without_training_examples_has_no_balanced_decision(model_folder):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["sport", "money", "golf"])})
    data = single_label_data({"sport": 6, "money": 3})
    rows = pd.DataFrame({"text": data["text"], "label": data["label"].map(["sport", "money"].index)})
    for split in ("train", "validation"):
        Dataset.from_pandas(rows, features=features).to_parquet(f"data/{split}.parquet")
    flags = [*common_flags(model_folder), "--dataset_name", "data", "--do_train", "--do_eval"]
    with pytest.raises(ValueError, match="--operating_point balanced: none or all of the training data are golf"):
        run(SCRIPT, *flags, "--operating_point", "balanced")


def test_a_model_without_a_posterior_is_saved_and_decides_as_trained(model_folder):
    file = write(single_label_data(), "train.csv")
    flags = ["--train_file", file, "--validation_file", file, "--do_train", "--do_eval", "--focal_alpha", "0,1,1"]
    run(SCRIPT, *common_flags(model_folder), *flags, "--operating_point", "most_likely")
    config = AutoConfig.from_pretrained("out")
    assert Path("out/model.safetensors").exists() and config.focal_loss["operating_point"] == "as_trained"


def test_operating_points_of_other_models(model_folder):
    file = write(single_label_data()[["text"]], "test.csv")
    flags = ["--test_file", file, "--do_predict", "--operating_point"]
    run(SCRIPT, *common_flags(model_folder), *flags, "as_trained")
    assert Path("out/predict_results.txt").exists()
    with pytest.raises(ValueError, match="--operating_point balanced: this model has only as_trained"):
        run(SCRIPT, *common_flags(model_folder), *flags, "balanced")


@pytest.mark.parametrize("point", ["as_trained", "thresholds"])
def test_calibration_in_the_weights(model_folder, capsys, point):
    """What the report says is what the stock pipeline decides, and shows."""
    data = two_classes_with_errors()
    file = write(data, "data.csv")
    flags = ["--train_file", file, "--validation_file", file, "--test_file", file, "--ignore_mismatched_sizes", "true"]
    flags += ["--do_train", "--do_eval", "--do_predict", "--fold_calibration", "--operating_point", point]
    run(SCRIPT, *common_flags(model_folder), *flags)
    assert "The calibration is folded into the weights" in capsys.readouterr().out
    found = pipeline("text-classification", model="out")(data["text"].tolist())
    rows = pd.read_csv("out/predict_results.txt", sep="\t")
    assert rows["prediction"].tolist() == [result["label"] for result in found]
    if point == "as_trained":
        assert rows["probability"].tolist() == pytest.approx([result["score"] for result in found], abs=1e-5)
    results = json.loads(Path("out/test_results.json").read_text())
    assert results["test_accuracy"] == pytest.approx(accuracy_score(data["label"], rows["prediction"]))
    card = Path("out/README.md").read_text()
    assert "FocalTextClassificationPipeline" not in card.split("## Results")[0]
    assert ("The class posterior, calibrated on held-out data, is folded" in card) == (point == "as_trained")
    assert AutoConfig.from_pretrained("out").focal_loss["folded"]["residual"] not in card
    assert read_model_card("out/README.md").settings.folded is not None
    with pytest.raises(ValueError, match="--fold_calibration: needs --do_train and --do_eval, as it follows training"):
        run(SCRIPT, *common_flags("out", "again"), "--test_file", file, "--do_predict", "--fold_calibration")
    more = ["--train_file", file, "--do_train"]
    with pytest.raises(ValueError, match="model: calibration is folded into its head.*unfold_calibration"):
        run(SCRIPT, *common_flags("out", "again"), *more)


def test_the_report_counts_examples_by_their_weights(model_folder, capsys):
    data = two_classes_with_errors()
    data["weight"] = [1.0 + k % 4 for k in range(len(data))]
    file = write(data, "data.csv")
    flags = ["--train_file", file, "--validation_file", file, "--do_train", "--do_eval"]
    flags += ["--focal_sample_weight_column", "weight", "--ignore_mismatched_sizes", "true"]
    run(SCRIPT, *common_flags(model_folder), *flags)
    line = next(
        line
        for line in capsys.readouterr().out.splitlines()
        if line.split()[:1] == ["money"] and len(line.split()) == 5
    )
    assert float(line.split()[-1]) == pytest.approx(data["weight"][data["label"] == "money"].sum())


def test_dataset_by_name_with_an_unlabelled_test_split(model_folder, capsys):
    names = ["sport", "money", "chess"]
    features = Features({"sentence": Value("string"), "topic": ClassLabel(names=names)})
    data = single_label_data()
    for split, label in (("train", data["label"].map(names.index)), ("test", -1)):
        rows = pd.DataFrame({"sentence": data["text"], "topic": label})
        Dataset.from_pandas(rows, features=features).to_parquet(f"data/{split}.parquet")
    run(
        SCRIPT,
        *common_flags(model_folder),
        *("--dataset_name", "data", "--text_column_names", "sentence", "--label_column_name", "topic"),
        *("--do_train", "--do_predict", "--focal_alpha", "1,1,2"),
    )
    config = AutoConfig.from_pretrained("out")
    assert config.id2label == dict(enumerate(names)) and config.focal_loss["alpha"] == [1, 1, 2]
    assert len(Path("out/predict_results.txt").read_text().splitlines()) == 21
    assert "f1-score" not in capsys.readouterr().out


def test_push_to_hub(model_folder, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, *args, **kwargs: pushed.append(kwargs))
    file = write(single_label_data(), "train.csv")
    run(SCRIPT, *common_flags(model_folder), "--train_file", file, "--do_train", "--push_to_hub")
    assert pushed[-1]["tasks"] == "text-classification"


def test_cross_entropy_is_gamma_zero_without_alpha(model_folder):
    file = write(single_label_data(), "train.csv")
    flags = ["--train_file", file, "--do_train", "--focal_alpha", "inverse", "--loss", "cross_entropy"]
    run(SCRIPT, *common_flags(model_folder), *flags)
    settings = AutoConfig.from_pretrained("out").focal_loss
    assert settings["gamma"] == 0 and settings["alpha"] is None


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_config_file_as_the_only_argument(model_folder, kind):
    settings = {
        "model_name_or_path": model_folder,
        "output_dir": "out",
        "train_file": write(single_label_data().rename(columns={"text": "title", "label": "topic"}), "train.csv"),
        "text_column_names": "title",
        "label_column_name": "topic",
        "max_train_samples": 13,
        "do_train": True,
        "max_steps": 1,
        "use_cpu": True,
        "save_strategy": "no",
    }
    Path(f"config.{kind}").write_text(json.dumps(settings))  # JSON is YAML
    run(SCRIPT, f"config.{kind}")
    assert sum(AutoConfig.from_pretrained("out").focal_loss["label_counts"]) == 13


def test_config_file_with_an_unknown_loss(model_folder):
    Path("config.json").write_text(json.dumps({"output_dir": "out", "do_train": True, "loss": "ce"}))
    with pytest.raises(ValueError, match="--loss: expected focal or cross_entropy, but got 'ce'"):
        run(SCRIPT, "config.json")


def test_names_follow_the_ids_of_the_model(model_folder):
    file = write(single_label_data(), "train.csv")
    run(SCRIPT, *common_flags(model_folder, "trained"), "--train_file", file, "--do_train")
    config = json.loads(Path("trained/config.json").read_text())
    config["id2label"] = dict(reversed(config["id2label"].items()))
    Path("trained/config.json").write_text(json.dumps(config))
    run(SCRIPT, *common_flags("trained", "out"), "--test_file", file, "--do_predict")
    predict = pipeline("text-classification", model="trained")
    expected = [predict(text)[0]["label"] for text in single_label_data()["text"]]
    predictions = Path("out/predict_results.txt").read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in predictions] == expected


def test_another_column_called_labels_and_a_model_with_more_outputs(model_folder, tmp_path):
    model = tiny_model(output_hidden_states=True)
    model.save_pretrained(tmp_path / "model")
    file = write(single_label_data().assign(labels=0), "data.csv")
    flags = ["--tokenizer_name", model_folder, "--train_file", file, "--test_file", file, "--do_train", "--do_predict"]
    run(SCRIPT, *common_flags(tmp_path / "model"), *flags)
    assert len(Path("out/predict_results.txt").read_text().splitlines()) == 21


def test_trained_folder_predicts_unlabelled_data(model_folder):
    file = write(single_label_data(), "train.csv")
    run(SCRIPT, *common_flags(model_folder, "trained"), "--train_file", file, "--do_train", "--focal_alpha", "inverse")
    unlabelled = write(single_label_data().drop(columns="label"), "test.csv")
    run(SCRIPT, *common_flags("trained", "out"), "--test_file", unlabelled, "--do_predict", "--focal_alpha", "inverse")
    predictions = Path("out/predict_results.txt").read_text().splitlines()[1:]
    assert {line.split("\t")[1] for line in predictions} <= WORDS.keys() and len(predictions) == 20


def test_resume(model_folder):
    file = write(single_label_data(), "train.csv")
    flags = [*common_flags(model_folder), "--train_file", file, "--do_train", "--save_strategy", "steps"]
    run(SCRIPT, *flags, "--save_steps", "5", "--max_steps", "5")
    run(SCRIPT, *flags, "--save_steps", "5", "--max_steps", "10", "--resume_from_checkpoint", "True")
    state = json.loads(Path("out/trainer_state.json").read_text())
    assert state["global_step"] == 10
    assert Path("out/checkpoint-5/optimizer.pt").exists()


@pytest.mark.parametrize("config", ["multi_gpu.yaml", "fsdp.yaml"])
def test_two_processes_of_a_copy_that_has_two_files_beside_itself(model_folder, config):
    Path("copy/data").mkdir(parents=True)
    for file in (SCRIPT, "data/labelled_texts.py", "data/data_check.py"):
        shutil.copy(EXAMPLES / file, Path("copy", file))
    file = write(single_label_data(), "data.csv")
    files = [part for split in ("train", "validation", "test") for part in (f"--{split}_file", file)]
    flags = [*files, "--do_train", "--do_eval", "--do_predict", "--focal_alpha", "inverse"]
    # A free port: tests may run at the same time with other versions.
    launcher = ["accelerate.commands.launch", "--mixed_precision", "no", "--main_process_port", "0"]
    launcher += ["--config_file", EXAMPLES / "accelerate" / config]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, f"copy/{SCRIPT}", *common_flags(model_folder), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert result.returncode == 0, result.stderr
    # 2 epochs of 20 examples in batches of 4 are 10 steps in one process: 6 show that there were two.
    assert json.loads(Path("out/trainer_state.json").read_text())["global_step"] == 6
    assert len(Path("out/predict_results.txt").read_text().splitlines()) == 21
    assert result.stdout.count("f1-score") == 2  # validation and test split, and of one process
    assert Path("out/README.md").exists() and "eval_f1_macro" in Path("out/eval_results.json").read_text()
    assert AutoConfig.from_pretrained("out").focal_loss["label_counts"] == [2, 6, 12]
    assert pipeline("text-classification", model="out")("king")[0]["label"] in WORDS


def test_two_machines_under_slurm(model_folder, tmp_path):
    """Each machine is an agent of accelerate with caches of its own; `srun` starts both, as it does on a cluster."""
    commands = {
        "scontrol": "echo localhost\necho other",
        "srun": 'for node in 0 1; do SLURM_NODEID=$node HF_HOME="$HF_HOME/machine_$node" "$@" & done; wait %1 && wait %2',
        "accelerate": f'exec "{sys.executable}" -m accelerate.commands.accelerate_cli "$@"',
    }
    for name, code in commands.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\n{code}\n")
        command.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "localhost,other", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    with socket.socket() as probe:
        for port in range(20000 + os.getpid() % 9000, 30000):
            with suppress(OSError):
                probe.bind(("", port))
                break
    slurm["SLURM_JOB_ID"] = str(port)
    file = Path(write(single_label_data(), "data.csv")).resolve()
    flags = [*common_flags(model_folder, tmp_path / "out"), "--do_train", "--do_predict"]
    result = subprocess.run(
        ["bash", "accelerate/slurm.sh", *flags, "--train_file", file, "--test_file", file, "--focal_alpha", "inverse"],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        env={**os.environ, **slurm, "ACCELERATE_USE_CPU": "true", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stderr
    # 2 epochs of 20 examples in batches of 4 are 10 steps in one process: 6 show that there were two.
    assert json.loads(Path(tmp_path, "out/trainer_state.json").read_text())["global_step"] == 6
    assert len(Path(tmp_path, "out/predict_results.txt").read_text().splitlines()) == 21
    assert result.stdout.count("f1-score") == 1


def test_deepspeed_config():
    config = load_config_from_file(str(EXAMPLES / "accelerate" / "deepspeed_zero2.yaml"))
    assert config.distributed_type == "DEEPSPEED" and config.deepspeed_config["zero_stage"] == 2


def with_column(name, value):
    return lambda: single_label_data().assign(**{name: value})


@pytest.mark.parametrize(
    "message, flags, files",
    [
        (r"the train split has no column \['title'\], only \['text', 'label'\]", "--text_column_names title", {}),
        (r"the train split has no column \['topic'\]", "--label_column_name topic", {}),
        (
            r"the validation split has no column \['label'\]",
            "--do_eval",
            {"validation.csv": lambda: single_label_data().drop(columns="label")},
        ),
        (
            "the test split is empty",
            "--do_predict",
            {"test.csv": lambda: single_label_data().iloc[:0]},
        ),
        (
            "--test_file: test.parquet cannot be read as parquet .is it empty",
            "--do_predict",
            {"test.parquet": lambda: single_label_data().iloc[:0]},
        ),
        ("column 'text' of the train split is empty in 20 rows", "", {"train.json": with_column("text", None)}),
        ("column 'label' of the train split is empty in 20 rows", "", {"train.json": with_column("label", None)}),
        (
            r"the test split has labels that are not in the training data: \['golf'\]",
            "--do_predict",
            {"test.csv": with_column("label", "golf")},
        ),
        ("column 'label': expected labels as strings or integers", "", {"train.csv": with_column("label", 0.5)}),
        (
            "column 'label': expected lists of labels; rows of 0 and 1",
            "",
            {"train.json": lambda: single_label_data().assign(label=[[1, 0, 1]] * 20)},
        ),
        (
            "column 'label': expected lists of labels, but some entries are empty",
            "",
            {"train.json": lambda: single_label_data().assign(label=[["a", None], ["b"]] * 10)},
        ),
        (
            "column 'label' of the test split is empty in 10 rows",
            "--do_predict",
            {"test.json": lambda: single_label_data().assign(label=["sport", None] * 10)},
        ),
        ("column 'label' of the train split has only one class", "", {"train.csv": with_column("label", "sport")}),
        ("--train_file: nothing.json cannot be read as json", "--train_file nothing.json", {}),
        ("--do_eval: a validation split .* only train; pass one with --validation_file", "--do_eval", {}),
        ("--do_predict: a test split .* only train; pass one with --test_file", "--do_predict", {}),
        ("--train_file: missing.csv does not exist", "--train_file missing.csv", {}),
        ("--train_file: expected a csv, tsv, json or parquet file, but got train.txt", "--train_file train.txt", {}),
        ("--train_file: broken.parquet cannot be read as parquet", "--train_file broken.parquet", {}),
        ("--train_file: broken.json cannot be read as json", "--train_file broken.json", {}),
        ("--train_file: broken.csv cannot be read as csv", "--train_file broken.csv", {}),
        ("the train split is unlabelled", "", {"train.csv": with_column("label", -1)}),
        ("nothing to do", "--do_train False", {}),
        ("--max_train_samples: expected at least 1, but got 0", "--max_train_samples 0", {}),
        ("--num_train_epochs: expected a number above 0, but got 0", "--num_train_epochs 0", {}),
        ("--num_train_epochs: expected .*, but got -1", "--num_train_epochs -1 --max_steps 0", {}),
    ],
)
def test_refuses(model_folder, message, flags, files):
    for name in ("broken.parquet", "broken.json"):
        Path(name).write_bytes(b"no such thing \xff")
    Path("broken.csv").touch()
    Path("nothing.json").touch()
    paths = {"train": write(single_label_data(), "train.csv")}
    paths |= {path.partition(".")[0]: write(data(), path) for path, data in files.items()}
    file_flags = [part for split, path in paths.items() for part in (f"--{split}_file", path)]
    with pytest.raises(ValueError, match=message):
        run(SCRIPT, *common_flags(model_folder), "--do_train", *file_flags, *flags.split())
    assert not Path("out").exists()
