"""Fine-tune a BERT-like model with focal loss on imbalanced single-label or multi-label text classification.

Without arguments it trains MiniLM-L6 on long-tailed BBC News, both from installed packages, so no network is needed.
Flags change this default one by one (`--loss cross_entropy --seed 1`); if they name a dataset, it is not used at all:

    python run_text_classification.py --model_name_or_path bert-base-uncased --dataset_name tweet_eval \
        --dataset_config_name emotion --do_train --do_eval --focal_gamma 2 --focal_alpha sqrt_inverse --output_dir out

Several processes: `accelerate launch run_text_classification.py ...` or `torchrun --nproc_per_node 2 ...`.
"""

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from data.data_check import check_data
from data.labelled_texts import (
    DataArguments,
    check_columns,
    class_names,
    encode_labels,
    limited,
    load_splits,
    read_labels,
)
from datasets import Dataset, DatasetDict
from sklearn.metrics import classification_report
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PretrainedConfig,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from hf_focal import (
    FocalSettings,
    FocalTrainer,
    FocalTrainingArguments,
    LabelDistribution,
    compute_metrics,
    decide,
    evaluate_model,
    evaluate_operating_points,
)
from hf_focal.calibration import METHODS
from hf_focal.evaluation import operating_points_of
from hf_focal.model_card import one_line
from hf_focal.operating_points import decision_scores, has_posterior
from hf_focal.settings import OPERATING_POINTS
from hf_focal.thresholds import ThresholdCriterion


logger = logging.get_logger("run_text_classification")

EMBEDDED_DEFAULT = (
    "--output_dir outputs/bbc_longtail --do_train --do_eval --do_predict --max_seq_length 64 "
    "--num_train_epochs 3 --learning_rate 2e-4 --per_device_train_batch_size 8 --per_device_eval_batch_size 64 "
    "--focal_alpha inverse --logging_steps 20 --save_strategy epoch --save_total_limit 1"
).split()


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model on the hub or local folder. Default: MiniLM-L6 from its package."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not that of the model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for downloads."})
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Replace the classification head if the model has a different number of labels."},
    )
    loss: str = field(
        default="focal",
        metadata={
            "help": "`focal` with --focal_gamma and --focal_alpha, or `cross_entropy`: the same trainer with gamma 0 and no alpha.",
            "choices": ["focal", "cross_entropy"],
        },
    )

    operating_point: str | None = field(
        default=None,
        metadata={
            "help": "How the model decides: `as_trained` (the default), `most_likely`, `balanced`, or `thresholds` (fitted on the "
            "validation split, for two classes or for several labels per text). With --do_train it is stored with the model, "
            "for pipelines and the model card; otherwise it applies only to this run.",
            "choices": [*OPERATING_POINTS],
        },
    )

    positive_label: str | None = field(
        default=None,
        metadata={"help": "With two classes, the one that the threshold applies to. Default: the rarer one."},
    )
    f_beta: float = field(
        default=1.0,
        metadata={
            "help": "Choose the thresholds with the best F-beta on the validation split; a beta above 1 favours recall."
        },
    )
    wanted_precision: float | None = field(
        default=None,
        metadata={
            "help": "Instead of --f_beta: choose the thresholds with the highest recall at this precision or more; implies "
            "--operating_point thresholds."
        },
    )
    wanted_recall: float | None = field(
        default=None,
        metadata={
            "help": "Instead of --f_beta: choose the thresholds with the highest precision at this recall or more; implies "
            "--operating_point thresholds."
        },
    )
    calibration_method: str = field(
        default="auto",
        metadata={
            "help": "How to calibrate the probabilities on the validation split: `temperature`, `vector` (a temperature and "
            "a bias per class), `none`, or `auto`: the best of these on examples left out of the fit.",
            "choices": [*METHODS],
        },
    )

    fold_calibration: bool = field(
        default=False,
        metadata={
            "help": "After training, fold the calibration and --operating_point into the weights, for stock pipelines and "
            "servers. Needs --do_train and --do_eval. If nothing can be fitted on the validation split, for example because "
            "it has no errors, the model is saved unchanged, with a warning."
        },
    )

    def __post_init__(self):
        if self.loss not in ("focal", "cross_entropy"):
            raise ValueError(f"--loss: expected focal or cross_entropy, but got {self.loss!r}")
        aims = [self.f_beta != 1, self.wanted_precision is not None, self.wanted_recall is not None]
        try:
            ThresholdCriterion(self.f_beta, self.wanted_precision, self.wanted_recall)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
        if any(aims) and self.operating_point is None:
            self.operating_point = "thresholds"


