"""Gradients: against derivatives that sympy takes, and against differences of the forward pass."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import reshaped, sample
from plugrad.tests.conformance.checks._check import FLOAT64, check
from plugrad.tests.conformance.subject import Case, Subject, naming_the_call
from plugrad.tests.records import RECORDS, Record

DType = np.dtype[Any]


def gives_gradients(kernel: Record) -> bool:
    """Whether gradients of the kernel's results come from its backward kernel, or along with its loss."""
    return kernel.backward is not None or ("loss" in kernel.results and len(kernel.results) > 1)


def gradients(subject: Subject, case: Case, weights: dict[str, Any]) -> dict[str, Any]:
    """Argument -> gradient of the sum of the results times `weights`, by result; losses weigh 1 if nothing is said."""
    kernel = case.kernel
    results = dict(zip(kernel.results, subject.call(case), strict=True))
    if kernel.backward is None:
        return {n[1:]: subject.numpy(v) for n, v in results.items() if n.startswith("d")}
    backward = RECORDS[kernel.backward]
    known = {
        **case.inputs,
        **{n: subject.numpy(v) for n, v in results.items()},
        **{f"d{n}": w for n, w in weights.items()},
    }
    inputs = {name: known[name] for name in backward.arguments}
    got = subject.call(
        Case(backward, inputs, {n: v for n, v in case.options.items() if n in backward.options}, case.about)
    )
    return {name[1:]: subject.numpy(value) for name, value in zip(backward.results, got, strict=True)}


def _cases(kernel: Record) -> list[Case]:
    """Calls whose gradients are compared with differences: shapes, axes and every option."""
    found = [sample(kernel, rows, classes, FLOAT64) for rows, classes in ((1, 1), (4, 5), (30, 26), (3, 1025))]
    if cases.is_loss(kernel):
        for form in (cases.INDICES, cases.ONE_HOT, cases.SOFT):
            found += [*cases.options_of_losses(kernel, FLOAT64, form)][::7]
    elif cases.is_binary(kernel):
        found += [*cases.options_of_elements(kernel, FLOAT64)][::2]
    elif cases.has_axis(kernel):
        found += [reshaped(sample(kernel, 6, 5, FLOAT64), (2, 3), axis) for axis in (0, 1, 2)]
    return [variant for case in found for variant in cases.variants(case)]


@check(gives_gradients, dtypes=(FLOAT64,))
def gradients_along_directions(subject: Subject, kernel: Record, dtype: DType) -> None:
    """``<dx, v>`` is the derivative of the weighted results along `v`, which two forward passes give.

    It needs no Jacobian, so that any shape will do: Griewank and Walther, "Evaluating Derivatives", 2008, section 3.
    """
    rng = np.random.default_rng(1)
    for case in _cases(kernel):
        results = dict(zip(kernel.results, subject.call(case), strict=True))
        primary = RECORDS[kernel.backward].arguments[0][1:] if kernel.backward else "loss"
        shape = results[primary].shape
        weight = rng.normal(size=shape) if kernel.backward else np.ones(shape)
        if not shape:
            weight = float(weight)
        found = gradients(subject, case, {primary: weight})
        assert found, f"{kernel.name}: no gradients"
        for name, gradient in found.items():
            x = case.inputs[name]
            tame = np.where(np.abs(x) < 0.01, 0.5, np.clip(x, -3, 3))  # away from relu's corner and from exp(30)
            tame = tame if name == "x" else x
            moved = Case(kernel, {**case.inputs, name: tame}, case.options, f"{case.about}, gradient of {name}")
            gradient = gradients(subject, moved, {primary: weight})[name]
            direction = rng.normal(size=x.shape)
            direction /= max(1.0, np.abs(direction).max())
            if name == "p":
                direction *= tame  # as far as probabilities are from 0
            with naming_the_call(subject, moved):
                numeric = _difference(subject, moved, name, direction, primary, weight)
                analytic = float(np.sum(gradient * direction))
                scale = float(np.sum(np.abs(gradient * direction))) + 1e-3
                assert abs(analytic - numeric) <= 1e-6 * scale, (
                    f"gradient of {name} along a direction: {analytic}, by differences of the forward pass {numeric}"
                )


def _difference(subject: Subject, case: Case, name: str, direction: Any, primary: str, weight: Any) -> float:
    """The derivative along a direction by Richardson's extrapolation of central differences."""

    def value(step: float) -> float:
        moved = Case(case.kernel, {**case.inputs, name: case.inputs[name] + step * direction}, case.options)
        result = dict(zip(case.kernel.results, subject.call(moved), strict=True))[primary]
        return float(np.sum(weight * subject.numpy(result)))

    step = 1e-3
    wide, narrow = ((value(s) - value(-s)) / (2 * s) for s in (step, step / 2))
    return (4 * narrow - wide) / 3


WEIGHTS = np.array([[0.5, -1.25], [2.0, 0.75], [-0.375, 1.5]])
BIASES = np.arange(2.0)


@functools.cache
def _jacobian(kernel: Record, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """The Jacobian of a row, derived by sympy, as a function of three numbers."""
    assert kernel.symbolic is not None
    x = list(sympy.symbols("x:3", real=True))
    given = {"x": x, "w": WEIGHTS, "b": BIASES}
    results = kernel.symbolic(sympy, **{name: given[name] for name in kernel.arguments}, **dict(options))
    function: Callable[..., Any] = sympy.lambdify(x, sympy.Matrix(results).jacobian(x), "mpmath")
    return function


@check(lambda kernel: kernel.symbolic is not None, dtypes=(FLOAT64,))
def jacobians_by_sympy(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Backward passes of unit vectors are the rows of the Jacobian that sympy derives."""
    rows = ([0.3, -1.2, 2.0], [5.0, 5.0, -5.0], [-0.1, 0.2, 0.1], [12.0, -9.0, 0.5])
    for x, options in itertools.product(rows, ({}, *kernel.variants)):
        jacobian = np.array(_jacobian(kernel, tuple(options.items()))(*x).tolist(), dtype=np.float64)
        inputs = {"x": np.array([x]), "w": WEIGHTS, "b": BIASES}
        case = Case(kernel, {n: inputs[n] for n in kernel.arguments}, options, about=f"Jacobian at {x}, {options}")
        for i, row in enumerate(jacobian):
            weight = np.zeros((1, len(jacobian)))
            weight[0, i] = 1.0
            got = gradients(subject, case, {"y": weight})["x"][0]
            with naming_the_call(subject, case):
                assert np.allclose(got, row, rtol=1e-13, atol=1e-15), (
                    f"row {i} of the Jacobian: expected {row}, got {got}"
                )
