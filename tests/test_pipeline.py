"""The pipeline decides as `decide` does, shows the posteriors of a trained folder, and otherwise behaves as the stock one."""

import json

import pytest
import torch
from exactness import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_focal import (
    FocalSettings,
    FocalTextClassificationPipeline,
    FocalTokenClassificationPipeline,
    decide,
    operating_point_scores,
    posterior_from_config,
)


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


def test_a_call_wins_over_what_the_pipeline_was_made_with(folder):
    prior = {"ham": 0.1, "spam": 0.1, "eggs": 0.8}
    plain, balanced, shifted = load(folder), load(folder, operating_point="balanced"), load(folder, prior=prior)
    assert balanced(TEXTS, prior=prior) == plain(TEXTS, prior=prior) == shifted(TEXTS)
    assert shifted(TEXTS, operating_point="balanced") == balanced(TEXTS)
    costs = [[0, 1, 1], [9, 0, 1], [99, 9, 0]]
    assert balanced(TEXTS, costs=costs) == plain(TEXTS, costs=costs)
    with pytest.raises(ValueError, match="operating point itself"):
        plain(TEXTS, prior=prior, operating_point="balanced")


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
        ("^prior: expected probabilities that sum to 1", {"prior": [0.5, 0.5, 0.5]}),
        ("prior: expected a frequency for each of .*'ham'", {"prior": {"ham": 1.0}}),
        ("operating_point: 'thresholds' is for two classes or several labels", {"operating_point": "thresholds"}),
        ("cost: there is no such argument; did you mean 'costs'", {"cost": [[0, 1], [9, 0]]}),
        ("min_confidance: there is no such argument", {"min_confidance": 0.9}),
        ("min_confidence: expected a finite number", {"min_confidence": "0.9"}),
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


TAGS = ["O", "B-LOC", "I-LOC", "B-PER"]
TOKEN_SETTINGS = {**SETTINGS, "alpha": [0.2, 1.0, 3.0, 2.0], "class_prior": [0.7, 0.1, 0.1, 0.1]}


def saved_token_model(folder, tags=TAGS, **settings):
    """Its words are of one token or of several: "w1" is "w" and "##1"."""
    model = tiny_model("tokens", num_labels=len(tags))
    model.config.id2label = dict(enumerate(tags))
    if settings:
        model.config.focal_loss = settings
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(50)
        model.classifier.weight.mul_(100)
    model.save_pretrained(folder)
    pieces = ["w", "ab", "ba", *map(str, range(10)), *(f"##{k}" for k in range(10)), "##ab"]
    vocabulary = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    )
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def token_folder(tmp_path_factory):
    return saved_token_model(tmp_path_factory.mktemp("tokens"), **TOKEN_SETTINGS)


@pytest.fixture(scope="module")
def plain_token_folder(tmp_path_factory):
    return saved_token_model(tmp_path_factory.mktemp("plain"), gamma=0.0)


