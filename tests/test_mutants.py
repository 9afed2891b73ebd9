"""The suite is tested itself: every broken backend is caught, and every check catches one."""

import pytest

from plugrad import backends
from plugrad.tests.conformance.checks import CHECKS, Check
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.mutants import IN_PROCESSES, MUTANTS, Mutant, sound_module
from plugrad.tests.records import RECORDS

pytestmark = pytest.mark.slow


def complaints(check: Check, subject: Subject, kernel: str) -> list[str]:
    """The messages of the failures of a check for a kernel, one for each dtype that fails."""
    messages = []
    for dtype in check.dtypes:
        try:
            check(subject, RECORDS[kernel], dtype)
        except AssertionError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.name}-by-{mutant.caught_by}")
def test_a_broken_backend_is_caught(mutant: Mutant) -> None:
    check = CHECKS[mutant.caught_by]
    backends.register("mutant", mutant.module())
    if mutant.caught_by != "the_backend_does_the_work":  # this check fails for the sound module too
        backends.register("sound", sound_module())
        assert complaints(check, Subject("sound"), mutant.kernel) == []
    assert complaints(check, Subject("mutant"), mutant.kernel)


@pytest.mark.parametrize("mutant", IN_PROCESSES, ids=lambda mutant: mutant.name)
def test_a_backend_that_is_broken_in_processes_of_its_own_is_caught(mutant: Mutant) -> None:
    backends.register("processes", "plugrad.tests.mutants")  # a name, which other processes can import
    check, subject = CHECKS[mutant.caught_by], Subject("processes", [mutant.kernel, "relu"])
    assert len(complaints(check, subject, mutant.kernel)) == len(check.dtypes)
    assert complaints(check, subject, "relu") == []


def test_every_check_catches_something() -> None:
    assert {mutant.caught_by for mutant in (*MUTANTS, *IN_PROCESSES)} == set(CHECKS)
