"""Values against the oracles: every size, axis, dtype and option."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import reshaped, sample
from plugrad.tests.conformance.checks._check import FLOAT32, FLOAT64, check
from plugrad.tests.conformance.checks.memory import same
from plugrad.tests.conformance.subject import DTYPES, Case, Subject, close, epsilon, loss_dtype, naming_the_call
from plugrad.tests.records import Record

DType = np.dtype[Any]


@check()
def shapes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Sizes near those at which a backend may switch its algorithm."""
    for rows, classes in cases.SHAPES:
        for case in cases.variants(sample(kernel, rows, classes, dtype)):
            subject.compare(case, subject.call(case))


@check()
def numbers_of_classes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Sizes near the width of every vector and block."""
    for classes in cases.CLASSES:
        for rows in (3,) if classes > 100 else (2, 70):
            case = sample(kernel, rows, classes, dtype)
            subject.compare(case, subject.call(case))


@check()
def large_arrays(subject: Subject, kernel: Record, dtype: DType) -> None:
    """More than one block of work: few classes, and many; along the last axis, the first, and one between."""
    for rows, classes in cases.LARGE:
        if cases.is_product(kernel) and classes > 10:
            rows //= 10
        case = sample(kernel, rows, classes, dtype)
        exact = case.expected()
        subject.compare(case, subject.call(case), exact)
        largest = case.largest(exact)
        for lead, axis in (((rows,), 0), ((rows // 10, 10), 1)) if cases.has_axis(kernel) else ():
            moved = reshaped(case, lead, axis)
            with naming_the_call(subject, moved):
                for name, value, true, size in zip(kernel.results, subject.call(moved), exact, largest, strict=True):
                    values = np.asarray(subject.numpy(value)).astype(np.float64)
                    relative, absolute = subject.tolerance(kernel, name, dtype)
                    rowwise = np.moveaxis(values, axis, -1).reshape(true.shape) if values.ndim else values
                    close(name, rowwise, np.asarray(true), relative, relative * size + absolute)


@check(cases.has_axis)
def any_axis(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Classes along any axis of arrays of several dimensions, and of matrices with as many rows as classes."""
    for lead, classes in (((5,), 5), ((6,), 4), ((3, 5), 4), ((40, 3), 26), ((7, 11), 130), ((2, 3, 4), 5)):
        plain = sample(kernel, int(np.prod(lead)), classes, dtype)
        for axis in range(-len(lead) - 1, len(lead) + 1):
            case = reshaped(plain, lead, axis)
            subject.compare(case, subject.call(case))


@check()
def leading_axes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """A single row without a batch axis, and batches of several axes."""
    for lead in ((), (1,), (2, 3), (2, 1, 3), (2, 0)):
        case = reshaped(sample(kernel, int(np.prod(lead)), 5, dtype), lead)
        subject.compare(case, subject.call(case))


@check(lambda kernel: "seed" in kernel.options)
def seeds_that_change(subject: Subject, kernel: Record, dtype: DType) -> None:
    """A seed in an array is read at each call, and one as a number drops the same elements."""
    case = sample(kernel, 40, 7, dtype)
    seed = subject.array(np.array(3, np.uint64))
    for value in (3, 2**63 + 5):
        seed[...] = np.uint64(value)
        changed = Case(kernel, case.inputs, {"seed": value}, about=f"{case.about}, seed {value} in an array")
        arrays = [subject.array(case.inputs[name]) for name in kernel.arguments]
        subject.compare(changed, subject.call_on(kernel, arrays, {"seed": seed}))


