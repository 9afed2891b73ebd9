"""New processes: Python code without the environment variables of plugrad, and forked children."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Seconds until a process, or a thread, that hangs is given up. Nothing else ends by it: it is far longer than what any
# test takes on a machine that has other work to do.
PATIENCE = 1800

# Computes, and prints the backend in force.
SHOW = "from plugrad import backends, kernels as K; K.relu([1.0]); print(backends.current())"


def python(code: str, *path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new process with these environment variables of plugrad only."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLUGRAD_")}
    clean.update(environment)
    if path:
        clean["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def forked(function: Callable[[], Any]) -> bool:
    """Whether a function succeeds in a forked child."""
    child = os.fork()
    if not child:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
