"""Forward and backward, float32, one thread: against PyTorch's cross entropies, for us and for our rivals."""

import pytest
import rivals
import torch
import torch.nn.functional as F


def forward_and_backward(loss, logits, target):
    def run():
        leaf = logits.detach().requires_grad_()
        loss(leaf, target).backward()

    return run


def repeats(logits):
    """Small inputs are run more than once in a round, so that a round is not shorter than the clock can tell."""
    return max(1, 2**16 // logits.numel())


@pytest.mark.parametrize("shape", [(32, 10), (4096, 52), (8192, 1000), (2048, 30522)], ids=str)
@pytest.mark.parametrize("name", rivals.SOFTMAX)
def test_softmax(compare, name, shape):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(shape[1], shape[:1], generator=generator)
    functions = (forward_and_backward(loss, logits, target) for loss in (rivals.SOFTMAX[name](), F.cross_entropy))
    compare(*functions, repeats(logits), "cross entropy", name, str(shape))


@pytest.mark.parametrize("shape", [(32, 10), (64, 131072)], ids=str)
@pytest.mark.parametrize("name", rivals.SIGMOID)
def test_sigmoid(compare, name, shape):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator)
    labels = (torch.rand(shape, generator=generator) < 0.05).float()
    baseline = F.binary_cross_entropy_with_logits
    functions = (forward_and_backward(loss, logits, labels) for loss in (rivals.SIGMOID[name](), baseline))
    compare(*functions, repeats(logits), "binary cross entropy", name, str(shape))
