"""A backend: the functions of its module, its hooks with their defaults, and the backends that stand in for it."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np

from plugrad.backends import host, updates, wrappers

if TYPE_CHECKING:
    from plugrad.backends.contract import Hooks
    from plugrad.backends.libraries import Foreign
    from plugrad.backends.recording import Recorder

_Hook = TypeVar("_Hook", bound=Callable[..., Any])
_Wrapper: TypeAlias = Callable[[str, Callable[..., Any]], Callable[..., Any]]

DEFAULTS: "Hooks" = host  # mypy checks here that the defaults satisfy the contract


class BackendUnavailableError(RuntimeError):
    """The backend that was selected cannot run here; the message says why and what to do."""


class Unavailable(str):
    """The reason why a backend cannot run here. It is false, so ``if available()[name]`` means what it says."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


class Origin(Enum):
    """The author of a backend: the functions of plug-ins are checked, those of plugrad are not."""

    BUILT_IN = "built in"  # its functions are called as they are
    REGISTERED = "registered"  # its errors name the backend, and the results of its kernels are checked
    PLUG_IN = "plug-in"  # the results of its hooks are checked, too


class _WithDefaults:
    """A module, completed by the default hooks where it has none, or None, of its own."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._module, name, None)
        return getattr(DEFAULTS, name) if own is None else own


def hooks_of(module: Any) -> "Hooks":
    """The hooks of a module, each looked up when it is asked for; the module's own, or the default."""
    return cast("Hooks", _WithDefaults(module))


class _Functions(dict[str, Callable[..., Any]]):
    """The kernels and optimizer steps of a backend by name, each looked up at its first use."""

    def __init__(self, backend: "Backend") -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, kernel: str) -> Callable[..., Any]:
        function = self[kernel] = self._backend.find(kernel)
        return function


