"""The contract of FocalTrainer: exact in every cut of the batch, and otherwise a Trainer."""

import json
import signal
import warnings
from pathlib import Path

import exactness
import killed_run
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from exactness import (
    GLOBAL_BATCH,
    NUM_EVAL_EXAMPLES,
    STEPS_OF_WHOLE_BATCHES,
    TASKS,
    PolyLossTrainer,
    run_cases,
    statistics_of,
    tiny_dataset,
    tiny_model,
    train,
    weighted_dataset,
)
from processes import run_in_two_processes, start_process
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.run import main as torchrun
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertLMHeadModel,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    YolosConfig,
    YolosForObjectDetection,
    default_data_collator,
)

from hf_focal import (
    FocalSettings,
    FocalTrainer,
    FocalTrainingArguments,
    LabelDistribution,
    _kernels,
    apply_temperature,
    compute_alpha,
    fit_temperature,
    fit_thresholds,
    flsd_53,
    focal_loss,
    operating_point_scores,
    posterior_from_config,
    sigmoid_focal_loss,
)
from hf_focal._label_counts import count_labels
from hf_focal._loss_statistics import LossStatistics


ALPHA_OF_TASK = {"single_label": [0.5, 1.0, 4.0], "multi_label": [0.3, 0.5, 0.9], "tokens": [0.5, 1.0, 4.0]}


heads_ignore_the_count = pytest.mark.skipif(
    transformers.__version__ < "5", reason="before version 5, BERT's heads do not accept num_items_in_batch"
)


