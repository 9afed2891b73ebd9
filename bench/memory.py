"""The peak of this process's memory."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # on Linux, see proc(5)


def watched() -> Callable[[], int]:
    """Start to watch, and return a function: the bytes by which the peak since then exceeds the memory now."""
    if STATUS.exists():
        with contextlib.suppress(OSError):  # if the file is read-only, an earlier peak may count
            RESET.write_text("5")  # resets the peak
        before = _kilobytes("VmRSS")
        return lambda: (_kilobytes("VmHWM") - before) * 1024
    from resource import RUSAGE_SELF, getrusage  # not on Windows

    unit, most = 1 if sys.platform == "darwin" else 1024, getrusage(RUSAGE_SELF).ru_maxrss
    return lambda: (getrusage(RUSAGE_SELF).ru_maxrss - most) * unit


def _kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
