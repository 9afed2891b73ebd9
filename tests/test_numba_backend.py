"""The parts that only the numba backend has: its scalar functions, its threads, and its cache of compiled code."""

import functools
import importlib
import inspect
import os
import platform
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ml_dtypes
import numba
import numpy as np
import pytest
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

from plugrad import backends, kernels as K
from plugrad.backends import sources, trust
from plugrad.backends.numba import (
    binary_losses,
    compiling,
    elementwise,
    fused_losses,
    losses,
    recycling,
    rows,
    targets,
    team,
    tiles,
    vector,
)
from plugrad.backends.numba.atomics import add
from plugrad.tests.processes import PATIENCE

pytestmark = pytest.mark.slow

Array = Any
FLOATS = (np.float32, np.float64)

compiled = numba.njit(error_model="numpy")  # as the functions of the backend are, but callable from Python


def over_array(function: Any) -> Callable[..., None]:
    """A scalar function, compiled to a loop over arrays; the last array is for the results."""

    @compiled
    def one(x: Array, y: Array) -> None:
        for i in range(x.size):
            y[i] = function(x[i])

    return one  # type: ignore[no-any-return]


def values(function: Any, x: Array) -> Array:
    y = np.empty_like(x)
    over_array(function)(x, y)
    return y


def worst_ulp(got: Array, exact: Array) -> float:
    """The largest error in units in the last place of the exact value."""
    ulp = np.spacing(np.abs(exact).astype(got.dtype)).astype(np.longdouble)
    return float(np.max(np.abs(got.astype(np.longdouble) - exact) / ulp))


