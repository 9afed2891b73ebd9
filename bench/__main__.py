"""How fast, against whom: ``python -m plugrad.bench [KERNEL ...] --backend numba --peers torch,jax``.

Each side runs alone in a process of its own, in turn, several times. A row gives the best median of each, and how many
times as long each peer takes. Inputs come from the records of the kernels and have outliers among them.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plugrad.backends import BackendUnavailableError, get
from plugrad.bench.cases import DTYPES, QUICK, SIZES, STEP, Case
from plugrad.bench.report import Earlier, Row, Side, about_this_machine, told, write
from plugrad.kernels import KERNELS

PEERS = ("textbook", "torch", "jax", "scipy")
ONLY = {"scipy": ("softmax", "log_softmax", "sigmoid")}  # what a peer has, if it has not all
COPY, PRODUCTS = "copy", "products"  # the sides that bound a kernel


def in_own_process(side: str, backend: str, case: Case, seconds: float, check: bool = False) -> dict[str, Any]:
    """What `plugrad.bench.measure` tells of one side, alone in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", "plugrad.bench.measure", side, case.name, case.size]
    command += ["--dtype", case.dtype, "--seconds", str(seconds)]
    command += ["--new"] * case.new + ["--check"] * check
    done = subprocess.run(
        command, env={**os.environ, "PLUGRAD_BACKEND": backend}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"ended with status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{backend if side == 'ours' else side}, {case.name} {case.size}: {reason}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def cases(chosen: argparse.Namespace) -> list[Case]:
    """What was asked for: each kernel with each size, dtype and way of giving results."""
    found = []
    for name in chosen.kernel or [*KERNELS, STEP]:
        for size in chosen.sizes.split(",") if chosen.sizes else (QUICK if chosen.quick else SIZES)[name]:
            found += [Case(name, size, dtype, chosen.new) for dtype in chosen.dtypes.split(",")]
    return found


def sides_of(case: Case, backends: list[str], peers: list[str]) -> list[tuple[str, str, str]]:
    """Who is measured: a name, the module in `plugrad.bench.sides`, and the backend in force."""
    sides = [(backend, "ours", backend) for backend in backends]
    sides += [(peer, peer, backends[0]) for peer in peers if case.name in ONLY.get(peer, (case.name,))]
    bound = COPY if case.bytes else PRODUCTS if case.products else None
    return sides + ([(bound, bound, backends[0])] if bound else [])


def measured(case: Case, sides: list[tuple[str, str, str]], chosen: argparse.Namespace, tick: Callable[[], Any]) -> Row:
    """A row of the table; nothing is timed before our results agree with the numpy backend's in float64."""
    for _, side, backend in sides:
        if side == "ours":
            off = in_own_process(side, backend, case, 0, check=True)["off"]
            tick()
            if not off < TOLERANCE[case.dtype]:
                raise RuntimeError(f"{backend}, {case.name} {case.size}: results are off by {off:.2g}")
    row = Row(case, {name: Side() for name, _, _ in sides})
    for _ in range(chosen.rounds):
        for name, side, backend in sides:
            row.sides[name].add(in_own_process(side, backend, case, chosen.seconds))
            tick()
    return row


class Table:
    """The columns, and the cells of a row."""

    def __init__(
        self, backends: list[str], peers: list[str], chosen: argparse.Namespace, earlier: Earlier | None
    ) -> None:
        self.backends, self.peers, self.earlier = backends, peers, earlier
        self.on_gpu, self.with_memory = backends[0] == "cupy", chosen.memory

    def heading(self) -> str:
        """The names of the columns."""
        columns = [f"{name} us" for name in (*self.backends, *["host"] * self.on_gpu)]
        columns += ["+- %", *(f"x {peer}" for peer in self.peers), "GB/s", "Mrows/s", "of bound"]
        columns += [f"{name} MB" for name in (*self.backends, *self.peers)] if self.with_memory else []
        columns += ["x before"] if self.earlier else []
        return " ".join([f"{'kernel':37} {'size':>15} {'dtype':>8}", *(f"{column:>11}" for column in columns)])

    def line(self, row: Row) -> str:
        """A row."""
        case, ours = row.case, row.sides[self.backends[0]]
        cells = [f"{row.sides[name].best * 1e6:.1f}" for name in self.backends]
        cells += [f"{(ours.host or 0) * 1e6:.1f}"] if self.on_gpu else []
        low, middle, high = ours.quantiles
        cells += [f"{(high - low) / 2 / middle:.1%}"]
        cells += [f"{row.sides[peer].best / ours.best:.2f}" if peer in row.sides else "-" for peer in self.peers]
        cells += [f"{case.bytes / ours.best / 1e9:.1f}" if case.bytes else "-", f"{case.rows / ours.best / 1e6:.2f}"]
        bound = next((row.sides[name].best for name in (COPY, PRODUCTS) if name in row.sides), None)
        cells += [f"{bound / ours.best:.0%}" if bound else "-"]
        if self.with_memory:
            sides = (row.sides.get(name) for name in (*self.backends, *self.peers))
            cells += [f"{side.memory / 1e6:.1f}" if side else "-" for side in sides]
        if self.earlier:
            change = self.earlier.change(row, self.backends[0])
            cells += ["new" if change is None else f"{change[0]:.2f}{'*' if change[1] else ' '}"]
        return " ".join([f"{case.name:37} {case.size:>15} {case.dtype:>8}", *(f"{cell:>11}" for cell in cells)])


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


def share(text: str) -> float:
    """A share such as ``10%`` or ``0.1``."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not value >= 0:
        raise ValueError(text)
    return value


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="'+- %%' is half of the way from the 20 %% to the 80 %% quantile; 'x PEER' is how many times as long a "
        "peer takes as the first backend; 'of bound' is how long it takes to copy as many bytes as the kernel moves at "
        "the least, or to multiply its matrices, as a share of what the kernel takes. 'x before' is how many times as "
        "long it takes as in the file that is compared with, with a star beyond the noise. On a GPU, calls are timed "
        "by its events, with nothing of their arrays in its caches; 'host us' is the time until a call returns.",
    )
    parser.add_argument(
        "kernel", nargs="*", help=f"kernels, or 'step', a step of training; all by default: {', '.join(KERNELS)}"
    )
    parser.add_argument("--backend", default="numba", help="our backends, with commas between them")
    parser.add_argument("--peers", default="", help=f"whom to compare with, out of {', '.join(PEERS)}")
    parser.add_argument("--sizes", help="such as 4096x1024,256x10; 8x21x256x256 for images; 64-784-128-10 for steps")
    parser.add_argument("--dtypes", default="float32", help=f"out of {', '.join(DTYPES)}")
    parser.add_argument("--new", action="store_true", help="results go to new arrays rather than to out=")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each side")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent in each process")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, one round of 0.1 seconds: a minute or two")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also the most memory that each side takes beside its arguments and results, in MB of 10^6 bytes",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep what was measured, and on which machine")
    parser.add_argument("--compare", metavar="FILE", type=Path, help="compare with what an earlier run has kept")
    parser.add_argument(
        "--fail-above",
        metavar="SHARE",
        type=share,
        help="such as 10%%: end with status 1 if the first backend takes so much longer than before, beyond the noise",
    )
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.seconds = 1, 0.1
    try:
        _check(chosen)
    except (BackendUnavailableError, OSError, ValueError) as error:
        parser.error(str(error))
    return chosen


def _check(chosen: argparse.Namespace) -> None:
    """Refuse what cannot be measured; lists and cases take the place of texts."""
    chosen.peers = [peer for peer in chosen.peers.split(",") if peer]
    chosen.backends = list(dict.fromkeys(chosen.backend.split(",")))
    if chosen.rounds < 1 or not chosen.seconds > 0:
        raise ValueError("--rounds and --seconds: expected more than 0")
    if chosen.fail_above is not None and not chosen.compare:
        raise ValueError("--fail-above: expected --compare FILE with it")
    for backend in chosen.backends:
        get(backend)
    for peer in chosen.peers:
        if peer not in PEERS:
            raise ValueError(f"--peers: expected some of {', '.join(PEERS)}; got {peer!r}")
        if chosen.backends[0] == "cupy" and peer != "torch":
            raise ValueError(f"--peers: expected torch beside cupy, since {peer} is measured on the CPU")
    chosen.earlier = Earlier(chosen.compare) if chosen.compare else None
    if chosen.json and not chosen.json.resolve().parent.is_dir():
        raise ValueError(f"--json: there is no folder for {chosen.json}")
    chosen.cases = cases(chosen)


def main() -> int:
    """Measure, and print a table; the exit status."""
    chosen = parsed()
    missing = [peer for peer in chosen.peers if peer != "textbook" and find_spec(peer) is None]
    peers = [peer for peer in chosen.peers if peer not in missing]
    machine, rows, status = about_this_machine(chosen.backends, peers), [], 130
    table = Table(chosen.backends, peers, chosen, chosen.earlier)
    print(told(machine))
    for peer in missing:
        print(f"{peer} is not installed, and left out")
    print(f"\n{table.heading()}", flush=True)
    wanted = [(case, sides_of(case, chosen.backends, peers)) for case in chosen.cases]
    total = sum(len(chosen.backends) + chosen.rounds * len(sides) for _, sides in wanted)
    try:
        with progress(total) as (tick, say):
            for case, sides in wanted:
                rows.append(measured(case, sides, chosen, tick))
                say(table.line(rows[-1]))
        status = 0
    except KeyboardInterrupt:
        print("\ninterrupted: the rows above are whole", file=sys.stderr)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        status = 1
    if chosen.json:
        write(chosen.json, machine, sys.argv[1:], rows, is_whole=status == 0)
    if chosen.fail_above is not None and status == 0:
        changes = [chosen.earlier.change(row, chosen.backends[0]) for row in rows]
        slower = [change for change in changes if change and change[1] and change[0] > 1 + chosen.fail_above]
        if slower:
            print(
                f"{len(slower)} of {len(rows)} take more than {chosen.fail_above:.0%} longer than before",
                file=sys.stderr,
            )
            status = 1
    return status


# How far results may be off, relative to the largest, for a case to be measured: what makes a wrong result certain.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 1e-2, "bfloat16": 0.1}


if __name__ == "__main__":
    raise SystemExit(main())
