"""The cutoff for a wanted precision or recall, against every cutoff that there is, and what cannot be reached."""

import numpy as np
import pytest
import torch
from transformers import BertConfig

from hf_focal import decide, fit_min_confidence
from hf_focal.operating_points import decision_scores


NAMES = ["O", "B-LOC", "I-LOC"]
SETTINGS = {"gamma": 2.0, "alpha": [0.4, 1.5, 3.0], "class_prior": [0.8, 0.15, 0.05]}


def config(**settings):
    return BertConfig(id2label=dict(enumerate(NAMES)), focal_loss={**SETTINGS, **settings})


def tokens(seed=0, shape=(20, 12)):
    """Logits that are right more often where they are surer, with some labels that are not known."""
    draws = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(*shape, 3, generator=draws)
    labels = torch.multinomial(logits.softmax(-1).reshape(-1, 3), 1, generator=draws).reshape(shape)
    noise = torch.rand(shape, generator=draws)
    labels = torch.where(noise < 0.3, torch.randint(0, 3, shape, generator=draws), labels)
    return logits, torch.where(noise > 0.9, -100, labels)


def decisions(logits, labels, config, **chosen):
    """The decided class of each labelled token, its probability and its label."""
    decided = decide(logits, config, **chosen).flatten().tolist()
    probabilities = decision_scores(logits, config, **chosen)[1].reshape(-1, 3).tolist()
    return [
        (k, p[k], label) for k, p, label in zip(decided, probabilities, labels.flatten().tolist()) if label != -100
    ]


def reached_at(cutoff, decided):
    """Precision and recall of what is reported, counted one by one."""
    reported = hits = wanted = 0
    for k, probability, label in decided:
        wanted += label != 0
        reported += k != 0 and probability >= cutoff
        hits += k != 0 and probability >= cutoff and k == label
    return (hits / reported if reported else 1.0), hits / wanted


@pytest.mark.parametrize("chosen", [{}, {"operating_point": "balanced"}, {"prior": [0.5, 0.25, 0.25]}])
@pytest.mark.parametrize("wanted", [{"wanted_precision": 0.8}, {"wanted_recall": 0.4}])
def test_it_is_the_best_of_all_cutoffs(wanted, chosen):
    logits, labels = tokens()
    found = fit_min_confidence(logits, labels, config(), **wanted, **chosen)
    decided = decisions(logits, labels, config(), **chosen)
    precision, recall = reached_at(found.min_confidence, decided)
    assert (found.precision[0], found.recall[0]) == (pytest.approx(precision), pytest.approx(recall))
    of_all = decision_scores(logits, config(), **chosen)[1].flatten().double().numpy()
    every = {cutoff: reached_at(cutoff, decided) for cutoff in np.unique(of_all)}
    if "wanted_precision" in wanted:
        assert precision >= 0.8 and recall == pytest.approx(max(r for p, r in every.values() if p >= 0.8))
        assert min(p for p, _ in every.values()) < 0.8  # otherwise no cutoff was needed
    else:
        assert recall >= 0.4 and found.min_confidence > 0.3
        assert not any(r >= 0.4 for cutoff, (_, r) in every.items() if cutoff > found.min_confidence + 0.02)
    for value, low, high in (found.precision, found.recall):
        assert low < value < high


def test_what_all_fulfil_takes_no_cutoff():
    logits, labels = tokens()
    assert fit_min_confidence(logits, labels, config(), wanted_precision=0.01).min_confidence == 0


def test_equal_probabilities_share_their_fate():
    """Three tokens of one probability, one of them wrong: none of them alone reaches 0.9."""
    logits = torch.tensor([[0.0, 3.0, 0.0]] * 3 + [[0.0, 6.0, 0.0]] + [[3.0, 0.0, 0.0]])
    found = fit_min_confidence(logits, torch.tensor([1, 1, 0, 1, 0]), config(), wanted_precision=0.9)
    assert found.precision[0] == 1 and found.recall[0] == pytest.approx(1 / 3)


def test_rows_are_those_of_flat_tokens():
    logits, labels = tokens()
    flat = fit_min_confidence(logits.flatten(0, 1), labels.flatten(), config(), wanted_precision=0.8)
    assert flat == fit_min_confidence(logits.numpy(), labels.numpy(), config(), wanted_precision=0.8)


@pytest.mark.parametrize(
    "message, change",
    [
        (
            "wanted_precision: 0.999 is not reachable on these .* targets, at most 0\\.\\d+ is",
            {"wanted_precision": 0.999},
        ),
        ("wanted_recall: 1 is not reachable on these .* targets, at most 0\\.\\d+ is", {"wanted_recall": 1.0}),
        ("wanted_precision: expected either wanted_precision or wanted_recall, but got neither", {}),
        ("wanted_recall, but got 0.9 and 0.8", {"wanted_precision": 0.9, "wanted_recall": 0.8}),
        ("wanted_recall: expected a share above 0", {"wanted_recall": 95.0}),
        ("ignore_labels: expected names among .*'B-LOC'.*got .'outside'", {"ignore_labels": ["outside"]}),
        ("labels: expected some that are not .*got none", {"labels": torch.zeros(20, 12, dtype=torch.long)}),
        ("labels: expected class ids from 0 to 2 or -100", {"labels": torch.full((20, 12), 3)}),
    ],
)
def test_what_is_refused(message, change):
    logits, labels = tokens()
    if "ignore_labels" in change or "labels" in change:
        change = {"wanted_precision": 0.5, **change}
    if change.get("wanted_precision") == 0.999:  # the surest of all is wrong
        logits[0, 0], labels[0, 0] = torch.tensor([0.0, 30.0, 0.0]), 2
    with pytest.raises(ValueError, match=message):
        fit_min_confidence(logits, **{"labels": labels, "config": config(), **change})


def test_several_labels_are_refused():
    several = BertConfig(
        id2label=dict(enumerate(NAMES)), problem_type="multi_label_classification", focal_loss={"gamma": 2.0}
    )
    with pytest.raises(ValueError, match="config: expected one class per target"):
        fit_min_confidence(*tokens(), several, wanted_precision=0.5)
