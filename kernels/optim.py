"""Optimizers: parameters updated where they are, in one pass over each; and schedules for the learning rate.

An optimizer is made of the parameters, which it keeps, and takes their gradients at each step: those of layers
(``optimizer.step(net.grads)``) or those that kernels returned. The rate is a number, or a function of the step, which
counts from 0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from plugrad.backends.options import COMPUTE, FLOAT32, FLOAT64, is_supported
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import Array, floating, overlaps_itself

__all__ = ["SGD", "Adam", "Optimizer", "Schedule", "cosine", "exponential_decay", "l2_penalty", "step_decay"]

Schedule: TypeAlias = Callable[[int], float]


class Optimizer(ABC):
    """What optimizers have in common.

    Attributes
    ----------
    params : tuple of arrays
        The parameters.
    lr : float or callable
        The learning rate, or a function that gives it for a step; may be set between steps.
    weight_decay : float
        So many times the parameter is added to its gradient: twice the factor of an L2 penalty.
    steps : int
        How many steps there have been.
    """

    def __init__(self, params: Iterable[Array], lr: float | Schedule, weight_decay: float) -> None:
        name = type(self).__name__
        if hasattr(params, "dtype"):
            raise TypeError(f"{name}: params: expected a sequence of arrays, got one array; pass (array,)")
        self.params = tuple(params)
        for position, parameter in enumerate(self.params):
            if not backend_for(parameter).owns(type(parameter)) or not is_supported(parameter.dtype):
                kind = getattr(parameter, "dtype", type(parameter).__qualname__)
                raise TypeError(f"{name}: params: {position}: expected a floating array to be updated, got {kind}")
            what = f"{name}: params: {position}"
            _check_writeable(what, parameter)
            if overlaps_itself(parameter):
                raise ValueError(
                    f"{what}: expected an array without repeated elements, got {parameter.strides} as strides"
                )
            for other in self.params[:position]:
                if type(other) is type(parameter) and backend_for(parameter).overlap(parameter, other) != "none":
                    raise ValueError(f"{what}: shares memory with another parameter; pass each once")
        self.lr = lr if callable(lr) else _at_least_0(name, "lr", lr)
        self.weight_decay = _at_least_0(name, "weight_decay", weight_decay)
        self.steps = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.params)} parameters, lr={self.lr}, {self.steps} steps done)"

    def step(self, grads: Iterable[Array]) -> None:
        """Update the parameters, given the gradient for each.

        Raises
        ------
        TypeError, ValueError
            If there is not one gradient for each parameter, of its shape and dtype; no parameter is changed then.
        """
        name, grads = type(self).__name__, _checked_grads(f"{type(self).__name__}.step", self.params, grads)
        for position, parameter in enumerate(self.params):
            _check_writeable(f"{name}: params: {position}", parameter)
        self.weight_decay = _at_least_0(name, "weight_decay", self.weight_decay)
        lr = _at_least_0(name, "lr", self.lr(self.steps) if callable(self.lr) else self.lr)
        self.steps += 1
        for position, (parameter, gradient) in enumerate(zip(self.params, grads, strict=True)):
            self._update(position, parameter, gradient, lr)

    @abstractmethod
    def _update(self, position: int, parameter: Array, gradient: Array, lr: float) -> None:
        """Update one parameter."""

    def _states(self) -> tuple[Array, ...]:
        """Zeros for each parameter, in the dtype that it is computed in."""
        states = tuple(backend_for(p).empty(p.shape, COMPUTE[p.dtype]) for p in self.params)
        for state in states:
            state[...] = 0
        return states


class SGD(Optimizer):
    """Stochastic gradient descent.

    ``d = g + weight_decay p``, ``v = momentum v + d``, ``p -= lr v``; with `nesterov`, ``p -= lr (d + momentum v)``.

    Parameters
    ----------
    params : iterable of arrays
        The parameters, float16, bfloat16, float32 or float64. They are updated where they are.
    lr : float or callable
        The learning rate, or a schedule.
    momentum : float
        In [0, 1).
    nesterov : bool
        Take the slope a step ahead.
    weight_decay : float
        Shrinks the parameters: the gradient of an L2 penalty of ``weight_decay / 2`` times the sum of their squares.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no floating array that can be written, or a number is out of its range.

    Notes
    -----
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, with the rate applied
    to the velocity, as PyTorch does it: the two differ where the rate changes. The velocity of 16-bit parameters is
    kept in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import optim
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = optim.SGD([w], lr=0.1, momentum=0.9)
    >>> optimizer.step([np.array([1.0, 1.0])])
    >>> w
    array([0.9, 1.9])
    """

    def __init__(
        self,
        params: Iterable[Array],
        lr: float | Schedule = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        self._momentum = _share("SGD", "momentum", momentum)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov: expected a momentum greater than 0 with it, got 0")
        self.nesterov = bool(nesterov)
        self.velocities = self._states() if momentum else (None,) * len(self.params)

    @property
    def momentum(self) -> float:
        """How much of the velocity is kept from step to step; there are velocities only if it is more than 0."""
        return self._momentum

    def _update(self, position: int, parameter: Array, gradient: Array, lr: float) -> None:
        options = lr, self.momentum, self.nesterov, self.weight_decay
        backend_for(parameter).functions["sgd"](parameter, gradient, self.velocities[position], *options)


class Adam(Optimizer):
    """Adam: steps of about the rate in each direction, whatever the size of the gradient.

    ``d = g + weight_decay p``, ``m = beta1 m + (1 - beta1) d``, ``v = beta2 v + (1 - beta2) d^2``,
    ``p -= lr m' / (sqrt(v') + eps)`` with ``m' = m / (1 - beta1^t)`` and ``v' = v / (1 - beta2^t)`` at step t, from 1.

    Parameters
    ----------
    params : iterable of arrays
        The parameters, float16, bfloat16, float32 or float64. They are updated where they are.
    lr : float or callable
        The learning rate, or a schedule.
    betas : tuple of float
        How much is kept of the mean of the gradients and of that of their squares; in [0, 1).
    eps : float
        Added to the root.
    weight_decay : float
        As for `SGD`.

    Raises
    ------
    TypeError, ValueError
        As for `SGD`.

    Notes
    -----
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015, with the constants that they recommend. The means
    for 16-bit parameters are kept in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import optim
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = optim.Adam([w], lr=0.1)
    >>> optimizer.step([np.array([1e-3, -1e3])])
    >>> w.round(5)
    array([0.9, 2.1])
    """

    def __init__(
        self,
        params: Iterable[Array],
        lr: float | Schedule = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"Adam: betas: expected two numbers, got {betas!r}")
        self.betas = _share("Adam", "betas", betas[0]), _share("Adam", "betas", betas[1])
        self.eps = _at_least_0("Adam", "eps", eps)
        self.means, self.squares = self._states(), self._states()

    def _update(self, position: int, parameter: Array, gradient: Array, lr: float) -> None:
        beta1, beta2 = self.betas
        step, root = lr / (1 - beta1**self.steps), math.sqrt(1 - beta2**self.steps)
        arrays = parameter, gradient, self.means[position], self.squares[position]
        backend_for(parameter).functions["adam"](*arrays, step, root, beta1, beta2, self.eps, self.weight_decay)


def step_decay(lr: float, *, every: int, factor: float = 0.1) -> Schedule:
    """A rate that is multiplied by a factor after so many steps, each time.

    Parameters
    ----------
    lr : float
        The rate at first.
    every : int
        Steps.
    factor : float
        What it is multiplied by.

    Returns
    -------
    schedule : callable
        Step -> rate.

    Raises
    ------
    TypeError, ValueError
        If a number is negative, or `every` is no positive integer.

    Examples
    --------
    >>> from plugrad.kernels import optim
    >>> schedule = optim.step_decay(1.0, every=10, factor=0.5)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """
    lr, factor = _at_least_0("step_decay", "lr", lr), _at_least_0("step_decay", "factor", factor)
    every = _steps("step_decay", "every", every, least=1)
    return lambda step: lr * factor ** (step // every)


def exponential_decay(lr: float, *, rate: float) -> Schedule:
    """A rate that is multiplied by ``1 - rate`` at every step.

    Parameters
    ----------
    lr : float
        The rate at first.
    rate : float
        How much of it is lost in a step, in [0, 1].

    Returns
    -------
    schedule : callable
        Step -> rate.

    Raises
    ------
    TypeError, ValueError
        If a number is negative, or `rate` is more than 1.

    Examples
    --------
    >>> from plugrad.kernels import optim
    >>> optim.exponential_decay(1.0, rate=0.5)(2)
    0.25
    """
    lr, rate = _at_least_0("exponential_decay", "lr", lr), _at_least_0("exponential_decay", "rate", rate)
    if rate > 1:
        raise ValueError(f"exponential_decay: rate: expected a number in [0, 1], got {rate}")
    return lambda step: lr * (1 - rate) ** step


def cosine(lr: float, *, steps: int, warmup: int = 0, least: float = 0.0) -> Schedule:
    """A rate that rises evenly for some steps, then falls as half a cosine does, and stays.

    Parameters
    ----------
    lr : float
        The highest rate.
    steps : int
        At which it has come down.
    warmup : int
        Steps to rise.
    least : float
        What it comes down to.

    Returns
    -------
    schedule : callable
        Step -> rate.

    Raises
    ------
    TypeError, ValueError
        If a number is negative, `steps` and `warmup` are no integers, or `warmup` is more than `steps`.

    Notes
    -----
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.

    Examples
    --------
    >>> from plugrad.kernels import optim
    >>> schedule = optim.cosine(1.0, steps=100, warmup=10)
    >>> [round(schedule(step), 3) for step in (0, 9, 10, 55, 100, 200)]
    [0.1, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    lr, least = _at_least_0("cosine", "lr", lr), _at_least_0("cosine", "least", least)
    steps = _steps("cosine", "steps", steps, least=1)
    if (warmup := _steps("cosine", "warmup", warmup, least=0)) > steps:
        raise ValueError(f"cosine: warmup: expected at most as many steps as in all, {steps}, got {warmup}")

    def schedule(step: int) -> float:
        if step >= steps:
            return least
        if step < warmup:
            return lr * (step + 1) / warmup
        share = (step - warmup) / (steps - warmup)
        return least + (lr - least) * (1 + math.cos(math.pi * share)) / 2

    return schedule


def l2_penalty(params: Iterable[Array], factor: float, *, grads: Iterable[Array] | None = None) -> Any:
    """An L2 penalty, ``factor * sum(p^2)`` over all parameters, and its gradient, ``2 factor p``.

    Parameters
    ----------
    params : iterable of arrays
        The parameters.
    factor : float
        What the sum of the squares is multiplied by.
    grads : iterable of arrays, optional
        The gradients of the loss, to which those of the penalty are added where they are. Without them, use
        ``weight_decay=2 * factor``, which is the same and costs nothing.

    Returns
    -------
    penalty : number or array without dimensions
        To be added to the loss; on a GPU it stays there. float64 for float64 parameters, else float32.

    Raises
    ------
    TypeError
        If a parameter is complex, text or objects, or a gradient is no array of its dtype.
    ValueError
        If there are not as many gradients as parameters, one has another shape or cannot be written, or the factor is
        negative.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import optim
    >>> w, dw = np.array([3.0, 4.0]), np.zeros(2)
    >>> float(optim.l2_penalty([w], 0.5, grads=[dw])), dw
    (12.5, array([3., 4.]))
    """
    factor = _at_least_0("l2_penalty", "factor", factor)
    params = tuple([floating("l2_penalty", "params", parameter, backend_for(parameter)) for parameter in params])
    given = None if grads is None else _checked_grads("l2_penalty", params, grads)
    for position, gradient in enumerate(given or ()):
        _check_writeable(f"l2_penalty: grads: {position}", gradient)
    total: Any = np.float64(0)
    dtype = FLOAT32
    with np.errstate(all="ignore"):  # what a dtype cannot hold becomes infinite, or 0
        for parameter in params:
            flat = parameter.reshape(-1).astype(FLOAT64, copy=False)  # float32 would lose digits where there are many
            total, dtype = total + flat @ flat, max(dtype, COMPUTE[parameter.dtype])
        for parameter, gradient in zip(params, given or (), strict=False):
            wide = COMPUTE[parameter.dtype]
            gradient[...] = gradient.astype(wide, copy=False) + 2 * factor * parameter.astype(wide, copy=False)
        return (factor * total).astype(dtype)


def _checked_grads(what: str, params: tuple[Array, ...], grads: Iterable[Array]) -> tuple[Array, ...]:
    """One gradient for each parameter, of its shape and dtype."""
    grads = tuple(grads)
    if len(grads) != len(params):
        raise ValueError(f"{what}: grads: expected {len(params)}, one for each parameter, got {len(grads)}")
    for position, (parameter, gradient) in enumerate(zip(params, grads, strict=True)):
        backend = backend_for(parameter)
        if not backend.owns(type(gradient)) or gradient.dtype != parameter.dtype:
            kind = getattr(gradient, "dtype", type(gradient).__qualname__)
            raise TypeError(f"{what}: grads: {position}: expected an array of {parameter.dtype}, got {kind}")
        if gradient.shape != parameter.shape:
            raise ValueError(f"{what}: grads: {position}: expected shape {parameter.shape}, got {gradient.shape}")
        if backend.overlap(parameter, gradient) == "partial":
            raise ValueError(f"{what}: grads: {position}: shares part of its memory with the parameter; pass a copy")
    return grads


def _check_writeable(what: str, array: Array) -> None:
    if not getattr(array.flags, "writeable", True):
        raise ValueError(f"{what}: expected an array that can be written, got a read-only one")


def _at_least_0(name: str, argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise TypeError(f"{name}: {argument}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # of an integer
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: {argument}: expected a finite number of at least 0, got {value}")
    return number


def _steps(name: str, argument: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: {argument}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: {argument}: expected an integer of at least {least}, got {value}")
    return int(value)


def _share(name: str, argument: str, value: Any) -> float:
    if not (number := _at_least_0(name, argument, value)) < 1:
        raise ValueError(f"{name}: {argument}: expected a number in [0, 1), got {value}")
    return number
