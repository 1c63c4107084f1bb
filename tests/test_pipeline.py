"""The pipeline decides as `decide` does, shows the posteriors of a trained folder, and otherwise behaves as the stock one."""

import json

import pytest
import torch
from exactness import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from hf_focal import FocalTextClassificationPipeline, decide, operating_point_scores, posterior_from_config


WORDS = [f"w{i}" for i in range(28)]
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11"]
SETTINGS = {"gamma": 2.0, "alpha": [0.4, 1.0, 4.0], "class_prior": [0.7, 0.2, 0.1], "temperature": 0.5}


def saved_model(folder, multi_label=False, num_labels=3, **settings):
    problem_type = f"{'multi' if multi_label else 'single'}_label_classification"
    model = tiny_model(num_labels=num_labels, problem_type=problem_type)
    if settings:
        model.config.focal_loss = settings
    with torch.no_grad():  # so that texts are told apart
        model.bert.embeddings.word_embeddings.weight.mul_(50)
        model.classifier.weight.mul_(500)
    model.config.id2label = dict(enumerate(["ham", "spam", "eggs"][:num_labels]))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    )
    fast.save_pretrained(folder)
    return str(folder)


def load(folder, **kwargs):
    return pipeline("text-classification", model=folder, pipeline_class=FocalTextClassificationPipeline, **kwargs)


def by_label(results):
    return {result["label"]: result["score"] for result in results}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"), **SETTINGS)


@pytest.fixture(scope="module")
def multi_label_folder(tmp_path_factory):
    settings = {**SETTINGS, "alpha": [0.3, 0.8, 0.9], "thresholds": [0.2, 0.5, 0.7]}
    return saved_model(tmp_path_factory.mktemp("model"), multi_label=True, **settings)


CHOSEN = [{}, {"operating_point": "most_likely"}, {"operating_point": "balanced"}, {"prior": [0.1, 0.1, 0.8]}]


@pytest.mark.parametrize("chosen", [*CHOSEN, {"costs": [[0, 1, 1], [9, 0, 1], [99, 9, 0]]}])
@pytest.mark.parametrize("kind", ["folder", "multi_label_folder"])
def test_decisions_and_posteriors_are_those_of_the_functions(request, kind, chosen):
    if kind == "multi_label_folder" and "costs" in chosen:
        pytest.skip("costs are for one class per example")
    path = request.getfixturevalue(kind)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    classify = load(path, top_k=None)
    assert len({results[0]["label"] for results in classify(TEXTS)}) > 1  # otherwise it would show little
    for text, results in zip(TEXTS, classify(TEXTS, **chosen)):
        with torch.no_grad():
            logits = model(**classify.tokenizer(text, return_tensors="pt")).logits
        posterior = posterior_from_config(logits, model.config)
        if "prior" in chosen:
            posterior = operating_point_scores(posterior, model.config, **chosen)
        expected = {model.config.id2label[k]: posterior[0, k].item() for k in range(3)}
        assert by_label(results) == pytest.approx(expected, rel=1e-5)
        (decided,) = decide(logits, model.config, **chosen)
        if kind == "folder":
            assert results[0]["label"] == model.config.id2label[decided.item()]
        else:
            of_names = {result["label"]: result["decided"] for result in results}
            assert of_names == {model.config.id2label[k]: bool(decided[k]) for k in range(3)}


def test_recorded_operating_point_is_in_force(tmp_path):
    settings = {**SETTINGS, "class_prior": [0.01, 0.01, 0.98]}
    recorded = load(saved_model(tmp_path / "recorded", **settings, operating_point="balanced"))
    folder = saved_model(tmp_path / "not", **settings)
    stock, classify = pipeline("text-classification", model=folder), load(folder)
    assert recorded(WORDS) == classify(WORDS, operating_point="balanced")
    # As trained is the decision of every pipeline, and another one.
    labels = [[result["label"] for result in results(WORDS)] for results in (classify, stock, recorded)]
    assert labels[0] == labels[1] != labels[2]


def test_several_labels_are_all_that_are_decided(multi_label_folder):
    classify = load(multi_label_folder)
    for some, every in zip(classify(WORDS), classify(WORDS, top_k=None)):
        decided = [{k: v for k, v in result.items() if k != "decided"} for result in every if result["decided"]]
        assert some == decided
    assert {len(results) for results in classify(WORDS)} >= {1, 2}


def test_too_little_confidence(folder, multi_label_folder):
    for sure, unsure in zip(load(folder)(WORDS), load(folder, min_confidence=0.9)(WORDS)):
        assert unsure == (sure if sure["score"] >= 0.9 else {**sure, "label": None})
    assert {result["label"] is None for result in load(folder)(WORDS, min_confidence=0.9)} == {True, False}
    for results in load(multi_label_folder)(WORDS, min_confidence=0.9):
        assert all(result["score"] >= 0.9 for result in results)


