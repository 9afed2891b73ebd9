"""The L2 penalty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from plugrad.backends.options import COMPUTE, FLOAT32, FLOAT64
from plugrad.backends.selection import backend_for, recorder
from plugrad.kernels._arguments import Array, ArrayLike, Loss, floating
from plugrad.kernels.optim._checks import at_least_0, check_writeable, checked_grads, views_of


def l2_penalty(params: Iterable[ArrayLike], factor: float, *, grads: Iterable[Array] | None = None) -> Loss:
    """Return the L2 penalty, ``factor * sum(p^2)`` over all parameters, and add its gradient, ``2 factor p``.

    Parameters
    ----------
    params : iterable of arrays
        The parameters.
    factor : float
        The factor of the sum of squares.
    grads : iterable of arrays, optional
        The gradients of the loss, to which those of the penalty are added in place. An optimizer with
        ``weight_decay=2 * factor`` adds the same gradients at no cost.

    Returns
    -------
    penalty : number or array without dimensions
        The penalty, to be added to the loss; on a GPU it stays there. float64 for float64 parameters, else float32. In
        a block of `plugrad.kernels.capture` an array without dimensions, which each replay overwrites.

    Raises
    ------
    TypeError
        If a parameter is complex, text or objects, or a gradient is not an array of its dtype.
    ValueError
        If there are not as many gradients as parameters, a gradient has another shape or is read-only, or the factor
        is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import optim
    >>> w, dw = np.array([3.0, 4.0]), np.zeros(2)
    >>> float(optim.l2_penalty([w], 0.5, grads=[dw])), dw
    (12.5, array([3., 4.]))
    """
    factor = at_least_0("l2_penalty", "factor", factor)
    arrays = tuple([floating("l2_penalty", "params", parameter, backend_for(parameter)) for parameter in params])
    views = None if grads is None else views_of("l2_penalty: grads", tuple(grads), are_written=True)
    given = None if views is None else checked_grads("l2_penalty", arrays, views)
    for position, gradient in enumerate(given or ()):
        check_writeable(f"l2_penalty: grads: {position}", gradient)
    penalty = _penalty(arrays, factor, given)
    if (recording := recorder()) is None:
        return penalty
    result: npt.NDArray[Any] = np.asarray(penalty) if isinstance(penalty, np.generic) else penalty
    recording.record("l2_penalty", _penalty_again, (result, arrays, factor, given), (result, *(given or ())))
    return result


def _penalty_again(result: Any, arrays: tuple[Any, ...], factor: float, grads: tuple[Any, ...] | None) -> None:
    result[...] = _penalty(arrays, factor, grads)


def _penalty(arrays: tuple[Any, ...], factor: float, grads: tuple[Any, ...] | None) -> Loss:
    """Compute the penalty, and add its gradient."""
    total: Any = np.float64(0)
    dtype = FLOAT32
    with np.errstate(all="ignore"):  # values that a dtype cannot hold become infinite or 0
        for parameter in arrays:
            flat = parameter.reshape(-1).astype(FLOAT64, copy=False)  # float32 would lose digits of large sums
            total, dtype = total + flat @ flat, max(dtype, COMPUTE[parameter.dtype])
        for parameter, gradient in zip(arrays, grads or (), strict=False):
            wide = COMPUTE[parameter.dtype]
            gradient[...] = gradient.astype(wide, copy=False) + 2 * factor * parameter.astype(wide, copy=False)
        penalty: Loss = (factor * total).astype(dtype)
    return penalty
