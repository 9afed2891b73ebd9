"""Derivatives by central differences, and gradients checked against them.

All of it is computed in float64, whatever the dtype of what is checked; arrays on a device are moved there and back.
The step is the one at which the two errors of a central difference, ``h^2 f'''/6`` of cutting off the series and
``eps f / h`` of rounding, are about equal: the cube root of the machine epsilon of the results (Press et al.,
"Numerical recipes", section 5.7). For arguments larger than 1 it grows with their root, as some functions vary on the
scale of their argument and others on one of their own.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plugrad import backends
from plugrad.backends.options import FLOAT64, is_supported
from plugrad.backends.selection import backend_for
from plugrad.kernels import KERNELS, Kernel
from plugrad.kernels.layers import Layer, Loss

__all__ = ["Entry", "Gradient", "Report", "check", "gradient", "gradient_descent", "jacobian"]

Floats = npt.NDArray[np.float64]

# dtype of a gradient -> the largest relative error that still passes
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}

SHOWN = 10  # wrong entries in a table
ULP = 4  # how far a result of the function may be off
MOST_ROUNDING = 0.01  # how much of a difference that may be: more would hide errors


def gradient(f: Callable[[Any], Any], x: Any, *, step: float | None = None) -> Any:
    """Gradient of a function with one number for its result, by central differences.

    ``df/dx_i = (f(x + h e_i) - f(x - h e_i)) / 2h``

    Parameters
    ----------
    f : callable
        Takes an array of float64 of the shape of `x` (a number if `x` is one) and returns one number.
    x : array_like
        Where.
    step : float, optional
        The step ``h``; by default it is chosen, see above.

    Returns
    -------
    gradient : float64 array of the shape of `x`, or number

    Raises
    ------
    TypeError
        If `x` is complex, text or objects.
    ValueError
        If `f` returns anything but one number, or `step` is not positive.

    Examples
    --------
    >>> from plugrad.kernels.gradcheck import gradient
    >>> round(gradient(lambda x: x**2 + 5, 1.0), 9)
    2.0
    >>> gradient(lambda x: x[0] ** 2 + x[1] ** 3 + 1, [2.0, 3.0]).round(6)
    array([ 4., 27.])
    """
    found = jacobian(f, x, step=step)
    if found.shape != np.shape(x):
        raise ValueError(f"gradient: f: expected one number, got shape {found.shape[: found.ndim - np.ndim(x)]}")
    return found if found.ndim else float(found)


def jacobian(f: Callable[[Any], Any], x: Any, *, step: float | None = None) -> Floats:
    """Jacobian of a function of an array, by central differences.

    Parameters
    ----------
    f : callable
        Takes an array of float64 of the shape of `x` and returns an array or a number.
    x : array_like
        Where.
    step : float, optional
        The step; by default it is chosen, see above.

    Returns
    -------
    jacobian : float64 array
        Shape ``(*y.shape, *x.shape)`` with ``y = f(x)``: ``jacobian[i, j]`` is ``dy_i / dx_j``.

    Raises
    ------
    TypeError, ValueError
        As for `gradient`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> from plugrad.kernels.gradcheck import jacobian
    >>> jacobian(K.softmax, [0.0, 0.0]).round(6)
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    x = _doubles("x", x)
    y = _result(f, x)
    found = np.empty((y.size, x.size))
    for column in range(x.size):
        slopes = _Slopes(f, x, column, step, y)
        found[:, column] = slopes.central
    return found.reshape(y.shape + x.shape)