def test_operating_point_of_the_pipeline_and_of_a_call(folder):
    balanced = load(folder, operating_point="balanced", top_k=None)
    assert balanced(TEXTS) == load(folder, top_k=None)(TEXTS, operating_point="balanced")
    assert balanced(TEXTS) != load(folder, top_k=None)(TEXTS)


def test_prior_by_label(folder):
    classify = load(folder, top_k=None)
    prior = {"eggs": 0.8, "ham": 0.15, "spam": 0.05}
    assert classify(TEXTS, prior=prior) == classify(TEXTS, prior=[0.15, 0.05, 0.8])


def test_thresholds(multi_label_folder):
    classify = load(multi_label_folder, top_k=None)
    for results in classify(TEXTS, operating_point="thresholds"):
        for result in results:
            threshold = {"ham": 0.2, "spam": 0.5, "eggs": 0.7}[result["label"]]
            assert result["decided"] == (result["score"] >= threshold)


@pytest.mark.parametrize("top_k", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}])
@pytest.mark.parametrize("inputs", [TEXTS[0], TEXTS, {"text": "w1", "text_pair": "w2"}])
def test_shape_of_the_results_is_that_of_the_stock_pipeline(folder, inputs, top_k):
    def shape(results):
        return [shape(result) for result in results] if isinstance(results, list) else "result"

    stock = pipeline("text-classification", model=folder)
    assert shape(load(folder)(inputs, **top_k)) == shape(stock(inputs, **top_k))


def test_batching_and_truncation(folder):
    classify = load(folder, top_k=None)
    for one, batched in zip(classify(TEXTS), classify(TEXTS, batch_size=3)):
        assert by_label(one).keys() == by_label(batched).keys()
    long = " ".join(WORDS * 40)
    assert classify(long, truncation=True, max_length=6) == classify(" ".join(WORDS[:6]))
    # Without a word of it, at the 512 positions of the model.
    assert classify(long) == classify(" ".join((WORDS * 40)[:512]))
    with pytest.raises(Exception):
        classify(long, truncation=False)


def test_half_precision_model(folder):
    results = load(folder, dtype=torch.bfloat16, top_k=None)(TEXTS)
    for half, full in zip(results, load(folder, top_k=None)(TEXTS)):
        assert by_label(half) == pytest.approx(by_label(full), abs=0.05)


@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("operating_point: expected one of", {"operating_point": "best"}),
        ("target_prior: expected probabilities that sum to 1", {"prior": [0.5, 0.5, 0.5]}),
        ("prior: expected a frequency for each of .*'ham'", {"prior": {"ham": 1.0}}),
        ("config: focal_loss holds no thresholds", {"operating_point": "thresholds"}),
        ("function_to_apply: the scores are posteriors", {"function_to_apply": "softmax"}),
    ],
)
def test_wrong_arguments_are_refused_before_any_text(folder, message, kwargs):
    with pytest.raises(ValueError, match=message):
        load(folder, **kwargs)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    path = saved_model(tmp_path, **SETTINGS)
    nothing = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]"))
    of_special_tokens = PreTrainedTokenizerFast(tokenizer_object=nothing, pad_token="[PAD]", unk_token="[UNK]")
    with pytest.raises(ValueError, match="tokenizer: it knows 2 tokens, all special.*save the model's own"):
        load(path, tokenizer=of_special_tokens)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *(f"v{i}" for i in range(100))])}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "[UNK]")), unk_token="[UNK]")
    with pytest.raises(ValueError, match="tokenizer: it has 102 tokens, but the model only 30"):
        load(path, tokenizer=other)


def test_names_go_by_their_ids(tmp_path):
    """Whatever the order in which a file holds them."""
    path = saved_model(tmp_path, **SETTINGS)
    expected = load(path)(WORDS)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = dict(reversed(config["id2label"].items()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(path)(WORDS) == expected and len({result["label"] for result in expected}) > 1


def test_unnamed_classes_are_explained(tmp_path):
    path = saved_model(tmp_path, **SETTINGS)
    config = AutoConfig.from_pretrained(path)
    config.id2label = {k: f"LABEL_{k}" for k in range(3)}
    config.save_pretrained(path)
    with pytest.warns(UserWarning, match="does not name its classes, so they are LABEL_0.*id2label"):
        load(path)


def test_model_without_settings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config: expected the settings that FocalTrainer stores under focal_loss"):
        load(saved_model(tmp_path))
