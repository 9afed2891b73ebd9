"""Errors in ulp against 50 digits: a report that includes other libraries, and the check of the budgets in the records.

An ulp is the distance between neighbouring numbers of a dtype at the exact value (Muller et al., "Handbook of
Floating-Point Arithmetic", 2018, section 2.3.2). The exact values are mpmath's.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

from plugrad import backends
from plugrad.tests.conformance.cases import has_axis, is_any_loss, is_binary, is_loss
from plugrad.tests.conformance.subject import DTYPES, Case, Subject, as_tuple, epsilon, finfo, loss_dtype
from plugrad.tests.records import RECORDS, Record

DIGITS = 50
SPANS = (1.0, 10.0, 40.0, 80.0, 170.0)  # between the smallest and the largest logit of a row
CLASSES = (3, 10, 100, 1000)
MANY_CLASSES = 50_257
OTHERS = ("textbook", "SciPy", "PyTorch")
ELEMENTS = 3000  # about so many in each case

DType = np.dtype[Any]
Implementation = Callable[[Record, Any, Any], Any]  # of logits and class indices; None where it has no such function


@dataclass(frozen=True)
class Sample:
    """Logits whose exact results are known."""

    kernel: Record
    dtype: DType
    classes: int
    span: float
    x: Any
    t: Any
    exact: Any  # the float64 nearest to each result, flat
    rest: Any  # of float64, the float64 nearest to what is left of each result: both have twice the digits; else 0
    scale: Any  # per result: what an ulp of the budget is an ulp of
    shares: Any  # per result: what its error is divided by
    options: Mapping[str, Any]

    def case(self) -> Case:
        """The call that is judged."""
        if is_any_loss(self.kernel):
            return Case(self.kernel, {"x": self.x, "t": self.t}, {"reduction": "none"}, about=str(self))
        return Case(self.kernel, _inputs(self.kernel, self.x), self.options, about=str(self))

    @property
    def wanted(self) -> DType:
        """The dtype of the results."""
        return loss_dtype(self.dtype) if is_any_loss(self.kernel) else self.dtype

    def off(self, results: Any) -> Any:
        """How far each result is off: infinitely far if it is not finite."""
        values = np.asarray(results).astype(np.float64).reshape(-1)
        is_finite = np.isfinite(values)
        # The difference of neighbours is exact (Sterbenz), and of others the rounding does not matter.
        return np.where(is_finite, np.abs(np.where(is_finite, values, 0) - self.exact - self.rest), np.inf)

    def errors(self, results: Any) -> Any:
        """The error of each result, in ulp of what the budget names."""
        return self.off(results) / (self.shares * ulp(self.scale, self.wanted))

    def __str__(self) -> str:
        return f"{self.classes} classes with logits over a span of {self.span:g}"


def ulp(values: Any, dtype: DType) -> Any:
    """The distance between neighbouring numbers of `dtype` at each of some float64 values."""
    exponents = np.frexp(np.maximum(np.abs(values), float(finfo(dtype).smallest_normal)))[1] - 1
    return np.ldexp(epsilon(dtype), exponents)


def sample(
    kernel: Record,
    dtype: DType,
    classes: int,
    span: float,
    elements: int = ELEMENTS,
    options: Mapping[str, Any] = {},
) -> Sample:
    """Random logits and the exact results of the kernel; a gradient is that of an upstream gradient of 1."""
    assert kernel.budget is not None
    assert kernel.exact is not None
    rng = np.random.default_rng(7)
    rows = max(1, elements // classes)
    x = rng.uniform(-span / 2, span / 2, (rows, classes)).astype(dtype)
    t = rng.integers(0, classes, rows)
    if is_loss(kernel):
        t[::2] = x[::2].astype(np.float64).argmax(axis=1)  # half of them are predicted rightly
    elif is_binary(kernel):
        t = rng.choice(np.array([0.0, 0.25, 1.0]).astype(dtype), x.shape)
        t[::2] = x[::2] > 0
    exact: list[float] = []
    scale: list[float] = []
    shares: list[float] = []
    rest: list[float] = []
    with mpmath.workdps(DIGITS):
        for row, label in zip(x.astype(np.float64), t, strict=True):
            numbers = [mpmath.mpf(float(v)) for v in row]
            of_row = [mpmath.mpf(float(v)) for v in label] if is_binary(kernel) else int(label)
            results = kernel.exact(mpmath, numbers, of_row, **options)
            exact += map(float, results)
            if dtype == np.float64:
                rest += [float(result - mpmath.mpf(float(result))) for result in results]
            scale += _scale([float(v) for v in row], results, kernel.budget.of)
            shares += _shares(numbers, results, kernel.budget.of, dtype)
    of_results = np.array(exact), np.array(rest or 0.0), np.array(scale), np.array(shares)
    return Sample(kernel, dtype, classes, span, x, t, *of_results, options)


def _scale(row: list[float], results: list[Any], of: str) -> list[float]:
    """The numbers whose ulp the errors of the results are counted in; as an ulp is a power of 2, float64 suffices."""
    if of == "upstream":
        return [max(1.0, float(abs(value))) for value in results]
    if of != "logits":
        return [float(value) for value in results]
    top = max(row)
    log = top + math.log(math.fsum(math.exp(v - top) for v in row))
    return [max(1.0, abs(log), *map(abs, row))] * len(results)


def _shares(row: list[Any], results: list[Any], of: str, dtype: DType) -> list[float]:
    """By what the error of each result is divided: how much the rounding of an exponential's argument is worth."""
    if of != "exponent" or dtype != np.float64:
        return [1.0] * len(results)
    return [max(1.0, float(abs(mpmath.log(abs(y / x))))) for x, y in zip(row, results, strict=True)]


