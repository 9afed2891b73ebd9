"""The matrix products of a kernel alone, in float32 or float64: the bound set by the BLAS of the processor or GPU."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.backends.options import COMPUTE
from plugrad.bench.cases import ALL_NAMES, Case, network
from plugrad.bench.clocks import is_on_gpu
from plugrad.bench.sizes import STEP
from plugrad.kernels import KERNELS

NAMES: Collection[str] = ALL_NAMES
to_numpy = backends.to_numpy


def prepare(case: Case) -> Callable[[], Any]:
    """Return the products that `case` needs: of inputs and weights, and for the gradient of each."""
    if not case.products:
        raise ValueError(f"{case.name}: not bound by products")
    wanted = _of_step(case) if case.name == STEP else _of_layer(case)
    return lambda: [_product(a, b, out) for a, b, out in wanted]


def _of_layer(case: Case) -> list[tuple[Any, Any, Any]]:
    """Return the factors of each product of a kernel, and the array for the result."""
    given = dict(zip(KERNELS[case.kernel].arguments, case.arguments(), strict=True))
    x, w = (_moved(given[name].astype(COMPUTE[given[name].dtype], copy=False)) for name in ("x", "w"))
    if "ignore_index" in (chosen := case.chosen()):
        x = x[_moved(given["t"] != chosen["ignore_index"])]
    z = x @ w
    dx, dw = x.copy(), w.copy()
    operands = (x, w, z), (z, w.T, dx), (x.T, z, dw)
    return [given for given, is_wanted in zip(operands, case.wanted_products, strict=True) if is_wanted]


def _of_step(case: Case) -> list[tuple[Any, Any, Any]]:
    """Return the same of a step of training: two products forward, and three backward."""
    given = network(case)
    compute = COMPUTE[given.x.dtype]
    x, w1, w2 = (_moved(array.astype(compute, copy=False)) for array in (given.x, *given.parameters[::2]))
    a, dw1, dw2 = x @ w1, w1.copy(), w2.copy()
    z, da = a @ w2, a.copy()
    return [(x, w1, a), (a, w2, z), (a.T, z, dw2), (z, w2.T, da), (x.T, da, dw1)]


def _moved(x: Any) -> Any:
    return backends.asarray(x) if is_on_gpu() else x


def _product(a: Any, b: Any, out: Any) -> Any:
    if not is_on_gpu():
        return np.matmul(a, b, out=out)
    import cupy

    return cupy.matmul(a, b, out=out)
