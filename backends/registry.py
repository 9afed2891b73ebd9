"""The backends by name: built in, registered or installed as plug-ins; each is imported and probed when it is selected.

The name of a built-in backend stands in `BUILTIN`, that of a plug-in in an entry point of the group
``plugrad.backends`` of an installed distribution. Nothing is imported before it is selected: plug-ins are not even
searched for while the name of a built-in backend is looked up, and the probe of a built-in backend imports at most the
library that it computes with.
"""

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from plugrad.backends.backend import Backend, BackendUnavailableError, Origin, Unavailable, hooks_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "plugrad.backends"

# To add a backend to this repository, add its folder, and its line here.
BUILTIN = {
    "numpy": "plugrad.backends.numpy",
    "numba": "plugrad.backends.numba",
    "cupy": "plugrad.backends.cupy",
}

AUTO = "auto"  # the choice that goes by the arrays, and so no name of a backend

# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------

_registering = threading.Lock()
_registered: dict[str, Any] = {}  # name -> module, or its dotted name
_loaded: dict[str, Backend] = {}


def register(name: str, module: Any, *, replace: bool = False) -> None:
    """Make a backend selectable by `name` in this process.

    An installed distribution declares an entry point in the group ``plugrad.backends`` instead, which needs no call.

    Parameters
    ----------
    name : str
        The name that selects it: letters, digits, ``_`` and ``-``.
    module : module, object or str
        An object with functions named like the kernels, or the dotted name of a module, which is imported when the
        backend is first selected. `plugrad.backends.contract` specifies the functions.
    replace : bool
        Replace a backend of that name. Otherwise a name that is taken is a `ValueError`. A scope or a default that was
        set before keeps the backend that it found.

    Raises
    ------
    TypeError, ValueError
        If the name is no string, is malformed, or is taken.

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
    if name in ("", AUTO) or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(
            f"register: name: expected letters, digits, '_' and '-', and not the word 'auto', got {name!r}"
        )
    with _registering:
        if not replace and name in names():
            raise ValueError(f"register: name: {name!r} is taken; choose another, or pass replace=True")
        _registered[name] = module
        _loaded.pop(name, None)


def _plug_ins() -> "dict[str, list[EntryPoint]]":
    """The entry points of other distributions by name; their code is not imported."""
    from importlib.metadata import distributions, entry_points  # slow to import, and seldom needed

    found: dict[str, list[EntryPoint]] = {}
    try:
        entries = list(entry_points(group=GROUP))
    except Exception:  # the file of one distribution is damaged; the others are read without it
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
    """The installed plug-ins whose name a built-in or registered backend has -> their distributions."""
    return {name: ", ".join(map(_owner, entries)) for name, entries in _plug_ins().items() if not is_plug_in(name)}


def _owner(entry: "EntryPoint") -> str:
    """The name of the distribution that declares an entry point."""
    return entry.dist.name if entry.dist else "an unknown distribution"


def is_known(name: str) -> bool:
    """Whether a backend has this name; installed plug-ins are searched only if no other backend has it."""
    return name in BUILTIN or name in _registered or name in _loaded or name in _plug_ins()


def is_plug_in(name: str) -> bool:
    """Whether `name` belongs to an installed plug-in, whose code runs only when it is selected."""
    return _origin(name) is Origin.PLUG_IN


def _origin(name: str) -> Origin:
    if name in _registered:
        return Origin.REGISTERED
    return Origin.BUILT_IN if name in BUILTIN else Origin.PLUG_IN


def unknown(name: object, what: str) -> NoReturn:
    """Raise the error for `name`, given as `what`: it lists the known names, and suggests the nearest."""
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected the name of a backend as a string, got {type(name).__name__}")
    from difflib import get_close_matches

    known = names()
    near = get_close_matches(name.lower(), [*known, AUTO], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{what}: unknown backend {name!r}{hint} Known backends: {', '.join(known)}, or auto.")


# ---------------------------------------------------------------------------------------------------------------------
# Loading and probing
# ---------------------------------------------------------------------------------------------------------------------


def get(name: str) -> Backend:
    """Return the backend called `name`, loaded, and able to run here.

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
    if isinstance(name, str) and (name == AUTO or "," in name):
        raise ValueError(f"get: name: expected the name of one backend, got {name!r}")
    if not isinstance(name, str) or not is_known(name):
        unknown(name, "get")
    return _loaded.setdefault(name, _load(name))  # two threads may both load it; the first one's is kept


