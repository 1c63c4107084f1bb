"""The model card: what it says, that no text breaks it, and that what was changed by hand is noticed."""

import ast
import contextlib
import json
import re
import shlex
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from matplotlib.figure import Figure
from scipy import stats
from transformers import BertConfig

from hf_focal import FocalSettings, LabelDistribution, posterior_from_config
from hf_focal._card_pictures import BIN_EDGES, confusion_matrix, readings, reliability_diagram, spread
from hf_focal._markdown import escape_markdown, markdown_table
from hf_focal.metrics import ImbalancedClassification, mean_and_interval
from hf_focal.model_card import (
    ModelCardContents,
    describe_hardware,
    package_versions,
    read_model_card,
    write_model_card,
)


COMMITTED = sorted(Path(__file__).parents[1].glob("examples/baselines/results/*/*/README.md"))
HOSTILE = [
    "a|b",
    "two\nlines",
    "```\n# heading\n```json hf_focal\n{}\n```",
    "a\n```\n# heading\n\n`````\nb",
    "`````` code ``",
    "<script>alert(1)</script>",
    "# heading",
    "[x](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    'quoted: - "',
    "---\n---",
    "a\n---\nb: c\n",
    "%TAG ! &a *a !!python/object/apply:os.system [id]",
    "null",
    "1e3",
    "2020-01-01",
    "ÄÖÜ 日本語 👩‍👩‍👧 \u202egnp.exe",
    "\x00\x07\r\x85\u2028\ufeff",
    "caf\udce9",
    "$x_{$ **b** _i_ ~~s~~ \\| &lt; &#124;",
    " ",
    "x" * 3000,
]


@pytest.fixture(autouse=True)
def offline_and_quiet(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("network"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def without_drawing(monkeypatch):
    """Pictures take most of the time, and which names they number depends on the fonts that are installed."""
    monkeypatch.setattr(LabelDistribution, "plot", lambda *args: None)
    monkeypatch.setattr("hf_focal.model_card.numbered", lambda names: {})


def random_data(num_classes=3, num_examples=300, multi_label=False, seed=0):
    rng = np.random.default_rng(seed)
    if multi_label:
        labels = (rng.random((num_examples, num_classes)) < 0.3).astype(int)
        return rng.normal(size=labels.shape) + 2 * labels - 1, labels
    labels = rng.integers(num_classes, size=num_examples)
    return rng.normal(size=(num_examples, num_classes)) + 2 * np.eye(num_classes)[labels], labels


def contents_of(**changes):
    names = changes.get("label_names", ["ham", "spam", "eggs"])
    metrics = {"accuracy": [0.9, 0.8, 0.85], "f1_macro": [1 / 3, 2 / 3, 0.5], "balanced_accuracy": [0.5, 0.6, 0.7]}
    per_class = {
        name: {"precision": [0.5, 0.6, 0.7], "recall": [0.1, 0.2, 0.3], "f1": [0.2, 0.3, 0.4], "support": [9, 9, 9]}
        for name in names
    }
    settings = {
        "gamma": 2.0,
        "alpha": [0.5, 1.5, 4.0],
        "label_smoothing": 0.0,
        "label_counts": [900, 90, 9],
        "class_prior": [0.9, 0.09, 0.01],
    }
    given = {
        "model_name": "a model",
        "dataset_name": "Some mail",
        "label_names": names,
        "settings": settings,
        "seeds": [1, 2, 3],
        "metrics": metrics,
        "per_class": per_class,
        "command": ["python", "train.py", "--output_dir", "a b"],
        "tolerance": 0.02,
        "base_model": "bert-base-uncased",
        "dataset_id": "someone/mail",
        "dataset_config": "plain",
        "dataset_revision": "0123456789abcdef",
        "dataset_split": "test",
        "dataset_fingerprint": "f00",
        "num_examples": 1234,
        "fitted_on_split": ["the thresholds"],
        "model_id": "a-model",
        "tokenizer_id": "bert-base-uncased",
        "language": ["en"],
        "license": "mit",
        "hyperparameters": {"learning_rate": 2e-5, "train_batch_size": 100_000},
        "wall_seconds": [60.0, 61.0, 62.0],
    }
    return ModelCardContents(**given | changes)


def is_name(text):
    """Whether it may be that of a gamma: numbers may not."""
    try:
        float(text)
    except ValueError:
        return bool(text)
    return False


def everywhere(text):
    """Contents that have the text wherever one may stand."""
    names = [text, f"{text}{text}", f"|{text}"]
    renamed = contents_of(label_names=names if text else ["", " ", "|"])
    return replace(
        renamed,
        **dict.fromkeys(("model_name", "dataset_name", "base_model", "dataset_id", "dataset_config"), text),
        **dict.fromkeys(("dataset_revision", "dataset_split", "dataset_fingerprint", "license", "hardware"), text),
        **dict.fromkeys(("model_id", "tokenizer_id"), text),
        fitted_on_split=[text],
        settings=replace(renamed.settings, gamma=text) if is_name(text) else renamed.settings,
        metrics={**renamed.metrics, text: [0.1, 0.2, 0.3]},
        command=["python", text, f"--flag={text}"],
        hyperparameters={f"h{text}": text},
        **dict.fromkeys(("tags", "limits"), [text]),
        versions={text: text},
    )


def sections_of(text):
    """The sections of a card by title, fenced code left out of the search for them."""
    body = text.split("\n---\n", 1)[1]
    code = re.compile(r"^(`{3,})[^`\n]*\n.*?\n\1$", re.MULTILINE | re.DOTALL)
    parts = re.split(r"^## (.*)$", code.sub("CODE", body), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2])), [match[0] for match in code.finditer(body)]


LAUGHS = "\n".join(
    [
        "a: &a [x, x]",
        *(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefghijk", "bcdefghijkl")),
        "tags:",
    ]
)


class TestMarkdown:
    @pytest.mark.parametrize(
        "text, escaped",
        [
            ("a|b", "a&#124;b"),
            ("two\n  lines\t", "two lines"),
            ('<b> & "c"', "&lt;b&gt; &amp; &quot;c&quot;"),
            ("*a* _b_ `c` [d](e) ~f~ $g$ \\", r"\*a\* \_b\_ \`c\` \[d\](e) \~f\~ \$g\$ \\"),
            ("\u202egnp.exe \u200b\ufeff\x07\udce9", "gnp.exe"),
            ("👩\u200d👧", "👩\u200d👧"),
            ("# heading", r"\# heading"),
            ("#1", "#1"),
            ("- list", r"\- list"),
            ("-0.05", "-0.05"),
            ("12. list", r"12\. list"),
            ("1.5", "1.5"),
            ("---", r"\---"),
            ("===", r"\==="),
        ],
    )
    def test_escape(self, text, escaped):
        assert escape_markdown(text) == escaped

    @pytest.mark.parametrize("text", [*HOSTILE, "+ a", "1) a", ":-:", "    code", "> quote", "###", "***", "- - -"])
    @pytest.mark.parametrize("before", ["", "a\n", "- ", "# ", "> "])
    def test_is_nothing_but_text(self, text, before):
        markdown_it = pytest.importorskip("markdown_it")
        parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).disable("linkify")
        escaped = escape_markdown(text)
        found, expected = parser.parse(before + escaped), parser.parse(before + "plain" * bool(escaped))
        assert [token.type for token in found] == [token.type for token in expected]
        kinds = {child.type for token in found for child in token.children or []}
        assert kinds <= {"text", "text_special", "softbreak"}

    def test_table(self):
        table = markdown_table(["class", "n", "share"], ([name, "1", "**2**"] for name in ("a", "b")))
        assert table == "| class | n | share |\n| --- | ---: | ---: |\n| a | 1 | **2** |\n| b | 1 | **2** |"
        assert markdown_table(["class"], []) == ""

    def test_rows_of_other_lengths_are_refused(self):
        with pytest.raises(ValueError, match=r"rows: expected 2 cells, as in the header, but got \['a'\]"):
            markdown_table(["class", "n"], [["a", "1"], ["a"]])


