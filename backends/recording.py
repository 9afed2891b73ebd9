"""Recording the calls of a `plugrad.kernels.capture` block: a choice and a backend that keep what they are called with.

While a block runs, the scope of its thread holds a `RecordingChoice`. It finds the backends that the choice in force
would find, and wraps each: the wrapped one runs a function and enters the call into the `Recorder`. All other calls
find plain backends, and pay nothing.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends import host, selection, tensors, updates
from plugrad.backends.backend import Backend
from plugrad.backends.choice import Choice
from plugrad.backends.contract import Update


class Call(NamedTuple):
    """A recorded call.

    Attributes
    ----------
    name : str
        The name of the kernel, optimizer step or function; empty for a part of the call that comes next.
    function : callable
        The function that a replay calls.
    arguments : tuple
        Its arguments.
    writes : tuple of arrays, or None
        The arrays that it writes to; None for a kernel, whose last arguments they are.
    backend : Backend or None
        The backend that may prepare the call, if it is one of a kernel.
    place : str
        The layer that made the call, which begins the messages of errors.
    is_fixed, update
        As in `plugrad.backends.contract.PreparedCall`.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    writes: tuple[Any, ...] | None
    backend: Backend | None = None
    place: str = ""
    is_fixed: bool = False
    update: Callable[[], Update] | None = None


