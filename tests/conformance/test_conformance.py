"""Every check for every kernel and dtype of the backends under test; ``--backend NAME`` chooses them."""

from typing import Any

import numpy as np
import pytest

from plugrad.kernels import Kernel
from plugrad.tests.conformance.checks import Check
from plugrad.tests.conformance.selection import Absent
from plugrad.tests.conformance.subject import Subject


def test_the_backend_can_run_here(found: Subject | Absent) -> None:
    """Backends that cannot run here are listed with the reason; it is a failure only if one was asked for."""
    if isinstance(found, Absent):
        if found.wanted:
            pytest.fail(found.reason, pytrace=False)
        pytest.skip(found.reason)
    assert found.backend == found.name


def test_the_backend_has_the_kernel(subject: Subject, kernel: Kernel) -> None:
    """A kernel is the backend's own, or another one is declared to stand in for it, which is told."""
    if stand_in := subject.stand_in(kernel.name):
        pytest.skip(f"{stand_in!r} is declared to stand in for {kernel.name}, and computes it: run the suite on that")
    assert subject.has(kernel.name), f"backend {subject.name!r} has no kernel {kernel.name!r}, and declares no stand-in"


def test_conformance(subject: Subject, kernel: Kernel, check: Check, dtype: np.dtype[Any]) -> None:
    check(subject, kernel, dtype)