def as_bash_reads(words):
    """Words of a command, of which some may be written with escapes of ANSI C."""
    escape = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8}))")

    def plain(match):
        return shlex.quote(escape.sub(lambda code: chr(int(code[1] or code[2], 16)), match[1]))

    return shlex.split(re.sub(r"\$'([^']*)'", plain, words))


@pytest.mark.usefixtures("without_drawing")
class TestMetadata:
    def test_what_the_hub_reads(self, tmp_path):
        contents = contents_of()
        data = ModelCard.load(write_model_card(tmp_path, contents)).data
        assert data.tags == ["focal-loss", "hf_focal"] and data.library_name == "transformers"
        assert (data.base_model, data.datasets, data.license) == ("bert-base-uncased", ["someone/mail"], "mit")
        assert (data.language, data.pipeline_tag, data.model_name) == (["en"], "text-classification", "a model")
        assert data.metrics == ["accuracy", "f1", "balanced_accuracy"]
        expected = EvalResult(
            task_type="text-classification",
            dataset_type="someone/mail",
            dataset_name="Some mail",
            dataset_config="plain",
            dataset_split="test",
            dataset_revision="0123456789abcdef",
            metric_type="f1",
            metric_name="Macro-F1",
            metric_args={"average": "macro"},
            metric_value=0.5,
        )
        assert data.eval_results[1] == expected and len(data.eval_results) == 3

    def test_model_index_is_complete(self, tmp_path):
        text = write_model_card(tmp_path, contents_of()).read_text()
        (model,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
        (result,) = model["results"]
        assert model["name"] and result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
        assert all(metric["type"] and isinstance(metric["value"], float) for metric in result["metrics"])

    def test_unknown_is_left_out(self, tmp_path):
        names = ("base_model", "dataset_id", "dataset_config", "dataset_revision", "dataset_split", "license")
        contents = contents_of(**dict.fromkeys(names), language=[], metrics={}, per_class={})
        text = write_model_card(tmp_path, contents).read_text()
        metadata = yaml.safe_load(text.split("---\n")[1])
        assert metadata.keys() == {"library_name", "pipeline_tag", "tags"} and "## Results" not in text
        assert read_model_card(tmp_path / "README.md") == contents

    @pytest.mark.parametrize("folder", ["/home/me/model", "../model", "a/b/c", "two words"])
    def test_a_folder_is_no_model_of_the_hub(self, tmp_path, folder):
        contents = contents_of(base_model=folder, dataset_id=folder)
        data = ModelCard.load(write_model_card(tmp_path, contents)).data
        assert data.base_model is None and data.datasets is None

    @pytest.mark.parametrize("name, slug", [("My mail!", "My-mail"), ("日本語", "unknown")])
    def test_results_always_name_a_dataset(self, tmp_path, name, slug):
        path = write_model_card(tmp_path, contents_of(dataset_id=None, dataset_name=name))
        assert {result.dataset_type for result in ModelCard.load(path).data.eval_results} == {slug}
        assert read_model_card(path).dataset_name == name

    def test_tags_once(self, tmp_path):
        tags = ModelCard.load(write_model_card(tmp_path, contents_of(tags=["focal-loss", "mail"]))).data.tags
        assert tags == ["focal-loss", "hf_focal", "mail"]


@pytest.mark.usefixtures("without_drawing")
class TestBody:
    def test_mean_and_interval_over_seeds(self, tmp_path):
        contents = contents_of()
        low, high = stats.t.interval(0.95, 2, np.mean([0.9, 0.8, 0.85]), stats.sem([0.9, 0.8, 0.85]))
        text = write_model_card(tmp_path, contents).read_text()
        assert f"| Accuracy | 0.8500 | {low:.4f} to {high:.4f} |" in text and "mean of 3 seeds" in text
        assert "one seed only" not in text

    def test_intervals_are_inside_the_range_of_their_metric(self, tmp_path):
        seeds = {"accuracy": [1.0, 0.9, 1.0], "matthews_correlation": [-1.0, -0.9, -1.0], "my_own": [1.0, 0.9, 1.0]}
        seeds |= {
            "f1_tail": [0.0, 0.1, 0.0],
            "brier_score": [2.0, 1.9, 2.0],
            "negative_log_likelihood": [0.0, 0.1, 0.0],
        }
        text = write_model_card(tmp_path, contents_of(metrics=seeds)).read_text()
        mean, half = mean_and_interval([1.0, 0.9, 1.0])
        assert f"| Accuracy | 0.9667 | {mean - half:.4f} to 1.0000 |" in text and mean + half > 1
        assert f"| MCC | -0.9667 | -1.0000 to {half - mean:.4f} |" in text
        assert f"| F1 tail | 0.0333 | 0.0000 to {1 - mean + half:.4f} |" in text
        assert f"| Brier score | 1.9667 | {1 + mean - half:.4f} to 2.0000 |" in text
        assert f"| Negative log likelihood | 0.0333 | 0.0000 to {1 - mean + half:.4f} |" in text
        assert f"| My own | 0.9667 | {mean - half:.4f} to {mean + half:.4f} |" in text

    @pytest.mark.parametrize(
        "heading, known",
        [
            ("Results", {"num_examples": None}),
            ("Results on the evaluation data, 1,000 examples", {"num_examples": 1000, "dataset_split": None}),
            ("Results on the te\\_st split, 5 examples", {"num_examples": 5, "dataset_split": "te_st"}),
        ],
    )
    def test_heading_of_the_results(self, tmp_path, heading, known):
        text = write_model_card(tmp_path, contents_of(**known)).read_text()
        assert f"\n\n## {heading}\n\n| metric" in text

    @pytest.mark.parametrize(
        "fitted, said",
        [
            (None, None),
            ([], "Nothing was fitted on these examples."),
            (["a_b"], "The results are optimistic, because these examples were also used for: a\\_b."),
        ],
    )
    def test_what_was_fitted_on_the_same_examples(self, tmp_path, fitted, said):
        text = write_model_card(tmp_path, contents_of(fitted_on_split=fitted)).read_text()
        assert said in text if said else "fitted on these" not in text

    def test_one_seed_has_no_interval(self, tmp_path):
        contents = contents_of(
            seeds=[7], metrics={"accuracy": 0.9, "f1_macro": np.float32(0.5)}, per_class={}, wall_seconds=[]
        )
        text = write_model_card(tmp_path, contents).read_text()
        assert "| Accuracy | 0.9000 |\n| Macro-F1 | 0.5000 |" in text and "interval (" not in text
        assert "Trained with one seed only" in text and contents.metrics == {"accuracy": [0.9], "f1_macro": [0.5]}

    def test_tables(self, tmp_path):
        sections, code = sections_of(write_model_card(tmp_path, contents_of()).read_text())
        assert list(sections) == [
            "How to use",
            "Results on the test split, 1,234 examples",
            "Results per class",
            "Pictures",
            "Settings",
            "Labels of the training data",
            "Limits",
            "Data, machine and versions",
            "Reproduce",
        ]
        assert "| class | Precision | Recall | F1 | Support |" in sections["Results per class"]
        assert "| spam | 0.600 | 0.200 | 0.300 | 9 |" in sections["Results per class"]
        rows = ["gamma | 2", "alpha | 0.5, 1.5, 4", "learning\\_rate | 2e-05", "train\\_batch\\_size | 100000"]
        assert "\n".join(f"| {row} |" for row in rows) in sections["Settings"]
        distribution = LabelDistribution([900, 90, 9], names=["ham", "spam", "eggs"])
        expected = distribution.to_markdown(torch.tensor([0.5, 1.5, 4.0]))
        assert expected in sections["Labels of the training data"]
        assert "| data, revision | 0123456789abcdef |" in sections["Data, machine and versions"]
        assert "| time per run | 0:01:01 |" in sections["Data, machine and versions"]
        assert all(
            f"| {name} |" in sections["Data, machine and versions"] for name in ("python", "torch", "hf\\_focal")
        )
        assert "by at most the largest of 0.02, 1/√n for a class" in sections["Reproduce"]
        assert code[1] == "```bash\npython train.py --output_dir 'a b'\n```"

    def test_results_of_the_metric(self, tmp_path):
        logits, labels = random_data()
        results = ImbalancedClassification().compute(
            predictions=logits, references=labels, label_names=["ham", "spam", "eggs"], label_counts=[900, 90, 9]
        )
        per_class = results.pop("per_class")
        contents = contents_of(seeds=[0], wall_seconds=[], metrics=results, per_class=per_class)
        path = write_model_card(tmp_path, contents, logits, labels)
        by_name = {result.metric_name: result.metric_value for result in ModelCard.load(path).data.eval_results}
        assert by_name["Macro-F1"] == round(results["f1_macro"], 4)
        assert by_name["MCC"] == round(results["matthews_correlation"], 4)
        # All but the floor of the calibration error, which is none of the model's.
        assert by_name["ECE"] == round(results["expected_calibration_error"], 4) and len(by_name) == len(results) - 1
        assert f"| {per_class['spam']['f1']:.3f} | {per_class['spam']['support']} |" in path.read_text()
        assert read_model_card(path).per_class["spam"]["f1"] == [per_class["spam"]["f1"]]

    def test_scores_that_some_classes_lack(self, tmp_path):
        per_class = {"ham": {"f1": [0.5] * 3, "average_precision": [0.7] * 3}, "spam": {"f1": [0.25] * 3}}
        text = write_model_card(tmp_path, contents_of(per_class=per_class)).read_text()
        assert "| ham | 0.500 | 0.700 |\n| spam | 0.250 |  |" in text

    @pytest.mark.parametrize("multi_label, shown", [(False, ["0.75", "0.25"]), (True, ["0.75 | 0.25", "0.75 | 0.25"])])
    def test_alpha_as_one_number(self, tmp_path, multi_label, shown):
        settings = {"gamma": 2, "alpha": 0.25, "label_counts": [30, 10], "class_prior": [0.75, 0.25]}
        contents = contents_of(label_names=["n", "y"], settings=settings, per_class={}, multi_label=multi_label)
        text = write_model_card(tmp_path, contents).read_text()
        assert f"| n | 30 | 75.00 % | {shown[0]} |\n| y | 10 | 25.00 % | {shown[1]} |" in text

    def test_pairs_of_weights(self, tmp_path):
        settings = {
            "gamma": 2,
            "alpha": [[0.5, 1.0], [2.0, 9.0]],
            "label_counts": [30, 10],
            "class_prior": [0.75, 0.25],
        }
        contents = contents_of(label_names=["n", "y"], settings=settings, per_class={}, multi_label=True)
        path = write_model_card(tmp_path, contents)
        text = path.read_text()
        assert "| alpha | negatives: 0.5, 1; positives: 2, 9 |" in text
        assert "| n | 30 | 75.00 % | 0.5 | 2 |\n| y | 10 | 25.00 % | 1 | 9 |" in text
        assert read_model_card(path) == contents

    def test_multi_label_shares_are_of_rows(self, tmp_path):
        settings = {"gamma": 2.0, "alpha": None, "label_counts": [50, 30], "class_prior": [0.5, 0.3]}
        contents = contents_of(label_names=["a", "b"], settings=settings, per_class={}, multi_label=True)
        text = write_model_card(tmp_path, contents).read_text()
        assert "| a | 50 | 50.00 % |\n| b | 30 | 30.00 % |" in text and "The sigmoid of the logits is not" in text

    def test_long_lists_are_summarized(self, tmp_path):
        names = [f"class {k}" for k in range(20)]
        contents = contents_of(label_names=names, settings={"gamma": 1, "alpha": [*range(1, 21)]}, per_class={})
        text = write_model_card(tmp_path, contents).read_text()
        assert "| alpha | 1 to 20, one for each of 20 classes |" in text
        assert read_model_card(tmp_path / "README.md").settings.alpha == [*range(1, 21)]

    def test_settings_in_use_are_shown(self, tmp_path):
        settings = {"gamma": 0, "gamma_neg": 4, "margin": 0.05, "label_smoothing": 0.1, "temperature": 1.5}
        text = write_model_card(tmp_path, contents_of(settings=settings, multi_label=True)).read_text()
        rows = ["gamma | 0", "gamma\\_neg | 4", "margin | 0.05", "alpha | none", "label\\_smoothing | 0.1"]
        assert "\n".join(f"| {row} |" for row in [*rows, "temperature | 1.5"]) in text
        assert "with focal loss (gamma 0, gamma\\_neg 4, margin 0.05), using" in text
        assert (
            "`hf_focal.posterior_from_config(logits, model.config)` corrects this" in text
            and "not calibrated" not in text
        )
        text = write_model_card(tmp_path, contents_of(hyperparameters={"gamma": "mine"})).read_text()
        assert "| gamma | 2 |\n| alpha | 0.5, 1.5, 4 |\n| gamma | mine |" in text

    def test_settings_of_an_old_record(self, tmp_path):
        old = {"gamma": 2.0, "alpha": [0.5, 1.5, 4.0], "label_counts": [900, 90, 9], "class_prior": [0.9, 0.09, 0.01]}
        path = write_model_card(tmp_path, contents_of())
        text = re.sub(r'"settings": .*', f'"settings": {json.dumps({**old, "of_another_time": 1})},', path.read_text())
        path.write_text(text)
        assert read_model_card(path) == contents_of(settings=old) == contents_of()

    @pytest.mark.parametrize(
        "said, settings",
        [
            ("focal loss (gamma 2)", {"gamma": 2.0, "alpha": None}),
            (
                "focal loss (gamma 0, 1, 2) and class weights (alpha)",
                {"gamma": [0, 1, 2], "alpha": [1.0, 2.0, 3.0]},
            ),
            ("focal loss (gamma flsd\\_53)", {"gamma": "flsd_53", "alpha": None}),
            ("cross entropy", {"gamma": 0.0, "alpha": None}),
            ("cross entropy and class weights (alpha)", {"gamma": 0, "alpha": [1.0, 2.0, 3.0]}),
        ],
    )
    def test_loss_and_its_limits(self, tmp_path, said, settings):
        text = write_model_card(tmp_path, contents_of(settings=settings)).read_text()
        is_focal, has_alpha = "focal loss (" in said, "alpha" in said
        assert f"with {said}, using hf\\_focal." in text
        assert ("is not the class posterior" in text) == (is_focal or has_alpha)
        assert ("as focal loss and alpha distort it" in text) == (is_focal and has_alpha)
        assert ("as focal loss distorts it" in text) == (is_focal and not has_alpha)
        assert ("as alpha distorts it" in text) == (has_alpha and not is_focal)
        assert ("posterior_from_config" in text) == ((is_focal or has_alpha) and "flsd" not in said)
        assert ("Alpha shifts decisions" in text) == has_alpha and ("wrong training labels" in text) == is_focal

    def test_gaps_are_named(self, tmp_path):
        per_class = {"ham": {"support": [5, 5, 5]}, "spam": {"support": [0, 0, 0]}}
        known = write_model_card(tmp_path, contents_of(per_class=per_class, limits=["English only"])).read_text()
        assert "- Classes without test examples: spam." in known and "- Note: English only" in known
        assert "- Classes with fewer than 10 training examples: eggs." in known
        gaps = ("Neither a revision nor a fingerprint", "license is not known")
        assert not any(gap in known for gap in gaps)
        unknown = contents_of(license=None, dataset_revision=None, dataset_fingerprint=None)
        assert all(gap in write_model_card(tmp_path, unknown).read_text() for gap in gaps)


@pytest.mark.usefixtures("without_drawing")
class TestHostileText:
    @pytest.mark.parametrize("text", [*HOSTILE, ""])
    def test_contents_come_back(self, tmp_path, text):
        contents = everywhere(text)
        assert read_model_card(write_model_card(tmp_path, contents)) == contents

    @pytest.mark.parametrize("text", [*HOSTILE, ""])
    def test_metadata_come_back(self, tmp_path, text):
        data = ModelCard.load(write_model_card(tmp_path, everywhere(text))).data
        text = text.replace("\x85", " ")  # which YAML does
        assert data.tags == ["focal-loss", "hf_focal", text] and data.license == text and data.model_name == text
        result = data.eval_results[-1]
        assert (result.dataset_name, result.dataset_revision, result.metric_type) == (text, text, text)
        assert len(data.eval_results) == 4

    @pytest.mark.parametrize("text", HOSTILE)
    def test_structure_stays(self, tmp_path, text):
        plain = write_model_card(tmp_path, everywhere("plain")).read_text()
        hostile = (write_model_card(tmp_path, everywhere(text))).read_bytes().decode()
        (expected, code), (sections, hostile_code) = sections_of(plain), sections_of(hostile)
        assert len(sections) == len(expected) and len(hostile_code) == len(code) == 3
        for (title, section), (other, plain) in zip(sections.items(), expected.items()):
            assert title == other or "Results on the " in title
            assert section.count("\n") == plain.count("\n")
            bars = [line.count("|") for line in section.split("\n")]
            assert bars == [line.count("|") for line in plain.split("\n")]
            assert "<" not in section and not re.search(r"(?<!\\)(?:\\\\)*\]\((?!\w+\.png\))", section)
        snippet, command, record = hostile_code
        words = command.split("\n", 1)[1].rsplit("\n", 1)[0]
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202e\ufeff]", words)
        assert as_bash_reads(words) == [
            argument.encode(errors="backslashreplace").decode() for argument in everywhere(text).command
        ]
        assert "<" not in record and "`" not in record[3:-3] and record.isascii()
        tree = ast.parse(snippet.split("\n", 1)[1].rsplit("\n", 1)[0].encode(errors="surrogatepass").decode())
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert texts.count(text) == 2  # model and tokenizer

    @pytest.mark.parametrize("text", HOSTILE)
    def test_rendered(self, tmp_path, text):
        markdown_it = pytest.importorskip("markdown_it")
        parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).disable("linkify")

        def tokens(text):
            body = write_model_card(tmp_path, everywhere(text)).read_bytes().decode().split("\n---\n", 1)[1]
            found = parser.parse(body)
            inner = [child for token in found for child in token.children or []]
            return [token.type for token in found], inner

        kinds, inner = tokens(text)
        assert kinds == tokens("plain")[0]
        assert {token.type for token in inner} <= {"text", "text_special", "image", "code_inline"}
        assert [token.attrs["src"] for token in inner if token.type == "image"] == ["label_distribution.png"]
        code = {token.content for token in inner if token.type == "code_inline"}
        assert all("hf_focal" in text for text in code - {"as_trained"})

    def test_text_reads_as_it_was(self, tmp_path):
        markdown_it = pytest.importorskip("markdown_it")
        name = "a|b [x](y) `c` <b> **d** _e_ ~~f~~ \\| &lt; $1"
        text = write_model_card(tmp_path, contents_of(label_names=["ham", name, "eggs"])).read_text()
        parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).disable("linkify")
        cells = ["".join(c.content for c in token.children or []) for token in parser.parse(text)]
        assert cells.count(name) == 2  # results per class, labels of the training data

    def test_random_text(self, tmp_path):
        rng = np.random.default_rng(0)
        alphabet = list("ab01 \n\r\t|`#<>[]()!*_~$\\\"'&;:-{}%@=,.?\u2028\x00é日") + ["---", "```", "${", "]("]
        for _ in range(20):
            text = "".join(rng.choice(alphabet, 30))
            contents = everywhere(text)
            path = write_model_card(tmp_path, contents)
            assert read_model_card(path) == contents
            assert ModelCard.load(path).data.eval_results[-1].dataset_name == text
            assert len(sections_of(path.read_bytes().decode())[1]) == 3


