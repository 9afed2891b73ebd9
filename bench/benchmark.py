"""Time kernels on our backends and beside peers: ``python -m plugrad.bench [KERNEL ...]``.

Each side runs alone in a process of its own, in turn, several times. A row gives the least of the medians of each
backend, and the ratio of each peer's time to the first backend's. Inputs have outliers among them.
"""

import argparse
from collections.abc import Sequence

from plugrad.backends import available
from plugrad.backends.choice import AUTO_ORDER
from plugrad.bench import arguments as types, comparison, curves, outputs, processes, sides
from plugrad.bench.cases import ALL_NAMES, DTYPES, TIMED, Case
from plugrad.bench.curves import Curve
from plugrad.bench.exit_status import status_of
from plugrad.bench.measurements import Results, Row
from plugrad.bench.processes import Job
from plugrad.bench.sizes import NAMES, sizes_of
from plugrad.bench.table import LEGEND, Table

# The kernels whose curves --quick draws, and the ratio of each number of a curve to the one before.
QUICK_CURVES, QUICK_FACTOR = ("softmax", "softmax_cross_entropy_value_and_grad"), 16
QUICK_ROUNDS, QUICK_SECONDS = 1, 0.1

POINT_SHARE = 1 / 5  # the time for a point of a curve, as a share of the time for a row


class Options(outputs.Outputs, comparison.Comparison):
    """The arguments of the command, and the cases that they name."""

    kernel: list[str]
    backend: list[str]
    peers: list[str]
    bridges: bool
    options: bool
    together: bool
    sizes: list[str]
    dtypes: list[str]
    new: bool
    captured: bool
    rounds: int
    seconds: float
    quick: bool
    memory: bool
    accuracy: bool
    curves: bool
    cases: list[Case]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench",
        description=f"{__doc__} Other commands, each with a --help of its own: 'show FILE' prints the results that "
        "--json has written; 'tune' measures the profile by which PLUGRAD_BACKEND=auto chooses; 'loops' compares "
        "training loops written by hand with the same ported; '--distributed' times steps on several processes; "
        "python -m plugrad.bench.dispatch measures small calls.",
        epilog=LEGEND,
        allow_abbrev=False,
    )
    comma_separated = types.comma_separated
    parser.add_argument(
        "kernel",
        nargs="*",
        type=types.one_of(ALL_NAMES),
        help=f"kernels, or 'step' for a step of training; all by default: {', '.join(NAMES)}. With options: "
        f"{', '.join(TIMED)}",
    )
    parser.add_argument(
        "--backend",
        type=comma_separated(types.backend),
        help="our backends, with commas between them; by default the one that auto takes",
    )
    parser.add_argument(
        "--peers",
        type=comma_separated(types.one_of(sides.PEERS)),
        default="",
        help=f"peers to compare with, out of {', '.join(sides.PEERS)}",
    )
    parser.add_argument(
        "--bridges",
        action="store_true",
        help=f"beside each peer also plugrad's bridge to it; one of {', '.join(sides.BRIDGES)}",
    )
    parser.add_argument("--options", action="store_true", help="each kernel also with the options above")
    parser.add_argument(
        "--sizes",
        type=comma_separated(str),
        default="",
        help="such as 4096x1024,256x10; 8x21x256x256 for images; rows x inputs x outputs for layers, such as "
        "64x784x128; 64-784-128-10 for steps",
    )
    parser.add_argument(
        "--dtypes",
        type=comma_separated(types.dtype),
        default="float32",
        help=f"out of {', '.join(DTYPES)}; float32 by default",
    )
    parser.add_argument("--new", action="store_true", help="results go to new arrays rather than to out=")
    parser.add_argument("--captured", action="store_true", help="our steps are captured, and replayed: for 'step' only")
    parser.add_argument("--together", action="store_true", help="all sides in one process, in turn")
    parser.add_argument("--rounds", type=types.rounds, default=3, help="processes for each side, 3 by default")
    parser.add_argument("--seconds", type=types.seconds, default=0.5, help="time in each process, 0.5 by default")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, one round of 0.1 seconds: a minute or two")
    also = parser.add_argument_group("what else to measure (--html and --png measure --accuracy and --curves)")
    also.add_argument(
        "--memory", action="store_true", help="the peak of memory beyond arguments and results, in MB of 10^6 bytes"
    )
    also.add_argument("--accuracy", action="store_true", help="the largest error of each side, in ulp")
    also.add_argument("--curves", action="store_true", help="the growth of time with rows, classes and threads")
    outputs.add_arguments(parser)
    comparison.add_arguments(parser)
    return parser


