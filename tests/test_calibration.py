"""Temperature scaling finds the temperature that distorted the probabilities, and applies as logits over it do."""

import pytest
import torch
from scipy.optimize import minimize_scalar

from hf_focal import apply_temperature, fit_temperature


def drawn(num_examples=20000, num_classes=4, multi_label=False):
    """Logits, and labels that are drawn from their probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64)
    if multi_label:
        return logits, torch.bernoulli(logits.sigmoid(), generator=generator).long()
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_finds_the_temperature_that_undoes_another(temperature, multi_label):
    logits, labels = drawn(multi_label=multi_label)
    distorted = logits * temperature
    posterior = distorted.sigmoid() if multi_label else distorted.softmax(-1)
    assert fit_temperature(posterior, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("multi_label", [False, True])
def test_is_the_minimum_of_the_negative_log_likelihood(multi_label):
    logits, labels = drawn(500, multi_label=multi_label)
    posterior = (2 * logits).sigmoid() if multi_label else (2 * logits).softmax(-1)
    found = fit_temperature(posterior, labels)

    def loss(temperature):
        scaled = apply_temperature(posterior, temperature, multi_label=multi_label)
        if multi_label:
            return torch.nn.functional.binary_cross_entropy(scaled, labels.double()).item()
        return torch.nn.functional.nll_loss(scaled.log(), labels).item()

    assert loss(found) < min(loss(0.98 * found), loss(1.02 * found), loss(1.0))


@pytest.mark.parametrize("multi_label", [False, True])
def test_applies_as_logits_over_the_temperature(multi_label):
    logits = drawn(50)[0]
    function = torch.sigmoid if multi_label else lambda rows: rows.softmax(-1)
    scaled = apply_temperature(function(logits), 2.5, multi_label=multi_label)
    torch.testing.assert_close(scaled, function(logits / 2.5))
    torch.testing.assert_close(apply_temperature(function(logits), 1.0, multi_label=multi_label), function(logits))


def test_saturated_probabilities_stay_finite():
    posterior = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    temperature = fit_temperature(posterior, torch.tensor([0, 1, 1]))
    assert 1 < temperature <= 100
    assert torch.isfinite(apply_temperature(posterior, temperature)).all()
    independent = torch.tensor([[1.0], [0.0], [1.0]])
    temperature = fit_temperature(independent, torch.tensor([[1], [0], [0]]))
    assert torch.isfinite(apply_temperature(independent, temperature, multi_label=True)).all()


def test_data_without_errors_stay_within_the_bounds():
    assert 0.01 <= fit_temperature(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])) < 1


def test_ignored_labels():
    logits, labels = drawn(1000)
    ignored = torch.cat([labels, torch.full((100,), -100)])
    posterior = torch.cat([logits, 9 * torch.randn(100, 4)]).softmax(-1)
    assert fit_temperature(posterior, ignored) == fit_temperature(posterior[:1000], labels)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.bfloat16, torch.float64])
def test_one_hot_rows_are_class_ids(dtype):
    logits, labels = drawn(200)
    rows = torch.nn.functional.one_hot(labels, 4).to(dtype)
    posterior = (2 * logits).softmax(-1)
    assert fit_temperature(posterior, rows, multi_label=False) == fit_temperature(posterior, labels)
    independent = fit_temperature(posterior, rows.double())
    assert independent == fit_temperature(posterior, rows.double(), multi_label=True)
    assert independent != pytest.approx(fit_temperature(posterior, labels), rel=0.01)


def test_class_probabilities_have_the_largest_expected_likelihood():
    """The reference is a search over the formula, on tokens, some of which have no label."""
    logits = drawn(300)[0].reshape(50, 6, 4)
    targets = (logits / 1.7 + drawn(300)[0].flip(0).reshape(50, 6, 4) / 2).softmax(-1)

    def expected(log_temperature, known):
        scaled = logits[known] / torch.tensor(log_temperature, dtype=torch.float64).exp()
        return -(targets[known] * scaled.log_softmax(-1)).sum(-1).mean().item()

    is_known = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    found = {}
    for name, known in (("all", torch.ones_like(is_known)), ("some", is_known)):
        labels = targets.masked_fill(~known[..., None], -100)
        found[name] = fit_temperature(logits.softmax(-1), labels, multi_label=False)
        best = minimize_scalar(expected, args=(known,), bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
        assert found[name] == pytest.approx(torch.tensor(best.x).exp().item(), rel=1e-4)
    assert found["all"] != pytest.approx(found["some"], rel=1e-3)


@pytest.mark.parametrize(
    "message, rows",
    [
        ("expected probabilities that sum to 1, but got sums from 0.5 to 1", [[0.5, 0.0], [0.0, 1.0]]),
        ("expected probabilities that sum to 1, but got sums from 1 to 2", [[1, 1], [0, 1]]),
        (r"expected probabilities in \[0, 1\], but got values from -0.5 to 1.5", [[-0.5, 1.5], [0.0, 1.0]]),
        (r"expected probabilities in \[0, 1\], but got values from -100 to 1", [[-100.0, 1.0], [0.0, 1.0]]),
        (r"expected probabilities in \[0, 1\], but got values from nan", [[float("nan"), 1.0], [0.0, 1.0]]),
        ("expected at least one that is not -100", [[-100.0, -100.0], [-100.0, -100.0]]),
        (r"expected shape \(2,\) or \(2, 2\), but got \(2, 3\)", [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
    ],
)
def test_rows_that_are_no_class_probabilities_are_refused(message, rows):
    with pytest.raises(ValueError, match=f"labels: {message}"):
        fit_temperature(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor(rows), multi_label=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    posterior = drawn(100)[0].softmax(-1).to(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert apply_temperature(posterior, 2.0).dtype == expected


@pytest.mark.parametrize(
    "message, posterior, labels",
    [
        (r"labels: expected shape \(2,\) or \(2, 3\).* but got \(3,\)", torch.rand(2, 3), torch.zeros(3).long()),
        ("labels: expected at least one that is not -100", torch.rand(2, 3), torch.tensor([-100, -100])),
        ("labels: expected values from 0 to 2, but got values from 0 to 3", torch.rand(2, 3), torch.tensor([0, 3])),
        ("labels: expected values from 0 to 1", torch.rand(1, 2), torch.tensor([[0, 2]])),
        ("labels: expected values from 0 to 1, but got .* nan", torch.rand(1, 2), torch.tensor([[0, float("nan")]])),
    ],
)
def test_wrong_labels_are_refused(message, posterior, labels):
    with pytest.raises(ValueError, match=message):
        fit_temperature(posterior, labels)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        apply_temperature(torch.rand(2, 3), temperature)
