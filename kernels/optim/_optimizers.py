"""Optimizers."""

from __future__ import annotations

import functools
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np

from plugrad import backends
from plugrad.backends import log
from plugrad.backends.backend import Backend
from plugrad.backends.contract import Update
from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for, recorder
from plugrad.kernels import _files
from plugrad.kernels._arguments import Array
from plugrad.kernels._state import State, check_mapping, checked_state
from plugrad.kernels.optim._checks import (
    arrays_of,
    at_least_0,
    backend_if_ready,
    check_updatable,
    check_writeable,
    checked_grads,
    share_below_1,
    switch,
    two_shares,
    views_of,
)
from plugrad.kernels.optim._schedules import Schedule
from plugrad.kernels.optim._state import rate_by_name, rate_of, shapes_of_rates, shown_rate

# The fields of an `Update`, in a tuple that takes less time to make.
Step: TypeAlias = tuple[str, tuple[Sequence[Array | None], ...], tuple[float, ...]]

Numbers: TypeAlias = Mapping[str, Callable[[str, str, Any], Any]]


class Optimizer(ABC):
    """The base class of optimizers.

    Attributes
    ----------
    params : tuple of arrays
        The parameters; those given as tensors of PyTorch are views of their memory.
    lr : float or callable
        The learning rate, or a schedule; may be set between steps.
    weight_decay : float
        The factor of the parameter that is added to its gradient: twice the factor of an L2 penalty.
    steps : int
        The number of steps done.

    Notes
    -----
    An optimizer that is pickled or copied with its network stays that network's. One that is pickled by itself has
    parameters of its own. At its first step the logger ``plugrad`` warns of this once. Make the optimizer with the
    network's parameters instead, and `load` its state.
    """

    # The attributes that a state stores: arrays for the parameters, and numbers with their checks.
    ARRAYS: ClassVar[tuple[str, ...]] = ()
    NUMBERS: ClassVar[Numbers] = {"weight_decay": at_least_0}
    _is_copy = False
    _loaded = 0  # how many states were loaded

    def __init__(self, params: Iterable[Array], lr: float | Schedule, *, weight_decay: float) -> None:
        name = type(self).__name__
        self.params = arrays_of(name, "params", params, are_written=True)
        check_updatable(f"{name}: params", self.params)
        self.lr = lr if callable(lr) else at_least_0(name, "lr", lr)
        self.weight_decay = at_least_0(name, "weight_decay", weight_decay)
        self.steps = 0

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.params)} parameters, lr={shown_rate(self.lr)}, {self.steps} steps done)"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look at the first step whether the parameters are a network's."""
        vars(self).update(state, _is_copy=True)

    def __copy__(self) -> Self:
        """Return an optimizer of the same parameters with a state of its own."""
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        for name in self.ARRAYS:
            arrays = getattr(self, name)
            setattr(other, name, tuple(None if array is None else array.copy() for array in arrays))
        return other

    def _tell_if_detached(self) -> None:
        """Log that nothing but a copied optimizer holds one of its parameters."""
        self._is_copy = False
        alone = max(_references((object(),)))  # what the tuple and the look at it hold
        if any(count <= alone for count in _references(self.params)):
            log.warn(
                "%s: the optimizer was copied or loaded without its network: its steps update copies of the "
                "parameters, which nothing else holds; make it with the parameters of the network and load its "
                "state_dict(), or copy or pickle both together",
                type(self).__name__,
            )

    # -----------------------------------------------------------------------------------------------------------------
    # The state by name
    # -----------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return copies of the state by name, as NumPy arrays: with it, training goes on with the same bits.

        It has the count of steps, the rate or the schedule, the other numbers and what is kept for each parameter, but
        not the parameters. The names begin with that of the class. A schedule that is a function of the program has
        only its place: make the optimizer with the function before `load_state_dict`.
        """
        kind = type(self).__name__
        named = {"steps": np.array(self.steps), **rate_by_name(self.lr)}
        named |= {name: np.array(getattr(self, name), np.float64) for name in self.NUMBERS}
        named |= {name: np.array(backends.to_numpy(array), order="C") for name, array in self._named_arrays().items()}
        return {f"{kind}.{name}": value for name, value in named.items()}

    def load_state_dict(self, state: State) -> None:
        """Copy a state, as `state_dict` returns it, into this optimizer, which keeps its parameters.

        Raises
        ------
        TypeError
            If a value is not an array of numbers.
        ValueError
            If the state is that of another class or of other parameters, a name is missing or unknown, a shape
            differs, a number is out of its range, or a value would lose digits. Nothing is changed in either case.

        Examples
        --------
        >>> import numpy as np
        >>> from plugrad.kernels import optim
        >>> optimizer = optim.SGD([np.zeros(2)], lr=optim.cosine(0.1, steps=9), momentum=0.9)
        >>> optimizer.step([np.ones(2)])
        >>> other = optim.SGD([np.zeros(2)], momentum=0.5)
        >>> other.load_state_dict(optimizer.state_dict())
        >>> other.steps, other.momentum, other.velocities[0]
        (1, 0.9, array([1., 1.]))
        """
        kind = type(self).__name__
        method = f"{kind}.load_state_dict"
        check_mapping(method, state)
        if not any(str(key).startswith(f"{kind}.") for key in state):
            found = ", ".join(sorted(map(str, state))[:4])
            raise ValueError(
                f"{method}: expected names such as {kind}.steps, of the state of {kind}, got {found or 'none'}"
            )
        arrays = self._named_arrays()
        shapes = shapes_of_rates()
        rate = next((name for name in shapes if f"{kind}.{name}" in state), "lr")
        targets: dict[str, Any] = {"steps": np.array(0), rate: np.zeros(shapes[rate])}
        targets |= {name: np.zeros(np.shape(getattr(self, name))) for name in self.NUMBERS} | arrays
        named = {f"{kind}.{name}": target for name, target in targets.items()}
        checked = checked_state(method, state, named, "an optimizer of parameters of {}")
        found_state = {name: checked[f"{kind}.{name}"] for name in targets}
        if (steps := int(found_state["steps"])) < 0:
            raise ValueError(f"{method}: {kind}.steps: expected at least 0, got {steps}")
        lr = rate_of(method, found_state, self.lr)
        numbers = {name: check(method, name, found_state[name].tolist()) for name, check in self.NUMBERS.items()}
        for name, array in arrays.items():
            array[...] = backend_for(array).asarray(found_state[name])
        for name, number in numbers.items():
            setattr(self, "_momentum" if name == "momentum" else name, number)
        self.lr, self.steps = lr, steps
        self._loaded += 1

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a ``.npz`` file, or to ``.safetensors``, which needs that package.

        The file appears whole or not at all. It has no parameters: `save` of the network stores them.
        """
        _files.write(f"{type(self).__name__}.save", path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the state from a file that `save` has written; no code in the file is ever run.

        Raises
        ------
        TypeError, ValueError
            As for `load_state_dict`, and a `ValueError` if the contents of the file do not fit its suffix. The message
            names the file.
        """
        kind = type(self).__name__
        shapes = {name: value.shape for name, value in self.state_dict().items()}
        shapes |= {f"{kind}.{name}": shape for name, shape in shapes_of_rates().items()}
        state = _files.read(f"{kind}.load", path, shapes)
        with _files.naming(path):
            self.load_state_dict(state)

    def _named_arrays(self) -> dict[str, Array]:
        """The arrays that are kept for parameters, by names such as ``means.0``."""
        return {
            f"{name}.{position}": array
            for name in self.ARRAYS
            for position, array in enumerate(getattr(self, name))
            if array is not None
        }

    # -----------------------------------------------------------------------------------------------------------------
    # Steps
    # -----------------------------------------------------------------------------------------------------------------

    def step(self, grads: Iterable[Array]) -> None:
        """Update the parameters in place, given their gradients.

        In a block of `plugrad.kernels.capture` the step itself is recorded: each replay counts a step, and reads the
        rate, the schedule and the other numbers anew.

        Raises
        ------
        TypeError, ValueError
            If there is not one gradient for each parameter, of its shape and dtype, or a parameter has been replaced or
            resized, so that it does not fit its state; then no parameter is changed, and the step does not count.
        """
        name, params = type(self).__name__, self.params
        if type(grads) is not tuple:
            grads = tuple(grads) if type(grads) is list else arrays_of(f"{name}.step", "grads", grads)
        if (backend := backend_if_ready(params, grads)) is None:
            grads = views_of(f"{name}.step: grads", grads)
            self._check_step(grads)
        if self._is_copy:
            self._tell_if_detached()
        self._compute(self._next_update(grads), backend)
        if (recording := recorder() if backend is None else backend.recorder) is not None:
            update = functools.partial(self._update_of_replay, grads)
            recording.record(name.lower(), self._replay, (grads,), params, update=update)

    def _check_step(self, grads: tuple[Array, ...]) -> None:
        """Refuse gradients that do not fit, and parameters that cannot be written."""
        name = type(self).__name__
        checked_grads(f"{name}.step", self.params, grads)
        for position, parameter in enumerate(self.params):
            check_writeable(f"{name}: params: {position}", parameter)

    def _replay(self, grads: tuple[Array, ...]) -> None:
        """Count and make a step, for gradients that were checked when the step was captured."""
        self._compute(self._update_of_replay(grads))

    def _compute(self, update: Step, backend: Backend | None = None) -> None:
        """Update the parameters by one call, if all have the `backend` or a common type."""
        name, arrays, numbers = update
        if backend is None and len(set(map(type, self.params))) == 1:
            backend = backend_for(self.params[0])
        if backend is not None:
            backend.functions[name](*arrays, *numbers)
            return
        for one in zip(*arrays, strict=True):
            backend_for(one[0]).functions[name](*[(array,) for array in one], *numbers)

    def _next_update(self, grads: tuple[Array, ...]) -> Step:
        """Count a step, and return what it has to compute."""
        decay, lr = self.weight_decay, self.lr
        if not (type(decay) is float and 0 <= decay < math.inf):
            self.weight_decay = at_least_0(type(self).__name__, "weight_decay", decay)
        if callable(lr):
            lr = lr(self.steps)
        if not (type(lr) is float and 0 <= lr < math.inf):
            lr = at_least_0(type(self).__name__, "lr", lr)
        update = self._update(grads, lr, self.steps + 1)
        states = update[1][2]  # or None for each parameter
        if (known := len(states)) < (count := len(self.params)):
            raise ValueError(f"{type(self).__name__}: params: expected at most as many as at first, got {count}")
        if states and states[0] is not None:
            self._check_states(states)
        self.steps += 1
        if known == count:
            return update
        # `params` was replaced; the states have the length that they had at first.
        name, arrays, numbers = update
        return name, tuple([each[:count] for each in arrays]), numbers

    def _check_states(self, states: Sequence[Array | None]) -> None:
        """Refuse parameters that were replaced by larger ones: a backend would write past the end of their states."""
        for position, (parameter, state) in enumerate(zip(self.params, states, strict=False)):
            if state is not None and not (
                state.shape == parameter.shape and state.dtype == COMPUTE.get(parameter.dtype)
            ):
                raise ValueError(
                    f"{type(self).__name__}: params: {position}: expected shape and dtype as at first, got shape "
                    f"{parameter.shape} of {parameter.dtype} with a state of shape {state.shape} of {state.dtype}; "
                    f"make a new optimizer"
                )

    def _update_of_replay(self, grads: tuple[Array, ...]) -> Update:
        """Count a step, and return what it has to compute; refuse parameters that were replaced by larger ones."""
        for position, (parameter, gradient) in enumerate(zip(self.params, grads, strict=False)):
            if parameter.shape != gradient.shape:
                raise ValueError(
                    f"{type(self).__name__}: params: {position}: expected shape {gradient.shape}, that of the gradient "
                    f"that was captured, got {parameter.shape}; capture again"
                )
        return Update(*self._next_update(grads))

    @abstractmethod
    def _update(self, grads: tuple[Array, ...], lr: float, number: int) -> Step:
        """Return what a step has to compute, given the gradients, the rate and its number, from 1."""

    def _states(self) -> tuple[Array, ...]:
        """Return zeros for each parameter, in the dtype of its computations."""
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
        The parameters, float16, bfloat16, float32 or float64. They are updated in place.
    lr : float or callable
        The learning rate, or a schedule.
    momentum : float
        The share of the velocity that a step keeps, in [0, 1).
    nesterov : bool
        Use Nesterov's momentum: the gradient a step ahead.
    weight_decay : float
        The factor of the parameter that is added to its gradient, as by an L2 penalty of ``weight_decay / 2`` times
        the sum of squares.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not a writeable floating array, or a number is out of its range.

    Notes
    -----
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013. As in PyTorch the rate
    multiplies the velocity instead of the gradient, which differs where the rate changes. The velocity of 16-bit
    parameters is kept in float32.

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

    ARRAYS = ("velocities",)
    NUMBERS: ClassVar[Numbers] = {**Optimizer.NUMBERS, "momentum": share_below_1, "nesterov": switch}

    def __init__(
        self,
        params: Iterable[Array],
        lr: float | Schedule = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        self._momentum = share_below_1("SGD", "momentum", momentum)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov: expected a momentum greater than 0 with it, got 0")
        self.nesterov = bool(nesterov)
        self.velocities = self._states() if momentum else (None,) * len(self.params)

    @property
    def momentum(self) -> float:
        """The share of the velocity that a step keeps; fixed, as there are no velocities without momentum."""
        return self._momentum

    def _update(self, grads: tuple[Array, ...], lr: float, number: int) -> Step:
        numbers = lr, self.momentum, self.nesterov, self.weight_decay
        return "sgd", (self.params, grads, self.velocities), numbers


class Adam(Optimizer):
    """Adam: steps whose size is about the learning rate, whatever the size of the gradient.

    ``d = g + weight_decay p``, ``m = beta1 m + (1 - beta1) d``, ``v = beta2 v + (1 - beta2) d^2``,
    ``p -= lr m' / (sqrt(v') + eps)`` with ``m' = m / (1 - beta1^t)`` and ``v' = v / (1 - beta2^t)`` at step t, from 1.

    Parameters
    ----------
    params : iterable of arrays
        The parameters, float16, bfloat16, float32 or float64. They are updated in place.
    lr : float or callable
        The learning rate, or a schedule.
    betas : tuple of float
        The shares of the mean gradient and of the mean squared gradient that a step keeps, in [0, 1).
    eps : float
        A number added to the root, against division by 0.
    weight_decay : float
        As for `SGD`.

    Raises
    ------
    TypeError, ValueError
        As for `SGD`.

    Notes
    -----
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015, with the constants that they recommend. The means
    of 16-bit parameters are kept in float32.

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

    ARRAYS = ("means", "squares")
    NUMBERS: ClassVar[Numbers] = {**Optimizer.NUMBERS, "betas": two_shares, "eps": at_least_0}

    def __init__(
        self,
        params: Iterable[Array],
        lr: float | Schedule = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        name = type(self).__name__
        self.betas, self.eps = two_shares(name, "betas", betas), at_least_0(name, "eps", eps)
        self.means, self.squares = self._states(), self._states()

    def _step_and_root(self, lr: float, number: int) -> tuple[float, float]:
        """Return the rate and the divisor of the root with what makes up for means that began at 0."""
        beta1, beta2 = self.betas
        return lr / (1 - beta1**number), math.sqrt(1 - beta2**number)

    def _update(self, grads: tuple[Array, ...], lr: float, number: int) -> Step:
        numbers = *self._step_and_root(lr, number), *self.betas, self.eps, self.weight_decay
        return "adam", (self.params, grads, self.means, self.squares), numbers


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 - lr weight_decay``, then the step of Adam without decay.

    Parameters
    ----------
    params, lr, betas, eps
        As for `Adam`.
    weight_decay : float
        The share of the parameter that a step with a rate of 1 would take off.

    Raises
    ------
    TypeError, ValueError
        As for `SGD`.

    Notes
    -----
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. The decay is no part of the gradient, so that
    Adam does not scale it.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import optim
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = optim.AdamW([w], lr=0.1, weight_decay=0.5)
    >>> optimizer.step([np.array([1e-3, -1e3])])
    >>> w.round(5)
    array([0.85, 2.  ])
    """

    def __init__(
        self,
        params: Iterable[Array],
        lr: float | Schedule = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, grads: tuple[Array, ...], lr: float, number: int) -> Step:
        numbers = *self._step_and_root(lr, number), *self.betas, self.eps, 1 - lr * self.weight_decay
        return "adamw", (self.params, grads, self.means, self.squares), numbers


class RMSprop(Optimizer):
    """RMSprop: each gradient divided by the root of the mean of its square.

    ``d = g + weight_decay p``, ``s = alpha s + (1 - alpha) d^2``, ``p -= lr d / (sqrt(s) + eps)``. With `centered`,
    ``s - m^2`` takes the place of s, with ``m = alpha m + (1 - alpha) d``: the variance. With `momentum`,
    ``v = momentum v + d / (sqrt(s) + eps)`` and ``p -= lr v``.

    Parameters
    ----------
    params : iterable of arrays
        The parameters, float16, bfloat16, float32 or float64. They are updated in place.
    lr : float or callable
        The learning rate, or a schedule.
    alpha : float
        The share of the mean square that a step keeps, in [0, 1).
    eps : float
        A number added to the root, against division by 0.
    weight_decay : float
        As for `SGD`.
    momentum : float
        The share of the velocity that a step keeps, in [0, 1).
    centered : bool
        Divide by the root of the variance.

    Raises
    ------
    TypeError, ValueError
        As for `SGD`.

    Notes
    -----
    Tieleman and Hinton, "Lecture 6.5 - RMSprop", 2012; centered as by Graves, "Generating sequences with recurrent
    neural networks", 2013. As in PyTorch, except that a variance that rounding leaves below 0 counts as 0 there, where
    PyTorch's root is NaN. The means of 16-bit parameters are kept in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import optim
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = optim.RMSprop([w], lr=0.1, alpha=0.75)
    >>> optimizer.step([np.array([1e-3, -1e3])])
    >>> w.round(3)
    array([0.8, 2.2])
    """

    ARRAYS = ("squares", "means", "velocities")
    NUMBERS: ClassVar[Numbers] = {
        **Optimizer.NUMBERS,
        "alpha": share_below_1,
        "eps": at_least_0,
        "momentum": share_below_1,
    }

    def __init__(
        self,
        params: Iterable[Array],
        lr: float | Schedule = 0.01,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        self.alpha = share_below_1("RMSprop", "alpha", alpha)
        self.eps = at_least_0("RMSprop", "eps", eps)
        self._momentum = share_below_1("RMSprop", "momentum", momentum)
        nothing = (None,) * len(self.params)
        self.squares = self._states()
        self.means = self._states() if centered else nothing
        self.velocities = self._states() if momentum else nothing

    @property
    def momentum(self) -> float:
        """The share of the velocity that a step keeps; fixed, as there are no velocities without momentum."""
        return self._momentum

    def _update(self, grads: tuple[Array, ...], lr: float, number: int) -> Step:
        numbers = lr, self.alpha, self.eps, self.momentum, self.weight_decay
        return "rmsprop", (self.params, grads, self.squares, self.means, self.velocities), numbers


def _references(objects: tuple[Any, ...]) -> list[int]:
    """The number of references to each object of a tuple."""
    return [sys.getrefcount(each) for each in objects]