class Backend:
    """A backend that can run here. It compares equal to its name.

    Attributes
    ----------
    name : str
        The name that selects it.
    described : str
        The backend as messages call it, with the distribution of a plug-in.
    module : module or object
        The module or object with its kernels and hooks, as `plugrad.backends.contract` defines them.
    functions : mapping
        Name of a kernel -> the function that computes it: the backend's own, or that of the backend that stands in.
    arrays, native, options, stand_ins
        The constants ``ARRAYS``, ``NATIVE``, ``OPTIONS`` (with ``check``) and ``STAND_INS`` of the module.
    describe, take, asarray, to_numpy, empty, overlap, prepare, fuse, warmup
        The hooks of the module, or the defaults of `plugrad.backends.host`.
    foreign : Foreign or None
        In whose arrays results come back, of a `libraries.LibraryBackend` only: those of another library.
    recorder : Recorder or None
        Where the calls go that `plugrad.kernels.capture` records; None but for a `recording.RecordingBackend`.
    """

    recorder: "Recorder | None" = None

    __slots__ = (
        "_get",
        "_origin",
        "arrays",
        "asarray",
        "describe",
        "described",
        "empty",
        "foreign",
        "functions",
        "fuse",
        "module",
        "name",
        "native",
        "options",
        "overlap",
        "prepare",
        "stand_ins",
        "take",
        "to_numpy",
        "warmup",
    )  # fmt: skip

    def __init__(self, name: str, module: Any, described: str, origin: Origin, get: Callable[[str], "Backend"]) -> None:
        self.name = name
        self.described = described
        self.module = module
        self.functions: dict[str, Callable[..., Any]] = _Functions(self)
        self.foreign: Foreign | None = None
        self._origin = origin
        self._get = get  # finds another backend by its name
        hooks = hooks_of(module)
        self.arrays = hooks.ARRAYS
        # NumPy's type, the default, is the native one of backends over NumPy arrays only.
        self.native: Any = hooks.NATIVE if self.arrays == host.ARRAYS or hooks.NATIVE is not host.NATIVE else None
        self.options: Mapping[str, Any] = {**host.OPTIONS, **hooks.OPTIONS}
        self.stand_ins = hooks.STAND_INS
        if not isinstance(self.stand_ins, Mapping):
            raise TypeError(f"STAND_INS: expected a dictionary, got {type(self.stand_ins).__name__}")
        self.describe = self._wrapped(hooks.describe, host.describe)
        self.take = self._wrapped(hooks.take, host.take, wrappers.checked_take)
        self.asarray = self._wrapped(hooks.asarray, host.asarray, wrappers.checked_asarray)
        self.to_numpy = self._wrapped(hooks.to_numpy, host.to_numpy)
        self.empty = self._wrapped(hooks.empty, host.empty, wrappers.checked_empty)
        self.overlap = self._wrapped(hooks.overlap, host.overlap)
        self.prepare = self._wrapped(hooks.prepare, host.prepare)
        self.fuse = self._wrapped(hooks.fuse, host.fuse)
        self.warmup = self._wrapped(hooks.warmup, host.warmup)

    @property
    def is_built_in(self) -> bool:
        """Whether the backend is one of plugrad's own."""
        return self._origin is Origin.BUILT_IN

    def _wrapped(self, hook: _Hook, default: object, check: _Wrapper = wrappers.named) -> _Hook:
        """A hook, wrapped unless it is one of plugrad's own; `check` is for the hooks of plug-ins."""
        if self.is_built_in or hook is default:
            return hook
        wrap = check if self._origin is Origin.PLUG_IN else wrappers.named
        return cast(_Hook, wrap(self.described, hook))

    def find(self, kernel: str) -> Callable[..., Any]:
        """The function that computes `kernel`.

        Raises
        ------
        NotImplementedError
            If the module lacks it, and no backend that can run here stands in.
        """
        function = self.own(kernel)
        if function is None and kernel not in self.stand_ins:
            function = updates.DEFAULTS.get(kernel)
        return self._of_stand_in(kernel) if function is None else function

    def own(self, kernel: str) -> Callable[..., Any] | None:
        """The function of the backend's own module for `kernel`, or None."""
        if self.is_built_in:
            return cast("Callable[..., Any] | None", getattr(self.module, kernel, None))
        function = wrappers.named(self.described, getattr)(self.module, kernel, None)
        return None if function is None else wrappers.checked_kernel(self.described, kernel, function)

    def _of_stand_in(self, kernel: str) -> Callable[..., Any]:
        """The function of the backend that the module declares to stand in for it."""
        lacks = f"backend {self.name!r} has no kernel {kernel!r}"
        name = self.stand_ins.get(kernel)
        if name is None:
            raise NotImplementedError(
                f"{lacks} and declares no other backend to stand in for it; select another backend for this call, "
                f"for instance with plugrad.backends.use('numpy')"
            )
        try:
            function = self._get(name).own(kernel)
        except (BackendUnavailableError, TypeError, ValueError) as error:
            raise NotImplementedError(f"{lacks}, and {name!r}, which stands in for it, cannot: {error}") from error
        if function is None:
            raise NotImplementedError(f"{lacks}, and {name!r}, which stands in for it, has none either")
        return function

    def computes(self, kernel: str) -> str:
        """The name of the backend whose function computes `kernel`: this one, or the one that stands in.

        Raises
        ------
        NotImplementedError
            If there is none.
        """
        self.functions[kernel]  # raises the error
        return self.stand_ins.get(kernel, self.name) if self.own(kernel) is None else self.name

    def owns(self, kind: type) -> bool:
        """Whether arrays of type `kind` belong to this backend; subclasses of NumPy's array with a meaning do not."""
        if self.arrays == host.ARRAYS:
            return kind in (np.ndarray, np.memmap)
        return is_array_of(kind, self.arrays)

    def __reduce__(self) -> tuple[Callable[[str], "Backend"], tuple[str]]:
        return self._get, (self.name,)  # another process has its own

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
    """Whether `kind`, or a class that it descends from, is defined in the top-level package `package`."""
    return any(base.__module__.partition(".")[0] == package for base in kind.__mro__)
