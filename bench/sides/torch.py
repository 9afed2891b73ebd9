"""PyTorch, eager: the ``out=`` forms where it has them, `torch.autograd.grad` where a gradient is asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from plugrad.bench.cases import STEP, Case, network
from plugrad.bench.clocks import is_on_gpu

aten = torch.ops.aten


def prepare(case: Case) -> Callable[[], Any]:
    """The case, computed by PyTorch."""
    if case.name == STEP:
        return _step(case)
    arguments = [_tensor(x) for x in case.arguments()]
    if case.name.startswith("linear_cross_entropy"):
        return _layer_with_loss(case, *arguments)
    call: Callable[[], Any] = _allocating(case, *arguments) if case.new else _writing(case, *arguments)
    return call


def to_numpy(x: Any) -> Any:
    """A result in float64, which NumPy has no bfloat16 for, from whatever device."""
    return x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _tensor(x: Any) -> Any:
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.name == "bfloat16":  # PyTorch does not know NumPy's
        tensor = torch.from_numpy(x.view("int16")).view(torch.bfloat16)
    else:
        tensor = torch.as_tensor(x)
    return tensor.cuda() if is_on_gpu() else tensor


def _writing(case: Case, *arguments: Any) -> Callable[[], Any]:
    axis = case.axis
    calls: dict[str, Callable[..., Any]] = {
        "softmax": lambda x, *, out: torch._softmax(x, axis, False, out=out),
        "softmax_backward": lambda dy, y, *, out: aten._softmax_backward_data(dy, y, axis, y.dtype, grad_input=out),
        "log_softmax": lambda x, *, out: torch._log_softmax(x, axis, False, out=out),
        "log_softmax_backward": lambda dy, y, *, out: aten._log_softmax_backward_data(dy, y, axis, y.dtype, out=out),
        "relu": lambda x, *, out: torch.clamp_min(x, 0, out=out),
        "relu_backward": lambda dy, y, *, out: aten.threshold_backward(dy, y, 0, grad_input=out),
        "sigmoid": lambda x, *, out: torch.sigmoid(x, out=out),
        "sigmoid_backward": lambda dy, y, *, out: aten.sigmoid_backward(dy, y, grad_input=out),
        "affine": lambda x, w, b, *, out: torch.addmm(b, x, w, out=out),
    }
    if case.name == "affine_backward":
        dy, x, w = arguments
        dx, dw, db = torch.empty_like(x), torch.empty_like(w), torch.empty_like(dy[0])
        return lambda: (
            torch.mm(dy, w.T, out=dx),
            torch.mm(x.T, dy, out=dw),
            torch.sum(dy, 0, out=db),
        )
    if case.name not in calls:
        return _allocating(case, *arguments)
    out, call = torch.empty_like(_allocating(case, *arguments)()), calls[case.name]
    return lambda: call(*arguments, out=out)


def _allocating(case: Case, *arguments: Any) -> Callable[[], Any]:
    axis = case.axis
    calls: dict[str, Callable[..., Any]] = {
        "softmax": lambda x: torch.softmax(x, axis),
        "softmax_backward": lambda dy, y: aten._softmax_backward_data(dy, y, axis, y.dtype),
        "log_softmax": lambda x: torch.log_softmax(x, axis),
        "log_softmax_backward": lambda dy, y: aten._log_softmax_backward_data(dy, y, axis, y.dtype),
        "relu": torch.relu,
        "relu_backward": lambda dy, y: aten.threshold_backward(dy, y, 0),
        "sigmoid": torch.sigmoid,
        "sigmoid_backward": aten.sigmoid_backward,
        "affine": lambda x, w, b: torch.addmm(b, x, w),
        "affine_backward": lambda dy, x, w: (torch.mm(dy, w.T), torch.mm(x.T, dy), dy.sum(0)),
        "cross_entropy": _cross_entropy,
        "cross_entropy_backward": _gradient_of_cross_entropy,
        "softmax_cross_entropy": lambda x, t: (torch.nn.functional.cross_entropy(x, t), torch.softmax(x, axis)),
        "softmax_cross_entropy_backward": _gradient_of_softmax,
        "softmax_cross_entropy_value_and_grad": _value_and_grad,
    }
    call = calls[case.name]
    return lambda: call(*arguments)


def _cross_entropy(p: Any, t: Any) -> Any:
    return torch.nn.functional.nll_loss(p.log(), t)


def _gradient_of_cross_entropy(dloss: float, p: Any, t: Any) -> Any:
    p.requires_grad_()
    return torch.autograd.grad(_cross_entropy(p, t) * dloss, p)[0]


def _gradient_of_softmax(dloss: float, y: Any, t: Any) -> Any:
    dx = y.clone()
    at = t.unsqueeze(1)
    dx.scatter_(1, at, dx.gather(1, at) - 1)
    return dx.mul_(dloss / t.numel())


def _value_and_grad(x: Any, t: Any) -> Any:
    x.requires_grad_()
    loss = torch.nn.functional.cross_entropy(x, t)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def _layer_with_loss(case: Case, x: Any, w: Any, b: Any, t: Any) -> Callable[[], Any]:
    w = w.T.contiguous()  # as PyTorch has it

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w, b), t)

    if case.name == "linear_cross_entropy":
        return loss
    arguments = [argument.requires_grad_() for argument in (x, w, b)]

    def value_and_grad() -> Any:
        found = loss()
        dx, dw, db = torch.autograd.grad(found, arguments)
        return found.detach(), dx, dw.T, db

    return value_and_grad


def _step(case: Case) -> Callable[[], Any]:
    given = network(case)
    x, t = _tensor(given.x), _tensor(given.t)
    parameters = [_tensor(parameter).requires_grad_() for parameter in given.parameters]
    w1, b1, w2, b2 = parameters

    def step() -> Any:
        h = torch.relu(torch.addmm(b1, x, w1))
        loss = torch.nn.functional.cross_entropy(torch.addmm(b2, h, w2), t)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=given.rate)
        return [parameter.detach() for parameter in parameters]

    return step