FSDP_CONFIG = Path(__file__).parents[1] / "examples" / "accelerate" / "fsdp.yaml"
WAYS_TO_DISTRIBUTE = {
    "dispatch_batches": {"accelerator_config": {"dispatch_batches": True}},
    "split_batches": {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": GLOBAL_BATCH},
    "logs_of_two_steps": {"logging_steps": 2},
    "stream": {"streamed": True},
    "objects_gathered_in_evaluation": {"eval_use_gather_object": True},
    "stream_without_dispatch": {"streamed": True, "accelerator_config": {"dispatch_batches": False}},
}
if transformers.__version__ >= "5":  # before, Trainer could not be told to shard on CPU
    # The last one, because Trainer leaves FSDP switched on in the environment of its process.
    fsdp_config = load_config_from_file(str(FSDP_CONFIG)).fsdp_config
    WAYS_TO_DISTRIBUTE["fsdp"] = {"fsdp": "full_shard auto_wrap", "fsdp_config": fsdp_config}


def drift(weights, other):
    return max((weights[name] - other[name]).abs().max().item() for name in weights)


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory):
    """Weights after training on whole batches in one process, by task and number of steps."""
    return {
        (task, max_steps): train(
            tmp_path_factory.mktemp("whole"), task, max_steps=max_steps, alpha=ALPHA_OF_TASK[task]
        ).model.state_dict()
        for task in TASKS
        for max_steps in (-1, STEPS_OF_WHOLE_BATCHES)
    }


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The cases that the module's tests run on two processes, one after the other."""
    folder = tmp_path_factory.mktemp("two_processes")
    cases = {}
    for task in TASKS:
        # Accelerate fills up a last batch that two processes cannot share evenly, so the epoch stops before it.
        at_once = {"per_device_train_batch_size": GLOBAL_BATCH // 2, "max_steps": STEPS_OF_WHOLE_BATCHES}
        accumulated = {"per_device_train_batch_size": GLOBAL_BATCH // 4, "gradient_accumulation_steps": 2}
        for name, cut in (("at_once", at_once), ("accumulated", accumulated)):
            cases[f"{task}_{name}"] = {"task": task, "alpha": ALPHA_OF_TASK[task], **cut}
        cases[f"{task}_weighted"] = {"task": task, "sample_weight_column": "importance", **accumulated}
    cases["partly_known"] = {"task": "partly_known", "prior_bias": True, **accumulated}
    for trainer_class in ("PerBatchMean", "Trainer", "PolyLossTrainer"):
        cases[trainer_class] = {"task": "tokens", "trainer_class": trainer_class, **at_once}
    for name, arguments in WAYS_TO_DISTRIBUTE.items():
        cases[name] = {"task": "tokens", "alpha": ALPHA_OF_TASK["tokens"], **at_once, **arguments}
    run_in_two_processes(run_cases, folder, cases)
    return {name: outcome_of(folder, name) for name in cases}


def outcome_of(folder, case):
    return load_file(folder / f"{case}.safetensors"), json.loads((folder / f"{case}.json").read_text())


class TestExactness:
    @pytest.mark.parametrize("accumulation", [2, 4, 8])
    @pytest.mark.parametrize("task", TASKS)
    def test_gradient_accumulation(self, tmp_path, whole_batch, task, accumulation):
        trainer = train(
            tmp_path,
            task,
            per_device_train_batch_size=GLOBAL_BATCH // accumulation,
            gradient_accumulation_steps=accumulation,
            alpha=ALPHA_OF_TASK[task],
        )
        assert trainer.state.global_step == STEPS_OF_WHOLE_BATCHES + 1
        assert drift(trainer.model.state_dict(), whole_batch[task, -1]) < 1e-6

    @pytest.mark.parametrize("task", TASKS)
    def test_two_processes(self, two_processes, whole_batch, task):
        weights, run = two_processes[f"{task}_at_once"]
        assert run["world_size"] == 2
        assert drift(weights, whole_batch[task, STEPS_OF_WHOLE_BATCHES]) < 1e-6

    @pytest.mark.parametrize("task", TASKS)
    def test_two_processes_with_accumulation(self, two_processes, whole_batch, task):
        weights, run = two_processes[f"{task}_accumulated"]
        assert run["world_size"] == 2
        assert drift(weights, whole_batch[task, -1]) < 1e-6

    @pytest.mark.parametrize("task", TASKS)
    def test_two_processes_with_sample_weights(self, tmp_path, two_processes, whole_batch, task):
        weights, run = two_processes[f"{task}_weighted"]
        whole = train(tmp_path, task, sample_weight_column="importance")
        assert drift(weights, whole.model.state_dict()) < 1e-6 < 1e-3 < drift(weights, whole_batch[task, -1])
        expected = whole.evaluate(weighted_dataset(task, NUM_EVAL_EXAMPLES))["eval_loss"]
        assert run["eval_loss"] == pytest.approx(expected, rel=1e-5)

    def test_two_processes_with_labels_that_are_not_known(self, tmp_path, two_processes):
        weights, run = two_processes["partly_known"]
        whole = train(tmp_path, "partly_known", prior_bias=True)
        assert drift(weights, whole.model.state_dict()) < 1e-6
        expected = whole.evaluate(tiny_dataset("partly_known", NUM_EVAL_EXAMPLES))["eval_loss"]
        assert run["eval_loss"] == pytest.approx(expected, rel=1e-5)

    def test_two_nodes(self, tmp_path, whole_batch):
        at_once = {"per_device_train_batch_size": GLOBAL_BATCH // 2, "max_steps": STEPS_OF_WHOLE_BATCHES}
        case = {"task": "tokens", "alpha": ALPHA_OF_TASK["tokens"], **at_once}
        (tmp_path / "cases.json").write_text(json.dumps({"tokens": case}))
        flags = f"--nnodes 2 --nproc_per_node 1 --master_addr localhost --master_port {get_free_port()}"
        arguments = [*flags.split(), "--log_dir", str(tmp_path), exactness.__file__, str(tmp_path)]
        agents = [start_process(torchrun, ["--node_rank", str(node), *arguments]) for node in range(2)]
        for agent in agents:
            agent.join()
        weights, run = outcome_of(tmp_path, "tokens")
        assert run["world_size"] == run["num_nodes"] == 2
        assert drift(weights, whole_batch["tokens", STEPS_OF_WHOLE_BATCHES]) < 1e-6

    @pytest.mark.parametrize("name, arguments", WAYS_TO_DISTRIBUTE.items())
    def test_ways_to_distribute(self, tmp_path, two_processes, name, arguments):
        weights, run = two_processes[name]
        assert run["world_size"] == 2
        one_process = train(
            tmp_path,
            "tokens",
            alpha=ALPHA_OF_TASK["tokens"],
            streamed="stream" in name,
            max_steps=STEPS_OF_WHOLE_BATCHES,
            logging_steps=arguments.get("logging_steps", 1),
        )
        assert drift(weights, one_process.model.state_dict()) < 1e-6
        assert run["share_of_weights"] == (pytest.approx(0.5, abs=0.1) if name == "fsdp" else 1)
        expected = statistics_of(one_process)
        assert run["statistics"] == pytest.approx(expected, rel=1e-4) and expected

    @pytest.mark.parametrize("name", [*(f"{task}_at_once" for task in TASKS), *WAYS_TO_DISTRIBUTE])
    def test_eval_loss_of_two_processes(self, two_processes, name):
        weights, run = two_processes[name]
        task = name.removesuffix("_at_once") if name.endswith("_at_once") else "tokens"
        batch = batch_of(task, NUM_EVAL_EXAMPLES)
        model = tiny_model(task)
        model.load_state_dict(weights)
        with torch.no_grad():
            logits = model.eval()(batch["input_ids"]).logits.double()
        loss = sigmoid_focal_loss if task == "multi_label" else focal_loss
        logits = logits if task == "multi_label" else logits.movedim(-1, 1)
        expected = loss(logits, batch["labels"], alpha=ALPHA_OF_TASK[task]).item()
        assert run["eval_loss"] == pytest.approx(expected, rel=1e-6)
        assert run["eval_loss_of_stream"] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("trainer_class", ["PerBatchMean", pytest.param("Trainer", marks=heads_ignore_the_count)])
    @pytest.mark.parametrize("task", TASKS)
    def test_others_fail_with_accumulation(self, tmp_path, task, trainer_class):
        whole = train(tmp_path, task, trainer_class=trainer_class).model.state_dict()
        cut = train(
            tmp_path,
            task,
            per_device_train_batch_size=GLOBAL_BATCH // 4,
            gradient_accumulation_steps=4,
            trainer_class=trainer_class,
        )
        assert drift(cut.model.state_dict(), whole) > 0.01

    @pytest.mark.parametrize("trainer_class", ["PerBatchMean", pytest.param("Trainer", marks=heads_ignore_the_count)])
    def test_others_fail_with_two_processes(self, tmp_path, two_processes, trainer_class):
        whole = train(tmp_path, "tokens", trainer_class=trainer_class, max_steps=STEPS_OF_WHOLE_BATCHES)
        weights, run = two_processes[trainer_class]
        assert run["world_size"] == 2
        assert drift(weights, whole.model.state_dict()) > 1e-3  # a thousand times what FocalTrainer may differ

    @pytest.mark.parametrize("task", TASKS)
    def test_one_step_is_the_gradient_of_the_mean_over_the_valid_targets(self, tmp_path, task):
        dataset = tiny_dataset(task)
        before = tiny_model(task)
        step = train(
            tmp_path,
            task,
            per_device_train_batch_size=11,
            gradient_accumulation_steps=4,
            gamma=3.0,
            alpha=ALPHA_OF_TASK[task],
        )
        assert step.state.global_step == 1
        logits = before(torch.tensor(dataset["input_ids"][:])).logits
        labels = torch.tensor(dataset["labels"][:])
        alpha = torch.tensor(ALPHA_OF_TASK[task])
        if task == "multi_label":
            p_t = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
            weight = torch.where(labels == 1, alpha, 1 - alpha)
        else:
            logits, labels = logits[labels != -100], labels[labels != -100]
            p_t = logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
            weight = alpha[labels]
        (-weight * (1 - p_t) ** 3 * p_t.log()).mean().backward()
        expected = {name: p.data - 0.1 * p.grad for name, p in before.named_parameters()}
        assert drift(dict(step.model.named_parameters()), expected) < 1e-6

    def test_logged_loss_does_not_depend_on_accumulation(self, tmp_path):
        def losses(**cut):
            trainer = train(tmp_path, "tokens", **cut)
            return torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])

        accumulated = losses(per_device_train_batch_size=2, gradient_accumulation_steps=4)
        torch.testing.assert_close(accumulated, losses(), rtol=1e-5, atol=0)


def make_trainer(
    folder, model=None, task="single_label", args_class=TrainingArguments, trainer_class=FocalTrainer, **kwargs
):
    arguments = {name: kwargs.pop(name) for name in list(kwargs) if name in args_class.__dataclass_fields__}
    defaults = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    return trainer_class(
        model=tiny_model(task) if model is None else model,
        args=args_class(str(folder), **{**defaults, **arguments}),
        **{"train_dataset": tiny_dataset(task), **kwargs},
    )


def list_dataset(task):
    class ListDataset(torch.utils.data.Dataset):
        examples = list(tiny_dataset(task))

        def __len__(self):
            return len(self.examples)

        def __getitem__(self, row):
            return self.examples[row]

    return ListDataset()


class OneShot(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


class Unlabelled(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, row):
        return torch.zeros(3)


def without_reads(function):
    def run(*args):
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*args)

    return run


def batch_of(task, size=4):
    dataset = tiny_dataset(task, size)
    return {name: torch.tensor(dataset[name][:]) for name in ("input_ids", "labels")}


class TestSettings:
    def test_one_word_swap(self, tmp_path):
        trainer = make_trainer(tmp_path)
        assert trainer.gamma == 2 and trainer.alpha is None
        batch = batch_of("single_label")
        logits = trainer.model(batch["input_ids"]).logits
        torch.testing.assert_close(
            trainer.compute_loss(trainer.model, dict(batch)), focal_loss(logits, batch["labels"])
        )

    def test_arguments_carry_the_settings(self, tmp_path):
        trainer = make_trainer(tmp_path, args_class=FocalTrainingArguments, focal_gamma=1.5, focal_alpha="0.5,1,4")
        assert trainer.gamma == 1.5 and trainer.alpha == [0.5, 1.0, 4.0]

    def test_keyword_wins_over_arguments(self, tmp_path):
        trainer = make_trainer(
            tmp_path,
            args_class=FocalTrainingArguments,
            focal_gamma=1.5,
            focal_alpha="inverse",
            gamma=0,
            alpha=[1.0, 2.0, 3.0],
        )
        assert trainer.gamma == 0 and trainer.alpha == [1.0, 2.0, 3.0]

    def test_arguments_are_read_at_loss_time(self, tmp_path):
        trainer = make_trainer(tmp_path, args_class=FocalTrainingArguments, focal_gamma=2, focal_alpha="inverse")
        batch = batch_of("single_label")
        logits = trainer.model(batch["input_ids"]).logits
        trainer.args.focal_gamma, trainer.args.focal_alpha = 0.5, "sqrt_inverse"  # what a search does between trials
        torch.testing.assert_close(
            trainer.compute_loss(trainer.model, dict(batch)),
            focal_loss(logits, batch["labels"], gamma=0.5, alpha=compute_alpha(tiny_dataset(), "sqrt_inverse")),
        )

    @pytest.mark.parametrize("text, alpha", [("none", None), ("1,2,3", [1, 2, 3])])
    def test_search_may_set_any_text_that_the_flag_takes(self, tmp_path, text, alpha):
        trainer = make_trainer(tmp_path, args_class=FocalTrainingArguments, focal_alpha="inverse")
        trainer.args.focal_alpha = text
        assert trainer.alpha == alpha

    def test_keyword_switches_off_the_alpha_of_the_arguments(self, tmp_path):
        trainer = make_trainer(tmp_path, args_class=FocalTrainingArguments, focal_alpha="inverse", alpha="none")
        assert trainer.alpha is None

    @pytest.mark.parametrize("method", ["inverse", "sqrt_inverse", "effective_number"])
    @pytest.mark.parametrize("task", TASKS)
    def test_alpha_from_the_training_data(self, tmp_path, task, method):
        trainer = make_trainer(tmp_path, task=task, alpha=method)
        expected = compute_alpha(tiny_dataset(task), method, num_labels=3)
        assert trainer.alpha.tolist() == expected.tolist() and expected.shape[-1] == 3

    def test_a_number_weighs_class_one_of_two(self, tmp_path):
        model = tiny_model(num_labels=2)
        batch = batch_of("single_label")
        batch["labels"] = batch["labels"].clamp_max(1)
        data = Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()})
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, alpha=0.8)
        expected = focal_loss(model(batch["input_ids"]).logits, batch["labels"], alpha=[0.2, 0.8])
        torch.testing.assert_close(trainer.compute_loss(model, batch), expected)

    def test_beta_comes_from_the_arguments(self, tmp_path):
        trainer = make_trainer(
            tmp_path, args_class=FocalTrainingArguments, focal_alpha="effective_number", focal_beta=0.9
        )
        expected = compute_alpha(tiny_dataset(), "effective_number", beta=0.9)
        assert trainer.alpha.tolist() == expected.tolist()

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            ("gamma: expected a finite number", {"gamma": -1.0}),
            ("gamma: expected one number for each of 3 classes, but got 2", {"gamma": [1.0, 2.0]}),
            ("alpha: expected one number for each of 3 classes, but got 2", {"alpha": [1.0, 2.0]}),
            ("alpha: expected finite numbers", {"alpha": [1.0, -2.0, 1.0]}),
            ("alpha: a scalar is for two classes, but input has 3", {"alpha": 0.25}),
            ("alpha: expected none, one of inverse", {"alpha": "uniform"}),
            ("compute_loss_func: FocalTrainer computes the loss itself", {"compute_loss_func": print}),
            (r"weights of positives in \[0, 1\]", {"task": "multi_label", "alpha": [1.0, 2.0, 3.0]}),
            (
                r"^train_dataset: no examples of class 3, .* choose their weight with alpha_empty_weight",
                {"model": tiny_model(num_labels=4), "alpha": "inverse"},
            ),
            ("alpha: 'inverse' would consume a OneShot", {"alpha": "inverse", "train_dataset": OneShot()}),
            ("train_dataset: expected examples that are dicts", {"alpha": "inverse", "train_dataset": Unlabelled()}),
            (
                r"or pass the weights to FocalTrainer: alpha=compute_alpha",
                {"alpha": "inverse", "train_dataset": Unlabelled()},
            ),
        ],
    )
    def test_wrong_settings_are_refused_when_the_trainer_is_made(self, tmp_path, message, kwargs):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, **kwargs)

    @pytest.mark.parametrize("task", TASKS)
    def test_settings_survive_saving(self, tmp_path, task):
        smoothing = 0.0 if task == "multi_label" else 0.1
        trainer = make_trainer(tmp_path, task=task, gamma=3, alpha="inverse", label_smoothing_factor=smoothing)
        trainer.train()
        trainer.save_model()
        expected = FocalSettings(
            gamma=3.0,
            alpha=compute_alpha(tiny_dataset(task), num_labels=3).tolist(),
            label_smoothing=smoothing,
            prior_bias=task == "multi_label",
            label_counts=count_labels(tiny_dataset(task), num_labels=3).counts.tolist(),
            class_prior=LabelDistribution.from_dataset(tiny_dataset(task), num_labels=3).shares.tolist(),
        )
        loaded = type(trainer.model).from_pretrained(tmp_path)
        assert FocalSettings.from_config(loaded.config) == expected
        # Without training data, evaluation uses the weights that the model was trained with.
        trainer = make_trainer(tmp_path, model=loaded, task=task, train_dataset=None, alpha="inverse")
        assert trainer.alpha == expected.alpha

    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize(
        "gamma, stored",
        [(torch.tensor([0.5, 1.0, 2.0]), [0.5, 1.0, 2.0]), (flsd_53, "flsd_53")],
        ids=["class", "sample"],
    )
    def test_gamma_of_the_class_or_the_sample(self, tmp_path, task, gamma, stored):
        trainer = make_trainer(tmp_path, task=task, gamma=gamma)
        batch = batch_of(task)
        logits = trainer.model(**{**batch, "labels": None}).logits
        if task == "multi_label":
            expected = sigmoid_focal_loss(logits, batch["labels"], gamma=gamma)
        else:
            expected = focal_loss(logits.movedim(-1, 1), batch["labels"], gamma=gamma)
        torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
        trainer.train()
        trainer.save_model()
        assert type(trainer.model).from_pretrained(tmp_path).config.focal_loss["gamma"] == stored

    def test_settings_are_stored_by_training_alone(self, tmp_path):
        trainer = make_trainer(tmp_path, eval_dataset=tiny_dataset())
        trainer.evaluate()
        assert not hasattr(trainer.model.config, "focal_loss")

    def test_evaluation_without_training_data_does_without_alpha_of_a_method(self, tmp_path):
        with pytest.warns(UserWarning, match="alpha: 'inverse' needs a train_dataset; evaluating without alpha"):
            trainer = make_trainer(tmp_path, train_dataset=None, alpha="inverse", eval_dataset=tiny_dataset())
            assert trainer.alpha is None
            loss = trainer.evaluate()["eval_loss"]
        assert loss == make_trainer(tmp_path, eval_dataset=tiny_dataset()).evaluate()["eval_loss"]

    def test_labels_are_counted_once_also_if_they_cannot_be(self, tmp_path, monkeypatch):
        counted = []
        from_dataset = LabelDistribution.from_dataset
        monkeypatch.setattr(
            LabelDistribution,
            "from_dataset",
            lambda data, **kwargs: (counted.append(data), from_dataset(data, **kwargs))[1],
        )
        data = tiny_dataset().rename_column("labels", "target")  # a collator may make labels of it
        trainer = make_trainer(
            tmp_path,
            train_dataset=data,
            remove_unused_columns=False,
            data_collator=lambda rows: {
                "input_ids": torch.tensor([row["input_ids"] for row in rows]),
                "labels": torch.tensor([row["target"] for row in rows]),
            },
            logging_strategy="steps",
            logging_steps=1,
        )
        trainer.train()
        assert len(counted) == 1 and trainer.model.config.focal_loss["label_counts"] is None

    @pytest.mark.parametrize("task", TASKS)
    def test_alpha_from_a_stream_or_a_torch_dataset(self, tmp_path, task):
        expected = compute_alpha(tiny_dataset(task), num_labels=3)
        for data in (tiny_dataset(task).to_iterable_dataset(), list_dataset(task), list(tiny_dataset(task))):
            trainer = make_trainer(tmp_path, task=task, train_dataset=data, alpha="inverse", max_steps=1)
            assert trainer.alpha.tolist() == expected.tolist()
            trainer.train()
            assert FocalSettings.from_config(trainer.model.config).alpha == expected.tolist()

    def test_a_stream_is_not_read_for_the_record_alone(self, tmp_path):
        trainer = make_trainer(tmp_path, train_dataset=tiny_dataset().to_iterable_dataset(), max_steps=1)
        trainer.train()
        assert trainer.model.config.focal_loss["label_counts"] is None

    def test_alpha_from_a_function_of_the_counts(self, tmp_path):
        trainer = make_trainer(tmp_path, alpha=lambda counts: 1 / counts)
        torch.testing.assert_close(trainer.alpha, compute_alpha(tiny_dataset()))


