"""The last layer and its loss in one, without the logits."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends import Backend, contract
from plugrad.backends.calls import in_library
from plugrad.backends.options import COMPUTE, LossOptions
from plugrad.backends.selection import backend_for
from plugrad.backends.workspace import Workspace, bytes_of
from plugrad.kernels._affine import GRADIENTS, biases, fit, gradients, needed
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Loss,
    Out,
    fill,
    given_back,
    given_results,
    labels,
    loss_options,
    loss_shape,
    number,
    promoted,
    real,
    result,
)
from plugrad.kernels._kernel import kernel

MAX_WORKSPACE = "64MB"


@kernel(
    contract.LinearLoss,
    "loss = −Σ w_j t_j log softmax(x w + b)_j, the logits never held whole",
    results=("loss",),
)
def linear_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    t: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    max_workspace: int | str | Workspace = MAX_WORKSPACE,
    out: Array | None = None,
) -> Loss:
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
    weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction
        As for `softmax_cross_entropy`.
    softcap : float, optional
        A finite number `s` above 0: the logits are ``s tanh(z / s)`` with ``z = x w + b``.
    max_workspace : int, str or Workspace
        How much memory the call may use, besides its arguments and results: bytes, or text such as ``"64MB"`` or
        ``"1GiB"``. More makes larger products, which are faster up to some hundred rows: for as many it needs
        ``rows * classes * 4`` bytes, or 8 in float64. A `Workspace` keeps the memory for the next call.
    out : array, optional
        Where to write the loss: its shape, ``()`` for a mean or a sum, and its dtype.

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
    up. Besides the workspace, each thread uses a few megabytes at the most. Arguments of three or more dimensions that
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
    options = weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction
    return _loss(x, w, b, t, *options, max_workspace, out)


def _loss(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    reduction: Any,
    max_workspace: Any,
    out: Any,
) -> Loss:
    """Check the arguments of `linear_cross_entropy` and compute it."""
    name = "linear_cross_entropy"
    backend = backend_for(x)
    given_options = weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction
    if backend.foreign is not None:
        return in_library(backend.foreign, x, _loss, x, w, b, t, *given_options, max_workspace, out)
    reads, options = _arguments(name, x, w, b, t, *given_options, backend)
    workspace = workspace_of(name, max_workspace)
    logits = _logits(reads[0], reads[1])
    shape, dtype = loss_shape(logits, options), COMPUTE[logits.dtype]
    loss, (x, w, b, t, *weights) = result(name, "out", out, shape, dtype, backend, reads)
    if logits.size:
        claim(name, workspace, max_workspace, backend)
        backend.functions[name](x, w, b, t, options.with_weights(*weights), workspace, loss)
    else:
        fill(name, 0, (loss,), backend)
    return given_back(loss, out, backend)


@kernel(
    contract.LinearLossAndGradients,
    "loss, dx, dw, db of the layer and its loss in chunks of rows",
    results=("loss", *GRADIENTS),
)
def linear_cross_entropy_value_and_grad(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    t: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    needs: Iterable[str] = GRADIENTS,
    max_workspace: int | str | Workspace = MAX_WORKSPACE,
    out: Out = None,
) -> tuple[Loss, Array, Array, Array]:
    """The loss of `linear_cross_entropy` and its gradients, in one pass: forward and backward of the last layer.

    With ``dz = softmax(x w + b) - t``, scaled as the reduction says: ``dx = dz w^T``, ``dw = x^T dz`` and ``db = sum of
    the rows of dz``.

    Parameters
    ----------
    x, w, b, t, weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction, max_workspace
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
        in the promoted dtype of these; None where not needed. Without biases `db` is their gradient at 0. Ignored rows
        get exact zeros, whatever they hold, and take part in no product; on a GPU they do, since to count them it
        would have to be waited for. Sums over the rows keep their accuracy for any number, but in
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
    as many classes at a time as fit, and the logits are computed anew for each part: such calls are
    fast in a workspace of ``8 * in * classes`` bytes or more, and take several times as long in a small one. So do
    calls in a workspace that holds less than a thousandth of the rows, since float32 cannot add up so many chunks.

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
    options = weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction
    return _loss_and_gradients(x, w, b, t, *options, needs, max_workspace, out)


