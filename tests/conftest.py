"""Options of the conformance suite; every test starts with the backend that the environment says, and leaves it so."""

import os

import pytest

from plugrad.backends import profile, registry, selection
from plugrad.tests.conformance.checks import CHECKS
from plugrad.tests.conformance.selection import not_a_backend, under_test
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.records import RECORDS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose what the conformance suite is run on."""
    group = parser.getgroup("plugrad")
    group.addoption("--backend", action="append", metavar="NAME", help="run the conformance suite on this backend")
    group.addoption("--kernel", action="append", metavar="NAME", choices=list(RECORDS), help="and on this kernel only")
    group.addoption("--long", action="store_true", help="search for failing calls for minutes instead of seconds")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse names that no backend has; what was measured on this machine changes nothing."""
    os.environ[profile.VARIABLE] = profile.OFF
    for name in config.getoption("backend") or ():
        if complaint := not_a_backend(name):
            raise pytest.UsageError(complaint)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for all that it asks for by the names of its parameters."""
    wanted = {"found", "subject", "check", "stand_in"} & set(metafunc.fixturenames)
    if not wanted:
        return
    found = under_test(metafunc.config)
    kernels = metafunc.config.getoption("kernel") or list(RECORDS)
    subjects = [entry for entry in found if isinstance(entry, Subject)]
    if "found" in wanted:
        metafunc.parametrize("found", [pytest.param(entry, id=entry.name) for entry in found])
    elif "check" in wanted:
        metafunc.parametrize(
            ("subject", "kernel", "check", "dtype"),
            [
                pytest.param(subject, kernel, check, dtype, id=f"{subject.name}-{kernel.name}-{check.name}-{dtype}")
                for subject in subjects
                for check in CHECKS.values()
                for kernel in check.kernels
                if kernel.name in kernels and subject.has(kernel.name)
                for dtype in check.dtypes
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
            [pytest.param(s, RECORDS[n], id=f"{s.name}-{n}") for s in subjects for n in kernels if s.has(n)],
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drop what pytest makes of a test without parameters, a skip, where no backend can run."""
    items[:] = [
        item for item in items if not any("empty parameter set" in str(m.kwargs) for m in item.iter_markers("skip"))
    ]


@pytest.fixture(autouse=True)
def _selection_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_default", None)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
