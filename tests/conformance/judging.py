"""Whether the results of random calls, valid or spoiled, are right."""

from functools import partial
from typing import Any

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.random_calls import Call
from plugrad.tests.conformance.subject import Case, Subject, as_tuple, naming_the_call

# Tolerances are for what is usual, and of a million calls some are not: labels whose sum cancels, logits of 1e4. The
# oracle itself, in float64, rounds a difference of 100 by what is 50 units in the last place of its exponential.
SLACK, SLACK_OF_FLOAT64 = 8, 50


def judge(subject: Subject, call: Call, slack: float = 1.0) -> tuple[Any, ...]:
    """Make a call, and assert that its results are right (see `Subject.compare`), and that no argument was written to.

    Returns
    -------
    results : tuple
        As the kernel returned them.
    """
    case, arrays = call.case, call.arrays
    kernel = case.kernel
    before = [np.array(subject.numpy(x)) for x in arrays]
    with naming_the_call(subject, case):
        got = subject.call_on(kernel, arrays, call.options)
        exact = tuple(
            cases.overflowed(true, cases.result_dtype(name, case.dtype))
            for name, true in zip(kernel.results, case.expected(), strict=True)
        )
        _match(subject, case, got, exact, slack)
        for name, x, held in zip(kernel.arguments, arrays, before, strict=True):
            assert np.array(subject.numpy(x)).tobytes() == held.tobytes(), f"argument {name} was written to"
    return got


def right_or_refused(subject: Subject, call: Call) -> tuple[tuple[Any, ...] | None, str]:
    """Make a call, and assert that it is refused as it should be, or that its results are right.

    Returns
    -------
    results : tuple or None
        As the kernel returned them; None if it refused the call.
    message : str
        That of the error.
    """
    kernel, given = call.case.kernel, call.options
    on_device = subject.backend.arrays != "numpy"
    out = [x for x in as_tuple(given.get("out")) if subject.is_array(x)]
    arrays = [x for x in call.arrays if subject.is_array(x)]
    watched = [x for x in arrays if not any(share_memory(subject, x, y) for y in out)]
    before, held = _bytes(subject, watched), _bytes(subject, [*arrays, *out])
    inputs = {name: _plain(subject, x) for name, x in zip(kernel.arguments, call.arrays, strict=True)}
    try:
        got = subject.call_on(
            kernel, call.arrays, given, check=on_device
        )  # so that wrong labels are refused there, too
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{kernel.name}: "), f"the message does not begin with the kernel: {error}"
        # The code that computes looks at labels on a device, and at probabilities.
        is_late = (on_device and ": t: " in str(error)) or f"{kernel.name}: p: expected probabilities" in str(error)
        assert is_late or _bytes(subject, [*arrays, *out]) == held, f"out was written, and then refused: {error}"
        assert _bytes(subject, watched) == before, "an argument was written to"
        return None, str(error)
    assert _bytes(subject, watched) == before, "an argument was written to"
    _compare(subject, call, inputs, got)
    return got, ""


def share_memory(subject: Subject, x: Any, y: Any) -> bool:
    """Whether two arrays may have memory in common."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.may_share_memory(x, y)
    return type(x) is type(y) and subject.backend.overlap(x, y) != "none"


def _bytes(subject: Subject, arrays: list[Any]) -> list[bytes]:
    return [np.array(subject.numpy(x)).tobytes() for x in arrays]


def _plain(subject: Subject, x: Any) -> Any:
    """The value of an argument: a copy as a NumPy array, a number, or None."""
    if x is None or isinstance(x, float | int):
        return x
    try:
        return np.array(subject.numpy(x) if subject.is_array(x) else x)
    except (TypeError, ValueError):  # text, objects, rows of different lengths: an argument that is refused
        return x


def _compare(subject: Subject, call: Call, inputs: dict[str, Any], got: tuple[Any, ...]) -> None:
    """Assert that results are what the oracle makes of what the arguments stand for."""
    kernel = call.case.kernel
    floats = [name for name in kernel.arguments if name not in ("t", "dloss", "k") and inputs[name] is not None]
    arrays = {name: np.asarray(inputs[name]) for name in floats}
    dtypes = [x.dtype.newbyteorder("=") for x in arrays.values()]
    try:
        dtype = np.result_type(*dtypes)
    except TypeError:  # float16 with bfloat16
        others = [other for other in dtypes if other.itemsize != 2 or other.kind in "iu"]
        dtype = np.result_type(np.float32, *others)
    if dtype.kind in "iub":
        dtype = np.dtype(np.float64)
    canonical = {**inputs, **{name: x.astype(dtype) for name, x in arrays.items()}}
    options = {name: value for name, value in call.options.items() if name not in ("out", "max_workspace")}
    for name in ("label_smoothing", "z_loss", "softcap"):
        if options.get(name) is not None:
            options[name] = float(options[name])
    is_soft = cases.is_loss(kernel) and np.ndim(inputs["t"]) == canonical[cases.rows_of(kernel)].ndim
    # A row of nothing but labels of 0 that has a NaN is NaN, as in PyTorch; the oracle takes such a row for none. By
    # its formulas NaN also spreads further: from weights to ignored rows, from the probabilities of other classes.
    is_odd = is_soft or cases.is_product(kernel) or kernel.name.startswith("cross_entropy")
    values = [np.asarray(x, np.float64) for x in canonical.values() if x is not None]
    if is_odd and not all(np.isfinite(x).all() for x in values):
        return
    for name in ("weight", "pos_weight", "sample_weight"):
        if options.get(name) is not None:
            options[name] = np.asarray(_plain(subject, options[name]))
    case = Case(kernel, canonical, options, about=call.case.about)
    exact = tuple(
        None if true is None else cases.overflowed(true, cases.result_dtype(name, dtype))
        for name, true in zip(kernel.results, case.expected(), strict=True)
    )
    _match(subject, case, got, exact, slack_for(dtype))


def _match(subject: Subject, case: Case, got: tuple[Any, ...], exact: tuple[Any, ...], slack: float) -> None:
    """Assert that results are the exact ones; classes of logits that are rounded, that these are their logits."""
    if case.kernel.terms is not None:  # infinity times a slope that is 0 in the dtype, or not
        exact = tuple(map(partial(_with_infinite_terms, subject), got, exact, case.sizes(exact)))
    if not cases.has_classes(case.kernel) or cases.sums_are_exact(case):
        subject.compare(case, got, exact, slack)
        return
    classes = np.asarray(subject.numpy(got[1]))
    for values in (exact[0], cases.overflowed(cases.logits_of(case, classes), case.dtype)):
        subject.compare(case, got, (values, classes), slack)


def _with_infinite_terms(subject: Subject, got: Any, exact: Any, size: Any) -> Any:
    """A result of which each element with an infinite term may be any number that is not finite; None stays None."""
    if exact is None:
        return None
    values = np.asarray(subject.numpy(got)).astype(np.float64)
    is_free = np.isinf(size) & ~np.isfinite(values)
    return np.where(is_free, values, exact) if is_free.any() else exact


def slack_for(dtype: np.dtype[Any]) -> float:
    """The factor by which the tolerances of records are multiplied for random calls of a dtype."""
    return SLACK_OF_FLOAT64 if dtype == np.float64 else SLACK
