"""The losses against float64 references written from the formulas, not from the code."""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_focal import FocalLoss, SigmoidFocalLoss, flsd_53, focal_loss, sigmoid_focal_loss


GAMMAS = [0, 0.5, 1, 1.3, 2, 5]
FLOAT32_TINY = torch.finfo(torch.float32).tiny


def reference(logits, target, gamma, alpha=None):
    """Loss (N) and its gradient (N, C) in float64, with 1 - p_t as the sum of the other classes' probabilities."""
    p = torch.softmax(logits.double(), dim=1)
    target = target.unsqueeze(1)
    p_t = p.gather(1, target)
    rest = p.scatter(1, target, 0).sum(1, keepdim=True)
    log_p_t = torch.where(rest < 0.5, torch.log1p(-rest), torch.log_softmax(logits.double(), 1).gather(1, target))
    weight = torch.ones_like(rest) if alpha is None else alpha.double()[target]
    loss = -weight * rest**gamma * log_p_t
    gradient_t = weight * rest**gamma * (gamma * p_t * log_p_t - rest)
    gradient = torch.where(rest > 0, -gradient_t * p / rest, 0).scatter(1, target, gradient_t)
    return loss.squeeze(1), gradient


def assert_relative(actual, expected, tolerance):
    """Every element within a relative error, where float32 can hold the element with all its digits."""
    error = (actual.double() - expected).abs() / expected.abs().clamp_min(FLOAT32_TINY)
    assert actual.isfinite().all()
    assert error.max() <= tolerance, f"relative error {error.max():.2e}"


def value_and_gradient(loss_function, logits, *args, **kwargs):
    logits = logits.detach().clone().requires_grad_()
    loss = loss_function(logits, *args, **kwargs)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def examples_of_any_difficulty(num_classes, dtype=torch.float32):
    """Logits whose true class leads (or trails) the best other class by up to 80."""
    generator = torch.Generator().manual_seed(num_classes)
    lead = torch.cat([torch.linspace(-80, 80, 161), torch.linspace(0, 80, 81) + 0.37])
    logits = torch.randn(len(lead), num_classes, generator=generator)
    target = torch.randint(num_classes, (len(lead), 1), generator=generator)
    logits = logits - logits.scatter(1, target, -math.inf).amax(1, keepdim=True)
    logits = logits.scatter(1, target, lead.unsqueeze(1)) + 3 * torch.randn(len(lead), 1, generator=generator)
    return logits.to(dtype), target.squeeze(1), 0.1 + torch.rand(num_classes, generator=generator) * 4


def tutorial_loss(logits, target, gamma=2.0, alpha=None):
    """The usual form, 1 - exp(-cross entropy), whose digits cancel on easy examples."""
    cross_entropy = F.cross_entropy(logits, target, reduction="none")
    loss = (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy
    return loss if alpha is None else alpha[target] * loss


class TestPrecision:
    @pytest.mark.parametrize("with_alpha", [False, True])
    @pytest.mark.parametrize("num_classes", [2, 10, 50, 1000])
    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_value_and_gradient_in_float32(self, gamma, num_classes, with_alpha):
        logits, target, alpha = examples_of_any_difficulty(num_classes)
        alpha = alpha if with_alpha else None
        loss, gradient = value_and_gradient(focal_loss, logits, target, gamma=gamma, alpha=alpha, reduction="none")
        expected_loss, expected_gradient = reference(logits, target, gamma, alpha)
        assert_relative(loss, expected_loss, 1e-6)
        assert_relative(gradient, expected_gradient, 1e-5)

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_the_usual_form_fails_the_same_check(self, gamma):
        logits, target, _ = examples_of_any_difficulty(10)
        with pytest.raises(AssertionError):
            assert_relative(tutorial_loss(logits, target, gamma), reference(logits, target, gamma)[0], 1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_half_precision_logits_are_computed_in_float32(self, gamma, dtype):
        logits, target, alpha = examples_of_any_difficulty(10, dtype)
        loss, gradient = value_and_gradient(focal_loss, logits, target, gamma=gamma, alpha=alpha, reduction="none")
        expected_loss, expected_gradient = reference(logits, target, gamma, alpha)
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        assert_relative(loss, expected_loss, 1e-6)
        smallest = torch.finfo(dtype).tiny
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=torch.finfo(dtype).eps, atol=smallest)

    def test_float16_sum_does_not_overflow(self):
        logits = torch.tensor([[-500.0, 500.0]], dtype=torch.float16).repeat(1000, 1)
        assert focal_loss(logits, torch.zeros(1000, dtype=torch.long), reduction="sum") == 1e6

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_class_probabilities_are_a_mixture_of_classes(self, gamma, smoothing):
        logits, _, alpha = examples_of_any_difficulty(4)
        q = torch.softmax(torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)), 1)
        loss, gradient = value_and_gradient(
            focal_loss, logits, q, gamma=gamma, alpha=alpha, label_smoothing=smoothing, reduction="none"
        )
        q = q.double() * alpha  # which weighs the example, and not the smoothing mass
        q = (1 - smoothing) * q + smoothing / 4 * q.sum(1, keepdim=True)
        classes = [reference(logits, torch.full((len(logits),), k), gamma) for k in range(4)]
        assert_relative(loss, sum(q[:, k] * classes[k][0] for k in range(4)), 1e-6)
        expected = sum(q[:, k, None] * classes[k][1] for k in range(4))
        # The gradients of the classes may cancel: the error is relative to the largest of the row.
        assert ((gradient - expected).abs() / expected.abs().amax(1, keepdim=True)).max() <= 1e-5

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"gamma": 0.5},
            {"gamma": 2.0, "alpha": [0.5, 1.0, 2.0]},
            {"gamma": 2.0, "label_smoothing": 0.1},
            {"gamma": 5.0, "reduction": "none"},
        ],
    )
    def test_gradcheck(self, kwargs):
        logits = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        target = torch.tensor([0, 1, 2, -100, 1, 0])

        def loss(logits):
            return focal_loss(logits, target, **kwargs)

        assert torch.autograd.gradcheck(loss, logits)
        assert torch.autograd.gradgradcheck(loss, logits)


