"""Thresholds: the best of all for what is wanted, and what they reach."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import f1_score, fbeta_score, precision_score, recall_score

from hf_focal import fit_thresholds
from hf_focal.thresholds import ThresholdCriterion, reached_by, wilson_interval


class TestThresholds:
    def test_no_other_threshold_has_a_larger_f1(self):
        generator = torch.Generator().manual_seed(0)
        posterior = torch.rand(200, 5, generator=generator) ** 3
        labels = torch.bernoulli(posterior, generator=generator).long()
        for k, threshold in enumerate(fit_thresholds(posterior, labels)):
            thresholds = torch.cat([torch.tensor([threshold, 0.5]), posterior[:, k]])
            predicted = (posterior[:, k] >= thresholds[:, None]).long()
            best, at_half, *others = 2 * predicted @ labels[:, k] / (predicted.sum(1) + labels[:, k].sum())
            assert best == pytest.approx(max(others)) and best > at_half

    def test_is_half_the_best_f1_for_calibrated_probabilities(self):
        generator = torch.Generator().manual_seed(0)
        posterior = torch.rand(200_000, generator=generator) ** 2
        labels = torch.bernoulli(posterior, generator=generator)
        (threshold,) = fit_thresholds(posterior, labels)
        assert threshold == pytest.approx(f1_score(labels, posterior >= threshold) / 2, abs=0.02)

    def test_label_without_positives_keeps_its_default(self):
        posterior, labels = torch.rand(10, 2), torch.tensor([[1, 0]] * 10)
        assert fit_thresholds(posterior, labels)[1] == 0.5
        assert fit_thresholds(posterior, labels, default=0.4)[1] == 0.4

    def test_label_of_a_poor_f1_keeps_its_default(self):
        posterior = torch.linspace(0.01, 0.4, 40).repeat(2, 1).T
        labels = torch.zeros(40, 2)
        labels[10, 0] = labels[39, 1] = 1  # in the middle, and on top
        everything, top = fit_thresholds(posterior, labels)
        assert (posterior[:, 0] >= everything).sum() == 30 and (posterior[:, 1] >= top).sum() == 1
        assert fit_thresholds(posterior, labels, min_f1=2 / 31 + 1e-9) == [0.5, top]
        assert fit_thresholds(posterior, labels, min_f1=2 / 31 - 1e-9) == [everything, top]
        assert fit_thresholds(posterior, labels, min_f1=0.9, default=0.7) == [0.7, top]

    def test_labels_of_few_positives_share_a_threshold(self):
        generator = torch.Generator().manual_seed(0)
        posterior = torch.rand(200, 4, generator=generator)
        labels = torch.rand(200, 4, generator=generator) < posterior * torch.tensor([1.0, 0.05, 0.04, 0.03])
        labels = labels.long()
        labels[:20, 3] = -100
        alone = fit_thresholds(posterior, labels)
        rare = int((labels == 1)[:, 1:].sum(0).max()) + 1
        first, *others = fit_thresholds(posterior, labels, min_positives=rare)
        known = labels[:, 1:] != -100
        (pooled,) = fit_thresholds(posterior[:, 1:][known], labels[:, 1:][known])
        assert first == alone[0] and others == [pooled] * 3 and len({*alone}) == 4

    def test_lies_between_two_probabilities(self):
        assert fit_thresholds(torch.tensor([0.2, 0.6]), torch.tensor([0, 1])) == [pytest.approx(0.4)]
        assert fit_thresholds(torch.tensor([0.2, 0.6]), torch.tensor([1, 1])) == [pytest.approx(0.1)]
        assert 0 < fit_thresholds(torch.tensor([0.0, 0.0]), torch.tensor([1, 1]))[0] < 1

    @pytest.mark.parametrize(
        "message, posterior, labels",
        [
            (
                r"labels: expected the shape of posterior.* but got \(3,\) for \(2, 3\)",
                torch.rand(2, 3),
                torch.zeros(3),
            ),
            ("labels: expected the shape of posterior", torch.rand(0, 3), torch.zeros(0, 3)),
            (r"labels: expected values in \[0, 1\], but got 0 to 2", torch.rand(2), torch.tensor([0, 2])),
            (r"posterior: expected values in \[0, 1\]", torch.tensor([0.5, float("nan")]), torch.tensor([0, 1])),
        ],
    )
    def test_wrong_arguments_are_refused(self, message, posterior, labels):
        with pytest.raises(ValueError, match=message):
            fit_thresholds(posterior, labels)

    @pytest.mark.parametrize("name, value", [("default", 2.0), ("min_f1", -0.1), ("min_positives", -1)])
    def test_settings_out_of_their_range_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name}: expected a (finite )?number .*, but got {value}"):
            fit_thresholds(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), **{name: value})


def test_thresholds_refuse_what_is_no_answer_and_no_number_of_positives():
    posterior = torch.tensor([0.2, 0.7])
    with pytest.raises(ValueError, match="^labels: expected 0, 1 or -100"):
        fit_thresholds(posterior, torch.tensor([0.3, 0.7]))
    with pytest.raises(ValueError, match="^min_positives: expected a finite number >= 0, but got None"):
        fit_thresholds(posterior, torch.tensor([0, 1]), min_positives=None)


class TestCriterion:
    """Of all thresholds, those between two probabilities, none is better for what is wanted."""

    generator = torch.Generator().manual_seed(0)
    posterior = torch.rand(300, generator=generator).double()
    labels = torch.bernoulli(posterior**2, generator=generator).long()
    weights = torch.rand(300, generator=generator).double() + 0.2

    def scores(self, threshold, beta=1.0, weights=None):
        weights = torch.ones(300) if weights is None else weights
        decided, right = (self.posterior >= threshold).double(), self.labels.double()
        hits, all_decided, all_right = (float((weights * part).sum()) for part in (decided * right, decided, right))
        precision, recall = hits / all_decided if all_decided else 0.0, hits / all_right
        f_beta = (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if hits else 0.0
        return precision, recall, f_beta

    def candidates(self):
        values = self.posterior.sort().values
        return [0.0, *((values[1:] + values[:-1]) / 2).tolist()]

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
    def test_f_beta(self, beta, weighted):
        weights = self.weights if weighted else None
        (found,) = fit_thresholds(self.posterior, self.labels, f_beta=beta, sample_weight=weights)
        best = max(self.scores(threshold, beta, weights)[2] for threshold in self.candidates())
        assert self.scores(found, beta, weights)[2] == pytest.approx(best, abs=1e-12)

    @pytest.mark.parametrize("wanted", [0.3, 0.6, 0.75])
    def test_wanted_precision(self, wanted):
        (found,) = fit_thresholds(self.posterior, self.labels, wanted_precision=wanted)
        reaching = [s for s in map(self.scores, self.candidates()) if s[0] >= wanted]
        assert self.scores(found)[0] >= wanted
        assert self.scores(found)[1] == max(recall for _, recall, _ in reaching)

    @pytest.mark.parametrize("wanted", [0.3, 0.8, 1.0])
    def test_wanted_recall(self, wanted):
        (found,) = fit_thresholds(self.posterior, self.labels, wanted_recall=wanted)
        reaching = [s for s in map(self.scores, self.candidates()) if s[1] >= wanted]
        assert self.scores(found)[1] >= wanted
        assert self.scores(found)[0] == max(precision for precision, _, _ in reaching)

    def test_a_precision_that_no_threshold_has_is_not_reachable(self):
        posterior = torch.tensor([[0.9, 0.9], [0.5, 0.5], [0.1, 0.1]])
        labels = torch.tensor([[0, 1], [1, 1], [0, 0]])
        found = fit_thresholds(posterior, labels, wanted_precision=0.9)
        assert math.isnan(found[0]) and found[1] == pytest.approx(0.3)

    @pytest.mark.parametrize(
        "message, aims",
        [
            ("wanted_precision: expected a share above 0", {"wanted_precision": 0}),
            ("wanted_recall: expected a finite number in", {"wanted_recall": 1.2}),
            ("f_beta: expected a number above 0", {"f_beta": 0}),
            ("f_beta: expected a finite number", {"f_beta": float("nan")}),
            (
                "wanted_recall: expected only one criterion, but got wanted_precision and wanted_recall",
                {"wanted_precision": 0.5, "wanted_recall": 0.5},
            ),
            (
                "wanted_recall: expected only one criterion, but got f_beta and wanted_recall",
                {"f_beta": 2, "wanted_recall": 0.5},
            ),
        ],
    )
    def test_what_cannot_be_wanted_is_refused(self, message, aims):
        with pytest.raises(ValueError, match=message):
            ThresholdCriterion(**aims)

    def test_its_text_is_the_recorded_one(self):
        criteria = [{}, {"f_beta": 0.5}, {"wanted_precision": 0.9}, {"wanted_recall": 0.95}]
        assert [str(ThresholdCriterion(**c)) for c in criteria] == ["f1", "f0.5", "precision 0.9", "recall 0.95"]


class TestReachedBy:
    def test_values_and_the_interval_of_wilson(self):
        rng = np.random.default_rng(0)
        truth = rng.random(400) < 0.2
        decided = np.where(truth, rng.random(400) < 0.8, rng.random(400) < 0.1)
        found = reached_by(decided, truth, f_beta=2.0)
        assert found["precision"][0] == pytest.approx(precision_score(truth, decided))
        assert found["recall"][0] == pytest.approx(recall_score(truth, decided))
        assert found["f2"][0] == pytest.approx(fbeta_score(truth, decided, beta=2))
        n, p, z = truth.sum(), found["recall"][0], norm.ppf(0.975)
        centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        expected = [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)]
        assert found["recall"][1:] == pytest.approx(expected)
        assert all(low <= value <= high for value, low, high in found.values())

    def test_its_intervals_cover(self):
        rng = np.random.default_rng(1)
        covered = {"precision": 0, "recall": 0, "f1": 0}
        # Drawn with precision 12 / 17, recall 12 / 20, F1 24 / 37.
        for _ in range(300):
            kind = rng.choice(4, size=200, p=[0.12, 0.05, 0.08, 0.75])
            found = reached_by((kind == 0) | (kind == 1), (kind == 0) | (kind == 2), replicates=300)
            for name, value in (("precision", 12 / 17), ("recall", 0.6), ("f1", 24 / 37)):
                covered[name] += found[name][1] <= value <= found[name][2]
        assert all(270 <= count for count in covered.values())

    def test_weights_count_as_repetitions_do(self):
        decided, truth = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
        times = np.array([3, 1, 2, 4, 1])
        weighted = reached_by(decided, truth, sample_weight=times)
        repeated = reached_by(decided.repeat(times), truth.repeat(times))
        assert [v[0] for v in weighted.values()] == pytest.approx([v[0] for v in repeated.values()])

    def test_nothing_decided_and_nothing_right(self):
        nothing, some = np.zeros(3, bool), np.array([1, 0, 0], bool)
        assert math.isnan(reached_by(nothing, some)["precision"][0]) and math.isnan(
            reached_by(some, nothing)["recall"][0]
        )
        assert reached_by(nothing, some)["f1"][0] == 0


@pytest.mark.parametrize("hits, total", [(0, 4), (1, 1), (30, 1000), (50, 50), (7, 20)])
def test_wilson_interval_is_that_of_scipy(hits, total):
    expected = binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson_interval(hits, total) == pytest.approx((hits / total, *expected), abs=1e-9)
