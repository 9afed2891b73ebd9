"""Random calls, valid, spoiled and repeated: ``python -m plugrad.tests --fuzz SECONDS``.

A valid call must return the results of the oracle in float64. A call with a spoiled argument, option or ``out`` must
return them too, or raise a `TypeError` or `ValueError` whose message begins with the name of the kernel, and write
nothing. Anything else is a finding: another error, a warning, a wrong number, a changed argument. `repeated_calls`
repeats a plain call, each time with one thing changed. `other_calls` makes those of layers, optimizers and Jacobians.
The seed and the number of a call repeat it:
``--fuzz 0 --seed SEED --call NUMBER``.
"""

import json as json_format
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from plugrad import backends
from plugrad.backends import Backend, registry
from plugrad.tests.conformance.judging import judge, right_or_refused, slack_for
from plugrad.tests.conformance.other_calls import OTHER_CALLS
from plugrad.tests.conformance.random_calls import Dice, random_call
from plugrad.tests.conformance.repeated_calls import repeat
from plugrad.tests.conformance.spoiling import spoil
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.records import RECORDS, Record

EVERY = 10  # seconds from a line of progress to the next
MOST_FINDINGS = 50


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
    """Make a valid call of a kernel, a spoiled one, or a plain one that is repeated with changes."""
    kind = dice.choice(("valid", "spoiled", "repeated"))
    if kind == "repeated":
        repeat(dice, subject, kernel, about)
        return
    call = random_call(dice, subject, kernel)
    about.append(call.case.about)
    if kind == "valid":
        judge(subject, call, slack=slack_for(call.case.dtype))
        return
    about[:] = [spoil(dice, subject, call) for _ in range(dice.integer(1, 2))]
    right_or_refused(subject, call)


def findings(
    subjects: list[Subject], chosen: list[str], seed: int, seconds: float, report: Callable[[str], None]
) -> Iterator[str | None]:
    """Make calls for `seconds`, and one at least; yield the finding of each call, or None."""
    start = line = time.monotonic()
    number = 0
    while True:
        yield attempt(subjects, chosen, seed, number)
        number += 1
        now = time.monotonic()
        if now >= start + seconds:
            return
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
