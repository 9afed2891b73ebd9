"""Every check for every kernel and dtype of the backends under test; ``--backend NAME`` chooses them."""

from typing import Any

import numpy as np
import pytest

from plugrad.backends import registry
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.checks import Check
from plugrad.tests.conformance.judging import judge
from plugrad.tests.conformance.random_calls import Dice, random_call
from plugrad.tests.conformance.selection import Absent
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.records import RECORDS, Record


def test_the_backend_can_run_here(found: Subject | Absent) -> None:
    """A backend that is named by ``--backend`` and cannot run fails, with the reason."""
    if isinstance(found, Absent):
        pytest.fail(found.reason, pytrace=False)
    assert found.backend == found.name
    assert any(found.has(name) for name in RECORDS), f"backend {found.name!r} has not one kernel of its own"


def test_the_backend_has_the_kernel(subject: Subject, kernel: Record, stand_in: str | None) -> None:
    """The backend has a function for the kernel, or declares a stand-in that computes it; then the test is skipped."""
    if stand_in is None:
        assert subject.has(kernel.name), (
            f"backend {subject.name!r} has no kernel {kernel.name!r}, and declares no stand-in"
        )
        return
    declared = f"{stand_in!r} is declared to stand in for {kernel.name}"
    if not registry.is_known(stand_in):
        pytest.fail(f"{declared}, and is no backend; known backends: {', '.join(registry.names())}", pytrace=False)
    case = sample(kernel, 3, 4, np.dtype(np.float32), about=f"by {stand_in!r}")
    subject.compare(case, subject.call(case))
    pytest.skip(f"{declared}, and computes it: run the suite on that")


def test_conformance(subject: Subject, kernel: Record, check: Check, dtype: np.dtype[Any]) -> None:
    check(subject, kernel, dtype)


def test_random_calls(subject: Subject, kernel: Record) -> None:
    """Sixty random calls, the same each time; ``python -m plugrad.tests --fuzz SECONDS`` makes others."""
    for number in range(60):
        judge(subject, random_call(Dice(1, number), subject, kernel))
