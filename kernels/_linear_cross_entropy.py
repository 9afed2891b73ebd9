"""The last layer and its loss in one, without the logits."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.options import COMPUTE, LossOptions
from plugrad.backends.selection import backend_for
from plugrad.backends.workspace import Workspace, bytes_of
from plugrad.kernels._affine import (
    GRADIENTS,
    affine,
    affine_backward,
    biases,
    fit,
    mistakes_of_layers,
    needed,
    refuse_unneeded,
    sample_layer,
)
from plugrad.kernels._arguments import (
    Array,
    floating,
    given_back,
    given_results,
    labels,
    loss_options,
    loss_shape,
    promoted,
    read_options,
    result,
)
from plugrad.kernels._cross_entropy import OPTIONS, mistakes_of_labels, sample_labels
from plugrad.kernels._kernel import Inputs, Kernel, Mistake
from plugrad.kernels._softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_value_and_grad

MAX_WORKSPACE = "64MB"


def linear_cross_entropy(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    max_workspace: int | str | Workspace = MAX_WORKSPACE,
) -> Array:
    """The loss of a classifier's last layer, ``softmax_cross_entropy(affine(x, w, b), t)``, without its logits.

    They are computed for some rows at a time, in a workspace: with many classes they would be the largest array there
    is. 1,024 rows of 50,257 classes take 206 MB in float32.

    Parameters
    ----------
    x : array_like
        Inputs of the layer, shape ``(..., in)``.
    w : array_like
        Weights, shape ``(in, classes)``, with at least one class.
    b : array_like or None
        Biases, shape ``(classes,)``.
    t : array_like
        Labels: class indices, of the shape of `x` less the last axis; or one number per class, shape
        ``(..., classes)``.
    weight, ignore_index, label_smoothing, reduction
        As for `softmax_cross_entropy`.
    max_workspace : int, str or Workspace
        How much memory the call may work in, beside its arguments and results: bytes, or text such as ``"64MB"`` or
        ``"1GiB"``. More makes larger products, which are faster up to some hundred rows: for as many it needs
        ``rows * classes * 4`` bytes, or 8 in float64. A `Workspace` keeps the memory for the next call.

    Returns
    -------
    loss : scalar or array
        As `softmax_cross_entropy` returns it, in float64 for float64, else float32. The logits of float16 and
        bfloat16 arrays are float32, and are not rounded.

    Raises
    ------
    TypeError
        As for `affine` and `softmax_cross_entropy`, and if `max_workspace` is no size.
    ValueError
        As for `affine` and `softmax_cross_entropy`; if `max_workspace` is too small for one row, and the message then
        names the least that works; or if it is a `Workspace` that another thread uses.

    Notes
    -----
    The results depend on `max_workspace` in their last digits, as those of matrix products depend on how they are cut
    up. Beside the workspace each thread uses a few megabytes at the most. Arguments of three or more dimensions that
    are not C-contiguous are copied as a whole, on a GPU also those of two, and so are arguments that have to be
    promoted. The chunks of rows are as in Hsu et al., "Liger Kernel: Efficient
    Triton kernels for LLM training", 2024, section 3.2.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> loss = K.linear_cross_entropy([[1.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]], None, [0])
    >>> round(float(loss), 6)
    0.313262
    """
    kernel = "linear_cross_entropy"
    backend = backend_for(x)
    reads, options = _arguments(kernel, x, w, b, t, weight, ignore_index, label_smoothing, reduction, backend)
    workspace = _workspace(kernel, max_workspace)
    logits = _logits(reads[0], reads[1])
    loss = backend.empty(loss_shape(logits, options), COMPUTE[logits.dtype])
    if logits.size:
        workspace.claim(f"{kernel}: max_workspace")
        backend.functions[kernel](*_given(reads, b), read_options(options, reads), workspace, loss)
    else:
        loss[...] = 0
    return given_back(loss, None)


def linear_cross_entropy_value_and_grad(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    needs: Iterable[str] = GRADIENTS,
    max_workspace: int | str | Workspace = MAX_WORKSPACE,
    out: Any = None,
) -> tuple[Array, Array, Array, Array]:
    """The loss of `linear_cross_entropy` and its gradients, in one pass: forward and backward of the last layer.

    With ``dz = softmax(x w + b) - t``, scaled as the reduction says: ``dx = dz w^T``, ``dw = x^T dz`` and ``db = sum of
    the rows of dz``.

    Parameters
    ----------
    x, w, b, t, weight, ignore_index, label_smoothing, reduction, max_workspace
        As for `linear_cross_entropy`.
    needs : iterable of str
        Which of ``"dx"``, ``"dw"`` and ``"db"`` to compute.
    out : tuple of arrays, optional
        Where to write ``(loss, dx, dw, db)``, None for a new array; `dx` may be written to `x` itself. If one gradient
        only is needed, an array by itself will do for that.

    Returns
    -------
    loss : scalar or array
        As `linear_cross_entropy` returns it.
    dx, dw, db : array or None
        Gradients of the loss, or with ``reduction="none"`` of the sum of the losses, with respect to `x`, `w` and `b`,
        in the promoted dtype of these; None where not needed, and for `db` if there are no biases. Those of ignored
        rows are exact zeros, whatever these rows hold. Sums over the rows keep their accuracy for any number, but in
        float32 where a small workspace cuts them into 65 to 1,024 chunks: `dw` may then be off by hundreds of units in
        the last place, if all rows are alike.

    Raises
    ------
    TypeError, ValueError
        As for `linear_cross_entropy`, and if `needs` names anything else, or `out` has an array for what is not
        needed.

    Notes
    -----
    Sums are taken in float32 at least. Where `dw` has float16 or bfloat16, it is summed in half of the workspace, for
    as many classes at a time as there is room for, and the logits are computed anew for each part: such calls are
    fast in a workspace of ``8 * in * classes`` bytes or more, and take several times as long in a small one. So do
    calls in a workspace that has not room for a thousandth of the rows, since float32 cannot add up so many chunks.

    Gradients of float16 underflow where ``reduction="mean"`` divides by many rows: ``"sum"`` keeps them. To write `dw`
    over `w`, or `dx` over another argument than `x`, takes memory of its size.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import kernels as K
    >>> x, w, b = np.array([[1.0, 2.0]]), np.zeros((2, 2)), np.zeros(2)
    >>> loss, dx, dw, db = K.linear_cross_entropy_value_and_grad(x, w, b, [1])
    >>> dw.tolist(), db.tolist()
    ([[0.5, -0.5], [1.0, -1.0]], [0.5, -0.5])
    """
    kernel = "linear_cross_entropy_value_and_grad"
    backend = backend_for(x)
    reads, options = _arguments(kernel, x, w, b, t, weight, ignore_index, label_smoothing, reduction, backend)
    workspace = _workspace(kernel, max_workspace)
    wanted = needed(kernel, needs)
    loss_out, *given = given_results(kernel, out, ("loss", *GRADIENTS), lone=wanted[0] if len(wanted) == 1 else None)
    refuse_unneeded(kernel, wanted, tuple(given))
    if b is None and given[2] is not None:
        raise ValueError(f"{kernel}: out: expected None for db, since b is None")
    x, w = reads[:2]
    logits, dtype = _logits(x, w), x.dtype
    dx = dw = db = None
    if "dx" in wanted:
        dx = result(kernel, "out: dx", given[0], x.shape, dtype, backend, reads)
    if "dw" in wanted:
        dw = result(kernel, "out: dw", given[1], w.shape, dtype, backend, reads, (dx,))
    if "db" in wanted and b is not None:
        db = result(kernel, "out: db", given[2], w.shape[1:], dtype, backend, reads, (dx, dw))
    shape, compute = loss_shape(logits, options), COMPUTE[dtype]
    loss = result(kernel, "out: loss", loss_out, shape, compute, backend, reads, (dx, dw, db))
    if logits.size:
        workspace.claim(f"{kernel}: max_workspace")
        backend.functions[kernel](*_given(reads, b), read_options(options, reads), workspace, loss, dx, dw, db)
    else:
        for array in (loss, dx, dw, db):
            if array is not None:
                array[...] = 0
    return given_back(loss, loss_out), dx, dw, db


class _Logits(NamedTuple):
    """What the checks of labels and options need to know of the logits, which there never are as a whole."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


