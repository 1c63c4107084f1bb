"""Trains a tiny model on fixed data: the same run in any cut of the global batch, in one process or in two.

As a script it runs the cases of a file for the tests, which leaves it to torchrun how many processes that are.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_focal import FocalTrainer


class PerBatchMean(FocalTrainer):
    """The negative control: the mean of each micro-batch, as a usual override of compute_loss returns it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class PolyLossTrainer(FocalTrainer):
    """A loss of its own through the public seam: Leng et al. 2022, https://arxiv.org/abs/2204.12511."""

    def target_losses(self, logits, labels):
        cross_entropy = F.cross_entropy(logits.float().movedim(-1, 1), labels, reduction="none")
        return cross_entropy + 2.0 * (1 - (-cross_entropy).exp())


NUM_EXAMPLES, NUM_LABELS, LENGTH = 44, 3, 6
NUM_EVAL_EXAMPLES = 11  # which two processes cannot share evenly
GLOBAL_BATCH = 8  # so that the last window of an epoch is short: 5 steps of 8 examples and one of 4
STEPS_OF_WHOLE_BATCHES = 5
TRAINERS = {trainer.__name__: trainer for trainer in (FocalTrainer, PerBatchMean, PolyLossTrainer, Trainer)}
TASKS = ["single_label", "multi_label", "tokens"]


def tiny_model(task: str = "single_label", **config) -> BertForSequenceClassification | BertForTokenClassification:
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {"vocab_size": 30, "num_labels": NUM_LABELS, **sizes, **no_dropout, **config}
    model_class = BertForTokenClassification if task == "tokens" else BertForSequenceClassification
    return model_class(BertConfig(**config))


def tiny_dataset(task: str = "single_label", num_examples: int = NUM_EXAMPLES) -> Dataset:
    """Imbalanced labels; those of tokens and partly known ones are masked unevenly, some rows wholly."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(30, (num_examples, LENGTH), generator=generator)
    ranks = torch.rand(num_examples, LENGTH, generator=generator)
    classes = (ranks > 0.6).long() + (ranks > 0.9).long()
    if task == "tokens":
        labels = classes.masked_fill(torch.rand(num_examples, LENGTH, generator=generator) < ranks[:, :1], -100)
        labels[::7] = -100
    elif task in ("multi_label", "partly_known"):
        labels = torch.nn.functional.one_hot(classes[:, :2], NUM_LABELS).amax(1).float()
        if task == "partly_known":
            is_unknown = torch.rand(num_examples, NUM_LABELS, generator=generator) < 1.3 * ranks[:, 2:3] - 0.15
            labels = labels.masked_fill(is_unknown, -100)
    else:
        labels = classes[:, 0]
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def weighted_dataset(task: str = "single_label", num_examples: int = NUM_EXAMPLES) -> Dataset:
    """With a column `importance` of whole numbers, 0 among them."""
    weights = torch.randint(4, (num_examples,), generator=torch.Generator().manual_seed(2)).double()
    return tiny_dataset(task, num_examples).add_column("importance", weights.tolist())


def train(
    output_dir: str | Path,
    task: str,
    *,
    trainer_class: str = "FocalTrainer",
    streamed: bool = False,
    gamma: float | None = None,
    alpha: list[float] | None = None,
    prior_bias: bool = False,
    sample_weight_column: str | None = None,
    **arguments,
) -> Trainer:
    defaults = {
        "per_device_train_batch_size": GLOBAL_BATCH,
        "num_train_epochs": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_eval_batch_size": 2,
    }
    settings = {"gamma": gamma, "alpha": alpha, "prior_bias": prior_bias, "sample_weight_column": sample_weight_column}
    dataset = weighted_dataset(task) if sample_weight_column else tiny_dataset(task)
    args = TrainingArguments(str(output_dir), **{**defaults, **arguments})
    if args.fsdp:
        # Accelerate shards among processes on GPUs, and makes DDP of those on CPU without a word.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = TRAINERS[trainer_class](
        model=tiny_model(task),
        args=args,
        train_dataset=dataset.to_iterable_dataset() if streamed else dataset,
        **({} if trainer_class == "Trainer" else settings),
    )
    trainer.train()
    return trainer


def run_cases(folder: Path, cases: dict[str, dict]) -> None:
    """Leaves the weights of each case, by the arguments of `train`, and what else became of it."""
    for name, arguments in cases.items():
        _run_case(folder, name, arguments)


def _run_case(folder: Path, name: str, arguments: dict) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # one process knows one way to distribute at a time
    trainer = train(folder, **arguments)
    make_dataset = weighted_dataset if arguments.get("sample_weight_column") else tiny_dataset
    dataset = make_dataset(arguments["task"], NUM_EVAL_EXAMPLES)
    eval_loss = trainer.evaluate(dataset)["eval_loss"]
    eval_loss_of_stream = trainer.evaluate(dataset.to_iterable_dataset())["eval_loss"]
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # whole, also where it is sharded
    num_weights = sum(weight.numel() for weight in tiny_model(arguments["task"]).parameters())
    if trainer.is_world_process_zero():
        save_file(
            {name.removeprefix("module."): weight for name, weight in weights.items()}, folder / f"{name}.safetensors"
        )
        outcome = {
            "world_size": trainer.accelerator.num_processes,
            "num_nodes": int(os.environ.get("GROUP_WORLD_SIZE", 1)),
            "share_of_weights": sum(map(_num_own_weights, trainer.model_wrapped.parameters())) / num_weights,
            "eval_loss": eval_loss,
            "eval_loss_of_stream": eval_loss_of_stream,
            "statistics": statistics_of(trainer),
        }
        (folder / f"{name}.json").write_text(json.dumps(outcome))


def statistics_of(trainer: Trainer) -> list[float]:
    """Those of all its logs, one after the other."""
    names = ("mean_p_t", "loss_share_head", "loss_share_mid", "loss_share_tail")
    return [log[name] for log in trainer.state.log_history for name in names if name in log]


def _num_own_weights(parameter: torch.nn.Parameter) -> int:
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), json.loads(Path(sys.argv[1], "cases.json").read_text()))
    torch.distributed.destroy_process_group()
