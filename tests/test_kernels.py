"""The fast path against the formula that it stands for, where blocks begin and end, and what it costs in memory."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hf_focal import _kernels, flsd_53, focal_loss, sigmoid_focal_loss


@pytest.fixture(params=["small", "large"])
def small_blocks(monkeypatch, request):
    """Blocks of 12 numbers, so that small tensors have many; computed as small or as large inputs are."""
    monkeypatch.setattr(_kernels, "_CPU_BLOCK", 12 // torch.get_num_threads())
    if request.param == "large":
        monkeypatch.setattr(_kernels, "_SMALL", 0)


@pytest.fixture
def formula_only(monkeypatch):
    """A context in which the losses are computed by the formula, as under `torch.compile`."""

    def run(function, *args):
        with monkeypatch.context() as context:
            evaluate = _kernels.evaluate.__globals__
            context.setitem(evaluate, "is_traced", lambda: True)
            return function(*args)

    return run


def value_and_gradient(loss, logits):
    logits = logits.detach().requires_grad_()
    value = loss(logits)
    incoming = torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(value.dtype)
    (gradient,) = torch.autograd.grad(value, logits, incoming)
    return value.detach(), gradient


def random_logits(*shape, scale=3.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def random_target(logits, ignore=False, seed=1):
    shape = logits.shape[:1] + logits.shape[2:]
    target = torch.randint(logits.shape[1], shape, generator=torch.Generator().manual_seed(seed))
    if ignore and target.numel():
        target.view(-1)[:: max(2, target.numel() // 3)] = -100
    return target


EDGES = {
    "one row": random_logits(1, 5),
    "one row of more than a block": random_logits(1, 30),
    "rows that do not fill the last block": random_logits(7, 3),
    "rows that fill it": random_logits(8, 3),
    "one class": random_logits(20, 1),
    "two classes": random_logits(20, 2),
    "many classes": random_logits(6, 70),
    "columns": random_logits(5, 9).t(),
    "every second row": random_logits(14, 4)[::2],
    "expanded": random_logits(1, 4).expand(9, 4),
    "three dimensions": random_logits(4, 3, 5),
    "one sample of more than a block": random_logits(1, 3, 40),
    "classes last in memory": random_logits(3, 6, 4).transpose(1, 2),
    "four dimensions": random_logits(2, 3, 4, 5),
    "far from zero": random_logits(9, 4) + 500,
    "far apart": random_logits(9, 4, scale=60.0),
    "one masked class": random_logits(9, 4).index_fill(1, torch.tensor([2]), -torch.inf),
    "empty": random_logits(0, 3),
}
SETTINGS = {
    "plain": {},
    "cross entropy": {"gamma": 0},
    "root": {"gamma": 0.5},
    "sample gamma": {"gamma": flsd_53},
    "class numbers": "one per class",
    "smoothing": {"label_smoothing": 0.1},
}


@pytest.mark.usefixtures("small_blocks")
class TestBlocks:
    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @pytest.mark.parametrize("ignore", [False, True])
    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("edge", EDGES)
    def test_softmax(self, edge, settings, ignore, reduction, formula_only):
        logits, arguments = EDGES[edge], SETTINGS[settings]
        if settings == "class numbers":
            per_class = torch.linspace(0.5, 3, logits.shape[1])
            arguments = {"gamma": per_class, "alpha": per_class.flip(0)}
        target = random_target(logits, ignore)
        if settings == "smoothing" and edge == "one masked class":
            pytest.skip("the loss is infinite: smoothing puts probability on the class")
        loss = partial(focal_loss, target=target, reduction=reduction, **arguments)
        expected = formula_only(value_and_gradient, loss, logits.double())
        for result, reference in zip(value_and_gradient(loss, logits), expected):
            torch.testing.assert_close(result.double(), reference, rtol=2e-6, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(loss(logits).double(), expected[0], rtol=2e-6, atol=1e-9)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @pytest.mark.parametrize("soft", [False, True])
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"gamma": 0.3},
            {"alpha": 0.25},
            {"alpha": [0.1, 0.5, 0.9], "gamma": [0.5, 1.0, 3.0]},
            {"gamma": 1, "gamma_neg": 4},
            {"gamma": 1, "gamma_neg": 4, "margin": 0.05, "alpha": 0.4},
            {"gamma": flsd_53},
        ],
    )
    @pytest.mark.parametrize(
        "logits",
        [random_logits(1, 3), random_logits(11, 3), random_logits(3, 11).t(), random_logits(2, 5, 3)],
        ids=["one row", "rows", "columns", "three dimensions"],
    )
    def test_sigmoid(self, logits, arguments, soft, reduction, formula_only):
        target = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))
        target = target if soft else target.round()
        target.view(-1)[1] = -100 if target.is_contiguous() else 0
        loss = partial(sigmoid_focal_loss, target=target, reduction=reduction, **arguments)
        expected = formula_only(value_and_gradient, loss, logits.double())
        for result, reference in zip(value_and_gradient(loss, logits), expected):
            # The margin cancels digits of the probability next to it.
            torch.testing.assert_close(
                result.double(), reference, rtol=1e-5, atol=1e-7 if "margin" in arguments else 1e-9
            )

    def test_ignored_rows_may_hold_anything(self):
        logits = random_logits(10, 3)
        target = random_target(logits, ignore=True)
        expected = value_and_gradient(partial(focal_loss, target=target), logits)
        logits[target == -100] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        assert (target == -100).any()
        torch.testing.assert_close(value_and_gradient(partial(focal_loss, target=target), logits), expected)

    def test_class_probabilities(self, formula_only):
        logits = random_logits(7, 3, 4)
        for reduction in ("none", "mean"):
            loss = partial(focal_loss, target=logits.softmax(1), reduction=reduction)
            torch.testing.assert_close(
                value_and_gradient(loss, logits), formula_only(value_and_gradient, loss, logits)
            )


@pytest.fixture(params=["block", "block that is not looked at", "formula", "gradient of gradient", "functorch"])
def sigmoid_path(request, formula_only):
    """The loss of each decision and its gradient, on one of the ways that there are to compute them."""

    def run(logits, labels, gamma, alpha):
        loss = partial(sigmoid_focal_loss, target=labels, gamma=gamma, alpha=alpha, reduction="none")
        if request.param == "formula":
            return formula_only(value_and_unit_gradient, loss, logits)
        if request.param == "functorch":
            gradient, value = torch.func.vmap(torch.func.grad_and_value(lambda z, y: loss(z, target=y)))(
                logits, labels
            )
            return value, gradient
        if request.param == "block that is not looked at":  # as FocalTrainer asks for where it has counted 0 and 1
            if ((labels > 0) & (labels < 1)).any():
                pytest.skip("for targets of 0 and 1")
            alpha = None if alpha is None else torch.tensor([1 - alpha, alpha], dtype=torch.float64)
            kernel = _kernels.SigmoidFocal(float(gamma), alpha=alpha, has_soft_targets=False)
            return value_and_unit_gradient(lambda z: _kernels.evaluate(kernel, z, labels, 1, "none"), logits)
        return value_and_unit_gradient(loss, logits, create_graph=request.param == "gradient of gradient")

    return run


def value_and_unit_gradient(loss, logits, create_graph=False):
    logits = logits.detach().requires_grad_()
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value.sum(), logits, create_graph=create_graph)[0].detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
class TestDivergence:
    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
    @pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
    def test_it_is_reported_as_binary_cross_entropy_reports_it(self, sigmoid_path, target, gamma, dtype):
        # Where a logit is infinite 1 - p_t is 0 or 1: the loss that is not 0 is that of gamma 0, and so is its limit.
        logits = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0], dtype=dtype)
        labels = torch.full((4,), target)
        value, gradient = sigmoid_path(logits, labels, gamma, None)
        reference = partial(F.binary_cross_entropy_with_logits, target=labels.double(), reduction="none")
        expected, slope = value_and_unit_gradient(reference, logits.double())
        torch.testing.assert_close(value[:3].double(), expected[:3], equal_nan=True)
        torch.testing.assert_close(gradient[:3].double(), slope[:3], equal_nan=True)
        assert value[3].isfinite() and gradient[3].isfinite()  # its neighbours are as they are without it
        # By hand, in the order of the logits: a right answer that is certain is no loss of 0.
        assert value[:3].isnan().tolist() == [target == 1, True, True]
        assert gradient[:2].tolist() == [1 - target, -target]

    def test_with_alpha(self, sigmoid_path, dtype):
        logits, labels = torch.tensor([torch.inf, -torch.inf] * 2, dtype=dtype), torch.tensor([0.0, 0.0, 1.0, 1.0])
        value, gradient = sigmoid_path(logits, labels, 2.0, 0.25)
        assert value[0] == torch.inf and value[1:].isnan().all()
        assert gradient.tolist() == [0.75, 0, 0, -0.25]

    def test_the_largest_numbers_are_finite(self, sigmoid_path, dtype):
        largest = torch.finfo(dtype).max / 8  # times gamma it is one
        logits, labels = torch.tensor([largest, -largest] * 2, dtype=dtype), torch.tensor([0.0, 0.0, 1.0, 1.0])
        value, gradient = sigmoid_path(logits, labels, 2.0, None)
        assert value.tolist() == [largest, 0, 0, largest] and gradient.tolist() == [1, 0, 0, -1]


def test_a_decision_that_is_not_known_may_have_any_logit():
    logits = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    target = torch.tensor([-100.0, -100.0, -100.0, 0.0])
    value, gradient = value_and_unit_gradient(partial(sigmoid_focal_loss, target=target), logits)
    assert value == sigmoid_focal_loss(logits[3:], target[3:]) and gradient[:3].tolist() == [0, 0, 0]


def test_an_infinite_logit_of_an_asymmetric_loss():
    logits, target = torch.tensor([torch.inf, -torch.inf] * 2), torch.tensor([0.0, 0.0, 1.0, 1.0])
    loss = partial(sigmoid_focal_loss, target=target, gamma=1, gamma_neg=4, margin=0.5, reduction="none")
    value, gradient = value_and_unit_gradient(loss, logits)
    assert value[0] == torch.inf and value[1:].isnan().all() and gradient.tolist() == [1, 0, 0, -1]


class LargeTensors(TorchDispatchMode):
    """Counts the tensors of at least `numel` elements that operators make, and remembers the operators."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.made, self.operators = numel, {}, set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operators.add(operator.overloadpacket)
        given = {
            t.untyped_storage().data_ptr()
            for t in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.numel:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in given:
                    self.made[storage.data_ptr()] = storage.nbytes()
        return result


@pytest.mark.usefixtures("small_blocks")
class TestCost:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("arguments", [{}, {"alpha": [1.0, 2.0, 3.0]}, {"label_smoothing": 0.1}])
    def test_only_the_gradient_has_the_size_of_the_logits(self, arguments, dtype):
        logits = random_logits(100, 3).to(dtype).requires_grad_()
        target = random_target(logits)
        with LargeTensors(logits.numel()) as ours:
            focal_loss(logits, target, **arguments).backward()
        assert list(ours.made.values()) == [logits.grad.untyped_storage().nbytes()]
        with LargeTensors(logits.numel()) as theirs:
            F.cross_entropy(logits, target).backward()
        assert len(theirs.made) > 1

    def test_sigmoid(self):
        logits = random_logits(100, 3).requires_grad_()
        target = random_logits(100, 3, seed=1).gt(0).float()
        with LargeTensors(logits.numel()) as ours:
            sigmoid_focal_loss(logits, target).backward()
        assert len(ours.made) == 1

    @pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
    def test_without_gradient_nothing_is_made_for_it(self, without):
        logits = random_logits(100, 3)
        operators = {}
        for context in (without, torch.enable_grad):
            with context(), LargeTensors(logits.numel()) as made:
                focal_loss(logits.clone().requires_grad_(), random_target(logits))
            operators[context] = made.operators
        # The clone itself is large; the slope of the loss is the first thing that only the gradient needs.
        assert torch.ops.aten.lerp_ not in operators[without]
        assert torch.ops.aten.lerp_ in operators[torch.enable_grad]

    def test_the_gradient_is_not_copied_into_the_leaf(self):
        logits = random_logits(9, 3).requires_grad_()
        loss = focal_loss(logits, random_target(logits))
        address = loss.grad_fn.gradient.data_ptr()
        loss.backward()
        assert logits.grad.data_ptr() == address


class TestBackward:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("arguments", [{}, {"reduction": "none"}, {"label_smoothing": 0.1, "reduction": "none"}])
    def test_a_retained_graph_can_be_walked_again(self, arguments, dtype, small_blocks):
        logits = random_logits(9, 3).to(dtype).requires_grad_()
        loss = focal_loss(logits, random_target(logits), **arguments)
        incoming = torch.linspace(0.5, 2, loss.numel()).reshape(loss.shape)
        first, second = (torch.autograd.grad(loss, logits, incoming, retain_graph=True)[0] for _ in range(2))
        torch.testing.assert_close(first, second)
        torch.autograd.grad(loss, logits, incoming)
        with pytest.raises(RuntimeError, match="a second time"):
            torch.autograd.grad(loss, logits, incoming)

    def test_logits_may_be_overwritten_afterwards(self):
        leaf = random_logits(9, 3).requires_grad_()
        logits = leaf * 1
        loss = focal_loss(logits, random_target(logits))
        with torch.no_grad():
            logits.zero_()
        loss.backward()
        torch.testing.assert_close((leaf.grad,), torch.autograd.grad(focal_loss(leaf, random_target(leaf)), leaf))

    def test_float16_keeps_what_a_grad_scaler_scales_up(self):
        logits = torch.tensor([[10.0, 0.0]], dtype=torch.float16, requires_grad=True)
        target, loss_scale = torch.tensor([0]), torch.tensor(2.0**16)
        loss = focal_loss(logits, target, gamma=1)
        (lost,) = torch.autograd.grad(loss, logits, retain_graph=True)
        (gradient,) = torch.autograd.grad(loss, logits, loss_scale)
        double = logits.detach().double().requires_grad_()
        (expected,) = torch.autograd.grad(focal_loss(double, target, gamma=1), double, loss_scale.double())
        torch.testing.assert_close(gradient, expected.half())
        assert (lost == 0).all() and (gradient != 0).all()

    def test_float16_gradient_is_made_once_the_scale_is_known(self):
        # Not the second pass of a retained graph, which makes the gradient anew in any case.
        logits = torch.tensor([[7.0, 0.0, 0.0]], dtype=torch.float16, requires_grad=True)
        double = logits.detach().double().requires_grad_()
        (gradient,), (expected,) = (
            torch.autograd.grad(focal_loss(z, torch.tensor([0])), z, torch.tensor(2.0**16)) for z in (logits, double)
        )
        assert (gradient != 0).all()
        torch.testing.assert_close(gradient, expected.half(), rtol=2e-3, atol=0)

    @pytest.mark.parametrize("num_classes", [3, 70])
    @pytest.mark.parametrize("path", ["block", "formula"])
    def test_float64_logits_far_from_zero_keep_their_digits(self, formula_only, path, num_classes):
        # Beside logits of 1000, a shift rounded to float32 is off by up to 3e-5.
        near = random_logits(5, num_classes).double()
        loss = partial(focal_loss, target=random_target(near), gamma=0.5)
        run = formula_only if path == "formula" else lambda function, *args: function(*args)
        expected, found = (run(value_and_gradient, loss, logits) for logits in (near, near + 1000.123456789))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(
        "loss",
        [
            partial(focal_loss, target=torch.tensor([0, 1, 2, -100, 1, 0]), gamma=0.5),
            partial(focal_loss, target=torch.tensor([0, 1, 2, -100, 1, 0]), gamma=[0.5, 1.0, 2.0], reduction="none"),
            partial(sigmoid_focal_loss, target=torch.eye(6)[:, :3], gamma=0.5, alpha=[[0.2, 0.5, 0.7], [3, 0, 1]]),
            partial(
                sigmoid_focal_loss, target=torch.eye(6)[:, :3], gamma=1, gamma_neg=3, margin=0.1, reduction="none"
            ),
        ],
        ids=["softmax", "gamma per class", "sigmoid", "asymmetric"],
    )
    def test_gradients_of_gradients(self, loss):
        logits = random_logits(6, 3, scale=1.0).double().requires_grad_()
        assert torch.autograd.gradcheck(loss, logits)
        assert torch.autograd.gradgradcheck(loss, logits)
        once = torch.autograd.grad(loss(logits).sum(), logits)[0]
        torch.testing.assert_close(torch.autograd.grad(loss(logits).sum(), logits, create_graph=True)[0], once)

    def test_gradients_reach_class_probabilities(self):
        logits, q = random_logits(4, 3), random_logits(4, 3, seed=1).softmax(1).requires_grad_()
        (gradient,) = torch.autograd.grad(focal_loss(logits, q, gamma=0, reduction="sum"), q)
        torch.testing.assert_close(gradient, -logits.log_softmax(1))

    def test_the_same_call_gives_the_same_bits(self):
        logits, target = random_logits(1000, 600), torch.randint(600, (1000,))
        torch.use_deterministic_algorithms(True)
        try:
            first, second = (value_and_gradient(partial(focal_loss, target=target), logits) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        assert first[0] == second[0] and torch.equal(first[1], second[1])


LOGITS = random_logits(8, 3)
TARGET = random_target(LOGITS, ignore=True)
LABELS = torch.eye(8)[:, :3].index_fill(0, torch.tensor([4]), -100)
TRANSFORMED = {
    "plain": partial(focal_loss, target=TARGET),
    "alpha": partial(focal_loss, target=TARGET, alpha=[1.0, 2.0, 3.0]),
    "gamma per class": partial(focal_loss, target=TARGET, gamma=torch.tensor([0.5, 1.0, 2.0])),
    "sample gamma": partial(focal_loss, target=TARGET, gamma=flsd_53),
    "smoothing": partial(focal_loss, target=TARGET, label_smoothing=0.1, reduction="sum"),
    "sigmoid": partial(sigmoid_focal_loss, target=LABELS, alpha=0.25),
    "asymmetric": partial(sigmoid_focal_loss, target=LABELS, gamma=1, gamma_neg=4, margin=0.05),
}


@pytest.mark.parametrize("name", TRANSFORMED)
class TestTransforms:
    def test_compile_without_graph_breaks(self, name):
        torch._dynamo.reset()
        loss = TRANSFORMED[name]
        # Inductor would need a C++ compiler; what it gets is what this backend runs.
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(value_and_gradient(compiled, LOGITS), value_and_gradient(loss, LOGITS))

    def test_functorch(self, name):
        loss = TRANSFORMED[name]
        batch = torch.stack([LOGITS, LOGITS + 1, 2 * LOGITS.flip(0)])
        values = torch.stack([loss(logits) for logits in batch])
        gradients = torch.stack([torch.autograd.grad(loss(z), z)[0] for z in batch.clone().requires_grad_().unbind()])
        torch.testing.assert_close(torch.func.vmap(loss)(batch), values)
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), gradients)
        torch.testing.assert_close(torch.func.jvp(loss, (LOGITS,), (LOGITS,))[1], (gradients[0] * LOGITS).sum())


def test_gradients_per_example():
    gradients = torch.func.vmap(torch.func.grad(lambda logits, target: focal_loss(logits[None], target[None])))
    logits = LOGITS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(focal_loss(logits, TARGET, reduction="sum"), logits)
    torch.testing.assert_close(gradients(LOGITS, TARGET), expected)
