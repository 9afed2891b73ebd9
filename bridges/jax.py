"""The kernels as functions of JAX arrays, in place of those of `jax.nn` and Optax.

They are differentiable once, in reverse mode, and work under `jax.jit`, `jax.grad`, `jax.vmap`, `jax.checkpoint` and
`jax.lax.scan`. They compute on arrays in host memory, by the backend that plugrad has in force when they are called or
traced, whatever thread JAX runs them in. Kernels read and write the memory of JAX: nothing is copied.

An error of a kernel, such as one for labels out of range, comes as an error of JAX with the kernel's message:
`jax.errors.JaxRuntimeError`, or `ValueError` of a compiled function that has run before. Forward-mode and second
derivatives are errors. Inside `jax.shard_map` each device computes its part of arrays on several devices; elsewhere JAX
gathers them first, and meshes with explicit axes have no gradients. Wait for results, by `jax.block_until_ready`,
before the process ends: JAX would stop it with an error or hang, as with its own callbacks.

Examples
--------
>>> import jax, jax.numpy as jnp
>>> from plugrad.bridges import jax as bridge
>>> def loss_of(logits, labels):
...     return bridge.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
>>> loss, gradient = jax.jit(jax.value_and_grad(loss_of))(jnp.array([[20.0, 0.0, 0.0]]), jnp.array([0]))
>>> f"{loss:.4g}"  # optax returns 0
'4.122e-09'
"""

import functools
import json
import re
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from plugrad import kernels as K
from plugrad.backends import selection
from plugrad.backends.options import COMPUTE, is_supported
from plugrad.bridges import _choices, _xla

__all__ = [
    "linear_cross_entropy",
    "log_softmax",
    "relu",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]

# The functions whose values kernels of other names compute, for messages.
FUNCTIONS = {
    "linear_cross_entropy_value_and_grad": "linear_cross_entropy",
    "sigmoid_cross_entropy": "sigmoid_binary_cross_entropy",
    "sigmoid_cross_entropy_value_and_grad": "sigmoid_binary_cross_entropy",
    # Of the two functions that these compute, only class indices can be wrong.
    "softmax_cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy_value_and_grad": "softmax_cross_entropy_with_integer_labels",
}
TARGET = "plugrad.bridges.jax, which computes in host memory"  # XLA names it where a GPU would have to compute it
EVERY_ROW = "broadcast_all"  # how vmap calls a kernel of rows or elements: once, with one more axis in front
ONE_BY_ONE = "sequential"  # and how one that computes a mean


# ---------------------------------------------------------------------------------------------------------------------
# Calls of kernels
# ---------------------------------------------------------------------------------------------------------------------


def _kernel(
    name: str,
    choice: str,
    arguments: dict[str, Any],
    results: Any,
    *,
    wanted: str = "",
    vmap_method: str = EVERY_ROW,
    **options: Any,
) -> Any:
    """The results of a kernel, by a custom call of XLA.

    `results` are arrays of their shapes and dtypes. Where the kernel has several, `wanted` is of the length of its
    `out`, with a 1 for each that is asked for.
    """
    names, values = zip(*arguments.items(), strict=True)
    text = json.dumps([name, names, wanted, options, choice])
    return _custom_call(text, tuple((x.shape, np.dtype(x.dtype)) for x in results), vmap_method, *values)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _custom_call(text: str, results: Any, vmap_method: str, *arguments: Any) -> Any:
    return _xla.call(TARGET, text, results, vmap_method, *arguments)


def _no_derivative(text: str, *_: Any) -> Any:
    raise NotImplementedError(
        f"{json.loads(text)[0]}: the functions of plugrad.bridges.jax have no second derivative and none in forward "
        f"mode; use those of jax.nn or optax"
    )


_custom_call.defjvp(_no_derivative)


_parsed = functools.lru_cache(256)(json.loads)


def _compute(text: bytes, arguments: list[Any], results: list[Any]) -> None:
    """Write the results of a kernel into `results`; XLA calls it."""
    name, names, wanted, options, choice = _parsed(text)
    given = dict(zip(names, arguments, strict=True))
    remaining = iter(results)
    out = tuple(next(remaining) if flag == "1" else None for flag in wanted) if wanted else results[0]
    _compute_by_choice(name, {**given, **options, "out": out}, choice)


