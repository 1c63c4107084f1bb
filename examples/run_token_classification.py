"""Fine-tune a BERT-like model with focal loss on token classification, where nearly all tokens are outside entities.

Without arguments it trains MiniLM-L6 to find rare entities in sentences of BBC News, both from installed packages, so no
network is needed; data/bbc_entities.py describes the labels. If the flags name a dataset, this default is not used:

    python run_token_classification.py --model_name_or_path bert-base-cased --dataset_name conll2003 \
        --do_train --do_eval --focal_gamma 2 --focal_alpha sqrt_inverse --output_dir out

Several processes: `accelerate launch run_token_classification.py ...` or `torchrun --nproc_per_node 2 ...`.
"""

import gc
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from data.labelled_texts import DataArguments, check_columns, limited, load_splits
from datasets import ClassLabel, Dataset, DatasetDict
from run_text_classification import (
    calibrate,
    check_decision,
    choose_operating_point,
    data_name,
    fold,
    model_path,
    name_bars,
    needed_splits,
    operating_point_of,
    parse_arguments,
    print_label_distribution,
    print_next_steps,
    publish,
)
from seqeval.metrics import classification_report
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    set_seed,
)

from hf_focal import (
    FocalSettings,
    FocalTrainer,
    compute_metrics,
    decide,
    evaluate_model,
    evaluate_operating_points,
)
from hf_focal.operating_points import decision_scores


EMBEDDED_DEFAULT = (
    "--output_dir outputs/bbc_entities --do_train --do_predict --max_seq_length 64 "
    "--num_train_epochs 3 --learning_rate 2e-4 --per_device_train_batch_size 16 --per_device_eval_batch_size 64 "
    "--focal_alpha sqrt_inverse --logging_steps 20 --save_strategy epoch --save_total_limit 1"
).split()


@dataclass
class TokenDataArguments(DataArguments):
    text_column_names: str = field(default="tokens", metadata={"help": "Column with the words of a sentence."})
    label_column_name: str = field(default="ner_tags", metadata={"help": "Column with the tag of each word."})


def load_embedded_default() -> DatasetDict:
    from data.bbc_entities import load_bbc_entities  # not needed with other data

    return load_bbc_entities()


def read_tags(dataset: Dataset, column: str, split: str) -> tuple[list[list[str]], list[str] | None]:
    """The tags of each sentence, and the names of all tags if the dataset lists them."""
    feature = getattr(dataset.features[column], "feature", None)
    if feature is None or feature.dtype not in ("string", "large_string", "int64", "int32", "int8"):
        raise ValueError(
            f"column {column!r} of the {split} split: expected lists of strings or integers, but got "
            f"{dataset.features[column]}"
        )
    if isinstance(feature, ClassLabel):
        return [feature.int2str(row) for row in dataset[column]], feature.names
    return [[str(tag) for tag in row] for row in dataset[column]], None


def encode_tags(tags: list[list[str]], words: list[list[str]], names: list[str], split: str) -> list[list[int]]:
    for row, (sentence, sentence_tags) in enumerate(zip(words, tags)):
        if len(sentence) != len(sentence_tags):
            raise ValueError(
                f"row {row} of the {split} split has {len(sentence)} words, but {len(sentence_tags)} tags"
            )
    if unknown := sorted({tag for row in tags for tag in row} - set(names)):
        raise ValueError(f"the {split} split has tags that are not in the training data: {unknown[:10]}")
    index = {name: i for i, name in enumerate(names)}
    return [[index[tag] for tag in row] for row in tags]


def tokenize(sentences: list[list[str]], tokenizer, max_length: int) -> tuple[dict, list[dict[int, int]]]:
    """The tokens of the sentences, and the position of each word's first token.

    Truncated words, and words for which the tokenizer has no token, have no position.
    """
    encoded = tokenizer(sentences, truncation=True, max_length=max_length, is_split_into_words=True)
    starts = []
    for row in range(len(sentences)):
        last_first = reversed([*enumerate(encoded.word_ids(row))])
        first = {word: at for at, word in last_first if word is not None}
        starts.append(dict(sorted(first.items())))
    return encoded, starts


