"""Capturing the calls of a block, to make them again at next to no cost per call."""

import contextlib
import contextvars
import functools
import inspect
import itertools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from plugrad.backends import selection
from plugrad.backends.backend import Backend
from plugrad.backends.choice import Choice
from plugrad.backends.contract import PreparedCall
from plugrad.backends.recording import Call, Recorder, recording
from plugrad.kernels._kernel import KERNELS
from plugrad.kernels._turn import BusyError, Turn

# The attributes of an array that are compared before each replay. The flags say whether it can be written, and whether
# it is contiguous; they take less time to compare than strides.
STATE = operator.attrgetter("shape", "dtype", "flags")
LAYOUT = operator.attrgetter("shape", "strides", "dtype")


class Graph:
    """The calls that a `capture` has recorded.

    Attributes
    ----------
    kernels : tuple of str
        The names of the recorded calls, in order: kernels, and the steps of optimizers (such as ``sgd``).
    """

    def __init__(self, recorder: Recorder, choice: Choice) -> None:
        self._recorder, self._choice = recorder, choice
        self._unusable = "its block has not ended"
        self._turn = Turn()  # only one replay at a time may write to the arrays
        self._calls: tuple[Callable[[], object], ...] = ()
        self._places: tuple[str, ...] = ()
        self._arrays: tuple[Any, ...] = ()  # NumPy's
        self._states: list[Any] = []
        self._others: tuple[Any, ...] = ()  # of devices, where arrays can always be written
        self._states_of_others: list[Any] = []
        self._layouts: dict[int, tuple[Any, ...]] = {}
        self._context = contextvars.Context()

    def __repr__(self) -> str:
        return f"<graph of {', '.join(self.kernels) or 'no calls'}>"

    def __reduce__(self) -> NoReturn:
        """Refuse copies and pickles: their arrays would be others than those that the caller knows."""
        raise TypeError("Graph: a graph belongs to its arrays, and cannot be copied or pickled; capture again")

    @property
    def calls(self) -> tuple[Call, ...]:
        """The recorded calls, in order."""
        return tuple(self._recorder.calls)

    @property
    def constants(self) -> tuple[Any, ...]:
        """The arrays that the recorded calls have made of numbers."""
        return tuple(self._recorder.constants)

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of the recorded calls, in order."""
        return tuple([call.name for call in self._recorder.calls if call.name])

    def replay(self) -> None:
        """Make the recorded calls again, on the same arrays and the backend they were captured on.

        Any thread may replay a graph, one at a time.

        Raises
        ------
        RuntimeError
            If another thread is replaying the graph, an exception has ended its block, or a block is being captured.
        ValueError
            For a wrong label, as the kernel raises it, before that kernel and those after it have written anything; if
            an array has been resized, reshaped or made read-only; or if a `Workspace` is another thread's.

        Examples
        --------
        >>> import numpy as np
        >>> from plugrad import kernels as K
        >>> x = np.array([-1.0, 2.0])
        >>> with K.capture() as graph:
        ...     y = K.relu(x)
        >>> x[...] = [3.0, -4.0]
        >>> graph.replay()
        >>> y
        array([3., 0.])
        """
        selection.refuse_in_capture("graph.replay: a capture does not record replays; call it outside of the block")
        if self._unusable:
            raise RuntimeError(f"graph.replay: expected a graph that has been captured, but {self._unusable}")
        try:
            self._turn.take(self.make_calls)
        except BusyError as busy:
            is_own = busy.thread is threading.current_thread()
            by = "this thread already" if is_own else f"another thread, {busy.thread.name!r}"
            raise RuntimeError(f"graph.replay: the graph is being replayed by {by}") from None

    def make_calls(self) -> None:
        """Make the calls as `replay` does, for a caller who sees to it that nobody else replays the graph."""
        if [*map(STATE, self._arrays)] != self._states or [*map(LAYOUT, self._others)] != self._states_of_others:
            self._check_arrays()
        for claim in self._recorder.claims:
            claim()
        # A copy takes no time. The context itself may have been entered, at a fork, by a thread that the child lacks.
        self._context.copy().run(self._call_each)

    def _call_each(self) -> None:
        """Make the calls, on the backend of the block."""
        selection.scope.set(self._choice)
        call = None
        try:
            for call in self._calls:
                call()
        except (TypeError, ValueError) as error:
            self._name_place(error, call)
            raise

    def _check_arrays(self) -> None:
        """Raise the error for the first array that is not as it was, unless it is just read-only now, or writable."""
        for call in self._recorder.calls:
            for name, array, is_written in arrays_of(call):
                state, expected = LAYOUT(array), self._layouts[id(array)]
                for label, was, now in zip(("shape", "strides", "dtype"), expected, state, strict=True):
                    if was != now:
                        raise ValueError(
                            f"{call.name}: {name}: expected an array of {label} {was}, as it was captured, got "
                            f"{label} {now}; capture again"
                        )
                if is_written and not getattr(array.flags, "writeable", True):
                    raise ValueError(f"{call.name}: {name}: expected an array that can be written, got a read-only one")
        self._states = [*map(STATE, self._arrays)]

    def _name_place(self, error: Exception, call: Callable[[], object] | None) -> None:
        """Begin the message of an error with the layer that made the call, as in the block."""
        for made, place in zip(self._calls, self._places, strict=True):
            if made is call and place and type(error) in (TypeError, ValueError):
                error.args = (f"{place}: {error}",)

    def finish(self) -> None:
        """Prepare the recorded calls; the block has ended."""
        found = {id(array): array for call in self._recorder.calls for _, array, _ in arrays_of(call)}
        self._arrays = tuple([array for array in found.values() if isinstance(array, np.ndarray)])
        self._others = tuple([array for array in found.values() if not isinstance(array, np.ndarray)])
        self._states_of_others = [*map(LAYOUT, self._others)]
        self._states = [*map(STATE, self._arrays)]
        self._layouts = {key: LAYOUT(array) for key, array in found.items()}
        self._context = _context()
        calls = self._context.run(self._prepared)
        self._calls, self._places = tuple([call.run for call in calls]), tuple([call.place for call in calls])
        self._unusable = ""

    def _prepared(self) -> list[PreparedCall]:
        """The calls of a replay; a backend may have fused those of its own that are neighbours."""
        selection.scope.set(self._choice)
        prepared: list[PreparedCall] = []
        owned = [(call, _owner(call, self._choice)) for call in self._recorder.calls]
        for owner, neighbours in itertools.groupby(owned, operator.itemgetter(1)):
            calls = [_prepared(call) for call, _ in neighbours]
            prepared += calls if owner is None else owner.fuse(calls)
        return prepared

    def discard(self) -> None:
        """Release the arrays; an exception has ended the block."""
        self._recorder.clear()
        self._unusable = "an exception has ended its block; capture again"


def _context() -> contextvars.Context:
    """A context in which NumPy does not warn; kernels and steps would set that for each call."""
    context = contextvars.copy_context()
    context.run(np.seterr, all="ignore")
    return context


def _owner(call: Call, choice: Choice) -> Backend | None:
    """The backend that all arrays of a call belong to, or None."""
    if call.backend is not None:
        return call.backend
    arrays = [array for _, array, _ in arrays_of(call)]
    owners = {choice.backend_for(kind) for kind in set(map(type, arrays))}
    owner = owners.pop() if len(owners) == 1 else None
    return owner if owner is not None and all(owner.owns(type(array)) for array in arrays) else None


def _prepared(call: Call) -> PreparedCall:
    """A call as a replay makes it."""
    backend, run = call.backend, None
    if backend is not None and backend.own(call.name) is not None:
        run = backend.prepare(call.name, *call.arguments)
    if run is None:
        run = functools.partial(call.function, *call.arguments)
    arrays = tuple([array for _, array, _ in arrays_of(call)])
    return PreparedCall(run, arrays, call.place, call.is_fixed, call.update)


def arrays_of(call: Call) -> Iterator[tuple[str, Any, bool]]:
    """The arrays of a call: the name of the argument, the array, and whether the call writes to it."""
    if call.writes is None:
        kernel = KERNELS[call.name]
        _, *names = inspect.signature(kernel.form.__call__).parameters
        first_result = len(names) - len(kernel.results)
        for position, (name, argument) in enumerate(zip(names, call.arguments, strict=True)):
            named = argument._asdict() if hasattr(argument, "_asdict") else {name: argument}  # options are named tuples
            for name, value in named.items():
                if is_array(value):
                    yield name, value, position >= first_result
        return
    for position, array in enumerate(call.writes):  # such as the parameters of an optimizer
        yield f"result {position}", array, True
    for argument in call.arguments:
        for array in argument if isinstance(argument, tuple) else (argument,):
            if is_array(array) and not any(array is other for other in call.writes):
                yield "argument", array, False


def is_array(x: Any) -> bool:
    """Whether `x` is an array, of any library, and no scalar."""
    return hasattr(x, "strides") and hasattr(x, "dtype") and not isinstance(x, np.generic)


@contextlib.contextmanager
def capture() -> Iterator[Graph]:
    """Run a block once, and record its calls in a graph, which can replay them.

    Recorded are the kernels, layers, steps of optimizers, clipping and L2 penalties that the block calls in its thread.
    New data goes into the arrays that were captured: ``x[...] = batch``. Results lie in the captured arrays. A replay
    makes the same calls on them, with the same bits as without a capture, and without the checks of arguments that
    cannot change.

    Losses come as arrays without dimensions, which each replay overwrites. The rate, the schedule and the other numbers
    of an optimizer are read, and its steps counted, at each replay. Python numbers, such as `label_smoothing`, are
    constants, and so is everything that the block computes with NumPy: such code runs once and is not recorded.

    Tensors of PyTorch are read and written where they are; the results of a call whose first array is one are tensors.

    A graph holds its arrays. On the CPU a replay makes the recorded calls. On a GPU the first replay does so, too. The
    second makes CUDA graphs of them, which it and all later ones launch on the current stream. The logger ``plugrad``
    says at INFO if that is not possible, and why; then each replay makes the calls.

    Yields
    ------
    graph : Graph
        The graph, which can be replayed after the block.

    Raises
    ------
    TypeError
        In the block, for an argument that would have to be converted: a list, another dtype than that of the call, or
        another byte order, or an array of JAX, which cannot change. Class indices may have any integer dtype.
    RuntimeError
        For a capture in a block that is captured already, and for `plugrad.backends.use`, Jacobians, gradient checks
        and replays in a block; on a GPU in the checking mode, which waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import kernels as K
    >>> x, w, t = np.array([[1.0, 2.0]]), np.eye(2), np.array([0])
    >>> with K.capture() as graph:
    ...     loss, dx = K.softmax_cross_entropy_value_and_grad(K.affine(x, w), t)
    >>> graph.kernels
    ('affine', 'softmax_cross_entropy_value_and_grad')
    >>> x[...] = [[0.0, 0.0]]
    >>> graph.replay()
    >>> round(float(loss), 6)
    0.693147
    """
    with recording() as (recorder, choice):
        graph = Graph(recorder, choice)
        try:
            yield graph
        except BaseException:
            graph.discard()
            raise
    graph.finish()
