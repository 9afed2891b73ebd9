"""The suite is tested itself: every broken backend is caught, and every check catches one."""

import pytest

from plugrad import backends
from plugrad.kernels import KERNELS
from plugrad.tests.conformance.checks import CHECKS, Check
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.mutants import MUTANTS, THREADED, Mutant, sound_room


def complaints(check: Check, subject: Subject, kernel: str) -> list[str]:
    """What a check has to say about a kernel of a backend, for each dtype."""
    told = []
    for dtype in check.dtypes:
        try:
            check(subject, KERNELS[kernel], dtype)
        except AssertionError as error:
            told.append(str(error))
    return told


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.name}-by-{mutant.caught_by}")
def test_a_broken_backend_is_caught(mutant: Mutant) -> None:
    check = CHECKS[mutant.caught_by]
    backends.register("mutant", mutant.room())
    if mutant.caught_by != "the_backend_does_the_work":  # for that one, sound rooms of this kind are broken already
        backends.register("sound", sound_room())
        assert complaints(check, Subject("sound"), mutant.kernel) == []
    assert complaints(check, Subject("mutant"), mutant.kernel)


def test_sums_that_depend_on_the_number_of_threads_are_caught() -> None:
    backends.register("threaded", "plugrad.tests.mutants")  # a name, which processes of their own can import
    found = complaints(CHECKS[THREADED.caught_by], Subject("threaded"), THREADED.kernel)
    assert found
    assert "differ with the number of threads" in found[0]


def test_every_check_catches_something() -> None:
    assert {mutant.caught_by for mutant in (*MUTANTS, THREADED)} == set(CHECKS)
