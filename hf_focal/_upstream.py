"""The private attributes of the libraries below, each with what is done where it is gone."""

import torch
from torch import Tensor


def is_traced() -> bool:
    """Whether the values of tensors cannot be looked at."""
    transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
    return torch.compiler.is_compiling() or transforms_active()


def assert_async(condition: Tensor, message: str) -> None:
    """Stops with the message unless the condition, a tensor with one entry, holds: on CPU at once, with a RuntimeError;
    on a GPU when its turn comes, without waiting for it."""
    if hasattr(torch, "_assert_async"):
        torch._assert_async(condition, message)
    elif not condition.item():
        raise RuntimeError(message)
