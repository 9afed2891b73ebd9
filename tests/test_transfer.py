"""Arrays of backends: moved when the caller says so, and never by a kernel."""

import types
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.tests.fakes import DeviceArray


def test_kernels_never_move_data_between_devices() -> None:
    with backends.use("numpy"):
        with pytest.raises(
            TypeError, match=r"relu: x: expected an array in host memory, got a .*DeviceArray on a device; call"
        ):
            K.relu(DeviceArray())
        with pytest.raises(TypeError, match=r"affine: w: expected an array in host memory.* plugrad.backends.to_numpy"):
            K.affine(np.ones((1, 1)), DeviceArray())
    with pytest.raises(TypeError, match="to_numpy: x: expected an array of a known backend or in host memory"):
        backends.to_numpy(DeviceArray())


def test_asarray_and_to_numpy() -> None:
    x = np.ones(3)
    assert backends.asarray(x) is x
    assert backends.to_numpy(x) is x
    assert backends.asarray([1, 2]).tolist() == [1, 2]
    assert backends.to_numpy(3.5) == 3.5
    assert type(backends.asarray(np.float32(1))) is np.ndarray
    with pytest.raises(TypeError, match="to_numpy: x: expected an array without a mask"):
        backends.asarray(np.ma.masked_less([1.0, 2.0], 1.5))


class Boxed:
    """An array of a device backend, for want of a device."""

    __module__ = "boxes"

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    shape = property(lambda self: self.inside.shape)
    dtype = property(lambda self: self.inside.dtype)
    ndim = property(lambda self: self.inside.ndim)
    size = property(lambda self: self.inside.size)
    flags = property(lambda self: self.inside.flags)
    strides = property(lambda self: self.inside.strides)

    def __getitem__(self, key: Any) -> "Boxed":
        return Boxed(np.asarray(self.inside[key]))


def take_boxed(what: str, x: Any) -> Any:
    if not isinstance(x, Boxed):
        raise TypeError(f"{what}: expected a boxed array, got {type(x).__name__}; call plugrad.backends.asarray(x)")
    return x


def test_a_backend_with_arrays_of_its_own() -> None:
    boxes = types.SimpleNamespace(
        ARRAYS="boxes",
        NATIVE=Boxed,
        take=take_boxed,
        asarray=lambda x: Boxed(np.array(x)),
        to_numpy=lambda x: x.inside,
        empty=lambda shape, dtype: Boxed(np.empty(shape, dtype)),
        overlap=lambda a, b: backends.get("numpy").overlap(a.inside, b.inside),
        relu=lambda x, out: np.maximum(x.inside, 0, out=out.inside),
    )
    backends.register("boxes", boxes)
    with backends.use("boxes"):
        y = K.relu(backends.asarray([-1.0, 2.0]))
        assert type(y) is Boxed
        assert backends.to_numpy(y).tolist() == [0, 2]
        assert backends.asarray(y) is y
        with pytest.raises(
            TypeError, match="relu: x: expected a boxed array, got ndarray; call plugrad.backends.asarray"
        ):
            K.relu(np.ones(2))
        with pytest.raises(TypeError, match="relu: out: expected a plain array of backend 'boxes', got ndarray"):
            K.relu(y, out=np.ones(2))


def test_an_out_that_lies_where_an_argument_does_reaches_the_backend_as_that_argument() -> None:
    seen: dict[str, list[Any]] = {}

    def recorder(name: str) -> Any:
        return lambda *given: seen.__setitem__(name, list(given))

    recording = types.SimpleNamespace(**{name: recorder(name) for name in K.KERNELS})
    backends.register("recording", recording)
    x, t = np.ones((2, 2)), np.eye(2)
    with backends.use("recording"):
        K.softmax(x, out=x[...])
        assert seen["softmax"][0] is seen["softmax"][-1]
        K.relu_backward(t, x, out=x[...])
        assert seen["relu_backward"][1] is seen["relu_backward"][-1]
        K.affine(x, t, out=t[...])
        assert seen["affine"][1] is seen["affine"][-1]
        K.softmax_cross_entropy_value_and_grad(x, t, out=t[...])
        assert seen["softmax_cross_entropy_value_and_grad"][1] is seen["softmax_cross_entropy_value_and_grad"][-1]
        K.softmax_cross_entropy_backward(1.0, x, t, out=x[...])
        assert seen["softmax_cross_entropy_backward"][1] is seen["softmax_cross_entropy_backward"][-1]
        row, weight = np.ones(2), np.ones(2)
        K.cross_entropy_backward(1.0, row, 0, weight=weight, out=weight[...])
        assert seen["cross_entropy_backward"][3].weight is seen["cross_entropy_backward"][-1]


class _Sparse:
    """A matrix of SciPy, for want of one."""

    __module__ = "scipy.sparse._csr"
    nnz = 1

    def toarray(self) -> Any:
        return np.eye(2)


class _Dask:
    """An array of Dask, for want of one."""

    __module__ = "dask.array.core"

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise AssertionError("it was computed")


class _NullableDtype:
    numpy_dtype = np.dtype(np.float32)


class _Nullable:
    """A column of pandas with a value for what is missing, for want of one."""

    __module__ = "pandas.core.series"
    dtypes = _NullableDtype()

    def __init__(self, *values: float | None) -> None:
        self.values = values

    def isna(self) -> Any:
        return np.array([value is None for value in self.values])

    def to_numpy(self, dtype: Any) -> Any:
        return np.array(self.values, dtype)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (_Sparse(), r"got scipy.sparse._csr._Sparse; call its .toarray\(\) first"),
        (_Dask(), r"got dask.array.core._Dask; call its .compute\(\) first, or .* x.map_blocks\(K.softmax\)"),
        ({0: 1.0, 1: 2.0}, "got dict; give one number per class"),
        (_Nullable(1.0, None), r"got pandas.core.series._Nullable with missing values; call its .fillna\(value\)"),
    ],
)
def test_containers_are_refused_by_name(given: Any, message: str) -> None:
    with backends.use("numpy"), pytest.raises(TypeError, match=f"^softmax: x: .*{message}"):
        K.softmax(given)


def test_nullable_columns_without_missing_values_are_taken() -> None:
    with backends.use("numpy"):
        y = K.softmax(_Nullable(0.0, 0.0))  # type: ignore[arg-type]
    assert (y.dtype, y.tolist()) == (np.float32, [0.5, 0.5])
