"""Cross-entropy of probabilities."""

from typing import Any

import numpy as np

from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    arrays_of_loss,
    given_back,
    loss_arguments,
    loss_shape,
    read_options,
    result,
    upstream,
)
from plugrad.kernels._kernel import Inputs, Kernel, Mistake

OPTIONS = ("axis", "weight", "ignore_index", "label_smoothing", "reduction")


def cross_entropy(
    p: Any,
    t: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Array:
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
    axis, weight, ignore_index, label_smoothing, reduction
        As for `softmax_cross_entropy`.

    Returns
    -------
    loss : scalar or array
        In nats. A scalar, or with ``reduction="none"`` an array of the shape of `p` less the class axis; float64 for
        float64, else float32. Infinite where a class with a positive label has probability 0; a label of 0 on a
        probability of 0 adds 0.

    Raises
    ------
    TypeError, ValueError
        As for `softmax_cross_entropy`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> float(K.cross_entropy([[0.5, 0.5], [0.25, 0.75]], [0, 0]).round(6))
    1.039721
    """
    backend = backend_for(p, "cross_entropy")
    given = axis, weight, ignore_index, label_smoothing, reduction, backend
    p, t, options = loss_arguments("cross_entropy", "p", p, t, *given)
    loss = backend.empty(loss_shape(p, options), COMPUTE[p.dtype])
    if p.size:
        backend.functions["cross_entropy"](p, t, options, loss)
    else:
        loss[...] = 0
    return given_back(loss, None)


def cross_entropy_backward(
    dloss: Any,
    p: Any,
    t: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Any = None,
) -> Array:
    """Gradient of `cross_entropy`: ``dp_j = -dloss * w_j t_j / p_j``, divided as the reduction says.

    Parameters
    ----------
    dloss : float or array
        Gradient with respect to the loss: a scalar, or with ``reduction="none"`` an array of the loss's shape. Its
        dtype does not count.
    p, t, axis, weight, ignore_index, label_smoothing, reduction
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
    kernel = "cross_entropy_backward"
    backend = backend_for(p, kernel)
    given = axis, weight, ignore_index, label_smoothing, reduction, backend
    p, t, options = loss_arguments(kernel, "p", p, t, *given)
    dloss = upstream(kernel, dloss, p, options, backend)
    reads = arrays_of_loss(p, t, dloss, options)
    dp = result(kernel, "out", out, p.shape, p.dtype, backend, reads)
    if p.size:
        backend.functions[kernel](dloss, reads[0], reads[1], read_options(options, reads), dp)
    return dp


def sample_labels(rng: "np.random.Generator", rows: int, classes: int) -> Any:
    """Class indices."""
    return rng.integers(0, classes, rows)


def sample_probabilities(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Any:
    """Rows of probabilities, none of them 0 in any dtype."""
    e = rng.random((rows, classes)) + 0.01
    return (e / e.sum(axis=-1, keepdims=True)).astype(dtype)


def _sample(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {"p": sample_probabilities(rng, rows, classes, dtype), "t": sample_labels(rng, rows, classes)}


def _sample_backward(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {"dloss": 0.7, **_sample(rng, rows, classes, dtype)}


def mistakes_of_losses(kernel: str, rows: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made in calling any loss whose rows are the argument called `rows`."""
    return (
        Mistake({rows: np.ones((2, 0))}, ValueError, f"{kernel}: {rows}: expected at least one class along axis 1"),
        Mistake({rows: np.ones((2, 3), complex)}, TypeError, f"{kernel}: {rows}: expected .*, got dtype complex128"),
        Mistake({"axis": 2}, ValueError, rf"{kernel}: axis: expected an axis in \[-2, 2\), got 2"),
        *mistakes_of_labels(kernel),
    )


def mistakes_of_labels(kernel: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made with labels, and with options but the axis."""
    return (
        Mistake({"t": None}, TypeError, f"{kernel}: t: expected class indices or one number per class, got NoneType"),
        Mistake(
            {"t": ["a", "b"]}, TypeError, f"{kernel}: t: expected class indices or one number per class, got dtype"
        ),
        Mistake({"t": [0.0, 1.0]}, TypeError, f"{kernel}: t: expected class indices of an integer dtype, got dtype f"),
        Mistake(
            {"t": [True, False]}, TypeError, f"{kernel}: t: expected class indices of an integer dtype, got dtype b"
        ),
        Mistake({"t": [0, 1, 2]}, ValueError, rf"{kernel}: t: expected class indices of shape \(2,\) or .*\(3,\)"),
        Mistake({"t": [0, 3]}, ValueError, rf"{kernel}: t: expected labels in \[0, 3\), got 3 at row 1"),
        Mistake(
            {"t": [-1, 0]}, ValueError, rf"{kernel}: t: expected labels in \[0, 3\), got -1 at row 0; pass ignore_index"
        ),
        Mistake(
            {"t": [-1, -2], "ignore_index": -1},
            ValueError,
            r"t: expected labels in \[0, 3\) or the ignored label -1, got -2 at row 1",
        ),
        Mistake(
            {"t": np.eye(3)[:2], "ignore_index": 0},
            ValueError,
            f"{kernel}: ignore_index: expected None with one label per class, got 0",
        ),
        Mistake({"ignore_index": 0.5}, TypeError, f"{kernel}: ignore_index: expected an integer or None, got 0.5"),
        Mistake({"weight": [1.0, 2.0]}, ValueError, rf"{kernel}: weight: expected one weight per class, shape \(3,\)"),
        Mistake({"weight": ["a"] * 3}, TypeError, f"{kernel}: weight: expected .*, got dtype <U1"),
        Mistake(
            {"label_smoothing": 1.5}, ValueError, rf"{kernel}: label_smoothing: expected a number in \[0, 1\], got 1"
        ),
        Mistake({"label_smoothing": float("nan")}, ValueError, f"{kernel}: label_smoothing: expected .*, got nan"),
        Mistake({"label_smoothing": "0"}, TypeError, f"{kernel}: label_smoothing: expected a number in .*, got '0'"),
        Mistake({"reduction": "avg"}, ValueError, f"{kernel}: reduction: expected one of mean, sum, none; got 'avg'"),
        Mistake({"reduction": None}, TypeError, f"{kernel}: reduction: expected one of mean, sum, none; got None"),
    )


def mistakes_of_upstream(kernel: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made with the gradient of a loss."""
    return (
        Mistake({"dloss": [1.0, 1.0]}, ValueError, rf"{kernel}: dloss: expected the shape .*'mean', \(\), got \(2,\)"),
        Mistake(
            {"reduction": "none", "dloss": 1.0}, ValueError, rf"{kernel}: dloss: expected .*'none', \(2,\), got \(\)"
        ),
        Mistake({"dloss": 1j}, TypeError, f"{kernel}: dloss: expected .*, got dtype complex128"),
    )


KERNELS = (
    Kernel(
        function=cross_entropy,
        formula="loss = −Σ w_j t_j log p_j",
        arguments=("p", "t"),
        results=("loss",),
        options=OPTIONS,
        backward="cross_entropy_backward",
        sample=_sample,
        mistakes=mistakes_of_losses("cross_entropy", "p"),
        passes=1,
        operations=0,
        tolerance=8,
    ),
    Kernel(
        function=cross_entropy_backward,
        formula="dp_j = −dloss w_j t_j / p_j",
        arguments=("dloss", "p", "t"),
        results=("dp",),
        options=OPTIONS,
        sample=_sample_backward,
        mistakes=(
            *mistakes_of_losses("cross_entropy_backward", "p"),
            *mistakes_of_upstream("cross_entropy_backward"),
            Mistake({"out": np.ones((2, 3))}, TypeError, "cross_entropy_backward: out: expected dtype float32"),
        ),
        passes=2,
        operations=0,
        tolerance=8,
    ),
)
