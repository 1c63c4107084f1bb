"""The card that FocalTrainer writes: of the right model, without a trace in the training, and never a reason to fail.

`python -m torch.distributed.run --nproc_per_node 2 tests/test_trainer_card.py FOLDER` trains on two processes and lets
the main one write cards, as `push_to_hub` does.
"""

import gc
import inspect
import json
import os
import random
import re
import subprocess
import sys
import warnings
from concurrent.futures import Future
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset, DatasetInfo, Version
from exactness import NUM_EVAL_EXAMPLES, tiny_dataset, tiny_model, weighted_dataset
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model
from test_model_card import HOSTILE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DefaultDataCollator,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import hf_focal
from hf_focal import FocalSettings, FocalTrainer, compute_metrics, decide, flsd_53, posterior_from_config
from hf_focal._command import without_paths, without_secrets
from hf_focal._model_kinds import task_of
from hf_focal._trainer_card import fingerprint
from hf_focal.metrics import ImbalancedClassification
from hf_focal.model_card import TOLERANCE, describe_hardware, read_model_card


def make_trainer(folder, task="single_label", model=None, **kwargs):
    """Of its three evaluations the first counts as the best: the loss falls, and the largest one wins."""
    arguments = {name: kwargs.pop(name) for name in list(kwargs) if name in TrainingArguments.__dataclass_fields__}
    defaults = {
        "max_steps": 6,
        "learning_rate": 0.5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return FocalTrainer(
        tiny_model(task) if model is None else model,
        TrainingArguments(str(folder), **{**defaults, **arguments}),
        **{"train_dataset": tiny_dataset(task), "eval_dataset": tiny_dataset(task, NUM_EVAL_EXAMPLES), **kwargs},
    )


def quick_trainer(folder, task="single_label", **kwargs):
    """Trains one step, without an evaluation."""
    quick = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return make_trainer(folder, task, **{**quick, **kwargs})


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Trains what several tests look at, once each, by name."""
    several = {"a": tiny_dataset(num_examples=7), "a_b": tiny_dataset(num_examples=9), "c": tiny_dataset()}
    make = {
        "quick": quick_trainer,
        "best": make_trainer,
        "last": partial(make_trainer, load_best_model_at_end=False),
        "several": partial(make_trainer, eval_dataset=several, metric_for_best_model="eval_a_b_loss"),
    }

    @cache
    def trained(name):
        trainer = make[name](tmp_path_factory.mktemp(name))
        trainer.train()
        return trainer

    return trained


@pytest.fixture
def trained(trainings, tmp_path, monkeypatch):
    """One of these trainings, with cards in the test's own folder; what the test does to it has to be patched."""

    def choose(name="quick", **patched):
        trainer = trainings(name)
        monkeypatch.setattr(trainer.args, "output_dir", str(tmp_path))
        monkeypatch.setattr(trainer.state, "log_history", [*trainer.state.log_history])
        monkeypatch.setattr(trainer.model.config, "focal_loss", {**trainer.model.config.focal_loss})
        for attribute, value in patched.items():
            monkeypatch.setattr(trainer, attribute, value)
        return trainer

    return choose


def evaluations(trainer):
    return {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}


def card_of(trainer, **said):
    trainer.create_model_card(**said)
    return read_model_card(Path(trainer.args.output_dir) / "README.md")


def assert_close(found, expected):
    """Apart from the groups of classes, which need their counts in training."""
    names = expected.keys() - {"f1_head", "f1_mid", "f1_tail"}
    assert all(found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5) for name in names)


def is_own_of_trainer(folder):
    text = (folder / "README.md").read_text()
    return "More information needed" in text and "json hf_focal" not in text


class At(TrainerCallback):
    """Does something at an event of the training."""

    def __init__(self, event, action):
        def act(*args, **kwargs):
            action()

        setattr(self, event, act)