class Recorder:
    """The calls of one block, and what is to be done before they are made again."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.constants: list[Any] = []  # arrays made of numbers, which a replay reads as they are
        self.claims: list[Callable[[], None]] = []
        self._watched: list[Any] = []  # tensors
        self.is_paused = False

    def clear(self) -> None:
        """Release all arrays."""
        for entries in (self.calls, self.constants, self.claims, self._watched):
            entries.clear()

    def record(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        writes: tuple[Any, ...],
        *,
        is_fixed: bool = False,
        update: Callable[[], Update] | None = None,
    ) -> None:
        """Enter a call that is no kernel of a backend, and has been made."""
        self.calls.append(Call(name, function, arguments, writes, is_fixed=is_fixed, update=update))

    def record_kernel(self, name: str, backend: Backend, arguments: tuple[Any, ...]) -> None:
        """Enter the call of a kernel, which has been made."""
        is_fixed = backend.own(name) is not None  # not the function of a backend that stands in
        self.calls.append(Call(name, backend.functions[name], arguments, None, backend, is_fixed=is_fixed))

    def watch(self, what: str, tensor: Any) -> None:
        """Have a replay refuse a tensor that has other memory than in the block, of which a view was recorded."""
        if not any(known is tensor for known in self._watched):
            self._watched.append(tensor)
            self.claims.append(functools.partial(_refuse_moved, what, tensor, tensors.place(tensor)))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the calls of an inner block, which are parts of a call that records itself."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def name_place(self, place: str) -> None:
        """Say which layer has made the latest call."""
        self.calls[-1] = self.calls[-1]._replace(place=place)


def _refuse_moved(what: str, tensor: Any, place: Any) -> None:
    if tensors.place(tensor) != place:
        raise ValueError(
            f"{what}: expected a tensor in the memory and of the shape and dtype that were captured, got one that has "
            f"been resized, converted or set to other data; capture again"
        )


class _RecordingFunctions(dict[str, Callable[..., Any]]):
    """The kernels of a backend by name, each of which also records its calls."""

    def __init__(self, backend: Backend, recorder: Recorder) -> None:
        super().__init__()
        self._backend, self._recorder = backend, recorder

    def __missing__(self, name: str) -> Callable[..., Any]:
        function, backend, recorder = self._backend.functions[name], self._backend, self._recorder
        if name in updates.DEFAULTS:  # a part of the step of an optimizer, which records itself
            self[name] = function
            return function

        def call(*arguments: Any) -> None:
            function(*arguments)
            recorder.record_kernel(name, backend, arguments)

        self[name] = call
        return call


class RecordingBackend(Backend):
    """A backend whose calls are recorded. It refuses arguments that would have to be converted."""

    __slots__ = ("_plain_take", "recorder")

    recorder: Recorder

    def __init__(self, plain: Backend, recorder: Recorder) -> None:
        for name in Backend.__slots__:
            setattr(self, name, getattr(plain, name))
        self.recorder = recorder
        self.functions = _RecordingFunctions(plain, recorder)
        self._plain_take = plain.take
        self.take = self._take_unconverted

    def _take_unconverted(self, what: str, x: Any, /) -> Any:
        """The argument `x` if a kernel can read it where it is."""
        array = self._plain_take(what, x)
        if is_view := tensors.is_tensor(x):
            self.recorder.watch(what, x)
        elif isinstance(x, np.ndarray):
            is_view = not x.size or self.overlap(array, x) == "same"
        if array is not x and not is_view and array.dtype.kind not in "OSUmM":  # which the kernel refuses
            raise would_be_converted(what, f"an array of backend {self.name!r}", host.name_of(type(x)))
        return array


def would_be_converted(what: str, expected: str, got: object) -> TypeError:
    """The error for an argument that a call in a block cannot read where it is."""
    return TypeError(
        f"{what}: expected {expected}, got {got}; a capture reads arguments where they are, and would not see changes "
        f"of what has been converted: convert it before the block"
    )


class RecordingChoice(Choice):
    """The choice in force in a block: the backends of `plain`, recording while the block runs in its own thread."""

    __slots__ = ("_is_open", "_plain", "_recorder", "_thread", "_wrapped")

    def __init__(self, plain: Choice, outer: Choice | None, recorder: Recorder) -> None:
        self.names, self.options, self.origin = plain.names, plain.options, plain.origin
        self.scope, self.outer = None, outer
        self.by_type = {}  # stays empty, so that every call asks `backend_of_call`
        self._plain, self._recorder = plain, recorder
        self._wrapped: dict[Backend, RecordingBackend] = {}
        self._thread, self._is_open = threading.get_ident(), True

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, in the thread of the block; a task or thread that has copied the context records nothing."""
        if not self._is_open or self._recorder.is_paused or threading.get_ident() != self._thread:
            return None
        return self._recorder

    @property
    def plain(self) -> Choice:
        """The choice that the block was entered with."""
        return self._plain

    def close(self) -> None:
        """End the recording: a task that has copied the context may still find this choice."""
        self._is_open = False

    def backend_for(self, kind: type) -> Backend:
        """The recording backend for arrays of type `kind`."""
        return self.wrapped(self._plain.backend_for(kind))

    def backend_of_call(self, kernel: str, array: Any) -> Backend:
        """The recording backend for a call of `kernel` with `array` first."""
        return self.wrapped(self._plain.backend_of_call(kernel, array))

    def wrapped(self, backend: Backend) -> Backend:
        """The backend, recording while the block runs in its own thread."""
        recorder = self.recorder
        if recorder is None:
            return backend
        found = self._wrapped.get(backend)
        if found is None:
            refuse_checks(backend, self.options)
            found = self._wrapped[backend] = RecordingBackend(backend, recorder)
        return found


def refuse_checks(backend: Backend, options: Mapping[str, Any]) -> None:
    """Refuse a capture in the checking mode of a backend that would have to wait for its device."""
    if options.get("check") and backend.arrays == "cupy":
        raise RuntimeError(
            "capture: the checking mode waits for the GPU, which a graph cannot; capture without check=True and "
            "without PLUGRAD_CHECK"
        )


@contextlib.contextmanager
def recording() -> Iterator[tuple[Recorder, Choice]]:
    """Record the calls of a block; gives the recorder and the choice in force."""
    selection.refuse_in_capture("capture: captures do not nest")
    plain, recorder = selection.chosen(), Recorder()
    if not plain.is_auto:
        refuse_checks(plain.backend_for(np.ndarray), plain.options)
    choice = RecordingChoice(plain, selection.scope.get(), recorder)
    try:
        selection.scope.set(choice)
        yield recorder, plain
    finally:
        choice.close()
        if selection.scope.get() is choice:  # else the block belongs to a generator that another thread closes
            selection.scope.set(choice.outer)
