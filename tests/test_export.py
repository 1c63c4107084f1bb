"""An exported graph says what the pipeline says, in a runtime that does not know this package."""

import numpy as np
import onnxruntime
import pytest
import torch
from test_folding import make, save_tokenizer
from transformers import pipeline

from hf_focal import FocalTextClassificationPipeline, decide, export_posterior, posterior_from_config


TEXTS = ["ball bank", "king", "goal share queen ball bank king"]
SETTINGS = {"gamma": 2.0, "temperature": 1.2, "calibration_bias": [0.3, 0.0, -0.3], "class_prior": [0.6, 0.3, 0.1]}
ALPHA = {False: [1.0, 2.0, 3.0], True: [[1.0, 1.0, 2.0], [2.0, 3.0, 4.0]]}


def outputs_of(path, inputs):
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return [output.detach().numpy() for output in program(*map(torch.tensor, inputs.values()))]
    session = onnxruntime.InferenceSession(path)
    assert [entry.name for entry in session.get_inputs()] == [*inputs]
    assert [entry.name for entry in session.get_outputs()] == ["probabilities", "scores"]
    return session.run(None, dict(inputs))


@pytest.mark.parametrize(
    "format, multi_label, point",
    [
        ("onnx", True, "thresholds"),
        ("torch", False, "as_trained"),
    ],
)
def test_says_what_the_pipeline_says(tmp_path, format, multi_label, point):
    thresholds = {"thresholds": [0.3, 0.5, 0.2]} if multi_label else {}
    settings = {**SETTINGS, **thresholds, "alpha": ALPHA[multi_label], "operating_point": point}
    model = make("bert", "text-classification", multi_label=multi_label, **settings)
    with torch.no_grad():  # logits up to 100, where the sigmoid of onnxruntime is 0
        model.classifier.weight *= 70
    model.save_pretrained(tmp_path / "model")
    tokenizer = save_tokenizer(tmp_path / "model")
    path = export_posterior(model, tmp_path / "exported", format, tokenizer=tokenizer)
    assert (tmp_path / "exported" / "config.json").exists()
    classify = pipeline(
        "text-classification", model=str(tmp_path / "model"), pipeline_class=FocalTextClassificationPipeline
    )
    tokens = tokenizer(TEXTS, padding=True, return_tensors="np")
    probabilities, scores = outputs_of(path, tokens)
    logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    assert 50 < logits.abs().max() < 500
    for text, p, of_text in zip(TEXTS, probabilities, scores):
        results = classify(text, top_k=None)
        expected = {result["label"]: result["score"] for result in results}
        assert {f"class {k}": value for k, value in enumerate(p)} == pytest.approx(expected, abs=1e-5)
        if multi_label:
            decided = {f"class {k}" for k in np.flatnonzero(of_text >= 0.5)}
            assert decided == {result["label"] for result in results if result["decided"]}
        else:
            assert f"class {of_text.argmax()}" == results[0]["label"]


def test_tokens_and_a_prior(tmp_path):
    model = make("bert", "token-classification", **SETTINGS, alpha=ALPHA[False]).train()
    path = export_posterior(model, tmp_path, "torch", prior=[0.2, 0.3, 0.5])
    assert model.training  # as it was
    model.eval()
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    tokens = {"input_ids": ids.numpy(), "attention_mask": np.ones((3, 9), np.int64)}
    probabilities, scores = outputs_of(path, tokens)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    expected = decide(logits, model.config, prior=[0.2, 0.3, 0.5])
    assert probabilities.shape == (3, 9, 3) and (scores.argmax(-1) == expected.numpy()).all()
    assert not np.allclose(probabilities, posterior_from_config(logits, model.config).numpy(), atol=1e-3)


@pytest.mark.parametrize(
    "message, settings, kwargs",
    [
        ("format: expected one of onnx, torch, but got 'tflite'", SETTINGS, {"format": "tflite"}),
        (
            "operating_point: 'thresholds' is for two classes or several labels",
            SETTINGS,
            {"operating_point": "thresholds"},
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, message, settings, kwargs):
    with pytest.raises(ValueError, match=message):
        export_posterior(make("bert", "text-classification", **settings), tmp_path / "out", **kwargs)
    assert not (tmp_path / "out").exists()


def test_without_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_focal.export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_focal\[export\]', or use format='torch'"):
        export_posterior(make("bert", "text-classification", **SETTINGS), tmp_path)
