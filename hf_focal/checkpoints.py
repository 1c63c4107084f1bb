"""Which checkpoint to resume from: the last one that was written to its end."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


__all__ = ["is_whole", "last_whole_checkpoint"]


def last_whole_checkpoint(folder: str | Path) -> tuple[Path | None, list[Path]]:
    """The last whole checkpoint of an output folder, if there is one, and the torn ones after it, the latest first.

    A process that is killed while it saves, or a full disk, leaves a torn one.

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
    found = {int(path.name.rpartition("-")[2]): path for path in Path(folder).glob("checkpoint-*") if _has_step(path)}
    torn: list[Path] = []
    for _, checkpoint in sorted(found.items(), reverse=True):
        if is_whole(checkpoint):
            return checkpoint, torn
        torn.append(checkpoint)
    return None, torn


def is_whole(checkpoint: Path) -> bool:
    """Whether the state of the trainer, which is written last, and all files of weights can be read to their ends."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        for path in checkpoint.glob("*.index.json"):
            shards = {*json.loads(path.read_text())["weight_map"].values()}
            if not all((checkpoint / shard).is_file() for shard in shards):
                return False
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, "pt"):  # whose header says how long the file is
                pass
        for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]:
            if path.name != "training_args.bin" and not zipfile.is_zipfile(path):  # of which the end is the directory
                return False
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError):
        return False
    return True


def _has_step(path: Path) -> bool:
    return path.is_dir() and path.name.rpartition("-")[2].isdigit()
