"""How fast, against whom: ``python -m plugrad.bench [KERNEL ...] --backend numba --peers torch,jax``.

Each side runs alone in a process of its own, in turn, several times. A row gives the best median of each, and how many
times as long each peer takes. Inputs come from the records of the kernels and have outliers among them.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plugrad.backends import BackendUnavailableError, get, profile
from plugrad.backends.selection import AUTO_ORDER
from plugrad.bench import growth, running
from plugrad.bench.cases import DTYPES, QUICK, SIZES, STEP, Case
from plugrad.bench.report import Results, change
from plugrad.bench.running import PEERS, Plan, progress
from plugrad.bench.table import Table, document
from plugrad.kernels import KERNELS

# What `--quick` draws curves of, and how many times as large each size is as the one before.
QUICK_CURVES, QUICK_FACTOR = ("softmax", "softmax_cross_entropy_value_and_grad"), 16


def cases(chosen: argparse.Namespace) -> list[Case]:
    """What was asked for: each kernel with each size, dtype and way of giving results."""
    found = []
    for name in chosen.kernel or [*KERNELS, STEP]:
        for size in chosen.sizes.split(",") if chosen.sizes else (QUICK if chosen.quick else SIZES)[name]:
            found += [Case(name, size, dtype, chosen.new) for dtype in chosen.dtypes.split(",")]
    return found


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
        "the least, or to multiply its matrices, as a share of what the kernel takes; 'CPUs' is how many processors "
        "were busy, waiting threads included. 'x before' is how many times as "
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
    """Refuse what cannot be measured; lists and cases take the place of texts."""
    chosen.peers = [peer for peer in chosen.peers.split(",") if peer]
    chosen.backends = list(dict.fromkeys(chosen.backend.split(",")))
    if chosen.rounds < 1 or not chosen.seconds > 0:
        raise ValueError("--rounds and --seconds: expected more than 0")
    if chosen.fail_above is not None and not chosen.compare:
        raise ValueError("--fail-above: expected --compare FILE with it")
    if chosen.tune:
        _check_tuning(chosen)
    for backend in chosen.backends:
        get(backend)
    for peer in chosen.peers:
        if peer not in PEERS:
            raise ValueError(f"--peers: expected some of {', '.join(PEERS)}; got {peer!r}")
        if chosen.backends[0] == "cupy" and peer != "torch":
            raise ValueError(f"--peers: expected torch beside cupy, since {peer} is measured on the CPU")
    chosen.earlier = Results.read(chosen.compare, "--compare") if chosen.compare else None
    for option in ("json", "html", "png", "markdown"):
        path = getattr(chosen, option)
        if path and not path.resolve().parent.is_dir():
            raise ValueError(f"--{option}: there is no folder for {path}")
    if chosen.html or chosen.png:
        for module, package in (("altair", "altair"), ("vl_convert", "vl-convert-python")):
            if find_spec(module) is None:
                raise ValueError(f"--html and --png need {package}: python -m pip install 'plugrad[bench]'")
    chosen.cases = cases(chosen)
    chosen.missing = [peer for peer in chosen.peers if peer != "textbook" and find_spec(peer) is None]
    chosen.peers = [peer for peer in chosen.peers if peer not in chosen.missing]


def _check_tuning(chosen: argparse.Namespace) -> None:
    """Refuse what a profile cannot be made of."""
    if profile.location() is None:
        raise ValueError(f"--tune: expected {profile.VARIABLE} to name a file to write the profile to")
    if strangers := set(chosen.dtypes.split(",")) - {*profile.DTYPES}:
        raise ValueError(f"--tune: expected dtypes out of {', '.join(profile.DTYPES)}; got {', '.join(strangers)}")
    tunable = [name for name, kernel in KERNELS.items() if "w" not in kernel.arguments]
    for name in chosen.kernel:
        if name not in tunable:
            raise ValueError(f"--tune: expected kernels out of {', '.join(tunable)}; got {name!r}")
    chosen.kernel = chosen.kernel or tunable
    chosen.backends, chosen.peers, chosen.sizes = list(AUTO_ORDER["numpy"]), [], None


def measure(chosen: argparse.Namespace, results: Results) -> int:
    """Measure, and print the table and the curves while they come; the exit status."""
    given = chosen.backends, chosen.peers, chosen.rounds, chosen.seconds, chosen.accuracy
    rows = [] if chosen.tune else [running.row(case, *given) for case in chosen.cases]
    lines = curves(chosen)
    table = Table(results, {option for option in ("memory", "accuracy") if getattr(chosen, option)}, chosen.earlier)
    if rows:
        print(f"\n{table.heading()}", flush=True)
    try:
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
        print("\ninterrupted: the rows above are whole", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    results.is_whole = True
    return 0


def keep(chosen: argparse.Namespace, results: Results) -> None:
    """Write the files that were asked for."""
    if chosen.json:
        results.write(chosen.json)
    if chosen.markdown:
        chosen.markdown.write_text(document(results), encoding="utf-8")
    if (chosen.html or chosen.png) and (results.rows or results.curves):
        from plugrad.bench import page  # which needs more packages than the rest

        if chosen.html:
            page.write(chosen.html, results)
        if chosen.png:
            page.write_pictures(chosen.png, results)


def write_profile(results: Results) -> None:
    """Write the profile, and tell what is in it."""
    path, kernels = profile.location(), growth.tuned(results.curves)
    assert path is not None  # see `_check_tuning`
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {key: results.machine[key] for key in ("processor", "threads", "versions")}
    told = {"format": profile.FORMAT, "date": results.date, "machine": machine, "kernels": kernels}
    path.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\n{'kernel':37} {'dtype':>8}  fastest")
    for name, dtypes in kernels.items():
        for dtype, steps in dtypes.items():
            parts = [backend if not start else f"{backend} from {start:,} elements on" for start, backend in steps]
            print(f"{name:37} {dtype:>8}  {', '.join(parts)}")
    print(f"\nPLUGRAD_BACKEND=auto goes by this from the next process on: {path}")


def slower(chosen: argparse.Namespace, results: Results) -> int:
    """The exit status of the comparison with an earlier run."""
    changes: list[Any] = [change(chosen.earlier, row, chosen.backends[0]) for row in results.rows]
    count = sum(1 for found in changes if found and found[1] and found[0] > 1 + chosen.fail_above)
    if not count:
        return 0
    print(f"{count} of {len(changes)} take more than {chosen.fail_above:.0%} longer than before", file=sys.stderr)
    return 1


def main() -> int:
    """Measure, print, and keep what was measured; the exit status."""
    chosen = parsed()
    if chosen.source:
        try:
            results = Results.read(chosen.source, "--from")
        except (OSError, ValueError) as error:
            print(f"python -m plugrad.bench: {error}", file=sys.stderr)
            return 2
        chosen.backends = results.backends
        table = Table(results, {option for option in ("memory", "accuracy") if getattr(chosen, option)}, chosen.earlier)
        print("\n".join([results.about, "", table.heading(), *map(table.line, results.rows)]))
        print("\n".join(growth.lines(results.curves, results.backends)))
        status = 0
    else:
        results = Results.begun(sys.argv[1:], chosen.backends, chosen.peers)
        print(results.about)
        for peer in chosen.missing:
            print(f"{peer} is not installed, and left out")
        status = measure(chosen, results)
    keep(chosen, results)
    if chosen.tune and status == 0:
        write_profile(results)
    if chosen.fail_above is not None and status == 0:
        status = slower(chosen, results)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
