"""After a fold the stock softmax or sigmoid, of the saved weights alone, is the calibrated posterior."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from exactness import tiny_dataset, tiny_model
from test_trainer import make_trainer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_focal import (
    FocalSettings,
    FocalTextClassificationPipeline,
    calibrate_config,
    decide,
    fold_calibration,
    posterior_from_config,
    unfold_calibration,
)
from hf_focal.folding import check_folded_weights, find_head
from hf_focal.operating_points import decision_scores


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
OTHERS = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "vocab_size": 40},
    "albert": {**SIZES, "embedding_size": 16},
    "electra": {**SIZES, "embedding_size": 16},
    "longformer": {**SIZES, "attention_window": 4},
    "bart": {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 40, "max_position_embeddings": 64,
        "decoder_start_token_id": 2, "forced_eos_token_id": None,
    },
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 40},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 64},
    "llama": {**SIZES, "num_key_value_heads": 2},
    "qwen2": {**SIZES, "num_key_value_heads": 2},
}  # fmt: skip
WITH_BIAS = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "electra", "albert", "mpnet", "longformer"]
SEQUENCES = [*WITH_BIAS, "bart"]
TOKENS = [*WITH_BIAS, "t5"]
WITHOUT_BIAS = ["gpt2", "llama", "qwen2"]
WORDS = ["ball", "goal", "bank", "share", "king", "queen"]


def make(kind, task, num_labels=3, multi_label=False, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **OTHERS.get(kind, SIZES),
        num_labels=num_labels,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=2,
        cls_token_id=2,
        sep_token_id=2,
        problem_type=f"{'multi' if multi_label else 'single'}_label_classification",
        id2label={k: f"class {k}" for k in range(num_labels)},
    )
    auto = AutoModelForTokenClassification if task == "token-classification" else AutoModelForSequenceClassification
    model = auto.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    FocalSettings(**{"gamma": 0.0, **settings}).store_in(model.config)
    return model


def save_tokenizer(folder):
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        model_max_length=60,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return fast


STOCK = """
import json, sys
sys.modules["hf_focal"] = None  # not importable
from transformers import pipeline
found = {}
for folder, task, function in json.loads(sys.argv[1]):
    more = {"top_k": None} if task == "text-classification" else {"ignore_labels": []}
    pipe = pipeline(task, model=folder, **more)
    results = pipe(["ball bank", "king queen share"])
    if task == "text-classification":
        found[folder] = [{r["label"]: r["score"] for r in row} for row in results]
    else:
        found[folder] = [[[r["entity"], float(r["score"])] for r in row] for row in results]
print(json.dumps(found))
"""


def test_the_stock_pipeline_of_every_kind_of_model(tmp_path):
    """Saved, and read in a process that does not know this package."""
    alpha = [0.4, 1.0, 5.0]
    cases, expected = [], {}
    tasks = [("text-classification", kind, multi) for kind in SEQUENCES for multi in (False, True)]
    for task, kind, multi_label in [*tasks, *(("token-classification", kind, False) for kind in TOKENS)]:
        folder = str(tmp_path / f"{kind}_{task}_{multi_label}")
        weights = [[1.0, 1.0, 2.0], alpha] if multi_label else alpha
        calibrated = {"temperature": 1.3, "calibration_bias": [0.2, 0.0, -0.4]}
        model = make(kind, task, multi_label=multi_label, alpha=weights, **calibrated)
        tokenizer = save_tokenizer(folder)
        rows = []
        for text in ("ball bank", "king queen share"):
            with torch.no_grad():
                logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
            rows.append(posterior_from_config(logits, model.config))
        found = fold_calibration(model)
        assert found["exact"]
        model.save_pretrained(folder)
        cases.append((folder, task, multi_label))
        expected[folder] = rows
    command = [sys.executable, "-c", STOCK, json.dumps(cases)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    of_stock = json.loads(result.stdout.splitlines()[-1])
    for folder, task, _ in cases:
        for row, posterior in zip(of_stock[folder], expected[folder]):
            if task == "text-classification":
                scores = torch.tensor([row[f"class {k}"] for k in range(3)], dtype=torch.float64)
                torch.testing.assert_close(scores, posterior, atol=1e-6, rtol=0, msg=folder)
            else:
                best = posterior[:-1].max(-1)  # without the end of the sentence
                assert [label for label, _ in row] == [f"class {k}" for k in best.indices.tolist()]
                scores = torch.tensor([score for _, score in row], dtype=torch.float64)
                torch.testing.assert_close(scores, best.values, atol=1e-6, rtol=0, msg=folder)


@pytest.mark.parametrize("kind", WITHOUT_BIAS)
def test_heads_without_biases_take_a_scale_alone(kind):
    model = make(kind, "text-classification", temperature=2.0)
    ids = torch.tensor([[3, 4, 2]])
    before = posterior_from_config(model(ids).logits, model.config)
    assert fold_calibration(model)["exact"]
    torch.testing.assert_close(model(ids).logits.softmax(-1), before, atol=1e-6, rtol=0)
    model = make(kind, "text-classification", alpha=[1.0, 2.0, 3.0])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no bias, which is needed for alpha"):
        fold_calibration(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.config.focal_loss["folded"] is None


def logits_and_labels(model, num_examples=1500, sharpness=0.5):
    """Random texts, and labels drawn from what softmax or sigmoid makes of a multiple of their logits."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40, (num_examples, 6), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    wide = sharpness * logits
    if model.config.problem_type.startswith("multi"):
        return logits, wide.sigmoid().bernoulli(generator=generator), ids
    return logits, wide.softmax(-1).multinomial(1, generator=generator)[:, 0], ids


