"""Extreme and special values: where other libraries go wrong."""

import itertools
from typing import Any

import mpmath
import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import overflowed, result_dtype, sample
from plugrad.tests.conformance.checks._check import FLOAT32, FLOAT64, check
from plugrad.tests.conformance.checks.memory import packed
from plugrad.tests.conformance.subject import Case, Subject, close, epsilon, finfo, loss_dtype, naming_the_call
from plugrad.tests.records import Record
from plugrad.tests.records._record import LOGARITHMS_OF_PROBABILITIES

DType = np.dtype[Any]
NAN, INF = np.nan, np.inf


def takes_logits(kernel: Record) -> bool:
    """Whether the kernel takes a softmax of its first argument."""
    return kernel.arguments[0] == "x" and cases.has_axis(kernel) and not cases.is_accuracy(kernel)


def is_elementwise(kernel: Record) -> bool:
    """Whether each element of the result comes from one element of each argument."""
    return not cases.has_axis(kernel) and not cases.is_product(kernel)


def extremes(dtype: DType) -> tuple[float, float, float]:
    """The largest finite number, the smallest normal and the smallest subnormal one."""
    of = finfo(dtype)
    return float(of.max), float(of.smallest_normal), float(of.smallest_subnormal)


@check(takes_logits)
def special_logits(subject: Subject, kernel: Record, dtype: DType) -> None:
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
            with naming_the_call(subject, case):
                for name, value, true in zip(kernel.results, got, exact, strict=True):
                    wanted = result_dtype(name, dtype)
                    values = np.asarray(subject.numpy(value)).astype(np.float64)
                    for row in range(len(x)):
                        tolerance = subject.tolerance(kernel, name, dtype)
                        close(f"{name} of logits {x[row]}", values[row], overflowed(true[row], wanted), *tolerance)