def spread_over_exponents(dtype: Any, count: int = 300_000) -> Array:
    """Positive numbers of every exponent."""
    of = np.finfo(dtype)
    rng = np.random.default_rng(0)
    return np.ldexp(1 + rng.random(count), rng.integers(of.minexp, of.maxexp - 1, count)).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exponential(dtype: Any) -> None:
    low, high = (-104, 88) if dtype == np.float32 else (-745, 709)
    x = np.linspace(low, high, 400_001).astype(dtype)
    assert worst_ulp(values(vector.exp, x), np.exp(x.astype(np.longdouble))) < 1
    x = -spread_over_exponents(dtype)
    x = x[x > low]
    assert worst_ulp(values(vector.exp, x), np.exp(x.astype(np.longdouble))) < 1
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e4, -1e4], dtype)
    np.testing.assert_array_equal(values(vector.exp, special), [np.nan, np.inf, 0, 1, 1, np.inf, 0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("top", [0.0, 1e-30, 3.3, -70.7, 207.3, -209.1, 999.9, -1500.3, 1e6, -1e9])
def test_exponential_with_the_scaling_of_a_row(dtype: Any, top: float) -> None:
    top, span = dtype(top), 103 if dtype == np.float32 else 744

    @compiled
    def scaled(x: Array, top: Any, y: Array) -> None:
        shift, lowest, magic = vector.exp_scaling(top)
        for i in range(x.size):
            y[i] = vector.scaled_exp(x[i], shift, lowest, magic)

    def values(x: Array) -> Array:
        y = np.empty_like(x)
        scaled(x, top, y)
        return y

    x = np.minimum((top - np.linspace(0, span, 200_001)).astype(dtype), top)
    x = x[x.astype(np.longdouble) - top >= -span]
    shift = top if abs(top) >= 2 * span + 2 else 0
    exact = np.exp(x.astype(np.longdouble) - shift)  # only the result is rounded
    got = values(x)
    power = np.round(np.log2(got[0] / exact[0]))
    assert worst_ulp(got, exact * np.exp2(power)) < 1.1
    scale = 64 if dtype == np.float32 else 512
    assert scale - 1 < np.log2(got[0].astype(np.longdouble)) < scale + 1  # x[0] is the largest
    special = values(np.array([np.nan, -np.inf, top - dtype(span + 1e3 + abs(top))], dtype))
    assert np.isnan(special[0])
    assert special[1] == special[2] == 0  # not a number next to 0, which would take a hundred times as long


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("top", [np.inf, -np.inf, np.nan])
def test_scaled_exponentials_keep_nan_and_infinity(dtype: Any, top: float) -> None:
    @compiled
    def scaled(x: Any, top: Any) -> Any:
        shift, lowest, magic = vector.exp_scaling(top)
        return vector.scaled_exp(x, shift, lowest, magic)

    assert np.isnan(scaled(dtype(top), dtype(top)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_subnormal_products_have_the_bits_of_a_multiplication(dtype: Any) -> None:
    @compiled
    def products(e: Array, factors: Array, y: Array) -> None:
        for i in range(factors.size):
            limit, sign, up, magic = vector.product_rounding(factors[i])
            for j in range(e.size):
                y[i, j] = vector.rounded_product(e[j], factors[i], limit, sign, up, magic)

    of, scale, rng = np.finfo(dtype), {np.float32: 64, np.float64: 512}[dtype], np.random.default_rng(0)
    e = np.append(0, np.exp2(scale + rng.uniform(of.minexp - of.nmant - 2, 0, 50_000))).astype(dtype)
    norms = np.exp2(-scale - rng.uniform(0, 20, 10))
    factors = np.concatenate([norms, -norms, [0.3, -0.9, 2, 0, np.nan, np.inf]]).astype(dtype)
    got = np.empty((factors.size, e.size), dtype)
    products(e, factors, got)
    with np.errstate(all="ignore"):
        expected = e * factors[:, None]
    assert ((np.abs(expected) < of.smallest_normal) & (expected != 0)).mean() > 0.01
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_logarithm(dtype: Any) -> None:
    x = np.concatenate([spread_over_exponents(dtype), 1 + np.linspace(-0.5, 0.5, 100_001).astype(dtype)])
    exact = np.log(x.astype(np.longdouble))
    assert worst_ulp(values(vector.log, x)[exact != 0], exact[exact != 0]) < 1.2
    exact = np.log1p(x.astype(np.longdouble))
    assert worst_ulp(values(vector.log1p, x), exact) < 2
    smallest = np.finfo(dtype).smallest_subnormal
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, -1, 1, smallest], dtype)
    expected = [np.nan, np.inf, np.nan, -np.inf, -np.inf, np.nan, 0, np.log(np.longdouble(smallest))]
    np.testing.assert_allclose(values(vector.log, special), np.array(expected, dtype), rtol=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_maximum_orders_all_numbers(dtype: Any) -> None:
    @compiled
    def largest(x: Array) -> Any:
        return vector.largest(x)

    numbers = np.array([-np.inf, -1e30, -1, -1e-40, -0.0, 0.0, 1e-40, 1, 1e30, np.inf], dtype)
    for count in range(1, len(numbers) + 1):
        for seed in range(5):
            x = np.random.default_rng(seed).permutation(numbers[:count])
            assert largest(x) == numbers[:count].max()
    assert np.isnan(largest(np.array([1, np.nan, np.inf], dtype)))


HALVES = (np.float16, np.int16, vector.widen, vector.narrow)
HALVES_BY_BITS = (
    np.float16,
    np.int16,
    vector.half_to_single,
    compiled(lambda x, like: vector.single_to_half(x)),  # as it is done on processors without F16C
)
BFLOAT16 = (ml_dtypes.bfloat16, np.uint16, vector.widen, vector.narrow)


@pytest.mark.parametrize(("dtype", "integer", "widen", "narrow"), [HALVES, HALVES_BY_BITS, BFLOAT16])
def test_16_bit_numbers(dtype: Any, integer: Any, widen: Any, narrow: Any) -> None:
    @compiled
    def widened(x: Array, y: Array) -> None:
        for i in range(x.size):
            y[i] = widen(x[i])

    @compiled
    def narrowed(x: Array, y: Array) -> None:
        for i in range(x.size):
            y[i] = narrow(x[i], y[i])

    every = np.arange(2**16, dtype=np.uint16)
    y = np.empty(every.size, np.float32)
    widened(every.view(integer), y)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, every.view(dtype).astype(np.float32))
        x = np.random.default_rng(0).integers(0, 2**32, 500_000, np.uint32).view(np.float32)
        halfway = (y[:-1].astype(np.float64) + y[1:]) / 2
        x = np.concatenate([x, halfway[np.isfinite(halfway)].astype(np.float32)])
    got = np.empty(x.size, integer)
    narrowed(x, got)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(got.view(dtype).astype(np.float32), expected)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads the assembly of x86")
@pytest.mark.parametrize(
    "kernel", [rows.softmax, rows.softmax_backward, elementwise._relu, elementwise._sigmoid, tiles.softmax]
)
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_kernels_are_vectorised(kernel: Any, dtype: Any) -> None:
    flat = np.ones(4096, dtype)
    if kernel is tiles.softmax:
        arguments: tuple[Any, ...] = (0, 1, 1, 256, flat.reshape(-1, 4), flat.reshape(-1, 4).copy())
    else:
        array = flat.reshape(64, 64) if kernel in (rows.softmax, rows.softmax_backward) else flat
        backward = kernel in (rows.softmax_backward,)
        arguments = (0, 1, array, *([array] * backward), array.copy())
    anew = compiled(kernel.py_func)  # cached code has no assembly to inspect
    anew(*arguments)
    (assembly,) = anew.inspect_asm().values()
    assert "xmm" in assembly
    assert "gather" not in assembly.replace("tiles6gather", "")
    assert "vpscatter" not in assembly
    assert "vscatter" not in assembly


def test_vectors_are_as_wide_as_those_of_the_processor_in_functions_of_the_backend_only() -> None:
    x = np.ones((64, 64), np.float32)
    anew = compiled(rows.softmax.py_func)
    anew(0, 64, x, x.copy())
    assert compiling.WIDE not in "".join(anew.inspect_llvm().values())  # of a user's function
    ours = compiling.compiled()(rows.softmax.py_func)
    ours._cache = NullCache()  # cached code cannot be inspected
    ours(0, 64, x, x.copy())
    assert compiling.WIDE in "".join(ours.inspect_llvm().values())
    assert ("zmm" in "".join(ours.inspect_asm().values())) == vector._has("avx512f") & (platform.machine() == "x86_64")


def test_an_inlined_function_becomes_machine_code_only_as_a_part_of_others() -> None:
    double = compiling.inlined()(_double)
    whole = compiling.compiled()(lambda x: double(x) + 1.0)
    whole._cache = NullCache()
    assert whole(2.0) == 5.0
    part, own = (next(iter(each.overloads.values())) for each in (double, whole))
    has_machine_code = part.library._codegen._engine.is_symbol_defined
    assert has_machine_code(own.fndesc.llvm_cpython_wrapper_name)
    assert not has_machine_code(part.fndesc.llvm_func_name)
    assert part.fndesc.llvm_func_name in part.library.get_llvm_str()  # for the functions that call it


def _double(x: float) -> float:
    return 2 * x


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kernel", [K.softmax, K.log_softmax, K.softmax_backward, K.log_softmax_backward])
def test_a_row_has_the_same_bits_in_an_array_whose_rows_are_fetched_ahead(kernel: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    shape = (rows.NEAR // 700 + 2, 700)
    assert rows.STRIP < shape[1] <= rows.LONG
    arguments = [
        rng.normal(scale=20, size=shape).astype(dtype) for _ in range(2 if "backward" in kernel.__name__ else 1)
    ]
    with backends.use("numba"):
        whole = kernel(*arguments)
        for i in (0, 1, len(whole) - 1):
            np.testing.assert_array_equal(whole[i], kernel(*[x[i] for x in arguments]))


def test_blocks_are_transposed() -> None:
    for dtype in FLOATS:
        rng = np.random.default_rng(0)
        for rows_, classes in ((8, 8), (16, 3), (32, 24), (24, 13)):
            x = rng.normal(size=(rows_, classes)).astype(dtype)

            @compiled
            def there_and_back(x: Array, lanes: int, y: Array) -> Any:
                place, flat = tiles.place_of(0, x, 1, lanes), tiles.flat_like(x, x.shape[1], lanes)
                tile = tiles.tile_of(tiles.memory_like(x, x.shape[1], lanes, 1, 0), 0, x.shape[1])
                tiles.gather(x.reshape(-1), place, flat, tile)
                tile *= tile.dtype.type(2)  # the padding of the tile must not be written
                tiles.scatter(tile, place, flat, y)
                return tile.copy()

            y = np.empty_like(x.reshape(-1))
            tile = there_and_back(x, rows_, y)
            np.testing.assert_array_equal(tile, 2 * x.T)
            np.testing.assert_array_equal(y, 2 * x.reshape(-1))


LARGEST = 2**64 - 1
P = np.random.default_rng(0).random((3, 5))
ODD_CALLS: dict[str, Callable[[], Any]] = {
    "a label beyond int64 is ignored": lambda: K.cross_entropy(
        P, np.array([0, LARGEST, 2], np.uint64), ignore_index=LARGEST, reduction="none"
    ),
    "a label that would be the last class if it wrapped": lambda: K.softmax_cross_entropy_value_and_grad(
        P, np.array([0, LARGEST, 2], np.uint64), ignore_index=LARGEST
    ),
    "ignored labels of uint64 where rows have weights": lambda: (
        *K.softmax_cross_entropy_value_and_grad(
            P, np.array([0, 3, 2], np.uint64), weight=[1, 2, 3, 4, 5], sample_weight=[1, 2, 0.5], ignore_index=3
        ),
        *K.softmax_cross_entropy_value_and_grad(P, np.array([0, 3, 2], np.uint64), z_loss=0.1, ignore_index=3),
    ),
    "the least label is ignored": lambda: K.cross_entropy(
        P, np.array([0, -(2**63), 2]), ignore_index=-(2**63), reduction="none"
    ),
    "no row has a class of infinite weight": lambda: (
        K.softmax_cross_entropy_backward(1.0, P, [0, 1, 1], weight=[1, 2, np.inf, np.nan, 1], reduction="sum"),
        K.cross_entropy_backward(1.0, P, [0, 1, 1], weight=[1, 2, np.inf, np.nan, 1], reduction="sum"),
        K.softmax_cross_entropy_backward(
            1.0, np.full((2, 40), 0.1), [0, 1], weight=np.where(np.arange(40) > 1, np.inf, 1.0), reduction="sum"
        ),
    ),
    "tiny weights": lambda: [
        K.softmax_cross_entropy_value_and_grad(
            np.random.default_rng(0).normal(size=(4, classes)).astype(dtype),
            [0, 1, 2, 0],
            weight=np.full(classes, 1e-25 if dtype == np.float32 else 1e-180),
            reduction="sum",
        )[1]
        for classes in (3, 40)
        for dtype in FLOATS
    ],
    "NaN at a label of 0": lambda: [
        K.cross_entropy(np.where(np.arange(classes) == 2, np.nan, 0.5)[None], np.eye(classes)[:1])
        for classes in (3, 40)
    ],
    "NaN where nothing counts": lambda: [
        K.softmax_cross_entropy(np.where(np.arange(classes) == 2, np.nan, 0.5)[None], np.zeros((1, classes)))[0]
        for classes in (3, 40)
    ],
    "an upstream gradient in 16 bits": lambda: K.softmax_cross_entropy_backward(
        np.array(1, np.float16), np.full((200_000, 3), 1 / 3, np.float32), np.zeros(200_000, int)
    ),
    "an upstream gradient in 32 bits": lambda: K.softmax_cross_entropy_backward(
        np.array(0.7, np.float32), P, [0, 1, 2]
    ),
    "numbers beyond float32": lambda: K.cross_entropy_backward(1e300, np.full((2, 3), 0.3, np.float32), [0, 1]),
    "infinite weights": lambda: K.softmax_cross_entropy(P, [0, 0, 1], weight=[0, np.inf, 1, 1, 1])[0],
}


@pytest.mark.parametrize("call", ODD_CALLS.values(), ids=ODD_CALLS)
def test_unusual_calls_return_the_results_of_the_numpy_backend(call: Callable[[], Any]) -> None:
    with backends.use("numpy"):
        expected = call()
    with backends.use("numba"):
        got = call()
    several = isinstance(got, list | tuple)
    for a, b in zip(got if several else [got], expected if several else [expected], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6 if np.asarray(a).dtype == np.float32 else 1e-13)


@pytest.mark.parametrize(
    "shape", [(200, 10, 2), (7, 40, 15), (3, 5, 16), (3, 5, 17), (50, 1), (2, 300, 1), (2, 40_000, 3)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_results_along_any_axis_equal_those_along_the_last(shape: tuple[int, ...], dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    t = np.random.default_rng(1).integers(0, shape[1], (shape[0], *shape[2:]))
    p = np.abs(x).clip(dtype(0.1), dtype(1))
    with backends.use("numba"):
        for kernel, *arrays in (
            (K.softmax, x),
            (K.log_softmax_backward, x, x),
            (K.softmax_cross_entropy_value_and_grad, x, t),
            (K.cross_entropy, p, np.abs(x)),
            (functools.partial(K.cross_entropy_backward, 1.0), p, t),
            (functools.partial(K.softmax_cross_entropy_backward, 1.0), x, np.abs(x)),
        ):
            along = kernel(*arrays, axis=1)
            last = kernel(*(np.moveaxis(a, 1, -1) if a.ndim == x.ndim else a for a in arrays), axis=-1)
            along, last = (r if isinstance(r, tuple) else (r,) for r in (along, last))
            for a, b in zip(along, last, strict=True):
                a = np.moveaxis(a, 1, -1) if a.ndim == x.ndim else a
                tolerance = 3e-5 if dtype == np.float32 else 5e-3
                np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=tolerance, atol=tolerance)


def test_read_only_and_unaligned_arrays_need_no_other_compilation() -> None:
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    with backends.use("numba"):
        expected = K.softmax(x)
        before = len(rows.softmax.signatures)
        x.flags.writeable = False
        np.testing.assert_array_equal(K.softmax(x), expected)
        odd = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)  # not aligned
        assert not odd.flags.aligned
        np.testing.assert_array_equal(K.softmax(odd), expected)
    assert len(rows.softmax.signatures) == before


def test_read_only_and_unaligned_labels_need_no_other_compilation() -> None:
    x = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
    t = (x > 0).astype(np.float32)
    with backends.use("numba"):
        expected, _ = K.sigmoid_cross_entropy_value_and_grad(x, t)
        before = len(binary_losses._largest_of_pieces.signatures)
        t.flags.writeable = False
        odd = np.frombuffer(b"." + t.tobytes(), np.float32, offset=1).reshape(t.shape)
        for labels in (t, odd):
            assert K.sigmoid_cross_entropy_value_and_grad(x, labels)[0] == expected
    assert before == len(binary_losses._largest_of_pieces.signatures) > 0


@pytest.mark.parametrize("t_dtype", ["int8", "uint8", "int32", "uint32", "uint64"])
@pytest.mark.parametrize("classes", [10, 100])
def test_labels_of_any_integer_dtype_need_no_other_compilation(classes: int, t_dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(32, classes)).astype(np.float32)
    t = np.random.default_rng(1).integers(0, classes, 32)
    loops = (fused_losses.rows_of_class_indices, fused_losses.tiles_of_class_indices)
    with backends.use("numba"):
        expected = K.softmax_cross_entropy_value_and_grad(x, t)
        before = [len(loop.signatures) for loop in loops]
        for got, exact in zip(K.softmax_cross_entropy_value_and_grad(x, t.astype(t_dtype)), expected, strict=True):
            np.testing.assert_array_equal(got, exact)
    assert [len(loop.signatures) for loop in loops] == before


@pytest.mark.parametrize("shape", [(500, 10), (300, 30), (7, 30, 16), (40, 3, 5)])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 1}, {"reduction": "sum"}, {"reduction": "none"}])
@pytest.mark.parametrize("kernel", [K.softmax_cross_entropy, K.softmax_cross_entropy_value_and_grad])
def test_a_loss_in_one_call_has_the_bits_of_a_shared_one(
    kernel: Any, options: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    t = np.random.default_rng(1).integers(0, shape[1], (shape[0], *shape[2:]))
    with backends.use("numba"):
        expected = kernel(x, t, axis=1, **options)
        monkeypatch.setattr(losses, "_one_call", lambda *arguments: None)
        monkeypatch.setattr(team, "WORTH_SHARING", 0)
        monkeypatch.setattr(team, "PIECE", 1)
        for got, exact in zip(kernel(x, t, axis=1, **options), expected, strict=True):
            np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize("shape", [(8, 10), (8, 30)])
def test_a_wrong_label_in_a_small_call_is_an_error_before_anything_is_written(shape: tuple[int, int]) -> None:
    x, t = np.ones(shape, np.float32), np.zeros(shape[0], np.int64)
    t[5] = -1
    loss, dx = np.full((), 7, np.float32), np.full(shape, 7, np.float32)
    with backends.use("numba"):
        with pytest.raises(ValueError, match="expected labels in .* got -1 at row 5"):
            K.softmax_cross_entropy_value_and_grad(x, t, out=(loss, dx))
        assert loss == 7
        assert (dx == 7).all()
        K.softmax_cross_entropy_value_and_grad(x, t, ignore_index=-1, out=(loss, dx))
    assert (dx[5] == 0).all()


def test_the_sum_of_blocks_keeps_the_digits_that_additions_lose() -> None:
    assert targets.total_of_blocks(np.array([1.0, 1e100, 1.0, -1e100])) == 2
    assert targets.total_of_blocks(np.array([1.0, np.inf, 1.0])) == np.inf
    assert np.isnan(targets.total_of_blocks(np.array([1.0, np.nan, np.inf])))


def test_many_threads_call_at_once() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 500)).astype(np.float32)
    t = rng.integers(0, 500, 600)

    def work(seed: int) -> bool:
        with backends.use("numba"):
            mine = x + np.float32(seed)  # softmax is invariant
            y = K.softmax(mine)
            _, dx = K.softmax_cross_entropy_value_and_grad(mine, t, reduction="sum")
        return bool(np.allclose(y, exact, atol=1e-5) and np.allclose(dx, exact - np.eye(500)[t], atol=1e-5))

    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    exact = e / e.sum(axis=1, keepdims=True)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(64)))


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A team of three that shares all work; its threads have not been started yet."""
    monkeypatch.setattr(team, "thread_count", lambda: 3)
    monkeypatch.setattr(team, "_team", None)
    monkeypatch.setattr(team, "WORTH_SHARING", 0)


@compiling.compiled(in_pieces=True)
def count_units(start: int, stop: int, turns: int, counts: Any, pieces: Any) -> None:
    """Counts how often each unit is computed, and the pieces, after waiting for a while."""
    address = pieces.ctypes.data
    for unit in range(start, stop):
        for _ in range(turns):
            team._give_way()
        counts[unit] += 1
    add(address, 0, 1)


@compiling.compiled(in_pieces=True)
def fail_at(start: int, stop: int, unit: int) -> None:
    """Raises in the piece with a unit."""
    if start <= unit < stop:
        raise ValueError("in a piece")


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("units", [1, 2, 3, 7, 1000, 40_000])
@pytest.mark.parametrize("work", [1.0, 1e3, 1e6])
def test_each_unit_is_computed_once_before_the_call_returns(units: int, work: float) -> None:
    for turns in (0, 0, 3):
        counts, pieces = np.zeros(units, np.int64), np.zeros(1, np.int64)
        team.share_work(count_units, units, work, turns, counts, pieces)
        assert (counts == 1).all()
        assert pieces[0] <= max(3, -(-units // max(1, int(team.PIECE / work / 2))) + 3)


@pytest.mark.usefixtures("three_threads")
def test_helpers_take_part() -> None:
    """Also when they sleep: the work takes so long that they wake meanwhile."""
    units = 6
    ends = threading.Event()

    def compute() -> None:
        while not ends.is_set():
            team.share_work(count_units, units, 1e6, 200_000, np.zeros(units, np.int64), np.zeros(1, np.int64))

    team.share_work(fail_at, units, 1e6, units)
    crew = team._team
    assert crew is not None
    thread = threading.Thread(target=compute)
    thread.start()
    begin = time.monotonic()
    while crew.box[team.INSIDE] != 2 and time.monotonic() < begin + PATIENCE:
        time.sleep(0.0001)
    both_inside = crew.box[team.INSIDE] == 2 or time.monotonic() < begin + PATIENCE
    ends.set()
    thread.join()
    assert both_inside
    assert crew.box[team.INSIDE] == team.CLOSED


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("unit", [0, 40, 63])
def test_an_error_in_a_piece_reaches_the_caller(unit: int) -> None:
    """Whichever thread computes the piece; the calls after it are computed."""
    for _ in range(20):
        with pytest.raises(ValueError, match="in a piece"):
            team.share_work(fail_at, 64, 1e6, unit)
        team.share_work(fail_at, 64, 1e6, 64)
        counts = np.zeros(64, np.int64)
        team.share_work(count_units, 64, 1e6, 1, counts, np.zeros(1, np.int64))
        assert (counts == 1).all()


@pytest.mark.usefixtures("three_threads")
def test_an_error_of_work_computed_alone() -> None:
    with pytest.raises(ValueError, match="in a piece"):
        fail_at(0, 3, 2)
    team.share_work(fail_at, 3, 1.0, 3)
    crew = team._team
    assert crew is not None
    crew.box[team.OWNER] = 1  # as if another caller had the box
    counts, pieces = np.zeros(64, np.int64), np.zeros(1, np.int64)
    team.share_work(count_units, 64, 1e5, 0, counts, pieces)
    assert (counts == 1).all()
    assert pieces[0] == 1
    with pytest.raises(ValueError, match="in a piece"):
        team.share_work(fail_at, 64, 1e6, 5)
    assert crew.box[team.OWNER] == 1
    crew.box[team.OWNER] = 0


def asleep() -> team._Team:
    """The team, once its helpers sleep."""
    team.share_work(fail_at, 6, 1e6, 6)
    crew = team._team
    assert crew is not None
    deadline = time.monotonic() + PATIENCE
    while len(crew.sleeping) < crew.size and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(crew.sleeping) == crew.size
    return crew


@pytest.mark.usefixtures("three_threads")
def test_a_call_waits_for_a_helper_that_still_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = asleep()
    done = threading.Event()
    monkeypatch.setattr(crew, "wake", lambda wanted: None)
    crew.box[team.INSIDE] += 1  # as if a helper were there

    def call() -> None:
        team.share_work(fail_at, 64, 1e5, 64)
        done.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert not done.wait(0.2)
    leave(crew.address)
    assert done.wait(PATIENCE)


@compiling.compiled()
def leave(box: int) -> None:
    """As a helper does when it finds no more pieces."""
    add(box, team.INSIDE, -1)


@pytest.mark.usefixtures("three_threads")
def test_sixteen_callers_compute_at_once() -> None:
    def work(number: int) -> bool:
        counts = np.zeros(50 + number, np.int64)
        for _ in range(200):
            team.share_work(count_units, len(counts), 1e6, number % 3, counts, np.zeros(1, np.int64))
        return bool((counts == 200).all())

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


@pytest.mark.usefixtures("three_threads")
def test_as_many_helpers_are_woken_as_there_is_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = asleep()

    def rung(units: int, work: float) -> int:
        alarms = [SimpleQueue[None]() for _ in range(5)]
        monkeypatch.setattr(crew, "sleeping", deque(alarms))
        team.share_work(fail_at, units, work, units)
        return sum(not alarm.empty() for alarm in alarms)

    assert rung(1, 1e6) == rung(1000, 1.0) == 0
    assert rung(3, 1e6) == 2
    assert rung(1000, team.PIECE * 0.02) == 2
    assert rung(1000, 1e6) == 5


@compiling.compiled(in_pieces=True)
def find_unit(start: int, stop: int, unit: int) -> bool:
    """Whether it is one of these."""
    return start <= unit < stop


@pytest.mark.usefixtures("three_threads")
def test_results_of_pieces_are_joined() -> None:
    found: list[bool] = []
    for unit in range(66):
        team.share_work(lambda *arguments: found.append(find_unit(*arguments)), 64, 1e5, unit)
    assert found == [True] * 64 + [False] * 2


def test_other_results_of_pieces_are_refused() -> None:
    @compiling.compiled(in_pieces=True)
    def half(start: int, stop: int) -> float:
        return (stop - start) / 2

    with pytest.raises(Exception, match="expected integers, truth values or nothing as results, got double"):
        half(0, 1)


def test_all_loops_over_units_are_compiled_in_pieces() -> None:
    """Others would take the address of the team for the number of a unit."""
    files = [file.stem for file in Path(team.__file__).parent.glob("*.py") if file.stem not in ("team", "__init__")]
    modules = [importlib.import_module(f"plugrad.backends.numba.{name}") for name in files]
    loops = {
        function
        for module in modules
        for function in vars(module).values()
        if isinstance(function, Dispatcher)
        and not function.targetoptions["no_cpython_wrapper"]  # not a part of others
        and "start" in inspect.signature(function.py_func).parameters
    }
    assert len(loops) > 35
    for loop in loops:
        assert loop._compiler.pipeline_class is compiling._CompilerInPieces, loop


def test_no_change_of_a_number_is_lost() -> None:
    @compiling.compiled()
    def change_often(address: int, times: int) -> None:
        for _ in range(times):
            add(address, 0, 1)
            team._give_way()  # or the compiler could add the changes up

    number, times = np.zeros(1, np.int64), 500_000
    change_often(number.ctypes.data, 0)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(change_often, [number.ctypes.data] * 2, [times] * 2))
    assert number[0] == 2 * times


def test_a_compilation_is_announced_by_the_name_of_the_kernel(tmp_path: Path) -> None:
    code = "K.affine(np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.ones(4, np.float32))"
    done = subprocess.run(
        [sys.executable, "-c", f"import numpy as np\nfrom plugrad import kernels as K\n{code}"],
        env=os.environ | {"PLUGRAD_BACKEND": "numba", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "plugrad: compiling affine for float32" in done.stderr


def test_the_caller_does_all_the_work_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, "_team", None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    x = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float32)
    with backends.use("numba"):
        assert abs(K.softmax(x).sum() - 600) < 0.1


def test_memory_of_large_results_is_used_again_within_bounds() -> None:
    large = (recycling.LARGE // 4,)
    recycling._idle.clear()
    first = recycling.empty(large, np.dtype(np.float32))
    second = recycling.empty(large, np.dtype(np.float32))
    assert not np.shares_memory(first, second)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    assert first.flags.aligned
    address, part = first.ctypes.data, first[5:7]
    del first
    assert recycling.empty(large, np.dtype(np.float32)).ctypes.data != address  # a view of it still exists
    recycling._idle.clear()
    del part
    assert recycling.empty((*large, 1), np.dtype(np.float32)).ctypes.data == address
    many = [recycling.empty(large, np.dtype(np.float32)) for _ in range(12)]
    del many, second
    assert sum(memory.size for memory in recycling._idle) <= recycling.MOST
    kept = len(recycling._idle)
    huge = recycling.empty((recycling.MOST,), np.dtype(np.float32))  # is never touched
    del huge
    assert len(recycling._idle) == kept > 0  # memory too large to keep does not evict other memory
    small = recycling.empty((3,), np.dtype(np.float32))
    assert small.base is None
    recycling._idle.clear()


BARE = """
import os, sys
import numpy as np
from plugrad import kernels as K, backends
"""
SCRIPT = (
    BARE
    + """
