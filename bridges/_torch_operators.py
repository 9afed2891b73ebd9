"""The kernels as custom operators of PyTorch: ``torch.ops.plugrad``.

An operator computes on the memory of its tensors, with the backend that its last argument names. Each has a fake
kernel, by which PyTorch finds shapes without computing, and the operators of forward passes have a gradient.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from plugrad import kernels as K
from plugrad.backends.selection import backend_for
from plugrad.backends.workspace import Workspace, bytes_of
from plugrad.bridges._choices import computes_by_choice

GRADIENTS = ("dx", "dw", "db")
PLAIN = {torch.Tensor, torch.nn.Parameter}
CALLED = {"x": "input", "t": "target", "w": "linear_weight", "b": "linear_bias"}  # the arguments of kernels


# ---------------------------------------------------------------------------------------------------------------------
# Tensors and arrays
# ---------------------------------------------------------------------------------------------------------------------


def _array(tensor: Any) -> Any:
    """The memory of a tensor as an array: NumPy's in host memory, CuPy's on a GPU."""
    if tensor is None:
        return None
    is_bfloat16 = tensor.dtype is torch.bfloat16
    tensor = tensor.detach()
    if is_bfloat16:
        tensor = tensor.view(torch.int16)
    if tensor.is_cuda:
        import cupy

        array = cupy.from_dlpack(tensor)
    else:
        array = tensor.numpy()
    return array.view(_bfloat16()) if is_bfloat16 else array


def _tensor(array: Any) -> Any:
    """The memory of a result as a tensor."""
    if isinstance(array, np.generic):  # a loss
        array = np.asarray(array)
    is_bfloat16 = array.dtype.kind == "V"  # as ml_dtypes defines it
    if is_bfloat16:
        array = array.view(np.int16)
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else torch.from_dlpack(array)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError as error:
        raise TypeError(
            "plugrad.bridges.torch: dtype bfloat16 needs ml-dtypes: python -m pip install ml-dtypes"
        ) from error
    return ml_dtypes.bfloat16


def _on_stream(compute: Callable[..., Any]) -> Callable[..., Any]:
    """`compute`, on a GPU in the order of PyTorch's kernels: on its current stream."""

    @functools.wraps(compute)
    def call(first: Any, *others: Any) -> Any:
        if not first.is_cuda:
            return compute(first, *others)
        import cupy

        stream = torch.cuda.current_stream(first.device)
        with cupy.cuda.ExternalStream(stream.cuda_stream, first.device.index):
            return compute(first, *others)

    return call


# ---------------------------------------------------------------------------------------------------------------------
# Operators and their gradients
# ---------------------------------------------------------------------------------------------------------------------


