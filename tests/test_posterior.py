"""Class posteriors against minima of the expected loss found numerically, and formulas written out in long decimals."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian, jacobian

from hf_focal import flsd_53, focal_loss
from hf_focal.posterior import (
    class_posterior,
    estimate_prior,
    focal_logits,
    shift_prior,
    sigmoid_class_posterior,
    sigmoid_focal_logits,
)


GAMMAS = [0, 0.5, 1, 2, 3, 5]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_posterior(num_classes, seed):
    return torch.softmax(2 * torch.randn(num_classes, dtype=torch.float64, generator=generator(seed)), 0)


def random_alpha(num_classes, seed):
    return 0.2 + 4 * torch.rand(num_classes, dtype=torch.float64, generator=generator(seed))


def minimiser(risk, size):
    """Where a function of a vector is least, by Newton's method in a trust region, and then without one."""

    def value(x):
        return risk(torch.from_numpy(x)).item()

    def gradient(x):
        return jacobian(risk, torch.from_numpy(x)).numpy()

    def curvature(x):
        return hessian(risk, torch.from_numpy(x)).numpy()

    settings = {"method": "trust-exact", "jac": gradient, "hess": curvature, "options": {"gtol": 1e-7}}
    x = scipy.optimize.minimize(value, np.zeros(size), **settings).x
    for _ in range(3):
        x = x - np.linalg.solve(curvature(x), gradient(x))
    assert np.abs(gradient(x)).max() < 1e-12 and np.linalg.eigvalsh(curvature(x)).min() > 0
    return torch.from_numpy(x)


def softmax_minimiser(posterior, gamma, alpha=None, smoothing=0.0):
    """The logits with the least expected focal loss where the classes have these probabilities; the first is 0."""
    num_classes = len(posterior)
    weights = posterior if alpha is None else posterior * alpha
    weights = (1 - smoothing) * weights + smoothing / num_classes * weights.sum()
    gamma = torch.as_tensor(gamma, dtype=torch.float64)

    def logits(free):
        return torch.cat([free.new_zeros(1), free])

    def risk(free):
        log_v = torch.log_softmax(logits(free), 0)
        return -(weights * (1 - log_v.exp()) ** gamma * log_v).sum()

    return logits(minimiser(risk, num_classes - 1))


def sigmoid_minimiser(posterior, gamma, alpha=None, gamma_neg=None, margin=0.0):
    positive, negative = (1, 1) if alpha is None else (alpha, 1 - alpha) if alpha.dim() == 1 else alpha.flip(0)
    gamma = torch.as_tensor(gamma, dtype=torch.float64)
    gamma_neg = gamma if gamma_neg is None else torch.as_tensor(gamma_neg, dtype=torch.float64)

    def risk(logits):
        p = torch.sigmoid(logits)
        q = (p - margin).clamp_min(1e-300)
        gain = positive * posterior * (1 - p) ** gamma * torch.log(p)
        return -(gain + negative * (1 - posterior) * q**gamma_neg * torch.log1p(-q)).sum()

    return minimiser(risk, len(posterior))


def softmax_error(map_back, gamma, with_alpha=False, smoothing=0.0):
    """The largest difference between posteriors and what `map_back` makes of the minimiser and the settings."""
    errors = []
    for seed, num_classes in enumerate([2, 2, 3, 4, 5, 6]):
        posterior = random_posterior(num_classes, seed)
        alpha = random_alpha(num_classes, seed) if with_alpha else None
        own = gamma if isinstance(gamma, (int, float)) else gamma[:num_classes]
        logits = softmax_minimiser(posterior, own, alpha, smoothing)
        restored = map_back(logits, gamma=own, alpha=alpha, label_smoothing=smoothing)
        errors.append((restored - posterior).abs().max().item())
    return max(errors)


def sigmoid_error(map_back, gamma, with_alpha=False):
    posterior = torch.sigmoid(2 * torch.randn(6, dtype=torch.float64, generator=generator()))
    alpha = 0.1 + 0.8 * torch.rand(6, dtype=torch.float64, generator=generator(1)) if with_alpha else None
    restored = map_back(sigmoid_minimiser(posterior, gamma, alpha), gamma=gamma, alpha=alpha)
    return (restored - posterior).abs().max().item()


