"""The embedded default of token classification: rare entities in the sentences of BBC News.

No package has a labelled corpus of entities, so the text is real but the labels are generated: the rules below tag
sums of money, percentages, dates, match scores and ordinals. A model that learns them shows that it can learn rare tags from
text, but not how well it would find names.
"""

import re
from random import Random

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from data.bbc_longtail import load_bbc_longtail


MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
DAY = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
RULES = {
    "MONEY": r"[£$€]\d[\d,.]*(?:bn|m|k)?",
    "PERCENT": r"\d[\d.]*%",
    "DATE": rf"\d{{1,2}} (?:{MONTH})(?: \d{{4}})?|(?:{MONTH}) \d{{4}}|{DAY}",
    "SCORE": r"\d{1,2}-\d{1,2}",
    "ORDINAL": r"\d{1,3}(?:st|nd|rd|th)",
}
# Only dates can be longer than one word.
TAGS = ["O", "B-MONEY", "B-PERCENT", "B-DATE", "I-DATE", "B-SCORE", "B-ORDINAL"]


def load_bbc_entities(train: int = 800, validation: int = 200, test: int = 800, max_words: int = 40) -> DatasetDict:
    """Splits with the columns `tokens` (words) and `ner_tags`; no document is in two splits.

    Args:
        train, validation, test: Sentences of each split.
        max_words: Longer sentences are left out.
    """
    documents = load_bbc_longtail(imbalance=1, head=190)
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
    splits = {}
    for split, size in (("train", train), ("validation", validation), ("test", test)):
        texts = " ".join(documents[split]["text"])
        sentences = [re.findall(r"\S+", sentence) for sentence in re.split(r"(?<=[.!?])\s+|\n+", texts)]
        sentences = sorted({tuple(words) for words in sentences if 5 <= len(words) <= max_words})
        Random(0).shuffle(sentences)
        if len(sentences) < size:
            raise ValueError(f"{split}: there are only {len(sentences)} sentences, not {size}")
        rows = [{"tokens": list(words), "ner_tags": tag(words)} for words in sentences[:size]]
        splits[split] = Dataset.from_list(rows, features=features)
    return DatasetDict(splits)


def tag(words: tuple[str, ...] | list[str]) -> list[str]:
    """The tag of each word, in the BIO scheme."""
    text, tags = " ".join(words), ["O"] * len(words)
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    for entity, rule in RULES.items():
        for match in re.finditer(rf"(?<![\w.,-])(?:{rule})(?![\w-])", text):
            inside = [k for k in range(len(words)) if starts[k] < match.end() and starts[k + 1] - 1 > match.start()]
            if all(tags[k] == "O" for k in inside):
                for k in inside:
                    tags[k] = f"{'B' if k == inside[0] else 'I'}-{entity}"
    return tags