class TestLoss:
    def test_multi_label(self, tmp_path):
        trainer = make_trainer(tmp_path, task="multi_label", alpha=[0.3, 0.5, 0.9])
        batch = batch_of("multi_label")
        logits = trainer.model(batch["input_ids"]).logits
        torch.testing.assert_close(
            trainer.compute_loss(trainer.model, dict(batch)),
            sigmoid_focal_loss(logits, batch["labels"], alpha=[0.3, 0.5, 0.9]),
        )
        assert trainer.model.config.problem_type == "multi_label_classification"

    def test_multi_label_with_integer_rows(self, tmp_path):
        batch = batch_of("multi_label")
        model = tiny_model(problem_type="multi_label_classification")
        trainer = make_trainer(tmp_path, model=model, task="multi_label", alpha=0.25)
        integers = {**batch, "labels": batch["labels"].long()}
        assert trainer.compute_loss(model, integers) == trainer.compute_loss(model, dict(batch))

    def test_integer_rows_without_problem_type_are_refused(self, tmp_path):
        batch = batch_of("multi_label")
        trainer = make_trainer(tmp_path, task="multi_label")
        with pytest.raises(ValueError, match="labels: torch.int64 of the shape of the logits.*convert them to float"):
            trainer.compute_loss(trainer.model, {**batch, "labels": batch["labels"].long()})

    @pytest.mark.parametrize("labels", [torch.rand(4), torch.zeros(4, 2, dtype=torch.long), torch.rand(4, 2)])
    def test_labels_that_do_not_fit_are_refused(self, tmp_path, labels):
        trainer = make_trainer(tmp_path)
        with pytest.raises(ValueError, match=r"labels: .* do not fit logits of shape \(4, 3\).*supports single-label"):
            trainer.compute_loss(trainer.model, {**batch_of("single_label"), "labels": labels})

    def test_single_label_is_remembered_for_pipelines(self, tmp_path):
        trainer = make_trainer(tmp_path)
        trainer.train()
        assert trainer.model.config.problem_type == "single_label_classification"

    @pytest.mark.parametrize("num_items_in_batch", [None, 12])
    def test_class_probabilities(self, tmp_path, num_items_in_batch):
        model = tiny_model(problem_type="single_label_classification")
        trainer = make_trainer(tmp_path, model=model)
        batch = batch_of("single_label")
        expected = trainer.compute_loss(model, dict(batch))
        batch["labels"] = F.one_hot(batch["labels"], 3).float()  # 12 entries for 4 targets
        loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
        torch.testing.assert_close(loss, expected)

    def test_the_batch_is_left_as_it_was(self, tmp_path):
        trainer, batch = make_trainer(tmp_path), batch_of("single_label")
        trainer.compute_loss(trainer.model, batch)
        assert "labels" in batch

    def test_labels_of_shape_n_1(self, tmp_path):
        trainer = make_trainer(tmp_path)
        batch = batch_of("single_label")
        column = {**batch, "labels": batch["labels"].unsqueeze(1)}
        assert trainer.compute_loss(trainer.model, column) == trainer.compute_loss(trainer.model, batch)

    @pytest.mark.parametrize("task", ["single_label", "tokens"])
    def test_label_smoothing_is_that_of_the_stock_trainer(self, tmp_path, task):
        def loss(trainer_class, **kwargs):
            trainer = make_trainer(
                tmp_path, task=task, trainer_class=trainer_class, label_smoothing_factor=0.2, **kwargs
            )
            return trainer.compute_loss(trainer.model, batch_of(task))

        torch.testing.assert_close(loss(FocalTrainer, gamma=0), loss(Trainer))
        unsmoothed = make_trainer(tmp_path, task=task, gamma=0)
        assert not torch.isclose(unsmoothed.compute_loss(unsmoothed.model, batch_of(task)), loss(Trainer))

    def test_label_smoothing_of_multi_label_warns(self, tmp_path):
        trainer = make_trainer(tmp_path, task="multi_label", label_smoothing_factor=0.2)
        with pytest.warns(UserWarning, match="label_smoothing_factor has no effect on multi-label"):
            trainer.compute_loss(trainer.model, batch_of("multi_label"))

    @pytest.mark.parametrize("batch_size", [1, 5, 8])
    @pytest.mark.parametrize("task", TASKS)
    def test_eval_loss_is_the_mean_over_all_targets(self, tmp_path, task, batch_size):
        dataset = tiny_dataset(task, 12)
        trainer = make_trainer(tmp_path, task=task, eval_dataset=dataset, per_device_eval_batch_size=batch_size)
        batch = {name: torch.tensor(dataset[name][:]) for name in ("input_ids", "labels")}
        with torch.no_grad():
            logits = trainer.model.eval()(batch["input_ids"]).logits.double()
        loss = sigmoid_focal_loss if task == "multi_label" else focal_loss
        logits = logits if task == "multi_label" else logits.movedim(-1, 1)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss(logits, batch["labels"]).item(), rel=1e-6)
        assert trainer.predict(dataset).metrics["test_loss"] == trainer.evaluate()["eval_loss"]

    def test_stock_eval_loss_of_tokens_depends_on_the_batch_size(self, tmp_path):
        losses = {
            make_trainer(
                tmp_path,
                task="tokens",
                trainer_class=Trainer,
                eval_dataset=tiny_dataset("tokens", 12),
                per_device_eval_batch_size=batch_size,
            ).evaluate()["eval_loss"]
            for batch_size in (4, 5)
        }
        assert max(losses) - min(losses) > 1e-3

    def test_prediction_without_labels(self, tmp_path):
        output = make_trainer(tmp_path).predict(tiny_dataset().remove_columns("labels"))
        assert output.predictions.shape == (44, 3) and output.label_ids is None


