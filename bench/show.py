"""Print the results that ``--json`` has written: ``python -m plugrad.bench show FILE``. Nothing is measured."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from plugrad.bench import comparison, curves, outputs
from plugrad.bench.measurements import Results
from plugrad.bench.table import LEGEND, Table


class Options(outputs.Outputs, comparison.Comparison):
    """The arguments of the command."""

    file: Path
    memory: bool


def main(arguments: Sequence[str]) -> int:
    """Print the results, and write the files; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench show", description=__doc__, epilog=LEGEND, allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the results that --json has written")
    parser.add_argument("--memory", action="store_true", help="print the columns of memory, too")
    outputs.add_arguments(parser)
    comparison.add_arguments(parser)
    options = parser.parse_args(arguments, Options())
    try:
        outputs.check(options)
        results, earlier = Results.read(options.file), comparison.read(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    table = Table(results, {"memory"} if options.memory else set(), earlier)
    print("\n".join([results.about, "", table.heading(), *map(table.line, results.rows)]))
    if not results.is_whole:
        print("\ninterrupted: the rest is missing")
    print("\n".join(curves.lines(results.curves, results.backends)))
    return outputs.write(options, results) or comparison.status_of(options, results, earlier)