def encode(batch: dict, tokenizer, max_length: int, words: str) -> dict:
    """Labels the first token of each word with its tag; the others are ignored."""
    encoded, starts = tokenize(batch[words], tokenizer, max_length)
    if "labels" in batch:
        labels = [np.full(len(ids), -100) for ids in encoded["input_ids"]]
        for row, positions, tags in zip(labels, starts, batch["labels"]):
            for word, at in positions.items():
                row[at] = tags[word]
        encoded["labels"] = labels
    return encoded


def write_predictions(
    path: Path,
    sentences: list[list[str]],
    starts: list[dict[int, int]],
    decided: np.ndarray,
    probabilities: torch.Tensor,
    names: list[str],
) -> None:
    """Tab-separated, a row for each word: index of the sentence, word, predicted tag and its probability.

    Truncated words, and words for which the tokenizer has no token, have no row.
    """
    rows = [
        (row, sentence[word], names[decided[row, at]], f"{probabilities[row, at, decided[row, at]].item():.6f}")
        for row, (sentence, positions) in enumerate(zip(sentences, starts))
        for word, at in positions.items()
    ]
    table = pd.DataFrame(rows, columns=["index", "word", "prediction", "probability"])
    table.to_csv(path, sep="\t", index=False)


def tag_sequences(predictions: np.ndarray, labels: np.ndarray, names: list[str]) -> tuple[list, list]:
    """The true and the predicted tags of each sentence, by name."""
    return tuple(
        [[names[tag] for tag in row[label != -100]] for row, label in zip(tags, labels)]
        for tags in (labels, predictions)
    )


def scores(prediction: EvalPrediction, names: list[str]) -> dict[str, float]:
    """The metrics of the logits' own decisions, for monitoring training."""
    entities = entity_scores(prediction.predictions.argmax(-1), prediction.label_ids, names)
    return {**entities, **compute_metrics(prediction, label_names=names)}


def entity_scores(decided: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, float]:
    report = classification_report(*tag_sequences(decided, labels, names), output_dict=True, zero_division=0)
    return {f"entity_f1_{average}": float(report[f"{average} avg"]["f1-score"]) for average in ("micro", "macro")}


def print_report(
    split: str, decided: np.ndarray, labels: np.ndarray, names: list[str], points: dict, chosen: str
) -> None:
    """Prints the results per entity type for the model's decisions, and a row for each of its operating points."""
    report = classification_report(*tag_sequences(decided, labels, names), digits=3, zero_division=0)
    rows = {
        f"{point} (in force)" if point == chosen else point: {
            name: "{:.3f} ({:.3f} to {:.3f})".format(*value) if isinstance(value, tuple) else f"{value:.3f}"
            for name, value in metrics.items()
        }
        for point, metrics in points.items()
    }
    print(f"\nEntities in the {split} split, {len(labels)} sentences, operating point {chosen}\n{report}")
    print(
        f"{pd.DataFrame(rows).T.to_string()}\nIn brackets: 95 % bootstrap intervals over the sentences, for the metrics of tokens"
    )


