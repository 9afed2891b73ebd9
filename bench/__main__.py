"""How fast, against whom: ``python -m plugrad.bench [KERNEL ...] --backend numba --peers torch,jax``.

Each side runs alone in a process of its own, in turn, several times. A row gives the best median of each, and how many
times as long each peer takes. Inputs come from the records of the kernels and have outliers among them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plugrad.backends import BackendUnavailableError, available, get, profile
from plugrad.backends.choice import AUTO_ORDER
from plugrad.bench import growth, running
from plugrad.bench.cases import DTYPES, QUICK, SIZES, STEP, Case, as_dtype
from plugrad.bench.report import Results, change, replace
from plugrad.bench.running import PEERS, Plan, progress
from plugrad.bench.table import Table, document
from plugrad.kernels import KERNELS

# What `--quick` draws curves of, and how many times as large each size is as the one before.
QUICK_CURVES, QUICK_FACTOR = ("softmax", "softmax_cross_entropy_value_and_grad"), 16


def cases(chosen: argparse.Namespace) -> list[Case]:
    """What was asked for: each kernel with each size, dtype and way of giving results."""
    found: dict[Case, None] = {}  # each once
    for name in chosen.kernel or [*KERNELS, STEP]:
        usual = (QUICK if chosen.quick else SIZES).get(name, SIZES[STEP])  # a wrong name is told by the case
        for size in chosen.sizes.split(",") if chosen.sizes else usual:
            found |= {Case(name, size, dtype, chosen.new): None for dtype in chosen.dtypes.split(",")}
    return list(found)


def curves(chosen: argparse.Namespace) -> list[Plan]:
    """The curves that were asked for."""
    if not (chosen.curves or chosen.tune):
        return []
    against = [what for what in growth.AGAINST if what != "threads" or not (chosen.tune or "cupy" in chosen.backends)]
    examples = list({(case.name, case.dtype): case for case in chosen.cases}.values())
    if chosen.quick and not chosen.tune and not chosen.kernel:
        examples = [case for case in examples if case.name in QUICK_CURVES]
    factor = QUICK_FACTOR if chosen.quick and not chosen.tune else growth.FACTOR
    given = chosen.backends, chosen.peers, chosen.rounds, chosen.seconds / 5, factor
    return [running.curves(example, what, *given) for example in examples for what in against]


def share(text: str) -> float:
    """A share such as ``10%`` or ``0.1``."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not value >= 0 or (value > 1 and not text.endswith("%")):
        raise argparse.ArgumentTypeError(f"expected a share such as 10% or 0.1, got {text}")
    return value


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench",
        description=__doc__,
        allow_abbrev=False,
        epilog="'+- %' is half of the way from the 20 % to the 80 % quantile; 'x PEER' is how many times as long a "
        "peer takes as the first backend; 'of bound' is how long it takes to copy as many bytes as the kernel moves at "
        "the least, or to multiply its matrices, as a share of what the kernel takes; 'CPUs' is how many processors "
        "were busy, waiting threads included. 'x before' is how many times as "
        "long it takes as in the file that is compared with, with a star beyond the noise. On a GPU, calls are timed "
        "by its events, with nothing of their arrays in its caches; 'host us' is the time until a call returns.",
    )
    parser.add_argument(
        "kernel", nargs="*", help=f"kernels, or 'step', a step of training; all by default: {', '.join(KERNELS)}"
    )
    parser.add_argument("--backend", help="our backends, with commas between them; what auto takes by default")
    parser.add_argument("--peers", default="", help=f"whom to compare with, out of {', '.join(PEERS)}")
    parser.add_argument(
        "--sizes",
        help="such as 4096x1024,256x10; 8x21x256x256 for images; rows x "
        "inputs x outputs for layers, such as 64x784x128; 64-784-128-10 for steps",
    )
    parser.add_argument("--dtypes", default="float32", help=f"out of {', '.join(DTYPES)}; float32 by default")
    parser.add_argument("--new", action="store_true", help="results go to new arrays rather than to out=")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each side, 3 by default")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent in each process, 0.5 by default")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, one round of 0.1 seconds: a minute or two")
    also = parser.add_argument_group("what else is measured")
    also.add_argument(
        "--memory",
        action="store_true",
        help="the most memory that each side takes beside its arguments and results, in MB of 10^6 bytes",
    )
    also.add_argument("--accuracy", action="store_true", help="the largest error of each side, in ulp")
    also.add_argument("--curves", action="store_true", help="how time grows with rows, classes and threads")
    also.add_argument(
        "--tune",
        action="store_true",
        help=f"nothing but which of {' and '.join(AUTO_ORDER['numpy'])} is faster from how many elements on, and write "
        f"the profile that PLUGRAD_BACKEND=auto goes by, to where {profile.VARIABLE} says",
    )
    kept = parser.add_argument_group("what is kept, and compared")
    kept.add_argument("--json", metavar="FILE", type=Path, help="keep what was measured, and on which machine")
    kept.add_argument("--html", metavar="FILE", type=Path, help="a page of it; measures --accuracy and --curves, too")
    kept.add_argument("--png", metavar="FOLDER", type=Path, help="its plots; measures --accuracy and --curves, too")
    kept.add_argument("--markdown", metavar="FILE", type=Path, help="its tables")
    kept.add_argument("--from", dest="source", metavar="FILE", type=Path, help="measure nothing: take what --json kept")
    kept.add_argument("--compare", metavar="FILE", type=Path, help="compare with what an earlier run has kept")
    kept.add_argument(
        "--fail-above",
        metavar="SHARE",
        type=share,
        help="such as 10%%: end with status 1 if the first backend takes so much longer than before, beyond the noise",
    )
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.seconds = 1, 0.1
    if chosen.html or chosen.png:
        chosen.accuracy = chosen.curves = True
    try:
        _check(chosen)
    except (BackendUnavailableError, OSError, ValueError) as error:
        parser.error(str(error))
    return chosen