@functools.partial(_choices.computes_by_choice, "plugrad.bridges.jax")
def _compute_by_choice(name: str, arguments: dict[str, Any], choice: str) -> None:
    try:
        getattr(K, name)(**arguments)
    except ValueError as error:
        message = re.sub(f"^{name}: (t: )?", lambda start: "labels: " if start[1] else "", str(error))
        message = re.sub("; [^;]*ignore_index.*", "", message)  # which no function here has
        raise ValueError(f"{FUNCTIONS.get(name, name)}: {message}") from None


_xla.register(TARGET, _compute)


def _differentiable(value: Any, forward: Any, backward: Any, *, by_need: bool = False) -> Any:
    """A compiled function of arrays, with its derivative; its first argument does not change with the data.

    With `by_need` the arguments of `forward` say whether a gradient is asked for. Whatever they say, it must save the
    same number of arrays, since JAX keeps that number with the compiled function.
    """
    function = jax.custom_vjp(value, nondiff_argnums=(0,))
    function.defvjp(forward, backward, symbolic_zeros=by_need)
    return jax.jit(function, static_argnums=0)


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _choice() -> str:
    """The choice in force, whose backend must compute on NumPy's arrays."""
    selection.refuse_in_capture("plugrad.bridges.jax: is not recorded; call the functions of plugrad.kernels")
    backend = selection.chosen().backend_for(np.ndarray)
    if backend.native is not np.ndarray:
        raise TypeError(
            f"plugrad.bridges.jax: expected a backend of arrays in host memory, got {backend.name!r}; select another "
            f"one by plugrad.backends.use"
        )
    return _choices.in_force()


def _array(function: str, name: str, x: Any) -> Any:
    """`x` as an array of JAX in host memory, or one that is traced."""
    if not isinstance(x, jax.Array | np.ndarray | np.generic | int | float):
        raise TypeError(f"{function}: {name}: expected an array, got {type(x).__name__}; call jnp.asarray on it first")
    x = jnp.asarray(x)
    if not isinstance(x, jax.core.Tracer) and (platforms := {device.platform for device in x.devices()} - {"cpu"}):
        raise TypeError(
            f"{function}: {name}: expected an array in host memory, got one on {'/'.join(platforms)}; call "
            f"jax.device_put(x, jax.devices('cpu')[0]), or plugrad.kernels.{function} on it"
        )
    return x


def _floating(function: str, **arrays: Any) -> tuple[Any, ...]:
    """The arrays in the dtype that JAX promotes them to, which must be one of the kernels'; None passes."""
    checked = {name: None if x is None else _array(function, name, x) for name, x in arrays.items()}
    for name, x in checked.items():
        if x is not None and not is_supported(x.dtype):
            raise TypeError(
                f"{function}: {name}: expected float16, bfloat16, float32 or float64, got {x.dtype}; call its "
                f".astype(jnp.float32) first"
            )
    dtype = jnp.result_type(*(x for x in checked.values() if x is not None))
    return tuple(None if x is None else x.astype(dtype) for x in checked.values())


def _class_indices(function: str, labels: Any, rows: tuple[int, ...]) -> Any:
    labels = _array(function, "labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{function}: labels: expected class indices of an integer dtype, got {labels.dtype}")
    if labels.shape != rows:
        raise ValueError(f"{function}: labels: expected shape {rows}, one label for each row, got {labels.shape}")
    return labels


def _logits(function: str, logits: Any) -> Any:
    (logits,) = _floating(function, logits=logits)
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"{function}: logits: expected shape (..., classes), got {logits.shape}")
    return logits


# ---------------------------------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------------------------------