class TestTokens:
    TEXTS = ["w1 ab w23 ba", "w321 w1 w2 w3 ab ab w12", "ba w2 w1ab"]
    STRATEGIES = ["none", "simple", "first", "average", "max"]

    def load(self, folder, **kwargs):
        return pipeline("token-classification", folder, pipeline_class=FocalTokenClassificationPipeline, **kwargs)

    def stock(self, folder, **kwargs):
        return pipeline("token-classification", folder, **kwargs)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("call", [{}, {"ignore_labels": []}, {"ignore_labels": ["LOC", "B-LOC"]}])
    def test_cross_entropy_is_the_stock_pipeline(self, plain_token_folder, strategy, call):
        """To the last digit."""
        stock, find = (make(plain_token_folder, aggregation_strategy=strategy) for make in (self.stock, self.load))
        for texts in (self.TEXTS, self.TEXTS[0]):
            expected, found = stock(texts, **call), find(texts, **call)
            assert found == expected and expected
        names = {entity.get("entity_group", entity.get("entity")) for row in stock(self.TEXTS) for entity in row}
        assert names > {"B-LOC" if strategy == "none" else "LOC"}

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_as_trained_finds_what_the_stock_pipeline_finds(self, token_folder, strategy):
        stock, find = (make(token_folder, aggregation_strategy=strategy) for make in (self.stock, self.load))
        expected, found = stock(self.TEXTS), find(self.TEXTS)
        without_scores = [
            [[{**entity, "score": None} for entity in row] for row in results] for results in (expected, found)
        ]
        assert without_scores[0] == without_scores[1]
        scores = [[entity["score"] for row in results for entity in row] for results in (expected, found)]
        assert max(abs(a - b) for a, b in zip(*scores)) > 0.1  # a posterior is not the softmax

    @pytest.mark.parametrize(
        "chosen",
        [*CHOSEN[:3], {"prior": [0.1, 0.2, 0.3, 0.4]}, {"costs": [[0, 1, 1, 1], *[[9, 0, 0, 0]] * 3]}],
    )
    def test_decisions_and_posteriors_are_those_of_the_functions(self, token_folder, chosen):
        model = AutoModelForTokenClassification.from_pretrained(token_folder).eval()
        find = self.load(token_folder, ignore_labels=[])
        for text, results in zip(self.TEXTS, find(self.TEXTS, **chosen)):
            with torch.no_grad():
                (logits,) = model(**find.tokenizer(text, return_tensors="pt")).logits
            posterior = posterior_from_config(logits, model.config)
            if "prior" in chosen:
                posterior = operating_point_scores(posterior, model.config, **chosen)
            decided = decide(logits, model.config, **chosen)
            assert [result["entity"] for result in results] == [TAGS[k] for k in decided]
            expected = posterior.gather(-1, decided[:, None])[:, 0].tolist()
            assert [result["score"] for result in results] == pytest.approx(expected, rel=1e-5)

    def test_a_prior_by_label_and_a_recorded_operating_point(self, token_folder, tmp_path):
        shares = {"B-PER": 0.4, "O": 0.3, "B-LOC": 0.2, "I-LOC": 0.1}
        find = self.load(token_folder)
        assert find(self.TEXTS, prior=shares) == find(self.TEXTS, prior=[0.3, 0.2, 0.1, 0.4])
        recorded = self.load(saved_token_model(tmp_path, **TOKEN_SETTINGS, operating_point="balanced"))
        assert recorded(self.TEXTS) == find(self.TEXTS, operating_point="balanced") != find(self.TEXTS)

    @pytest.mark.parametrize("strategy, name", [("average", "mean"), ("max", "max"), ("first", "first")])
    def test_words_are_aggregated_by_what_decides(self, token_folder, strategy, name):
        """The word decides as its tokens do together, and its score is the probability of that."""
        find = self.load(token_folder, ignore_labels=[], operating_point="balanced")
        model = AutoModelForTokenClassification.from_pretrained(token_folder).eval()
        with torch.no_grad():
            (logits,) = model(**find.tokenizer("w321", return_tensors="pt")).logits
        posterior = posterior_from_config(logits, model.config)
        scores = operating_point_scores(posterior, model.config, "balanced")
        assert len(scores) == 4
        clearest = scores.amax(-1).argmax()
        decides, shown = {
            "mean": (scores.mean(0), posterior.mean(0)),
            "max": (scores[clearest], posterior[clearest]),
            "first": (scores[0], posterior[0]),
        }[name]
        (result,) = find("w321", aggregation_strategy=strategy)
        k = decides.argmax()
        assert result["entity_group"] == TAGS[k].split("-")[-1]
        assert result["score"] == pytest.approx(shown[k].item(), rel=1e-5)
        assert result["word"] == "w321" and (result["start"], result["end"]) == (0, 4)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_only_what_is_sure_enough_is_reported(self, token_folder, strategy):
        find = self.load(token_folder, aggregation_strategy=strategy)
        every = find(self.TEXTS)
        scores = sorted(entity["score"] for row in every for entity in row)
        cutoff = scores[len(scores) // 2]
        expected = [[entity for entity in row if entity["score"] >= cutoff] for row in every]
        assert find(self.TEXTS, min_confidence=cutoff) == expected != every
        assert self.load(token_folder, aggregation_strategy=strategy, min_confidence=cutoff)(self.TEXTS) == expected

    def test_long_texts_are_cut_or_read_in_parts(self, plain_token_folder):
        long = " ".join(["ab w1 ba w23"] * 200)
        find = self.load(plain_token_folder, aggregation_strategy="first")
        find.tokenizer.model_max_length = 10**30  # as where nobody has said it
        stock = self.stock(plain_token_folder, aggregation_strategy="first")
        assert find(long) == stock(long) and max(entity["end"] for entity in find(long)) < 1400
        read = find(long, stride=64)
        assert read == stock(long, stride=64) and max(entity["end"] for entity in read) > 2300

    def test_words_that_are_already_split(self, plain_token_folder):
        stock, find = (make(plain_token_folder, aggregation_strategy="first") for make in (self.stock, self.load))
        words = ["w1", "ab", "w23"]
        assert find(words, is_split_into_words=True) == stock(words, is_split_into_words=True)

    def test_half_precision_and_batches(self, token_folder):
        half = self.load(token_folder, dtype=torch.bfloat16, ignore_labels=[])(self.TEXTS)
        full = self.load(token_folder, ignore_labels=[])
        assert [len(row) for row in half] == [len(row) for row in full(self.TEXTS)]
        one, batched = full(self.TEXTS), full(self.TEXTS, batch_size=3)
        assert [[entity["entity"] for entity in row] for row in one] == [
            [entity["entity"] for entity in row[: len(of_one)]] for row, of_one in zip(batched, one)
        ]
        json.dumps(one)

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            ("operating_point: expected one of", {"operating_point": "best"}),
            ("prior: expected a frequency for each of .*'B-LOC'", {"prior": {"O": 1.0}}),
            ("min_confidence: expected a finite number in .0, 1., but got 80", {"min_confidence": 80}),
            ("operating_point: 'thresholds' is for two classes or several labels", {"operating_point": "thresholds"}),
        ],
    )
    def test_wrong_arguments_are_refused_before_any_text(self, token_folder, message, kwargs):
        with pytest.raises(ValueError, match=message):
            self.load(token_folder, **kwargs)

    def test_models_that_are_refused_or_explained(self, tmp_path, token_folder):
        with pytest.raises(ValueError, match="config: expected the settings that FocalTrainer stores"):
            self.load(saved_token_model(tmp_path / "without"))
        unnamed = saved_token_model(tmp_path / "unnamed", tags=[f"LABEL_{k}" for k in range(4)], gamma=2.0)
        with pytest.warns(UserWarning, match="does not name its classes, so they are LABEL_0"):
            self.load(unnamed)
        model = AutoModelForTokenClassification.from_pretrained(token_folder)
        model.config.problem_type = "multi_label_classification"
        with pytest.raises(ValueError, match="model: expected one label per token"):
            self.load(model, tokenizer=token_folder)
        nothing = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]"))
        special = PreTrainedTokenizerFast(tokenizer_object=nothing, pad_token="[PAD]", unk_token="[UNK]")
        with pytest.raises(ValueError, match="tokenizer: it knows 2 tokens, all special"):
            self.load(token_folder, tokenizer=special)


