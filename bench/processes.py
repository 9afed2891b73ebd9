"""Each side in processes of its own, in turn; or all sides in this process, in turn."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from plugrad.backends import use
from plugrad.backends.threads import VARIABLE as THREADS
from plugrad.bench import sides
from plugrad.bench.cases import Case
from plugrad.bench.curves import FACTOR, Curve, points
from plugrad.bench.errors import TOLERANCE
from plugrad.bench.measure import errors, timing
from plugrad.bench.measurements import COPY, PRODUCTS, Measurement, Row

# These bound the threads of plugrad and of the libraries that peers compute with. JAX has no such variable.
BOUND_BY = (THREADS, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
UNBOUND = ("jax",)

T = TypeVar("T")
Tick = Callable[[], Any]  # called after each process


@dataclass(frozen=True)
class MeasuredSide:
    """A side: its name, its module in `plugrad.bench.sides`, and the value of ``PLUGRAD_BACKEND``."""

    name: str
    module: str
    backend: str

    def performance(self, cases: Sequence[Case], seconds: float, threads: int | None = None) -> list[dict[str, Any]]:
        """Measure cases that differ only in size in a new process, with so many threads."""
        bound = dict.fromkeys(BOUND_BY, str(threads)) if threads else {}
        return self._process(cases, ["--seconds", str(seconds)], bound)

    def step(self, case: Case) -> Callable[[float], list[dict[str, Any]]]:
        """Compute a case once in this process, and return a function that times it for so many seconds."""
        with use(self.backend):
            step = sides.load(self.module).prepare(case)
            start = time.perf_counter()
            step()
            first = {"first": time.perf_counter() - start, "memory": 0.0}  # memory is that of all sides

        def timed(seconds: float) -> list[dict[str, Any]]:
            with use(self.backend):
                return [first | timing(step, seconds)]

        return timed

    def errors(self, case: Case, together: bool) -> dict[str, Any]:
        """Return the errors of the results of a case, computed in this process or in a new one."""
        if together:
            with use(self.backend):
                return errors(sides.load(self.module), case)
        (found,) = self._process([case], ["--errors"], {})
        return found

    def _process(self, cases: Sequence[Case], options: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
        case, sizes = cases[0], [case.size for case in cases]
        command = [sys.executable, "-W", "ignore", "-m", "plugrad.bench.measure", self.module, case.name, *sizes]
        command += ["--dtype", case.dtype, *["--new"] * case.new]
        command += [*["--captured"] * case.captured, *options]
        done = subprocess.run(  # noqa: S603  (this package)
            command,
            env={**os.environ, "PLUGRAD_BACKEND": self.backend, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"ended with status {done.returncode}").splitlines()[-1]
            raise RuntimeError(f"{self.name}, {case.name} {' '.join(sizes)}: {reason}")
        return [json.loads(line) for line in done.stdout.splitlines()]


def measured_sides(kernel: str, backends: Sequence[str], peers: Sequence[str]) -> list[MeasuredSide]:
    """Return our backends, and the peers that have the kernel."""
    ours = [MeasuredSide(backend, "ours", backend) for backend in backends]
    return ours + [MeasuredSide(peer, peer, backends[0]) for peer in peers if kernel in sides.load(peer).NAMES]


@dataclass(frozen=True)
class Job(Generic[T]):
    """Measurements of a row or of curves, and the number of processes that they take."""

    processes: int
    run: Callable[[Tick], T]


def row(
    case: Case,
    backends: Sequence[str],
    peers: Sequence[str],
    rounds: int,
    seconds: float,
    with_errors: bool,
    together: bool = False,
) -> Job[Row]:
    """Return the job of a row. It times nothing before our results agree with the numpy backend's in float64.

    Errors of peers are measured only `with_errors`. `together` times all sides in this process.
    """
    measured = measured_sides(case.name, backends, peers)
    bound = COPY if case.bytes else PRODUCTS if case.products else None
    timed = [*measured, *([MeasuredSide(bound, bound, backends[0])] if bound else [])]
    checked = measured if with_errors else measured[: len(backends)]

    def run(tick: Tick) -> Row:
        found = Row(case, {side.name: Measurement() for side in timed})
        for side in checked:
            off = side.errors(case, together)
            tick()
            if side.module == "ours" and not off["difference"] < TOLERANCE[case.dtype]:
                raise RuntimeError(f"{side.name}, {case.name} {case.size}: results are off by {off['difference']:.2g}")
            found.sides[side.name].ulp = off["ulp"]
        steps = [side.step(case) if together else partial(side.performance, [case]) for side in timed]
        for _ in range(rounds):
            for side, step in zip(timed, steps, strict=True):
                found.sides[side.name].add(*step(seconds))
                tick()
        return found

    return Job(len(checked) + rounds * len(timed), run)


def curves(
    example: Case,
    against: str,
    backends: Sequence[str],
    peers: Sequence[str],
    rounds: int,
    seconds: float,
    factor: int = FACTOR,
) -> Job[list[Curve]]:
    """Return the job of the curves of all sides, for the kernel and dtype of `example`."""
    numbers, sizes = zip(*points(example.name, against, factor), strict=True)
    cases = [replace(example, size=size) for size in sizes]
    measured = measured_sides(example.name, backends, peers)
    processes: list[tuple[list[Case], int | None]] = [(cases, None)]
    if against == "threads":
        measured = [side for side in measured if side.name not in UNBOUND]
        processes = [([case], threads) for case, threads in zip(cases, numbers, strict=True)]

    def run(tick: Tick) -> list[Curve]:
        rounds_of: dict[str, list[list[float]]] = {side.name: [] for side in measured}
        for _ in range(rounds):
            for side in measured:
                medians: list[float] = []
                for given, threads in processes:
                    medians += [found["quantiles"][1] for found in side.performance(given, seconds, threads)]
                    tick()
                rounds_of[side.name].append(medians)
        return [
            Curve(
                kernel=example.name,
                dtype=example.dtype,
                side=name,
                against=against,
                sizes=list(sizes),
                numbers=list(numbers),
                seconds=[min(medians) for medians in zip(*found, strict=True)],
            )
            for name, found in rounds_of.items()
        ]

    return Job(rounds * len(measured) * len(processes), run)


@contextlib.contextmanager
def progress(total: int) -> Iterator[tuple[Tick, Callable[[str], Any]]]:
    """Yield a function that counts a process on a bar, and one that prints a line above the bar.

    There is no bar without tqdm or without a terminal.
    """
    if find_spec("tqdm") is None:
        yield lambda: None, lambda line: print(line, flush=True)
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="process", leave=False, disable=None) as bar:

        def write(line: str) -> None:
            bar.clear()
            print(line, flush=True)

        yield bar.update, write