@pytest.fixture(autouse=True)
def without_drawing(request, monkeypatch):
    """Pictures take most of the time."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr("hf_focal.model_card._draw", lambda *args: {})


def test_signature_begins_with_that_of_trainer():
    own, theirs = (inspect.signature(one.create_model_card).parameters for one in (FocalTrainer, Trainer))
    own, theirs = ([(p.name, p.default, p.kind) for p in one.values()] for one in (own, theirs))
    assert own[: len(theirs)] == theirs
    assert all(kind == inspect.Parameter.KEYWORD_ONLY for _, _, kind in own[len(theirs) :])


@pytest.mark.usefixtures("without_drawing")
class TestWhichModel:
    def test_the_best_and_not_the_last(self, trained):
        trainer = trained("best")
        by_step, contents = evaluations(trainer), card_of(trainer)
        best = trainer.state.best_global_step
        assert best == 2 and by_step[2] > by_step[6] + 0.1
        assert contents.metrics["loss"] == [pytest.approx(by_step[best], abs=1e-6)]
        assert contents.hyperparameters["step_of_this_model"] == best
        saved = BertForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint).eval()
        data = tiny_dataset(num_examples=NUM_EVAL_EXAMPLES)
        with torch.no_grad():
            logits = saved(torch.tensor(data["input_ids"][:])).logits
        # The decisions are those of the logits, the probabilities the posterior.
        expected = ImbalancedClassification().compute(
            predictions=posterior_from_config(logits, saved.config).log(),
            references=data["labels"][:],
            label_names=["LABEL_0", "LABEL_1", "LABEL_2"],
            label_counts=saved.config.focal_loss["label_counts"],
            decisions=logits.argmax(-1),
        )
        per_class = expected.pop("per_class")
        assert {name: [pytest.approx(value, abs=1e-5)] for name, value in expected.items()}.items() <= (
            contents.metrics.items()
        )
        assert contents.per_class["LABEL_1"] == {
            key: [pytest.approx(value)] for key, value in per_class["LABEL_1"].items()
        }

    def test_the_last_where_that_is_kept(self, trained):
        trainer = trained("last")
        by_step, contents = evaluations(trainer), card_of(trainer)
        assert contents.metrics["loss"] == [pytest.approx(by_step[6], abs=1e-6)]
        assert contents.hyperparameters["step_of_this_model"] == 6

    @pytest.mark.parametrize("name", ["best", "last"])
    def test_in_the_log_where_it_may_not_predict(self, trained, monkeypatch, name):
        trainer = trained(name)
        by_step = evaluations(trainer)
        expected = by_step[trainer.state.best_global_step if name == "best" else 6]
        trainer.evaluate(tiny_dataset(num_examples=3))  # other data, which the training has not evaluated on
        monkeypatch.setattr(TrainingArguments, "world_size", 2)
        monkeypatch.setattr(trainer, "predict", lambda *args: pytest.fail("predicts"))
        contents = card_of(trainer)
        assert contents.metrics == {"loss": [expected]} and not contents.per_class
        assert "processes: 2" in contents.hardware

    def test_evaluated_only_after_training(self, trained, monkeypatch):
        trainer = trained()
        loss = trainer.evaluate()["eval_loss"]
        monkeypatch.setattr(TrainingArguments, "world_size", 2)
        assert card_of(trainer).metrics == {"loss": [loss]}

    def test_during_training(self, tmp_path, monkeypatch):
        trainer, cards = make_trainer(tmp_path), {}
        trainer.add_callback(At("on_step_end", lambda: cards.update({trainer.state.global_step: card_of(trainer)})))
        trainer.add_callback(At("on_evaluate", lambda: cards.update({trainer.state.global_step: card_of(trainer)})))
        monkeypatch.setattr(trainer, "predict", lambda *args: pytest.fail("predicts"))
        trainer.train()
        by_step = evaluations(trainer)
        assert {step: contents.metrics.get("loss") for step, contents in cards.items()} == {
            step: [by_step[step]] if step in by_step else None for step in range(1, 7)
        }
        assert cards[3].limits == ["Written during training, after step 3 of 6."]

    def test_when_training_has_just_ended(self, tmp_path):
        """Trainer has loaded the best model by then, and is still in training in its version 5."""
        trainer, cards = make_trainer(tmp_path), []
        trainer.add_callback(At("on_train_end", lambda: cards.append(card_of(trainer))))
        trainer.train()
        best = evaluations(trainer)[trainer.state.best_global_step]
        assert cards[0].metrics["loss"] == [pytest.approx(best, abs=1e-6)]

    def test_untrained_is_left_to_trainer(self, tmp_path):
        quick_trainer(tmp_path).create_model_card()
        assert is_own_of_trainer(tmp_path)


@pytest.mark.usefixtures("without_drawing")
class TestNoTrace:
    def test_in_log_and_callbacks(self, trained):
        events = []

        class Recorder(TrainerCallback):
            def __getattribute__(self, name):
                if name.startswith("on_"):
                    events.append(name)
                return super().__getattribute__(name)

        trainer, recorder = trained(), Recorder()
        trainer.add_callback(recorder)
        history, config = json.dumps(trainer.state.log_history), trainer.model.config.to_dict()
        events.clear()
        card_of(trainer)
        trainer.remove_callback(recorder)
        assert json.dumps(trainer.state.log_history) == history and trainer.model.config.to_dict() == config
        assert set(events) == {"on_prediction_step", "on_predict"}

    def test_in_the_random_numbers(self, trained):
        """Whatever draws some while the card is written, metrics of the user for example."""

        def draw(*args):
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
            return {}

        drawn = []
        trainer = trained(compute_metrics=draw)
        set_seed(0)
        draw()
        set_seed(0)
        card_of(trainer)
        draw()
        assert len(drawn) == 3 and drawn[0] == drawn[2]

    def test_training_goes_on_as_without(self, tmp_path):
        outcomes = {}
        for name, write in {"with": card_of, "without": lambda trainer: None}.items():
            model = tiny_model(hidden_dropout_prob=0.5)
            trainer = make_trainer(tmp_path / name, model=model, max_steps=2, eval_steps=1, save_steps=1)
            trainer.train()
            write(trainer)
            drawn = torch.rand(1).item()
            trainer.train()
            outcomes[name] = drawn, {key: value.tolist() for key, value in model.state_dict().items()}
        assert outcomes["with"] == outcomes["without"]

    def test_cards_during_training_change_nothing(self, tmp_path):
        weights = []
        for folder in ("with", "without"):
            trainer = make_trainer(tmp_path / folder, model=tiny_model(hidden_dropout_prob=0.5), max_steps=3)
            if folder == "with":
                trainer.add_callback(At("on_step_end", lambda: card_of(trainer)))  # noqa: B023
            trainer.train()
            weights.append(trainer.model.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class TestTasks:
    def test_tokens_and_their_pictures(self, tmp_path):
        trainer = quick_trainer(tmp_path, "tokens")
        trainer.train()
        contents = card_of(trainer)
        labels = np.array(tiny_dataset("tokens", NUM_EVAL_EXAMPLES)["labels"][:])
        assert contents.task == "token-classification" and ModelCard.load(
            tmp_path / "README.md"
        ).data.pipeline_tag == ("token-classification")
        support = [contents.per_class[f"LABEL_{k}"]["support"] for k in range(3)]
        assert support == [[(labels == k).sum()] for k in range(3)]
        predicted = trainer.predict(tiny_dataset("tokens", NUM_EVAL_EXAMPLES)).predictions.argmax(-1)
        assert contents.metrics["accuracy"] == [pytest.approx((predicted == labels)[labels != -100].mean())]
        pictures = {path.name for path in tmp_path.glob("*.png")}
        assert pictures == {"label_distribution.png", "confusion_matrix.png", "reliability_diagram.png"}

    def test_multi_label_and_its_pictures(self, tmp_path):
        trainer = quick_trainer(tmp_path, "multi_label", alpha=[0.3, 0.5, 0.9])
        trainer.train()
        contents = card_of(trainer)
        labels = np.array(tiny_dataset("multi_label", NUM_EVAL_EXAMPLES)["labels"][:])
        assert contents.multi_label and "average_precision_macro" in contents.metrics
        assert [contents.per_class[f"LABEL_{k}"]["support"] for k in range(3)] == [[n] for n in labels.sum(0)]
        pictures = {"label_distribution.png", "reliability_diagram.png", "precision_recall.png"}
        assert {path.name for path in tmp_path.glob("*.png")} == pictures

    @pytest.mark.parametrize("task", ["single_label", "tokens"])
    def test_the_weights_of_the_examples(self, tmp_path, task):
        data = weighted_dataset(task, NUM_EVAL_EXAMPLES)
        column = {"sample_weight_column": "importance", "compute_metrics": compute_metrics}
        trainer = quick_trainer(tmp_path, task, train_dataset=weighted_dataset(task), eval_dataset=data, **column)
        trainer.train()
        contents, labels = card_of(trainer), np.array(data["labels"][:])
        is_hit = trainer.predict(data).predictions.argmax(-1) == labels
        weights = np.array(data["importance"][:]).reshape(-1, *[1] * (labels.ndim - 1)) * (labels != -100)
        assert contents.metrics["accuracy"] == [pytest.approx(np.average(is_hit, weights=weights))]
        assert trainer.evaluate(data)["eval_accuracy"] == pytest.approx(contents.metrics["accuracy"][0])
        assert "Examples are weighted in the metrics, by column 'importance'." in contents.limits

    @pytest.mark.parametrize("task", ["single_label", "tokens"])
    def test_one_hot_rows_and_their_pictures(self, tmp_path, task):
        """Results, pictures and calibration are those of the same labels as class ids."""
        ids = tiny_dataset(task, 24).map(lambda row: {"labels": np.maximum(row["labels"], 0)})
        data = {"ids": ids, "rows": ids.map(lambda row: {"labels": np.eye(3)[row["labels"]]})}
        trainers, written = {}, {}
        for name, rows in data.items():
            model = tiny_model(task, problem_type="single_label_classification")
            trainers[name] = quick_trainer(
                tmp_path / name,
                model=model,
                train_dataset=rows,
                eval_dataset=rows,
                data_collator=DefaultDataCollator(),
            )
            trainers[name].train()
            written[name] = card_of(trainers[name])
        assert_close(written["rows"].metrics, written["ids"].metrics)
        for label, expected in written["ids"].per_class.items():
            assert_close(written["rows"].per_class[label], expected)
        logits = trainers["rows"].predict(data["rows"]).predictions
        is_right = logits.argmax(-1) == np.array(ids["labels"][:])
        assert written["rows"].metrics["accuracy"] == [pytest.approx(is_right.mean())]
        matrix, expected = ((tmp_path / name / "confusion_matrix.png").read_bytes() for name in ("rows", "ids"))
        assert matrix == expected and (tmp_path / "rows" / "reliability_diagram.png").exists()
        trainers["rows"].model.load_state_dict(trainers["ids"].model.state_dict())
        found, expected = (trainers[name].calibrate(method="none") for name in ("rows", "ids"))
        assert found == expected

    def test_several_labels_of_tokens(self, tmp_path):
        """Those without a label have a row of -100."""
        rows = np.random.default_rng(0).integers(2, size=(24, 6, 3))
        rows[::4, 3:] = -100
        data = Dataset.from_dict({"input_ids": tiny_dataset(num_examples=24)["input_ids"][:], "labels": rows.tolist()})
        model = tiny_model("tokens", problem_type="multi_label_classification")
        trainer = quick_trainer(
            tmp_path, model=model, train_dataset=data, eval_dataset=data, data_collator=DefaultDataCollator()
        )
        trainer.train()
        contents = card_of(trainer)
        known = rows[rows[..., 0] >= 0]
        assert [contents.per_class[f"LABEL_{k}"]["support"] for k in range(3)] == [[n] for n in known.sum(0)]
        assert len(trainer.calibrate(method="none")["thresholds"]) == 3

    def test_one_logit_and_its_pictures(self, tmp_path):
        labels = [int(k % 4 == 0) for k in range(24)]
        data = Dataset.from_dict({"input_ids": tiny_dataset(num_examples=24)["input_ids"][:], "labels": labels})
        model = tiny_model(num_labels=1, problem_type="multi_label_classification")
        trainer = quick_trainer(tmp_path, model=model, train_dataset=data, eval_dataset=data)
        trainer.train()
        contents, logits = card_of(trainer), trainer.predict(data).predictions[:, 0]
        assert contents.metrics["accuracy"] == [pytest.approx(((logits > 0) == labels).mean())]
        assert (
            contents.per_class["LABEL_0"]["support"] == [6]
            and len(trainer.calibrate(method="none")["thresholds"]) == 1
        )
        assert (tmp_path / "reliability_diagram.png").exists()

    def test_results_are_those_of_the_decision_in_force(self, tmp_path):
        trainer = quick_trainer(tmp_path, alpha=[9.0, 1.0, 0.2])
        trainer.train()
        as_trained = card_of(trainer)
        config = trainer.model.config
        replace(FocalSettings.from_config(config), operating_point="balanced").store_in(config)
        balanced = card_of(trainer)
        assert as_trained.operating_points == balanced.operating_points
        for contents, point in ((as_trained, "as_trained"), (balanced, "balanced")):
            output = trainer.predict(trainer.eval_dataset)
            decided = decide(torch.tensor(output.predictions), config, point).numpy()
            assert contents.metrics["accuracy"] == [pytest.approx((decided == output.label_ids).mean())]
            for name, (value, low, high) in contents.operating_points[point].items():
                assert contents.metrics[name] == [pytest.approx(value)] and 0 <= low <= high <= 1
            assert (
                f"| {point} (in force)".replace("_", "\\_") in (tmp_path / "README.md").read_text()
                or point == "as_trained"
            )
        assert as_trained.metrics["accuracy"] != balanced.metrics["accuracy"]
        assert as_trained.metrics["negative_log_likelihood"] == balanced.metrics["negative_log_likelihood"]

    def test_class_probabilities_and_their_pictures(self, tmp_path):
        generator = torch.Generator().manual_seed(2)
        probabilities = torch.randn(24, 3, generator=generator).softmax(-1)
        ids = tiny_dataset(num_examples=24)["input_ids"][:]
        data = Dataset.from_dict({"input_ids": ids, "labels": probabilities.tolist()})
        model = tiny_model(problem_type="single_label_classification")
        trainer = quick_trainer(tmp_path, model=model, train_dataset=data, eval_dataset=data)
        trainer.train()
        contents = card_of(trainer)
        logits = torch.tensor(trainer.predict(data).predictions)
        classes = probabilities.argmax(-1)
        assert contents.metrics["accuracy"] == [pytest.approx((logits.argmax(-1) == classes).double().mean().item())]
        assert [contents.per_class[f"LABEL_{k}"]["support"] for k in range(3)] == [
            [(classes == k).sum()] for k in range(3)
        ]
        log_posterior = posterior_from_config(logits, trainer.model.config).log()
        expected = torch.nn.functional.cross_entropy(log_posterior, probabilities).item()
        assert contents.metrics["negative_log_likelihood"] == [pytest.approx(expected)]
        pictures = {path.name for path in tmp_path.glob("*.png")}
        assert pictures >= {"confusion_matrix.png", "reliability_diagram.png"}

    @pytest.mark.parametrize("gamma, shown", [(flsd_53, "flsd_53"), ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])])
    def test_any_gamma(self, tmp_path, gamma, shown):
        trainer = quick_trainer(tmp_path, gamma=gamma, alpha="inverse")
        trainer.train()
        settings = card_of(trainer).settings
        assert settings.gamma == shown and settings.label_counts == [26, 16, 2] and len(settings.alpha) == 3

    def test_calibrated(self, trained):
        trainer = trained()
        trainer.calibrate()
        assert card_of(trainer).settings.temperature == trainer.model.config.focal_loss["temperature"]

    def test_language_models_are_left_to_trainer(self, tmp_path):
        model = BertForMaskedLM(tiny_model().config)
        data = tiny_dataset("tokens")
        trainer = quick_trainer(tmp_path, model=model, train_dataset=data, eval_dataset=data)
        trainer.train()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.create_model_card(license="mit")
        assert is_own_of_trainer(tmp_path) and ModelCard.load(tmp_path / "README.md").data.license == "mit"

    def test_a_model_without_a_config(self, tmp_path, monkeypatch):
        """With which Trainer's own card fails."""

        class Head(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = torch.nn.EmbeddingBag(30, 3)

            def forward(self, input_ids, labels=None):
                return {"logits": self.embedding(input_ids)}

        trainer = quick_trainer(tmp_path, model=Head())
        trainer.train()
        with pytest.raises(AttributeError, match="no attribute 'config'"):
            trainer.create_model_card()
        pushing(trainer, monkeypatch)
        with pytest.warns(UserWarning, match="no attribute 'config'; no card is written"):
            trainer.push_to_hub()
        assert not (tmp_path / "README.md").exists()

    def test_custom_head(self, tmp_path):
        class Head(PreTrainedModel):
            config_class = BertConfig

            def __init__(self, config):
                super().__init__(config)
                self.embedding = torch.nn.EmbeddingBag(30, config.num_labels)
                self.post_init()

            def forward(self, input_ids, labels=None):
                return SequenceClassifierOutput(logits=self.embedding(input_ids))

        trainer = quick_trainer(tmp_path, model=Head(BertConfig(num_labels=3)))
        trainer.train()
        assert len(card_of(trainer).per_class) == 3

    def test_task_of_a_model(self):
        class Own(type(tiny_model("tokens"))):
            pass

        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        assert task_of(Own(tiny_model("tokens").config)) == "token-classification"
        assert task_of(ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **small))) == (
            "image-classification"
        )

    def test_adapters(self, tmp_path):
        model = get_peft_model(tiny_model("tokens"), LoraConfig(task_type="TOKEN_CLS", target_modules=["query"]))
        trainer = quick_trainer(tmp_path, "tokens", model=model)
        trainer.train()
        trainer.save_model()
        assert ModelCard.load(tmp_path / "README.md").data.library_name == "peft"
        contents = card_of(trainer, tags="mine")
        data = ModelCard.load(tmp_path / "README.md").data
        assert data.library_name == "peft" and {"focal-loss", "lora", "mine"} <= {*data.tags}
        assert contents.task == "token-classification" and contents.settings == FocalSettings.from_config(model.config)


