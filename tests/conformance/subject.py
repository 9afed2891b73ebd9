"""The backend under test, and calls on it."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import unwrap
from types import CodeType, FrameType
from typing import Any

import ml_dtypes
import numpy as np

from plugrad import backends
from plugrad.backends import registry
from plugrad.backends.registry import Backend
from plugrad.kernels import KERNELS, Kernel
from plugrad.tests.oracles import ORACLES, TERMS

DTYPES = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
finfo: Any = ml_dtypes.finfo  # knows bfloat16 too
SMALL = 40  # elements that a snippet still shows


def epsilon(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next larger number."""
    return float(finfo(dtype).eps)


def loss_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the loss of arrays of `dtype`, which is also what they are computed in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def as_tuple(results: Any) -> tuple[Any, ...]:
    """What a kernel returned, as a tuple."""
    return results if isinstance(results, tuple) else (results,)


@dataclass(repr=False)
class Case:
    """One call: a kernel, its arguments as NumPy arrays by name, and options."""

    kernel: Kernel
    inputs: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the result: that of the one floating array that is no label and no upstream gradient."""
        name = next(n for n in self.kernel.arguments if n not in ("t", "dloss"))
        return np.dtype(np.asarray(self.inputs[name]).dtype)

    def __repr__(self) -> str:
        return f"<{self.kernel.name}: {self.about}>"

    def expected(self) -> tuple[Any, ...]:
        """The results by the oracle."""
        with np.errstate(all="ignore"):
            return ORACLES[self.kernel.name](*(self.inputs.get(name) for name in self.kernel.arguments), **self.options)

    def largest(self, expected: tuple[Any, ...]) -> list[float]:
        """The largest magnitude in each result, or in the terms that it is the sum of."""
        terms = TERMS.get(self.kernel.name)
        with np.errstate(all="ignore"):
            sizes = terms(*(self.inputs.get(n) for n in self.kernel.arguments), **self.options) if terms else expected
        return [_largest(size) for size in sizes]

    def snippet(self, backend: str) -> str:
        """Python code that repeats the call."""
        parts = [_literal(self.inputs.get(name)) for name in self.kernel.arguments]
        parts += [f"{name}={_literal(value)}" for name, value in self.options.items() if value is not None]
        prelude = ["import numpy as np", "from numpy import array, inf, nan"]
        if any("bfloat16" in part for part in parts):
            prelude.append("from ml_dtypes import bfloat16")
        prelude.append("from plugrad import backends, kernels as K")
        call = f"K.{self.kernel.name}({', '.join(parts)})"
        return "\n".join([*prelude, f"with backends.use({backend!r}):", f"    print({call})"])


def _largest(x: Any) -> float:
    """The largest finite magnitude."""
    magnitudes = np.abs(np.asarray(0.0 if x is None else x, np.float64))
    return float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))


def _literal(value: Any) -> str:
    """`value` as Python code, or what it is if that would be too long to read."""
    if not isinstance(value, np.ndarray | np.generic):
        return repr(value)
    array = np.asarray(value)
    if array.size > SMALL:
        return f"...  # {array.dtype}, shape {array.shape}\n    "
    name = "bfloat16" if array.dtype.name == "bfloat16" else f"np.{array.dtype.name}"
    numbers = array.tolist() if array.dtype.name != "bfloat16" else array.astype(np.float64).tolist()
    layout = "" if array.flags.c_contiguous else f"  # strides {array.strides}\n    "
    return f"array({numbers!r}, {name}{layout})"


class Subject:
    """A backend under test.

    Attributes
    ----------
    name : str
        The name it is selected by.
    backend : Backend
        The backend itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.backend: Backend = backends.get(name)

    def __repr__(self) -> str:
        return f"<backend {self.name!r} under test>"

    def has(self, kernel: str) -> bool:
        """Whether the backend has a function for `kernel` itself."""
        return hasattr(self.backend.room, kernel)

    def stand_in(self, kernel: str) -> str | None:
        """The backend that is declared to compute `kernel` instead."""
        return None if self.has(kernel) else self.backend.stand_ins.get(kernel)

    def array(self, x: Any) -> Any:
        """`x`, if it is a NumPy array, as an array of the backend in memory of its own."""
        if not isinstance(x, np.ndarray):
            return x
        with backends.use(self.name):
            moved = backends.asarray(x.copy(order="K") if self.backend.arrays == "numpy" else x)
        return moved

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """A new array of the backend."""
        return self.backend.empty(shape, dtype)

    def full(self, shape: tuple[int, ...], dtype: np.dtype[Any], value: Any) -> Any:
        """A new array of the backend that holds `value` everywhere."""
        return self.array(np.full(shape, value, dtype))

    def numpy(self, x: Any) -> Any:
        """A result as a NumPy array or scalar."""
        if isinstance(x, np.ndarray | np.generic):
            return x
        with backends.use(self.name):
            return backends.to_numpy(x)

    def call(self, case: Case, **more: Any) -> tuple[Any, ...]:
        """The results of a case, as arrays of the backend; `more` are options as they are, such as ``out``."""
        with told(self, case):
            arrays = [self.array(case.inputs.get(name)) for name in case.kernel.arguments]
            options = {name: self.array(value) for name, value in case.options.items()}
            return self.call_on(case.kernel, arrays, {**options, **more})

    def call_on(self, kernel: Kernel, arrays: list[Any], options: Mapping[str, Any]) -> tuple[Any, ...]:
        """The results for arguments that are arrays of the backend already."""
        with backends.use(self.name, check=True):
            return as_tuple(kernel.function(*arrays, **options))

    def composed(self, case: Case) -> tuple[Any, ...]:
        """The results of a case by the kernels that its kernel is composed of."""
        assert case.kernel.composed is not None
        with told(self, case), backends.use(self.name):
            arrays = [self.array(case.inputs[name]) for name in case.kernel.arguments]
            return case.kernel.composed(*arrays, **{name: self.array(value) for name, value in case.options.items()})

    def compare(
        self, case: Case, got: tuple[Any, ...], expected: tuple[Any, ...] | None = None, slack: float = 1.0
    ) -> None:
        """Assert type, shape, dtype and device of the results of a case first, then their values.

        `slack` multiplies the tolerance of the record, for cases that lose accuracy by their nature.
        """
        with told(self, case):
            exact = case.expected() if expected is None else expected
            assert len(got) == len(case.kernel.results), f"{len(got)} results, expected {case.kernel.results}"
            largest = case.largest(exact)
            for name, value, true, size in zip(case.kernel.results, got, exact, largest, strict=True):
                if true is None:
                    assert value is None, f"{name}: expected None, got {type(value)}"
                    continue
                self._compare(case, name, value, np.asarray(true), size, slack)

    def _compare(self, case: Case, name: str, value: Any, exact: Any, size: float, slack: float) -> None:
        wanted = loss_dtype(case.dtype) if name == "loss" else case.dtype
        is_own = self.backend.owns(type(value)) or (not exact.ndim and isinstance(value, np.generic))
        assert is_own, f"{name}: expected an array of {self.name!r}, got {type(value)}"
        assert value.shape == exact.shape, f"{name}: expected shape {exact.shape}, got {value.shape}"
        assert value.dtype == wanted, f"{name}: expected dtype {wanted}, got {value.dtype}"
        got = np.asarray(self.numpy(value)).astype(np.float64)
        relative, absolute = self.tolerance(case.kernel, name, case.dtype, slack)
        close(name, got, exact, relative, relative * size + absolute)

    @staticmethod
    def tolerance(kernel: Kernel, result: str, dtype: np.dtype[Any], slack: float = 1.0) -> tuple[float, float]:
        """What a result may be off, relative to the largest magnitude in it, and absolutely."""
        wanted = loss_dtype(dtype) if result == "loss" else dtype
        # Half an ulp for the rounding of the result, and the record's tolerance in the dtype that is computed in.
        relative = 0.5 * epsilon(wanted) + slack * kernel.tolerance * epsilon(loss_dtype(dtype))
        return relative, float(finfo(wanted).smallest_subnormal)


