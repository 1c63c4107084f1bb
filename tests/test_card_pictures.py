"""The pictures of a model card show what is so: each bar, interval, curve and point is computed again here."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_score, recall_score

from hf_focal import FocalSettings
from hf_focal._card_pictures import (
    BIN_EDGES,
    precision_recall_curves,
    prior_note,
    reliability_diagram,
    spread,
)


@pytest.fixture(autouse=True)
def without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestReliability:
    @pytest.mark.parametrize("lowest", [0.5, 0.9901, 0.9999])
    def test_bars_intervals_and_counts(self, tmp_path, lowest):
        rng = np.random.default_rng(0)
        confidence = rng.uniform(lowest, 1, 400)
        is_right = rng.random(400) < 0.9
        p = torch.tensor(np.stack([confidence, 1 - confidence], 1))
        targets = torch.tensor(np.stack([is_right, ~is_right], 1)).double()
        figure = reliability_diagram({"posterior": p}, targets, False, "test split, $ n = 400")
        figure.savefig(tmp_path / "picture.png")
        above, below = figure.axes
        bins = [(confidence >= low) & (confidence < high) for low, high in zip(BIN_EDGES, BIN_EDGES[1:])]
        bins = [of for of in bins if of.any()]
        (bars,), (counts,) = above.containers, below.containers
        assert [bar.get_height() for bar in bars] == pytest.approx([float(spread(is_right[of].mean())) for of in bins])
        assert [bar.get_height() for bar in counts] == [of.sum() for of in bins]
        assert [text.get_text() for text in below.texts] == [f"{of.sum():,}" for of in bins]
        intervals, marks = (lines.get_segments() for lines in above.collections)
        for of, interval, mark in zip(bins, intervals, marks):
            low, high = binomtest(int(is_right[of].sum()), int(of.sum())).proportion_ci(method="wilson")
            assert interval[:, 1] == pytest.approx([float(spread(low)), float(spread(high))])
            assert mark[:, 1] == pytest.approx([float(spread(confidence[of].mean()))] * 2)
        assert figure.get_suptitle() == "test split, $ n = 400"

    def test_a_corner_has_as_much_room_as_the_rest(self):
        """A tenth of the width or more for each bar, although all lie between 0.99 and 1."""
        confidence = np.linspace(0.9901, 0.99999, 100)
        p = torch.tensor(np.stack([confidence, 1 - confidence], 1))
        figure = reliability_diagram({"posterior": p}, torch.tensor([[1.0, 0.0]] * 100), False)
        left, right = figure.axes[0].get_xlim()
        (bars,) = figure.axes[0].containers
        assert len(bars) == 2 and all(bar.get_width() > 0.1 * (right - left) for bar in bars)

    def test_several_labels_and_what_is_not_known(self):
        p = torch.tensor([[0.15, 0.95], [0.15, 0.5]]).double()
        figure = reliability_diagram({"a": p, "b": p}, torch.tensor([[1.0, 1.0], [0.0, -100.0]]), True)
        first, second = figure.axes[0].containers
        assert [bar.get_height() for bar in first] == [bar.get_height() for bar in second] == [spread(0.5), spread(1)]
        assert [bar.get_height() for bar in figure.axes[1].containers[0]] == [2, 1]


class TestPrecisionAndRecall:
    @pytest.mark.parametrize("positive", [0, 1])
    @pytest.mark.parametrize("thresholds", [None, [0.3]])
    def test_two_classes(self, positive, thresholds):
        rng = np.random.default_rng(0)
        truth = rng.random(500) < 0.1
        score = np.clip(rng.normal(0.3 + 0.3 * truth, 0.15), 0.01, 0.99)
        p = np.stack([1 - score, score], 1)[:, :: 1 if positive else -1]
        ids = truth.astype(int) if positive else 1 - truth.astype(int)
        decided = torch.tensor(p.argmax(1))
        counts = [900, 100][:: 1 if positive else -1]
        settings = FocalSettings(gamma=0.0, label_counts=counts, thresholds=thresholds, positive_label=positive)
        targets = torch.nn.functional.one_hot(torch.tensor(ids), 2).double()
        names = ["$a", "$b"]
        figure = precision_recall_curves(
            torch.tensor(p.copy()), targets, decided, names, settings, False, "of the test"
        )
        figure.canvas.draw()
        (axes,) = figure.axes
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert f"average precision {average_precision_score(truth, score):.3f}, {truth.sum()} positives" in texts[0]
        assert texts[0].endswith(names[positive]) and ("threshold 0.3 (dot)" in texts[0]) == (thresholds is not None)
        of = [(score >= 0.3) if thresholds else None, decided.numpy() == positive]
        points = [line for line in axes.lines if line.get_marker() in ("o", "D")]
        for line, guess in zip(points, [guess for guess in of if guess is not None], strict=True):
            expected = recall_score(truth, guess), precision_score(truth, guess)
            assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx(expected)

    def test_the_rarest_of_several_labels(self):
        rng = np.random.default_rng(0)
        shares = np.array([0.3, 0.002, 0.2, 0.1, 0.25, 0.4, 0.35])
        truth = (rng.random((1000, 7)) < shares).astype(int)
        p = np.clip(rng.normal(0.3 + 0.3 * truth, 0.15), 0.01, 0.99)
        targets = torch.tensor(truth).double()
        targets[:100, 3] = -100
        settings = FocalSettings(gamma=0.0, label_counts=(1000 * shares).astype(int).tolist(), thresholds=[0.4] * 7)
        decided = torch.tensor(p > 0.4).long()
        figure = precision_recall_curves(torch.tensor(p), targets, decided, [*"abcdefg"], settings, True)
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        # The label of two positives has no curve.
        assert [text[-1] for text in texts[1:-1]] == [*"dceag"] and texts[0].endswith("all labels")
        known = truth[100:, 3], p[100:, 3]
        assert f"average precision {average_precision_score(*known):.3f}, {known[0].sum()} positives" in texts[1]
        is_known = (targets != -100).numpy()
        expected = [score(truth[is_known], (p > 0.4)[is_known]) for score in (recall_score, precision_score)]
        point = next(line for line in figure.axes[0].lines if line.get_marker() == "D")
        assert [point.get_xdata()[0], point.get_ydata()[0]] == pytest.approx(expected)

    def test_where_there_is_no_curve(self):
        settings, p = FocalSettings(gamma=0.0), torch.tensor([[0.5, 0.5]] * 4)
        only_one = torch.tensor([[1.0, 0.0]] * 4)
        assert precision_recall_curves(p, only_one, torch.zeros(4).long(), ["a", "b"], settings, False) is None
        assert precision_recall_curves(p, 0 * only_one, torch.zeros(4, 2).long(), ["a", "b"], settings, True) is None
        three = torch.eye(3)
        assert precision_recall_curves(three, three, three.argmax(1), ["a", "b", "c"], settings, False) is None


class TestPriorNote:
    def test_of_the_class_that_differs_most(self):
        targets = torch.nn.functional.one_hot(torch.tensor([0] * 50 + [1] * 50), 2).double()
        note = prior_note(targets, [0.9, 0.1], ["ham", "spam"], False)
        assert note.endswith("the largest difference: 50 % here and 90 % in training for ham")
        assert prior_note(targets, [0.5, 0.5], ["ham", "spam"], False).startswith(
            "Class frequencies here are the same as in training"
        )
        assert prior_note(targets, [0.45, 0.55], ["ham", "spam"], False).endswith("as in training, up to chance")
        assert prior_note(targets, None, ["ham", "spam"], False) == ""

    def test_of_several_labels(self):
        targets = torch.tensor([[1.0, 0.0], [0.0, -100.0]] * 100)
        assert prior_note(targets, [0.5, 0.0], ["a", "b"], True).startswith("Class frequencies here are the same")
        assert "50 % here and 10 % in training for a" in prior_note(targets, [0.1, 0.0], ["a", "b"], True)
        assert "0 % here and 30 % in training for b" in prior_note(targets, [0.5, 0.3], ["a", "b"], True)

    def test_of_a_class_that_training_has_not(self):
        targets = torch.nn.functional.one_hot(torch.tensor([0] * 99 + [1]), 2).double()
        assert "99 % here and 100 % in training for ham" in prior_note(targets, [1.0, 0.0], ["ham", "spam"], False)
