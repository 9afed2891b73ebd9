"""Refusals: every mistake of the records, and labels that name no class."""

import itertools
import re
from typing import Any

import numpy as np

from plugrad.kernels import Kernel
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.checks.memory import takes_out
from plugrad.tests.conformance.subject import Case, Subject, told

DType = np.dtype[Any]


def raised(subject: Subject, case: Case, arrays: dict[str, Any], options: dict[str, Any]) -> Exception | None:
    """What a call raises."""
    try:
        subject.call_on(case.kernel, [arrays[n] for n in case.kernel.arguments if n in arrays], options)
    except Exception as error:
        return error
    return None


@check(dtypes=(FLOAT32,))
def mistakes(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Every mistake of the record is refused with its message, and nothing is written."""
    for mistake in kernel.mistakes:
        plain = sample(kernel, 2, 3, dtype)
        moved = {name: _moved(subject, value) for name, value in mistake.changed.items()}
        changed = {name: value for name, value in moved.items() if name in kernel.arguments}
        options = {name: value for name, value in moved.items() if name not in kernel.arguments}
        case = Case(kernel, plain.inputs, about=f"with {mistake.changed}")
        with told(subject, case):
            out = None
            if takes_out(kernel) and "out" not in options and len(kernel.results) == 1:
                (result,) = subject.call(plain)
                out = options["out"] = subject.full(result.shape, result.dtype, 7)
            error = raised(
                subject, case, {**{n: subject.array(x) for n, x in plain.inputs.items()}, **changed}, options
            )
            assert isinstance(error, mistake.error), f"expected {mistake.error.__name__}, got {error!r}"
            stayed = all(_same_kind(value, moved[name]) for name, value in mistake.changed.items())
            if stayed:
                assert re.search(mistake.message, str(error)), (
                    f"expected a message like {mistake.message!r}, got {error}"
                )
            if out is not None:
                assert (np.asarray(subject.numpy(out)) == 7).all(), "refused, but something was written to out"


def _moved(subject: Subject, value: Any) -> Any:
    """A value of a mistake as an array of the backend, where it can be one."""
    if isinstance(value, tuple):
        return tuple(_moved(subject, item) for item in value)
    try:
        return subject.array(value)
    except (TypeError, ValueError):
        return value


def _same_kind(before: Any, after: Any) -> bool:
    """Whether a value could become an array of the backend, if it is one at all."""
    return not isinstance(before, np.ndarray) or before.dtype.kind in "fiubc"


@check(cases.is_loss, dtypes=(FLOAT32,))
def labels_that_name_no_class(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """The first of them is named, with its row and the number of classes; negative ones never wrap around."""
    for rows, name, smoothing in itertools.product(
        (12, 5000), ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"), (0.0, 0.1)
    ):
        case = sample(kernel, rows, 5, dtype)
        for bad in (5, np.iinfo(name).max, np.iinfo(name).min, -1):
            if not 0 <= bad < 5 and np.iinfo(name).min <= bad <= np.iinfo(name).max:
                t = case.inputs["t"].astype(name)
                t[[7, rows - 1]] = bad
                t[rows - 2] = 6
                wrong = Case(
                    kernel, {**case.inputs, "t": t}, {"label_smoothing": smoothing}, about=f"label {bad} {name}"
                )
                arrays = {n: subject.array(x) for n, x in wrong.inputs.items()}
                with told(subject, wrong):
                    error = raised(subject, wrong, arrays, dict(wrong.options))
                    assert isinstance(error, ValueError), f"expected ValueError, got {error!r}"
                    expected = rf"^{kernel.name}: t: expected labels in \[0, 5\), got {bad} at row 7\b"
                    assert re.search(expected, str(error)), f"expected a message like {expected!r}, got {error}"
        t = case.inputs["t"].astype("int64")
        t[3] = -100
        ignoring = Case(kernel, {**case.inputs, "t": t}, {"ignore_index": -100, "label_smoothing": smoothing})
        subject.compare(ignoring, subject.call(ignoring))


@check(dtypes=(FLOAT32,))
def arrays_that_are_elsewhere(subject: Subject, kernel: Kernel, dtype: DType) -> None:
    """Arrays in another memory are refused with the call to make; nothing is moved in silence."""

    class OnDevice:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)  # kDLCUDA

    case = sample(kernel, 3, 4, dtype)
    elsewhere: Any = OnDevice() if subject.backend.arrays == "numpy" else np.ones((3, 4), dtype)
    hint = "to_numpy" if subject.backend.arrays == "numpy" else "asarray"
    for name in kernel.arguments:
        if name == "dloss":
            continue
        arrays = {n: subject.array(x) for n, x in case.inputs.items()}
        error = raised(subject, case, {**arrays, name: elsewhere}, {})
        assert isinstance(error, TypeError), f"{kernel.name}: {name}: expected TypeError, got {error!r}"
        assert hint in str(error), f"{kernel.name}: {name}: the message does not name {hint}: {error}"
