"""Options of the conformance suite; every test starts with the backend that the environment says, and leaves it so."""

import pytest

from plugrad.backends import registry, selection
from plugrad.kernels import KERNELS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose what the conformance suite is run on."""
    group = parser.getgroup("plugrad")
    group.addoption("--backend", action="append", metavar="NAME", help="run the conformance suite on this backend")
    group.addoption("--kernel", action="append", metavar="NAME", choices=list(KERNELS), help="and on this kernel only")
    group.addoption("--long", action="store_true", help="search for failing calls for minutes instead of seconds")


@pytest.fixture(autouse=True)
def _selection_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_default", None)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