@pytest.mark.usefixtures("without_drawing")
class TestEvalDataset:
    def test_several(self, trained):
        trainer = trained("several")
        contents = card_of(trainer)
        assert sum(by_class["support"][0] for by_class in contents.per_class.values()) == 9
        assert contents.dataset_split == "a_b"
        assert contents.dataset_fingerprint == fingerprint(trainer.eval_dataset["a_b"])
        assert any("results are for 'a_b', one of several" in limit for limit in contents.limits)
        assert contents.metrics["loss"] == [pytest.approx(trainer.state.best_metric, abs=1e-6)]

    @pytest.mark.parametrize("name", ["a", "a_b", "c"])
    def test_several_in_the_log(self, trained, monkeypatch, name):
        trainer = trained("several")
        monkeypatch.setattr(trainer.args, "metric_for_best_model", f"eval_{name}_loss")
        monkeypatch.setattr(TrainingArguments, "world_size", 2)
        monkeypatch.setattr(trainer, "predict", lambda *args: pytest.fail("predicts"))
        contents, step = card_of(trainer), trainer.state.best_global_step
        entries = [entry for entry in trainer.state.log_history if entry["step"] == step]
        (loss,) = [entry[f"eval_{name}_loss"] for entry in entries if f"eval_{name}_loss" in entry]
        assert contents.metrics == {"loss": [loss]} and contents.dataset_split == name

    def test_fingerprint_is_that_of_the_rows(self):
        data = Dataset.from_dict({"input_ids": [[1, 2], [3]] * 90, "labels": [0, 1] * 90, "file": [b"a", None] * 90})
        shuffled = data.select([179, *range(179)]).select([*range(1, 180), 0])  # by indices, in the same order
        made = data.select_columns("labels").map(lambda _, i: data[i], with_indices=True)
        made = made.select_columns(data.column_names).with_format("torch")
        assert len({one._fingerprint for one in (data, shuffled, made)}) == 3
        assert {fingerprint(one) for one in (shuffled, made)} == {fingerprint(data)}
        others = [
            data.select(range(179)),
            data.select([1, 0, *range(2, 180)]),
            data.remove_columns("file"),
            data.map(lambda row, i: {"labels": row["labels"] + (i == 179)}, with_indices=True),
            data.map(lambda row, i: {"file": b"b" if i == 0 else row["file"]}, with_indices=True),
        ]
        assert len({fingerprint(one) for one in (data, *others)}) == 6

    @pytest.mark.parametrize("kind", ["none", "no datasets", "empty", "unlabelled", "all ignored"])
    def test_nothing_to_evaluate(self, tmp_path, trained, kind):
        data = {
            "none": None,
            "no datasets": {},
            "empty": tiny_dataset().select([]),
            "unlabelled": tiny_dataset().remove_columns("labels"),
            "all ignored": tiny_dataset("tokens").select([0]),
        }[kind]
        if kind == "all ignored":
            trainer = quick_trainer(tmp_path, "tokens", eval_dataset=data)
            trainer.train()
        else:
            trainer = trained(eval_dataset=data)
        contents = card_of(trainer)
        assert not contents.per_class and contents.metrics.keys() <= {"loss"}
        assert contents.dataset_name == "an unknown dataset" and contents.settings.gamma == 2
        if kind != "all ignored":
            assert not contents.metrics and contents.dataset_split is contents.dataset_fingerprint is None

    def test_a_stream_is_not_read_for_the_card(self, tmp_path, monkeypatch):
        data = tiny_dataset(num_examples=7).to_iterable_dataset()
        trainer = make_trainer(tmp_path, eval_dataset=data, max_steps=2)
        trainer.train()
        best = evaluations(trainer)[trainer.state.best_global_step]
        monkeypatch.setattr(trainer, "predict", lambda *args: pytest.fail("predicts"))
        assert card_of(trainer).metrics == {"loss": [best]}

    def test_what_a_dataset_knows(self, tmp_path, trained):
        folder = tmp_path / "someone___mail" / "plain" / "0.0.0" / ("0123456789" * 4)
        folder.mkdir(parents=True)
        info = DatasetInfo(builder_name="parquet", dataset_name="mail", config_name="plain", version=Version("0.0.0"))
        columns = {"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]}
        cached = Dataset.from_dict(columns, info=info, split="validation")
        cached.save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(folder / "mail-validation.arrow")
        cached = Dataset.from_file(str(folder / "mail-validation.arrow"), info=info, split="validation")
        trainer = trained(eval_dataset=cached)
        contents = card_of(trainer)
        assert (contents.dataset_name, contents.dataset_config, contents.dataset_split) == (
            "mail",
            "plain",
            "validation",
        )
        assert contents.dataset_revision == "0123456789" * 4 and contents.dataset_fingerprint == fingerprint(cached)
        assert contents.dataset_id is None
        said = card_of(trainer, dataset="My mail", dataset_tags="me/mail", dataset_args="small")
        assert (said.dataset_name, said.dataset_id, said.dataset_config) == ("My mail", "me/mail", "small")
        data = ModelCard.load(tmp_path / "README.md").data
        assert data.datasets == ["me/mail"] and data.eval_results[0].dataset_revision == "0123456789" * 4
        assert data.eval_results[0].dataset_split == "validation"

    def test_version_of_a_dataset(self, trained):
        info = DatasetInfo(builder_name="csv", dataset_name="csv", version=Version("1.2.0"))
        data = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]}, info=info)
        contents = card_of(trained(eval_dataset=data))
        assert (contents.dataset_revision, contents.dataset_name) == ("1.2.0", "an unknown dataset")


