"""The errors of a side: against the numpy backend before anything is timed, and in units in the last place."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.bench.cases import EPSILON, SMALLEST, Case, network
from plugrad.bench.sides import Side, ours
from plugrad.bench.sizes import STEP
from plugrad.kernels import KERNELS

# The largest relative difference at which a case is timed. It separates wrong formulas from rounding.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 1e-2, "bfloat16": 0.1}

# Larger cases, by elements of the result or by multiplications of a matrix product, are not computed in float64.
EXACT, EXACT_PRODUCTS = 2**24, 2**31


def difference(case: Case, side: Side = ours) -> float:
    """Return the largest difference from the numpy backend, relative to the largest value of each result.

    The numpy backend computes the same numbers in float64, unless the case is too large. Of a step of training, the
    changes of the parameters are compared, at a large learning rate.
    """
    case = replace(case, rate=1.0)
    found = _numbers(case, _results(side, case))
    with backends.use("numpy"):
        if case.name == STEP:
            before = network(case).parameters
            expected = as_tuple(ours.prepare(case)())
            pairs = [
                (after - start, other - start) for after, other, start in zip(found, expected, before, strict=True)
            ]
        else:
            computed = ours.computed_in_float64 if _is_exact(case) else ours.computed
            pairs = list(zip(found, _numbers(case, as_tuple(computed(case))), strict=True))
    return float(np.max([_relative_difference(a, b) for a, b in pairs]))


def error(case: Case, side: Side) -> float | None:
    """Return the largest error of a side in ulp, or None without a float64 result that is more exact.

    The unit is that of each exact element where the kernel promises it, else that of the largest element: sums may
    cancel.
    """
    if case.name == STEP or case.dtype == "float64" or case.is_random or not _is_exact(case):
        return None
    found = _results(side, case)
    with backends.use("numpy"):
        exact = [np.asarray(result, np.float64) for result in as_tuple(ours.computed_in_float64(case))]
    worst = 0.0
    names = KERNELS[case.kernel].results
    for name, result, value in zip(*(_numbers(case, each) for each in (names, found, exact)), strict=True):
        of = value if case.has_exact_elements else np.max(np.abs(value), initial=0)
        dtype = "float32" if name == "loss" else case.dtype
        with np.errstate(all="ignore"):
            largest = np.max(np.abs(np.asarray(result, np.float64) - value) / _ulp(of, dtype), initial=0)
        worst = max(worst, float("inf") if np.isnan(largest) else float(largest))
    return worst


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Return several results, or a single one, as a tuple."""
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def _numbers(case: Case, results: Sequence[Any]) -> tuple[Any, ...]:
    """The results without classes: logits that are equal once they are rounded come in any order."""
    if case.name == STEP:
        return tuple(results)
    names = KERNELS[case.kernel].results
    return tuple(result for name, result in zip(names, results, strict=True) if name != "indices")


def _results(side: Side, case: Case) -> tuple[Any, ...]:
    return tuple(map(side.to_numpy, as_tuple(side.prepare(case)())))


def _is_exact(case: Case) -> bool:
    return case.elements <= EXACT and (not case.is_product or math.prod(case.shape) <= EXACT_PRODUCTS)


def _ulp(value: Any, dtype: str) -> Any:
    """Return the distance between neighbouring numbers of `dtype` at `value`."""
    _, exponent = np.frexp(np.maximum(np.abs(value), SMALLEST[dtype]))
    return np.ldexp(EPSILON[dtype], exponent - 1)


def _relative_difference(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float64).tiny))
