"""SciPy's special functions, as far as it has any of the kernels."""

from collections.abc import Callable
from typing import Any

from scipy import special

from plugrad.bench.cases import Case


def prepare(case: Case) -> Callable[[], Any]:
    """The case, computed by SciPy."""
    (x,), axis = case.arguments(), case.axis
    if case.name == "sigmoid":
        if case.new:
            return lambda: special.expit(x)
        out = special.expit(x)
        return lambda: special.expit(x, out=out)
    function = {"softmax": special.softmax, "log_softmax": special.log_softmax}[case.name]
    return lambda: function(x, axis=axis)
