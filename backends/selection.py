"""Which backend a call runs on: scopes, the process's default, and the environment.

A choice is a name, several names in order of preference, or ``auto``. The innermost scope of the running thread or
task (`use`) counts first, then `set_default`, then the environment variable ``PLUGRAD_BACKEND``, which is read once,
when the first kernel is called. Scopes live in a `contextvars.ContextVar`: a new thread starts with the default and
never sees another thread's scope.
"""

import functools
import numbers
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from plugrad.backends import host, profile, registry, threads
from plugrad.backends.options import is_supported
from plugrad.backends.registry import Backend, BackendUnavailableError, Unavailable

VARIABLE = "PLUGRAD_BACKEND"
CHECK_VARIABLE = "PLUGRAD_CHECK"
SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

AUTO = "auto"
# What `auto` tries, by the package of the arrays; lists, scalars and all other arrays go the way of NumPy's.
AUTO_ORDER = {"cupy": ("cupy",), "numpy": ("numba", "numpy")}

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Choice:
    """Names in order of preference, or ``auto``, with options.

    `origin` is how the user said it, for messages: ``PLUGRAD_BACKEND=numba`` or ``use('numba')``.
    """

    __slots__ = ("_found", "_told", "_tuned", "by_type", "names", "options", "origin", "outer", "scope")

    def __init__(
        self,
        text: Any,
        options: Mapping[str, Any],
        origin: str,
        scope: "use | None" = None,
        outer: "Choice | None" = None,
    ) -> None:
        if not isinstance(text, str):
            registry.unknown(text, origin)
        names = tuple(name.strip() for name in text.split(","))
        if names != (AUTO,):
            if AUTO in names:
                raise ValueError(f"{origin}: 'auto' stands alone; list the backends themselves")
            for name in names:
                if not registry.is_known(name):
                    registry.unknown(name, origin)
        self.names = names
        self.options = options
        self.origin = origin
        self.scope = scope  # that made it
        self.outer = outer  # the one that is in force again when that ends
        self.by_type: dict[type, Backend] = {}  # array type -> the backend of every call with such arrays
        self._found: dict[type, Backend] = {}  # the same, if the kernel and the size do not say otherwise
        self._tuned: Tuned = {}  # what they say: for NumPy's arrays, from a profile
        self._told = ""

    @property
    def description(self) -> str:
        """How the user said it, and what there is to say of the profile."""
        self.backend_for(np.ndarray)
        return f"{self.origin}, {self._told}" if self._told else self.origin

    def candidates(self, kind: type) -> tuple[str, ...]:
        """The names that may serve arrays of type `kind`, in order."""
        if self.names != (AUTO,):
            return self.names
        return next(
            (names for package, names in AUTO_ORDER.items() if registry.is_array_of(kind, package)),
            AUTO_ORDER["numpy"],
        )

    def backend_for(self, kind: type) -> Backend:
        """The backend that computes on arrays of type `kind`, found at the first call and then remembered."""
        backend = self._found.get(kind)
        if backend is None:
            backend = self._find(kind)
            if kind is np.ndarray and self.names == (AUTO,):
                self._tuned, self._told = _tuned(backend)
            self._found[kind] = backend
            if kind is not np.ndarray or not self._tuned:
                self.by_type[kind] = backend
        return backend

    def backend_of_call(self, kernel: str, array: Any) -> Backend:
        """The backend for this kernel, called with `array` first: that of arrays of its type, or the fastest."""
        kind = type(array)
        backend = self._found.get(kind)
        if backend is None:
            backend = self.backend_for(kind)
        if kind is np.ndarray and (dtypes := self._tuned.get(kernel)):
            for start, fastest in dtypes.get(array.dtype, ()):
                if array.size < start:
                    break
                backend = fastest
        return backend

    @property
    def has_profile(self) -> bool:
        """Whether a profile has a part in the choice for some calls."""
        return bool(self._tuned)

    def is_tuned(self, kernel: str, array: Any) -> bool:
        """Whether the profile tells who is the fastest."""
        self.backend_for(np.ndarray)
        return type(array) is np.ndarray and array.dtype in self._tuned.get(kernel, {})

    def _find(self, kind: type) -> Backend:
        candidates = self.candidates(kind)
        backend, reasons = registry.first_usable(candidates)
        if backend is None:
            several = "none of these backends can run here: " if len(candidates) > 1 else ""
            raise BackendUnavailableError(f"{self.origin}: {several}{'; '.join(reasons.values())}")
        for option, value in self.options.items():
            if option not in backend.options:
                raise TypeError(
                    f"{self.origin}: backend {backend.name!r} has no option {option!r}; "
                    f"it has {', '.join(sorted(backend.options))}"
                )
            expected = type(backend.options[option])
            if not isinstance(value, expected):
                raise TypeError(f"{self.origin}: {option}: expected {expected.__name__}, got {type(value).__name__}")
        return backend


