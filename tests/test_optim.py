"""Optimizers against their formulas in float64, schedules, and the L2 penalty."""

import copy
import functools
import math
import operator
import pickle
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from plugrad import backends, kernels as K
from plugrad.backends import updates
from plugrad.kernels import layers, optim
from plugrad.kernels.gradcheck import check, gradient
from plugrad.tests.oracles import adam, adamw, norm, rmsprop, sgd

RNG = np.random.default_rng(0)
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


class _Defaults:
    """A backend without updates of its own: it uses those of `plugrad.backends.updates`."""


@pytest.fixture(params=["numpy", "numba", "defaults"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "defaults" and request.param not in backends.available():
        backends.register("defaults", _Defaults())
    with backends.use(request.param):
        yield request.param


OPTIMIZERS: list[tuple[Any, Callable[..., Any], dict[str, Any]]] = [
    (optim.SGD, sgd, {"lr": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.05}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.5, "nesterov": True}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    (optim.SGD, sgd, {"lr": optim.step_decay(0.2, every=2), "momentum": 0.9}),
    (optim.Adam, adam, {"lr": 0.01}),
    (optim.Adam, adam, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.05}),
    (optim.AdamW, adamw, {"lr": 0.01}),
    (optim.AdamW, adamw, {"lr": optim.step_decay(0.2, every=2), "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.5}),
    (optim.RMSprop, rmsprop, {}),
    (optim.RMSprop, rmsprop, {"lr": 0.02, "alpha": 0.5, "eps": 1e-3, "weight_decay": 0.05, "momentum": 0.9}),
    (optim.RMSprop, rmsprop, {"alpha": 0.5, "eps": 1e-2, "centered": True}),
    (optim.RMSprop, rmsprop, {"alpha": 0.5, "eps": 0.1, "momentum": 0.5, "centered": True}),
]

NAMES = [f"{kind.__name__} {i}" for i, (kind, _, _) in enumerate(OPTIMIZERS)]


@pytest.mark.parametrize("shape", [(), (3,), (7, 2049), (300, 2, 3500)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "formula", "options"), OPTIMIZERS, ids=NAMES)
def test_steps(kind: Any, formula: Any, options: dict[str, Any], dtype: Any, shape: tuple[int, ...]) -> None:
    if len(shape) == 3 and dtype != np.float32:
        shape = shape[1:]
    rng = np.random.default_rng(0)
    p = rng.normal(size=shape).astype(dtype)
    grads = [np.asarray(rng.normal(size=shape)).astype(dtype) for _ in range(3)]
    expected = formula(p.astype(np.float64), [g.astype(np.float64) for g in grads], **options)
    parameter = np.array(p)
    optimizer = kind([parameter], **options)
    for g in grads:
        given = g.copy()
        optimizer.step([given])
        assert (given == g).all()
    assert parameter.dtype == dtype
    assert optimizer.steps == 3
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(parameter.astype(np.float64), expected, rtol=0, atol=8 * epsilon * np.abs(p).max())


@pytest.mark.parametrize(("kind", "formula", "options"), OPTIMIZERS, ids=NAMES)
def test_a_hundred_steps_in_float64(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    """PyTorch's numbers where it is installed, and those of the formulas, to rounding."""
    p, grads = RNG.normal(size=(5, 3)), list(RNG.normal(size=(100, 5, 3)))
    parameter = p.copy()
    optimizer = kind([parameter], **options)
    for g in grads:
        optimizer.step([g])
    np.testing.assert_allclose(parameter, formula(p, grads, **options), rtol=0, atol=1e-12)
    if find_spec("torch") is None or callable(options.get("lr")):
        return
    import torch

    theirs = torch.tensor(p, requires_grad=True)
    peer = getattr(torch.optim, kind.__name__)([theirs], **options)
    for g in grads:
        theirs.grad = torch.tensor(g)
        peer.step()
    np.testing.assert_allclose(parameter, theirs.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", [0, 3])
def test_a_variance_below_0_by_rounding_counts_as_0(position: int) -> None:
    """The mean square of a constant less the square of the mean, of which PyTorch takes the root: NaN."""
    p, g = np.zeros(4), np.full(4, 0.1)
    g[position] = 0.3
    optimizer = optim.RMSprop([p], 1e-9, alpha=0.5, centered=True)
    for _ in range(200):
        optimizer.step([g])
    assert (np.array(optimizer.squares) - np.array(optimizer.means) ** 2).min() < 1e-17
    assert np.isfinite(p).all()
    g[1] = np.nan
    optimizer.step([g])
    np.testing.assert_array_equal(np.isnan(p), [False, True, False, False])


@pytest.mark.parametrize(("kind", "formula", "options"), OPTIMIZERS[3:], ids=NAMES[3:])
def test_arrays_of_any_strides(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(8, 40)).astype(np.float32)
    views = [whole[::2, ::-3], np.asfortranarray(whole), whole.T.copy().T, whole[:3]]
    for view in views:
        before, g = view.astype(np.float64), rng.normal(size=view.shape).astype(np.float32)
        outside = whole.copy()
        for gradient_ in (g, np.asfortranarray(g), np.broadcast_to(g[:1], g.shape)):
            target = view.copy(order="K") if view.base is not whole else view
            start = target.astype(np.float64)
            kind([target], **options).step([gradient_])
            np.testing.assert_allclose(target, formula(start, [gradient_.astype(float)], **options), atol=1e-6)
        if view.base is whole:
            view[...] = before
            assert (whole == outside).all(), "written outside the parameter"


def test_a_schedule_is_shown_by_its_name() -> None:
    optimizer = optim.SGD([np.zeros(2)], optim.cosine(0.1, steps=9, warmup=2))
    assert repr(optimizer) == "SGD(1 parameters, lr=cosine(lr=0.1, steps=9, warmup=2, least=0.0), 0 steps done)"
    assert repr(optim.SGD([np.zeros(2)], lr=0.5)) == "SGD(1 parameters, lr=0.5, 0 steps done)"


def test_states_of_16_bit_parameters_are_kept_in_float32() -> None:
    for dtype in DTYPES[2:]:
        p = np.ones(3, dtype)
        assert {v.dtype for v in optim.SGD([p], momentum=0.5).velocities} == {np.dtype(np.float32)}
        adam_ = optim.Adam([p])
        assert {a.dtype for a in (*adam_.means, *adam_.squares)} == {np.dtype(np.float32)}
    # In bfloat16 a gradient of 0.5 would not change a velocity of 256.
    p, g = np.zeros(1, ml_dtypes.bfloat16), np.ones(1, ml_dtypes.bfloat16)
    optimizer = optim.SGD([p], 1.0, momentum=0.999)
    for _ in range(1000):
        optimizer.step([g])
    assert float(optimizer.velocities[0][0]) == pytest.approx((1 - 0.999**1000) * 1000, rel=1e-4)


def test_parameters_that_are_not_finite_are_left_so() -> None:
    p = np.array([np.inf, -np.inf, 1.0, np.nan], np.float32)
    for kind in (optim.SGD, optim.Adam):
        kind([p], 0.5).step([np.zeros(4, np.float32)])
    np.testing.assert_array_equal(p, [np.inf, -np.inf, 1.0, np.nan])


def test_the_same_bits_for_any_number_of_pieces() -> None:
    rng = np.random.default_rng(0)
    p, g = rng.normal(size=1_500_000).astype(np.float32), rng.normal(size=1_500_000).astype(np.float32)
    for kind, options in ((optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}), (optim.Adam, {})):
        whole, parts = p.copy(), p.copy()
        kind([whole], 0.1, **options).step([g])
        cuts = [slice(i, i + 1000) for i in range(0, p.size, 1000)]
        kind([parts[cut] for cut in cuts], 0.1, **options).step([g[cut] for cut in cuts])
        assert (whole == parts).all()


def test_a_backend_has_its_own_updates_or_the_default(backend: str) -> None:
    for name, default in updates.DEFAULTS.items():
        assert (backends.get(backend).functions[name] is default) == (backend == "defaults")


# Clipping by the norm


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping(dtype: Any) -> None:
    shapes = (), (3,), (70, 300), (0, 2)
    grads = [np.asarray(RNG.normal(size=shape)).astype(dtype) for shape in shapes]
    wide = [g.astype(np.float64) for g in grads]
    found = optim.clip_by_global_norm(grads, 1e6)
    assert type(found) is np.float64
    np.testing.assert_allclose(found, float(norm(wide)), rtol=1e-12)
    for g, before in zip(grads, wide, strict=True):
        np.testing.assert_array_equal(g.astype(np.float64), before)
    assert optim.clip_by_global_norm(iter(grads), 2) == found
    for g, before in zip(grads, wide, strict=True):
        expected = (before * (2 / found)).astype(dtype).astype(np.float64)
        np.testing.assert_allclose(g.astype(np.float64), expected, rtol=2 * float(ml_dtypes.finfo(dtype).eps))
    assert float(optim.clip_by_global_norm(grads, 0)) == pytest.approx(2, rel=2e-2)
    assert not any(g.any() for g in grads)
    assert optim.clip_by_global_norm(grads, 0) == 0
    assert optim.clip_by_global_norm([], 1.0) == 0


@pytest.mark.parametrize("size", [1e300, 1e-300, 3e38, 1e-44, 6e4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_norm_neither_overflows_nor_underflows(dtype: Any, size: float) -> None:
    if dtype == np.float32 and not 1e-50 < size < 1e50:
        size = 1.0
    grads = [np.full(5, size, dtype), np.full((2, 2), -size, dtype)]
    value = float(grads[0][0])
    limit = value * 1e-3
    found = optim.clip_by_global_norm(grads, limit)
    np.testing.assert_allclose(found, 3 * value, rtol=1e-14)
    for g in grads:
        tolerance = max(2 * np.finfo(dtype).eps, float(np.finfo(dtype).smallest_subnormal) / (limit / 3))
        np.testing.assert_allclose(abs(g).astype(np.float64), limit / 3, rtol=tolerance)


def test_a_small_factor_of_float32_loses_no_digits() -> None:
    g = np.full(9, 3e38, np.float32)
    optim.clip_by_global_norm([g], 3e-3)
    np.testing.assert_allclose(g, 1e-3, rtol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_left_as_they_are(dtype: Any, bad: float) -> None:
    grads = [np.array([3.0, bad], dtype), np.array([4.0], dtype)]
    before = [g.tobytes() for g in grads]
    found = optim.clip_by_global_norm(grads, 1.0)
    assert math.isnan(found) if math.isnan(bad) else found == math.inf
    assert [g.tobytes() for g in grads] == before


def test_clipping_of_views_and_of_several_dtypes() -> None:
    whole = RNG.normal(size=(6, 8))
    expected = whole.copy()
    views = whole[::2, 1::3], whole[1::2].T
    other = np.array([2.0], np.float16)
    found = optim.clip_by_global_norm([*views, other], 0.5)
    np.testing.assert_allclose(found, float(norm([expected[::2, 1::3], expected[1::2], [2.0]])), rtol=1e-14)
    for rows in (expected[::2, 1::3], expected[1::2]):
        rows *= 0.5 / found
    np.testing.assert_allclose(whole, expected, rtol=1e-15)
    assert other.dtype == np.float16


def test_the_norm_has_the_same_bits_each_time() -> None:
    g = RNG.normal(size=1_000_001).astype(np.float32)
    assert len({float(optim.clip_by_global_norm([g.copy()], 1e9)) for _ in range(3)}) == 1


# Mistakes


def test_mistakes() -> None:
    p = np.ones(3, np.float32)
    read_only = np.broadcast_to(p, (2, 3))
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: optim.SGD(p, 0.1), TypeError, r"SGD: params: expected a sequence of arrays, got one array; pass \(ar"),
        (lambda: optim.SGD([p, [1.0]]), TypeError, "SGD: params: 1: expected a floating array to be updated, got list"),
        (lambda: optim.Adam([np.ones(3, int)]), TypeError, "Adam: params: 0: expected a floating .*, got int64"),
        (lambda: optim.Adam([read_only]), ValueError, "Adam: params: 0: expected an array that can be written"),
        (lambda: optim.SGD([p], -1.0), ValueError, "SGD: lr: expected a finite number of at least 0, got -1.0"),
        (lambda: optim.SGD([p], np.nan), ValueError, "SGD: lr: expected a finite number of at least 0, got nan"),
        (lambda: optim.SGD([p], lambda step: "x").step([p]), TypeError, "SGD: lr: expected a number, got 'x'"),
        (lambda: optim.SGD([p], momentum=1.0), ValueError, r"SGD: momentum: expected a number in \[0, 1\), got 1.0"),
        (lambda: optim.SGD([p], nesterov=True), ValueError, "SGD: nesterov: expected a momentum greater than 0"),
        (lambda: optim.SGD([p], weight_decay=True), TypeError, "SGD: weight_decay: expected a number, got True"),
        (lambda: optim.Adam([p], betas=(0.9, 1)), ValueError, r"Adam: betas: expected a number in \[0, 1\), got 1"),
        (lambda: optim.Adam([p], eps=-1), ValueError, "Adam: eps: expected a finite number of at least 0, got -1"),
        (lambda: optim.SGD([p]).step([]), ValueError, "SGD.step: grads: expected 1, one for each parameter, got 0"),
        (lambda: optim.SGD([p]).step([p[:2]]), ValueError, r"grads: 0: expected shape \(3,\), got \(2,\)"),
        (lambda: optim.SGD([p]).step([p.astype(float)]), TypeError, "expected an array of float32, got float64"),
        (lambda: optim.SGD([p]).step([None]), TypeError, "grads: 0: expected an array of float32, got NoneType"),
        (lambda: optim.SGD([p, p]), ValueError, "SGD: params: 1: shares memory with another one; pass each once"),
        (lambda: optim.SGD([p[:2], p[1:]]), ValueError, "SGD: params: 1: shares memory with another one"),
        (lambda: optim.SGD([as_strided(p, (3, 2), (4, 0))]), ValueError, "expected an array without repeated elements"),
        (
            lambda: optim.SGD([p[1:]]).step([p[:-1]]),
            ValueError,
            "shares part of its memory with the parameter; pass a co",
        ),
        (
            lambda: optim.SGD({"w": p}),
            TypeError,
            "params: expected a sequence of arrays, got dict; pass its values",
        ),
        (
            lambda: optim.SGD(layers.Relu()),
            TypeError,
            "params: expected a sequence .* got Relu; pass its params",
        ),
        (lambda: optim.SGD(3), TypeError, "SGD: params: expected a sequence of arrays, got int"),
        (lambda: optim.SGD("w"), TypeError, "SGD: params: expected a sequence of arrays, got str"),
        (lambda: optim.SGD([p]).step({"w": p}), TypeError, r"SGD.step: grads: .* got dict; pass its values\(\)"),
        (lambda: optim.SGD([p]).step(p), TypeError, r"SGD.step: grads: .* got one array; pass \(array,\)"),
        (lambda: optim.SGD([p]).step(layers.Relu()), TypeError, "SGD.step: grads: .* got Relu; pass its grads"),
        (lambda: optim.SGD([p]).step(None), TypeError, "SGD.step: grads: .* got NoneType"),
        (
            lambda: optim.SGD([p]).step([p.astype(float)]),
            TypeError,
            r"got float64; use x.astype\('float32'\) of",
        ),
        (lambda: optim.SGD([p], "0.1"), TypeError, "SGD: lr: expected a number, got '0.1'"),
        (
            lambda: optim.AdamW([p], weight_decay=-1),
            ValueError,
            "AdamW: weight_decay: expected a finite number",
        ),
        (lambda: optim.AdamW([p], betas=(1, 0)), ValueError, r"AdamW: betas: expected a number in \[0, 1\), got 1"),
        (lambda: optim.RMSprop([p], alpha=1.0), ValueError, r"RMSprop: alpha: expected a number in \[0, 1\), got 1.0"),
        (lambda: optim.RMSprop([p], momentum=-0.1), ValueError, "RMSprop: momentum: expected a finite number of at le"),
        (lambda: optim.clip_by_global_norm(p, 1.0), TypeError, r"clip_by_global_norm: grads: .* pass \(array,\)"),
        (
            lambda: optim.clip_by_global_norm([p], -1.0),
            ValueError,
            "norm: max_norm: expected a number of at least 0, or",
        ),
        (
            lambda: optim.clip_by_global_norm([p], np.nan),
            ValueError,
            "norm: max_norm: expected a number of at least 0, or",
        ),
        (lambda: optim.clip_by_global_norm([p], "1"), TypeError, "clip_by_global_norm: max_norm: expected a number"),
        (lambda: optim.clip_by_global_norm([p, p], 1.0), ValueError, "grads: 1: shares memory with another one"),
        (lambda: optim.clip_by_global_norm([p, p[1:]], 1.0), ValueError, "grads: 1: shares memory with another one"),
        (
            lambda: optim.clip_by_global_norm([p, [1.0]], 1.0),
            TypeError,
            "grads: 1: expected .* got list",
        ),
        (
            lambda: optim.clip_by_global_norm([read_only], 1.0),
            ValueError,
            "grads: 0: expected an array that can be",
        ),
        (lambda: optim.Adam([p], betas=0.9), TypeError, "Adam: betas: expected two numbers, got 0.9"),
        (lambda: optim.Adam([p], betas=(0.9,)), TypeError, r"Adam: betas: expected two numbers, got \(0.9,\)"),
        (
            lambda: optim.l2_penalty([p], 1.0, grads=[[0.0] * 3]),
            TypeError,
            "l2_penalty: grads: 0: expected an array of",
        ),
        (lambda: optim.l2_penalty([p], 1.0, grads=[p[:1]]), ValueError, r"l2_penalty: grads: 0: expected shape \(3,\)"),
        (lambda: optim.step_decay(1.0, every=0), ValueError, "every: expected an integer of at least 1, got 0"),
        (lambda: optim.step_decay(1.0, every=1.5), TypeError, "every: expected an integer, got 1.5"),
        (lambda: optim.exponential_decay(1.0, rate=2), ValueError, r"rate: expected a number in \[0, 1\], got 2"),
        (lambda: optim.exponential_decay(1.0, factor=2), ValueError, r"factor: expected a number in \[0, 1\], got 2"),
        (lambda: optim.exponential_decay(1.0), TypeError, "expected factor, what a step keeps, or rate, .* None, None"),
        (lambda: optim.exponential_decay(1.0, factor=1, rate=0), TypeError, "expected factor, .* or rate, .* got 1, 0"),
        (
            lambda: optim.cosine(-1.0, steps=5),
            ValueError,
            "cosine: lr: expected a finite number of at least 0, got -1.0",
        ),
        (
            lambda: optim.cosine(1.0, steps=5, warmup=6),
            ValueError,
            "warmup: expected at most the number of .* 5, got 6",
        ),
        (lambda: optim.l2_penalty([p], -1.0), ValueError, "l2_penalty: factor: expected a finite number of at least 0"),
        (lambda: optim.l2_penalty([p], 1.0, grads=[]), ValueError, "l2_penalty: grads: expected 1, one for each"),
        (lambda: optim.l2_penalty([["a"]], 1.0), TypeError, "l2_penalty: params: expected "),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    assert (p == 1).all()
    optimizer = optim.SGD([p, np.ones(2, np.float32)], momentum=0.5)
    optimizer.params[1].flags.writeable = False
    with pytest.raises(ValueError, match="SGD: params: 1: expected an array that can be written"):
        optimizer.step([p, np.ones(2, np.float32)])
    with pytest.raises(AttributeError):
        optimizer.momentum = 0.9  # type: ignore[misc]
    assert (p == 1).all()
    assert optimizer.steps == 0
    other = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="grads: 1: expected shape"):
        optim.SGD([p, other]).step([p, p])
    assert (p == 1).all(), "the first parameter was updated although the second gradient was refused"


# Schedules and the penalty


def test_schedules() -> None:
    assert [optim.step_decay(0.8, every=3, factor=0.5)(step) for step in range(7)] == [0.8] * 3 + [0.4] * 3 + [0.2]
    np.testing.assert_allclose([optim.exponential_decay(2.0, rate=0.1)(s) for s in range(3)], [2, 1.8, 1.62])
    schedule = optim.cosine(0.5, steps=50, warmup=5, least=0.1)
    rates = [schedule(step) for step in range(80)]
    np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_allclose(rates[5:51], [0.1 + 0.4 * (1 + math.cos(math.pi * s / 45)) / 2 for s in range(46)])
    assert rates[50:] == [pytest.approx(0.1)] * 30
    assert optim.cosine(1.0, steps=10, warmup=10)(10) == 0
    p = np.zeros(1)
    optimizer = optim.SGD([p], schedule)
    for _ in range(3):
        optimizer.step([np.ones(1)])
    assert p[0] == pytest.approx(-0.6)
    optimizer.lr = 1.0
    optimizer.step([np.ones(1)])
    assert p[0] == pytest.approx(-1.6)


def test_exponential_decay_by_what_is_kept_and_by_what_is_taken_off(caplog: pytest.LogCaptureFixture) -> None:
    kept, taken = optim.exponential_decay(2.0, factor=0.75), optim.exponential_decay(2.0, rate=0.25)
    assert [kept(step) for step in range(9)] == [taken(step) for step in range(9)] == [2 * 0.75**s for s in range(9)]
    assert not caplog.records
    optim.exponential_decay(1.0, rate=0.95)
    assert [(record.name, record.message) for record in caplog.records] == [
        ("plugrad", "exponential_decay: rate=0.95 keeps 0.05 of the rate in each step; factor=0.95 would keep that")
    ]


def test_the_penalty_of_the_fifth_notebook_and_its_gradient() -> None:
    """0.05 times the squares of all weights and biases of its network, which it prints as 0.8518750000000002."""
    net = [
        np.array([[0.5, 0.4, 0.3]]),
        np.array([[0.8, -0.1], [1.3, 0.15], [-1.1, 0.95]]),
        np.array([-1.0, 3.0, 1.0]),
        np.array([0.65, 0.8]),
    ]
    assert optim.l2_penalty(net, 0.05) == pytest.approx(0.8518750000000002, rel=0, abs=1e-15)
    grads = [np.zeros_like(p) for p in net]
    optim.l2_penalty(net, 0.05, grads=grads)
    report = check(lambda *params: optim.l2_penalty(params, 0.05), *net, gradients=grads)
    assert report, report
    by_decay, by_hand = [p.copy() for p in net], [p.copy() for p in net]
    optim.SGD(by_decay, 0.1, weight_decay=0.1).step([np.zeros_like(p) for p in net])
    optim.SGD(by_hand, 0.1).step(grads)
    for a, b in zip(by_decay, by_hand, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_the_penalty_in_16_bits_does_not_overflow() -> None:
    p = np.full(1000, 100.0, np.float16)
    penalty = optim.l2_penalty([p], 0.5)
    assert penalty.dtype == np.float32
    assert penalty == 5e6
    p, g = np.full(2, 1e-3, np.float16), np.zeros(2, np.float16)
    optim.l2_penalty([p], 1e5, grads=[g])
    np.testing.assert_allclose(g.astype(float), 2e5 * p.astype(float), rtol=1e-3)


def test_the_penalty_of_many_parameters_is_accurate() -> None:
    p = np.full(10**7, 0.1, np.float32)
    assert float(optim.l2_penalty([p], 1.0)) == pytest.approx(1e7 * float(p[0]) ** 2, rel=1e-7)


def test_a_gradient_that_is_the_parameter_itself() -> None:
    p = np.arange(200_000.0)
    expected = p - 0.1 * p
    optim.SGD([p], 0.1).step([p])
    np.testing.assert_allclose(p, expected, rtol=1e-15)


def test_a_network_learns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 20)).astype(np.float32)
    t = (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
    for kind, options in ((optim.SGD, {"lr": 0.1, "momentum": 0.9}), (optim.Adam, {"lr": 0.02})):
        w, b = np.zeros((20, 4), np.float32), np.zeros(4, np.float32)
        optimizer = kind([w, b], **options)
        with backends.use("numpy"):
            for _ in range(100):
                loss, dz = K.softmax_cross_entropy_value_and_grad(K.affine(x, w, b), t)
                optimizer.step(K.affine_backward(dz, x, w, needs=("dw", "db"))[1:])
        assert loss < 0.35
    assert gradient(lambda v: v * v, 3.0) == pytest.approx(6)


@pytest.mark.parametrize(
    "schedule",
    [
        optim.step_decay(0.1, every=2, factor=0.5),
        optim.exponential_decay(0.1, rate=0.2),
        optim.cosine(0.1, steps=8, warmup=2, least=0.01),
    ],
)
def test_an_optimizer_with_a_schedule_can_be_pickled_and_copied(schedule: optim.Schedule) -> None:
    optimizer = optim.Adam([np.ones(3)], lr=schedule)
    for _ in range(3):
        optimizer.step([np.ones(3)])
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        other.step([np.ones(3)])
        same = copy.deepcopy(optimizer)
        same.step([np.ones(3)])
        np.testing.assert_array_equal(other.params[0], same.params[0])
        assert other.params[0] is not optimizer.params[0]


class _Foreign:
    """A backend over arrays of another package."""

    ARRAYS = "foreign"


def test_arrays_that_the_backend_does_not_compute_on_are_refused() -> None:
    parameter = np.ones(3)
    optimizer = optim.SGD([parameter])
    backends.register("foreign", _Foreign(), replace=True)
    with backends.use("foreign"), pytest.raises(TypeError, match="SGD.step: grads: 0: expected an array of float64"):
        optimizer.step([np.ones(3)])
    assert (parameter.tolist(), optimizer.steps) == ([1, 1, 1], 0)


def test_parameters_that_were_replaced() -> None:
    optimizer = optim.SGD([np.ones(3), np.ones(2)], lr=0.5)
    optimizer.params = optimizer.params[:1]
    optimizer.step([np.ones(3)])
    assert optimizer.params[0].tolist() == [0.5] * 3
    optimizer.params = (np.ones(3),) * 3
    with pytest.raises(ValueError, match="SGD: params: expected at most as many as at first, got 3"):
        optimizer.step([np.ones(3)] * 3)
    assert optimizer.params[0].tolist() == [1.0] * 3
    assert optimizer.steps == 1, "a step that is refused does not count"


@pytest.mark.parametrize("make", [optim.Adam, optim.RMSprop, functools.partial(optim.SGD, momentum=0.9)])
@pytest.mark.parametrize(
    "parameter", [np.ones(5), np.ones(2), np.ones((3, 1)), np.ones(3, np.float32)], ids=["5", "2", "3x1", "float32"]
)
def test_a_parameter_that_does_not_fit_its_state_is_refused(parameter: Any, make: Any) -> None:
    """Compiled code would write past the end of the state."""
    optimizer = make([np.ones(1), np.ones(3)])
    optimizer.params = np.ones(1), parameter
    with pytest.raises(ValueError, match=r"params: 1: expected shape and dtype as at first, got shape .*; make a new"):
        optimizer.step([np.ones(1), parameter.copy()])
    assert (optimizer.params[0] == 1).all()
    assert (parameter == 1).all()
    assert optimizer.steps == 0


def test_a_parameter_that_was_resized_is_refused() -> None:
    parameter = np.ones(3)
    optimizer = optim.Adam([parameter])
    parameter.resize(5, refcheck=False)
    with pytest.raises(ValueError, match=r"Adam: params: 0: expected shape and dtype as at first, got shape \(5,\)"):
        optimizer.step([np.ones(5)])


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_a_replay_refuses_parameters_of_another_shape(make: Any) -> None:
    optimizer, gradient = make([np.ones(3)]), np.ones(3)
    with K.capture() as graph:
        optimizer.step([gradient])
    optimizer.params = (np.ones(5),)
    with pytest.raises(ValueError, match=r"params: 0: expected shape \(3,\), that of the gradient that was captured"):
        graph.replay()
    assert (optimizer.params[0] == 1).all()
    assert optimizer.steps == 1


# Storing and copying


def own_schedule(step: int) -> float:
    return 0.1 / (step + 1)


RESUMED: list[tuple[Any, dict[str, Any]]] = [
    (optim.SGD, {"lr": optim.exponential_decay(0.1, factor=0.9)}),
    (optim.SGD, {"lr": optim.step_decay(0.1, every=2), "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adam, {"lr": optim.cosine(0.1, steps=9, warmup=3, least=0.01), "betas": (0.8, 0.9)}),
    (optim.AdamW, {"lr": own_schedule}),
    (optim.RMSprop, {"alpha": 0.5, "momentum": 0.5, "centered": True, "eps": 0.1}),
]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("kind", "options"), RESUMED, ids=[kind.__name__ for kind, _ in RESUMED])
def test_resumed_training_goes_on_with_the_same_bits(
    kind: Any, options: dict[str, Any], dtype: Any, suffix: str, tmp_path: Path
) -> None:
    def made(seed: int, **options: Any) -> tuple[Any, Any]:
        net = layers.Sequential(layers.Affine.init(4, 3, rng=seed, dtype=dtype), layers.Affine.init(3, 2, dtype=dtype))
        return net, kind(net.params, **options)

    grads = [[RNG.normal(size=p.shape).astype(dtype) for p in made(0)[0].params] for _ in range(8)]
    net, optimizer = made(0, **options)
    for given in grads[:4]:
        optimizer.step(given)
    optimizer.weight_decay = 0.25
    net.save(tmp_path / f"net{suffix}")
    optimizer.save(tmp_path / f"optimizer{suffix}")
    # Another program: numbers that it does not know come from the file.
    structure = {
        name: 0.25 if name == "momentum" else options[name] for name in ("momentum", "centered") if name in options
    }
    other, resumed = made(1, **structure, **({"lr": own_schedule} if options.get("lr") is own_schedule else {}))
    other.load(tmp_path / f"net{suffix}")
    before = resumed.params
    resumed.load(tmp_path / f"optimizer{suffix}")
    assert all(map(operator.is_, resumed.params, before))
    assert resumed.steps == 4
    for given in grads[4:]:
        optimizer.step(given)
        resumed.step(given)
        for p, q in zip(net.params, other.params, strict=True):
            assert p.tobytes() == q.tobytes()
    for name, value in optimizer.state_dict().items():
        assert value.tobytes() == resumed.state_dict()[name].tobytes()


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    p, g = np.zeros(3), np.ones(3)
    optimizer = optim.SGD([p], momentum=0.5)
    optimizer.step([g])
    state = optimizer.state_dict()
    held = {name: value.copy() for name, value in state.items()}
    cases: list[tuple[Any, type[Exception], str]] = [
        (3, TypeError, "state: expected a dictionary, as state_dict returns, got int"),
        ({}, ValueError, "expected names such as SGD.steps, of the state of SGD, got none"),
        (optim.Adam([p]).state_dict(), ValueError, "expected names such as SGD.steps, .* got Adam.betas, Adam.eps, "),
        (layers.MatMul(np.eye(3)).state_dict(), ValueError, "expected names such as SGD.steps, .* got w$"),
        (optim.SGD([p]).state_dict(), ValueError, "missing: SGD.velocities.0"),
        (optim.SGD([p, g], momentum=0.5).state_dict(), ValueError, "unknown: SGD.velocities.1; expected SGD.steps, "),
        (
            {**state, "SGD.velocities.0": np.ones(2)},
            ValueError,
            r"SGD.velocities.0: expected shape \(3,\), got \(2",
        ),
        ({**state, "SGD.lr": -1.0}, ValueError, "lr: expected a finite number of at least 0, got -1.0"),
        ({**state, "SGD.momentum": 1.0}, ValueError, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({**state, "SGD.nesterov": 0.5}, ValueError, "nesterov: expected 0 or 1, got 0.5"),
        ({**state, "SGD.steps": -1}, ValueError, "SGD.steps: expected at least 0, got -1"),
        ({**state, "SGD.steps": 1.5}, TypeError, "SGD.steps: expected integers, got dtype float64"),
        ({**state, "SGD.weight_decay": math.nan}, ValueError, "weight_decay: expected a finite number"),
        ({**state, "SGD.lr.cosine": np.ones(4)}, ValueError, "unknown: SGD.lr.cosine"),
    ]
    without = {name: value for name, value in state.items() if name != "SGD.lr"}
    cases += [
        (without, ValueError, "missing: SGD.lr"),
        (
            {**without, "SGD.lr.cosine": [1.0, 2.5, 0, 0]},
            ValueError,
            "lr.cosine: cosine: steps: expected an integer",
        ),
        ({**without, "SGD.lr.callable": np.zeros(0)}, ValueError, "lr.callable: .* with the schedule that was stored"),
    ]
    other = optim.SGD([p.copy()], momentum=0.5)
    other.load_state_dict(state)
    for given, error, message in cases:
        with pytest.raises(error, match=f"^SGD.load_state_dict: {message}"):
            other.load_state_dict(given)
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, held[name])
    with pytest.raises(ValueError, match="would lose digits in float32; load them into an optimizer of"):
        optim.SGD([np.zeros(3, np.float32)], momentum=0.5).load_state_dict({**state, "SGD.velocities.0": g / 3})
    optim.Adam([p]).save(tmp_path / "adam.npz")
    with pytest.raises(ValueError, match=r"adam.npz: SGD.load_state_dict: expected names such as SGD.steps"):
        other.load(tmp_path / "adam.npz")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files_are_named_and_files_appear_whole(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, optimizer = tmp_path / f"o{suffix}", optim.Adam([np.ones(50)])
    optimizer.step([np.ones(50)])
    optimizer.save(path)
    written, state = path.read_bytes(), optimizer.state_dict()
    for damaged in (b"", written[: len(written) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"Adam.load: .*o{suffix}: cannot be read as {suffix}"):
            optimizer.load(path)
    path.write_bytes(written)

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        optimizer.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == written
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    with pytest.raises(ValueError, match="Adam.save: path: expected a name in .npz or .safetensors"):
        optimizer.save(tmp_path / "o.pkl")


COPIES = [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
def test_an_optimizer_that_is_copied_without_its_network_says_so_once(
    copied: Any, caplog: pytest.LogCaptureFixture
) -> None:
    net = layers.MatMul(np.ones((2, 2)))
    optimizer, grads = optim.Adam(net.params), [np.ones((2, 2))]
    both = copied((net, optimizer))
    both[1].step(grads)
    assert (both[0].w != 1).all()
    mended = copied(optimizer)
    mended.params = net.params
    mended.step(grads)
    optimizer.step(grads)
    assert not caplog.records
    alone = copied(optimizer)
    for _ in range(2):
        alone.step(grads)
    message = "Adam: the optimizer was copied or loaded without its network: its steps update copies of the parameters"
    assert [record.message[: len(message)] for record in caplog.records] == [message]
    assert caplog.records[0].name == "plugrad"


def test_a_shallow_copy_has_the_parameters_and_a_state_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    p, g = np.zeros(2), np.ones(2)
    optimizer = optim.SGD([p], 0.1, momentum=0.5)
    optimizer.step([g])
    other = copy.copy(optimizer)
    other.step([g])
    assert other.params[0] is p
    assert (optimizer.velocities[0].tolist(), other.velocities[0].tolist()) == ([1, 1], [1.5, 1.5])
    assert (optimizer.steps, other.steps) == (1, 2)
    assert not caplog.records


def test_a_state_that_is_loaded_is_that_of_captured_steps() -> None:
    p, g = np.zeros(2), np.ones(2)
    optimizer = optim.Adam([p], 0.1)
    with K.capture() as graph:
        optimizer.step([g])
    held, parameter = optimizer.state_dict(), p.copy()
    graph.replay()
    expected = p.copy()
    graph.replay()
    p[...] = parameter
    optimizer.load_state_dict(held)
    graph.replay()
    np.testing.assert_array_equal(p, expected)


@pytest.mark.parametrize("shape", [(300, 400), (1, 70_000), (100_001,), (70_000, 1), (3, 200, 150), (2, 400_000)])
def test_descent_of_large_parameters_is_that_of_the_formula(shape: tuple[int, ...]) -> None:
    """By pieces, the last of which is shorter, also where columns lie one behind the other."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        p, g = rng.normal(size=shape).astype(dtype), rng.normal(size=shape[::-1]).astype(dtype).T
        expected = p - g * dtype(0.1)
        for parameter in (p.copy(), np.asfortranarray(p)):
            with backends.use("numpy"):
                optim.SGD([parameter], lr=0.1).step([g])
            np.testing.assert_array_equal(parameter, expected)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_step_without_parameters_counts(kind: Any) -> None:
    optimizer = kind([])
    optimizer.step([])
    assert optimizer.steps == 1


def test_a_schedule_may_set_the_weight_decay() -> None:
    w = np.array([1.0])

    def schedule(step: int) -> Any:
        optimizer.weight_decay = 0.5
        return np.float64(0.1)

    optimizer = optim.SGD([w], lr=schedule)
    optimizer.step([np.array([0.0])])
    assert w == 0.95
    assert optimizer.weight_decay == 0.5


def test_a_wrong_weight_decay_is_found_before_the_schedule_is_called() -> None:
    def schedule(step: int) -> float:
        raise AssertionError("it was called")

    optimizer = optim.SGD([np.ones(1)], lr=schedule)
    optimizer.weight_decay = -1.0
    with pytest.raises(ValueError, match="SGD: weight_decay"):
        optimizer.step([np.ones(1)])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_velocity_is_updated_without_momentum_too(backend: str) -> None:
    w = np.zeros(3, np.float32)
    with backends.use(backend):
        optimizer = optim.SGD([w], lr=0.5, momentum=0.5)
        optimizer.load_state_dict(optimizer.state_dict() | {"SGD.momentum": np.array(0.0)})
        optimizer.step([np.ones(3, np.float32)])
    np.testing.assert_array_equal(optimizer.velocities[0], np.ones(3))
    np.testing.assert_array_equal(w, np.full(3, -0.5, np.float32))
