"""Temperature scaling finds the temperature that distorted the probabilities, and applies as logits over it do."""

import pytest
import torch
from scipy.optimize import minimize_scalar

from hf_focal import apply_temperature, fit_temperature, shift_prior
from hf_focal.calibration import UnboundedFitError, fit_scaling


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


def sampled(class_prior, num_examples, exponent=1.0, noise=1.0):
    """Labels and the posterior of Gaussian classes, exact for `class_prior`; the prior counts in it to a power."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.tensor(class_prior, dtype=torch.float64)
    labels = prior.multinomial(num_examples, replacement=True, generator=generator)
    shape = (num_examples, len(prior))
    x = torch.nn.functional.one_hot(labels, len(prior)) + noise * torch.randn(shape, generator=generator).double()
    return labels, (x / noise**2 + exponent * prior.log()).softmax(-1)


def nll(posterior, labels):
    return torch.nn.functional.nll_loss(posterior.log(), labels).item()


class TestFitScaling:
    def test_a_temperature_is_fitted_at_the_frequencies_of_the_held_out_data(self):
        """Overconfident by a factor of 2 where it was trained, and balanced data: without the shift first it would be 3."""
        train, balanced = torch.tensor([0.8, 0.15, 0.05]), [1 / 3] * 3
        labels, posterior = sampled(balanced, 20000)
        distorted = posterior**2 * train  # at the training prior
        distorted = distorted / distorted.sum(-1, keepdim=True)
        found = fit_scaling(distorted, labels, method="temperature", class_prior=train)
        assert found.temperature == pytest.approx(2.0, rel=0.03)
        assert fit_temperature(distorted, labels) > 2.5
        # Applied, it is the posterior at the training prior, and shifted from there the one of the balanced data.
        scaled = apply_temperature(distorted, found.temperature, bias=found.bias)
        torch.testing.assert_close(shift_prior(scaled, train, balanced), posterior, atol=0.02, rtol=0)

    def test_frequencies_that_differ_by_chance_shift_nothing(self):
        prior = [0.7, 0.2, 0.07, 0.03]
        labels, posterior = sampled(prior, 5000)
        assert fit_scaling(posterior, labels, method="temperature", class_prior=prior).bias is None

    def test_vector_scaling_finds_the_share_of_the_prior_that_a_model_has_taken_in(self):
        prior = [0.7, 0.2, 0.07, 0.03]
        labels, posterior = sampled(prior, 5000, exponent=0.4)
        found = fit_scaling(posterior, labels, method="vector", class_prior=prior)
        expected = 0.6 * torch.tensor(prior, dtype=torch.float64).log()
        bias = torch.tensor(found.bias, dtype=torch.float64)
        torch.testing.assert_close(bias - bias.mean(), expected - expected.mean(), atol=0.25, rtol=0)
        assert found.temperature == pytest.approx(1.0, abs=0.1)
        fitted = apply_temperature(posterior, found.temperature, bias=found.bias)
        assert nll(fitted, labels) < fit_nll(posterior, labels, "temperature", prior) - 0.02

    @pytest.mark.parametrize("method", ["none", "temperature", "vector", "auto"])
    @pytest.mark.parametrize("num_examples", [10, 60, 2000])
    def test_is_never_worse_than_nothing(self, method, num_examples):
        prior = [0.6, 0.3, 0.1]
        labels, posterior = sampled(prior, num_examples, exponent=0.0, noise=1.5)
        assert fit_nll(posterior, labels, method, None) <= nll(posterior, labels) + 1e-9

    @pytest.mark.parametrize(
        "exponent, temperature, chosen", [(1.0, 1.0, "none"), (1.0, 3.0, "temperature"), (0.0, 1.0, "vector")]
    )
    def test_cross_fitting_chooses_what_is_wrong(self, exponent, temperature, chosen):
        prior = [0.7, 0.2, 0.1]
        labels, posterior = sampled(prior, 6000, exponent)
        found = fit_scaling((posterior.log() * temperature).softmax(-1), labels, class_prior=prior)
        scores = found.negative_log_likelihood
        assert scores.keys() == {"none", "temperature", "vector"} and found.method == min(scores, key=scores.get)
        # What is not needed costs next to nothing, and what is, is taken.
        assert scores[found.method] == pytest.approx(scores[chosen], abs=2e-3)
        assert chosen == "none" or scores["none"] > scores[found.method] + 0.005

    def test_several_labels_have_a_bias_each(self):
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(20000, 3, generator=generator, dtype=torch.float64)
        labels = (logits / 2 + torch.tensor([0.5, -1.0, 2.0])).sigmoid().bernoulli(generator=generator)
        labels[::3, 0] = -100
        found = fit_scaling(logits.sigmoid(), labels, method="vector")
        assert found.temperature == pytest.approx(2.0, rel=0.05)
        assert found.bias == pytest.approx([0.5, -1.0, 2.0], abs=0.1)

    def test_folds_keep_the_tokens_of_an_example_together(self):
        """The tokens of an example are copies: apart, they would tell the biases of vector scaling what is left out."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(40).repeat_interleave(1) % 20
        posterior = torch.rand(40, 20, generator=generator).double().softmax(-1)
        tokens = posterior[:, None].expand(-1, 50, -1).contiguous()
        together = fit_scaling(tokens, labels[:, None].expand(-1, 50).contiguous()).negative_log_likelihood["vector"]
        apart = fit_scaling(tokens.flatten(0, 1), labels.repeat_interleave(50)).negative_log_likelihood["vector"]
        assert apart < together

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_without_a_finite_optimum_it_is_refused(self, multi_label):
        rows = torch.eye(3).repeat(10, 1)
        for confidence, temperature in ((0.4, 0.01), (-0.2, 100.0)):
            posterior = 0.3 + confidence * rows
            posterior = posterior if multi_label else posterior / posterior.sum(-1, keepdim=True)
            with pytest.raises(UnboundedFitError) as error:
                fit_scaling(
                    posterior, rows if multi_label else rows.argmax(-1), multi_label=multi_label, method="temperature"
                )
            assert error.value.temperature == temperature

    @pytest.mark.parametrize(
        "message, kwargs",
        [
            ("method: expected one of auto", {"method": "isotonic"}),
            ("class_prior: expected 3 numbers", {"class_prior": [0.5, 0.5]}),
            ("sample_weight: expected", {"sample_weight": [1.0, 2.0]}),
            ("sample_weight: expected at least one weight above 0", {"sample_weight": [0.0] * 30}),
        ],
    )
    def test_wrong_arguments_are_refused(self, message, kwargs):
        labels, posterior = sampled([0.5, 0.3, 0.2], 30)
        with pytest.raises(ValueError, match=message):
            fit_scaling(posterior, labels, **kwargs)


def fit_nll(posterior, labels, method, class_prior):
    found = fit_scaling(posterior, labels, method=method, class_prior=class_prior)
    return nll(apply_temperature(posterior, found.temperature, bias=found.bias), labels)


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_class_without_an_example_does_not_take_over(method):
    generator = torch.Generator().manual_seed(0)
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    noise = torch.randn(256, 4, generator=generator, dtype=torch.float64)
    posterior = (prior.log() + noise).softmax(-1)  # too confident, and of class 3 there is no example
    labels = (prior.log() + 0.3 * noise)[:, :3].softmax(-1).multinomial(1, generator=generator)[:, 0]
    scaling = fit_scaling(posterior, labels, method=method, class_prior=prior)
    fitted = apply_temperature(posterior, scaling.temperature, bias=scaling.bias)
    assert fitted[:, 3].mean() < 0.25
