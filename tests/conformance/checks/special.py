"""Extreme and special values: where other libraries go wrong."""

import itertools
from typing import Any

import mpmath
import numpy as np

from plugrad.kernels import Kernel
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import overflowed, result_dtype, sample
from plugrad.tests.conformance.checks._check import FLOAT32, FLOAT64, check
from plugrad.tests.conformance.subject import Case, Subject, close, epsilon, finfo, loss_dtype, told

DType = np.dtype[Any]
NAN, INF = np.nan, np.inf


def takes_logits(kernel: Kernel) -> bool:
    """Whether the kernel takes a softmax of its first argument."""
    return kernel.arguments[0] == "x" and cases.has_axis(kernel)


def is_elementwise(kernel: Kernel) -> bool:
    """Whether each element of the result comes from one element of each argument."""
    return not cases.has_axis(kernel) and not cases.is_product(kernel)


def extremes(dtype: DType) -> tuple[float, float, float]:
    """The largest finite number, the smallest normal and the smallest subnormal one."""
    of = finfo(dtype)
    return float(of.max), float(of.smallest_normal), float(of.smallest_subnormal)


@check(takes_logits)
def special_logits(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Huge, tiny, infinite and undefined logits, one kind in each row, and no row touches another."""
    most, normal, tiny = extremes(dtype)
    rows = [
        [1e4, 0.0, -1e4],
        [-1e4, -1e4, -1e4],
        [most, most, most],
        [-most, -most, -most],
        [most, 0.0, -most],
        [normal, tiny, -tiny],
        [0.0, -0.0, 0.0],
        [NAN, 0.0, 1.0],
        [0.0, 1.0, NAN],
        [INF, 0.0, 1.0],
        [INF, INF, 0.0],
        [INF, -INF, 0.0],
        [-INF, 0.0, 1.0],
        [-INF, -INF, 3.0],
        [-INF, -INF, -INF],
        [104.0, 0.0, 1.0],
        [0.5, 0.25, -0.125],
    ]
    for repeats in (1, 5):  # enough rows to be worked on in another way
        x = np.array(rows * repeats).astype(dtype)
        for label in range(3) if cases.is_loss(kernel) else (None,):
            inputs = {"x": x} if label is None else {"x": x, "t": np.full(len(x), label)}
            options = {} if label is None else {"reduction": "none"}
            case = Case(kernel, inputs, options, about=f"special logits, label {label}")
            got = subject.call(case)
            exact = case.expected()
            with told(subject, case):
                for name, value, true in zip(kernel.results, got, exact, strict=True):
                    wanted = result_dtype(name, dtype)
                    values = np.asarray(subject.numpy(value)).astype(np.float64)
                    for row in range(len(x)):
                        tolerance = subject.tolerance(kernel, name, dtype)
                        close(f"{name} of logits {x[row]}", values[row], overflowed(true[row], wanted), *tolerance)


@check(is_elementwise)
def special_numbers(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Every pair of huge, tiny, infinite and undefined numbers."""
    most, normal, tiny = extremes(dtype)
    numbers = [0.0, -0.0, 1.0, -1.0, 0.3, -17.0, 17.0, -88.0, -95.0, -104.0, 89.0, -700.0, -746.0, 710.0]
    numbers += [most, -most, normal, -normal, tiny, -tiny, INF, -INF, NAN]
    bounded = [
        0.0,
        1.0,
        0.5,
        normal,
        tiny,
        float(np.nextafter(np.float32(1), np.float32(0))),
        NAN,
    ]  # values of a sigmoid
    roles = {"x": numbers, "dy": numbers, "y": bounded if kernel.name.startswith("sigmoid") else numbers}
    grid = np.array(list(itertools.product(*(roles[name] for name in kernel.arguments)))).astype(dtype)
    for repeats in (1, 3000 // len(grid) + 1):
        inputs = {name: np.tile(grid[:, i], repeats) for i, name in enumerate(kernel.arguments)}
        case = Case(kernel, inputs, about="special numbers")
        (got,) = subject.call(case)
        with np.errstate(all="ignore"):
            exact = overflowed(case.expected()[0], dtype)
        values = np.asarray(subject.numpy(got)).astype(np.float64)
        relative, absolute = subject.tolerance(kernel, kernel.results[0], dtype)
        with np.errstate(invalid="ignore"):
            right = (values == exact) | (np.abs(values - exact) <= relative * np.abs(exact) + 2 * absolute)
        right |= np.isnan(values) & np.isnan(exact)
        wrong = np.argwhere(~right)
        assert not len(wrong), (
            f"{kernel.name} of {[float(inputs[n][wrong[0][0]]) for n in kernel.arguments]}: "
            f"expected {exact[tuple(wrong[0])]}, got {values[tuple(wrong[0])]}"
        )


@check()
def nan_stays_in_its_row(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """NaN or infinity in a row of any argument poisons that row and no other."""
    rows, place = 70, 33
    for classes in (5, 40):
        plain = sample(kernel, rows, classes, dtype)
        if cases.is_loss(kernel):
            inputs = {n: np.full(rows, 0.7, np.float32) if n == "dloss" else x for n, x in plain.inputs.items()}
            plain = Case(kernel, inputs, {"reduction": "none"})
        clean = subject.call(plain)
        for name, bad in itertools.product(kernel.arguments, (NAN, INF)):
            x = plain.inputs[name]
            if name in ("w", "b", "t") or not isinstance(x, np.ndarray):
                continue
            poisoned = x.copy()
            poisoned[(place, *[2] * (x.ndim - 1))] = bad
            case = Case(
                kernel, {**plain.inputs, name: poisoned}, plain.options, about=f"{bad} in row {place} of {name}"
            )
            with told(subject, case):
                for result, value, before in zip(kernel.results, subject.call(case), clean, strict=True):
                    a, b = (np.asarray(subject.numpy(v)).astype(np.float64) for v in (value, before))
                    if a.shape[:1] != (rows,) or result in ("dw", "db"):
                        continue
                    others = np.arange(rows) != place
                    assert np.array_equal(a[others], b[others]), f"{result}: another row than {place} changed"
                    if kernel.arguments[0] == "x" and bad is NAN and not is_elementwise(kernel):
                        assert np.isnan(a[place]).all(), f"{result}: expected a row of NaN, got {a[place]}"


@check(cases.is_loss)
def ignored_rows_count_for_nothing(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Rows with the ignored label add nothing and get exact zeros, whatever their logits and upstream gradients."""
    rng = np.random.default_rng(0)
    first = kernel.arguments[-2]
    kept = np.arange(12) % 3 != 1
    for ignore, smoothing, bad, reduction in itertools.product(
        (-100, 1, 99), (0.0, 0.1), (NAN, INF, -INF), ("mean", "sum", "none")
    ):
        case = sample(kernel, 12, 4, dtype)
        x, t = case.inputs[first].copy(), rng.choice([0, 2, 3], 12)
        x[~kept], t[~kept] = bad, ignore
        options = {"ignore_index": ignore, "label_smoothing": smoothing, "reduction": reduction}
        inputs = {**case.inputs, first: x, "t": t}
        rows = {**inputs, first: x[kept], "t": t[kept]}
        if "dloss" in inputs and reduction == "none":
            inputs["dloss"] = np.where(kept, 0.7, bad).astype(np.float32)
            rows["dloss"] = inputs["dloss"][kept]
        case = Case(kernel, inputs, options, about=f"{bad} in rows with the ignored label {ignore}, {reduction}")
        alone = subject.call(Case(kernel, rows, options))
        with told(subject, case):
            for name, value, exact in zip(kernel.results, subject.call(case), alone, strict=True):
                a, b = (np.asarray(subject.numpy(v)).astype(np.float64) for v in (value, exact))
                relative, absolute = subject.tolerance(kernel, name, dtype)
                if a.ndim:
                    if name == "loss" or name.startswith("d"):
                        assert (a[~kept] == 0).all(), f"{name}: expected zeros in ignored rows, got {a[~kept]}"
                    a = a[kept]
                close(name, a, b, relative, absolute)


@check(cases.is_loss)
def where_nothing_counts(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Loss and gradient are 0, not NaN: no rows, all ignored, or no weight."""
    first = kernel.arguments[-2]
    nothing: tuple[tuple[int, dict[str, Any]], ...] = (
        (0, {}),
        (0, {"reduction": "sum"}),
        (3, {"ignore_index": 0}),
        (3, {"ignore_index": 0, "label_smoothing": 0.1}),
        (3, {"weight": np.array([0.0, 1.0], np.float32)}),
    )
    for rows, options in nothing:
        x = np.full((rows, 2), NAN if "ignore_index" in options else 0.5).astype(dtype)
        inputs = {first: x, "t": np.zeros(rows, np.int64), "dloss": 1.0}
        case = Case(kernel, inputs, options, about=f"{rows} rows, {options}")
        with told(subject, case):
            for name, value in zip(kernel.results, subject.call(case), strict=True):
                values = np.asarray(subject.numpy(value)).astype(np.float64)
                assert name == "y" or (values == 0).all(), f"{name}: expected 0, got {values}"


@check(cases.is_loss)
def labels_of_zero_on_impossible_classes(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """A label of 0 adds 0 even where the logarithm of the probability is ``-inf``; any other is infinite."""
    first = kernel.arguments[-2]
    x = (
        np.array([[0.0, 0.0, -INF], [0.0, -INF, 1.0]])
        if first == "x"
        else np.array([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])
    )
    labels = (
        np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]),
        np.array([[0.5, 0.25, 0.25], [1.0, 1.0, 0.0]]),
        np.array([0, 2]),
        np.array([2, 1]),
    )
    for t, weight in itertools.product(labels, (None, np.array([1.0, 0.0, 0.0], np.float32), np.ones(3, np.float32))):
        inputs = {first: x.astype(dtype), "t": t, "dloss": np.ones(2, np.float32)}
        case = Case(kernel, inputs, {"reduction": "none", "weight": weight}, about="labels on impossible classes")
        subject.compare(case, subject.call(case))


@check(lambda kernel: takes_logits(kernel) and kernel.name != "softmax")
def confident_rows_keep_their_accuracy(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """The loss of a row predicted with confidence, tiny as it is, is right to 8 ulp of itself."""
    work = loss_dtype(dtype)
    logits = (
        [20.0, 0.0, 0.0],
        [30.7, 0.3, -1.9, 4.4],
        [1000.5, 980.25, 970.0],
        [85.2, 0.1, -3.3],
        [8.0, 0.0],
        [60.0, 0.0],
    )
    for values, rows, classes, axis in itertools.product(logits, (1, 70, 3000), (None, 40), (-1, 0)):
        x = np.full((rows, classes or len(values)), -1e4)
        x[:, : len(values)] = values
        x = x.astype(dtype)
        with mpmath.workdps(50):
            rest = sum(mpmath.exp(mpmath.mpf(float(v)) - mpmath.mpf(float(x[0, 0]))) for v in x[0, 1:])
            loss = float(mpmath.log1p(rest))
            slope = float(-rest / (1 + rest))
        forms = {"indices": np.zeros(rows, np.int64), "one-hot": np.eye(x.shape[1])[np.zeros(rows, int)]}
        for form, t in forms.items() if cases.is_loss(kernel) else (("", None),):
            options = {"axis": axis, **({"reduction": "none"} if cases.is_loss(kernel) else {})}
            inputs = (
                {"x": x, "t": t}
                if axis
                else {n: np.ascontiguousarray(a.T) for n, a in (("x", x), ("t", t)) if a is not None}
            )
            case = Case(kernel, inputs, options, about=f"confident rows {values}, {form}, axis {axis}")
            with told(subject, case):
                for name, value in zip(kernel.results, subject.call(case), strict=True):
                    got = np.asarray(subject.numpy(value)).astype(np.float64)
                    got = got.T if axis == 0 else got
                    if name == "loss":
                        _within(name, got, loss, 8 * epsilon(work))
                    elif kernel.name == "log_softmax":
                        _within(name, got[:, 0], -loss, 8 * epsilon(work) + epsilon(dtype), extremes(dtype)[2])
                    elif name == "dx" and form == "indices":
                        _within(name, got[:, 0], slope, 8 * epsilon(work) + epsilon(dtype), extremes(dtype)[2])


def _within(name: str, got: Any, exact: float, relative: float, absolute: float = 0.0) -> None:
    worst = np.abs(got - exact).max()
    assert worst <= relative * abs(exact) + absolute, (
        f"{name}: expected {exact}, got {got[np.abs(got - exact).argmax()]}"
    )


@check(cases.is_loss, dtypes=(FLOAT32, FLOAT64))
def tiny_weights(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Weights so small that their reciprocals overflow weigh like any others where the mean divides them out."""
    case = sample(kernel, 6, 3, dtype)
    one = Case(kernel, case.inputs, {"weight": np.array([1.0, 2.0, 4.0], np.float32)})
    tiny = Case(
        kernel,
        case.inputs,
        {"weight": np.array([1.0, 2.0, 4.0], np.float32) * np.float32(2.0**-140)},
        about="tiny weights",
    )
    exact = tuple(np.asarray(subject.numpy(v)).astype(np.float64) for v in subject.call(one))
    subject.compare(tiny, subject.call(tiny), exact, slack=2)