class TestSeam:
    def test_another_loss_is_in_force(self, tmp_path):
        trainer = make_trainer(tmp_path, trainer_class=PolyLossTrainer)
        batch = batch_of("single_label")
        cross_entropy = F.cross_entropy(trainer.model(batch["input_ids"]).logits, batch["labels"], reduction="none")
        expected = (cross_entropy + 2 * (1 - (-cross_entropy).exp())).mean()
        torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)

    def test_it_is_evaluated_and_its_shares_are_logged(self, tmp_path):
        args = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 1, "learning_rate": 0.0}
        trainer = make_trainer(tmp_path, task="tokens", trainer_class=PolyLossTrainer, **args)
        trainer.train()
        evaluated = [
            trainer.evaluate(tiny_dataset("tokens", NUM_EVAL_EXAMPLES))["eval_loss"]
            for trainer.args.per_device_eval_batch_size in (2, 8)
        ]
        assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-6)
        (log,) = [log for log in trainer.state.log_history if "loss" in log]
        assert sum(log[f"loss_share_{group}"] for group in ("head", "mid", "tail")) == pytest.approx(1)

    @pytest.mark.parametrize("cut", ["accumulated", "two_processes"])
    def test_it_is_exact(self, tmp_path, two_processes, cut):
        shared = {"trainer_class": "PolyLossTrainer", "max_steps": STEPS_OF_WHOLE_BATCHES}
        whole = train(tmp_path / "whole", "tokens", **shared).model.state_dict()
        if cut == "two_processes":
            weights, run = two_processes["PolyLossTrainer"]
            assert run["world_size"] == 2
        else:
            accumulated = {"per_device_train_batch_size": GLOBAL_BATCH // 4, "gradient_accumulation_steps": 4}
            weights = train(tmp_path, "tokens", **shared, **accumulated).model.state_dict()
        assert drift(weights, whole) < 1e-6
        assert drift(whole, train(tmp_path, "tokens", max_steps=STEPS_OF_WHOLE_BATCHES).model.state_dict()) > 1e-3

    @pytest.mark.parametrize(
        "message, change",
        [
            (r"expected one loss per target, of shape \(8,\), but got torch.float32 of shape \(\)", torch.mean),
            (r"expected one loss per target, of shape \(8,\), but got NoneType", lambda losses: None),
            (r"expected one loss per target, of shape \(8,\), but got tuple", lambda losses: (losses, losses)),
            ("expected losses that are differentiable with respect to the logits", torch.detach),
        ],
    )
    def test_what_is_not_a_loss_per_target_is_refused(self, tmp_path, message, change):
        class Changed(FocalTrainer):
            def target_losses(self, logits, labels):
                return change(super().target_losses(logits, labels))

        with pytest.raises(ValueError, match=f"target_losses: {message}"):
            make_trainer(tmp_path, trainer_class=Changed).train()

    def test_half_precision_losses_are_summed_in_float32(self, tmp_path):
        class Half(FocalTrainer):
            def target_losses(self, logits, labels):
                return 60000 + super().target_losses(logits, labels).half() * 0

        trainer = make_trainer(tmp_path, trainer_class=Half)
        loss = trainer.compute_loss(trainer.model, batch_of("single_label"))
        assert loss.item() == 60000

    @pytest.mark.parametrize("first", [True, False])
    def test_wrong_labels_do_not_reach_a_loss_that_would_take_them(self, tmp_path, first):
        class OneHot(FocalTrainer):
            def target_losses(self, logits, labels):
                one_hot = labels[..., None] == torch.arange(logits.shape[-1])
                return -(one_hot * logits.log_softmax(-1)).sum(-1)

        trainer = make_trainer(tmp_path, trainer_class=OneHot)
        batch = batch_of("single_label")
        if not first:
            trainer.compute_loss(trainer.model, batch)
        batch["labels"][1] = 7
        with pytest.raises((ValueError, RuntimeError), match="labels: expected class ids from 0 to 2, or -100"):
            trainer.compute_loss(trainer.model, batch)


class CountsReads(TorchDispatchMode):
    """Counts how often a number is read back from a tensor, for which a GPU has to be waited for."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class TestReads:
    def reads_of_steps(self, folder, monkeypatch, **kwargs):
        """The reads of the third to the last of eight steps, the kernels' own branches for CPU left out."""
        for name in ("_is_in_range", "_scale_rows", "_is_one"):
            monkeypatch.setattr(_kernels, name, without_reads(getattr(_kernels, name)))
        reads = []

        class Reads(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                reads.append(mode.reads)

        # Not the log, whose numbers are read: it is the loop of Trainer that is measured, with the statistics for a log.
        logs = {"logging_strategy": "steps", "logging_steps": 100}
        trainer = make_trainer(folder, max_steps=8, callbacks=[Reads()], **logs, **kwargs)
        with CountsReads() as mode:
            trainer.train()
        return reads[-1] - reads[1]

    @pytest.mark.parametrize("settings", [{}, {"alpha": "inverse"}, {"alpha": [0.5, 1.0, 4.0], "gamma": [0, 1, 2]}])
    @pytest.mark.parametrize("task", TASKS)
    def test_no_more_reads_than_the_stock_class(self, tmp_path, monkeypatch, task, settings):
        if task == "multi_label" and isinstance(settings.get("alpha"), list):
            settings = {**settings, "alpha": [0.5, 0.5, 0.9]}
        stock = self.reads_of_steps(tmp_path, monkeypatch, task=task, trainer_class=Trainer)
        assert self.reads_of_steps(tmp_path, monkeypatch, task=task, **settings) == stock > 0

    @pytest.mark.parametrize(("task", "wrong"), [("single_label", 3), ("tokens", 7), ("multi_label", 0.5)])
    def test_wrong_label_after_the_first_batch_is_an_error(self, tmp_path, task, wrong):
        class WrongLater:
            calls = 0

            def __call__(self, examples):
                batch = default_data_collator(examples)
                self.calls += 1
                if self.calls == 4:
                    batch["labels"].view(-1)[-1] = wrong
                return batch

        trainer = make_trainer(tmp_path, task=task, max_steps=6, data_collator=WrongLater())
        with pytest.raises(RuntimeError, match="labels: expected .*, but got others"):
            trainer.train()
        assert trainer.state.global_step == 3


class TestModels:
    @pytest.mark.parametrize("task", TASKS)
    def test_model_that_returns_tuples(self, tmp_path, task):
        dataset = tiny_dataset(task)
        results = []
        for return_dict in (True, False):
            model = tiny_model(task, return_dict=return_dict, output_hidden_states=True)
            trainer = make_trainer(tmp_path, model=model, task=task, eval_dataset=dataset)
            trainer.train()
            output = trainer.predict(dataset, ignore_keys=["hidden_states"])
            logits = output.predictions if return_dict else output.predictions[0]
            results.append((output.metrics["test_loss"], logits.tolist()))
        assert results[0] == results[1]

    @pytest.mark.parametrize(
        "wrap",
        [lambda logits: logits, lambda logits: [logits], lambda logits: (logits,), lambda logits: (None, logits)],
    )
    def test_module_that_returns_bare_logits(self, tmp_path, wrap):
        class Bare(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = torch.nn.EmbeddingBag(30, 3)

            def forward(self, input_ids):
                return wrap(self.embedding(input_ids))

        model, data = Bare(), tiny_dataset()
        trainer = make_trainer(tmp_path, model=model, label_names=["labels"], remove_unused_columns=False)
        output = trainer.predict(data)
        torch.testing.assert_close(
            torch.tensor(output.predictions), model.embedding(torch.tensor(data["input_ids"][:])).detach()
        )

    def test_peft_model(self, tmp_path):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
        before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
        trainer = make_trainer(tmp_path, model=model, alpha="inverse")
        trainer.train()
        after = dict(model.named_parameters())
        assert any((after[name] != weight).any() for name, weight in before.items())
        assert model.get_base_model().config.focal_loss["label_counts"] == count_labels(tiny_dataset()).counts.tolist()

    def test_plain_module(self, tmp_path):
        class Plain(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = torch.nn.EmbeddingBag(30, 3)

            def forward(self, input_ids, labels=None):
                return {"logits": self.embedding(input_ids)}

        assert make_trainer(tmp_path, model=Plain(), alpha="inverse").train().training_loss > 0

    @pytest.mark.parametrize("alpha", ["inverse", [1.0, 2.0, 3.0]])
    def test_head_of_another_width_than_the_config_says(self, tmp_path, alpha):
        class Custom(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.config = BertConfig(
                    problem_type="single_label_classification"
                )  # its num_labels is the default, 2
                self.embedding = torch.nn.EmbeddingBag(30, 3)

            def forward(self, input_ids):
                return (self.embedding(input_ids),)

        trainer = make_trainer(
            tmp_path, model=Custom(), alpha=alpha, label_names=["labels"], remove_unused_columns=False
        )
        assert trainer.train().training_loss > 0 and len(trainer.model.config.focal_loss["alpha"]) == 3

    def test_model_that_cannot_do_without_labels_is_refused(self, tmp_path):
        class Requiring(type(tiny_model())):
            def forward(self, input_ids, labels):
                return super().forward(input_ids, labels=labels)

        class Defaulting(type(tiny_model())):
            def forward(self, input_ids, labels=torch.zeros(4, dtype=torch.long)):
                return super().forward(input_ids, labels=labels)

        for model_class, needs in ((Requiring, "requires labels"), (Defaulting, "uses default labels")):
            with pytest.raises(ValueError, match=f"^model: {model_class.__name__}.forward {needs}.*labels=None"):
                make_trainer(tmp_path, model=model_class(tiny_model().config))

    def test_subclass_with_a_loss_of_its_own_warns(self, tmp_path):
        class Other(FocalTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return model(**inputs).loss

        with pytest.warns(UserWarning, match="Other.compute_loss does not call FocalTrainer's") as record:
            make_trainer(tmp_path, trainer_class=Other).train()
        assert sum("compute_loss" in str(warning.message) for warning in record) == 1

    def test_model_init(self, tmp_path):
        trainer = FocalTrainer(
            model_init=lambda: tiny_model(),
            args=TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no"),
            train_dataset=tiny_dataset(),
        )
        trainer.train()
        assert trainer.model.config.focal_loss["gamma"] == 2

    @pytest.mark.parametrize(
        "model",
        [
            tiny_model(num_labels=1),
            tiny_model(problem_type="regression"),
        ],
    )
    def test_regression_head_is_refused(self, tmp_path, model):
        with pytest.raises(
            ValueError, match="BertForSequenceClassification is a regression head.*supports single-label"
        ):
            make_trainer(tmp_path, model=model)

    def test_causal_language_model_predicts_the_next_token(self, tmp_path):
        model = BertLMHeadModel(BertConfig(**{**tiny_model().config.to_dict(), "is_decoder": True}))
        ids = torch.tensor(tiny_dataset()["input_ids"][:4])
        labels = ids.masked_fill(ids < 5, -100)
        data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, per_device_train_batch_size=4)
        logits = model(ids).logits[:, :-1].transpose(1, 2)
        batch = {"input_ids": ids, "labels": labels}
        _, num_targets = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        assert num_targets == (labels[:, 1:] != -100).sum()
        loss = trainer.compute_loss(model, batch, num_items_in_batch=num_targets)
        torch.testing.assert_close(loss, focal_loss(logits, labels[:, 1:]))

    def test_masked_language_model(self, tmp_path):
        model = BertForMaskedLM(tiny_model().config)
        ids = torch.tensor(tiny_dataset()["input_ids"][:4])
        labels = ids.masked_fill(ids < 5, -100)
        data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, alpha=torch.linspace(1, 2, 30))
        expected = focal_loss(model(ids).logits.transpose(1, 2), labels, alpha=torch.linspace(1, 2, 30))
        torch.testing.assert_close(trainer.compute_loss(model, {"input_ids": ids, "labels": labels}), expected)

    def test_question_answering_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="BertForQuestionAnswering is made for question answering"):
            make_trainer(tmp_path, model=BertForQuestionAnswering(tiny_model().config))

    def test_object_detection_is_refused(self, tmp_path):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = YolosConfig(image_size=[16, 16], patch_size=8, num_detection_tokens=2, **sizes)
        with pytest.raises(ValueError, match="YolosForObjectDetection is made for object detection"):
            make_trainer(tmp_path, model=YolosForObjectDetection(config))

    def test_data_parallel_is_refused(self, tmp_path):
        args = TrainingArguments(str(tmp_path), use_cpu=True)
        args._n_gpu = 2
        with pytest.raises(ValueError, match="2 GPUs in one process.*accelerate launch"):
            FocalTrainer(tiny_model(), args)

    @pytest.mark.parametrize("output", ["loss", "embedding"])
    def test_model_without_logits_is_refused(self, tmp_path, output):
        class Headless(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = torch.nn.EmbeddingBag(30, 3)

            def forward(self, input_ids, labels=None):
                embedding = self.embedding(input_ids)
                return {"embedding": embedding} if output == "embedding" else (embedding.mean(),)

        with pytest.raises(ValueError, match="logits.*supports single-label"):
            make_trainer(tmp_path, model=Headless()).train()

    def test_labels_missing_from_the_batch_are_refused(self, tmp_path):
        trainer = make_trainer(tmp_path, train_dataset=tiny_dataset().remove_columns("labels"))
        with pytest.raises(ValueError, match="labels: missing from the batch, which holds input_ids.*supports"):
            trainer.train()


def test_saved_model_loads_as_a_classifier(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert drift(model.state_dict(), trainer.model.state_dict()) == 0


def test_label_column_names_reach_the_error(tmp_path):
    data = Dataset.from_dict({"input_ids": [[1, 2]], "label": ["a"]})
    with pytest.raises(ValueError, match="column 'label' of train_dataset holds strings.*class_encode_column"):
        make_trainer(tmp_path, train_dataset=data, alpha="inverse")


class TestLog:
    @pytest.mark.parametrize("task", TASKS)
    def test_statistics_of_the_logged_step(self, tmp_path, task):
        trainer = make_trainer(
            tmp_path,
            task=task,
            alpha=ALPHA_OF_TASK[task],
            max_steps=1,
            per_device_train_batch_size=11,
            gradient_accumulation_steps=4,
            logging_strategy="steps",
            logging_steps=1,
            prior_bias=False,
        )
        batch = batch_of(task, 44)
        with torch.no_grad():
            logits = trainer.model(batch["input_ids"]).logits.movedim(-1, 1)
        trainer.train()
        labels = batch["labels"]
        if task == "multi_label":
            loss = sigmoid_focal_loss(logits, labels, alpha=ALPHA_OF_TASK[task], reduction="none")
            p_t = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
            loss_of_class = loss.sum(0)
        else:
            loss = focal_loss(logits, labels, alpha=ALPHA_OF_TASK[task], reduction="none")
            p = logits.softmax(1).movedim(1, -1)[labels != -100]
            p_t = p.gather(1, labels[labels != -100].unsqueeze(1))
            loss_of_class = torch.stack([loss[labels == k].sum() for k in range(3)])
        (log,) = [log for log in trainer.state.log_history if "loss" in log]
        assert log["mean_p_t"] == pytest.approx(p_t.mean().item(), rel=1e-5)
        by_count = count_labels(tiny_dataset(task), num_labels=3).counts.argsort()[::-1]
        for group, k in zip(("head", "mid", "tail"), by_count):
            share = (loss_of_class[k] / loss_of_class.sum()).item()
            assert log[f"loss_share_{group}"] == pytest.approx(share, rel=1e-4)

    @pytest.mark.parametrize("accumulation", [1, 4])
    @pytest.mark.parametrize("task", TASKS)
    def test_statistics_are_those_of_all_targets_since_the_last_log(self, tmp_path, task, accumulation):
        """The weights stand still, so that the two logs, of 3 steps each, and one of all 6 have to agree."""

        def statistics(logging_steps):
            trainer = make_trainer(
                tmp_path,
                task=task,
                alpha=ALPHA_OF_TASK[task],
                max_steps=6,
                per_device_train_batch_size=8 // accumulation,
                gradient_accumulation_steps=accumulation,
                logging_strategy="steps",
                logging_steps=logging_steps,
                learning_rate=0.0,
                prior_bias=False,
            )
            trainer.train()
            return trainer, np.array(statistics_of(trainer)).reshape(-1, 4)

        trainer, of_steps = statistics(1)
        _, of_windows = statistics(3)
        _, (whole,) = statistics(6)
        batch = batch_of(task, 44)
        with torch.no_grad():
            logits = trainer.model(batch["input_ids"]).logits.movedim(-1, 1)
        labels, is_target = batch["labels"], batch["labels"] != -100
        if task == "multi_label":
            losses = sigmoid_focal_loss(logits, labels, alpha=ALPHA_OF_TASK[task], reduction="none")
            p_t = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
            of_class = losses.sum(0)
        else:
            losses = focal_loss(logits, labels, alpha=ALPHA_OF_TASK[task], reduction="none")
            p_t = logits.softmax(1).gather(1, labels.where(is_target, 0).unsqueeze(1)).squeeze(1)
            of_class = torch.stack([losses[labels == k].sum() for k in range(3)])
        by_count = count_labels(tiny_dataset(task), num_labels=3).counts.argsort()[::-1].copy()
        shares = (of_class / of_class.sum())[torch.from_numpy(by_count)]
        assert len(of_steps) == 6 and len(of_windows) == 2  # an epoch of 44 examples in batches of 8
        assert whole == pytest.approx([p_t[is_target].mean().item(), *shares.tolist()], rel=1e-4)
        assert np.abs(of_windows - of_steps[[2, 5]]).max() > 1e-3  # of the window, not of its last step

    def test_one_batch_that_overflows_is_left_out(self):
        statistics, labels = LossStatistics(), torch.tensor([0, 1])
        for scale in (1.0, float("nan")):
            logits = scale * torch.tensor([[0.0, 0.0], [0.0, 0.0]])
            statistics.add(logits, labels, logits[:, 0] + 1, labels >= 0, [3, 1])
        assert statistics.logs(lambda totals: totals)["mean_p_t"] == 0.5
        assert statistics.logs(lambda totals: totals) == {}

    def test_statistics_of_epochs(self, tmp_path):
        trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=2, logging_strategy="epoch", learning_rate=0.0)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "mean_p_t" in log]
        assert [log["step"] for log in logs] == [6, 12]
        assert logs[0]["mean_p_t"] == pytest.approx(logs[1]["mean_p_t"], rel=1e-5)  # both have seen all examples

    def test_a_later_training_starts_anew(self, tmp_path):
        arguments = {"max_steps": 3, "logging_strategy": "steps", "logging_steps": 2, "learning_rate": 0.0}
        trainer = make_trainer(tmp_path, **arguments)
        logs = []
        for _ in range(2):
            trainer.train()
            logs.append(statistics_of(trainer))
        assert logs[0] == pytest.approx(logs[1], rel=1e-6)

    def test_nothing_is_computed_without_a_log(self, tmp_path, monkeypatch):
        monkeypatch.setattr(LossStatistics, "add", lambda *args: pytest.fail("nobody reads it"))
        make_trainer(tmp_path, max_steps=2, logging_strategy="no").train()

    def test_flag_switches_the_statistics_off(self, tmp_path):
        trainer = make_trainer(
            tmp_path,
            args_class=FocalTrainingArguments,
            focal_statistics=False,
            logging_strategy="steps",
            logging_steps=1,
        )
        trainer.train()
        logs = trainer.state.log_history
        assert any("loss" in log for log in logs) and not any("mean_p_t" in log for log in logs)


class TestLifeOfARun:
    @pytest.mark.parametrize("stream", [False, True])
    def test_resumed_run_ends_in_the_same_weights(self, tmp_path, stream):
        def run(resume_from_checkpoint=None):
            data = tiny_dataset().to_iterable_dataset() if stream else tiny_dataset()
            trainer = make_trainer(
                tmp_path,
                model=tiny_model(hidden_dropout_prob=0.1),
                train_dataset=data,
                alpha="inverse",
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                max_steps=6,
                save_strategy="steps",
                save_steps=1,
            )
            trainer.train(resume_from_checkpoint)
            return trainer.model.state_dict(), trainer.model.config.focal_loss

        weights, settings = run()
        for step in range(1, 6):
            resumed, resumed_settings = run(tmp_path / f"checkpoint-{step}")
            assert drift(resumed, weights) == 0 and resumed_settings == settings

    def test_killed_run_resumes(self, tmp_path):
        killed = start_process(killed_run.run, tmp_path / "killed", 3)
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "checkpoint-3").exists()
        assert drift(killed_run.run(tmp_path / "killed"), killed_run.run(tmp_path / "whole")) == 0

    def test_early_stopping(self, tmp_path):
        trainer = make_trainer(
            tmp_path,
            max_steps=20,
            eval_dataset=tiny_dataset(num_examples=12),
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            learning_rate=0.0,
            load_best_model_at_end=True,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        )
        trainer.train()
        assert trainer.state.global_step == 3  # the loss of the first step is never beaten

    def test_resuming_with_other_settings_warns(self, tmp_path):
        saved = {"save_strategy": "steps", "save_steps": 1}
        make_trainer(tmp_path, gamma=2, alpha="inverse", **saved).train()
        trainer = make_trainer(tmp_path, gamma=3, alpha="inverse", max_steps=3, **saved)
        with pytest.warns(
            UserWarning, match="checkpoint-2 was trained with gamma 2.0; resuming with gamma 3.0"
        ) as record:
            trainer.train(resume_from_checkpoint=True)
        assert not [warning for warning in record if "alpha" in str(warning.message)]
        assert trainer.model.config.focal_loss["gamma"] == 3

    def test_resuming_with_another_alpha_only_warns(self, tmp_path):
        saved = {"save_strategy": "steps", "save_steps": 1}
        make_trainer(tmp_path, alpha=[1.0, 1.0, 2.0], **saved).train()
        trainer = make_trainer(tmp_path, alpha=[1.0, 1.0, 3.0], max_steps=3, **saved)
        with pytest.warns(UserWarning, match=r"with alpha \[1.0, 1.0, 2.0\]; resuming with alpha \[1.0, 1.0, 3.0\]"):
            trainer.train(resume_from_checkpoint=True)

    @pytest.mark.parametrize("record", [{}, "inverse", {"gamma": [2.0, "x"]}, {"gamma": 2.0, "temperature": 0}])
    def test_resuming_from_a_record_that_cannot_be_read_warns(self, tmp_path, record):
        saved = {"save_strategy": "steps", "save_steps": 1}
        make_trainer(tmp_path, gamma=3, **saved).train()
        config = tmp_path / "checkpoint-2" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "focal_loss": record}))
        trainer = make_trainer(tmp_path, gamma=2, max_steps=3, **saved)
        with pytest.warns(UserWarning, match="checkpoint-2: cannot read .*; resuming with those of this run"):
            trainer.train(resume_from_checkpoint=True)
        assert FocalSettings.from_config(trainer.model.config).gamma == 2

    def test_best_model_is_loaded_by_the_exact_loss(self, tmp_path):
        trainer = make_trainer(
            tmp_path,
            max_steps=4,
            eval_dataset=tiny_dataset(num_examples=12),
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            learning_rate=0.1,
            load_best_model_at_end=True,
        )
        trainer.train()
        losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
        assert trainer.state.best_metric == min(losses) == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)

    def test_smaller_batches_after_running_out_of_memory(self, tmp_path):
        class Small(type(tiny_model())):
            def forward(self, input_ids, labels=None):
                if len(input_ids) > 4:
                    raise RuntimeError("CUDA out of memory.")
                return super().forward(input_ids)

        model = Small(tiny_model().config)
        trainer = make_trainer(tmp_path, model=model, auto_find_batch_size=True, per_device_train_batch_size=8)
        assert trainer.train().training_loss > 0 and trainer.state.train_batch_size <= 4

    def test_adapter_carries_the_settings(self, tmp_path):
        peft = pytest.importorskip("peft")
        tiny_model().save_pretrained(tmp_path / "base")
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
        trainer = make_trainer(tmp_path, model=model, alpha="inverse", gamma=3)
        trainer.train()
        trainer.save_model(tmp_path / "adapter")
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
        settings = json.loads((tmp_path / "adapter" / "focal_loss.json").read_text())
        assert settings == model.get_base_model().config.focal_loss and settings["gamma"] == 3
        batch = batch_of("single_label")
        model.eval(), loaded.eval()
        torch.testing.assert_close(loaded(batch["input_ids"]).logits, model(batch["input_ids"]).logits)


