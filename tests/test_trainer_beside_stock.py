"""FocalTrainer with gamma 0 beside Trainer, where both are right: on one process, without gradient accumulation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from exactness import tiny_dataset, tiny_model
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    EarlyStoppingCallback,
    ElectraConfig,
    EvalPrediction,
    GPT2Config,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
    Trainer,
    TrainingArguments,
    ViTConfig,
    set_seed,
)

from hf_focal import FocalTrainer, compute_metrics


EVALUATE = {"eval_strategy": "steps", "eval_steps": 2}
SAVE = {"save_strategy": "steps", "save_steps": 2}

# What a user may pass to Trainer, by the arguments of TrainingArguments or of Trainer itself.
ARGUMENTS = {
    "defaults": {},
    "last batch left out": {"dataloader_drop_last": True, "num_train_epochs": 2, "max_steps": -1},
    "last batch of one": {"per_device_train_batch_size": 3, "max_steps": -1, "num_train_epochs": 1},
    "clipped gradient": {"max_grad_norm": 0.05},
    "another optimizer": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})},
    "schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "bfloat16": {"bf16": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "noisy embeddings": {"neftune_noise_alpha": 5.0},
    "logging by epoch": {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
    "logging of the first step": {"logging_first_step": True, "logging_steps": 2},
    "all columns": {"remove_unused_columns": False},
    "another seed": {"seed": 7, "data_seed": 11},
    "workers": {"dataloader_num_workers": 1},
    "evaluation": {**EVALUATE, "eval_on_start": True},
    "evaluation in parts": {**EVALUATE, "eval_accumulation_steps": 1, "eval_do_concat_batches": False},
    "metrics batch by batch": {**EVALUATE, "batch_eval_metrics": True},
    "loss alone": {**EVALUATE, "prediction_loss_only": True},
    "losses and inputs for metrics": {**EVALUATE, "include_for_metrics": ["loss", "inputs"]},
    "best model": {**EVALUATE, **SAVE, "load_best_model_at_end": True, "metric_for_best_model": "f1_macro"},
    "early stopping": {
        **EVALUATE,
        **SAVE,
        "load_best_model_at_end": True,
        "callbacks": [EarlyStoppingCallback(1, 10.0)],
    },
    "few checkpoints": {**SAVE, "save_total_limit": 1, "save_only_model": True},
    "logits cut short": {**EVALUATE, "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)},
}

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = {"vocab_size": 30, "pad_token_id": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **SIZES}
BART = {
    "vocab_size": 30,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0, "bos_token_id": 1}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CLASSIFY = AutoModelForSequenceClassification

# The task of the data, the class of the model, and its config.
MODELS = {
    "BERT": ("single_label", CLASSIFY, BertConfig(num_labels=3, **BERT)),
    "BERT with dropout": ("single_label", CLASSIFY, BertConfig(num_labels=3, **{**BERT, "hidden_dropout_prob": 0.3})),
    "BERT of tuples": ("single_label", CLASSIFY, BertConfig(num_labels=3, return_dict=False, **BERT)),
    "BERT of several labels": ("multi_label", CLASSIFY, BertConfig(num_labels=3, **BERT)),
    "BERT of tokens": ("tokens", AutoModelForTokenClassification, BertConfig(num_labels=3, **BERT)),
    "BERT of masked words": ("tokens", AutoModelForMaskedLM, BertConfig(**BERT)),
    "RoBERTa": ("single_label", CLASSIFY, RobertaConfig(num_labels=3, **BERT)),
    "DistilBERT": (
        "single_label",
        CLASSIFY,
        DistilBertConfig(vocab_size=30, num_labels=3, dim=16, hidden_dim=16, n_layers=1, n_heads=2, pad_token_id=0),
    ),
    "DeBERTa": ("single_label", CLASSIFY, DebertaV2Config(num_labels=3, **BERT)),
    "ModernBERT": (
        "single_label",
        CLASSIFY,
        ModernBertConfig(vocab_size=30, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SIZES),
    ),
    "ELECTRA": ("single_label", CLASSIFY, ElectraConfig(num_labels=3, embedding_size=16, **BERT)),
    "ALBERT": ("single_label", CLASSIFY, AlbertConfig(num_labels=3, embedding_size=16, **BERT)),
    "BART": ("text", AutoModelForSeq2SeqLM, BartConfig(**BART)),
    "T5": ("text", AutoModelForSeq2SeqLM, T5Config(decoder_start_token_id=0, **T5)),
    "GPT-2": ("text", AutoModelForCausalLM, GPT2Config(**GPT2, **NO_DROPOUT)),
    "ViT": (
        "images",
        AutoModelForImageClassification,
        ViTConfig(num_labels=3, image_size=8, patch_size=4, hidden_dropout_prob=0.0, **SIZES),
    ),
}


def data_for(task: str) -> Dataset:
    if task == "images":
        pixels = np.random.default_rng(0).random((25, 3, 8, 8), np.float32)
        data = Dataset.from_dict({"pixel_values": pixels, "labels": tiny_dataset(num_examples=25)["labels"][:]})
        return data.with_format("torch")
    if task == "text":
        ids = [[max(token, 3) for token in row] for row in tiny_dataset(num_examples=25)["input_ids"][:]]
        return Dataset.from_dict({"input_ids": ids, "labels": [[-100, *row[:3], -100, row[5]] for row in ids]})
    return tiny_dataset(task, 25)


def run(trainer_class: type[Trainer], folder: Path, make_model, task: str, arguments: dict) -> dict:
    defaults = {
        "max_steps": 4,
        "optim": "sgd",  # which does not magnify the rounding of small gradients, as Adam does
        "learning_rate": 0.1,
        "per_device_eval_batch_size": 25,  # of tokens, Trainer's eval_loss depends on it
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = {**defaults, **arguments}
    of_args = {name: arguments.pop(name) for name in [*arguments] if name in TrainingArguments.__dataclass_fields__}
    if trainer_class is FocalTrainer:
        arguments |= {"gamma": 0, "prior_bias": False}
    data = data_for(task)
    set_seed(0)
    trainer = trainer_class(
        model=make_model(),
        args=TrainingArguments(str(folder), **of_args),
        train_dataset=data,
        eval_dataset=data,
        **arguments,
    )
    trainer.train()
    output = trainer.predict(data)
    trainer.save_model()
    return {
        "log": trainer.state.log_history,
        "weights": trainer.model.state_dict(),
        "predictions": output.predictions,
        "label_ids": output.label_ids,
        "metrics": output.metrics,
        "files": sorted(str(file.relative_to(folder)) for file in folder.rglob("*")),
        "best": Path(trainer.state.best_model_checkpoint or "").name,
    }


def numbers(logs: dict) -> dict:
    """Of what is logged, what does not depend on the clock."""
    clocks = ("_runtime", "_second", "_time", "total_flos")
    return {name: value for name, value in logs.items() if not name.endswith(clocks)}


def assert_equal(ours: dict, stock: dict) -> None:
    for name in stock["weights"]:
        torch.testing.assert_close(ours["weights"][name], stock["weights"][name], rtol=1e-4, atol=2e-6)
    assert len(ours["log"]) == len(stock["log"])
    for log, expected in zip([*ours["log"], ours["metrics"]], [*stock["log"], stock["metrics"]]):
        assert expected.keys() <= log.keys()
        expected = numbers(expected)
        assert {name: log[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for name in ("predictions", "label_ids"):
        flat, expected = (
            [array for array in torch.utils._pytree.tree_leaves(run[name]) if array is not None]
            for run in (ours, stock)
        )
        assert len(flat) == len(expected)
        for found, array in zip(flat, expected):
            np.testing.assert_allclose(found, array, rtol=1e-3, atol=1e-5)
    assert ours["files"] == stock["files"]
    assert ours["best"] == stock["best"]


def metrics(prediction, compute_result=True):
    logits, labels = (np.asarray(array) for array in (prediction.predictions, prediction.label_ids))
    if logits.ndim != 2:
        return {"mean_prediction": logits.mean()}
    found = compute_metrics(EvalPrediction(logits, labels))
    return {name: found[name] for name in ("accuracy", "f1_macro", "brier_score")}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(tmp_path, case):
    runs = []
    for trainer_class in (FocalTrainer, Trainer):
        folder = tmp_path / trainer_class.__name__
        has_no_metrics = {"eval_do_concat_batches", "prediction_loss_only"} & ARGUMENTS[case].keys()
        extra = {} if has_no_metrics else {"compute_metrics": metrics}
        runs.append(run(trainer_class, folder, tiny_model, "single_label", {**extra, **ARGUMENTS[case]}))
    assert_equal(*runs)


@pytest.mark.parametrize("case", MODELS)
def test_models(tmp_path, case):
    task, model_class, config = MODELS[case]
    runs = [
        run(trainer_class, tmp_path / trainer_class.__name__, lambda: model_class.from_config(config), task, EVALUATE)
        for trainer_class in (FocalTrainer, Trainer)
    ]
    assert_equal(*runs)


def test_a_difference_is_seen(tmp_path):
    """The negative control: another loss, and accumulation, which Trainer of version 5 scales wrongly."""
    stock = run(Trainer, tmp_path / "stock", tiny_model, "single_label", {})
    ours = run(FocalTrainer, tmp_path / "ours", tiny_model, "single_label", {"label_smoothing_factor": 0.1})
    with pytest.raises(AssertionError):
        assert_equal(ours, stock)
