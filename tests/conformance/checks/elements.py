"""Losses of elements: their labels, weights and options, and elements that do not count."""

import itertools
import re
from typing import Any

import mpmath
import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.checks.errors import assert_untouched, modes, raised, untouched
from plugrad.tests.conformance.checks.memory import packed, same
from plugrad.tests.conformance.checks.special import extremes
from plugrad.tests.conformance.subject import Case, Subject, close, epsilon, loss_dtype, naming_the_call
from plugrad.tests.records import Record

DType = np.dtype[Any]
NAN, INF = np.nan, np.inf


@check(cases.is_binary)
def options_with_a_label_for_each_element(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Options in every combination, labels of every dtype, and weights of every shape that broadcasts."""
    for case in cases.options_of_elements(kernel, dtype):
        subject.compare(case, subject.call(case))


@check(cases.is_binary)
def options_of_many_elements(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Options together, where there is more than one block of work; weights along every axis."""
    rng = np.random.default_rng(6)
    for lead, classes, shapes in (
        ((3000,), 7, ((7,), (3000, 1), (1, 1), (3000, 7))),
        ((5,), 5000, ((5000,), (5, 1))),
        ((3, 40), 50, ((40, 1), (3, 1, 50), (3, 1, 1))),
    ):
        plain = cases.reshaped(sample(kernel, int(np.prod(lead)), classes, dtype), lead)
        t = plain.inputs["t"].copy()
        t[:, 1::3] = -1
        weights = [rng.random(shape).astype(np.float32) for shape in shapes]
        for number, weight in enumerate(weights):
            reduction = ("mean", "sum", "none")[number % 3]
            inputs = {**plain.inputs, "t": t}
            if "dloss" in inputs and reduction == "none":
                inputs["dloss"] = (0.1 * rng.normal(size=t.shape)).astype(np.float32)
            options = {"weight": weight, "pos_weight": weights[number - 1], "ignore_index": -1, "reduction": reduction}
            case = Case(kernel, inputs, options, f"shape {t.shape}, weights {weight.shape}, {reduction}")
            subject.compare(case, subject.call(case))


@check(cases.is_binary, dtypes=(FLOAT32,))
def labels_outside_of_zero_and_one(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The first of them is named, with its place, and nothing is written."""
    for rows, name in itertools.product((12, 5000), ("int8", "uint8", "int32", "uint64", "float16", "float64")):
        case = sample(kernel, rows, 5, dtype)
        results = subject.call(case)
        kind = np.dtype(name).kind
        wrong = {"i": (2, -1, np.iinfo(name).min if kind == "i" else 0), "u": (2, 255), "f": (1.5, -0.25, INF, NAN)}
        for bad, ignored in itertools.product(wrong[kind], (None, -100)):
            t = case.inputs["t"].astype(name)
            t[[7, rows - 1], [3, 0]] = bad
            options = {"ignore_index": ignored}
            spoiled = Case(kernel, {**case.inputs, "t": t}, options, about=f"label {bad} {name}")
            arrays = {n: subject.array(x) for n, x in spoiled.inputs.items()}
            shown = re.escape(str(float(bad) if kind == "f" else bad))
            also = "" if ignored is None else " or the ignored label -100"
            expected = rf"^{kernel.name}: t: expected labels in \[0, 1\]{also}, got {shown} at \(7, 3\)"
            with naming_the_call(subject, spoiled):
                for mode in modes(subject, of_data=True):
                    sevens = untouched(subject, kernel, results)
                    error = raised(subject, spoiled, arrays, {**options, **sevens}, mode)
                    assert isinstance(error, ValueError), f"expected ValueError, got {error!r}"
                    assert re.search(expected, str(error)), f"expected a message like {expected!r}, got {error}"
                    assert_untouched(subject, sevens)
                if subject.backend.arrays != "numpy":
                    _are_nan_there(subject, cases.with_a_loss_for_each(spoiled))


def _are_nan_there(subject: Subject, case: Case) -> None:
    """Assert that the loss and the gradient are NaN where the labels are wrong, and nowhere else."""
    bad = np.zeros(case.inputs["t"].shape, bool)
    bad[[7, len(bad) - 1], [3, 0]] = True
    for name, value in zip(case.kernel.results, subject.call(case), strict=True):
        found = np.isnan(np.asarray(subject.numpy(value)).astype(np.float64))
        assert name == "y" or np.array_equal(found, bad), f"{name}: NaN at {np.argwhere(found).tolist()}"


@check(cases.is_binary)
def ignored_elements_count_for_nothing(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Elements with the ignored label add nothing and get exact zeros, whatever their logits and upstream gradients."""
    first = cases.rows_of(kernel)
    kept = np.arange(12) % 3 != 1
    for ignore, smoothing, bad, reduction in itertools.product(
        (-1, 1, 99), (0.0, 0.1), (NAN, INF, -INF), ("mean", "sum", "none")
    ):
        case = cases.reshaped(sample(kernel, 1, 12, dtype), ())
        x, t = case.inputs[first].copy(), np.zeros(12, np.int64)
        x[~kept], t[~kept] = bad, ignore
        options = {"ignore_index": ignore, "label_smoothing": smoothing, "reduction": reduction}
        inputs = {**case.inputs, first: x, "t": t}
        others = {**inputs, first: x[kept], "t": t[kept]}
        if "dloss" in inputs and reduction == "none":
            inputs["dloss"] = np.where(kept, 0.7, bad).astype(np.float32)
            others["dloss"] = inputs["dloss"][kept]
        case = Case(kernel, inputs, options, about=f"{bad} in elements with the ignored label {ignore}, {reduction}")
        alone = subject.call(Case(kernel, others, options))
        with naming_the_call(subject, case):
            for name, value, exact in zip(kernel.results, subject.call(case), alone, strict=True):
                a, b = (np.asarray(subject.numpy(v)).astype(np.float64) for v in (value, exact))
                if a.ndim:
                    is_zero = (a[~kept] == 0).all()
                    assert name == "y" or is_zero, f"{name}: expected zeros where elements are ignored, got {a[~kept]}"
                    a = a[kept]
                close(name, a, b, *subject.tolerance(kernel, name, dtype))


@check(cases.is_binary)
def where_no_element_counts(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Loss and gradient are 0, not NaN, whatever their arrays held: no elements, or all of them are ignored."""
    for shape, reduction, weighted in itertools.product(
        ((0, 3), (3, 0), (2, 3), (900, 3), ()), ("mean", "sum", "none"), (False, True)
    ):
        options = {"ignore_index": 0, "reduction": reduction, "label_smoothing": 0.1}
        if weighted:
            options["weight"] = np.full(shape[-1:], 2, np.float32)
        inputs = {
            cases.rows_of(kernel): np.full(shape, NAN, dtype),
            "t": np.zeros(shape, np.int32),
            "dloss": np.ones(shape, np.float32) if reduction == "none" and shape else 1.0,
        }
        case = Case(kernel, inputs, options, about=f"nothing counts in shape {shape}, {reduction}")
        got = subject.call(case)
        subject.compare(case, got)
        stale = tuple(subject.full(value.shape, value.dtype, NAN) for value in got)
        got = subject.call(case, out=packed(stale))
        with naming_the_call(subject, case):
            for name, value in zip(kernel.results, got, strict=True):
                values = np.asarray(subject.numpy(value)).astype(np.float64)
                assert name == "y" or (values == 0).all(), f"{name}: expected 0, got {values}"


@check(lambda kernel: cases.is_binary(kernel) and "x" in kernel.arguments)
def confident_elements_keep_their_accuracy(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Loss and gradient of an element that is predicted with confidence, tiny as they are, are right to 8 ulp."""
    work = loss_dtype(dtype)
    sizes = np.array([0.0, 0.25, 1.5, 8.0, 17.5, 20.0, 40.0, 60.0, 80.0, 300.0]).astype(dtype)
    x = np.concatenate([sizes, -sizes])
    t = (x > 0).astype(np.int8)
    with mpmath.workdps(50):
        rest = [mpmath.exp(-abs(mpmath.mpf(float(v)))) for v in x]
        # A label of 0 at 0.0 is not predicted with confidence, but its loss is log(2), as that of the others is.
        losses = np.array([float(mpmath.log1p(r)) for r in rest])
        slopes = np.array([float(r / (1 + r)) for r in rest]) * np.where(t == 1, -1, 1)
    for repeats in (1, 400):
        inputs = {"x": np.tile(x, repeats), "t": np.tile(t, repeats)}
        case = Case(kernel, inputs, {"reduction": "none"}, about="confident elements")
        with naming_the_call(subject, case):
            for name, value in zip(kernel.results, subject.call(case), strict=True):
                if name == "y":
                    continue
                got = np.asarray(subject.numpy(value)).astype(np.float64)
                exact, of = (losses, work) if name == "loss" else (slopes, dtype)
                exact = np.tile(exact, repeats)
                relative = 8 * epsilon(work) + (epsilon(dtype) if of != work else 0.0)
                wrong = np.argwhere(~(np.abs(got - exact) <= relative * np.abs(exact) + 2 * extremes(of)[2]))
                assert not len(wrong), (
                    f"{name} of logit {inputs['x'][wrong[0][0]]}: expected {exact[wrong[0][0]]}, got {got[wrong[0][0]]}"
                )


@check(cases.is_binary, dtypes=(FLOAT32,))
def in_place_of_the_weights_of_elements(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The gradient, and the losses of the elements, may be written to the weights."""
    for name, (rows, classes) in itertools.product(("weight", "pos_weight"), ((6, 5), (70, 300))):
        case = cases.with_a_loss_for_each(sample(kernel, rows, classes, dtype))
        weight = np.random.default_rng(0).random((rows, classes)).astype(dtype)
        case.options = {**case.options, name: weight}
        expected = subject.call(case)
        for place, result in enumerate(kernel.results):
            arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
            target = subject.array(weight)
            out = tuple(target if i == place else None for i in range(len(expected)))
            case.about = f"{result} written to {name}"
            with naming_the_call(subject, case):
                got = subject.call_on(kernel, arrays, {**case.options, name: target, "out": packed(out)})
                for of, one, exact in zip(kernel.results, got, expected, strict=True):
                    same(subject, kernel, of, one, exact)