class TestGamma:
    @pytest.mark.parametrize("num_classes", [2, 10, 1000])
    def test_one_per_class_is_the_gamma_of_the_true_class(self, num_classes):
        logits, target, alpha = examples_of_any_difficulty(num_classes)
        gamma = torch.linspace(0, 3, num_classes)
        loss, gradient = value_and_gradient(focal_loss, logits, target, gamma=gamma, alpha=alpha, reduction="none")
        own = gamma.double()[target].unsqueeze(1)
        expected_loss, expected_gradient = reference(logits, target, own, alpha)
        assert_relative(loss, expected_loss, 1e-6)
        assert_relative(gradient, expected_gradient, 1e-5)
        assert not torch.allclose(loss, focal_loss(logits, target, gamma=gamma.mean().item(), alpha=alpha))

    def test_flsd_53_is_two_losses(self):
        logits, target, _ = examples_of_any_difficulty(10)
        logits = logits / 8  # so that p_t takes values around 0.2
        loss, gradient = value_and_gradient(focal_loss, logits, target, gamma=flsd_53, reduction="none")
        is_hard = logits.double().softmax(1).gather(1, target.unsqueeze(1)) < 0.2
        assert 0.2 < is_hard.float().mean() < 0.8
        hard, easy = reference(logits, target, 5), reference(logits, target, 3)
        assert_relative(loss, torch.where(is_hard[:, 0], hard[0], easy[0]), 1e-6)
        assert_relative(gradient, torch.where(is_hard, hard[1], easy[1]), 1e-5)

    def test_per_class_and_soft_targets(self):
        logits, q = torch.randn(5, 3), torch.rand(5, 3).softmax(1)
        gamma = torch.tensor([0.5, 1.0, 3.0])
        expected = sum(
            q[:, k] * focal_loss(logits, torch.full((5,), k), gamma=gamma[k].item(), reduction="none")
            for k in range(3)
        )
        torch.testing.assert_close(focal_loss(logits, q, gamma=gamma, reduction="none"), expected)


