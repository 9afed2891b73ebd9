"""``python -m plugrad.tests``: the conformance suite on any backend, and the report of its accuracy."""

import argparse
import math
import os
import secrets
import sys
from pathlib import Path

from plugrad.kernels import KERNELS


def main(arguments: list[str] | None = None) -> int:
    """Run the suite or the report; the exit status is 0 where all is well."""
    parser = argparse.ArgumentParser(prog="python -m plugrad.tests", description="Run the conformance suite.")
    parser.add_argument("--backend", action="append", metavar="NAME", help="the backend to test; may be repeated")
    parser.add_argument("--kernel", action="append", choices=KERNELS, metavar="NAME", help="test this kernel only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result to this file")
    parser.add_argument(
        "--accuracy", action="store_true", help="report errors in ulp, beside NumPy and other libraries"
    )
    parser.add_argument("--fuzz", type=float, metavar="SECONDS", help="make calls by chance, right ones and wrong ones")
    parser.add_argument("--seed", type=int, help="what --fuzz begins with; another one each time by default")
    parser.add_argument("--call", type=int, metavar="NUMBER", help="repeat this call of --fuzz with its --seed")
    chosen = parser.parse_args(arguments)
    if not __debug__:
        parser.error("python -O leaves out the checks; run it without -O, and without PYTHONOPTIMIZE")
    if chosen.call is not None and (chosen.fuzz is None or chosen.seed is None or chosen.call < 0):
        parser.error("argument --call: expected the number of a call, from 0 on, and --fuzz and --seed with it")
    if chosen.seed is not None and chosen.fuzz is None:
        parser.error("argument --seed: expected --fuzz with it")
    if chosen.fuzz is not None and chosen.accuracy:
        parser.error("argument --fuzz: not allowed with --accuracy")
    if chosen.fuzz is not None and not 0 < chosen.fuzz < math.inf and chosen.call is None:
        parser.error(f"argument --fuzz: expected a number of seconds above 0, got {chosen.fuzz:g}")
    try:
        from plugrad.tests.conformance import accuracy, fuzz, report
        from plugrad.tests.conformance.selection import not_a_backend
    except ModuleNotFoundError as error:
        parser.exit(2, f"The tests need {error.name}: python -m pip install 'plugrad[test]'\n")
    for complaint in filter(None, map(not_a_backend, chosen.backend or ())):
        parser.error(complaint)
    chosen.backend = list(dict.fromkeys(chosen.backend)) if chosen.backend else None
    if chosen.json is not None and not _can_be_written(chosen.json):
        parser.error(f"argument --json: cannot write to {chosen.json}")
    if chosen.fuzz is not None:
        seed = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
        return fuzz.run(chosen.backend, chosen.kernel, chosen.json, chosen.fuzz, seed, chosen.call)
    run = accuracy.report if chosen.accuracy else report.run
    return run(chosen.backend, chosen.kernel, json=chosen.json)


def _can_be_written(path: Path) -> bool:
    """Whether a file can be made or replaced there."""
    return not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)


if __name__ == "__main__":
    sys.exit(main())
