"""Tensors of PyTorch and arrays of JAX, seen as arrays of NumPy or CuPy without a copy.

Neither library is imported here: a caller that passes an array has imported its library.
"""

import importlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt


def is_tensor(x: Any) -> bool:
    """Whether `x` is a tensor of PyTorch, of a subclass too."""
    return is_tensor_type(type(x))


def is_tensor_type(kind: type) -> bool:
    """Whether `kind` is the type of PyTorch's tensors, or a subclass."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # absent while PyTorch is being imported
    return tensor is not None and issubclass(kind, tensor)


def place(x: Any) -> tuple[Any, ...]:
    """Where and how the tensor `x` lies in memory."""
    return x.data_ptr(), tuple(x.shape), x.stride(), x.dtype


def seen_by_numpy(what: str, x: Any) -> npt.NDArray[Any]:
    """The tensor `x`, called `what` in messages, as a NumPy array in the same memory."""
    torch: Any = sys.modules["torch"]
    problem = _problem(torch, x)
    if problem is None and x.device.type != "cpu":
        problem = f"one on the device {x.device}; call its .cpu() first, or select the backend that computes there"
    if problem is not None:
        raise TypeError(f"{what}: expected a plain tensor in host memory, got {problem}")
    try:
        array: npt.NDArray[Any] = (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()
    except RuntimeError as error:
        raise TypeError(
            f"{what}: expected a plain tensor in host memory, got one without memory of its own: {error}; inside "
            f"torch.func.vmap and its like call plugrad.bridges.torch"
        ) from error
    return array.view(_bfloat16(what)) if x.dtype is torch.bfloat16 else array


def seen_by_cupy(what: str, x: Any, cupy: Any) -> Any:
    """The tensor `x` on a GPU, called `what` in messages, as an array of the module `cupy` in the same memory."""
    torch: Any = sys.modules["torch"]
    problem = _problem(torch, x)
    if problem is None and not x.is_cuda:
        problem = f"one on the device {x.device}; call its .cuda() first, or select a backend that computes there"
    if problem is not None:
        raise TypeError(f"{what}: expected a plain tensor on a GPU, got {problem}")
    if x.dtype is torch.bfloat16:
        return cupy.from_dlpack(x.view(torch.int16)).view(_bfloat16(what))
    return cupy.from_dlpack(x)


def problem_of_jax(x: Any) -> str | None:
    """Why a kernel cannot read `x`, an array of JAX, and the call that helps; None if it can."""
    jax: Any = sys.modules.get("jax")
    kind: Any = getattr(jax, "Array", None)  # absent while JAX is being imported
    if kind is None or not isinstance(x, kind):
        return None
    if isinstance(x, jax.core.Tracer):
        return "a tracer of JAX, which has no data; inside jax.jit, jax.grad and jax.vmap call plugrad.bridges.jax"
    if x.is_deleted():
        return "a JAX array that was deleted or donated; pass a copy to the function that it was donated to"
    if len(x.devices()) > 1:
        return f"a JAX array spread over {len(x.devices())} devices; call jax.device_put(x, device) first"
    return None


def _problem(torch: Any, x: Any) -> str | None:
    """Why a kernel cannot read a tensor, and the call that helps; None if it can."""
    if x.requires_grad:
        return (
            "one that requires grad; call its .detach() first, or the functions of plugrad.bridges.torch, "
            "which have gradients"
        )
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return f"the subclass {type(x).__module__}.{type(x).__qualname__}; call its .as_subclass(torch.Tensor) first"
    if x.layout is not torch.strided:
        return f"one of layout {x.layout}; call its .to_dense() first"
    if x.device.type == "meta":
        return "one on the device meta, which has no data"
    if x.is_quantized:
        return "a quantised one; call its .dequantize() first"
    if x.is_complex():
        return f"one of dtype {x.dtype}; take its .real or .imag"
    if x.is_neg():
        return "a negated view; call its .resolve_neg() first"
    return None


def _bfloat16(what: str) -> np.dtype[Any]:
    try:
        bfloat16: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise TypeError(f"{what}: dtype bfloat16 needs ml-dtypes: python -m pip install ml-dtypes") from None
    return bfloat16