PER_CLASS = torch.tensor([3.0, 0.0, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)


class TestSmoothing:
    """Alpha weighs the example, not the smoothing mass: which class is ahead does not depend on the smoothing."""

    @pytest.mark.parametrize("ratio", [21.0, 999.0])
    @pytest.mark.parametrize("gamma", [0, 2])
    def test_argmax_of_the_minimiser(self, gamma, ratio):
        prior = torch.tensor([ratio, 1.0], dtype=torch.float64) / (ratio + 1)
        alpha = 0.5 / prior  # inverse frequencies
        for odds in (1e-3, 0.5, 0.99, 1.01, 2.0, 1e3):  # of the rare class, beside what its prior says
            posterior = prior * torch.tensor([1.0, odds], dtype=torch.float64)
            posterior /= posterior.sum()
            logits = softmax_minimiser(posterior, gamma, alpha, smoothing=0.1)
            assert logits.argmax() == (odds > 1)
            restored = class_posterior(logits, gamma=gamma, alpha=alpha, label_smoothing=0.1)
            torch.testing.assert_close(restored, posterior, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("ratio", [21.0, 999.0])
    def test_alpha_on_the_smoothing_mass_turns_every_decision(self, ratio):
        # What `F.cross_entropy(weight=..., label_smoothing=...)` minimises, on an example that is surely common.
        logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        weight = torch.tensor([(ratio + 1) / 2 / ratio, (ratio + 1) / 2], dtype=torch.float64)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")
        outcomes = []
        for loss in (
            lambda: F.cross_entropy(logits, torch.tensor([0]), weight=weight, label_smoothing=0.1),
            lambda: focal_loss(logits, torch.tensor([0]), gamma=0, alpha=weight, label_smoothing=0.1),
        ):

            def closure(loss=loss):
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            with torch.no_grad():
                logits.zero_()
            optimizer.step(closure)
            outcomes.append(logits.argmax().item())
        assert outcomes == [1, 0]


class TestInverse:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("with_alpha", [False, True])
    @pytest.mark.parametrize("gamma", [*GAMMAS, PER_CLASS])
    def test_softmax(self, gamma, with_alpha, smoothing):
        assert softmax_error(class_posterior, gamma, with_alpha, smoothing) < 1e-9

    @pytest.mark.parametrize(
        "broken, settings",
        [
            (lambda logits, **kwargs: logits.softmax(-1), {"gamma": 0.5}),
            (lambda logits, **kwargs: logits.softmax(-1), {"gamma": PER_CLASS}),
            (lambda logits, **kwargs: class_posterior(logits, **{**kwargs, "gamma": 1.5}), {"gamma": 2}),
            (lambda logits, **kwargs: class_posterior(logits, **{**kwargs, "gamma": 2}), {"gamma": PER_CLASS}),
            (
                lambda logits, **kwargs: class_posterior(logits, **{**kwargs, "alpha": None}),
                {"gamma": 2, "with_alpha": True},
            ),
            (
                lambda logits, **kwargs: class_posterior(logits, **{**kwargs, "label_smoothing": 0}),
                {"gamma": 2, "smoothing": 0.1},
            ),
        ],
    )
    def test_a_broken_inverse_fails_the_same_check(self, broken, settings):
        assert softmax_error(broken, **settings) > 1e-2

    @pytest.mark.parametrize("with_alpha", [False, True])
    @pytest.mark.parametrize("gamma", [*GAMMAS, PER_CLASS])
    def test_sigmoid(self, gamma, with_alpha):
        assert sigmoid_error(sigmoid_class_posterior, gamma, with_alpha) < 1e-9

    @pytest.mark.parametrize(
        "broken, settings",
        [
            (lambda logits, **kwargs: logits.sigmoid(), {"gamma": 0.5}),
            (lambda logits, gamma, alpha: sigmoid_class_posterior(logits, gamma=gamma), {"gamma": 2}),
        ],
    )
    def test_a_broken_sigmoid_inverse_fails_the_same_check(self, broken, settings):
        assert sigmoid_error(broken, **settings, with_alpha=True) > 1e-2

    def test_known_values(self):
        # phi_2(.75) = .25^2 + 2 (.25) (.75) (-log .75), and so on, worked out by hand
        pairs = torch.tensor([[0.75, 0.25], [0.85, 0.15]], dtype=torch.float64)
        posterior = class_posterior(pairs.log(), gamma=2)
        torch.testing.assert_close(posterior[:, 0].tolist(), [0.95014, 0.99073], rtol=0, atol=1e-5)

    def test_scalar_alpha_is_the_weight_of_class_one(self):
        logits = torch.randn(5, 2, generator=generator())
        expected = class_posterior(logits, gamma=2, alpha=[0.8, 0.2])
        torch.testing.assert_close(class_posterior(logits, gamma=2, alpha=0.2), expected, rtol=1e-6, atol=0)
        assert not torch.allclose(class_posterior(logits, gamma=2, alpha=0.8), expected, atol=0.1)

    def test_only_ratios_of_alpha_count(self):
        logits, alpha = torch.randn(5, 4, generator=generator()), random_alpha(4, 0)
        torch.testing.assert_close(
            class_posterior(logits, gamma=2, alpha=alpha), class_posterior(logits, gamma=2, alpha=10 * alpha)
        )

    def test_gamma_zero_is_softmax_and_sigmoid(self):
        logits = torch.randn(50, 7, dtype=torch.float64, generator=generator()) * 10
        torch.testing.assert_close(class_posterior(logits, gamma=0), logits.softmax(-1), rtol=1e-13, atol=0)
        torch.testing.assert_close(sigmoid_class_posterior(logits, gamma=0), logits.sigmoid(), rtol=1e-13, atol=0)

    @pytest.mark.parametrize("alpha", [None, 0.2])
    def test_a_label_is_a_softmax_over_its_logit_and_zero(self, alpha):
        logits = torch.linspace(-30, 30, 601)
        pairs = torch.stack([torch.zeros_like(logits), logits], -1)
        expected = class_posterior(pairs, gamma=2, alpha=alpha)[:, 1]
        torch.testing.assert_close(sigmoid_class_posterior(logits, gamma=2, alpha=alpha), expected, rtol=3e-7, atol=0)

    def test_one_gamma_and_alpha_per_label(self):
        logits = torch.randn(4, 3, generator=generator())
        gamma, alpha = [0.5, 1.0, 3.0], [0.2, 0.5, 0.7]
        together = sigmoid_class_posterior(logits, gamma=gamma, alpha=alpha)
        alone = [sigmoid_class_posterior(logits[:, k], gamma=gamma[k], alpha=alpha[k]) for k in range(3)]
        torch.testing.assert_close(together, torch.stack(alone, 1))


class TestAsymmetric:
    """The posterior of the asymmetric loss, against numerical minimisation of the expected loss of Ridnik et al. 2021."""

    @pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
    @pytest.mark.parametrize("seed", range(4))
    def test_a_known_posterior_comes_back(self, margin, seed):
        posterior = 0.05 + 0.85 * torch.rand(6, dtype=torch.float64, generator=generator(seed))
        gamma, gamma_neg = 4 * torch.rand(2, 6, dtype=torch.float64, generator=generator(seed + 10)) + 0.5
        alpha = 0.5 + 3 * torch.rand(2, 6, dtype=torch.float64, generator=generator(seed + 20))
        settings = {"gamma": gamma, "gamma_neg": gamma_neg, "margin": margin, "alpha": alpha}
        logits = sigmoid_minimiser(posterior, **settings)
        assert (sigmoid_class_posterior(logits, **settings) - posterior).abs().max() < 1e-6
        assert (sigmoid_class_posterior(logits, **{**settings, "gamma_neg": None}) - posterior).abs().max() > 1e-3
        assert (sigmoid_focal_logits(posterior, **settings) - logits).abs().max() < 1e-5

    def test_up_to_the_margin_it_is_0(self):
        logits = torch.tensor([-torch.inf, -20.0, math.log(0.05 / 0.95) - 1e-6, math.log(0.05 / 0.95) + 1e-3])
        posterior = sigmoid_class_posterior(logits, gamma=1.0, gamma_neg=4.0, margin=0.05)
        assert posterior[:3].tolist() == [0, 0, 0] and posterior[3] > 0

    def test_gradient(self):
        logits = torch.linspace(-2, 4, 7, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z: sigmoid_class_posterior(z, gamma=1.0, gamma_neg=4.0, margin=0.05), logits
        )


class TestTheWayBack:
    """`focal_logits` and `sigmoid_focal_logits`: the logits that minimise the expected loss of a known posterior."""

    @pytest.mark.parametrize("num_classes", [2, 10, 1000, 30_000])
    @pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 2.0, 10.0, "per class"])
    @pytest.mark.parametrize("is_plain", [True, False])
    def test_class_posterior_undoes_it(self, num_classes, gamma, is_plain):
        spread = torch.tensor([[0.0], [1.0], [5.0], [30.0]], dtype=torch.float64)
        scores = spread * torch.randn(4, num_classes, dtype=torch.float64, generator=generator())
        posterior = torch.cat([scores.softmax(-1), F.one_hot(torch.tensor([0]), num_classes)])
        posterior[1, -1] = 1e-30
        posterior /= posterior.sum(-1, keepdim=True)
        if gamma == "per class":
            gamma = 10 * torch.rand(num_classes, dtype=torch.float64, generator=generator(1))
        settings = {"gamma": gamma}
        if not is_plain:
            alpha = 0.1 + 5 * torch.rand(num_classes, dtype=torch.float64, generator=generator(2))
            settings |= {"alpha": alpha, "label_smoothing": 0.1}
        restored = class_posterior(focal_logits(posterior, **settings), **settings)
        assert (restored - posterior).abs().max() < 1e-9
        if is_plain:  # smoothing leaves a class of 1e-30 the digits of its mass
            torch.testing.assert_close(restored, posterior, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("gamma", [0, 0.5, 2, PER_CLASS])
    def test_it_is_the_minimiser(self, gamma, smoothing):
        for seed, num_classes in enumerate([2, 3, 6]):
            posterior, alpha = random_posterior(num_classes, seed), random_alpha(num_classes, seed)
            own = gamma if isinstance(gamma, (int, float)) else gamma[:num_classes]
            expected = softmax_minimiser(posterior, own, alpha, smoothing).softmax(-1)
            found = focal_logits(posterior, gamma=own, alpha=alpha, label_smoothing=smoothing)
            assert (found.softmax(-1) - expected).abs().max() < 1e-7
            assert found.logsumexp(-1).abs() < 1e-12

    @pytest.mark.parametrize(
        "gamma, gamma_neg", [(0.0, None), (2.0, None), (10.0, 0.0), (PER_CLASS, PER_CLASS.flip(0))]
    )
    @pytest.mark.parametrize("alpha", [None, 0.25, torch.tensor([[1e-3, 1, 2, 3, 4, 5], [1e3, 1, 1, 1, 1, 0.1]])])
    def test_sigmoid_class_posterior_undoes_it(self, gamma, gamma_neg, alpha):
        posterior = torch.cat(
            [torch.rand(5, 6, dtype=torch.float64), 10.0 ** -torch.arange(30.0)[1:].reshape(-1, 1).expand(-1, 6)]
        )
        posterior = torch.cat([posterior, torch.zeros(1, 6), torch.ones(1, 6), 1 - posterior[-20:]]).double()
        settings = {"gamma": gamma, "gamma_neg": gamma_neg, "alpha": alpha}
        logits = sigmoid_focal_logits(posterior, **settings)
        restored = sigmoid_class_posterior(logits, **settings)
        torch.testing.assert_close(restored, posterior, rtol=1e-9, atol=1e-15)
        assert (logits[posterior == 0] == -torch.inf).all() and logits[posterior > 0].isfinite().all()

    @pytest.mark.parametrize("gamma, gamma_neg", [(1.0, 4.0), (0.0, 2.0), (3.0, 0.5)])
    @pytest.mark.parametrize("margin", [0.01, 0.05, 0.5])
    def test_with_a_margin(self, margin, gamma, gamma_neg):
        settings = {"gamma": gamma, "gamma_neg": gamma_neg, "margin": margin}
        near_1 = 1 - torch.logspace(-3, -9, 7, dtype=torch.float64)
        posterior = torch.cat([torch.linspace(0.01, 0.999, 300, dtype=torch.float64), near_1])
        logits = sigmoid_focal_logits(posterior, **settings)
        is_inside = logits < 37
        restored = sigmoid_class_posterior(logits, **settings)
        torch.testing.assert_close(restored[is_inside], posterior[is_inside], rtol=1e-9, atol=0)
        assert is_inside.all() or gamma == 0  # where the loss of positives falls no faster, there may be no minimum
        assert logits.max() <= 37 and (logits.diff() >= 0).all() and is_inside.sum() > 100

    def test_dtypes_and_shapes(self):
        posterior = torch.rand(2, 3, 4).softmax(-1)
        for function in (focal_logits, sigmoid_focal_logits):
            assert function(posterior.bfloat16(), gamma=2.0).dtype == torch.float32
            found = function(posterior, gamma=2.0)
            assert found.shape == (2, 3, 4) and found.dtype == torch.float32
            torch.testing.assert_close(found[1, 2], function(posterior[1, 2], gamma=2.0))
            assert function(posterior[:0], gamma=2.0).shape == (0, 3, 4)
        assert sigmoid_focal_logits(torch.tensor(0.5), gamma=2.0) == 0

    @pytest.mark.parametrize(
        "message, function, posterior, settings",
        [
            ("posterior: expected probabilities that sum to 1", focal_logits, [0.5, 0.6], {}),
            (r"posterior: expected probabilities in \[0, 1\]", focal_logits, [1.5, -0.5], {}),
            ("posterior: expected a floating point tensor", focal_logits, [1, 0], {}),
            ("gamma: expected a finite number", focal_logits, [0.5, 0.5], {"gamma": -1}),
            ("gamma: expected a number or one per class", focal_logits, [0.5, 0.5], {"gamma": flsd_53}),
            ("alpha: expected weights > 0", focal_logits, [0.5, 0.5], {"alpha": [0.0, 1.0]}),
            ("alpha: expected one number for each of 2 classes", focal_logits, [0.5, 0.5], {"alpha": [1.0] * 3}),
            ("label_smoothing: expected a number below 1", focal_logits, [0.5, 0.5], {"label_smoothing": 1}),
            (r"posterior: expected probabilities in \[0, 1\]", sigmoid_focal_logits, [1.5, 0.5], {}),
            (r"posterior: expected probabilities in \[0, 1\]", sigmoid_focal_logits, [math.nan, 0.5], {}),
            (r"margin: expected a number in \[0, 1\), but got 1", sigmoid_focal_logits, [0.5, 0.5], {"margin": 1}),
            ("gamma_neg: expected a finite number", sigmoid_focal_logits, [0.5, 0.5], {"gamma_neg": math.inf}),
            ("alpha: expected weights above 0", sigmoid_focal_logits, [0.5, 0.5], {"alpha": [[1, 1], [1, 0]]}),
            ("alpha: expected finite numbers", sigmoid_focal_logits, [0.5, 0.5], {"alpha": [[1, 1], [1, -1]]}),
        ],
    )
    def test_refuses(self, message, function, posterior, settings):
        with pytest.raises(ValueError, match=f"^{message}"):
            function(torch.tensor(posterior), **{"gamma": 2.0, **settings})


def logits_of_any_confidence(num_classes, dtype):
    """Rows that one class leads by up to 80, or in which it trails as much."""
    lead = torch.linspace(-80, 80, 65)
    logits = torch.randn(len(lead), num_classes, generator=generator(num_classes))
    logits[torch.arange(len(lead)), torch.arange(len(lead)) % num_classes] += lead
    return logits.to(dtype)


def reference(logits, gamma, alpha):
    """The posterior of one row, from the formula, in numbers of 120 digits; 1 - v is the sum of the other classes."""
    with localcontext() as context:
        context.prec = 120
        exp = [Decimal(z).exp() for z in logits]
        shares = []
        for i, weight in enumerate(alpha):
            rest = sum(exp[:i] + exp[i + 1 :]) / sum(exp)
            v, exponent = exp[i] / sum(exp), Decimal(gamma)
            phi = rest**exponent - exponent * rest ** (exponent - 1) * v * v.ln()
            shares.append(v / (Decimal(weight) * phi))
        return [float(share / sum(shares)) for share in shares]


def naive_posterior(logits, *, gamma, alpha=None):
    v = logits.softmax(-1)
    phi = (1 - v) ** gamma - gamma * (1 - v) ** (gamma - 1) * v * v.log()
    share = v / (phi if alpha is None else alpha * phi)
    return share / share.sum(-1, keepdim=True)


def relative_error(actual, expected):
    """Where float32 can hold the number with all its digits."""
    return ((actual - expected).abs() / expected.abs().clamp_min(torch.finfo(torch.float32).tiny)).max()


class TestPrecision:
    @pytest.mark.parametrize("num_classes", [2, 5])
    @pytest.mark.parametrize("gamma", [0.5, 2, 5])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_softmax(self, dtype, gamma, num_classes):
        logits, alpha = logits_of_any_confidence(num_classes, dtype), random_alpha(num_classes, 0)
        posterior = class_posterior(logits, gamma=gamma, alpha=alpha)
        assert posterior.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = torch.tensor(
            [reference(row, gamma, alpha.tolist()) for row in logits.tolist()], dtype=torch.float64
        )
        assert relative_error(posterior.double(), expected) < (1e-12 if dtype == torch.float64 else 6e-8)

    def test_the_formula_in_float32_fails_the_same_check(self):
        logits = logits_of_any_confidence(5, torch.float32)
        expected = torch.tensor([reference(row, 2, [1] * 5) for row in logits.tolist()], dtype=torch.float64)
        naive = naive_posterior(logits, gamma=2).double()
        assert naive.isnan().any() and relative_error(naive[~naive.isnan()], expected[~naive.isnan()]) > 1e-3

    @pytest.mark.parametrize("gamma", [0.5, 2, 5])
    def test_sigmoid(self, gamma):
        logits = torch.linspace(-80, 80, 161)
        posterior = sigmoid_class_posterior(logits, gamma=gamma, alpha=0.2)
        expected = [reference([0, z], gamma, [0.8, 0.2])[1] for z in logits.tolist()]
        assert relative_error(posterior.double(), torch.tensor(expected, dtype=torch.float64)) < 6e-8

    @pytest.mark.parametrize(
        "kwargs", [{"gamma": 0.5}, {"gamma": 2, "alpha": [0.5, 1, 2]}, {"gamma": [0.0, 1, 3], "label_smoothing": 0.1}]
    )
    def test_gradients_of_softmax(self, kwargs):
        logits = torch.randn(4, 3, dtype=torch.float64, generator=generator()).requires_grad_()
        assert torch.autograd.gradcheck(lambda logits: class_posterior(logits, **kwargs), logits)
        assert torch.autograd.gradgradcheck(lambda logits: class_posterior(logits, **kwargs), logits)

    def test_gradients_of_sigmoid(self):
        logits = torch.randn(4, 3, dtype=torch.float64, generator=generator()).requires_grad_()

        def posterior(logits):
            return sigmoid_class_posterior(logits, gamma=[0.5, 1, 3], alpha=0.2)

        assert torch.autograd.gradcheck(posterior, logits)
        assert torch.autograd.gradgradcheck(posterior, logits)

    @pytest.mark.parametrize("lead", [5.0, 20.0, 39.9, 40.1, 60.0])
    def test_gradient_of_a_confident_row(self, lead):
        # With so certain a class the log posterior of the other falls by 1 + gamma times what the lead grows by.
        logits = torch.tensor([0.0, lead], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(class_posterior(logits, gamma=2)[0].log(), logits)
        assert gradient[1].item() == pytest.approx(-3, abs=4 * lead * math.exp(-lead) + 1e-13)


class TestExtremes:
    @pytest.mark.parametrize("gamma", GAMMAS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_any_finite_logits_have_finite_values_and_gradients(self, dtype, gamma):
        largest = torch.finfo(dtype).max
        ends = torch.tensor([-largest, -1e4, -745, -104, -1, 0, 17, 1e3, 1e4, largest], dtype=dtype)
        logits = torch.cartesian_prod(ends, ends, ends).requires_grad_()
        for function in (class_posterior, sigmoid_class_posterior):
            posterior = function(logits, gamma=gamma)
            (gradient,) = torch.autograd.grad(posterior[:, 0].sum(), logits)
            assert posterior.isfinite().all() and gradient.isfinite().all()
            assert posterior.min() == 0 and posterior.max() == 1
        torch.testing.assert_close(class_posterior(logits, gamma=gamma).sum(-1), torch.ones(1000), check_dtype=False)

    @pytest.mark.parametrize("settings", [{"gamma": 0.5}, {"gamma": 5}, {"gamma": [5.0, 0.0, 1.0]}])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_a_class_gains_with_its_logit(self, settings, smoothing):
        own = torch.cat([torch.linspace(-1e4, 1e4, 2001), torch.linspace(-40, 40, 4001)]).sort().values
        logits = torch.stack([own, torch.zeros_like(own), torch.full_like(own, 0.7)], -1)
        posterior = class_posterior(logits, **settings, alpha=[3.0, 1.0, 0.5], label_smoothing=smoothing)
        steps = posterior[:, 0].diff()
        assert (steps >= 0).all() and posterior[0, 0] == 0 and posterior[-1, 0] == 1
        labels = sigmoid_class_posterior(own, gamma=2, alpha=0.2)
        assert (labels.diff() >= 0).all() and labels[0] == 0 and labels[-1] == 1

    def test_the_naive_formula_is_no_number_there(self):
        assert naive_posterior(torch.tensor([[1e4, 0.0, 0.7]]), gamma=0.5).isnan().any()

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_no_order_is_lost_near_certainty(self, gamma):
        # Neighbouring numbers of float32: softmax rounds all of these to 1, the other class tells them apart.
        lead = 17 + torch.arange(1000) * 2.0**-19
        assert lead.diff().min() > 0 and lead.sigmoid().unique().numel() == 1
        logits = torch.stack([lead, torch.zeros_like(lead)], -1).double()
        assert (class_posterior(logits, gamma=gamma)[:, 1].diff() < 0).all()
        assert (class_posterior(logits.float(), gamma=gamma)[:, 1].diff() <= 0).all()
        assert (class_posterior(logits.float(), gamma=gamma)[:, 0].diff() >= 0).all()

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_one_gamma_leaves_the_order_of_the_classes(self, gamma):
        logits = 3 * torch.randn(200, 8, generator=generator())
        assert (class_posterior(logits, gamma=gamma).argsort(-1) == logits.argsort(-1)).all()

    def test_argmax_of_the_logits_is_that_of_alpha_times_the_posterior(self):
        logits, alpha = torch.randn(500, 4, generator=generator()), random_alpha(4, 0)
        posterior = class_posterior(logits, gamma=2, alpha=alpha)
        assert ((alpha * posterior).argmax(-1) == logits.argmax(-1)).all()
        assert (posterior.argmax(-1) != logits.argmax(-1)).float().mean() > 0.1

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_removed_classes(self, smoothing):
        logits = torch.tensor([[1.0, 2.0, -math.inf, 0.5], [-math.inf, 7.0, -math.inf, -math.inf]]).requires_grad_()
        posterior = class_posterior(logits, gamma=0.5, label_smoothing=smoothing)
        (gradient,) = torch.autograd.grad(posterior[:, 1].sum(), logits)
        assert posterior[0, 2] == 0 and posterior[1].tolist() == [0, 1, 0, 0]
        assert gradient.isfinite().all() and gradient[0, 2] == 0 and gradient[0, 1] > 0
        if not smoothing:
            kept = class_posterior(logits[:1, [0, 1, 3]], gamma=0.5)
            torch.testing.assert_close(posterior[:1, [0, 1, 3]], kept)
        assert sigmoid_class_posterior(torch.tensor([-math.inf, 0.0]), gamma=2).tolist() == [0, 0.5]

    @pytest.mark.parametrize("smoothing", [0.1, 0.999, 1 - 2e-6])
    def test_logits_that_no_smoothed_minimiser_has(self, smoothing):
        equal = class_posterior(torch.zeros(1, 30000), gamma=2, label_smoothing=smoothing)
        torch.testing.assert_close(equal, torch.full((1, 30000), 1 / 30000), rtol=1e-4, atol=0)
        logits = torch.tensor([[9.0, 0.0, 1.0]], requires_grad=True)
        posterior = class_posterior(logits, gamma=2, label_smoothing=smoothing)
        assert posterior.tolist() == [[1, 0, 0]]
        assert torch.autograd.grad(posterior[0, 0], logits)[0].isfinite().all()

    def test_single_class_and_empty_batch(self):
        assert class_posterior(torch.tensor([[3.0], [-5.0]]), gamma=2).tolist() == [[1], [1]]
        assert class_posterior(torch.zeros(0, 3), gamma=2).shape == (0, 3)
        assert sigmoid_class_posterior(torch.zeros(0, 3), gamma=2).shape == (0, 3)


class TestShapes:
    @pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 3, 5), (1, 2, 3, 5)])
    def test_the_last_dimension_is_that_of_the_classes(self, shape):
        logits = torch.randn(shape, generator=generator())
        settings = {"gamma": [0.5, 1, 2, 3, 5], "alpha": random_alpha(5, 0)}
        posterior = class_posterior(logits, **settings)
        rows = [class_posterior(row, **settings) for row in logits.reshape(-1, 5)]
        torch.testing.assert_close(posterior, torch.stack(rows).reshape(shape))
        shifted = shift_prior(posterior, [0.2] * 5, [0.1, 0.1, 0.1, 0.1, 0.6])
        rows = [shift_prior(row, [0.2] * 5, [0.1, 0.1, 0.1, 0.1, 0.6]) for row in posterior.reshape(-1, 5)]
        torch.testing.assert_close(shifted, torch.stack(rows).reshape(shape))

    def test_a_label_alone(self):
        assert sigmoid_class_posterior(torch.tensor(0.0), gamma=2, alpha=0.2) == 0.8

    def test_compiled_and_mapped(self):
        logits = torch.randn(4, 3, generator=generator())

        def posterior(logits):
            shared = class_posterior(logits, gamma=2.0, alpha=[1.0, 2.0, 3.0], label_smoothing=0.1)
            shifted = shift_prior(shared, [0.2, 0.3, 0.5], [0.5, 0.3, 0.2])
            return shifted + sigmoid_class_posterior(logits, gamma=[1.0, 2.0, 3.0], alpha=0.2)

        expected = posterior(logits)
        torch.testing.assert_close(torch.compile(posterior, fullgraph=True, backend="eager")(logits), expected)
        torch.testing.assert_close(torch.func.vmap(posterior)(logits), expected)


