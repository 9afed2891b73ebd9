"""Measure the profile of ``PLUGRAD_BACKEND=auto``: ``python -m plugrad.bench tune [KERNEL ...]``.

For each kernel and dtype, finds the number of elements at which one CPU backend becomes faster than the other. The
profile goes to the file that ``PLUGRAD_PROFILE`` names, or to the user's configuration folder; kernels that are not
measured keep their entries.
"""

import argparse
import json
import math
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from plugrad.backends import profile
from plugrad.backends.choice import AUTO_ORDER
from plugrad.backends.profile import Steps
from plugrad.bench import arguments as types, curves, outputs, processes
from plugrad.bench.cases import Case
from plugrad.bench.curves import Curve, groups
from plugrad.bench.exit_status import status_of
from plugrad.bench.measurements import Results, replace
from plugrad.bench.sizes import sizes_of
from plugrad.kernels import KERNELS

BACKENDS = AUTO_ORDER["numpy"]
# Matrix products take most of the time of the others, and come from the same BLAS on both backends.
TUNABLE = [name for name, kernel in KERNELS.items() if "w" not in kernel.arguments]

POINT_SECONDS = 0.1


class Options(argparse.Namespace):
    """The arguments of the command."""

    kernel: list[str]
    dtypes: list[str]
    rounds: int
    seconds: float


def steps_of(measured: Iterable[tuple[int, dict[str, float]]]) -> Steps:
    """Return the steps of a profile that lose the least.

    The loss is the sum, over all points, of the logarithm of the chosen backend's time divided by the other's, where
    the other is faster: so a single wrong measurement moves no step. There is one step at most, since one backend has
    the shorter call, and the other, or the same, the shorter time for each element.

    Parameters
    ----------
    measured : iterable of (int, dict of str to float)
        The number of elements of each point, and the time of each of two backends.
    """
    points = sorted(measured, key=lambda point: point[0])
    first, second = points[0][1]
    starts = sorted({elements for elements, _ in points})
    candidates: list[Steps] = [[(0, first)], [(0, second)]]
    for before, after in pairwise(starts):
        between = round((before * after) ** 0.5)
        candidates += [[(0, first), (between, second)], [(0, second), (between, first)]]

    def loss(steps: Steps) -> float:
        total = 0.0
        for elements, seconds in points:
            chosen = [name for start, name in steps if start <= elements][-1]
            total += math.log(seconds[chosen] / min(seconds.values()))
        return total

    return min(candidates, key=loss)


def steps_of_curves(measured: Iterable[Curve]) -> dict[str, dict[str, Steps]]:
    """Return the steps for each kernel and dtype, from the curves of two backends."""
    points: dict[tuple[str, str], list[tuple[int, dict[str, float]]]] = {}
    for (kernel, dtype, _), group in groups(measured).items():
        for i, size in enumerate(group[0].sizes):
            times = {curve.side: curve.seconds[i] for curve in group}
            points.setdefault((kernel, dtype), []).append((Case(kernel, size).elements, times))
    found: dict[str, dict[str, Steps]] = {}
    for (kernel, dtype), of_kernel in points.items():
        found.setdefault(kernel, {})[dtype] = steps_of(of_kernel)
    return found


def _parsed(arguments: Sequence[str]) -> tuple[Options, Path]:
    """Parse the arguments; return them with the path of the profile."""
    parser = argparse.ArgumentParser(prog="python -m plugrad.bench tune", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "kernel",
        nargs="*",
        type=types.one_of(TUNABLE),
        help=f"kernels; all by default: {', '.join(TUNABLE)}",
    )
    parser.add_argument(
        "--dtypes",
        type=types.comma_separated(types.one_of(profile.DTYPES)),
        default="float32",
        help=f"out of {', '.join(profile.DTYPES)}; float32 by default",
    )
    parser.add_argument("--rounds", type=types.rounds, default=3, help="processes for each backend, 3 by default")
    parser.add_argument(
        "--seconds", type=types.seconds, default=POINT_SECONDS, help=f"time for each size, {POINT_SECONDS} by default"
    )
    options = parser.parse_args(arguments, Options())
    options.kernel = options.kernel or TUNABLE
    try:
        for name in BACKENDS:
            types.backend(name)
        return options, _path_of_profile()
    except (OSError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))


def _path_of_profile() -> Path:
    """Return the path of the profile; refuse a path that holds another file."""
    path = profile.location()
    if path is None:
        raise argparse.ArgumentTypeError(f"expected {profile.VARIABLE} to name a file to write the profile to")
    if not os.environ.get(profile.VARIABLE, "").strip():
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        types.writable_file(str(path))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{profile.VARIABLE}: {error}") from error
    if path.exists() and '"format"' not in path.read_text(errors="replace"):
        raise argparse.ArgumentTypeError(f"{profile.VARIABLE}: {path} exists, and is no profile")
    return path


def _measure(options: Options, results: Results) -> None:
    """Measure the curves against rows and classes, and print each when it is complete."""
    examples = [Case(name, sizes_of(name).smallest, dtype) for name in options.kernel for dtype in options.dtypes]
    jobs = [
        processes.curves(example, against, results.backends, [], options.rounds, options.seconds)
        for example in examples
        for against in curves.AGAINST
        if against != "threads"
    ]
    with processes.progress(sum(job.processes for job in jobs)) as (tick, write):
        for job in jobs:
            found = job.run(tick)
            results.curves += found
            for line in curves.lines(found, results.backends):
                write(line)
    results.is_whole = True


def _write_profile(path: Path, results: Results) -> None:
    """Write the profile, together with the other kernels of an earlier profile of this machine, and print it."""
    kernels = profile.recorded(path, results.machine)
    for kernel, dtypes in steps_of_curves(results.curves).items():
        kernels.setdefault(kernel, {}).update(dtypes)
    machine = {key: results.machine[key] for key in ("processor", "threads", "versions")}
    content = {"format": profile.FORMAT, "date": results.date, "machine": machine, "kernels": kernels}
    replace(path, json.dumps(content, indent=1) + "\n")
    print(f"\n{'kernel':37} {'dtype':>8}  fastest")
    for name, dtypes in kernels.items():
        for dtype, steps in dtypes.items():
            parts = [backend if not start else f"{backend} from {start:,} elements on" for start, backend in steps]
            print(f"{name:37} {dtype:>8}  {', '.join(parts)}")
    print(f"\nPLUGRAD_BACKEND=auto uses this profile from the next process on: {path}")


def main(arguments: Sequence[str]) -> int:
    """Measure, and write the profile; return the exit status."""
    options, path = _parsed(arguments)
    results = Results.begin(["tune", *arguments], list(BACKENDS), [])
    print(results.about)
    status = status_of(lambda: _measure(options, results))
    if status:
        return status
    return outputs.write_file(path, lambda path: _write_profile(path, results))
