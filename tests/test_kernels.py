"""Every kernel, by its record: values, gradients, `out=`, strides, purity and refusals."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels
from plugrad.kernels import KERNELS, Kernel
from plugrad.tests.comparison import DTYPES, as_tuple, check, epsilon
from plugrad.tests.oracles import ORACLES

FLOAT32 = np.dtype(np.float32)
RECORDS = [pytest.param(kernel, id=name) for name, kernel in KERNELS.items()]
SHAPES = [(1, 1), (2, 3), (7, 10), (33, 24), (40, 25), (3, 129), (300, 7), (5, 1025)]


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with backends.use("numpy"):
        yield


def arguments(kernel: Kernel, inputs: dict[str, Any]) -> list[Any]:
    return [inputs[name] for name in kernel.arguments]


def sample(kernel: Kernel, rows: int = 6, classes: int = 5, dtype: np.dtype[Any] = FLOAT32, seed: int = 0) -> list[Any]:
    return arguments(kernel, kernel.sample(np.random.default_rng(seed), rows, classes, dtype))


def differing(name: str) -> str | None:
    """The argument that a gradient named like this is taken for."""
    return name[1:] if name.startswith("d") else None


# The table itself


def test_every_kernel_has_its_pieces() -> None:
    room = backends.get("numpy").room
    assert set(KERNELS) == set(room.__all__), "backends/numpy has not the kernels of the table"
    assert set(KERNELS) == set(ORACLES), "tests/oracles.py has not the kernels of the table"
    assert set(KERNELS) == {name for name in kernels.__all__ if name.islower()}, "kernels/__init__.py exports others"


@pytest.mark.parametrize("kernel", RECORDS)
def test_the_record_fits_the_function(kernel: Kernel) -> None:
    parameters = inspect.signature(kernel.function).parameters
    assert tuple(parameters)[: len(kernel.arguments)] == kernel.arguments
    by_keyword = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert tuple(name for name in by_keyword if name != "out") == kernel.options
    if kernel.backward:
        backward = KERNELS[kernel.backward]
        assert {differing(name) for name in backward.results} <= {*kernel.arguments}
        assert backward.arguments[0] in {f"d{name}" for name in kernel.results}
        assert set(backward.arguments[1:]) <= {*kernel.arguments, *kernel.results}


# Values and gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", RECORDS)
def test_values(kernel: Kernel, dtype: np.dtype[Any]) -> None:
    for rows, classes in SHAPES:
        inputs = sample(kernel, rows, classes, dtype)
        check(kernel, kernel.function(*inputs), ORACLES[kernel.name](*inputs), dtype, (rows, classes))


@pytest.mark.parametrize("kernel", RECORDS)
def test_many_blocks_on_several_threads(kernel: Kernel) -> None:
    # Two shapes of more than one block: classes worked on apart, and side by side.
    for rows, classes in ((90_000, 10), (1_100, 1_001)):
        if "affine" in kernel.name and classes > 10:
            continue
        inputs = sample(kernel, rows, classes)
        oracle = ORACLES[kernel.name](*inputs)
        check(kernel, kernel.function(*inputs), oracle, FLOAT32, (rows, classes))


FORWARD = [p for p in RECORDS if p.values[0].backward or "loss" in p.values[0].results]


@pytest.mark.parametrize("kernel", FORWARD)
def test_gradients_against_central_differences(kernel: Kernel) -> None:
    rng = np.random.default_rng(1)
    inputs = kernel.sample(rng, 4, 5, np.dtype(np.float64))
    results = dict(zip(kernel.results, as_tuple(kernel.function(*arguments(kernel, inputs))), strict=True))
    upstream = {f"d{name}": rng.normal(size=np.shape(value)) for name, value in results.items()}
    if kernel.backward:
        backward = KERNELS[kernel.backward]
        known = {**inputs, **results, **upstream}
        got = as_tuple(backward.function(*(known[name] for name in backward.arguments)))
        gradients = dict(zip(backward.results, got, strict=True))
        weighted_result, weight = backward.arguments[0][1:], upstream[backward.arguments[0]]
    else:
        gradients = {name: value for name, value in results.items() if differing(name) in inputs}
        weighted_result, weight = "loss", 1.0
    assert gradients

    def value(**moved: Any) -> float:
        got = as_tuple(kernel.function(*arguments(kernel, {**inputs, **moved})))
        return float(np.sum(weight * got[kernel.results.index(weighted_result)]))

    for name, gradient in gradients.items():
        x = inputs[str(differing(name))]
        direction = rng.normal(size=x.shape) * (np.abs(x) > 1e-3)  # away from the corner of relu
        step = 1e-6
        numeric = (value(**{name[1:]: x + step * direction}) - value(**{name[1:]: x - step * direction})) / (2 * step)
        analytic = float((gradient * direction).sum())
        assert analytic == pytest.approx(numeric, rel=1e-6, abs=1e-7), name


# out=


def takes_out(kernel: Kernel) -> bool:
    return "out" in inspect.signature(kernel.function).parameters


WITH_OUT = [p for p in RECORDS if takes_out(p.values[0])]


def out_for(results: tuple[Any, ...], make: Any) -> Any:
    """`out` with an array made for each result that is an array."""
    made = tuple(make(value) for value in results)
    return made[0] if len(made) == 1 else made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", WITH_OUT)
def test_out(kernel: Kernel, dtype: np.dtype[Any]) -> None:
    for rows, classes in ((5, 4), (300, 30)):
        inputs = sample(kernel, rows, classes, dtype)
        expected = as_tuple(kernel.function(*inputs))

        def stale(value: Any) -> Any:
            return np.full(value.shape, np.nan, value.dtype)

        def every_other(value: Any) -> Any:
            wide = np.full(tuple(2 * n for n in value.shape), np.nan, value.dtype)
            return wide[(..., *[slice(None, None, 2)] * value.ndim)]

        def backwards(value: Any) -> Any:
            return np.full(value.shape, np.nan, value.dtype)[(..., *[slice(None, None, -1)] * value.ndim)]

        def transposed(value: Any) -> Any:
            return np.full(value.shape[::-1], np.nan, value.dtype).T

        for make in (stale, every_other, backwards, transposed):
            out = out_for(expected, make)
            got = as_tuple(kernel.function(*inputs, out=out))
            for given, returned, value in zip(as_tuple(out), got, expected, strict=True):
                assert returned is given, (make.__name__, rows)
                if "affine" in kernel.name:  # BLAS may sum in another order for other strides
                    scale = np.abs(value.astype(np.float64)).max()
                    np.testing.assert_allclose(
                        returned.astype(float), value.astype(float), atol=64 * scale * epsilon(dtype)
                    )
                else:
                    np.testing.assert_array_equal(returned, value, err_msg=make.__name__)


@pytest.mark.parametrize("kernel", WITH_OUT)
def test_what_lies_beside_a_strided_out_is_untouched(kernel: Kernel) -> None:
    inputs = sample(kernel)
    frames = []

    def framed(value: Any) -> Any:
        frame = np.full(tuple(2 * n + 1 for n in value.shape), 7, value.dtype)
        frames.append(frame)
        return frame[tuple([slice(1, None, 2)] * value.ndim)] if value.ndim else frame

    kernel.function(*inputs, out=out_for(as_tuple(kernel.function(*inputs)), framed))
    for frame in frames:
        if frame.ndim:
            frame[tuple([slice(1, None, 2)] * frame.ndim)] = 7
            assert (frame == 7).all()


@pytest.mark.parametrize("kernel", WITH_OUT)
def test_in_place(kernel: Kernel) -> None:
    for rows, classes in ((6, 5), (300, 2000)):
        inputs = sample(kernel, rows, 5 if "affine" in kernel.name else classes)
        expected = as_tuple(kernel.function(*inputs))
        for position, name in enumerate(kernel.arguments):
            for result, value in zip(kernel.results, expected, strict=True):
                fresh = sample(kernel, rows, 5 if "affine" in kernel.name else classes)
                target = fresh[position]
                if np.shape(target) != value.shape or not value.ndim or target.dtype != value.dtype:
                    continue
                for out_array in (target, target[...]):  # the very object, and another of the same elements
                    fresh = sample(kernel, rows, 5 if "affine" in kernel.name else classes)
                    fresh[position] = target
                    target[...] = sample(kernel, rows, 5 if "affine" in kernel.name else classes)[position]
                    out: Any = tuple(out_array if r == result else None for r in kernel.results)
                    got = as_tuple(kernel.function(*fresh, out=out if len(out) > 1 else out[0]))
                    for other, one, exact in zip(kernel.results, got, expected, strict=True):
                        tolerance = 64 * epsilon(FLOAT32) * np.abs(exact).max() if "affine" in kernel.name else 0
                        np.testing.assert_allclose(
                            one, exact, rtol=0, atol=tolerance, err_msg=f"{result} in {name}, {other}"
                        )


def test_affine_in_place_of_arguments_of_the_same_shape() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 200):
        dy, x, w = (rng.normal(size=(n, n)) for _ in range(3))
        for target in (0, 1, 2):
            given = [dy.copy(), x.copy(), w.copy()]
            for result in (0, 1):
                given = [dy.copy(), x.copy(), w.copy()]
                out = tuple(given[target] if r == result else None for r in range(3))
                for got, exact in zip(
                    kernels.affine_backward(*given, out=out), ORACLES["affine_backward"](dy, x, w), strict=True
                ):
                    np.testing.assert_allclose(got, exact, atol=1e-11)
        given = [dy.copy(), x.copy(), w.copy()]
        dx, dw, _ = kernels.affine_backward(*given, out=(given[2], given[1], None))
        np.testing.assert_allclose(dx, dy @ w.T, atol=1e-11)
        np.testing.assert_allclose(dw, x.T @ dy, atol=1e-11)
        for target in (0, 1):
            pair = [x.copy(), w.copy()]
            np.testing.assert_allclose(kernels.affine(*pair, out=pair[target]), x @ w, atol=1e-11)
    b = np.ones(3)
    np.testing.assert_allclose(kernels.affine(np.ones(2), np.ones((2, 3)), b, out=b), [3.0] * 3)


def test_affine_in_place_of_strided_weights_over_several_blocks() -> None:
    rng = np.random.default_rng(0)
    n = 1_000  # more rows than one block has of this width
    x, plain = rng.normal(size=(n, n)), rng.normal(size=(n, n))
    expected = x @ plain
    w = np.empty((n, 2 * n))[:, ::2]
    w[...] = plain
    np.testing.assert_allclose(kernels.affine(x, w, out=w), expected, atol=1e-10)
    w[...] = plain
    dx, _, _ = kernels.affine_backward(x, x, w, needs="dx", out=(w, None, None))
    np.testing.assert_allclose(dx, x @ plain.T, atol=1e-10)


@pytest.mark.parametrize("kernel", WITH_OUT)
def test_partly_overlapping_out_is_refused_and_nothing_is_written(kernel: Kernel) -> None:
    inputs = sample(kernel)
    results = as_tuple(kernel.function(*inputs))
    for position, name in enumerate(kernel.arguments):
        if not isinstance(inputs[position], np.ndarray) or inputs[position].dtype != FLOAT32:
            continue
        for place, value in enumerate(results):
            if not value.ndim:
                continue
            room = np.zeros(inputs[position].size + value.size, np.float32)
            overlapping = room[: inputs[position].size].reshape(inputs[position].shape)
            overlapping[...] = inputs[position]
            before = room.copy()
            given = [*inputs[:position], overlapping, *inputs[position + 1 :]]
            array = room[1 : value.size + 1].reshape(value.shape)
            out: Any = tuple(array if r == place else None for r in range(len(results)))
            with pytest.raises(ValueError, match=rf"^{kernel.name}: out.*: shares part of its memory with an argument"):
                kernel.function(*given, out=out if len(out) > 1 else out[0])
            np.testing.assert_array_equal(room, before, err_msg=name)


def test_results_that_share_memory_are_refused() -> None:
    dy, x, w = np.ones((4, 4)), np.ones((4, 4)), np.ones((4, 4))
    both = np.empty((4, 4))
    with pytest.raises(ValueError, match="affine_backward: out: dw: shares memory with another result"):
        kernels.affine_backward(dy, x, w, out=(both, both, None))


def test_an_out_with_repeated_elements_is_refused() -> None:
    repeated = np.lib.stride_tricks.as_strided(np.empty(3), (2, 3), (0, 8))
    with pytest.raises(
        ValueError, match=r"relu: out: expected an array without repeated elements, got strides \(0, 8\)"
    ):
        kernels.relu(np.ones((2, 3)), out=repeated)


def test_a_read_only_out_is_refused() -> None:
    out = np.empty(3)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="relu: out: expected an array that can be written, got a read-only one"):
        kernels.relu(np.ones(3), out=out)


# Inputs


def variants(x: Any) -> Iterator[tuple[str, Any]]:
    """The same values in other memory layouts."""
    if not isinstance(x, np.ndarray) or not x.ndim:
        yield "itself", x
        return
    yield "Fortran", np.asfortranarray(x)
    wide = np.zeros(tuple(3 * n for n in x.shape), x.dtype)
    wide[tuple([slice(None, None, 3)] * x.ndim)] = x
    yield "sliced", wide[tuple([slice(None, None, 3)] * x.ndim)]
    yield "negative", x[tuple([slice(None, None, -1)] * x.ndim)].copy()[tuple([slice(None, None, -1)] * x.ndim)]
    if x.dtype.kind in "fiu":
        yield "other byte order", x.astype(x.dtype.newbyteorder())
    shifted = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[...] = x
    yield "unaligned", shifted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", RECORDS)
def test_memory_layouts(kernel: Kernel, dtype: np.dtype[Any]) -> None:
    inputs = sample(kernel, 30, 26, dtype)
    expected = ORACLES[kernel.name](*inputs)
    for position, name in enumerate(kernel.arguments):
        for layout, x in variants(inputs[position]):
            got = kernel.function(*inputs[:position], x, *inputs[position + 1 :])
            check(kernel, got, expected, dtype, (name, layout))


@pytest.mark.parametrize("kernel", RECORDS)
def test_arguments_are_never_written(kernel: Kernel) -> None:
    inputs = sample(kernel, 30, 26)
    for x in inputs:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False
    copies = [np.copy(x) for x in inputs]
    kernel.function(*inputs)
    for x, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("kernel", RECORDS)
def test_sequences_and_integers_become_float64(kernel: Kernel) -> None:
    inputs = sample(kernel, 3, 4, np.dtype(np.float64))
    lists = [x.tolist() if isinstance(x, np.ndarray) else x for x in inputs]
    check(kernel, kernel.function(*lists), ORACLES[kernel.name](*inputs), np.dtype(np.float64))
    whole = [np.ones_like(x, dtype=np.int16) if getattr(x, "dtype", None) == np.float64 else x for x in inputs]
    check(kernel, kernel.function(*whole), ORACLES[kernel.name](*whole), np.dtype(np.float64))


@pytest.mark.parametrize("kernel", RECORDS)
def test_no_rows(kernel: Kernel) -> None:
    inputs = sample(kernel, 0, 4)
    check(kernel, kernel.function(*inputs), ORACLES[kernel.name](*inputs), FLOAT32)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("kernel", [p for p in RECORDS if "axis" in p.values[0].options])
def test_any_axis(kernel: Kernel, axis: int) -> None:
    for shape in ((3, 4, 5), (40, 26, 3), (70, 110, 80)):
        position = axis % 3
        classes = shape[position]
        rest = tuple(np.delete(shape, position))
        inputs = kernel.sample(np.random.default_rng(0), int(np.prod(rest)), classes, FLOAT32)
        moved = {}
        for name, x in inputs.items():
            if np.ndim(x) == 2:
                moved[name] = np.ascontiguousarray(np.moveaxis(x.reshape(*rest, classes), -1, position))
            else:
                moved[name] = x.reshape(rest) if np.ndim(x) else x
        given = arguments(kernel, moved)
        check(kernel, kernel.function(*given, axis=axis), ORACLES[kernel.name](*given, axis=axis), FLOAT32, shape)


# Refusals


@pytest.mark.parametrize(
    ("kernel", "mistake"),
    [pytest.param(k, m, id=f"{k.name}-{i}") for k in KERNELS.values() for i, m in enumerate(k.mistakes)],
)
def test_mistakes_are_refused_before_anything_is_written(kernel: Kernel, mistake: Any) -> None:
    inputs = kernel.sample(np.random.default_rng(0), 2, 3, FLOAT32)
    given = {**inputs, **mistake.changed}
    if takes_out(kernel) and "out" not in given and len(kernel.results) == 1:
        result = np.asarray(kernel.function(**inputs))
        given["out"] = np.full(result.shape, 7, result.dtype)
    with pytest.raises(mistake.error, match=mistake.message):
        kernel.function(**given)
    if "out" in given and "out" not in mistake.changed:
        assert (given["out"] == 7).all()


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda x: kernels.softmax(x, axis=np.array([0])), TypeError, "softmax: axis: expected one integer"),
        (lambda x: kernels.softmax(x, axis=np.array([0, 1])), TypeError, "softmax: axis: expected one integer"),
        (lambda x: kernels.softmax(x, axis=np.array(1.0)), TypeError, "softmax: axis: expected one integer"),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], ignore_index=np.array([0, 1])),
            TypeError,
            "cross_entropy: ignore_index: expected an integer or None",
        ),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], label_smoothing=np.array([0.0, 0.1])),
            TypeError,
            "cross_entropy: label_smoothing: expected a number",
        ),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], label_smoothing=10**400),
            ValueError,
            "cross_entropy: label_smoothing: expected a number",
        ),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], reduction=np.array(["mean", "sum"])),
            TypeError,
            "cross_entropy: reduction: expected one of",
        ),
        (
            lambda x: kernels.cross_entropy_backward(10**400, x, [0, 0]),
            ValueError,
            "cross_entropy_backward: dloss: expected a number that a float can hold",
        ),
        (lambda x: kernels.affine_backward(x, x, np.ones((2, 2)), needs=None), TypeError, "affine_backward: needs: "),
        (
            lambda x: kernels.relu(np.array(["a"], np.dtypes.StringDType())),
            TypeError,
            "relu: x: expected .*StringDType",
        ),
        (lambda x: kernels.cross_entropy(x[:0], np.array([], "U1")), TypeError, "cross_entropy: t: expected class ind"),
        (lambda x: kernels.relu(x, out=np.ma.masked_less(x, 2.0)), TypeError, "out: expected a plain array .*Masked"),
    ],
)
def test_strange_arguments_are_named(call: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call(np.full((2, 2), 0.5))


def test_out_may_be_a_tuple_of_the_one_result() -> None:
    y = np.empty(2)
    assert kernels.softmax([1.0, 1.0], out=(y,)) is y


def test_no_inputs_at_all() -> None:
    for lead in ((), (4,), (2, 5)):
        x, w, b = np.ones((*lead, 0)), np.ones((0, 3)), np.arange(3.0)
        np.testing.assert_array_equal(kernels.affine(x, w, b), np.broadcast_to(b, (*lead, 3)))
        np.testing.assert_array_equal(kernels.affine(x, w), np.zeros((*lead, 3)))
        dx, dw, db = kernels.affine_backward(np.ones((*lead, 3)), x, w)
        assert (dx.shape, dw.shape) == (x.shape, w.shape)
        np.testing.assert_array_equal(db, np.full(3, np.prod(lead)))


def test_gradients_of_parameters_keep_their_accuracy_over_millions_of_rows() -> None:
    dy, x = np.full((3_000_000, 1), 0.1, np.float32), np.ones((3_000_000, 1), np.float32)
    _, dw, db = kernels.affine_backward(dy, x, np.ones((1, 1), np.float32), needs=("dw", "db"))
    exact = 3_000_000 * float(np.float32(0.1))
    np.testing.assert_allclose([dw[0, 0], db[0]], exact, rtol=4e-6)


def test_masked_arrays_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"relu: x: expected an array without a mask, got a masked array; call its .filled"
    ):
        kernels.relu(np.ma.masked_less([1.0, 2.0], 1.5))


@pytest.mark.parametrize("dtype", [np.longdouble, "datetime64[s]", "S3", "V4"])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(
        TypeError, match=r"softmax: x: expected float16, bfloat16, float32, float64, integers or booleans"
    ):
        kernels.softmax(np.zeros((2, 2), dtype))


def test_promotion() -> None:
    x, w = np.ones((2, 3), np.float32), np.ones((3, 4), np.float64)
    assert kernels.affine(x, w).dtype == np.float64
    assert kernels.affine(x, w.astype(np.float32), np.ones(4, np.float16)).dtype == np.float32
    half, brain = DTYPES[0], DTYPES[1]
    assert kernels.affine(x.astype(half), w.astype(brain)).dtype == np.float32
    assert kernels.softmax_backward(x, x.astype(np.float64)).dtype == np.float64


def test_labels_and_weights_do_not_change_the_dtype() -> None:
    x = np.ones((2, 3), np.float32)
    loss, dx = kernels.softmax_cross_entropy_value_and_grad(x, np.eye(3)[:2], weight=[1.0, 2.0, 3.0])
    assert (loss.dtype, dx.dtype) == (np.float32, np.float32)


def test_scalars_come_back_as_scalars() -> None:
    assert isinstance(kernels.relu(2.0), np.float64)
    assert isinstance(kernels.sigmoid(np.float32(0)), np.float32)
    loss, _ = kernels.softmax_cross_entropy(np.ones((2, 3), np.float32), [0, 1])
    assert isinstance(loss, np.float32)