@pytest.fixture(scope="module")
def saved_adapter(tmp_path_factory):
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    base = saved_model(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    adapted.save_pretrained(folder / "adapter")
    FocalSettings(**SETTINGS).store_in_folder(folder / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "adapter")
    return folder


class TestAdapters:
    """A PEFT model knows neither its adapter's folder nor, from there, the settings that are beside the adapter."""

    def expected(self, folder):
        model = AutoModelForSequenceClassification.from_pretrained(folder / "base")
        FocalSettings(**SETTINGS).store_in(model.config)
        return load(model, tokenizer=str(folder / "base"))(TEXTS)  # an adapter that is new changes nothing

    def test_a_folder(self, saved_adapter):
        adapter = str(saved_adapter / "adapter")
        assert load(adapter, adapter=adapter)(TEXTS) == self.expected(saved_adapter)

    def test_a_peft_model(self, saved_adapter):
        import peft

        adapter = saved_adapter / "adapter"
        base = AutoModelForSequenceClassification.from_pretrained(saved_adapter / "base")
        model = peft.PeftModel.from_pretrained(base, adapter)
        found = load(model, tokenizer=str(adapter), adapter=adapter)(TEXTS)
        assert found == self.expected(saved_adapter)

    def test_they_win_over_those_of_the_base(self, saved_adapter):
        import peft

        base = AutoModelForSequenceClassification.from_pretrained(saved_adapter / "base")
        FocalSettings(gamma=0.0).store_in(base.config)
        model = peft.PeftModel.from_pretrained(base, saved_adapter / "adapter")
        tokenizer = str(saved_adapter / "base")
        assert load(model, tokenizer=tokenizer)(TEXTS) != self.expected(saved_adapter)
        assert load(model, tokenizer=tokenizer, adapter=saved_adapter / "adapter")(TEXTS) == self.expected(
            saved_adapter
        )

    def test_one_on_the_hub(self, saved_adapter, monkeypatch):
        import peft

        def download(name, file, **kwargs):
            assert name == "me/my-adapter"
            return str(saved_adapter / "adapter" / file)

        monkeypatch.setattr("hf_focal.settings.hf_hub_download", download)
        base = AutoModelForSequenceClassification.from_pretrained(saved_adapter / "base")
        model = peft.PeftModel.from_pretrained(base, saved_adapter / "adapter")
        found = load(model, tokenizer=str(saved_adapter / "base"), adapter="me/my-adapter")(TEXTS)
        assert found == self.expected(saved_adapter)

    def test_without_it_the_error_says_what_to_pass(self, saved_adapter):
        with pytest.raises(ValueError, match="adapter: expected the folder or the Hub id .*adapter=folder"):
            load(str(saved_adapter / "adapter"))
        with pytest.raises(ValueError, match="base: expected focal_loss.json, which FocalTrainer writes"):
            load(str(saved_adapter / "adapter"), adapter=saved_adapter / "base")