def _check(chosen: argparse.Namespace) -> None:
    """Refuse what cannot be measured, or written; lists and cases take the place of texts."""
    chosen.earlier = Results.read(chosen.compare, "--compare") if chosen.compare else None
    if chosen.fail_above is not None and not chosen.compare:
        raise ValueError("--fail-above: expected --compare FILE with it")
    for option in ("json", "html", "markdown"):
        if path := getattr(chosen, option):
            _check_target(f"--{option}", path)
    if chosen.png and chosen.png.exists() and not chosen.png.is_dir():
        raise ValueError(f"--png: expected a folder, but {chosen.png} is a file")
    if chosen.html or chosen.png:
        for module, package in (("altair", "altair"), ("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")):
            if find_spec(module) is None:
                raise ValueError(f"--html and --png need {package}: python -m pip install 'plugrad[bench]'")
    targets = [path.resolve() for path in (chosen.json, chosen.html, chosen.markdown, chosen.png) if path]
    if len(set(targets)) < len(targets):
        raise ValueError("--json, --html, --markdown and --png: expected a path of its own for each")
    if chosen.source:
        _check_source(chosen)
        return
    chosen.peers = [peer for peer in chosen.peers.split(",") if peer]
    if chosen.rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {chosen.rounds}")
    if not chosen.seconds > 0:
        raise ValueError(f"--seconds: expected more than 0, got {chosen.seconds:g}")
    if chosen.tune:
        _check_tuning(chosen)
    else:
        usual = next(name for name in AUTO_ORDER["numpy"] if available()[name])
        chosen.backends = list(dict.fromkeys((chosen.backend or usual).split(",")))
    for backend in chosen.backends:
        try:
            get(backend)
        except ValueError as error:
            raise ValueError(f"--backend: {str(error).removeprefix('get: ')}") from error
    for dtype in chosen.dtypes.split(","):
        if dtype in DTYPES:
            as_dtype(dtype)
    for peer in chosen.peers:
        if peer not in PEERS:
            raise ValueError(f"--peers: expected some of {', '.join(PEERS)}; got {peer!r}")
        if chosen.backends[0] == "cupy" and peer != "torch":
            raise ValueError(f"--peers: expected torch beside cupy, since {peer} is measured on the CPU")
    chosen.cases = cases(chosen)
    chosen.missing = [peer for peer in chosen.peers if peer != "textbook" and find_spec(peer) is None]
    chosen.peers = [peer for peer in chosen.peers if peer not in chosen.missing]


