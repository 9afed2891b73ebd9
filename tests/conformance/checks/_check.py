"""The table of checks, and how a function becomes one of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from plugrad.tests.conformance.subject import DTYPES, Subject
from plugrad.tests.records import RECORDS, Record

Function: TypeAlias = Callable[[Subject, Record, np.dtype[Any]], None]

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True)
class Check:
    """One demand on a backend: raises `AssertionError` where a kernel does not meet it in a dtype."""

    function: Function
    applies: Callable[[Record], bool]
    dtypes: tuple[np.dtype[Any], ...]

    @property
    def name(self) -> str:
        """The name of its function."""
        return self.function.__name__

    @property
    def area(self) -> str:
        """The name of the module it stands in."""
        return self.function.__module__.rpartition(".")[2]

    @property
    def kernels(self) -> list[Record]:
        """The kernels that it is made for."""
        return [kernel for kernel in RECORDS.values() if self.applies(kernel)]

    def __call__(self, subject: Subject, kernel: Record, dtype: np.dtype[Any]) -> None:
        """Check one kernel in one dtype."""
        self.function(subject, kernel, dtype)


CHECKS: dict[str, Check] = {}


def check(
    applies: Callable[[Record], bool] = lambda kernel: True, dtypes: Iterable[np.dtype[Any]] = DTYPES
) -> Callable[[Function], Function]:
    """Enter a function into the table, for the kernels and dtypes that it is made for."""

    def enter(function: Function) -> Function:
        CHECKS[function.__name__] = Check(function, applies, tuple(dtypes))
        return function

    return enter
