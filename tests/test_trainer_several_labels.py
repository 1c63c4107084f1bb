"""FocalTrainer with several labels per example: pairs of weights, asymmetric focusing, labels that are not known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from exactness import PolyLossTrainer, tiny_dataset, tiny_model
from sklearn.metrics import average_precision_score
from test_trainer import batch_of, drift, make_trainer
from transformers import TrainingArguments, default_data_collator

from hf_focal import (
    FocalSettings,
    FocalTrainer,
    FocalTrainingArguments,
    compute_alpha,
    compute_metrics,
    fit_temperature,
    fit_thresholds,
    flsd_53,
    focal_loss,
    posterior_from_config,
    sigmoid_class_posterior,
    sigmoid_focal_logits,
    sigmoid_focal_loss,
)
from hf_focal.model_card import read_model_card


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

    @pytest.mark.parametrize("kind", [torch.tensor, np.array])
    def test_of_tensors_or_arrays_in_a_list_or_by_name(self, tmp_path, kind):
        given = [kind(weights) for weights in self.PAIR]
        trainer = make_trainer(tmp_path, task="multi_label", alpha=given, max_steps=1)
        trainer.train()
        assert FocalSettings.from_config(trainer.model.config).alpha == self.PAIR
        names = [f"LABEL_{k}" for k in range(3)]
        by_name = {name: kind(pair) for name, pair in zip(names, zip(*self.PAIR))}
        assert make_trainer(tmp_path, task="multi_label", alpha=by_name).alpha == self.PAIR

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

    def test_the_posterior_is_that_of_the_loss(self, tmp_path):
        trainer = make_trainer(tmp_path, task="multi_label", alpha="inverse", max_steps=1, **self.SETTINGS)
        trainer.train()
        logits = torch.randn(4, 3)
        expected = sigmoid_class_posterior(logits, alpha=trainer.alpha, **self.SETTINGS)
        torch.testing.assert_close(posterior_from_config(logits, trainer.model.config), expected)
        assert {*trainer.calibrate(tiny_dataset("multi_label"))} >= {"temperature", "thresholds"}

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
        with pytest.raises(ValueError, match=f"^{name}: only for several labels .*--focal_{name}"):
            make_trainer(tmp_path, task=task, **setting)

    @pytest.mark.parametrize(
        "message, setting",
        [
            ("gamma_neg: expected a finite number >= 0, but got -1", {"gamma_neg": -1}),
            ("gamma_neg: expected one number for each of 3 classes", {"gamma_neg": [1.0, 2.0]}),
            (r"margin: expected a number in \[0, 1\), but got 1", {"margin": 1}),
            (r"margin: expected a number in \[0, 1\)", {"margin": -0.1}),
        ],
    )
    def test_numbers_out_of_their_range(self, tmp_path, message, setting):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, task="multi_label", **setting)

    def test_a_resumed_run_warns_of_another(self, tmp_path):
        make_trainer(tmp_path, task="multi_label", max_steps=1, save_strategy="epoch", **self.SETTINGS).train()
        other = make_trainer(tmp_path, task="multi_label", max_steps=2, **{**self.SETTINGS, "gamma_neg": 3.0})
        with pytest.warns(UserWarning, match="was trained with gamma_neg 4.0; resuming with gamma_neg 3.0"):
            other.train(resume_from_checkpoint=True)


class TestLabelsThatAreNotKnown:
    ROWS = [[1, 0, -100], [0, -100, -100], [1, 1, 0], [0, 0, 1]]

    @pytest.mark.parametrize("make", [float, int])
    def test_the_loss_is_the_mean_of_those_that_are_known(self, tmp_path, make):
        rows = [[make(answer) for answer in row] for row in self.ROWS]
        data = Dataset.from_dict({"input_ids": tiny_dataset(num_examples=16)["input_ids"][:], "labels": rows * 4})
        model = tiny_model(problem_type="multi_label_classification")
        logged = {
            "logging_steps": 1,
            "logging_strategy": "steps",
            "max_steps": 1,
            "per_device_train_batch_size": 16,
            "learning_rate": 0.0,
        }
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, alpha="inverse", **logged)
        settings = trainer.recorded_settings()
        assert settings.label_counts == [8, 4, 4] and settings.class_prior == pytest.approx([1 / 2, 1 / 3, 1 / 2])
        assert trainer.alpha.tolist() == [[1.0, pytest.approx(0.75), 1.0], [1.0, 1.5, 1.0]]
        trainer.train()
        labels = torch.tensor(data["labels"][:])
        with torch.no_grad():
            logits = model.eval()(torch.tensor(data["input_ids"][:])).logits
        weights = torch.where(labels == 1, trainer.alpha[1], trainer.alpha[0])[labels != -100]
        p_t = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())[labels != -100]
        expected = (weights * (1 - p_t) ** 2 * -p_t.log()).mean().item()
        (log,) = (log for log in trainer.state.log_history if "loss" in log)
        assert log["loss"] == pytest.approx(expected, abs=1e-4)  # transformers 4 rounds it
        assert log["mean_p_t"] == pytest.approx(p_t.mean().item(), rel=1e-5)
        assert trainer.evaluate(data)["eval_loss"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("accumulation", [2, 8])
    def test_exact_under_accumulation(self, tmp_path, accumulation):
        settings = {"max_steps": 5, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "alpha": "sqrt_inverse"}
        settings |= {"lr_scheduler_type": "constant", "task": "partly_known"}
        whole = make_trainer(tmp_path, per_device_train_batch_size=8, **settings)
        cut = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        parts = make_trainer(tmp_path, **settings, **cut)
        for trainer in (whole, parts):
            trainer.train()
        start = tiny_model("multi_label").state_dict()
        assert drift(whole.model.state_dict(), parts.model.state_dict()) < 1e-6
        assert drift(whole.model.state_dict(), start) > 1e-3

    def test_for_each_token(self, tmp_path):
        ids = torch.tensor(tiny_dataset(num_examples=8)["input_ids"][:])
        labels = (torch.rand(8, 6, 3, generator=torch.Generator().manual_seed(0)) * 3).floor() - 1
        labels = labels.masked_fill(labels == -1, -100)
        data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
        model = tiny_model("tokens", problem_type="multi_label_classification")
        trainer = make_trainer(
            tmp_path, model=model, train_dataset=data, max_steps=1, data_collator=default_data_collator
        )
        logits = model.eval()(ids).logits
        expected = sigmoid_focal_loss(logits, labels)
        torch.testing.assert_close(trainer.compute_loss(model, {"input_ids": ids, "labels": labels}), expected)
        assert trainer.evaluate(data)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
        trainer.train()

    def test_those_of_tokens_are_counted_and_weighed(self, tmp_path):
        rows = np.random.default_rng(0).integers(2, size=(24, 6, 3))
        rows[::4, 3:] = rows[1::4, :2, 1] = -100
        data = Dataset.from_dict({"input_ids": tiny_dataset(num_examples=24)["input_ids"][:], "labels": rows.tolist()})
        model = tiny_model("tokens", problem_type="multi_label_classification")
        collator = default_data_collator
        trainer = make_trainer(
            tmp_path, model=model, train_dataset=data, alpha="inverse", max_steps=1, data_collator=collator
        )
        expected = compute_alpha(rows.reshape(-1, 3), multi_label=True)
        torch.testing.assert_close(trainer.alpha, expected)
        trainer.train()
        assert model.config.focal_loss["label_counts"] == (rows == 1).sum((0, 1)).tolist()

    def test_rows_of_another_length_than_the_logits_are_refused(self, tmp_path):
        data = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "labels": [[0.0, 1.0]] * 8})
        trainer = make_trainer(
            tmp_path, model=tiny_model(problem_type="multi_label_classification"), train_dataset=data, max_steps=1
        )
        with pytest.raises(
            ValueError, match="^labels: torch.float32 of shape .8, 2. do not fit logits of shape .8, 3."
        ):
            trainer.train()

    def test_metrics_calibration_and_card(self, tmp_path):
        data = tiny_dataset("partly_known")
        trainer = make_trainer(
            tmp_path,
            task="multi_label",
            train_dataset=data,
            eval_dataset=data,
            compute_metrics=compute_metrics,
            max_steps=2,
            alpha="inverse",
        )
        trainer.train()
        output = trainer.predict(data)
        logits, labels = torch.tensor(output.predictions).double(), torch.tensor(output.label_ids)
        known = labels != -100
        cross_entropy = F.binary_cross_entropy_with_logits(logits[known], labels[known].double()).item()
        assert output.metrics["test_negative_log_likelihood"] == pytest.approx(cross_entropy, rel=1e-6)
        scores = [
            average_precision_score(labels[known[:, k], k].numpy(), logits[known[:, k], k].numpy()) for k in range(3)
        ]
        assert output.metrics["test_average_precision_macro"] == pytest.approx(sum(scores) / 3)
        posterior = posterior_from_config(logits, trainer.model.config)
        trainer.model.config.focal_loss["class_prior"] = None  # or it would be fitted at the frequencies of these data
        found = trainer.calibrate(data, method="temperature")
        assert found["temperature"] == pytest.approx(
            fit_temperature(posterior[known].unsqueeze(-1), labels[known].unsqueeze(-1), multi_label=True), rel=1e-3
        )
        calibrated = posterior_from_config(logits, trainer.model.config)
        for k, threshold in enumerate(found["thresholds"]):
            (alone,) = fit_thresholds(calibrated[known[:, k], k], labels[known[:, k], k].long(), min_f1=0.2)
            assert threshold == pytest.approx(alone, abs=1e-6)
        trainer.create_model_card()
        contents = read_model_card(tmp_path / "README.md")
        support = [contents.per_class[f"LABEL_{k}"]["support"] for k in range(3)]
        assert support == [[n] for n in (labels == 1).sum(0).tolist()]
        of_posterior = F.binary_cross_entropy(calibrated[known].double(), labels[known].double()).item()
        assert contents.metrics["negative_log_likelihood"][0] == pytest.approx(of_posterior, rel=1e-6)


class TestPriorBias:
    """A new head starts at the constant prediction with the least loss over the training data."""

    def started(self, folder, task="multi_label", **settings):
        """The biases of the head before the first step, beside which nothing has changed."""
        trainer = make_trainer(folder, task=task, max_steps=1, learning_rate=0.0, **settings)
        trainer.train()
        start = tiny_model(task).state_dict() if "model" not in settings else None
        for name, weight in trainer.model.state_dict().items() if start else ():
            assert name == "classifier.bias" or torch.equal(weight, start[name])
        return trainer.model.classifier.bias.detach(), FocalSettings.from_config(trainer.model.config)

    @pytest.mark.parametrize(
        "settings",
        [
            {"gamma": 0.0},
            {"gamma": 2.0},
            {"gamma": 2.0, "alpha": "sqrt_inverse"},
            {"gamma": 1.0, "gamma_neg": 4.0, "margin": 0.05, "alpha": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]},
        ],
    )
    def test_no_constant_has_a_smaller_loss(self, tmp_path, settings):
        biases, recorded = self.started(tmp_path, **settings)
        assert recorded.prior_bias
        labels = torch.tensor(tiny_dataset("multi_label")["labels"][:]).double()
        # Half an example with each label, and half a one without.
        labels = torch.cat([labels, torch.full((1, 3), 0.5)])
        alpha = recorded.alpha
        loss_settings = {name: value for name, value in settings.items() if name != "alpha"}

        def loss(constant):
            return sigmoid_focal_loss(constant.expand(45, 3), labels, alpha=alpha, **loss_settings)

        constant = biases.double().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(constant), constant)
        assert gradient.abs().max() < 1e-6 and loss(constant) < loss(torch.zeros(3, dtype=torch.float64)) - 1e-3

    @pytest.mark.parametrize("settings", [{"gamma": 2.0}, {"alpha": "inverse"}, {"label_smoothing_factor": 0.1}])
    def test_of_one_class_per_example_on_request(self, tmp_path, settings):
        biases, recorded = self.started(tmp_path, "single_label", prior_bias=True, **settings)
        counts = torch.tensor(recorded.label_counts).double() + 0.5
        smoothing, alpha = recorded.label_smoothing, recorded.alpha
        constant = biases.double().requires_grad_()
        each = focal_loss(
            constant.expand(3, 3), torch.arange(3), gamma=2, alpha=alpha, label_smoothing=smoothing, reduction="none"
        )
        (gradient,) = torch.autograd.grad((each * counts).sum() / counts.sum(), constant)
        assert gradient.abs().max() < 1e-6 and recorded.prior_bias and biases.abs().max() > 0.01
        biases, recorded = self.started(tmp_path, "single_label", **settings)
        assert not biases.any() and not recorded.prior_bias

    def test_switched_off(self, tmp_path):
        biases, recorded = self.started(tmp_path, prior_bias=False)
        assert not biases.any() and not recorded.prior_bias
        biases, _ = self.started(tmp_path, args_class=FocalTrainingArguments, focal_prior_bias=False)
        assert not biases.any()

    def test_a_head_that_has_been_trained_or_is_resumed_stays(self, tmp_path):
        model = tiny_model("multi_label")
        torch.nn.init.constant_(model.classifier.bias, 0.25)
        biases, recorded = self.started(tmp_path, model=model)
        assert (biases == 0.25).all() and not recorded.prior_bias
        arguments = {"task": "multi_label", "save_strategy": "steps", "save_steps": 1, "optim": "sgd"}
        arguments |= {"max_grad_norm": 0, "lr_scheduler_type": "constant", "learning_rate": 0.5}
        whole = make_trainer(tmp_path / "whole", max_steps=2, **arguments)
        whole.train()
        resumed = make_trainer(tmp_path / "resumed", max_steps=2, **arguments)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
        assert drift(whole.model.state_dict(), resumed.model.state_dict()) == 0
        assert resumed.recorded_settings().prior_bias

    def test_training_on_is_no_new_start(self, tmp_path):
        trainer = make_trainer(tmp_path, task="multi_label", max_steps=1, learning_rate=0.0)
        trainer.train()
        biases = trainer.model.classifier.bias.data.add_(1).clone()  # as if it had learned
        trainer.train()
        assert torch.equal(trainer.model.classifier.bias, biases)
        assert FocalSettings.from_config(trainer.model.config).prior_bias

    def test_it_says_what_it_did(self, tmp_path, caplog):
        with caplog.at_level("INFO", "hf_focal"):
            self.started(tmp_path)
            without_biases = tiny_model("multi_label")
            without_biases.classifier = torch.nn.Linear(16, 3, bias=False)
            make_trainer(tmp_path, model=without_biases, task="multi_label", max_steps=1).train()
        assert "The biases of the head start from -" in caplog.messages[0]
        assert caplog.messages[1] == (
            "prior_bias: the head of BertForSequenceClassification has no biases, so it is left as it is"
        )

    def test_beside_an_adapter(self, tmp_path):
        peft = pytest.importorskip("peft")
        settings = {"target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
        model = peft.get_peft_model(tiny_model("multi_label"), peft.LoraConfig(**settings))
        trainer = make_trainer(tmp_path, model=model, task="multi_label", max_steps=1, learning_rate=0.0)
        trainer.train()
        head = trainer.model.get_base_model().classifier
        assert not head.original_module.bias.any() and head.modules_to_save["default"].bias.all()

    def test_each_model_of_a_search_or_of_a_function_starts_so(self, tmp_path):
        args = TrainingArguments(str(tmp_path), max_steps=1, learning_rate=0.0, use_cpu=True, report_to="none")
        data = tiny_dataset("multi_label")
        trainer = FocalTrainer(args=args, model_init=lambda: tiny_model("multi_label"), train_dataset=data)
        trainer.train()
        assert trainer.model.classifier.bias.all() and trainer.model.config.focal_loss["prior_bias"]

    def test_a_head_without_biases_starts_as_it_is(self, tmp_path):
        model = tiny_model("multi_label")
        model.classifier.bias = None
        trainer = make_trainer(tmp_path, model=model, task="multi_label", max_steps=1, prior_bias=True)
        with pytest.warns(
            UserWarning, match="prior_bias: the head of BertForSequenceClassification has no biases, so it"
        ):
            trainer.train()
        assert not trainer.model.config.focal_loss["prior_bias"]

    def test_each_trial_of_a_search_starts_at_its_own_constant(self, tmp_path):
        pytest.importorskip("optuna")
        found = []

        class Recording(FocalTrainer):
            def training_step(self, *args, **kwargs):
                biases = self.model.classifier.bias.detach().clone()
                found.append((self.args.focal_gamma_neg, self.model.config.focal_loss["gamma_neg"], biases))
                return super().training_step(*args, **kwargs)

        trainer = Recording(
            args=FocalTrainingArguments(
                str(tmp_path), max_steps=1, use_cpu=True, report_to="none", focal_alpha="0.25"
            ),
            model_init=lambda: tiny_model("multi_label"),
            train_dataset=tiny_dataset("multi_label"),
            eval_dataset=tiny_dataset("multi_label", num_examples=8),
        )
        gammas = iter([1.0, 4.0, 2.0])

        def space(trial):
            gamma = next(gammas)
            alpha = trial.suggest_categorical("focal_alpha", ["inverse"])
            return {"focal_gamma_neg": trial.suggest_float("focal_gamma_neg", gamma, gamma), "focal_alpha": alpha}

        trainer.hyperparameter_search(space, n_trials=3, backend="optuna", direction="minimize")
        labels, alpha = trainer.train_dataset["labels"][:], compute_alpha(trainer.train_dataset)
        shares = (torch.tensor(labels).double().sum(0) + 0.5) / (len(labels) + 1)
        assert [of_arguments for of_arguments, *_ in found] == [1.0, 4.0, 2.0]
        for of_arguments, recorded, biases in found:
            assert recorded == of_arguments
            expected = sigmoid_focal_logits(shares, gamma=2.0, gamma_neg=of_arguments, alpha=alpha)
            torch.testing.assert_close(biases, expected.float())

    def test_a_search_cannot_change_a_keyword(self, tmp_path):
        pytest.importorskip("optuna")
        trainer = FocalTrainer(
            args=FocalTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none"),
            model_init=lambda: tiny_model("multi_label"),
            train_dataset=tiny_dataset("multi_label"),
            prior_bias=True,
        )
        with pytest.raises(ValueError, match="^prior_bias: a keyword takes precedence over the training arguments"):
            trainer.hyperparameter_search(lambda trial: {"focal_prior_bias": False}, n_trials=1, backend="optuna")

    @pytest.mark.parametrize(
        "message, settings",
        [
            ("with a gamma that is a function of p_t", {"gamma": flsd_53}),
            ("PolyLossTrainer has its own loss", {"trainer_class": PolyLossTrainer, "task": "single_label"}),
        ],
    )
    def test_what_cannot_be_done_is_refused_where_it_is_asked_for(self, tmp_path, message, settings):
        with pytest.raises(ValueError, match=f"^prior_bias .the flag --focal_prior_bias.: {message}.*leave it out"):
            make_trainer(tmp_path, **{"task": "multi_label", "prior_bias": True, **settings}).train()
        if "gamma" in settings:
            assert not self.started(tmp_path, **settings)[0].any()


def test_a_label_of_which_nothing_is_known(tmp_path):
    """It has no share, so there is no class prior; the others are learned."""
    data = tiny_dataset("multi_label")
    rows = np.array(data["labels"][:])
    rows[:, 2] = -100
    data = data.remove_columns("labels").add_column("labels", rows.tolist())
    trainer = make_trainer(tmp_path, task="multi_label", train_dataset=data, max_steps=1)
    trainer.train()
    record = trainer.model.config.focal_loss
    assert record["label_counts"][2] == 0 and record["label_counts"][0] > 0 and record["class_prior"] is None
