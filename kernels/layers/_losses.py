"""Losses: layers at the end of a network, which also take labels."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.calls import handed_back, library_in_force
from plugrad.backends.options import COMPUTE, BinaryLossOptions
from plugrad.backends.selection import backend_for, recorder, refuse_in_capture
from plugrad.kernels._arguments import (
    REDUCTIONS,
    Array,
    ArrayLike,
    Loss as LossValue,
    fill,
    floating,
    gradient_of_loss,
    loss_options,
    upstream,
)
from plugrad.kernels._cross_entropy import cross_entropy, cross_entropy_backward
from plugrad.kernels._sigmoid import sigmoid
from plugrad.kernels._sigmoid_cross_entropy import (
    sigmoid_cross_entropy_backward,
    sigmoid_cross_entropy_value_and_grad,
)
from plugrad.kernels._softmax import softmax
from plugrad.kernels._softmax_cross_entropy import softmax_cross_entropy_value_and_grad
from plugrad.kernels.jacobians import softmax_jacobian
from plugrad.kernels.layers._errors import errors_name_layer
from plugrad.kernels.layers._explicit import gradient_along
from plugrad.kernels.layers._layer import ComputingLayer
from plugrad.kernels.layers._memory import ResultMemory


class Loss(ComputingLayer):
    """The base class of losses: layers that also take labels.

    Parameters
    ----------
    axis : int
        The axis of the classes.
    weight : array_like, optional
        One weight per class.
    sample_weight : array_like, optional
        One weight per row, for every batch; `forward` takes those of one batch.
    ignore_index : int, optional
        The label of rows that do not count.
    label_smoothing : float
        The share in [0, 1] of each label that is spread over all classes.
    reduction : {"mean", "sum", "none"}
        How the losses of the rows are combined.
    """

    def __init__(
        self,
        *,
        axis: int = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            expected = ", ".join(REDUCTIONS)
            raise ValueError(f"{type(self).__name__}: reduction: expected one of {expected}; got {reduction!r}")
        self.options: dict[str, Any] = {
            "axis": axis,
            "weight": weight,
            "sample_weight": sample_weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
        }

    def __repr__(self) -> str:
        parameters = {**inspect.signature(Loss).parameters, **inspect.signature(type(self)).parameters}
        given = (f"{key}={value!r}" for key, value in self.options.items() if value is not parameters[key].default)
        return f"{type(self).__name__}({', '.join(given)})"

    _library: Any = None  # in whose arrays the gradient comes back, as the loss did

    def forget(self) -> None:
        """Release everything that `forward` has kept."""
        super().forget()
        self._library = None

    def _in_library(self, dx: Any) -> Array:
        result: Array = dx if self._library is None else handed_back(self._library, dx)
        return result

    @abstractmethod
    def forward(self, x: ArrayLike, t: ArrayLike | None = None) -> LossValue:
        """Compute the loss of `x` for labels `t`."""

    @abstractmethod
    def backward(self, dloss: ArrayLike = 1.0, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient of `x`, given that of the loss."""

    def _options_for(self, sample_weight: Any) -> dict[str, Any]:
        """The options of one batch."""
        return self.options if sample_weight is None else {**self.options, "sample_weight": sample_weight}

    def _upstream(self, dloss: Any, x: Any, loss: Any) -> Any:
        """Check the gradient of the loss; the number 1 stands for an array of ones."""
        backend = backend_for(x)
        if self.options["reduction"] == "none" and _is_one(dloss):
            ones = backend.empty(loss.shape, COMPUTE[x.dtype])
            fill("", 1, (ones,), backend)
            return ones
        return self._checked(dloss, x, backend)

    def _checked(self, dloss: Any, x: Any, backend: Backend) -> Any:
        """Check the gradient of the loss of `x`."""
        name, options = type(self).__name__, {"z_loss": 0.0, **self.options, "sample_weight": None}
        return upstream(name, dloss, x, loss_options(name, "x", x, backend=backend, **options), backend)

    def _name_call(self, backend: Backend) -> None:
        """Have a replay, too, name the layer in the error for a wrong label."""
        if backend.recorder is not None:
            backend.recorder.name_place(type(self).__name__)


