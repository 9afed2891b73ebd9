"""The contract of a backend, as typed protocols: the forms of its kernels, and the hooks of its module.

A backend is a module, or another object, that has functions named like the kernels. The protocols of the first part
are the *forms* of these functions: kernels of one form take the same arguments. `Hooks` lists everything else that
plugrad looks for in the module; each of its members is optional, and `plugrad.backends.host` has the defaults.

``python -m plugrad.backends.contract`` prints both as the tables of ``docs/adding-a-backend.md``.

Rules of every call
--------------------
All arguments are positional, so their names are the backend's choice. Checks that need no data have passed.

The arrays of a call are arrays of the backend (of `Hooks.ARRAYS`, as `Hooks.take` returned them). They have one
floating dtype in native byte order (float16, bfloat16, float32 or float64), unless a form says otherwise, and any
strides: negative, zero, transposed. None is empty, except that `x` and `w` of a layer without inputs may be.

The last arguments are the results. They have the right shape and dtype and any strides, and no two of their elements
share an address. Their contents are undefined, NaN included, until the function writes them.

A result either shares no memory with an argument or *is* that argument (``out is x``); the two never overlap in part.
Two results never share memory. Where a result is an argument, the function reads each element before it writes it, and
where there are several results, it computes all of them before it writes the first. It writes to no other argument.

16-bit arrays are computed and reduced in float32: `plugrad.backends.options.COMPUTE` maps a dtype to the dtype that it
is computed in. No warning is raised for NaN and infinity. The return value is ignored, unless it is a new array, which
is an error: the results belong in the arrays that were given.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from plugrad.backends.options import BinaryLossOptions, LossOptions
from plugrad.backends.workspace import Workspace

Array: TypeAlias = Any
"""An array of the backend: a NumPy array, a CuPy array, or an array of the package that `Hooks.ARRAYS` names."""

Overlap: TypeAlias = Literal["none", "same", "partial"]


class Update(NamedTuple):
    """A step of an optimizer, as the arguments of a form such as `Adam`.

    Attributes
    ----------
    name : str
        The function of the backend: ``"sgd"``, ``"adam"``, ``"adamw"`` or ``"rmsprop"``.
    arrays : tuple of sequences
        Its sequences of arrays.
    numbers : tuple of float
        Its numbers; they change from step to step.
    """

    name: str
    arrays: tuple[Sequence[Array | None], ...]
    numbers: tuple[float, ...]


class PreparedCall(NamedTuple):
    """A call of a capture, as a replay makes it.

    Attributes
    ----------
    run : callable
        Makes the call.
    arrays : tuple of arrays
        Its arrays, but for the states of an optimizer.
    place : str
        The layer that made the call, with which messages of errors begin.
    is_fixed : bool
        Whether all that the call does is to compute on its arrays, with the same numbers each time.
    update : callable or None
        For the step of an optimizer: counts a step, and returns what it has to compute. `run` does both.
    """

    run: Callable[[], object]
    arrays: tuple[Array, ...]
    place: str
    is_fixed: bool
    update: Callable[[], Update] | None


# ---------------------------------------------------------------------------------------------------------------------
# The forms of kernels
# ---------------------------------------------------------------------------------------------------------------------


class Elementwise(Protocol):
    """A function of each element, such as `relu`.

    `x` and `out` have the same shape, which may be ``()``, and dtype. `out` may be `x`.
    """

    def __call__(self, x: Array, out: Array, /) -> object: ...


class ElementwiseBackward(Protocol):
    """The gradient of an elementwise kernel, such as `relu_backward`.

    `dy`, `y` and `out` have the same shape and dtype; `y` is the result of the forward kernel. `out` may be `dy` or
    `y`.
    """

    def __call__(self, dy: Array, y: Array, out: Array, /) -> object: ...


class ElementwiseWithOptions(Protocol):
    """A function of each element with options, such as `leaky_relu`.

    `x` and `out` are as in `Elementwise`. `options` is the named tuple of `plugrad.backends.options` that belongs to
    the kernel, such as `LeakyReluOptions`. The options have been checked.
    """

    def __call__(self, x: Array, options: Any, out: Array, /) -> object: ...


class ElementwiseBackwardWithOptions(Protocol):
    """The gradient of an elementwise kernel with options, such as `leaky_relu_backward`.

    `dy`, `x` and `out` have the same shape and dtype; `x` is the argument of the forward kernel. `out` may be `dy` or
    `x`. `options` are as in `ElementwiseWithOptions`.
    """

    def __call__(self, dy: Array, x: Array, options: Any, out: Array, /) -> object: ...


class Rowwise(Protocol):
    """A function of each row along an axis, such as `softmax`.

    `x` and `out` have the same shape and dtype. `axis` is in ``[0, x.ndim)``. `out` may be `x`.
    """

    def __call__(self, x: Array, axis: int, out: Array, /) -> object: ...


class RowwiseBackward(Protocol):
    """The gradient of a rowwise kernel, such as `softmax_backward`.

    `dy`, `y` and `out` have the same shape and dtype. `y` is the result of the forward kernel. `axis` is in
    ``[0, y.ndim)``. `out` may be `dy` or `y`.
    """

    def __call__(self, dy: Array, y: Array, axis: int, out: Array, /) -> object: ...


class Affine(Protocol):
    """The affine layer: ``out = x w + b``.

    `x` has shape ``(..., in)``, `w` ``(in, classes)``, `b` ``(classes,)``, and `out` ``(..., classes)``; all have one
    dtype. `b` is None where there are no biases. `out` may be `x`, `w` or `b` where the shapes agree.
    """

    def __call__(self, x: Array, w: Array, b: Array | None, out: Array, /) -> object: ...


class AffineBackward(Protocol):
    """The gradients of the affine layer: ``dx = dy w^T``, ``dw = x^T dy``, ``db`` = sum of the rows of `dy`.

    `dy` has shape ``(..., classes)``; `dx`, `dw` and `db` have the shapes of `x`, `w` and the biases; all have one
    dtype. A gradient that is not wanted is None. Each may be any argument of its shape, so `dx` may be `w` while `dw`
    is `x`. Without inputs `x` and `w` are empty, and `dx` and `dw` are None. `dy` is never empty.
    """

    def __call__(
        self, dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None, /
    ) -> object: ...


class Loss(Protocol):
    """The loss of each row, or of all, such as `cross_entropy`.

    `x` has the classes along ``options.axis``, which is not negative, and at least one class. `t` has either one
    dimension less than `x`, the others having the same lengths, and holds class indices of any integer dtype; or it has
    the shape of `x` and holds a number for each class, of any integer, boolean or floating dtype. Both are in native
    byte order.

    `loss` is an array without dimensions, or with ``options.reduction == "none"`` an array of the shape of `x` less the
    class axis; its dtype is that which the dtype of `x` is computed in. ``options.weight`` is None or has shape
    ``(classes,)`` and this dtype. ``options.sample_weight`` is None or has this dtype and the shape of `x` less the
    class axis; a row of weight 0 is as an ignored one. ``options.z_loss`` is 0 unless `x` holds logits.

    The options have been checked; the values of the labels have not. The function raises
    `plugrad.backends.options.bad_label` for the first class index that is outside ``[0, classes)`` and is not
    ``options.ignore_index``, before it writes anything. A backend that cannot read labels without synchronising a
    device writes NaN to the results of that row, and raises only if the option ``check`` is set.
    ``options.ignore_index`` is any Python integer, also one outside the dtype of `t`: the comparison must not wrap.
    """

    def __call__(self, x: Array, t: Array, options: LossOptions, loss: Array, /) -> object: ...


class LossBackward(Protocol):
    """The gradient of a loss with respect to its rows, such as `cross_entropy_backward`.

    `y` is what the forward pass took or returned, and `dx` has its shape and dtype. `t` and `options` are as in `Loss`,
    with their labels unchecked. `dloss` is a Python float, or an array of the shape of the loss and of any floating
    dtype. `dx` may be `y`, `t` or ``options.weight``.
    """

    def __call__(self, dloss: float | Array, y: Array, t: Array, options: LossOptions, dx: Array, /) -> object: ...


class LossAnd(Protocol):
    """A loss, and an array of the shape of its rows: probabilities or the gradient, as in `softmax_cross_entropy`.

    `x`, `t`, `options` and `loss` are as in `Loss`, with their labels unchecked. `out` has the shape and dtype of `x`.
    `out` may be `x`, `t` or ``options.weight``, and `loss` may be ``options.weight`` or
    ``options.sample_weight``.
    """

    def __call__(self, x: Array, t: Array, options: LossOptions, loss: Array, out: Array, /) -> object: ...


class LinearLoss(Protocol):
    """The loss of the logits ``x w + b``, which are never held whole, as in `linear_cross_entropy`.

    `x`, `w` and `b` are as in `Affine`, `t`, `options` and `loss` as in `Loss` for logits of shape ``(..., classes)``,
    with their labels unchecked; ``options.axis`` is the last axis of the logits. If ``options.softcap`` is not
    None, the logits are ``softcap tanh((x w + b) / softcap)``. Without inputs `x` and `w` are empty.

    ``workspace.size`` is the number of bytes that the function may work in, apart from arguments, results and what
    grows with neither rows nor classes. ``workspace.memory(place, count, empty)`` returns `count` bytes: those that an
    earlier call used at that place, or ``empty(count)``; their contents are undefined. If the size does not suffice for
    one row, the function raises a `ValueError` that reads ``NAME: max_workspace: expected at least N bytes, for one row
    of C classes, got M``, with the least `N` that works, before it writes anything.
    """

    def __call__(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        t: Array,
        options: LossOptions,
        workspace: Workspace,
        loss: Array,
        /,
    ) -> object: ...


class LinearLossAndGradients(Protocol):
    """The loss of the logits ``x w + b``, and its gradients, as in `linear_cross_entropy_value_and_grad`.

    The arguments are as in `LinearLoss`. `dx`, `dw` and `db` have the shapes and the dtype of `x`, `w` and `b`; each is
    None if it is not wanted, and all may be. With ``options.reduction == "none"`` they are the gradients of the sum of
    the losses. On the CPU a row that does not count takes part in no product. It adds nothing to `dw` and `db`, even if
    it holds infinities, and its `dx` is 0. Each result may be any argument of its shape and dtype.
    """

    def __call__(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        t: Array,
        options: LossOptions,
        workspace: Workspace,
        loss: Array,
        dx: Array | None,
        dw: Array | None,
        db: Array | None,
        /,
    ) -> object: ...


class LinearTopK(Protocol):
    """The `k` largest logits ``x w + b`` of each row and their classes, as in `linear_top_k`.

    `x`, `w` and `b` are as in `Affine`, and `workspace` is as in `LinearLoss`. `values` has shape ``(..., k)`` and the
    dtype of `x`, `indices` the same shape and dtype int64. The largest logit comes first, NaN before all numbers, and
    of equal logits that of the lower class. Logits are compared in the dtype that is computed in, before they are
    rounded. `values` may be any argument of its shape.
    """

    def __call__(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        k: int,
        workspace: Workspace,
        values: Array,
        indices: Array,
        /,
    ) -> object: ...


class Accuracy(Protocol):
    """The share of rows whose label is among the `k` largest of the row, as in `top_k_accuracy`.

    `t` holds class indices, and `options` the axis of the classes and the ignored label. Of equal numbers the one with
    the lower class comes first; a row with a NaN is wrong. `accuracy` has no dimensions, and is float64; it is 0 where
    no row counts. Labels are checked as in `Loss`; a backend that cannot raise the error makes `accuracy` NaN.
    """

    def __call__(self, x: Array, t: Array, k: int, options: LossOptions, accuracy: Array, /) -> object: ...


class BinaryLossAnd(Protocol):
    """A loss of each element by itself, and an array of the shape of its logits, as in `sigmoid_cross_entropy`.

    `x` has any shape, which may be ``()``, and `t` the same; `t` holds labels of any integer, boolean or floating dtype
    in native byte order. `loss` has the shape of `x` if ``options.reduction == "none"``, else no dimensions, and the
    dtype that `x` is computed in. `out` has the shape and dtype of `x`. Each result may be any argument of its shape
    and dtype, the weights included.

    The function raises ``options.bad_label`` for the first label that is outside [0, 1], or NaN, and is not equal to
    ``options.ignored_label(t.dtype)``, before it writes anything. A backend that cannot read labels without
    synchronising a device makes the loss and the gradient of that element NaN, and raises only if the option ``check``
    is set.
    """

    def __call__(self, x: Array, t: Array, options: BinaryLossOptions, loss: Array, out: Array, /) -> object: ...


class BinaryLossBackward(Protocol):
    """The gradient of such a loss with respect to the logits, as in `sigmoid_cross_entropy_backward`.

    `y` is the sigmoid of the logits, and `dx` has its shape and dtype. `t` and `options` are as in `BinaryLossAnd`,
    with the labels unchecked. `dloss` is a Python float, or an array of the shape of the loss and of any floating
    dtype. `dx` may be any argument of its shape and dtype.
    """

    def __call__(
        self, dloss: float | Array, y: Array, t: Array, options: BinaryLossOptions, dx: Array, /
    ) -> object: ...


class SGD(Protocol):
    """The step `sgd` of the optimizer ``SGD``, which updates parameters and their velocities in place.

    ``d = g + decay p``, ``v = momentum v + d``, ``p -= lr v``, or with `nesterov` ``p -= lr (d + momentum v)``. Without
    momentum each `v` is None, and ``p -= lr d``.

    `params`, `grads` and `velocities` have an entry for each parameter. `p` and `g` have the same shape and dtype, `v`
    the same shape and the dtype that `p` is computed in. No memory is shared, except that `g` may have exactly the
    elements of `p`. Optional: `plugrad.backends.updates` has a default.
    """

    def __call__(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        velocities: Sequence[Array | None],
        lr: float,
        momentum: float,
        nesterov: bool,
        decay: float,
        /,
    ) -> object: ...


class Adam(Protocol):
    """The step `adam` of the optimizer ``Adam``, which updates parameters and their two means in place.

    ``m`` and ``v`` are the running means of ``d = g + decay p`` and of its square: ``m = beta1 m + (1 - beta1) d``,
    ``v = beta2 v + (1 - beta2) d^2``. Then ``p -= step m / (sqrt(v) / root + eps)``: `step` and `root` contain Adam's
    bias corrections. Shapes, dtypes and memory are as in `SGD`, with `means` and `squares` like `velocities`. Optional,
    as `SGD` is.
    """

    def __call__(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        means: Sequence[Array],
        squares: Sequence[Array],
        step: float,
        root: float,
        beta1: float,
        beta2: float,
        eps: float,
        decay: float,
        /,
    ) -> object: ...


class AdamW(Protocol):
    """The step `adamw` of the optimizer ``AdamW``, which updates parameters and their two means in place.

    ``m`` and ``v`` are the running means of ``g`` and of its square, as in `Adam` without decay, and
    ``p = keep p - step m / (sqrt(v) / root + eps)``. Shapes, dtypes and memory are as in `Adam`. Optional, as `SGD` is.
    """

    def __call__(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        means: Sequence[Array],
        squares: Sequence[Array],
        step: float,
        root: float,
        beta1: float,
        beta2: float,
        eps: float,
        keep: float,
        /,
    ) -> object: ...


class RMSprop(Protocol):
    """The step `rmsprop` of the optimizer ``RMSprop``, which updates parameters and their states in place.

    With ``d = g + decay p``: ``s = alpha s + (1 - alpha) d^2``, ``m = alpha m + (1 - alpha) d``,
    ``v = momentum v + d / (sqrt(s - m^2) + eps)``, ``p -= lr v``, where ``s - m^2`` below 0 counts as 0. Each `m` is
    None, and counts as 0, unless centered; without momentum each `v` is None, and the quotient takes its place.
    Shapes, dtypes and memory are as in `SGD`. Optional, as `SGD` is.
    """

    def __call__(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        squares: Sequence[Array],
        means: Sequence[Array | None],
        velocities: Sequence[Array | None],
        lr: float,
        alpha: float,
        eps: float,
        momentum: float,
        decay: float,
        /,
    ) -> object: ...


# ---------------------------------------------------------------------------------------------------------------------
# The hooks of a module
# ---------------------------------------------------------------------------------------------------------------------


class Hooks(Protocol):
    """The members of a backend module apart from kernels. Every member is optional."""

    @property
    def ARRAYS(self) -> str:  # noqa: N802
        """The top-level package of the arrays that the backend computes on. Default: ``"numpy"``."""

    @property
    def NATIVE(self) -> type | None:  # noqa: N802
        """The type whose instances need no `take`. Default: `numpy.ndarray` if `ARRAYS` is ``"numpy"``, else None."""

    @property
    def OPTIONS(self) -> Mapping[str, Any]:  # noqa: N802
        """The options that `plugrad.backends.use` accepts for the backend, and their default values.

        `check` is always one of them. `plugrad.backends.selection.options` returns the values in force.
        Default: only `check`.
        """

    @property
    def STAND_INS(self) -> Mapping[str, str]:  # noqa: N802
        """The kernels that another backend computes instead: name of the kernel → name of that backend.

        Default: none, and a call of a kernel that the module lacks raises an error.
        """

    def probe(self) -> str | None:
        """Return why the backend cannot run here, or None if it can; called before anything else. Default: it can."""

    def describe(self) -> Mapping[str, str]:
        """Return ``version``, ``threads`` and ``devices``, where they apply, for the table of backends.

        Default: nothing.
        """

    def take(self, what: str, x: Any, /) -> Array:
        """Return the argument `x` as an array of the backend, without moving data between memories.

        Raises a `TypeError` that begins with `what` and names the call to make: `plugrad.backends.asarray` for an array
        that the backend could hold, `plugrad.backends.to_numpy` for an array on a device if the backend computes on
        NumPy arrays. Default: a NumPy array.
        """

    def asarray(self, x: Any, /) -> Array:
        """Return the NumPy array `x` as an array of the backend, copied to its memory. Default: `x` itself."""

    def to_numpy(self, x: Array, /) -> Any:
        """Return `x`, an array of the backend, as a NumPy array in host memory. Default: `numpy.asarray`."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], /) -> Array:
        """Return a new C-contiguous array with undefined contents. Default: `numpy.empty`."""

    def overlap(self, a: Array, b: Array, /) -> Overlap:
        """Compare the memory of two arrays: ``"none"``, ``"same"`` (equal elements at equal places) or ``"partial"``.

        Default: by their addresses.
        """

    def prepare(self, kernel: str, /, *arguments: Any) -> Callable[[], object] | None:
        """Return a function without parameters that does what the backend's function `kernel` does with `arguments`.

        A replay of `plugrad.kernels.capture` calls it, any number of times. The arrays keep their shapes, strides and
        dtypes, and may have other contents each time: labels are checked as in every call. Results have the same bits.
        Memory that it keeps must not be views of arguments, which the caller may resize. Default: None, and a replay
        calls the function of the kernel.
        """

    def fuse(self, calls: Sequence[PreparedCall], /) -> Sequence[PreparedCall]:
        """Return calls that do what `calls`, neighbours in a capture, do one after another; fewer, if that is faster.

        All arrays of the calls are of the backend. Results have the same bits, and errors are the same ones.
        Default: the calls as they are.
        """

    def warmup(self, kernels: list[str], dtypes: list[np.dtype[Any]], /) -> None:
        """Compile these kernels for arrays of these dtypes. Default: nothing happens."""


