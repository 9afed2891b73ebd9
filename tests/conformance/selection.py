"""Which backends are under test, and why others are not."""

import warnings
from dataclasses import dataclass

from plugrad.backends import BackendUnavailableError, registry
from plugrad.tests.conformance.subject import Subject


@dataclass(frozen=True)
class Absent:
    """A backend that is not tested."""

    name: str
    reason: str


def under_test(wanted: list[str] | None, kernels: list[str]) -> list[Subject | Absent]:
    """The backends that ``--backend`` names, those that cannot run here included, else all that can; with `kernels`."""
    if wanted:
        return [_found(name, kernels) for name in dict.fromkeys(wanted)]
    return [entry for entry in _all(kernels) if isinstance(entry, Subject)]


def absent() -> list[Absent]:
    """The backends that are not tested unless ``--backend`` names them."""
    return [entry for entry in _all([]) if isinstance(entry, Absent)]


def _all(kernels: list[str]) -> list[Subject | Absent]:
    return [
        Absent(name, f"an installed plug-in, not loaded unless asked for: --backend {name}")
        if registry.is_plug_in(name)
        else _found(name, kernels)
        for name in registry.names()
    ]


def not_a_backend(name: str) -> str | None:
    """The message where ``--backend`` is not the name of a backend."""
    if registry.is_known(name):
        return None
    return f"argument --backend: unknown backend {name!r}; known backends: {', '.join(registry.names())}"


def _found(name: str, kernels: list[str]) -> Subject | Absent:
    try:
        with warnings.catch_warnings():  # warnings are errors in the calls, but not while a plug-in is imported
            warnings.simplefilter("default")
            return Subject(name, kernels)
    except (BackendUnavailableError, ValueError, TypeError) as error:
        return Absent(name, str(error))
