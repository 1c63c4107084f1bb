"""No test reaches for a network, none writes to the user's caches, and none sees the settings of another."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest


_cache = tempfile.mkdtemp(prefix="hf_focal_tests_")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.update(HF_HOME=_cache, HF_HUB_OFFLINE="1")


@pytest.fixture(autouse=True)
def without_settings_of_accelerate():
    """Transformers 4 leaves mixed precision and torch.compile of any arguments in the environment, for all that follow."""
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


def pytest_collection_finish():
    """What was imported stays: collecting garbage, as Trainer often does, need not look through it each time."""
    gc.collect()
    gc.freeze()
