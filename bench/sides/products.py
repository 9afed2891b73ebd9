"""The matrix products of a kernel alone, in float32 or float64: the bound set by the BLAS of the processor or GPU."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.backends.options import COMPUTE
from plugrad.bench.cases import Case
from plugrad.bench.clocks import is_on_gpu
from plugrad.kernels import KERNELS

NAMES: Collection[str] = KERNELS.keys()
to_numpy = backends.to_numpy


def prepare(case: Case) -> Callable[[], Any]:
    """Return the products that `case` needs: of inputs and weights, and for the gradient of each."""
    if not case.products:
        raise ValueError(f"{case.name}: not bound by products")
    given = dict(zip(KERNELS[case.name].arguments, case.arguments(), strict=True))
    x, w = (_moved(given[name].astype(COMPUTE[given[name].dtype], copy=False)) for name in ("x", "w"))
    z = x @ w
    dx, dw = x.copy(), w.copy()
    operands = (x, w, z), (z, w.T, dx), (x.T, z, dw)
    wanted = [given for given, is_wanted in zip(operands, case.wanted_products, strict=True) if is_wanted]
    return lambda: [_product(a, b, out) for a, b, out in wanted]


def _moved(x: Any) -> Any:
    return backends.asarray(x) if is_on_gpu() else x


def _product(a: Any, b: Any, out: Any) -> Any:
    if not is_on_gpu():
        return np.matmul(a, b, out=out)
    import cupy

    return cupy.matmul(a, b, out=out)