backends.set_default("numba")
x = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float32)
"""
)


def python(code: str, script: str = SCRIPT, **environment: str) -> str:
    """Run `code` after one of the scripts above in a new process, and return its output."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", script + code],
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_forked_processes_have_threads_of_their_own() -> None:
    fork = """
pid = os.fork()
if pid == 0:
    os._exit(0 if abs(K.softmax(x).sum() - 600) < 0.1 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), abs(K.softmax(x).sum() - 600) < 0.1)
"""
    assert python(fork).startswith("0 True")
    assert python("K.softmax(x)\n" + fork).startswith("0 True")


def test_a_signal_handler_may_call_a_kernel_during_a_call() -> None:
    code = """
from plugrad.backends import selection
from plugrad.backends.numba import team
def is_right():
    return abs(K.softmax(x).sum() - 600) < 0.1
with selection._setting, team._starting:
    print(is_right())
"""
    assert python(code, PLUGRAD_NUM_THREADS="3").split()[0] == "True"


def test_one_thread_starts_no_helpers() -> None:
    count = "import threading; K.softmax(x); print(threading.active_count())"
    assert python(count, PLUGRAD_NUM_THREADS="1").split()[0] == "1"
    assert python(count, PLUGRAD_NUM_THREADS="3").split()[0] == "3"
    assert python(count, PLUGRAD_NUM_THREADS="3", NUMBA_NUM_THREADS="2").split()[0] == "2"
    assert python(count, PLUGRAD_NUM_THREADS="20000").split()[0] == str(team.MOST_THREADS)
    code = "print(backends.get('numba').describe()['threads'])"
    assert python(code, PLUGRAD_NUM_THREADS="3", NUMBA_NUM_THREADS="2").startswith("2")


