"""A bounded search for calls that go wrong; ``--long`` searches fifty times as much, and elsewhere each time."""

import pytest

from plugrad.tests.conformance.search import search
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.records import Record

EXAMPLES = 60


def test_random_calls(subject: Subject, kernel: Record, pytestconfig: pytest.Config) -> None:
    long = pytestconfig.getoption("long")
    assert search(subject, kernel, EXAMPLES * (50 if long else 1), at_random=long) >= EXAMPLES // 2
