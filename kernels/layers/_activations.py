"""Activations: layers without parameters whose backward pass needs the result or the inputs of the forward pass."""

from __future__ import annotations

import operator
from typing import Any, ClassVar, Literal

import numpy as np

from plugrad.backends.recording import Recorder
from plugrad.backends.selection import backend_for, recorder, refuse_in_capture
from plugrad.kernels import KERNELS
from plugrad.kernels._arguments import Array, ArrayLike, floating, integer, real
from plugrad.kernels._gelu import gelu_options
from plugrad.kernels._leaky_relu import leaky_relu_options
from plugrad.kernels.jacobians import diagonal, relu_jacobian, sigmoid_jacobian, softmax_jacobian
from plugrad.kernels.layers._errors import errors_name_layer
from plugrad.kernels.layers._explicit import gradient_along
from plugrad.kernels.layers._layer import ComputingLayer


class Activation(ComputingLayer):
    """A layer of the kernel named `kernel`, whose gradient is ``{kernel}_backward(dy, y)``, or of `x` in place of `y`.

    The layer of another elementwise kernel is a class with a docstring and the name of its kernel; list it in
    ``layers/__init__.py``.

    Attributes
    ----------
    kernel : str
        The kernel of the forward pass.
    options : dict
        Options of both kernels.
    """

    kernel: ClassVar[str]
    _keeps_inputs: ClassVar[bool] = False  # for the backward pass, rather than the result

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    @errors_name_layer
    def forward(self, x: ArrayLike) -> Array:
        """Compute the result for inputs `x`."""
        y = self.forward_unprotected(x)
        return y if self._keeps_inputs else _protected(y, recorder())

    def forward_unprotected(self, x: Any) -> Any:
        """Return the result itself, for callers that do not write to it."""
        self._saved = None  # first, so that its memory can be reused
        backend = backend_for(x)
        x = floating(self.kernel, "x", x, backend)
        y = KERNELS[self.kernel].function(x, out=self._results.take(backend, x.shape, x.dtype), **self.options)
        self._saved = x if self._keeps_inputs else y
        return y

    def forward_in_place(self, x: Any) -> Any:
        """Overwrite the inputs, an array of the backend, with the result."""
        self._saved = KERNELS[self.kernel].function(x, out=x, **self.options)
        return self._saved

    @errors_name_layer
    def backward(self, dy: ArrayLike, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient of the inputs."""
        y, kernel = self.saved(), f"{self.kernel}_backward"
        backend = backend_for(y)
        upstream = real(kernel, "dy", dy, backend)
        dx: Array
        if use_jacobian:
            dx = gradient_along(self.options.get("axis", -1), upstream, y, self._jacobian)
            return dx
        out = self._gradients.take(backend, y.shape, y.dtype) if upstream.dtype == y.dtype else None
        dx = KERNELS[kernel].function(upstream, y, out=out, **self.options)
        return dx

    def backward_in_place(self, dy: Any) -> Any:
        """Overwrite the gradient of the result with that of the inputs, if its dtype allows it."""
        y, kernel = self.saved(), f"{self.kernel}_backward"
        dy = real(kernel, "dy", dy, backend_for(y))
        return KERNELS[kernel].function(dy, y, out=dy if dy.dtype == y.dtype else None, **self.options)

    def _jacobian(self, y: Any) -> Array:
        """Compute the Jacobian of each row: that of an elementwise kernel, unless overridden."""
        refuse_in_capture("use_jacobian: a capture does not record it; call backward outside of the block")
        backend = backend_for(y)
        ones = backend.asarray(np.ones(y.shape, y.dtype))
        return diagonal(backend, KERNELS[f"{self.kernel}_backward"].function(ones, y, **self.options))


class Relu(Activation):
    """Rectified linear unit, ``y = max(x, 0)``; ``dx = dy`` where ``y > 0``, else 0.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Relu()
    >>> layer.forward([-1.0, 2.0])
    array([0., 2.])
    >>> layer.backward([5.0, 5.0])
    array([0., 5.])
    """

    kernel = "relu"

    def _jacobian(self, y: Any) -> Array:
        return relu_jacobian(y)


class LeakyRelu(Activation):
    """Leaky rectified linear unit, ``y = x`` where ``x > 0``, else ``negative_slope * x``.

    Parameters
    ----------
    negative_slope : float
        The slope where `x` is not positive.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.LeakyRelu(negative_slope=0.5)
    >>> layer.forward([-1.0, 2.0])
    array([-0.5,  2. ])
    >>> layer.backward([4.0, 4.0])
    array([2., 4.])
    """

    kernel = "leaky_relu"
    _keeps_inputs = True

    def __init__(self, *, negative_slope: float = 0.01) -> None:
        super().__init__(**leaky_relu_options("LeakyRelu", negative_slope)._asdict())


class Gelu(Activation):
    """Gaussian error linear unit, ``y = x (1 + erf(x / sqrt(2))) / 2``.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        ``"tanh"`` computes the approximation by the hyperbolic tangent (see `plugrad.kernels.gelu`).

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Gelu()
    >>> layer.forward([0.0, 1.0]).round(6)
    array([0.      , 0.841345])
    >>> layer.backward([2.0, 2.0]).round(6)
    array([1.      , 2.166631])
    """

    kernel = "gelu"
    _keeps_inputs = True

    def __init__(self, *, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__(**gelu_options("Gelu", approximate)._asdict())


class Silu(Activation):
    """Sigmoid linear unit, ``y = x / (1 + exp(-x))``.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Silu()
    >>> layer.forward([0.0, 50.0])
    array([ 0., 50.])
    >>> layer.backward([2.0, 2.0])
    array([1., 2.])
    """

    kernel = "silu"
    _keeps_inputs = True


class Tanh(Activation):
    """Hyperbolic tangent; ``dx = dy (1 - y^2)``.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Tanh()
    >>> layer.forward([0.0])
    array([0.])
    >>> layer.backward([4.0])
    array([4.])
    """

    kernel = "tanh"


class Sigmoid(Activation):
    """Logistic sigmoid, ``y = 1 / (1 + exp(-x))``; ``dx = dy y (1 - y)``.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Sigmoid()
    >>> layer.forward([0.0])
    array([0.5])
    >>> layer.backward([4.0])
    array([1.])
    """

    kernel = "sigmoid"

    def _jacobian(self, y: Any) -> Array:
        return sigmoid_jacobian(y)


class Softmax(Activation):
    """Softmax, ``y_j = exp(x_j) / sum(exp(x_k))``; ``dx_j = y_j (dy_j - sum(dy_k y_k))``.

    Parameters
    ----------
    axis : int
        The axis of the classes.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Softmax()
    >>> layer.forward([[0.0, 0.0]])
    array([[0.5, 0.5]])
    >>> layer.backward([[1.0, 0.0]])
    array([[ 0.25, -0.25]])
    """

    kernel = "softmax"

    def __init__(self, *, axis: int = -1) -> None:
        super().__init__(axis=integer("Softmax", "axis", axis, "one integer"))

    @property
    def axis(self) -> int:
        """The axis of the classes."""
        return int(self.options["axis"])

    def __repr__(self) -> str:
        return "Softmax()" if self.axis == -1 else super().__repr__()

    def _jacobian(self, y: Any) -> Array:
        return softmax_jacobian(y)


def _protected(y: Any, recorder: Recorder | None) -> Array:
    """Return a read-only view; on a GPU, where arrays cannot be read-only, a copy."""
    if not isinstance(y, np.ndarray):
        copy: Array = y.copy()
        if recorder is not None:
            recorder.record("", operator.setitem, (copy, ..., y), (copy,), is_fixed=True)
        return copy
    view = y.view()
    view.flags.writeable = False
    return view
