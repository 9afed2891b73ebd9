"""The state of an optimizer as arrays by name: learning rates, numbers and what it keeps for each parameter."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from plugrad.kernels.optim import _schedules
from plugrad.kernels.optim._checks import at_least_0
from plugrad.kernels.optim._schedules import Schedule

# The function of a schedule -> its name, and the function that makes one of the same numbers.
SCHEDULES: dict[Any, tuple[str, Callable[..., Schedule]]] = {
    _schedules.stepped: ("step_decay", lambda lr, every, factor: _schedules.step_decay(lr, every=every, factor=factor)),
    _schedules.decayed: ("exponential_decay", lambda lr, factor: _schedules.exponential_decay(lr, factor=factor)),
    _schedules.risen_and_fallen: (
        "cosine",
        lambda lr, steps, warmup, least: _schedules.cosine(lr, steps=steps, warmup=warmup, least=least),
    ),
}
OWN = "lr.callable"  # a schedule that is no function of this package cannot be stored


def rate_by_name(lr: float | Schedule) -> dict[str, np.ndarray[Any, Any]]:
    """Return a learning rate, or the numbers of a schedule, by a name that says which."""
    if not callable(lr):
        return {"lr": np.array(float(lr))}
    if isinstance(lr, functools.partial) and lr.func in SCHEDULES and not lr.keywords:
        return {f"lr.{SCHEDULES[lr.func][0]}": np.array(lr.args, np.float64)}
    return {OWN: np.zeros(0)}


def shown_rate(lr: float | Schedule) -> str:
    """Return a learning rate or a schedule as text."""
    if isinstance(lr, functools.partial) and lr.func in SCHEDULES:
        names = lr.func.__code__.co_varnames
        return f"{SCHEDULES[lr.func][0]}({', '.join(f'{n}={v}' for n, v in zip(names, lr.args, strict=False))})"
    return str(lr)


def shapes_of_rates() -> dict[str, tuple[int, ...]]:
    """Return the names of `rate_by_name`, and the shapes."""
    counts = {name: function.__code__.co_argcount - 1 for function, (name, _) in SCHEDULES.items()}
    return {"lr": (), OWN: (0,), **{f"lr.{name}": (count,) for name, count in counts.items()}}


def rate_of(method: str, state: Mapping[str, Any], current: float | Schedule) -> float | Schedule:
    """Return the learning rate or schedule of a state that has one name of `rate_by_name`; `current` if it is OWN."""
    if OWN in state:
        if next(iter(rate_by_name(current))) != OWN:
            raise ValueError(
                f"{method}: {OWN}: expected an optimizer with the schedule that was stored, a function of the program, "
                f"got lr={current}; make the optimizer with that function"
            )
        return current
    if "lr" in state:
        return at_least_0(method, "lr", float(state["lr"]))
    for name, make in SCHEDULES.values():
        if (key := f"lr.{name}") in state:
            numbers = [int(number) if number == number // 1 else float(number) for number in state[key]]
            try:
                return make(*numbers)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{method}: {key}: {error}") from error
    raise ValueError(f"{method}: missing: lr")