class CrossEntropy(Loss):
    """Cross-entropy of probabilities; the options are those of `plugrad.kernels.cross_entropy`.

    Parameters
    ----------
    axis, weight, sample_weight, ignore_index, label_smoothing, reduction
        As for `plugrad.kernels.cross_entropy`.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.CrossEntropy()
    >>> loss = layer.forward([[0.5, 0.5]], [1])
    >>> layer.backward()
    array([[ 0., -2.]])
    """

    @errors_name_layer
    def forward(self, x: ArrayLike, t: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None) -> LossValue:
        """Compute the loss of probabilities `x` for labels `t`: indices, one-hot or probabilities.

        `sample_weight` has one weight per row of this batch, in place of that of the layer.
        """
        self.forget()
        backend = backend_for(x)
        p = floating("cross_entropy", "p", x, backend)
        labels: Any = t  # None is refused by the kernel
        options = self._options_for(sample_weight)
        loss = cross_entropy(p, labels, **options)
        self._name_call(backend)
        self._saved, self._library = (p, labels, options, loss), library_in_force()
        return loss

    @errors_name_layer
    def backward(self, dloss: ArrayLike = 1.0, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient of the probabilities, which is also the Jacobian of a loss."""
        p, t, options, loss = self.saved()
        checked = self._upstream(dloss, p, loss)
        if use_jacobian:
            return self._in_library(cross_entropy_backward(checked, p, t, **options))
        backend = backend_for(p)
        dp = cross_entropy_backward(checked, p, t, out=self._gradients.take(backend, p.shape, p.dtype), **options)
        self._name_call(backend)
        return self._in_library(dp)


class _LossOfLogits(Loss):
    """A loss whose gradient comes with it, by one kernel."""

    _value_and_grad: Callable[..., Any]  # that kernel, as a static method

    def _computed_with(self, options: dict[str, Any], x: Any, t: Any) -> LossValue:
        """Compute the loss of logits `x` for labels `t`, and its gradient."""
        self._saved = self._library = None
        backend = backend_for(x)
        logits = floating(self._value_and_grad.__name__, "x", x, backend)
        is_small = logits.nbytes < ResultMemory.WORTHWHILE
        out = None if is_small else self._gradients.take(backend, logits.shape, logits.dtype)
        loss: LossValue
        loss, dx = self._value_and_grad(logits, t, out=out, **options)
        self._name_call(backend)
        self._saved, self._library = (logits, t, options, loss, dx), library_in_force()
        return loss

    @errors_name_layer
    def backward(self, dloss: ArrayLike = 1.0, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient of the logits; `forward` has computed it already for the default, 1."""
        return self._in_library(self._gradient(dloss, use_jacobian))

    def _gradient(self, dloss: Any, use_jacobian: bool) -> Array:
        """Compute the gradient as an array of the backend."""
        x, t, options, loss, kept = self.saved()
        dx: Array
        if use_jacobian:
            refuse_in_capture("use_jacobian: a capture does not record it; call backward outside of the block")
            return self._backward_by_jacobian(self._upstream(dloss, x, loss), x, t, options)
        if _is_one(dloss) and kept is not None:
            self._saved = x, t, options, loss, None  # from now on it belongs to the caller, who may write to it
            dx = kept
            return dx
        recording = recorder()
        if recording is None:
            return self._scaled(dloss, x, t, options, loss)
        if not _is_one(dloss):
            dloss = self._upstream(dloss, x, loss)  # refuses what would be converted
        with recording.paused():
            dx = self._scaled(dloss, x, t, options, loss)
        recording.record(self._value_and_grad.__name__, self._scale_again, (dx, dloss, x, t, options, loss), (dx,))
        return dx

    def _scale_again(self, dx: Any, dloss: Any, x: Any, t: Any, options: Any, loss: Any) -> None:
        dx[...] = self._scaled(dloss, x, t, options, loss)

    def _scaled(self, dloss: Any, x: Any, t: Any, options: Any, loss: Any) -> Array:
        """Compute the gradient of the logits from an upstream gradient."""
        # In 16 bits the gradient may have underflowed, which no factor can undo.
        wide = x.astype(COMPUTE[x.dtype], copy=False)
        _, dx = self._value_and_grad(wide, t, **options)
        with np.errstate(all="ignore"):
            dx = dx if _is_one(dloss) else dx * self._factors(self._upstream(dloss, x, loss), x, t, options)
            scaled: Array = dx.astype(x.dtype, copy=False)
            return scaled

    @abstractmethod
    def _factors(self, dloss: Any, x: Any, t: Any, options: dict[str, Any]) -> Any:
        """Return the upstream gradient in a form that broadcasts to the gradient."""

    @abstractmethod
    def _backward_by_jacobian(self, dloss: Any, x: Any, t: Any, options: dict[str, Any]) -> Array:
        """Compute the gradient from the result of the activation."""


class SoftmaxWithLoss(_LossOfLogits):
    """Softmax and cross-entropy in one, for logits; the gradient is ``(y - t) / N`` of the mean.

    Labels are indices, one-hot or probabilities.

    Parameters
    ----------
    axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction
        As for `plugrad.kernels.softmax_cross_entropy`.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.SoftmaxWithLoss()
    >>> loss = layer.forward([[0.0, 0.0]], [1])
    >>> layer.backward()
    array([[ 0.5, -0.5]])
    """

    _value_and_grad = staticmethod(softmax_cross_entropy_value_and_grad)

    def __init__(
        self,
        *,
        axis: int = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            axis=axis,
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
        self.options["z_loss"] = z_loss

    @errors_name_layer
    def forward(self, x: ArrayLike, t: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None) -> LossValue:
        """Compute the loss of logits `x` for labels `t` (indices, one-hot or probabilities), and its gradient.

        `sample_weight` has one weight per row of this batch, in place of that of the layer.
        """
        return self._computed_with(self._options_for(sample_weight), x, t)

    def _factors(self, dloss: Any, x: Any, t: Any, options: dict[str, Any]) -> Any:
        sample_weight = options["sample_weight"]
        axis, ignore, backend = self.options["axis"] % x.ndim, self.options["ignore_index"], backend_for(x)
        rows = x.shape[:axis] + x.shape[axis + 1 :]
        if ignore is not None or sample_weight is not None:
            # Rows that do not count get 0 even where the upstream gradient is infinite.
            each = backend.empty(rows, COMPUTE[x.dtype])
            each[...] = dloss
            if ignore is not None:
                each[backend.take("t", t) == ignore] = 0
            if sample_weight is not None:
                each[backend.take("sample_weight", sample_weight) == 0] = 0
            dloss = each
        return dloss.reshape((*rows[:axis], 1, *rows[axis:])) if getattr(dloss, "ndim", 0) else dloss

    def _backward_by_jacobian(self, dloss: Any, x: Any, t: Any, options: dict[str, Any]) -> Array:
        if options["z_loss"]:
            raise ValueError("use_jacobian: expected no z_loss, which is no loss of the probabilities")
        wide = x.astype(COMPUTE[x.dtype], copy=False)
        y = softmax(wide, axis=options["axis"])
        dy = cross_entropy_backward(dloss, y, t, **{name: options[name] for name in options if name != "z_loss"})
        dx: Array = gradient_along(self.options["axis"], dy, y, softmax_jacobian).astype(x.dtype, copy=False)
        return dx


class SigmoidWithLoss(_LossOfLogits):
    """Sigmoid and binary cross-entropy in one, for logits that are two classes each, such as those of several labels.

    The gradient is ``(y - t) / N`` of the mean. Labels lie in [0, 1], one for each logit.

    Parameters
    ----------
    weight, pos_weight, ignore_index, label_smoothing, reduction
        As for `plugrad.kernels.sigmoid_cross_entropy`.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.SigmoidWithLoss()
    >>> loss = layer.forward([[0.0, 0.0]], [[0, 1]])
    >>> layer.backward()
    array([[ 0.25, -0.25]])
    """

    _value_and_grad = staticmethod(sigmoid_cross_entropy_value_and_grad)

    def __init__(
        self,
        *,
        weight: ArrayLike | None = None,
        pos_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
        del self.options["axis"], self.options["sample_weight"]
        self.options["pos_weight"] = pos_weight

    @errors_name_layer
    def forward(self, x: ArrayLike, t: ArrayLike | None = None) -> LossValue:
        """Compute the loss of logits `x` for labels `t`, and its gradient."""
        return self._computed_with(self.options, x, t)

    def _checked(self, dloss: Any, x: Any, backend: Backend) -> Any:
        shape, reduction = x.shape, self.options["reduction"]
        return gradient_of_loss(type(self).__name__, dloss, shape if reduction == "none" else (), reduction, backend)

    def _factors(self, dloss: Any, x: Any, t: Any, options: dict[str, Any]) -> Any:
        backend = backend_for(x)
        labels = backend.take("t", t)
        ignored = BinaryLossOptions("", None, None, options["ignore_index"], 0.0, "").ignored_label(labels.dtype)
        if ignored is None:
            return dloss
        each = backend.empty(x.shape, COMPUTE[x.dtype])  # elements that do not count get 0 even from infinity
        each[...] = dloss
        each[labels == ignored] = 0
        return each

    def _backward_by_jacobian(self, dloss: Any, x: Any, t: Any, options: dict[str, Any]) -> Array:
        wide = x.astype(COMPUTE[x.dtype], copy=False)  # the Jacobian of a loss of elements is its gradient
        dx: Array = sigmoid_cross_entropy_backward(dloss, sigmoid(wide), t, **options).astype(x.dtype, copy=False)
        return dx


def _is_one(dloss: Any) -> bool:
    """Return whether an upstream gradient is the number 1; arrays, which may lie on a GPU, are not read."""
    return isinstance(dloss, float | int) and dloss == 1
