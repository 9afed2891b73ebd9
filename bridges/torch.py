"""The kernels as functions of PyTorch tensors, in place of those of `torch.nn.functional`.

They take and return tensors and are differentiable once, on the backend that plugrad has in force when they are called:
tensors in host memory are computed by NumPy or Numba, those on an NVIDIA GPU by CuPy. Nothing is copied. Each is a
custom operator, so that ``torch.compile(fullgraph=True)`` works; a compiled function keeps the backend with which it
was traced. A second derivative is a `NotImplementedError`.

Examples
--------
>>> import torch
>>> from plugrad.bridges import torch as F
>>> logits = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)
>>> loss = F.cross_entropy(logits, torch.tensor([0]))
>>> loss.backward()
>>> f"{loss.item():.4g}", f"{torch.nn.functional.cross_entropy(logits, torch.tensor([0])).item():.4g}"
('4.122e-09', '0')
"""

from typing import Any

import torch
from torch.autograd import forward_ad

from plugrad.bridges import _choices, _torch_operators as operators

__all__ = [
    "CrossEntropyLoss",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "relu",
    "sigmoid",
    "softmax",
]

IGNORED = -100  # the label that PyTorch ignores
DEVICES = ("cpu", "cuda")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("mean", "sum", "none")

_in_force = torch.compiler.assume_constant_result(_choices.in_force)


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _check(function: str, **tensors: Any) -> None:
    """Refuse what is no plain tensor of real numbers, or lies on another device than the first; None passes."""
    device = None
    for name, x in tensors.items():
        if x is None:
            continue
        what = f"{function}: {name}"
        if not isinstance(x, torch.Tensor):
            raise TypeError(
                f"{what}: expected a torch.Tensor, got {type(x).__name__}; call torch.as_tensor on it first"
            )
        if x.is_quantized:
            raise TypeError(f"{what}: expected a tensor of plain numbers, got a quantised one; call its .dequantize()")
        if x.is_nested:
            raise TypeError(f"{what}: expected a dense tensor, got a nested one; call its .to_padded_tensor(0.0) first")
        if x.layout is not torch.strided:
            raise TypeError(f"{what}: expected a dense tensor, got layout {x.layout}; call its .to_dense() first")
        if x.is_complex():
            raise TypeError(f"{what}: expected real numbers, got dtype {x.dtype}; kernels compute on real ones only")
        if x.is_floating_point() and x.dtype not in FLOATING:
            raise TypeError(
                f"{what}: expected float16, bfloat16, float32 or float64, got {x.dtype}; call its .float() first"
            )
        if not torch.compiler.is_compiling() and x.is_neg():  # Dynamo cannot trace it
            raise TypeError(
                f"{what}: expected numbers as they lie in memory, got a negated view; call its .resolve_neg()"
            )
        if x.device.type not in DEVICES:
            raise TypeError(
                f"{what}: expected a tensor in host memory or on an NVIDIA GPU, got one on {x.device}; "
                f"call its .to('cpu') first"
            )
        if x.requires_grad and torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                f"{what}: torch.func cannot differentiate custom operators; call .backward(), torch.autograd.grad, or "
                f"torch.nn.functional.{function}"
            )
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{what}: there is no forward-mode derivative; call .backward() or torch.autograd.grad, or "
                f"torch.nn.functional.{function}"
            )
        if device is None:
            device, first = x.device, name
        elif x.device != device:
            raise TypeError(f"{what}: expected a tensor on {device}, as {first} is, got one on {x.device}; move one")


def _check_floating(function: str, **tensors: Any) -> None:
    """Refuse tensors of integers, and two dtypes."""
    dtype = None
    for name, x in tensors.items():
        if x is None:
            continue
        if not x.is_floating_point():
            raise TypeError(f"{function}: {name}: expected a floating dtype, got {x.dtype}; call its .float() first")
        if dtype is None:
            dtype, first = x.dtype, name
        elif x.dtype != dtype:
            raise TypeError(
                f"{function}: {name}: expected {dtype}, the dtype of {first}, got {x.dtype}; call its .to({dtype})"
            )


