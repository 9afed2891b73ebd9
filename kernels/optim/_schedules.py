"""Schedules: functions from the number of a step, counted from 0, to a learning rate.

They are partial calls of functions of this module, which can be pickled and copied.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

from plugrad.backends import log
from plugrad.kernels.optim._checks import at_least_0, step_count

Schedule: TypeAlias = Callable[[int], float]


def step_decay(lr: float, *, every: int, factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies the rate by a factor after every `every` steps.

    Parameters
    ----------
    lr : float
        The initial rate.
    every : int
        The number of steps at one rate.
    factor : float
        The factor from one rate to the next.

    Returns
    -------
    schedule : callable
        Step -> rate.

    Raises
    ------
    TypeError, ValueError
        If a number is negative, or `every` is not a positive integer.

    Examples
    --------
    >>> from plugrad.kernels import optim
    >>> schedule = optim.step_decay(1.0, every=10, factor=0.5)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """
    lr, factor = at_least_0("step_decay", "lr", lr), at_least_0("step_decay", "factor", factor)
    every = step_count("step_decay", "every", every, least=1)
    return functools.partial(stepped, lr, every, factor)


def stepped(lr: float, every: int, factor: float, step: int) -> float:
    """Return the rate of `step_decay` at a step."""
    return lr * factor ** (step // every)


def exponential_decay(lr: float, *, factor: float | None = None, rate: float | None = None) -> Schedule:
    """Return a schedule that multiplies the rate by a factor in every step.

    Parameters
    ----------
    lr : float
        The initial rate.
    factor : float
        The factor from one rate to the next, in [0, 1]: what a step keeps.
    rate : float
        ``1 - factor``, in its place: what a step takes off, in [0, 1]. The logger ``plugrad`` warns of a rate above
        0.5, since other libraries give the factor this name.

    Returns
    -------
    schedule : callable
        Step -> rate.

    Raises
    ------
    TypeError, ValueError
        If a number is negative or greater than 1, or not one of `factor` and `rate` is given.

    Examples
    --------
    >>> from plugrad.kernels import optim
    >>> optim.exponential_decay(1.0, factor=0.5)(2)
    0.25
    """
    name = "exponential_decay"
    lr = at_least_0(name, "lr", lr)
    if (factor is None) is (rate is None):
        raise TypeError(f"{name}: expected factor, what a step keeps, or rate, what it takes off; got {factor}, {rate}")
    argument, value = ("factor", factor) if rate is None else ("rate", rate)
    if (number := at_least_0(name, argument, value)) > 1:
        raise ValueError(f"{name}: {argument}: expected a number in [0, 1], got {value}")
    if rate is not None and number > 0.5:
        message = "%s: rate=%s keeps %.3g of the rate in each step; factor=%s would keep that"
        log.warn(message, name, rate, 1 - number, rate)
    return functools.partial(decayed, lr, number if rate is None else 1 - number)


def decayed(lr: float, factor: float, step: int) -> float:
    """Return the rate of `exponential_decay` at a step."""
    return lr * factor**step


def cosine(lr: float, *, steps: int, warmup: int = 0, least: float = 0.0) -> Schedule:
    """Return a schedule that rises linearly, then falls as half a cosine, and stays at its lowest rate.

    Parameters
    ----------
    lr : float
        The highest rate.
    steps : int
        The step at which the lowest rate is reached.
    warmup : int
        The number of steps of the rise.
    least : float
        The lowest rate.

    Returns
    -------
    schedule : callable
        Step -> rate.

    Raises
    ------
    TypeError, ValueError
        If a number is negative, `steps` or `warmup` is not an integer, or `warmup` is greater than `steps`.

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
    lr, least = at_least_0("cosine", "lr", lr), at_least_0("cosine", "least", least)
    steps = step_count("cosine", "steps", steps, least=1)
    if (warmup := step_count("cosine", "warmup", warmup, least=0)) > steps:
        raise ValueError(f"cosine: warmup: expected at most the number of steps, {steps}, got {warmup}")

    return functools.partial(risen_and_fallen, lr, steps, warmup, least)


def risen_and_fallen(lr: float, steps: int, warmup: int, least: float, step: int) -> float:
    """Return the rate of `cosine` at a step."""
    if step >= steps:
        return least
    if step < warmup:
        return lr * (step + 1) / warmup
    share = (step - warmup) / (steps - warmup)
    return least + (lr - least) * (1 + math.cos(math.pi * share)) / 2
