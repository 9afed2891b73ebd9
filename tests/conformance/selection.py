"""Which backends are under test, and why others are not."""

import warnings
from dataclasses import dataclass

import pytest

from plugrad.backends import BackendUnavailableError, registry
from plugrad.tests.conformance.subject import Subject


@dataclass(frozen=True)
class Absent:
    """A backend that is not tested."""

    name: str
    reason: str
    wanted: bool  # it was asked for by name


def under_test(config: pytest.Config) -> list[Subject | Absent]:
    """The backends named by ``--backend``, or else all that can run here, and those that are absent."""
    wanted = config.getoption("backend") or []
    if wanted:
        return [_found(name, wanted=True) for name in dict.fromkeys(wanted)]
    return [
        Absent(name, f"an installed plug-in, not loaded unless asked for: --backend {name}", wanted=False)
        if registry.is_plug_in(name)
        else _found(name, wanted=False)
        for name in registry.names()
    ]


def not_a_backend(name: str) -> str | None:
    """What is to be said where ``--backend`` names no backend."""
    if registry.is_known(name):
        return None
    return f"argument --backend: unknown backend {name!r}; known backends: {', '.join(registry.names())}"


def _found(name: str, wanted: bool) -> Subject | Absent:
    try:
        with warnings.catch_warnings():  # warnings are errors in the calls, but not while a plug-in is imported
            warnings.simplefilter("default")
            return Subject(name)
    except (BackendUnavailableError, ValueError, TypeError) as error:
        return Absent(name, str(error), wanted)