def test_numba_is_unavailable_without_its_compiler() -> None:
    code = "print(backends.available()['numba']); print(backends.current())"
    script = SCRIPT.replace('backends.set_default("numba")', "") + code
    variables = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PLUGRAD_BACKEND": "auto"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert "NUMBA_DISABLE_JIT" in done.stdout
    assert done.stdout.strip().endswith("numpy")


@pytest.mark.parametrize("number", ["0", "-3"])
def test_numba_is_unavailable_with_an_invalid_number_of_threads(number: str) -> None:
    code = "from plugrad import backends; print(backends.available()['numba']); print(backends.current())"
    variables = {**os.environ, "NUMBA_NUM_THREADS": number, "PLUGRAD_BACKEND": "auto"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert f"NUMBA_NUM_THREADS={number}: numba expects a positive integer" in done.stdout
    assert done.stdout.strip().endswith("numpy")


@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_many_threads_next_to_parallel_functions_of_numba(layer: str) -> None:
    code = """
import numba
from concurrent.futures import ThreadPoolExecutor
@numba.njit(parallel=True)
def theirs(x):
    total = 0.0
    for i in numba.prange(x.size):
        total += x[i]
    return total
try:
    theirs(np.ones(1000))
except Exception as error:
    theirs = lambda x: x.sum()  # tbb is not everywhere
with ThreadPoolExecutor(16) as pool:
    sums = list(pool.map(lambda seed: float(K.softmax(x + np.float32(seed)).sum()), range(200)))
print(all(abs(total - 600) < 0.1 for total in sums), theirs(np.ones(1000)))
"""
    assert python(code, NUMBA_THREADING_LAYER=layer).startswith("True 1000.0")


def test_no_memory_is_allocated_except_the_result() -> None:
    code = """
import resource
x = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)
t, out = np.zeros(4096, int), np.empty_like(x)
with backends.use("numba"):
    calls = [lambda: K.softmax(x, out=out), lambda: K.softmax_backward(x, x, out=out), lambda: K.relu(x, out=out),
             lambda: K.log_softmax(x, axis=0, out=out), lambda: K.sigmoid(x, out=out),
             lambda: K.softmax_cross_entropy_value_and_grad(x, t, out=out)]
    small = x[:2, :30].copy()
    K.softmax(small), K.softmax_backward(small, small), K.relu(small), K.log_softmax(small, axis=0), K.sigmoid(small)
    K.softmax_cross_entropy_value_and_grad(small, t[:2])
    K.softmax(x[:, :300].copy())  # starts the threads
    out[...] = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for call in calls:
        call()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert int(python(code).split()[0]) < 8 * 1024  # kilobytes, of 64 MiB in each array


def test_warming_up_leaves_nothing_to_compile(tmp_path: Path) -> None:
    code = """
from plugrad.backends.numba import fused_losses, rows, targets, tiles
backends.warmup([K.softmax, "softmax_cross_entropy_value_and_grad"], dtypes=["float32"])
from plugrad.backends.numba import team
found = (rows.softmax, tiles.softmax, fused_losses.rows_of_class_indices, fused_losses.tiles_of_class_indices,
         fused_losses.rows_of_labels, fused_losses.tiles_of_labels, targets.checked, targets.total_of_blocks,
         team.conduct, team.serve)
before = [len(function.signatures) for function in found]
for classes in (10, 500):
    part = x[:, :classes].copy()
    K.softmax(part)
    K.softmax_cross_entropy_value_and_grad(part, np.zeros(600, int))
    K.softmax_cross_entropy_value_and_grad(part, part)
    K.softmax_cross_entropy_value_and_grad(part, np.zeros(600, int), ignore_index=3, label_smoothing=0.1)
print(before, before == [len(function.signatures) for function in found])
"""
    output = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert output.splitlines()[0] == "[1, 1, 1, 1, 2, 2, 1, 1, 1, 1] True"


def test_warming_up_leaves_nothing_to_compile_for_labels_of_elements() -> None:
    code = """
from plugrad.backends.numba import accuracies, binary_losses, largest
kernels = [K.sigmoid_cross_entropy, K.sigmoid_cross_entropy_backward, K.top_k_accuracy, K.linear_top_k]
backends.warmup(kernels, dtypes=["float32"])
found = binary_losses._forward, binary_losses._backward, accuracies._count, largest._largest
before = [len(function.signatures) for function in found]
x = x[:40, :30].copy()
for t in (x * 0, x > 0, (x > 0).astype(np.uint8), np.zeros(x.shape), np.zeros(x.shape, np.float16)):
    for reduction in ("mean", "none"):
        _, y = K.sigmoid_cross_entropy(x, t, reduction=reduction, weight=np.ones(30), ignore_index=-1)
        K.sigmoid_cross_entropy_value_and_grad(x, t, reduction=reduction)
        K.sigmoid_cross_entropy_backward(x if reduction == "none" else 1.0, y, t, reduction=reduction)
K.top_k_accuracy(x, np.zeros(30, np.int8), 2, axis=0)
K.linear_top_k(x[::2, ::3], x[:10], x[0], 2, out=(None, np.zeros((20, 4), np.int64)[:, ::2]))
print(before, before == [len(function.signatures) for function in found])
"""
    assert python(code).splitlines()[0] == "[2, 2, 1, 1] True"


def test_every_kernel_can_be_compiled_ahead() -> None:
    with backends.use("numba"):
        backends.warmup(dtypes=[np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
        with pytest.raises(ValueError, match="warmup: kernels: expected one of .*; got 'sotfmax'"):
            backends.warmup(["sotfmax"])
        with pytest.raises(TypeError, match="warmup: dtypes: expected float16, .*, got int32"):
            backends.warmup(dtypes=[np.int32])
        for single in ("softmax", K.softmax):
            with pytest.raises(TypeError, match="warmup: expected a list of kernels"):
                backends.warmup(single)


def test_processors_without_instructions_for_float16(tmp_path: Path) -> None:
    code = "print(float(abs(K.relu(x.astype(np.float16)).astype(float) - np.maximum(x.astype(np.float16), 0)).max()))"
    output = python(code, NUMBA_CPU_NAME="generic", NUMBA_CACHE_DIR=str(tmp_path))
    assert output.splitlines()[0] == "0.0"


CALL = "print(abs(K.relu(x).sum() - np.maximum(x, 0).sum()) < 1)"


def kept_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".nbi", ".nbc"))


def test_compiled_code_is_cached_and_a_damaged_cache_costs_only_time(tmp_path: Path) -> None:
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    first = python(CALL, **folder)
    assert "True" in first
    assert (
        "plugrad: compiling relu for float32, and later others when they are first called (1 to 9 s each; the" in first
    )
    assert python(CALL, **folder).strip() == "True"  # no message of compiling
    assert kept_in(tmp_path)
    for path in kept_in(tmp_path):
        path.write_bytes(b"not what it was")
    again = python(CALL, **folder)
    assert "True" in again
    assert again.count("RuntimeWarning") == 1
    assert python(CALL, **folder).strip() == "True"  # the damaged file has been replaced


@pytest.mark.parametrize(
    "stderr", ["None", "open(os.devnull)", "(lambda file: file.close() or file)(open(os.devnull, 'w'))"]
)
def test_a_call_succeeds_if_nobody_can_be_told_that_it_compiles(stderr: str, tmp_path: Path) -> None:
    output = python(f"sys.stderr = {stderr}\n{CALL}", NUMBA_CACHE_DIR=str(tmp_path))
    assert output.strip() == "True"


def test_a_call_succeeds_if_the_reader_of_stderr_is_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + CALL], env=environment, stdout=subprocess.PIPE, stderr=writer, check=True
    )
    os.close(writer)
    assert done.stdout.strip() == b"True"


def test_code_that_another_user_could_have_written_is_not_run(tmp_path: Path) -> None:
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    python(CALL, **folder)
    index = next(path for path in kept_in(tmp_path) if path.suffix == ".nbi" and "relu" in path.name)
    index.chmod(0o666)
    output = python(CALL, **folder)
    assert "True" in output
    assert "can be written to by other users" in output
    assert "compiling relu" in output
    index.chmod(0o644)
    assert python(CALL, **folder).strip() == "True"
    index.parent.chmod(0o777)
    assert "can be written to by other users" in python(CALL, **folder)


@pytest.mark.parametrize(("mode", "is_used"), [(0o777, False), (0o1777, True), (0o755, True)])
@pytest.mark.parametrize("by_link", [False, True])
def test_code_in_a_folder_that_another_user_could_have_replaced_is_not_run(
    mode: int, is_used: bool, by_link: bool, tmp_path: Path
) -> None:
    cache = tmp_path / "around" / "cache"
    cache.mkdir(parents=True)
    cache.parent.chmod(mode)
    (tmp_path / "link").symlink_to(cache, target_is_directory=True)
    folder = {"NUMBA_CACHE_DIR": str(tmp_path / "link" if by_link else cache)}
    warning = f"is not used: {cache.parent} can be written to by other users"
    for _ in range(2):
        assert (warning not in python(CALL, **folder)) == is_used
    assert bool(kept_in(tmp_path)) == is_used


def test_the_message_names_what_another_user_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    assert trust.untrusted(path) is None
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 1)
    monkeypatch.setattr(sources, "place", lambda: Path("/"))  # owned by root
    assert trust.untrusted(path) == f"{path} belongs to another user"


def test_the_message_names_what_a_group_can_write_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o664)
    about = path.stat()
    own = about.st_gid == about.st_uid  # the private group of this user
    assert (trust.untrusted(path) is None) == own
    if os.getuid() == 0:
        os.chown(path, 0, 65534)
        assert trust.untrusted(path) == f"{path} can be written to by other users"


def test_code_of_another_version_of_the_source_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "stamped"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    before = sources.stamp("stamped")
    assert sources.stamp("stamped") == before
    (folder / "losses.py").write_text("what others call")
    assert sources.stamp("stamped") != before
    assert compiling._stamp() == sources.stamp("plugrad.backends.numba") != before
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # no sources: the program tells
    assert sources.stamp("stamped") == sources.stamp("plugrad.backends.numba") != before


def test_code_for_other_types_is_not_run(tmp_path: Path) -> None:
    call = CALL + "; print(abs(K.relu(x.astype(float)).sum() - np.maximum(x, 0).sum()) < 1)"
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert python(call, **folder).split().count("True") == 2
    one, other = (path for path in kept_in(tmp_path) if path.suffix == ".nbc" and "relu" in path.name)
    code = one.read_bytes()
    one.write_bytes(other.read_bytes())  # two processes that write at once can cause this
    other.write_bytes(code)
    assert python(call, **folder).split().count("True") == 2


def test_other_code_may_compile_functions_without_a_module() -> None:
    code = """
K.relu(x)
import numba
space = {}
exec("def theirs(a): return a + 1", space)
space["theirs"].__module__ = None
print(numba.njit(space["theirs"])(1))
"""
    assert python(code).split()[0] == "2"


def test_ctrl_c_while_numba_is_imported_does_not_break_it() -> None:
    code = """
import signal, threading
x, sent = np.ones((3, 4), np.float32), threading.Event()

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    sent.set()

threading.Timer(0.05, interrupt).start()
try:
    while not sent.is_set():  # Python drops an interrupt that comes while it calls a destructor
        K.relu(x)
except KeyboardInterrupt:
    pass
print(K.relu(x).sum())
"""
    assert python(code, BARE, PLUGRAD_BACKEND="numba").split()[0] == "12.0"


def test_without_a_cache_folder_every_process_compiles() -> None:
    code = """
import tempfile

def refuse(*arguments, **options):
    raise OSError("a disk that can only be read")

tempfile.TemporaryFile = refuse  # numba tests folders with it
print(K.relu([-1.0, 2.0]).min() == 0)
"""
    output = python(code, BARE, PLUGRAD_BACKEND="numba")
    assert output.startswith("True\n")
    assert "compiled code cannot be kept, unless NUMBA_CACHE_DIR names a folder for it" in output


def test_concurrent_first_calls_start_one_team() -> None:
    code = """
import time
from concurrent.futures import ThreadPoolExecutor
from plugrad.backends.numba import team

class Team(team._Team):
    made = 0
    def __init__(self):
        Team.made += 1
        time.sleep(0.2)
        super().__init__()

team._Team = Team
with ThreadPoolExecutor(8) as pool:
    print(all(abs(total - 600) < 0.1 for total in pool.map(lambda _: K.softmax(x).sum(), range(8))), Team.made)
"""
    assert python(code, PLUGRAD_NUM_THREADS="3").startswith("True 1\n")


def test_memory_much_larger_than_a_result_is_not_recycled_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = np.empty(100, np.uint8)
    monkeypatch.setattr(recycling, "_idle", deque([kept]))
    assert recycling._memory(79).size == 79
    assert recycling._memory(101).size == 101
    assert recycling._memory(80) is kept


def test_numba_is_imported_only_when_it_is_selected() -> None:
    code = """
with backends.use("numpy"):
    K.relu(1.0)
print("numba" in sys.modules)
print(backends.available()["numba"], "numba" in sys.modules)
"""
    assert python(code, BARE, PLUGRAD_BACKEND="auto").split()[:3] == ["False", "True", "True"]


def test_the_reason_names_numba_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = backends.get("numba").module
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "pip install 'plugrad[numba]'" in module.probe()
    with pytest.raises(AttributeError):
        getattr(module, "no_kernel")  # noqa: B009


UNLESS_IT_IMPORTS = """
print(K.relu([-1.0, 2.0]).tolist(), backends.current())
print(backends.explain("relu").reasons["numba"])
print(bool(backends.available()["numba"]))
for call in (lambda: backends.set_default("numba"), lambda: backends.use("numba").__enter__()):
    try:
        call()
    except backends.BackendUnavailableError as error:
        print(error)
backends.warmup()
"""


def test_auto_skips_a_numba_that_fails_to_import_and_warns(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("print('imported')\nraise ImportError('Numba needs NumPy 1.26 or less')\n")
    output = python(UNLESS_IT_IMPORTS, BARE, PLUGRAD_BACKEND="auto", PYTHONPATH=str(tmp_path)).splitlines()
    reason = "numba is installed, but fails to import: ImportError: Numba needs NumPy 1.26 or less"
    reason = f"backend 'numba' cannot run here: {reason}"
    assert output == [
        "imported",  # once
        "[0.0, 2.0] numpy",
        reason,
        "False",
        f"set_default('numba'): {reason}",
        f"use('numba'): {reason}",
    ]


limits_memory = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is not limited so")
BOUND = """
import resource
size = int(open("/proc/self/statm").read().split()[{field}]) * resource.getpagesize()
resource.setrlimit(resource.{limit}, (size + {left},) * 2)
"""


@limits_memory
@pytest.mark.parametrize(
    ("limit", "field", "left", "what"),
    [
        ("RLIMIT_AS", 0, 60 << 20, "1024 MiB of address space"),
        ("RLIMIT_AS", 0, 600 << 20, "1024 MiB of address space"),
        ("RLIMIT_DATA", 5, 200 << 20, "768 MiB of data"),
    ],
)
def test_numpy_computes_if_the_memory_limit_is_too_low_for_the_compiler(
    limit: str, field: int, left: int, what: str
) -> None:
    code = BOUND.format(limit=limit, field=field, left=left) + UNLESS_IT_IMPORTS
    output = python(code, BARE, PLUGRAD_BACKEND="auto", OPENBLAS_NUM_THREADS="1").splitlines()
    assert output[0] == "[0.0, 2.0] numpy"
    assert f"numba's compiler may take {what}, and the limit of this process leaves " in output[1]


@limits_memory
def test_numba_compiles_at_the_documented_memory_limit(tmp_path: Path) -> None:
    code = (
        BOUND.format(limit="RLIMIT_AS", field=0, left=1100 << 20)
        + """
backends.warmup(["softmax_cross_entropy_value_and_grad", "relu"])
print(K.relu([-1.0, 2.0]).tolist(), backends.current())
"""
    )
    output = python(code, BARE, PLUGRAD_BACKEND="auto", NUMBA_CACHE_DIR=str(tmp_path))
    assert output.splitlines()[0] == "[0.0, 2.0] numba"


def test_a_small_stack_does_not_disable_numba() -> None:
    code = """
def deep(depth):
    return deep(depth - 1) if depth else K.relu([-1.0, 2.0])
try:
    deep(900)
except RecursionError:
    print("raised")
"""
    assert python(code, BARE, PLUGRAD_BACKEND="auto").splitlines()[0] == "raised"


def test_numba_is_imported_where_python_allows_no_signal_handler() -> None:
    code = """
import signal

def refuse(number, handler):
    raise ValueError("signal only works in main thread of the main interpreter")

signal.signal = refuse
print(K.relu([-1.0, 2.0]).tolist(), backends.current())
"""
    assert python(code, BARE, PLUGRAD_BACKEND="auto").splitlines()[0] == "[0.0, 2.0] numba"


@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_warnings_as_errors_end_a_call_but_not_the_backend(backend: str) -> None:
    code = """
import tempfile, warnings

def refuse(*arguments, **options):
    raise OSError("a disk that can only be read")

tempfile.TemporaryFile = refuse
warnings.simplefilter("error", RuntimeWarning)
for _ in range(2):
    try:
        print(K.relu([-1.0, 2.0]).tolist(), backends.current())
    except RuntimeWarning as error:
        print("cannot be kept" in str(error))
"""
    assert python(code, BARE, PLUGRAD_BACKEND=backend).splitlines()[:2] == ["True", "[0.0, 2.0] numba"]
