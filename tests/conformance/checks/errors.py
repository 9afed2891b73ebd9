"""Refusals: every mistake of the records, and labels that name no class."""

import itertools
import re
from typing import Any

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.checks._check import FLOAT32, check
from plugrad.tests.conformance.checks.memory import packed
from plugrad.tests.conformance.subject import Case, Subject, as_tuple, naming_the_call
from plugrad.tests.records import Record

DType = np.dtype[Any]

WEIGHTS = ("weight", "pos_weight", "sample_weight")  # the options that are arrays


def raised(
    subject: Subject, case: Case, arrays: dict[str, Any], options: dict[str, Any], check: bool = False
) -> Exception | None:
    """The error that a call raises."""
    try:
        subject.call_on(case.kernel, [arrays[n] for n in case.kernel.arguments if n in arrays], options, check)
    except Exception as error:
        return error
    return None


def modes(subject: Subject, of_data: bool) -> tuple[bool, ...]:
    """Whether an error is to be raised in the checking mode, and without: on the host errors of data always are."""
    if not of_data:
        return (False,)
    return (True, False) if subject.backend.arrays == "numpy" else (True,)


def untouched(subject: Subject, kernel: Record, results: tuple[Any, ...]) -> dict[str, Any]:
    """The option ``out`` with an array of sevens for each result, if the kernel has it."""
    return {"out": packed(tuple(subject.full(result.shape, result.dtype, 7) for result in results))}


def assert_untouched(subject: Subject, options: dict[str, Any]) -> None:
    """Assert that the sevens are still there."""
    for out in as_tuple(options.get("out", ())):
        assert (np.asarray(subject.numpy(out)) == 7).all(), "refused, but something was written to out"