class _Source(NamedTuple):
    """Where the module of a backend comes from, and what messages call the backend."""

    described: str
    load: Callable[[], Any]


def _source(name: str) -> _Source:
    described = f"backend {name!r}"
    if name in _registered or name in BUILTIN:
        module = _registered.get(name, BUILTIN.get(name))
        return _Source(described, lambda: importlib.import_module(module) if isinstance(module, str) else module)
    entries = _plug_ins()[name]
    owners = sorted({_owner(entry) for entry in entries})
    if len(owners) > 1:
        raise BackendUnavailableError(
            f"{described} is claimed by several distributions: {', '.join(owners)}; uninstall all but one"
        )
    return _Source(f"{described} (plug-in {entries[0].value} of {owners[0]})", entries[0].load)


def _load(name: str) -> Backend:
    """Import the module of a backend and probe whether it can run."""
    described, load = _source(name)
    origin = _origin(name)
    with _failing(f"{described} failed to import", origin):
        module = load()
    with _failing(f"{described} failed in its probe", origin):
        # A signal handler may find a built-in module that is not imported to its end, and has no probe yet.
        hooks = module if origin is Origin.BUILT_IN else hooks_of(module)
        reason = hooks.probe()
    if reason is not None and not isinstance(reason, str):
        raise BackendUnavailableError(f"{described} is malformed: its probe returned {reason!r}, not a reason or None")
    if reason is not None:
        raise BackendUnavailableError(f"{described} cannot run here: {reason}")
    with _failing(f"{described} declares OPTIONS or another attribute wrongly", origin):
        return Backend(name, module, described, origin, get)


@contextlib.contextmanager
def _failing(what: str, origin: Origin) -> Iterator[None]:
    """Turn the errors of a backend's code into the error that it is unavailable.

    Running out of memory or stack is unrelated to the backend. Neither is `SystemExit` an error of a built-in backend:
    a signal handler raised it, and the process is to end.
    """
    try:
        yield
    except (MemoryError, RecursionError):
        raise
    except (Exception, SystemExit) as error:
        if origin is Origin.BUILT_IN and isinstance(error, SystemExit):
            raise
        raise BackendUnavailableError(f"{what}: {_message(error)}") from error


def _message(error: BaseException) -> str:
    """The type and the text of an error, or its type alone if it fails to give its text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


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
    """Return every backend by name: True where it can run here, else the reason why not (a string that is false).

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
    return {name: _status(name, is_wanted=name in also) for name in names()}


def _status(name: str, is_wanted: bool) -> bool | Unavailable:
    """Whether a backend can run; a plug-in is loaded for it only if it is wanted."""
    if is_plug_in(name) and name not in _loaded and not is_wanted:
        return Unavailable(f"backend {name!r} is an installed plug-in, loaded only when it is selected")
    backend = usable(name)
    return backend if isinstance(backend, Unavailable) else True


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


def kernel_names() -> tuple[str, ...]:
    """The names of all kernels: those of the numpy backend, which has every one."""
    return tuple(get("numpy").module.__all__)


def kernel_name(what: str, kernel: str | Callable[..., Any]) -> str:
    """The name of a kernel, given by its name or its function as the argument `what`."""
    name = kernel if isinstance(kernel, str) else getattr(kernel, "__name__", "")
    if name not in kernel_names():
        raise ValueError(f"{what}: expected one of {', '.join(kernel_names())}; got {kernel!r}")
    return name