@pytest.mark.usefixtures("without_drawing")
class TestWhichSplit:
    def test_another_than_that_of_the_trainer(self, trained, tmp_path):
        trainer = trained()
        trainer.calibrate()
        data = tiny_dataset(num_examples=13)
        on_eval, contents = card_of(trainer), card_of(trainer, test_dataset=data)
        output = trainer.predict(data)
        assert contents.metrics["accuracy"] == [
            pytest.approx((output.predictions.argmax(-1) == data["labels"][:]).mean())
        ]
        assert (contents.dataset_split, contents.num_examples, contents.fitted_on_split) == ("test", 13, [])
        assert contents.dataset_fingerprint == fingerprint(data) != on_eval.dataset_fingerprint
        text = (tmp_path / "README.md").read_text()
        assert "## Results on the test split, 13 examples\n" in text and "Nothing was fitted on these" in text
        assert on_eval.fitted_on_split == ["the calibration"] and on_eval.num_examples == NUM_EVAL_EXAMPLES

    def test_what_was_fitted_on_the_same_examples(self, trained, tmp_path):
        trainer = trained("best")
        assert card_of(trainer).fitted_on_split == ["the choice of the checkpoint"]
        replace(trainer.recorded_settings(), temperature=1.5).store_in(trainer.model.config)
        trainer = trained("best", _fits={"the calibration": (trainer.eval_dataset, (1.5, None))})
        assert card_of(trainer).fitted_on_split == ["the calibration", "the choice of the checkpoint"]
        text = (tmp_path / "README.md").read_text()
        assert "## Results on the evaluation data, " in text
        assert "because these examples were also used for: the calibration, the choice of the checkpoint." in text
        copy = tiny_dataset(num_examples=NUM_EVAL_EXAMPLES)  # the same rows under another name
        assert card_of(trainer, test_dataset=copy).fitted_on_split == [
            "the calibration",
            "the choice of the checkpoint",
        ]
        assert card_of(trained("last")).fitted_on_split == []

    @pytest.mark.parametrize("is_predicted", [False, True])
    def test_fitted_on_other_data_than_those_of_the_trainer(self, trained, tmp_path, is_predicted):
        trainer, test = trained(), tiny_dataset(num_examples=13)
        predictions = trainer.predict(test) if is_predicted else None
        trainer.calibrate(test, predictions=predictions)
        assert card_of(trainer, test_dataset=test, predictions=predictions).fitted_on_split == ["the calibration"]
        assert "were also used for: the calibration." in (tmp_path / "README.md").read_text()
        assert card_of(trainer, test_dataset=tiny_dataset(num_examples=13)).fitted_on_split == ["the calibration"]
        assert card_of(trainer).fitted_on_split == []
        assert card_of(trainer, test_dataset=tiny_dataset(num_examples=12)).fitted_on_split == []

    def test_folded_on_other_data_than_calibrated(self, tmp_path):
        trainer, test = quick_trainer(tmp_path), tiny_dataset(num_examples=13)
        trainer.train()
        trainer.calibrate()
        trainer.fold_calibration(test)
        assert card_of(trainer).fitted_on_split == ["the calibration"]
        assert card_of(trainer, test_dataset=test).fitted_on_split == ["the fold into the weights"]
        hf_focal.unfold_calibration(trainer.model)
        assert card_of(trainer, test_dataset=test).fitted_on_split == []
        trainer.calibrate(test)
        trainer.fold_calibration(test)
        assert card_of(trainer, test_dataset=test).fitted_on_split == ["the calibration", "the fold into the weights"]
        assert card_of(trainer).fitted_on_split == []

    def test_thresholds_of_other_data(self, tmp_path):
        trainer, test = quick_trainer(tmp_path, "multi_label"), tiny_dataset("multi_label", 13)
        trainer.train()
        trainer.calibrate(test)
        assert "the thresholds" in card_of(trainer, test_dataset=test).fitted_on_split
        assert card_of(trainer).fitted_on_split == []

    def test_fitted_on_unknown_data(self, trained, tmp_path):
        trainer = trained()
        replace(trainer.recorded_settings(), temperature=1.5).store_in(trainer.model.config)
        assert card_of(trainer).fitted_on_split is None
        assert "these examples" not in (tmp_path / "README.md").read_text()
        assert card_of(trainer, test_dataset=trainer.train_dataset).fitted_on_split == ["the training"]

    def test_predictions_are_not_made_again(self, trained, monkeypatch):
        trainer, data = trained(), tiny_dataset(num_examples=13)
        expected = card_of(trainer, test_dataset=data)
        outputs = [trainer.predict(data), trainer.predict(data, metric_key_prefix="other")]
        monkeypatch.setattr(trainer, "predict", lambda *args: pytest.fail("predicts"))
        for output in outputs:
            assert card_of(trainer, test_dataset=data, predictions=output) == expected
        monkeypatch.setattr(TrainingArguments, "world_size", 2)  # where the card could not predict
        contents = card_of(trainer, test_dataset=data, predictions=output)
        assert contents.metrics == expected.metrics and contents.operating_points == expected.operating_points
        with pytest.raises(ValueError, match="test_dataset: also pass predictions=trainer.predict"):
            trainer.create_model_card(test_dataset=data)

    def test_predictions_of_other_data(self, trained):
        trainer = trained()
        output = trainer.predict(tiny_dataset(num_examples=13))
        with pytest.raises(ValueError, match=f"predictions: expected those of the {NUM_EVAL_EXAMPLES} .* but got 13"):
            trainer.create_model_card(predictions=output)

        with pytest.raises(ValueError, match=f"predictions: expected those of the {NUM_EVAL_EXAMPLES} .* but got 13"):
            trainer.calibrate(predictions=output)

    def test_calibration_takes_a_prediction(self, trained, monkeypatch):
        trainer = trained()
        expected, output = trainer.calibrate(), trainer.predict(trainer.eval_dataset)
        monkeypatch.setattr(trainer, "predict", lambda *args: pytest.fail("predicts"))
        assert trainer.calibrate(predictions=output) == expected

    def test_parts_of_one_split(self, trained):
        """`train_test_split` leaves both parts the name of the whole, which tells nothing."""
        columns = tiny_dataset(num_examples=20).to_dict()
        parts = Dataset.from_dict(columns, split="train").train_test_split(0.5, seed=0)
        trainer = trained(train_dataset=parts["train"], eval_dataset=parts["test"])
        assert card_of(trainer).dataset_split is None
        assert card_of(trainer, test_dataset=parts["test"].select(range(5))).dataset_split == "test"
        named = Dataset.from_dict(columns, split="validation")
        assert card_of(trainer, test_dataset=named).dataset_split == "validation"
        assert card_of(trainer, test_dataset=named, test_split="mine").dataset_split == "mine"