@check(lambda kernel: "b" in kernel.arguments)
def without_biases(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Without biases the results are those of biases of 0, the gradient of the biases included."""
    for lead, classes in (((), 5), ((1,), 1), ((2, 3), 5), ((300,), 30)):
        case = reshaped(sample(kernel, int(np.prod(lead)), classes, dtype), lead)
        without = Case(kernel, {n: x for n, x in case.inputs.items() if n != "b"}, about=f"{case.about}, b=None")
        subject.compare(without, subject.call(without))


@check(lambda kernel: "needs" in kernel.options)
def some_gradients_only(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The gradients that are asked for are those of the full call; in place of the others comes None."""
    for rows, classes in ((1, 1), (6, 5), (300, 30)):
        case = sample(kernel, rows, classes, dtype)
        full = subject.call(case)
        gradients = [name for name in kernel.results if name.startswith("d")]
        for wanted in itertools.product((True, False), repeat=len(gradients)):
            needs = tuple(itertools.compress(gradients, wanted))
            some = Case(kernel, case.inputs, {"needs": needs}, about=f"{case.about}, needs {needs}")
            if not needs:
                continue
            got = subject.call(some)
            subject.compare(some, got)
            with naming_the_call(subject, some):
                for name, one, other in zip(kernel.results, got, full, strict=True):
                    if name in needs or name not in gradients:
                        same(subject, kernel, name, one, other)


@check(lambda kernel: cases.has_axis(kernel) and "t" not in kernel.arguments, dtypes=(FLOAT32,))
def no_classes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Rows without classes give an empty array, along any axis, in a new array and in `out`."""
    for shape, axis in (((3, 0), -1), ((0,), 0), ((2, 0, 4), 1), ((0, 0), -1)):
        inputs = {name: np.empty(shape, dtype) for name in kernel.arguments}
        case = Case(kernel, inputs, {"axis": axis}, about=f"shape {shape}, axis {axis}")
        with naming_the_call(subject, case):
            for out in (None, subject.empty(shape, dtype)):
                (got,) = subject.call(case, out=out)
                assert (got.shape, got.dtype) == (shape, dtype), (
                    f"expected {shape} {dtype}, got {got.shape} {got.dtype}"
                )
                assert out is None or got is out, "the array given as out is not the one that came back"


@check()
def no_rows(subject: Subject, kernel: Record, dtype: DType) -> None:
    """An empty batch: results of the right shapes, a loss of 0."""
    case = sample(kernel, 0, 4, dtype)
    subject.compare(case, subject.call(case))


@check(dtypes=(FLOAT64,))
def sequences_and_integers(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Python sequences, integers and booleans become float64."""
    case = sample(kernel, 3, 4, dtype)
    whole = {
        n: np.ones_like(x, np.int16) if n != "k" and getattr(x, "dtype", None) == FLOAT64 else x
        for n, x in case.inputs.items()
    }
    integers = Case(kernel, whole, about="integers in place of floating numbers")
    doubles = {n: x.astype(dtype) if getattr(x, "dtype", None) == np.int16 else x for n, x in whole.items()}
    subject.compare(Case(kernel, doubles, about=integers.about), subject.call(integers))
    if subject.backend.arrays == "numpy":  # other libraries move no data by themselves
        lists = [x.tolist() if isinstance(x, np.ndarray) else x for x in (case.inputs[n] for n in kernel.arguments)]
        subject.compare(case, subject.call_on(kernel, lists, {}))


@check(
    lambda kernel: len(kernel.arguments) > 1 and (cases.is_product(kernel) or "t" not in kernel.arguments),
    dtypes=(FLOAT32,),
)
def mixed_dtypes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Results have the dtype that NumPy's promotion gives; float16 with bfloat16 gives float32."""
    for first in DTYPES:
        for second in DTYPES:
            wanted = (
                FLOAT32
                if {first.itemsize, second.itemsize} == {2} and first != second
                else max(first, second, key=lambda d: d.itemsize)
            )
            _promoted(subject, kernel, first, second, wanted)


@check(
    lambda kernel: len(kernel.arguments) > 1 and (cases.is_product(kernel) or "t" not in kernel.arguments),
    dtypes=(FLOAT32,),
)
def integers_with_floats(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Integers and booleans are promoted with floating arrays as NumPy's ``@`` and ``+`` promote them."""
    for first, second in itertools.product(DTYPES, ("bool", "uint8", "int16", "int64")):
        like = np.dtype(np.float16) if first.name == "bfloat16" else first  # NumPy knows it with small integers only
        wanted = np.result_type(like, second)
        _promoted(subject, kernel, first, np.dtype(second), first if wanted == like else wanted)


def _promoted(subject: Subject, kernel: Record, first: DType, second: DType, wanted: DType) -> None:
    """Compare a call with arguments of two dtypes with the oracle's results for the promoted arguments."""
    case = sample(kernel, 6, 5, first)
    names = [name for name in kernel.arguments if name in case.inputs]
    for position in (0, 1):
        given = (
            abs(case.inputs[names[position]]).astype(second) if second.kind in "iub" else case.inputs[names[position]]
        )
        inputs = {**case.inputs, names[position]: given.astype(second)}
        wide = {n: inputs[n] if n in ("t", "k") else inputs[n].astype(wanted) for n in names}
        promoted = Case(kernel, wide, about=f"{first} with {second} as {names[position]}")
        got = subject.call(Case(kernel, inputs, about=promoted.about))
        subject.compare(promoted, got)


def _loss_options(form: str) -> Any:
    def every_option(subject: Subject, kernel: Record, dtype: DType) -> None:
        for case in cases.options_of_losses(kernel, dtype, form):
            subject.compare(case, subject.call(case))

    every_option.__doc__ = f"Every combination of options, with {form}."
    every_option.__name__ = f"options_with_{form.replace(' ', '_').replace('-', '_')}"
    return every_option


for _form in (cases.INDICES, cases.ONE_HOT, cases.SOFT):
    check(cases.is_loss)(_loss_options(_form))


@check(cases.is_loss)
def options_of_large_arrays(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Options together, for many rows and for many classes."""
    for case in cases.options_of_large_losses(kernel, dtype):
        subject.compare(case, subject.call(case))


@check(cases.is_any_loss)
def weights_and_upstream_gradients_of_every_dtype(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The dtypes of the weights and of the gradient that arrives do not have to be that of the rows."""
    _, _, plain = cases.samples(kernel, 40, 7, dtype)
    for name, other in itertools.product(("weight", "dloss"), (*DTYPES, np.dtype(np.int32))):
        inputs, options = dict(plain.inputs), dict(plain.options)
        if name == "weight":
            options[name] = (4 * options[name]).astype(other)
        elif name in inputs:
            inputs[name] = (4 * inputs[name]).astype(other)
        else:
            continue
        case = Case(kernel, inputs, options, about=f"{name} {other}")
        subject.compare(case, subject.call(case))


@check(cases.is_loss, dtypes=(FLOAT32,))
def labels_of_every_dtype(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Class indices of any integer dtype; labels per class of any real one, booleans included."""
    case = sample(kernel, 40, 200, dtype)  # more classes than int8 can count
    for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        t = (case.inputs["t"] % min(200, np.iinfo(name).max + 1)).astype(name)
        moved = Case(kernel, {**case.inputs, "t": t}, about=f"labels {name}")
        subject.compare(moved, subject.call(moved))
    one_hot = np.eye(200)[case.inputs["t"]]
    for name in ("bool", "int8", "uint64", "float16", "float32", "float64"):
        moved = Case(kernel, {**case.inputs, "t": one_hot.astype(name)}, about=f"one-hot labels {name}")
        subject.compare(moved, subject.call(moved))


@check(lambda kernel: kernel.composed is not None)
def fused_equals_composed(subject: Subject, kernel: Record, dtype: DType) -> None:
    """A kernel that does several things at once gives what the kernels for each of them give."""
    for case in _options_of_fused(kernel, dtype):
        tame = {n: np.clip(x, -3, 3) if n == "x" else x for n, x in case.inputs.items()}  # no probability of 0
        composed = Case(kernel, tame, case.options, about=f"{case.about}, against the kernels it is made of")
        got = subject.call(composed)
        parts = subject.composed(composed)
        exact = tuple(np.asarray(subject.numpy(part)).astype(np.float64) for part in parts)
        # Each side is rounded by itself, the composed one in between too.
        subject.compare(composed, got, exact, slack=2 + 2 * _ulps_between(dtype))


def _options_of_fused(kernel: Record, dtype: DType) -> Iterator[Case]:
    if cases.is_binary(kernel):
        yield from cases.options_of_elements(kernel, dtype)
    else:
        for form in (cases.INDICES, cases.SOFT):
            for case in cases.options_of_losses(kernel, dtype, form):
                if "z_loss" not in case.options or cases.is_product(kernel):  # which no other kernel has
                    yield case


def _ulps_between(dtype: DType) -> float:
    """Half an ulp of `dtype` in the epsilon of what is computed in."""
    return 0.5 * epsilon(dtype) / epsilon(loss_dtype(dtype))


@check(lambda kernel: "seed" not in kernel.options)
def rows_are_independent(subject: Subject, kernel: Record, dtype: DType) -> None:
    """A row computed alone gives what it gives in a batch."""
    rows = 70
    for classes in (5, 40):
        case = sample(kernel, rows, classes, dtype)
        if cases.is_any_loss(kernel):
            case = cases.with_a_loss_for_each(case)
        whole = subject.call(case)
        for row in (0, 1, 63, 69):
            alone = Case(
                kernel, {n: _row(x, row, rows, n) for n, x in case.inputs.items()}, case.options, f"row {row} alone"
            )
            got = subject.call(alone)
            for name, one, all_rows in zip(kernel.results, got, whole, strict=True):
                if all_rows.shape[:1] != (rows,) or name in ("dw", "db"):
                    continue
                a = np.asarray(subject.numpy(one)).astype(np.float64).reshape(-1)
                b = np.asarray(subject.numpy(all_rows))[row].astype(np.float64).reshape(-1)
                relative, absolute = subject.tolerance(kernel, name, dtype, slack=2)
                largest = np.abs(a[np.isfinite(a)]).max(initial=0.0)
                assert np.allclose(a, b, rtol=0, atol=2 * relative * largest + absolute, equal_nan=True), (
                    f"{kernel.name}: {name}: row {row} alone gives {a}, in a batch {b}"
                )


def _row(x: Any, row: int, rows: int, name: str) -> Any:
    shared = not isinstance(x, np.ndarray) or not x.ndim or name in ("w", "b") or len(x) != rows
    return x if shared else x[row : row + 1]


@check(lambda kernel: "loss" in kernel.results)
def mean_of_many_rows(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The sum over 300,000 rows is taken in a type that holds it, and keeps its accuracy."""
    case = sample(kernel, 300_000, 2, dtype)
    rows = np.tile(np.array([0.75, 0.25]).astype(dtype), (300_000, 1))
    for reduction in ("mean", "sum"):
        t = np.zeros(rows.shape if cases.is_binary(kernel) else len(rows), np.int64)
        inputs = {**case.inputs, **cases.with_rows(kernel, rows), "t": t}
        many = Case(kernel, inputs, {"reduction": reduction}, about="300,000 equal rows")
        first = {**cases.with_rows(kernel, rows[:1]), "t": t[:1]}
        one = Case(kernel, first, {"reduction": reduction})
        exact = float(one.expected()[0]) * (1 if reduction == "mean" else 300_000)
        got = float(subject.numpy(subject.call(many)[0]))
        assert abs(got - exact) <= 32 * epsilon(loss_dtype(dtype)) * abs(exact), (
            f"{kernel.name}: {reduction} of 300,000 rows: expected {exact}, got {got}"
        )


@check(lambda kernel: "dw" in kernel.results)
def gradients_of_parameters_over_many_rows(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Sums over many rows keep their accuracy: float32 added up one by one would drift."""
    rows = 100_000 if cases.is_loss(kernel) else 1_000_000
    x = np.ones((rows, 1), dtype)
    if cases.is_loss(kernel):
        t = np.zeros(rows, np.int64)
        inputs = {"x": x, "w": np.array([[0.3, -0.2]], dtype), "b": np.zeros(2, dtype), "t": t}
        one = Case(kernel, {**inputs, "x": x[:1], "t": t[:1]})  # the mean over equal rows is that over one
    else:
        scale = 2.0**-6 if dtype == np.float16 else 1.0  # what float16 can hold
        dy = (np.full((rows, 1), 0.1).astype(dtype).astype(np.float64) * scale).astype(dtype)
        inputs = {"dy": dy, "x": x, "w": np.ones((1, 1), dtype)}
        one = Case(kernel, {**inputs, "dy": rows * dy[:1].astype(np.float64), "x": x[:1]})
    got = dict(zip(kernel.results, subject.call(Case(kernel, inputs, about=f"{rows} equal rows")), strict=True))
    for name, exact in zip(kernel.results, one.expected(), strict=True):
        if name not in ("dw", "db"):
            continue
        value, true = (np.asarray(a).astype(np.float64).reshape(-1)[0] for a in (subject.numpy(got[name]), exact))
        # Nothing is wider than float64 to add up in: a BLAS that takes a million equal numbers one by one is right.
        drift = 2**16 if dtype == FLOAT64 else 32
        limit = 0.5 * epsilon(dtype) + drift * epsilon(loss_dtype(dtype))
        assert abs(value - true) <= limit * abs(true), f"{name}: expected {true}, got {value}"
