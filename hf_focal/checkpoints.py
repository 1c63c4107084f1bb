"""Complete files on disk: the checkpoint to resume from, and saves that keep the old model until the new is there."""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open


__all__ = ["is_whole", "last_whole_checkpoint", "saved_whole"]

_WEIGHTS = re.compile(
    r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_model\.(safetensors|bin)|adapter_config\.json"
)
_CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")


def last_whole_checkpoint(folder: str | Path) -> tuple[Path | None, list[Path]]:
    """The last complete checkpoint of an output folder, if any, and the incomplete ones after it, the latest first.

    A process that is killed while it saves, or a full disk, leaves an incomplete one.

    Args:
        folder (`str` or `Path`): The `output_dir` of a training.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_focal.checkpoints import last_whole_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     last_whole_checkpoint(folder)
    (None, [])

    ```
    """
    named = [(_CHECKPOINT.fullmatch(path.name), path) for path in Path(folder).glob("checkpoint-*")]
    by_step = [(int(match[1]), path) for match, path in named if match and path.is_dir()]
    incomplete: list[Path] = []
    for _, checkpoint in sorted(by_step, reverse=True):
        if is_whole(checkpoint):
            return checkpoint, incomplete
        incomplete.append(checkpoint)
    return None, incomplete


def is_whole(checkpoint: Path) -> bool:
    """Whether the trainer state, which is written last, and all weight files are complete."""
    try:
        if "global_step" not in json.loads((checkpoint / "trainer_state.json").read_text()):
            return False
        # Weights that are sharded over processes are in folders.
        if not any(_WEIGHTS.fullmatch(path.name) or path.is_dir() for path in checkpoint.iterdir()):
            return False
        for path in checkpoint.glob("*.index.json"):
            shards = {*json.loads(path.read_text())["weight_map"].values()}
            if not all((checkpoint / shard).is_file() for shard in shards):
                return False
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, "pt"):  # checks the length of the file against its header
                pass
        for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]:
            if path.name != "training_args.bin" and not zipfile.is_zipfile(path):  # its directory is at the end
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return False
    return True


@contextmanager
def saved_whole(folder: str | Path) -> Iterator[Path]:
    """A temporary folder to save a model in; its files replace those in `folder` once all are written.

    If the disk is full or the process is killed while it writes, `folder` keeps its old model; only the renaming of
    the files at the end is not atomic. Weights of the old model that the new one has no file for are removed, since
    they would be loaded too, and so is an adapter.

    Args:
        folder (`str` or `Path`): Created if it does not exist.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_focal.checkpoints import saved_whole
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with saved_whole(folder) as written:
    ...         size = (written / "config.json").write_text("{}")
    ...     [path.name for path in Path(folder).iterdir()]
    ['config.json']

    ```
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".saving-*"):  # from a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(dir=folder, prefix=".saving-") as written:
        if (folder / "README.md").is_file():  # PEFT adds to it
            shutil.copy2(folder / "README.md", written)
        yield Path(written)
        files = [path for path in Path(written).rglob("*") if path.is_file()]
        for path in files:
            target = folder / path.relative_to(written)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        names = {path.name for path in files}
        if any(map(_WEIGHTS.fullmatch, names)):
            for path in folder.iterdir():
                if _WEIGHTS.fullmatch(path.name) and path.name not in names:
                    path.unlink()
