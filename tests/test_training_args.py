"""FocalTrainingArguments as flags and in files."""

import json

import pytest
import torch
from transformers import HfArgumentParser

from hf_focal import FocalTrainingArguments


def parse(*flags):
    (args,) = HfArgumentParser(FocalTrainingArguments).parse_args_into_dataclasses(list(flags))
    return args


def test_defaults_are_focal_loss_without_alpha():
    args = parse()
    assert (args.focal_gamma, args.focal_alpha, args.focal_beta) == (2.0, None, 0.999)


@pytest.mark.parametrize(
    "text, alpha",
    [
        ("inverse", "inverse"),
        ("0.25", 0.25),
        ("1,2,3.5", [1, 2, 3.5]),
        ("1, 2", [1, 2]),
        ("1,1;5,0.2", [[1, 1], [5, 0.2]]),
        ("none", None),
    ],
)
def test_alpha_from_a_flag(text, alpha):
    assert parse("--focal_alpha", text).focal_alpha == alpha


def test_values_from_a_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"focal_gamma": 1, "focal_alpha": [1.0, 2.0], "focal_beta": 0.9}))
    (args,) = HfArgumentParser(FocalTrainingArguments).parse_json_file(path)
    assert (args.focal_gamma, args.focal_alpha, args.focal_beta) == (1.0, [1.0, 2.0], 0.9)


def test_arguments_can_be_logged():
    for args in (parse("--focal_alpha", "1,2"), FocalTrainingArguments(focal_alpha=torch.tensor([1.0, 2.0]))):
        assert json.loads(args.to_json_string())["focal_alpha"] == [1, 2]


def test_gamma_stays_a_float_for_searches():
    # hyperparameter_search casts each trial's value to the type of the old one.
    assert type(FocalTrainingArguments(focal_gamma=2).focal_gamma) is float


@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("focal_gamma: expected a finite number >= 0, but got -1", {"focal_gamma": -1}),
        ("focal_gamma", {"focal_gamma": float("nan")}),
        (r"focal_beta: expected a number in \[0, 1\), but got 1", {"focal_beta": 1}),
        ("focal_gamma", {"focal_gamma": None}),
        ("focal_beta", {"focal_beta": "0.9"}),
        ("focal_alpha: expected finite numbers >= 0", {"focal_alpha": "1,-2"}),
        ("focal_alpha: expected a number or one per class", {"focal_alpha": ["a"]}),
        ("focal_alpha: expected a number or one per class", {"focal_alpha": "1,2;3"}),
        ("focal_alpha: expected none, one of inverse.*but got 'uniform'", {"focal_alpha": "uniform"}),
    ],
)
def test_refuses(message, kwargs):
    with pytest.raises(ValueError, match=message):
        FocalTrainingArguments(**kwargs)