@check(dtypes=(FLOAT32,))
def mistakes(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Every mistake of the record is refused with its message, and nothing is written."""
    plain = sample(kernel, 2, 3, dtype)
    results = subject.call(plain)
    for mistake, mode in itertools.product(kernel.mistakes, (True, False)):
        if mode not in modes(subject, of_data="expected labels in" in mistake.message):
            continue
        inputs = {n: x for n, x in mistake.changed.items() if n in kernel.arguments}
        options = {n: x for n, x in mistake.changed.items() if n not in kernel.arguments}
        case = Case(kernel, {**plain.inputs, **inputs}, options, about="a call that is to be refused")
        moved = {name: _moved(subject, kernel, name, x) for name, x in {**case.inputs, **options}.items()}
        arrays = {name: moved.pop(name) for name in case.inputs}
        with naming_the_call(subject, case):
            sevens = {} if "out" in options else untouched(subject, kernel, results)
            error = raised(subject, case, arrays, {**moved, **sevens}, mode)
            assert isinstance(error, mistake.error), f"expected {mistake.error.__name__}, got {error!r}"
            if all(_can_be_own(subject, kernel, name, x) for name, x in mistake.changed.items()):
                assert re.search(mistake.message, str(error)), (
                    f"expected a message like {mistake.message!r}, got {error}"
                )
            assert_untouched(subject, sevens)


def _moved(subject: Subject, kernel: Record, name: str, value: Any) -> Any:
    """A value of a call as the user of a backend passes it: numbers for an array are moved to where it computes."""
    if isinstance(value, tuple) and name == "out":
        return tuple(_moved(subject, kernel, name, item) for item in value)
    if subject.backend.arrays != "numpy" and name in (*kernel.arguments, *WEIGHTS) and _is_numeric(value):
        is_number = name == "k" or (isinstance(value, float) and name == "dloss")
        return value if is_number else subject.array(np.asarray(value))
    return subject.array(value) if _is_numeric(value) else value


def _can_be_own(subject: Subject, kernel: Record, name: str, value: Any) -> bool:
    """Whether a value reaches the checks of the kernel: text and objects do not become arrays of a device."""
    return subject.backend.arrays == "numpy" or name not in (*kernel.arguments, *WEIGHTS) or _is_numeric(value)


def _is_numeric(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "fiubc"
    except ValueError:  # lists of different lengths
        return False


@check(cases.is_loss, dtypes=(FLOAT32,))
def labels_that_name_no_class(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The first of them is named, with its row and the number of classes; negative indices never wrap."""
    for rows, name, smoothing in itertools.product(
        (12, 5000), ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"), (0.0, 0.1)
    ):
        case = sample(kernel, rows, 5, dtype)
        results = subject.call(case)
        for bad in (5, np.iinfo(name).max, np.iinfo(name).min, -1):
            if not 0 <= bad < 5 and np.iinfo(name).min <= bad <= np.iinfo(name).max:
                t = case.inputs["t"].astype(name)
                t[[7, rows - 1]] = bad
                t[rows - 2] = 6
                wrong = Case(
                    kernel, {**case.inputs, "t": t}, {"label_smoothing": smoothing}, about=f"label {bad} {name}"
                )
                arrays = {n: subject.array(x) for n, x in wrong.inputs.items()}
                with naming_the_call(subject, wrong):
                    for mode in modes(subject, of_data=True):
                        sevens = untouched(subject, kernel, results)
                        error = raised(subject, wrong, arrays, {**wrong.options, **sevens}, mode)
                        assert isinstance(error, ValueError), f"expected ValueError, got {error!r}"
                        expected = rf"^{kernel.name}: t: expected labels in \[0, 5\), got {bad} at row 7\b"
                        assert re.search(expected, str(error)), f"expected a message like {expected!r}, got {error}"
                        assert_untouched(subject, sevens)
        t = case.inputs["t"].astype("int64")
        t[3] = -100
        ignoring = Case(kernel, {**case.inputs, "t": t}, {"ignore_index": -100, "label_smoothing": smoothing})
        for mode in (True, False):
            subject.compare(ignoring, subject.call(ignoring, mode))


@check(lambda kernel: "p" in kernel.arguments)
def numbers_that_are_no_probabilities(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Logits are refused, or make their row NaN on a device; those that no label or weight selects are not read."""
    on_device = subject.backend.arrays != "numpy"
    for rows, classes, bad in itertools.product((12, 3000), (4, 40), (1.5, -2.0, float("inf"))):
        plain = sample(kernel, rows, classes, dtype)
        p, t = plain.inputs["p"].copy(), plain.inputs["t"].copy()
        p[7, 1], t[7] = bad, 1
        weights, one_hot = (np.arange(rows) != 7).astype(np.float32), np.eye(classes)[t]
        each = {"reduction": "none", "dloss": np.ones(rows, np.float32)}
        for labels, options, is_read in (
            (t, {}, True),
            (t, {"label_smoothing": 0.1}, True),
            (one_hot, {}, True),
            (t, {"sample_weight": weights}, False),
            (one_hot, {"sample_weight": weights}, False),
            (t, {"ignore_index": 1}, False),
            *(((np.where(np.arange(rows) == 7, 0, t), {}, False),) if bad == 1.5 else ()),  # others have no logarithm
            *(((t, {"weight": (np.arange(classes) != 1).astype(np.float32)}, False),) if bad == 1.5 else ()),
        ):
            inputs = {**plain.inputs, "p": p, "t": labels, "dloss": each["dloss"]}
            case = Case(kernel, inputs, {**options, "reduction": "none"}, about=f"{bad}, read: {is_read}, {options}")
            if not is_read:
                subject.compare(case, subject.call(case))
                continue
            with naming_the_call(subject, case):
                if on_device:
                    values = np.asarray(subject.numpy(subject.call(case)[0])).astype(np.float64).reshape(rows, -1)
                    wrong = np.isnan(values)
                    assert wrong[7].all(), f"expected a row of NaN, got {values[7]}"
                    assert not np.delete(wrong, 7, 0).any(), "expected other rows as they would be"
                    continue
                for in_place in (False, *([True] if kernel.results == ("dp",) else [])):
                    arrays = {name: subject.array(x) for name, x in inputs.items()}
                    given = {**case.options, **({"out": arrays["p"]} if in_place else {})}
                    error = raised(subject, case, arrays, given)
                    assert isinstance(error, ValueError), f"expected ValueError, got {error!r}"
                    expected = rf"^{kernel.name}: p: expected probabilities .* got {bad:g} at row 7; .* softmax_cross"
                    assert re.search(expected, str(error)), f"expected a message like {expected!r}, got {error}"


@check(dtypes=(FLOAT32,))
def arrays_that_are_elsewhere(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Arrays in another memory are refused with the call to make; nothing is moved in silence."""

    class OnDevice:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)  # kDLCUDA

    case = sample(kernel, 3, 4, dtype)
    elsewhere: Any = OnDevice() if subject.backend.arrays == "numpy" else np.ones((3, 4), dtype)
    hint = "to_numpy" if subject.backend.arrays == "numpy" else "asarray"
    for name in kernel.arguments:
        if name in ("dloss", "k"):
            continue
        arrays = {n: subject.array(x) for n, x in case.inputs.items()}
        error = raised(subject, case, {**arrays, name: elsewhere}, {})
        assert isinstance(error, TypeError), f"{kernel.name}: {name}: expected TypeError, got {error!r}"
        assert hint in str(error), f"{kernel.name}: {name}: the message does not name {hint}: {error}"
