"""FocalTrainer with several labels per example: pairs of weights, asymmetric focusing, labels that are not known."""

import pytest
import torch
from exactness import tiny_dataset, tiny_model
from test_trainer import batch_of, make_trainer

from hf_focal import FocalSettings, FocalTrainingArguments, compute_alpha, sigmoid_focal_loss


def loss_of(trainer):
    batch = batch_of("multi_label")
    logits = trainer.model.eval()(batch["input_ids"]).logits
    return trainer.compute_loss(trainer.model, dict(batch)), logits, batch["labels"]


class TestPairsOfWeights:
    PAIR = [[0.5, 1.0, 2.0], [3.0, 0.0, 1.0]]

    @pytest.mark.parametrize("given", [PAIR, torch.tensor(PAIR), "0.5,1,2;3,0,1"])
    def test_are_those_of_the_loss_and_of_the_record(self, tmp_path, given):
        if isinstance(given, str):
            trainer = make_trainer(
                tmp_path, task="multi_label", args_class=FocalTrainingArguments, focal_alpha=given, max_steps=1
            )
        else:
            trainer = make_trainer(tmp_path, task="multi_label", alpha=given, max_steps=1)
        loss, logits, labels = loss_of(trainer)
        torch.testing.assert_close(loss, sigmoid_focal_loss(logits, labels, alpha=self.PAIR))
        trainer.train()
        assert FocalSettings.from_config(trainer.model.config).alpha == self.PAIR

    def test_by_name(self, tmp_path):
        model = tiny_model(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
        by_name = {"c": (2.0, 1.0), "a": (0.5, 3.0), "b": (1.0, 0.0)}
        trainer = make_trainer(tmp_path, model=model, task="multi_label", alpha=by_name)
        assert trainer.alpha == self.PAIR

    @pytest.mark.parametrize("method", ["inverse", "sqrt_inverse", "effective_number"])
    def test_the_average_over_the_training_data_is_1(self, tmp_path, method):
        trainer = make_trainer(tmp_path, task="multi_label", alpha=method)
        labels = torch.tensor(tiny_dataset("multi_label")["labels"][:])
        weights = torch.lerp(trainer.alpha[0].expand_as(labels), trainer.alpha[1].expand_as(labels), labels)
        torch.testing.assert_close(weights.mean(0), torch.ones(3))
        assert trainer.alpha.tolist() == compute_alpha(labels, method).tolist()

    @pytest.mark.parametrize(
        "message, settings",
        [
            ("alpha: expected one number for each of 3 classes, but got 2", {"alpha": [[1.0, 1.0], [2.0, 2.0]]}),
            (r"alpha: expected weights of negatives, then of positives, .* \(3, 3\)", {"alpha": [[1.0] * 3] * 3}),
            ("alpha: expected finite numbers >= 0", {"alpha": [[1.0] * 3, [1.0, -1.0, 1.0]]}),
            ("alpha: expected finite numbers >= 0", {"alpha": [[1.0] * 3, [1.0, float("inf"), 1.0]]}),
            (r"alpha: expected a number or one per class, but got shape \(2, 3\)", {"alpha": PAIR, "task": "tokens"}),
        ],
    )
    def test_what_does_not_fit_is_refused_when_the_trainer_is_made(self, tmp_path, message, settings):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, **{"task": "multi_label", **settings})


class TestAsymmetricFocusing:
    SETTINGS = {"gamma": 1.0, "gamma_neg": 4.0, "margin": 0.05}

    @pytest.mark.parametrize("by", ["keyword", "flag"])
    def test_loss_and_record(self, tmp_path, by):
        if by == "flag":
            flags = {f"focal_{name}": value for name, value in self.SETTINGS.items()}
            trainer = make_trainer(
                tmp_path, task="multi_label", args_class=FocalTrainingArguments, max_steps=1, **flags
            )
        else:
            trainer = make_trainer(tmp_path, task="multi_label", max_steps=1, **self.SETTINGS)
        loss, logits, labels = loss_of(trainer)
        torch.testing.assert_close(loss, sigmoid_focal_loss(logits, labels, **self.SETTINGS))
        trainer.train()
        settings = FocalSettings.from_config(trainer.model.config)
        assert {name: getattr(settings, name) for name in self.SETTINGS} == self.SETTINGS

    def test_one_gamma_of_negatives_per_label_or_a_function(self, tmp_path):
        for gamma_neg in ([1.0, 2.0, 4.0], lambda p: 2 * (1 - p)):
            trainer = make_trainer(tmp_path, task="multi_label", gamma_neg=gamma_neg)
            loss, logits, labels = loss_of(trainer)
            torch.testing.assert_close(loss, sigmoid_focal_loss(logits, labels, gamma_neg=gamma_neg))
        assert trainer.recorded_settings().gamma_neg == "<lambda>"

    @pytest.mark.parametrize("task", ["single_label", "tokens"])
    @pytest.mark.parametrize("setting", [{"gamma_neg": 4.0}, {"margin": 0.05}])
    def test_one_class_per_example_is_refused_when_the_trainer_is_made(self, tmp_path, task, setting):
        (name,) = setting
        with pytest.raises(ValueError, match=f"^{name}: it is for several labels .*--focal_{name}"):
            make_trainer(tmp_path, task=task, **setting)

    @pytest.mark.parametrize(
        "message, setting",
        [
            ("gamma_neg: expected a finite number >= 0, but got -1", {"gamma_neg": -1}),
            ("gamma_neg: expected one number for each of 3 classes", {"gamma_neg": [1.0, 2.0]}),
            (r"margin: expected a number in \[0, 1\), but got 1", {"margin": 1}),
            ("margin: expected a finite number", {"margin": -0.1}),
        ],
    )
    def test_numbers_out_of_their_range(self, tmp_path, message, setting):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, task="multi_label", **setting)

    def test_a_resumed_run_warns_of_another(self, tmp_path):
        make_trainer(tmp_path, task="multi_label", max_steps=1, save_strategy="epoch", **self.SETTINGS).train()
        other = make_trainer(tmp_path, task="multi_label", max_steps=2, **{**self.SETTINGS, "gamma_neg": 3.0})
        with pytest.warns(UserWarning, match="was trained with gamma_neg 4.0; it goes on with gamma_neg 3.0"):
            other.train(resume_from_checkpoint=True)