Arguments = tuple[ModelArguments, DataArguments, FocalTrainingArguments]


def parse_arguments(data_class: type[DataArguments], embedded_default: list[str]) -> Arguments:
    """The arguments from the flags of this process, or from the file that is its only argument."""
    parser = HfArgumentParser((ModelArguments, data_class, FocalTrainingArguments))
    argv = sys.argv[1:]
    if len(argv) == 1 and argv[0].endswith(".json"):
        return parser.parse_json_file(argv[0])
    if len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(argv[0])
    return parser.parse_args_into_dataclasses(with_embedded_default(argv, embedded_default))


def parse_flags(flags: list[str]) -> Arguments:
    """Parses flags only: no file is read."""
    parser = HfArgumentParser((ModelArguments, DataArguments, FocalTrainingArguments))
    return parser.parse_args_into_dataclasses(with_embedded_default(flags), look_for_args_file=False)


def with_embedded_default(flags: list[str], embedded_default: list[str] = EMBEDDED_DEFAULT) -> list[str]:
    """The flags, preceded by those of the embedded default unless they name data."""
    sources = {"--dataset_name", "--train_file", "--validation_file", "--test_file"}
    names_data = any(flag.split("=")[0] in sources for flag in flags)
    return flags if names_data else embedded_default + flags


def load_embedded_default() -> DatasetDict:
    from data.bbc_longtail import load_bbc_longtail  # not needed with other data

    return load_bbc_longtail()


def model_path(model_args: ModelArguments) -> str:
    """The model named by the arguments, or that of the embedded default."""
    if model_args.model_name_or_path is not None:
        return model_args.model_name_or_path
    from data.bbc_longtail import minilm_path

    return minilm_path()


class NamedProgress(ProgressCallback):
    """The trainer's progress bars, with descriptions."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def on_train_begin(self, *args, **kwargs):
        super().on_train_begin(*args, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")

    def on_prediction_step(self, *args, **kwargs):
        is_new = self.prediction_bar is None
        super().on_prediction_step(*args, **kwargs)
        if is_new and self.prediction_bar is not None:
            self.prediction_bar.set_description(self.name)


def name_bars(trainer: Trainer, name: str) -> None:
    """Names what is evaluated or predicted from now on; does nothing for trainers without bars or in a notebook."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, NamedProgress):
            callback.name = name
            return
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(NamedProgress(name))


def own_logits(predictions: np.ndarray | tuple) -> Tensor:
    return torch.as_tensor(
        predictions[0] if isinstance(predictions, tuple) else predictions
    )  # a model may return more


def weights_of(dataset: Dataset, training_args: FocalTrainingArguments) -> np.ndarray | None:
    column = training_args.focal_sample_weight_column
    return np.asarray(dataset[column]) if column in dataset.column_names else None


def check_decision(
    model_args: ModelArguments, training_args: FocalTrainingArguments, names: list[str], multi_label: bool
) -> None:
    """Rejects, before training, decision options that could not be used after it."""
    aims = {
        "positive_label": model_args.positive_label is not None,
        "f_beta": model_args.f_beta != 1,
        "wanted_precision": model_args.wanted_precision is not None,
        "wanted_recall": model_args.wanted_recall is not None,
    }
    if model_args.fold_calibration and not (training_args.do_train and training_args.do_eval):
        raise ValueError(
            "--fold_calibration: needs --do_train and --do_eval, as it follows training and uses the validation split"
        )
    given = [f"--{name}" for name, is_given in aims.items() if is_given]
    if model_args.operating_point == "thresholds" and training_args.do_train:
        given.append("--operating_point thresholds")
    if not given:
        return
    if not (training_args.do_train and training_args.do_eval):
        raise ValueError(
            f"{given[0]}: needs --do_train and --do_eval, as thresholds are fitted after training, on validation data"
        )
    kind = "labels" if multi_label else "classes"
    if not multi_label and len(names) != 2:
        raise ValueError(
            f"{given[0]}: thresholds are for two classes or several labels, but there are {len(names)} {kind}"
        )
    if model_args.positive_label is not None and (multi_label or model_args.positive_label not in names):
        raise ValueError(
            f"--positive_label: expected one of two classes, but got {model_args.positive_label!r}; {kind} are {names}"
        )


