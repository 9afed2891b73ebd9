"""One side alone in this process: ``python -m plugrad.bench.measure SIDE KERNEL SIZE ...``; a line of JSON a size."""

import argparse
import importlib
import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.bench.cases import EPSILON, SMALLEST, STEP, Case, network
from plugrad.bench.clocks import host_time, is_on_gpu, times
from plugrad.bench.memory import watched
from plugrad.bench.sides import ours
from plugrad.kernels import KERNELS

# How many elements, and multiplications in matrix products, results may have that are computed in float64.
EXACT, EXACT_PRODUCTS = 2**24, 2**31


def disagreement(case: Case, side: Any = ours) -> float:
    """How far the results of a side, ours by default, are from those of the numpy backend, relative to the largest.

    That is in float64, of the same numbers, where it is not too large; for a step it is what it changes, at a large
    rate.
    """
    case = replace(case, rate=1.0)
    found = _results(side, case)
    with backends.use("numpy"):
        if case.name == STEP:
            before = network(case).parameters
            expected = as_tuple(ours.prepare(case)())
            pairs = [
                (after - start, other - start) for after, other, start in zip(found, expected, before, strict=True)
            ]
        else:
            pairs = list(zip(found, as_tuple(ours.computed(case, exactly=_is_exact(case))), strict=True))
    return float(np.max([_distance(a, b) for a, b in pairs]))


def error(case: Case, side: Any) -> float | None:
    """The largest error of a side, in units in the last place; None where there is nothing exact to compare with.

    That is for each element at the exact value, where the kernel is held to that; for sums, which may cancel, and what
    is made of them, at the largest value.
    """
    if case.name == STEP or case.dtype == "float64" or not _is_exact(case):
        return None
    found = _results(side, case)
    with backends.use("numpy"):
        exact = [np.asarray(result, np.float64) for result in as_tuple(ours.computed(case, exactly=True))]
    worst = 0.0
    for name, result, value in zip(KERNELS[case.name].results, found, exact, strict=True):
        of = value if case.has_exact_elements else np.max(np.abs(value), initial=0)
        dtype = "float32" if name == "loss" else case.dtype
        with np.errstate(all="ignore"):
            off = np.max(np.abs(np.asarray(result, np.float64) - value) / _ulp(of, dtype), initial=0)
        worst = max(worst, float("inf") if np.isnan(off) else float(off))
    return worst


def _results(side: Any, case: Case) -> tuple[Any, ...]:
    to_numpy = getattr(side, "to_numpy", np.asarray)
    return tuple(map(to_numpy, as_tuple(side.prepare(case)())))


def _is_exact(case: Case) -> bool:
    return case.elements <= EXACT and (not case.is_product or math.prod(case.shape) <= EXACT_PRODUCTS)


def _ulp(value: Any, dtype: str) -> Any:
    """The distance between neighbouring numbers of `dtype` at `value`."""
    _, exponent = np.frexp(np.maximum(np.abs(value), SMALLEST[dtype]))
    return np.ldexp(EPSILON[dtype], exponent - 1)


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Several results, or one."""
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def _distance(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float64).tiny))


def timed(side: Any, case: Case, seconds: float) -> dict[str, Any]:
    """How long a side takes for a case, and what it needs for it."""
    step = side.prepare(case)
    taken = watched()
    start = time.perf_counter()
    size = sum(getattr(result, "nbytes", 0) for result in as_tuple(step()))
    told: dict[str, Any] = {"first": time.perf_counter() - start}
    step()  # more than the first time, where memory is kept
    is_new = side is not ours or case.new  # else the results lie where they did before
    told["memory"] = max(0, taken() - is_new * size)
    times(step, seconds / 10, least=1)  # caches and clock come up to speed
    if is_on_gpu():
        told["host"] = host_time(step)
    busy, start = time.process_time(), time.perf_counter()
    told["quantiles"] = np.quantile(times(step, seconds), [0.2, 0.5, 0.8]).tolist()
    told["processors"] = (time.process_time() - busy) / (time.perf_counter() - start)
    return told


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m plugrad.bench.measure", description=__doc__)
    parser.add_argument("side", help="a module of plugrad.bench.sides")
    parser.add_argument("name")
    parser.add_argument("size", nargs="+")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--check", action="store_true", help="compare results with the numpy backend's")
    chosen = parser.parse_args()
    side = importlib.import_module(f"plugrad.bench.sides.{chosen.side}")
    for size in chosen.size:
        case = Case(chosen.name, size, chosen.dtype, chosen.new)
        told = {"off": disagreement(case, side), "ulp": error(case, side)} if chosen.check else None
        print(json.dumps(told or timed(side, case, chosen.seconds)))


if __name__ == "__main__":
    main()
