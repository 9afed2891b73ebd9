"""Memory: where results go, how arguments lie, and what may not be touched."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import reshaped, sample
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.subject import Case, Subject, naming_the_call
from plugrad.tests.records import Record

DType = np.dtype[Any]


def packed(out: tuple[Any, ...]) -> Any:
    """`out` as a kernel with so many results takes it."""
    return out[0] if len(out) == 1 else out


def bits(subject: Subject, x: Any) -> bytes:
    """All there is in an array, the signs of zeros and the kinds of NaN included."""
    return np.ascontiguousarray(subject.numpy(x)).tobytes()


def same(subject: Subject, kernel: Record, name: str, one: Any, other: Any) -> None:
    """Assert that two results have the same bits; products may differ, because the order of their sums may."""
    a, b = (np.asarray(subject.numpy(x)) for x in (one, other))
    if not cases.is_product(kernel):
        different = a.tobytes() != b.tobytes() and not np.array_equal(a.astype(float), b.astype(float), equal_nan=True)
        assert not different, f"{name}: {_first_difference(a, b)}"
        return
    relative, absolute = subject.tolerance(kernel, name, a.dtype, slack=2)
    largest = np.abs(b.astype(float)).max(initial=0.0)
    off = np.abs(a.astype(float) - b.astype(float)).max(initial=0.0)
    assert off <= 2 * relative * largest + absolute, f"{name}: off by {off}: {_first_difference(a, b)}"


def _first_difference(a: Any, b: Any) -> str:
    x, y = a.astype(float), b.astype(float)
    where = np.argwhere(~((x == y) | (np.isnan(x) & np.isnan(y))))
    return (
        "equal" if not len(where) else f"at {where[0].tolist()} {x[tuple(where[0])]!r}, expected {y[tuple(where[0])]!r}"
    )


@check()
def results_go_to_out(subject: Subject, kernel: Record, dtype: DType) -> None:
    """`out` of any layout, whatever it held, gets what a call without it returns, and is returned itself."""
    for rows, classes in ((5, 4), (300, 30)):
        _goes_to_out(subject, sample(kernel, rows, classes, dtype))


@check(lambda kernel: "loss" in kernel.results, dtypes=(FLOAT32,))
def losses_of_rows_go_to_out(subject: Subject, kernel: Record, dtype: DType) -> None:
    """`out` of any layout gets the loss of each row, for class indices and for labels per class."""
    indices, soft, _ = cases.samples(kernel, 5, 4, dtype)
    for case in (indices, soft):
        _goes_to_out(subject, Case(kernel, case.inputs, {"reduction": "none"}, f"{case.about}, a loss for each"))


def _goes_to_out(subject: Subject, case: Case) -> None:
    kernel, expected, about = case.kernel, subject.call(case), case.about
    for layout, held in itertools.product((None, *cases.ANYWHERE), (np.nan, 7.0)):
        case.about = f"{about}, out {layout.__name__ if layout else 'contiguous'} that held {held}"
        out = tuple(_held(subject, value, layout, held) for value in expected)
        got = subject.call(case, out=packed(out))
        with naming_the_call(subject, case):
            for name, array, returned, value in zip(kernel.results, out, got, expected, strict=True):
                assert returned is array, f"{name}: the array given as out is not the one that came back"
                same(subject, kernel, name, returned, value)


def _held(subject: Subject, like: Any, layout: cases.Layout | None, value: float) -> Any:
    array = subject.full(like.shape, like.dtype, value)
    return layout(subject, array) if layout and like.ndim else array


@check(lambda kernel: len(kernel.results) > 1, dtypes=(FLOAT32,))
def some_results_go_to_out(subject: Subject, kernel: Record, dtype: DType) -> None:
    """An entry of None in `out` gets a new array; the others are written to."""
    case = sample(kernel, 6, 5, dtype)
    expected = subject.call(case)
    for given in itertools.product((False, True), repeat=len(expected)):
        out = tuple(subject.full(v.shape, v.dtype, np.nan) if g else None for v, g in zip(expected, given, strict=True))
        for name, array, one, value in zip(kernel.results, out, subject.call(case, out=out), expected, strict=True):
            assert array is None or one is array, f"{name}: the array given as out is not the one that came back"
            same(subject, kernel, name, one, value)


@check(dtypes=(np.dtype(np.float16), FLOAT32))
def nothing_beside_out_is_written(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Memory between, before and after the elements of `out` does not change."""
    for rows, classes in ((5, 7), (3, 130), (70, 33)):
        case = sample(kernel, rows, classes, dtype)
        expected = subject.call(case)
        for step in (1, 2):
            frames = [subject.full(tuple(step * n + 64 for n in v.shape), v.dtype, 7) for v in expected]
            inner = [
                frame[tuple(slice(32, 32 + step * n, step) for n in v.shape)] if v.ndim else frame
                for frame, v in zip(frames, expected, strict=True)
            ]
            subject.call(case, out=packed(tuple(inner)))
            for name, frame, array in zip(kernel.results, frames, inner, strict=True):
                if frame.ndim:
                    array[...] = 7
                    untouched = np.asarray(subject.numpy(frame)).astype(float) == 7
                    assert untouched.all(), f"{name}: wrote beside out, at {np.argwhere(~untouched)[0].tolist()}"