class TestExtremes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_logits_of_ten_thousand(self, gamma, dtype):
        logits = torch.tensor([[1e4, -1e4, 0.0]] * 3, dtype=dtype)
        loss, gradient = value_and_gradient(focal_loss, logits, torch.arange(3), gamma=gamma, reduction="none")
        hard = float(logits[0, 0])
        assert loss.tolist() == [0, 2 * hard, hard]
        assert gradient.tolist() == [[0, 0, 0], [1, -1, 0], [1, 0, -1]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_saturated_true_class_with_gamma_below_one(self, dtype):
        logits = torch.tensor([[lead, 0.0] for lead in (7.75, 10.0, 18.25, 30.0, 104.0, 1000.0)], dtype=dtype)
        target = torch.zeros(len(logits), dtype=torch.long)
        loss, gradient = value_and_gradient(focal_loss, logits, target, gamma=0.5, reduction="none")
        expected_loss, expected_gradient = reference(logits, target, 0.5)
        assert_relative(loss, expected_loss, 1e-6)
        torch.testing.assert_close(gradient, expected_gradient.to(dtype))
        _, broken = value_and_gradient(tutorial_loss, logits, target, gamma=0.5)
        assert broken.isnan().any()

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_masked_classes(self, gamma):
        logits = torch.tensor([[1.0, 2.0, -math.inf, 0.5], [1.0, -math.inf, -math.inf, -math.inf]])
        loss, gradient = value_and_gradient(focal_loss, logits, torch.tensor([1, 0]), gamma=gamma, reduction="none")
        kept_loss, kept_gradient = value_and_gradient(
            focal_loss, logits[:1, [0, 1, 3]], torch.tensor([1]), gamma=gamma, reduction="none"
        )
        torch.testing.assert_close(loss, torch.tensor([kept_loss.item(), 0.0]))
        torch.testing.assert_close(gradient[0], torch.tensor([*kept_gradient[0, :2], 0.0, kept_gradient[0, 2]]))
        assert gradient[1].tolist() == [0, 0, 0, 0]

    def test_masked_class_with_probability_zero(self):
        logits = torch.tensor([[1.0, 2.0, -math.inf]])
        loss, gradient = value_and_gradient(focal_loss, logits, torch.tensor([[0.25, 0.75, 0.0]]))
        kept_loss, kept_gradient = value_and_gradient(focal_loss, logits[:, :2], torch.tensor([[0.25, 0.75]]))
        torch.testing.assert_close(loss, kept_loss)
        torch.testing.assert_close(gradient[:, :2], kept_gradient)
        assert gradient[0, 2] == 0

    @pytest.mark.parametrize("kwargs", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}, {"reduction": "sum"}])
    def test_all_targets_ignored(self, kwargs):
        logits = torch.full((3, 4), math.nan)
        loss, gradient = value_and_gradient(focal_loss, logits, torch.full((3,), -100), **kwargs)
        assert (loss == 0).all() and (gradient == 0).all()

    def test_empty_batch(self):
        loss, gradient = value_and_gradient(focal_loss, torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
        assert loss == 0 and gradient.shape == (0, 3)

    def test_single_class_has_nothing_to_learn(self):
        loss, gradient = value_and_gradient(focal_loss, torch.tensor([[3.0]]), torch.tensor([0]), gamma=0.5)
        assert loss == 0 and gradient == 0


class TestMeaning:
    def setup_method(self):
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(5, 10, generator=generator)
        self.target = torch.randint(10, (5,), generator=generator)
        self.alpha = torch.rand(10, generator=generator)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_the_tutorials_calls_give_its_numbers(self, reduction):
        expected = tutorial_loss(self.logits, self.target, 2, self.alpha)
        expected = {"none": expected, "mean": expected.mean(), "sum": expected.sum()}[reduction]
        torch.testing.assert_close(FocalLoss(2, self.alpha, reduction)(self.logits, self.target), expected)
        torch.testing.assert_close(
            FocalLoss(gamma=2, alpha=self.alpha.tolist(), reduction=reduction)(self.logits, self.target), expected
        )

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_gamma_zero_is_cross_entropy(self, reduction, smoothing):
        target = self.target.clone()
        target[1] = -100
        arguments = {"reduction": reduction, "label_smoothing": smoothing}
        ours = value_and_gradient(focal_loss, self.logits, target, gamma=0, **arguments)
        theirs = value_and_gradient(F.cross_entropy, self.logits, target, **arguments)
        torch.testing.assert_close(ours, theirs)

    def test_ratio_to_cross_entropy_is_the_focal_weight(self):
        cross_entropy = F.cross_entropy(self.logits, self.target, reduction="none")
        ratio = focal_loss(self.logits, self.target, gamma=3, reduction="none") / cross_entropy
        torch.testing.assert_close(ratio, (1 - torch.exp(-cross_entropy)) ** 3)

    def test_alpha_scales_and_does_not_enter_p_t(self):
        weighted = focal_loss(self.logits, self.target, alpha=self.alpha, reduction="none")
        plain = focal_loss(self.logits, self.target, reduction="none")
        torch.testing.assert_close(weighted, self.alpha[self.target] * plain)

    def test_scalar_alpha_weighs_class_one(self):
        logits, target = self.logits[:, :2], self.target % 2
        expected = focal_loss(logits, target, alpha=[0.75, 0.25])
        for scalar in (0.25, torch.tensor(0.25)):
            torch.testing.assert_close(focal_loss(logits, target, alpha=scalar), expected)
            torch.testing.assert_close(FocalLoss(2, scalar)(logits, target), expected)

    def test_mean_divides_by_the_valid_targets_not_by_alpha(self):
        target = self.target.clone()
        target[0] = -100
        total = focal_loss(self.logits, target, alpha=self.alpha, reduction="sum")
        torch.testing.assert_close(focal_loss(self.logits, target, alpha=self.alpha), total / 4)

    def test_one_hot_probabilities_are_class_indices(self):
        torch.testing.assert_close(
            focal_loss(self.logits, F.one_hot(self.target, 10).float(), alpha=self.alpha),
            focal_loss(self.logits, self.target, alpha=self.alpha),
        )

    @pytest.mark.parametrize("probabilities", [False, True])
    def test_more_dimensions(self, probabilities):
        logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        target = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
        rows = logits.permute(0, 2, 3, 1).reshape(-1, 3)
        expected = focal_loss(rows, target.reshape(-1), reduction="none").reshape(2, 4, 5)
        if probabilities:
            target = F.one_hot(target, 3).movedim(-1, 1).float()
        torch.testing.assert_close(focal_loss(logits, target, reduction="none"), expected)
        torch.testing.assert_close(focal_loss(logits, target), expected.mean())

    def test_ignore_index_may_be_a_class(self):
        loss = focal_loss(self.logits[:2], torch.tensor([0, 3]), ignore_index=0)
        torch.testing.assert_close(loss, focal_loss(self.logits[1:2], torch.tensor([3])))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8, torch.uint16])
    def test_any_integer_dtype(self, dtype):
        assert focal_loss(self.logits, self.target.to(dtype)) == focal_loss(self.logits, self.target)


