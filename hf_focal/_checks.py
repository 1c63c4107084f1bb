"""Argument checks. They raise a `ValueError` that names the argument, what was expected and what it got."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._upstream import is_traced


Numbers = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


class ArgumentError(ValueError):
    """An error about an argument, whose message can be adapted to callers that know the argument by another name.

    Args:
        argument (`str`): The name of the invalid argument.
        fact (`str`): What was expected and what it got.
        advice (`str`, *optional*): What helps, independent of the caller.
        remedy (`str`, *optional*): The name of an argument that helps if it is set.
    """

    def __init__(self, argument: str, fact: str, advice: str | None = None, remedy: str | None = None):
        super().__init__(argument, fact, advice, remedy)  # with all of them, the error can be pickled

    def __str__(self) -> str:
        return self.for_caller({}, {})

    def for_caller(self, names: Mapping[str, str], remedies: Mapping[str, str]) -> str:
        """The message for a caller with other names for the arguments, and other ways to set them."""
        argument, fact, advice, remedy = self.args
        setting = None if remedy is None else remedies.get(remedy, f"set {names.get(remedy, remedy)}")
        ways = ", or ".join(way for way in (advice, setting) if way)
        return f"{names.get(argument, argument)}: {fact}" + (f"; {ways}" if ways else "")


def as_number(name: str, value: float, upper: float = math.inf) -> float:
    """Converts `value` to a finite number from 0 to `upper`."""
    try:
        number = math.nan if isinstance(value, (str, bool)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= upper):
        limits = ">= 0" if upper == math.inf else f"in [0, {upper}]"
        raise ValueError(f"{name}: expected a finite number {limits}, but got {value!r}")
    return number


def as_numbers(name: str, values: Numbers, may_be_all_zero: bool = True, max_dim: int = 1) -> Tensor:
    """Converts `values` to a tensor of finite numbers >= 0, with at most `max_dim` dimensions, in at least float32."""
    try:
        if isinstance(values, Tensor):
            numbers = values.detach().to(torch.promote_types(values.dtype, torch.float32))
        else:
            if isinstance(values, (list, tuple)):  # they may hold tensors or arrays
                values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
            numbers = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected a number or one per class, but got {values!r}") from error
    if numbers.dim() > max_dim or numbers.is_complex():
        raise ValueError(f"{name}: expected a number or one per class, but got shape {tuple(numbers.shape)}")
    if not (is_traced() or numbers.is_meta) and numbers.numel():
        low, high = extremes(numbers)
        if not (low >= 0 and high < math.inf):
            raise ValueError(f"{name}: expected finite numbers >= 0, but got {numbers.tolist()}")
        if high == 0 and numbers.dim() and not may_be_all_zero:
            raise ValueError(f"{name}: expected a number > 0 for at least one class, but got {numbers.tolist()}")
    return numbers


def as_weights(sample_weight: Sequence[float] | np.ndarray | Tensor | None, num_examples: int) -> np.ndarray:
    """One weight per example, float64, (N); all 1 if there are none.

    Raises:
        `ValueError`: If there is not one weight per example, or they are not finite and >= 0.
    """
    if sample_weight is None:
        return np.ones(num_examples)
    weights = sample_weight.cpu().numpy() if isinstance(sample_weight, Tensor) else np.asarray(sample_weight)
    if weights.shape != (num_examples,):
        raise ValueError(
            f"sample_weight: expected one number for each of {num_examples} examples, but got shape {weights.shape}"
        )
    if weights.dtype.kind not in "biuf" or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"sample_weight: expected finite numbers >= 0, but got {weights}")
    return weights.astype(np.float64)


def as_gamma(
    name: str, gamma: Numbers | Callable[[Tensor], Tensor], num_classes: int | None = None
) -> float | Tensor | Callable[[Tensor], Tensor]:
    """A number, one per class, or a function of p_t."""
    if callable(gamma):
        return gamma
    if isinstance(gamma, (int, float, str)):
        return as_number(name, gamma)
    gamma = as_numbers(name, gamma)
    check_length(name, gamma, num_classes)
    return gamma if gamma.dim() else gamma.item()


def checked_gamma(
    name: str, gamma: float | Tensor | Callable[[Tensor], Tensor]
) -> float | Tensor | Callable[[Tensor], Tensor]:
    """Wraps a function of p_t to check that it returns one number per target; other values are returned unchanged."""
    if not callable(gamma):
        return gamma
    function = gamma

    def checked(p_t: Tensor) -> Tensor:
        result: Any = function(p_t)
        if not (result.shape == p_t.shape if isinstance(result, Tensor) else isinstance(result, (int, float))):
            raise ValueError(
                f"{name}: expected a function that returns one number per target, shape {tuple(p_t.shape)}, but got "
                f"{describe(result)}"
            )
        return result

    return checked


def check_length(name: str, numbers: Tensor, num_classes: int | None) -> None:
    if num_classes is not None and numbers.dim() and numbers.shape[-1] != num_classes:
        raise ValueError(f"{name}: expected one number for each of {num_classes} classes, but got {numbers.shape[-1]}")


def as_margin(margin: float) -> float:
    """Converts `margin` to a number in [0, 1); at 1 no negative would have a loss."""
    try:
        number = as_number("margin", margin, upper=1)
    except ValueError:
        number = 1.0
    if number == 1:
        raise ValueError(f"margin: expected a number in [0, 1), but got {margin!r}")
    return number


def check_ignore_index(ignore_index: int) -> None:
    is_integer = type(ignore_index) is int or isinstance(ignore_index, Integral)  # the former is faster
    if not is_integer or isinstance(ignore_index, bool):
        raise ValueError(f"ignore_index: expected an integer, but got {ignore_index!r}")


def check_floating(name: str, tensor: Tensor) -> None:
    if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
        raise ValueError(f"{name}: expected a floating point tensor, but got {describe(tensor)}")


def check_distributions(
    name: str, probabilities: Tensor, dim: int = -1, tolerance: float = 0.01, advice: str = ""
) -> None:
    """Checks that every row along `dim` holds probabilities that sum to 1."""
    if is_traced() or probabilities.numel() == 0:
        return
    probabilities = probabilities.detach()
    low, high = extremes(probabilities)
    if not (low >= 0 and high <= 1 + 1e-5):
        raise ValueError(f"{name}: expected probabilities in [0, 1], but got values from {low:g} to {high:g}")
    low, high = extremes(probabilities.sum(dim, dtype=torch.promote_types(probabilities.dtype, torch.float32)))
    if not (low >= 1 - tolerance and high <= 1 + tolerance):
        sums = f"a sum of {low:g}" if low == high else f"sums from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected probabilities that sum to 1, but got {sums}{advice}")


def extremes(tensor: Tensor) -> tuple[float, float]:
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        tensor = tensor.long()  # torch has no aminmax for these dtypes
    low, high = tensor.aminmax()
    return low.item(), high.item()


def describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
