"""The parts of the time of a small call: ``python -m plugrad.bench.dispatch --backend numpy,numba``.

A call selects a backend, checks its arguments and brings them to canonical form, and calls the backend's function.
`compute` is the time of that function alone, with the arguments that it gets in a call; `checks` is the time of a call
whose function does nothing, less that of `selection`. `overhead` is the time of a call beyond `compute`: slightly more
than the sum of the parts, since each evicts data of the others from the processor's caches. The parts are timed in turn
in this process, many times; the table has the least time of each, in microseconds.
"""

import argparse
import contextlib
import timeit
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from plugrad import backends
from plugrad.backends.selection import backend_for
from plugrad.bench import arguments as types
from plugrad.bench.cases import Case
from plugrad.bench.sides import ours
from plugrad.bench.sizes import LAST_LAYER, sizes_of
from plugrad.kernels import KERNELS

CALLS = 2000


class Parts(NamedTuple):
    """The time of a call, and of its parts, in seconds."""

    call: float
    compute: float
    selection: float
    empty: float

    @property
    def overhead(self) -> float:
        """The time of the call beyond the backend's function."""
        return self.call - self.compute

    @property
    def checks(self) -> float:
        """The time to check the arguments and bring them to canonical form."""
        return self.empty - self.selection


def measured(name: str, rounds: int) -> Parts:
    """Time the parts of a call of a kernel with ``out=`` on the selected backend."""
    call = ours.prepare(Case(name, sizes_of(name).smallest))
    seen: list[tuple[Any, ...]] = []
    with _replaced(name, lambda *given: seen.append(given)):
        call()
    (given,) = seen
    function, first = backends.current().functions[name], next(x for x in given if hasattr(x, "dtype"))
    least = [float("inf")] * len(Parts._fields)
    for _ in range(rounds):
        parts: list[Callable[[], Any]] = [call, lambda: function(*given), lambda: backend_for(first)]
        times = [timeit.timeit(part, number=CALLS) / CALLS for part in parts]
        with _replaced(name, lambda *given: None):
            times.append(timeit.timeit(call, number=CALLS) / CALLS)
        least = [min(pair) for pair in zip(least, times, strict=True)]
    return Parts(*least)


@contextlib.contextmanager
def _replaced(name: str, other: Callable[..., None]) -> Iterator[None]:
    """Replace the backend's function."""
    functions = backends.current().functions
    function = functions[name]
    functions[name] = other
    try:
        yield
    finally:
        functions[name] = function


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m plugrad.bench.dispatch", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "kernel",
        nargs="*",
        type=types.one_of(KERNELS),
        help="kernels; by default all but those of the last layer with its loss",
    )
    parser.add_argument(
        "--backend",
        type=types.comma_separated(types.backend),
        default="numpy,numba",
        help="our backends, with commas between them",
    )
    parser.add_argument("--rounds", type=types.rounds, default=20, help="20 by default")
    given = parser.parse_args()
    print(
        f"{'kernel':37} {'backend':>8} {'call':>8} {'compute':>8} {'selection':>10} {'checks':>8} {'overhead':>9}  us"
    )
    for name in given.kernel or [name for name in KERNELS if sizes_of(name) is not LAST_LAYER]:
        for backend in given.backend:
            with backends.use(backend):
                parts = measured(name, given.rounds)
            cells = parts.call, parts.compute, parts.selection, parts.checks, parts.overhead
            widths = zip(cells, (8, 8, 10, 8, 9), strict=True)
            print(f"{name:37} {backend:>8}", *(f"{cell * 1e6:{width}.2f}" for cell, width in widths), flush=True)


if __name__ == "__main__":
    main()