class TestModule:
    def test_alpha_is_a_buffer(self):
        criterion = FocalLoss(alpha=[1.0, 2.0, 3.0])
        assert criterion.state_dict()["alpha"].tolist() == [1, 2, 3]
        assert criterion.to("meta").alpha.device.type == "meta"
        assert FocalLoss(alpha=0.25).alpha == 0.25
        assert not FocalLoss().state_dict()

    def test_alpha_is_not_shared_with_the_caller(self):
        alpha = torch.tensor([1.0, 2.0])
        criterion = FocalLoss(alpha=alpha)
        alpha[0] = -5
        assert criterion.alpha.tolist() == [1, 2]

    @pytest.mark.parametrize("name", ["alpha", "gamma"])
    @pytest.mark.parametrize(
        "make",
        [
            partial(torch.tensor, dtype=torch.float32),
            partial(torch.tensor, dtype=torch.float64),
            partial(np.array, dtype=np.float32),
            partial(np.array, dtype=np.float64),
            list,
        ],
    )
    def test_nothing_is_shared_with_the_caller(self, name, make):
        logits, target = torch.eye(3), torch.tensor([0, 2, 1])
        given = make([0.5, 1.0, 2.0])
        criterion = FocalLoss(**{name: given})
        before = criterion(logits, target)
        given[0] = 7.0
        assert getattr(criterion, name).tolist() == [0.5, 1, 2] and criterion(logits, target) == before

    def test_copies_give_the_same_loss(self):
        logits, target = torch.eye(3), torch.arange(3)
        criterion = FocalLoss(alpha=[1.0, 2.0, 3.0], ignore_index=1, label_smoothing=0.1)
        for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
            assert other(logits, target) == criterion(logits, target)

    def test_gamma_per_class_is_a_buffer_too(self):
        criterion = FocalLoss(gamma=torch.tensor([0.5, 1.0, 2.0]))
        assert criterion.state_dict()["gamma"].tolist() == [0.5, 1, 2]
        assert criterion.to("meta").gamma.device.type == "meta"
        assert repr(criterion) == "FocalLoss(gamma=<3 on meta>, reduction='mean')"
        restored = FocalLoss(gamma=[0.0, 0.0, 0.0])
        restored.load_state_dict({"gamma": torch.tensor([0.5, 1.0, 2.0])})
        assert restored.gamma.tolist() == [0.5, 1, 2]

    def test_it_can_be_made_on_the_meta_device(self):
        with torch.device("meta"):
            criterion = FocalLoss(alpha=[1.0, 2.0, 3.0])
        assert criterion.alpha.shape == (3,)

    @pytest.mark.parametrize("gamma", [1, [0.5, 1.0, 2.0], flsd_53])
    def test_copies_with_any_gamma(self, gamma):
        logits, target = torch.eye(3), torch.tensor([0, 2, 1])
        criterion = FocalLoss(gamma)
        for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
            assert other(logits, target) == criterion(logits, target) == focal_loss(logits, target, gamma=gamma)

    def test_repr_shows_what_was_set(self):
        assert repr(FocalLoss()) == "FocalLoss(gamma=2, reduction='mean')"
        criterion = FocalLoss(3, 0.25, "sum", ignore_index=0, label_smoothing=0.1)
        assert repr(criterion) == (
            "FocalLoss(gamma=3, alpha=0.25, reduction='sum', ignore_index=0, label_smoothing=0.1)"
        )
        assert repr(FocalLoss([0.5, 1])) == "FocalLoss(gamma=[0.5, 1.0], reduction='mean')"
        assert repr(FocalLoss(flsd_53)) == "FocalLoss(gamma=flsd_53, reduction='mean')"