class TestNotLinear:
    @pytest.mark.parametrize("multi_label", [False, True])
    def test_labels_make_it_likelier_than_softmax(self, multi_label):
        model = make("bert", "text-classification", multi_label=multi_label, gamma=2.0)
        logits, labels, ids = logits_and_labels(model)
        found = fold_calibration(model, logits, labels)
        assert not found["exact"] and found["negative_log_likelihood_after"] < found["negative_log_likelihood_before"]
        assert 0.5 < found["equal_decisions"] <= 1
        with torch.no_grad():
            after = model(input_ids=ids).logits.double()
        torch.testing.assert_close(after, logits * found["scale"] + torch.tensor(found["bias"]), atol=1e-5, rtol=0)
        posterior = posterior_from_config(after, model.config)
        stock = after.sigmoid() if multi_label else after.softmax(-1)
        torch.testing.assert_close(posterior, stock)
        stock_nll = torch.nn.functional.binary_cross_entropy(stock, labels) if multi_label else None
        expected = stock_nll if multi_label else torch.nn.functional.nll_loss(stock.log(), labels)
        assert found["negative_log_likelihood_after"] == pytest.approx(expected.item(), rel=1e-4)

    def test_a_class_without_held_out_examples_has_the_probability_of_the_formula(self):
        model = make("bert", "text-classification", gamma=2.0, alpha=[0.5, 1.0, 3.0], class_prior=[0.6, 0.3, 0.1])
        logits, labels, ids = logits_and_labels(model)
        logits, ids, labels = logits[labels != 2], ids[labels != 2], labels[labels != 2]
        expected = posterior_from_config(logits, model.config)[:, 2].mean().item()
        with pytest.warns(UserWarning, match="no held-out examples of 1 classes, such as id 2"):
            fold_calibration(model, logits, labels)
        with torch.no_grad():
            after = model(input_ids=ids).logits.softmax(-1)
        assert after[:, 2].mean().item() == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_without_labels_it_is_as_near_as_a_linear_layer_comes(self, multi_label):
        model = make("bert", "text-classification", multi_label=multi_label, gamma=2.0)
        logits, *_ = logits_and_labels(model)
        before = posterior_from_config(logits, model.config)
        with pytest.warns(UserWarning, match="without held-out labels the fold is fitted to the formula"):
            found = fold_calibration(model, logits)
        after = logits * found["scale"] + torch.tensor(found["bias"])
        stock = after.sigmoid() if multi_label else after.softmax(-1)
        assert found["largest_difference"] == pytest.approx((stock - before).abs().max().item())
        assert found["mean_difference"] < found["largest_difference"] < (0.01 if multi_label else 0.1)
        if multi_label:  # the slope of THEORY: [1 + 2 g + g (g - 1) ln 2] / (1 + g ln 2)
            assert found["scale"] == pytest.approx(2.676, rel=0.02)

    @pytest.mark.parametrize("gamma, slope", [(1.0, 1.772), (2.0, 2.676), (3.0, 3.624)])
    def test_of_sigmoid_losses_no_data_are_needed(self, gamma, slope):
        model = make("bert", "text-classification", multi_label=True, gamma=gamma, alpha=[[1.0, 1, 1], [1.0, 2, 5]])
        with pytest.warns(UserWarning, match="with differences of up to 0.0"):
            found = fold_calibration(model)
        assert found["scale"] == pytest.approx(slope, rel=0.03) and found["largest_difference"] < 0.02
        expected = -torch.tensor([1.0, 2, 5]).log()
        torch.testing.assert_close(torch.tensor(found["bias"]), expected, atol=0.2, rtol=0, check_dtype=False)

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_an_example_of_weight_two_counts_like_two(self, multi_label):
        times = torch.tensor([0, 1, 2]).repeat(100)
        found = []
        for rows, weights in ((slice(None), times), (torch.arange(300).repeat_interleave(times), None)):
            model = make("bert", "text-classification", multi_label=multi_label, gamma=2.0)
            logits, labels, _ = logits_and_labels(model, 300)
            found.append(fold_calibration(model, logits[rows], labels[rows], sample_weight=weights))
        for name in ("scale", "bias", "negative_log_likelihood_before", "negative_log_likelihood_after"):
            assert found[0][name] == pytest.approx(found[1][name], rel=1e-4), name

    def test_soft_labels_count_by_their_expected_likelihood(self):
        model = make("bert", "text-classification", gamma=2.0)
        logits, *_ = logits_and_labels(model, 300)
        labels = (0.3 * logits).softmax(-1)
        found = fold_calibration(model, logits, labels)
        expected = -(labels * logits.log_softmax(-1)).sum(-1).mean()
        assert found["negative_log_likelihood_before"] == pytest.approx(expected.item())

    def test_a_head_without_biases_is_scaled_whatever_the_class_frequencies(self):
        model = make("llama", "text-classification", gamma=2.0, class_prior=[0.8, 0.15, 0.05])
        ids = torch.cat(
            [torch.randint(3, 40, (1500, 5), generator=torch.Generator().manual_seed(0)), torch.full((1500, 1), 2)], 1
        )
        with torch.no_grad():
            logits = 50 * model(input_ids=ids).logits.double()
        labels = (0.3 * logits).softmax(-1).multinomial(1, generator=torch.Generator().manual_seed(1))[:, 0]
        found = fold_calibration(model, logits, labels)
        assert found["bias"] == [0, 0, 0] and found["scale"] == pytest.approx(0.3, rel=0.2)

    def test_it_warns_where_labels_are_less_likely_than_before(self):
        model = make("bert", "text-classification", gamma=2.0, class_prior=[0.98, 0.01, 0.01])
        logits, labels, _ = logits_and_labels(model, 600)
        with pytest.warns(UserWarning, match="these data have other class frequencies.*prior="):
            fold_calibration(model, logits, labels)

    def test_the_record_says_what_was_done_and_how_near_it_came(self):
        model = make("bert", "text-classification", gamma=2.0)
        logits, labels, _ = logits_and_labels(model, 300)
        found = fold_calibration(model, logits, labels)
        record = FocalSettings.from_config(model.config)
        of_record = {name: record.folded[name] for name in ("scale", "bias", "exact")} | record.folded["measured"]
        assert of_record == found and record.is_calibrated

    def test_what_is_measured_is_of_rows_with_a_label_by_their_weight(self):
        """Not of the padding of tokens, whose logits are all -100, nor of examples of weight 0."""
        settings = {"gamma": 0.0, "alpha": [0.1, 1.0, 10.0], "class_prior": [0.6, 0.3, 0.1]}
        model = make("bert", "text-classification", **settings)
        logits, labels, _ = logits_and_labels(model, 60)
        expected = fold_calibration(model, logits, labels, prior=[0.1, 0.2, 0.7])
        padded = torch.stack([logits, torch.full_like(logits, -100)], 1), torch.stack([labels, 0 * labels - 100], 1)
        weighted = torch.cat([logits, -3 * logits]), torch.cat([labels, labels])
        for (of_logits, of_labels), weights in ((padded, None), (weighted, [1] * 60 + [0] * 60)):
            unfold_calibration(model)
            found = fold_calibration(model, of_logits, of_labels, prior=[0.1, 0.2, 0.7], sample_weight=weights)
            for name in ("largest_difference", "mean_difference", "equal_decisions", "negative_log_likelihood_after"):
                assert found[name] == pytest.approx(expected[name], abs=1e-12), name

    @pytest.mark.parametrize("settings", [{"gamma": [0.0, 1.0, 3.0]}, {"gamma": 1.0, "gamma_neg": 4.0}])
    def test_one_scale_is_not_near_to_several_gammas(self, settings):
        model = make("bert", "text-classification", multi_label=True, **settings)
        with pytest.raises(ValueError, match="logits: expected logits of held-out data"):
            fold_calibration(model)

    def test_held_out_data_are_needed(self):
        model = make("bert", "text-classification", gamma=2.0)
        with pytest.raises(ValueError, match="logits: expected logits of held-out data"):
            fold_calibration(model)
        with pytest.raises(ValueError, match="logits: expected logits for the labels"):
            fold_calibration(model, labels=torch.tensor([0, 1]))
        assert model.config.focal_loss["folded"] is None