def _check_target(option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before hours are spent on what would be in it."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{option}: there is no folder for {path}")
    if path.is_dir():
        raise ValueError(f"{option}: expected a file, but {path} is a folder")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK):
        raise ValueError(f"{option}: {path} cannot be written")


def _check_source(chosen: argparse.Namespace) -> None:
    """Refuse what is to be measured, where nothing is."""
    measuring = ("kernel", "backend", "peers", "sizes", "new", "quick", "tune")
    if unfit := [name for name in measuring if getattr(chosen, name)]:
        raise ValueError(f"--from: nothing is measured; expected no {', '.join(unfit)} with it")
    chosen.source = Results.read(chosen.source, "--from")


def _check_tuning(chosen: argparse.Namespace) -> None:
    """Refuse what a profile cannot be made of."""
    path = profile.location()
    if path is None:
        raise ValueError(f"--tune: expected {profile.VARIABLE} to name a file to write the profile to")
    measuring = ("backend", "peers", "sizes", "new", "memory", "accuracy", "compare")
    if unfit := [name for name in measuring if getattr(chosen, name)]:
        raise ValueError(f"--tune: expected no {', '.join(unfit)} with it")
    if strangers := set(chosen.dtypes.split(",")) - {*profile.DTYPES}:
        raise ValueError(f"--tune: expected dtypes out of {', '.join(profile.DTYPES)}; got {', '.join(strangers)}")
    tunable = [name for name, kernel in KERNELS.items() if "w" not in kernel.arguments]
    for name in chosen.kernel:
        if name not in tunable:
            raise ValueError(f"--tune: expected kernels out of {', '.join(tunable)}; got {name!r}")
    if not os.environ.get(profile.VARIABLE, "").strip():
        path.parent.mkdir(parents=True, exist_ok=True)
    _check_target(f"--tune: {profile.VARIABLE}", path)
    if path.exists() and '"format"' not in path.read_text(errors="replace"):
        raise ValueError(f"--tune: {profile.VARIABLE}: {path} exists, and is no profile")
    chosen.kernel = chosen.kernel or tunable
    chosen.backends = list(AUTO_ORDER["numpy"])


