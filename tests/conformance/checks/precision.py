"""Errors against 50 digits, held to the budgets of the records, and of every single element where results are small."""

import functools
import itertools
from typing import Any

import numpy as np

from plugrad.tests.conformance import accuracy, cases
from plugrad.tests.conformance.accuracy import ELEMENTS, MANY_CLASSES, Sample, ulp
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.subject import DTYPES, Case, Subject, epsilon, finfo, loss_dtype, naming_the_call
from plugrad.tests.records import RECORDS, Record

DType = np.dtype[Any]

# Of these dtypes, float64 holds results that are as good as exact.
NARROW = tuple(dtype for dtype in DTYPES if dtype.itemsize < 8)


def held_to(*of: str) -> Any:
    """Whether a kernel has a budget of one of these kinds."""
    return lambda kernel: kernel.budget is not None and kernel.budget.of in of


@functools.cache
def samples(name: str, dtype: DType, span: float) -> list[Sample]:
    """Logits of several numbers of classes; fewer of the 16-bit dtypes, which are computed in float32 too.

    They are kept for the next backend: to compute them takes longer than to compare the results of a backend.
    """
    kernel = RECORDS[name]
    elements = ELEMENTS if dtype.itemsize > 2 else ELEMENTS // 3
    counts = accuracy.CLASSES if cases.has_axis(kernel) else (1,)
    return [
        accuracy.sample(kernel, dtype, classes, span, elements, options)
        for classes in counts
        for options in ({}, *kernel.variants)
    ]


def errors(sample: Sample, results: Any) -> Any:
    """The errors in ulp of the dtype that is computed in, beyond half an ulp of 16-bit results for their rounding."""
    if results.dtype.itemsize > 2 and results.dtype == sample.wanted:
        return sample.errors(results)
    rounding = 0.5 * ulp(sample.exact, results.dtype) if results.dtype.itemsize == 2 else 0.0
    return (sample.off(results) - rounding) / ulp(sample.scale, loss_dtype(sample.dtype))


@check(held_to("result", "exponent", "logits", "upstream"))
def errors_within_the_budget(subject: Subject, kernel: Record, dtype: DType) -> None:
    """No element is further off than the record allows, for any number of classes and span of logits."""
    assert kernel.budget is not None
    for span in accuracy.SPANS:
        for sample in samples(kernel.name, dtype, span):
            with naming_the_call(subject, sample.case()):
                worst = errors(sample, subject.numpy(subject.call(sample.case())[0])).max()
                assert worst <= kernel.budget.ulp, f"off by {worst:.3g} ulp, allowed {kernel.budget.ulp:.3g}"


@check(held_to("formula"), dtypes=NARROW)
def errors_beside_the_formula(subject: Subject, kernel: Record, dtype: DType) -> None:
    """No element is further off, beyond what the record allows, than the textbook's formula is in float32."""
    assert kernel.budget is not None
    for span in accuracy.SPANS:
        worst = formula = 0.0
        for sample in samples(kernel.name, dtype, span):
            with naming_the_call(subject, sample.case()):
                worst = max(worst, errors(sample, subject.numpy(subject.call(sample.case())[0])).max())
                formula = max(
                    formula, errors(sample, accuracy.textbook(kernel, sample.x.astype(FLOAT32), sample.t)).max()
                )
        allowed = kernel.budget.ulp + formula
        assert worst <= allowed, (
            f"{kernel.name} is off by {worst:.3g} ulp over spans of {span:g}, allowed {allowed:.3g}"
        )


@check(held_to("logits"), dtypes=NARROW)
def errors_over_many_classes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The budget holds for the vocabulary of a language model; the exact results are those of float64."""
    assert kernel.budget is not None
    work = loss_dtype(dtype)
    rng = np.random.default_rng(8)
    for span in accuracy.SPANS:
        x = rng.uniform(-span / 2, span / 2, (4, MANY_CLASSES)).astype(dtype)
        inputs = {"x": x, "t": np.array([int(x[0].argmax()), 0, 7, MANY_CLASSES - 1])}
        options = {"reduction": "none"} if cases.is_loss(kernel) else {}
        about = f"{MANY_CLASSES} classes with logits over a span of {span:g}"
        case = Case(kernel, {name: inputs[name] for name in kernel.arguments}, options, about)
        got = np.asarray(subject.numpy(subject.call(case)[0]))
        exact = case.expected()[0]
        logits = x.astype(np.float64)
        scale = np.maximum(1.0, np.maximum(np.abs(logits).max(axis=1), np.abs(np.log(np.exp(logits).sum(axis=1)))))
        units = ulp(scale, work).reshape(-1, *[1] * (exact.ndim - 1))
        rounding = 0.5 * epsilon(dtype) * np.abs(exact) if got.dtype.itemsize == 2 else 0.0
        with naming_the_call(subject, case):
            worst = ((np.abs(got.astype(np.float64) - exact) - rounding) / units).max()
            assert worst <= kernel.budget.ulp, f"off by {worst:.3g} ulp, allowed {kernel.budget.ulp:.3g}"


@check(lambda kernel: kernel.keeps_small_elements)
def small_elements_keep_their_accuracy(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Probabilities, and gradients where the label is another class, are right relative to themselves, tiny or not."""
    work = loss_dtype(dtype)
    rng = np.random.default_rng(4)
    spans = (10.0, 40.0, *((170.0, 600.0) if dtype == np.float64 else (80.0,)))
    for span, (rows, classes) in itertools.product(spans, ((50, 3), (20, 40), (5, 1025), (1, MANY_CLASSES))):
        x = rng.uniform(-span / 2, span / 2, (rows, classes)).astype(dtype)
        x[:, 0] = span / 2
        inputs = {"x": x, "t": np.ones(rows, np.int64)}
        options = {"reduction": "none"} if cases.is_loss(kernel) else {}
        about = f"{rows} rows of {classes} classes with logits over a span of {span:g}"
        case = Case(kernel, {name: inputs[name] for name in kernel.arguments}, options, about)
        got = np.asarray(subject.numpy(subject.call(case)[-1])).astype(np.float64)
        exact = case.expected()[-1]
        # x - max is rounded to half an ulp of itself, which is the relative error of its exponential; the oracle's too.
        relative = (span + 16) * epsilon(work) + 0.5 * epsilon(dtype)
        tiny = float(finfo(dtype).smallest_subnormal) + float(finfo(work).smallest_subnormal)
        off = np.abs(got - exact)
        wrong = ~(off <= relative * np.abs(exact) + tiny)
        if kernel.results[-1] == "dx":
            wrong[:, inputs["t"]] = False  # y - 1: `confident_rows_keep_their_accuracy` looks at these
        with naming_the_call(subject, case):
            where = tuple(np.argwhere(wrong)[0]) if wrong.any() else ()
            assert not wrong.any(), (
                f"{kernel.results[-1]}{[int(i) for i in where]}: expected {exact[where]}, got {got[where]}"
            )
