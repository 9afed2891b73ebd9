"""How functions are compiled, and where the compiled code is kept.

Nothing is compiled before it is called, and then for the types it is called with. The code is kept on disk by numba:
next to the source, or where that cannot be written to, in the user's cache folder (``NUMBA_CACHE_DIR`` moves it).
"""

import contextlib
import functools
import glob
import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numba
from numba._dynfunc import make_function
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.lowering import Lower
from numba.core.registry import cpu_target
from numba.core.typed_passes import NativeLowering, NopythonRewrites
from numba.extending import overload

from plugrad.backends import log, sources
from plugrad.backends.numba.sharing import add_sharing
from plugrad.backends.trust import untrusted, untrusted_part

# Lets a sum be taken in several parts at once, which a vector unit needs. Unlike other flags of "fast" mathematics it
# assumes nothing of NaN and infinities. Functions with this flag do nothing but sum: in others it could undo what
# compensates for rounding.
SUM = frozenset({"reassoc"})


def compiled(*, in_pieces: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function when it is first called with arguments of some types; it runs without Python's lock.

    One of ``(start, stop, ...)`` is compiled `in_pieces`, if threads are to share its work (see `sharing`).
    """
    options = _options(for_python=True)
    if in_pieces:
        options["pipeline_class"] = _CompilerInPieces

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        try:
            dispatcher._cache = _Cache(function)
        except RuntimeError as error:  # no folder can be written to
            _problem.append(f"compiled code cannot be kept, unless NUMBA_CACHE_DIR names a folder for it ({error})")
        return dispatcher

    return decorate


def inlined(fastmath: frozenset[str] = frozenset()) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as a part of the functions that call it; Python cannot call it."""
    decorator: Callable[[Callable[..., Any]], Any] = numba.njit(**_options(fastmath, for_python=False))
    return decorator


def chosen_by_type(stub: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that is given types, and returns a function to compile in place of calls of the stub."""
    return overload(stub, strict=False, jit_options=_options(for_python=False))


def _options(fastmath: frozenset[str] = frozenset(), *, for_python: bool) -> dict[str, Any]:
    """Numba's options. A function for C, and one for Python where only compiled code calls, take time to compile."""
    return {
        "nogil": True,
        "error_model": "numpy",  # in Python's error model a division by zero would raise an exception
        "fastmath": set(fastmath) or False,
        "no_cfunc_wrapper": True,
        "no_cpython_wrapper": not for_python,
        "forceinline": not for_python,  # LLVM would rather call large functions, which takes as long as a short row
        "pipeline_class": _Compiler,
    }


# For most processors of Intel, LLVM makes vectors of 256 bits although they have 512: the first of them lowered their
# clock for wide vectors. This attribute of a function makes it use them. Softmax of 1024x1024 takes 0.8 of the time on
# a Xeon with AVX-512; on other processors it changes nothing. It is the same everywhere, so the key of the cache, which
# has the processor and the stamp of these sources, need not have it.
WIDE = '"prefer-vector-width"="512"'


class _Lower(Lower):
    """Makes LLVM's code of a function."""

    def lower_normal_function(self, description: Any) -> None:
        super().lower_normal_function(description)
        set.add(self.function.attributes, WIDE)  # its own `add` takes no attributes with values


class _LowerInPieces(_Lower):
    """The same of a function whose work threads share."""

    def lower_normal_function(self, description: Any) -> None:
        super().lower_normal_function(description)
        add_sharing(self.function)


class _Part(JITCodeLibrary):
    """The code of an inlined function, which only becomes machine code as a part of the functions that call it.

    Numba would optimize it and make machine code of it here too, which nothing calls: a seventh of the time to compile.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    _name = "plugrad_native_lowering"

    def run_pass(self, state: Any) -> bool:
        """Compile a function; of an inlined one keep LLVM's code, and a function that Python cannot call for numba."""
        if state.flags.no_cpython_wrapper:
            state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
            state.flags.no_compile = True
        super().run_pass(state)
        if state.flags.no_compile:
            part = state.cr
            description, library = part.fndesc, state.library
            function = make_function(description.lookup_module(), description.qualname, "", 0, part.env, (library,))
            state.targetctx.insert_user_function(function, description, [library])
            state.cr = part._replace(cfunc=function)
        return True

    @property
    def lowering_class(self) -> Any:
        return _Lower


@register_pass(mutates_CFG=True, analysis_only=False)
class _LoweringInPieces(_Lowering):
    _name = "plugrad_native_lowering_in_pieces"

    @property
    def lowering_class(self) -> Any:
        return _LowerInPieces


class _Compiler(CompilerBase):
    """Numba's compiler, with vectors as wide as the processor's, and without what these functions do not need."""

    lowering = _Lowering

    def define_pipelines(self) -> Any:
        passes = PassManager("plugrad")
        for step, description in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if step is not NopythonRewrites:  # it joins operations on whole arrays; here each stands alone
                passes.add_pass(self.lowering if step is NativeLowering else step, description)
        passes.finalize()
        return [passes]


class _CompilerInPieces(_Compiler):
    """The same for functions whose work threads share."""

    lowering = _LoweringInPieces


def load_compiler() -> None:
    """Import and register now what numba would in its first compilation, which would stay half done if it failed."""
    with global_compiler_lock:
        cpu_target.target_context.refresh()


@functools.cache
def _stamp() -> bytes:
    """The hash of the sources of this backend: a function is compiled again when one that it calls has changed."""
    return sources.stamp(__package__)


class _Cache(FunctionCache):
    """Numba's cache, but one that cannot be read, written or trusted only costs the time to compile."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        try:
            self._impl.locator.ensure_cache_path()  # in an archive numba itself does so later
        except OSError as error:
            raise RuntimeError(str(error)) from error
        # The path is resolved once, so that the folder that is checked is the one that is used.
        self._cache_path = os.path.realpath(self.cache_path)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, _stamp())

    def load_overload(self, signature: Any, context: Any) -> Any:
        found = self._guarded(super().load_overload, signature, context)
        # Two processes that write at once may leave the code for one signature under the name of another.
        return found if found is not None and tuple(found.signature.args) == tuple(signature) else None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        self._guarded(super().save_overload, signature, compiled)

    def _guarded(self, access: Callable[..., Any], *arguments: Any) -> Any:
        try:
            if reason := self._untrusted():
                _warn_once(f"the compiled code in {self.cache_path} is not used: {reason}")
                return None
            return access(*arguments)
        except Exception as error:  # a file can be damaged in any way
            _warn_once(f"the compiled code in {self.cache_path} is of no use: {type(error).__name__}: {error}")
            with contextlib.suppress(OSError):
                self.flush()  # or every process would find it anew
            return None

    def _untrusted(self) -> str | None:
        """Why another user could have placed the compiled code, or None."""
        files = glob.glob(glob.escape(os.path.splitext(self._cache_file._index_path)[0]) + ".*")
        return untrusted_part(self._cache_path) or next(filter(None, map(untrusted, files)), None)


_reported: set[str] = set()  # each report is made once in a process
_problem: list[str] = []  # a warning to give, though not while this is imported: it may be made an error


def _warn_once(problem: str) -> None:
    if "cache" not in _reported:
        _reported.add("cache")
        warnings.warn(f"plugrad: numba backend: {problem}", RuntimeWarning, stacklevel=3)


def warn_of_problem() -> None:
    """Warn of code that cannot be kept, before there is any."""
    if _problem:
        _warn_once(_problem[0])


FLOATS = {"int16": "float16", "uint16": "bfloat16"}  # as compiled code reads them (see `arrays.contiguous`)


def _announce(dispatcher: Any, arguments: Any) -> None:
    """Log what is compiled, and say so on stderr once in a process; a call must not fail because nobody can read it."""
    module = dispatcher.py_func.__module__ or ""
    if not module.startswith(f"{__package__}."):
        return
    dtype = next((argument.dtype.name for argument in arguments if hasattr(argument, "dtype")), "")
    log.debug("numba compiles %s for %s", dispatcher.py_func.__qualname__, FLOATS.get(dtype, dtype))
    name = _kernel()
    if "compiling" in _reported or sys.stderr is None or not (name and dtype):
        return
    _reported.add("compiling")
    kept = "" if "cache" in _reported else "; the code is kept for next time"
    with contextlib.suppress(Exception):  # stderr is closed, or the program that read it is gone
        print(
            f"plugrad: compiling {name} for {FLOATS.get(dtype, dtype)}, and later "
            f"others when they are first called (1 to 9 s each{kept})",
            file=sys.stderr,
        )


def _kernel() -> str | None:
    """The function of the backend that this thread is in; None in a thread of the team."""
    from plugrad.backends.numba.kernels import FUNCTIONS

    codes = {inspect.unwrap(function).__code__: name for name, function in FUNCTIONS.items()}
    frame: FrameType | None = sys._getframe()
    name = None
    while frame is not None:
        name = codes.get(frame.f_code, name)
        frame = frame.f_back
    return name


class _Compiling(event.Listener):
    """Announces what is compiled, since the first call then takes seconds, and keeps Ctrl-C meanwhile.

    LLVM calls back into Python, where an exception is printed and then forgotten.
    """

    def __init__(self) -> None:
        self._depth = 0  # in the main thread, the only one in which Python handles signals
        self._interrupted = False

    def on_start(self, event: Any) -> None:
        _announce(event.data["dispatcher"], event.data["args"])
        if threading.current_thread() is not threading.main_thread():
            return
        if self._depth == 0 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._interrupted = False
            # A subinterpreter has a main thread too, but may not handle signals.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, self._interrupt)
        self._depth += 1

    def on_end(self, event: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if self._depth or signal.getsignal(signal.SIGINT) != self._interrupt:
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._interrupted and sys.exc_info()[0] is None:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: Any) -> None:
        self._interrupted = True
        raise KeyboardInterrupt


event.register("numba:compile", _Compiling())

if hasattr(os, "register_at_fork"):
    # A fork waits for what other threads compile: in the child it would stay half done, and locked for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
