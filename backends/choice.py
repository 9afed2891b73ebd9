"""A choice of backends: names in order of preference, or ``auto``, and the backend that it finds for each array."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from plugrad.backends import host, libraries, log, profile, registry
from plugrad.backends.backend import Backend, BackendUnavailableError, is_array_of
from plugrad.backends.registry import AUTO

if TYPE_CHECKING:
    from plugrad.backends.recording import Recorder

# The backends that `auto` tries, by the package of the arrays; lists, numbers and other arrays count as NumPy's.
AUTO_ORDER = {"cupy": ("cupy",), "numpy": ("numba", "numpy")}

Tuned = dict[str, dict[np.dtype[Any], list[tuple[int, Backend]]]]  # kernel -> dtype -> [(smallest size, backend)]


class Choice:
    """Names in order of preference, or ``auto``, with options.

    Attributes
    ----------
    names : tuple of str
        The backends, or ``("auto",)``.
    options : mapping
        The options of the backend.
    origin : str
        The user's choice as messages quote it: ``PLUGRAD_BACKEND=numba`` or ``use('numba')``.
    scope, outer
        The scope that made the choice, and the choice that is in force again when the scope ends.
    by_type : dict
        Type of an array -> the backend of every call with such arrays, whatever the kernel and the size.
    """

    __slots__ = (
        "_foreign",
        "_found",
        "_profile_state",
        "_tuned",
        "by_type",
        "names",
        "options",
        "origin",
        "outer",
        "scope",
    )

    def __init__(
        self,
        text: Any,
        options: Mapping[str, Any],
        origin: str,
        scope: object = None,
        outer: "Choice | None" = None,
    ) -> None:
        if not isinstance(text, str):
            registry.unknown(text, origin)
        names = tuple(name.strip() for name in text.split(","))
        if names != (AUTO,):
            if AUTO in names:
                raise ValueError(f"{origin}: 'auto' stands alone; list the backends themselves")
            for name in names:
                if not registry.is_known(name):
                    registry.unknown(name, origin)
        self.names = names
        self.options = options
        self.origin = origin
        self.scope = scope
        self.outer = outer
        self.by_type: dict[type, Backend] = {}
        self._found: dict[type, Backend] = {}  # as by_type, but a profile may have another backend for a call
        self._foreign: dict[tuple[Backend, str], Backend] = {}  # for arrays of the library with that name
        self._tuned: Tuned = {}  # from the profile, for NumPy's arrays
        self._profile_state = ""

    @property
    def recorder(self) -> "Recorder | None":
        """The recorder of a block that is captured: of a `recording.RecordingChoice` only."""
        return None

    @property
    def plain(self) -> "Choice":
        """The choice without what a capture adds."""
        return self

    def wrapped(self, backend: Backend) -> Backend:
        """The backend as a call gets it; a capture has it record."""
        return backend

    @property
    def is_auto(self) -> bool:
        """Whether the backend depends on the arrays."""
        return self.names == (AUTO,)

    @property
    def description(self) -> str:
        """The user's choice, and the state of the profile."""
        self.backend_for(np.ndarray)  # reads the profile
        return f"{self.origin}, {self._profile_state}" if self._profile_state else self.origin

    def candidates(self, kind: type) -> tuple[str, ...]:
        """The names of the backends that may compute on arrays of type `kind`, in order of preference."""
        if not self.is_auto:
            return self.names
        return next((names for package, names in AUTO_ORDER.items() if is_array_of(kind, package)), AUTO_ORDER["numpy"])

    def backend_for(self, kind: type) -> Backend:
        """The backend that computes on arrays of type `kind`, found at the first call and then kept."""
        backend = self._found.get(kind)
        if backend is None:
            backend = self._find(self.candidates(kind), kind)
            if kind is np.ndarray and self.is_auto:
                self._tuned, self._profile_state = _tuned(backend)
                if self._profile_state:
                    log.debug("%s: %s", self.origin, self._profile_state)
            self._found[kind] = backend
            if kind is not np.ndarray or not self._tuned:
                self.by_type[kind] = backend
        return backend

    def backend_of_call(self, kernel: str, array: Any) -> Backend:
        """The backend for a call of `kernel` with `array` first: the fastest by the profile, or that of the type."""
        kind = type(array)
        backend = self._found.get(kind)
        if backend is None:
            library = libraries.library_of(kind)
            if library is not None:
                return self._of_library(library, kernel, array)
            backend = self.backend_for(kind)
        if kind is np.ndarray and (dtypes := self._tuned.get(kernel)):
            for start, fastest in dtypes.get(array.dtype, ()):
                if array.size < start:
                    break
                backend = fastest
        return backend

    @property
    def has_profile(self) -> bool:
        """Whether the choice depends on a profile for some calls."""
        return bool(self._tuned)

    def is_tuned(self, kernel: str, array: Any) -> bool:
        """Whether the profile decides on the backend of this call."""
        self.backend_for(np.ndarray)  # reads the profile
        return type(array) is np.ndarray and array.dtype in self._tuned.get(kernel, {})

    def candidates_of(self, array: Any) -> tuple[str, ...]:
        """The names of the backends that may compute on `array`, in order of preference."""
        kind = type(array)
        library = libraries.library_of(kind)
        is_on_gpu = library is not None and self.is_auto and library.on_gpu(array)
        return AUTO_ORDER["cupy"] if is_on_gpu else self.candidates(kind)

    def _of_library(self, library: libraries.Library, kernel: str, array: Any) -> Backend:
        """The backend for a call of `kernel` with `array`, which belongs to another library, first."""
        candidates = self.candidates_of(array)
        if candidates == AUTO_ORDER["cupy"] and self.is_auto:
            plain = self._find(candidates, type(array))
        else:
            plain = self.backend_for(np.ndarray)  # reads the profile
            if kernel in self._tuned:
                plain = self.backend_of_call(kernel, host.take(kernel, array))
        if plain.arrays not in (host.ARRAYS, "cupy"):
            return plain
        found = self._foreign.get((plain, library.name))
        if found is None:
            found = self._foreign[plain, library.name] = libraries.LibraryBackend(plain, library)
        return found

    def _find(self, candidates: tuple[str, ...], kind: type) -> Backend:
        backend, reasons = registry.first_usable(candidates)
        if backend is None:
            several = "none of these backends can run here: " if len(candidates) > 1 else ""
            raise BackendUnavailableError(f"{self.origin}: {several}{'; '.join(reasons.values())}")
        self._check_options(backend)
        others = "".join(f"; not {name}: {reason}" for name, reason in reasons.items())
        log.debug("%s computes on arrays of %s.%s: %s%s", backend, kind.__module__, kind.__name__, self.origin, others)
        return backend

    def _check_options(self, backend: Backend) -> None:
        for option, value in self.options.items():
            if option not in backend.options:
                raise TypeError(
                    f"{self.origin}: backend {backend.name!r} has no option {option!r}; "
                    f"it has {', '.join(sorted(backend.options))}"
                )
            expected = type(backend.options[option])
            if not isinstance(value, expected):
                raise TypeError(f"{self.origin}: {option}: expected {expected.__name__}, got {type(value).__name__}")


def _tuned(default: Backend) -> tuple[Tuned, str]:
    """The calls that the profile gives to another backend than the default, and the state of the profile."""
    found, state = profile.read(AUTO_ORDER["numpy"])
    backends = {name: registry.usable(name) for name in AUTO_ORDER["numpy"]} if found else {}
    tuned: Tuned = {}
    for kernel, dtypes in found.steps.items() if found else ():
        for dtype, steps in dtypes.items():
            usable = [(start, backend) for start, name in steps if isinstance(backend := backends[name], Backend)]
            if any(backend is not default for _, backend in usable):
                tuned.setdefault(kernel, {})[dtype] = usable
    return tuned, state
