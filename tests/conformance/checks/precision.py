"""Errors against 50 digits, held to the budgets of the records."""

from typing import Any

import numpy as np

from plugrad.kernels import Kernel
from plugrad.tests.conformance import accuracy
from plugrad.tests.conformance.checks._check import FLOAT32, FLOAT64, check
from plugrad.tests.conformance.subject import Subject, told


@check(lambda kernel: kernel.budget is not None, dtypes=(FLOAT32, FLOAT64))
def errors_within_the_budget(subject: Subject, kernel: Kernel, dtype: np.dtype[Any]) -> None:
    """No element is further off than the record allows, for any number of classes and span of logits."""
    assert kernel.budget is not None
    beside_formula = kernel.budget.of == "formula"
    if beside_formula and dtype != FLOAT32:
        return
    for span in accuracy.SPANS:
        worst = formula = 0.0
        for classes in (1,) if kernel.name == "sigmoid" else accuracy.CLASSES:
            sample = accuracy.sample(kernel, dtype, classes, span)
            with told(subject, sample.case()):
                worst = max(worst, sample.errors(subject.numpy(subject.call(sample.case())[0])).max())
                if beside_formula:
                    formula = max(formula, sample.errors(accuracy.textbook(kernel, sample.x, sample.t)).max())
        allowed = kernel.budget.ulp + formula
        assert worst <= allowed, (
            f"{kernel.name} is off by {worst:.3g} ulp over spans of {span:g}, allowed {allowed:.3g}"
        )