class TestDecisions:
    @pytest.mark.parametrize("multi_label", [False, True])
    @pytest.mark.parametrize(
        "chosen", [{"operating_point": "balanced"}, {"prior": 0.3}, {"operating_point": "thresholds"}]
    )
    def test_are_those_of_the_stock_argmax(self, chosen, multi_label):
        num_labels = 3 if multi_label else 2
        shares = [0.7, 0.2, 0.4] if multi_label else [0.8, 0.2]
        thresholds = [0.2, 0.6, 0.5] if multi_label else [0.3]
        model = make(
            "bert",
            "text-classification",
            num_labels,
            multi_label,
            class_prior=shares,
            thresholds=thresholds,
            temperature=1.5,
        )
        if "prior" in chosen and not multi_label:
            chosen = {"prior": [0.7, 0.3]}
        logits, _, ids = logits_and_labels(model, 200)
        expected, posterior = decide(logits, model.config, **chosen), posterior_from_config(logits, model.config)
        assert not torch.equal(expected, decide(logits, model.config))
        of_points = {point: decide(logits, model.config, point) for point in ("balanced", "thresholds")}
        record = dict(model.config.focal_loss)
        fold_calibration(model, **chosen)
        with torch.no_grad():
            after = model(input_ids=ids).logits.double()
        stock = (after > 0).long() if multi_label else after.argmax(-1)
        assert torch.equal(stock, expected) and torch.equal(decide(after, model.config), expected)
        # What this package shows is what stock shows; of thresholds, which ruin probabilities, the posterior still.
        shown, of_stock = (
            posterior_from_config(after, model.config),
            after.sigmoid() if multi_label else after.softmax(-1),
        )
        is_of_thresholds = "thresholds" in chosen.values()
        torch.testing.assert_close(shown, posterior if is_of_thresholds else of_stock, atol=1e-5, rtol=0)
        # On request it decides by any operating point as before the fold.
        for point in ("balanced", "thresholds"):
            assert torch.equal(decide(after, model.config, point), of_points[point]), point
        unfold_calibration(model)
        assert model.config.focal_loss == record

    def test_how_near_is_that_of_what_was_folded(self):
        model = make("bert", "text-classification", gamma=2.0, class_prior=[0.6, 0.3, 0.1])
        logits, labels, _ = logits_and_labels(model, 300)
        before = decision_scores(logits, model.config, prior=[0.1, 0.2, 0.7])[1]
        found = fold_calibration(model, logits, labels, prior=[0.1, 0.2, 0.7])
        after = (logits * found["scale"] + torch.tensor(found["bias"])).softmax(-1)
        assert found["largest_difference"] == pytest.approx((after - before).abs().max().item())
        nll = torch.nn.functional.nll_loss(after.log(), labels)
        assert found["negative_log_likelihood_after"] == pytest.approx(nll.item())
        assert FocalSettings.from_config(model.config).class_prior == pytest.approx([0.1, 0.2, 0.7])

    def test_a_fold_of_the_posterior_keeps_the_operating_point_in_force(self):
        model = make("bert", "text-classification", class_prior=[0.6, 0.3, 0.1], operating_point="balanced")
        logits, _, ids = logits_and_labels(model, 100)
        expected = decide(logits, model.config)
        most_likely = decide(logits, model.config, "most_likely")
        fold_calibration(model)
        with torch.no_grad():
            after = model(input_ids=ids).logits.double()
        assert torch.equal(decide(after, model.config), expected)
        unfold_calibration(model)
        fold_calibration(model, operating_point="most_likely")  # unless another one is asked for
        assert torch.equal(decide(after, model.config), most_likely) and not torch.equal(expected, most_likely)