def _parsed(arguments: Sequence[str]) -> tuple[Options, Results | None]:
    """Parse the arguments, and check those that depend on each other; return them with the earlier results."""
    parser = _parser()
    options = parser.parse_args(arguments, Options())
    if options.bridges and not any(peer in sides.BRIDGES for peer in options.peers):
        parser.error(f"--bridges: expected --peers with one of {', '.join(sides.BRIDGES)}")
    options.backend = options.backend or [next(name for name in AUTO_ORDER["numpy"] if available()[name])]
    if options.quick:
        options.rounds, options.seconds = QUICK_ROUNDS, QUICK_SECONDS
    if options.has_plots:
        options.accuracy = options.curves = True
    for peer in options.peers:
        if options.backend[0] == "cupy" and peer != "torch":
            parser.error(f"--peers: expected torch beside cupy, since {peer} is measured on the CPU")
    if options.together and (options.memory or options.curves):
        parser.error("--together: expected no --memory and no curves, which need a process for each side")
    if options.bridges:
        options.peers = [side for peer in options.peers for side in (peer, *sides.BRIDGES.get(peer, ()))]
    try:
        options.cases = _cases(options)
        outputs.check(options)
        return options, comparison.read(options)
    except ValueError as error:
        parser.error(str(error))


def _cases(options: Options) -> list[Case]:
    """Return each kernel with each size and dtype, once."""
    names = list(options.kernel or NAMES)
    if options.options:
        names += [timed for timed in TIMED if timed.partition("+")[0] in names and timed not in names]
    usual = {name: sizes_of(name).quick if options.quick else sizes_of(name).usual for name in names}
    return [
        Case(name, size, dtype, options.new, options.captured)
        for name, sizes in usual.items()
        for size in options.sizes or sizes
        for dtype in options.dtypes
    ]


def _row_jobs(options: Options) -> list[Job[Row]]:
    given = options.backend, options.peers, options.rounds, options.seconds, options.accuracy, options.together
    return [processes.row(case, *given) for case in options.cases]


def _curve_jobs(options: Options) -> list[Job[list[Curve]]]:
    """Return a job for each kernel, dtype and growing number; a GPU has no number of threads to bound."""
    if not options.curves:
        return []
    examples = list({(case.name, case.dtype): case for case in options.cases}.values())
    if options.quick and not options.kernel:
        examples = [case for case in examples if case.name in QUICK_CURVES]
    against = [each for each in curves.AGAINST if each != "threads" or "cupy" not in options.backend]
    factor = QUICK_FACTOR if options.quick else curves.FACTOR
    given = options.backend, options.peers, options.rounds, options.seconds * POINT_SHARE, factor
    return [processes.curves(example, each, *given) for example in examples for each in against]


def _measure(options: Options, results: Results, earlier: Results | None) -> None:
    """Measure, and print each row and each curve when it is complete."""
    row_jobs, curve_jobs = _row_jobs(options), _curve_jobs(options)
    columns = {name for name in ("memory", "accuracy") if getattr(options, name)}
    table = Table(results, columns, earlier, options.cases)
    print(f"\n{table.heading()}", flush=True)
    count = sum(job.processes for job in row_jobs) + sum(job.processes for job in curve_jobs)
    with processes.progress(count) as (tick, write):
        for row_job in row_jobs:
            results.rows.append(row_job.run(tick))
            write(table.line(results.rows[-1]))
        for curve_job in curve_jobs:
            results.curves += (found := curve_job.run(tick))
            for line in curves.lines(found, options.backend):
                write(line)
    results.is_whole = True


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, and write the files; return the exit status."""
    options, earlier = _parsed(arguments)
    missing = [peer for peer in options.peers if not sides.is_installed(peer)]
    options.peers = [peer for peer in options.peers if peer not in missing]
    results = Results.begin(list(arguments), options.backend, options.peers)
    print(results.about)
    if earlier and earlier.machine.get("processor") != results.machine["processor"]:
        print(f"compared with another machine: {earlier.about}")
    for peer in missing:
        print(f"{peer} is not installed, and left out")
    status = status_of(lambda: _measure(options, results, earlier))
    return outputs.write(options, results) or status or comparison.status_of(options, results, earlier)
