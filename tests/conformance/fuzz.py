"""Random calls, valid and spoiled: ``python -m plugrad.tests --fuzz SECONDS``.

A valid call must return the results of the oracle in float64. A call with a spoiled argument, option or ``out`` must
return them too, or raise a `TypeError` or `ValueError` whose message begins with the name of the kernel, and write
nothing. Anything else is a finding: another error, a warning, a wrong number, a changed argument. `other_calls` does
the same for layers, optimizers and Jacobians. The seed and the number of a call repeat it:
``--fuzz 0 --seed SEED --call NUMBER``.
"""

import json as json_format
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.backends import Backend, registry
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.other_calls import OTHER_CALLS
from plugrad.tests.conformance.random_calls import Call, Dice, judge, random_call
from plugrad.tests.conformance.spoiling import spoil
from plugrad.tests.conformance.subject import Case, Subject, as_tuple
from plugrad.tests.records import RECORDS, Record

# Tolerances are for what is usual, and of a million calls some are not: labels whose sum cancels, logits of 1e4. The
# oracle itself, in float64, rounds a difference of 100 by what is 50 units in the last place of its exponential.
SLACK, SLACK_OF_FLOAT64 = 8, 50
EVERY = 10  # seconds from a line of progress to the next
MOST_FINDINGS = 50


def right_or_refused(subject: Subject, call: Call) -> None:
    """Make a call that was spoiled; assert that it is refused as it should be, or that its results are right."""
    kernel, given = call.case.kernel, call.options
    on_device = subject.backend.arrays != "numpy"
    out = [x for x in as_tuple(given.get("out")) if subject.is_array(x)]
    watched = [x for x in call.arrays if subject.is_array(x) and not any(_share_memory(subject, x, y) for y in out)]
    before, held = _bytes(subject, watched), _bytes(subject, out)
    inputs = {name: _plain(subject, x) for name, x in zip(kernel.arguments, call.arrays, strict=True)}
    try:
        got = subject.call_on(
            kernel, call.arrays, given, check=on_device
        )  # so that wrong labels are refused there, too
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{kernel.name}: "), f"the message does not begin with the kernel: {error}"
        is_late = on_device and ": t: " in str(error)  # labels are looked at by the code that computes
        assert is_late or _bytes(subject, out) == held, f"out was written, and then refused: {error}"
        got = None
    assert _bytes(subject, watched) == before, "an argument was written to"
    if got is not None:
        _compare(subject, call, inputs, got)


def _share_memory(subject: Subject, x: Any, y: Any) -> bool:
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
    except Exception:
        return x


def _compare(subject: Subject, call: Call, inputs: dict[str, Any], got: tuple[Any, ...]) -> None:
    """Assert that results are what the oracle makes of what the arguments stand for."""
    kernel = call.case.kernel
    floats = [name for name in kernel.arguments if name not in ("t", "dloss") and inputs[name] is not None]
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
    if "label_smoothing" in options:
        options["label_smoothing"] = float(options["label_smoothing"])
    is_soft = cases.is_loss(kernel) and np.ndim(inputs["t"]) == canonical[cases.rows_of(kernel)].ndim
    # A row of nothing but labels of 0 that has a NaN is NaN, as in PyTorch; the oracle takes such a row for none. By
    # its formulas NaN also spreads further: from weights to ignored rows, from the probabilities of other classes.
    is_odd = is_soft or cases.is_product(kernel) or kernel.name.startswith("cross_entropy")
    values = [np.asarray(x, np.float64) for x in canonical.values() if x is not None]
    if is_odd and not all(np.isfinite(x).all() for x in values):
        return
    if options.get("weight") is not None:
        options["weight"] = np.asarray(_plain(subject, options["weight"]))
    case = Case(kernel, canonical, options, about=call.case.about)
    exact = tuple(
        None if true is None else cases.overflowed(true, cases.result_dtype(name, dtype))
        for name, true in zip(kernel.results, case.expected(), strict=True)
    )
    subject.compare(case, got, exact, slack=_slack(dtype))


def _slack(dtype: np.dtype[Any]) -> float:
    return SLACK_OF_FLOAT64 if dtype == np.float64 else SLACK


def attempt(subjects: list[Subject], names: list[str], seed: int, number: int) -> str | None:
    """Make call `number`, of a kernel or one of `other_calls`; return the finding, or None."""
    dice = Dice(seed, number)
    subject, name = dice.choice(subjects), dice.choice(names)
    about: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            if name in OTHER_CALLS:
                with backends.use(subject.name):
                    OTHER_CALLS[name](dice, subject, about)
            else:
                _call_kernel(dice, subject, RECORDS[name], about)
        except (Exception, SystemExit) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            return f"{name} on {subject.name}, call {number} ({'; '.join(about)}): {what}"
    return None


def _call_kernel(dice: Dice, subject: Subject, kernel: Record, about: list[str]) -> None:
    """Make a valid or a spoiled call of a kernel."""
    call = random_call(dice, subject, kernel)
    about.append(call.case.about)
    if dice.flag():
        judge(subject, call, slack=_slack(call.case.dtype))
        return
    about[:] = [spoil(dice, subject, call) for _ in range(dice.integer(1, 2))]
    right_or_refused(subject, call)


def findings(
    subjects: list[Subject], chosen: list[str], seed: int, seconds: float, report: Callable[[str], None]
) -> Iterator[str | None]:
    """Make calls for `seconds`; yield the finding of each call, or None."""
    start = line = time.monotonic()
    number = 0
    while (now := time.monotonic()) < start + seconds:
        yield attempt(subjects, chosen, seed, number)
        number += 1
        if now > line + EVERY:
            line = now
            report(f"{number:,} calls in {now - start:.0f} s")


def run(
    backend: list[str] | None,
    kernels: list[str] | None,
    json: Path | None,
    seconds: float,
    seed: int,
    call: int | None,
) -> int:
    """Search for findings, print them, and return the exit status: 0 without findings, 130 after Ctrl-C without any."""
    for name in backend or ():
        if not isinstance(reason := registry.usable(name), Backend):
            print(reason)
            return 1
    names = backend or [name for name in ("numpy", "numba") if isinstance(registry.usable(name), Backend)]
    subjects, chosen = [Subject(name) for name in names], kernels or [*RECORDS, *OTHER_CALLS]
    found: list[str] = []
    start, calls = time.monotonic(), 0
    print(f"seed {seed}, on {', '.join(names)}", flush=True)
    numbers = (
        findings(subjects, chosen, seed, seconds, lambda line: print(line, flush=True))
        if call is None
        else iter([attempt(subjects, chosen, seed, call)])
    )
    is_stopped = False
    try:
        for finding in numbers:
            calls += 1
            if finding:
                found.append(finding)
                print(finding, flush=True)
                if len(found) == MOST_FINDINGS:
                    break
    except KeyboardInterrupt:
        is_stopped = True
    took = time.monotonic() - start
    print(f"{calls:,} calls in {took:.0f} s: {len(found)} findings")
    if json:
        record = {"seed": seed, "backends": names, "calls": calls, "seconds": round(took, 1), "findings": found}
        json.write_text(json_format.dumps(record, indent=1) + "\n")
    return 1 if found else 130 if is_stopped else 0
