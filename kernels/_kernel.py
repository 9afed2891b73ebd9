"""The table of kernels: one record per kernel, which drives its tests, its benchmarks and its row in the README."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Mistake:
    """A call that must be refused: sample arguments with `changed` put in their place."""

    changed: Mapping[str, Any]
    error: type[Exception]
    message: str  # a regular expression that the message matches


@dataclass(frozen=True, slots=True)
class Budget:
    """The largest error that a kernel may make, for any number of classes and span of logits.

    Attributes
    ----------
    ulp : float
        In units in the last place of what `of` names.
    of : {"result", "logits", "formula"}
        The exact result itself; ``max(1, |logits|, |log of the sum of exponentials|)``; or the result again, beyond the
        largest error that the textbook's formula makes in float32.
    """

    ulp: float
    of: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """What there is to know about one kernel.

    Names say how kernels belong together: a backward kernel takes the gradient ``d<result>`` of the forward kernel's
    result first, then what the forward pass saved or was given, under the forward kernel's own names, and returns
    ``d<argument>``.

    Attributes
    ----------
    function : callable
        The public function.
    formula : str
        What it computes, in one line.
    arguments : tuple of str
        The array arguments, in order.
    results : tuple of str
        The arrays it returns, in order.
    options : tuple of str
        Its other parameters, but ``out``.
    backward : str or None
        The kernel that computes the gradients of its results.
    composed : callable or None
        For a kernel that does several things at once: the same arguments and options to the same results, by the
        kernels for each of these things.
    sample : callable
        ``sample(rng, rows, classes, dtype)`` makes arguments by name: random values with outliers among them.
    mistakes : tuple of Mistake
        Calls on 2 x 3 samples that must fail, and how.
    passes : float
        How many times the data of one `rows` x `classes` array moves through memory, at the least.
    operations : float
        How many floating-point operations the formula takes for each element of that array, where an exponential, a
        comparison or a division is one like an addition; 0 where only matrix products count.
    tolerance : float
        The largest error allowed, relative to the largest magnitude of the exact result, in units of the
        machine epsilon of the dtype.
    budget : Budget or None
        What its errors are held to against 50 digits, element by element.
    """

    function: Callable[..., Any]
    formula: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    options: tuple[str, ...] = ()
    backward: str | None = None
    composed: Callable[..., tuple[Any, ...]] | None = None
    sample: "Callable[[np.random.Generator, int, int, np.dtype[Any]], Inputs]"
    mistakes: tuple[Mistake, ...] = ()
    passes: float
    operations: float
    tolerance: float
    budget: Budget | None = None

    @property
    def name(self) -> str:
        """The kernel's name: its function's."""
        return self.function.__name__

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"

    def __post_init__(self) -> None:
        if not self.function.__doc__ and sys.flags.optimize < 2:  # python -OO takes them away
            raise ValueError(f"kernel {self.name}: expected its function to have a docstring")
        if self.backward is not None and self.backward != f"{self.name}_backward":
            raise ValueError(f"kernel {self.name}: expected backward={self.name}_backward, got {self.backward}")
