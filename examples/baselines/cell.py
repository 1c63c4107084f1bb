"""One cell of a baseline table: `run_text_classification.py` with one loss and one seed, or with a rival loss.

    python -m baselines cell --rival logit_adjustment --dataset_name bbc_longtail --max_seq_length 64 --seed 1

The flags are those of `run_text_classification.py` and those below. After each epoch the model is scored on the
validation split, and the best one is kept (`--metric_for_best_model`, by default f1_macro); the test split is predicted
once, with that model. The model cards of a sweep contain such a command.
"""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, get_args

import datasets.config
import torch
from datasets import DatasetDict
from run_text_classification import ModelArguments, check_epochs, run
from safetensors.torch import save_file
from torch import Tensor
from transformers import EarlyStoppingCallback, HfArgumentParser, PretrainedConfig, TrainerCallback, TrainerState

from baselines.data import BaselineDataArguments, data_fingerprint, load_baseline_splits, model_fingerprint
from baselines.frozen_layers import freeze_layers
from baselines.rivals import RIVALS
from hf_focal import (
    FocalSettings,
    FocalTrainer,
    FocalTrainingArguments,
    decide,
    evaluate_model,
)
from hf_focal.checkpoints import last_whole_checkpoint
from hf_focal.evaluation import operating_points_of
from hf_focal.metrics import ImbalancedClassification
from hf_focal.model_card import describe_hardware, package_versions
from hf_focal.operating_points import decision_scores, has_posterior


TRAINING_FLAGS = (
    "--do_train --do_eval --eval_strategy epoch --save_strategy epoch --save_total_limit 1 --load_best_model_at_end "
    "--restore_callback_states_from_checkpoint"
).split()


@dataclass
class BaselineArguments:
    rival: str = field(
        default="focal",
        metadata={
            "help": "`focal`, with the flags of the loss, or a method to compare it with.",
            "choices": [*RIVALS],
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop training after this many epochs without improvement on the validation split."},
    )
    frozen_layers: int = field(
        default=0,
        metadata={"help": "For a BERT: freeze the embeddings and this many of the lowest layers."},
    )

    def __post_init__(self):
        if self.rival not in RIVALS:
            raise ValueError(f"--rival: expected one of {', '.join(RIVALS)}, but got {self.rival!r}")
        if self.frozen_layers < 0:
            raise ValueError(f"--frozen_layers: expected at least 0, but got {self.frozen_layers}")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"--early_stopping_patience: expected at least 1, but got {self.early_stopping_patience}")


FROZEN_LAYERS_CACHE = Path(datasets.config.HF_DATASETS_CACHE, "hf_focal_frozen_layers")
CELL_COMMAND = ["python", "-m", "baselines", "cell"]

Arguments = tuple[BaselineArguments, ModelArguments, BaselineDataArguments, FocalTrainingArguments]


