"""The exit status of a command that may be interrupted, or whose reader may leave."""

import os
import sys
from collections.abc import Callable
from typing import Any


def status_of(measure: Callable[[], Any]) -> int:
    """Call `measure`; return 130 if interrupted, 1 after an error, else 0, so that the results so far can be kept."""
    try:
        measure()
    except KeyboardInterrupt:
        print("\ninterrupted: the results above are complete, the rest is missing", file=sys.stderr)
        return 130
    except BrokenPipeError:
        discard_output()
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def discard_output() -> None:
    """Discard standard output to the end of the process: its reader has closed the pipe."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open to the end of the process)
