"""The command ``python -m plugrad.bench``: the benchmark, unless the first argument names another command."""

import sys

from plugrad.bench import benchmark, distributed, loops, show, tune
from plugrad.bench.exit_status import discard_output

COMMANDS = {"--distributed": distributed.main, "loops": loops.main, "show": show.main, "tune": tune.main}


def main(arguments: list[str]) -> int:
    """Run a command; return the exit status."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    try:
        status = command(arguments[1:]) if command else benchmark.main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return 1
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
