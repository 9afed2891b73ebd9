"""Cross-entropy of probabilities."""

from __future__ import annotations

from typing import Any

from plugrad.backends import contract
from plugrad.backends.calls import in_library
from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Loss,
    fill,
    given_back,
    loss_arguments,
    loss_shape,
    result,
)
from plugrad.kernels._call import loss_backward
from plugrad.kernels._kernel import kernel


@kernel(contract.Loss, "loss = −Σ w_j t_j log p_j", results=("loss",))
def cross_entropy(
    p: ArrayLike,
    t: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> Loss:
    """Cross-entropy of probabilities `p` against labels `t`, ``-sum_j w_j t_j log(p_j)`` per row.

    For logits use `softmax_cross_entropy`, which is faster and more accurate than `softmax` followed by this.

    Parameters
    ----------
    p : array_like
        Probabilities, any shape with at least one class along `axis`; float16, bfloat16, float32 or float64.
        Integers, booleans and sequences become float64. With class indices only ``p[t]`` of each row is read.
    t : array_like
        Labels: class indices of any integer dtype, with the shape of `p` less the class axis; or one number per
        class (one-hot, probabilities), with the shape of `p`.
    axis, weight, sample_weight, ignore_index, label_smoothing, reduction
        As for `softmax_cross_entropy`.
    out : array, optional
        Where to write the loss: its shape, ``()`` for a mean or a sum, and its dtype.

    Returns
    -------
    loss : scalar or array
        In nats. A scalar, or with ``reduction="none"`` an array of the shape of `p` less the class axis; float64 for
        float64, else float32. Infinite where a class with a positive label has probability 0; a label of 0 on a
        probability of 0 adds 0.

    Raises
    ------
    TypeError, ValueError
        As for `softmax_cross_entropy`, if `out` does not fit, and, on the CPU, if a probability whose label and
        weight are not 0 lies below 0 or above 1.001: it may be a logit. On a GPU the loss of that row is NaN.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> float(K.cross_entropy([[0.5, 0.5], [0.25, 0.75]], [0, 0]).round(6))
    1.039721
    """
    return _loss(p, t, axis, weight, sample_weight, ignore_index, label_smoothing, reduction, out)


def _loss(
    p: Any,
    t: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> Loss:
    """Check the arguments of `cross_entropy` and compute it."""
    backend = backend_for(p, "cross_entropy")
    if backend.foreign is not None:
        given_options = axis, weight, sample_weight, ignore_index, label_smoothing, reduction
        return in_library(backend.foreign, p, _loss, p, t, *given_options, out)
    given = axis, weight, sample_weight, ignore_index, label_smoothing, 0.0, reduction, backend
    p, t, options = loss_arguments("cross_entropy", "p", p, t, *given)
    reads, dtype = (p, t, options.weight, options.sample_weight), COMPUTE[p.dtype]
    loss, (p, t, *weights) = result("cross_entropy", "out", out, loss_shape(p, options), dtype, backend, reads)
    if p.size:
        backend.functions["cross_entropy"](p, t, options.with_weights(*weights), loss)
    else:
        fill("cross_entropy", 0, (loss,), backend)
    return given_back(loss, out, backend)


@kernel(contract.LossBackward, "dp_j = −dloss w_j t_j / p_j", results=("dp",))
def cross_entropy_backward(
    dloss: ArrayLike,
    p: ArrayLike,
    t: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> Array:
    """Gradient of `cross_entropy`: ``dp_j = -dloss * w_j t_j / p_j``, divided as the reduction says.

    Parameters
    ----------
    dloss : float or array
        Gradient with respect to the loss: a scalar, or with ``reduction="none"`` an array of the loss's shape. Its
        dtype does not count.
    p, t, axis, weight, sample_weight, ignore_index, label_smoothing, reduction
        As given to `cross_entropy`.
    out : array, optional
        Where to write the result: shape and dtype of `p`, any strides; may be `p` itself.

    Returns
    -------
    dp : array
        Gradient with respect to `p`, in its shape and dtype; exactly 0 where the label is 0.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`, and if `dloss` has not the shape of the loss, or `out` does not fit.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.cross_entropy_backward(1.0, [[0.5, 0.5], [0.25, 0.75]], [0, 0])
    array([[-1.,  0.],
           [-2.,  0.]])
    """
    options = axis, weight, sample_weight, ignore_index, label_smoothing, reduction
    return loss_backward("cross_entropy_backward", dloss, "p", p, t, *options, out)