def parse_cell(flags: list[str]) -> Arguments:
    parser = _Parser(get_args(Arguments), prog=" ".join(CELL_COMMAND))
    arguments = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    check_epochs(arguments[-1])
    return arguments


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises the error without the usage, which is a hundred lines of flags."""
        raise ValueError(message)


def cell_flag_names() -> set[str]:
    """The full names of all flags; argparse would also accept abbreviations and hyphens."""
    return {field.name for arguments in get_args(Arguments) for field in fields(arguments) if field.init}


@dataclass
class Cell:
    """One training and its test, with files in a folder: finished parts are not repeated.

    A training with other flags, data or versions is a different one, and is not resumed.

    Attributes:
        flags (`list[str]`): Flags of `python -m baselines cell`, without those for actions and folders.
        folder (`Path`): The folder for the model, the results and the log.
        use_safetensors (`bool`, *optional*): As in `PreTrainedModel.from_pretrained`.
    """

    flags: list[str]
    folder: Path
    use_safetensors: bool | None = None

    def train(self, callbacks: list[TrainerCallback] | None = None) -> dict:
        """The record of the training, with the metrics of the best epoch on the validation split.

        A training that was killed resumes from its last epoch.
        """
        finished = self.folder / "training.json"
        self._begin()
        if not finished.exists():
            checkpoint = self._last_checkpoint()
            resume = [] if checkpoint is None else ["--resume_from_checkpoint", checkpoint, *_epochs_left(checkpoint)]
            trainer, outputs = self._run([*TRAINING_FLAGS, *resume], [*(callbacks or []), *self._early_stopping()])
            logs, metrics = trainer.state.log_history, outputs["validation"].metrics
            record = self.origin | {
                "hardware": describe_hardware(trainer.args.world_size),
                "classes_without_validation": _classes_without(trainer.eval_dataset["labels"], trainer.model.config),
                "validation_metrics": {name.removeprefix("eval_"): value for name, value in metrics.items()},
                "best_epoch": next(log["epoch"] for log in logs if log["step"] == trainer.state.best_global_step),
                "wall_seconds": next(log["train_runtime"] for log in logs if "train_runtime" in log),
                "resumed": checkpoint is not None,
            }
            if trainer.is_world_process_zero():
                _write_json(finished, record)
                for folder in self.folder.glob("checkpoint-*"):
                    shutil.rmtree(folder)
            trainer.accelerator.wait_for_everyone()
        return json.loads(finished.read_text())

    def test(self, callbacks: list[TrainerCallback] | None = None) -> dict:
        """The record of the training and of its model's test; saves the logits in a file."""
        record = self.train(callbacks)
        flags = ["--do_predict", "--model_name_or_path", str(self.folder), "--model_revision", "main"]
        trainer, outputs = self._run(flags)
        output, config = outputs["test"], trainer.model.config
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        logits, labels = torch.from_numpy(logits).double(), torch.from_numpy(output.label_ids)
        names = [config.id2label[k] for k in range(config.num_labels)]
        settings = FocalSettings.from_config(config)
        metrics, decisions = test_metrics(logits, labels, config, names)
        if trainer.is_world_process_zero():
            save_file({"logits": logits.contiguous(), "labels": labels.contiguous()}, self.logits_file)
        return record | {
            "label_names": names,
            "label_counts": settings.label_counts,
            "focal_loss": settings.to_dict(),
            "per_class": metrics.pop("per_class"),
            "metrics": metrics,
            "labels": _ids(labels),
            "predictions": _ids(decisions),
            "other_decisions": other_decisions(logits, labels, config, names),
        }

    @property
    def logits_file(self) -> Path:
        return self.folder / "test_logits.safetensors"

    @staticmethod
    def origin_of(flags: list[str]) -> dict:
        """What identifies the training with these flags."""
        return Cell(flags, Path()).origin

    @cached_property
    def origin(self) -> dict:
        """What identifies the training: flags, data, base model and versions."""
        _, model_args, data_args, training_args = parse_cell(self.flags)
        return {
            "flags": self.flags,
            "data_fingerprint": data_fingerprint(self._splits, data_args, training_args.focal_sample_weight_column),
            "model_fingerprint": model_fingerprint(model_args),
            "versions": package_versions(),
        }

    @cached_property
    def _splits(self) -> DatasetDict:
        _, model_args, data_args, _ = parse_cell(self.flags)
        return load_baseline_splits(data_args, model_args.cache_dir)

    def _begin(self) -> None:
        """Records the origin of the training in the folder, and removes the files of a different one."""
        training_args = parse_cell([*self.flags, "--output_dir", str(self.folder)])[-1]
        with training_args.main_process_first(desc="looking for earlier results"):
            origin_file = self.folder / "origin.json"
            leftovers = [*self.folder.glob("checkpoint-*"), *self.folder.glob("training.json")]
            if not origin_file.exists() and leftovers:
                raise ValueError(f"--output_dir: {self.folder} holds an unrelated training; choose another folder")
            if origin_file.exists() and json.loads(origin_file.read_text()) == self.origin:
                return
            for leftover in leftovers:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(origin_file, self.origin)
            if leftovers:
                print(f"{self.folder}: the training there had other flags, model, data or versions; starting anew")

    def _early_stopping(self) -> list[TrainerCallback]:
        patience = parse_cell(self.flags)[0].early_stopping_patience
        return [] if patience is None else [EarlyStoppingCallback(patience)]

    def _last_checkpoint(self) -> str | None:
        checkpoint, _ = last_whole_checkpoint(self.folder)
        return None if checkpoint is None else str(checkpoint)

    def _run(self, flags: list[str], callbacks: list[TrainerCallback] | None = None):
        common = ["--output_dir", str(self.folder), "--report_to", "none", "--disable_tqdm", "true"]
        baseline_args, model_args, data_args, training_args = parse_cell(
            ["--metric_for_best_model", "f1_macro", *self.flags, *flags, *common]
        )
        trainer_class = RIVALS[baseline_args.rival] if training_args.do_train else FocalTrainer
        prepare_model = None
        if baseline_args.frozen_layers:
            prepare_model = partial(
                freeze_layers, frozen_layers=baseline_args.frozen_layers, cache_dir=FROZEN_LAYERS_CACHE
            )
        with (self.folder / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            return run(
                model_args,
                data_args,
                training_args,
                load_splits=lambda *_: self._splits,
                prepare_model=prepare_model,
                trainer_class=trainer_class,
                callbacks=callbacks,
                use_safetensors=self.use_safetensors,
            )


def _epochs_left(checkpoint: str) -> list[str]:
    """Flags to end a training that was already stopped early; if resumed, Trainer would begin another epoch."""
    state = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))
    stopping = state.stateful_callbacks.get("EarlyStoppingCallback", {})
    stopping = stopping[0] if isinstance(stopping, list) else stopping
    patience = stopping.get("args", {}).get("early_stopping_patience", math.inf)
    waited = stopping.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return ["--num_train_epochs", str(state.epoch)] if waited >= patience else []


