"""The example of token classification: from files to tags, in one process and in two."""

import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from exactness import tiny_model
from processes import run_in_two_processes
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import accuracy_score
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_texts import common_flags, counted_predictions, in_a_fresh_process, python_in, run
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from hf_focal.model_card import read_model_card


# Of a few sentences that a model has learned by heart.
pytestmark = [
    pytest.mark.filterwarnings("ignore:labels. (all predictions|the likelihood)"),
    pytest.mark.usefixtures("without_drawing"),
]
SCRIPT = "run_token_classification.py"
SENTENCES = [["Ann", "likes", "tea"], ["Bob", "and", "Ann", "run"], ["tea", "is", "hot"], ["Ann", "sees", "Oslo"]] * 4
TAGS = [["PER", "O", "O"], ["PER", "O", "PER", "O"], ["O", "O", "O"], ["PER", "O", "LOC"]] * 4
TAGS = [[tag if tag == "O" else f"B-{tag}" for tag in row] for row in TAGS]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny BERT and a tokenizer that splits words into characters, so that a word is several tokens."""
    folder = str(tmp_path_factory.mktemp("model"))
    characters = sorted({character for sentence in SENTENCES for word in sentence for character in word})
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(["[PAD]", "[UNK]", *characters])}, "[UNK]")
    )
    parts = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("", "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    tiny_model("tokens").save_pretrained(folder)
    return folder


def write_json(path, tags=TAGS, sentences=SENTENCES):
    pd.DataFrame({"tokens": sentences, "ner_tags": tags}).to_json(path, orient="records", lines=True)
    return path


def test_train_and_predict_from_strings(model_folder, capsys):
    file = write_json("data.json")
    run(
        SCRIPT,
        *common_flags(model_folder),
        *("--train_file", file, "--validation_file", file, "--test_file", file, "--focal_alpha", "inverse"),
        *("--do_train", "--do_eval", "--do_predict"),
    )
    config = AutoConfig.from_pretrained("out")
    assert list(config.id2label.values()) == ["B-LOC", "B-PER", "O"]
    assert config.focal_loss["label_counts"] == [4, 16, 32]  # one label per word, however many tokens it has
    assert {"eval_entity_f1_micro", "eval_f1_macro"} <= json.loads(Path("out/eval_results.json").read_text()).keys()
    rows = pd.read_csv("out/predict_results.txt", sep="\t")
    assert rows.groupby("index")["word"].apply(list).tolist() == SENTENCES
    printed = capsys.readouterr().out
    assert "f1-score" in printed and "To report only entities with enough confidence" in printed
    assert "pipeline_class=FocalTokenClassificationPipeline, aggregation_strategy='first'" in python_in(printed)
    exec(python_in(printed), {})
    assert capsys.readouterr().out.startswith("[")


def test_class_labels_and_unlabelled_test_data(model_folder):
    names = ["O", "B-PER", "B-LOC", "B-ORG"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    Dataset.from_dict({"tokens": SENTENCES, "ner_tags": TAGS}, features=features).to_parquet("data/train.parquet")
    Dataset.from_dict({"tokens": SENTENCES}).to_parquet("test.parquet")
    run(
        SCRIPT,
        *common_flags(model_folder),
        "--dataset_name",
        "data",
        "--do_train",
        "--loss",
        "cross_entropy",
        "--ignore_mismatched_sizes",
    )
    config = AutoConfig.from_pretrained("out")
    assert list(config.id2label.values()) == names and config.focal_loss["gamma"] == 0
    run(SCRIPT, *common_flags("out", "predicted"), "--test_file", "test.parquet", "--do_predict")
    assert pd.read_csv("predicted/predict_results.txt", sep="\t")["index"].nunique() == len(SENTENCES)


def test_the_card_is_that_of_the_test_split(model_folder, monkeypatch):
    lengths = counted_predictions(monkeypatch)
    train, test = write_json("train.json"), write_json("test.json", TAGS[:10], SENTENCES[:10])
    files = ["--train_file", train, "--validation_file", train, "--test_file", test]
    run(SCRIPT, *common_flags(model_folder), *files, "--do_train", "--do_eval", "--do_predict")
    assert lengths == [len(SENTENCES), 10]
    card, results = read_model_card("out/README.md"), json.loads(Path("out/test_results.json").read_text())
    assert (card.dataset_split, card.num_examples, card.dataset_name) == ("test", 10, "train.json, test.json")
    assert card.metrics["entity_f1_micro"] == [results["test_entity_f1_micro"]]
    assert card.metrics["accuracy"] == [pytest.approx(results["test_accuracy"])]


@pytest.mark.parametrize("point", ["as_trained", "balanced"])
def test_report_files_and_card_say_what_the_pipeline_does(model_folder, capsys, point):
    """Each number again, by the pipeline of the saved model in a fresh process."""
    file = write_json("data.json")
    flags = ["--train_file", file, "--validation_file", file, "--test_file", file, "--operating_point", point]
    run(SCRIPT, *common_flags(model_folder), *flags, "--do_train", "--do_predict", "--focal_alpha", "inverse")
    printed = capsys.readouterr().out
    rows = pd.read_csv("out/predict_results.txt", sep="\t")
    texts = [" ".join(sentence) for sentence in SENTENCES]
    found = in_a_fresh_process("FocalTokenClassificationPipeline", "token-classification", texts, ignore_labels=[])
    # A token is a character, so the first of a word is at the start or after a blank.
    firsts = [
        (row, token["entity"], token["score"])
        for row, (text, tokens) in enumerate(zip(texts, found))
        for token in tokens
        if f" {text}"[token["start"]] == " "
    ]
    expected = pd.DataFrame(firsts, columns=["index", "prediction", "probability"])
    pd.testing.assert_frame_equal(rows.drop(columns="word"), expected, atol=1e-5, rtol=0)

    tags = [tag for row in TAGS for tag in row]
    results, card = json.loads(Path("out/test_results.json").read_text()), read_model_card("out/README.md")
    sentences = rows.groupby("index")["prediction"].apply(list).tolist()
    entities = seqeval_f1(TAGS, sentences)
    of_tokens = {"accuracy": accuracy_score(tags, rows["prediction"]), "entity_f1_micro": entities}
    line = next(line for line in reversed(printed.splitlines()) if line.startswith(f"{point} (in force)"))
    for name, value in of_tokens.items():
        assert results[f"test_{name}"] == pytest.approx(value) and card.metrics[name] == [pytest.approx(value)]
        assert f"{value:.3f}" in line
    assert results["test_operating_points"][point]["accuracy"][0] == pytest.approx(of_tokens["accuracy"])


def test_first_token_of_a_word_bears_its_tag(model_folder):
    from run_token_classification import encode

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    batch = {"tokens": [["Ann", "is", "hot"]], "labels": [[1, 0, 2]]}
    (labels,) = encode(batch, tokenizer, max_length=6, words="tokens")["labels"]
    assert labels.tolist() == [1, -100, -100, 0, -100, 2]
    # A word that has no token leaves the others their tags.
    batch = {"tokens": [["Ann", " ", "is", "hot"]], "labels": [[1, 3, 0, 2]]}
    (labels,) = encode(batch, tokenizer, max_length=6, words="tokens")["labels"]
    assert labels.tolist() == [1, -100, -100, 0, -100, 2]


def test_two_processes(model_folder):
    file = write_json("data.json")
    flags = [*common_flags(model_folder), "--train_file", file, "--test_file", file, "--do_train", "--do_predict"]
    run_in_two_processes(run, SCRIPT, *flags)
    # 2 epochs of 16 sentences in batches of 4 are 8 steps in one process.
    assert json.loads(Path("out/trainer_state.json").read_text())["global_step"] == 4
    assert pd.read_csv("out/predict_results.txt", sep="\t")["index"].nunique() == len(SENTENCES)


@pytest.mark.parametrize(
    "message, data",
    [
        ("row 1 of the train split has 4 words, but 3 tags", {"tags": [row[:3] for row in TAGS]}),
        ("column 'ner_tags' of the train split: expected lists of strings or integers", {"tags": ["O"] * 16}),
    ],
)
def test_refuses(model_folder, message, data):
    file = write_json("data.json", **data)
    with pytest.raises(ValueError, match=message):
        run(SCRIPT, *common_flags(model_folder), "--train_file", file, "--do_train")


def test_refuses_tags_that_were_not_trained(model_folder):
    train, test = write_json("train.json"), write_json("test.json", [["B-ORG"] * len(row) for row in TAGS])
    flags = ["--train_file", train, "--test_file", test, "--do_train", "--do_predict"]
    with pytest.raises(ValueError, match="the test split has tags that are not in the training data: .'B-ORG'"):
        run(SCRIPT, *common_flags(model_folder), *flags)