NAMES = {0: "ham", 1: "spam", 2: "eggs"}
SNIPPETS = {
    "one class": {},
    "several labels": {"task": "multi_label"},
    "tokenizer elsewhere": {"finetuned_from": "base"},
    "no posterior": {"task": "multi_label", "gamma": flsd_53},
    "tokens, no posterior": {"task": "tokens", "gamma": flsd_53},
    "tokens": {"task": "tokens"},
}
if not hasattr(hf_focal, "FocalTokenClassificationPipeline"):
    del SNIPPETS["tokens"]


def model_with_card(folder, task="single_label", finetuned_from=None, **kwargs):
    """Trains and saves a model, its tokenizer beside it or where it was fine-tuned from; the code in its card."""
    words = ["[PAD]", "[UNK]", *"Profits doubled Mary Smith London".split()]
    backend = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    if finetuned_from is None:
        kwargs["processing_class"] = tokenizer
    else:
        tokenizer.save_pretrained(folder.parent / finetuned_from)
    trainer = quick_trainer(folder, task, data_collator=DefaultDataCollator(), **kwargs)
    trainer.model.config.id2label, trainer.model.config.label2id = NAMES, {name: k for k, name in NAMES.items()}
    trainer.train()
    trainer.save_model()
    card_of(trainer, finetuned_from=finetuned_from)
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return code