def gradient_descent(
    f: Callable[[Any], Any],
    x0: Any,
    *,
    lr: float = 0.01,
    steps: int = 1000,
    df: Callable[[Any], Any] | None = None,
    callback: Callable[[int, Any, float], Any] | None = None,
) -> Any:
    """Go downhill: ``x = x - lr df/dx``, so many times.

    Parameters
    ----------
    f : callable
        Takes an array of float64 of the shape of `x0` and returns one number.
    x0 : array_like
        Where to start. It is left as it is.
    lr : float
        The learning rate.
    steps : int
        How many.
    df : callable, optional
        The gradient of `f`; by default it is found by central differences.
    callback : callable, optional
        Called as ``callback(step, x, f(x))`` before the first step and after each.

    Returns
    -------
    x : float64 array of the shape of `x0`, or number

    Raises
    ------
    ValueError
        If `lr` or `steps` is negative.
    FloatingPointError
        If a step leads to NaN or infinity.

    Examples
    --------
    >>> from plugrad.kernels.gradcheck import gradient_descent
    >>> round(gradient_descent(lambda x: (x - 3) ** 2, 0.0, lr=0.1, steps=100), 6)
    3.0
    """
    if not lr >= 0 or steps < 0:
        raise ValueError(f"gradient_descent: lr, steps: expected no negative numbers, got {lr}, {steps}")
    x = _doubles("x0", x0).copy()
    for step in range(steps + 1):
        if step:
            try:
                ahead = x - lr * np.asarray(gradient(f, x) if df is None else df(_given(x)))
            except OverflowError:  # Python's numbers, unlike NumPy's, do not become infinite
                ahead = np.full_like(x, np.inf)
            if not np.isfinite(ahead).all():
                raise FloatingPointError(
                    f"gradient_descent: step {step}: from {x} it leads to {ahead}; take a smaller lr than {lr}"
                )
            x = ahead
        if callback:
            callback(step, _given(x), float(f(_given(x))))
    return _given(x)


@dataclass(frozen=True)
class Entry:
    """One entry of a gradient beside the derivative it should be.

    Attributes
    ----------
    index : tuple of int
        Where it is.
    analytic, numeric : float
        The entry, and the central difference.
    error : float
        Their difference, relative to the larger one of them. It may be more than is allowed, and right, where the
        entry is so small that rounding the results of the function makes that much of a difference.
    slopes : tuple of float or None
        Where the function has a kink: the derivatives to the left and to the right. Anything between them will do.
    """

    index: tuple[int, ...]
    analytic: float
    numeric: float
    error: float
    slopes: tuple[float, float] | None = None

    def __str__(self) -> str:
        index = f"[{', '.join(map(str, self.index))}]"
        text = f"{index:>12} {self.analytic:>16.9g} {self.numeric:>16.9g} "
        if self.slopes:
            left, right = (slope + 0.0 for slope in self.slopes)  # no -0
            return f"{text}{'a kink':>12}: {left:.9g} to the left, {right:.9g} to the right"
        return f"{text}{self.error:>12.3g}"


