"""Other processes for tests: forks of one interpreter that has imported everything once.

Started afresh, each would import torch and transformers for itself, which takes longer than what it is to show. Functions are
found by their names, so they stand at the top of a module, and tensors come back in files.
"""

import gc
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import start_processes


_fork_server = get_context("forkserver")
_fork_server.set_forkserver_preload(
    ["hf_focal.trainer", "transformers.models.bert.modeling_bert", "matplotlib.pyplot"]
)


def start_process(function: Callable, *arguments) -> BaseProcess:
    process = _fork_server.Process(target=_run, args=(function, arguments), daemon=True)
    process.start()
    return process


def run_in_two_processes(function: Callable, *arguments) -> list[str]:
    """What each of them has printed. They find each other as those of torchrun do, by variables of the environment."""
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(get_free_port())}
        arguments = (Path(folder), environment, function, arguments)
        start_processes(_run_of_two, arguments, nprocs=2, start_method="forkserver")
        return [Path(folder, str(rank)).read_text() for rank in range(2)]


def _run_of_two(rank: int, folder: Path, environment: dict[str, str], function: Callable, arguments: tuple) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)  # as torchrun does where there are several
    with (folder / str(rank)).open("w") as file, redirect_stdout(file):
        _run(function, arguments)


def _run(function: Callable, arguments: tuple) -> None:
    gc.freeze()  # as in conftest.py
    function(*arguments)