@check(is_elementwise)
def special_numbers(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Every pair of huge, tiny, infinite and undefined numbers."""
    most, normal, tiny = extremes(dtype)
    numbers = [0.0, -0.0, 1.0, -1.0, 0.3, -17.0, 17.0, -88.0, -95.0, -104.0, 89.0, -700.0, -746.0, 710.0]
    small = [normal, normal / 2, 3 * tiny, tiny]
    numbers += [most, -most, *small, *(-number for number in small), INF, -INF, NAN]
    numbers += [0.5, float(np.nextafter(np.float32(1), np.float32(0)))]
    roles = []
    names = [name for name in kernel.arguments if name != "dloss"]
    for name in names:
        smallest, largest = kernel.domain.get(name, (-INF, INF))
        roles.append([x for x in numbers if not (x < smallest or x > largest or (name == "t" and np.isnan(x)))])
    grid = np.array(list(itertools.product(*roles))).astype(dtype)
    for repeats in (1, 3000 // len(grid) + 1):
        inputs = {name: np.tile(grid[:, i], repeats) for i, name in enumerate(names)}
        case = Case(kernel, inputs, about="special numbers")
        if cases.is_binary(kernel):
            case = cases.with_a_loss_for_each(Case(kernel, {**inputs, "dloss": 0.7}, about=case.about))
        for variant in cases.variants(case):
            _check_numbers(subject, variant, dtype)


def _check_numbers(subject: Subject, case: Case, dtype: DType) -> None:
    """Assert that each element is right, relative to itself or to the sum of the magnitudes of its terms."""
    kernel, exact = case.kernel, case.expected()
    names = [name for name in kernel.arguments if name != "dloss"]
    for name, value, true, size in zip(kernel.results, subject.call(case), exact, case.sizes(exact), strict=True):
        with np.errstate(all="ignore"):
            true = overflowed(true, result_dtype(name, dtype))
        values = np.asarray(subject.numpy(value)).astype(np.float64)
        relative, absolute = subject.tolerance(kernel, name, dtype)
        with np.errstate(invalid="ignore"):
            right = (values == true) | (np.abs(values - true) <= relative * np.abs(size) + 2 * absolute)
        right |= np.isnan(values) & np.isnan(true)
        if kernel.terms is not None:  # infinity times a slope that is 0 in the dtype, or not
            right |= np.isinf(size) & ~np.isfinite(values)
        wrong = np.argwhere(~right)
        assert not len(wrong), (
            f"{kernel.name} of {[float(case.inputs[n][wrong[0][0]]) for n in names]}, {dict(case.options)}: "
            f"{name}: expected {true[tuple(wrong[0])]}, got {values[tuple(wrong[0])]}"
        )


@check(lambda kernel: not kernel.tolerance)
def numbers_come_through_bit_for_bit(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Kernels that round nothing, such as ReLU, are exact for subnormal numbers too; a 0 may have either sign."""
    rng = np.random.default_rng(0)
    bits = np.dtype(f"uint{8 * dtype.itemsize}")
    every = np.arange(2**16) if dtype.itemsize == 2 else rng.integers(0, 2 ** (8 * dtype.itemsize), 2**16, np.uint64)
    subnormal = rng.integers(0, np.array(extremes(dtype)[1], dtype).view(bits), 2**10, np.uint64)
    for integers in (every, subnormal, subnormal[:40]):
        x = integers.astype(bits).view(dtype)
        other = rng.permutation(x)
        for inputs in ({"x": x}, {"dy": x, "y": x}, {"dy": x, "y": other}, {"dy": other, "y": x}):
            if set(inputs) != set(kernel.arguments):
                continue
            case = Case(kernel, inputs, about="patterns of bits")
            (got,) = subject.call(case)
            exact = case.expected()[0]
            with np.errstate(invalid="ignore"):  # a signalling NaN
                values = np.asarray(subject.numpy(got)).astype(np.float64)
            wrong = np.argwhere(~((values == exact) | (np.isnan(values) & np.isnan(exact))))
            assert not len(wrong), (
                f"{kernel.name} of {[float(a[wrong[0][0]]) for a in inputs.values()]}: "
                f"expected {exact[tuple(wrong[0])]}, got {values[tuple(wrong[0])]}"
            )


@check(lambda kernel: kernel.subnormal is not None)
def subnormal_rows(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Results too small to be normal are not flushed to 0."""
    _, normal, tiny = extremes(dtype)
    depth = -np.log(normal) + 1.5  # of a logit whose exponential is subnormal
    assert kernel.subnormal is not None
    given = kernel.subnormal(depth, normal, tiny)
    for repeats, classes in itertools.product((1, 70, 3000), (3, 40)):
        inputs = {
            name: np.tile(np.array([*row, *[padding] * (classes - len(row))]), (repeats, 1)).astype(dtype)
            for name, (row, padding) in given.items()
        }
        case = Case(kernel, inputs, about=f"{repeats} subnormal rows")
        exact = case.expected()[0]
        values = np.asarray(subject.numpy(subject.call(case)[0])).astype(np.float64)
        # An ulp is the same for all of them; the exponential, the product and the sum are off by one at most.
        relative = (2 * depth + 16) * epsilon(loss_dtype(dtype)) + epsilon(dtype)
        with naming_the_call(subject, case):
            _each("result", values, exact, relative, 4 * tiny)


def _each(name: str, got: Any, exact: Any, relative: float, absolute: float) -> None:
    """Assert that every element is right relative to itself."""
    wrong = ~(np.abs(got - exact) <= relative * np.abs(exact) + absolute)
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0])
        raise AssertionError(f"{name}{[int(i) for i in where]}: expected {exact[where]}, got {got[where]}")


@check()
def nan_stays_in_its_row(subject: Subject, kernel: Record, dtype: DType) -> None:
    """NaN or infinity in a row of any argument poisons what is computed from it, and nothing else."""
    rows, place = 70, 33
    for classes in (5, 40):
        plain = sample(kernel, rows, classes, dtype)
        if cases.is_any_loss(kernel):
            plain = cases.with_a_loss_for_each(plain)
            plain.inputs["t"][place] = 1 if cases.is_binary(kernel) else 2  # the class that is poisoned
        clean = subject.call(plain)
        for name, bad in itertools.product(kernel.arguments, (NAN, INF)):
            x = plain.inputs[name]
            if name == "t" or not isinstance(x, np.ndarray):
                continue
            poisoned = x.copy()
            poisoned[2 if name in ("w", "b") else place, *[2] * (x.ndim - 1)] = bad
            case = Case(
                kernel, {**plain.inputs, name: poisoned}, plain.options, about=f"{bad} in row {place} of {name}"
            )
            with naming_the_call(subject, case):
                got, exact = subject.call(case), case.expected()
                largest = case.largest(exact)
                for result, value, before, true, size in zip(kernel.results, got, clean, exact, largest, strict=True):
                    a, b = (np.asarray(subject.numpy(v)).astype(np.float64) for v in (value, before))
                    if name not in ("w", "b") and a.shape[:1] == (rows,) and result not in ("dw", "db"):
                        others = np.arange(rows) != place
                        assert np.array_equal(a[others], b[others]), f"{result}: another row than {place} changed"
                    relative, absolute = subject.tolerance(kernel, result, dtype)
                    if bad is INF:  # inf - inf or inf: it depends on how the formula is written
                        a = np.where(np.isfinite(a) | np.isfinite(true), a, true)
                    close(result, a, true, relative, relative * size + absolute)


@check(lambda kernel: "p" in kernel.arguments)
def special_probabilities(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Probabilities of 0, of the smallest numbers, 1, infinity and NaN: nothing is added to them, nothing cut off."""
    _, normal, tiny = extremes(dtype)
    numbers = np.array([0.0, -0.0, tiny, 3 * tiny, normal / 2, normal, 0.3, 1.0, INF, NAN])
    for repeats, smoothing in itertools.product((1, 30), (0.0, 0.1)):
        p = np.full((len(numbers) * repeats, 3), 0.25)
        p[:, 1] = np.tile(numbers, repeats)
        t = np.ones(len(p), np.int64)
        for labels in (t, np.eye(3)[t]):
            inputs = {"p": p.astype(dtype), "t": labels, "dloss": np.full(len(p), 1.0, loss_dtype(dtype))}
            options = {"reduction": "none", "label_smoothing": smoothing}
            case = Case(kernel, inputs, options, about="special probabilities")
            (name,) = kernel.results
            wanted = result_dtype(name, dtype)
            values = np.asarray(subject.numpy(subject.call(case)[0])).astype(np.float64)
            exact = overflowed(case.expected()[0], wanted)
            # Every gradient is negative, but that at -0.0, where it may be: the sign of its infinity means nothing.
            values, exact = (-np.abs(a) if name == "dp" else a for a in (values, exact))
            with naming_the_call(subject, case):
                for row, got, true in zip(p, values, exact, strict=True):
                    close(f"{name} of probabilities {row}", got, true, *subject.tolerance(kernel, name, dtype))


@check(lambda kernel: kernel.domain.get("y") == LOGARITHMS_OF_PROBABILITIES)
def impossible_classes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Where the logarithm of a probability is ``-inf``, the gradient that arrives goes on as it is."""
    for rows, classes in ((3, 4), (70, 40), (3000, 5)):
        case = sample(kernel, rows, classes, dtype)
        y = case.inputs["y"].copy()
        y[:, 1] = -INF
        impossible = Case(kernel, {**case.inputs, "y": y}, about=f"{case.about}, one of them impossible")
        subject.compare(impossible, subject.call(impossible))


@check(cases.is_loss)
def ignored_rows_count_for_nothing(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Rows with the ignored label add nothing and get exact zeros, whatever their logits and upstream gradients."""
    rng = np.random.default_rng(0)
    first = cases.rows_of(kernel)
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
        with naming_the_call(subject, case):
            for name, value, exact in zip(kernel.results, subject.call(case), alone, strict=True):
                a, b = (np.asarray(subject.numpy(v)).astype(np.float64) for v in (value, exact))
                relative, absolute = subject.tolerance(kernel, name, dtype)
                if a.ndim and name not in ("dw", "db"):
                    if name == "loss" or name.startswith("d"):
                        assert (a[~kept] == 0).all(), f"{name}: expected zeros in ignored rows, got {a[~kept]}"
                    a = a[kept]
                close(name, a, b, relative, absolute)


@check(cases.is_loss)
def where_nothing_counts(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Loss and gradient are 0, not NaN, whatever their arrays held: no rows, all ignored, no weight, labels of 0."""
    one_hot, unweighted = np.array([1.0, 0.0]), {"weight": np.array([0.0, 1.0], np.float32)}
    nothing: tuple[tuple[int, Any, dict[str, Any]], ...] = (
        (0, 0, {}),
        (0, one_hot, {}),
        (3, 0, {"ignore_index": 0}),
        (3, 0, {"ignore_index": 0, "label_smoothing": 0.1}),
        (2000, 0, {"ignore_index": 0}),
        (3, 0, unweighted),
        (3, one_hot, unweighted),
        (3, 0 * one_hot, {}),
    )
    for (rows, label, others), reduction in itertools.product(nothing, ("mean", "sum", "none")):
        options = {**others, "reduction": reduction}
        by_weight = "weight" in options and reduction == "mean" and not np.ndim(label)
        x = np.full((rows, 2), NAN if "ignore_index" in options or by_weight else 0.5).astype(dtype)
        dloss = np.ones(rows, np.float32) if reduction == "none" else 1.0
        t = np.full((rows, *np.shape(label)), label, np.float64 if np.ndim(label) else np.int64)
        inputs = {**cases.with_rows(kernel, x), "t": t, "dloss": dloss}
        case = Case(kernel, inputs, options, about=f"{rows} rows, labels {label}, {options}")
        got = subject.call(case)
        subject.compare(case, got)
        stale = tuple(subject.full(value.shape, value.dtype, NAN) for value in got)
        got = subject.call(case, out=packed(stale))
        with naming_the_call(subject, case):
            for name, value in zip(kernel.results, got, strict=True):
                values = np.asarray(subject.numpy(value)).astype(np.float64)
                assert name == "y" or (values == 0).all(), f"{name}: expected 0, got {values}"


@check(cases.is_loss)
def labels_of_zero_on_impossible_classes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """A label of 0 adds 0 even where the logarithm of the probability is ``-inf``; any other is infinite."""
    logits, probabilities = [[0.0, 0.0, -INF], [0.0, -INF, 1.0]], [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]]
    inputs = cases.with_rows(kernel, np.array(logits if cases.rows_of(kernel) == "x" else probabilities).astype(dtype))
    if cases.is_product(kernel):  # a class that the biases rule out
        inputs |= {"x": np.array([[0.0, 0.0, 0.5], [0.0, 2.0, 1.0]], dtype), "b": np.array([0.0, 0.0, -INF], dtype)}
    labels = (
        np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]),
        np.array([[0.5, 0.25, 0.25], [1.0, 1.0, 0.0]]),
        np.array([0, 2]),
        np.array([2, 1]),
    )
    for t, weight in itertools.product(labels, (None, np.array([1.0, 0.0, 0.0], np.float32), np.ones(3, np.float32))):
        given = {**inputs, "t": t, "dloss": np.ones(2, np.float32)}
        case = Case(kernel, given, {"reduction": "none", "weight": weight}, about="labels on impossible classes")
        subject.compare(case, subject.call(case))


@check(lambda kernel: kernel.budget is not None and kernel.budget.of == "logits")
def confident_rows_keep_their_accuracy(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Loss and gradient at the label of a row predicted with confidence, tiny as they are, are right to 8 ulp."""
    work = loss_dtype(dtype)
    depth = -np.log(extremes(work)[1])  # beyond it, what is left of the others is subnormal
    logits = (
        [depth + 1.5, 0.0],
        [depth + 6.25, 0.0, -2.0],
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
            with naming_the_call(subject, case):
                for name, value in zip(kernel.results, subject.call(case), strict=True):
                    got = np.asarray(subject.numpy(value)).astype(np.float64)
                    got = got.T if axis == 0 else got
                    if name == "loss":
                        _within(name, got, loss, 8 * epsilon(work), 2 * extremes(work)[2])
                    elif name == "y" and not cases.is_loss(kernel):
                        _within(name, got[:, 0], -loss, 8 * epsilon(work) + epsilon(dtype), 2 * extremes(dtype)[2])
                    elif name == "dx":
                        _within(name, got[:, 0], slope, 8 * epsilon(work) + epsilon(dtype), 2 * extremes(dtype)[2])


def _within(name: str, got: Any, exact: float, relative: float, absolute: float = 0.0) -> None:
    worst = np.abs(got - exact).max()
    assert worst <= relative * abs(exact) + absolute, (
        f"{name}: expected {exact}, got {got[np.abs(got - exact).argmax()]}"
    )


@check(cases.is_loss, dtypes=(FLOAT32, FLOAT64))
def tiny_weights(subject: Subject, kernel: Record, dtype: DType) -> None:
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
