"""SciPy: the kernels among its special functions."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
from scipy import special

from plugrad.bench.cases import Case

to_numpy = np.asarray

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": special.softmax,
    "log_softmax": special.log_softmax,
    "sigmoid": special.expit,
}
NAMES: Collection[str] = FUNCTIONS.keys()


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by SciPy, with ``out=`` where the function is a ufunc."""
    call = partial(FUNCTIONS[case.name], *case.arguments(), **case.options)
    if case.new or not isinstance(FUNCTIONS[case.name], np.ufunc):
        return call
    return partial(call, out=call())
