"""The result of a check: its verdict, and a table of the entries that differ."""

from dataclasses import dataclass

import numpy as np

SHOWN = 10  # entries in a table


@dataclass(frozen=True)
class Entry:
    """One entry of a gradient, and the derivative computed by central differences.

    Attributes
    ----------
    index : tuple of int
        The position of the entry.
    analytic, numeric : float
        The entry, and the central difference.
    error : float
        Their difference, relative to the larger one of them. It may exceed the tolerance although the entry passes,
        where the entry is so small that rounding of the function's results explains the difference.
    slopes : tuple of float or None
        The derivatives to the left and to the right, where the function has a kink. Any value between them passes.
    """

    index: tuple[int, ...]
    analytic: float
    numeric: float
    error: float
    slopes: tuple[float, float] | None

    def __str__(self) -> str:
        index = f"[{', '.join(map(str, self.index))}]"
        text = f"{index:>12} {self.analytic:>16.9g} {self.numeric:>16.9g} "
        if self.slopes:
            left, right = (slope + 0.0 for slope in self.slopes)  # no -0
            return f"{text}{'a kink':>12}: {left:.9g} to the left, {right:.9g} to the right"
        return f"{text}{self.error:>12.3g}"


@dataclass(frozen=True)
class Gradient:
    """The comparison of the gradient with respect to one argument.

    Attributes
    ----------
    name : str
        The name of the gradient, such as ``dx``.
    shape : tuple of int
        Its shape.
    checked : int
        The number of entries that were compared.
    largest : float
        The largest relative error of these entries, kinks excluded.
    tolerance : float
        The error allowed.
    wrong, unclear, kinks : tuple of Entry
        The entries with larger errors, the worst first; the entries that cannot be judged, since their effect on the
        results is lost in rounding; the entries at kinks of the function that lie between its slopes there.
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
        wrong = f"{len(self.wrong)} wrong" + (f", {len(self.unclear)} unclear" if self.unclear else "")
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
                "  unclear entries: the results round away their effect; compute the results in float64, or pass a step"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The result of `check`: true if every gradient passed. Its text is a table of the entries that did not.

    Attributes
    ----------
    about : str
        The name of the kernel, layer or function.
    gradients : tuple of Gradient
        One for each argument.
    """

    about: str
    gradients: tuple[Gradient, ...]

    def __bool__(self) -> bool:
        return not any(gradient.wrong or gradient.unclear for gradient in self.gradients)

    def __str__(self) -> str:
        verdict = "the gradients are right" if self else "UNCLEAR"
        if any(gradient.wrong for gradient in self.gradients):
            verdict = "THE GRADIENTS ARE WRONG"
        return "\n".join([f"{self.about}: {verdict}", *map(str, self.gradients)])

    __repr__ = __str__