# Per kernel and dtype who computes arrays of how many elements and more.
Tuned = dict[str, dict[np.dtype[Any], list[tuple[int, Backend]]]]


def _tuned(default: Backend) -> tuple[Tuned, str]:
    """What a profile says, as far as that is another backend than the default, and what there is to say of it."""
    found, told = profile.read(AUTO_ORDER["numpy"])
    backends = {name: registry.usable(name) for name in AUTO_ORDER["numpy"]} if found else {}
    tuned: Tuned = {}
    for kernel, dtypes in found.steps.items() if found else ():
        for dtype, steps in dtypes.items():
            usable = [(start, backend) for start, name in steps if isinstance(backend := backends[name], Backend)]
            if any(backend is not default for _, backend in usable):
                tuned.setdefault(kernel, {})[dtype] = usable
    return tuned, told


class _ThreadsOwn:
    """A context variable whose value counts in the thread that set it alone.

    Where Python has no lock, a new thread starts with a copy of the context of the one that starts it, and a thread of
    a pool would stay in a scope for good.
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


_scope: ContextVar[Choice | None] | _ThreadsOwn = ContextVar("plugrad_backend", default=None)
if getattr(sys.flags, "thread_inherit_context", False):  # Python 3.14
    _scope = _ThreadsOwn()
_default: Choice | None = None  # what set_default was given, or else what the environment says


_setting = threading.RLock()  # a handler of signals may call a kernel in the middle of it


def _of_environment() -> Choice:
    """The choice that the environment makes, read once."""
    global _default
    with _setting:
        if _default is None:
            text = os.environ.get(VARIABLE, "").strip() or AUTO
            threads.requested()  # a wrong number is told as what it is, not as a backend that fails
            _default = Choice(text, _checking(), f"{VARIABLE}={text}")
        return _default


def _checking() -> dict[str, Any]:
    """The checking mode where nothing else is said: that of the scope around, or of the environment."""
    around = _scope.get() or _default
    if around is not None:
        return {name: value for name, value in around.options.items() if name == "check"}
    check = os.environ.get(CHECK_VARIABLE, "").strip().lower()
    if not check:
        return {}
    if check not in SWITCH:
        raise ValueError(f"{CHECK_VARIABLE}={check}: expected one of {', '.join(SWITCH)}")
    return {"check": SWITCH[check]}


def chosen() -> Choice:
    """The choice in force for the calling thread or task."""
    return _scope.get() or _default or _of_environment()


def backend_for(array: Any, kernel: str = "") -> Backend:
    """The backend that a kernel called with `array` first runs on; without its name, that of arrays of this type."""
    choice = _scope.get() or _default or _of_environment()
    backend = choice.by_type.get(type(array))
    return choice.backend_of_call(kernel, array) if backend is None else backend


def options() -> Mapping[str, Any]:
    """The options of the choice in force, such as ``{"check": True}``; for rooms that have any."""
    return chosen().options


# ---------------------------------------------------------------------------------------------------------------------
# The public functions
# ---------------------------------------------------------------------------------------------------------------------


class use:  # noqa: N801  (it is called like a function)
    """Select a backend for a block of code, or for every call of a function.

    The scope belongs to the running thread or asyncio task; threads started inside it begin with the default. One that
    a generator enters is that of its caller until the generator leaves it, and ends for nobody if another thread closes
    the generator.

    Parameters
    ----------
    name : str
        A backend's name, several separated by commas in order of preference, or ``"auto"``; or a `Backend`.
    **options
        Options of the backend. Every backend has ``check``: data-dependent errors that a GPU cannot report without
        synchronising, such as a label out of range, are raised even so. CPU backends always raise them.

    Raises
    ------
    TypeError, ValueError
        For an unknown name or option; the message lists those that exist.
    BackendUnavailableError
        On entering, if none of the named backends can run here.

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
        Choice(*self._arguments)  # a wrong name is told here, where it stands

    def __enter__(self) -> Backend:
        # The scope around is kept in the choice, not in this object, which many threads may enter at once.
        name, options, origin = self._arguments
        choice = Choice(name, {**_checking(), **options}, origin, self, _scope.get())
        backend = choice.backend_for(np.ndarray)
        _scope.set(choice)
        return backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        inner, choice = None, _scope.get()
        while choice is not None and choice.scope is not self:  # the generator that entered it is closed within another
            inner, choice = choice, choice.outer
        if choice is None:  # the generator is closed where it was not entered
            return
        if inner is None:
            _scope.set(choice.outer)
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

    It counts in every thread, wherever no scope (`use`) is entered.

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
    choice = Choice(name, _checking(), f"set_default({name!r})")
    choice.backend_for(np.ndarray)
    with _setting:
        _default = choice


