"""PyTorch, with its own loss of a last layer in chunks of rows, as it chooses them."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch.nn import LinearCrossEntropyOptions, functional

from plugrad.bench.cases import Case
from plugrad.bench.sides.torch import tensors, to_numpy
from plugrad.bench.sides.torch_bridge import linear_value_and_gradients

__all__ = ["NAMES", "prepare", "to_numpy"]


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by PyTorch in chunks."""
    return partial(FUNCTIONS[case.name], *tensors(case))


_loss = partial(functional.linear_cross_entropy, options=LinearCrossEntropyOptions())

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "linear_cross_entropy": lambda x, w, b, t: _loss(x, w, t, linear_bias=b),
    "linear_cross_entropy_value_and_grad": partial(linear_value_and_gradients, _loss),
}
NAMES: Collection[str] = tuple(FUNCTIONS)