@check()
def in_place(subject: Subject, kernel: Record, dtype: DType) -> None:
    """An argument of the shape and dtype of a result may be its `out`: as that object, or as another view of it."""
    shapes = ((6, 5), (300, 40), (70, 1100))
    given = [case for rows, classes in shapes for case in cases.samples(kernel, rows, classes, dtype)]
    for case in (*given, *cases.squares(kernel, dtype)):
        expected = subject.call(case)
        for (place, name), (position, result) in itertools.product(
            enumerate(kernel.arguments), enumerate(kernel.results)
        ):
            x, value = case.inputs[name], expected[position]
            if not value.ndim or getattr(x, "shape", None) != value.shape or x.dtype != value.dtype:
                continue
            for view in (False, True):
                arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
                options = {n: subject.array(option) for n, option in case.options.items()}
                target = arrays[place][...] if view else arrays[place]
                out = tuple(target if i == position else None for i in range(len(expected)))
                case.about = f"{result} written to {name}{', as another view of it' if view else ''}"
                with naming_the_call(subject, case):
                    got = subject.call_on(kernel, arrays, {**options, "out": packed(out)})
                    for other, one, exact in zip(kernel.results, got, expected, strict=True):
                        same(subject, kernel, other, one, exact)


@check(lambda kernel: cases.is_loss(kernel), dtypes=(FLOAT32,))
def in_place_of_the_weights(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The result for a single row, and the losses of as many rows as classes, may be written to their weights."""
    for classes, smoothing, single in itertools.product((5, 40, 300, 1100), (0.0, 0.1), (True, False)):
        case = reshaped(sample(kernel, 1, classes, dtype), ()) if single else sample(kernel, classes, classes, dtype)
        weight = np.random.default_rng(0).random(classes).astype(dtype)
        case.options = {"weight": weight, "label_smoothing": smoothing, "reduction": "mean" if single else "none"}
        if not single and kernel.backward is None and "dloss" in kernel.arguments:
            continue  # its result is never of that shape
        expected = subject.call(case)
        for place in (i for i, value in enumerate(expected) if value.shape == weight.shape):
            arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
            target = subject.array(weight)
            out = tuple(target if i == place else None for i in range(len(expected)))
            with naming_the_call(subject, case):
                got = subject.call_on(kernel, arrays, {**case.options, "weight": target, "out": packed(out)})
                for name, one, exact in zip(kernel.results, got, expected, strict=True):
                    same(subject, kernel, name, one, exact)


def alike(case: Case) -> Iterator[tuple[int, int]]:
    """The places of every two arguments of one shape and dtype."""
    arrays = [case.inputs[name] for name in case.kernel.arguments]
    for (i, one), (j, other) in itertools.combinations(enumerate(arrays), 2):
        both = getattr(one, "ndim", 0) and getattr(other, "ndim", 0)
        if both and one.shape == other.shape and one.dtype == other.dtype:
            yield i, j


@check(lambda kernel: len(kernel.arguments) > 1)
def one_array_for_two_arguments(subject: Subject, kernel: Record, dtype: DType) -> None:
    """One array may be two arguments at once, and the result be written to it besides."""
    given = [case for rows, classes in ((6, 5), (300, 40)) for case in cases.samples(kernel, rows, classes, dtype)]
    for case in (*given, *cases.squares(kernel, dtype)):
        for i, j in alike(case):
            first, second = kernel.arguments[i], kernel.arguments[j]
            about = f"{case.about}, one array for {first} and {second}"
            shared = case.inputs[second if second == "t" else first]  # any number may be a logit, but not a label
            both = Case(kernel, {**case.inputs, first: shared, second: shared}, case.options, about)
            expected = subject.call(both)
            for position in (None, *range(len(expected))):
                arrays = [subject.array(both.inputs[n]) for n in kernel.arguments]
                arrays[j] = arrays[i]
                options = {n: subject.array(option) for n, option in both.options.items()}
                if position is not None:
                    if expected[position].shape != arrays[i].shape or expected[position].dtype != arrays[i].dtype:
                        continue
                    options["out"] = packed(tuple(arrays[i] if k == position else None for k in range(len(expected))))
                with naming_the_call(subject, both):
                    for name, one, exact in zip(
                        kernel.results, subject.call_on(kernel, arrays, options), expected, strict=True
                    ):
                        same(subject, kernel, name, one, exact)


def right_or_refused(
    subject: Subject,
    case: Case,
    arrays: list[Any],
    out: tuple[Any, ...],
    expected: tuple[Any, ...],
    buffers: list[Any],
) -> None:
    """Assert that a call returns the expected results, or raises an error that names `out` and writes nothing."""
    before = [bits(subject, buffer) for buffer in buffers]
    with naming_the_call(subject, case):
        try:
            options = {name: subject.array(option) for name, option in case.options.items()}
            got = subject.call_on(case.kernel, arrays, {**options, "out": packed(out)})
        except ValueError as error:
            refusal = str(error)
        else:
            for name, one, exact in zip(case.kernel.results, got, expected, strict=True):
                same(subject, case.kernel, name, one, exact)
            return
        assert "out" in refusal, f"the error does not name out: {refusal}"
        assert [bits(subject, buffer) for buffer in buffers] == before, "refused, but something was written"


# Other orders of the elements of a square, and other elements in the same stretch of memory.
OTHER_VIEWS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "transposed": lambda x: (x[: len(x) // 2], x[: len(x) // 2].T),
    "from the last row to the first": lambda x: (x[: len(x) // 2], x[: len(x) // 2][::-1]),
    "from the last column to the first": lambda x: (x[: len(x) // 2], x[: len(x) // 2][:, ::-1]),
    "a row further": lambda x: (x[: len(x) // 2], x[1 : len(x) // 2 + 1]),
    "the rows between": lambda x: (x[::2], x[1::2]),
}


@check()
def out_in_another_order(subject: Subject, kernel: Record, dtype: DType) -> None:
    """An `out` that is an argument in another order, or lies between its rows: the right result, or an error."""
    for n in (7, 50):
        given = [case for case in cases.samples(kernel, n, n, dtype) if not cases.is_product(kernel)]
        for case in given or cases.squares(kernel, dtype)[:1]:
            expected = subject.call(case)
            for (place, name), position, (way, view) in itertools.product(
                enumerate(kernel.arguments), range(len(expected)), OTHER_VIEWS.items()
            ):
                x, value = case.inputs[name], expected[position]
                if getattr(x, "ndim", 0) != 2 or x.shape != value.shape or x.dtype != value.dtype:
                    continue
                memory = subject.full((2 * len(x), len(x)), dtype, 7)
                argument, target = view(memory)
                argument[...] = subject.array(x)
                arrays = [
                    argument if i == place else subject.array(case.inputs[k]) for i, k in enumerate(kernel.arguments)
                ]
                out = tuple(target if i == position else None for i in range(len(expected)))
                reported = Case(kernel, case.inputs, case.options, f"{kernel.results[position]} over {name}, {way}")
                right_or_refused(subject, reported, arrays, out, expected, [memory])


@check(lambda kernel: len(kernel.results) > 1, dtypes=(FLOAT32,))
def results_over_each_other(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Two results that share memory are refused, and nothing is written."""
    for case in (*cases.samples(kernel, 6, 5, dtype), *cases.squares(kernel, dtype)):
        case = Case(kernel, case.inputs, case.options, f"{case.about}, two results in the same memory")
        expected = subject.call(case)
        for one, other in itertools.combinations(range(len(expected)), 2):
            small, large = sorted((one, other), key=lambda k: expected[k].size)
            memory = subject.full((expected[large].size,), np.dtype(np.float64), 7)
            out: list[Any] = [None] * len(expected)
            for k in (large, small):
                out[k] = memory.view(expected[k].dtype)[: expected[k].size].reshape(expected[k].shape)
            arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
            right_or_refused(subject, case, arrays, tuple(out), expected, [memory])


@check(dtypes=(FLOAT32,))
def overlapping_out(subject: Subject, kernel: Record, dtype: DType) -> None:
    """An `out` that overlaps an argument in part gives the right result, or an error and nothing written."""
    case = sample(kernel, 6, 5, dtype)
    expected = subject.call(case)
    for place, name in enumerate(kernel.arguments):
        x = case.inputs[name]
        if not isinstance(x, np.ndarray) or x.dtype != dtype:
            continue
        for position, value in enumerate(expected):
            if not value.ndim or value.dtype != dtype:
                continue
            for shift in (1, 3):
                memory = subject.full((x.size + value.size + shift,), dtype, 7)
                argument = memory[: x.size].reshape(x.shape)
                argument[...] = subject.array(x)
                arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
                arrays[place] = argument
                target = memory[shift : shift + value.size].reshape(value.shape)
                out = tuple(target if i == position else None for i in range(len(expected)))
                case.about = f"{kernel.results[position]} over a part of {name}"
                right_or_refused(subject, case, arrays, out, expected, [memory])


@check()
def layouts_of_arguments(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Arguments of any strides, byte order and alignment, and that cannot be written; weights of classes too."""
    for rows, classes in ((6, 5), (30, 26), (70, 9)):
        for case in cases.samples(kernel, rows, classes, dtype):
            expected, about = case.expected(), case.about
            given = {**case.inputs, **case.options}
            arrays = {name for name, x in given.items() if getattr(x, "ndim", 0)}
            ways = [({name}, layout) for name in sorted(arrays) for layout in cases.layouts(subject)]
            for names, layout in (*ways, (arrays, cases.sliced)):
                moved = {
                    n: layout(subject, subject.array(x)) if n in names else subject.array(x) for n, x in given.items()
                }
                options = {name: moved.pop(name) for name in case.options}
                case.about = f"{about}, {' and '.join(sorted(names))} {layout.__name__}"
                with naming_the_call(subject, case):
                    got = subject.call_on(kernel, [moved[n] for n in kernel.arguments], options)
                    subject.compare(case, got, expected)


@check(dtypes=(np.dtype(np.float16), FLOAT32))
def broadcast_arguments(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Arguments with strides of 0: one row for the whole batch."""
    given = [(case, place) for case in cases.samples(kernel, 20, 26, dtype) for place in range(len(kernel.arguments))]
    for case, place in given:
        name = kernel.arguments[place]
        x = case.inputs[name]
        if not getattr(x, "ndim", 0):
            continue
        inputs = {**case.inputs, name: np.repeat(x[:1], len(x), axis=0)}
        repeated = Case(kernel, inputs, case.options, about=f"{case.about}, {name} with strides of 0")
        arrays = [subject.array(repeated.inputs[n]) for n in kernel.arguments]
        options = {n: subject.array(option) for n, option in case.options.items()}
        row = subject.array(x[:1])
        arrays[place] = np.broadcast_to(row, x.shape) if subject.backend.arrays == "numpy" else _broadcast(row, x.shape)
        with naming_the_call(subject, repeated):
            subject.compare(repeated, subject.call_on(kernel, arrays, options))


def _broadcast(row: Any, shape: tuple[int, ...]) -> Any:
    """`row` repeated without a copy, by the library that it belongs to."""
    namespace = inspect.getmodule(type(row))
    broadcast: Callable[..., Any] = getattr(namespace, "broadcast_to", lambda x, s: x.repeat(s[0], 0))
    return broadcast(row, shape)


@check(dtypes=(np.dtype(np.float16), FLOAT32))
def arguments_are_not_written(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Every argument holds afterwards what it held before."""
    for rows, classes in ((5, 4), (30, 26), (300, 40)):
        case = sample(kernel, rows, classes, dtype)
        options: dict[str, Any] = {}
        if cases.is_any_loss(kernel):
            options = {"weight": subject.array(np.random.default_rng(0).random(classes).astype(np.float32))}
            options["label_smoothing"] = 0.1
        arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
        watched = [x for x in (*arrays, options.get("weight")) if getattr(x, "ndim", 0)]
        before = [bits(subject, x) for x in watched]
        subject.call_on(kernel, arrays, options)
        for x, held in zip(watched, before, strict=True):
            assert bits(subject, x) == held, f"{kernel.name} wrote to an argument of shape {x.shape}"


@check(dtypes=(np.dtype(np.float16), FLOAT32))
def new_results_are_written_whole(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Results do not depend on what the memory of new arrays held before."""
    backend = subject.backend
    empty = backend.empty
    for rows, classes in ((5, 4), (70, 33), (2000, 10)):
        for options in ({}, {"ignore_index": 1}) if cases.is_any_loss(kernel) else ({},):
            case = sample(kernel, rows, classes, dtype)
            case.options = options
            results = []
            for held in (np.nan, 1e3):

                def stale(shape: tuple[int, ...], dtype: DType, held: float = held) -> Any:
                    array = empty(shape, dtype)
                    array[...] = -1 if dtype.kind == "i" and np.isnan(held) else held
                    return array

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(backend, "empty", stale)
                    results.append(subject.call(case))
            for name, one, other in zip(kernel.results, *results, strict=True):
                assert bits(subject, one) == bits(subject, other), (
                    f"{kernel.name}: {name} depends on the memory it is in"
                )
            subject.compare(case, results[0])