class TestSigmoid:
    @pytest.mark.parametrize("alpha", [None, 0.25, torch.tensor([0.1, 0.5, 0.9])])
    @pytest.mark.parametrize("gamma", GAMMAS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_value_and_gradient(self, dtype, gamma, alpha):
        logits = torch.linspace(-80, 80, 483).reshape(-1, 3).to(dtype)
        target = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        loss, gradient = value_and_gradient(
            sigmoid_focal_loss, logits, target, gamma=gamma, alpha=alpha, reduction="none"
        )
        sign = 2 * target - 1
        # A label is a softmax over its logit and zero.
        pairs = torch.stack([torch.zeros_like(logits), logits], -1).reshape(-1, 2)
        expected_loss, expected_gradient = reference(pairs, target.long().reshape(-1), gamma)
        weight = 1 if alpha is None else torch.where(sign > 0, alpha, 1 - alpha)
        assert_relative(loss, weight * expected_loss.reshape(logits.shape), 1e-6)
        expected_gradient = weight * expected_gradient[:, 1].reshape(logits.shape)
        if dtype == torch.float32:
            assert_relative(gradient, expected_gradient, 1e-5)
        else:
            torch.testing.assert_close(gradient, expected_gradient.to(dtype))

    @pytest.mark.parametrize("gamma, gamma_neg", [(0, 4), (1, 4), (2, 0.5), ([0.0, 1.0, 2.0], [4.0, 2.0, 0.5])])
    @pytest.mark.parametrize("margin", [0.0, 0.05, 0.5])
    def test_asymmetric(self, margin, gamma, gamma_neg):
        logits = torch.linspace(-12, 12, 246).reshape(-1, 3)
        target = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        arguments = {"gamma": gamma, "gamma_neg": gamma_neg, "margin": margin, "reduction": "none"}
        loss, gradient = value_and_gradient(sigmoid_focal_loss, logits, target, **arguments)

        double = logits.double().requires_grad_()
        gamma, gamma_neg = (torch.as_tensor(g, dtype=torch.float64) for g in (gamma, gamma_neg))
        p = torch.sigmoid(double)
        shifted = (p - margin).clamp_min(1e-300)  # never 0, where a power below 1 has no derivative
        positive = torch.sigmoid(-double) ** gamma * -F.logsigmoid(double)
        log_one_minus = torch.log1p(-shifted) if margin else F.logsigmoid(-double)
        expected = torch.where(target == 1, positive, shifted**gamma_neg * -log_one_minus)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), double)
        # The shift cancels digits of a probability next to the margin.
        tolerance = {"rtol": 1e-5, "atol": 1e-7 if margin else 1e-10}
        torch.testing.assert_close(loss.double(), expected.detach(), **tolerance)
        torch.testing.assert_close(gradient.double(), expected_gradient, **tolerance)
        if margin:
            dropped = (target == 0) & (double.sigmoid() < margin)
            assert dropped.any() and (loss[dropped] == 0).all() and (gradient[dropped] == 0).all()

    def test_a_pair_of_weights_with_gamma_zero_is_weighted_binary_cross_entropy(self):
        logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 5
        target = (torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        pos_weight = torch.tensor([0.2, 3.0, 40.0])
        arguments = {"gamma": 0, "alpha": torch.stack([torch.ones(3), pos_weight])}
        reference = partial(F.binary_cross_entropy_with_logits, pos_weight=pos_weight)
        for reduction in ("none", "mean"):
            torch.testing.assert_close(
                value_and_gradient(sigmoid_focal_loss, logits, target, reduction=reduction, **arguments),
                value_and_gradient(reference, logits, target, reduction=reduction),
            )

    @pytest.mark.parametrize("soft", [False, True])
    def test_a_pair_weighs_negatives_and_positives(self, soft):
        logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        target = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
        target = target if soft else target.round()
        pair = torch.tensor([[0.5, 0.0, 2.0], [7.0, 1.0, 0.25]])
        arguments = {"gamma": 1.5, "reduction": "none"}
        # A target between is a mixture of both answers.
        negative, positive = (
            sigmoid_focal_loss(logits, torch.full_like(logits, answer), **arguments) for answer in (0.0, 1.0)
        )
        expected = target * pair[1] * positive + (1 - target) * pair[0] * negative
        torch.testing.assert_close(sigmoid_focal_loss(logits, target, alpha=pair.tolist(), **arguments), expected)
        lin = sigmoid_focal_loss(logits, target, alpha=[0.1, 0.5, 0.9], **arguments)
        as_pair = [[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]]
        torch.testing.assert_close(sigmoid_focal_loss(logits, target, alpha=as_pair, **arguments), lin)

    def test_unknown_decisions_do_not_count(self):
        logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        target = (torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        known = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) < 0.6
        loss, gradient = value_and_gradient(sigmoid_focal_loss, logits, target.where(known, -100))
        expected = sigmoid_focal_loss(logits[known], target[known])
        torch.testing.assert_close(loss, expected)
        assert (gradient[~known] == 0).all() and (gradient[known] != 0).all()
        spoilt = value_and_gradient(sigmoid_focal_loss, logits.where(known, torch.nan), target.where(known, -100))
        torch.testing.assert_close(spoilt, (loss, gradient))

    def test_other_ignore_index_and_nothing_known(self):
        logits, target = torch.randn(2, 3), torch.tensor([[1, 0, -1], [-1, 1, 0]])
        torch.testing.assert_close(
            sigmoid_focal_loss(logits, target, ignore_index=-1),
            sigmoid_focal_loss(logits[target != -1], target[target != -1]),
        )
        loss, gradient = value_and_gradient(sigmoid_focal_loss, logits, torch.full((2, 3), -100))
        assert loss == 0 and (gradient == 0).all()

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_gamma_zero_is_binary_cross_entropy(self, reduction):
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        target = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            value_and_gradient(
                sigmoid_focal_loss, logits, target, gamma=0, gamma_neg=0, margin=0, reduction=reduction
            ),
            value_and_gradient(F.binary_cross_entropy_with_logits, logits, target, reduction=reduction),
        )

    def test_gradcheck(self):
        logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        target = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).round()

        def loss(logits):
            return sigmoid_focal_loss(logits, target, gamma=0.5, alpha=[[0.2, 0.5, 0.7], [1.0, 9.0, 0.0]])

        assert torch.autograd.gradcheck(loss, logits)
        assert torch.autograd.gradgradcheck(loss, logits)

    def test_extremes(self):
        logits = torch.tensor([1e4, -1e4, 1e4, -1e4])
        loss, gradient = value_and_gradient(
            sigmoid_focal_loss, logits, torch.tensor([1, 0, 0, 1]), gamma=0.5, reduction="none"
        )
        assert loss.tolist() == [0, 0, 1e4, 1e4]
        assert gradient.tolist() == [0, 0, 1, -1]

    def test_empty_batch(self):
        loss, _ = value_and_gradient(sigmoid_focal_loss, torch.zeros(0, 3), torch.zeros(0, 3))
        assert loss == 0


