"""Small labelled texts, a model that can learn them in seconds, and how a script of the examples is run on them."""

import json
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
from exactness import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer


EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = {"sport": ["ball", "goal", "match"], "money": ["bank", "share", "profit"], "chess": ["king", "queen", "pawn"]}


def save_toy_model(folder: Path, **config: int) -> str:
    vocabulary = ["[PAD]", "[UNK]", *(word for words in WORDS.values() for word in words)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    tiny_model(**config).save_pretrained(folder)
    return str(folder)


def single_label_data(counts: dict[str, int] | None = None) -> pd.DataFrame:
    counts = counts or {"sport": 12, "money": 6, "chess": 2}
    rows = [(WORDS[label][i % 3], label) for label, count in counts.items() for i in range(count)]
    return pd.DataFrame(rows, columns=["text", "label"])


def multi_label_data() -> pd.DataFrame:
    data = single_label_data()
    data["label"] = [[label, "sport"] if label == "chess" else [label] for label in data["label"]]
    data.loc[0, "label"].clear()  # a text may have no label at all,
    data.loc[1, "label"].append("sport")  # or one of them twice
    return data


def write(data: pd.DataFrame, path: str) -> str:
    save = {"csv": data.to_csv, "json": data.to_json, "parquet": data.to_parquet}[path.rpartition(".")[2]]
    save(path, **({"orient": "records", "lines": True} if path.endswith("json") else {"index": False}))
    return path


def run(script: str | Path, *flags) -> None:
    """Runs a script of the examples in this process."""
    path = EXAMPLES / script
    arguments, sys.argv = sys.argv, [str(path), *map(str, flags)]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = arguments


def counted_predictions(monkeypatch) -> list[int]:
    """The number of examples of each prediction from now on."""
    lengths, predict = [], Trainer.predict

    def counting(self, dataset, *args, **kwargs):
        lengths.append(len(dataset))
        return predict(self, dataset, *args, **kwargs)

    monkeypatch.setattr(Trainer, "predict", counting)
    return lengths


def run_baselines(*arguments) -> None:
    """`python -m baselines` with these arguments, in this process."""
    from baselines.__main__ import main

    argv, sys.argv = sys.argv, ["python -m baselines", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = argv


def markdown_rows(text: str) -> pd.DataFrame:
    """The first Markdown table of a text."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not all(re.fullmatch(":?-+:?", cell) for cell in row)]
    return pd.DataFrame(rows[1:], columns=rows[0])


def python_in(printed: str) -> str:
    """The lines of Python that a script ends with."""
    lines = printed.partition("To use it in Python:")[2].splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))


def in_a_fresh_process(pipeline_class: str, task: str, texts: list[str], **options) -> list:
    """What the pipeline of the model in the folder `out` says of texts, read from the folder by another Python."""
    code = (
        "import json, sys, hf_focal, transformers\n"
        "pipeline_class, task, texts, options = json.load(sys.stdin)\n"
        "pipe = transformers.pipeline(task, model='out', pipeline_class=getattr(hf_focal, pipeline_class), **options)\n"
        "print(json.dumps(pipe(texts)))"
    )
    request = json.dumps([pipeline_class, task, texts, options])
    result = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def common_flags(model_folder: str | Path, output_dir: str = "out") -> list[str]:
    return (
        f"--model_name_or_path {model_folder} --output_dir {output_dir} --use_cpu --disable_tqdm True "
        "--num_train_epochs 2 --per_device_train_batch_size 4 --learning_rate 0.01 --save_strategy no"
    ).split()