def _loss_and_gradients(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    reduction: Any,
    needs: Any,
    max_workspace: Any,
    out: Any,
) -> tuple[Loss, Array, Array, Array]:
    """Check the arguments of `linear_cross_entropy_value_and_grad` and compute it."""
    name = "linear_cross_entropy_value_and_grad"
    backend = backend_for(x)
    given_options = weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction
    if backend.foreign is not None:
        return in_library(
            backend.foreign, x, _loss_and_gradients, x, w, b, t, *given_options, needs, max_workspace, out
        )
    reads, options = _arguments(name, x, w, b, t, *given_options, backend)
    workspace = workspace_of(name, max_workspace)
    wanted = needed(name, needs)
    loss_out, *given = given_results(name, out, ("loss", *GRADIENTS), lone=wanted[0] if len(wanted) == 1 else None)
    x, w = reads[:2]
    logits, compute = _logits(x, w), COMPUTE[x.dtype]
    shapes = x.shape, w.shape, w.shape[1:]
    (dx, dw, db), reads = gradients(name, wanted, tuple(given), shapes, backend, reads)
    shape = loss_shape(logits, options)
    loss, (x, w, b, t, *weights) = result(name, "out: loss", loss_out, shape, compute, backend, reads, (dx, dw, db))
    if logits.size:
        claim(name, workspace, max_workspace, backend)
        backend.functions[name](x, w, b, t, options.with_weights(*weights), workspace, loss, dx, dw, db)
    else:
        fill(name, 0, (loss, dx, dw, db), backend)
    return given_back(loss, loss_out, backend), dx, dw, db


class Logits(NamedTuple):
    """The shape and dtype of the logits, for the checks of labels and options; the logits are never held whole."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))


def _logits(x: Any, w: Any) -> Any:
    return Logits(x.shape[:-1] + w.shape[1:], x.dtype)


def _arguments(
    kernel: str,
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    reduction: Any,
    backend: Backend,
) -> tuple[tuple[Any, ...], LossOptions]:
    """The arrays that are read, checked - x, w, b, t, the weights of classes and of rows - and the options."""
    x, w, b = last_layer(kernel, x, w, b, backend)
    logits = _logits(x, w)
    weights = weight, sample_weight
    options = loss_options(kernel, "w", logits, -1, *weights, ignore_index, label_smoothing, z_loss, reduction, backend)
    if softcap is not None:
        cap = number(kernel, "softcap", softcap, "None or a finite number above 0", lambda cap: 0 < cap < np.inf)
        options = options._replace(softcap=cap)
    return (x, w, b, labels(kernel, t, logits, options, backend), options.weight, options.sample_weight), options


def last_layer(kernel: str, x: Any, w: Any, b: Any, backend: Backend) -> tuple[Any, Any, Any]:
    """Inputs, weights and biases of a layer with at least one class, checked and promoted."""
    x = real(kernel, "x", x, backend)
    w = real(kernel, "w", w, backend)
    fit(kernel, x, w)
    if not w.shape[1]:
        raise ValueError(f"{kernel}: w: expected at least one class, a column each, got shape {w.shape}")
    if b is None:
        return (*promoted(kernel, backend, x=x, w=w), None)
    x, w, b = promoted(kernel, backend, x=x, w=w, b=biases(kernel, b, w, backend))
    return x, w, b


def workspace_of(kernel: str, given: Any) -> Workspace:
    """The workspace of this call: the caller's, or a new one."""
    what = f"{kernel}: max_workspace"
    return given if isinstance(given, Workspace) else Workspace(bytes_of(what, given))


def claim(kernel: str, workspace: Workspace, given: Any, backend: Backend) -> None:
    """Claim the caller's workspace for this thread, and in a capture for each thread that replays.

    A workspace of the call's own belongs to nobody: only one thread replays a graph at a time.
    """
    if workspace is not given:
        return
    what = f"{kernel}: max_workspace"
    workspace.claim(what)
    if backend.recorder is not None:
        advice = "capture in each thread, with a Workspace of its own"
        backend.recorder.claims.append(functools.partial(workspace.claim, what, advice))