def calibrate(
    trainer: FocalTrainer, dataset: Dataset, predictions: PredictionOutput, model_args: ModelArguments
) -> None:
    try:
        calibration = trainer.calibrate(
            dataset,
            predictions=predictions,
            method=model_args.calibration_method,
            positive_label=model_args.positive_label,
            f_beta=model_args.f_beta,
            wanted_precision=model_args.wanted_precision,
            wanted_recall=model_args.wanted_recall,
        )
    except ValueError as error:  # a model without a posterior is still usable
        logger.warning(f"No calibration and no thresholds are stored: {error}")
        return
    if trainer.is_world_process_zero():
        print_calibration(calibration, len(dataset))
    trainer.save_metrics("calibration", without_nan(calibration), combined=False)


def fold(trainer: FocalTrainer, dataset: Dataset, predictions: PredictionOutput) -> None:
    point = operating_point_of(trainer.model.config)
    chosen = {} if point == "as_trained" else {"operating_point": point}
    try:
        folded = trainer.fold_calibration(dataset, predictions=predictions, **chosen)
    except ValueError as error:  # the model is unchanged
        logger.warning(f"The calibration is not folded: {error}")
        return
    if trainer.is_world_process_zero():
        print(
            f"\nThe calibration is folded into the weights, {'exactly' if folded['exact'] else 'approximately'}: the "
            f"probabilities differ from the posterior by at most {folded['largest_difference']:.2g}; negative log-likelihood "
            f"{folded['negative_log_likelihood_before']:.4f} before, {folded['negative_log_likelihood_after']:.4f} after"
        )


def choose_operating_point(config: PretrainedConfig, name: str | None, is_trained: bool) -> None:
    """Stores the operating point in the record, if the model has it; after training, only warns if it does not."""
    if name is None or name == operating_point_of(config):
        return
    points = operating_points_of(config)
    if name in points:
        replace(FocalSettings.from_config(config), operating_point=name).store_in(config)
        return
    message = f"--operating_point {name}: this model has only {', '.join(points)}"
    if not is_trained:
        raise ValueError(message)
    logger.warning(f"{message}, so it decides at {operating_point_of(config)}")


def operating_point_of(config: PretrainedConfig) -> str:
    settings = FocalSettings.find_in(config)
    return "as_trained" if settings is None else settings.operating_point


def print_label_distribution(settings: FocalSettings, names: list[str], num_examples: int, multi_label: bool) -> None:
    counts, alpha = np.array(settings.label_counts), settings.class_weights(len(names), multi_label)
    table = pd.DataFrame({"examples": counts, "share": counts / num_examples}, index=names)
    if alpha is not None:
        columns = ["alpha of negatives", "alpha of positives"] if multi_label else ["alpha"]
        table[columns] = alpha.reshape(-1, len(names)).T.numpy()
    table.index = [*map(one_line, names)]
    with pd.option_context("display.unicode.east_asian_width", True):  # for names in Chinese, for example
        text = table.to_string(float_format="%.3f")
    print(f"\nTraining data, gamma {settings.gamma:g}\n{text}")


