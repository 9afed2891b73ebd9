"""Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from plugrad.backends import contract
from plugrad.backends.options import DropoutOptions
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import Array, ArrayLike, integer, number
from plugrad.kernels._call import ELEMENTWISE, forward
from plugrad.kernels._kernel import kernel

SEED = np.dtype(np.uint64)


@kernel(contract.ElementwiseWithOptions, "y = x / (1 − p) where kept, else 0", results=("y",))
def dropout(x: ArrayLike, *, p: float = 0.5, seed: int | Array, out: Array | None = None) -> Array:
    """Dropout, ``y = x / (1 - p)`` with probability ``1 - p``, else 0, for each element by itself.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    p : float
        The probability that an element becomes 0, in [0, 1].
    seed : int or array
        An integer in [0, 2**64), or an array of the backend, uint64 without dimensions, which is read at each run. The
        same seed drops the same elements.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Shape and dtype of `x`. Exactly 0 where an element is dropped, NaN and infinity included. ``p=0`` copies.

    Raises
    ------
    TypeError
        As for `relu`, and if `p` is no number, or `seed` neither an integer nor such an array.
    ValueError
        As for `relu`, and if `p` lies outside of [0, 1], or `seed` outside of [0, 2**64).

    Notes
    -----
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural networks from
    overfitting", JMLR 15, 2014.

    Which elements are kept depends on the seed, `p` and the position in C order alone: they are the same on every
    backend, for every dtype, layout and number of threads. The word ``i mod 4`` of the block of Philox4x32-10 with the
    counter ``i // 4`` and the seed as its key is compared with ``ceil(p 2**32)``; see
    `plugrad.backends.options.DropoutOptions`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.dropout([1.0, 2.0, 3.0, 4.0, 5.0], p=0.5, seed=3)
    array([2., 0., 6., 8., 0.])
    """
    options = _options("dropout", x, p, seed)
    return forward("dropout", x, out, ELEMENTWISE, options, _arrays(options))


@kernel(contract.ElementwiseWithOptions, "dx = dy / (1 − p) where kept, else 0", results=("dx",))
def dropout_backward(dy: ArrayLike, *, p: float = 0.5, seed: int | Array, out: Array | None = None) -> Array:
    """Gradient of `dropout`: ``dx = dy / (1 - p)`` where that kept the element, else 0.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, any shape.
    p, seed
        As for `dropout`. The elements that were kept are found anew: no mask is stored.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `dy` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the argument, in the dtype of `dy`.

    Raises
    ------
    TypeError, ValueError
        As for `dropout`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.dropout_backward([1.0, 1.0, 1.0, 1.0, 1.0], p=0.5, seed=3)
    array([2., 0., 2., 2., 0.])
    """
    options = _options("dropout_backward", dy, p, seed)
    return forward("dropout_backward", dy, out, ELEMENTWISE, options, _arrays(options), "dy")


def _options(kernel: str, x: Any, p: Any, seed: Any) -> DropoutOptions:
    p = probability(kernel, p)
    if hasattr(seed, "dtype") and not isinstance(seed, np.generic):
        seed = backend_for(x, kernel).take(f"{kernel}: seed", seed)
        if seed.dtype != SEED:
            raise TypeError(f"{kernel}: seed: expected an integer or an array of dtype uint64, got dtype {seed.dtype}")
        if seed.ndim:
            raise ValueError(f"{kernel}: seed: expected an array without dimensions, got shape {seed.shape}")
        return DropoutOptions(p, seed)
    seed = integer(kernel, "seed", seed, "an integer or an array of dtype uint64 without dimensions")
    if not 0 <= seed < 2**64:
        raise ValueError(f"{kernel}: seed: expected an integer in [0, 2**64), got {seed}")
    return DropoutOptions(p, seed)


def probability(name: str, p: Any) -> float:
    """The option `p`, checked; `name` is that of the kernel or the layer, in messages."""
    return number(name, "p", p, "a number in [0, 1]", lambda share: 0 <= share <= 1)


def _arrays(options: DropoutOptions) -> tuple[Any, ...]:
    return () if type(options.seed) is int else (options.seed,)
