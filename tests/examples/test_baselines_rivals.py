"""What focal loss is compared with: each loss against its formula in float64, the sampler against what it promises."""

import json

import exactness
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from baselines.rivals import RIVALS, BalancedSampler
from datasets import Dataset
from exactness import NUM_LABELS, STEPS_OF_WHOLE_BATCHES, tiny_dataset, tiny_model
from processes import run_in_two_processes
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, RandomSampler
from transformers import TrainingArguments

from hf_focal import FocalTrainer, operating_point_scores, posterior_from_config


TASKS = {
    "focal": "single_label",
    "balanced_sampling": "single_label",
    "logit_adjustment": "single_label",
    "positive_weights": "multi_label",
}
LEARNING_RATE = 0.5


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def make_trainer(name, folder, dataset=None, task=None, gamma=0, **arguments):
    defaults = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 3,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "num_train_epochs": 1,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    task = task or TASKS[name]
    dataset = tiny_dataset(task) if dataset is None else dataset
    args = TrainingArguments(str(folder), **{**defaults, **arguments})
    trainer = RIVALS.get(name, name)
    return trainer(tiny_model(task), args, train_dataset=dataset, eval_dataset=dataset, gamma=gamma, prior_bias=False)


def weights_of(model):
    return torch.cat([weight.detach().double().flatten() for weight in model.parameters()])


def largest(difference):
    return difference.abs().max().item()


def reference_losses(name, logits, labels, all_labels):
    """The loss of each example in float64, from the formula and with nothing that the package has."""
    if name == "logit_adjustment":
        logits = logits + (torch.bincount(all_labels) / len(all_labels)).double().log()
    if name in ("positive_weights", "binary"):
        y, all_labels = labels.double(), all_labels.double()
        weight = (1 - all_labels).sum(0) / all_labels.sum(0) if name == "positive_weights" else 1
        return -(weight * y * logits.sigmoid().log() + (1 - y) * (-logits).sigmoid().log())
    return -logits.softmax(-1).log()[torch.arange(len(labels)), labels]


def reference_step(name, dataset, rows):
    """The weights after one step of gradient descent on these rows, in float64."""
    model = tiny_model(TASKS.get(name, "multi_label")).double()
    labels = torch.tensor(dataset["labels"][:])
    logits = model(input_ids=torch.tensor(dataset["input_ids"][:])[rows]).logits
    reference_losses(name, logits, labels[rows], labels).mean().backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= LEARNING_RATE * weight.grad
    return weights_of(model)


