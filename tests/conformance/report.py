"""Run the suite under pytest, and tell what came out: a table in the terminal, every result as JSON."""

import datetime
import json as json_format
import platform
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad.tests.conformance.checks import CHECKS
from plugrad.tests.conformance.selection import absent
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.records import RECORDS

AREAS = (*dict.fromkeys(check.area for check in CHECKS.values()), "random")
WIDTH = 160  # of a line about a failure


class Matrix:
    """A pytest plug-in that takes down what becomes of every check."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Take down the outcome of a test, with what it was run on."""
        report = yield
        if report.when == "call" or not report.passed:
            parameters = getattr(item, "callspec").params  # noqa: B009  (only parametrised tests have it)
            subject = parameters.get("subject") or parameters["found"]
            message = _message(report)
            self.results.append(
                {
                    "backend": subject.name,
                    "kernel": getattr(parameters.get("kernel"), "name", None),
                    "check": getattr(
                        parameters.get("check"), "name", item.name.partition("[")[0].removeprefix("test_")
                    ),
                    "dtype": str(parameters["dtype"]) if "dtype" in parameters else None,
                    "outcome": report.outcome,
                    "seconds": round(report.duration, 4),
                    "message": message,
                }
            )
            if report.failed and len(self.failures(subject.name)[_group(self.results[-1])]) > 1:
                report.longrepr = _first_line(message)  # the full report is that of the first dtype
        return report

    def failures(self, backend: str) -> dict[str, list[dict[str, Any]]]:
        """The failures, by kernel and check."""
        found: dict[str, list[dict[str, Any]]] = {}
        for result in self.results:
            if result["backend"] == backend and result["outcome"] == "failed":
                found.setdefault(_group(result), []).append(result)
        return found

    def summary(self, backend: str) -> str:
        """A line for each check of a kernel that failed, with the dtypes and the first message."""
        lines = []
        for group, results in self.failures(backend).items():
            dtypes = [result["dtype"] for result in results if result["dtype"]]
            where = f" ({', '.join(dtypes)})" if dtypes else ""
            line = f"{group}{where}: {_first_line(results[0]['message'])}"
            lines.append(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")
        return "\n".join(lines)

    def count(self, backend: str, kernel: str, area: str) -> tuple[int, int]:
        """How many checks of an area passed, and how many there were."""
        outcomes = [
            result["outcome"] == "passed"
            for result in self.results
            if result["backend"] == backend and result["kernel"] == kernel and _area(result["check"]) == area
        ]
        return sum(outcomes), len(outcomes)

    def table(self, backend: str) -> str:
        """Kernels by areas: how many checks passed, of how many."""
        width = max(map(len, RECORDS))
        lines = [f"{backend:{width}}  " + "".join(f"{area:>11}" for area in AREAS)]
        for kernel in RECORDS:
            if not any(r["backend"] == backend and r["kernel"] == kernel for r in self.results):
                continue
            counts = [self.count(backend, kernel, area) for area in AREAS]
            cells = [f"{passed}/{total}" if total else "-" for passed, total in counts]
            note = next(
                (
                    r["message"].removeprefix("Failed: ").removeprefix("AssertionError: ").partition("\n")[0]
                    for r in self.results
                    if (r["backend"], r["kernel"], r["check"]) == (backend, kernel, "the_backend_has_the_kernel")
                    and r["outcome"] != "passed"
                ),
                "",
            )
            lines.append(
                f"{kernel:{width}}  " + "".join(f"{cell:>11}" for cell in cells) + (f"  {note}" if note else "")
            )
        return "\n".join(lines)


def _area(check: str) -> str | None:
    """The column of a check."""
    return CHECKS[check].area if check in CHECKS else "random" if check == "random_calls" else None


def _group(result: dict[str, Any]) -> str:
    return f"{result['kernel']}: {result['check']}" if result["kernel"] else result["check"]


def _first_line(message: str | None) -> str:
    return (message or "").partition("\n")[0]


def _message(report: pytest.TestReport) -> str | None:
    if report.passed:
        return None
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash is not None else str(report.longrepr)


def run(backends: list[str] | None, kernels: list[str] | None, json: Path | None = None) -> int:
    """Run the suite; the exit status is that of pytest."""
    folder = Path(__file__).parent
    matrix = Matrix()
    arguments = [str(path) for path in sorted(folder.glob("test_*.py"))]
    arguments += ["--rootdir", str(folder.parent), "--confcutdir", str(folder.parent)]
    arguments += ["-c", str(folder / "standalone.ini")]
    arguments += [f"--backend={name}" for name in backends or ()] + [f"--kernel={name}" for name in kernels or ()]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        status = int(pytest.main(arguments, plugins=[matrix]))
    tested = list(dict.fromkeys(r["backend"] for r in matrix.results if r["kernel"]))
    for backend in tested:
        print(f"\n{matrix.table(backend)}")
    for backend in dict.fromkeys(r["backend"] for r in matrix.results):
        if summary := matrix.summary(backend):
            print(f"\n{backend} failed:\n{summary}")
    for entry in () if backends else absent():
        print(f"\n{entry.name} is not tested: {entry.reason}")
    if json is not None:
        json.write_text(json_format.dumps(_document(matrix, tested), indent=1) + "\n")
        print(f"\nwritten: {json}")
    return status


def _document(matrix: Matrix, tested: list[str]) -> dict[str, Any]:
    outcomes = [result["outcome"] for result in matrix.results]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {"plugrad": version("plugrad"), "numpy": np.__version__},
        "backends": {name: dict(Subject(name).backend.describe()) for name in tested},
        "counts": {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")},
        "results": matrix.results,
    }
