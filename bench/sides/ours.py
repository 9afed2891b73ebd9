"""plugrad, on the backend that ``PLUGRAD_BACKEND`` selects."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from plugrad import backends, kernels
from plugrad.bench.cases import ALL_NAMES, Case, network
from plugrad.bench.sizes import STEP
from plugrad.kernels import KERNELS

NAMES: Collection[str] = ALL_NAMES
to_numpy = backends.to_numpy


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by plugrad."""
    if case.name == STEP:
        return _step(case)
    kernel, arguments = KERNELS[case.kernel], [_moved(x) for x in case.arguments()]
    options = {name: _moved(value) for name, value in case.options.items()}
    function: Callable[..., Any] = kernel.function
    if case.new or kernel.results in (("loss",), ("accuracy",)):
        return lambda: function(*arguments, **options)
    results = function(*arguments, **options)
    out = (None, *results[1:]) if kernel.results[0] == "loss" else results
    return lambda: function(*arguments, **options, out=out)


def _moved(x: Any) -> Any:
    """Move an argument to the device of the backend, if it has one."""
    return backends.asarray(x) if isinstance(x, np.ndarray) else x


def computed(case: Case) -> Any:
    """Return the results of the kernel for the arguments of `case`."""
    return KERNELS[case.kernel].function(*case.arguments(), **case.options)


def computed_in_float64(case: Case) -> Any:
    """Return the results of the kernel for the same numbers in float64."""
    return KERNELS[case.kernel].function(*map(_in_float64, case.arguments()), **case.options)


def _in_float64(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind not in "iu" else x


def _step(case: Case) -> Callable[[], Any]:
    given = network(case)
    x, t, rate = _moved(given.x), _moved(given.t), given.x.dtype.type(given.rate)
    w1, b1, w2, b2 = parameters = [*map(_moved, given.parameters)]
    shapes = (len(x), b1.size), (len(x), b2.size), (len(x), b1.size), w1.shape, b1.shape, w2.shape, b2.shape
    a, z, da, dw1, db1, dw2, db2 = (backends.current().empty(shape, x.dtype) for shape in shapes)
    optimizer = kernels.optim.SGD(parameters, lr=given.rate)

    def reusing() -> Any:
        h = kernels.relu(kernels.affine(x, w1, b1, out=a), out=a)
        _, dz = kernels.softmax_cross_entropy_value_and_grad(kernels.affine(h, w2, b2, out=z), t, out=z)
        kernels.affine_backward(dz, h, w2, out=(da, dw2, db2))
        kernels.relu_backward(da, h, out=da)
        kernels.affine_backward(da, x, w1, needs=("dw", "db"), out=(None, dw1, db1))
        optimizer.step([dw1, db1, dw2, db2])
        return parameters

    def allocating() -> Any:
        h = kernels.relu(kernels.affine(x, w1, b1))
        _, dz = kernels.softmax_cross_entropy_value_and_grad(kernels.affine(h, w2, b2), t)
        dh, dw2, db2 = kernels.affine_backward(dz, h, w2)
        _, dw1, db1 = kernels.affine_backward(kernels.relu_backward(dh, h), x, w1, needs=("dw", "db"))
        for parameter, gradient in ((w1, dw1), (b1, db1), (w2, dw2), (b2, db2)):
            parameter -= rate * gradient
        return parameters

    return captured(reusing) if case.captured else allocating if case.new else reusing


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that captures a step of training when it is called first, and then replays it."""
    graph: kernels.Graph | None = None
    results: Any = None

    def replayed() -> Any:
        nonlocal graph, results
        if graph is None:
            with kernels.capture() as graph:
                results = step()
        else:
            graph.replay()
        return results

    return replayed