@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("gamma: expected a finite number >= 0, but got -1", {"gamma": -1}),
        ("gamma: expected a finite number", {"gamma": math.nan}),
        ("gamma: expected a finite number", {"gamma": math.inf}),
        ("gamma: expected a finite number", {"gamma": "2"}),
        ("gamma: expected a finite number", {"gamma": 10**400}),
        ("gamma: expected one number for each of 3 classes, but got 2", {"gamma": torch.tensor([1.0, 2.0])}),
        ("gamma: expected finite numbers >= 0", {"gamma": [1.0, -1.0, 1.0]}),
        ("gamma: expected a number or one per class, but got None", {"gamma": None}),
        (r"gamma: expected a number or one per class, but got shape \(3, 3\)", {"gamma": torch.eye(3)}),
        ("alpha: expected finite numbers >= 0", {"alpha": [1.0, -1.0, 1.0]}),
        ("alpha: expected finite numbers >= 0", {"alpha": [1.0, math.nan, 1.0]}),
        ("alpha: expected finite numbers >= 0", {"alpha": [1.0, math.inf, 1.0]}),
        ("alpha: expected one number for each of 3 classes, but got 2", {"alpha": [1.0, 1.0]}),
        ("alpha: a scalar is for two classes, but input has 3", {"alpha": 0.25}),
        ("alpha: expected a number or one per class", {"alpha": "inverse"}),
        (r"alpha: expected a number or one per class, but got shape \(3, 3\)", {"alpha": torch.eye(3)}),
        ("alpha: expected a number > 0 for at least one class, but got .0.0, 0.0, 0.0.", {"alpha": [0, 0, 0]}),
        (r"gamma: expected a function that returns one number per target, .* but got None", {"gamma": lambda p: None}),
        (r"gamma: .* one number per target, shape \(2, 1\), .* \(2,\)", {"gamma": lambda p: p[:, 0]}),
        ("ignore_index: expected an integer, but got None", {"ignore_index": None}),
        ("ignore_index: expected an integer, but got '-100'", {"ignore_index": "-100"}),
        ("ignore_index: expected an integer, but got -100.0", {"ignore_index": -100.0}),
        ("reduction: expected 'none', 'mean' or 'sum', but got 'average'", {"reduction": "average"}),
        (r"label_smoothing: expected a finite number in \[0, 1\], but got 1.5", {"label_smoothing": 1.5}),
        (
            "target: expected class indices from 0 to 2 or ignore_index=-100, but got values from 0 to 3",
            {"target": [0, 3]},
        ),
        ("but got values from -1 to 0", {"target": [0, -1]}),
        ("but got values from 3 to 3", {"target": [-100, 3]}),
        (r"target: expected class indices of shape \(2,\)", {"target": [0, 1, 2]}),
        (r"target: expected class indices of shape \(2,\)", {"target": [[0, 1, 2], [0, 1, 2]]}),
        (r"target: expected class indices of shape \(2,\)", {"target": [True, False]}),
        (r"target: expected the shape of input, \(2, 3\)", {"target": [0.5, 0.5]}),
        (r"target: expected probabilities in \[0, 1\]", {"target": [[0.5, 0.5, 0.0], [-0.5, 1.0, 0.5]]}),
        (
            "target: expected probabilities that sum to 1, but got sums from 1 to 2; .* use sigmoid_focal_loss",
            {"target": [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]},
        ),
        (r"input: expected logits of shape \(N, C\)", {"input": torch.zeros(3)}),
        (r"input: expected logits of shape \(N, C\)", {"input": torch.zeros(2, 0)}),
        ("input: expected a floating point tensor", {"input": torch.zeros(2, 3, dtype=torch.long)}),
        ("input: expected a floating point tensor", {"input": [[0.0, 1.0]]}),
    ],
)
def test_focal_loss_refuses(message, kwargs):
    arguments = {"input": torch.zeros(2, 3), "target": [0, 1], **kwargs}
    arguments["target"] = torch.tensor(arguments["target"])
    with pytest.raises(ValueError, match=message):
        focal_loss(**arguments)


