"""What each of several processes sees of a label distribution."""

import json
from pathlib import Path
from unittest.mock import patch

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from exactness import tiny_dataset, tiny_model
from transformers import TrainingArguments

from hf_focal import FocalTrainer, LabelDistribution


def stream(labels: list) -> IterableDataset:
    state = PartialState()
    data = Dataset.from_dict({"label": labels}).to_iterable_dataset(num_shards=2)
    return split_dataset_by_node(data, rank=state.process_index, world_size=state.num_processes)


def counts(labels: list, **arguments) -> list | str:
    try:
        distribution = LabelDistribution.from_dataset(stream(labels), **arguments)
    except ValueError as error:
        return str(error)
    negatives = distribution.negatives
    return [distribution.counts.tolist(), negatives if negatives is None else negatives.tolist(), distribution.names]


def sample(max_rows: int) -> list:
    """Of a stream that gives the first process one row and the second process three."""
    state = PartialState()
    parts = [[0], [0, 1, 1]]
    data = IterableDataset.from_generator(
        lambda parts: ({"label": label} for part in parts for label in part), gen_kwargs={"parts": parts}
    )
    data = split_dataset_by_node(data, rank=state.process_index, world_size=state.num_processes)
    distribution = LabelDistribution.from_dataset(data, max_rows=max_rows)
    return [distribution.counts.tolist(), distribution.num_rows, distribution.is_sample]


def trainer_alpha(folder: Path, data: Dataset | IterableDataset, **config) -> dict:
    args = TrainingArguments(str(folder), use_cpu=True, max_steps=1)
    with patch.object(LabelDistribution, "from_dataset", wraps=LabelDistribution.from_dataset) as count:
        try:
            trainer = FocalTrainer(tiny_model(**config), args, train_dataset=data, alpha="inverse")
        except ValueError as error:
            return {"error": str(error), "counted": count.call_count}
        return {"alpha": trainer.alpha.tolist(), "counted": count.call_count}


def run(folder: Path) -> None:
    """Leaves what this process sees, in a file that is called by its rank."""
    state = PartialState(cpu=True)
    seen = {
        "ids": counts([0, 0, 0, 0, 1, 2]),
        "strings": counts(["a", "a", "b", "c", "c", "c"]),
        "multi_hot": counts([[1, 0], [1, 1], [0, 0], [1, 0]]),
        "sample": sample(max_rows=2),
        "no_sample": sample(max_rows=4),
        "missing": counts([0, 1, 0, None]),
        "trainer": trainer_alpha(folder, tiny_dataset()),
        "trainer_with_shards": trainer_alpha(folder, stream([0, 0, 0, 0, 1, 2])),
        "trainer_with_an_empty_class": trainer_alpha(folder, tiny_dataset(), num_labels=4),
    }
    (folder / f"{state.process_index}.json").write_text(json.dumps(seen))
