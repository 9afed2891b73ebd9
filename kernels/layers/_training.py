"""Training steps, captured at the first batch of each shape."""

from __future__ import annotations

import contextlib
import inspect
import operator
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.calls import foreign_of, handed_back
from plugrad.backends.options import COMPUTE, FLOAT64
from plugrad.backends.recording import Call
from plugrad.backends.selection import backend_for, refuse_in_capture
from plugrad.backends.tensors import is_tensor
from plugrad.kernels._arguments import ArrayLike, Loss as LossValue, promoted, real
from plugrad.kernels._capture import Graph, arrays_of, capture, is_array
from plugrad.kernels._turn import BusyError, Turn
from plugrad.kernels.layers._layer import Layer
from plugrad.kernels.layers._losses import Loss
from plugrad.kernels.layers._sequential import Sequential
from plugrad.kernels.optim import Optimizer

PACKAGE = "plugrad.kernels."
INDICES_OR_NUMBERS = "iubfV"  # the kinds of dtypes of labels; V is that of bfloat16

_Entry: TypeAlias = tuple[dict[str, Any], str, Any]  # a dictionary, a key, and its value or None


class _Captured(NamedTuple):
    """A captured step, the objects it was captured with, and the arrays of the batch and the loss."""

    graph: Graph
    parts: tuple[Any, ...]
    attributes: _Attributes
    x: Any
    t: Any
    loss: Any


class _Attributes:
    """The attributes and options of layers that a captured step depends on, as they were in the block."""

    __slots__ = ("_found", "_names", "_values")

    def __init__(self, layers: Iterable[Layer]) -> None:
        entries: list[_Entry] = []
        for layer in layers:
            found = vars(layer)
            # A value of the layer's own class may be given to the instance later, as a method may.
            own = [base for base in type(layer).__mro__ if not base.__module__.startswith(PACKAGE)]
            defaults = [name for base in own for name, value in vars(base).items() if _is_default(value)]
            # `training` does not count in a step, and parameters and gradients are compared anyway.
            skipped = (
                {"training"} if type(layer) in own else {"training", *layer.names, *map("d{}".format, layer.names)}
            )
            names = dict.fromkeys([*found, *defaults, "forward", "backward"])
            entries += [(found, name, found.get(name)) for name in names if name[:1] != "_" and name not in skipped]
            if isinstance(options := found.get("options"), dict):
                entries += [(options, name, value) for name, value in options.items()]
        self._set(entries)

    def _set(self, entries: list[_Entry]) -> None:
        # Lists of each, so that all entries are compared without a step of Python for each of them.
        self._found = [found for found, _, _ in entries]
        self._names = [name for _, name, _ in entries]
        self._values = [value for _, _, value in entries]

    def _now(self) -> Iterator[Any]:
        """The attributes as they are now."""
        return map(dict.get, self._found, self._names)

    def leave_out_changed(self) -> None:
        """Leave out what has been set since: a pass computes it anew."""
        entries = zip(self._found, self._names, self._values, strict=True)
        self._set([entry for entry, now in zip(entries, self._now(), strict=True) if entry[2] is now])

    def have_changed(self) -> bool:
        """Whether one has been replaced by another array, number or method, or given to the instance."""
        if all(map(operator.is_, self._now(), self._values)):
            return False
        pairs = zip(self._now(), self._values, strict=True)
        return any(now is not value and not _are_equal(now, value) for now, value in pairs)


def _is_default(value: Any) -> bool:
    """Whether an attribute of a class is a value for its instances, rather than a method or descriptor."""
    return not callable(value) and not hasattr(type(value), "__get__")


def _are_equal(one: Any, other: Any) -> bool:
    """Whether both are the same number or text."""
    return type(one) is type(other) and isinstance(one, int | float | str) and bool(one == other)