class TestOneStep:
    """Of a dataset of 7: at once, and in micro-batches of 2, 2, 2 and 1."""

    ROWS = range(29, 36)  # in which all classes occur
    CUTS = {
        "at once": {"per_device_train_batch_size": 7},
        "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }

    @pytest.mark.parametrize("cut", CUTS)
    @pytest.mark.parametrize("name", RIVALS)
    def test_is_that_of_the_formula(self, tmp_path, name, cut):
        dataset = tiny_dataset(TASKS[name]).select(self.ROWS)
        trainer = make_trainer(name, tmp_path, dataset, **self.CUTS[cut])
        trainer.train()
        rows = list(range(7))
        if name == "balanced_sampling":
            rows = list(BalancedSampler(torch.tensor(dataset["labels"][:]), seed=trainer.args.seed))
        after = weights_of(trainer.model)
        assert trainer.state.global_step == 1
        assert largest(after - reference_step(name, dataset, rows)) < 1e-6
        # Negative control: plain cross entropy of all rows is another step.
        if name != "focal":
            plain = "binary" if name == "positive_weights" else "focal"
            assert largest(after - reference_step(plain, dataset, list(range(7)))) > 1e-3

    @pytest.mark.parametrize("name", RIVALS)
    def test_a_mean_per_micro_batch_is_far_off(self, tmp_path, name):
        class PerBatchMean(RIVALS[name]):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return super().compute_loss(model, inputs, return_outputs) / 4

        dataset = tiny_dataset(TASKS[name]).select(self.ROWS)
        exact = make_trainer(name, tmp_path, dataset, **self.CUTS["accumulated"])
        broken = make_trainer(PerBatchMean, tmp_path, dataset, TASKS[name], **self.CUTS["accumulated"])
        for trainer in (exact, broken):
            trainer.train()
        assert largest(weights_of(exact.model) - weights_of(broken.model)) > 1e-3


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The weights that two processes have trained, and the loss of an evaluation."""
    folder = tmp_path_factory.mktemp("two_processes")
    cases = {name: {**case(name), "per_device_train_batch_size": 4} for name in RIVALS}
    run_in_two_processes(run_cases_of_rivals, folder, cases)
    return folder


def run_cases_of_rivals(folder, cases):
    exactness.TRAINERS.update(RIVALS)
    exactness.run_cases(folder, cases)


def case(name):
    return {"task": TASKS[name], "trainer_class": name, "gamma": 0, "max_steps": STEPS_OF_WHOLE_BATCHES}


@pytest.mark.parametrize("name", RIVALS)
def test_two_processes(two_processes, tmp_path, monkeypatch, name):
    monkeypatch.setitem(exactness.TRAINERS, name, RIVALS[name])
    trainer = exactness.train(tmp_path, **case(name))
    together = load_file(two_processes / f"{name}.safetensors")
    assert max(largest(weight - together[key]) for key, weight in trainer.model.state_dict().items()) < 1e-6
    outcome = json.loads((two_processes / f"{name}.json").read_text())
    assert outcome["world_size"] == 2
    alone = trainer.evaluate(tiny_dataset(TASKS[name], exactness.NUM_EVAL_EXAMPLES))["eval_loss"]
    assert outcome["eval_loss"] == pytest.approx(alone, rel=1e-5)
    assert outcome["eval_loss_of_stream"] == pytest.approx(alone, rel=1e-5)


class TestEvaluation:
    @pytest.mark.parametrize("name", RIVALS)
    def test_returns_the_logits_of_the_model_and_the_loss_of_the_training(self, tmp_path, name):
        trainer = make_trainer(name, tmp_path)
        trainer.train()
        output = trainer.predict(trainer.eval_dataset)
        with torch.no_grad():
            raw = trainer.model(input_ids=torch.tensor(trainer.eval_dataset["input_ids"][:])).logits
        assert largest(torch.from_numpy(output.predictions) - raw) < 1e-6
        labels = torch.tensor(trainer.eval_dataset["labels"][:])
        expected = reference_losses(name, raw.double(), labels, labels).mean().item()
        assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
        # Negative control: the adjusted logits are others, and so is their loss.
        if name == "logit_adjustment":
            plain = reference_losses("focal", raw.double(), labels, labels).mean().item()
            assert output.metrics["test_loss"] != pytest.approx(plain, rel=1e-2)


class TestBalancedSampler:
    LABELS = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    EPOCHS = 200

    def draws(self, sampler):
        drawn = []
        for epoch in range(self.EPOCHS):
            sampler.set_epoch(epoch)
            drawn.append(list(sampler))
        return torch.tensor(drawn)

    def test_each_class_is_equally_likely_and_so_is_each_of_its_examples(self):
        drawn = self.draws(BalancedSampler(self.LABELS, seed=0))
        assert drawn.shape == (self.EPOCHS, len(self.LABELS))
        expected = 1 / (3 * self.LABELS.bincount()[self.LABELS].double())
        counts = drawn.flatten().bincount(minlength=len(self.LABELS)).double()
        # Pearson's statistic, whose mean is the 999 degrees of freedom and whose standard deviation is 45.
        pearson = ((counts - drawn.numel() * expected) ** 2 / (drawn.numel() * expected)).sum()
        assert abs(pearson - 999) < 4 * 45
        shares = self.LABELS[drawn].flatten().bincount() / drawn.numel()
        assert largest(shares - 1 / 3) < 4 * (2 / 9 / drawn.numel()) ** 0.5
        # Negative control: what Trainer draws by itself.
        assert self.LABELS[list(RandomSampler(self.LABELS))].bincount().tolist() == [900, 90, 10]

    def test_classes_that_do_not_occur_are_not_drawn(self):
        assert set(BalancedSampler(torch.tensor([3, 3, 3, 1]), seed=0)) <= {0, 1, 2, 3}

    def test_seed_and_epoch_decide(self):
        first, again, other = (self.draws(BalancedSampler(self.LABELS, seed)) for seed in (0, 0, 1000))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert len({tuple(epoch) for epoch in first.tolist()}) == self.EPOCHS
        sampler = BalancedSampler(self.LABELS, seed=0)
        torch.rand(5)  # the state of torch's generator plays no part
        sampler.set_epoch(7)
        assert list(sampler) == list(sampler) == first[7].tolist()

    def test_processes_share_one_list(self):
        shards = [
            [*BatchSamplerShard(BatchSampler(BalancedSampler(self.LABELS, seed=3), 4, False), 2, process)]
            for process in range(2)
        ]
        merged = [position for batches in zip(*shards) for batch in batches for position in batch]
        assert merged == list(BalancedSampler(self.LABELS, seed=3))

    def test_trainer_draws_by_it(self, tmp_path):
        dataset = Dataset.from_dict({"input_ids": [[i % 30] for i in range(1000)], "labels": self.LABELS.tolist()})

        def epochs(**arguments):
            loader = make_trainer("balanced_sampling", tmp_path, dataset, **arguments).get_train_dataloader()
            return [torch.cat([batch["labels"] for batch in loader]) for _ in range(2)]

        first, second = epochs()
        assert min(first.bincount().tolist()) > 250 and len(first) == 1000
        assert not torch.equal(first, second)
        assert all(map(torch.equal, epochs(), (first, second)))
        assert torch.equal(epochs(data_seed=5)[0], self.LABELS[list(BalancedSampler(self.LABELS, seed=5))])

    def test_a_resumed_training_draws_what_it_would_have_drawn(self, tmp_path):
        whole = make_trainer("balanced_sampling", tmp_path, num_train_epochs=2, save_strategy="epoch")
        whole.train()
        resumed = make_trainer("balanced_sampling", tmp_path, num_train_epochs=2)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert resumed.state.global_step == 12
        assert largest(weights_of(whole.model) - weights_of(resumed.model)) < 1e-7

    @pytest.mark.parametrize("task", ["multi_label", "tokens"])
    def test_several_labels_per_example(self, tmp_path, task):
        trainer = make_trainer("balanced_sampling", tmp_path, task=task)
        with pytest.raises(ValueError, match=r"balanced_sampling: expected one class id .* shape \(44, \d\)"):
            trainer.train()


class TestRecord:
    @pytest.mark.parametrize("name", ["balanced_sampling", "logit_adjustment"])
    def test_logits_stand_for_the_posterior_of_balanced_classes(self, tmp_path, name):
        trainer = make_trainer(name, tmp_path)
        trainer.train()
        config = trainer.model.config
        assert config.focal_loss["label_counts"] == [26, 16, 2]
        assert config.focal_loss["class_prior"] == pytest.approx([1 / 3] * 3)
        logits = torch.randn(5, NUM_LABELS)
        posterior = posterior_from_config(logits, config)
        assert largest(posterior - logits.softmax(-1)) < 1e-6
        assert largest(operating_point_scores(posterior, config, "balanced") - posterior) < 1e-6
        # Where classes occur as in training, the adjusted logits decide.
        prior = torch.tensor([26, 16, 2]) / 44
        as_trained = operating_point_scores(posterior, config, prior=prior)
        assert largest(as_trained - (logits + prior.log()).softmax(-1)) < 1e-6

    def test_a_minimiser_of_the_adjusted_loss_has_the_posterior_of_balanced_classes(self):
        # For a posterior eta of the training data, z = log(eta / prior) has no gradient left.
        prior, eta = (torch.rand(NUM_LABELS).double().softmax(-1) for _ in range(2))
        logits = (eta / prior).log().requires_grad_()
        (-eta * (logits + prior.log()).log_softmax(-1)).sum().backward()
        assert largest(logits.grad) < 1e-12


class TestRefusals:
    def test_a_class_without_examples(self, tmp_path):
        dataset = tiny_dataset().filter(lambda row: row["labels"] != 1)
        trainer = make_trainer("logit_adjustment", tmp_path, dataset)
        with pytest.raises(ValueError, match=r"examples of each class, but got no training examples of classes \[1\]"):
            trainer.train()

    def test_logit_adjustment_of_several_labels(self, tmp_path):
        with pytest.raises(ValueError, match="logit_adjustment: .* but got several labels per example"):
            make_trainer("logit_adjustment", tmp_path, task="multi_label").train()


def test_all_are_focal_trainers():
    assert list(RIVALS) == list(TASKS)
    assert RIVALS["focal"] is FocalTrainer and all(issubclass(rival, FocalTrainer) for rival in RIVALS.values())
