"""A search for calls that nobody thought of: the simplest random call that goes wrong, by Hypothesis."""

import itertools
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from plugrad.tests.conformance.random_calls import Call, judge, random_call
from plugrad.tests.conformance.subject import Subject
from plugrad.tests.records import Record

_T = TypeVar("_T")


class _Drawn:
    """What Hypothesis decides, and tries to make simpler."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, least: int, most: int) -> int:
        return self._draw(st.integers(least, most))

    def choice(self, options: Sequence[_T]) -> _T:
        return self._draw(st.sampled_from(options))

    def flag(self) -> bool:
        return self._draw(st.booleans())


@st.composite
def calls(draw: st.DrawFn, subject: Subject, kernel: Record) -> Call:
    """Any call of a kernel that is right."""
    return random_call(_Drawn(draw), subject, kernel)


def search(subject: Subject, kernel: Record, examples: int, at_random: bool) -> int:
    """Try so many calls; the simplest that goes wrong is raised, with code that repeats it. Returns how many ran."""
    tried = itertools.count()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=not at_random,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls(subject, kernel))
    def agrees_with_the_oracle(call: Call) -> None:
        next(tried)
        judge(subject, call)

    agrees_with_the_oracle()
    return next(tried)
