"""The affine layer, and the matrix product: the affine layer without biases."""

from __future__ import annotations

import functools
from typing import Any, Self

import numpy as np

from plugrad import backends
from plugrad.backends import log
from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for
from plugrad.kernels._affine import GRADIENTS, affine, affine_backward, biases
from plugrad.kernels._arguments import Array, ArrayLike, floating, promoted, real
from plugrad.kernels.jacobians import affine_jacobian
from plugrad.kernels.layers._errors import errors_name_layer
from plugrad.kernels.layers._explicit import gradient_of_rows
from plugrad.kernels.layers._layer import ComputingLayer, floating_dtype, zeros_like

SCHEMES = ("he", "xavier")


class Affine(ComputingLayer):
    """Affine layer, ``y = x w + b``.

    Parameters
    ----------
    w : array_like
        Weights, shape ``(in, out)``. They are copied.
    b : array_like, optional
        Biases, shape ``(out,)``. They are copied. With None, the default, the layer has no biases: `b` and `db` are
        None, and `params` and `grads` hold one array each. `MatMul` is such a layer, too, and also draws its weights
        at random.

    Attributes
    ----------
    w, b : array
        The parameters.
    dw, db : array
        Their gradients, computed by the last `backward`.

    Raises
    ------
    TypeError, ValueError
        As for `plugrad.kernels.affine`; the message begins with the name of the layer.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Affine([[1.0, 0.0], [0.0, 1.0]], [10.0, 20.0])
    >>> layer.forward([[1.0, 2.0]])
    array([[11., 22.]])
    >>> layer.backward([[1.0, 1.0]])
    array([[1., 1.]])
    >>> layer.dw
    array([[1., 1.],
           [2., 2.]])
    """

    names: tuple[str, ...] = ("w", "b")

    def __init__(self, w: ArrayLike, b: ArrayLike | None = None) -> None:
        super().__init__()
        self._set_params(w, b)

    def _set_params(self, w: Any, b: Any) -> None:
        """Check the parameters and copy them."""
        name = type(self).__name__
        backend = backend_for(w)
        w = floating(name, "w", w, backend)
        if w.ndim != 2:
            hint = "" if w.ndim else f"; {name}.init(inputs, outputs) draws weights of that shape"
            raise ValueError(f"{name}: w: expected shape (in, out), got {w.shape}{hint}")
        b = None if b is None else biases(name, b, w, backend)
        if b is None:
            self.names = ("w",)
        elif b.dtype != w.dtype:
            w, b = promoted(name, backend, w=w, b=b)
        self.w: Array = w.copy()
        self.b: Array | None = None if b is None else b.copy()
        self.dw: Array = zeros_like(w)
        self.db: Array | None = None if b is None else zeros_like(b)

    @classmethod
    def init(cls, inputs: int, outputs: int, *, rng: Any = None, scheme: str = "he", dtype: Any = np.float32) -> Self:
        """Return a layer with weights drawn at random, and biases of 0, on the current backend.

        Parameters
        ----------
        inputs, outputs : int
            The shape of the weights.
        rng : numpy.random.Generator or int, optional
            The generator that draws the weights, or a seed: the numbers are the same on every backend.
        scheme : {"he", "xavier"}
            The variance of the weights, which are normally distributed. ``"he"`` is ``2 / inputs``, which keeps the
            variance of activations from layer to layer under ReLU (He et al., "Delving deep into rectifiers", 2015).
            ``"xavier"`` is ``2 / (inputs + outputs)``, for sigmoid and softmax (Glorot and Bengio, "Understanding
            the difficulty of training deep feedforward neural networks", 2010).
        dtype : dtype
            The dtype of the parameters.

        Returns
        -------
        layer : Affine
            The layer. Use `MatMul.init` for one without biases.

        Raises
        ------
        TypeError, ValueError
            If a size is not a positive integer, the scheme is unknown, or the dtype is not a floating one.

        Examples
        --------
        >>> from plugrad.kernels import layers
        >>> layers.Affine.init(784, 128, rng=0)
        Affine(784, 128)
        """
        method = f"{cls.__name__}.init"
        _check_size(method, "inputs", inputs)
        _check_size(method, "outputs", outputs)
        if scheme not in SCHEMES:
            raise ValueError(f"{method}: scheme: expected one of {', '.join(SCHEMES)}; got {scheme!r}")
        dtype = floating_dtype(method, dtype)
        variance = 2 / inputs if scheme == "he" else 2 / (inputs + outputs)
        w = np.random.default_rng(rng).normal(scale=np.sqrt(variance), size=(inputs, outputs)).astype(dtype)
        return cls._of_weights(backends.asarray(w))

    @classmethod
    def _of_weights(cls, w: Array) -> Self:
        return cls(w, zeros_like(w[0]))

    def __repr__(self) -> str:
        inputs, outputs = self.w.shape
        without = ", no bias" if self.b is None and type(self) is Affine else ""
        return f"{type(self).__name__}({inputs}, {outputs}{without})"

    @errors_name_layer
    def forward(self, x: ArrayLike) -> Array:
        """Compute ``x w + b`` for inputs of shape ``(..., in)``; a vector is one row."""
        self._saved = None
        w = self.w
        backend = backend_for(w)
        inputs = real("affine", "x", x, backend)
        if inputs.dtype not in COMPUTE:  # integers: converted once, for the backward pass too
            inputs = promoted("affine", backend, x=inputs, w=w)[0]
        is_same_dtype = inputs.dtype == w.dtype
        if not is_same_dtype:
            _warn_of_wide_inputs(inputs.dtype, w.dtype)
        out = self._results.take(backend, inputs.shape[:-1] + w.shape[1:], w.dtype) if is_same_dtype else None
        y = affine(inputs, w, self.b, out=out)
        self._saved = inputs
        return y

    @errors_name_layer
    def backward(self, dy: ArrayLike, *, use_jacobian: bool = False, needs_dx: bool = True) -> Array:
        """Store ``dw = x^T dy`` and ``db``, and return ``dx = dy w^T``, or None if it is not needed."""
        x, w = self.saved(), self.w
        backend = backend_for(w)
        upstream = real("affine_backward", "dy", dy, backend)
        if use_jacobian:
            return self._backward_by_jacobian(upstream, x)
        has_bias = self.b is not None
        needs = GRADIENTS if needs_dx and has_bias else ("dw", *("dx",) * needs_dx, *("db",) * has_bias)
        if not upstream.dtype == x.dtype == w.dtype:
            dx, dw, db = affine_backward(upstream, x, w, needs=needs)
            with np.errstate(all="ignore"):  # values that the dtype of the parameters cannot hold become infinite or 0
                self.dw[...] = dw
                if self.db is not None:
                    self.db[...] = db
            return dx
        out = self._gradients.take(backend, x.shape, x.dtype) if needs_dx else None
        return affine_backward(upstream, x, w, needs=needs, out=(out, self.dw, self.db))[0]

    def _backward_by_jacobian(self, dy: Any, x: Any) -> Array:
        shape = x.shape[:-1] + self.w.shape[1:]
        dy_dx, dy_dw, dy_db = affine_jacobian(x, self.w)
        self.dw[...] = gradient_of_rows(dy, dy_dw, shape).reshape(-1, *self.w.shape).sum(axis=0)
        if self.db is not None:
            self.db[...] = gradient_of_rows(dy, dy_db, shape).reshape(-1, *self.db.shape).sum(axis=0)
        dx: Array = gradient_of_rows(dy, dy_dx, shape).astype(dy_dx.dtype, copy=False)
        return dx


class MatMul(Affine):
    """Matrix product, ``y = x w``: an affine layer without biases.

    Parameters
    ----------
    w : array_like
        Weights, shape ``(in, out)``. They are copied.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layers.MatMul([[1.0], [2.0]]).forward([[3.0, 4.0]])
    array([[11.]])
    """

    def __init__(self, w: ArrayLike) -> None:
        super().__init__(w)

    @classmethod
    def _of_weights(cls, w: Array) -> Self:
        return cls(w)


@functools.cache
def _warn_of_wide_inputs(dtype: np.dtype[Any], params: np.dtype[Any]) -> None:
    """Log, once for these dtypes, that everything is computed in the dtype of the data."""
    if params.itemsize < dtype.itemsize:
        log.warn(
            "%s data and %s parameters: all layers compute in %s, which takes longer; pass x.astype('%s') to avoid it",
            dtype, params, dtype, params,
        )  # fmt: skip


def _check_size(method: str, name: str, size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise TypeError(f"{method}: {name}: expected a positive integer, got {size!r}")
    if size < 1:
        raise ValueError(f"{method}: {name}: expected a positive integer, got {size}")
