"""How fast, against whom: ``python -m plugrad.bench [KERNEL ...] --backend numba --peers torch,jax``.

Each side runs alone in a process of its own, in turn, several times. A row gives the best median of each, and how many
times as long each peer takes. Inputs come from the records of the kernels and have outliers among them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from plugrad.backends import BackendUnavailableError, get, threads
from plugrad.bench.cases import DTYPES, SIZES, STEP, Case
from plugrad.kernels import KERNELS

PEERS = ("textbook", "torch", "jax")
COPY, HOST, MEMORY = "copy", "host", " MB"


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


def medians(sides: Iterable[tuple[str, str]], case: Case, rounds: int, seconds: float) -> dict[str, float]:
    """The best median of each side, a name and a backend, in microseconds; for a GPU also the host's time, ``host``.

    And the memory that each takes, in bytes, under its name with `MEMORY` behind it.
    """
    best: dict[str, float] = {}

    def keep(name: str, seconds: float) -> None:
        best[name] = min(best.get(name, float("inf")), seconds * 1e6)

    for _ in range(rounds):
        for side, backend in sides:
            told = in_own_process(side, backend, case, seconds)
            name = backend if side == "ours" else side
            keep(name, told["quantiles"][1])
            best[name + MEMORY] = max(best.get(name + MEMORY, 0), told["memory"])
            if side == "ours" and "host" in told:
                keep(HOST, told["host"])
    return best


def cases(chosen: argparse.Namespace) -> list[Case]:
    """What was asked for: each kernel with each size, dtype and way of giving results."""
    found = []
    for name in chosen.kernel or [*KERNELS, STEP]:
        for size in chosen.sizes.split(",") if chosen.sizes else SIZES[name]:
            found += [Case(name, size, dtype, chosen.new) for dtype in chosen.dtypes.split(",")]
    return found


def about_this_machine(backends: Iterable[str], peers: Iterable[str]) -> str:
    """Processor, threads, GPUs and versions."""
    try:
        with open("/proc/cpuinfo") as told:
            processor = next(line.partition(":")[2].strip() for line in told if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    versions = {}
    for name in backends:
        if devices := get(name).describe().get("devices", "CPU").removeprefix("CPU"):
            processor = f"{devices}, {processor}"
            versions[name] = get(name).describe()["version"]
    for package in ("numpy", "numba", *(peer for peer in peers if peer != "textbook")):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    told_versions = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{processor}, {threads.count()} threads, Python {platform.python_version()}, {told_versions}"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="'x PEER' is how many times as long the peer takes as the first backend; 'of copy' is how long it takes "
        "to copy as many bytes as the kernel moves at the least, as a share of what the kernel takes. On a GPU, calls "
        "are timed by its events, with nothing of their arrays in its caches; 'host us' is the time until a call "
        "returns.",
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
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also the most memory that each side takes beside its arguments and results, in MB of 10^6 bytes",
    )
    chosen = parser.parse_args()
    peers = [peer for peer in chosen.peers.split(",") if peer]
    backends = list(dict.fromkeys(chosen.backend.split(",")))
    on_gpu = backends[0] == "cupy"
    try:
        if chosen.rounds < 1 or not chosen.seconds > 0:
            raise ValueError("--rounds and --seconds: expected more than 0")
        for backend in backends:
            get(backend)
        for peer in peers:
            if peer not in PEERS:
                raise ValueError(f"--peers: expected some of {', '.join(PEERS)}; got {peer!r}")
            if on_gpu and peer != "torch":
                raise ValueError(f"--peers: expected torch beside cupy, since {peer} is measured on the CPU")
        wanted = cases(chosen)
    except (BackendUnavailableError, ValueError) as error:
        parser.error(str(error))
    missing = [peer for peer in peers if peer != "textbook" and find_spec(peer) is None]
    peers = [peer for peer in peers if peer not in missing]
    print(about_this_machine(backends, peers))
    for peer in missing:
        print(f"{peer} is not installed, and left out")
    columns = [f"{name} us" for name in (*backends, *[HOST] * on_gpu)] + [f"x {peer}" for peer in peers]
    columns += ["GB/s", "of copy"]
    measured = [*backends, *peers] if chosen.memory else []
    columns += [name + MEMORY for name in measured]
    print(f"\n{'kernel':37} {'size':>15} {'dtype':>8}", *(f"{column:>11}" for column in columns), flush=True)
    for case in wanted:
        sides = [("ours", backend) for backend in backends] + [(peer, backends[0]) for peer in peers]
        if case.bytes is not None:
            sides.append((COPY, backends[0]))
        try:
            for side, backend in sides[: len(backends)]:
                off = in_own_process(side, backend, case, 0, check=True)["off"]
                if not off < TOLERANCE[case.dtype]:
                    raise RuntimeError(f"{backend}, {case.name} {case.size}: results are off by {off:.2g}")
            best = medians(sides, case, chosen.rounds, chosen.seconds)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            raise SystemExit(1) from None
        ours = best[backends[0]]
        cells = [f"{best[name]:11.1f}" for name in (*backends, *[HOST] * on_gpu)]
        cells += [f"{best[peer] / ours:11.2f}" for peer in peers]
        cells += [f"{case.bytes / ours / 1e3:11.1f}" if case.bytes else f"{'-':>11}"]
        cells += [f"{best[COPY] / ours:11.0%}" if COPY in best else f"{'-':>11}"]
        cells += [f"{best[name + MEMORY] / 1e6:11.1f}" for name in measured]
        print(f"{case.name:37} {case.size:>15} {case.dtype:>8}", *cells, flush=True)


# How far results may be off, relative to the largest, for a case to be measured: what makes a wrong result certain.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 1e-2, "bfloat16": 0.1}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
