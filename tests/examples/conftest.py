"""The examples are imported as they are run: from their folder."""

import sys

import pytest
from toy_texts import EXAMPLES, save_toy_model


sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny BERT with a tokenizer that knows the words of the test data."""
    return save_toy_model(tmp_path_factory.mktemp("model"))