class TestCalibrate:
    """Labels that are drawn from tempered posteriors, so that the temperature and the thresholds are known."""

    def trainer(self, folder, task="single_label", num_labels=3, **kwargs):
        model = tiny_model(task, num_labels=num_labels)
        with torch.no_grad():
            model.classifier.weight.mul_(40)
        data = tiny_dataset(task)
        if num_labels == 2:
            data = data.map(lambda row: {"labels": min(row["labels"], 1)})
        arguments = {"max_steps": 1, "learning_rate": 0.0, "per_device_eval_batch_size": 500}
        return make_trainer(folder, model=model, train_dataset=data, **arguments, **kwargs)

    def drawn(self, trainer, task, temperature):
        ids = torch.randint(30, (3000, 6), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            logits = trainer.model.eval()(ids).logits
        posterior = apply_temperature(
            posterior_from_config(logits, trainer.model.config), temperature, multi_label=task == "multi_label"
        )
        generator = torch.Generator().manual_seed(3)
        if task == "multi_label":
            labels = torch.bernoulli(posterior, generator=generator)
        else:
            labels = torch.multinomial(posterior.reshape(-1, posterior.shape[-1]), 1, generator=generator)
            labels = labels.reshape(posterior.shape[:-1])
        if task == "tokens":
            labels[::5] = -100
        return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()}), posterior, labels

    def expected(self, trainer, data, labels):
        posterior = posterior_from_config(torch.as_tensor(trainer.predict(data).predictions), trainer.model.config)
        if labels.shape != posterior.shape:
            posterior, labels = posterior.reshape(-1, posterior.shape[-1]), labels.flatten()
        return fit_temperature(posterior, labels)

    @pytest.mark.parametrize("task", TASKS)
    def test_temperature_is_found_and_saved(self, tmp_path, task):
        trainer = self.trainer(tmp_path, task, alpha=ALPHA_OF_TASK[task])
        trainer.train()
        trainer.model.config.focal_loss["class_prior"] = None  # the frequencies of what is drawn are others
        before = trainer.model.config.focal_loss
        data, posterior, labels = self.drawn(trainer, task, 2.0)
        expected = self.expected(trainer, data, labels)
        found = trainer.calibrate(data, method="temperature")
        assert found["temperature"] == pytest.approx(expected, rel=1e-4) and expected == pytest.approx(2, rel=0.2)
        trainer.save_model()
        loaded = type(trainer.model).from_pretrained(tmp_path).config
        stored = {name: value for name, value in found.items() if name in before}
        assert loaded.focal_loss == {**before, **stored}
        assert ("thresholds" in found) == (task == "multi_label")
        if task == "multi_label":
            tempered = posterior_from_config(torch.as_tensor(trainer.predict(data).predictions), loaded)
            assert found["thresholds"] == pytest.approx(fit_thresholds(tempered, labels))

    def test_two_classes_get_a_threshold(self, tmp_path):
        trainer = self.trainer(tmp_path, num_labels=2)
        trainer.train()
        trainer.model.config.focal_loss["class_prior"] = None
        data, posterior, labels = self.drawn(trainer, "single_label", 1.0)
        found = trainer.calibrate(data, method="none")
        (threshold,) = found["thresholds"]
        assert found["positive_label"] == 1
        scores = operating_point_scores(posterior, trainer.model.config, "thresholds")
        assert (
            threshold == pytest.approx(0.5, abs=0.2)
            and ((scores[:, 1] >= 0.5) == (posterior[:, 1] >= threshold)).all()
        )

    def test_again_starts_afresh_and_training_forgets_it(self, tmp_path):
        trainer = self.trainer(tmp_path)
        trainer.train()
        data, *_ = self.drawn(trainer, "single_label", 2.0)
        assert trainer.calibrate(data) == trainer.calibrate(data)
        trainer.train()
        assert FocalSettings.from_config(trainer.model.config).temperature is None

    def test_default_is_the_evaluation_data(self, tmp_path):
        trainer = self.trainer(tmp_path, eval_dataset=tiny_dataset(num_examples=12))
        assert trainer.calibrate() == trainer.calibrate(tiny_dataset(num_examples=12))
        assert trainer.model.config.focal_loss["gamma"] == 2  # also without training

    def test_what_the_metrics_are_made_of_is_not_what_is_calibrated(self, tmp_path):
        trainer = self.trainer(tmp_path)
        trainer.train()
        data, *_ = self.drawn(trainer, "single_label", 2.0)
        expected = trainer.calibrate(data)

        def classes(logits, labels):
            return logits.argmax(-1)

        trainer.preprocess_logits_for_metrics = classes
        trainer.compute_metrics = lambda prediction: pytest.fail("has nothing to do with it")
        assert trainer.calibrate(data) == expected and trainer.preprocess_logits_for_metrics is classes
        trainer.compute_metrics = None
        with pytest.raises(ValueError, match="predictions: expected logits, but preprocess_logits_for_metrics"):
            trainer.calibrate(data, predictions=trainer.predict(data))

    @pytest.mark.parametrize(
        "message, dataset, kwargs",
        [
            ("dataset: expected held-out examples; pass them here, or as eval_dataset of the trainer", None, {}),
            ("dataset: expected some examples", tiny_dataset().select([]), {}),
            ("dataset: expected one dataset", {"a": tiny_dataset()}, {}),
            ("dataset: expected labelled examples", tiny_dataset().remove_columns("labels"), {}),
            ("config: trained with gamma 'flsd_53'", tiny_dataset(), {"gamma": flsd_53}),
        ],
    )
    def test_what_cannot_be_calibrated_is_refused(self, tmp_path, message, dataset, kwargs):
        with pytest.raises(ValueError, match=message):
            self.trainer(tmp_path, **kwargs).calibrate(dataset)