def current() -> Backend:
    """The backend selected here and now; with ``auto``, the one that computes on NumPy arrays.

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
    return chosen().backend_for(np.ndarray)


def asarray(x: Any) -> Any:
    """Move `x` to the current backend: the explicit step that no kernel takes by itself.

    Parameters
    ----------
    x : array_like
        A NumPy array, an array of any backend, a sequence or a number.

    Returns
    -------
    array
        An array of the current backend; `x` itself where it is one already.

    Examples
    --------
    >>> from plugrad import backends
    >>> with backends.use("numpy"):
    ...     backends.asarray([1.0, 2.0])
    array([1., 2.])
    """
    backend = current()
    if backend.owns(type(x)):
        return x
    return backend.asarray(to_numpy(x))


def to_numpy(x: Any) -> Any:
    """Move `x`, an array of any backend, to host memory as a NumPy array; a NumPy array is returned as it is.

    Raises
    ------
    TypeError
        For an array in the memory of a device that no selected or built-in backend reads.

    Examples
    --------
    >>> from plugrad import backends, kernels as K
    >>> backends.to_numpy(K.relu([-1.0, 2.0]))
    array([0., 2.])
    """
    kind = type(x)
    if kind is np.ndarray:
        return x
    selected = current()
    if selected.owns(kind):
        return selected.to_numpy(x)
    for package, names in AUTO_ORDER.items():
        if package != "numpy" and registry.is_array_of(kind, package):
            return registry.get(names[-1]).to_numpy(x)
    if host.on_device(x):
        raise TypeError(
            f"to_numpy: x: expected an array of a known backend or in host memory, got a {kind.__module__}."
            f"{kind.__qualname__} on a device; select the backend that computes on it, or copy it to the host first"
        )
    return host.take("to_numpy: x", x)


class Explanation(NamedTuple):
    """Which backend a call would run on; `print` it to read it.

    Attributes
    ----------
    kernel : str
        The kernel asked about.
    backend : str or None
        The name of the backend that would run it; None if the call would fail.
    reasons : dict of str to str
        For every known backend, why it would run or why it would not.
    origin : str
        What made the choice, such as ``PLUGRAD_BACKEND=auto``, and whether a profile had a part in it.
    """

    kernel: str
    backend: str | None
    reasons: dict[str, str]
    origin: str

    def __str__(self) -> str:
        width = max(map(len, self.reasons))
        lines = [f"{self.kernel} runs on {self.backend or 'no backend: the call would fail'} ({self.origin})"]
        return "\n".join([*lines, *(f"  {name:{width}}  {reason}" for name, reason in self.reasons.items())])


def explain(kernel: str | Callable[..., Any], *arrays: Any) -> Explanation:
    """Tell which backend would run `kernel` on `arrays`, and why each other one would not.

    Parameters
    ----------
    kernel : str or function
        A kernel or its name.
    *arrays
        The arrays that it would be called with; none stands for NumPy arrays.

    Raises
    ------
    TypeError, ValueError
        If `kernel` names no kernel.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import backends, kernels as K
    >>> with backends.use("numpy"):
    ...     print(backends.explain(K.softmax, np.ones(3)).reasons["numpy"])
    selected by use('numpy')
    """
    name = _kernel_name("explain: kernel", kernel)
    choice = chosen()
    arrays = tuple(
        array for array in arrays if not isinstance(array, numbers.Number)
    )  # a gradient of a loss may be one
    kind = type(arrays[0]) if arrays else np.ndarray
    candidates = choice.candidates(kind)
    backend, _ = registry.first_usable(candidates)
    measured, origin, is_tuned = "", choice.origin, False
    if backend is not None:
        # A kernel goes by the array of its rows, which may come after a gradient of fewer elements.
        plain = (array for array in arrays if type(array) is np.ndarray)
        decides = max(plain, key=lambda array: (array.ndim, array.size), default=None)
        if decides is not None and choice.is_tuned(name, decides):
            is_tuned = True
            backend = choice.backend_of_call(name, decides)
            measured = f", the fastest for {decides.size:,} elements of {decides.dtype}"
        elif decides is not None and choice.has_profile:
            measured = f", where the profile says nothing of {decides.dtype}"
        origin = choice.description
    runs = None
    reasons: dict[str, str] = {}
    for other in registry.names():
        if other not in candidates:
            reasons[other] = _why_not_considered(other, choice, kind)
            continue
        found = registry.usable(other)
        if isinstance(found, Unavailable):
            reasons[other] = str(found)
        elif found is not backend:
            reasons[other] = f"{backend} is faster, by the profile" if is_tuned else f"{backend} comes first"
        else:
            misfit = _misfit(found, name, arrays)
            reasons[other] = misfit or f"selected by {origin}{measured}"
            if not misfit:
                runs = found.computes(name)
    if runs is not None and runs not in candidates:
        reasons[runs] = f"stands in for {backend}, which has no kernel {name!r}"
    return Explanation(name, runs, reasons, origin)


def _why_not_considered(name: str, choice: Choice, kind: type) -> str:
    if choice.names != (AUTO,):
        return f"not among the backends of {choice.origin}"
    if any(name in order for order in AUTO_ORDER.values()):
        return f"auto does not give it arrays of type {kind.__module__}.{kind.__qualname__}"
    return "auto does not consider it; select it by its name"


def _misfit(backend: Backend, kernel: str, arrays: tuple[Any, ...]) -> str | None:
    """Why `backend`, though selected, cannot compute `kernel` on `arrays`; None if it can."""
    try:
        backend.functions[kernel]
        for array in arrays:
            backend.take(kernel, array)
    except (NotImplementedError, TypeError) as error:
        return str(error)
    return None


def _kernel_name(what: str, kernel: str | Callable[..., Any]) -> str:
    """The name of a kernel, given by it or by its function."""
    name = kernel if isinstance(kernel, str) else getattr(kernel, "__name__", "")
    kernels = registry.get("numpy").room.__all__  # the reference: it has every kernel
    if name not in kernels:
        raise ValueError(f"{what}: expected one of {', '.join(kernels)}; got {kernel!r}")
    return name


def warmup(
    kernels: Iterable[str | Callable[..., Any]] | None = None, dtypes: Iterable[npt.DTypeLike] = (np.float32,)
) -> None:
    """Have the current backend compile kernels now, rather than at their first call.

    For backends that compile, such as ``numba``: a few seconds for a kernel and dtype, or a few milliseconds where the
    code was kept from an earlier process. On other backends nothing happens. Class indices are taken for int64, NumPy's
    own integers; for another type the kernel compiles when it is first called with it.

    Parameters
    ----------
    kernels : iterable of str or function, optional
        Kernels or their names; by default all.
    dtypes : iterable of dtype
        The dtypes of the arrays: float16, bfloat16 (of `ml_dtypes`), float32 or float64.

    Raises
    ------
    TypeError, ValueError
        If something else is given.

    Examples
    --------
    >>> from plugrad import backends, kernels as K
    >>> with backends.use("numpy"):
    ...     backends.warmup([K.relu, K.relu_backward], dtypes=["float32", "float64"])
    """
    if isinstance(kernels, str) or callable(kernels) or isinstance(dtypes, str | np.dtype | type):
        raise TypeError("warmup: expected a list of kernels and a list of dtypes, got a single one")
    backend = current()
    wanted = registry.get("numpy").room.__all__ if kernels is None else kernels
    names = [_kernel_name("warmup: kernels", kernel) for kernel in wanted]
    found = []
    for given in dtypes:
        try:
            dtype = np.dtype(given)
        except TypeError as error:
            raise TypeError(f"warmup: dtypes: {error}") from error
        if not is_supported(dtype):
            raise TypeError(f"warmup: dtypes: expected float16, bfloat16, float32 or float64, got {dtype}")
        found.append(dtype)
    backend.warmup(names, found)
