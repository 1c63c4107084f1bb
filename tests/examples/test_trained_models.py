"""The examples that read probabilities out of trained models."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from toy_texts import common_flags, markdown_rows, run, single_label_data, write

from hf_focal import FocalSettings, class_posterior, posterior_from_config, sigmoid_class_posterior


# Of a few texts that a model has learned by heart.
pytestmark = pytest.mark.filterwarnings("ignore:labels. (all predictions|the likelihood)")


@pytest.fixture
def data_flags(model_folder):
    files = {split: write(single_label_data(), f"{split}.csv") for split in ("train", "validation", "test")}
    return [
        *common_flags(model_folder),
        *(word for split, file in files.items() for word in (f"--{split}_file", file)),
    ]


def test_calibration(data_flags, capsys):
    script = "calibration.py"
    run(script, "--seeds", 1, *data_flags)
    printed = capsys.readouterr().out
    rows, ways = markdown_rows(printed), ["raw softmax", "closed form", "temperature", "vector scaling"]
    assert rows["loss"].tolist() == ["cross entropy"] * 6 + ["focal"] * 6 + ["focal, alpha"] * 6
    assert rows["probabilities"].tolist()[:4] == ways and rows["probabilities"][4].startswith("chosen (")
    cells = pd.read_json("out/calibration.jsonl", lines=True).set_index(["loss", "probabilities"])
    # They are fitted on the validation split, which is the test split here: they cannot make the likelihood worse.
    for loss, of_loss in cells["negative_log_likelihood"].groupby("loss"):
        before = of_loss[loss, "closed form"]
        assert all(of_loss[loss, way] <= before + 1e-9 for way in ("temperature", "vector scaling", "chosen"))
    assert Path("out/reliability.png").stat().st_size > 1000
    # A finished cell is not run again.
    finished = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/model.safetensors")}
    run(script, "--seeds", 1, *data_flags)
    assert len(finished) == 3 and all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert markdown_rows(capsys.readouterr().out).equals(rows)
    run(script, "--seeds", 1, "--losses", "focal", *data_flags)
    assert markdown_rows(capsys.readouterr().out)["loss"].tolist() == ["focal"] * 6


def test_posteriors_are_shifted_to_balanced_held_out_data():
    from calibration import readings

    settings = FocalSettings(gamma=2.0, alpha=[0.5, 1.0, 4.0], class_prior=[0.6, 0.3, 0.1])
    logits = torch.randn(4, 3, dtype=torch.float64)
    for labels, is_shifted in (([0, 1, 2], True), ([0, 0, 1], False)):
        found = readings(logits, (torch.randn(3, 3).double(), torch.tensor(labels)), settings)
        torch.testing.assert_close(found["closed form"][0], class_posterior(logits, gamma=2.0, alpha=[0.5, 1.0, 4.0]))
        assert ("closed form, shifted" in found) == is_shifted
        if is_shifted:
            balanced = found["closed form"][0] / torch.tensor([0.6, 0.3, 0.1])
            expected = balanced / balanced.sum(-1, keepdim=True)
            torch.testing.assert_close(found["closed form, shifted"][0], expected)


def test_several_labels_are_read_by_sigmoid_and_its_posterior():
    from calibration import readings

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 3, dtype=torch.float64, generator=generator)
    labels = (0.5 * logits).sigmoid().bernoulli(generator=generator)
    settings = FocalSettings(gamma=2.0, class_prior=[0.5, 0.5, 0.5])
    found = {name: p for name, (p, _) in readings(logits, (logits, labels), settings, multi_label=True).items()}
    torch.testing.assert_close(found["raw sigmoid"], logits.sigmoid())
    torch.testing.assert_close(found["closed form"], sigmoid_class_posterior(logits, gamma=2.0))
    likelihood = {name: torch.nn.functional.binary_cross_entropy(p, labels).item() for name, p in found.items()}
    assert likelihood["vector scaling"] < likelihood["closed form"]
    assert likelihood["folded into the head"] < likelihood["raw sigmoid"]
    torch.testing.assert_close(found["folded into the head"], (0.5 * logits).sigmoid(), atol=0.08, rtol=0)


def test_operating_points(data_flags, capsys):
    from trained_model import held_out_logits
    from transformers import AutoConfig

    run("operating_points.py", *data_flags, "--focal_alpha", "inverse")
    printed = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split()[-4:] for line in printed.splitlines()}
    config = AutoConfig.from_pretrained("out")
    assert config.focal_loss["temperature"] is not None
    logits, labels = held_out_logits(Path("out"))["test"]
    accuracy = (posterior_from_config(logits, config).argmax(-1) == labels).double().mean()
    # The test split is the training split, so accuracy at the training prior is accuracy.
    assert lines["most_likely"][:2] == [f"{accuracy:.3f}"] * 2
    assert {"as_trained", "balanced", "prior=estimated"} <= lines.keys()
    assert Path("out/recall.png").stat().st_size > 1000


def test_a_model_that_cannot_be_calibrated_is_saved_all_the_same(data_flags):
    # Of a class without weight the logits know nothing, so there is no posterior.
    run("run_text_classification.py", *data_flags, "--do_train", "--do_eval", "--do_predict", "--focal_alpha", "0,1,1")
    settings = json.loads(Path("out/config.json").read_text())["focal_loss"]
    assert settings["alpha"] == [0, 1, 1] and settings["temperature"] is None
    assert Path("out/model.safetensors").exists() and Path("out/test_results.json").exists()
