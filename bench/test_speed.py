"""The benchmarks for pytest-benchmark: ``pytest bench``, of every kernel by its record, and of steps of training.

They are many: choose some, such as ``-k "softmax and 4096x1024 and float32"``, and group them by what they share:
``--benchmark-group-by=param:kernel,param:size,param:dtype``. Nothing is timed before its result agrees with the numpy
backend's in float64. The first call, in which code may be compiled, is in ``extra_info`` of ``--benchmark-json``.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

from plugrad import backends
from plugrad.bench.cases import DTYPES, SIZES, STEP, Case
from plugrad.bench.clocks import FLUSHED, is_on_gpu
from plugrad.bench.measure import disagreement
from plugrad.bench.running import TOLERANCE
from plugrad.bench.sides import ours
from plugrad.kernels import KERNELS

USABLE = [name for name, usable in backends.available().items() if usable]
SMALLEST, SMALLEST_LAYER = "32x10", "32x64x10"  # beside the sizes that the command measures
CASES = [
    (name, size)
    for name, kernel in KERNELS.items()
    for size in (SMALLEST_LAYER if "w" in kernel.arguments else SMALLEST, *SIZES[name])
] + [(STEP, size) for size in SIZES[STEP]]


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("results", ["out", "new"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "size"), CASES)
def test_speed(benchmark: Any, kernel: str, size: str, dtype: str, results: str, backend: str) -> None:
    """A kernel or a step, on one of the backends that can run here."""
    case = Case(kernel, size, dtype, new=results == "new")
    benchmark.group = f"{kernel} {size} {dtype}"
    with backends.use(backend):
        start = time.perf_counter()
        step = ours.prepare(case)
        step()
        benchmark.extra_info["first call with preparations, s"] = time.perf_counter() - start
        assert disagreement(case) < TOLERANCE[dtype]
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
    """Write more than the caches of a GPU hold, so that nothing of the last call is left there."""
    import cupy

    cupy.empty(FLUSHED, "uint8")[...] = 0
    cupy.cuda.get_current_stream().synchronize()
