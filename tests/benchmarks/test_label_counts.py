"""Counting 100 million labels where they lie, against `numpy.bincount` on the same buffer; one million in Python."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_focal._label_counts import count_labels


ROWS, CLASSES = 10**8, 50


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(0, CLASSES, ROWS)


@pytest.fixture(scope="module")
def indices():
    return {
        "all rows": None,
        "every second row": np.arange(0, ROWS, 2, dtype=np.uint64),
        "shuffled": np.random.default_rng(1).permutation(ROWS).astype(np.uint64),
    }


@pytest.mark.parametrize("mapping", ["all rows", "every second row", "shuffled"])
def test_of_an_arrow_dataset(compare, labels, indices, mapping):
    rows = indices[mapping]
    data = Dataset(pa.table({"label": labels}), indices_table=rows if rows is None else pa.table({"indices": rows}))
    compare(
        lambda: count_labels(data),
        lambda: np.bincount(labels),
        1,
        "numpy.bincount / bytes of the column",
        mapping,
        f"{ROWS:,} labels",
        data_bytes=labels.nbytes,
    )


@pytest.mark.parametrize("name", ["count_labels", "Counter(dataset['label'])"])
def test_beside_python(compare, labels, name):
    few = labels[: 10**6]
    data = Dataset(pa.table({"label": few}))
    function = {
        "count_labels": lambda: count_labels(data),
        "Counter(dataset['label'])": lambda: Counter(data["label"]),
    }[name]
    compare(
        function,
        lambda: np.bincount(few),
        1,
        "numpy.bincount / bytes of the column",
        name,
        "1,000,000 labels",
        few.nbytes,
    )
