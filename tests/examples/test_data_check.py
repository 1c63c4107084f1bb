"""What is likely to be wrong with labelled texts is said, with the numbers of the rows, and clean data are not spoken of."""

import pytest
from data.data_check import check_data
from data.labelled_texts import DataArguments, check_columns, class_names, load_splits, read_labels
from datasets import Dataset, DatasetDict


TEXTS = [f"text {k}" for k in range(8)]
LABELS = ["ham", "spam"] * 4


def found(train=(TEXTS, LABELS), validation=None, test=None):
    given = {"train": train, "validation": validation, "test": test}
    splits = {name: pair for name, pair in given.items() if pair is not None}
    data = DatasetDict({name: Dataset.from_dict({"text": texts}) for name, (texts, _) in splits.items()})
    labels = {name: [row if isinstance(row, list) else [row] for row in rows] for name, (_, rows) in splits.items()}
    return check_data(data, labels, ["text"])


def test_clean_data():
    assert found(validation=(["other", "and another"], ["ham", "spam"]), test=(["third"], ["ham"])) == []


@pytest.mark.parametrize(
    "message, splits",
    [
        ("train split, rows 2, 3: blank text", {"train": (["a", "", "  \t", *TEXTS[3:]], LABELS)}),
        ("labels that differ only by case or blanks: 'Spam ' (2), 'spam' (3)", {"train": (TEXTS, ["ham", "spam", "ham", "spam", "Spam ", "spam", "ham", "Spam "])}),
        ("train split, rows 1, 3 and 2 more", {"train": (TEXTS, ["['a', 'b']", "spam"] * 4)}),
        ("a list of labels written as text", {"train": (TEXTS, ['["a","b"]', "spam"] * 4)}),
        ("validation split, row 1: the text is in the train split too", {"validation": (["text 3", "x"], ["ham", "spam"])}),
        ("train split, rows 1, 8: the same text has other labels elsewhere", {"train": ([*TEXTS[:7], "text 0"], LABELS)}),
        ("validation split, row 1: the same text has other labels elsewhere", {"validation": (["text 0", "x"], ["spam", "ham"])}),
        ("classes with one training example: 'eggs'", {"train": (TEXTS, [*LABELS[:7], "eggs"])}),
        ("classes without a validation example, so without validation results: 'spam'", {"validation": (["x"], ["ham"])}),
        ("classes with one training example: 'c'", {"train": (TEXTS, [["a", "b"], ["b", "a"]] * 3 + [["a", "c"], ["b"]])}),
    ],
)  # fmt: skip
def test_what_is_wrong(message, splits):
    shown = message.replace("rows 1, 3 and 2 more", "rows 1, 3, 5, 7")
    assert any(line.startswith(shown) or shown in line for line in found(**splits)), found(**splits)


def test_lists_as_text_are_no_classes():
    assert found(train=(TEXTS, [f"['a', {k}]" for k in range(8)])) == [
        "train split, rows 1, 2, 3, 4, 5 and 3 more: a list of labels written as text; in a json file it would be read as several labels"
    ]


def test_many_rows_are_counted():
    (line, *_) = found(train=([""] * 20, LABELS * 2 + ["ham", "spam"] * 2))
    assert line == "train split, rows 1, 2, 3, 4, 5 and 15 more: blank text"


def test_tokens_are_for_another_script():
    data = DatasetDict(train=Dataset.from_dict({"text": [["Ann", "likes"], ["tea"]]}))
    with pytest.raises(ValueError, match="lists of words, which are for run_token_classification.py"):
        check_data(data, {"train": [["a"], ["b"]]}, ["text"])


class TestFiles:
    """However a spreadsheet has written them."""

    def read(self, content, name="train.csv", **flags):
        with open(name, "wb") as file:
            file.write(content)
        arguments = DataArguments(train_file=name, **flags)
        return load_splits(arguments, None, None)["train"]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    def test_delimiters_and_encodings(self, delimiter, encoding):
        lines = [["id", "text", "label"], ["1", f'"Größe{delimiter} groß\nund mehr"', "süß"], ["2", "klein", "salzig"]]
        content = "\r\n".join(delimiter.join(line) for line in lines).encode(encoding)
        data = self.read(content)
        assert data["text"][:] == [f"Größe{delimiter} groß\nund mehr", "klein"] and data["label"][:] == [
            "süß",
            "salzig",
        ]
        assert data["id"][:] == [1, 2]

    def test_tsv(self):
        assert self.read(b"text\tlabel\na, b; c\tx\n", "train.tsv")["text"][:] == ["a, b; c"]

    def test_what_cannot_be_recognised_is_named(self):
        data = self.read(b"text~label\na~x\n", delimiter="~")
        assert data["label"][:] == ["x"]
        data = self.read("text,label\nё,x\n".encode("koi8-r"), encoding="koi8-r")
        assert data["text"][:] == ["ё"]
        with pytest.raises(
            ValueError, match="--train_file: train.csv cannot be read as csv .*--delimiter and --encoding"
        ):
            self.read(b'text,label\n"a,x\n')

    def test_what_excel_writes(self):
        assert self.read(b"sep=;\r\ntext;label\r\na, b;x\r\n")["text"][:] == ["a, b"]
        assert self.read(b"text;label\ra;x\rb;y\r")["label"][:] == ["x", "y"]
        assert self.read(b"text, label\na,x\n")["label"][:] == ["x"]

    def test_no_part_of_a_text_is_lost(self):
        """One more comma than the header has, which makes the first column the names of the rows for pandas."""
        with pytest.raises(
            ValueError, match="more fields than the header has names; put quotes around texts that contain ','"
        ):
            self.read(b"text,label\nlost one,kept,x\nlost two,kept,x\n")

    def test_what_is_not_unicode_is_said(self, caplog):
        with pytest.raises(ValueError, match="no byte order mark; try --encoding utf-16-le"):
            self.read("text,label\na,x\n".encode("utf-16-le"))
        from transformers.utils import logging

        logging.enable_propagation()
        try:
            self.read("text,label\ngroß,x\n".encode("cp1252"))
        finally:
            logging.disable_propagation()
        assert "--train_file train.csv: line 2 is not UTF-8" in caplog.text

    def test_words_and_tags_are_for_another_script(self):
        data = self.read(b'{"tokens": ["a"], "ner_tags": ["O"]}\n', "train.json")
        with pytest.raises(ValueError, match="no column .* use run_token_classification.py"):
            check_columns(DatasetDict(train=data), DataArguments(), ["train"])

    def test_labels_are_as_written(self):
        data = self.read(b"text,label,weight\nNA,01,0.5\nNone,1,2\n,NA,3\n")
        assert data["label"][:] == ["01", "1", "NA"] and data["text"][:] == ["NA", "None", ""]
        assert data["weight"][:] == [0.5, 2, 3]

    def test_integers_are_in_the_order_of_numbers(self):
        data = self.read(b"text,label\na,10\nb,9\nc,-1\n")
        assert class_names(data, "label", read_labels(data, "label")) == ["-1", "9", "10"]


def test_a_dataset_and_files_are_refused():
    with pytest.raises(
        ValueError, match="--dataset_name: expected a name or files, but got both 'imdb' and --train_file"
    ):
        DataArguments(dataset_name="imdb", train_file="a.csv")