@dataclass(frozen=True)
class Gradient:
    """What was found out about the gradient with respect to one argument.

    Attributes
    ----------
    name : str
        The gradient's.
    shape : tuple of int
        Its shape.
    checked : int
        How many of its entries were compared.
    largest : float
        The largest relative error of these, less those at kinks.
    tolerance : float
        The error allowed.
    wrong, unclear, kinks : tuple of Entry
        The entries with larger errors, the worst first; those that cannot be told, since what they change in the
        results is lost when these are rounded; those where the function has a kink and the entry is between its slopes.
    """

    name: str
    shape: tuple[int, ...]
    checked: int
    largest: float
    tolerance: float
    wrong: tuple[Entry, ...]
    unclear: tuple[Entry, ...]
    kinks: tuple[Entry, ...]

    def __str__(self) -> str:
        size = int(np.prod(self.shape, dtype=np.int64))
        of = f"{self.checked} entries" if self.checked == size else f"{self.checked} of {size} entries, drawn at random"
        wrong = f"{len(self.wrong)} wrong" + (f", {len(self.unclear)} cannot be told" if self.unclear else "")
        more = ", and rounding" if self.largest > self.tolerance and not self.wrong + self.unclear else ""
        lines = [
            f"  {self.name} {self.shape}: {of}, {wrong}, largest error {self.largest:.2g} "
            f"(allowed: {self.tolerance:.0e}{more})"
        ]
        if self.wrong or self.unclear or self.kinks:
            lines.append(f"{'index':>12} {'analytic':>16} {'numeric':>16} {'error':>12}")
        for entries in (self.wrong, self.unclear):
            lines += map(str, entries[:SHOWN])
            if len(entries) > SHOWN:
                lines.append(f"{'...':>12} and {len(entries) - SHOWN} more")
        lines += map(str, self.kinks[:SHOWN])
        if self.unclear:
            lines.append(
                "  what cannot be told is lost in the rounding of the results: compute them in float64, or pass a step"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What `check` found; true if every gradient passed. Its text is a table of where they part.

    Attributes
    ----------
    about : str
        What was checked.
    gradients : tuple of Gradient
        One for each argument.
    """

    about: str
    gradients: tuple[Gradient, ...]

    def __bool__(self) -> bool:
        return not any(gradient.wrong or gradient.unclear for gradient in self.gradients)

    def __str__(self) -> str:
        verdict = "the gradients are right" if self else "CANNOT BE TOLD"
        if any(gradient.wrong for gradient in self.gradients):
            verdict = "THE GRADIENTS ARE WRONG"
        return "\n".join([f"{self.about}: {verdict}", *map(str, self.gradients)])

    __repr__ = __str__


def check(
    target: Callable[..., Any] | Layer,
    *inputs: Any,
    gradients: Any = None,
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
        A forward kernel, whose backward kernel is checked, or one that returns gradients itself; a layer or a network
        of layers, whose ``backward`` is checked, for the inputs and all parameters; or any function with one number
        for its result, such as the loss of a whole network, whose `gradients` are given.
    *inputs : array_like
        The arguments; of a layer the inputs, and with a loss the labels. Labels are not differentiated.
    gradients : array or sequence of arrays
        For a function: its gradient with respect to each of the inputs, None for one that is not to be checked.
    loss : layer, optional
        For a network: the loss at its end. Without one, the gradient of the result is drawn at random.
    step : float, optional
        The step of the differences; by default it is chosen, see above.
    tolerance : float, optional
        The largest error allowed, relative to the entry, or, where that is more, to the root of this number times the
        largest entry or the gradient that arrives; by default 1e-6 for gradients of float64, 1e-4 of float32, 0.02 of
        float16, 0.1 of bfloat16.
    entries : int
        Of a larger gradient so many entries are drawn.
    seed : int
        Of what is drawn.
    **options
        Passed on to a kernel and to its backward kernel.

    Returns
    -------
    report : Report
        True if all gradients are right; printed, it is a table of where they are not.

    Raises
    ------
    TypeError
        If the gradients of a function are not given, or the arguments do not fit the target.
    ValueError
        If a gradient has not the shape of its argument, or a function returns more than one number.

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
    if loss is not None and not (isinstance(target, Layer) and isinstance(loss, Loss)):
        kind = type(loss).__qualname__
        raise TypeError(f"check: loss: expected a layer such as SoftmaxWithLoss(), at the end of a network, got {kind}")
    if isinstance(target, Layer):
        about, problems = repr(target), _of_layer(target, inputs, loss, rng)
    elif is_kernel:
        about, problems = target.__name__, _of_kernel(KERNELS[target.__name__], inputs, options, rng)
        options = {}
    else:
        about, problems = getattr(target, "__name__", "function"), _of_function(target, inputs, gradients)
    if options:
        raise TypeError(f"check: unknown options for {about}: {', '.join(options)}")
    return Report(about, tuple(_compared(problem, step, tolerance, entries, rng) for problem in problems))


# ---------------------------------------------------------------------------------------------------------------------
# What is compared with what
# ---------------------------------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    """A gradient, and the function that it should be the gradient of."""

    name: str
    x: Any  # the argument
    analytic: Any
    f: Callable[[Floats], Any]
    scale: float = 0.0  # of the gradient that arrives: a gradient made of rounded results, such as y - t, is no better


def _of_kernel(
    kernel: Kernel, inputs: tuple[Any, ...], options: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[_Problem]:
    if len(inputs) > len(kernel.arguments):
        raise TypeError(f"check: {kernel.name}: expected {', '.join(kernel.arguments)}; got {len(inputs)} arguments")
    if not kernel.backward and f"d{kernel.arguments[0]}" not in kernel.results:
        other = f"{kernel.name}_value_and_grad"
        hint = other if other in KERNELS else "its forward kernel"
        raise TypeError(f"check: {kernel.name}: expected a kernel that has a gradient; check {hint}")
    given = dict(zip(kernel.arguments, inputs, strict=False))
    known = {**given, **dict(zip(kernel.results, _tuple(kernel.function(*inputs, **options)), strict=True))}
    first = kernel.results[0]
    weights: Any = 1.0
    if kernel.backward:
        backward = KERNELS[kernel.backward]
        y = np.asarray(backends.to_numpy(known[first]))
        weights = rng.normal(size=y.shape)
        upstream = backend_for(inputs[0]).asarray(weights.astype(y.dtype)) if y.ndim else float(weights)
        saved = (known[name] for name in backward.arguments[1:])
        known |= zip(backward.results, _tuple(backward.function(upstream, *saved, **options)), strict=True)
        weights = np.asarray(backends.to_numpy(upstream)).astype(FLOAT64)
    doubles = {name: x if name == "t" or x is None else _on_backend(_doubles(name, x), x) for name, x in given.items()}
    for name, x in given.items():
        if name != "t" and x is not None and f"d{name}" in known:
            f = partial(_weighed, kernel, doubles, options, name, weights)
            scale = _scale(weights, inputs[0] if np.ndim(weights) == 0 else None)
            yield _Problem(f"d{name}", x, known[f"d{name}"], f, scale)


def _weighed(
    kernel: Kernel, given: Mapping[str, Any], options: Mapping[str, Any], name: str, weights: Floats, x: Floats
) -> Any:
    """The sum of the results, each times the gradient that arrives for it, with another value for one argument."""
    arguments = {**given, name: _on_backend(x, given[name])}
    y = _tuple(kernel.function(*arguments.values(), **options))[0]
    return (weights * np.asarray(backends.to_numpy(y))).sum()


def _scale(upstream: Any, rows: Any) -> float:
    """The scale of a gradient that arrives, which a mean over `rows`, if there are some, makes smaller."""
    return float(np.max(np.abs(upstream), initial=0.0)) / (max(1, len(rows)) if np.ndim(rows) > 1 else 1)


def _of_layer(layer: Layer, inputs: tuple[Any, ...], loss: Loss | None, rng: np.random.Generator) -> Iterator[_Problem]:
    if len(inputs) != 1 + (loss is not None or isinstance(layer, Loss)):
        raise TypeError(
            f"check: {layer!r}: expected inputs, and labels with a loss (loss=...); got {len(inputs)} arguments"
        )
    x, *labels = inputs
    double, layer, loss = (
        layer.astype(FLOAT64),
        copy.deepcopy(layer),
        copy.deepcopy(loss),
    )  # the caller's stay as they are
    if isinstance(layer, Loss):
        layer.forward(x, *labels)
        dx = layer.backward()
        yield _Problem("dx", x, dx, lambda v: double.forward(_on_backend(v, x), *labels), _scale(1.0, x))
        return
    y = layer.forward(copy.deepcopy(x))
    if loss is None:
        weights = rng.normal(size=y.shape).astype(np.asarray(backends.to_numpy(y)).dtype)
        dx = layer.backward(_on_backend(weights.copy(), y))

        def end(y: Any) -> Any:
            return (weights.astype(FLOAT64) * backends.to_numpy(y)).sum()
    else:
        loss.forward(y, *labels)
        dx, end = layer.backward(loss.backward()), partial(_loss_of, loss, labels)
    scale = _scale(weights, None) if loss is None else _scale(1.0, x)
    yield _Problem("dx", x, dx, lambda v: end(double.forward(_on_backend(v, x))), scale)
    first = _doubles("x", x)
    for (name, parameter), analytic, twin in zip(layer.named_params(), layer.grads, double.params, strict=True):

        def nudged(v: Floats, twin: Any = twin) -> Any:
            twin[...] = _on_backend(v, twin)
            return end(double.forward(_on_backend(first.copy(), x)))

        yield _Problem(f"d{name}", parameter, analytic, nudged, scale)
        twin[...] = _on_backend(_doubles(name, parameter), twin)


def _loss_of(loss: Loss, labels: list[Any], y: Any) -> Any:
    return loss.forward(y, *labels)


def _of_function(f: Callable[..., Any], inputs: tuple[Any, ...], gradients: Any) -> Iterator[_Problem]:
    if gradients is None:
        raise TypeError("check: gradients: expected one for each argument of a function that is no kernel and no layer")
    if len(inputs) == 1 and not isinstance(gradients, list | tuple):
        gradients = (gradients,)
    if len(gradients) != len(inputs):
        raise TypeError(f"check: gradients: expected one for each of {len(inputs)} arguments, got {len(gradients)}")
    doubles = [_on_backend(_doubles(f"argument {i}", x), x) for i, x in enumerate(inputs)]
    names = [name for name, _ in zip(_parameters(f), inputs, strict=False)]
    names += [f"argument {i}" for i in range(len(names), len(inputs))]
    for i, (name, x, analytic) in enumerate(zip(names, inputs, gradients, strict=True)):
        if analytic is not None:
            yield _Problem(f"d{name}", x, analytic, partial(_with_another, f, doubles, i))


def _with_another(f: Callable[..., Any], arguments: Sequence[Any], position: int, x: Any) -> Any:
    """What a function returns for another value of one argument."""
    return f(*arguments[:position], _on_backend(x, arguments[position]), *arguments[position + 1 :])


def _parameters(f: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments, as far as it tells them."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return []
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------


def _compared(
    problem: _Problem, step: float | None, tolerance: float | None, entries: int, rng: np.random.Generator
) -> Gradient:
    x, analytic = _doubles(problem.name, problem.x), _doubles(problem.name, problem.analytic)
    if analytic.shape != x.shape:
        raise ValueError(f"check: {problem.name}: expected the shape of its argument, {x.shape}, got {analytic.shape}")
    if tolerance is None:
        dtype = backends.to_numpy(problem.analytic).dtype.name if hasattr(problem.analytic, "dtype") else "float64"
        tolerance = TOLERANCES.get(dtype, TOLERANCES["float64"])
    chosen = np.arange(x.size) if x.size <= entries else np.sort(rng.choice(x.size, entries, replace=False))
    y = _result(problem.f, x)
    if y.size != 1:
        raise ValueError(f"check: {problem.name}: expected a function with one number for its result, got {y.shape}")
    if not np.array_equal(y, again := _result(problem.f, x), equal_nan=True):
        raise ValueError(
            f"check: {problem.name}: expected the same result for the same argument, got {y.item()} and "
            f"{again.item()}; let what draws random numbers begin anew each time"
        )
    slopes = [_Slopes(problem.f, x, int(i), step, y) for i in chosen]
    numeric = np.array([slope.number for slope in slopes])
    largest_slope = float(np.max(np.abs(numeric[np.isfinite(numeric)]), initial=0.0))
    scale = math.sqrt(tolerance) * max(largest_slope, problem.scale)
    rounding = ULP * _epsilon(np.asarray(backends.to_numpy(problem.analytic))) * problem.scale
    largest = 0.0
    found: dict[str, list[Entry]] = {kind: [] for kind in ("wrong", "unclear", "kink")}
    for i, slope, a in zip(chosen, slopes, analytic.reshape(-1)[chosen], strict=True):
        n, error, verdict = _judged(slope, float(a), scale, tolerance, rounding, step is None)
        entry = Entry(tuple(int(j) for j in np.unravel_index(int(i), x.shape)), float(a), n, error)
        if verdict == "kink":
            entry = replace(entry, slopes=slope.kink())
        else:
            largest = np.nan if error != error else max(largest, error)
        if verdict != "right":
            found[verdict].append(entry)
    for entries_ in found.values():
        entries_.sort(key=lambda entry: -entry.error if entry.error == entry.error else -np.inf)
    wrong, unclear, kinks = (tuple(entries_) for entries_ in found.values())
    return Gradient(problem.name, x.shape, len(chosen), largest, tolerance, wrong, unclear, kinks)


def _judged(
    slopes: "_Slopes", a: float, scale: float, tolerance: float, rounding: float, may_choose: bool
) -> tuple[float, float, str]:
    """A central difference, the relative error of `a`, and whether that is right.

    Where it is not, it may be so with another step: a smaller one, if there is a kink nearby or the function is defined
    on one side only, or a larger one, if the results are rounded too much.
    """
    told, seen = False, []
    for candidate in slopes.others() if may_choose else (slopes,):
        n, size = candidate.number, max(abs(a), abs(candidate.number), scale)
        difference = abs(a - n) if a != n else 0.0  # infinity less itself is NaN
        seen.append((n, difference / size if difference and size else difference))
        if candidate.rounding > MOST_ROUNDING * size and math.isfinite(n):
            continue  # rounding would hide an error
        # With a larger step the difference itself is not so good.
        told |= candidate.step <= slopes.step or not difference <= MOST_ROUNDING * size
        if math.isfinite(difference) and difference <= tolerance * size + candidate.rounding + rounding:
            return *seen[-1], "right"
    if a == 0 and all(n == 0 for n, _ in seen):
        return *seen[0], "right"  # it does not depend on this entry at all
    if (sides := slopes.kink()) is not None:
        room = tolerance * max(map(abs, sides)) + rounding
        if min(sides) - room <= a <= max(sides) + room:
            return *seen[0], "kink"
    return *seen[0], "wrong" if told else "unclear"


class _Slopes:
    """The differences of a function to both sides of an argument, along one of its entries."""

    CLOSER = 16  # times the step

    def __init__(self, f: Callable[[Floats], Any], x: Floats, entry: int, step: float | None, y: Floats) -> None:
        self._f, self._x, self._entry, self._y = f, x, entry, y
        self._value = value = float(x.reshape(-1)[entry])
        if step is not None and not step > 0:
            raise ValueError(f"gradcheck: step: expected a positive number, got {step}")
        least = math.cbrt(_epsilon(y))
        self.step = step or max(least * math.sqrt(max(1.0, abs(value))), least**2 * abs(value))
        # The results are taken to be right to some ulp.
        self.rounding = ULP * _epsilon(y) * float(np.max(np.abs(y), initial=0.0)) / self.step
        right, self._up = self._beside(value + self.step)
        left, self._down = self._beside(value - self.step)
        self._widths = left - value, right - value
        with np.errstate(all="ignore"):  # of functions that are not finite there
            self.central: Floats = (self._up - self._down).reshape(-1) / (right - left)

    @property
    def number(self) -> float:
        """The central difference of a function with one number for its result."""
        return float(self.central.item())

    def _beside(self, value: float) -> tuple[float, Floats]:
        x = self._x.copy()
        x.reshape(-1)[self._entry] = value
        return value, _result(self._f, x).astype(FLOAT64)

    def sides(self) -> tuple[float, float]:
        """The slopes to the left and to the right."""
        left, right = self._widths
        y = self._y.astype(FLOAT64)
        with np.errstate(all="ignore"):
            return float(((self._down - y) / left).item()), float(((self._up - y) / right).item())

    def others(self) -> Iterator["_Slopes"]:
        """The same and then with other steps: smaller ones, that of an argument smaller than 1, and larger ones."""
        yield self
        for times in (1 / self.CLOSER, self.CLOSER**-2, self.CLOSER**-3):
            yield self._with(times * self.step)
        if 0 < abs(self._value) < 1:
            yield self._with(math.cbrt(_epsilon(self._y)) * abs(self._value))
        for times in (64, 64**2):
            yield self._with(times * self.step)

    def _with(self, step: float) -> "_Slopes":
        return _Slopes(self._f, self._x, self._entry, step, self._y)

    def kink(self) -> tuple[float, float] | None:
        """The slopes to the left and to the right, if with a smaller step they stay what they are, and differ.

        Where a function is smooth they approach each other; where it jumps, or is noisy, they grow.
        """
        smaller = self._with(self.step / self.CLOSER)
        sides, closer = self.sides(), smaller.sides()
        jump = abs(closer[1] - closer[0])
        stay = all(abs(a - b) <= 0.1 * jump for a, b in zip(sides, closer, strict=True))
        return closer if stay and jump > 2 * smaller.rounding else None


def _epsilon(y: npt.NDArray[Any]) -> float:
    """The machine epsilon of a dtype; that of float64 for integers."""
    if y.dtype.name == "bfloat16":  # NumPy does not know it
        return 2.0**-7
    return float(np.finfo(y.dtype if y.dtype.kind == "f" else FLOAT64).eps)


def _result(f: Callable[[Any], Any], x: Floats) -> npt.NDArray[Any]:
    y = np.asarray(backends.to_numpy(f(_given(x))))
    if y.dtype.kind not in "iub" and not is_supported(y.dtype):
        raise TypeError(f"gradcheck: expected a function with real numbers for results, got dtype {y.dtype}")
    return y


def _given(x: Floats) -> Any:
    """A number as such, an array as one that the function may keep or write to."""
    return x.copy() if x.ndim else float(x)


def _doubles(name: str, x: Any) -> Floats:
    """An argument as a NumPy array of float64."""
    array = np.asarray(backends.to_numpy(x) if hasattr(x, "dtype") else x)
    if array.dtype.kind not in "iub" and not is_supported(array.dtype):
        raise TypeError(f"gradcheck: {name}: expected real numbers, got dtype {array.dtype}")
    return array.astype(FLOAT64)


def _on_backend(x: npt.NDArray[Any], like: Any) -> Any:
    """An array where another one is."""
    return backend_for(like).asarray(x) if hasattr(like, "dtype") else x


def _tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)
