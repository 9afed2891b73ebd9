"""The passes of a network over batches of one shape, captured.

On small arrays the checks and the Python code between the kernels take longer than the kernels. The second batch of a
shape is computed by the layers in a `capture`, and the batches after it by replays, on arrays that belong to the graph:
a batch is copied in, and the result out. The bits are those of the layers.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from plugrad.backends import selection
from plugrad.backends.backend import Backend
from plugrad.backends.options import COMPUTE
from plugrad.kernels._arguments import Array
from plugrad.kernels._capture import Graph, arrays_of, capture
from plugrad.kernels._turn import BusyError, Turn
from plugrad.kernels.layers._activations import Activation
from plugrad.kernels.layers._affine import Affine
from plugrad.kernels.layers._layer import Deferred, Layer

# Bytes of a batch, and of all that its forward pass keeps. To copy a larger batch takes longer than the code between
# the kernels, and larger results would be missed elsewhere.
LARGEST, MOST_KEPT = 2**18, 2**20

# Shapes of batches whose passes are kept: in training, the last batch of an epoch, a validation, and one more. As often
# passes are captured anew, because a layer has other arrays than before or because shapes take turns.
MOST = 4

# A method returns this if the layers have to compute the pass instead.
BY_LAYERS: Any = object()


class _Batch(Deferred):
    """The latest batch of captured passes: what their layers have kept of it is valid until the next one begins."""

    def __init__(self, captured: _Captured) -> None:
        self._captured = captured

    def of(self, layer: Layer) -> Any:
        """A copy of what the layer has kept; None once it is overwritten."""
        if self._captured.batch is not self:
            return None
        return next(array.copy() for owner, array in self._captured.saved if owner is layer)


class _Captured:
    """The passes over batches of one shape, and what they depend on."""

    def __init__(self, net: Any, layers: tuple[Layer, ...], x: Array, backend: Backend) -> None:
        self.turn = Turn()  # to compute a pass; meanwhile the layers compute those of other threads
        self.backend = backend
        self.parameters = [
            (layer, (layer.w, layer.b, layer.dw, layer.db)) for layer in layers if isinstance(layer, Affine)
        ]
        self.options = [(layer, dict(layer.options)) for layer in layers if isinstance(layer, Activation)]
        self.x = x.copy()
        with capture() as self.graph:
            self.y = net._forward_by_layers(self.x)
        self.is_writeable = self.y.flags.writeable
        self.dy = np.empty_like(self.y)
        self.backwards: dict[bool, tuple[Graph, Any]] = {}
        self.saved = [(layer, layer._saved) for layer in layers]
        self.batch: _Batch | None = None

    def can_be_kept(self) -> bool:
        """Whether no other thread has used the layers meanwhile, and the results are small."""
        own = {id(array) for call in self.graph.calls for _, array, _ in arrays_of(call)} | {id(self.x)}
        return (
            all(id(array) in own for _, array in self.saved)
            and self.is_current()
            and self.y.nbytes + sum(array.nbytes for _, array in self.saved) <= MOST_KEPT
        )

    def is_current(self) -> bool:
        """Whether the layers still have the parameters and options that were captured."""
        for layer, (w, b, dw, db) in self.parameters:
            if layer.w is not w or layer.b is not b or layer.dw is not dw or layer.db is not db:
                return False
        return all(layer.options == options for layer, options in self.options)

    def have_saved(self, batch: _Batch | None) -> bool:
        """Whether all layers have what they kept of a batch; of None, the arrays themselves."""
        return all(layer._saved is (array if batch is None else batch) for layer, array in self.saved)

    def result(self) -> Array:
        """A copy of the result, which later batches do not overwrite; the layers have kept what belongs to it."""
        y: Array = self.y.copy()
        if not self.is_writeable:
            y.flags.writeable = False
        self.batch = batch = _Batch(self)
        for layer, _ in self.saved:
            layer._saved = batch
        return y

    def forward(self, x: Array) -> Array:
        """Replay the forward pass on a batch."""
        self.batch = None
        self.x[...] = x
        self.graph.make_calls()
        return self.result()

    def backward(self, net: Any, dy: Array, needs_dx: bool) -> Any:
        """Replay the backward pass of the latest batch, if the layers still have it; capture it if it is the first."""
        if self.batch is None or not self.have_saved(self.batch) or not self.is_current():
            return BY_LAYERS
        self.dy[...] = dy
        if needs_dx in self.backwards:
            graph, dx = self.backwards[needs_dx]
            graph.make_calls()
            return None if dx is None else dx.copy()
        batch = self.batch
        for layer, array in self.saved:
            layer._saved = array
        try:
            with capture() as graph:
                dx = net._backward_by_layers(self.dy, needs_dx=needs_dx)
            if self.have_saved(None) and self.is_current():  # else another thread has used the layers
                self.backwards[needs_dx] = graph, dx
        finally:
            for layer, array in self.saved:
                if layer._saved is array:  # which later batches overwrite
                    layer._saved = batch
        return None if dx is None else dx.copy()


class Passes:
    """The captured passes of a network of `Affine` and activations, by the shape and dtype of the batch."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        # None after the first batch of a shape, and False if its passes cannot be kept.
        self._captured: dict[tuple[Any, ...], _Captured | Literal[False] | None] = {}
        self._latest: _Captured | None = None  # whose forward pass was the latest of the network
        self._recaptures = 0

    def clear(self) -> None:
        """Release all arrays."""
        self._captured.clear()
        self._latest = None

    def forward(self, net: Any, x: Array) -> Any:
        """The result for a batch, an array of NumPy; `BY_LAYERS` if the layers have to compute it."""
        self._latest = None
        backend = selection.in_force().by_type.get(np.ndarray)  # none in a capture, or if it depends on the call
        if backend is None or x.nbytes > LARGEST:
            return BY_LAYERS
        key = x.shape, x.dtype, backend
        captured = self._captured.get(key)
        if captured is None:
            return self._capture(net, key, x)
        if captured is False or not x.flags.c_contiguous:
            return BY_LAYERS
        if not captured.is_current():
            self._recaptures += 1
            self._captured.pop(key, None)
            return BY_LAYERS
        try:
            y = captured.turn.take(captured.forward, x)
        except BusyError:
            return BY_LAYERS
        except ValueError:  # an array is not as it was; the layers raise the error, if it is one
            self._captured.pop(key, None)
            return BY_LAYERS
        self._latest = captured
        return y

    def _capture(self, net: Any, key: tuple[Any, ...], x: Array) -> Any:
        """Capture the forward pass at the second batch of a shape."""
        backend = key[-1]
        if not (
            self._recaptures <= MOST
            and backend.is_built_in  # without options that change results
            and backend.native is np.ndarray
            and x.dtype in COMPUTE
            and x.size
            and x.flags.c_contiguous
            and all(type(p) is np.ndarray and p.dtype == x.dtype for layer in self._layers for p in layer.params)
        ):
            return BY_LAYERS
        if key not in self._captured:
            for oldest in list(self._captured)[: len(self._captured) + 1 - MOST]:
                self._recaptures += bool(self._captured.pop(oldest, None))
            self._captured[key] = None
            return BY_LAYERS
        captured = _Captured(net, self._layers, x, backend)
        if captured.can_be_kept():
            self._captured[key] = self._latest = captured
            return captured.result()
        self._captured[key] = False
        return captured.y

    def backward(self, net: Any, dy: Array, needs_dx: bool) -> Any:
        """The gradient of the latest batch; `BY_LAYERS` if the layers have to compute it."""
        captured = self._latest
        if (
            captured is None
            or dy.shape != captured.dy.shape
            or dy.dtype != captured.dy.dtype
            or not dy.flags.c_contiguous
            or selection.in_force().by_type.get(np.ndarray) is not captured.backend
        ):
            return BY_LAYERS
        try:
            return captured.turn.take(captured.backward, net, dy, needs_dx)
        except BusyError:
            return BY_LAYERS
        except ValueError:
            self.clear()
            return BY_LAYERS
