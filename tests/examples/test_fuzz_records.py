"""Results files of any content: they are read as they were written, or refused."""

import json
import warnings
from pathlib import Path

from baselines.records import PACKED, packed, read_records
from hypothesis import given
from hypothesis import strategies as st
from test_baselines_report import make_records


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


def written(*lines):
    file = Path("results.jsonl")
    file.write_text("\n".join(lines), encoding="utf-8", newline="")
    return file


@given(st.dictionaries(st.sampled_from(PACKED), JSON), st.dictionaries(TEXTS, JSON, max_size=3))
def test_what_is_packed_comes_back(values, others):
    record = make_records(seeds=(1,), arms=["a"], num_examples=5)[0]
    record = others | record | values
    assert read_records(written(json.dumps(packed(record)))) == [record]


@given(st.sampled_from(sorted(make_records(num_examples=5)[1])), JSON, st.integers(0, 10**6), TEXTS)
def test_any_value_and_any_edit_of_a_line(key, value, at, text):
    first, second = (json.dumps(packed(record)) for record in make_records(num_examples=5)[:2])
    changed = json.dumps(json.loads(second) | {key: value})
    at %= len(second)
    for line in (changed, second[:at] + text + second[at + 1 :], json.dumps(value), text):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                records = read_records(written(first, line))
            except ValueError as error:
                assert "results.jsonl, line" in str(error) and str(error).isprintable()
                continue
        assert all(isinstance(record["arm"], str) for record in records)
        assert len(records) + len(said) >= 1
