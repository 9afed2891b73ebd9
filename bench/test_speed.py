"""The benchmarks for pytest-benchmark, of every kernel and of steps of training: ``pytest bench``.

Select some of them, such as ``-k "softmax and 4096x1024 and float32"``, and group them by their parameters, such as
``--benchmark-group-by=param:kernel,param:size,param:dtype``. Nothing is timed before its result agrees with the numpy
backend's in float64. ``--benchmark-json`` has the first call, in which code may be compiled, in ``extra_info``.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

from plugrad import backends
from plugrad.bench.cases import DTYPES, Case
from plugrad.bench.clocks import FLUSHED, is_on_gpu
from plugrad.bench.errors import TOLERANCE, difference
from plugrad.bench.sides import ours
from plugrad.bench.sizes import NAMES, sizes_of

USABLE = [name for name, usable in backends.available().items() if usable]
CASES = [(name, size) for name in NAMES for size in (sizes_of(name).smallest, *sizes_of(name).usual)]


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("results", ["out", "new"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "size"), CASES)
def test_speed(benchmark: Any, kernel: str, size: str, dtype: str, results: str, backend: str) -> None:
    """Time a kernel or a step on one of the backends that can run here."""
    case = Case(kernel, size, dtype, new=results == "new")
    benchmark.group = f"{kernel} {size} {dtype}"
    with backends.use(backend):
        start = time.perf_counter()
        step = ours.prepare(case)
        step()
        benchmark.extra_info["first call with preparations, s"] = time.perf_counter() - start
        assert difference(case) < TOLERANCE[dtype]
        if is_on_gpu():
            benchmark.pedantic(_waiting(step), setup=_flush, rounds=20, warmup_rounds=2)
        else:
            benchmark(step)


def _waiting(step: Callable[[], Any]) -> Callable[[], Any]:
    import cupy

    def call() -> None:
        step()
        cupy.cuda.get_current_stream().synchronize()

    return call


def _flush() -> None:
    """Write more than the caches of a GPU hold, so that no array of the last call is left there."""
    import cupy

    cupy.empty(FLUSHED, "uint8")[...] = 0
    cupy.cuda.get_current_stream().synchronize()