class TrainingStep:
    """The steps of a training loop: forward, backward and update, captured once for each shape and dtype of a batch.

    A step copies the batch to arrays of its own, and replays the graph (see `plugrad.kernels.capture`). It computes the
    bits that the same calls compute without a capture, in training, whatever `Layer.training` is. If the network, the
    loss, the optimizer, or an attribute or option of a layer has been replaced, the step is captured anew; private
    attributes, and lists and dictionaries that are changed in place, are not looked at. An instance may be used by one
    thread at a time. It holds the arrays of each shape of a batch, so pad batches of many different
    shapes. Gradients are neither clipped nor is a penalty added: capture such steps by `plugrad.kernels.capture`.

    Parameters
    ----------
    net : Layer
        The network. Layers of your own must compute by kernels: what they compute by NumPy is not recorded, and a
        `RuntimeError` of the first step.
    loss : Loss
        The loss. Weights that it has must be arrays of the backend in the dtype that the loss is computed in: float32,
        or float64 for data of float64.
    optimizer : Optimizer
        The optimizer of the parameters of the network.

    Raises
    ------
    TypeError
        If an argument is something else.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import layers, optim
    >>> net = layers.Sequential(layers.Affine([[0.0, 0.0]], [0.0, 0.0]))
    >>> training = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optim.SGD(net.params, lr=1.0))
    >>> x, t = np.array([[1.0], [-1.0]]), np.array([0, 1])
    >>> [round(float(training.step(x, t)), 6) for _ in range(2)]
    [0.693147, 0.313262]
    """

    def __init__(self, net: Layer, loss: Loss, optimizer: Optimizer) -> None:
        for name, given, kind in (("net", net, Layer), ("loss", loss, Loss), ("optimizer", optimizer, Optimizer)):
            if not isinstance(given, kind):
                raise TypeError(f"TrainingStep: {name}: expected {_article(kind)}, got {type(given).__qualname__}")
        self.net, self.loss, self.optimizer = net, loss, optimizer
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self._turn = Turn()

    def __repr__(self) -> str:
        return f"TrainingStep({self.net!r}, {self.loss!r}, {self.optimizer!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graphs out of copies and pickles, which capture steps of their own."""
        return {**vars(self), "_captured": {}, "_turn": Turn()}

    def step(self, x: ArrayLike, t: ArrayLike) -> LossValue:
        """Make a step on a batch, and return its loss, which later steps do not overwrite.

        Raises
        ------
        TypeError, ValueError
            As the layers raise them, and if the optimizer has other parameters than the network. No parameter has been
            changed then.
        RuntimeError
            If a layer computes by other code than kernels, which a replay would not run; if another thread is in a
            step; or in a block of `plugrad.kernels.capture`. No parameter has been changed.
        """
        refuse_in_capture("TrainingStep.step: it captures steps by itself; call it outside of the block")
        try:
            return cast(LossValue, self._turn.take(self._step, x, t))
        except BusyError as busy:
            by = "this thread already is"
            if busy.thread is not threading.current_thread():
                by = f"another thread, {busy.thread.name!r}, is"
            raise RuntimeError(
                f"TrainingStep.step: {by} in a step; make one for each thread, with a network of its own"
            ) from None

    def _step(self, x: ArrayLike, t: ArrayLike) -> LossValue:
        """Make a step, while no other thread does."""
        params = self.net.params
        if not _are_same(params, self.optimizer.params):
            raise ValueError("TrainingStep: optimizer: expected the parameters of net, got others; pass net.params")
        if (foreign := foreign_of(x)) is not None:
            taken = foreign.inner.take("TrainingStep: x", x)
            return cast(LossValue, handed_back(foreign.library, self._step(taken, t)))
        backend = backend_for(x)
        batch: Any = x if type(x) is backend.native else backend.take("TrainingStep: x", x)
        labels: Any = t if type(t) is backend.native else backend.take("TrainingStep: t", t)
        key = batch.shape, batch.dtype, labels.shape, labels.dtype, backend.name
        captured = self._captured.get(key)
        if captured is None or not _are_same(captured.parts, self._parts()) or captured.attributes.have_changed():
            if captured is not None:  # the captures of other shapes hold the same old parts
                self._captured.clear()
            captured = self._captured[key] = self._capture(x, t, backend)
        else:
            captured.x[...] = batch
            captured.t[...] = labels
            captured.graph.replay()
        loss: Any = captured.loss
        result: LossValue = loss[()] if type(loss) is np.ndarray and not loss.ndim else loss.copy()
        return result

    def _capture(self, x: Any, t: Any, backend: Backend) -> _Captured:
        """Make the first step of a batch of this shape, and capture it."""
        x, t = self._inputs(x, backend), t if t is None else backend.take("TrainingStep: t", t)
        if t is not None and t.dtype.kind in INDICES_OR_NUMBERS:  # else the loss refuses them
            t = _copied(t, _labels_dtype(t, x), backend)
        self.net.forget()
        known = [x, t, *_arrays_in(self.net), *_arrays_in(self.loss)]
        options = {"needs_dx": False} if "needs_dx" in inspect.signature(self.net.backward).parameters else {}
        attributes = _Attributes([*_layers_in(self.net), *_layers_in(self.loss)])
        with _in_training(self.net), capture() as graph:
            loss = self.loss.forward(self.net.forward(x), t)
            self.net.backward(self.loss.backward(), **options)
            grads = self.net.grads
            _check_recorded(graph.calls, [*known, *graph.constants], (loss, *grads), backend)
            self.optimizer.step(grads)
        attributes.leave_out_changed()
        return _Captured(graph, self._parts(), attributes, x, t, loss)

    def _parts(self) -> tuple[Any, ...]:
        """Return the objects that a step is captured with; where one is replaced, it is captured anew."""
        return self.net, self.loss, self.optimizer, *self.net.params, *self.net.grads

    def _inputs(self, given: Any, backend: Backend) -> Any:
        """Copy the inputs to an array of their own, in the dtype of the parameters if they are integers."""
        x = real("TrainingStep", "x", given, backend)
        dtype = x.dtype
        for w in self.net.params[:1]:
            dtype = promoted("TrainingStep", backend, x=x[:0], w=w[:0])[0].dtype
            if dtype != w.dtype:
                raise TypeError(
                    f"TrainingStep: x: expected dtype {w.dtype}, that of the parameters, got {x.dtype}; "
                    f"convert the batch, as by x.astype({w.dtype.name!r})"
                )
        return _copied(x, dtype if dtype in COMPUTE else FLOAT64, backend)