class TestSearch:
    def search(self, folder, args_class=FocalTrainingArguments, **kwargs):
        pytest.importorskip("optuna")
        used = []

        class Recording(FocalTrainer):
            def compute_loss(self, *args, **kwargs):
                used.append((self.gamma, None if self.alpha is None else self.alpha.tolist()))
                return super().compute_loss(*args, **kwargs)

        arguments = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        trainer = Recording(
            model_init=lambda: tiny_model(),
            args=args_class(str(folder), **arguments),
            train_dataset=tiny_dataset(),
            eval_dataset=tiny_dataset(num_examples=8),
            **kwargs,
        )
        trials = iter([(0.5, "inverse"), (1.5, "none")])

        def space(trial):
            gamma, alpha = next(trials)
            return {
                "focal_gamma": trial.suggest_float("focal_gamma", gamma, gamma),
                "focal_alpha": trial.suggest_categorical("focal_alpha", ["inverse", "none"]) and alpha,
            }

        trainer.hyperparameter_search(space, n_trials=2, backend="optuna", direction="minimize")
        return used

    def test_each_trial_uses_its_settings(self, tmp_path):
        inverse = compute_alpha(tiny_dataset()).tolist()
        used = self.search(tmp_path)
        assert (0.5, inverse) in used and (1.5, None) in used and {gamma for gamma, _ in used} == {0.5, 1.5}

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            (
                "gamma: a keyword takes precedence over the training arguments, so a search cannot change it",
                {"gamma": 1.0},
            ),
            ("hp_space: focal_gamma needs FocalTrainingArguments", {"args_class": TrainingArguments}),
        ],
    )
    def test_what_a_search_cannot_change_is_refused(self, tmp_path, message, kwargs):
        with pytest.raises(ValueError, match=message):
            self.search(tmp_path, **kwargs)


