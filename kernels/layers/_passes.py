"""The passes of a network over batches of one shape, captured.

On small arrays the checks and the Python code between the kernels take longer than the kernels. The second batch of a
shape is computed by the layers in a `capture`, and the batches after it by replays, on arrays that belong to the graph:
a batch is copied in, and the result out. The bits are those of the layers.
"""

import operator
import threading
from typing import Any, Literal

import numpy as np

from plugrad.backends import selection
from plugrad.kernels._arguments import Array
from plugrad.kernels._capture import Graph, capture
from plugrad.kernels.layers._activations import Activation
from plugrad.kernels.layers._affine import Affine
from plugrad.kernels.layers._layer import Layer

# Bytes of a batch or of a result; to copy a larger one takes longer than the code between the kernels.
LARGEST = 2**18

# Shapes of batches whose passes are kept: in training, the last batch of an epoch, a validation, and one more. As often
# passes are captured anew because a layer has other arrays than before.
MOST = 4

# What a method returns where the layers have to compute.
BY_LAYERS: Any = object()

_parameters = operator.attrgetter("w", "b", "dw", "db")


class _Captured:
    """The passes over batches of one shape, and what they depend on."""

    def __init__(self, net: Any, layers: tuple[Layer, ...], x: Array) -> None:
        self.turn = threading.Lock()  # never waited for: during the turn of another thread the layers compute
        self.x = x.copy()
        with capture() as self.graph:
            self.y = net._forward_by_layers(self.x)
        self.is_writeable = self.y.flags.writeable
        self.dy = np.empty_like(self.y)
        self.backwards: dict[bool, tuple[Graph, Any]] = {}
        self.saved = [(layer, layer.saved()) for layer in layers]
        self.parameters = [(layer, _parameters(layer)) for layer in layers if isinstance(layer, Affine)]
        activations = [layer for layer in layers if isinstance(layer, Activation)]
        self.options = [(layer.options, dict(layer.options)) for layer in activations if layer.options]

    def is_small(self) -> bool:
        """Whether all results are small."""
        return all(array.nbytes <= LARGEST for array in (self.y, *[array for _, array in self.saved]))

    def is_current(self) -> bool:
        """Whether the layers still have the parameters and options that were captured."""
        for layer, (w, b, dw, db) in self.parameters:
            if layer.w is not w or layer.b is not b or layer.dw is not dw or layer.db is not db:
                return False
        return not self.options or all(now == then for now, then in self.options)

    def result(self) -> Array:
        """A copy of the result, which later batches do not overwrite."""
        y: Array = self.y.copy()
        if not self.is_writeable:
            y.flags.writeable = False
        return y


class Passes:
    """The captured passes of a network of `Affine` and activations, by the shape and dtype of the batch."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        # None after the first batch of a shape, and False if its results turned out to be large.
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
        if backend is None or x.nbytes > LARGEST or self._recaptures > MOST:
            return BY_LAYERS
        key = x.shape, x.dtype, backend
        captured = self._captured.get(key)
        if captured is None:
            return self._capture(net, key, x)
        if captured is False:
            return BY_LAYERS
        if not captured.is_current():
            self._recaptures += 1
            self._captured.pop(key, None)
            return BY_LAYERS
        if not x.flags.c_contiguous or not captured.turn.acquire(blocking=False):
            return BY_LAYERS
        try:
            captured.x[...] = x
            captured.graph.make_calls()
            for layer, array in captured.saved:
                layer._saved = array
            self._latest = captured
            return captured.result()
        except ValueError:  # an array is not as it was; the layers raise the error, if it is one
            self._captured.pop(key, None)
            return BY_LAYERS
        finally:
            captured.turn.release()

    def _capture(self, net: Any, key: tuple[Any, ...], x: Array) -> Any:
        """Capture the forward pass at the second batch of a shape."""
        has_one_dtype = all(parameter.dtype == x.dtype for layer in self._layers for parameter in layer.params)
        if not (has_one_dtype and x.size and x.flags.c_contiguous and key[-1].native is np.ndarray):
            return BY_LAYERS
        if key not in self._captured:
            if len(self._captured) == MOST:
                self._captured.pop(next(iter(self._captured)), None)
            self._captured[key] = None
            return BY_LAYERS
        captured = _Captured(net, self._layers, x)
        if captured.is_small():
            self._captured[key] = self._latest = captured
        else:
            self._captured[key] = False
        return captured.result()

    def backward(self, net: Any, dy: Array, needs_dx: bool) -> Any:
        """The gradient of the latest batch; `BY_LAYERS` if the layers have to compute it."""
        captured = self._latest
        if captured is None or not self._fits(captured, dy) or not captured.turn.acquire(blocking=False):
            return BY_LAYERS
        try:
            captured.dy[...] = dy
            if needs_dx in captured.backwards:
                graph, dx = captured.backwards[needs_dx]
                graph.make_calls()
            else:
                with capture() as graph:
                    dx = net._backward_by_layers(captured.dy, needs_dx=needs_dx)
                captured.backwards[needs_dx] = graph, dx
            return None if dx is None else dx.copy()
        except ValueError:
            self.clear()
            return BY_LAYERS
        finally:
            captured.turn.release()

    def _fits(self, captured: _Captured, dy: Array) -> bool:
        """Whether the backward pass can be replayed on a gradient."""
        for layer, array in captured.saved:
            if layer._saved is not array:
                return False
        expected = captured.dy
        is_like = dy.shape == expected.shape and dy.dtype == expected.dtype and dy.flags.c_contiguous
        return is_like and captured.is_current()