class TestUnfold:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_bit_for_bit_from_a_saved_folder(self, tmp_path, dtype):
        model = make("bert", "text-classification", alpha=[0.3, 1.0, 2.0], temperature=0.77).to(dtype)
        before, record = (
            {name: value.clone() for name, value in model.state_dict().items()},
            dict(model.config.focal_loss),
        )
        fold_calibration(model)
        assert not torch.equal(find_head(model).weight, before["classifier.weight"])
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
        unfold_calibration(loaded)
        assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
        assert loaded.config.focal_loss == record
        with pytest.raises(ValueError, match="model: its calibration is not folded"):
            unfold_calibration(loaded)

    @pytest.mark.parametrize("part", ["weight", "bias"])
    def test_weights_that_were_trained_further_are_refused(self, part):
        model = make("bert", "text-classification", temperature=2.0)
        fold_calibration(model)
        getattr(model.classifier, part).data.view(-1)[0] += 0.01  # a single one
        for refuses in (check_folded_weights, unfold_calibration):
            with pytest.raises(ValueError, match="the weights differ"):
                refuses(model)

    def test_weights_that_were_rounded_are_still_those(self):
        model = make("bert", "text-classification", temperature=2.0)
        fold_calibration(model)
        check_folded_weights(model.bfloat16().float())
        with pytest.raises(ValueError, match="have been rounded since the fold"):
            unfold_calibration(model)

    def test_twice_is_refused(self):
        model = make("bert", "text-classification", temperature=2.0)
        fold_calibration(model)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match="folded already; call unfold_calibration"):
            fold_calibration(model)
        with pytest.raises(ValueError, match="folded into the weights; call unfold_calibration"):
            calibrate_config(torch.randn(9, 3), torch.arange(9) % 3, model.config)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def test_weights_that_are_not_those_of_the_record(self, tmp_path):
        model = make("bert", "text-classification", temperature=2.0)
        original = find_head(model).weight.detach().clone()
        fold_calibration(model)
        find_head(model).weight.data = original
        for refuses in (check_folded_weights, unfold_calibration):
            with pytest.raises(ValueError, match="folded into the head, but the weights differ"):
                refuses(model)
        model.save_pretrained(tmp_path)
        save_tokenizer(tmp_path)
        with pytest.raises(ValueError, match="folded into the head, but the weights differ"):
            pipeline("text-classification", model=str(tmp_path), pipeline_class=FocalTextClassificationPipeline)


