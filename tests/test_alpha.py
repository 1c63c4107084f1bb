"""Class weights against the formulas, what a person sees of a distribution, and the errors."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from sklearn.utils.class_weight import compute_class_weight

import hf_focal
from hf_focal import LabelDistribution, compute_alpha
from hf_focal.alpha import main


LABELS = [0] * 60 + [1] * 25 + [2] * 14 + [3]
COUNTS = np.array([60.0, 25.0, 14.0, 1.0])
NAMES = ["politics", "sports", "tech", "chess"]
MULTI_HOT = [[1, 0], [1, 1], [1, 0], [0, 0], [1, 0]]


def dataset(labels=LABELS, feature=None, column="label"):
    return Dataset.from_dict({column: labels}, features=feature and Features({column: feature}))


class TestWeights:
    def test_inverse_is_scikit_learns_balanced(self):
        expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
        np.testing.assert_allclose(compute_alpha(LABELS), expected, rtol=1e-6)

    @pytest.mark.parametrize(
        "method, weights",
        [
            ("inverse", 1 / COUNTS),
            ("sqrt_inverse", 1 / np.sqrt(COUNTS)),
            ("effective_number", 1 / np.array([sum(0.9**i for i in range(int(n))) for n in COUNTS])),
        ],
    )
    def test_formula_and_scale(self, method, weights):
        alpha = compute_alpha(LABELS, method, beta=0.9)
        assert alpha.dtype == torch.float32 and alpha.shape == (4,)
        np.testing.assert_allclose(alpha / alpha[0], weights / weights[0], rtol=1e-6)
        assert alpha[LABELS].mean().item() == pytest.approx(1, rel=1e-6)

    def test_effective_number_lies_between_uniform_and_inverse(self):
        assert compute_alpha(LABELS, "effective_number", beta=0).tolist() == [1, 1, 1, 1]
        np.testing.assert_allclose(
            compute_alpha(LABELS, "effective_number", beta=1 - 1e-9), compute_alpha(LABELS), rtol=1e-6
        )

    @pytest.mark.parametrize(
        "method, weight",
        [
            ("inverse", lambda n: 1 / n),
            ("sqrt_inverse", lambda n: n**-0.5),
            ("effective_number", lambda n: 0.1 / (1 - 0.9**n)),
            (lambda counts: list(1 / (counts + 5)), lambda n: 1 / (n + 5)),
        ],
    )
    def test_the_negatives_and_positives_of_a_label_are_weighed_as_two_classes(self, method, weight):
        rng = np.random.default_rng(0)
        counts = rng.integers(1, 1000, (2, 30))  # negatives, then positives, unknown for unequal parts of the rows
        alpha = LabelDistribution(counts[1], negatives=counts[0]).alpha(method, beta=0.9)
        assert alpha.dtype == torch.float32 and alpha.shape == (2, 30)
        np.testing.assert_allclose(alpha[1] / alpha[0], weight(counts[1]) / weight(counts[0]), rtol=1e-5)
        np.testing.assert_allclose((counts * alpha.numpy()).sum(0) / counts.sum(0), np.ones(30), rtol=1e-6)
        if method == "inverse":
            np.testing.assert_allclose(*(counts * alpha.numpy()), rtol=1e-6)

    def test_multi_label_by_hand(self):
        np.testing.assert_allclose(compute_alpha(MULTI_HOT), [[5 / 2, 5 / 8], [5 / 8, 5 / 2]], rtol=1e-6)

    @pytest.mark.parametrize("method", [lambda counts: counts**-0.25, lambda counts: list(1 / (counts + 5))])
    def test_own_function_of_the_counts(self, method):
        weights = np.array(method(COUNTS))
        alpha = compute_alpha(LABELS, method)
        np.testing.assert_allclose(alpha / alpha[0], weights / weights[0], rtol=1e-6)
        assert alpha[LABELS].mean().item() == pytest.approx(1, rel=1e-6)

    def test_none_is_no_alpha(self):
        assert compute_alpha(LABELS, "none") is None

    def test_max_ratio_caps_the_largest_weights(self):
        alpha, capped = compute_alpha(LABELS), compute_alpha(LABELS, max_ratio=5)
        assert alpha.max() / alpha.min() == pytest.approx(60)
        assert capped.max() / capped.min() == pytest.approx(5, rel=1e-6)
        assert capped[LABELS].mean().item() == pytest.approx(1, rel=1e-6)
        torch.testing.assert_close(capped[1] / capped[0], alpha[1] / alpha[0])  # below the cap nothing moves
        torch.testing.assert_close(compute_alpha(LABELS, max_ratio=60), alpha)

    def test_max_ratio_is_that_of_each_label(self):
        # Inverse counts 8 : 2 and 1 : 9, both capped at 2 : 1, and 3 : 2, which is below the cap.
        distribution = LabelDistribution([8, 1, 3], negatives=[2, 9, 2])
        expected = [[2 / 1.2, 1 / 1.1, 1.25], [1 / 1.2, 2 / 1.1, 1.25 * 2 / 3]]
        np.testing.assert_allclose(distribution.alpha(max_ratio=2), expected, rtol=1e-6)

    @pytest.mark.parametrize("empty_weight", [0, 1, 7.5])
    def test_weight_of_classes_without_examples_is_a_choice(self, empty_weight):
        alpha = compute_alpha([0, 0, 0, 2], num_labels=4, empty_weight=empty_weight)
        full = compute_alpha([0, 0, 0, 1])
        np.testing.assert_allclose(alpha, [full[0], empty_weight, full[1], empty_weight], rtol=1e-6)

    def test_weight_of_labels_without_positives_or_negatives(self):
        alpha = compute_alpha([[1, 0, 1], [1, 0, 0]], empty_weight=7)
        assert alpha.tolist() == [[7, 1, 1], [1, 7, 1]]

    @pytest.mark.parametrize("method", ["inverse", "sqrt_inverse", "effective_number", lambda counts: 1 / counts])
    @pytest.mark.parametrize("empty_weight", [0, 1e-3, 1, 100])
    def test_max_ratio_is_that_of_all_weights(self, method, empty_weight):
        arguments = {"empty_weight": empty_weight, "beta": 0.9}
        distribution = LabelDistribution([60, 0, 14, 1])
        alpha = distribution.alpha(method, max_ratio=5, **arguments)
        assert alpha.max() / alpha.min() == pytest.approx(5, rel=1e-6)
        torch.testing.assert_close(
            alpha[[0, 2, 3]], LabelDistribution([60, 14, 1]).alpha(method, max_ratio=5, beta=0.9)
        )
        labels = LabelDistribution([3, 0, 4, 1], negatives=[1, 4, 0, 3])
        ratios = labels.alpha(method, max_ratio=2, **arguments).aminmax(dim=0)
        assert (ratios.max / ratios.min <= 2 + 1e-6).all()

    def test_an_empty_weight_within_the_ratio_is_kept(self):
        # 0.8 and 1.6: the weights 1/3 and 2/3 average to 1 over 3 examples and 1 example after times 2.4.
        np.testing.assert_allclose(
            LabelDistribution([3, 0, 1]).alpha(max_ratio=2, empty_weight=1), [0.8, 1, 1.6], rtol=1e-6
        )
        np.testing.assert_allclose(
            LabelDistribution([3, 0, 1]).alpha(max_ratio=2, empty_weight=9), [0.8, 1.6, 1.6], rtol=1e-6
        )
        np.testing.assert_allclose(
            LabelDistribution([3, 0, 1]).alpha(max_ratio=2, empty_weight=0), [0.8, 0.8, 1.6], rtol=1e-6
        )

    @pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e200, 1e308])
    def test_the_scale_of_a_function_does_not_matter(self, scale):
        assert compute_alpha([0, 1, 1], lambda counts: [scale, scale]).tolist() == [1, 1]
        assert compute_alpha(MULTI_HOT, lambda counts: [scale, scale]).tolist() == [[1, 1], [1, 1]]

    def test_what_the_caller_changes_afterwards_changes_nothing(self):
        counts, names = np.array([3, 1]), ["a", "b"]
        distribution = LabelDistribution(counts, negatives=counts, names=names)
        labels = np.array([0, 0, 0, 1])
        counted = LabelDistribution.from_dataset(labels)
        counts[0], names[0], labels[:] = 9, "z", 1
        assert distribution.counts.tolist() == distribution.negatives.tolist() == counted.counts.tolist() == [3, 1]
        assert distribution.names == ["a", "b"]
        feature = ClassLabel(names=["x", "y"])
        LabelDistribution.from_dataset(dataset([0, 1], feature=feature)).names[0] = "z"
        assert feature.names == ["x", "y"]


class TestDistribution:
    def test_numbers(self):
        distribution = LabelDistribution.from_dataset(dataset(feature=ClassLabel(names=NAMES)))
        assert distribution.counts.tolist() == [60, 25, 14, 1] and distribution.names == NAMES
        assert (distribution.num_labels, distribution.total, distribution.imbalance_ratio) == (4, 100, 60)
        assert distribution.shares.tolist() == [0.6, 0.25, 0.14, 0.01]
        assert LabelDistribution([3, 0]).imbalance_ratio == math.inf
        assert LabelDistribution.from_dataset(MULTI_HOT).shares.tolist() == [0.8, 0.2]

    def test_compute_alpha_is_its_alpha(self):
        distribution = LabelDistribution.from_dataset(LABELS)
        arguments = {"method": "effective_number", "beta": 0.9, "max_ratio": 4}
        torch.testing.assert_close(distribution.alpha(**arguments), compute_alpha(LABELS, **arguments))

    def test_repr_is_a_table(self):
        lines = repr(LabelDistribution([1, 1234, 20], names=["c", "a", "b"])).splitlines()
        assert lines[0] == "LabelDistribution: 1,255 labels of 3 classes, 1,234.0 : 1"
        assert [line.split() for line in lines[1:]] == [
            ["class", "count", "share"],
            ["a", "1,234", "98.33", "%"],
            ["b", "20", "1.59", "%"],
            ["c", "1", "0.08", "%"],
        ]
        assert len(repr(LabelDistribution(range(1, 1000))).splitlines()) < 30
        assert "in 5 rows (a sample)" in repr(LabelDistribution([9], num_rows=5, is_sample=True))

    def test_a_name_may_be_missing(self):
        data = dataset([0, 1, 1], feature=ClassLabel(names=[None, "a"]))
        distribution = LabelDistribution.from_dataset(data)
        assert distribution.names == ["None", "a"] and "None" in repr(distribution)
        assert "| None | 1 |" in distribution.to_markdown()

    def test_markdown_cannot_be_broken_by_a_class_name(self):
        names = ["a|b", "two\nlines", "<script>"]
        markdown = LabelDistribution([3, 2, 1], names=names).to_markdown(torch.tensor([0.5, 1.0, 2.0]))
        lines = markdown.splitlines()
        assert len(lines) == 5 and all(line.count("|") == 5 for line in lines)
        assert "<" not in markdown and lines[2] == "| a&#124;b | 3 | 50.00 % | 0.5 |"

    def test_pairs_of_weights_are_two_columns_and_two_series(self):
        distribution = LabelDistribution([8, 1], negatives=[2, 9], names=["a", "b"])
        alpha = distribution.alpha()
        lines = distribution.to_markdown(alpha).splitlines()
        assert lines[0] == "| class | count | share | alpha of negatives | alpha of positives |"
        assert lines[2:] == ["| a | 8 | 80.00 % | 2.5 | 0.625 |", "| b | 1 | 10.00 % | 0.556 | 5 |"]
        series = distribution.plot(alpha).axes[1].lines
        assert [line.get_ydata().tolist() for line in series] == alpha.tolist()

    @pytest.mark.parametrize("counts", [[60, 25, 14, 1], [5, 5], range(1, 200), [3, 0]])
    @pytest.mark.parametrize("with_alpha", [False, True])
    def test_plot(self, tmp_path, counts, with_alpha):
        distribution = LabelDistribution(counts, names=["$x_{$"] * len(counts))
        alpha = distribution.alpha(empty_weight=1) if with_alpha else None
        figure = distribution.plot(alpha, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        heights = [bar.get_height() for bar in figure.axes[0].patches]
        assert heights == sorted(counts, reverse=True)
        assert figure.axes[0].get_yscale() == ("symlog" if max(counts) > 20 * max(1, min(counts)) else "linear")
        bottom, top = figure.axes[0].get_ylim()
        assert bottom == 0 and top > max(counts)  # each bar is there, from its ground to its top
        shown = [text.get_text() for text in figure.axes[0].texts]
        assert shown == ([f"{count:,}" for count in heights] if len(counts) <= 120 else [])
        if with_alpha:
            order = np.argsort(-distribution.counts, kind="stable")
            np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), alpha[order])

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            ("counts: expected one whole number >= 0 per class", {"counts": [1, -1]}),
            ("counts: expected one whole number >= 0 per class", {"counts": [0.5]}),
            ("counts: expected one whole number >= 0 per class", {"counts": []}),
            ("counts: expected one whole number >= 0 per class", {"counts": [[1], [1, 2]]}),
            ("counts: expected one whole number >= 0 per class", {"counts": [1, 2**70]}),
            (
                "counts: expected whole numbers whose sum is less than",
                {"counts": np.array([1, 2**64 - 100], np.uint64)},
            ),
            ("counts: expected whole numbers whose sum is less than", {"counts": [2**62, 2**62]}),
            ("names: expected one for each class, but got 'ab'", {"counts": [1, 2], "names": "ab"}),
            ("names: expected one for each class, but got 5", {"counts": [1, 2], "names": 5}),
            ("names: expected one for each of 2 classes, but got 1", {"counts": [1, 2], "names": ["a"]}),
            ("negatives: expected one for each of 2 classes, but got 1", {"counts": [1, 2], "negatives": [1]}),
        ],
    )
    def test_refuses(self, message, kwargs):
        with pytest.raises(ValueError, match=message):
            LabelDistribution(**kwargs)


class TestWithoutMatplotlib:
    @pytest.fixture(autouse=True)
    def without_matplotlib(self, monkeypatch):
        monkeypatch.setattr("hf_focal._picture_text.find_spec", lambda name: None)

    def test_plot_says_what_to_install(self):
        with pytest.raises(ImportError, match=r"^plot: pictures require matplotlib: pip install 'hf_focal\[plots\]'$"):
            LabelDistribution([3, 1]).plot()

    def test_the_command_says_so_before_it_counts(self, tmp_path, capsys):
        (tmp_path / "data.csv").write_text("label\n0\n1\n")
        with pytest.raises(SystemExit):
            main([str(tmp_path / "data.csv"), "--plot", "labels.png"])
        printed = capsys.readouterr()
        assert "error: --plot: pictures require matplotlib" in printed.err and not printed.out


class TestCommand:
    @pytest.fixture
    def frame(self):
        return pd.DataFrame({"text": ["x"] * 100, "label": [NAMES[k] for k in LABELS], "id": range(100), "y": LABELS})

    @pytest.fixture(params=["csv", "json", "jsonl", "parquet", "arrow", "saved", "saved_splits"])
    def path(self, request, tmp_path, frame):
        path = tmp_path / f"data.{request.param}"
        if request.param == "csv":
            frame.to_csv(path)
        elif request.param in ("json", "jsonl"):
            frame.to_json(path, orient="records", lines=True)
        elif request.param == "parquet":
            frame.to_parquet(path)
        else:
            data = Dataset.from_pandas(frame)
            path = tmp_path / "saved"
            (data if request.param != "saved_splits" else DatasetDict(train=data)).save_to_disk(path)
            if request.param == "arrow":
                (path,) = path.glob("*.arrow")
        return path

    def test_prints_the_table_and_writes_the_picture(self, path, tmp_path, capsys):
        main([str(path), "--method", "sqrt_inverse", "--plot", str(tmp_path / "plot.svg")])
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == "100 labels of 4 classes, 60.0 : 1"
        alpha = sorted(compute_alpha(LABELS, "sqrt_inverse").tolist())
        rows = [line.split() for line in printed[3:7]]
        assert [row[0] for row in rows] == NAMES and [float(row[-1]) for row in rows] == pytest.approx(alpha, rel=5e-3)
        assert (tmp_path / "plot.svg").is_file()

    def test_column_of_ids_and_a_sample(self, path, capsys):
        main([str(path), "--column", "y", "--max_rows", "50", "--empty_weight", "1"])
        assert "(a sample)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "message, arguments",
        [
            ("no such file or folder", ["missing.csv"]),
            ("expected a file with one of the extensions .csv, .json", ["text.txt"]),
            ("column: expected 'nope' in the data, whose columns are ['label']", ["good.csv", "--column", "nope"]),
            ("no examples of class 1, 2", ["gap.csv"]),
            ("", ["broken.parquet"]),
            ("", ["someone/no_such_dataset"]),
            ("error: --max_ratio: expected a number >= 1, but got 0.5", ["good.csv", "--max_ratio", "0.5"]),
            ("error: --column: expected exactly one of 'label' and 'labels'", ["other.csv"]),
            ("; set --column", ["other.csv"]),
            ("leave the classes out of the labels, or set --empty_weight", ["gap.csv"]),
            ("also holds [1]; map the labels to 0..C-1, or set --num_labels", ["good.csv", "--num_labels", "1"]),
            ("", ["good.csv", "--plot", "no_such_folder/plot.png"]),
        ],
    )
    def test_what_is_wrong_is_one_line(self, tmp_path, monkeypatch, capsys, message, arguments):
        files = {"text.txt": "x", "good.csv": "label\n0\n1\n", "gap.csv": "label\n0\n3\n"}
        files |= {"broken.parquet": "PAR1", "other.csv": "y\n0\n"}
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 1
        printed = capsys.readouterr().err
        last = printed.strip().splitlines()[-1]
        assert last.startswith("python -m hf_focal.alpha: error: ") and message in last
        assert "Traceback" not in printed

    def test_as_a_command(self, tmp_path):
        (tmp_path / "good.csv").write_text("label\n0\n1\n")
        command = [sys.executable, "-m", "hf_focal.alpha", "good.csv"]
        environment = {**os.environ, "PYTHONPATH": str(Path(hf_focal.__file__).parents[1])}
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0 and run.stdout.startswith("2 labels of 2 classes, 1.0 : 1\n")


@pytest.mark.parametrize(
    "message, data, kwargs",
    [
        ("method: expected one of inverse, .*, none, or a function .* but got 'magic'", [0], {"method": "magic"}),
        (r"beta: expected a number in \[0, 1\), but got 1", [0], {"beta": 1}),
        ("beta: expected a number", [0, 1], {"beta": "0.9"}),
        ("max_ratio: expected a number >= 1, but got 0.5", [0, 1], {"max_ratio": 0.5}),
        ("empty_weight: expected a finite number >= 0, but got -1", [0, 1], {"empty_weight": -1}),
        ("empty_weight: expected a finite number", [0, 1], {"empty_weight": 1e300}),  # in float32 it is infinite
        ("empty_weight: expected a finite number", [0, 1], {"empty_weight": 10**400}),
        ("max_ratio: expected a number", [0, 1], {"max_ratio": 10**400}),
        ("max_ratio: expected a number", [0, 1], {"max_ratio": True}),
        ("max_ratio: expected weights above 0", [0, 1], {"method": lambda counts: [0, 1], "max_ratio": 2}),
        ("method: .* one number >= 0 per class, and not 0 for all", [0, 1], {"method": lambda counts: [0, 0]}),
        ("method: .* one number >= 0 per class, .* got {}", [0, 1], {"method": lambda counts: {}}),
        ("method: .* one number >= 0 per class, .* got None", [0, 1], {"method": lambda counts: None}),
        ("method: .* one number >= 0 per class, .* got ", [0, 1], {"method": lambda counts: ["a", "b"]}),
        ("method: .* one number >= 0 per class, .* got ", [0, 1], {"method": lambda counts: counts * (1 + 1j)}),
        # Label 0 has two rows and lacks two: it would weigh 0 / 0.
        ("method: .* not 0 for all", [[1, 1], [1, 0], [0, 0], [0, 0]], {"method": lambda counts: counts != 2}),
        (r"no examples of class 1, 2, .*; add examples, .*, or set empty_weight$", [0, 3], {}),
        ("method: expected a function that returns one number >= 0 per class", [0, 1], {"method": lambda counts: 1}),
        (
            "method: expected a function that returns one number >= 0 per class",
            [0, 1],
            {"method": lambda counts: -counts},
        ),
        (r"no examples of class 2 \('tech'\)", dataset([0, 1, 3], feature=ClassLabel(names=NAMES)), {}),
        ("no examples of class 1, 2, so", [0, 3], {}),
        (r"class 1 \('b'\), 2 \('2'\), so", dataset([0], feature=ClassLabel(names=["a", "b"])), {"num_labels": 3}),
        ("no examples of class 0", [[0, 1], [0, 0]], {}),
        ("no negative examples of class 1", [[0, 1], [1, 1]], {}),
    ],
)
def test_refuses(message, data, kwargs):
    with pytest.raises(ValueError, match=message):
        compute_alpha(data, **kwargs)


@pytest.mark.parametrize("kwargs", [{"method": "magic"}, {"beta": 1}, {"max_ratio": 0.5}, {"empty_weight": -1}])
def test_refuses_arguments_before_it_reads_the_data(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        compute_alpha(object(), **kwargs)


@pytest.mark.parametrize("alpha", [0.25, [1.0, 2.0, 3.0], torch.ones(4, 2)])
def test_weights_that_do_not_fit_a_table(alpha):
    distribution = LabelDistribution(counts=[1, 2], negatives=[3, 2])
    for show in (distribution.to_text, distribution.to_markdown, distribution.plot):
        with pytest.raises(ValueError, match="^alpha: expected one weight for each of 2 classes"):
            show(alpha)


def test_of_a_label_that_is_nowhere_known_there_is_no_share():
    distribution = LabelDistribution.from_dataset([[1.0, -100.0], [0.0, -100.0]])
    assert distribution.shares[0] == 0.5 and np.isnan(distribution.shares[1])
    assert "nan" not in distribution.to_markdown() and "–" in distribution.to_markdown()
