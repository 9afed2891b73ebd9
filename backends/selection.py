"""The choice of a backend that is in force: scopes, the default of the process, and the environment.

A choice is a name, several names in order of preference, or ``auto``. The innermost scope of the running thread or
task (`use`) comes first, then `set_default`, then the environment variable ``PLUGRAD_BACKEND``, which is read once,
when the first kernel is called. Scopes live in a `contextvars.ContextVar`: a new thread starts with the default and
never sees another thread's scope.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from plugrad.backends import log, profile, threads
from plugrad.backends.backend import Backend
from plugrad.backends.choice import Choice
from plugrad.backends.registry import AUTO

if TYPE_CHECKING:
    from plugrad.backends.recording import Recorder

VARIABLE = "PLUGRAD_BACKEND"
CHECK_VARIABLE = "PLUGRAD_CHECK"
SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _ScopeOfThread:
    """A context variable whose value counts only in the thread that set it.

    In free-threaded Python a new thread starts with a copy of the context of the thread that starts it. A thread of a
    pool would stay in that scope for good.
    """

    def __init__(self) -> None:
        self._variable: ContextVar[tuple[threading.Thread | None, Choice | None]] = ContextVar(
            "plugrad_backend", default=(None, None)
        )

    def get(self) -> Choice | None:
        thread, choice = self._variable.get()
        return choice if thread is threading.current_thread() else None

    def set(self, choice: Choice | None) -> None:
        self._variable.set((threading.current_thread(), choice))


scope: ContextVar[Choice | None] | _ScopeOfThread = ContextVar("plugrad_backend", default=None)
if getattr(sys.flags, "thread_inherit_context", False):  # Python 3.14
    scope = _ScopeOfThread()
_default: Choice | None = None  # the choice of set_default, or else that of the environment
_read = ""  # the variable as it was when that choice was made of it

_setting = threading.RLock()  # reentrant, since a signal handler may call a kernel while it is held


def backend_for(array: Any, kernel: str = "") -> Backend:
    """The backend that a kernel called with `array` first runs on; without its name, that of arrays of this type."""
    choice = scope.get() or _default or _of_environment()
    backend = choice.by_type.get(type(array))
    return choice.backend_of_call(kernel, array) if backend is None else backend


def in_force() -> Choice:
    """The choice in force for the running thread or task."""
    return scope.get() or _default or _of_environment()


def chosen() -> Choice:
    """The choice in force for the running thread or task; in a block that is captured the one it was entered with."""
    return in_force().plain


def recorder() -> "Recorder | None":
    """The recorder of the block that this thread captures, if it does."""
    choice = scope.get()
    return None if choice is None else choice.recorder


def refuse_in_capture(what: str) -> None:
    """Raise a `RuntimeError` in a block that is captured."""
    if recorder() is not None:
        raise RuntimeError(f"{what} (in a block of plugrad.kernels.capture)")


def options() -> Mapping[str, Any]:
    """The options of the choice in force, such as ``{"check": True}``, for the backends that have any."""
    return chosen().options


def _of_environment() -> Choice:
    """The choice that the environment makes, read once."""
    global _default, _read
    with _setting:
        if _default is None:
            _read = os.environ.get(VARIABLE, "")
            text = _read.strip() or AUTO
            _warn_of_unknown_variables()
            threads.requested()  # raises here for a malformed number, which would look like a failing backend later
            _default = Choice(text, _inherited(), f"{VARIABLE}={text}")
        return _default


def _warn_of_unknown_variables() -> None:
    known = VARIABLE, CHECK_VARIABLE, threads.VARIABLE, profile.VARIABLE
    for name in os.environ:
        if name.startswith("PLUGRAD_") and name not in known:
            log.warn("the environment variable %s is not one of plugrad's: %s", name, ", ".join(known))


def change_of_environment() -> str:
    """A remark if the environment names another backend than it did when it was read, else nothing."""
    text = os.environ.get(VARIABLE, "")
    if _default is None or not _default.origin.startswith(f"{VARIABLE}=") or text.strip() == _read.strip():
        return ""
    return (
        f"{VARIABLE} has changed to {text!r} since it was read, at the first call; call "
        f"plugrad.backends.set_default({text.strip() or AUTO!r}) to select that"
    )


def _inherited() -> dict[str, Any]:
    """The checking mode of the choice in force, or that of the environment: the default of a new choice."""
    outer = scope.get() or _default
    if outer is not None:
        return {name: value for name, value in outer.options.items() if name == "check"}
    check = os.environ.get(CHECK_VARIABLE, "").strip().lower()
    if not check:
        return {}
    if check not in SWITCH:
        raise ValueError(f"{CHECK_VARIABLE}={check}: expected one of {', '.join(SWITCH)}")
    return {"check": SWITCH[check]}


class use:  # noqa: N801  (it is called like a function)
    """Select a backend for a block of code, or for every call of a function.

    The scope belongs to the running thread or asyncio task; threads started inside it begin with the default. A scope
    that a generator enters is that of its caller until the generator leaves it. If another thread closes the generator,
    the scope ends for nobody.

    Parameters
    ----------
    name : str
        A backend's name, several separated by commas in order of preference, or ``"auto"``; or a `Backend`.
    **options
        Options of the backend. Every backend has ``check``: it raises also those errors that depend on data and that a
        GPU cannot report without synchronising, such as a label out of range. CPU backends always raise them.

    Raises
    ------
    TypeError, ValueError
        For an unknown name or option; the message lists those that exist.
    BackendUnavailableError
        On entering, if none of the named backends can run here.
    RuntimeError
        On entering, in a block of `plugrad.kernels.capture`.

    Examples
    --------
    >>> from plugrad import backends, kernels as K
    >>> with backends.use("numpy") as backend:
    ...     print(backend, K.relu([-1.0, 2.0]))
    numpy [0. 2.]
    >>> @backends.use("numpy")
    ... def predict(x):
    ...     return K.softmax(x)
    >>> predict([0.0, 0.0])
    array([0.5, 0.5])
    """

    def __init__(self, name: str | Backend, **options: Any) -> None:
        name = name.name if isinstance(name, Backend) else name
        given = "".join(f", {option}={value!r}" for option, value in options.items())
        self._arguments = (name, options, f"use({name!r}{given})")
        Choice(*self._arguments)  # raises for a wrong name here, and not on entering

    def __enter__(self) -> Backend:
        # The choice keeps the outer one, not this object, which many threads may enter at once.
        name, options, origin = self._arguments
        refuse_in_capture(f"{origin}: a capture has the backend in force at its beginning; select it before")
        choice = Choice(name, {**_inherited(), **options}, origin, self, scope.get())
        backend = choice.backend_for(np.ndarray)
        scope.set(choice)
        return backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        inner, choice = None, scope.get()
        while choice is not None and choice.scope is not self:  # a generator that entered it is closed in an inner one
            inner, choice = choice, choice.outer
        if choice is None:  # a generator that entered it is closed in another thread
            return
        if inner is None:
            scope.set(choice.outer)
        else:
            inner.outer = choice.outer

    def __call__(self, function: _Function) -> _Function:
        """Wrap a function, or a coroutine function, so that each call of it runs in the scope."""
        import inspect  # slow to import, and seldom needed

        if inspect.isclass(function):
            raise TypeError("use: a class cannot be decorated; decorate its methods")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("use: a generator cannot be decorated; write `with use(...)` inside it")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def scoped_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast(_Function, scoped_coroutine)

        @functools.wraps(function)
        def scoped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast(_Function, scoped)


def set_default(name: str | Backend) -> None:
    """Select the backend of the whole process, in place of the environment variable ``PLUGRAD_BACKEND``.

    It applies in every thread, outside of scopes (`use`).

    Parameters
    ----------
    name : str
        A backend's name, several separated by commas in order of preference, or ``"auto"``; or a `Backend`.

    Raises
    ------
    TypeError, ValueError
        For an unknown name; the message lists the known ones. The default stays as it was.
    BackendUnavailableError
        If none of the named backends can run here. The default stays as it was.
    RuntimeError
        In a block of `plugrad.kernels.capture`.

    Examples
    --------
    >>> from plugrad import backends
    >>> backends.set_default("numpy")
    >>> backends.current()
    <plugrad backend 'numpy'>
    >>> backends.set_default("auto")
    """
    global _default
    name = name.name if isinstance(name, Backend) else name
    refuse_in_capture(f"set_default({name!r}): a capture has the backend in force at its beginning; select it before")
    choice = Choice(name, _inherited(), f"set_default({name!r})")
    choice.backend_for(np.ndarray)
    with _setting:
        _default = choice


def current() -> Backend:
    """Return the backend in force for the running thread or task; with ``auto``, that of NumPy arrays.

    If ``PLUGRAD_BACKEND`` has changed since it was read, the logger ``plugrad`` warns.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        If ``PLUGRAD_BACKEND`` names an unknown backend, or none that can run here.

    Examples
    --------
    >>> from plugrad import backends
    >>> with backends.use("numpy"):
    ...     backends.current() == "numpy"
    True
    """
    if remark := change_of_environment():
        log.warn("%s", remark)
    return chosen().backend_for(np.ndarray)