class Operator:
    """A custom operator of PyTorch with the schema ``name(arguments) -> results``.

    A call with plain tensors goes past PyTorch's dispatcher to the same functions: at 256 rows of 10 classes, the
    dispatcher takes longer than PyTorch's own loss with its gradient.
    """

    def __init__(self, schema: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name, _, rest = schema.partition("(")
        what = f"plugrad.bridges.torch.{self.name.removesuffix('_backward')}"
        self.compute = computes_by_choice(what, _on_stream(compute))
        self.custom: Any = torch.library.custom_op(
            f"plugrad::{self.name}", self.compute, mutates_args=(), schema=f"({rest}"
        )
        self.custom.register_fake(fake)
        self._differentiated: Any = None

    def __call__(self, *arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        if not is_plain(*tensors):
            return self.custom(*arguments)
        if torch.is_grad_enabled() and True in [x.requires_grad for x in tensors]:
            return self._differentiated.apply(*arguments)
        return self.compute(*arguments)

    def set_gradient(self, save: Callable[..., None], backward: Callable[..., tuple[Any, ...]]) -> None:
        """Make it differentiable: `save` keeps tensors in ``ctx`` for `backward`.

        `backward` takes ``ctx`` and the gradient of the first result, and returns those of the first arguments.
        """

        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            # Zeros for results that nothing depends on would cost more than the kernel.
            ctx.set_materialize_grads(False)
            ctx.count = len(inputs)
            ctx.backend = inputs[-1]
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[1:])
            save(ctx, inputs, output)

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = self.compute(*arguments)
            setup_context(ctx, arguments, output)
            return output

        def gradients(ctx: Any, dy: Any, *others: Any) -> tuple[Any, ...]:
            nothing: tuple[Any, ...] = (None,) * ctx.count
            if dy is None:
                return nothing
            with torch.no_grad():
                found = backward(ctx, dy)
            found = tuple([x if needed else None for x, needed in zip(found, ctx.needs_input_grad, strict=False)])
            if torch.is_grad_enabled():
                found = _refuse_second_derivative(self.name, found, (dy, *ctx.saved_tensors))
            return *found, *nothing[len(found) :]

        self.custom.register_autograd(gradients, setup_context=setup_context)
        members = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
        self._differentiated = type(self.name, (torch.autograd.Function,), members)


def is_plain(*tensors: Any) -> bool:
    """Whether nothing but autograd looks at what is done with the tensors: no compiler, transform or mode."""
    return (
        PLAIN.issuperset(map(type, tensors))
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def _refuse_second_derivative(name: str, gradients: tuple[Any, ...], of: tuple[Any, ...]) -> tuple[Any, ...]:
    """The gradients, whose derivative with respect to the tensors `of` which they depend on is an error."""
    present = [gradient for gradient in gradients if gradient is not None]
    depends_on = [x for x in of if x is not None and x.requires_grad]
    passed_on = iter(_NoSecondDerivative.apply(name, len(present), *present, *depends_on))
    return tuple([None if gradient is None else next(passed_on) for gradient in gradients])


class _NoSecondDerivative(torch.autograd.Function):  # type: ignore[misc]
    """Passes gradients on, and refuses to be differentiated with respect to what they depend on."""

    @staticmethod
    def forward(name: str, count: int, *tensors: Any) -> Any:
        return tuple(gradient.view_as(gradient) for gradient in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            f"{ctx.name}: has a first derivative only; call torch.nn.functional.{ctx.name} where a second one is needed"
        )


def _like(x: Any) -> Any:
    return torch.empty_like(x, memory_format=torch.contiguous_format, requires_grad=False)


# ---------------------------------------------------------------------------------------------------------------------
# Elementwise, and along an axis
# ---------------------------------------------------------------------------------------------------------------------


def _of_y(name: str, axis: str) -> Any:
    """The operator of a kernel whose gradient is computed from its result, with or without an axis."""
    forward: Any = getattr(K, name)
    backward: Any = getattr(K, f"{name}_backward")

    def options(given: tuple[Any, ...]) -> dict[str, Any]:
        return {"axis": given[0]} if axis else {}

    def compute(x: Any, *given: Any) -> Any:
        return _tensor(forward(_array(x), **options(given)))

    def compute_backward(dy: Any, y: Any, *given: Any) -> Any:
        return _tensor(backward(_array(dy), _array(y), **options(given)))

    operator = Operator(f"{name}(Tensor x, {axis}str backend) -> Tensor", compute, lambda x, *given: _like(x))
    operator_backward = Operator(
        f"{name}_backward(Tensor dy, Tensor y, {axis}str backend) -> Tensor",
        compute_backward,
        lambda dy, y, *given: _like(y),
    )

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.given = inputs[1:]

    operator.set_gradient(save, lambda ctx, dy: (operator_backward(dy, *ctx.saved_tensors, *ctx.given),))
    for batched, arrays in ((operator, 1), (operator_backward, 2)):
        batched.custom.register_vmap(functools.partial(_over_batch, batched, arrays, bool(axis)))
    return operator


def _over_batch(operator: Any, arrays: int, has_axis: bool, info: Any, in_dims: Any, *arguments: Any) -> Any:
    """`vmap` of an operator: the batch becomes the first axis."""
    tensors = [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(arguments[:arrays], in_dims, strict=False)
    ]
    rest = list(arguments[arrays:])
    if has_axis:
        rest[0] = rest[0] % (tensors[0].ndim - 1) + 1
    return operator(*tensors, *rest), 0


softmax = _of_y("softmax", "int axis, ")
log_softmax = _of_y("log_softmax", "int axis, ")
relu = _of_y("relu", "")
sigmoid = _of_y("sigmoid", "")


# ---------------------------------------------------------------------------------------------------------------------
# Linear
# ---------------------------------------------------------------------------------------------------------------------

# PyTorch's weights are (outputs, inputs), those of the kernels their transpose.


def _linear(x: Any, w: Any, b: Any, backend: str) -> Any:
    return _tensor(K.affine(_array(x), _array(w).T, _array(b)))


def _wanted(x: Any, w: Any, needs: str) -> tuple[Any, ...]:
    """Tensors of the shapes of the gradients of input, weight and bias; without elements where not needed."""
    shapes = {"dx": x.shape, "dw": w.shape, "db": w.shape[:1]}
    return tuple(x.new_empty(shape if name in needs else (0,)) for name, shape in shapes.items())


def _out(w: Any, needs: str) -> tuple[Any, ...]:
    """Where to write ``dx, dw, db``: the weights' gradient in the layout of PyTorch's, the others to new arrays."""
    return None, backend_for(w).empty(w.shape, w.dtype).T if "dw" in needs else None, None


def _as_tensors(x: Any, dx: Any, dw: Any, db: Any) -> tuple[Any, ...]:
    """The gradients as tensors; without elements where not needed."""
    found = dx, None if dw is None else dw.T, db
    return tuple(x.new_empty(0) if gradient is None else _tensor(gradient) for gradient in found)


def _linear_backward(dy: Any, x: Any, w: Any, needs: str, backend: str) -> Any:
    weights = _array(w)
    arrays = _array(dy), _array(x), weights.T
    return _as_tensors(x, *K.affine_backward(*arrays, needs=tuple(needs.split()), out=_out(weights, needs)))


linear = Operator(
    "linear(Tensor x, Tensor w, Tensor? b, str backend) -> Tensor",
    _linear,
    lambda x, w, b, backend: x.new_empty((*x.shape[:-1], w.shape[0])),
)
linear_backward = Operator(
    "linear_backward(Tensor dy, Tensor x, Tensor w, str needs, str backend) -> (Tensor, Tensor, Tensor)",
    _linear_backward,
    lambda dy, x, w, needs, backend: _wanted(x, w, needs),
)


def _save_linear(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _needs(needed: Any) -> str:
    return " ".join(name for name, wanted in zip(GRADIENTS, needed, strict=False) if wanted)


def needs_of(*tensors: Any) -> str:
    """The gradients that a backward pass will ask for, with respect to input, weight and bias."""
    if not torch.is_grad_enabled():
        return ""
    return _needs([x is not None and x.requires_grad for x in tensors])


linear.set_gradient(
    _save_linear,
    lambda ctx, dy: linear_backward(dy, *ctx.saved_tensors, _needs(ctx.needs_input_grad), ctx.backend),
)


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def _scaled(gradients: tuple[Any, ...], dloss: Any) -> tuple[Any, ...]:
    """Gradients of a scalar loss times its own, which is nearly always 1: then no pass over them is needed.

    Where the graph is kept they are copied: the caller may change those of this pass in place.
    """
    is_kept = torch._C._autograd._get_current_graph_task_keep_graph()
    if dloss.device.type == "cpu" and not is_kept and is_plain(dloss) and dloss.item() == 1.0:
        return gradients
    return tuple(gradient * dloss for gradient in gradients)


def _number(dloss: Any) -> Any:
    """The gradient of a loss as the kernels take it: a number, or an array."""
    return _array(dloss) if dloss.ndim or dloss.is_cuda else dloss.item()


def _class_axis(x: Any) -> int:
    return 1 if x.ndim > 1 else 0


def _as_called(error: ValueError, function: str) -> Exception:
    """The error of a kernel, with the names that the function of the bridge has; for wrong labels as PyTorch's."""
    argument, _, rest = str(error).partition(": ")[2].partition(": ")
    is_index = argument == "t" and re.match(r"expected labels in \[0, \d+\)", rest)
    return (IndexError if is_index else ValueError)(f"{function}: {CALLED.get(argument, argument)}: {rest}")


def _has_rounded_gradient(x: Any) -> bool:
    """Whether the gradient of a mean may underflow, and is better computed when that of the loss is known."""
    return x.dtype is torch.float16


def _cross_entropy(
    x: Any, t: Any, weight: Any, ignore_index: Any, label_smoothing: float, reduction: str, backend: str
) -> Any:
    kernel: Any = K.softmax_cross_entropy if _has_rounded_gradient(x) else K.softmax_cross_entropy_value_and_grad
    try:
        loss, rows = kernel(
            _array(x),
            _array(t),
            axis=_class_axis(x),
            weight=_array(weight),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
    except ValueError as error:
        raise _as_called(error, "cross_entropy") from None
    return _tensor(loss), _tensor(rows)


def _cross_entropy_backward(
    dloss: Any, y: Any, t: Any, weight: Any, ignore_index: Any, label_smoothing: float, reduction: str, backend: str
) -> Any:
    dx = K.softmax_cross_entropy_backward(
        _number(dloss),
        _array(y),
        _array(t),
        axis=_class_axis(y),
        weight=_array(weight),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return _tensor(dx)


def _loss_dtype(x: Any) -> Any:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _rows_of(x: Any) -> tuple[Any, ...]:
    axis = _class_axis(x)
    return (*x.shape[:axis], *x.shape[axis + 1 :])


def _fake_loss(x: Any, shape: tuple[Any, ...], reduction: str) -> Any:
    return x.new_empty(shape if reduction == "none" else (), dtype=_loss_dtype(x))


_OPTIONS = "Tensor? weight, int? ignore_index, float label_smoothing, str reduction"

cross_entropy = Operator(
    f"cross_entropy(Tensor x, Tensor t, {_OPTIONS}, str backend) -> (Tensor, Tensor)",
    _cross_entropy,
    lambda x, t, weight, ignore_index, label_smoothing, reduction, backend: (
        _fake_loss(x, _rows_of(x), reduction),
        _like(x),
    ),
)
cross_entropy_backward = Operator(
    f"cross_entropy_backward(Tensor dloss, Tensor y, Tensor t, {_OPTIONS}, str backend) -> Tensor",
    _cross_entropy_backward,
    lambda dloss, y, *given: _like(y),
)


def _save_loss(ctx: Any, inputs: Any, output: Any) -> None:
    """Save the gradient that the forward pass has computed, or the probabilities with the labels.

    And the loss, through which a second derivative would go.
    """
    x, t, *tensors_and_options = inputs
    ctx.is_rounded = _has_rounded_gradient(x)
    ctx.axis = _class_axis(x)
    if ctx.is_rounded:
        weight, *ctx.options = tensors_and_options
        ctx.save_for_backward(*output, t, weight)
    else:
        ctx.save_for_backward(*output)


def _backward_of_loss(ctx: Any, dloss: Any) -> tuple[Any, ...]:
    _, *saved = ctx.saved_tensors
    if ctx.is_rounded:
        return (cross_entropy_backward(dloss, *saved, *ctx.options),)
    (dx,) = saved
    if not dloss.ndim:
        return _scaled((dx,), dloss)
    return ((dx * dloss.unsqueeze(ctx.axis)).to(dx.dtype),)


cross_entropy.set_gradient(_save_loss, _backward_of_loss)


def _binary_cross_entropy(x: Any, t: Any, weight: Any, pos_weight: Any, reduction: str, backend: str) -> Any:
    divisor = _later_divisor(x, reduction)
    kernel: Any = K.sigmoid_cross_entropy_value_and_grad
    options = {"weight": _array(weight), "pos_weight": _array(pos_weight)}
    try:
        loss, dx = kernel(_array(x), _array(t), **options, reduction=reduction if divisor is None else "sum")
    except ValueError as error:
        raise _as_called(error, "binary_cross_entropy_with_logits") from None
    return _tensor(loss if divisor is None else loss / loss.dtype.type(divisor)), _tensor(dx)


def _later_divisor(x: Any, reduction: str) -> Any:
    """By what the gradient of a mean is divided only when that of the loss is known, since it may underflow."""
    return max(1, x.numel()) if reduction == "mean" and _has_rounded_gradient(x) else None


binary_cross_entropy_with_logits = Operator(
    "binary_cross_entropy_with_logits(Tensor x, Tensor t, Tensor? weight, Tensor? pos_weight, str reduction, "
    "str backend) -> (Tensor, Tensor)",
    _binary_cross_entropy,
    lambda x, t, weight, pos_weight, reduction, backend: (_fake_loss(x, x.shape, reduction), _like(x)),
)


def _save_binary_loss(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.divisor = _later_divisor(inputs[0], inputs[4])
    ctx.save_for_backward(*output)


def _backward_of_binary_loss(ctx: Any, dloss: Any) -> tuple[Any, ...]:
    dx = ctx.saved_tensors[1]
    if dloss.ndim:
        return ((dx * dloss).to(dx.dtype),)
    return _scaled((dx,), dloss if ctx.divisor is None else dloss / ctx.divisor)


binary_cross_entropy_with_logits.set_gradient(_save_binary_loss, _backward_of_binary_loss)


def _linear_cross_entropy(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: float,
    reduction: str,
    max_workspace: int,
    needs: str,
    backend: str,
) -> Any:
    weights = _array(w)
    arguments = _array(x), weights.T, _array(b), _array(t)
    options: dict[str, Any] = {
        "weight": _array(weight),
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
        "max_workspace": max_workspace,
    }
    gradients: Any = (None, None, None)
    try:
        if needs:
            options |= {"needs": tuple(needs.split()), "out": (None, *_out(weights, needs))}
            loss, *gradients = K.linear_cross_entropy_value_and_grad(*arguments, **options)
        else:
            loss = K.linear_cross_entropy(*arguments, **options)
    except ValueError as error:
        raise _as_called(error, "linear_cross_entropy") from None
    return _tensor(loss), *_as_tensors(x, *gradients)


def _linear_cross_entropy_backward(
    dloss: Any,
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: float,
    max_workspace: int,
    needs: str,
    backend: str,
) -> Any:
    """The gradients where each row's loss has a gradient of its own, which is the weight of the row in a sum."""
    weights = _array(w)
    _, *gradients = K.linear_cross_entropy_value_and_grad(
        _array(x),
        weights.T,
        _array(b),
        _array(t),
        weight=_array(weight),
        sample_weight=_array(dloss),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum",
        needs=tuple(needs.split()),
        max_workspace=max_workspace,
        out=(None, *_out(weights, needs)),
    )
    return _as_tensors(x, *gradients)


linear_cross_entropy = Operator(
    f"linear_cross_entropy(Tensor x, Tensor w, Tensor? b, Tensor t, {_OPTIONS}, int max_workspace, str needs, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _linear_cross_entropy,
    lambda x, w, b, t, weight, ignore_index, label_smoothing, reduction, max_workspace, needs, backend: (
        _fake_loss(x, x.shape[:-1], reduction),
        *_wanted(x, w, needs),
    ),
)
linear_cross_entropy_backward = Operator(
    "linear_cross_entropy_backward(Tensor dloss, Tensor x, Tensor w, Tensor? b, Tensor t, Tensor? weight, "
    "int? ignore_index, float label_smoothing, int max_workspace, str needs, str backend) -> (Tensor, Tensor, Tensor)",
    _linear_cross_entropy_backward,
    lambda dloss, x, w, b, t, weight, ignore_index, label_smoothing, max_workspace, needs, backend: _wanted(
        x, w, needs
    ),
)


def _save_linear_loss(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ignore_index, label_smoothing, _, max_workspace, needs, _ = inputs
    ctx.is_computed = bool(needs)
    if ctx.is_computed:
        ctx.save_for_backward(*output)
    else:
        ctx.save_for_backward(*tensors)
        ctx.options = ignore_index, label_smoothing, max_workspace


def _backward_of_linear_loss(ctx: Any, dloss: Any) -> tuple[Any, ...]:
    if ctx.is_computed:
        return _scaled(tuple(ctx.saved_tensors[1:]), dloss)
    needs = _needs(ctx.needs_input_grad)
    found: tuple[Any, ...] = linear_cross_entropy_backward(dloss, *ctx.saved_tensors, *ctx.options, needs, ctx.backend)
    return found


linear_cross_entropy.set_gradient(_save_linear_loss, _backward_of_linear_loss)


def workspace_of(size: Any) -> int:
    """The bytes of a workspace."""
    if isinstance(size, Workspace):
        raise TypeError(
            "linear_cross_entropy: max_workspace: expected bytes, or text such as '64MB', got a Workspace, "
            f"which an operator of PyTorch cannot keep from call to call; pass {size.size}"
        )
    return bytes_of("linear_cross_entropy: max_workspace", size)