def main() -> None:
    model_args, data_args, training_args = parse_arguments(TokenDataArguments, EMBEDDED_DEFAULT)
    needed = needed_splits(training_args)
    if model_args.loss == "cross_entropy":
        training_args.focal_gamma, training_args.focal_alpha = 0.0, None
    set_seed(training_args.seed)

    # Data and tags.
    (words,), column = data_args.text_columns, data_args.label_column_name
    with training_args.main_process_first(desc="loading the data"):
        splits = load_splits(data_args, model_args.cache_dir, load_embedded_default)
    check_columns(splits, data_args, needed)
    tags, known_names = {}, None
    for split in needed:
        if column in splits[split].column_names:
            tags[split], names_of_split = read_tags(splits[split], column, split)
            known_names = known_names or names_of_split
    path = model_path(model_args)
    # Code of a model is never run: otherwise a card could run its own code when it is verified.
    hub = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(path, **hub)
    if training_args.do_train:
        names = known_names or sorted({tag for row in tags["train"] for tag in row})
        config.num_labels = len(names)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    else:
        names = [config.id2label[k] for k in range(config.num_labels)]
    check_decision(model_args, training_args, names, multi_label=False)

    # Tokens.
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or path, add_prefix_space=True, **hub)
    max_length = min(data_args.max_seq_length, tokenizer.model_max_length)
    datasets = {}
    for split in needed:
        weights = {training_args.focal_sample_weight_column} & {*splits[split].column_names}
        dataset = splits[split].select_columns([words, *weights])
        if split in tags:
            dataset = dataset.add_column("labels", encode_tags(tags[split], dataset[words], names, split))
        dataset = limited(dataset, split, data_args)
        with training_args.main_process_first(desc=f"tokenizing the {split} split"):
            datasets[split] = dataset.map(
                partial(encode, tokenizer=tokenizer, max_length=max_length, words=words),
                batched=True,
                remove_columns=[words],
                desc=f"Tokenizing {split}",
            )

    # Model and training.
    model = AutoModelForTokenClassification.from_pretrained(
        path, config=config, ignore_mismatched_sizes=model_args.ignore_mismatched_sizes, **hub
    )
    trainer = FocalTrainer(
        model=model,
        args=training_args,
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=partial(scores, names=names),
    )
    outputs = {}
    name_bars(trainer, "validation split")
    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint
        result = trainer.train(resume_from_checkpoint=True if checkpoint == "True" else checkpoint)
        if "validation" in datasets:
            outputs["validation"] = trainer.predict(datasets["validation"], metric_key_prefix="eval")
            calibrate(trainer, datasets["validation"], outputs["validation"], model_args)
        choose_operating_point(model.config, model_args.operating_point, is_trained=True)
        if model_args.fold_calibration:
            fold(trainer, datasets["validation"], outputs.pop("validation"))
        trainer.save_model()
        trainer.save_state()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        if trainer.is_world_process_zero():
            settings = FocalSettings.from_config(model.config)
            print_label_distribution(settings, names, sum(settings.label_counts), multi_label=False)
    else:
        choose_operating_point(model.config, model_args.operating_point, is_trained=False)
    config = model.config
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split not in datasets:
            continue
        if split not in outputs:
            name_bars(trainer, f"{split} split")
            outputs[split] = trainer.predict(datasets[split], metric_key_prefix=prefix)
        output, metrics = outputs[split], dict(outputs[split].metrics)
        logits, labels, points = torch.as_tensor(output.predictions), output.label_ids, {}
        decided = decide(logits, config).numpy()
        if labels is not None:
            in_force = {
                **evaluate_model(logits, labels, config, label_names=names),
                **entity_scores(decided, labels, names),
            }
            del in_force["per_class"]
            metrics |= {f"{prefix}_{name}": value for name, value in in_force.items()}
            points = {
                point: {**entity_scores(decide(logits, config, point).numpy(), labels, names), **token_metrics}
                for point, token_metrics in evaluate_operating_points(logits, labels, config).items()
            }
        trainer.log(metrics)
        trainer.save_metrics(prefix, metrics | ({f"{prefix}_operating_points": points} if points else {}))
        if not trainer.is_world_process_zero():
            continue
        if labels is not None:
            print_report(split, decided, labels, names, points, operating_point_of(config))
        if split == "test":
            sentences = splits[split][words][: len(datasets[split])]
            _, starts = tokenize(sentences, tokenizer, max_length)
            probabilities = decision_scores(logits, config)[1]
            path = Path(training_args.output_dir, "predict_results.txt")
            write_predictions(path, sentences, starts, decided, probabilities, names)
    if training_args.do_train or training_args.push_to_hub:
        name_bars(trainer, "results for the card")
        publish(trainer, datasets, outputs, tasks="token-classification", dataset=data_name(data_args, "BBC entities"))
    print_next_steps(trainer, path, "token-classification", "Ms Noon flew to Oslo.", aggregation_strategy="first")
    if trainer.is_world_process_zero():
        print(
            "To report only entities with enough confidence, add min_confidence=0.8 to either of the last two lines; "
            "hf_focal.fit_min_confidence finds the value for a wanted precision or recall on held-out data"
        )


if __name__ == "__main__":
    main()
    # Processes on CPU may abort at exit if their process group still exists (pytorch issue 190489).
    gc.collect()
    PartialState().destroy_process_group()
