"""Models that `run_text_classification.py` trains, once per folder, and their logits of the held-out splits."""

from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from data.labelled_texts import DataArguments, encode_labels, load_splits, read_labels
from run_text_classification import load_embedded_default, parse_flags, run, with_embedded_default
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


def train(folder: Path, flags: list[str]) -> None:
    """What `run_text_classification.py` does with these flags, unless the folder holds a finished run; with a log."""
    if (folder / "test_results.json").exists():
        return
    arguments = parse_flags(["--output_dir", str(folder), "--save_strategy", "no", *flags])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        run(*arguments)


def held_out_logits(folder: Path, flags: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits (N, C) in float64 and labels (N) of the splits `validation` and `test`, computed once per folder."""
    file = folder / "held_out_logits.safetensors"
    if not file.exists():
        save_file(_compute_logits(folder, flags), file)
    tensors = load_file(file)
    return {
        split: (tensors[f"{split}_logits"].double(), tensors[f"{split}_labels"]) for split in ("validation", "test")
    }


def data_arguments(flags: list[str]) -> DataArguments:
    """Those among the flags of `run_text_classification.py` that say which data it is."""
    parser = HfArgumentParser(DataArguments)
    return parser.parse_args_into_dataclasses(with_embedded_default(flags), return_remaining_strings=True)[0]


def _compute_logits(folder: Path, flags: list[str]) -> dict[str, Tensor]:
    data_args = data_arguments(flags)
    config = AutoConfig.from_pretrained(folder)
    names = [config.id2label[k] for k in range(config.num_labels)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(folder),
        TrainingArguments(
            str(folder / "predictions"), per_device_eval_batch_size=64, dataloader_pin_memory=torch.cuda.is_available()
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
    )

    def tokenize(batch):
        texts = [" ".join(map(str, parts)) for parts in zip(*(batch[name] for name in data_args.text_columns))]
        return tokenizer(texts, truncation=True, max_length=data_args.max_seq_length)

    tensors = {}
    for split, dataset in load_splits(data_args, None, load_embedded_default).items():
        if split in ("validation", "test"):
            labels = encode_labels(read_labels(dataset, data_args.label_column_name), names, False, split)
            tokens = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
            tensors[f"{split}_logits"] = torch.from_numpy(trainer.predict(tokens).predictions).contiguous()
            tensors[f"{split}_labels"] = torch.tensor(labels)
    return tensors