def measure(chosen: argparse.Namespace, results: Results) -> int:
    """Measure, and print the table and the curves while they come; the exit status."""
    given = chosen.backends, chosen.peers, chosen.rounds, chosen.seconds, chosen.accuracy
    rows = [] if chosen.tune else [running.row(case, *given) for case in chosen.cases]
    lines = curves(chosen)
    table = Table(results, {option for option in ("memory", "accuracy") if getattr(chosen, option)}, chosen.earlier)
    try:
        if rows:
            print(f"\n{table.heading()}", flush=True)
        with progress(sum(plan.processes for plan in [*rows, *lines])) as (tick, say):
            for plan in rows:
                results.rows.append(plan.run(tick))
                say(table.line(results.rows[-1]))
            for plan in lines:
                found = plan.run(tick)
                results.curves += found
                for line in growth.lines(found, chosen.backends):
                    say(line)
    except KeyboardInterrupt:
        print("\ninterrupted: what stands above is whole", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _nobody_reads()
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    results.is_whole = True
    return 0


def _nobody_reads() -> None:
    """Print to nowhere from now on: whoever read what is printed has left."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (to the end of the process)


def keep(chosen: argparse.Namespace, results: Results) -> int:
    """Write the files that were asked for, each as far as it can be; the exit status."""
    writers: list[tuple[Any, Callable[[], Any]]] = [
        (chosen.json, lambda: results.write(chosen.json)),
        (chosen.markdown, lambda: replace(chosen.markdown, document(results))),
    ]
    if (chosen.html or chosen.png) and not (results.rows or results.curves):
        print("nothing was measured: there is no page and no picture", file=sys.stderr)
    elif chosen.html or chosen.png:
        from plugrad.bench import page  # which needs more packages than the rest

        writers.append((chosen.html, lambda: page.write(chosen.html, results)))
        writers.append((chosen.png, lambda: page.write_pictures(chosen.png, results)))
    if chosen.tune and results.is_whole:
        path = profile.location()
        writers.append((path, lambda: write_profile(path, results)))
    status = 0
    for target, write in writers:
        if target is None:
            continue
        try:
            try:
                write()
            except KeyboardInterrupt:  # not before it is kept; another one ends the process
                status = 130
                write()
        except OSError as error:
            print(f"{target} could not be written: {error}", file=sys.stderr)
            status = 1
    return status


def write_profile(path: Any, results: Results) -> None:
    """Write the profile, with what an earlier one says of other kernels on this machine, and tell what is in it."""
    kernels = profile.recorded(path, results.machine)
    for kernel, dtypes in growth.tuned(results.curves).items():
        kernels.setdefault(kernel, {}).update(dtypes)
    machine = {key: results.machine[key] for key in ("processor", "threads", "versions")}
    told = {"format": profile.FORMAT, "date": results.date, "machine": machine, "kernels": kernels}
    replace(path, json.dumps(told, indent=1) + "\n")
    print(f"\n{'kernel':37} {'dtype':>8}  fastest")
    for name, dtypes in kernels.items():
        for dtype, steps in dtypes.items():
            parts = [backend if not start else f"{backend} from {start:,} elements on" for start, backend in steps]
            print(f"{name:37} {dtype:>8}  {', '.join(parts)}")
    print(f"\nPLUGRAD_BACKEND=auto goes by this from the next process on: {path}")


def slower(chosen: argparse.Namespace, results: Results) -> int:
    """The exit status of the comparison with an earlier run."""
    changes: list[Any] = [change(chosen.earlier, row, chosen.backends[0]) for row in results.rows]
    if not any(changes):
        print(f"--fail-above: nothing that was measured is in {chosen.compare}", file=sys.stderr)
        return 1
    count = sum(1 for found in changes if found and found[1] and found[0] > 1 + chosen.fail_above)
    if not count:
        return 0
    print(f"{count} of {len(changes)} take more than {chosen.fail_above:.0%} longer than before", file=sys.stderr)
    return 1


def show(chosen: argparse.Namespace, results: Results) -> None:
    """Print what was kept."""
    options = {option for option in ("memory", "accuracy") if getattr(chosen, option)}
    table = Table(results, options, chosen.earlier)
    print("\n".join([results.about, "", table.heading(), *map(table.line, results.rows)]))
    if not results.is_whole:
        print("\ninterrupted: the rest is missing")
    print("\n".join(growth.lines(results.curves, results.backends)))


def main() -> int:
    """Measure, print, and keep what was measured; the exit status."""
    chosen = parsed()
    status = 0
    if chosen.source:
        results = chosen.source
        chosen.backends = results.backends
        show(chosen, results)
    else:
        results = Results.begun(sys.argv[1:], chosen.backends, chosen.peers)
        print(results.about)
        if chosen.earlier and chosen.earlier.machine.get("processor") != results.machine["processor"]:
            print(f"compared with another machine: {chosen.earlier.about}")
        for peer in chosen.missing:
            print(f"{peer} is not installed, and left out")
        status = measure(chosen, results)
    status = keep(chosen, results) or status
    if chosen.fail_above is not None and status == 0:
        status = slower(chosen, results)
    return status


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        _nobody_reads()
        status = 1
    raise SystemExit(status)
