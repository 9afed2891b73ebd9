"""Which backends there are, whether they can run here, and the functions they compute with.

A backend is a module, here called its *room*: bare functions with the names of the kernels, which get arrays that
are checked already and write their results into arrays that are allocated already. Its name stands in `BUILTIN`, or
in an entry point of the group ``plugrad.backends`` of any installed distribution, or was given to `register`.

Built so that nothing is imported before it is selected: a room of another distribution is not even looked for while
the name of a built-in one is asked for, and probing a built-in room imports at most the library it is about.
"""

import contextlib
import functools
import importlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from plugrad.backends import host, updates

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "plugrad.backends"

# Adding a backend to this repository: its folder, and its line here.
BUILTIN = {
    "numpy": "plugrad.backends.numpy",
    "numba": "plugrad.backends.numba",
    "cupy": "plugrad.backends.cupy",
}


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for cannot run here; the message says why and what to do."""


class Unavailable(str):
    """The reason why a backend cannot run here; false, so that ``if available()[name]`` means what it says."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


class _Functions(dict[str, Callable[..., None]]):
    """The kernel functions of a backend by name, and those of optimizers, looked up in its room at the first use."""

    def __init__(self, backend: "Backend") -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, kernel: str) -> Callable[..., None]:
        backend = self._backend
        function: Callable[..., None] | None = backend.of_room(kernel)
        if function is not None and backend.name not in BUILTIN:
            function = _kernel_of(backend.described, kernel, function)
        if function is None and kernel not in backend.stand_ins:
            function = updates.DEFAULTS.get(kernel)
        if function is None:
            function = self._stand_in(backend, kernel)
        self[kernel] = function
        return function

    @staticmethod
    def _stand_in(backend: "Backend", kernel: str) -> Callable[..., None]:
        """The function of the backend that `backend` declares to stand in for it."""
        lacks = f"backend {backend.name!r} has no kernel {kernel!r}"
        name = backend.stand_ins.get(kernel)
        if name is None:
            raise NotImplementedError(
                f"{lacks} and declares no other backend to stand in for it; select another backend for this call, "
                f"for instance with plugrad.backends.use('numpy')"
            )
        try:
            function: Callable[..., None] | None = getattr(get(name).room, kernel, None)
        except (BackendUnavailableError, TypeError, ValueError) as error:
            raise NotImplementedError(f"{lacks}, and {name!r}, which stands in for it, cannot: {error}") from error
        if function is None:
            raise NotImplementedError(f"{lacks}, and {name!r}, which stands in for it, has none either")
        return function