def judged() -> list[Record]:
    """The kernels that have a budget."""
    return [kernel for kernel in RECORDS.values() if kernel.budget is not None]


def _inputs(kernel: Record, x: Any) -> dict[str, Any]:
    """The arguments of a kernel that is no loss; the upstream gradient of a gradient is 1."""
    inputs = {"x": x, "dy": np.ones_like(x)}
    return {name: inputs[name] for name in kernel.arguments}


def textbook(kernel: Record, x: Any, t: Any) -> Any:
    """The textbook formula, in the dtype of the logits; of a loss, which is a mean, row by row."""
    with np.errstate(all="ignore"):
        if not is_any_loss(kernel):
            return kernel.textbook(*_inputs(kernel, x).values())
        return np.array([as_tuple(kernel.textbook(x[i : i + 1], t[i : i + 1]))[0] for i in range(len(t))])


def _scipy() -> Implementation | None:
    try:
        from scipy import special
    except ModuleNotFoundError:
        return None
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "sigmoid": lambda x, t: special.expit(x),
        "softmax": lambda x, t: special.softmax(x, axis=1),
        "log_softmax": lambda x, t: special.log_softmax(x, axis=1),
    }

    def call(kernel: Record, x: Any, t: Any) -> Any:
        takes = x.dtype.name != "bfloat16" and (x.dtype != np.float16 or not has_axis(kernel))
        return calls[kernel.name](x, t) if takes and kernel.name in calls else None

    return call


def _torch() -> Implementation | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    functional = torch.nn.functional

    def gradient(function: Callable[[Any], Any], x: Any) -> Any:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    calls: dict[str, Callable[[Any, Any], Any]] = {
        "gelu": lambda x, t: functional.gelu(x),
        "gelu_backward": lambda x, t: gradient(functional.gelu, x),
        "sigmoid": lambda x, t: torch.sigmoid(x),
        "silu": lambda x, t: functional.silu(x),
        "silu_backward": lambda x, t: gradient(functional.silu, x),
        "tanh": lambda x, t: torch.tanh(x),
        "softmax": lambda x, t: torch.softmax(x, 1),
        "log_softmax": lambda x, t: torch.log_softmax(x, 1),
        "softmax_cross_entropy": lambda x, t: functional.cross_entropy(x, t, reduction="none"),
    }
    calls["sigmoid_cross_entropy"] = lambda x, t: functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    for name in ("softmax_cross_entropy", "sigmoid_cross_entropy"):
        calls[f"{name}_value_and_grad"] = calls[name]

    def call(kernel: Record, x: Any, t: Any) -> Any:
        if kernel.name not in calls:
            return None
        given = [
            torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
            if a.dtype.name == "bfloat16"
            else torch.from_numpy(a)
            for a in (x, t)
        ]
        return calls[kernel.name](*given).double().numpy()

    return call


