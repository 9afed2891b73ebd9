"""Calls whose first array belongs to another library: the results come back as arrays of that library."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np

from plugrad.backends import selection, tensors
from plugrad.backends.backend import Backend
from plugrad.backends.choice import Choice
from plugrad.backends.libraries import Foreign, Library, library_of

if TYPE_CHECKING:
    from plugrad.backends.recording import Recorder

P = ParamSpec("P")
R = TypeVar("R")


class _InnerChoice(Choice):
    """The choice in force while such a call is computed: one backend for all arrays."""

    __slots__ = ("_backend", "_outer", "library")

    def __init__(self, outer: Choice, foreign: Foreign) -> None:
        self.names, self.options, self.origin = outer.names, outer.options, outer.origin
        self.scope, self.outer = None, outer
        self.by_type = {}  # stays empty, so that every call asks `backend_of_call`
        self._outer, self._backend, self.library = outer, outer.wrapped(foreign.inner), foreign.library

    @property
    def recorder(self) -> "Recorder | None":
        """The recorder of the call."""
        return self._outer.recorder

    @property
    def plain(self) -> Choice:
        """The choice that the call was made with."""
        return self._outer.plain

    def wrapped(self, backend: Backend) -> Backend:
        """The backend as the choice of the call has it."""
        return self._outer.wrapped(backend)

    def backend_for(self, kind: type) -> Backend:
        """The backend of the call."""
        return self._backend

    def backend_of_call(self, kernel: str, array: Any) -> Backend:
        """The backend of the call."""
        return self._backend


def in_library(foreign: Foreign, first: Any, body: Callable[..., R], *arguments: Any, **options: Any) -> R:
    """Call `body`, and return its results as arrays of the library of `first`, the first array of the call.

    On a GPU it computes on the current stream of the library. An array that the caller gave comes back as it is.
    """
    stream = foreign.library.stream(first) if foreign.inner.arrays == "cupy" and foreign.library.on_gpu(first) else None
    choice = _InnerChoice(selection.in_force(), foreign)
    with stream or contextlib.nullcontext():
        outer = selection.scope.get()
        selection.scope.set(choice)
        try:
            results = body(*arguments, **options)
        finally:
            selection.scope.set(outer)
        given = [entry for x in (*arguments, *options.values()) for entry in (x if type(x) is tuple else (x,))]
        return cast(R, handed_back(foreign.library, results, given))


def handed_back(library: Library, results: Any, given: list[Any] | None = None) -> Any:
    """Results as arrays of the library: one, or a tuple; one of the arrays that were `given` comes back as it is."""
    if isinstance(results, tuple):
        return tuple([handed_back(library, result, given) for result in results])
    if isinstance(results, np.generic):
        results = np.array(results)
    if results is None or not hasattr(results, "dtype") or library_of(type(results)) is not None:
        return results
    for array in given or ():
        if array is results or (tensors.is_tensor(array) and _is_view(results, array)):
            return array
    return library.handed_back(results)


def _is_view(result: Any, tensor: Any) -> bool:
    """Whether a result is the memory of a tensor."""
    address = result.ctypes.data if isinstance(result, np.ndarray) else result.data.ptr
    return bool(result.size and tensor.data_ptr() == address and tuple(tensor.shape) == result.shape)


def foreign_of(first: Any) -> Foreign | None:
    """The library of the first argument of a call, and the backend that computes; None for arrays of NumPy."""
    if type(first) is np.ndarray or library_of(type(first)) is None:
        return None
    return selection.backend_for(first).foreign


def library_in_force() -> Library | None:
    """The library in whose arrays the results of the running call come back; None for NumPy's and CuPy's."""
    choice = selection.scope.get()
    return choice.library if isinstance(choice, _InnerChoice) else None


def follows_first(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function whose first argument is an array: its results come back in the library of that array."""
    name = inspect.unwrap(function).__code__.co_varnames[0]

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        first = arguments[0] if arguments else options.get(name)
        if (foreign := foreign_of(first)) is None:
            return function(*arguments, **options)
        return in_library(foreign, first, function, *arguments, **options)

    return call