def test_metrics(logits: Tensor, labels: Tensor, config: PretrainedConfig, names: list[str]) -> tuple[dict, Tensor]:
    """The metrics and the decisions they are based on: class ids, or rows of 0 and 1.

    Single-label decisions are by the largest logit. Multi-label decisions use the thresholds that were fitted on the
    validation split, and the probabilities of labels are those of the calibrated posterior.
    """
    settings = FocalSettings.from_config(config)
    counts = settings.label_counts
    if config.problem_type != "multi_label_classification":
        metrics = ImbalancedClassification().compute(
            predictions=logits, references=labels, label_names=names, label_counts=counts
        )
        return metrics, logits.argmax(-1)
    replace(settings, operating_point="thresholds").store_in(config)
    metrics = evaluate_model(logits, labels, config, label_names=names, label_counts=counts)
    return metrics, decide(logits, config)


def other_decisions(
    logits: Tensor, labels: Tensor, config: PretrainedConfig, names: list[str]
) -> dict[str, dict[str, Any]]:
    """For each operating point except that of [`test_metrics`], the metrics and the decisions they are based on.

    The probabilities are those of the calibrated posterior at the class frequencies of training. By these all losses
    can be compared, including those whose logits correspond to another prior.
    """
    settings, counts = FocalSettings.from_config(config), FocalSettings.from_config(config).label_counts
    multi_label = config.problem_type == "multi_label_classification"
    if not has_posterior(settings, multi_label):
        return {}
    _, posterior = decision_scores(logits, config)
    if not multi_label and all(counts):
        shares = [count / sum(counts) for count in counts]
        if settings.class_prior != shares:
            _, posterior = decision_scores(logits, config, prior=shares)
        settings, logits = FocalSettings(gamma=0.0, class_prior=shares), posterior.double().log()
    by_point = {}
    for point in operating_points_of(_record(config, settings)):
        if point == ("thresholds" if multi_label else "as_trained"):
            continue
        record = _record(config, replace(settings, operating_point=point))
        metrics = evaluate_model(logits, labels, record, label_names=names, label_counts=counts)
        del metrics["per_class"]
        by_point[point] = {"metrics": metrics, "predictions": _ids(decide(logits, record))}
    return by_point


def _classes_without(labels: Sequence, config: PretrainedConfig) -> list[str]:
    """Names of the classes that do not occur among the labels, which are class ids or rows of 0 and 1."""
    rows = torch.as_tensor(list(labels))
    occurring = {*rows.tolist()} if rows.ndim == 1 else {*(rows == 1).any(0).nonzero().flatten().tolist()}
    return [config.id2label[k] for k in range(config.num_labels) if k not in occurring]


def _record(config: PretrainedConfig, settings: FocalSettings) -> SimpleNamespace:
    return SimpleNamespace(
        problem_type=config.problem_type, num_labels=config.num_labels, focal_loss=settings.to_dict()
    )


def _write_json(file: Path, content: dict) -> None:
    """Writes the file atomically."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(file)


def _ids(labels: Tensor) -> list:
    """Class ids, or for each row the ids of its labels."""
    return labels.tolist() if labels.ndim == 1 else [row.nonzero().flatten().tolist() for row in labels]