def without_nan(value: object) -> object:
    """The value with NaN replaced by None, for JSON."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def print_calibration(calibration: dict, num_examples: int) -> None:
    """Prints what was fitted on the validation split, and the scores that the thresholds reach there."""
    if not calibration:
        return
    if calibration.get("temperature") is not None:
        likelihood = ", ".join(
            f"{name} {value:.4f}" for name, value in calibration.get("negative_log_likelihood", {}).items()
        )
        left_out = f"; negative log-likelihood on examples left out of the fit: {likelihood}" if likelihood else ""
        bias = {"temperature": "", "vector": " and a bias for each class"}.get(calibration["method"])
        temperature = f"calibrated with a temperature of {calibration['temperature']:.2f}"
        print(f"\nProbabilities {'left unchanged' if bias is None else temperature + bias}{left_out}")
    rows = {
        one_line(name): {score: "{:.3f} ({:.3f} to {:.3f})".format(*values) for score, values in scores.items()}
        for name, scores in calibration.get("reached", {}).items()
    }
    if rows:
        table = pd.DataFrame(rows).T
        table.insert(0, "threshold", [f"{threshold:.3f}" for threshold in calibration["thresholds"]][: len(rows)])
        print(
            f"\nThresholds for {calibration['threshold_criterion']}, with their scores on the {num_examples} validation "
            f"examples that they were fitted on (95 % intervals)\n{table.head(20).to_string()}"
        )
    if missing := calibration.get("not_reachable"):
        print(f"No threshold reaches {calibration['threshold_criterion']} for: {one_line(', '.join(missing[:20]))}")
    if unknown := calibration.get("without_positives"):
        names = one_line(", ".join(unknown[:20]))
        print(f"No threshold fitted, as there are no positive validation examples: {names}")


def print_report(
    split: str,
    labels: np.ndarray,
    decided: np.ndarray,
    names: list[str],
    points: dict,
    chosen: str,
    weights: np.ndarray | None = None,
) -> None:
    """Prints the results per class for the model's decisions, and a row for each of its operating points."""
    # The means are over the same classes as in the metrics: all classes for several labels, otherwise those that
    # occur.
    names = [one_line(name) for name in names]
    classes = range(len(names)) if labels.ndim == 2 else np.union1d(labels, decided)
    report = classification_report(
        labels,
        decided,
        labels=classes,
        target_names=[names[k] for k in classes],
        sample_weight=weights,
        digits=3,
        zero_division=0,
    )
    shown = ["accuracy", "f1_micro" if labels.ndim == 2 else "balanced_accuracy", "f1_macro", "f1_tail"]
    shown += ["precision", "recall", "precision_micro", "recall_micro"]
    rows = {
        f"{point} (in force)" if point == chosen else point: {
            name: "{:.3f} ({:.3f} to {:.3f})".format(*metrics[name]) for name in shown if name in metrics
        }
        for point, metrics in points.items()
    }
    print(f"\nResults on the {split} split, {len(labels)} examples, operating point {chosen}\n{report}")
    if absent := [name for k, name in enumerate(names) if k not in classes]:
        print(f"Classes neither in the split nor predicted: {', '.join(absent)}\n")
    print(f"{pd.DataFrame(rows).T.to_string()}\nIn brackets: 95 % bootstrap intervals over the examples")


def write_predictions(path: Path, decided: Tensor, probabilities: Tensor, names: list[str]) -> None:
    """Tab-separated: the index of each test example, its predicted label and the label's probability.

    For multi-label data, both are JSON lists.
    """
    if decided.dim() == 2:
        rows = [row.nonzero().flatten().tolist() for row in decided]
        labels = [json.dumps([names[k] for k in row], ensure_ascii=False) for row in rows]
        shown = [json.dumps([round(p[k].item(), 6) for k in row]) for p, row in zip(probabilities, rows)]
    else:
        labels = [names[k] for k in decided]
        shown = [f"{p:.6f}" for p in probabilities.gather(-1, decided[:, None]).flatten()]
    table = pd.DataFrame({"prediction": labels, "probability": shown})
    table.to_csv(path, sep="\t", index_label="index")


def check_epochs(training_args: FocalTrainingArguments) -> None:
    if training_args.num_train_epochs <= 0 and training_args.max_steps <= 0:
        raise ValueError(f"--num_train_epochs: expected a number above 0, but got {training_args.num_train_epochs:g}")