def _naming(described: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose errors tell in a note whose it is; that of somebody else's backend."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            error.add_note(f"raised by {described}")
            raise

    return call


def _kernel_of(described: str, kernel: str, function: Callable[..., Any]) -> Callable[..., None]:
    """A kernel of somebody else's backend, which is held to write its results to where they are wanted."""
    named = _naming(described, function)

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        shapes = [array.shape for array in arrays]
        returned = named(*arguments)
        if shapes != [array.shape for array in arrays]:
            raise TypeError(f"{described}: its {kernel}: expected the arrays that were given to keep their shapes")
        if isinstance(returned, np.ndarray) and arrays and not any(np.may_share_memory(returned, a) for a in arrays):
            raise TypeError(
                f"{described}: its {kernel}: expected the results in the arrays given for them, got a new array; "
                f"write to out, for instance with out[...] = ..."
            )

    return call


def _hook_of(described: str, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of somebody else's backend, which is held to return what was asked for."""
    named = _naming(described, function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        returned = named(*arguments)
        got = getattr(returned, "shape", None), getattr(returned, "dtype", None)
        if hook == "empty" and got != arguments:
            shape, dtype = arguments
            raise TypeError(
                f"{described}: its empty: expected shape {shape} and dtype {dtype}, got {got[0]} and {got[1]}"
            )
        if hook in ("take", "asarray") and None in got:
            raise TypeError(f"{described}: its {hook}: expected an array, got {type(returned).__qualname__}")
        return returned

    return call


class Backend:
    """A backend that can run here. It compares equal to its name.

    Attributes
    ----------
    name : str
        The name it is selected by.
    room : module or object
        Where its functions are: one per kernel, plus any of the hooks below, which default to those of
        `plugrad.backends.host`.
    functions : mapping
        Kernel name -> the function of this backend, or of the backend that stands in for it.
    arrays : str
        ``ARRAYS`` of the room: the top-level package whose arrays it computes on, by default ``"numpy"``.
    stand_ins : mapping
        ``STAND_INS`` of the room: kernel name -> name of the backend that computes it instead.
    options : mapping
        ``OPTIONS`` of the room: the options that `use` accepts for it, with their default values. Every backend
        has ``check`` (see `plugrad.backends.use`).
    native : type or None
        ``NATIVE`` of the room: the one type whose instances need no conversion; for NumPy `numpy.ndarray`.
    take, asarray, to_numpy, empty, overlap, warmup
        Hooks of the room that admit arguments, move data, allocate, compare memory, and compile ahead.
    """

    __slots__ = (
        "arrays",
        "asarray",
        "described",
        "empty",
        "functions",
        "name",
        "native",
        "options",
        "overlap",
        "room",
        "stand_ins",
        "take",
        "to_numpy",
        "warmup",
    )  # fmt: skip

    def __init__(self, name: str, room: Any, described: str = "") -> None:
        self.name = name
        self.described = described or f"backend {name!r}"
        self.room = room
        self.functions = _Functions(self)
        self.arrays: str = getattr(room, "ARRAYS", "numpy")
        self.stand_ins: Mapping[str, str] = getattr(room, "STAND_INS", {})
        if not isinstance(self.stand_ins, Mapping):
            raise TypeError(f"STAND_INS: expected a dictionary, got {type(self.stand_ins).__name__}")
        self.options: Mapping[str, Any] = {"check": False, **getattr(room, "OPTIONS", {})}
        self.native: Any = getattr(room, "NATIVE", np.ndarray if self.arrays == "numpy" else None)
        self.take: Callable[[str, Any], Any] = self._hook("take")
        self.asarray: Callable[[Any], Any] = self._hook("asarray")
        self.to_numpy: Callable[[Any], Any] = self._hook("to_numpy")
        self.empty: Callable[..., Any] = self._hook("empty")
        self.overlap: Callable[[Any, Any], str] = self._hook("overlap")
        self.warmup: Callable[[list[str], list[np.dtype[Any]]], None] = self._hook("warmup")

    def of_room(self, name: str) -> Any:
        """What the room has by this name, or None."""
        look_up = getattr if self.name in BUILTIN else _naming(self.described, getattr)
        return look_up(self.room, name, None)

    def _hook(self, name: str) -> Callable[..., Any]:
        """The room's hook, or that of the host."""
        own, default = getattr(self.room, name, None), getattr(host, name)
        if own is None or own is default or self.name in BUILTIN:
            return default if own is None else own  # type: ignore[no-any-return]
        return _hook_of(self.described, name, own) if is_plug_in(self.name) else _naming(self.described, own)

    def computes(self, kernel: str) -> str:
        """The name of the backend whose function computes `kernel`: its own, or that of the one that stands in."""
        self.functions[kernel]  # an error tells if there is none
        return self.stand_ins.get(kernel, self.name) if self.of_room(kernel) is None else self.name

    def owns(self, kind: type) -> bool:
        """Whether arrays of type `kind` are this backend's own; of NumPy's, those that add no meaning of theirs."""
        if self.arrays == "numpy":
            return kind in (np.ndarray, np.memmap)
        return is_array_of(kind, self.arrays)

    def describe(self) -> Mapping[str, str]:
        """What the room tells of itself: ``version``, ``threads``, ``devices``, each where it applies."""
        describe = self.of_room("describe")
        return {} if describe is None else _naming(self.described, describe)()

    def __reduce__(self) -> tuple[Callable[[str], "Backend"], tuple[str]]:
        return get, (self.name,)  # another process has its own

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Backend):
            return self is other
        return self.name == other

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<plugrad backend {self.name!r}>"


def is_array_of(kind: type, package: str) -> bool:
    """Whether `kind` is, or descends from, the class ``ndarray`` or the like of top-level package `package`."""
    return any(base.__module__.partition(".")[0] == package for base in kind.__mro__)


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------

_registering = threading.Lock()
_registered: dict[str, Any] = {}  # name -> room, or "package.module" that holds it
_loaded: dict[str, Backend] = {}


def register(name: str, room: Any, *, replace: bool = False) -> None:
    """Make a backend selectable by `name` in this process.

    An installed distribution rather declares an entry point in the group ``plugrad.backends``, which needs no call.

    Parameters
    ----------
    name : str
        The name to select it by: letters, digits, ``_`` and ``-``.
    room : module, object or str
        What holds the functions named as the kernels, or the dotted name of a module that does, imported when the
        backend is first selected.
    replace : bool
        Take the place of a backend of that name. Without it a taken name is a `ValueError`. A scope or a default
        that was set before keeps the backend it had found.

    Raises
    ------
    TypeError, ValueError
        For a name that is no string, is malformed, or is taken.

    Examples
    --------
    >>> import types
    >>> from plugrad import backends, kernels as K
    >>> def relu(x, out):
    ...     out[...] = x * (x > 0)
    >>> backends.register("mine", types.SimpleNamespace(relu=relu))
    >>> with backends.use("mine"):
    ...     K.relu([-1.0, 2.0]).tolist()
    [-0.0, 2.0]
    """
    if not isinstance(name, str):
        raise TypeError(f"register: name: expected a string, got {type(name).__name__}")
    if name in ("", "auto") or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(
            f"register: name: expected letters, digits, '_' and '-', and not the word 'auto', got {name!r}"
        )
    with _registering:
        if not replace and name in names():
            raise ValueError(f"register: name: {name!r} is taken; choose another, or pass replace=True")
        _registered[name] = room
        _loaded.pop(name, None)


def _plug_ins() -> "dict[str, list[EntryPoint]]":
    """The entry points of other distributions by name; their code is not imported by this."""
    from importlib.metadata import distributions, entry_points  # slow to import, and seldom needed

    found: dict[str, list[EntryPoint]] = {}
    try:
        entries = list(entry_points(group=GROUP))
    except Exception:  # one distribution whose file is damaged; the others are read without it
        entries = []
        for distribution in distributions():
            with contextlib.suppress(Exception):
                entries += distribution.entry_points.select(group=GROUP)
    for entry in entries:
        found.setdefault(entry.name, []).append(entry)
    return found


def names() -> list[str]:
    """The names of all backends that can be selected: built in, registered and installed as plug-ins."""
    return list(dict.fromkeys([*BUILTIN, *_registered, *sorted(_plug_ins())]))


def ignored_plug_ins() -> dict[str, str]:
    """Installed plug-ins whose name is that of a built-in or registered backend, and their distributions."""
    taken = (name for name in _plug_ins() if not is_plug_in(name))
    return {name: ", ".join(e.dist.name if e.dist else "?" for e in _plug_ins()[name]) for name in taken}


def is_known(name: str) -> bool:
    """Whether `name` names a backend; installed plug-ins are searched only if nothing else has the name."""
    return name in BUILTIN or name in _registered or name in _loaded or name in _plug_ins()


def unknown(name: object, what: str) -> NoReturn:
    """Refuse `name`, given as `what`, with the known names and the nearest of them."""
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected the name of a backend as a string, got {type(name).__name__}")
    from difflib import get_close_matches

    known = names()
    near = get_close_matches(name.lower(), [*known, "auto"], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{what}: unknown backend {name!r}{hint} Known backends: {', '.join(known)}, or auto.")


# ---------------------------------------------------------------------------------------------------------------------
# Loading and probing
# ---------------------------------------------------------------------------------------------------------------------


def get(name: str) -> Backend:
    """The backend called `name`, loaded, and able to run here.

    Raises
    ------
    TypeError, ValueError
        If no backend has this name; the message lists those that exist, and the nearest.
    BackendUnavailableError
        If it cannot run here; the message says why.

    Examples
    --------
    >>> from plugrad import backends
    >>> backends.get("numpy")
    <plugrad backend 'numpy'>
    """
    try:
        return _loaded[name]
    except (KeyError, TypeError):
        pass
    if isinstance(name, str) and (name == "auto" or "," in name):
        raise ValueError(f"get: name: expected the name of one backend, got {name!r}")
    if not isinstance(name, str) or not is_known(name):
        unknown(name, "get")
    return _loaded.setdefault(name, _load(name))  # two threads may both load it; the first one's is kept


def _load(name: str) -> Backend:
    """Import the room of `name` and ask it whether it can run."""
    room, described = _room(name)
    try:
        # What a handler of signals finds of a built-in room may be half of it, without its probe.
        is_built_in = name in BUILTIN and name not in _registered
        probe = room.probe if is_built_in else getattr(room, "probe", None)
        reason = None if probe is None else probe()
    except (Exception, SystemExit) as error:
        _refuse(f"{described} failed in its probe", error)
    if reason is not None and not isinstance(reason, str):
        raise BackendUnavailableError(f"{described} is malformed: its probe returned {reason!r}, not a reason or None")
    if reason is not None:
        raise BackendUnavailableError(f"{described} cannot run here: {reason}")
    try:
        return Backend(name, room, described)
    except (Exception, SystemExit) as error:
        _refuse(f"{described} declares OPTIONS or another attribute wrongly", error)


def _refuse(what: str, error: BaseException) -> NoReturn:
    """Say of a backend what went wrong in its code; an error that is not of it comes through."""
    if is_for_caller(error):
        raise error
    raise BackendUnavailableError(f"{what}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """What an error of somebody else's says, and nothing if that is an error itself."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def is_for_caller(error: BaseException) -> bool:
    """Whether an error tells nothing of a backend: memory or stack ran out, or a handler of signals raised it."""
    if isinstance(error, MemoryError | RecursionError):
        return True
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers if callable(handler)} - {None}
    step = error.__traceback__
    while step is not None and step.tb_frame.f_code not in codes:
        step = step.tb_next
    return step is not None


def _room(name: str) -> tuple[Any, str]:
    """The room of a known backend, and how messages call the backend."""
    described = f"backend {name!r}"
    try:
        if name in _registered:
            source = _registered[name]
            return (importlib.import_module(source) if isinstance(source, str) else source), described
        if name in BUILTIN:
            return importlib.import_module(BUILTIN[name]), described
        entries = _plug_ins()[name]
        owners = [entry.dist.name if entry.dist else "an unknown distribution" for entry in entries]
        described = f"backend {name!r} (plug-in {entries[0].value} of {owners[0]})"
        if len(set(owners)) > 1:
            raise BackendUnavailableError(
                f"backend {name!r} is claimed by several distributions: {', '.join(sorted(set(owners)))}; "
                f"uninstall all but one"
            )
        return entries[0].load(), described
    except BackendUnavailableError:
        raise
    except (Exception, SystemExit) as error:
        _refuse(f"{described} failed to import", error)


def is_plug_in(name: str) -> bool:
    """Whether `name` belongs to an installed plug-in, whose code runs only when it is selected."""
    return name not in BUILTIN and name not in _registered


def usable(name: str) -> Backend | Unavailable:
    """The backend of that name, or the reason why it cannot run here."""
    try:
        return get(name)
    except BackendUnavailableError as error:
        return Unavailable(error)


def first_usable(candidates: Iterable[str]) -> tuple[Backend | None, dict[str, Unavailable]]:
    """The first of `candidates` that can run here, and why each one before it cannot."""
    reasons: dict[str, Unavailable] = {}
    for name in candidates:
        backend = usable(name)
        if isinstance(backend, Backend):
            return backend, reasons
        reasons[name] = backend
    return None, reasons


def available(*also: str) -> dict[str, bool | Unavailable]:
    """Every backend by name: True where it can run here, else the reason why not (a string that is false).

    The code of an installed plug-in runs only when it is selected: until then its entry says that it is not loaded.

    Parameters
    ----------
    *also : str
        Names of plug-ins to load and probe now.

    Examples
    --------
    >>> from plugrad import backends
    >>> backends.available()["numpy"]
    True
    """
    for name in also:
        if not isinstance(name, str) or not is_known(name):
            unknown(name, "available")
    return dict(_statuses(also))


def _statuses(also: tuple[str, ...]) -> Iterator[tuple[str, bool | Unavailable]]:
    for name in names():
        if is_plug_in(name) and name not in _loaded and name not in also:
            yield name, Unavailable(f"backend {name!r} is an installed plug-in, loaded only when it is selected")
        else:
            backend = usable(name)
            yield name, backend if isinstance(backend, Unavailable) else True
