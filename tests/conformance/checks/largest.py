"""The largest logits of a layer: their order, their number, and logits that are rounded."""

import itertools
from typing import Any

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.checks._check import FLOAT32, FLOAT64, check
from plugrad.tests.conformance.checks.special import extremes
from plugrad.tests.conformance.subject import DTYPES, Case, Subject, epsilon, naming_the_call
from plugrad.tests.records import Record

DType = np.dtype[Any]
NAN, INF = np.nan, np.inf


@check(cases.has_classes)
def the_order_of_largest_logits(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Equal, infinite and subnormal logits and NaN, few of them and many, and every number of the largest."""
    most, normal, _ = extremes(dtype)
    rows = (
        [0.0, 1.0, 2.0, 3.0],
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 2.0, 0.0, 2.0],
        [0.0, -0.0, normal, -normal],
        [INF, most, INF, -INF],
        [-INF, -INF, -most, -INF],
        [3.0, NAN, 2.0, NAN],
        [NAN, NAN, NAN, NAN],
        [INF, NAN, 1.0, INF],
    )
    for row, repeats in itertools.product(rows, (1, 20, 1000)):
        logits = np.tile(np.array(row, dtype), repeats)
        one, weights = np.ones((1, 1), dtype), logits[np.newaxis]
        for k in {1, 2, 3, 4, 3 * repeats, 4 * repeats}:
            inputs = {"x": one, "w": weights, "b": np.zeros(logits.size, dtype), "k": k}
            case = Case(kernel, inputs, about=f"{repeats} times the logits {row}, k {k}")
            subject.compare(case, subject.call(case))


@check(cases.has_classes)
def any_number_of_largest(subject: Subject, kernel: Record, dtype: DType) -> None:
    """From one logit to all of them, of few classes and many, of one row and several."""
    for (rows, classes), share in itertools.product(
        ((1, 1), (5, 7), (40, 64), (3, 700), (30, 2500), (1, 70_000)), (0.0, 0.003, 0.1, 1.0)
    ):
        plain = cases.sample(kernel, rows, classes, dtype)
        k = max(1, int(share * classes))
        if rows * k <= 10_000:
            case = Case(kernel, {**plain.inputs, "k": k}, about=f"{plain.about}, k {k}")
            subject.compare(case, subject.call(case))


@check(cases.has_classes, dtypes=tuple(dtype for dtype in DTYPES if dtype.itemsize == 2))
def logits_are_compared_before_they_are_rounded(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Two logits that are equal in the dtype of the results keep the order that they have in float32."""
    whole = 2 / epsilon(dtype)  # the first whole number that is followed by one that is rounded to it
    for classes in (2, 3000):
        w = np.zeros((2, classes), dtype)
        w[0, [0, -1]], w[1, -1] = whole, 1
        inputs = {"x": np.ones((3, 2), dtype), "w": w, "b": np.zeros(classes, dtype), "k": 2}
        case = Case(kernel, inputs, about=f"logits {whole:g} and {whole + 1:g}")
        subject.compare(case, subject.call(case))


@check(cases.has_classes, dtypes=(FLOAT32, FLOAT64))
def real_logits(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Logits that are rounded: values as the oracle's in order, and each class has the value that comes with it."""
    rng = np.random.default_rng(1)
    for rows, inputs, classes in ((3, 5, 8), (50, 40, 300), (7, 64, 9000)):
        shapes = {"x": (rows, inputs), "w": (inputs, classes), "b": (classes,)}
        given = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        case = Case(kernel, {**given, "k": 4}, about=f"{rows} rows of {inputs} real numbers, {classes} classes")
        got = subject.call(case)
        values, indices = (np.asarray(subject.numpy(x)) for x in got)
        with naming_the_call(subject, case):
            assert all(len(set(row)) == 4 for row in indices.tolist()), f"a class comes twice: {indices}"
            assert (np.diff(values, axis=-1) <= 0).all(), f"not in order: {values}"
        for exact in (case.expected()[0], cases.logits_of(case, indices)):  # nearly equal logits may change places
            subject.compare(case, got, (exact, indices))
