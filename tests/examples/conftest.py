"""The examples are imported as they are run: from their folder."""

import sys

import pytest
from toy_texts import EXAMPLES, save_toy_model


sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shorten_bbc(monkeypatch):
    """Makes the embedded data what its real model learns in seconds: fewer documents, and of each the first words."""
    from data import bbc_longtail

    def shorten(**sizes):
        def first_words(row):
            return {"text": " ".join(row["text"].split()[:16])}

        whole = bbc_longtail.load_bbc_longtail
        monkeypatch.setattr(bbc_longtail, "load_bbc_longtail", lambda: whole(**sizes).map(first_words))

    return shorten


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny BERT with a tokenizer that knows the words of the test data."""
    return save_toy_model(tmp_path_factory.mktemp("model"))
