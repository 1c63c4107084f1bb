"""The examples that read probabilities out of trained models."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from toy_texts import common_flags, markdown_rows, run, single_label_data, write

from hf_focal import class_posterior, posterior_from_config


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
    rows = markdown_rows(printed)
    assert rows["loss"].tolist() == ["cross entropy"] * 2 + ["focal"] * 4 + ["focal, alpha"] * 4
    assert rows["probabilities"].tolist()[2:6] == [
        "raw",
        "raw + temperature",
        "posterior",
        "posterior + temperature",
    ]
    cells = pd.read_json("out/calibration.jsonl", lines=True)
    # Temperature is fitted on the validation split, which is the test split here: it cannot make the likelihood worse.
    before, after = (cells[cells["probabilities"].str.contains("temp") == scaled] for scaled in (False, True))
    assert (after["negative_log_likelihood"].values <= before["negative_log_likelihood"].values + 1e-9).all()
    assert Path("out/reliability.png").stat().st_size > 1000
    # A finished cell is not run again.
    finished = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/model.safetensors")}
    run(script, "--seeds", 1, *data_flags)
    assert len(finished) == 3 and all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert markdown_rows(capsys.readouterr().out).equals(rows)
    run(script, "--seeds", 1, "--losses", "focal", *data_flags)
    assert markdown_rows(capsys.readouterr().out)["loss"].tolist() == ["focal"] * 4


def test_held_out_prior_is_a_reading_of_its_own(monkeypatch):
    from calibration import readings
    from transformers import BertConfig

    settings = {"gamma": 2.0, "alpha": [0.5, 1.0, 4.0], "class_prior": [0.6, 0.3, 0.1]}
    logits = torch.randn(4, 3, dtype=torch.float64)
    found = readings(logits, BertConfig(focal_loss=settings), torch.full((3,), 1 / 3))
    torch.testing.assert_close(found["posterior"], class_posterior(logits, gamma=2.0, alpha=[0.5, 1.0, 4.0]))
    balanced = found["posterior"] / torch.tensor([0.6, 0.3, 0.1])
    torch.testing.assert_close(found["posterior, held-out prior"], balanced / balanced.sum(-1, keepdim=True))


def test_operating_points(data_flags, capsys):
    from trained_model import held_out_logits
    from transformers import AutoConfig

    run("operating_points.py", *data_flags, "--focal_alpha", "inverse")
    printed = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split()[-4:] for line in printed.splitlines()}
    config = AutoConfig.from_pretrained("out")
    assert config.focal_loss["temperature"] is not None
    logits, labels = held_out_logits(Path("out"), data_flags)["test"]
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
