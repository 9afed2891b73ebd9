"""The backend under test, and calls on it."""

import functools
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import unwrap
from types import CodeType, FrameType, FunctionType
from typing import Any

import ml_dtypes
import numpy as np

from plugrad import backends
from plugrad.backends import Backend, registry
from plugrad.tests.records import RECORDS, Record

DTYPES = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
finfo: Any = ml_dtypes.finfo  # knows bfloat16 too


def epsilon(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next larger number."""
    return float(finfo(dtype).eps)


def loss_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the loss of arrays of `dtype`, which is also what they are computed in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def result_dtype(result: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a result of a kernel of arrays of `dtype`."""
    if result == "accuracy":
        return np.dtype(np.float64)
    if result == "indices":
        return np.dtype(np.int64)
    return loss_dtype(dtype) if result == "loss" else dtype


def as_tuple(results: Any) -> tuple[Any, ...]:
    """The results of a kernel as a tuple."""
    return results if isinstance(results, tuple) else (results,)


@dataclass(repr=False)
class Case:
    """One call: a kernel, its arguments as NumPy arrays by name, and options."""

    kernel: Record
    inputs: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    seed: int = 0  # the seed of the sample

    def __post_init__(self) -> None:
        self.options = {**self.kernel.given, **self.options}

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the result: that of the first array that is neither labels nor upstream gradient."""
        name = next(n for n in self.kernel.arguments if n not in ("t", "dloss"))
        return np.dtype(np.asarray(self.inputs[name]).dtype)

    def __repr__(self) -> str:
        return f"<{self.kernel.name}: {self.about}>"

    def expected(self) -> tuple[Any, ...]:
        """The results by the oracle."""
        with np.errstate(all="ignore"):
            return self.kernel.oracle(*(self.inputs.get(name) for name in self.kernel.arguments), **self.options)

    def largest(self, expected: tuple[Any, ...]) -> list[float]:
        """The largest magnitude in each result, or in the terms that it is the sum of."""
        return [_largest(size) for size in self.sizes(expected)]

    def sizes(self, expected: tuple[Any, ...]) -> tuple[Any, ...]:
        """The sums of the magnitudes of the terms of each result; the results themselves if they are no sums."""
        terms = self.kernel.terms
        with np.errstate(all="ignore"):
            return terms(*(self.inputs.get(n) for n in self.kernel.arguments), **self.options) if terms else expected


def _largest(x: Any) -> float:
    """The largest finite magnitude."""
    magnitudes = np.abs(np.asarray(0.0 if x is None else x, np.float64))
    return float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))


@dataclass(frozen=True)
class Made:
    """The arrays and mode of a call, for a snippet that repeats it."""

    kernel: Record
    arrays: tuple[Any, ...]
    out: tuple[Any, ...]  # the arrays given for the results
    held: tuple[Any, ...]  # their values before the call, as NumPy arrays
    check: bool


class Subject:
    """A backend under test.

    Attributes
    ----------
    name : str
        The name it is selected by.
    backend : Backend
        The backend itself.
    kernels : tuple of str
        The kernels under test; processes that a check starts compute these only.
    last : Made or None
        The most recent call.
    """

    def __init__(self, name: str, kernels: Iterable[str] = tuple(RECORDS)) -> None:
        self.name = name
        self.backend: Backend = backends.get(name)
        self.kernels = tuple(kernels)
        self.last: Made | None = None

    def __repr__(self) -> str:
        return f"<backend {self.name!r} under test>"

    def has(self, kernel: str) -> bool:
        """Whether the backend has a function for `kernel` itself."""
        return hasattr(self.backend.module, kernel)

    def stand_in(self, kernel: str) -> str | None:
        """The backend that is declared as the stand-in for `kernel`."""
        return None if self.has(kernel) else self.backend.stand_ins.get(kernel)

    def array(self, x: Any) -> Any:
        """`x`, if it is a NumPy array, copied to an array of the backend."""
        if not isinstance(x, np.ndarray):
            return x
        with backends.use(self.name):
            moved = backends.asarray(x.copy(order="K") if self.backend.arrays == "numpy" else x)
        return moved

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """A new array of the backend."""
        return self.backend.empty(shape, dtype)

    def full(self, shape: tuple[int, ...], dtype: np.dtype[Any], value: Any) -> Any:
        """A new array of the backend that holds `value` everywhere; -1 in place of NaN if it holds integers."""
        held = -1 if dtype.kind == "i" and np.isnan(value) else value
        return self.array(np.full(shape, held, dtype))

    def is_array(self, x: Any) -> bool:
        """Whether `x` is an array of the backend, or one of NumPy's, of whatever kind."""
        return isinstance(x, np.ndarray) or self.backend.owns(type(x))

    def numpy(self, x: Any) -> Any:
        """A result as a NumPy array or scalar."""
        if isinstance(x, np.ndarray | np.generic):
            return x
        with backends.use(self.name):
            return backends.to_numpy(x)

    def call(self, case: Case, check: bool = False, **more: Any) -> tuple[Any, ...]:
        """The results of a case, as arrays of the backend; `more` are options as they are, such as ``out``."""
        with naming_the_call(self, case):
            arrays = [self.array(case.inputs.get(name)) for name in case.kernel.arguments]
            options = {name: self.array(value) for name, value in case.options.items()}
            return self.call_on(case.kernel, arrays, {**options, **more}, check)

    def call_on(
        self, kernel: Record, arrays: list[Any], options: Mapping[str, Any], check: bool = False
    ) -> tuple[Any, ...]:
        """The results for arguments that are arrays of the backend already, in the checking mode or not."""
        out = as_tuple(options.get("out"))
        held = tuple(np.array(self.numpy(x)) if self.backend.owns(type(x)) else x for x in out)
        self.last = Made(kernel, tuple(arrays), out, held, check)
        with backends.use(self.name, check=check), self._waiting_refused(check):
            return as_tuple(kernel.function(*arrays, **{**kernel.given, **options}))

    @contextmanager
    def _waiting_refused(self, check: bool) -> Iterator[None]:
        """Make it an error to wait for a GPU, but in the checking mode: the host goes on while the GPU computes."""
        if self.backend.arrays != "cupy" or check:
            yield
            return
        import cupyx  # which knows when CuPy waits

        with cupyx.allow_synchronize(False):
            yield

    def composed(self, case: Case) -> tuple[Any, ...]:
        """The results of a case by the kernels that its kernel is composed of."""
        assert case.kernel.composed is not None
        with naming_the_call(self, case), backends.use(self.name, check=False):
            arrays = [self.array(case.inputs[name]) for name in case.kernel.arguments]
            return case.kernel.composed(*arrays, **{name: self.array(value) for name, value in case.options.items()})

    def compare(
        self, case: Case, got: tuple[Any, ...], expected: tuple[Any, ...] | None = None, slack: float = 1.0
    ) -> None:
        """Assert type, shape, dtype and device of the results of a case first, then their values.

        `slack` multiplies the tolerance of the record, for cases that lose accuracy by their nature.
        """
        with naming_the_call(self, case):
            exact = case.expected() if expected is None else expected
            assert len(got) == len(case.kernel.results), f"{len(got)} results, expected {case.kernel.results}"
            largest = case.largest(exact)
            for name, value, true, size in zip(case.kernel.results, got, exact, largest, strict=True):
                if true is None:
                    assert value is None, f"{name}: expected None, got {type(value)}"
                    continue
                self._compare(case, name, value, np.asarray(true), size, slack)

    def _compare(self, case: Case, name: str, value: Any, exact: Any, size: float, slack: float) -> None:
        wanted = result_dtype(name, case.dtype)
        is_own = self.backend.owns(type(value)) or (not exact.ndim and isinstance(value, np.generic))
        assert is_own, f"{name}: expected an array of {self.name!r}, got {type(value)}"
        assert value.shape == exact.shape, f"{name}: expected shape {exact.shape}, got {value.shape}"
        assert value.dtype == wanted, f"{name}: expected dtype {wanted}, got {value.dtype}"
        got = np.asarray(self.numpy(value)).astype(np.float64)
        relative, absolute = self.tolerance(case.kernel, name, case.dtype, slack)
        # The tolerance is relative to the largest term. `close` adds the part relative to the result itself.
        beyond = max(0.0, size - _largest(exact))
        close(name, got, exact, relative, relative * beyond + absolute)

    @staticmethod
    def tolerance(kernel: Record, result: str, dtype: np.dtype[Any], slack: float = 1.0) -> tuple[float, float]:
        """The tolerance of a result: relative to its largest magnitude, and absolute."""
        wanted = result_dtype(result, dtype)
        if wanted.kind == "i":
            return 0.0, 0.0
        # Half an ulp for the rounding of the result, and the record's tolerance in the dtype that is computed in.
        relative = 0.5 * epsilon(wanted) + slack * kernel.tolerance * epsilon(loss_dtype(dtype))
        return relative, float(finfo(wanted).smallest_subnormal)


def close(name: str, got: Any, exact: Any, relative: float, absolute: float) -> None:
    """Assert that float64 values agree: infinities and NaN exactly, others relative to the largest magnitude."""
    finite = np.isfinite(exact)
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    if not same[~finite].all():
        where = tuple(int(i) for i in np.argwhere(~finite & ~same)[0])
        raise AssertionError(f"{name}{list(where)}: expected {exact[where]}, got {got[where]}")
    allowed = relative * np.abs(exact[finite]).max(initial=0.0) + absolute
    with np.errstate(all="ignore"):
        off = np.abs(got - exact)
        wrong = finite & ~(off <= allowed)
    if wrong.any():
        distance = np.nan_to_num(np.where(wrong, off, 0.0), nan=np.inf)
        where = tuple(int(i) for i in np.unravel_index(distance.argmax(), got.shape))
        raise AssertionError(
            f"{name}{list(where)}: expected {exact[where]}, got {got[where]}, off by "
            f"{off[where]:.3g}, allowed {allowed:.3g}; {int(wrong.sum())} of {got.size} are off"
        )


@contextmanager
def naming_the_call(subject: Subject, case: Case) -> Iterator[None]:
    """Add a note to any error: the kernel, the backend, and a snippet that repeats the call."""
    try:
        yield
    except Exception as error:
        if not any(n.startswith("in ") for n in getattr(error, "__notes__", ())):
            from plugrad.tests.conformance.snippets import snippet  # a circular import at the top

            about = f", {case.about}" if case.about else ""
            try:
                code = snippet(subject, case)
            except Exception as problem:  # the first error is the one to report
                code = f"# no code, because of {problem!r}"
            error.add_note(f"in {case.kernel.name} on backend {subject.name!r}{about}; to repeat:\n{code}")
        raise


# ---------------------------------------------------------------------------------------------------------------------
# The witness of calls
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def witness(subject: Subject, kernel: Record) -> Iterator[dict[str, int]]:
    """Count the calls of the backend's own kernel functions; assert that none of another backend is called meanwhile.

    A profile function sees every call of a Python function in this thread and in threads that it starts. Only kernel
    functions are compared: backends may share functions below the kernels.
    """
    counts: Counter[str] = Counter()
    called: dict[int, CodeType] = {}
    functions = subject.backend.functions
    own = {name: functions[name] for name in RECORDS if subject.has(name)}
    function, foreign = _python(own[kernel.name]), _functions_of_others(subject)
    assert function not in foreign, (
        f"{kernel.name} is the function {foreign[function]} itself: declare that in STAND_INS"
    )
    is_over = False

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if is_over:
            sys.setprofile(None)  # in a thread that outlives the call
        elif event == "call":
            called[id(frame.f_code)] = frame.f_code

    def counted(name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            counts[name] += 1
            own[name](*arguments)

        return call

    functions.update({name: counted(name) for name in own})
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield counts
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        is_over = True
        functions.update(own)
    borrowed = {name for function, name in _functions_of_others(subject).items() if id(function.__code__) in called}
    others = ", ".join(sorted(borrowed))
    assert not others, f"the work was done by {others}, not by {subject.name!r}, and not declared in STAND_INS"


def _functions_of_others(subject: Subject) -> dict[FunctionType, str]:
    """The Python kernel functions of other imported backends, with their names."""
    own = {_python(getattr(subject.backend.module, name, None)) for name in RECORDS}
    own_code = {function.__code__ for function in own if function is not None}
    imported = (name for name, module in registry.BUILTIN.items() if module in sys.modules)
    found: dict[FunctionType, str] = {}
    for other in dict.fromkeys((*imported, *registry._loaded)):
        backend = registry.usable(other)
        if other == subject.name or not isinstance(backend, Backend):
            continue
        for name in RECORDS:
            function = _python(getattr(backend.module, name, None))
            if function is None:
                continue
            # If two plug-ins share a function, or code, its owner is unknown.
            is_foreign = _is_from(other, function) if function in own else function.__code__ not in own_code
            if is_foreign:
                found.setdefault(function, f"{other}.{name}")
    return found


def _is_from(backend: str, function: FunctionType) -> bool:
    """Whether a function is defined in the package of a backend of plugrad."""
    return function.__module__.startswith(registry.BUILTIN.get(backend, "nowhere"))


def _python(function: Any) -> FunctionType | None:
    """The Python function inside partials and wrappers, or None."""
    while isinstance(function, functools.partial):
        function = function.func
    function = unwrap(function) if callable(function) else None
    function = getattr(function, "__func__", function)
    return function if isinstance(function, FunctionType) else None


def environment(threads: int) -> dict[str, str]:
    """The environment of a process that uses so many threads."""
    return {**os.environ, "PLUGRAD_NUM_THREADS": str(threads)}