@pytest.fixture(scope="module")
def snippets(tmp_path_factory):
    """The code of each card, and what it prints as it stands, in a fresh process above the folders of the models."""
    above = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_focal.model_card._draw", lambda *args: {})
        codes = {name: model_with_card(above / name, **kwargs) for name, kwargs in SNIPPETS.items()}
    assert not any(str(above) in code for code in codes.values())
    result = subprocess.run(
        [sys.executable, "-W", "error:::hf_focal", "-c", f"for code in {[*codes.values()]}: exec(code, {{}})"],
        cwd=above,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    printed = [eval(line, {"np": np})[0] for line in result.stdout.splitlines()]  # scores of tokens are np.float32
    return dict(zip(SNIPPETS, zip(codes.values(), printed, strict=True), strict=True))


@pytest.mark.usefixtures("without_drawing")
class TestHowToUse:
    @pytest.mark.parametrize("name", ["one class", "tokenizer elsewhere"])
    def test_one_class_per_text(self, snippets, name):
        code, result = snippets[name]
        assert "truncation=True" in code and "FocalTextClassificationPipeline" in code and f'model = "{name}"' in code
        assert ('tokenizer="base"' in code) == (name != "one class")
        assert result["label"] in NAMES.values() and 0 < result["score"] < 1

    def test_several_labels(self, snippets):
        code, results = snippets["several labels"]
        assert "top_k=None" in code and {result["label"] for result in results} == {*NAMES.values()}
        assert all(isinstance(result["decided"], bool) for result in results)

    def test_without_a_posterior_it_is_the_stock_pipeline(self, snippets):
        code, results = snippets["no posterior"]
        assert "hf_focal import" not in code and {result["label"] for result in results} == {*NAMES.values()}

    @pytest.mark.parametrize("name", [name for name in SNIPPETS if "tokens" in name])
    def test_tokens(self, snippets, name):
        code, results = snippets[name]
        assert ("FocalTokenClassificationPipeline" in code) == (name == "tokens")
        assert results and {result["entity_group"] for result in results} <= {*NAMES.values()}

    def test_id_on_the_hub(self, trained, tmp_path, monkeypatch):
        trainer = trained()
        monkeypatch.setattr(trainer, "hub_model_id", "me/model")
        card_of(trainer)
        assert 'model = "me/model"' in (tmp_path / "README.md").read_text()

    def test_not_of_adapters_nor_of_other_tasks(self, tmp_path, trained):
        model = get_peft_model(tiny_model(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
        trainer = quick_trainer(tmp_path / "adapter", model=model)
        trainer.train()
        assert card_of(trainer).model_id is None
        card_of(trained(), tasks="image-classification")
        assert "How to use" not in (tmp_path / "README.md").read_text()


@pytest.mark.usefixtures("without_drawing")
class TestMetricsOfTheUser:
    def test_those_that_are_numbers_are_kept(self, trained):
        def metrics(prediction):
            numbers = {"f2": np.float32(0.5), "nan": float("nan"), "inf": float("inf"), "flag": True, "count": 3}
            return {**numbers, "text": "x", "array": np.zeros(2), "f1_macro": 7.0}

        contents = card_of(trained(compute_metrics=metrics))
        assert contents.metrics["f2"] == [0.5] and contents.metrics["count"] == [3]
        assert not {"nan", "inf", "flag", "text", "array", "runtime"} & contents.metrics.keys()
        assert contents.metrics["f1_macro"][0] <= 1

    def test_what_is_no_longer_logits(self, trained):
        trainer = trained(
            preprocess_logits_for_metrics=lambda logits, labels: 10 * logits,
            compute_metrics=lambda prediction: {"f2": 0.5},
        )
        contents = card_of(trainer)
        assert contents.metrics.keys() == {"f2", "loss"} and not contents.per_class

    def test_results_per_class_have_a_table_of_their_own(self, tmp_path, monkeypatch):
        trainer = make_trainer(
            tmp_path,
            max_steps=2,
            gamma=0,  # so that the posterior is softmax
            compute_metrics=partial(compute_metrics, label_names=["LABEL_0", "LABEL_1", "LABEL_2"], per_class=True),
        )
        trainer.train()
        contents = card_of(trainer)
        assert not [name for name in contents.metrics if "LABEL" in name] and len(contents.per_class) == 3
        monkeypatch.setattr(TrainingArguments, "world_size", 2)  # so they are those in the log
        again, expected = card_of(trainer), {k: [pytest.approx(v[0], abs=1e-6)] for k, v in contents.metrics.items()}
        assert again.metrics.items() <= expected.items() and again.metrics.keys() >= {"loss", "f1_macro"}
        assert again.per_class == contents.per_class
        assert (
            contents.operating_points.keys() == {"as_trained", "most_likely", "balanced"}
            and not again.operating_points
        )
        assert any("from the training log" in limit for limit in again.limits)


@pytest.mark.usefixtures("without_drawing")
@pytest.mark.filterwarnings("ignore:wanted_precision")
def test_what_thresholds_reached_is_not_of_another_training(tmp_path):
    data = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 20, "label": [0, 0, 0, 1] * 5})  # nothing tells them apart
    model = tiny_model(num_labels=2)
    trainer = quick_trainer(tmp_path, model=model, train_dataset=data, eval_dataset=data, max_steps=1)
    trainer.train()
    trainer.calibrate(method="none", wanted_precision=0.99)
    assert list(card_of(trainer).thresholds_reached.values()) == [{}]
    trainer.train()
    assert card_of(trainer).thresholds_reached == {}


@pytest.mark.usefixtures("without_drawing")
class TestCommand:
    @pytest.mark.parametrize(
        "given, kept",
        [
            ("--hub_token hf_x --seed 1", "--seed 1"),
            ("--seed 1 --hub_token=hf_x", "--seed 1"),
            ("--push_to_hub_token hf_x --push_to_hub", "--push_to_hub"),
            ("--use_auth_token --seed 1", "--seed 1"),
            ("-token x --hub-token y --api_key z --wandb.api-key=z --PASSWORD q token=x", ""),
            ("--tokenizer_name x --max_tokens 3 --label_key y --tokens", "--tokenizer_name x --max_tokens 3 --label_key y --tokens"),
            ("token password", "token password"),
            ("--hub_tok SECRET --x=aSECRETb", "--hub_tok *** --x=a***b"),
            (f"-c hf_{'a' * 34} --name hf_focal", "-c *** --name hf_focal"),
            ("python -c import_os,hf train.py", "python -c *** train.py"),
            ("python train.py -c settings.yaml", "python train.py -c settings.yaml"),
            ("--dataset https://x?token=abc d", "--dataset https://x?*** d"),
            ("--data https://h/a.csv?X-Amz-Signature=abc&X-Amz-Date=1", "--data https://h/a.csv?***"),
            ("--data s3://me:pass@host/x --data=https://tok@host/x", "--data s3://***@host/x --data=https://***@host/x"),
            ("--wandb_key x --wandbKey y --wandb-api-key=z", ""),
            ("--hubToken x --hubtoken y --HUB_TOKEN z", ""),
            ("--pat x --auth y --auth-header z --aws_secret_access_key q --pwd w", ""),
            ("HF_TOKEN=x WANDB_API_KEY=y python train.py", "python train.py"),
            ("--pad_token [PAD] --mask_token [MASK] --eosToken </s>", "--pad_token [PAD] --mask_token [MASK] --eosToken </s>"),
            ("--sort_key n --pattern x --author me --authority y", "--sort_key n --pattern x --author me --authority y"),
            ('--hub={"token":"x","n":[{"api_key":"y"}]}', '--hub={"token":"***","n":[{"api_key":"***"}]}'),
            ("--hub {'token':'x','a':1}", "--hub {'token':'***','a':1}"),
            ("--storage name=a,account_key=b", "--storage name=a,account_key=***"),
            (f"--x ghp_{'a' * 36} --y sk-proj-{'b' * 20} AKIA{'C' * 16}", "--x *** --y *** ***"),
            (f"--x glpat-{'a' * 20} eyJ{'a' * 12}.{'b' * 12}.c", "--x *** ***"),
            ("ann:S@proxy:8080 --proxy=ann:S@proxy:8080", "***@proxy:8080 --proxy=***@proxy:8080"),
            ("https://ann:p@S@host/x https://ann:a/S@host", "https://***@host/x https://***@host"),
            ("--hub_token -S --seed 1", "--seed 1"),
            ("--hub_token a S --seed 1", "--seed 1"),
            ("--hub_tokens S --hub_token_1 S --token2 S --hubTokenValue S --TOKEN_HUB S", ""),
            ("--pass S --passcode S --pin S --otp S --sessionid S --session_id S", ""),
            ("--max_new_tokens 5 --token_type_ids 1 --tokens 3 --key_by n", "--max_new_tokens 5 --token_type_ids 1 --tokens 3 --key_by n"),
            ('{"auth":{"pw":"S"},"credentials":{"value":"S"}}', '{"auth":"***","credentials":"***"}'),
            ("{'token':['S']}", "{'token':***}"),
            ('["--hub_token","S","--seed","1"]', '"***"'),
            ("Uid=a;Pass=S", "Uid=a;Pass=***"),
            ("https://hooks.slack.com/services/T0/B0/S", "https://***"),
            (f"npm_{'a' * 36} pypi-{'a' * 20} dop_v1_{'a' * 20}", "*** *** ***"),
            ("--learning_rate 2e-5 --task-name sk-small", "--learning_rate 2e-5 --task-name sk-small"),
        ],
    )  # fmt: skip
    def test_without_secrets(self, given, kept):
        found, left_out = without_secrets(given.split(), ["SECRET"])
        assert "".join(found).replace(" ", "") == kept.replace(" ", "")
        assert bool(left_out) == (found != given.split()) or "SECRET" in given

    def test_headers(self):
        given = ["--header", "Authorization: Bearer abc", "--header", "X-Api-Key: abc", "--header", "Accept: text"]
        found, left_out = without_secrets(given)
        assert found == [
            "--header",
            "Authorization: ***",
            "--header",
            "X-Api-Key: ***",
            "--header",
            "Accept: text",
        ]
        assert not any("abc" in name for name in left_out)

    def test_no_folder_of_the_author(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        given = [
            "train.py",
            f"{tmp_path}/data/a.csv",
            "--out=/home/me/out",
            "C:\\me\\b.csv",
            "https://h/a",
            "a/b",
            "--x=/",
        ]
        expected = ["train.py", "data/a.csv", "--out=out", "b.csv", "https://h/a", "a/b", "--x=/"]
        assert without_paths(given) == expected

    def test_a_command_in_a_flag(self):
        assert without_secrets(["--args", "--seed 1 --hub_token S"])[0] == ["--args", "***"]

    @pytest.mark.parametrize(
        "given, kept",
        [
            ("data.path=/home/ann/x", "data.path=x"),
            ("a.csv,/home/ann/b.csv", "a.csv,b.csv"),
            ('{"file": "/home/ann/b.csv"}', '{"file": "b.csv"}'),
            ("['/home/ann/b.csv']", "['b.csv']"),
            ("file:///home/ann/x", "x"),
            ("-I/home/ann/lib", "-Ilib"),
            ("pycache_prefix=/home/ann/c", "pycache_prefix=c"),
            ("train:/home/ann/x", "train:x"),
            ("@/home/ann/args", "@args"),
            ("../{here}/../../{parent}/x.csv", "x.csv"),
            ("../models/bert", "../models/bert"),
            ("1/2 a/b s3://b/c https://h/home/ann", "1/2 a/b s3://b/c https://h/home/ann"),
        ],
    )
    def test_paths_in_any_place(self, tmp_path, monkeypatch, given, kept):
        folder = tmp_path / "w"
        folder.mkdir()
        monkeypatch.chdir(folder)
        given = given.format(here="w", parent=tmp_path.name) if "{here}" in given else given
        assert without_paths([given]) == [kept]

    @pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
    def test_no_secret_in_the_card(self, tmp_path, trained, monkeypatch, name):
        monkeypatch.setattr(
            sys, "orig_argv", ["/usr/bin/python3", "-u", "train.py", f"--{name}", "s3cr3t", "--tok=s3cr3t"]
        )
        trainer = trained()
        monkeypatch.setattr(trainer.args, "hub_token", "s3cr3t")
        contents = card_of(trainer)
        assert "s3cr3t" not in (tmp_path / "README.md").read_text()
        assert contents.command == ["python", "-u", "train.py", "--tok=***"]
        assert contents.limits == [f"The command is shown without --{name}."]

    def test_hostile_texts_come_back(self, tmp_path, monkeypatch):
        names = [name for name in HOSTILE if name.isprintable() or "\n" in name]
        argv = ["python", "a b.py", "--x='$(touch hacked)' `id`", *HOSTILE]
        monkeypatch.setattr(sys, "orig_argv", argv)
        folder = tmp_path / "a b | `c` $x\n---\n## d"
        config = BertConfig.from_dict({**tiny_model().config.to_dict(), "num_labels": len(names)})
        config.id2label = dict(enumerate(names))
        trainer = quick_trainer(folder, model=BertForSequenceClassification(config))
        trainer.train()
        contents = card_of(trainer, dataset="a|b\n# c", license="x: y", tags=["- a", "b\nc"])
        assert contents.label_names == names and contents.command == argv and contents.model_name == folder.name
        assert (
            contents.dataset_name == "a|b\n# c" and contents.license == "x: y" and contents.tags[:2] == ["- a", "b\nc"]
        )

    def test_hyperparameters_hardware_and_time(self, trained, monkeypatch):
        trainer = trained()
        monkeypatch.setattr(trainer.args, "seed", 7)
        contents = card_of(trainer)
        assert contents.hyperparameters["learning_rate"] == 0.5 and contents.seeds == [7]
        assert contents.hardware == describe_hardware() and contents.tolerance == TOLERANCE
        assert contents.wall_seconds == [trainer.state.log_history[-1]["train_runtime"]]


@pytest.mark.usefixtures("without_drawing")
class TestExistingReadme:
    @pytest.mark.parametrize(
        "text, tags, license",
        [
            ("---\nlicense: mit\nlanguage: de\ntags: [mine, other]\n---\n\n# By hand\n", ["mine", "other"], "mit"),
            ("---\nlicense: mit\ntags: mine\nmodel-index: broken\n---\n", ["mine"], "mit"),
            ("---\nlicense: [1, mit]\ntags: [1, null, mine]\n---\n", ["mine"], "mit"),
            ("By hand, without metadata.\n", [], None),
            ("---\ntags: [unclosed\nmore:\n---\n", [], None),
            ("---\n- a list\n---\n", [], None),
            (b"\xff\xfe\x00", [], None),
        ],
    )
    def test_is_kept_where_it_can_be_read(self, tmp_path, trained, text, tags, license):
        trainer = trained()
        (tmp_path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
        contents = card_of(trainer, tags="said")
        assert contents.tags == ["said", *tags, "generated_from_trainer"] and contents.license == license
        assert contents.language == (["de"] if "language" in str(text) else [])

    def test_what_somebody_has_written_is_kept_beside_it(self, tmp_path, trained):
        text = "---\nlicense: other\nlicense_name: mine\n---\n\n# By hand\n"
        (tmp_path / "README.md").write_text(text)
        (tmp_path / "README.md.bak").write_text("an older one")
        trainer = trained()
        card_of(trainer)
        assert (tmp_path / "README.md.bak1").read_text() == text
        assert (tmp_path / "README.md.bak").read_text() == "an older one"
        card_of(trainer)  # which is no longer what somebody has written
        assert len([*tmp_path.glob("README.md.bak*")]) == 2

    def test_arguments_win(self, tmp_path, trained):
        trainer = trained()
        (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: de\n---\n")
        contents = card_of(
            trainer, license="apache-2.0", language=["en", "fr"], model_name="mine", finetuned_from="a/b"
        )
        assert (contents.license, contents.language) == ("apache-2.0", ["en", "fr"])
        assert (contents.model_name, contents.base_model) == ("mine", "a/b")

    def test_again_the_same(self, trained):
        trainer = trained()
        tags = ["mine"]
        contents = card_of(trainer, tags=tags, license="mit")
        assert card_of(trainer) == contents and tags == ["mine"]


def pushing(trainer, monkeypatch):
    """Pushes as far as the card."""
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **kwargs: self.create_model_card(**kwargs))


@pytest.mark.usefixtures("without_drawing")
class TestNeverAReasonToFail:
    def test_refused_contents(self, tmp_path, trained, monkeypatch):
        trainer = trained()
        monkeypatch.setattr(trainer.model.config, "id2label", dict.fromkeys(range(3), "same"))
        with pytest.raises(ValueError, match="label_names: .* different"):
            trainer.create_model_card(tags=["mine"])
        assert not (tmp_path / "README.md").exists()
        pushing(trainer, monkeypatch)
        with pytest.warns(
            UserWarning, match="create_model_card: label_names: .* different.*; writing Trainer's own card"
        ):
            trainer.push_to_hub(tags=["mine"])
        assert is_own_of_trainer(tmp_path) and "mine" in ModelCard.load(tmp_path / "README.md").data.tags

    def test_a_prediction_that_fails(self, tmp_path, trained, monkeypatch):
        def broken(prediction):
            raise RuntimeError("no metrics today")

        trainer = trained(compute_metrics=broken)
        with pytest.raises(RuntimeError, match="no metrics today"):
            trainer.create_model_card()
        pushing(trainer, monkeypatch)
        with pytest.warns(UserWarning, match="create_model_card: no metrics today; writing Trainer's own card"):
            trainer.push_to_hub()
        assert is_own_of_trainer(tmp_path)

    def test_no_card_at_all(self, tmp_path, trained, monkeypatch):
        trainer = trained()
        (tmp_path / "README.md").mkdir()
        with pytest.raises(OSError):
            trainer.create_model_card()
        pushing(trainer, monkeypatch)
        with pytest.warns(match="writing Trainer's own card"), pytest.warns(match="no card is written"):
            trainer.push_to_hub()

    def test_a_readme_whose_metadata_cannot_be_read_is_kept(self, tmp_path, trained):
        trainer, text = trained(), "---\nlicense: [mit\n---\n\nMine.\n"
        (tmp_path / "README.md").write_text(text)
        with pytest.warns(UserWarning, match="metadata cannot be read .*; the old card is kept as README.md.bak"):
            trainer.create_model_card()
        assert (tmp_path / "README.md.bak").read_text() == text and read_model_card(tmp_path / "README.md")

    def test_rows_of_tokens_are_several_labels_of_each(self, tmp_path):
        """They are trained so, and the config says it, or the posterior would be that of softmax."""
        ids = tiny_dataset()["input_ids"][:]
        data = Dataset.from_dict({"input_ids": ids, "labels": [[[1.0, 0.0, 0.0]] * len(row) for row in ids]})
        model = tiny_model("tokens")
        trainer = quick_trainer(
            tmp_path, model=model, train_dataset=data, eval_dataset=data, data_collator=DefaultDataCollator()
        )
        trainer.train()
        assert model.config.problem_type == "multi_label_classification"
        posterior = posterior_from_config(torch.tensor([[[1.1, 1.1, 1.1]]]), model.config)
        assert posterior.flatten().tolist() == pytest.approx([0.9503] * 3, abs=1e-4)
        assert card_of(trainer).multi_label and trainer.calibrate()["thresholds"]


@pytest.mark.usefixtures("without_drawing")
class TestHub:
    @pytest.fixture
    def uploads(self, monkeypatch):
        """What of a README.md was uploaded, with its commit message."""
        uploaded = []

        def upload(*args, folder_path, commit_message, run_as_future=False, path_in_repo=None, **kwargs):
            card = Path(folder_path, "README.md")
            if path_in_repo is None:
                uploaded.append((commit_message, card.read_text() if card.exists() else None))
            future = Future()
            future.set_result("commit")
            return future if run_as_future else "commit"

        repo = SimpleNamespace(repo_id="me/model")
        monkeypatch.setattr(HfApi, "upload_folder", upload)
        monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: repo)
        # Before version 5 transformers holds these by name.
        monkeypatch.setattr("transformers.trainer.upload_folder", upload, raising=False)
        monkeypatch.setattr("transformers.trainer.create_repo", lambda *args, **kwargs: repo, raising=False)
        return uploaded

    def test_push(self, tmp_path, uploads):
        trainer = make_trainer(tmp_path, hub_token="s3cr3t")
        trainer.train()
        trainer.model.model_tags = ["of-the-model"]
        assert trainer.push_to_hub(dataset_tags="me/mail", license="mit") == "commit"
        ((message, text),) = uploads
        contents = read_model_card(tmp_path / "README.md")
        assert message == "End of training" and text == (tmp_path / "README.md").read_text() and "s3cr3t" not in text
        assert contents.metrics["loss"] == [pytest.approx(trainer.state.best_metric, abs=1e-6)]
        assert (contents.model_name, contents.dataset_id, contents.license) == (tmp_path.name, "me/mail", "mit")
        assert contents.model_id == "me/model"
        assert "of-the-model" in contents.tags

    @pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
    def test_pushes_during_training(self, tmp_path, monkeypatch, uploads, strategy):
        trainer = make_trainer(tmp_path, max_steps=4, push_to_hub=True, hub_strategy=strategy)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "predict", lambda *args: pytest.fail("predicts"))
            trainer.train()
        assert [text for _, text in uploads] == [None] * 2  # Trainer pushes checkpoints as they are
        trainer.save_model()
        assert uploads[-1][0] == "Model save" and len(uploads) == 3
        contents = read_model_card(tmp_path / "README.md")
        assert contents.metrics["loss"] == [pytest.approx(trainer.state.best_metric, abs=1e-6)]


def test_two_processes(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*launch, __file__, tmp_path], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "done-0").exists() and (tmp_path / "done-1").exists()
    state = json.loads((tmp_path / "state.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    contents = read_model_card(tmp_path / "README.md")
    assert state["best_global_step"] == 2 and losses[2] > losses[6] + 0.1
    assert contents.metrics["loss"] == [losses[2]] and "f1_macro" in contents.metrics
    assert "processes: 2" in contents.hardware and contents.hyperparameters["num_devices"] == 2
    assert contents.command[-2].endswith("test_trainer_card.py") and contents.command[-1] == tmp_path.name


def main() -> None:
    folder = Path(sys.argv[1])
    trainer = make_trainer(folder, compute_metrics=compute_metrics)
    trainer.train()
    assert trainer.args.world_size == 2
    if trainer.is_world_process_zero():
        trainer.create_model_card()
        trainer.state.save_to_json(str(folder / "state.json"))
    trainer.create_model_card()  # on both
    trainer.evaluate()  # the processes are still in step
    (folder / f"done-{trainer.args.process_index}").touch()
    # gloo's threads end with the last reference to the process group; one that still frees a tensor while the
    # interpreter shuts down aborts the process (pytorch issue 190489).
    gc.collect()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
