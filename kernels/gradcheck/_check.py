"""Gradients compared with central differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plugrad import backends
from plugrad.backends.selection import refuse_in_capture
from plugrad.kernels import KERNELS
from plugrad.kernels._arguments import ArrayLike
from plugrad.kernels.gradcheck._arrays import Float64Array, as_float64, evaluate, machine_epsilon
from plugrad.kernels.gradcheck._differences import ULP, Slopes
from plugrad.kernels.gradcheck._problems import Problem, problems_of_function, problems_of_kernel, problems_of_layer
from plugrad.kernels.gradcheck._report import Entry, Gradient, Report
from plugrad.kernels.layers import Layer, Loss

# dtype of a gradient -> the largest relative error that still passes
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}

MOST_ROUNDING = 0.01  # the largest share of a difference that rounding may make up: more would hide errors


def check(
    target: Callable[..., Any] | Layer,
    *inputs: ArrayLike,
    gradients: ArrayLike | Sequence[ArrayLike | None] | None = None,
    loss: Loss | None = None,
    step: float | None = None,
    tolerance: float | None = None,
    entries: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Compare gradients with central differences.

    Parameters
    ----------
    target : kernel, layer or function
        A forward kernel, whose backward kernel is checked, or a kernel that returns gradients itself; a layer or a
        network of layers, whose ``backward`` is checked for the inputs and all parameters; or any scalar function,
        such as the loss of a whole network, whose `gradients` are given.
    *inputs : array_like
        The arguments: for a layer the inputs, and with a loss the labels. Labels are not differentiated.
    gradients : array or sequence of arrays
        For a function: its gradient with respect to each of the inputs, None for an input that is not checked.
    loss : layer, optional
        For a network: the loss at its end. Without it, the gradient of the result is drawn at random.
    step : float, optional
        The step of the differences; by default as for `gradient`.
    tolerance : float, optional
        The largest error allowed, relative to the entry, or, where that is more, to the root of this number times the
        largest entry or upstream gradient; by default 1e-6 for gradients of float64, 1e-4 for float32, 0.02 for
        float16, 0.1 for bfloat16.
    entries : int
        The number of entries that are drawn from a larger gradient.
    seed : int
        The seed for everything drawn at random, by a kernel such as `dropout` too.
    **options
        Options of a kernel, passed to it and to its backward kernel.

    Returns
    -------
    report : Report
        True if all gradients are right; printed, it is a table of the entries that are not.

    Raises
    ------
    TypeError
        If the gradients of a function are not given, or the arguments do not fit the target.
    ValueError
        If the shape of a gradient is not that of its argument, or a function returns more than one number.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> from plugrad.kernels.gradcheck import check
    >>> bool(check(K.softmax, [[1.0, 0.0, 3.0]]))
    True
    >>> report = check(lambda x: (x**2).sum(), [1.0, 2.0], gradients=[[2.0, 2.0]])
    >>> print(report)  # doctest: +ELLIPSIS
    <lambda>: THE GRADIENTS ARE WRONG
      dx (2,): 2 entries, 1 wrong, largest error 0.5 (allowed: 1e-06)
           index         analytic          numeric        error
             [1]                2  ...
    """
    if isinstance(entries, bool) or not isinstance(entries, int) or entries < 1:
        raise ValueError(f"check: entries: expected a positive integer, got {entries!r}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"check: tolerance: expected a positive number, got {tolerance!r}")
    rng = np.random.default_rng(seed)
    is_kernel = getattr(KERNELS.get(getattr(target, "__name__", "")), "function", None) is target
    if gradients is not None and (is_kernel or isinstance(target, Layer)):
        raise TypeError("check: gradients: expected none for a kernel or a layer, whose own backward is checked")
    refuse_in_capture("gradcheck.check: a capture does not record it; call it outside of the block")
    if loss is not None and not (isinstance(target, Layer) and isinstance(loss, Loss)):
        kind = type(loss).__qualname__
        raise TypeError(f"check: loss: expected a loss such as SoftmaxWithLoss() for a network, got {kind}")
    if isinstance(target, Layer):
        about, problems = repr(target), problems_of_layer(target, inputs, loss, rng)
    elif is_kernel:
        kernel = KERNELS[target.__name__]
        given = {**options, "seed": seed} if "seed" in kernel.options else options
        about, problems = kernel.name, problems_of_kernel(kernel, inputs, given, rng)
        options = {}
    else:
        about, problems = getattr(target, "__name__", "function"), problems_of_function(target, inputs, gradients)
    if options:
        raise TypeError(f"check: unknown options for {about}: {', '.join(options)}")
    return Report(about, tuple(_compared(problem, step, tolerance, entries, rng) for problem in problems))


def _compared(
    problem: Problem, step: float | None, tolerance: float | None, entries: int, rng: np.random.Generator
) -> Gradient:
    """Compare the entries of a gradient, or as many as are drawn, with central differences."""
    x, analytic = as_float64(problem.name, problem.x), as_float64(problem.name, problem.analytic)
    if analytic.shape != x.shape:
        raise ValueError(f"check: {problem.name}: expected the shape of its argument, {x.shape}, got {analytic.shape}")
    given = np.asarray(backends.to_numpy(problem.analytic) if hasattr(problem.analytic, "dtype") else analytic)
    if tolerance is None:
        tolerance = TOLERANCES.get(given.dtype.name, TOLERANCES["float64"])
    chosen = np.arange(x.size) if x.size <= entries else np.sort(rng.choice(x.size, entries, replace=False))
    y = _checked_result(problem, x)
    slopes = [Slopes(problem.f, x, int(i), step, y) for i in chosen]
    numeric = np.array([slope.number for slope in slopes])
    largest_slope = float(np.max(np.abs(numeric[np.isfinite(numeric)]), initial=0.0))
    scale = math.sqrt(tolerance) * max(largest_slope, problem.scale)
    rounding = ULP * machine_epsilon(given) * problem.scale
    largest = 0.0
    found: dict[str, list[Entry]] = {verdict: [] for verdict in ("right", "wrong", "unclear", "kink")}
    for i, slope, a in zip(chosen, slopes, analytic.reshape(-1)[chosen], strict=True):
        n, error, verdict = _judged(slope, float(a), scale, tolerance, rounding, step is None)
        index = tuple(int(j) for j in np.unravel_index(int(i), x.shape))
        found[verdict].append(Entry(index, float(a), n, error, slope.kink() if verdict == "kink" else None))
        if verdict != "kink":
            largest = np.nan if math.isnan(error) else max(largest, error)
    wrong, unclear, kinks = (_worst_first(found[verdict]) for verdict in ("wrong", "unclear", "kink"))
    return Gradient(problem.name, x.shape, len(chosen), largest, tolerance, wrong, unclear, kinks)


def _worst_first(entries: list[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: -np.inf if math.isnan(entry.error) else -entry.error))


def _checked_result(problem: Problem, x: Float64Array) -> npt.NDArray[Any]:
    """Return the result of a function, if it is one number, and the same in each call."""
    y = evaluate(problem.f, x)
    if y.size != 1:
        raise ValueError(f"check: {problem.name}: expected a scalar function, got results of shape {y.shape}")
    if not np.array_equal(y, again := evaluate(problem.f, x), equal_nan=True):
        raise ValueError(
            f"check: {problem.name}: expected the same result for the same argument, got {y.item()} and "
            f"{again.item()}; seed its random numbers anew in each call"
        )
    return y


def _judged(
    slopes: Slopes, a: float, scale: float, tolerance: float, rounding: float, may_choose: bool
) -> tuple[float, float, str]:
    """Return a central difference, the relative error of `a`, and the verdict: right, wrong, unclear or kink.

    An entry that fails with one step may pass with another: a smaller one, if there is a kink nearby or the function is
    defined on one side only, or a larger one, if rounding of the results dominates.
    """
    decided, seen = False, []
    for candidate in slopes.others() if may_choose else (slopes,):
        n, size = candidate.number, max(abs(a), abs(candidate.number), scale)
        difference = abs(a - n) if a != n else 0.0  # infinity less itself is NaN
        seen.append((n, difference / size if difference and size else difference))
        if candidate.rounding > MOST_ROUNDING * size and math.isfinite(n):
            continue  # rounding would hide an error
        # With a larger step the difference itself is less accurate.
        decided |= candidate.step <= slopes.step or not difference <= MOST_ROUNDING * size
        if math.isfinite(difference) and difference <= tolerance * size + candidate.rounding + rounding:
            return *seen[-1], "right"
    if a == 0 and all(n == 0 for n, _ in seen):
        return *seen[0], "right"  # the function does not depend on this entry
    if (sides := slopes.kink()) is not None:
        margin = tolerance * max(map(abs, sides)) + rounding
        if min(sides) - margin <= a <= max(sides) + margin:
            return *seen[0], "kink"
    return *seen[0], "wrong" if decided else "unclear"
