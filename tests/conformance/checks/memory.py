"""Memory: where results go, how arguments lie, and what may not be touched."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plugrad.kernels import Kernel
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.subject import Case, Subject, told

DType = np.dtype[Any]


def takes_out(kernel: Kernel) -> bool:
    """Whether results can be written where the caller says."""
    return "out" in inspect.signature(kernel.function).parameters


def packed(out: tuple[Any, ...]) -> Any:
    """`out` as a kernel with so many results takes it."""
    return out[0] if len(out) == 1 else out


def bits(subject: Subject, x: Any) -> bytes:
    """All there is in an array, the signs of zeros and the kinds of NaN included."""
    return np.ascontiguousarray(subject.numpy(x)).tobytes()


def same(subject: Subject, kernel: Kernel, name: str, one: Any, other: Any) -> None:
    """Assert that two results are the same, bit for bit but for products, whose order of sums may differ."""
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


@check(takes_out)
def results_go_to_out(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """`out` of any layout, whatever it held, gets what a call without it returns, and is returned itself."""
    for rows, classes in ((5, 4), (300, 30)):
        case = sample(kernel, rows, classes, dtype)
        expected = subject.call(case)
        for layout, held in itertools.product((None, *cases.ANYWHERE), (np.nan, 7.0)):
            case.about = f"{rows} rows, out {layout.__name__ if layout else 'contiguous'} that held {held}"
            out = tuple(_held(subject, value, layout, held) for value in expected)
            got = subject.call(case, out=packed(out))
            with told(subject, case):
                for name, array, returned, value in zip(kernel.results, out, got, expected, strict=True):
                    assert returned is array, f"{name}: the array given as out is not the one that came back"
                    same(subject, kernel, name, returned, value)


def _held(subject: Subject, like: Any, layout: cases.Layout | None, value: float) -> Any:
    array = subject.full(like.shape, like.dtype, value)
    return layout(subject, array) if layout and like.ndim else array


@check(lambda kernel: takes_out(kernel) and len(kernel.results) > 1, dtypes=(FLOAT32,))
def some_results_go_to_out(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """An entry of None in `out` gets a new array; the others are written to."""
    case = sample(kernel, 6, 5, dtype)
    expected = subject.call(case)
    for given in itertools.product((False, True), repeat=len(expected)):
        out = tuple(subject.full(v.shape, v.dtype, np.nan) if g else None for v, g in zip(expected, given, strict=True))
        for name, array, one, value in zip(kernel.results, out, subject.call(case, out=out), expected, strict=True):
            assert array is None or one is array, f"{name}: the array given as out is not the one that came back"
            same(subject, kernel, name, one, value)


@check(takes_out, dtypes=(np.dtype(np.float16), FLOAT32))
def nothing_beside_out_is_written(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """What lies between, before and after the elements of `out` stays as it was."""
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


@check(takes_out)
def in_place(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """An argument of the shape and dtype of a result may be its `out`: as that object, or as another view of it."""
    given = [sample(kernel, rows, classes, dtype) for rows, classes in ((6, 5), (300, 40), (70, 1100))]
    if cases.is_product(kernel):  # squares, so that every argument has the shape of every result
        rng = np.random.default_rng(0)
        shapes = [{name: (n,) if name == "b" else (n, n) for name in kernel.arguments} for n in (3, 200)]
        given += [Case(kernel, {n: rng.normal(size=s).astype(dtype) for n, s in each.items()}) for each in shapes]
    for case in given:
        expected = subject.call(case)
        for (place, name), (position, result) in itertools.product(
            enumerate(kernel.arguments), enumerate(kernel.results)
        ):
            x, value = case.inputs[name], expected[position]
            if not value.ndim or getattr(x, "shape", None) != value.shape or x.dtype != value.dtype:
                continue
            for view in (False, True):
                arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
                target = arrays[place][...] if view else arrays[place]
                out = tuple(target if i == position else None for i in range(len(expected)))
                case.about = f"{result} written to {name}{', as another view of it' if view else ''}"
                with told(subject, case):
                    got = subject.call_on(kernel, arrays, {"out": packed(out)})
                    for other, one, exact in zip(kernel.results, got, expected, strict=True):
                        same(subject, kernel, other, one, exact)


@check(takes_out, dtypes=(FLOAT32,))
def overlapping_out(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """An `out` that overlaps an argument in part gives the right result, or an error and nothing written."""
    case = sample(kernel, 6, 5, dtype)
    expected = subject.call(case)
    for place, name in enumerate(kernel.arguments):
        x = case.inputs[name]
        if not isinstance(x, np.ndarray) or x.dtype != dtype:
            continue
        for position, value in enumerate(expected):
            if not value.ndim:
                continue
            for shift in (1, 3):
                room = subject.full((x.size + value.size + shift,), dtype, 7)
                argument = room[: x.size].reshape(x.shape)
                argument[...] = subject.array(x)
                arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
                arrays[place] = argument
                before = bits(subject, room)
                target = room[shift : shift + value.size].reshape(value.shape)
                out = tuple(target if i == position else None for i in range(len(expected)))
                case.about = f"{kernel.results[position]} over a part of {name}"
                with told(subject, case):
                    try:
                        got = subject.call_on(kernel, arrays, {"out": packed(out)})
                    except ValueError as error:
                        refusal = str(error)
                    else:
                        same(subject, kernel, kernel.results[position], got[position], value)
                        continue
                    assert "out" in refusal, f"the error does not name out: {refusal}"
                    assert bits(subject, room) == before, "refused, but something was written"


@check()
def layouts_of_arguments(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Arguments of any strides, byte order and alignment, and that cannot be written."""
    for rows, classes in ((6, 5), (30, 26), (70, 9)):
        case = sample(kernel, rows, classes, dtype)
        expected = case.expected()
        for place, name in enumerate(kernel.arguments):
            if not getattr(case.inputs[name], "ndim", 0):
                continue
            for layout in cases.layouts(subject):
                arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
                arrays[place] = layout(subject, arrays[place])
                case.about = f"{rows} rows, {name} {layout.__name__}"
                with told(subject, case):
                    subject.compare(case, subject.call_on(kernel, arrays, {}), expected)
        everything = [
            cases.sliced(subject, subject.array(x)) if getattr(x, "ndim", 0) else x
            for x in (case.inputs[n] for n in kernel.arguments)
        ]
        case.about = f"{rows} rows, all arguments sliced"
        subject.compare(case, subject.call_on(kernel, everything, {}), expected)


