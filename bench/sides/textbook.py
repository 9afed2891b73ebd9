"""NumPy with the formulas of textbooks, as the records of the kernels have them."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np

from plugrad.bench.cases import Case, network
from plugrad.bench.sizes import STEP
from plugrad.tests.records import RECORDS

to_numpy = np.asarray

NAMES: Collection[str] = (*RECORDS, STEP)


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by the textbook formula."""
    if case.name == STEP:
        return _step(case)
    return partial(RECORDS[case.name].textbook, *case.arguments())


def _step(case: Case) -> Callable[[], Any]:
    given = network(case)
    x, t, rate = given.x, given.t, given.x.dtype.type(given.rate)
    w1, b1, w2, b2 = given.parameters
    loss_and_gradient = RECORDS["softmax_cross_entropy_value_and_grad"].textbook

    def step() -> Any:
        h = np.maximum(x @ w1 + b1, 0)
        _, dz = loss_and_gradient(h @ w2 + b2, t)
        dw2, db2 = h.T @ dz, dz.sum(0)
        da = (dz @ w2.T) * (h > 0)
        dw1, db1 = x.T @ da, da.sum(0)
        for parameter, gradient in ((w1, dw1), (b1, db1), (w2, dw2), (b2, db2)):
            parameter -= rate * gradient
        return w1, b1, w2, b2

    return step