@pytest.mark.usefixtures("without_drawing")
class TestReading:
    def edited(self, tmp_path, old, new, count=1):
        path = write_model_card(tmp_path, contents_of())
        text = path.read_text()
        assert text.count(old) == count
        path.write_text(text.replace(old, new))
        return path

    @pytest.mark.parametrize(
        "message, old, new",
        [
            ("expected the line '| Accuracy | 0.8500", "| Accuracy | 0.8500", "| Accuracy | 0.9500"),
            ("expected the line '| Balanced accuracy | 0.6000 | 0.3516 to", "0.3516 to", "0.5516 to"),
            ("expected the line '| spam | 0.600", "| spam | 0.600", "| spam | 0.700"),
            ("expected the line '| gamma | 2", "| gamma | 2 |", "| gamma | 3 |"),
            ("expected the line '| alpha | 0.5, 1.5, 3", '"alpha": [0.5, 1.5, 4.0]', '"alpha": [0.5, 1.5, 3.0]'),
            ('expected the line "python train.py', "python train.py", "python other.py"),
            ("expected the line '| Accuracy", '"accuracy": [0.9, 0.8', '"accuracy": [0.9, 0.9'),
            ("expected the line '| eggs", '"eggs": {"precision": [0.5', '"eggs": {"precision": [0.9'),
            ('expected the line "python other.py', '["python", "train.py"', '["python", "other.py"'),
            ("model-index: expected the results of the record", "value: 0.5\n", "value: 0.6\n"),
            (
                "## Results on the test split, 1,234 examples: expected one such heading",
                "the test split, 1,234",
                "the test split, 9,999",
            ),
            (
                "expected the line 'The results are optimistic",
                "The results are optimistic, because these examples were also used for: the thresholds.",
                "Nothing was fitted on these examples.",
            ),
            ("expected the line 'model = ", 'model = "a-model"', 'model = "another"'),
            ("model-index: expected the results of the record", "  - task:", "  - dropped:"),
        ],
    )
    def test_what_was_changed_by_hand(self, tmp_path, message, old, new):
        path = self.edited(tmp_path, old, new)
        if "dropped" in new:
            path.write_text(re.sub(r"model-index:.*?\n---\n", "\n---\n", path.read_text(), flags=re.DOTALL))
        with pytest.raises(ValueError, match=re.escape(message)):
            read_model_card(path)

    @pytest.mark.parametrize(
        "message, old, new",
        [
            ("0 of them", "## Results per class\n", "## Mine\n\n~~~\n## Results per class\n"),
            ("0 of them", "## Results per class\n", "## Mine\n\n ~~~~ text\n## Results per class\n"),
            ("0 visible", "## Results per class\n", "## Mine\n\n~~~\n## Results per class\n~~~\n"),
            *[
                (message, "## Results per class\n", f"## Mine\n\n{before}## Results per class\n")
                for message, before in [
                    ("no HTML", "<!--\nx -->\n\n"),
                    ("0 of them", "<!-- "),
                    ("no HTML", "<div hidden>\n\n"),
                    ("no HTML", "<div\nhidden>\n\n"),
                    ("no HTML", "<DETAILS><summary>x</summary>\n\n"),
                    ("no HTML", "<dialog>\n\n"),
                    ("no HTML", "a <del> b\n\n"),
                    ("0 of them", "<?\n"),
                    ("0 of them", "<![CDATA[\n"),
                    ("0 of them", "<!A\n"),
                    ("0 of them", "- a\n\n  ```\n<!--\n ```\n"),
                    ("0 visible", "x\r```\r"),
                    ("2 visible", "## Results per class ##\n\n"),
                    ("2 visible", "##  Results per&#32;class\n\n"),
                    ("2 visible", "## Results *per* class\xa0\n\n"),
                    ("2 visible", "Results per class\n---\n\n"),
                    ("2 visible", "Results\nper class\n---\n\n"),
                    ("2 visible", "> ### Results per class\n\n"),
                    ("headings with text", "## \n\n"),
                ]
            ],
            ("the title 'a model' first", "# a model\n", "# A better model\n\n# a model\n"),
            ("only prose", "## Limits\n", "all | 0.999\n--- | ---\na | b\n\n## Limits\n"),
            ("only prose", "## Limits\n", "> | a | b |\n> | - | - |\n\n## Limits\n"),
            ("the card's pictures", "## Limits\n", "![all](x.png)\n\n## Limits\n"),
            ("no section of this name", "## Limits\n", "## Operating points\n\nAll .99\n\n## Limits\n"),
            ("no section of this name", "## Limits\n", "## results\n\nAll .99\n\n## Limits\n"),
            ("model-index", "value: 0.85\n", "value: 0.85004\n"),
            ("model-index", "name: a model", "name: another"),
            ("2 visible", "## Limits\n", "## Limits\n\n- None.\n\n## Limits\n"),
            ("one heading 'Pictures' at most", "## Settings", "## Pictures\n\nNone.\n\n## Settings"),
            (
                "only prose after it",
                "\n\n## Pictures\n",
                "\n| all | 1.000 | 1.000 | 1.000 | 99 |\n\n## Pictures\n",
            ),
            ("only prose after it", "\n\n## Pictures\n", "\nall | 1.000\n\n## Pictures\n"),
            ("only prose after it", "```json hf_focal\n", "```bash\nrm x\n```\n\n```json hf_focal\n"),
            ("expected the line '| data, split | test |'", "| data, split | test |", "| data, split | train |"),
            ("## Labels of the training data", "| 900 |", "| 500 |"),
            ("focal loss (gamma 2)", "focal loss (gamma 2)", "focal loss (gamma 3)"),
            ("largest of 0.02", "largest of 0.02", "largest of 0.002"),
            ("license: expected 'mit'", "license: mit\n", "license: apache-2.0\n"),
        ],
    )
    def test_tables_that_lie(self, tmp_path, message, old, new):
        path = write_model_card(tmp_path, contents_of())
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=re.escape(message)):
            read_model_card(path)

    def test_tables_in_other_order(self, tmp_path):
        path = write_model_card(tmp_path, contents_of())
        spam, eggs = re.findall(r"^\| (?:spam|eggs) \| 0.6.*\n", path.read_text(), re.MULTILINE)
        path.write_text(path.read_text().replace(spam + eggs, eggs + spam))
        with pytest.raises(ValueError, match="expected the line '. spam .*, but got '. eggs"):
            read_model_card(path)

    @pytest.mark.parametrize(
        "old, new",
        [
            ("## Data, machine and versions\n", "- Another.\n\n## Data, machine and versions\n"),
            ("## Reproduce\n", "## More\n\n```python\nprint()\n```\n\n## Reproduce\n"),
            ("license: mit\n", "license: mit\nthumbnail: x.png\n"),
        ],
    )
    def test_what_may_be_changed(self, tmp_path, old, new):
        assert read_model_card(self.edited(tmp_path, old, new)) == contents_of()

    @pytest.mark.parametrize("name", ["Limits", "Settings", "Pictures", "Reproduce", "results"])
    def test_a_model_with_the_name_of_a_section(self, tmp_path, name):
        contents = contents_of(model_name=name)
        path = write_model_card(tmp_path, contents)
        assert read_model_card(path) == contents
        path.write_text(
            path.read_text()
            .replace("## Operating", f"## {name}\n\n## Operating")
            .replace("## Limits", f"## {name}\n\n## Limits", 1)
        )
        with pytest.raises(ValueError, match="visible|one heading 'Pictures'"):
            read_model_card(path)

    def test_line_endings_of_windows(self, tmp_path):
        path = write_model_card(tmp_path, contents_of())
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert read_model_card(path) == contents_of()

    @pytest.mark.parametrize(
        "text", ["<?", "<a ", "[", "![", "`", "*", "_", "> ", "- ", "|", "&#", "\\", "~", "a\n-|-\n"]
    )
    def test_no_text_takes_long(self, tmp_path, text):
        path = write_model_card(tmp_path, contents_of())
        path.write_text(path.read_text() + "\n" + text * 15_000)
        start = time.perf_counter()
        with contextlib.suppress(ValueError):
            read_model_card(path)
        assert time.perf_counter() - start < 10

    @pytest.mark.parametrize(
        "name", sorted({field.name for field in fields(ModelCardContents)} - {"thresholds_reached"})
    )
    def test_missing_key(self, tmp_path, name):
        path = write_model_card(tmp_path, contents_of())
        text = re.sub(rf'^  "{name}": .*\n', "", path.read_text(), flags=re.MULTILINE)
        path.write_text(text.replace(",\n}\n```", "\n}\n```"))
        with pytest.raises(ValueError, match=f"record: expected a key '{name}', but got"):
            read_model_card(path)

    @pytest.mark.parametrize(
        "message, old, new",
        [
            ("record: expected no key 'more'", '  "seeds"', '  "more": 1,\n  "seeds"'),
            (r"seeds: expected list\[int\], but got \[1, 2.5, 3\]", '"seeds": [1, 2, 3]', '"seeds": [1, 2.5, 3]'),
            (r"seeds: expected list\[int\], but got \[True", '"seeds": [1, 2, 3]', '"seeds": [true, 2, 3]'),
            (r"command: expected list\[str\], but got", '"command": ["python"', '"command": [["python"]'),
            (
                r"command: expected list\[str\], but got 'rm",
                '["python", "train.py", "--output_dir", "a b"]',
                '"rm -rf /"',
            ),
            (r"tolerance: expected float, but got '0.02'", '"tolerance": 0.02', '"tolerance": "0.02"'),
            (r"tolerance: expected float, but got inf", '"tolerance": 0.02', '"tolerance": 1e999'),
            (r"metrics: expected dict.*, but got", "[0.9, 0.8, 0.85]", "[1e308, 1e308, -1e308]"),
            (r"tolerance: expected float, but got nan", '"tolerance": 0.02', '"tolerance": NaN'),
            (r"tolerance: expected a number >= 0, but got -1", '"tolerance": 0.02', '"tolerance": -1'),
            (r"multi_label: expected bool, but got 0", '"multi_label": false', '"multi_label": 0'),
            (r"license: expected str \| None, but got \{\}", '"license": "mit"', '"license": {}'),
            (r"gamma: expected a number >?.*, but got True", '"gamma": 2.0', '"gamma": true'),
            (r"gamma: expected a number .*, but got \{'a': 1\}", '"gamma": 2.0', '"gamma": {"a": 1}'),
            (r"gamma: missing from focal_loss", '"gamma": 2.0', '"gama": 2.0'),
            (r"focal_loss: expected only .*, but got beta", '"gamma": 2.0', '"gamma": 2.0, "beta": 0.9'),
            (r"format_version: expected 1, but got 2", '"format_version": 1', '"format_version": 2'),
            (r"record: expected every key once", '"gamma": 2.0', '"gamma": 2.0, "gamma": 3.0'),
            (r"accuracy: expected one number for each of 3 seeds", "[0.9, 0.8, 0.85]", "[0.9, 0.8]"),
            (r"record: expected JSON, but got", '"tolerance": 0.02', '"tolerance": __import__("os")'),
            (r"record: expected JSON, but got Recursion", '"tolerance": 0.02', '"tolerance": ' + "[" * 100_000),
            (r"expected one block of json hf_focal, but got '0 of them'", "```json hf_focal", "```json"),
            (
                r"expected one block of json hf_focal, but got '2 of them'",
                "## Limits",
                "```json hf_focal\n{}\n```\n\n## L",
            ),
            (r"expected a model card, but got", "tags:", "tags: [unclosed\nmore:"),
            (r"expected a model card, but got", "tags:", "x: !!python/object/apply:os.system [touch hacked]\ntags:"),
            (r"expected a model card, but got", "tags:", "ignore_metadata_errors: true\ntags:"),
            (r"expected a model card, but got ValueError\('metadata with aliases", "tags:", LAUGHS),
            (r"metadata with aliases", "tags:", "a: &a [*a]\ntags:"),
            (r"more than 20 levels", "tags:", "a: " + "[" * 30 + "]" * 30 + "\ntags:"),
            (r"record: expected JSON, but got ValueError", '"tolerance": 0.02', '"tolerance": ' + "1" * 10_000),
        ],
    )
    def test_what_is_refused(self, tmp_path, monkeypatch, message, old, new):
        monkeypatch.chdir(tmp_path)
        path = self.edited(tmp_path, old, new)
        with pytest.raises(ValueError, match=message):
            read_model_card(path)
        assert not (tmp_path / "hacked").exists()

    @pytest.mark.parametrize("card", COMMITTED, ids=lambda card: "/".join(card.parts[-3:-1]))
    def test_the_cards_of_the_baselines(self, card):
        contents = read_model_card(card)
        supports = [sum(metrics["support"][0] for metrics in contents.per_class.values())]
        assert contents.multi_label or supports == [contents.num_examples]
        assert contents.dataset_split == "test" and contents.dataset_name != "files"

    def test_no_file_and_no_card(self, tmp_path):
        with pytest.raises(ValueError, match="expected a model card, but got"):
            read_model_card(tmp_path / "README.md")
        (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match="expected a model card, but got"):
            read_model_card(tmp_path / "README.md")

    def test_a_card_that_is_too_large(self, tmp_path):
        (tmp_path / "README.md").write_bytes(b"x" * (2**21 + 1))
        with pytest.raises(ValueError, match="expected at most 2,097,152 bytes, but got '2,097,153'"):
            read_model_card(tmp_path / "README.md")

    def test_no_message_has_what_a_terminal_obeys(self, tmp_path):
        """Wherever it stands in the record: in a name, in a value, in a key."""
        obeyed = ["\x1b", "\x9b", "\x07", "\u202e", "\u061c", "\u200b", "\U000e0041", "\r"]
        text = "".join(obeyed)
        path = write_model_card(tmp_path, contents_of())
        card, messages = path.read_text(), []
        start = card.index("```json hf_focal")
        for match in re.finditer(r'"[^"\\]*"', card[start:]):
            at = start + match.start() + 1
            path.write_text(card[:at] + json.dumps(text)[1:-1] + card[at:], encoding="utf-8", newline="")
            try:
                read_model_card(path)
            except ValueError as error:
                messages.append(str(error))
        assert len(messages) > 50
        assert not any(character in message for message in messages for character in obeyed)

    def test_many_unclosed_fences_take_no_time(self, tmp_path):
        (tmp_path / "README.md").write_text("---\na: b\n---\n" + "```a\n" * 30_000)
        start = time.perf_counter()
        with pytest.raises(ValueError, match="expected one block"):
            read_model_card(tmp_path / "README.md")
        assert time.perf_counter() - start < 5


