"""Everything that tests and benchmarks know of one kernel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from plugrad.kernels import KERNELS, Kernel

Array: TypeAlias = Any
Inputs: TypeAlias = dict[str, Any]

UNIT = (0.0, 1.0)
LOGARITHMS_OF_PROBABILITIES = (-np.inf, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Mistake:
    """A call that must be refused: sample arguments, some of them changed."""

    changed: Mapping[str, Any]
    error: type[Exception]
    message: str  # a regular expression that the message matches


@dataclass(frozen=True, slots=True)
class Budget:
    """The largest error of any element, for any number of classes and span of logits.

    Attributes
    ----------
    ulp : float
        In units in the last place of the number that `of` names.
    of : {"result", "exponent", "logits", "formula", "upstream"}
        The exact result itself; in float64 the result times ``max(1, |log|y / x||)``, since the argument of an
        exponential is rounded; ``max(1, |logits|, |log of the sum of exponentials|)``; the result again, added to
        the largest error of the textbook formula in float32; or, for the gradient of an elementwise kernel, the larger
        of the result and the upstream gradient.
    """

    ulp: float
    of: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """The knowledge of one kernel that tests and benchmarks share.

    Attributes
    ----------
    function : callable
        The public function.
    sample : callable
        ``sample(rng, rows, classes, dtype)`` returns arguments by name: random values, some of them outliers.
    oracle : callable
        The formula in float64, written apart from the backends and without their tricks: the kernel's arguments and
        options to a tuple of its results.
    textbook : callable
        The formula as people write it with NumPy, in the dtype of the arguments; a loss is the mean over the rows.
    passes : float
        How many times the data of one `rows` x `classes` array moves through memory, at the least.
    operations : float
        Floating-point operations for each element of that array. An exponential, a comparison or a division counts as
        one; 0 where matrix products are all that counts.
    tolerance : float
        The largest error allowed, relative to the largest magnitude of the exact result, in units of the machine
        epsilon of the dtype.
    mistakes : tuple of Mistake
        Calls on 2 x 3 samples that must fail, and how.
    terms : callable or None
        For results that are sums: the sums of the magnitudes of their terms, with the signature of `oracle`. Where
        terms cancel, their rounding errors stay. For the gradients of some elementwise kernels: the larger of result
        and upstream gradient.
    budget : Budget or None
        The bound on errors against 50 digits, element by element.
    exact : callable or None
        ``exact(mpmath, x, label, **options)``: the results for a row of mpmath numbers, and its class index, or a list
        of labels of its elements. Kernels with a budget have it.
    symbolic : callable or None
        ``symbolic(sympy, **arguments, **options)``: the results for a row of symbols, whose derivatives sympy takes.
    composed : callable or None
        For a fused kernel: the same arguments and options to the same results, by the kernels it consists of.
    domain : mapping
        Argument -> (smallest, largest) value, for arguments that are restricted, such as a probability. The checks of
        special numbers stay within it; random calls may leave it by NaN and infinities.
    subnormal : callable or None
        ``subnormal(depth, normal, tiny)``: rows of arguments whose results are subnormal, and the padding of the row,
        by name. `depth` is minus the logarithm of the smallest normal number, and 1.5.
    keeps_small_elements : bool
        Whether each element of the last result is accurate relative to itself, however small.
    variants : tuple of mappings
        Options other than the default ones with which an elementwise kernel is checked too. `oracle`, `exact`,
        `symbolic` and `terms` take them.
    given : mapping
        The options of every call, for those without a default.
    timed : mapping
        Name -> ``change(rng, sample)``, which returns options, and arguments in place of those of a sample: with these
        benchmarks time the kernel too.
    """

    function: Callable[..., Any]
    sample: Callable[[np.random.Generator, int, int, np.dtype[Any]], Inputs]
    oracle: Callable[..., tuple[Array, ...]]
    textbook: Callable[..., Any]
    passes: float
    operations: float
    tolerance: float
    mistakes: tuple[Mistake, ...] = ()
    terms: Callable[..., tuple[Array, ...]] | None = None
    budget: Budget | None = None
    exact: Callable[[Any, list[Any], Any], list[Any]] | None = None
    symbolic: Callable[..., list[Any]] | None = None
    composed: Callable[..., tuple[Any, ...]] | None = None
    domain: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    subnormal: Callable[[float, float, float], Mapping[str, tuple[list[float], float]]] | None = None
    keeps_small_elements: bool = False
    variants: tuple[Mapping[str, Any], ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    timed: Mapping[str, Callable[[np.random.Generator, Inputs], Inputs]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget is not None and self.exact is None:
            raise ValueError(f"record {self.name}: expected `exact` beside a budget")

    @property
    def kernel(self) -> Kernel:
        """The kernel's entry in the public table."""
        return KERNELS[self.function.__name__]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.function.__name__

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the array arguments, in order."""
        return self.kernel.arguments

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the keyword-only options, without ``out``."""
        return self.kernel.options

    @property
    def results(self) -> tuple[str, ...]:
        """The names of the results, in order."""
        return self.kernel.results

    @property
    def backward(self) -> str | None:
        """The name of the backward kernel."""
        return self.kernel.backward

    def __repr__(self) -> str:
        return f"<record of {self.name}>"


def double(x: Any) -> Array:
    """`x` as a float64 array."""
    return np.asarray(x).astype(np.float64)
