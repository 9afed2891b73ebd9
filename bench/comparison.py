"""Comparison with the results of an earlier run: ``--compare`` and ``--fail-above``."""

import argparse
import sys
from pathlib import Path

from plugrad.bench.arguments import share
from plugrad.bench.measurements import Results, Row

# Smaller differences count as noise, even if the processes of each run agree: two runs on one machine differ this much.
LEAST_NOISE = 0.03


class Comparison(argparse.Namespace):
    """The options of the comparison."""

    compare: Path | None
    fail_above: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the comparison."""
    group = parser.add_argument_group("comparison with an earlier run")
    group.add_argument("--compare", metavar="FILE", type=Path, help="the results that --json has written")
    group.add_argument(
        "--fail-above",
        metavar="SHARE",
        type=share,
        help="such as 10%%: exit with status 1 if the first backend takes so much longer than before, beyond the noise",
    )


def read(options: Comparison) -> Results | None:
    """Read the results of the earlier run, where a comparison was asked for.

    Raises
    ------
    ValueError
        If the file cannot be read, was not written by ``--json``, or is missing beside ``--fail-above``.
    """
    if options.compare is None:
        if options.fail_above is not None:
            raise ValueError("--fail-above: expected --compare FILE with it")
        return None
    try:
        return Results.read(options.compare)
    except (OSError, ValueError) as error:
        raise ValueError(f"--compare: {error}") from error


def change(before: Results, row: Row, side: str) -> tuple[float, bool] | None:
    """Return the ratio of a side's time to its earlier time, and whether it exceeds the noise; None if it is new."""
    earlier = next((old.sides[side] for old in before.rows if old.key == row.key and side in old.sides), None)
    if earlier is None:
        return None
    now = row.sides[side]
    ratio, noise = now.best / earlier.best, max(LEAST_NOISE, earlier.noise, now.noise)
    return ratio, not 1 / (1 + noise) <= ratio <= 1 + noise


def status_of(options: Comparison, results: Results, before: Results | None) -> int:
    """Return the exit status: 1 if the first backend is slower than ``--fail-above`` allows, beyond the noise."""
    if before is None or options.fail_above is None:
        return 0
    changes = [found for row in results.rows if (found := change(before, row, results.backends[0]))]
    if not changes:
        print(f"--fail-above: nothing that was measured is in {options.compare}", file=sys.stderr)
        return 1
    slower = sum(ratio > 1 + options.fail_above for ratio, is_beyond_noise in changes if is_beyond_noise)
    if not slower:
        return 0
    print(
        f"{slower} of {len(results.rows)} take more than {options.fail_above:.0%} longer than before", file=sys.stderr
    )
    return 1
