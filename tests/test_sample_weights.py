"""A weight for each example: the loss of its targets times it, over the sum of the weights of the global batch."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from exactness import tiny_dataset, tiny_model, weighted_dataset
from test_trainer import drift, make_trainer

from hf_focal import FocalTrainer, FocalTrainingArguments, LabelDistribution, focal_loss
from hf_focal._prior_bias import prior_logits
from hf_focal._training_labels import weigh_distribution
from hf_focal.metrics import compute_metrics


def trained(folder, task="single_label", data=None, **settings):
    data = weighted_dataset(task) if data is None else data
    settings = {"sample_weight_column": "importance", "max_steps": 5, "optim": "sgd", "learning_rate": 0.5} | settings
    arguments = {"max_grad_norm": 0, "lr_scheduler_type": "constant", **settings}
    trainer = make_trainer(folder, task=task, train_dataset=data, **arguments)
    trainer.train()
    return trainer


class TestLoss:
    def test_by_hand(self, tmp_path):
        data = weighted_dataset(num_examples=8)
        trainer = make_trainer(tmp_path, train_dataset=data, sample_weight_column="importance", alpha=[0.5, 1.0, 2.0])
        batch = {name: torch.tensor(data[name][:]) for name in data.column_names}
        loss = trainer.compute_loss(trainer.model.eval(), batch)
        logits, weights = trainer.model(batch["input_ids"]).logits, batch["importance"]
        each = focal_loss(logits, batch["labels"], alpha=[0.5, 1.0, 2.0], reduction="none")
        torch.testing.assert_close(loss, (each * weights).sum() / weights.sum(), check_dtype=False)
        assert "importance" in batch  # the batch is the caller's

    @pytest.mark.parametrize("task", ["single_label", "tokens", "multi_label"])
    def test_a_weight_of_2_is_the_example_twice(self, tmp_path, task):
        data = weighted_dataset(task, 12)
        twice = data.select(np.repeat(np.arange(12), np.array(data["importance"][:], int)))
        whole = {"max_steps": 3, "per_device_train_batch_size": 64, "prior_bias": False}
        repeated = trained(tmp_path, task, twice.remove_columns("importance"), sample_weight_column=None, **whole)
        weighted = trained(tmp_path, task, data, **whole)
        assert drift(weighted.model.state_dict(), repeated.model.state_dict()) < 1e-6
        start = tiny_model(task).state_dict()
        assert drift(weighted.model.state_dict(), start) > 1e-3
        assert weighted.evaluate(data)["eval_loss"] == pytest.approx(repeated.evaluate(twice)["eval_loss"], rel=1e-5)

    @pytest.mark.parametrize("task", ["single_label", "tokens", "multi_label"])
    @pytest.mark.parametrize("accumulation", [2, 8])
    def test_exact_under_accumulation(self, tmp_path, task, accumulation):
        whole = trained(tmp_path, task, per_device_train_batch_size=8)
        cut = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        assert drift(trained(tmp_path, task, **cut).model.state_dict(), whole.model.state_dict()) < 1e-6

    def test_a_constant_weight_changes_nothing(self, tmp_path):
        data = weighted_dataset().remove_columns("importance").add_column("importance", [0.01] * 44)
        alike = trained(tmp_path, data=data)
        unweighted = trained(tmp_path, data=tiny_dataset(), sample_weight_column=None)
        assert drift(alike.model.state_dict(), unweighted.model.state_dict()) < 1e-6

    def test_a_flag(self, tmp_path):
        by_flag = trained(
            tmp_path,
            args_class=FocalTrainingArguments,
            focal_sample_weight_column="importance",
            sample_weight_column=None,
        )
        assert drift(by_flag.model.state_dict(), trained(tmp_path).model.state_dict()) == 0

    def test_of_a_stream(self, tmp_path):
        streamed = trained(tmp_path, data=weighted_dataset().to_iterable_dataset())
        assert streamed.state.global_step == 5 and all(np.isfinite(log["loss"]) for log in logged(streamed))


def logged(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


class TestEvaluation:
    def test_the_metrics_take_them(self, tmp_path):
        data, seen = weighted_dataset(num_examples=11), []

        def metrics(prediction, sample_weight=None):
            seen.append(sample_weight)
            return compute_metrics(prediction, sample_weight=sample_weight)

        trainer = make_trainer(
            tmp_path,
            train_dataset=data,
            sample_weight_column="importance",
            compute_metrics=metrics,
            per_device_eval_batch_size=2,
        )
        accuracy = trainer.evaluate(data)["eval_accuracy"]
        assert seen[0].tolist() == data["importance"][:]
        output = trainer.predict(data)
        hits = output.predictions.argmax(1) == output.label_ids
        assert accuracy == pytest.approx(np.average(hits, weights=data["importance"][:]))

    def test_data_without_the_column_count_alike(self, tmp_path):
        trainer = make_trainer(
            tmp_path,
            train_dataset=weighted_dataset(),
            sample_weight_column="importance",
            compute_metrics=compute_metrics,
        )
        data = tiny_dataset(num_examples=11)
        unweighted = make_trainer(tmp_path, compute_metrics=compute_metrics)
        expected, found = unweighted.evaluate(data), trainer.evaluate(data)
        for name in ("eval_loss", "eval_accuracy", "eval_f1_macro"):
            assert found[name] == expected[name]

    def test_metrics_that_do_not_take_them_are_warned_about(self, tmp_path):
        with pytest.warns(UserWarning, match="compute_metrics: takes no `sample_weight`"):
            make_trainer(
                tmp_path,
                train_dataset=weighted_dataset(),
                sample_weight_column="importance",
                compute_metrics=lambda prediction: {},
            )


class TestBadInput:
    @pytest.mark.parametrize(
        "weights, found",
        [
            ([1.0] * 7 + [-1.0], "-1 to 1"),
            ([1.0] * 7 + [float("nan")], "nan"),
            ([1.0] * 7 + [None], "nan"),
            ([0.0] * 8, "0 to 0"),
            (["heavy"] * 8, "string"),
        ],
    )
    def test_weights_that_are_none(self, tmp_path, weights, found):
        columns = tiny_dataset(num_examples=8).to_dict()
        data = Dataset.from_dict({**columns, "importance": weights})
        with pytest.raises(ValueError, match=f"sample_weight_column: expected a number >= 0.*{found}"):
            make_trainer(tmp_path, train_dataset=data, sample_weight_column="importance")

    def test_no_such_column(self, tmp_path):
        with pytest.raises(ValueError, match="sample_weight_column: train_dataset has no column 'weight', but"):
            make_trainer(tmp_path, sample_weight_column="weight")

    def test_a_collator_that_leaves_them_out(self, tmp_path):
        def collate(examples):
            return {name: torch.tensor([row[name] for row in examples]) for name in ("input_ids", "labels")}

        with pytest.raises(ValueError, match="sample_weight_column: 'importance' is missing from the batch"):
            trained(tmp_path, data_collator=collate)

    @pytest.mark.parametrize("name", ["weight", "sample_weight"])
    def test_a_column_of_a_usual_name_is_warned_about(self, tmp_path, name):
        data = weighted_dataset().rename_column("importance", name)
        with pytest.warns(UserWarning, match=f"column '{name}' has no effect.*sample_weight_column='{name}'"):
            make_trainer(tmp_path, train_dataset=data)

    def test_a_stream_with_a_negative_weight(self, tmp_path):
        data = weighted_dataset().map(lambda row: {"importance": -1.0}).to_iterable_dataset()
        with pytest.raises(RuntimeError, match="sample_weight_column: expected numbers >= 0"):
            trained(tmp_path, data=data)


def test_it_belongs_to_the_trainer_not_to_the_model(tmp_path):
    """The model's argument of the same name gets its column, as ever."""

    class Takes(type(tiny_model())):
        def forward(self, input_ids, weight=None, labels=None):
            assert weight is not None
            return super().forward(input_ids)

    data = weighted_dataset().rename_column("importance", "weight")
    trainer = make_trainer(tmp_path, model=Takes(tiny_model().config), train_dataset=data, max_steps=1)
    trainer.train()
    assert isinstance(trainer, FocalTrainer)


