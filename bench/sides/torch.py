"""PyTorch, eager: its ``out=`` forms where it has them, `torch.autograd.grad` for the gradients of losses."""

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from plugrad.bench.cases import Case, network, with_options
from plugrad.bench.clocks import is_on_gpu
from plugrad.bench.sizes import STEP
from plugrad.kernels import KERNELS

aten = torch.ops.aten


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by PyTorch."""
    if case.name == STEP:
        return _step(case)
    options = {name: as_tensor(value) for name, value in case.chosen().items()}
    call = partial(FUNCTIONS[case.name], case.axis, *tensors(case), **options)
    if case.new or case.name not in WITH_OUT:
        return call
    return partial(WITH_OUT[case.name], *call.args, **options, out=call())


def to_numpy(x: Any) -> Any:
    """Return a result in float64, since NumPy has no bfloat16, in host memory."""
    return x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def tensors(case: Case) -> list[Any]:
    """Return the arguments as tensors; `functional.linear` takes weights as (outputs, inputs)."""
    found = [as_tensor(x) for x in case.arguments()]
    if "max_workspace" in KERNELS[case.kernel].options:
        at = KERNELS[case.kernel].arguments.index("w")
        found[at] = found[at].T.contiguous()
    return found


def as_tensor(x: Any) -> Any:
    """Return an array as a tensor, and a number as it is."""
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.name == "bfloat16":  # PyTorch does not take the dtype of ml_dtypes
        tensor = torch.from_numpy(x.view("int16")).view(torch.bfloat16)
    else:
        tensor = torch.as_tensor(x)
    return tensor.cuda() if is_on_gpu() else tensor


def _cross_entropy(axis: int, p: Any, t: Any) -> Any:
    return functional.nll_loss(p.log(), t)


def _cross_entropy_backward(axis: int, dloss: float, p: Any, t: Any) -> Any:
    p.requires_grad_()
    return torch.autograd.grad(_cross_entropy(axis, p, t) * dloss, p)[0]


def _softmax_cross_entropy_backward(axis: int, dloss: float, y: Any, t: Any) -> Any:
    dx = y.clone()
    at = t.unsqueeze(1)
    dx.scatter_(1, at, dx.gather(1, at) - 1)
    return dx.mul_(dloss / t.numel())


def _of_logits(
    axis: int, x: Any, t: Any, sample_weight: Any = None, z_loss: float = 0.0, ignore_index: int = -100
) -> Any:
    """Softmax cross-entropy, with the options that PyTorch lacks composed of its functions."""
    if sample_weight is None:
        loss = functional.cross_entropy(x, t, ignore_index=ignore_index)
    else:
        loss = (functional.cross_entropy(x, t, reduction="none") * sample_weight).sum() / sample_weight.sum()
    return loss + z_loss * (torch.logsumexp(x, axis) ** 2).mean() if z_loss else loss


def _softmax_cross_entropy(axis: int, x: Any, t: Any, **options: Any) -> Any:
    return _of_logits(axis, x, t, **options), torch.softmax(x, axis)


def _softmax_cross_entropy_value_and_grad(axis: int, x: Any, t: Any, **options: Any) -> Any:
    x.requires_grad_()
    loss = _of_logits(axis, x, t, **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def _sigmoid_cross_entropy(axis: int, x: Any, t: Any, **options: Any) -> Any:
    return functional.binary_cross_entropy_with_logits(x, t, **options), torch.sigmoid(x)


def _sigmoid_cross_entropy_value_and_grad(axis: int, x: Any, t: Any, **options: Any) -> Any:
    x.requires_grad_()
    loss = functional.binary_cross_entropy_with_logits(x, t, **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def _linear_cross_entropy(
    axis: int, x: Any, w: Any, b: Any, t: Any, softcap: float | None = None, **options: Any
) -> Any:
    z = functional.linear(x, w, b)
    return _of_logits(axis, z if softcap is None else softcap * torch.tanh(z / softcap), t, **options)


def _linear_cross_entropy_value_and_grad(axis: int, x: Any, w: Any, b: Any, t: Any, **options: Any) -> Any:
    for tensor in (x, w, b):
        tensor.requires_grad_()
    loss = _linear_cross_entropy(axis, x, w, b, t, **options)
    dx, dw, db = torch.autograd.grad(loss, (x, w, b))
    return loss.detach(), dx, dw.T, db


@cache
def _mask(shape: tuple[int, ...], device: Any) -> Any:
    """The mask that the forward pass of dropout has stored."""
    return torch.rand(shape, device=device) < 0.5


# Of both tables, the first argument is the axis of the classes.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": lambda axis, x: torch.softmax(x, axis),
    "softmax_backward": lambda axis, dy, y: aten._softmax_backward_data(dy, y, axis, y.dtype),
    "log_softmax": lambda axis, x: torch.log_softmax(x, axis),
    "log_softmax_backward": lambda axis, dy, y: aten._log_softmax_backward_data(dy, y, axis, y.dtype),
    "relu": lambda axis, x: torch.relu(x),
    "relu_backward": lambda axis, dy, y: aten.threshold_backward(dy, y, 0),
    "leaky_relu": lambda axis, x: functional.leaky_relu(x),
    "leaky_relu_backward": lambda axis, dy, x: aten.leaky_relu_backward(dy, x, 0.01, False),
    "silu": lambda axis, x: functional.silu(x),
    "silu_backward": lambda axis, dy, x: aten.silu_backward(dy, x),
    "gelu": lambda axis, x: functional.gelu(x),
    "gelu_backward": lambda axis, dy, x: aten.gelu_backward(dy, x),
    "gelu+tanh": lambda axis, x, approximate: functional.gelu(x, approximate=approximate),
    "gelu_backward+tanh": lambda axis, dy, x, approximate: aten.gelu_backward(dy, x, approximate=approximate),
    "tanh": lambda axis, x: torch.tanh(x),
    "tanh_backward": lambda axis, dy, y: aten.tanh_backward(dy, y),
    "dropout": lambda axis, x: functional.dropout(x, 0.5),
    "dropout_backward": lambda axis, dy: aten.native_dropout_backward(dy, _mask(tuple(dy.shape), dy.device), 2.0),
    "sigmoid": lambda axis, x: torch.sigmoid(x),
    "sigmoid_backward": lambda axis, dy, y: aten.sigmoid_backward(dy, y),
    "affine": lambda axis, x, w, b: torch.addmm(b, x, w),
    "affine_backward": lambda axis, dy, x, w: (torch.mm(dy, w.T), torch.mm(x.T, dy), dy.sum(0)),
    "cross_entropy": _cross_entropy,
    "cross_entropy_backward": _cross_entropy_backward,
    **with_options("softmax_cross_entropy", _softmax_cross_entropy),
    "softmax_cross_entropy_backward": _softmax_cross_entropy_backward,
    **with_options("softmax_cross_entropy_value_and_grad", _softmax_cross_entropy_value_and_grad),
    **with_options("sigmoid_cross_entropy", _sigmoid_cross_entropy),
    "sigmoid_cross_entropy_backward": lambda axis, dloss, y, t: (y - t).mul_(dloss / t.numel()),
    **with_options("sigmoid_cross_entropy_value_and_grad", _sigmoid_cross_entropy_value_and_grad),
    "top_k_accuracy": lambda axis, x, t, k: (x.topk(k, axis).indices == t.unsqueeze(axis)).any(axis).double().mean(),
    "linear_top_k": lambda axis, x, w, b, k: tuple(functional.linear(x, w, b).topk(k)),
    **with_options("linear_cross_entropy", _linear_cross_entropy),
    **with_options("linear_cross_entropy_value_and_grad", _linear_cross_entropy_value_and_grad),
}
WITH_OUT: dict[str, Callable[..., Any]] = {
    "softmax": lambda axis, x, *, out: torch._softmax(x, axis, False, out=out),
    "softmax_backward": lambda axis, dy, y, *, out: aten._softmax_backward_data(dy, y, axis, y.dtype, grad_input=out),
    "log_softmax": lambda axis, x, *, out: torch._log_softmax(x, axis, False, out=out),
    "log_softmax_backward": lambda axis, dy, y, *, out: aten._log_softmax_backward_data(dy, y, axis, y.dtype, out=out),
    "relu": lambda axis, x, *, out: torch.clamp_min(x, 0, out=out),
    "relu_backward": lambda axis, dy, y, *, out: aten.threshold_backward(dy, y, 0, grad_input=out),
    "leaky_relu": lambda axis, x, *, out: aten.leaky_relu(x, out=out),
    "leaky_relu_backward": lambda axis, dy, x, *, out: aten.leaky_relu_backward(dy, x, 0.01, False, grad_input=out),
    "silu": lambda axis, x, *, out: aten.silu(x, out=out),
    "silu_backward": lambda axis, dy, x, *, out: aten.silu_backward(dy, x, grad_input=out),
    "gelu": lambda axis, x, *, out: aten.gelu(x, out=out),
    "gelu_backward": lambda axis, dy, x, *, out: aten.gelu_backward(dy, x, grad_input=out),
    "gelu+tanh": lambda axis, x, *, approximate, out: aten.gelu(x, approximate=approximate, out=out),
    "gelu_backward+tanh": lambda axis, dy, x, *, approximate, out: aten.gelu_backward(
        dy, x, approximate=approximate, grad_input=out
    ),
    "tanh": lambda axis, x, *, out: torch.tanh(x, out=out),
    "tanh_backward": lambda axis, dy, y, *, out: aten.tanh_backward(dy, y, grad_input=out),
    "sigmoid": lambda axis, x, *, out: torch.sigmoid(x, out=out),
    "sigmoid_backward": lambda axis, dy, y, *, out: aten.sigmoid_backward(dy, y, grad_input=out),
    "affine": lambda axis, x, w, b, *, out: torch.addmm(b, x, w, out=out),
    "affine_backward": lambda axis, dy, x, w, *, out: (
        torch.mm(dy, w.T, out=out[0]),
        torch.mm(x.T, dy, out=out[1]),
        torch.sum(dy, 0, out=out[2]),
    ),
}
NAMES: Collection[str] = (*FUNCTIONS, STEP)


def loss_of_network(parameters: Sequence[Any], x: Any, t: Any) -> Any:
    """Return the loss of the network of a step of training."""
    w1, b1, w2, b2 = parameters
    h = torch.relu(torch.addmm(b1, x, w1))
    return functional.cross_entropy(torch.addmm(b2, h, w2), t)


def _step(case: Case) -> Callable[[], Any]:
    given = network(case)
    x, t = as_tensor(given.x), as_tensor(given.t)
    parameters = [as_tensor(parameter).requires_grad_() for parameter in given.parameters]

    def step() -> Any:
        gradients = torch.autograd.grad(loss_of_network(parameters, x, t), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=given.rate)
        return [parameter.detach() for parameter in parameters]

    return step