def softmax(x: Any, axis: int = -1) -> Any:
    """Softmax along `axis`, ``y_j = exp(x_j) / sum_k exp(x_k)``, in place of `jax.nn.softmax`.

    Parameters
    ----------
    x : array
        Logits of any shape; float16, bfloat16, float32 or float64.
    axis : int
        The axis of the classes.

    Returns
    -------
    jax.Array
        Probabilities, shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is no array of these dtypes, or lies on a GPU; or if the backend in force computes on arrays of a GPU.
    ValueError
        If `axis` is out of range.
    NotImplementedError
        For a second derivative.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> bridge.softmax(jnp.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    return _along_axis("softmax", x, axis)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """Logarithm of `softmax` along `axis`, in place of `jax.nn.log_softmax`.

    Parameters, results and errors are those of `softmax`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> bridge.log_softmax(jnp.zeros((1, 2))).round(4).tolist()
    [[-0.6930999755859375, -0.6930999755859375]]
    """
    return _along_axis("log_softmax", x, axis)


def relu(x: Any) -> Any:
    """``max(x, 0)``, in place of `jax.nn.relu`; its gradient at 0 is 0.

    Parameters, results and errors are those of `softmax`, but for the axis.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> bridge.relu(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    (x,) = _floating("relu", x=x)
    return _activation(("relu", None, _choice()), x)


def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))``, in place of `jax.nn.sigmoid`.

    Parameters, results and errors are those of `softmax`, but for the axis.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> bridge.sigmoid(jnp.zeros(1)).tolist()
    [0.5]
    """
    (x,) = _floating("sigmoid", x=x)
    return _activation(("sigmoid", None, _choice()), x)


def _along_axis(function: str, x: Any, axis: Any) -> Any:
    (x,) = _floating(function, x=x)
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"{function}: axis: expected an integer, got {axis!r}")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis: expected one in [{-x.ndim}, {x.ndim}), got {axis}")
    return _activation((function, int(axis) % x.ndim - x.ndim, _choice()), x)


def _activation_of(what: tuple[str, int | None, str], x: Any) -> Any:
    """A kernel of one array; `what` is its name, its axis, negative since vmap adds others in front, and the choice."""
    name, axis, choice = what
    (y,) = _kernel(name, choice, {"x": x}, [x], **_with_axis(axis))
    return y


def _activation_forward(what: tuple[str, int | None, str], x: Any) -> Any:
    y = _activation_of(what, x)
    return y, y


def _activation_backward(what: tuple[str, int | None, str], y: Any, dy: Any) -> Any:
    name, axis, choice = what
    return tuple(_kernel(f"{name}_backward", choice, {"dy": dy, "y": y}, [y], **_with_axis(axis)))


def _with_axis(axis: int | None) -> dict[str, Any]:
    return {} if axis is None else {"axis": axis}


_activation = _differentiable(_activation_of, _activation_forward, _activation_backward)


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def softmax_cross_entropy(logits: Any, labels: Any) -> Any:
    """Cross-entropy of the softmax of logits with labels per class, in place of `optax.softmax_cross_entropy`.

    Per row, ``loss = -sum_j labels_j log(softmax(logits)_j)``. The gradient of the logits is that of
    `plugrad.kernels.softmax_cross_entropy_value_and_grad`, that of the labels ``-log(softmax(logits))``.

    Parameters
    ----------
    logits : array
        Shape ``(..., classes)``; float16, bfloat16, float32 or float64.
    labels : array
        One-hot or soft labels of the shape of `logits`, which need not sum to 1; any integer or floating dtype.

    Returns
    -------
    jax.Array
        The loss of each row, in the dtype of `logits`, or in that to which JAX promotes it with floating labels.

    Raises
    ------
    TypeError, NotImplementedError
        As for `softmax`.
    ValueError
        If a shape does not fit, or there are no classes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> bridge.softmax_cross_entropy(jnp.zeros((2, 2)), jnp.array([[1.0, 0.0], [0.5, 0.5]])).round(4).tolist()
    [0.6930999755859375, 0.6930999755859375]
    """
    name = "softmax_cross_entropy"
    logits = _logits(name, logits)
    logits, labels = _of_one_shape(name, logits, labels, f"; class indices are for {name}_with_integer_labels")
    return _loss_per_class((name, _choice()), *_xla.alike(logits, labels))


def sigmoid_binary_cross_entropy(logits: Any, labels: Any) -> Any:
    """Cross-entropy of the sigmoid of logits, each of two classes, in place of Optax's function of the same name.

    Per element, ``loss = -labels log(sigmoid(logits)) - (1 - labels) log(1 - sigmoid(logits))``. The gradient of the
    logits is that of `plugrad.kernels.sigmoid_cross_entropy_value_and_grad`, that of the labels ``-logits``.

    Parameters
    ----------
    logits : array
        Any shape; float16, bfloat16, float32 or float64.
    labels : array
        Labels in [0, 1] of the shape of `logits`; booleans, or any integer or floating dtype.

    Returns
    -------
    jax.Array
        The loss of each element, in the dtype of `logits`, or in that to which JAX promotes it with floating labels.

    Raises
    ------
    TypeError, NotImplementedError
        As for `softmax`.
    ValueError
        If the shapes differ.
    jax.errors.JaxRuntimeError, ValueError
        If a label lies outside [0, 1], when JAX computes the loss.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> bridge.sigmoid_binary_cross_entropy(jnp.zeros(2), jnp.array([0, 1])).round(4).tolist()
    [0.6930999755859375, 0.6930999755859375]
    """
    name = "sigmoid_binary_cross_entropy"
    (logits,) = _floating(name, logits=logits)
    logits, labels = _of_one_shape(name, logits, labels)
    return _loss_of_elements(("sigmoid_cross_entropy", _choice()), *_xla.alike(logits, labels))


def _of_one_shape(function: str, logits: Any, labels: Any, hint: str = "") -> Any:
    """The logits, and the labels of their shape, in one floating dtype."""
    labels = _array(function, "labels", labels)
    if labels.shape != logits.shape:
        raise ValueError(f"{function}: labels: expected shape {logits.shape}, that of logits, got {labels.shape}{hint}")
    if jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool:
        labels = labels.astype(logits.dtype)
    return _floating(function, logits=logits, labels=labels)


def softmax_cross_entropy_with_integer_labels(logits: Any, labels: Any) -> Any:
    """Cross-entropy of the softmax of logits with class indices, in place of Optax's function of the same name.

    Per row, ``loss = -log(softmax(logits)_label)``. The forward pass computes the gradient too, in one pass over the
    logits; see `plugrad.kernels.softmax_cross_entropy_value_and_grad` for the formulas and the accuracy.

    Parameters
    ----------
    logits : array
        Shape ``(..., classes)``; float16, bfloat16, float32 or float64.
    labels : array
        Class indices of any integer dtype, of the shape of `logits` without the classes.

    Returns
    -------
    jax.Array
        The loss of each row, in the dtype of `logits`.

    Raises
    ------
    TypeError, NotImplementedError
        As for `softmax`, and if `labels` are no integers.
    ValueError
        If a shape does not fit, or there are no classes.
    jax.errors.JaxRuntimeError, ValueError
        If a label lies outside ``[0, classes)``, when JAX computes the loss. (Optax returns NaN.)

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> def loss_of(logits):
    ...     return bridge.softmax_cross_entropy_with_integer_labels(logits, jnp.array([1])).sum()
    >>> jax.grad(loss_of)(jnp.zeros((1, 2))).tolist()
    [[0.5, -0.5]]
    """
    name = "softmax_cross_entropy_with_integer_labels"
    logits = _logits(name, logits)
    labels = _class_indices(name, labels, logits.shape[:-1])
    return _loss_of_indices(("softmax_cross_entropy", _choice()), *_xla.alike(logits, labels))


def _struct(shape: tuple[int, ...], dtype: Any) -> Any:
    """The shape and dtype of a loss of arrays of `dtype`."""
    return jax.ShapeDtypeStruct(shape, COMPUTE[np.dtype(dtype)])


def _losses(kernel: str, x: Any) -> Any:
    return _struct(x.shape[:-1] if kernel == "softmax_cross_entropy" else x.shape, x.dtype)


def _loss_alone(what: tuple[str, str], x: Any, t: Any) -> Any:
    """The loss of each row, or of each element for the sigmoid; `what` is the kernel and the choice."""
    kernel, choice = what
    (loss,) = _kernel(kernel, choice, {"x": x, "t": t}, [_losses(kernel, x)], wanted="10", reduction="none")
    return loss.astype(x.dtype)


def _loss_and_gradient(what: tuple[str, str], x: Any, t: Any) -> Any:
    kernel, choice = what
    name, results = f"{kernel}_value_and_grad", [_losses(kernel, x), x]
    loss, dx = _kernel(name, choice, {"x": x, "t": t}, results, wanted="11", reduction="none")
    return loss.astype(x.dtype), dx


def _loss_and_both(what: tuple[str, str], x: Any, t: Any) -> Any:
    """The loss, and what the gradients of the logits and of the labels need."""
    loss, dx = _loss_and_gradient(what, x, t)
    return loss, (dx, x)


def _gradients_of_indices(what: tuple[str, str], dx: Any, dloss: Any) -> Any:
    return dx * dloss[..., None], None


def _gradients_per_class(what: tuple[str, str], saved: Any, dloss: Any) -> Any:
    dx, x = saved
    (logs,) = _kernel("log_softmax", what[1], {"x": x}, [x], axis=-1)  # a compiled function leaves it out if unneeded
    return dx * dloss[..., None], -logs * dloss[..., None]


def _gradients_of_elements(what: tuple[str, str], saved: Any, dloss: Any) -> Any:
    dx, x = saved
    return dx * dloss, -x * dloss


_loss_of_indices = _differentiable(_loss_alone, _loss_and_gradient, _gradients_of_indices)
_loss_per_class = _differentiable(_loss_alone, _loss_and_both, _gradients_per_class)
_loss_of_elements = _differentiable(_loss_alone, _loss_and_both, _gradients_of_elements)


def linear_cross_entropy(x: Any, w: Any, b: Any, labels: Any) -> Any:
    """The mean loss of a classifier's last layer, whose logits ``x w + b`` are never held whole.

    The forward pass computes those gradients that JAX asks for; see `plugrad.kernels.linear_cross_entropy`. Under
    `jax.vmap` the losses are computed one after the other.

    Parameters
    ----------
    x : array
        Inputs of the layer, shape ``(..., in)``; float16, bfloat16, float32 or float64.
    w : array
        Shape ``(in, classes)``.
    b : array or None
        Shape ``(classes,)``.
    labels : array
        Class indices of any integer dtype, of the shape of `x` without its last axis.

    Returns
    -------
    jax.Array
        The loss; float64 for float64, else float32. 0 where there are no rows.

    Raises
    ------
    TypeError, NotImplementedError
        As for `softmax`, and if `labels` are no integers.
    ValueError
        If a shape does not fit, or there are no classes.
    jax.errors.JaxRuntimeError, ValueError
        If a label lies outside ``[0, classes)``, when JAX computes the loss.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from plugrad.bridges import jax as bridge
    >>> loss = bridge.linear_cross_entropy(jnp.ones((1, 2)), jnp.zeros((2, 4)), None, jnp.array([3]))
    >>> f"{loss:.4f}"
    '1.3863'
    """
    name = "linear_cross_entropy"
    x, w, b = _floating(name, x=x, w=w, b=b)
    if not x.ndim:
        raise ValueError(f"{name}: x: expected shape (..., in), got {x.shape}")
    if w.ndim != 2 or w.shape[0] != x.shape[-1] or not w.shape[1]:
        raise ValueError(f"{name}: w: expected shape ({x.shape[-1]}, classes), got {w.shape}")
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"{name}: b: expected shape {w.shape[1:]}, got {b.shape}")
    labels = _class_indices(name, labels, x.shape[:-1])
    return _linear_loss(_choice(), *_xla.alike(x, w, *((b,) if b is not None else ()), labels))


def _linear_loss_alone(choice: str, *arguments: Any) -> Any:
    given = _named(arguments)
    (loss,) = _linear_kernel("linear_cross_entropy", choice, given, [_struct((), given["x"].dtype)])
    return loss


def _linear_loss_forward(choice: str, *arguments: Any) -> Any:
    given = _named([x.value for x in arguments])
    needed = [name for name, x in _named(arguments).items() if name != "t" and x.perturbed]
    options = {
        "wanted": "1" + "".join("01"[name in needed] for name in "xwb"),
        "needs": [f"d{name}" for name in needed],
    }
    results = [_struct((), given["x"].dtype), *(given[name] for name in needed)]
    loss, *gradients = _linear_kernel("linear_cross_entropy_value_and_grad", choice, given, results, **options)
    nothing = jnp.zeros((), given["x"].dtype)
    return loss, tuple(gradients.pop(0) if name in needed else nothing for name in given)


def _named(arguments: Any) -> dict[str, Any]:
    """The arguments of a last layer by name, with or without a bias."""
    return dict(zip("xwbt" if len(arguments) == 4 else "xwt", arguments, strict=True))


def _linear_kernel(name: str, choice: str, given: dict[str, Any], results: Any, **options: Any) -> Any:
    without: dict[str, Any] = {} if "b" in given else {"b": None}
    return _kernel(name, choice, given, results, vmap_method=ONE_BY_ONE, **without, **options)


def _linear_loss_backward(choice: str, gradients: Any, dloss: Any) -> Any:
    return tuple((dx * dloss).astype(dx.dtype) if dx.ndim else None for dx in gradients)


_linear_loss = _differentiable(_linear_loss_alone, _linear_loss_forward, _linear_loss_backward, by_need=True)