@pytest.mark.usefixtures("without_drawing")
class TestContents:
    @pytest.mark.parametrize(
        "message, changes",
        [
            ("label_names: expected different names", {"label_names": ["a", "a", "b"]}),
            ("per_class: expected classes of label_names, but got", {"per_class": {"other": {"f1": [1, 1, 1]}}}),
            ("seeds: expected at least one", {"seeds": [], "metrics": {}, "per_class": {}, "wall_seconds": []}),
            ("accuracy: expected one number for each of 3 seeds, but got", {"metrics": {"accuracy": 0.5}}),
            ("metrics: expected dict.*, but got {'nll': \\[inf", {"metrics": {"nll": [float("inf"), 1.0, 2.0]}}),
            ("f1: expected one number for each of 3 seeds", {"per_class": {"ham": {"f1": [0.5]}}}),
            ("wall_seconds: expected one number for each of 3", {"wall_seconds": [1.0]}),
            ("alpha: expected one number for each of 3 classes", {"settings": {"gamma": 2, "alpha": [1.0, 2.0]}}),
            ("gamma: missing from focal_loss, which holds nothing", {"settings": {}}),
            ("focal_loss: expected an object with gamma", {"settings": [2.0]}),
            ("alpha: a scalar is for two classes", {"settings": {"gamma": 2, "alpha": 0.5}}),
            (
                "alpha: expected weights of positives in",
                {"settings": {"gamma": 2, "alpha": [0.5, 1, 2]}, "multi_label": True},
            ),
            (
                "class_prior: expected probabilities that sum to 1",
                {"settings": {"gamma": 2, "class_prior": [0.5, 0.5, 0.5]}},
            ),
            (
                "label_counts: expected whole numbers >= 0, but got",
                {"settings": {"gamma": 2, "alpha": None, "label_counts": [0.5]}},
            ),
            ("command: expected list", {"command": "python train.py"}),
        ],
    )
    def test_what_is_refused(self, message, changes):
        with pytest.raises(ValueError, match=message):
            contents_of(**changes)

    def test_numbers_of_numpy(self, tmp_path):
        contents = contents_of(
            seeds=list(np.arange(3)),
            metrics={"accuracy": list(np.float32([0.5, 0.25, 1]))},
            tolerance=np.float64(0.5),
            wall_seconds=list(np.ones(3)),
        )
        assert read_model_card(write_model_card(tmp_path, contents)) == contents
        assert type(contents.seeds[0]) is int and type(contents.tolerance) is float

    def test_this_machine(self):
        assert re.fullmatch(r".+, \d+ cores.*", describe_hardware())
        versions = package_versions()
        assert list(versions) == ["python", "torch", "transformers", "datasets", "accelerate", "hf_focal"]
        assert versions["torch"] == torch.__version__ and contents_of().versions == versions
        json.dumps(versions)


