"""Which tests run: the quick ones, the slow ones, and what the conformance suite is run on.

Every test starts with the backend that the environment names, and leaves it so.
"""

import os
import shutil
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad.backends import profile, registry, selection, threads
from plugrad.tests.conformance.checks import CHECKS, Check
from plugrad.tests.conformance.selection import not_a_backend, under_test
from plugrad.tests.conformance.subject import DTYPES, Subject
from plugrad.tests.records import RECORDS, Record

# The checks of the quick tests on backends other than numpy; the slow tests make the others.
QUICK = ("shapes", "results_go_to_out", "nan_stays_in_its_row", "mistakes")

# Files of slow tests only, which import packages that the extra `test` leaves out.
SLOW_FILES = (
    "test_bridges_jax.py",
    "test_bridges_torch.py",
    "test_notebook_documents.py",
    "test_page.py",
    "test_site.py",
)

# Programs that tests may need apart from Python: their names, and the command that installs them.
PROGRAMS = {
    "g++": (("g++",), "apt-get install g++"),
    "mpiexec": ((f"{Path(sys.executable).parent}/mpiexec", "mpiexec"), "python -m pip install 'plugrad[mpi]'"),
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "apt-get install chromium"),
}

# Libraries that tests of the bridges need, and the command that installs them.
LIBRARIES = {"torch": "python -m pip install 'plugrad[torch]'", "jax": "python -m pip install 'plugrad[jax]'"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose what the conformance suite is run on, and whether tests may be skipped."""
    group = parser.getgroup("plugrad")
    group.addoption("--backend", action="append", metavar="NAME", help="run the conformance suite on this backend")
    group.addoption("--kernel", action="append", metavar="NAME", choices=list(RECORDS), help="and on this kernel only")
    group.addoption(
        "--dtype", action="append", choices=[str(d) for d in DTYPES], help="and, of checks of several dtypes, this one"
    )
    group.addoption("--no-skips", action="store_true", help="a test that would be skipped fails")
    group.addoption(
        "--without", action="append", choices=list(LIBRARIES), help="with --no-skips: but those may be that need this"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse names that no backend has; what was measured on this machine changes nothing."""
    config.addinivalue_line("markers", "slow: left out unless asked for, by -m slow or -m ''")
    config.addinivalue_line("markers", "needs(name): skipped where the program or library is not installed")
    config.addinivalue_line("markers", "long: begins first, so that no worker is left alone with it at the end")
    config.addinivalue_line("markers", "xdist_group(name): these share a worker under --dist loadgroup")
    os.environ[profile.VARIABLE] = profile.OFF
    _share_processors(config)
    for name in config.getoption("backend") or ():
        if complaint := not_a_backend(name):
            raise pytest.UsageError(complaint)


def _share_processors(config: pytest.Config) -> None:
    """In the slow tests, divide the threads of NumPy's matrix products by the number of workers.

    The threads of OpenBLAS spin while they wait for each other. If there are more of them than processors, they use
    three times as much time as the products need. The quick tests keep all threads, and so do the processes that tests
    start, unless they run the conformance suite.
    """
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if workers and config.option.markexpr != "not slow" and (blas := threads._blas()):
        set_number, number = blas
        set_number(max(1, number() // int(workers)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files that need the packages of the slow tests, where only quick tests are asked for."""
    return True if collection_path.name in SLOW_FILES and config.option.markexpr == "not slow" else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for all that it asks for by the names of its parameters."""
    wanted = {"found", "subject", "check", "stand_in"} & set(metafunc.fixturenames)
    if not wanted:
        return
    kernels = metafunc.config.getoption("kernel") or list(RECORDS)
    found = under_test(metafunc.config.getoption("backend"), kernels)
    subjects = [entry for entry in found if isinstance(entry, Subject)]
    dtypes = metafunc.config.getoption("dtype") or [str(dtype) for dtype in DTYPES]
    if "found" in wanted:
        metafunc.parametrize("found", [pytest.param(entry, id=entry.name) for entry in found])
    elif "check" in wanted:
        metafunc.parametrize(
            ("subject", "kernel", "check", "dtype"),
            [
                pytest.param(
                    subject,
                    kernel,
                    check,
                    dtype,
                    id=f"{subject.name}-{kernel.name}-{check.name}-{dtype}",
                    marks=[] if _is_quick(subject, kernel, check, dtype) else [pytest.mark.slow],
                )
                for subject in subjects
                for check in CHECKS.values()
                for kernel in check.kernels
                if kernel.name in kernels and subject.has(kernel.name)
                for dtype in check.dtypes
                if str(dtype) in dtypes or len(check.dtypes) == 1
            ],
        )
    elif "stand_in" in wanted:
        metafunc.parametrize(
            ("subject", "kernel", "stand_in"),
            [
                pytest.param(s, RECORDS[name], s.stand_in(name), id=f"{s.name}-{name}")
                for s in subjects
                for name in kernels
            ],
        )
    else:
        metafunc.parametrize(
            ("subject", "kernel"),
            [
                pytest.param(s, RECORDS[n], id=f"{s.name}-{n}", marks=[] if s.name == "numpy" else [pytest.mark.slow])
                for s in subjects
                for n in kernels
                if s.has(n)
            ],
        )


def _is_quick(subject: Subject, kernel: Record, check: Check, dtype: np.dtype[Any]) -> bool:
    """Whether the quick tests make a check: each kernel in one dtype, and on a backend that compiles, few checks.

    To compile the variants of every loss for one dtype takes minutes; so do digits by mpmath, and other processes.
    """
    if check.area == "precision" or check.name.startswith("the_same_bits"):
        return False
    quick = DTYPES[list(RECORDS).index(kernel.name) % len(DTYPES)]  # in turn, so that all occur
    is_interpreted = subject.name == "numpy"
    return dtype == (quick if quick in check.dtypes else check.dtypes[0]) and (is_interpreted or check.name in QUICK)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests share a worker under ``--dist loadgroup``, drop those without parameters; long ones come first.

    The tests of a kernel share one, which compiles it once, and so do the quick tests of a file. A slow test goes to
    the worker that is free, unless its file puts it into a group. Where no backend can run, pytest makes a skip of a
    test of backends.
    """
    items[:] = [
        item for item in items if not any("empty parameter set" in str(m.kwargs) for m in item.iter_markers("skip"))
    ]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shared = _shared_by(item) or (item.name if item.get_closest_marker("slow") else item.path.stem)
            item.add_marker(pytest.mark.xdist_group(shared))


def _shared_by(item: pytest.Item) -> str | None:
    """The name of what a test of the suite shares with others; None for other tests."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    check, kernel = parameters.get("check"), parameters.get("kernel")
    if isinstance(check, Check) and check.name.startswith("the_same_bits"):
        return "the_same_bits"  # two of these checks compare the results of the same processes
    if isinstance(check, Check) and check.area == "precision":
        return check.name  # exact results, which are computed once for all backends
    return kernel.name if isinstance(kernel, Record) else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose program or library is not installed, and say how to get it."""
    for (name,) in (mark.args for mark in item.iter_markers("needs")):
        names, command = PROGRAMS.get(name) or ((), LIBRARIES[name])
        if not any(map(shutil.which, names)) and (name in PROGRAMS or find_spec(name) is None):
            pytest.skip(f"needs {name}: {command}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skip a failure where none is allowed."""
    report = yield
    missing = item.config.getoption("without") or ()
    is_expected = any(mark.args[0] in missing for mark in item.iter_markers("needs"))
    if report.skipped and item.config.getoption("no_skips") and not is_expected:
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _selection_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_default", None)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
