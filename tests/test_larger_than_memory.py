"""The recipes for Dask and joblib run, on two processes."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parent.parent / "docs" / "larger-than-memory.md"


def test_the_recipes_run(tmp_path: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    # The processes of the workers import the file anew.
    code = "if __name__ == '__main__':\n" + textwrap.indent("\n".join(snippets), "    ") + "    print('done')\n"
    script = tmp_path / "recipes.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PLUGRAD_BACKEND": "numpy", "PLUGRAD_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stdout + done.stderr