def close(name: str, got: Any, exact: Any, relative: float, absolute: float) -> None:
    """Assert that float64 values agree: what is not finite exactly, the rest relative to the largest magnitude."""
    finite = np.isfinite(exact)
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    if not same[~finite].all():
        where = tuple(int(i) for i in np.argwhere(~finite & ~same)[0])
        raise AssertionError(f"{name}{list(where)}: expected {exact[where]}, got {got[where]}")
    allowed = relative * np.abs(exact[finite]).max(initial=0.0) + absolute
    with np.errstate(invalid="ignore"):
        wrong = finite & ~(np.abs(got - exact) <= allowed)
    if wrong.any():
        distance = np.nan_to_num(np.abs(np.where(wrong, got - exact, 0.0)), nan=np.inf)
        where = tuple(int(i) for i in np.unravel_index(distance.argmax(), got.shape))
        raise AssertionError(
            f"{name}{list(where)}: expected {exact[where]}, got {got[where]}, off by "
            f"{abs(got[where] - exact[where]):.3g}, allowed {allowed:.3g}; {int(wrong.sum())} of {got.size} are off"
        )


@contextmanager
def told(subject: Subject, case: Case) -> Iterator[None]:
    """Add to any error what was called, and how to repeat it."""
    try:
        yield
    except Exception as error:
        note = (
            f"in {case.kernel.name} on backend {subject.name!r}{', ' + case.about if case.about else ''}; to repeat:\n"
        )
        if not any(n.startswith("in ") for n in getattr(error, "__notes__", ())):
            error.add_note(note + case.snippet(subject.name))
        raise


@contextmanager
def witness(subject: Subject) -> Iterator[dict[str, int]]:
    """Count the kernel functions of the backend that are called, and refuse those of any other backend.

    Another backend's function is recognised by its code while it runs, however it was reached.
    """
    counts: dict[str, int] = {}
    own = {id(_code(getattr(subject.backend.room, kernel, None))) for kernel in KERNELS}
    foreign = {
        id(code): f"{other}.{kernel}"
        for other in registry.BUILTIN
        if other != subject.name and isinstance(backend := registry.usable(other), Backend)
        for kernel in KERNELS
        if (code := _code(getattr(backend.room, kernel, None))) is not None and id(code) not in own
    }
    seen: list[str] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and id(frame.f_code) in foreign:
            seen.append(foreign[id(frame.f_code)])

    def counted(kernel: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            counts[kernel] = counts.get(kernel, 0) + 1
            function(*arguments)

        return call

    functions = subject.backend.functions
    before = {kernel: functions[kernel] for kernel in KERNELS if subject.has(kernel)}
    profiler = sys.getprofile()
    try:
        for kernel, function in before.items():
            functions[kernel] = counted(kernel, function)
        sys.setprofile(watch)
        yield counts
    finally:
        sys.setprofile(profiler)
        functions.update(before)
    assert not seen, f"the work was done by {sorted(set(seen))}, not by {subject.name!r}, and not declared in STAND_INS"


def _code(function: Any) -> CodeType | None:
    return getattr(unwrap(function), "__code__", None) if callable(function) else None


def environment(threads: int) -> dict[str, str]:
    """The environment of a process that uses so many threads."""
    return {**os.environ, "PLUGRAD_NUM_THREADS": str(threads)}
