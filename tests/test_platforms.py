"""Other operating systems and processors, pretended: functions of Linux, or instructions of x86, are missing."""

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from plugrad.backends import threads
from plugrad.backends.cpu import floating_point

# Functions of `os` that Windows lacks, or macOS, or both; plugrad is imported afterwards.
UNIX = (
    "fork",
    "getuid",
    "geteuid",
    "getgid",
    "register_at_fork",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_yield",
)
LINUX = ("sched_getaffinity", "sched_setaffinity")

# The libraries of Windows that are asked for, with the function of this machine that stands in for one of theirs.
WINDOWS = """
import ctypes, os, sys
from types import SimpleNamespace
import numpy, numba  # which know the true platform
asked, CDLL, PyDLL = [], ctypes.CDLL, ctypes.PyDLL
libraries = {"kernel32": {"SwitchToThread": CDLL(None).sched_yield}, "ucrtbase": PyDLL("libm.so.6")}

def library(name, *more, **options):
    asked.append(name)
    if name in libraries:
        return libraries[name]
    return CDLL(name, *more, **options)

ctypes.CDLL = ctypes.PyDLL = library
sys.modules["resource"] = None
sys.platform = "win32"
"""
MACOS = """
import ctypes, os, sys
import numpy, numba
asked, PyDLL = [], ctypes.PyDLL

def library(name, *more, **options):
    asked.append(name)
    if name is not None:
        raise OSError(f"{name}: image not found")
    return PyDLL(name, *more, **options)

ctypes.PyDLL = library
sys.platform = "darwin"
"""
COMPUTE = """
from plugrad import backends, kernels as K
from plugrad.backends import threads
from plugrad.backends.cpu import floating_point

threads.count = lambda: 3
x = numpy.random.default_rng(0).normal(size=(3000, 100)).astype("f4")  # shared among threads
t = numpy.arange(3000) % 100
exact = numpy.exp(x.astype(float))
exact /= exact.sum(axis=1, keepdims=True)
for name in ("numpy", "numba"):
    with backends.use(name):
        assert numpy.allclose(K.softmax(x), exact, rtol=1e-5)
        loss, dx = K.softmax_cross_entropy_value_and_grad(x, t)
        assert numpy.isclose(loss, -numpy.log(exact[numpy.arange(3000), t]).mean())
assert floating_point._get is not None and floating_point._set is not None
"""


def compute(platform: str, missing: tuple[str, ...], check: str) -> None:
    """Compute on both backends in a process without functions of `os`; `check` looks at what it asked for."""
    code = platform + f"for name in {missing}:\n    delattr(os, name)\n" + COMPUTE + check
    variables = {name: value for name, value in os.environ.items() if name != threads.VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pretends from Linux")
@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
def test_threads_give_way_on_windows() -> None:
    compute(
        WINDOWS,
        UNIX,
        'from plugrad.backends.numba import team\nassert team.GIVE_WAY == "SwitchToThread" and team._team.size == 2\n'
        'assert {"kernel32", "ucrtbase"} <= set(asked), asked\n',
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pretends from Linux")
@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
def test_macos_has_the_functions_in_the_library_of_c() -> None:
    compute(MACOS, LINUX, "from plugrad.backends.numba import team\nassert team._team.size == 2 and None in asked\n")


@pytest.mark.parametrize(
    ("platform", "there", "asked"),
    [
        ("linux", ("libm.so.6", None), ["libm.so.6"]),
        ("linux", (None,), ["libm.so.6", None]),  # musl
        ("darwin", (None,), ["libm.so.6", None]),
        ("win32", ("ucrtbase",), ["ucrtbase"]),
        ("win32", (), ["ucrtbase"]),
    ],
)
def test_the_library_of_the_floating_point_mode(
    platform: str, there: tuple[str | None, ...], asked: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str | None] = []

    def load(name: str | None) -> Any:
        names.append(name)
        if name not in there:
            raise OSError(f"{name}: not found")
        return {"fegetenv": "found"}

    monkeypatch.setattr(floating_point, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(floating_point, "ctypes", SimpleNamespace(PyDLL=load))
    assert floating_point._function("fegetenv") == ("found" if there else None)
    assert names == asked


def test_a_process_without_affinity_counts_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "os", SimpleNamespace(environ=os.environ, cpu_count=lambda: 5))
    monkeypatch.setattr(threads, "quota_of_container", lambda: None)
    assert threads.count.__wrapped__() == 5


@pytest.mark.parametrize(
    ("triple", "features", "has"),
    [
        ("x86_64-unknown-linux-gnu", "+avx2,+f16c,+fma", True),
        ("x86_64-pc-windows-msvc", "+avx2,-f16c,+fma", False),
        ("i686-pc-windows-msvc", "", False),
        ("aarch64-unknown-linux-gnu", "", True),
        ("arm64-apple-darwin23.6.0", "+neon", True),
        ("powerpc64le-unknown-linux-gnu", "+vsx", False),
    ],
)
def test_the_conversion_of_float16_by_processor(
    triple: str, features: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    from plugrad.backends.numba import vector

    codegen = SimpleNamespace(magic_tuple=lambda: (triple, "generic", features))
    target = SimpleNamespace(target_context=SimpleNamespace(codegen=lambda: codegen))
    monkeypatch.setattr(vector, "cpu_target", target)
    assert vector._has("f16c") is has


def test_owners_of_files_are_not_asked_for_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugrad.backends import trust

    monkeypatch.setattr(trust, "os", SimpleNamespace())  # on Windows, without `getuid` and with other modes
    assert trust.untrusted(os.devnull) is None


def test_c_has_the_function_that_gives_way() -> None:
    """The one that compiled code calls, by the name that it is registered by."""
    llvm: Any = pytest.importorskip("llvmlite.binding")
    from plugrad.backends.numba import team

    library = ctypes.CDLL(team.LIBRARY)
    assert llvm.address_of_symbol(team.GIVE_WAY) == ctypes.cast(library[team.GIVE_WAY], ctypes.c_void_p).value
