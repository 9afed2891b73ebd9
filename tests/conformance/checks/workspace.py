"""A bounded workspace: the work is cut into chunks, and nothing but the memory for it changes."""

import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from plugrad.kernels import Workspace
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.checks.errors import raised
from plugrad.tests.conformance.checks.memory import same
from plugrad.tests.conformance.subject import Case, Subject, naming_the_call
from plugrad.tests.records import Record

DType = np.dtype[Any]

REFUSAL = r"max_workspace: expected at least (\d+) bytes, for one row of \d+ classes, got 1$"


def is_bounded(kernel: Record) -> bool:
    """Whether the caller bounds the memory that the kernel works in."""
    return "max_workspace" in kernel.options


def least(subject: Subject, case: Case, arrays: list[Any] | None = None, **options: Any) -> int:
    """The smallest workspace that will do, by the message that refuses a smaller one."""
    error = _refused(subject, case, 1, arrays, options)
    found = re.search(REFUSAL, str(error))
    assert isinstance(error, ValueError), f"expected 1 byte to be refused with a ValueError, got {error!r}"
    assert found is not None, f"the error does not name the least that will do: {error}"
    return int(found[1])


def _refused(
    subject: Subject, case: Case, size: int, arrays: list[Any] | None = None, options: Mapping[str, Any] = {}
) -> Exception | None:
    """The error that a call with a workspace of that size raises."""
    arrays = [subject.array(case.inputs.get(n)) for n in case.kernel.arguments] if arrays is None else arrays
    given = {n: subject.array(option) for n, option in case.options.items()}
    by_name = dict(zip(case.kernel.arguments, arrays, strict=True))
    return raised(subject, case, by_name, {**given, **options, "max_workspace": size})


def _cases(kernel: Record, dtype: DType) -> Iterator[Case]:
    """More rows than classes and the reverse, every form of labels and reduction."""
    rng = np.random.default_rng(3)
    for rows, classes in ((1, 1), (37, 5), (4, 30), (70, 9)):
        plain = sample(kernel, rows, classes, dtype)
        yield plain
        if not cases.is_loss(kernel):
            continue
        ignoring = plain.inputs["t"].copy()
        ignoring[::3] = -1
        soft = cases.label_forms(plain.inputs["t"], classes, -1, rng)[cases.SOFT]
        weight = rng.random(classes).astype(np.float32)
        for t, options in (
            (ignoring, {"ignore_index": -1, "weight": weight}),
            (ignoring, {"ignore_index": -1, "label_smoothing": 0.1, "reduction": "sum"}),
            (soft, {"weight": weight, "reduction": "none"}),
        ):
            yield Case(kernel, {**plain.inputs, "t": t}, options, f"{plain.about}, {[*options]}")


@check(is_bounded)
def chunks_of_any_size(subject: Subject, kernel: Record, dtype: DType) -> None:
    """From one row at a time to all rows at once, with a last chunk that is smaller: the same results."""
    for case in _cases(kernel, dtype):
        exact, about = case.expected(), case.about
        smallest = least(subject, case)
        for size in (smallest, 3 * smallest + 1, 8 * smallest, "1MB"):
            case.about = f"{about}, in a workspace of {size}"
            with naming_the_call(subject, case):
                subject.compare(case, subject.call(case, max_workspace=size), exact)


@check(lambda kernel: is_bounded(kernel))
def chunks_of_any_layout(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Small workspaces do for arguments and results that have to be copied in parts, and for results over arguments."""
    plain = sample(kernel, 20, 20, dtype)
    square = {**plain.inputs, "w": plain.inputs["w"][:20], "x": np.ascontiguousarray(plain.inputs["x"][:, :20])}
    options = {"ignore_index": 1} if cases.is_loss(kernel) else {}
    case = Case(kernel, square, options, about="a small workspace")
    expected = subject.call(case)
    for layout, factor in itertools.product(cases.layouts(subject), (1, 2)):
        given = [subject.array(case.inputs[n]) for n in kernel.arguments]
        arrays = [layout(subject, x) if getattr(x, "ndim", 0) else x for x in given]
        strided = layout in cases.ANYWHERE
        out = tuple(
            layout(subject, subject.full(v.shape, v.dtype, 7)) if v.ndim and strided else None for v in expected
        )
        size = factor * least(subject, case, arrays, out=out)
        with naming_the_call(subject, case):
            got = subject.call_on(kernel, arrays, {**case.options, "max_workspace": size, "out": out})
            for name, one, exact in zip(kernel.results, got, expected, strict=True):
                same(subject, kernel, name, one, exact)
    for place, position in itertools.product((0, 1, 2), range(1, len(expected))):
        arrays = [subject.array(case.inputs[n]) for n in kernel.arguments]
        if arrays[place].shape != expected[position].shape:
            continue
        out = tuple(arrays[place] if i == position else None for i in range(len(expected)))
        size = least(subject, case, arrays, out=out)
        about = f"{kernel.results[position]} over {kernel.arguments[place]}, one row at a time"
        with naming_the_call(subject, Case(kernel, case.inputs, case.options, about)):
            got = subject.call_on(kernel, arrays, {**case.options, "max_workspace": size, "out": out})
            for name, one, exact in zip(kernel.results, got, expected, strict=True):
                same(subject, kernel, name, one, exact)


@check(is_bounded, dtypes=(FLOAT32,))
def the_least_that_works(subject: Subject, kernel: Record, dtype: DType) -> None:
    """A bound too small for one row is refused with the least that works; that works, and a byte less does not."""
    for rows, classes in ((1, 3), (40, 60), (700, 4)):
        case = sample(kernel, rows, classes, dtype)
        smallest = least(subject, case)
        subject.compare(case, subject.call(case, max_workspace=smallest))
        error = _refused(subject, case, smallest - 1)
        assert f"at least {smallest} bytes" in str(error), f"{smallest - 1} bytes: expected a refusal, got {error!r}"


@check(is_bounded, dtypes=(np.dtype(np.float16), FLOAT32))
def a_workspace_is_kept(subject: Subject, kernel: Record, dtype: DType) -> None:
    """One workspace for calls of many shapes, whatever the last one left there; another thread may not use it."""
    workspace = Workspace("200kB")
    for rows, classes in ((30, 7), (300, 30), (2, 200), (30, 7)):
        case = sample(kernel, rows, classes, dtype)
        subject.compare(case, subject.call(case, max_workspace=workspace))
    errors: list[Exception] = []

    def call() -> None:
        try:
            subject.call(case, max_workspace=workspace)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="another")
    thread.start()
    thread.join()
    assert [type(error) for error in errors] == [ValueError], f"expected one ValueError, got {errors}"
    for word in ("max_workspace", "'another'", threading.current_thread().name):
        assert word in str(errors[0]), f"expected {word} in the message, got {errors[0]}"
    subject.compare(case, subject.call(case, max_workspace=workspace))