class TestRefused:
    @pytest.mark.parametrize(
        "message, settings",
        [
            ("no class posterior to fold", {"alpha": [0.0, 1.0, 1.0]}),
            ("no class posterior to fold", {"gamma": "flsd_53"}),
        ],
    )
    def test_what_has_no_posterior(self, message, settings):
        model = make("bert", "text-classification", **settings)
        with pytest.raises(ValueError, match=message):
            fold_calibration(model, torch.randn(9, 3), torch.arange(9) % 3)

    @pytest.mark.parametrize("labels", [torch.arange(8) % 3, torch.arange(9) % 3 + 1])
    @pytest.mark.parametrize("settings", [{"gamma": 2.0}, {"temperature": 2.0}])
    def test_labels_that_do_not_fit_leave_the_model_as_it_was(self, labels, settings):
        model = make("bert", "text-classification", **settings)
        weights, record = model.classifier.weight.clone(), model.config.focal_loss
        with pytest.raises(ValueError, match="labels: "):
            fold_calibration(model, torch.randn(9, 3), labels)
        assert torch.equal(model.classifier.weight, weights) and model.config.focal_loss == record

    def test_heads_that_share_their_weights(self):
        model = make("bert", "text-classification", temperature=2.0)
        model.other = torch.nn.Linear(16, 5)
        model.other.weight = model.classifier.weight
        with pytest.raises(ValueError, match="the weights of its head are shared"):
            fold_calibration(model)

    def test_quantised_heads(self):
        model = make("bert", "text-classification", temperature=2.0)
        whole = torch.zeros_like(model.classifier.weight, dtype=torch.int8)
        model.classifier.weight = torch.nn.Parameter(whole, requires_grad=False)
        with pytest.raises(ValueError, match="its head is quantised .torch.int8.; fold before quantising"):
            fold_calibration(model)

    @pytest.mark.parametrize(
        "message, head",
        [
            ("but found 0: none", torch.nn.Sequential(torch.nn.Linear(16, 3), torch.nn.LayerNorm(3))),
            ("but found 0: none", torch.nn.Sequential(torch.nn.Linear(16, 3), torch.nn.Tanh())),
            ("are parametrized", torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(16, 3))),
            ("are parametrized", torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(16, 3))),
        ],
        ids=["a norm behind it", "a function behind it", "weight_norm", "spectral_norm"],
    )
    def test_logits_that_are_not_those_of_free_weights(self, message, head):
        model = make("bert", "text-classification", temperature=2.0)
        model.classifier = head
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            fold_calibration(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_held_out_data_of_one_class(self):
        model = make("bert", "text-classification", gamma=2.0)
        with pytest.raises(ValueError, match="labels: they are all the same"):
            fold_calibration(model, torch.randn(50, 3), torch.zeros(50, dtype=torch.long))
        one_hot = torch.eye(3)[[0] * 50]
        with pytest.raises(ValueError, match="labels: they are all the same"):
            fold_calibration(model, torch.randn(50, 3), one_hot)
        with pytest.raises(ValueError, match="labels: they are all the same"):  # of those that count
            fold_calibration(model, torch.randn(50, 3), torch.arange(50) % 2, sample_weight=[1, 0] * 25)

    def test_no_head(self):
        model = make("bert", "text-classification", temperature=2.0)
        model.classifier = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
        with pytest.raises(ValueError, match="expected one linear layer .* but found 0: none"):
            fold_calibration(model)

    def test_another_layer_of_that_size_is_no_head(self):
        model = make("bert", "text-classification", temperature=2.0)
        model.unused = torch.nn.Linear(16, 3)
        assert find_head(model) is model.classifier


def test_our_pipeline_says_what_the_stock_one_does(tmp_path):
    model = make("bert", "text-classification", alpha=[0.2, 1.0, 4.0], class_prior=[0.7, 0.2, 0.1], temperature=1.4)
    save_tokenizer(tmp_path)
    model.save_pretrained(tmp_path)
    texts, arguments = ["ball bank", "king"], {"top_k": None, "model": str(tmp_path)}
    ours = {"pipeline_class": FocalTextClassificationPipeline}
    before = pipeline("text-classification", **arguments, **ours)(texts, operating_point="most_likely")
    fold_calibration(model)
    model.save_pretrained(tmp_path)
    after = pipeline("text-classification", **arguments, **ours)(texts)
    of_stock = pipeline("text-classification", **arguments)(texts)
    for one, two, three in zip(before, after, of_stock):
        assert [r["label"] for r in one] == [r["label"] for r in two] == [r["label"] for r in three]
        for other in (two, three):
            assert [r["score"] for r in other] == pytest.approx([r["score"] for r in one], abs=1e-6)


def test_a_tiny_model_of_the_other_tests_has_a_head():
    for task in ("single_label", "tokens", "multi_label"):
        assert find_head(tiny_model(task)).out_features == 3


class TestAdapters:
    def lora(self, **settings):
        peft = pytest.importorskip("peft")
        model = make("bert", "text-classification", temperature=2.0)
        config = peft.LoraConfig(r=2, init_lora_weights=False, **settings)
        return peft.get_peft_model(model, config).eval()

    def test_the_head_that_is_saved_with_one(self):
        model, ids = self.lora(target_modules=["query"], modules_to_save=["classifier"]), torch.tensor([[3, 4, 2]])
        with torch.no_grad():
            before = posterior_from_config(model(input_ids=ids).logits, model.config)
            assert fold_calibration(model)["exact"]
            torch.testing.assert_close(model(input_ids=ids).logits.softmax(-1), before, atol=1e-6, rtol=0)
            with model.disable_adapter():  # of the model below, nothing is changed
                logits = model(input_ids=ids).logits
            original = make("bert", "text-classification")
            torch.testing.assert_close(logits, original(input_ids=ids).logits, atol=1e-5, rtol=0)

    def test_an_adapter_of_the_head_is_refused_until_it_is_merged(self):
        model = self.lora(target_modules=["query", "classifier"])
        with pytest.raises(ValueError, match="merge"):
            fold_calibration(model)
        assert fold_calibration(model.merge_and_unload())["exact"]


class TestTrainer:
    def trainer(self, folder, **settings):
        return make_trainer(folder, max_steps=2, train_dataset=tiny_dataset(), **settings)

    def test_folds_what_it_has_calibrated(self, tmp_path):
        trainer = self.trainer(tmp_path, gamma=0.0, alpha=[0.5, 1.0, 3.0], eval_dataset=tiny_dataset(num_examples=30))
        trainer.train()
        replace(trainer.recorded_settings(), temperature=0.7).store_in(trainer.model.config)
        logits = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
        before = posterior_from_config(logits, trainer.model.config)
        found = trainer.fold_calibration()
        assert found["exact"] and found["largest_difference"] < 1e-6
        after = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
        torch.testing.assert_close(after.softmax(-1), before, atol=1e-5, rtol=0)

    def test_does_not_train_what_is_folded(self, tmp_path):
        trainer = self.trainer(tmp_path, gamma=0.0, alpha=[0.5, 1.0, 3.0], eval_dataset=tiny_dataset(num_examples=30))
        trainer.train()
        weights = trainer.model.classifier.weight.clone()
        trainer.fold_calibration()
        with pytest.raises(ValueError, match="folded into its head.*unfold_calibration"):
            trainer.train()
        unfold_calibration(trainer.model)
        assert torch.equal(trainer.model.classifier.weight, weights)
        trainer.train()

    @pytest.mark.parametrize("alpha", [None, [0.5, 1.0, 3.0]])
    def test_of_cross_entropy_no_data_are_needed(self, tmp_path, alpha):
        trainer = self.trainer(tmp_path, gamma=0.0, alpha=alpha)
        trainer.train()
        assert trainer.fold_calibration()["exact"]
        assert not FocalSettings.from_config(trainer.model.config).is_calibrated

    @pytest.mark.parametrize("has_data", [False, True])
    def test_the_card_says_what_it_was_folded_with(self, tmp_path, has_data):
        data = tiny_dataset("multi_label", 40)
        trainer = make_trainer(
            tmp_path, model=tiny_model("multi_label"), max_steps=2, train_dataset=data, gamma=2.0, alpha="inverse"
        )
        trainer.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fold_calibration(data if has_data else None)
        trainer.create_model_card(test_dataset=data)
        card = (tmp_path / "README.md").read_text()
        of_stock = trainer.predict(data, metric_key_prefix="eval")
        likelihood = torch.nn.functional.binary_cross_entropy_with_logits(
            torch.tensor(of_stock.predictions), torch.tensor(of_stock.label_ids).float()
        )
        assert of_stock.metrics["eval_loss"] == pytest.approx(likelihood.item(), rel=1e-5)
        assert "from the posterior of the formula" in card
        assert (
            ("On the data used for folding, it differs" in card)
            == has_data
            == ("posterior, calibrated on held-out data" in card)
        )
        assert "Alpha shifts decisions" not in card

    def test_predictions_are_of_a_dataset(self, tmp_path):
        trainer = self.trainer(tmp_path, gamma=0.0)
        output = trainer.predict(tiny_dataset())
        with pytest.raises(ValueError, match="dataset: expected held-out examples; pass them here"):
            trainer.fold_calibration(predictions=output)

    def test_data_are_needed(self, tmp_path):
        with pytest.raises(ValueError, match="dataset: expected held-out examples; pass them here"):
            self.trainer(tmp_path).fold_calibration()