@pytest.mark.parametrize("loss", [focal_loss, sigmoid_focal_loss])
@pytest.mark.parametrize("target", [None, [0, 1], torch.zeros(2, 3, dtype=torch.complex64)])
def test_targets_of_another_kind_are_refused(loss, target):
    with pytest.raises(ValueError, match="target: expected a tensor of class indices or probabilities"):
        loss(torch.zeros(2, 3), target)


def test_scalar_alpha_above_one_is_refused():
    with pytest.raises(ValueError, match="alpha: expected a scalar of at most 1"):
        focal_loss(torch.zeros(1, 2), torch.tensor([0]), alpha=1.5)


@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("gamma", {"gamma": -1}),
        ("reduction", {"reduction": "average"}),
        (r"alpha: expected weights of positives in \[0, 1\]", {"alpha": 2.0}),
        ("alpha: expected one number for each of 3 classes, but got 2", {"alpha": [0.5, 0.5]}),
        ("alpha: expected one number for each of 3 classes, but got 2", {"alpha": [[0.5, 0.5]] * 2}),
        (
            r"alpha: expected weights of negatives, then of positives, .* got shape \(3, 3\)",
            {"alpha": [[1, 2, 3]] * 3},
        ),
        ("alpha: expected finite numbers >= 0", {"alpha": [[1, 2, 3], [1, -1, 1]]}),
        ("alpha: expected finite numbers >= 0", {"alpha": [[1, 2, 3], [1, math.inf, 1]]}),
        ("alpha: expected a number > 0 for at least one class", {"alpha": [[0, 0, 0]] * 2}),
        ("gamma: expected one number for each of 3 classes, but got 2", {"gamma": [1.0, 2.0]}),
        ("gamma_neg: expected a finite number >= 0, but got -1", {"gamma_neg": -1}),
        (r"gamma: expected a function that returns one number per target", {"gamma": lambda p: None}),
        (r"gamma_neg: expected a function that returns one number per target", {"gamma_neg": lambda p: "2"}),
        ("ignore_index: expected an integer, but got None", {"ignore_index": None}),
        (r"margin: expected a number in \[0, 1\), but got 1.5", {"margin": 1.5}),
        (r"target: expected the shape of input, \(2, 3\)", {"target": torch.zeros(2)}),
        (
            r"target: expected probabilities in \[0, 1\] or ignore_index=-100, but got values from -1 to 1",
            {"target": [[1, 0, -1]] * 2},
        ),
        ("but got values from nan to nan", {"target": [[1, 0, math.nan]] * 2}),
        ("input: expected a floating point tensor", {"input": torch.zeros(2, 3, dtype=torch.long)}),
    ],
)
def test_sigmoid_focal_loss_refuses(message, kwargs):
    arguments = {"input": torch.zeros(2, 3), "target": torch.zeros(2, 3), **kwargs}
    arguments["target"] = torch.as_tensor(arguments["target"])
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss(**arguments)


