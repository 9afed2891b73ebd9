"""Dropout, with a new seed at each forward pass."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.selection import backend_for, refuse_in_capture
from plugrad.kernels._arguments import Array, ArrayLike, floating, same_shape
from plugrad.kernels._dropout import SEED, dropout, dropout_backward, probability
from plugrad.kernels.jacobians import diagonal
from plugrad.kernels.layers._errors import errors_name_layer
from plugrad.kernels.layers._explicit import gradient_along
from plugrad.kernels.layers._layer import ComputingLayer

# Added to the seed at each forward pass, modulo 2**64: odd, so that all 2**64 seeds come before one comes again.
STEP = np.uint64(0x9E3779B97F4A7C15)


class Dropout(ComputingLayer):
    """Dropout, ``y = x / (1 - p)`` with probability ``1 - p``, else 0; only in training (see `Layer.training`).

    Each forward pass drops other elements, in a capture at each replay too. The backward pass finds them anew: no mask
    is stored.

    Parameters
    ----------
    p : float
        The probability that an element becomes 0, in [0, 1].
    rng : numpy.random.Generator, int or None
        A generator, or a seed of one, that draws the first seed of the layer.

    Attributes
    ----------
    seed : array
        The seed of the last forward pass, stored with the parameters of a network, so that training which is resumed
        drops the same elements.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Dropout(0.5, rng=0)
    >>> layer.forward([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    array([0., 0., 2., 0., 2., 2.])
    >>> layer.backward([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    array([0., 0., 2., 0., 2., 2.])
    >>> layer.training = False
    >>> layer.forward([1.0, 1.0])
    array([1., 1.])
    """

    buffers = ("seed",)

    def __init__(self, p: float = 0.5, rng: np.random.Generator | int | None = None) -> None:
        super().__init__()
        self.p = probability("Dropout", p)
        try:
            generator = np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Dropout: rng: expected a generator, a seed or None, got {rng!r}") from error
        self.seed: Any = np.array(generator.integers(2**64, dtype=SEED))

    def __repr__(self) -> str:
        return f"Dropout({self.p!r})"

    @errors_name_layer
    def forward(self, x: ArrayLike) -> Array:
        """Drop elements of `x`; return `x` itself if the layer is not training."""
        backend = backend_for(x)
        y: Any = floating("dropout", "x", x, backend)
        if self.training:
            out = self._results.take(backend, y.shape, y.dtype)
            y = dropout(y, p=self.p, seed=self._next_seed(backend), out=out)
        self._saved = self.training, y.shape
        result: Array = y
        return result

    def _next_seed(self, backend: Backend) -> Any:
        """The seed of a forward pass, and of the backward pass after it, in an array of the backend."""
        if not backend.owns(type(self.seed)):
            self.seed = backend.asarray(np.array(int(self.seed), SEED))
        self.seed += STEP
        if backend.recorder is not None:
            backend.recorder.record("", operator.iadd, (self.seed, STEP), (self.seed,), is_fixed=True)
        return self.seed

    @errors_name_layer
    def backward(self, dy: ArrayLike, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient of the inputs."""
        was_training, shape = self.saved()
        backend = backend_for(dy)
        dx: Any = floating("dropout_backward", "dy", dy, backend)
        same_shape("dropout_backward", "dy", dx, "the result", shape)
        if was_training and use_jacobian:
            dx = gradient_along(-1, dx, dx, self._jacobian)
        elif was_training:
            out = self._gradients.take(backend, dx.shape, dx.dtype)
            dx = dropout_backward(dx, p=self.p, seed=self.seed, out=out)
        result: Array = dx
        return result

    def _jacobian(self, y: Any) -> Array:
        refuse_in_capture("use_jacobian: a capture does not record it; call backward outside of the block")
        backend = backend_for(y)
        ones = backend.asarray(np.ones(y.shape, y.dtype))
        return diagonal(backend, dropout_backward(ones, p=self.p, seed=self.seed))