class TestPrecision:
    @pytest.mark.parametrize(
        "task, arguments, tolerance",
        [
            *((task, {"bf16": True}, 1e-2) for task in TASKS),
            *((task, {"gradient_checkpointing": True}, 1e-6) for task in TASKS),
            ("tokens", {"torch_compile": True, "torch_compile_backend": "aot_eager"}, 1e-5),  # what Inductor would get
        ],
    )
    def test_same_weights_as_in_full_precision(self, tmp_path, task, arguments, tolerance):
        # Plain descent, because Adam makes whole steps of gradients that are nothing but rounding.
        shared = {"task": task, "alpha": ALPHA_OF_TASK[task], "optim": "sgd", "learning_rate": 0.1}
        plain = make_trainer(tmp_path, eval_dataset=tiny_dataset(task), **shared)
        trainer = make_trainer(tmp_path, eval_dataset=tiny_dataset(task), **shared, **arguments)
        plain.train()
        trainer.train()
        assert (
            drift(trainer.accelerator.unwrap_model(trainer.model).state_dict(), plain.model.state_dict()) < tolerance
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=tolerance)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_loss_of_half_precision_logits_is_computed_in_float32(self, tmp_path, dtype):
        trainer = make_trainer(tmp_path)
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        with torch.autocast("cpu", dtype):
            losses = trainer.target_losses(logits, torch.tensor([0, 1, 2, 0]))
        assert losses.dtype == torch.float32
        expected = focal_loss(logits.float(), torch.tensor([0, 1, 2, 0]), reduction="none")
        torch.testing.assert_close(losses, expected)


