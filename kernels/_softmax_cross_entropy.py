"""Softmax and cross-entropy in one: the loss of logits, and its gradient y - t."""

from __future__ import annotations

from typing import Any, NoReturn

from plugrad.backends import contract
from plugrad.backends.calls import in_library
from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Loss,
    Out,
    can_take,
    fill,
    given_back,
    given_results,
    loss_arguments,
    loss_shape,
    result,
)
from plugrad.kernels._call import loss_backward
from plugrad.kernels._kernel import kernel

RESULTS = {"y": ("loss", "y"), "dx": ("loss", "dx")}
NAMES_OF_OUT = {"y": "out: y", "dx": "out: dx"}


@kernel(contract.LossAnd, "y = softmax(x), loss = −Σ w_j t_j log y_j", results=RESULTS["y"])
def softmax_cross_entropy(
    x: ArrayLike,
    t: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    out: Out = None,
) -> tuple[Loss, Array]:
    """Cross-entropy of the softmax of logits `x` against labels `t`, and the probabilities ``y = softmax(x)``.

    Per row, ``loss = r (-sum_j w_j q_j log(y_j) + c z^2)`` with ``q = (1 - e) t + e / classes``, where `t` is one-hot
    for class indices, `e` is `label_smoothing`, `w` is `weight`, `r` is `sample_weight`, `c` is `z_loss` and
    ``z = log(sum_j exp(x_j))``.

    Parameters
    ----------
    x : array_like
        Logits, any shape with at least one class along `axis`; float16, bfloat16, float32 or float64. Integers,
        booleans and sequences become float64.
    t : array_like
        Labels: class indices of any integer dtype, with the shape of `x` less the class axis; or one number per
        class (one-hot, probabilities), with the shape of `x`, which need not sum to 1.
    axis : int
        The axis of the classes.
    weight : array_like, optional
        One weight per class, shape ``(classes,)``. Mind that with ``reduction="mean"`` class indices and one label
        per class then differ, by what the sum is divided by.
    sample_weight : array_like, optional
        One weight per row, of the shape of the loss with ``reduction="none"``. A row of weight 0 counts as ignored:
        exact zeros, whatever its logits; its label is checked all the same. Weights of rows and of classes may be
        negative, and take no part in promotion.
    ignore_index : int, optional
        Rows with this label add nothing to the loss and get a gradient of exact zeros, whatever their logits. It may
        lie outside ``[0, classes)``. For class indices only.
    label_smoothing : float
        In [0, 1], see above.
    z_loss : float
        Finite and at least 0, see above: it draws the sums of exponentials to 1. The gradient of
        `softmax_cross_entropy_value_and_grad` includes it; `softmax_cross_entropy_backward` cannot.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides the sum over the rows that count by the sum of ``r w_t``, or, with one label per class, of
        `r`; the sum of ``r c z^2`` by that of `r`. Where nothing counts, loss and gradient are 0.
    out : array or tuple of arrays, optional
        Where to write `y`, or ``(loss, y)``, None for a new array: their shapes and dtypes, any strides; `y` may be
        written to `x` itself.

    Returns
    -------
    loss : scalar or array
        In nats. A scalar, or with ``reduction="none"`` an array of the shape of `x` less the class axis; float64 for
        float64, else float32. A label of 0 on a logit of ``-inf`` adds 0.
    y : array
        Probabilities, shape and dtype of `x`: what `softmax_cross_entropy_backward` needs.

    Raises
    ------
    TypeError
        If an array is complex, text or objects, lies on another device than the backend computes on, class indices
        are no integers, or an option or `out` has a wrong type.
    ValueError
        If a label lies outside ``[0, classes)`` and is not `ignore_index` (on a GPU that row's loss is NaN instead,
        unless ``check=True``), a shape does not fit, or an option is out of range.

    Notes
    -----
    With ``m`` the largest logit, ``loss = log1p(sum_{k != t} exp(x_k - m) + exp(x_t - m) - 1) + m - x_t``, whose terms
    are never negative: the loss of a row predicted with confidence keeps its relative accuracy, where
    ``log(sum) - x_t`` would give 0. Label smoothing: Szegedy et al., "Rethinking the Inception architecture", 2016. The
    z loss: Chowdhery et al., "PaLM: Scaling language modeling with Pathways", 2022, section 5.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> loss, y = K.softmax_cross_entropy([[0.0, 0.0], [50.0, 0.0]], [1, 0], reduction="none")
    >>> loss
    array([6.93147181e-01, 1.92874985e-22])
    >>> y[0]
    array([0.5, 0.5])
    """
    options = axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction
    return _loss_and("softmax_cross_entropy", "y", x, t, *options, out)


