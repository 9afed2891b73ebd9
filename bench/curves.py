"""How time grows with rows, classes and threads, and at which size one backend overtakes another."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from plugrad.backends import threads
from plugrad.bench.cases import DTYPES
from plugrad.bench.sizes import NAMES, sizes_of

AGAINST = ("rows", "classes", "threads")

SMALLEST, FACTOR = 8, 4  # the first number of a curve, and the ratio of each number to the one before
LEAST_POINTS = 4  # a fit of three parameters needs more points than parameters

# A time that falls by this factor, from one number to the next larger one, was disturbed: nothing is fitted.
DISTURBED = 1.5

# The largest time must be this many times the smallest one for a fit to say anything about growth.
GROWN = 2

# Times are equal if they differ by less than this share.
EQUAL = 0.05


def points(name: str, against: str, factor: int = FACTOR) -> list[tuple[int, str]]:
    """Return the points of a curve: numbers of rows, classes or threads, each with the size of its case."""
    sizes = sizes_of(name)
    if against == "threads":
        numbers = sorted({*(2**k for k in range(9) if 2**k < threads.count()), threads.count()})
        return [(number, sizes.threads) for number in numbers]
    size, largest = sizes.rows if against == "rows" else sizes.classes
    numbers = [SMALLEST]
    while numbers[-1] * factor <= largest:
        numbers.append(numbers[-1] * factor)
    return [(number, size.format(number)) for number in numbers]


@dataclass(frozen=True)
class Curve:
    """The time of a kernel on one side, as one number of its size grows.

    Attributes
    ----------
    kernel, dtype, side : str
        The measured kernel, dtype and side.
    against : {"rows", "classes", "threads"}
        The number that grows.
    sizes : list of str
        The size of each case.
    numbers : list of int
        The number of rows, classes or threads in each case.
    seconds : list of float
        The time of each case: the least of the medians of its processes.
    """

    kernel: str
    dtype: str
    side: str
    against: str
    sizes: list[str]
    numbers: list[int]
    seconds: list[float]

    def __post_init__(self) -> None:
        if self.kernel not in NAMES or self.against not in AGAINST or self.dtype not in DTYPES:
            raise ValueError(f"curve: unknown kernel, dtype or axis: {self.kernel!r} {self.dtype!r} {self.against!r}")
        if not len(self.sizes) == len(self.numbers) == len(self.seconds) > 0:
            raise ValueError(f"curve of {self.kernel}: expected a time for each size")

    @property
    def exponent(self) -> float | None:
        """``k`` of the best fit ``time = c + a * number ** k``; None where times are too few, disturbed or constant.

        ``c`` is the time of the call itself; for threads it is 0. ``k`` is searched in hundredths; for each ``k``,
        non-negative ``a`` and ``c`` are fitted by least squares of the relative errors.
        """
        n, t = np.array(self.numbers, float), np.array(self.seconds)
        if self.against == "threads":
            return float(np.polyfit(np.log(n), np.log(t), 1)[0]) if len(n) > 1 else None
        if len(n) < LEAST_POINTS or t.max() < GROWN * t.min() or np.any(t[1:] < t[:-1] / DISTURBED):
            return None
        return float(min(np.arange(10, 301) / 100, key=lambda k: _misfit(n**k, t)))

    @property
    def shown_exponent(self) -> str:
        """The exponent with two decimals; ``-`` where there is none."""
        return "-" if self.exponent is None else f"{self.exponent:.2f}"

    def as_json(self) -> dict[str, Any]:
        """Return the curve and its exponent as JSON."""
        return {**asdict(self), "exponent": self.exponent}


def _misfit(growth: Any, t: Any) -> float:
    """Return the sum of squared relative errors of the best fit ``c + a * growth`` to the times `t`."""
    columns = np.stack([1 / t, growth / t], axis=1)
    (c, a), *_ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
    if c < 0:  # the best allowed c is then 0
        c, a = 0.0, float((growth / t).sum() / ((growth / t) ** 2).sum())
    return float(np.sum((c / t + a * growth / t - 1) ** 2)) if a > 0 else float("inf")


def groups(curves: Iterable[Curve]) -> dict[tuple[str, str, str], list[Curve]]:
    """Group the curves of all sides by kernel, dtype and the number that grows."""
    found: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in curves:
        found.setdefault((curve.kernel, curve.dtype, curve.against), []).append(curve)
    return found


def crossings(first: Curve, second: Curve) -> list[tuple[float, str]]:
    """Return the numbers at which one of two curves overtakes the other, each with the side that is then faster."""
    ratio = np.log(np.array(first.seconds) / np.array(second.seconds))
    n = np.log(np.array(first.numbers, float))
    decided = np.abs(ratio) > np.log1p(EQUAL)
    found = []
    for (a, before), (b, after) in pairwise(zip(n[decided], ratio[decided], strict=True)):
        if before * after < 0:
            at = a + (b - a) * before / (before - after)
            found.append((float(np.exp(at)), second.side if after > 0 else first.side))
    return found


def overtaking(group: list[Curve], backends: list[str]) -> list[tuple[float, str]]:
    """Return the crossings between our backends, in curves of the same kernel, dtype and growing number."""
    ours = [curve for curve in group if curve.side in backends]
    return [crossing for one, other in combinations(ours, 2) for crossing in crossings(one, other)]


def lines(curves: list[Curve], backends: list[str]) -> list[str]:
    """Return the curves as text: times, exponents, and the crossings between our backends."""
    found = []
    for (kernel, dtype, against), group in groups(curves).items():
        span = " to ".join(dict.fromkeys((group[0].sizes[0], group[0].sizes[-1])))
        found += ["", f"{kernel} {dtype}, us against {against} ({span})"]
        found += [" ".join([f"{against:>10}", *(f"{number:>10}" for number in group[0].numbers), f"{'exponent':>10}"])]
        for curve in group:
            cells = [f"{seconds * 1e6:>10.1f}" for seconds in curve.seconds]
            found.append(" ".join([f"{curve.side:>10}", *cells, f"{curve.shown_exponent:>10}"]))
        if against != "threads":
            found += [f"{name} overtakes at {number:,.0f} {against}" for number, name in overtaking(group, backends)]
    return found