@pytest.mark.parametrize("loss", [focal_loss, sigmoid_focal_loss])
def test_an_index_that_wraps_to_the_ignored_one_is_refused(loss):
    target = torch.tensor([2**64 - 100, 1, 0], dtype=torch.uint64)
    with pytest.raises(ValueError, match="target: expected .* but got integers that do not fit int64"):
        loss(torch.zeros(3, 2) if loss is focal_loss else torch.zeros(3), target)


def test_sigmoid_module_is_the_function():
    logits, target = torch.randn(4, 3), torch.eye(4)[:, :3]
    settings = {"gamma": [0.0, 1.0, 2.0], "gamma_neg": 4.0, "alpha": [[1, 2, 3], [4, 5, 6]], "margin": 0.05}
    module = SigmoidFocalLoss(**settings, reduction="sum")
    expected = sigmoid_focal_loss(logits, target, reduction="sum", **settings)
    torch.testing.assert_close(module(logits, target), expected)
    assert {*module.state_dict()} == {"gamma", "alpha"} and "gamma_neg=4, margin=0.05" in repr(module)
    torch.testing.assert_close(SigmoidFocalLoss()(logits, target), sigmoid_focal_loss(logits, target))


@pytest.mark.parametrize(
    "kwargs",
    [{"gamma": -1}, {"gamma_neg": -1}, {"alpha": 2.0}, {"alpha": [[1.0]] * 3}, {"reduction": "x"}, {"margin": 2}],
)
def test_sigmoid_module_refuses_when_it_is_made(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        SigmoidFocalLoss(**kwargs)


def test_two_scalars_of_which_one_is_0_are_weights():
    logits, target = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([0, 1])
    assert focal_loss(logits, target, alpha=0) == focal_loss(logits, target, alpha=[1, 0])
    assert sigmoid_focal_loss(logits, torch.eye(2), alpha=[0, 0]) > 0  # of negatives


def test_a_function_may_give_one_gamma_for_all():
    logits, target = torch.eye(3), torch.arange(3)
    assert focal_loss(logits, target, gamma=lambda p: 2.0) == focal_loss(logits, target, gamma=2.0)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gamma": -1},
        {"alpha": [-1.0]},
        {"alpha": [0.0, 0.0]},
        {"reduction": "x"},
        {"label_smoothing": -0.1},
        {"ignore_index": None},
    ],
)
def test_focal_loss_module_refuses_when_it_is_made(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        FocalLoss(**kwargs)


@pytest.mark.parametrize("margin", [19.0, 20.5, 25.0, 35.0, 41.0, 60.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_wrong_answer_is_right_to_the_last_digit_of_float64(margin, gamma):
    """Softplus with its usual threshold is the margin itself from 20 on, which is 1e-10 off."""
    rest = 1 / (1 + math.exp(-margin))
    expected = rest**gamma * (margin + math.log1p(math.exp(-margin)))
    of_classes = focal_loss(torch.tensor([[0, margin]]).double(), torch.tensor([0]), gamma=gamma)
    assert of_classes.item() == pytest.approx(expected, rel=4e-16)
    of_label = sigmoid_focal_loss(torch.tensor([margin]).double(), torch.tensor([0]), gamma=gamma)
    assert of_label.item() == pytest.approx(expected, rel=4e-16)