def _ours(subject: Subject) -> Implementation:
    def call(kernel: Record, x: Any, t: Any) -> Any:
        if not subject.has(kernel.name):
            return None
        inputs = (x, t) if is_any_loss(kernel) else _inputs(kernel, x).values()
        arguments = [subject.array(a) for a in inputs]
        options = {"reduction": "none"} if is_any_loss(kernel) else {}
        with backends.use(subject.name):
            return subject.numpy(as_tuple(kernel.function(*arguments, **options))[0])

    return call


def implementations(names: list[str] | None) -> dict[str, Implementation]:
    """The backends called `names`, or all that can run here, and what there is to compare them with."""
    usable = names or [name for name, can in backends.available().items() if can]
    found: dict[str, Implementation | None] = {name: _ours(Subject(name)) for name in usable}
    found |= dict(zip(OTHERS, (textbook, _scipy(), _torch()), strict=True))
    return {name: implementation for name, implementation in found.items() if implementation is not None}


def groups(kernels: list[str] | None) -> Iterator[list[Sample]]:
    """The cases of the report: lists of those of a kernel, a dtype and a span, for every number of classes."""
    for kernel, dtype, span in itertools.product(judged(), DTYPES, SPANS):
        if kernels and kernel.name not in kernels:
            continue
        counts = CLASSES if has_axis(kernel) else (1,)
        yield [sample(kernel, dtype, classes, span) for classes in counts]


def allowed(kernel: Record, dtype: DType, formula: float) -> float | None:
    """The largest error that the budget allows if the textbook formula has the error `formula`; None: no limit."""
    assert kernel.budget is not None
    if dtype == np.float32 and kernel.budget.of == "formula":
        return kernel.budget.ulp + formula
    return kernel.budget.ulp if dtype in (np.float32, np.float64) and kernel.budget.of != "formula" else None


WIDTH = max(len(kernel.name) for kernel in judged()) + 1
LEGEND = """Largest error in ulp: of the result, or (*) of max(1, |logits|, |log of the sum|).
Losses of 16-bit arrays are float32 here, and measured in ulp of that: results in 16 bits have larger errors.
The budget is what a backend of plugrad is held to; ! marks an error beyond it."""


def report(names: list[str] | None, kernels: list[str] | None, json: Path | None = None) -> int:
    """Print the largest error of every implementation in every case.

    The exit status is 1 if a backend cannot run, or is off by more than its budget.
    """
    import json as json_format

    for name, can in backends.available(*(names or ())).items():
        if names and name in names and not can:
            print(can)
            return 1
    compared = implementations(names)
    held = [name for name in compared if name not in OTHERS]
    print(f"{LEGEND}\n")
    heads = f"{'kernel':{WIDTH}}{'dtype':>9}{'classes':>9}{'span':>7}{'budget':>9}"
    print(heads + "".join(f"{name:>12}" for name in compared))
    rows = []
    for group in groups(kernels):
        worst = [{name: _worst(call, case) for name, call in compared.items()} for case in group]
        budget = allowed(group[0].kernel, group[0].dtype, max(errors["textbook"] or 0.0 for errors in worst))
        for case, errors in zip(group, worst, strict=True):
            beyond = [name for name in held if budget is not None and (errors[name] or 0.0) > budget]
            rows.append(
                {
                    "kernel": case.kernel.name,
                    "dtype": str(case.dtype),
                    "classes": case.classes,
                    "span": case.span,
                    "budget": budget,
                    "beyond": beyond,
                    **errors,
                }
            )
            print(_line(case, budget, errors, beyond), flush=True)
    if json is not None:
        json.write_text(json_format.dumps(rows, indent=1) + "\n")
    return int(any(row["beyond"] for row in rows))


def _worst(implementation: Implementation, case: Sample) -> float | None:
    """The largest error of what an implementation returns, rounded to the dtype of the result."""
    results = implementation(case.kernel, case.x, case.t)
    return None if results is None else float(case.errors(np.asarray(results).astype(case.wanted)).max())


def _line(case: Sample, budget: float | None, errors: dict[str, float | None], beyond: list[str]) -> str:
    assert case.kernel.budget is not None
    star = "*" if case.kernel.budget.of == "logits" else ""
    line = f"{case.kernel.name + star:{WIDTH}}{case.dtype!s:>9}{case.classes:>9}{case.span:>7g}{_number(budget):>9}"
    return line + "".join(f"{_number(error) + '!' * (name in beyond):>12}" for name, error in errors.items())


def _number(value: float | None) -> str:
    return "-" if value is None else format(value, ".3g")