class TestShiftPrior:
    def test_bayes_by_hand(self):
        # P(x | class) .2 and .6; prior .75 and .25 gives .15 : .15, prior .4 and .6 gives .08 : .36
        torch.testing.assert_close(
            shift_prior(torch.tensor([0.5, 0.5]), [0.75, 0.25], [0.4, 0.6]), torch.tensor([2 / 11, 9 / 11])
        )

    def test_any_mixture(self):
        likelihood = torch.rand(20, 4, dtype=torch.float64, generator=generator())
        source, target = random_posterior(4, 1), random_posterior(4, 2)
        before, after = likelihood * source, likelihood * target
        before, after = before / before.sum(-1, keepdim=True), after / after.sum(-1, keepdim=True)
        torch.testing.assert_close(shift_prior(before, source, target), after)
        torch.testing.assert_close(shift_prior(after, target.tolist(), source.numpy()), before)
        torch.testing.assert_close(shift_prior(before, source, source), before)
        assert (before - after).abs().max() > 0.1

    def test_balanced(self):
        likelihood = torch.tensor([[0.3, 0.2, 0.5], [0.1, 0.8, 0.1]])
        posterior = likelihood * torch.tensor([0.9, 0.09, 0.01])
        posterior = posterior / posterior.sum(-1, keepdim=True)
        torch.testing.assert_close(shift_prior(posterior, [0.9, 0.09, 0.01], [1 / 3] * 3), likelihood)

    def test_classes_that_do_not_occur(self):
        posterior = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
        shifted = shift_prior(posterior, [0.5, 0.5, 0.0], [0.0, 0.2, 0.8])
        assert shifted.tolist() == [[0, 1, 0], [0, 1, 0]]

    def test_dtypes_and_gradients(self):
        posterior = torch.tensor([[0.25, 0.75]], dtype=torch.bfloat16)
        assert shift_prior(posterior, [0.5, 0.5], [0.75, 0.25]).tolist() == [[0.5, 0.5]]
        assert shift_prior(posterior, [0.5, 0.5], [0.5, 0.5]).dtype == torch.float32
        posterior = torch.rand(3, 4, dtype=torch.float64, generator=generator()).softmax(-1).requires_grad_()
        assert torch.autograd.gradcheck(lambda p: shift_prior(p, random_posterior(4, 1), [0.25] * 4), posterior)
        certain = torch.tensor([[1.0, 0.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(shift_prior(certain, [0.5, 0.5], [0.8, 0.2])[0, 1], certain)
        assert gradient.tolist() == [[0, 0.25]]


def mixture(prior, num_examples):
    """Numbers of which class k has the distribution N(2 k, 1), and the function from them to their posteriors."""
    centres = 2.0 * torch.arange(len(prior))
    classes = torch.multinomial(torch.tensor(prior), num_examples, replacement=True, generator=generator())
    return centres[classes] + torch.randn(num_examples, generator=generator(1))


def mixture_posterior(x, prior):
    return torch.softmax(torch.tensor(prior).log() - (x[:, None] - 2.0 * torch.arange(len(prior))) ** 2 / 2, -1)


class TestEstimatePrior:
    source, target = [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]

    def test_recovers_the_prior_of_a_mixture(self):
        x = mixture(self.target, 20000)
        posterior = mixture_posterior(x, self.source)
        estimate = estimate_prior(posterior, self.source)
        expected = torch.tensor(self.target).double()
        assert estimate.converged and estimate.iterations > 2 and estimate.change <= 1e-6
        assert estimate.prior.dtype == torch.float64 and estimate.prior.sum().item() == pytest.approx(1, abs=1e-12)
        # Three standard errors of shares of 20,000, twice as wide since the classes overlap.
        assert (estimate.prior - expected).abs().max() < 0.02
        assert (posterior.mean(0) - expected).abs().max() > 0.05
        shifted = shift_prior(posterior, self.source, estimate.prior)
        assert (shifted - mixture_posterior(x, self.target)).abs().max() < 0.02

    def test_nothing_has_shifted(self):
        posterior = mixture_posterior(mixture(self.source, 20000), self.source)
        estimate = estimate_prior(posterior, self.source)
        assert (estimate.prior - torch.tensor(self.source)).abs().max() < 0.02

    def test_maximum_of_the_likelihood(self):
        posterior = mixture_posterior(mixture(self.target, 500), self.source).double()
        estimate = estimate_prior(posterior.reshape(5, 100, 3), self.source, tolerance=1e-14)
        ratio = posterior / torch.tensor(self.source, dtype=torch.float64)
        # All derivatives of the likelihood by the prior are alike where it is greatest.
        slopes = (ratio / (ratio @ estimate.prior)[:, None]).mean(0)
        torch.testing.assert_close(slopes, torch.ones(3).double(), rtol=0, atol=1e-9)

    def test_certain_posteriors_are_counted(self):
        posterior = torch.eye(4)[[0, 0, 0, 2, 1]]
        estimate = estimate_prior(posterior, [0.25, 0.25, 0.5, 0.0], tolerance=0)
        torch.testing.assert_close(estimate.prior.tolist(), [0.6, 0.2, 0.2, 0.0])
        assert (estimate.iterations, estimate.converged) == (2, True)

    def test_stopping_early_warns(self):
        posterior = mixture_posterior(mixture(self.target, 100), self.source)
        with pytest.warns(UserWarning, match="the prior still changes by .* in iteration 3") as warned:
            estimate = estimate_prior(posterior, self.source, max_iterations=3)
        assert warned[0].filename == __file__
        assert (estimate.iterations, estimate.converged) == (3, False) and estimate.change > 1e-6
        loose = estimate_prior(posterior, self.source, max_iterations=3, tolerance=2 * estimate.change)
        assert loose.converged and loose.change <= 2 * estimate.change

    def test_from_focal_logits(self):
        """Ten different examples, the logits with the least focal loss for each, and how often each is met elsewhere."""
        likelihood = mixture_posterior(torch.linspace(-1, 5, 10), [1.0, 1.0, 1.0]).double()
        likelihood = likelihood / likelihood.sum(0)
        joint = likelihood * torch.tensor(self.source)
        logits = torch.stack([softmax_minimiser(row / row.sum(), 2.0) for row in joint])
        met = torch.multinomial(likelihood @ torch.tensor(self.target).double(), 20000, True, generator=generator())
        estimate = estimate_prior(class_posterior(logits, gamma=2.0)[met], self.source)
        raw = estimate_prior(logits.softmax(-1)[met], self.source)
        assert (estimate.prior - torch.tensor(self.target)).abs().max() < 0.02
        assert (raw.prior - torch.tensor(self.target)).abs().max() > 0.05


@pytest.mark.parametrize("function", [class_posterior, sigmoid_class_posterior])
@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("gamma: expected a finite number >= 0, but got -1", {"gamma": -1}),
        ("gamma: expected one number for each of 3 classes, but got 2", {"gamma": [1.0, 2.0]}),
        (
            "gamma: expected a number or one per class, since with a gamma .* has no such inverse, but got flsd_53",
            {"gamma": flsd_53},
        ),
        ("alpha: expected finite numbers >= 0, but got", {"alpha": [1.0, -1.0, 1.0]}),
        ("alpha: expected one number for each of 3 classes, but got 2", {"alpha": [0.5, 0.5]}),
        ("alpha: expected weights .* but got .*0.0", {"alpha": [0.5, 0.0, 0.5]}),
        ("logits: expected .*finite .*logit.*, but got nan", {"logits": torch.tensor([[0.0, math.nan, 1.0]])}),
        ("logits: expected .*finite .*logit.*, but got inf", {"logits": torch.tensor([[0.0, math.inf, 1.0]])}),
        ("logits: expected a floating point tensor, but got torch.int64", {"logits": torch.zeros(2, 3).long()}),
        (r"logits: expected a floating point tensor, but got \[\[0.0", {"logits": [[0.0, 1.0, 2.0]]}),
    ],
)
def test_posteriors_refuse(function, message, kwargs):
    with pytest.raises(ValueError, match=message):
        function(**{"logits": torch.zeros(2, 3), "gamma": 2.0, **kwargs})


@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("alpha: a scalar is for two classes, but input has 3", {"alpha": 0.25}),
        ("alpha: expected weights > 0, .* but got 1.0", {"alpha": 1.0, "logits": torch.zeros(1, 2)}),
        (r"label_smoothing: expected a finite number in \[0, 1\], but got -0.1", {"label_smoothing": -0.1}),
        ("label_smoothing: expected a number below 1, .* but got 1", {"label_smoothing": 1}),
        (
            "logits: expected a finite largest logit in every row, but got -inf",
            {"logits": torch.tensor([[0.0, 1.0], [-math.inf] * 2])},
        ),
        (r"logits: expected shape \(..., C\), but got \(\)", {"logits": torch.tensor(1.0)}),
        (r"logits: expected shape \(..., C\), but got \(2, 0\)", {"logits": torch.zeros(2, 0)}),
    ],
)
def test_class_posterior_refuses(message, kwargs):
    with pytest.raises(ValueError, match=message):
        class_posterior(**{"logits": torch.zeros(2, 3), "gamma": 2.0, **kwargs})


