"""Measure a single side in this process: ``python -m plugrad.bench.measure SIDE KERNEL SIZE ...``.

Prints a line of JSON for each size: times, memory and busy processors, or with ``--errors`` the errors of the results.
`plugrad.bench.processes` starts these processes and reads the lines.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.bench.cases import Case
from plugrad.bench.clocks import host_time, is_on_gpu, times
from plugrad.bench.errors import as_tuple, difference, error
from plugrad.bench.memory import watched
from plugrad.bench.sides import Side, load, ours


def performance(side: Side, case: Case, seconds: float) -> dict[str, Any]:
    """Return the times, the memory and the number of busy processors of a side."""
    step = side.prepare(case)
    peak = watched()
    start = time.perf_counter()
    size = sum(getattr(result, "nbytes", 0) for result in as_tuple(step()))
    found: dict[str, Any] = {"first": time.perf_counter() - start}
    step()  # takes more memory than the first call on sides that keep memory
    is_new = side is not ours or case.new  # otherwise results lie in the memory of earlier ones
    found["memory"] = max(0, peak() - is_new * size)
    return found | timing(step, seconds)


def timing(step: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Return the times of a function, and the number of busy processors."""
    times(step, seconds / 10, least=1)  # warms caches and raises the clock frequency
    found: dict[str, Any] = {"host": host_time(step)} if is_on_gpu() else {}
    busy, start = time.process_time(), time.perf_counter()
    found["quantiles"] = np.quantile(times(step, seconds), [0.2, 0.5, 0.8]).tolist()
    found["processors"] = (time.process_time() - busy) / (time.perf_counter() - start)
    return found


def errors(side: Side, case: Case) -> dict[str, Any]:
    """Return the difference from the numpy backend, and the error in ulp."""
    return {"difference": difference(case, side), "ulp": error(case, side)}


def main() -> None:
    """Measure each size and print a line for it."""
    parser = argparse.ArgumentParser(prog="python -m plugrad.bench.measure", description=__doc__, allow_abbrev=False)
    parser.add_argument("side", help="a module of plugrad.bench.sides")
    parser.add_argument("kernel")
    parser.add_argument("size", nargs="+")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--new", action="store_true", help="results go to new arrays rather than to out=")
    parser.add_argument("--captured", action="store_true", help="our step of training is captured, and replayed")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each size, 1 by default")
    parser.add_argument("--errors", action="store_true", help="compare results with the numpy backend's instead")
    given = parser.parse_args()
    side = load(given.side)
    if given.kernel not in side.NAMES:
        parser.error(f"{given.side}: expected one of {', '.join(side.NAMES)}; got {given.kernel!r}")
    for size in given.size:
        case = Case(given.kernel, size, given.dtype, given.new, given.captured)
        print(json.dumps(errors(side, case) if given.errors else performance(side, case, given.seconds)))


if __name__ == "__main__":
    main()