# ---------------------------------------------------------------------------------------------------------------------
# The tables of the documentation
# ---------------------------------------------------------------------------------------------------------------------

FORMS: tuple[type, ...] = (
    Elementwise,
    ElementwiseBackward,
    ElementwiseWithOptions,
    ElementwiseBackwardWithOptions,
    Rowwise,
    RowwiseBackward,
    Affine,
    AffineBackward,
    Loss,
    LossBackward,
    LossAnd,
    LinearLoss,
    LinearLossAndGradients,
    LinearTopK,
    Accuracy,
    BinaryLossAnd,
    BinaryLossBackward,
    SGD,
    Adam,
    AdamW,
    RMSprop,
)


def forms_table() -> str:
    """The forms of kernels, as a Markdown table."""
    lines = ["| form | arguments | kernel |", "|---|---|---|"]
    for form in FORMS:
        summary = _markdown(form.__doc__ or "").partition(". ")[0].rstrip(".")
        lines.append(f"| `{form.__name__}` | `{_arguments(form.__call__)}` | {summary} |")
    return "\n".join(lines)


def hooks_table() -> str:
    """The hooks of a module, as a Markdown table."""
    lines = ["| hook | meaning |", "|---|---|"]
    for name, member in vars(Hooks).items():
        if not name.startswith("_"):
            call = "" if isinstance(member, property) else _arguments(member)
            lines.append(f"| `{name}{call}` | {_markdown(member.__doc__ or '')} |")
    return "\n".join(lines)


def _arguments(function: Any) -> str:
    """The names of the parameters but `self`, in parentheses."""
    import inspect  # slow to import, and not needed by the kernels

    return f"({', '.join(list(inspect.signature(function).parameters)[1:])})"


def _markdown(docstring: str) -> str:
    """A docstring as one line of Markdown."""
    return " ".join(docstring.replace("``", "`").split())


if __name__ == "__main__":
    print(forms_table(), hooks_table(), sep="\n\n")
