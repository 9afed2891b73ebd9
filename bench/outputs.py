"""The files that a command writes: ``--json``, ``--markdown``, ``--html`` and ``--png``."""

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plugrad.bench.arguments import writable_file, writable_folder
from plugrad.bench.measurements import Results, replace
from plugrad.bench.table import document

PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}  # of pages: module and package


class Outputs(argparse.Namespace):
    """The paths of the files, where they were asked for."""

    json: Path | None
    markdown: Path | None
    html: Path | None
    png: Path | None

    @property
    def has_plots(self) -> bool:
        """Whether plots were asked for."""
        return self.html is not None or self.png is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the files."""
    group = parser.add_argument_group("files to write")
    group.add_argument("--json", metavar="FILE", type=writable_file, help="results and machine, as JSON")
    group.add_argument("--markdown", metavar="FILE", type=writable_file, help="the tables, as Markdown")
    group.add_argument("--html", metavar="FILE", type=writable_file, help="a page with plots and tables, in one file")
    group.add_argument("--png", metavar="FOLDER", type=writable_folder, help="the plots, as pictures")


def check(outputs: Outputs) -> None:
    """Check that the files can be written, before anything is measured.

    Raises
    ------
    ValueError
        If two files have the same path, or a package for plots is not installed.
    """
    paths = [path.resolve() for path in (outputs.json, outputs.html, outputs.markdown, outputs.png) if path]
    if len(set(paths)) < len(paths):
        raise ValueError("--json, --html, --markdown and --png: expected a path of its own for each")
    for module, package in PACKAGES.items():
        if outputs.has_plots and find_spec(module) is None:
            raise ValueError(f"--html and --png need {package}: python -m pip install 'plugrad[bench]'")


def write(outputs: Outputs, results: Results) -> int:
    """Write the files. A file that cannot be written does not keep the others from being written.

    Returns
    -------
    int
        The exit status.
    """
    writers: list[tuple[Path | None, Callable[[Path], Any]]] = [
        (outputs.json, results.write),
        (outputs.markdown, lambda path: replace(path, document(results))),
    ]
    if outputs.has_plots and not (results.rows or results.curves):
        print("nothing was measured: no page and no picture is written", file=sys.stderr)
    elif outputs.has_plots:
        from plugrad.bench import page  # needs the packages of the extra `bench`

        writers.append((outputs.html, lambda path: page.write(path, results)))
        writers.append((outputs.png, lambda path: page.write_pictures(path, results)))
    return max([write_file(path, writer) for path, writer in writers if path is not None], default=0)


def write_file(path: Path, writer: Callable[[Path], Any]) -> int:
    """Write a file by `writer`, even if interrupted meanwhile; return the exit status."""
    try:
        try:
            writer(path)
        except KeyboardInterrupt:  # the first one does not lose the results; a second one ends the process
            writer(path)
            return 130
    except OSError as error:
        print(f"{path} could not be written: {error}", file=sys.stderr)
        return 1
    return 0
