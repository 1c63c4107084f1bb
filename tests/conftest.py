"""No test reaches for a network, none writes to the user's caches, and none sees the settings of another."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest
from matplotlib.figure import Figure


_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)
_cache = tempfile.mkdtemp(prefix="hf_focal_tests_")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.update(HF_HOME=_cache, HF_HUB_OFFLINE="1")

# The same examples in every run of the gate, which takes no time to make one smaller that fails; --hypothesis-profile=long
# looks for others, for as long as it takes.
hypothesis.configuration.set_hypothesis_home_dir(_cache)
_common = {"deadline": None, "suppress_health_check": [*hypothesis.HealthCheck], "database": None}
_phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
hypothesis.settings.register_profile("gate", max_examples=40, derandomize=True, phases=_phases, **_common)
hypothesis.settings.register_profile("long", max_examples=2000, **_common)
hypothesis.settings.load_profile("gate")


@pytest.fixture(autouse=True)
def without_settings_of_accelerate():
    """Transformers 4 leaves mixed precision and torch.compile of any arguments in the environment, for all that follow."""
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


@pytest.fixture
def without_drawing(monkeypatch):
    """Pictures are files of one pixel: drawing those of a card takes longer than training a tiny model."""

    def save(figure, path, **options):
        Path(path).write_bytes(_PIXEL + bytes(2000))

    monkeypatch.setattr(Figure, "savefig", save)


def pytest_collection_finish():
    """What was imported stays: collecting garbage, as Trainer often does, need not look through it each time."""
    gc.collect()
    gc.freeze()