def _logits(x: Array, w: Array) -> Any:
    return _Logits(x.shape[:-1] + w.shape[1:], x.dtype)


def _arguments(
    kernel: str,
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    backend: Backend,
) -> tuple[list[Array], LossOptions]:
    """The arrays that are read, checked: x, w, t, the biases and the weights of the classes if there are any."""
    x = floating(kernel, "x", x, backend)
    w = floating(kernel, "w", w, backend)
    fit(kernel, x, w)
    if not w.shape[1]:
        raise ValueError(f"{kernel}: w: expected at least one class, a column each, got shape {w.shape}")
    layer = [x, w] if b is None else [x, w, biases(kernel, b, w, backend)]
    x, w, *b = promoted(layer)
    logits = _logits(x, w)
    options = loss_options(kernel, "w", logits, -1, weight, ignore_index, label_smoothing, reduction, backend)
    t = labels(kernel, t, logits, options, backend)
    return [x, w, t, *b, *([] if options.weight is None else [options.weight])], options


def _given(reads: list[Array], b: Any) -> tuple[Array, Array, Array | None, Array]:
    """``x, w, b, t`` as the backend takes them."""
    return reads[0], reads[1], None if b is None else reads[3], reads[2]


def _workspace(kernel: str, given: Any) -> Workspace:
    """The workspace of this call: the caller's, or a new one."""
    what = f"{kernel}: max_workspace"
    return given if isinstance(given, Workspace) else Workspace(bytes_of(what, given))