@contextlib.contextmanager
def _in_training(net: Layer) -> Iterator[None]:
    """Put all layers of a network in training, and those that were not back afterwards."""
    layers = [layer for layer in _layers_in(net) if not layer.training and not isinstance(layer, Sequential)]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False


def _are_same(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether both have the same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _layers_in(value: Any) -> Iterator[Layer]:
    """A layer, and those that it holds, in attributes and in containers."""
    if isinstance(value, Layer):
        yield value
        value = vars(value)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _layers_in(entry)


def _arrays_in(value: Any) -> Iterator[Any]:
    """The arrays that layers hold, in attributes and in containers: parameters, weights of classes, constants.

    Tensors of PyTorch are views of their memory, as kernels see them; those that kernels do not take are left out.
    """
    if isinstance(value, Layer):
        value = vars(value)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _arrays_in(entry)
    elif is_array(value):
        yield value
    elif is_tensor(value):
        with contextlib.suppress(TypeError):
            yield backend_for(value).take("TrainingStep", value)


def _check_recorded(calls: tuple[Call, ...], known: list[Any], results: tuple[Any, ...], backend: Backend) -> None:
    """Refuse a step in which layers compute by other means than kernels: a replay would not compute it again."""

    def is_among(array: Any, others: list[Any]) -> bool:
        return is_array(array) and (
            not array.size or any(type(o) is type(array) and backend.overlap(array, o) != "none" for o in others)
        )

    written: list[Any] = []
    for call in calls:
        for name, array, is_written in arrays_of(call):
            if not is_written and not is_among(array, known) and not is_among(array, written):
                raise _unrecorded(f"{call.name}: {name}" if call.name else "a gradient")
        written += [array for _, array, is_written in arrays_of(call) if is_written]
    for result in results:
        if not is_among(result, written):
            raise _unrecorded("the loss" if result is results[0] else "a gradient")


def _unrecorded(what: str) -> RuntimeError:
    return RuntimeError(
        f"TrainingStep: {what}: expected an array that a kernel has computed, got one that a layer computes by other "
        f"code, which a capture does not record; compute it by kernels, or make the step without TrainingStep"
    )


def _labels_dtype(t: Any, x: Any) -> np.dtype[Any]:
    """The dtype in which labels are captured; those per class have the dtype in which the loss reads them."""
    dtype: np.dtype[Any] = t.dtype.newbyteorder("=")
    return x.dtype if dtype.kind == "f" and COMPUTE[x.dtype] == x.dtype else dtype


def _copied(given: Any, dtype: np.dtype[Any], backend: Backend) -> Any:
    copy = backend.empty(given.shape, dtype)
    copy[...] = given
    return copy


def _article(kind: type) -> str:
    return f"an {kind.__name__}" if kind.__name__[0] in "AEIOU" else f"a {kind.__name__}"