@pytest.mark.parametrize("alpha", [0, 1.0, [0.5, 1.0, 0.5]])
def test_sigmoid_class_posterior_refuses_weights_without_a_counterpart(alpha):
    with pytest.raises(ValueError, match="alpha: expected weights above 0 for negatives and for positives"):
        sigmoid_class_posterior(torch.zeros(2, 3), gamma=2.0, alpha=alpha)


def test_sigmoid_class_posterior_refuses_weights_above_one():
    with pytest.raises(ValueError, match=r"alpha: expected weights of positives in \[0, 1\]"):
        sigmoid_class_posterior(torch.zeros(2, 3), gamma=2.0, alpha=2.0)


@pytest.mark.parametrize("function", [lambda **kwargs: shift_prior(**kwargs, target_prior=[0.5, 0.5]), estimate_prior])
@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("source_prior: expected probabilities that sum to 1, but got a sum of 0.9", {"source_prior": [0.5, 0.4]}),
        ("source_prior: expected probabilities in .0, 1., but got values from 20 to 30", {"source_prior": [30, 20]}),
        ("source_prior: expected finite numbers >= 0", {"source_prior": [1.5, -0.5]}),
        ("source_prior: expected finite numbers >= 0", {"source_prior": [math.nan, 0.5]}),
        ("source_prior: expected one number for each of 2 classes, but got 3", {"source_prior": [0.5, 0.25, 0.25]}),
        ("source_prior: expected one probability for each of 2 classes, but got 0.5", {"source_prior": 0.5}),
        ("source_prior: expected a number or one per class, but got None", {"source_prior": None}),
        (
            r"source_prior: expected numbers above 0 for all classes .* 0 for classes \[1\]",
            {"source_prior": [1.0, 0.0]},
        ),
        (r"posterior: expected probabilities in \[0, 1\], .* from -0.5 to 1.5", {"posterior": [[1.5, -0.5]]}),
        (r"posterior: expected probabilities in \[0, 1\], .* from nan to nan", {"posterior": [[math.nan, 0.5]]}),
        (
            "posterior: expected probabilities that sum to 1, but got sums from 1 to 1.5",
            {"posterior": [[1.0, 0.0], [0.5, 1.0]]},
        ),
        ("posterior: expected a floating point tensor", {"posterior": [[1, 0]]}),
        (r"posterior: expected shape \(..., C\), but got \(\)", {"posterior": 1.0}),
    ],
)
def test_priors_refuse(function, message, kwargs):
    arguments = {"posterior": [[0.5, 0.5], [0.2, 0.8]], "source_prior": [0.5, 0.5], **kwargs}
    arguments["posterior"] = torch.tensor(arguments["posterior"])
    with pytest.raises(ValueError, match=message):
        function(**arguments)


@pytest.mark.parametrize(
    "message, target",
    [
        ("target_prior: expected probabilities that sum to 1, but got a sum of 0.9", [0.5, 0.4]),
        ("target_prior: expected one number for each of 2 classes, but got 1", [1.0]),
        ("target_prior: expected finite numbers >= 0", [math.nan, 0.5]),
        ("target_prior: expected a number above 0 .* in 2 examples", [0.0, 1.0]),
    ],
)
def test_shift_prior_refuses(message, target):
    posterior = torch.tensor([[1.0, 0.0], [0.2, 0.8], [1.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        shift_prior(posterior, [0.5, 0.5], target)


@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("max_iterations: expected a whole number >= 1, but got 0", {"max_iterations": 0}),
        ("max_iterations: expected a whole number >= 1, but got 1.5", {"max_iterations": 1.5}),
        ("tolerance: expected a finite number >= 0, but got -1", {"tolerance": -1}),
        ("posterior: expected at least one example", {"posterior": torch.zeros(0, 2)}),
    ],
)
def test_estimate_prior_refuses(message, kwargs):
    with pytest.raises(ValueError, match=message):
        estimate_prior(**{"posterior": torch.tensor([[0.5, 0.5]]), "source_prior": [0.5, 0.5], **kwargs})
