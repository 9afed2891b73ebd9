"""Tensors of PyTorch in host memory, seen as NumPy arrays without a copy.

PyTorch is not imported here: whoever passes a tensor has imported it.
"""

import importlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt


def is_tensor(x: Any) -> bool:
    """Whether `x` is a tensor of PyTorch, of a subclass too."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def seen_by_numpy(what: str, x: Any) -> npt.NDArray[Any]:
    """The tensor `x`, called `what` in messages, as a NumPy array in the same memory."""
    torch: Any = sys.modules["torch"]
    if (problem := _problem(torch, x)) is not None:
        raise TypeError(f"{what}: expected a plain tensor in host memory, got {problem}")
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(_bfloat16(what))  # type: ignore[no-any-return]
    return x.numpy()  # type: ignore[no-any-return]


def _problem(torch: Any, x: Any) -> str | None:
    """What keeps NumPy from the memory of a tensor, and the call that helps; None if nothing does."""
    if x.requires_grad:
        return (
            "one that requires grad; call its .detach() first, or plugrad.bridges.torch, whose functions have gradients"
        )
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return f"the subclass {type(x).__module__}.{type(x).__qualname__}; call its .as_subclass(torch.Tensor) first"
    if x.layout is not torch.strided:
        return f"one of layout {x.layout}; call its .to_dense() first"
    if x.device.type == "meta":
        return "one on the device meta, which has no data"
    if x.device.type != "cpu":
        return f"one on the device {x.device}; call its .cpu() first, or select the backend that computes there"
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
