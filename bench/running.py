"""Every side in processes of its own, in turn."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from plugrad.backends.threads import VARIABLE as THREADS
from plugrad.bench import growth
from plugrad.bench.cases import Case
from plugrad.bench.growth import Curve
from plugrad.bench.report import COPY, PRODUCTS, Row, Side

PEERS = ("textbook", "torch", "jax", "scipy")
ONLY = {"scipy": ("softmax", "log_softmax", "sigmoid")}  # what a peer has, if it has not all

# How far results may be off, relative to the largest, for a case to be measured: what makes a wrong result certain.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 1e-2, "bfloat16": 0.1}

# What bounds the threads of a side, ours and those of the libraries that peers compute with; JAX has no such thing.
BOUND_BY = (THREADS, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
UNBOUND = ("jax",)


@dataclass(frozen=True)
class Player:
    """Who is measured: a name, the module in `plugrad.bench.sides`, and the backend in force."""

    name: str
    side: str
    backend: str

    def play(self, cases: Sequence[Case], seconds: float, check: bool = False, bound: int = 0) -> list[dict[str, Any]]:
        """What `plugrad.bench.measure` tells of cases that differ in size, in a new process with so many threads."""
        case = cases[0]
        command = [sys.executable, "-W", "ignore", "-m", "plugrad.bench.measure", self.side, case.name]
        command += [*(case.size for case in cases), "--dtype", case.dtype, "--seconds", str(seconds)]
        command += ["--new"] * case.new + ["--check"] * check
        environment = {**os.environ, "PLUGRAD_BACKEND": self.backend}
        environment |= dict.fromkeys(BOUND_BY, str(bound)) if bound else {}
        done = subprocess.run(  # noqa: S603  (this package)
            command, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"ended with status {done.returncode}").splitlines()[-1]
            raise RuntimeError(f"{self.name}, {case.name} {' '.join(case.size for case in cases)}: {reason}")
        return [json.loads(line) for line in done.stdout.splitlines()]


def players(kernel: str, backends: Sequence[str], peers: Sequence[str]) -> list[Player]:
    """Our backends, and the peers that have the kernel."""
    ours = [Player(backend, "ours", backend) for backend in backends]
    return ours + [Player(peer, peer, backends[0]) for peer in peers if kernel in ONLY.get(peer, (kernel,))]


@dataclass(frozen=True)
class Plan:
    """What to do for a case or a curve: all of its processes, whose number is known before they start."""

    processes: int
    run: Callable[[Callable[[], Any]], Any]  # given what is called after each process; a `Row`, or curves


def row(
    case: Case, backends: Sequence[str], peers: Sequence[str], rounds: int, seconds: float, with_errors: bool
) -> Plan:
    """A row of the table; nothing is timed before our results agree with the numpy backend's in float64."""
    sides = players(case.name, backends, peers)
    bound = COPY if case.bytes else PRODUCTS if case.products else None
    timed = [*sides, *([Player(bound, bound, backends[0])] if bound else [])]
    checked = sides if with_errors else sides[: len(backends)]

    def run(tick: Callable[[], Any]) -> Row:
        found = Row(case, {player.name: Side() for player in timed})
        for player in checked:
            (told,) = player.play([case], 0, check=True)
            tick()
            if player.side == "ours" and not told["off"] < TOLERANCE[case.dtype]:
                raise RuntimeError(f"{player.name}, {case.name} {case.size}: results are off by {told['off']:.2g}")
            found.sides[player.name].ulp = told["ulp"]
        for _ in range(rounds):
            for player in timed:
                found.sides[player.name].add(*player.play([case], seconds))
                tick()
        return found

    return Plan(len(checked) + rounds * len(timed), run)


def curves(
    example: Case,
    against: str,
    backends: Sequence[str],
    peers: Sequence[str],
    rounds: int,
    seconds: float,
    factor: int = growth.FACTOR,
) -> Plan:
    """The curves of all sides for the kernel, dtype and way of giving results of `example`."""
    points = growth.sizes(example.name, against, factor)
    cases = [Case(example.name, size, example.dtype, example.new) for _, size in points]
    sides = players(example.name, backends, peers)
    if against == "threads":
        sides = [player for player in sides if player.name not in UNBOUND]
        calls = [([case], number) for case, (number, _) in zip(cases, points, strict=True)]
    else:
        calls = [(cases, 0)]

    def run(tick: Callable[[], Any]) -> list[Curve]:
        times: dict[str, list[list[float]]] = {player.name: [] for player in sides}
        for _ in range(rounds):
            for player in sides:
                medians: list[float] = []
                for given, number in calls:
                    medians += [told["quantiles"][1] for told in player.play(given, seconds, bound=number)]
                    tick()
                times[player.name].append(medians)
        sizes, numbers = [size for _, size in points], [number for number, _ in points]
        best = {name: [min(each) for each in zip(*found, strict=True)] for name, found in times.items()}
        return [
            Curve(example.name, example.dtype, name, against, sizes, numbers, seconds) for name, seconds in best.items()
        ]

    return Plan(rounds * len(sides) * len(calls), run)


@contextlib.contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[], Any], Callable[[str], Any]]]:
    """What counts processes on a bar, and what prints a line; without tqdm, or a terminal, there is no bar."""
    if find_spec("tqdm") is None:
        yield lambda: None, lambda line: print(line, flush=True)
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="process", leave=False, disable=None) as bar:

        def say(line: str) -> None:
            bar.clear()
            print(line, flush=True)

        yield bar.update, say
