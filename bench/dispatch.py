"""Where the time of a small call goes: ``python -m plugrad.bench.dispatch --backend numpy,numba``.

A call chooses a backend, checks its arguments and brings them to canonical form, and has the backend's bare function
compute. `compute` is that function by itself, on the very arguments that a call leads to; `checks` is a call whose
function does nothing, less the choice of the backend. `overhead` is what a call takes beyond `compute`: a little more
than the sum of the parts, as each of them finds the caches of the processor as the other has left them. All is timed in
turn in this process, many times, and the least of each is told, in microseconds.
"""

import argparse
import contextlib
import timeit
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from plugrad import backends
from plugrad.backends.selection import backend_for
from plugrad.bench.cases import Case
from plugrad.bench.sides import ours
from plugrad.kernels import KERNELS

SIZE, LAYER = "32x10", "32x16x10"
CALLS = 2000


class Parts(NamedTuple):
    """The time of a call, in seconds, and of what is in it."""

    call: float
    compute: float
    selection: float
    empty: float

    @property
    def overhead(self) -> float:
        """What the call takes beside computing."""
        return self.call - self.compute

    @property
    def checks(self) -> float:
        """Checks, and the canonical form of the arguments."""
        return self.empty - self.selection


def measured(name: str, rounds: int) -> Parts:
    """The parts of a call of a kernel with ``out=``, on the backend in force."""
    kernel = KERNELS[name]
    call = ours.prepare(Case(name, LAYER if "w" in kernel.arguments else SIZE))
    seen: list[tuple[Any, ...]] = []
    with _computing(name, lambda *given: seen.append(given)):
        call()
    (given,) = seen
    function, first = backends.current().functions[name], next(x for x in given if hasattr(x, "dtype"))
    least = [float("inf")] * len(Parts._fields)
    for _ in range(rounds):
        parts: list[Callable[[], Any]] = [call, lambda: function(*given), lambda: backend_for(first)]
        times = [timeit.timeit(part, number=CALLS) / CALLS for part in parts]
        with _computing(name, lambda *given: None):
            times.append(timeit.timeit(call, number=CALLS) / CALLS)
        least = [min(pair) for pair in zip(least, times, strict=True)]
    return Parts(*least)


@contextlib.contextmanager
def _computing(name: str, other: Callable[..., None]) -> Iterator[None]:
    """Have another function in the place of the backend's."""
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
    parser.add_argument("kernel", nargs="*", help="kernels; all but those of the last layer by default")
    parser.add_argument("--backend", default="numpy,numba", help="our backends, with commas between them")
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    names = chosen.kernel or [name for name in KERNELS if not name.startswith("linear")]
    for name in names:
        if name not in KERNELS:
            parser.error(f"kernel: expected some of {', '.join(KERNELS)}; got {name!r}")
    print(
        f"{'kernel':37} {'backend':>8} {'call':>8} {'compute':>8} {'selection':>10} {'checks':>8} {'overhead':>9}  us"
    )
    try:
        for name in names:
            for backend in chosen.backend.split(","):
                with backends.use(backend):
                    parts = measured(name, chosen.rounds)
                cells = parts.call, parts.compute, parts.selection, parts.checks, parts.overhead
                widths = zip(cells, (8, 8, 10, 8, 9), strict=True)
                print(f"{name:37} {backend:>8}", *(f"{cell * 1e6:{width}.2f}" for cell, width in widths), flush=True)
    except (backends.BackendUnavailableError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