def _sample(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {**sample_layer(rng, rows, classes, dtype), "t": sample_labels(rng, rows, classes)}


def _in_compute(*arrays: Any) -> list[Any]:
    return [x if x is None else x.astype(COMPUTE[x.dtype]) for x in arrays]


def _layer_then_loss(x: Any, w: Any, b: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    return softmax_cross_entropy(affine(*_in_compute(x, w, b)), t, **options)[:1]


def _layer_then_loss_then_gradients(x: Any, w: Any, b: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    wide = _in_compute(x, w, b)
    loss, dz = softmax_cross_entropy_value_and_grad(affine(*wide), t, **options)
    return loss, *(gradient.astype(x.dtype) for gradient in affine_backward(dz, *wide[:2]))


def _mistakes(kernel: str) -> tuple[Mistake, ...]:
    return (
        *mistakes_of_layers(kernel),
        *mistakes_of_labels(kernel),
        Mistake({"w": np.ones((6, 0)), "b": None}, ValueError, f"{kernel}: w: expected at least one class, a column"),
        Mistake({"max_workspace": 1}, ValueError, f"{kernel}: max_workspace: expected at least .* bytes, for one row"),
        Mistake({"max_workspace": 0}, ValueError, f"{kernel}: max_workspace: expected at least 1 byte, got 0"),
        Mistake({"max_workspace": "64 megs"}, ValueError, f"{kernel}: max_workspace: expected a size such as 64MB"),
        Mistake({"max_workspace": 1e6}, TypeError, f"{kernel}: max_workspace: expected bytes as an integer, text"),
    )


KERNELS = (
    Kernel(
        function=linear_cross_entropy,
        formula="loss = −Σ w_j t_j log softmax(x w + b)_j, the logits never held whole",
        arguments=("x", "w", "b", "t"),
        results=("loss",),
        options=(*OPTIONS[1:], "max_workspace"),
        composed=_layer_then_loss,
        sample=_sample,
        mistakes=_mistakes("linear_cross_entropy"),
        passes=0,
        operations=0,
        tolerance=32,
    ),
    Kernel(
        function=linear_cross_entropy_value_and_grad,
        formula="loss, dx, dw, db of the layer and its loss in chunks of rows",
        arguments=("x", "w", "b", "t"),
        results=("loss", *GRADIENTS),
        options=(*OPTIONS[1:], "needs", "max_workspace"),
        composed=_layer_then_loss_then_gradients,
        sample=_sample,
        mistakes=(
            *_mistakes("linear_cross_entropy_value_and_grad"),
            Mistake(
                {"needs": ("dx", "dy")},
                ValueError,
                "linear_cross_entropy_value_and_grad: needs: expected some of dx, dw, db; got 'dy'",
            ),
            Mistake(
                {"out": (None, None)},
                ValueError,
                "linear_cross_entropy_value_and_grad: out: expected one entry for each of loss, dx, dw, db; got 2",
            ),
            Mistake(
                {"b": None, "out": (None, None, None, np.ones(3, np.float32))},
                ValueError,
                "linear_cross_entropy_value_and_grad: out: expected None for db, since b is None",
            ),
            Mistake(
                {"needs": "dx", "out": (None, None, np.ones((6, 3), np.float32), None)},
                ValueError,
                "linear_cross_entropy_value_and_grad: out: expected None for dw",
            ),
            Mistake(
                {"out": (None, None, np.ones((3, 6), np.float32), None)},
                ValueError,
                r"linear_cross_entropy_value_and_grad: out: dw: expected shape \(6, 3\)",
            ),
        ),
        passes=0,
        operations=0,
        tolerance=32,
    ),
)