@check(dtypes=(np.dtype(np.float16), FLOAT32))
def broadcast_arguments(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Arguments with strides of 0: one row for the whole batch."""
    case = sample(kernel, 20, 26, dtype)
    for place, name in enumerate(kernel.arguments):
        x = case.inputs[name]
        if not getattr(x, "ndim", 0):
            continue
        repeated = Case(
            kernel, {**case.inputs, name: np.repeat(x[:1], len(x), axis=0)}, about=f"{name} with strides of 0"
        )
        arrays = [subject.array(repeated.inputs[n]) for n in kernel.arguments]
        row = subject.array(x[:1])
        arrays[place] = np.broadcast_to(row, x.shape) if subject.backend.arrays == "numpy" else _broadcast(row, x.shape)
        with told(subject, repeated):
            subject.compare(repeated, subject.call_on(kernel, arrays, {}))


def _broadcast(row: Any, shape: tuple[int, ...]) -> Any:
    """`row` repeated without a copy, by the library that it belongs to."""
    namespace = inspect.getmodule(type(row))
    broadcast: Callable[..., Any] = getattr(namespace, "broadcast_to", lambda x, s: x.repeat(s[0], 0))
    return broadcast(row, shape)


@check(dtypes=(np.dtype(np.float16), FLOAT32))
def arguments_are_not_written(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Every argument holds afterwards what it held before."""
    for rows, classes in ((5, 4), (30, 26), (300, 40)):
        case = sample(kernel, rows, classes, dtype)
        options: dict[str, Any] = {}
        if cases.is_loss(kernel):
            options = {"weight": subject.array(np.random.default_rng(0).random(classes).astype(np.float32))}
            options["label_smoothing"] = 0.1
        arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
        watched = [x for x in (*arrays, options.get("weight")) if getattr(x, "ndim", 0)]
        before = [bits(subject, x) for x in watched]
        subject.call_on(kernel, arrays, options)
        for x, held in zip(watched, before, strict=True):
            assert bits(subject, x) == held, f"{kernel.name} wrote to an argument of shape {x.shape}"


@check(dtypes=(np.dtype(np.float16), FLOAT32))
def new_results_are_written_whole(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Results do not depend on what the memory of new arrays held before."""
    backend = subject.backend
    empty = backend.empty
    for rows, classes in ((5, 4), (70, 33), (2000, 10)):
        for options in ({}, {"ignore_index": 1}) if cases.is_loss(kernel) else ({},):
            case = sample(kernel, rows, classes, dtype)
            case.options = options
            results = []
            for held in (np.nan, 1e3):

                def stale(shape: tuple[int, ...], dtype: DType, held: float = held) -> Any:
                    array = empty(shape, dtype)
                    array[...] = held
                    return array

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(backend, "empty", stale)
                    results.append(subject.call(case))
            for name, one, other in zip(kernel.results, *results, strict=True):
                assert bits(subject, one) == bits(subject, other), (
                    f"{kernel.name}: {name} depends on the memory it is in"
                )
            subject.compare(case, results[0])