def needed_splits(training_args: FocalTrainingArguments) -> list[str]:
    """The splits for --do_train, --do_eval and --do_predict; an error if there is nothing to do."""
    wanted = {"train": training_args.do_train, "validation": training_args.do_eval, "test": training_args.do_predict}
    if not any(wanted.values()):
        raise ValueError("nothing to do: set --do_train, --do_eval or --do_predict")
    if training_args.do_train:
        check_epochs(training_args)
    return [split for split, is_wanted in wanted.items() if is_wanted]


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: FocalTrainingArguments,
    *,
    load_splits: Callable[[DataArguments, str | None], DatasetDict] = partial(
        load_splits, embedded_default=load_embedded_default
    ),
    prepare_model: Callable[[PreTrainedModel], PreTrainedModel] | None = None,
    trainer_class: type[FocalTrainer] = FocalTrainer,
    callbacks: list[TrainerCallback] | None = None,
    writes_card: bool = False,
    use_safetensors: bool | None = None,
) -> tuple[FocalTrainer, dict[str, PredictionOutput]]:
    """Trains, evaluates and predicts; returns the trainer, and its predictions for each held-out split.

    `use_safetensors` as in `PreTrainedModel.from_pretrained`.
    """
    needed = needed_splits(training_args)
    if model_args.loss == "cross_entropy":
        training_args.focal_gamma, training_args.focal_alpha = 0.0, None
    set_seed(training_args.seed)

    # Data and labels.
    column = data_args.label_column_name
    with training_args.main_process_first(desc="loading the data"):
        splits = load_splits(data_args, model_args.cache_dir)
    check_columns(splits, data_args, needed)
    labels = {split: read_labels(splits[split], column) for split in needed}
    if unlabelled := [split for split in needed if labels[split] is None and split != "test"]:
        raise ValueError(f"the {unlabelled[0]} split is unlabelled")
    if findings := check_data(splits, labels, data_args.text_columns):
        lines = "\n".join(f"- {line}" for line in findings)
        logger.warning(f"Is this intended? Rows are numbered from 1, not counting a header.\n{lines}")
    path = model_path(model_args)
    # Code of a model is never run: otherwise a card could run its own code when it is verified.
    hub = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(path, **hub)
    if training_args.do_train:
        multi_label = hasattr(splits["train"].features[column], "feature")
        names = class_names(splits["train"], column, labels["train"])
        if len(names) < 2 and not multi_label:
            raise ValueError(f"column {column!r} of the train split has only one class, {names}: nothing to learn")
        config.num_labels = len(names)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        config.problem_type = f"{'multi' if multi_label else 'single'}_label_classification"
    else:
        multi_label = config.problem_type == "multi_label_classification"
        names = [config.id2label[k] for k in range(config.num_labels)]

    check_decision(model_args, training_args, names, multi_label)

    # Tokens.
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or path, **hub)
    max_length = min(data_args.max_seq_length, tokenizer.model_max_length)
    if max_length < data_args.max_seq_length:
        logger.warning(f"--max_seq_length {data_args.max_seq_length} is too long for the model: using {max_length}")
    tokenizer.model_max_length = (
        max_length  # saved with the model, so that pipelines truncate where the scored texts were truncated
    )

    def tokenize(batch):
        texts = [" ".join(map(str, parts)) for parts in zip(*(batch[name] for name in data_args.text_columns))]
        return tokenizer(texts, truncation=True, max_length=max_length)

    datasets = {}
    for split in needed:
        dataset = splits[split]
        weights = {training_args.focal_sample_weight_column} & {*dataset.column_names}
        if labels[split] is not None:
            encoded = encode_labels(labels[split], names, multi_label, split)
            dataset = dataset.select_columns([*data_args.text_columns, *weights]).add_column("labels", encoded)
        dataset = limited(dataset, split, data_args)
        unused = [name for name in dataset.column_names if name != "labels" and name not in weights]
        with training_args.main_process_first(desc=f"tokenizing the {split} split"):
            datasets[split] = dataset.map(tokenize, batched=True, remove_columns=unused, desc=f"Tokenizing {split}")

    if training_args.do_train:
        distribution = LabelDistribution.from_dataset(datasets["train"], num_labels=len(names))
        counts = distribution.counts
        constant = [name for name, share in zip(names, distribution.shares) if share in (0, 1)]
        if model_args.operating_point == "balanced" and constant:
            raise ValueError(
                f"--operating_point balanced: none or all of the training data are {', '.join(constant[:5])}, so "
                "their frequencies cannot be shifted; choose another operating point, or remove these labels"
            )
    else:
        settings = FocalSettings.find_in(config)
        counts = None if settings is None else settings.label_counts

    # Model and training.
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        use_safetensors=use_safetensors,
        **hub,
    )
    trainer = trainer_class(
        model=model if prepare_model is None else prepare_model(model),
        args=training_args,
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=partial(compute_metrics, label_names=names, label_counts=counts),
        callbacks=callbacks,
    )
    outputs: dict[str, PredictionOutput] = {}
    name_bars(trainer, "validation split")
    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint
        result = trainer.train(resume_from_checkpoint=True if checkpoint == "True" else checkpoint)
        if "validation" in datasets:
            outputs["validation"] = trainer.predict(datasets["validation"], metric_key_prefix="eval")
            calibrate(trainer, datasets["validation"], outputs["validation"], model_args)
        choose_operating_point(model.config, model_args.operating_point, is_trained=True)
        if model_args.fold_calibration:
            fold(trainer, datasets["validation"], outputs.pop("validation"))  # folding changes the logits
        trainer.save_model()
        trainer.save_state()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        if trainer.is_world_process_zero():
            print_label_distribution(
                FocalSettings.from_config(model.config), names, len(datasets["train"]), multi_label
            )
    else:
        choose_operating_point(model.config, model_args.operating_point, is_trained=False)
    config = model.config
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split not in datasets:
            continue
        if split not in outputs:
            name_bars(trainer, f"{split} split")
            outputs[split] = trainer.predict(datasets[split], metric_key_prefix=prefix)
        output = outputs[split]
        logits, metrics = own_logits(output.predictions), dict(output.metrics)
        decided, (_, probabilities) = decide(logits, config), decision_scores(logits, config)
        if output.label_ids is not None:
            known = {"label_counts": counts, "sample_weight": weights_of(datasets[split], training_args)}
            in_force = evaluate_model(logits, output.label_ids, config, label_names=names, **known)
            del in_force["per_class"]
            metrics |= {f"{prefix}_{name}": value for name, value in in_force.items()}
        trainer.log(metrics)
        if output.label_ids is not None:
            points = evaluate_operating_points(logits, output.label_ids, config, **known)
            metrics[f"{prefix}_operating_points"] = points
        trainer.save_metrics(prefix, metrics)
        if trainer.is_world_process_zero():
            if split == "test":
                path = Path(training_args.output_dir, "predict_results.txt")
                write_predictions(path, decided, probabilities, names)
            if output.label_ids is not None:
                chosen = operating_point_of(config)
                weights = known["sample_weight"]
                print_report(split, output.label_ids.astype(int), decided.numpy(), names, points, chosen, weights)
    if writes_card:
        data = {"dataset": data_name(data_args), "dataset_args": data_args.dataset_config_name}
        name_bars(trainer, "results for the card")
        publish(trainer, datasets, outputs, tasks="text-classification", **data)
    return trainer, outputs