def _check_constant(function: str, **tensors: Any) -> None:
    """Refuse tensors with respect to which there is no gradient, but which require one."""
    for name, x in tensors.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                f"{function}: {name}: expected a tensor that needs no gradient, got one that requires grad; call its "
                f".detach(), or torch.nn.functional.{function}, which differentiates it"
            )


def _axis(function: str, dim: Any, ndim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int | torch.SymInt):
        raise TypeError(f"{function}: dim: expected an integer, got {dim!r}")
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(f"{function}: dim: expected one in [{-max(ndim, 1)}, {max(ndim, 1)}), got {dim}")
    return dim % max(ndim, 1)


def _ignored(function: str, ignore_index: Any) -> int:
    if isinstance(ignore_index, int) and not isinstance(ignore_index, bool):  # and numbers that Dynamo traces
        return ignore_index
    if isinstance(ignore_index, bool) or not hasattr(ignore_index, "__index__"):
        raise TypeError(f"{function}: ignore_index: expected an integer, got {ignore_index!r}")
    return int(ignore_index)


def _smoothing(function: str, label_smoothing: Any) -> float:
    if isinstance(label_smoothing, float):  # and numbers that Dynamo traces
        return label_smoothing
    if isinstance(label_smoothing, torch.Tensor):
        _check_constant(function, label_smoothing=label_smoothing)
    if not hasattr(label_smoothing, "__float__"):
        raise TypeError(f"{function}: label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    return float(label_smoothing)


def _reduction(function: str, size_average: Any, reduce: Any, reduction: Any) -> str:
    """The reduction, which two deprecated arguments of PyTorch override."""
    if size_average is not None or reduce is not None:
        if reduce is not None and not reduce:
            return "none"
        return "mean" if size_average is None or size_average else "sum"
    if reduction not in REDUCTIONS:
        raise ValueError(f"{function}: reduction: expected one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return str(reduction)


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """The arguments of a matrix product in the dtype of autocast, if it is on."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x if x is None or x.dtype in (dtype, torch.float64) else x.to(dtype) for x in tensors)


def _as_input(loss: Any, x: Any) -> Any:
    """The loss in the dtype of `x`, as in PyTorch; under autocast in float32."""
    is_given = loss.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)
    return loss if is_given else loss.to(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------------


def softmax(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """Softmax along `dim`, ``y_j = exp(x_j) / sum_k exp(x_k)``; see `plugrad.kernels.softmax`.

    Parameters
    ----------
    input : torch.Tensor
        Logits of any shape; float16, bfloat16, float32 or float64.
    dim : int
        The axis of the classes.
    dtype : torch.dtype, optional
        A dtype to convert `input` to first.

    Returns
    -------
    torch.Tensor
        Probabilities of the shape of `input`, in its dtype or `dtype`.

    Raises
    ------
    TypeError
        If `input` is no tensor of these dtypes, is sparse or quantised, a negated view, or lies on a device that is
        neither the host nor an NVIDIA GPU.
    IndexError
        If `dim` is out of range.
    NotImplementedError
        For a second derivative.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> F.softmax(torch.zeros(2, 4), dim=1)[0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return _along_axis("softmax", operators.softmax, input, dim, dtype)


def log_softmax(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """Logarithm of `softmax` along `dim`; see `plugrad.kernels.log_softmax`.

    Parameters, results and errors are those of `softmax`.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> F.log_softmax(torch.zeros(1, 2), dim=1)
    tensor([[-0.6931, -0.6931]])
    """
    return _along_axis("log_softmax", operators.log_softmax, input, dim, dtype)


def _along_axis(function: str, operator: Any, input: Any, dim: Any, dtype: Any) -> Any:
    _check(function, input=input)
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{function}: dtype: expected a torch.dtype or None, got {dtype!r}")
        input = input.to(dtype)
    _check_floating(function, input=input)
    axis = _axis(function, dim, input.ndim)
    if not input.ndim:
        return operator(input.unsqueeze(0), axis, _in_force()).squeeze(0)
    return operator(input, axis, _in_force())


def relu(input: Any) -> Any:
    """``max(x, 0)``; see `plugrad.kernels.relu`.

    Parameters, results and errors are those of `softmax`, but for the axis.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> F.relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    return _elementwise("relu", operators.relu, input)


def sigmoid(input: Any) -> Any:
    """``1 / (1 + exp(-x))``; see `plugrad.kernels.sigmoid`.

    Parameters, results and errors are those of `softmax`, but for the axis.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> F.sigmoid(torch.zeros(1))
    tensor([0.5000])
    """
    return _elementwise("sigmoid", operators.sigmoid, input)


def _elementwise(function: str, operator: Any, input: Any) -> Any:
    _check(function, input=input)
    _check_floating(function, input=input)
    return operator(input, _in_force())


def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """``y = x w^T + b``, with the weights as (outputs, inputs); see `plugrad.kernels.affine`.

    Parameters
    ----------
    input : torch.Tensor
        Shape ``(..., inputs)``.
    weight : torch.Tensor
        Shape ``(outputs, inputs)``, or ``(inputs,)`` for one output without an axis.
    bias : torch.Tensor, optional
        Shape ``(outputs,)``, or ``()``.

    Returns
    -------
    torch.Tensor
        Shape ``(..., outputs)``, or ``(...)``. Under autocast the arguments are cast first, as PyTorch does.

    Raises
    ------
    TypeError
        As for `softmax`, and if the dtypes or the devices differ.
    ValueError
        If the shapes do not fit.
    NotImplementedError
        For a second derivative.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> F.linear(torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([10.0]))
    tensor([[13.]])
    """
    _check("linear", input=input, weight=weight, bias=bias)
    input, weight, bias = _autocast(input, weight, bias)
    _check_floating("linear", input=input, weight=weight, bias=bias)
    if weight.ndim == 1:
        bias = None if bias is None else bias.reshape(1)
        return linear(input, weight.unsqueeze(0), bias).squeeze(-1)
    if weight.ndim != 2 or not input.ndim or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: weight: expected shape (outputs, inputs) with the inputs of input, shape {tuple(input.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias: expected shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    return operators.linear(input, weight, bias, _in_force())


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = IGNORED,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Cross-entropy of the softmax of logits, in place of `torch.nn.functional.cross_entropy`.

    The forward pass computes the gradient too, in one pass over the logits; see
    `plugrad.kernels.softmax_cross_entropy_value_and_grad` for the formulas and the accuracy.

    Parameters
    ----------
    input : torch.Tensor
        Logits, shape ``(classes,)``, ``(rows, classes)`` or ``(rows, classes, d_1, ..., d_k)``.
    target : torch.Tensor
        Class indices of any integer dtype, of the shape of `input` without the classes; or probabilities, of the
        shape of `input`.
    weight : torch.Tensor, optional
        One weight per class.
    size_average, reduce : bool, optional
        Deprecated in PyTorch: they override `reduction`.
    ignore_index : int
        Rows with this label add nothing, and get a gradient of zeros. For class indices only.
    reduction : {"mean", "sum", "none"}
        As in PyTorch, but where nothing counts a mean is 0, not NaN.
    label_smoothing : float
        In [0, 1].

    Returns
    -------
    torch.Tensor
        The loss, in the dtype of `input`; under autocast in float32.

    Raises
    ------
    TypeError
        As for `softmax`.
    ValueError
        If a shape or an option is wrong.
    IndexError
        If a label lies outside ``[0, classes)`` and is not `ignore_index`. On a GPU that row's loss is NaN instead.
    NotImplementedError
        If `target` or `weight` requires grad, and for a second derivative.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> logits = torch.zeros(3, 2, requires_grad=True)
    >>> F.cross_entropy(logits, torch.tensor([0, 1, -100])).backward()
    >>> logits.grad.tolist()
    [[-0.25, 0.25], [0.25, -0.25], [0.0, 0.0]]
    """
    name = "cross_entropy"
    _check(name, input=input, target=target, weight=weight)
    _check_floating(name, input=input)
    _check_constant(name, target=target, weight=weight)
    reduction = _reduction(name, size_average, reduce, reduction)
    if not input.ndim:
        raise ValueError(f"{name}: input: expected shape (classes,) or (rows, classes, ...), got a single number")
    axis = 1 if input.ndim > 1 else 0
    rows = (*input.shape[:axis], *input.shape[axis + 1 :])
    given = None if ignore_index is None or ignore_index == IGNORED else _ignored(name, ignore_index)
    ignored = _check_target(name, target, input.shape, rows, given)
    _check_weight(name, weight, input.shape[axis])
    smoothing = _smoothing(name, label_smoothing)
    loss = operators.cross_entropy(input, target, weight, ignored, smoothing, reduction, _in_force())[0]
    return _as_input(loss, input)


def _check_target(name: str, target: Any, logits: Any, rows: Any, ignore_index: Any) -> int | None:
    """Refuse labels that are neither class indices nor probabilities, and return the label that is ignored.

    A single number of classes without rows may be both: then the dtype tells.
    """
    if tuple(target.shape) == tuple(logits) and target.is_floating_point():
        if ignore_index is not None and ignore_index >= 0:
            raise ValueError(f"{name}: ignore_index: expected none beside probabilities, got {ignore_index}")
        return None
    if tuple(target.shape) != tuple(rows):
        raise ValueError(
            f"{name}: target: expected class indices of shape {tuple(rows)} or probabilities of shape {tuple(logits)}, "
            f"got {target.dtype} of shape {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.dtype is torch.bool:
        raise TypeError(f"{name}: target: expected class indices of an integer dtype, got {target.dtype}")
    return IGNORED if ignore_index is None else ignore_index


def _check_weight(name: str, weight: Any, classes: Any) -> None:
    if weight is None:
        return
    _check_floating(name, weight=weight)
    if tuple(weight.shape) != (classes,):
        raise ValueError(f"{name}: weight: expected one per class, shape {(classes,)}, got {tuple(weight.shape)}")


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Any:
    """Cross-entropy of the sigmoid of logits, in place of `torch.nn.functional.binary_cross_entropy_with_logits`.

    The forward pass computes the gradient too; see `plugrad.kernels.sigmoid_cross_entropy_value_and_grad`.

    Parameters
    ----------
    input : torch.Tensor
        Logits of any shape.
    target : torch.Tensor
        Labels in [0, 1], of the shape of `input`.
    weight, pos_weight : torch.Tensor, optional
        Weights of the elements, and of the part of each label that is 1; they broadcast to `input`.
    size_average, reduce, reduction
        As for `cross_entropy`.

    Returns
    -------
    torch.Tensor
        The loss, in the dtype of `input`; under autocast in float32.

    Raises
    ------
    TypeError
        As for `softmax`.
    ValueError
        If a shape or an option is wrong, or a label lies outside [0, 1]. On a GPU that element's loss is NaN instead.
    NotImplementedError
        If `target` or a weight requires grad, and for a second derivative.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> F.binary_cross_entropy_with_logits(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0]))
    tensor(0.6931)
    """
    name = "binary_cross_entropy_with_logits"
    _check(name, input=input, target=target, weight=weight, pos_weight=pos_weight)
    _check_floating(name, input=input)
    _check_constant(name, target=target, weight=weight, pos_weight=pos_weight)
    reduction = _reduction(name, size_average, reduce, reduction)
    if target.shape != input.shape:
        raise ValueError(
            f"{name}: target: expected the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    loss = operators.binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction, _in_force())[0]
    return _as_input(loss, input)


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: None = None,
    max_workspace: int | str = "64MB",
) -> Any:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)``, the logits never held whole.

    In place of `torch.nn.functional.linear_cross_entropy`; see `plugrad.kernels.linear_cross_entropy_value_and_grad`.

    Parameters
    ----------
    input : torch.Tensor
        Shape ``(inputs,)`` or ``(rows, inputs)``.
    linear_weight : torch.Tensor
        Shape ``(classes, inputs)``. With ``(classes, d_1, ..., d_k, inputs)`` the logits are held whole.
    target : torch.Tensor
        Class indices of shape ``()`` or ``(rows,)``, or probabilities of the shape of the logits; with ``d_1, ...,
        d_k`` at the end, if the weights have them.
    linear_bias : torch.Tensor, optional
        Shape ``(classes,)``, with ``d_1, ..., d_k`` at the end, if the weights have them.
    weight, reduction, label_smoothing
        As for `cross_entropy`.
    ignore_index : int, optional
        As for `cross_entropy`; None means -100.
    options : None
        PyTorch's choice of chunks; `max_workspace` takes its place.
    max_workspace : int or str
        How much memory the call may use beside its arguments and results: bytes, or text such as ``"64MB"``.

    Returns
    -------
    torch.Tensor
        The loss, in the dtype of `input`; under autocast, which casts the arguments, in float32.

    Raises
    ------
    TypeError, ValueError, IndexError, NotImplementedError
        As for `linear` and `cross_entropy`, if `options` is not None, and if `max_workspace` is no size or too small
        for one row.

    Notes
    -----
    A mean or a sum computes its gradients in the forward pass. With ``reduction="none"`` the backward pass computes the
    logits again. The gradients of a float16 mean over many rows may underflow: ``reduction="sum"`` keeps them.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges import torch as F
    >>> loss = F.linear_cross_entropy(torch.ones(1, 2), torch.zeros(4, 2), torch.tensor([3]))
    >>> round(loss.item(), 4)
    1.3863
    """
    name = "linear_cross_entropy"
    if options is not None:
        raise ValueError(f"{name}: options: expected None, got {options!r}; max_workspace bounds the memory here")
    _check(name, input=input, linear_weight=linear_weight, target=target, linear_bias=linear_bias, weight=weight)
    workspace = operators.workspace_of(max_workspace)
    reduction = _reduction(name, None, None, reduction)
    if input.ndim not in (1, 2):
        raise ValueError(f"{name}: input: expected shape (inputs,) or (rows, inputs), got {tuple(input.shape)}")
    if linear_weight.ndim < 2 or linear_weight.shape[-1] != input.shape[-1]:
        raise ValueError(
            f"{name}: linear_weight: expected shape (classes, ..., {input.shape[-1]}), the inputs of input last, got "
            f"{tuple(linear_weight.shape)}"
        )
    classes, *inner = linear_weight.shape[:-1]
    if linear_bias is not None and tuple(linear_bias.shape) != (classes, *inner):
        raise ValueError(f"{name}: linear_bias: expected shape {(classes, *inner)}, got {tuple(linear_bias.shape)}")
    if inner and input.ndim == 1:
        raise ValueError(
            f"{name}: input: expected shape (rows, inputs) for linear_weight {tuple(linear_weight.shape)}, got "
            f"{tuple(input.shape)}"
        )
    if inner:
        _check_constant(name, target=target, weight=weight)
        flat = linear(input, linear_weight.flatten(0, -2), None if linear_bias is None else linear_bias.flatten())
        logits = flat.reshape(len(input), classes, *inner)
        ignored = IGNORED if ignore_index is None else ignore_index
        return cross_entropy(
            logits, target, weight, ignore_index=ignored, reduction=reduction, label_smoothing=label_smoothing
        )
    rows = input.shape[:-1]
    given = None if ignore_index is None else _ignored(name, ignore_index)
    ignored_or_none = _check_target(name, target, (*rows, classes), rows, given)
    _check_weight(name, weight, classes)
    _check_constant(name, target=target, weight=weight)
    x, w, b = _autocast(input, linear_weight, linear_bias)
    _check_floating(name, input=x, linear_weight=w, linear_bias=b)
    if input.ndim == 1:
        x, target = x.unsqueeze(0), target.unsqueeze(0)
    smoothing = _smoothing(name, label_smoothing)
    needs = operators.needs_of(x, w, b) if reduction != "none" else ""
    loss = operators.linear_cross_entropy(
        x, w, b, target, weight, ignored_or_none, smoothing, reduction, workspace, needs, _in_force()
    )[0]
    return _as_input(loss.squeeze(0) if loss.ndim and input.ndim == 1 else loss, input)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):  # type: ignore[misc]
    """`cross_entropy` as a module, in place of `torch.nn.CrossEntropyLoss`, whose arguments it has.

    Examples
    --------
    >>> import torch
    >>> from plugrad.bridges.torch import CrossEntropyLoss
    >>> criterion = CrossEntropyLoss(label_smoothing=0.1)
    >>> criterion(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
    """

    def forward(self, input: Any, target: Any) -> Any:
        """Return the loss of logits `input` and labels `target`."""
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
