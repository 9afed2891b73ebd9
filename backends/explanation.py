"""Explaining the choice of a backend for a call."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends import registry
from plugrad.backends.backend import Backend, Unavailable
from plugrad.backends.choice import AUTO_ORDER, Choice
from plugrad.backends.selection import change_of_environment, chosen


class Explanation(NamedTuple):
    """Which backend a call would run on; `print` it to read it.

    Attributes
    ----------
    kernel : str
        The kernel asked about.
    backend : str or None
        The name of the backend that would run it; None if the call would fail.
    reasons : dict of str to str
        For every known backend, why it would run or why it would not.
    origin : str
        The source of the choice, such as ``PLUGRAD_BACKEND=auto``, the profile where there is one, and a remark if the
        variable has changed since it was read.
    """

    kernel: str
    backend: str | None
    reasons: dict[str, str]
    origin: str

    def __str__(self) -> str:
        width = max(map(len, self.reasons))
        lines = [f"{self.kernel} runs on {self.backend or 'no backend: the call would fail'} ({self.origin})"]
        return "\n".join([*lines, *(f"  {name:{width}}  {reason}" for name, reason in self.reasons.items())])


def explain(kernel: str | Callable[..., Any], *arrays: Any) -> Explanation:
    """Return which backend would run `kernel` on `arrays`, and why each other one would not.

    Parameters
    ----------
    kernel : str or function
        A kernel or its name.
    *arrays
        The arrays that it would be called with, by default NumPy arrays.

    Raises
    ------
    TypeError, ValueError
        If `kernel` names no kernel.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import backends, kernels as K
    >>> with backends.use("numpy"):
    ...     print(backends.explain(K.softmax, np.ones(3)).reasons["numpy"])
    selected by use('numpy')
    """
    name = registry.kernel_name("explain: kernel", kernel)
    choice = chosen()
    given = tuple(array for array in arrays if not isinstance(array, numbers.Number))  # without a gradient of a loss
    kind = type(given[0]) if given else np.ndarray
    candidates = choice.candidates_of(given[0]) if given else choice.candidates(kind)
    decision = _decide(choice, candidates, name, given)
    runs = None
    reasons: dict[str, str] = {}
    for other in registry.names():
        if other not in candidates:
            reasons[other] = _why_not_considered(other, choice, kind)
        elif isinstance(found := registry.usable(other), Unavailable):
            reasons[other] = str(found)
        elif found is not decision.backend:
            reasons[other] = decision.defeat
        elif misfit := _misfit(found, name, given):
            reasons[other] = misfit
        else:
            reasons[other] = decision.selected
            runs = found.computes(name)
    if runs is not None and runs not in candidates:
        reasons[runs] = f"stands in for {decision.backend}, which has no kernel {name!r}"
    remark = change_of_environment()
    return Explanation(name, runs, reasons, f"{decision.origin}; {remark}" if remark else decision.origin)


class _Decision(NamedTuple):
    """The backend that is selected for a call, and the reasons."""

    backend: Backend | None
    origin: str
    selected: str = ""  # why it is selected
    defeat: str = ""  # why the other candidates that can run are not


def _decide(choice: Choice, candidates: tuple[str, ...], kernel: str, arrays: tuple[Any, ...]) -> _Decision:
    backend, _ = registry.first_usable(candidates)
    if backend is None:
        return _Decision(None, choice.origin)
    # The profile goes by the array of the rows, which may come after a gradient of fewer elements.
    plain = (array for array in arrays if type(array) is np.ndarray)
    rows = max(plain, key=lambda array: (array.ndim, array.size), default=None)
    origin = choice.description
    if rows is not None and choice.is_tuned(kernel, rows):
        backend = choice.backend_of_call(kernel, rows)
        fastest = f"selected by {origin}, the fastest for {rows.size:,} elements of {rows.dtype}"
        return _Decision(backend, origin, fastest, f"{backend} is faster, by the profile")
    unmeasured = "" if rows is None or not choice.has_profile else f", where the profile says nothing of {rows.dtype}"
    return _Decision(backend, origin, f"selected by {origin}{unmeasured}", f"{backend} comes first")


def _why_not_considered(name: str, choice: Choice, kind: type) -> str:
    if not choice.is_auto:
        return f"not among the backends of {choice.origin}"
    if any(name in order for order in AUTO_ORDER.values()):
        return f"auto does not give it arrays of type {kind.__module__}.{kind.__qualname__}"
    return "auto does not consider it; select it by its name"


def _misfit(backend: Backend, kernel: str, arrays: tuple[Any, ...]) -> str | None:
    """Why `backend`, though selected, cannot compute `kernel` on `arrays`; None if it can."""
    try:
        backend.functions[kernel]
        for array in arrays:
            backend.take(kernel, array)
    except (NotImplementedError, TypeError) as error:
        return str(error)
    return None