def test_without_matplotlib_a_card_has_no_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_focal._picture_text.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"no pictures without matplotlib: pip install 'hf_focal\[plots\]'"):
        path = write_model_card(tmp_path, contents_of())
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"] and "![" not in path.read_text()
    assert read_model_card(path) == contents_of()


class TestPictures:
    def test_files_and_links(self, tmp_path):
        logits, labels = random_data()
        labels = np.where(np.arange(300) % 7, labels, -100)
        text = write_model_card(tmp_path, contents_of(), logits, torch.tensor(labels)).read_text()
        for file in ("label_distribution.png", "confusion_matrix.png", "reliability_diagram.png"):
            assert (tmp_path / file).read_bytes().startswith(b"\x89PNG") and f"]({file})" in text

    def test_same_contents_same_files(self, tmp_path):
        logits, labels = random_data()
        written = []
        for name in ("a", "b"):
            write_model_card(tmp_path / name / "deep", contents_of(), logits, labels)
            written.append({path.name: path.read_bytes() for path in (tmp_path / name / "deep").iterdir()})
        assert written[0] == written[1] and len(written[0]) == 4

    def test_only_those_there_is_data_for(self, tmp_path):
        settings = {"gamma": 2.0, "alpha": None, "label_counts": None}
        assert "## Pictures" not in write_model_card(tmp_path, contents_of(settings=settings)).read_text()
        assert not list(tmp_path.glob("*.png"))
        settings = {"gamma": 1.0, "alpha": [0.2, 0.4, 0.6], "label_counts": [5, 6, 7]}
        contents = contents_of(settings=settings, multi_label=True)
        text = write_model_card(tmp_path, contents, *random_data(multi_label=True)).read_text()
        pictures = {"label_distribution.png", "precision_recall.png", "reliability_diagram.png"}
        assert {path.name for path in tmp_path.glob("*.png")} == pictures and "confusion" not in text

    @pytest.mark.parametrize("num_classes", [2, 40, 70])
    def test_any_number_of_classes(self, tmp_path, num_classes):
        names = [f"class {k}" for k in range(num_classes)]
        contents = contents_of(label_names=names, settings={"gamma": 2.0, "alpha": None}, per_class={})
        write_model_card(tmp_path, contents, *random_data(num_classes, 20))
        assert len(list(tmp_path.glob("*.png"))) == 2 + (num_classes == 2)

    def test_hostile_names(self, tmp_path):
        counts = [10] * len(HOSTILE)
        settings = {"gamma": 2.0, "alpha": None, "label_counts": counts}
        contents = contents_of(label_names=HOSTILE, settings=settings, per_class={})
        write_model_card(tmp_path, contents, *random_data(len(HOSTILE)))
        assert len(list(tmp_path.glob("*.png"))) == 3

    def test_names_that_no_font_has_are_explained(self, tmp_path):
        names = ["ham", "a|b \U000a0000", "eggs"]
        text = write_model_card(tmp_path, contents_of(label_names=names, per_class={})).read_text()
        assert "In the pictures, #1 is a&#124;b \U000a0000." in text

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_the_posterior_is_that_of_the_config(self, multi_label):
        settings = {"gamma": 2.0, "alpha": [0.2, 0.4, 0.6], "label_smoothing": 0.1, "temperature": 1.5}
        problem_type = f"{'multi' if multi_label else 'single'}_label_classification"
        config = BertConfig(num_labels=3, problem_type=problem_type, focal_loss=settings)
        logits = torch.as_tensor(random_data()[0])
        found = readings(logits, FocalSettings.from_dict(settings), multi_label)
        raw = logits.sigmoid() if multi_label else logits.softmax(-1)
        torch.testing.assert_close(found[f"raw {'sigmoid' if multi_label else 'softmax'}"], raw)
        torch.testing.assert_close(found["posterior"], posterior_from_config(logits, config))
        assert not torch.allclose(found["posterior"], raw, atol=1e-2)

    @pytest.mark.parametrize(
        "multi_label, settings, has_posterior",
        [
            (False, {"gamma": "flsd_53"}, False),
            (True, {"gamma": "flsd_53"}, False),
            (True, {"gamma": 1.0, "gamma_neg": "flsd_53"}, False),
            (False, {"gamma": 2.0, "alpha": [0.0, 1.0, 1.0]}, False),
            (True, {"gamma": 2.0, "alpha": [0.0, 0.5, 0.5]}, False),
            (True, {"gamma": 2.0, "alpha": [0.5, 0.5, 1.0]}, False),
            (True, {"gamma": 2.0, "alpha": [[0.5, 1.0, 1.0], [2.0, 0.0, 1.0]]}, False),
            (False, {"gamma": 2.0, "alpha": [0.5, 0.5, 1.0]}, True),
            (True, {"gamma": 2.0, "alpha": [[0.5, 1.0, 1.0], [2.0, 9.0, 1.0]]}, True),
            (True, {"gamma": 1.0, "gamma_neg": 4.0, "margin": 0.05}, True),
        ],
    )
    def test_with_and_without_a_posterior(self, monkeypatch, tmp_path, multi_label, settings, has_posterior):
        drawn = {}
        monkeypatch.setattr("hf_focal.model_card.reliability_diagram", lambda p, *args: drawn.update(p) or Figure())
        contents = contents_of(settings=settings, multi_label=multi_label)
        write_model_card(tmp_path, contents, *random_data(multi_label=multi_label))
        raw = "raw sigmoid" if multi_label else "raw softmax"
        assert [*drawn] == [raw, *(["posterior"] if has_posterior else [])]

    @pytest.mark.parametrize("counts, order", [(None, [0, 1, 2, 3]), ([5, 90, 90, 7], [1, 2, 3, 0])])
    def test_order_of_the_confusion_matrix(self, counts, order):
        """Most frequent first, equal ones as they are; without counts, as they are."""
        labels, predictions = [0, 0, 0, 1, 2, 2, 3], [0, 1, 1, 1, 3, 2, 0]
        figure = confusion_matrix(torch.tensor(predictions), torch.tensor(labels), ["a", "b", "c", "d"], counts)
        axes = figure.axes[0]
        expected = sklearn.metrics.confusion_matrix(labels, predictions)[order][:, order]
        (image,) = axes.get_images()
        np.testing.assert_allclose(image.get_array(), expected / expected.sum(1, keepdims=True))
        assert [text.get_text() for text in axes.texts] == [str(n) for n in expected.flatten()]
        for labels_of_axis in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert [label.get_text() for label in labels_of_axis] == ["abcd"[k] for k in order]

    def test_tokens(self, tmp_path):
        logits, labels = random_data()
        write_model_card(tmp_path / "tokens", contents_of(), logits.reshape(30, 10, 3), labels.reshape(30, 10))
        write_model_card(tmp_path / "flat", contents_of(), logits, labels)
        for file in ("confusion_matrix.png", "reliability_diagram.png"):
            assert (tmp_path / "tokens" / file).read_bytes() == (tmp_path / "flat" / file).read_bytes()

    @pytest.mark.parametrize("dtype", [int, np.float32])
    def test_one_hot_rows_are_class_ids(self, tmp_path, dtype):
        logits, labels = random_data()
        rows = np.eye(3, dtype=dtype)[labels]
        labels[::4], rows[::4] = -100, -100
        write_model_card(tmp_path / "ids", contents_of(), logits, labels)
        write_model_card(tmp_path / "rows", contents_of(), logits, rows)
        for file in ("confusion_matrix.png", "reliability_diagram.png"):
            assert (tmp_path / "rows" / file).read_bytes() == (tmp_path / "ids" / file).read_bytes()

    def test_class_probabilities(self, monkeypatch, tmp_path):
        """Confused are the most probable classes; confidence is held against the probability of the class predicted."""
        logits, noise = random_data()[0], random_data(seed=1)[0]
        probabilities = torch.tensor(logits + noise).softmax(-1)
        write_model_card(tmp_path / "ids", contents_of(), logits, probabilities.argmax(-1))
        drawn = []
        monkeypatch.setattr(
            "hf_focal.model_card.reliability_diagram",
            lambda *args: drawn.append(figure := reliability_diagram(*args)) or figure,
        )
        write_model_card(tmp_path / "rows", contents_of(), logits, probabilities)
        confused = [(tmp_path / name / "confusion_matrix.png").read_bytes() for name in ("ids", "rows")]
        assert confused[0] == confused[1]
        bars = next(bars for bars in drawn[0].axes[0].containers if bars.get_label() == "raw softmax")
        p = torch.tensor(logits).softmax(-1).max(-1).values.numpy()
        outcome = probabilities.numpy()[range(300), logits.argmax(-1)]
        bins = [(p >= low) & (p < high) for low, high in zip(BIN_EDGES, BIN_EDGES[1:])]
        expected = [spread(outcome[of].mean()) for of in bins if of.any()]
        np.testing.assert_allclose([bar.get_height() for bar in bars], expected)

    @pytest.mark.parametrize(
        "message, logits, labels",
        [
            ("labels: expected logits and labels, or neither", np.zeros((2, 3)), None),
            (r"logits: expected shape \(..., 3\), but got \(2, 4\)", np.zeros((2, 4)), [0, 1]),
            (r"labels: expected shape \(2,\) or \(2, 3\), but got \(3,\)", np.zeros((2, 3)), [0, 1, 2]),
            ("labels: expected values from 0 to 2", np.zeros((2, 3)), [0, 3]),
            ("labels: expected values from 0 to 2", np.zeros((2, 3)), [0.5, 1]),
            ("labels: expected values from 0 to 2", np.zeros((2, 3)), [-100, -100]),
            ("labels: expected values from 0 to 2", np.zeros((2, 3)), [[-100] * 3] * 2),
            ("labels: expected probabilities that sum to 1, but got a sum of 2", np.zeros((2, 3)), [[0, 1, 1]] * 2),
            (r"labels: expected probabilities in \[0, 1\]", np.zeros((2, 3)), [[-100.0, 1, 0]] * 2),
            ("logits: expected a finite largest logit", np.full((2, 3), np.nan), [0, 1]),
        ],
    )
    def test_what_is_refused(self, tmp_path, message, logits, labels):
        with pytest.raises(ValueError, match=message):
            write_model_card(tmp_path, contents_of(), logits, labels)
        assert not (tmp_path / "README.md").exists()


class TestTolerance:
    def test_is_the_largest_of_three(self):
        contents = contents_of(
            metrics={"f1_macro": [0.9, 0.5, 0.8], "accuracy": [0.5, 0.81, 0.8]},
            per_class={"ham": {"recall": [0.5, 1.0, 1.0], "support": [4, 4, 4]}, "spam": {"recall": [0.1, 0.2, 0.7]}},
        )
        assert contents.tolerance_of(0, "f1_macro") == pytest.approx(0.3)  # of the other two
        assert contents.tolerance_of(1, "f1_macro") == pytest.approx(0.1)
        assert contents.tolerance_of(0, "accuracy") == 0.02
        assert contents.tolerance_of(0, "recall", "ham") == 0.5  # 1 / sqrt(4)
        assert contents.tolerance_of(0, "recall", "spam") == pytest.approx(0.5)

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_without_other_seeds_to_compare(self, seeds):
        contents = contents_of(
            seeds=[*range(seeds)], metrics={"f1_macro": [0.9, 0.1][:seeds]}, per_class={}, wall_seconds=[]
        )
        assert contents.tolerance_of(0, "f1_macro") == 0.02

    def test_is_in_the_card(self, tmp_path, without_drawing):
        text = write_model_card(tmp_path, contents_of(per_class={"ham": {"support": [4, 4, 4]}})).read_text()
        assert "the largest of 0.02, 1/√n for a class with n test examples and the range of the other seeds." in text
        few = contents_of(seeds=[1], metrics={"f1_macro": [0.9]}, per_class={}, wall_seconds=[])
        assert (
            "otherwise they should differ by at most 0.02. The record" in write_model_card(tmp_path, few).read_text()
        )
