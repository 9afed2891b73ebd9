"""One floating-point mode for each call, that of the caller, in every thread that computes for it."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends import threads
from plugrad.backends.cpu import floating_point

CPU = [name for name in ("numpy", "numba") if backends.available()[name]]

# FE_UPWARD of <fenv.h>, and the bits of MXCSR that take subnormal numbers for 0 as results and as arguments.
UPWARD = {"x86_64": 0x800, "AMD64": 0x200, "aarch64": 0x400000, "arm64": 0x400000}.get(platform.machine())
FLUSH = 0x8040
MODES = ["upward"] * (UPWARD is not None)
MODES += ["flush"] * (sys.platform == "linux" and platform.machine() == "x86_64")


@contextmanager
def computing(mode: str) -> Iterator[None]:
    """Compute in a mode, in this thread."""
    before = floating_point.mode()
    changed = floating_point.Mode.from_buffer_copy(before)
    if mode == "flush":  # MXCSR is the last of the 32 bytes of glibc's fenv_t
        words = ctypes.cast(changed, ctypes.POINTER(ctypes.c_uint32))
        words[7] |= FLUSH
        floating_point.set_mode(changed)
    else:
        assert floating_point._function("fesetround")(UPWARD) == 0
    try:
        yield
    finally:
        floating_point.set_mode(before)


@pytest.fixture(params=CPU)
def team(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend with three threads, none of which has been started yet."""
    if request.param == "numpy":
        from plugrad.backends.numpy import pool

        monkeypatch.setattr(threads, "count", lambda: 3)
        pool._pool.cache_clear()
    else:
        from plugrad.backends.numba import team

        monkeypatch.setattr(team, "thread_count", lambda: 3)
        monkeypatch.setattr(team, "_team", None)
    with backends.use(request.param):
        yield
    if request.param == "numpy":
        pool._pool.cache_clear()


@pytest.mark.usefixtures("team")
@pytest.mark.parametrize("mode", MODES)
def test_every_thread_computes_in_the_mode_of_the_caller(mode: str) -> None:
    rows = np.linspace(-100, 0, 1000, dtype=np.float32) * np.ones((8, 1), np.float32)
    x = np.tile(rows, (500, 1))  # shared by threads, when the eight rows are not
    plain = {kernel: kernel(rows) for kernel in (K.sigmoid, K.softmax)}
    for _ in range(3):
        for kernel, few in plain.items():
            with computing(mode):  # at first, before any thread has started
                expected = kernel(rows)
                np.testing.assert_array_equal(kernel(x), np.tile(expected, (500, 1)))
            # Else the test would show nothing. Softmax on numba keeps subnormal numbers anyway (`rounded_product`).
            assert (expected != few).any() or (kernel is K.softmax and mode == "flush")
            np.testing.assert_array_equal(kernel(x), np.tile(few, (500, 1)))


def test_a_platform_without_the_functions_computes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floating_point, "_get", None)
    monkeypatch.setattr(floating_point, "_set", None)
    floating_point.set_mode(floating_point.mode())
    assert floating_point._function("no_such_function") is None
