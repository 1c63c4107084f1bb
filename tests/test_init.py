"""The package as it is imported and installed."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import hf_focal


ROOT = Path(__file__).parents[1]


def imported_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_alone_is_cheap():
    assert not imported_by("import hf_focal") & {"torch", "transformers", "datasets", "pyarrow"}


def test_the_loss_needs_torch_alone():
    loaded = imported_by("from hf_focal import focal_loss, sigmoid_focal_loss, FocalLoss")
    assert "torch" in loaded and not loaded & {"transformers", "datasets", "pyarrow"}


def test_public_names():
    assert hf_focal.__all__ and all(hasattr(hf_focal, name) for name in hf_focal.__all__)
    assert set(hf_focal.__all__) <= set(dir(hf_focal))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        hf_focal.nonsense


def test_installed_metadata():
    installed = distribution("hf_focal")
    assert installed.version == hf_focal.__version__
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    if "editable" not in (installed.read_text("direct_url.json") or ""):
        package = ROOT / "hf_focal"
        files = [*package.glob("*.py"), package / "py.typed", package / "CHANGELOG.md"]
        sources = {f"hf_focal/{path.name}" for path in files}
        assert sources <= {str(path) for path in installed.files}
