"""What the documentation prints runs as it is printed, in order, and its links lead somewhere."""

import ast
import importlib
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from urllib.parse import urlparse

import pandas as pd
import pytest
from run_snippets import code_blocks
from toy_texts import EXAMPLES, WORDS, save_toy_model

import hf_focal


ROOT = EXAMPLES.parent
DOCUMENTS = [
    ROOT / "README.md",
    *EXAMPLES.rglob("README.md"),
    EXAMPLES / "migration.md",
    ROOT / ".github/CONTRIBUTING.md",
]
# What is installed already; environments are folders with the same Python. The test command is what runs this: of what it would
# run, one file. Of several machines and processes, one is run (tests/examples/test_run_text_classification.py runs two).
COMMANDS = {
    "pip": 'case "$1" in install) exit 0 ;; esac; exit 1',
    "python3": """
        [ "$1 $2" = "-m venv" ] || exit 1
        mkdir -p "$3/bin"
        ln -sf "$BIN/pip" "$BIN/python" "$3/bin/"
        touch "$3/bin/activate"
    """,
    "python": """
        if [ "$*" = "-m pytest" ]; then
            cd "$ROOT"
            set -- -m pytest --quiet tests/test_settings.py
        fi
        exec "$PYTHON" "$@"
    """,
    "accelerate": """
        shift
        arguments=(--mixed_precision no --num_machines 1 --num_processes 1)
        for argument in "$@"; do
            case "$argument" in 10.0.0.1) argument=localhost ;; esac
            arguments+=("$argument")
        done
        ACCELERATE_USE_CPU=true MASTER_PORT=0 exec "$PYTHON" -m accelerate.commands.launch --main_process_port 0 "${arguments[@]}"
    """,
}


def run_document(document: Path, folder: Path, substitutions: dict[str, str] | None = None) -> str:
    """What the blocks print, run in a fresh process and in this folder."""
    text = document.read_text("utf-8")
    for printed, shorter in (substitutions or {}).items():
        assert printed in text
        text = text.replace(printed, shorter)
    (folder / "document.md").write_text(text)
    (folder / "bin").mkdir()
    for name, code in COMMANDS.items():
        command = folder / "bin" / name
        command.write_text(f"#!/bin/bash\n{code}\n")
        command.chmod(0o755)
    environment = {**os.environ, "BIN": str(folder / "bin"), "PYTHON": sys.executable, "ROOT": str(ROOT)}
    environment |= {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment |= {"TINY_MODEL": save_toy_model(folder / "tiny", num_labels=2), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("run_snippets.py")), "document.md"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_readme(tmp_path):
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    # The model of the first command is that of tests/examples/test_run_text_classification.py, which sees it right.
    printed = run_document(
        ROOT / "README.md", tmp_path, {"examples/run_text_classification.py": "-m hf_focal.alpha --help"}
    )
    answer = next(line for line in printed.splitlines() if line.startswith("[{'label'"))
    (answer,) = ast.literal_eval(answer)
    assert answer["label"] == "surprise" and answer["score"] > 0.5


def test_readme_of_the_examples(tmp_path):
    for path in EXAMPLES.iterdir():
        if path.name not in ("outputs", "__pycache__"):
            (tmp_path / path.name).symlink_to(path)
    words = {"business": WORDS["money"], "sport": WORDS["sport"]}
    texts = [
        (" ".join(text), label) for label in words for n in range(1, 5) for text in product(words[label], repeat=n)
    ]
    for split, start in {"train": 0, "valid": 1, "test": 2}.items():
        pd.DataFrame(texts[start::3], columns=["text", "label"]).to_csv(tmp_path / f"{split}.csv", index=False)
    printed = run_document(
        EXAMPLES / "README.md",
        tmp_path,
        {"--minutes 30": "--minutes 0.01 --model_name_or_path google-bert/bert-base-uncased"},
    )
    assert "labels.png" in os.listdir(tmp_path) and "predict_results.txt" in os.listdir(tmp_path / "my_model")
    answer = next(line for line in printed.splitlines() if line.startswith("[{'label'"))
    assert ast.literal_eval(answer)[0]["label"] in words


def public_docstrings():
    for name in hf_focal.__all__[1:]:
        documented = getattr(hf_focal, name)
        module = importlib.import_module(documented.__module__)
        yield module.__name__, module.__doc__
        yield name, documented.__doc__


def test_code_in_docstrings_is_run():
    """By `--doctest-modules`, which sees only what has prompts."""
    for name, docstring in public_docstrings():
        for code in re.findall(r"```python\n(.*?)```", docstring, re.DOTALL):
            assert code.strip().startswith(">>>"), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    text = document.read_text("utf-8")
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        target = target.replace(f"{repository()}/blob/main/", f"{os.path.relpath(ROOT, document.parent)}/")
        if urlparse(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}, (
                target
            )


def repository() -> str:
    return re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]


def test_readme_also_works_on_a_package_index():
    """There, only links with a host lead somewhere, but for those to its own headings."""
    text = (ROOT / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert urlparse(target).scheme == "https" or target.startswith("#"), target
    assert len(text.splitlines()) <= 150


def test_all_blocks_have_a_language():
    for document in (ROOT / "README.md", EXAMPLES / "README.md"):
        fences = document.read_text("utf-8").count("```")
        assert fences == 2 * len(code_blocks(document)) > 0
