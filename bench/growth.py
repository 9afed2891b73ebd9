"""How cost grows with rows, classes and threads, and from where on one backend overtakes another."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from plugrad.backends import threads
from plugrad.backends.profile import Steps
from plugrad.bench.cases import DTYPES, STEP
from plugrad.kernels import KERNELS

AGAINST = ("rows", "classes", "threads")

# What is made larger: {} in a size, and how far; for threads, the size that they share. They are those of a network
# for handwritten digits, and for losses and elementwise kernels up to what no cache holds.
_ROWS = {
    "rows": ("{}x100", 2**15),
    "classes": ("64x{}", 2**16),
    "threads": ("4096x1024", 0),
}
_LAYER = {
    "rows": ("{}x784x128", 2**12),
    "classes": ("64x784x{}", 2**12),
    "threads": ("1024x784x512", 0),
}
_LAST_LAYER = {
    "rows": ("{}x64x5000", 2**10),
    "classes": ("128x64x{}", 2**15),
    "threads": ("512x256x5000", 0),
}
_STEP = {
    "rows": ("{}-784-128-10", 2**12),
    "classes": ("64-784-128-{}", 2**12),
    "threads": ("1024-784-512-10", 0),
}
LEAST_POINTS = 4  # that tell three numbers
LEAST, FACTOR = 8, 4  # the first size, and how many times as large the next one is

# A curve that falls, by so much from one number to the next larger one, was disturbed, and tells nothing of growth.
DISTURBED = 1.5

# A curve that does not come to so many times its least time tells nothing of growth.
GROWN = 2

# Times that differ by less, as a share, make neither of two sides the faster one.
EQUAL = 0.05


def sizes(name: str, against: str, factor: int = FACTOR) -> list[tuple[int, str]]:
    """What is measured: numbers of rows, classes or threads, and the size of the case for each."""
    if name == STEP:
        size, most = _STEP[against]
    elif "max_workspace" in KERNELS[name].options:
        size, most = _LAST_LAYER[against]
    else:
        size, most = (_LAYER if "w" in KERNELS[name].arguments else _ROWS)[against]
    if against == "threads":
        numbers = sorted({*(2**k for k in range(9) if 2**k < threads.count()), threads.count()})
        return [(number, size) for number in numbers]
    numbers = [LEAST]
    while numbers[-1] * factor <= most:
        numbers.append(numbers[-1] * factor)
    return [(number, size.format(number)) for number in numbers]


@dataclass(frozen=True)
class Curve:
    """What a side takes for a kernel, the larger one number in its size becomes.

    Attributes
    ----------
    kernel, dtype, side : str
        What was measured.
    against : {"rows", "classes", "threads"}
        Which number.
    sizes : list of str
        The size of each case.
    numbers : list of int
        The number in each of them.
    seconds : list of float
        The time for each: the best median of all processes.
    """

    kernel: str
    dtype: str
    side: str
    against: str
    sizes: list[str]
    numbers: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float | None:
        """``k`` in ``time = c + a * number ** k``, fitted to the logarithms of the times; None if they do not grow.

        ``c`` is what a call takes by itself; for threads it is 0. The best ``k`` out of hundredths, and for each the
        best ``a`` and ``c`` of those that are not negative.
        """
        n, t = np.array(self.numbers, float), np.array(self.seconds)
        if self.against == "threads":
            return float(np.polyfit(np.log(n), np.log(t), 1)[0]) if len(n) > 1 else None
        if len(n) < LEAST_POINTS or t.max() < GROWN * t.min() or np.any(t[1:] < t[:-1] / DISTURBED):
            return None
        return float(min(np.arange(10, 301) / 100, key=lambda k: _misfit(n**k, t)))

    def as_json(self) -> dict[str, Any]:
        """What is kept of it."""
        return {**asdict(self), "exponent": self.exponent}


def _misfit(growth: Any, t: Any) -> float:
    """How far ``c + a * growth`` stays from times `t`, relative to them, at the best."""
    columns = np.stack([1 / t, growth / t], axis=1)
    (c, a), *_ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
    if c < 0:  # then 0 is the best that is allowed
        c, a = 0.0, float((growth / t).sum() / ((growth / t) ** 2).sum())
    return float(np.sum((c / t + a * growth / t - 1) ** 2)) if a > 0 else float("inf")


def curve_of(told: dict[str, Any]) -> Curve:
    """A curve from what was kept of it."""
    curve = Curve(**{name: value for name, value in told.items() if name != "exponent"})
    if curve.kernel not in (*KERNELS, STEP) or curve.against not in AGAINST or curve.dtype not in DTYPES:
        raise ValueError(f"no curve of ours: {curve.kernel!r} {curve.dtype!r} against {curve.against!r}")
    if not len(curve.sizes) == len(curve.numbers) == len(curve.seconds) > 0:
        raise ValueError(f"a curve of {curve.kernel} has no time for each size")
    return curve


def groups(curves: Iterable[Curve]) -> dict[tuple[str, str, str], list[Curve]]:
    """Curves of the same kernel, dtype and number, of all sides."""
    found: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in curves:
        found.setdefault((curve.kernel, curve.dtype, curve.against), []).append(curve)
    return found


def crossings(first: Curve, second: Curve) -> list[tuple[float, str]]:
    """Where one of two curves overtakes the other: at which number, and whose is the faster from there on."""
    ratio = np.log(np.array(first.seconds) / np.array(second.seconds))
    n = np.log(np.array(first.numbers, float))
    decided = np.abs(ratio) > np.log1p(EQUAL)
    found = []
    for (a, before), (b, after) in pairwise(zip(n[decided], ratio[decided], strict=True)):
        if before * after < 0:
            at = a + (b - a) * before / (before - after)
            found.append((float(np.exp(at)), second.side if after > 0 else first.side))
    return found


def overtaking(sides: list[Curve], backends: list[str]) -> list[tuple[float, str]]:
    """Where one of our backends overtakes another, out of curves of the same kernel, dtype and number."""
    ours = [curve for curve in sides if curve.side in backends]
    return [crossing for one, other in combinations(ours, 2) for crossing in crossings(one, other)]


def lines(curves: list[Curve], backends: list[str]) -> list[str]:
    """What is printed: each curve with its exponent, and where our backends overtake each other."""
    found = []
    for (kernel, dtype, against), sides in groups(curves).items():
        span = " to ".join(dict.fromkeys((sides[0].sizes[0], sides[0].sizes[-1])))
        found += ["", f"{kernel} {dtype}, us against {against} ({span})"]
        found += [" ".join([f"{against:>10}", *(f"{number:>10}" for number in sides[0].numbers), f"{'exponent':>10}"])]
        for curve in sides:
            exponent = "-" if curve.exponent is None else f"{curve.exponent:.2f}"
            cells = [f"{seconds * 1e6:>10.1f}" for seconds in curve.seconds]
            found.append(" ".join([f"{curve.side:>10}", *cells, f"{exponent:>10}"]))
        if against != "threads":
            found += [f"{name} overtakes at {number:,.0f} {against}" for number, name in overtaking(sides, backends)]
    return found


def tuned(curves: list[Curve]) -> dict[str, dict[str, Steps]]:
    """The steps of a profile, per kernel and dtype, from the curves of two backends against rows and classes."""
    points: dict[tuple[str, str], list[tuple[int, dict[str, float]]]] = {}
    for (kernel, dtype, _), sides in groups(curves).items():
        for i, size in enumerate(sides[0].sizes):
            elements = int(np.prod([int(number) for number in size.split("x")]))
            points.setdefault((kernel, dtype), []).append((elements, {curve.side: curve.seconds[i] for curve in sides}))
    found: dict[str, dict[str, Steps]] = {}
    for (kernel, dtype), measured in points.items():
        found.setdefault(kernel, {})[dtype] = steps_of(measured)
    return found


def steps_of(measured: Iterable[tuple[int, dict[str, float]]]) -> Steps:
    """The steps that lose the least, out of numbers of elements and what each of two backends takes for them.

    What is lost is the sum of the logarithms of how many times as long the chosen one takes as the other, so that a
    call that is measured wrongly moves no step by itself. One step at the most: the overhead of a call is in favour of
    one, the time for each element in favour of the other, or of the same.
    """
    points = sorted(measured, key=lambda point: point[0])
    first, second = points[0][1]
    starts = sorted({elements for elements, _ in points})
    candidates: list[Steps] = [[(0, first)], [(0, second)]]
    for before, after in pairwise(starts):
        between = round((before * after) ** 0.5)
        candidates += [[(0, first), (between, second)], [(0, second), (between, first)]]

    def lost(steps: Steps) -> float:
        total = 0.0
        for elements, seconds in points:
            chosen = [name for start, name in steps if start <= elements][-1]
            total += float(np.log(seconds[chosen] / min(seconds.values())))
        return total

    return min(candidates, key=lost)
