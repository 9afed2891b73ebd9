"""Tensors of PyTorch and arrays of JAX as arguments: read where they are, without a copy."""

import importlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import pytest

from plugrad import backends, kernels as K
from plugrad.backends import host

pytestmark = pytest.mark.slow

DTYPES = ("float16", "bfloat16", "float32", "float64", "int64")


@pytest.fixture
def torch() -> Any:
    return importlib.import_module("torch")


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_read_where_it_is(torch: Any, dtype: str) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype)).T
    x = host.take("x", tensor)
    assert x.ctypes.data == tensor.data_ptr()
    assert x.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert x.shape == (4, 3)
    assert x.astype(float).tolist() == tensor.tolist()
    assert backends.to_numpy(tensor).ctypes.data == tensor.data_ptr()


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_kernels_take_tensors(torch: Any, dtype: str) -> None:
    x = torch.linspace(-2, 2, 12).reshape(3, 4).to(getattr(torch, dtype))
    t, weight = torch.tensor([0, 3, 1]), torch.tensor([1.0, 2, 3, 4])
    seen = host.take("x", x)
    with backends.use("numpy"):
        loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, weight=weight)
        expected, expected_dx = K.softmax_cross_entropy_value_and_grad(seen, t.numpy(), weight=weight.numpy())
        assert K.softmax(x).tobytes() == K.softmax(seen).tobytes()
    assert loss == expected
    assert dx.tobytes() == expected_dx.tobytes()


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.requires_grad_(), r"requires grad; call its \.detach\(\) first, or plugrad\.bridges\.torch"),
        (lambda x: x.to_sparse(), r"layout torch\.sparse_coo; call its \.to_dense\(\)"),
        (lambda x: x.to("meta"), "device meta, which has no data"),
        (lambda x: x.to(dtype=_torch().complex64), r"dtype torch\.complex64; take its \.real"),
        (lambda x: _torch().complex(x, x).conj().imag, r"a negated view; call its \.resolve_neg\(\)"),
        (lambda x: _torch().nn.Parameter(x), "requires grad"),
        (lambda x: x.as_subclass(type("Named", (_torch().Tensor,), {})), r"subclass .*Named; call its \.as_subclass"),
    ],
    ids=["grad", "sparse", "meta", "complex", "negated", "parameter", "subclass"],
)
def test_other_tensors_are_refused(torch: Any, make: Callable[[Any], Any], message: str) -> None:
    with backends.use("numpy"), pytest.raises(TypeError, match=f"relu: x: expected a plain tensor.*{message}"):
        K.relu(make(torch.ones(2, 3)))
    with pytest.raises(TypeError, match=f"to_numpy: x: expected a plain tensor.*{message}"):
        backends.to_numpy(make(torch.ones(2, 3)))


@pytest.mark.needs("torch")
def test_a_parameter_without_grad_is_taken(torch: Any) -> None:
    x = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert host.take("x", x).ctypes.data == x.data_ptr()


@pytest.mark.needs("jax")
@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_an_array_of_jax_is_read_where_it_is(dtype: str) -> None:
    jax = importlib.import_module("jax")
    jnp = jax.numpy
    with jax.enable_x64(True):
        array = jnp.linspace(-2, 2, 12, dtype=dtype).reshape(3, 4)
    x = host.take("x", array)
    assert x.ctypes.data == array.unsafe_buffer_pointer()
    assert x.dtype == array.dtype


def _torch() -> Any:
    import torch

    return torch