def data_name(data_args: DataArguments, embedded_default: str = "long-tailed BBC News") -> str:
    """The name of the data in a card: for files and folders without the path, which is specific to this machine."""
    name = data_args.dataset_name
    if name is not None:
        return Path(name).name if Path(name).exists() else name
    return ", ".join(dict.fromkeys(Path(file).name for file in data_args.files.values())) or embedded_default


def publish(
    trainer: FocalTrainer, datasets: dict[str, Dataset], outputs: dict[str, PredictionOutput], **metadata: str | None
) -> None:
    """Writes the card, with the results on the test split if it is labelled; pushes it and the model if requested."""
    labelled = [split for split in ("test", "validation") if split in outputs and outputs[split].label_ids is not None]
    for split in labelled[:1]:
        metadata |= {"test_dataset": datasets[split], "test_split": split, "predictions": outputs[split]}
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**metadata)
    else:
        trainer.create_model_card(**metadata)


def print_next_steps(trainer: FocalTrainer, path: str, task: str, example: str, **options: str) -> None:
    """Prints where the results are, and Python code that uses the model.

    Args:
        path: The path of the model, if it was not trained.
        task: The task of the pipeline.
        example: An example text.
        options: Further arguments of the pipeline.
    """
    if not trainer.is_world_process_zero():
        return
    args, config = trainer.args, trainer.model.config
    folder = args.output_dir if args.do_train else path
    card, predictions = Path(folder, "README.md"), Path(args.output_dir, "predict_results.txt")
    print(f"\nThe model is in {folder}" + (f", its card in {card}" if args.do_train and card.is_file() else ""))
    if args.do_predict:
        print(f"The predictions for the test split are in {predictions}")
    settings = FocalSettings.find_in(config)
    imports, arguments = ["from transformers import pipeline"], [repr(task), f"model={folder!r}"]
    is_ours = settings is not None and settings.folded is None
    if is_ours and has_posterior(settings, config.problem_type == "multi_label_classification"):
        pipeline_class = f"Focal{task.title().replace('-', '')}Pipeline"
        imports.append(f"from hf_focal import {pipeline_class}")
        arguments.append(f"pipeline_class={pipeline_class}")
    arguments += [f"{name}={value!r}" for name, value in options.items()]
    lines = [*imports, f"classify = pipeline({', '.join(arguments)})", f"print(classify({example!r}))"]
    print("To use it in Python:\n\n    " + "\n    ".join(lines) + "\n")


def main() -> None:
    model_args, data_args, training_args = parse_arguments(DataArguments, EMBEDDED_DEFAULT)
    writes_card = training_args.do_train or training_args.push_to_hub
    trainer, _ = run(model_args, data_args, training_args, writes_card=writes_card)
    print_next_steps(trainer, model_path(model_args), "text-classification", "Profits doubled.")


if __name__ == "__main__":
    main()
    # Processes on CPU may abort at exit if their process group still exists (pytorch issue 190489).
    gc.collect()
    PartialState().destroy_process_group()
