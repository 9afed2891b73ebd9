"""The recipes for Dask and joblib run, on two processes."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plugrad.tests.processes import PATIENCE

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parent.parent / "docs" / "larger-than-memory.md"
# How long Dask waits for processes of its own, which a busy machine may keep from running.
DASK = {
    f"DASK_DISTRIBUTED__{name}": f"{PATIENCE}s"
    for name in ("COMM__TIMEOUTS__CONNECT", "COMM__TIMEOUTS__TCP", "SCHEDULER__WORKER_TTL")
}


def test_the_recipes_run(tmp_path: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    # The processes of the workers import the file anew.
    code = "if __name__ == '__main__':\n" + textwrap.indent("\n".join(snippets), "    ") + "    print('done')\n"
    script = tmp_path / "recipes.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **DASK, "PLUGRAD_BACKEND": "numpy", "PLUGRAD_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stdout + done.stderr
