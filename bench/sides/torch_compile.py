"""PyTorch, compiled by `torch.compile`, which needs a C++ compiler on the CPU: for steps of training."""

from collections.abc import Callable, Collection
from typing import Any

import torch

from plugrad.bench.cases import Case, network
from plugrad.bench.sides.torch import as_tensor, loss_of_network, to_numpy
from plugrad.bench.sizes import STEP

__all__ = ["NAMES", "prepare", "to_numpy"]

NAMES: Collection[str] = (STEP,)


def prepare(case: Case) -> Callable[[], Any]:
    """Return a step of training: the loss with its gradients is compiled, and the update."""
    given = network(case)
    x, t = as_tensor(given.x), as_tensor(given.t)
    parameters = [as_tensor(parameter) for parameter in given.parameters]
    with_gradients = torch.func.grad(loss_of_network)

    def update(parameters: list[Any], x: Any, t: Any) -> None:
        for parameter, gradient in zip(parameters, with_gradients(parameters, x, t), strict=True):
            parameter.sub_(gradient, alpha=given.rate)

    compiled = torch.compile(update, fullgraph=True)

    def step() -> Any:
        compiled(parameters, x, t)
        return parameters

    return step
