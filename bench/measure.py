"""One side alone in this process: ``python -m plugrad.bench.measure SIDE KERNEL SIZE`` prints its times as JSON."""

import argparse
import importlib
import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.bench.cases import STEP, Case, network
from plugrad.bench.clocks import host_time, is_on_gpu, times
from plugrad.bench.memory import watched
from plugrad.bench.sides import ours


def disagreement(case: Case) -> float:
    """How far our results are from those of the numpy backend, relative to the largest.

    That is in float64, of the same numbers, where it is not too large; for a step it is what it changes, at a large
    rate.
    """
    case = replace(case, rate=1.0)
    found = tuple(backends.to_numpy(result) for result in as_tuple(ours.prepare(case)()))
    with backends.use("numpy"):
        if case.name == STEP:
            before = network(case).parameters
            expected = as_tuple(ours.prepare(case)())
            pairs = [
                (after - start, other - start) for after, other, start in zip(found, expected, before, strict=True)
            ]
        else:
            exactly = math.prod(case.shape) <= 2**24
            pairs = list(zip(found, as_tuple(ours.computed(case, exactly)), strict=True))
    return float(np.max([_distance(a, b) for a, b in pairs]))


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Several results, or one."""
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def _distance(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float64).tiny))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m plugrad.bench.measure", description=__doc__)
    parser.add_argument("side", help="a module of plugrad.bench.sides")
    parser.add_argument("name")
    parser.add_argument("size")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--check", action="store_true", help="compare our results with the numpy backend's")
    chosen = parser.parse_args()
    case = Case(chosen.name, chosen.size, chosen.dtype, chosen.new)
    if chosen.check:
        print(json.dumps({"off": disagreement(case)}))
        return
    step = importlib.import_module(f"plugrad.bench.sides.{chosen.side}").prepare(case)
    taken = watched()
    start = time.perf_counter()
    size = sum(getattr(result, "nbytes", 0) for result in as_tuple(step()))
    told: dict[str, float | list[float]] = {"first": time.perf_counter() - start}
    times(step, chosen.seconds / 10)  # caches and clock come up to speed
    if is_on_gpu():
        told["host"] = host_time(step)
    is_new = chosen.side != "ours" or case.new  # else the results lie where they did before
    told["quantiles"] = np.quantile(times(step, chosen.seconds), [0.2, 0.5, 0.8]).tolist()
    told["memory"] = taken() - is_new * size
    print(json.dumps(told))


if __name__ == "__main__":
    main()
