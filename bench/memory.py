"""How much memory this process takes while it works."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux: proc(5)


def watched() -> Callable[[], int]:
    """Start to watch; what is returned tells by how many bytes the most memory since is more than there is now."""
    if STATUS.exists():
        with contextlib.suppress(OSError):  # where it may not be written, the peak may be an earlier one
            RESET.write_text("5")  # the peak starts anew
        before = _kilobytes("VmRSS")
        return lambda: (_kilobytes("VmHWM") - before) * 1024
    from resource import RUSAGE_SELF, getrusage  # which Windows does not have

    unit, most = 1 if sys.platform == "darwin" else 1024, getrusage(RUSAGE_SELF).ru_maxrss
    return lambda: (getrusage(RUSAGE_SELF).ru_maxrss - most) * unit


def _kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