@kernel(contract.LossBackward, "dx = dloss (y − t) / N (N rows count; 1 for the sum)", results=("dx",))
def softmax_cross_entropy_backward(
    dloss: ArrayLike,
    y: ArrayLike,
    t: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
    **refused: Any,
) -> Array:
    """Gradient of `softmax_cross_entropy` with respect to the logits: ``dx = dloss * (y - t) / N`` of the mean.

    `N` is the number of rows that count: the gradient of a mean is divided by it already. In full, per row,
    ``dx_j = dloss * r * (y_j sum_k w_k q_k - w_j q_j)`` with `q` and `r` as in `softmax_cross_entropy`, divided as the
    reduction says: ``y - t`` for labels that sum to 1.

    Parameters
    ----------
    dloss : float or array
        Gradient with respect to the loss: a scalar, or with ``reduction="none"`` an array of the loss's shape. Its
        dtype does not count.
    y : array_like
        The probabilities that `softmax_cross_entropy` returned.
    t, axis, weight, sample_weight, ignore_index, label_smoothing, reduction
        As given to `softmax_cross_entropy`.
    out : array, optional
        Where to write the result: shape and dtype of `y`, any strides; may be `y` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the logits, in the shape and dtype of `y`.

    Raises
    ------
    TypeError, ValueError
        As for `softmax_cross_entropy`, if `dloss` has not the shape of the loss, and for a `z_loss`, whose gradient
        follows from the logits, not from `y`: take `softmax_cross_entropy_value_and_grad`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> loss, y = K.softmax_cross_entropy([[0.0, 0.0]], [1])
    >>> K.softmax_cross_entropy_backward(1.0, y, [1])
    array([[ 0.5, -0.5]])
    """
    if refused:
        _refuse("softmax_cross_entropy_backward", *refused)
    options = axis, weight, sample_weight, ignore_index, label_smoothing, reduction
    return loss_backward("softmax_cross_entropy_backward", dloss, "y", y, t, *options, out)


@kernel(contract.LossAnd, "loss and dx = (y − t) / N in one pass (N rows count; 1 for the sum)", results=RESULTS["dx"])
def softmax_cross_entropy_value_and_grad(
    x: ArrayLike,
    t: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    out: Out = None,
) -> tuple[Loss, Array]:
    """The loss of `softmax_cross_entropy` and its gradient with respect to the logits, in one pass over them.

    For training loops: the probabilities are never stored, and the gradient is written where they would be.

    Parameters
    ----------
    x, t, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction
        As for `softmax_cross_entropy`.
    out : array or tuple of arrays, optional
        Where to write `dx`, or ``(loss, dx)``, None for a new array: their shapes and dtypes, any strides; `dx` may
        be written to `x` itself.

    Returns
    -------
    loss : scalar or array
        As `softmax_cross_entropy` returns it.
    dx : array
        Gradient of the loss with respect to `x`, or with ``reduction="none"`` of the sum of the losses; shape and
        dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As for `softmax_cross_entropy`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> loss, dx = K.softmax_cross_entropy_value_and_grad([[0.0, 0.0]], [1])
    >>> float(loss.round(6)), dx.tolist()
    (0.693147, [[0.5, -0.5]])
    """
    options = axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction
    return _loss_and("softmax_cross_entropy_value_and_grad", "dx", x, t, *options, out)


def _refuse(kernel: str, name: str, *_: str) -> NoReturn:
    """Raise the error for an option that the gradient does not have."""
    if name == "z_loss":
        hint = "y does not determine its gradient; call softmax_cross_entropy_value_and_grad, which takes the logits"
        raise TypeError(f"{kernel}: z_loss: expected no such option: {hint}")
    raise TypeError(f"{kernel}() got an unexpected keyword argument {name!r}")


def _loss_and(
    kernel: str,
    second: str,
    x: Any,
    t: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any,
    out: Any,
) -> tuple[Loss, Array]:
    """The loss of logits, and an array of their shape called `second`: probabilities or gradient."""
    backend = backend_for(x, kernel)
    if backend.foreign is not None:
        given = axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction
        return in_library(backend.foreign, x, _loss_and, kernel, second, x, t, *given, out)
    x, t, options = loss_arguments(
        kernel, "x", x, t, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, backend
    )
    is_lone = out is None or type(out) is backend.native
    loss_out, array_out = (None, out) if is_lone else given_results(kernel, out, RESULTS[second], lone=second)
    shape, dtype = loss_shape(x, options), COMPUTE[x.dtype]
    reads = (x, t, options.weight, options.sample_weight)
    if loss_out is None and (array_out is None or can_take(array_out, x.shape, x.dtype, *reads)):
        array: Any = backend.empty(x.shape, x.dtype) if array_out is None else array_out
        loss: Any = backend.empty(shape, dtype)
    else:
        array, reads = result(kernel, NAMES_OF_OUT[second], array_out, x.shape, x.dtype, backend, reads)
        loss, reads = result(kernel, "out: loss", loss_out, shape, dtype, backend, reads, (array,))
        x, t, weight, sample_weight = reads
        options = options.with_weights(weight, sample_weight)
    if x.size:
        backend.functions[kernel](x, t, options, loss, array)
    else:
        fill(kernel, 0, (loss, array), backend)
    return given_back(loss, loss_out, backend), array
