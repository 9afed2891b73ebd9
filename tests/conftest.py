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
