"""Clipping gradients by their norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from plugrad.backends.backend import Backend
from plugrad.backends.options import COMPUTE, FLOAT64
from plugrad.backends.selection import backend_for, recorder
from plugrad.kernels._arguments import Array, Loss
from plugrad.kernels.optim._checks import arrays_of, at_least_0, check_updatable

PIECE = 2**13  # elements of a sum of squares, which BLAS sums in one thread, so that all runs give the same bits
NORMAL = 2.0**-100  # a factor from which products in float32 keep their digits
SQUARES = 2.0**-900, 2.0**1000  # sums of squares in float64 that neither overflow nor lose digits to underflow


def clip_by_global_norm(grads: Iterable[Array], max_norm: float) -> Loss:
    """Scale gradients in place by ``min(1, max_norm / norm)``; the norm is that of all of them as one vector.

    Parameters
    ----------
    grads : iterable of arrays
        The gradients, as `Optimizer.step` takes them: those of layers or of functions, of any floating dtypes.
    max_norm : float
        The largest norm that they have afterwards; `math.inf` only measures.

    Returns
    -------
    norm : number or array without dimensions
        The norm before, float64, taken without overflow; on a GPU it stays there. In a block of
        `plugrad.kernels.capture` an array without dimensions, which each replay overwrites. If a gradient is NaN or
        infinite, so is the norm, and all gradients are left as they are.

    Raises
    ------
    TypeError, ValueError
        If a gradient is not a floating array that can be written, two share memory, or `max_norm` is negative or NaN.
        No gradient is changed then.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import optim
    >>> dw, db = np.array([3.0, 0.0]), np.array([4.0])
    >>> float(optim.clip_by_global_norm([dw, db], 1.0)), dw, db
    (5.0, array([0.6, 0. ]), array([0.8]))
    """
    name = "clip_by_global_norm"
    if isinstance(max_norm, float) and not max_norm >= 0:
        raise ValueError(f"{name}: max_norm: expected a number of at least 0, or math.inf, got {max_norm}")
    limit = math.inf if isinstance(max_norm, float) and max_norm == math.inf else at_least_0(name, "max_norm", max_norm)
    arrays = arrays_of(name, "grads", grads, are_written=True)
    check_updatable(f"{name}: grads", arrays)
    norm: Loss = _clip(arrays, limit)
    if (recording := recorder()) is None:
        return norm
    result: npt.NDArray[Any] = np.asarray(norm) if isinstance(norm, np.generic) else norm
    recording.record(name, _clip_again, (result, arrays, limit), (result, *arrays))
    return result


def _clip_again(result: Any, grads: tuple[Any, ...], limit: float) -> None:
    result[...] = _clip(grads, limit)


def _clip(grads: tuple[Any, ...], limit: float) -> Any:
    """Scale the gradients, and return their norm."""
    full = tuple([gradient for gradient in grads if gradient.size])
    with np.errstate(all="ignore"):
        if all(type(gradient) in (np.ndarray, np.memmap) for gradient in full):
            return _clip_on_host(full, limit)
        return _clip_on_device(full, limit, backend_for(full[0]))


def _clip_on_host(grads: tuple[Any, ...], limit: float) -> np.float64:
    total, scale = sum(map(_sum_of_squares, grads)), 1.0
    if not SQUARES[0] < total < SQUARES[1]:
        largest = max([0.0, *(float(abs(gradient).max()) for gradient in grads)])
        if 0 < largest < math.inf and not math.isnan(total):
            scale = largest
            total = sum(_sum_of_squares(gradient, scale) for gradient in grads)
    root = math.sqrt(total) if total >= 0 else math.nan
    if math.isfinite(root) and root > limit / scale:
        factor = limit / scale / root
        for gradient in grads:
            # In float32 a product with a smaller factor would lose digits.
            dtype = COMPUTE[gradient.dtype] if factor > NORMAL else FLOAT64
            np.multiply(gradient, factor, out=gradient, dtype=dtype, casting="unsafe")
    return np.float64(root * scale)


def _sum_of_squares(gradient: Any, scale: float = 1.0) -> float:
    """Sum the squares of a gradient, divided by a scale, in float64."""
    flat = gradient.reshape(-1)
    total = 0.0
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE].astype(FLOAT64, copy=False)
        piece = piece if scale == 1 else piece / scale
        total += float(piece @ piece)
    return total


def _clip_on_device(grads: tuple[Any, ...], limit: float, backend: Backend) -> Any:
    """Scale gradients on a device by a factor that stays there: nothing waits for it."""
    scale, total = backend.empty((1,), FLOAT64), backend.empty((1,), FLOAT64)
    scale[...], total[...] = 1, 0
    if any(gradient.dtype == FLOAT64 for gradient in grads):  # squares of the others do not overflow
        each = backend.empty((len(grads),), FLOAT64)
        for position, gradient in enumerate(grads):
            each[position] = abs(gradient.astype(FLOAT64, copy=False)).max()
        scale[...] = each.max()
        scale[scale == 0] = 1
        scale[scale == math.inf] = 1
    for gradient in grads:
        flat = gradient.reshape(-1).astype(FLOAT64, copy=False) / scale
        total += flat @ flat
    root = total**0.5
    factor = limit / scale / root
    factor[factor > 1] = 1
    factor[factor != factor] = 1
    factor[root == math.inf] = 1
    factor = factor.reshape(())
    for gradient in grads:
        scaled = gradient.astype(FLOAT64, copy=False) * factor
        gradient[...] = scaled.astype(COMPUTE[gradient.dtype], copy=False)
    return (root * scale).reshape(())