class TestHeads:
    SIZES = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_labels": 3,
    }

    def check(self, folder, model, inputs):
        labels = torch.tensor([0, 1, 2, 0, 0, 0, 1, 0])
        data = Dataset.from_dict({model.main_input_name: inputs.tolist(), "labels": labels.tolist()})
        trainer = make_trainer(folder, model=model, train_dataset=data, eval_dataset=data, alpha="inverse")
        trainer.train()
        with torch.no_grad():
            expected = focal_loss(model.eval()(inputs).logits, labels, alpha=compute_alpha(labels)).item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)

    def test_images(self, tmp_path):
        model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **self.SIZES))
        self.check(tmp_path, model, torch.randn(8, 3, 8, 8))

    def test_audio(self, tmp_path):
        convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4)}
        positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        config = Wav2Vec2Config(
            classifier_proj_size=8, apply_spec_augment=False, **convolutions, **positions, **self.SIZES
        )
        self.check(tmp_path, Wav2Vec2ForSequenceClassification(config), torch.randn(8, 160))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with use_cpu=True, TrainingArguments turns it off itself")
def test_on_cpu_memory_is_not_pinned_of_which_torch_would_warn(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], save_strategy="no")
    assert args.dataloader_pin_memory
    data = {"train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(num_examples=5)}
    trainer = FocalTrainer(tiny_model(), args, **data)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*pin_memory")
        trainer.train()
        trainer.evaluate()
    assert not trainer.args.dataloader_pin_memory
