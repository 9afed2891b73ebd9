"""Shares of rows that are right: ties, NaN, labels that name no class, rows that do not count."""

import itertools
import re
from typing import Any

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.checks.errors import assert_untouched, modes, raised, untouched
from plugrad.tests.conformance.checks.special import extremes
from plugrad.tests.conformance.subject import Case, Subject, naming_the_call
from plugrad.tests.records import Record

DType = np.dtype[Any]
NAN, INF = np.nan, np.inf


@check(cases.is_accuracy)
def the_order_of_logits(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Every label and number of largest logits of single rows: equal, infinite and subnormal ones, and NaN."""
    most, _, tiny = extremes(dtype)
    rows = (
        [0.0, 1.0, 2.0, 3.0],
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 2.0, 0.0, 2.0],
        [0.0, -0.0, tiny, -tiny],
        [INF, most, INF, -INF],
        [-INF, -INF, -most, -INF],
        [3.0, NAN, 2.0, 1.0],
        [NAN, NAN, NAN, NAN],
    )
    for row, label, k in itertools.product(rows, range(4), range(1, 5)):
        inputs = {"x": np.array([row], dtype), "t": np.array([label]), "k": k}
        case = Case(kernel, inputs, about=f"label {label} of {row}, k {k}")
        subject.compare(case, subject.call(case))


@check(cases.is_accuracy)
def rows_that_count(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Along any axis, with ignored labels of any dtype, few rows and many; 0 where nothing counts."""
    rng = np.random.default_rng(2)
    for (lead, classes), axis, (name, ignored) in itertools.product(
        (((7,), 4), ((2, 3), 40), ((300,), 3), ((3, 700), 6)),
        (0, 1, -1),
        (("int64", None), ("int8", -1), ("uint64", 2**64 - 1), ("int32", 1), ("uint8", -1)),
    ):
        case = cases.reshaped(cases.sample(kernel, int(np.prod(lead)), classes, dtype), lead, axis)
        t = case.inputs["t"].astype(name)
        if ignored is not None and (ignored >= 0 or name != "uint8"):
            t[rng.random(t.shape) < 0.4] = ignored
        k = int(rng.integers(1, classes + 1))
        given = Case(kernel, {**case.inputs, "t": t, "k": k}, {"axis": axis, "ignore_index": ignored}, case.about)
        subject.compare(given, subject.call(given))
    for rows in (0, 1, 2000):
        inputs = {"x": np.full((rows, 3), NAN, dtype), "t": np.full(rows, -5), "k": 2}
        nothing = Case(kernel, inputs, {"ignore_index": -5}, about=f"{rows} rows, of which none counts")
        subject.compare(nothing, subject.call(nothing))


@check(cases.is_accuracy, dtypes=(FLOAT32,))
def labels_of_accuracies_that_name_no_class(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The first of them is named; where labels are not looked at beforehand, the result is NaN."""
    for rows, (name, bad) in itertools.product((12, 5000), (("int8", -1), ("uint8", 255), ("int64", 5), ("uint64", 5))):
        case = cases.sample(kernel, rows, 5, dtype)
        t = case.inputs["t"].astype(name)
        t[[7, rows - 1]] = bad
        wrong = Case(kernel, {**case.inputs, "t": t}, about=f"label {bad} {name}")
        arrays = {n: subject.array(x) for n, x in wrong.inputs.items()}
        results = subject.call(case)
        with naming_the_call(subject, wrong):
            for mode in modes(subject, of_data=True):
                sevens = untouched(subject, kernel, results)
                error = raised(subject, wrong, arrays, sevens, mode)
                assert isinstance(error, ValueError), f"expected ValueError, got {error!r}"
                expected = rf"^{kernel.name}: t: expected labels in \[0, 5\), got {bad} at row 7\b"
                assert re.search(expected, str(error)), f"expected a message like {expected!r}, got {error}"
                assert_untouched(subject, sevens)
            if subject.backend.arrays != "numpy":
                assert np.isnan(subject.numpy(subject.call(wrong)[0])), "expected NaN"
