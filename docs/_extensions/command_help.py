"""The directive ``command-help``: what a command prints for ``--help``."""

import os
import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandHelp(SphinxDirective):
    """``.. command-help:: plugrad.bench tune`` runs ``python -m plugrad.bench tune --help``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the command and its output."""
        command = ["-m", *self.arguments[0].split(), "--help"]
        environment = {**os.environ, "COLUMNS": "76", "PYTHON_COLORS": "0"}
        done = subprocess.run(  # noqa: S603  (a command of this package)
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        text = f"$ python {' '.join(command)}\n{done.stdout.rstrip()}"
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