class TestClassPrior:
    """The posterior is that of the weighted data, so "balanced" and other priors have to be shifted from there."""

    @pytest.mark.parametrize("task", ["single_label", "tokens", "multi_label"])
    def test_a_weight_of_2_is_the_example_twice(self, tmp_path, task):
        data = weighted_dataset(task, 12)
        twice = data.select(np.repeat(np.arange(12), np.array(data["importance"][:], int))).remove_columns(
            "importance"
        )
        weighted = trained(tmp_path, task, data, max_steps=1).recorded_settings()
        repeated = trained(tmp_path, task, twice, sample_weight_column=None, max_steps=1).recorded_settings()
        assert weighted.class_prior == pytest.approx(repeated.class_prior)
        plain = trained(tmp_path, task, data.remove_columns("importance"), sample_weight_column=None, max_steps=1)
        assert weighted.label_counts == plain.recorded_settings().label_counts
        assert weighted.class_prior != pytest.approx(plain.recorded_settings().class_prior)

    def test_strings(self):
        data = Dataset.from_dict({"label": ["ok", "fraud", "ok"], "weight": [1.0, 6.0, 1.0]})
        counted = LabelDistribution.from_dataset(data)
        counts, negatives = weigh_distribution(counted, data, ["label", "labels"], np.array(data["weight"][:]))
        assert dict(zip(counted.names, counts)) == pytest.approx({"fraud": 2.25, "ok": 0.75}) and negatives is None

    def test_labels_that_are_counted_otherwise_have_no_prior(self):
        rows = Dataset.from_dict({"labels": [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]})  # one-hot, counted as classes
        counted = LabelDistribution.from_dataset(rows, num_labels=2, multi_label=False, one_hot=True)
        assert weigh_distribution(counted, rows, ["labels"], np.array([1.0, 2.0, 3.0])) is None
        assert weigh_distribution(counted, rows.with_transform(dict), ["labels"], np.ones(3)) is None

    def test_the_start_of_a_head_is_the_weighted_one(self, tmp_path):
        data = weighted_dataset("multi_label", 12)
        trainer = make_trainer(tmp_path, task="multi_label", train_dataset=data, sample_weight_column="importance")
        trainer._prepare_model()
        record = trainer.recorded_settings()
        counts = np.array(record.class_prior) * 12
        expected = prior_logits(counts, 12 - counts, record)
        torch.testing.assert_close(trainer.model.classifier.bias.detach().double(), expected, atol=1e-5, rtol=0)
