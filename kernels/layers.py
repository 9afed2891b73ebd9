"""Layers: objects that keep what the backward pass needs, for training loops written with less text.

A layer calls the kernels, on the backend in force, and computes nothing by itself. ``forward`` keeps what ``backward``
needs until the next ``forward``; what it is given is kept as it is, not copied, so write nothing into it in between.
Results are computed in memory that a layer uses again once nobody holds them: from the third step of a training loop
on no layer allocates anything, and a result that you keep stays what it is. (The NumPy backend takes up to 2 MiB for
pieces of what it computes.) Results that the layer still needs are read-only (on a GPU, where there is no such thing,
they are copies). A layer is for one thread at a time.
"""

import copy
import errno
import importlib
import inspect
import math
import os
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from plugrad import backends
from plugrad.backends.options import COMPUTE, FLOAT64, is_supported
from plugrad.backends.selection import backend_for
from plugrad.kernels._affine import GRADIENTS, affine, affine_backward, biases
from plugrad.kernels._arguments import (
    REDUCTIONS,
    Array,
    floating,
    integer,
    loss_options,
    promoted,
    upstream,
)
from plugrad.kernels._buffers import Buffers
from plugrad.kernels._cross_entropy import cross_entropy, cross_entropy_backward
from plugrad.kernels._relu import relu, relu_backward
from plugrad.kernels._sigmoid import sigmoid, sigmoid_backward
from plugrad.kernels._softmax import softmax, softmax_backward
from plugrad.kernels._softmax_cross_entropy import softmax_cross_entropy_value_and_grad
from plugrad.kernels.jacobians import affine_jacobian, relu_jacobian, sigmoid_jacobian, softmax_jacobian

__all__ = [
    "Affine",
    "CrossEntropy",
    "Layer",
    "Loss",
    "MatMul",
    "Relu",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SoftmaxWithLoss",
]

SCHEMES = ("he", "xavier")

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Layer(ABC):
    """What all layers have in common. A layer of your own is a class derived from it.

    ``forward`` keeps what ``backward`` needs (`keep`, `saved`), and neither writes to what it is given. If there are
    parameters, `names` says which attributes hold them, and for each there is an array for its gradient from the
    beginning, such as ``dw`` for ``w``, which ``backward`` writes over. A layer made of layers is a class derived from
    `Sequential`. One that is not to be checked by Jacobians need not take ``use_jacobian``.

    Attributes
    ----------
    names : tuple of str
        The attributes that hold the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad.kernels import gradcheck, layers
    >>> class Tanh(layers.Layer):
    ...     def forward(self, x):
    ...         return self.keep(np.tanh(x))
    ...
    ...     def backward(self, dy):
    ...         return dy * (1 - self.saved() ** 2)
    >>> bool(gradcheck.check(Tanh(), [[0.5, -1.0]]))
    True
    """

    names: tuple[str, ...] = ()
    _saved: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def forward(self, x: Any) -> Array:
        """Compute the result for inputs `x`."""

    @abstractmethod
    def backward(self, dy: Any) -> Array:
        """Compute the gradients, given that of the result: of the inputs, returned, and of the parameters, kept.

        The layers of this module also take ``use_jacobian=True``, and compute them through the explicit Jacobian then,
        which is slow and for checking.
        """

    @property
    def params(self) -> tuple[Array, ...]:
        """The parameters: the arrays themselves, to be updated where they are."""
        return tuple([getattr(self, name) for name in self.names])

    @property
    def grads(self) -> tuple[Array, ...]:
        """Their gradients, in the same order: zeros at first; each backward writes over those of the last."""
        return tuple([getattr(self, f"d{name}") for name in self.names])

    def forget(self) -> None:
        """Let go of what `forward` has kept."""
        self._saved = None

    def keep(self, value: Any) -> Any:
        """Keep something for `backward`; it is returned as well."""
        self._saved = value
        return value

    def saved(self) -> Any:
        """What `forward` has kept; an error tells if it was not called."""
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__}: backward: call forward first, there is nothing to go back from")
        return self._saved

    def astype(self, dtype: Any) -> Self:
        """A layer of its own that has these parameters in another dtype."""
        if not is_supported(np.dtype(dtype)):
            raise TypeError(f"{type(self).__name__}.astype: dtype: expected a floating dtype, got {np.dtype(dtype)}")
        other = copy.deepcopy(self)
        other.forget()
        for name, parameter in zip(self.names, self.params, strict=True):
            setattr(other, name, parameter.astype(dtype))
            setattr(other, f"d{name}", _zeros(getattr(other, name)))
        return other

    # -----------------------------------------------------------------------------------------------------------------
    # Parameters by name
    # -----------------------------------------------------------------------------------------------------------------

    def named_params(self) -> Iterator[tuple[str, Array]]:
        """The parameters with their names."""
        yield from zip(self.names, self.params, strict=True)

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the parameters by name, as NumPy arrays."""
        return {name: np.array(backends.to_numpy(parameter), order="C") for name, parameter in self.named_params()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy parameters from such a dictionary into those of this layer.

        Raises
        ------
        TypeError
            If a value is no array of float16, bfloat16, float32 or float64.
        ValueError
            If a name is missing or not known, a shape differs, or a value would lose digits in the parameter's dtype.
            Nothing is changed in either case.
        """
        name = type(self).__name__
        if not isinstance(state, Mapping):
            kind = type(state).__qualname__
            raise TypeError(f"{name}.load_state_dict: state: expected a dictionary, as state_dict returns, got {kind}")
        params = dict(self.named_params())
        if missing := params.keys() - state.keys():
            raise ValueError(f"{name}.load_state_dict: missing: {', '.join(sorted(missing))}")
        if unknown := state.keys() - params.keys():
            found = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"{name}.load_state_dict: unknown: {found}; expected {', '.join(params)}")
        loaded = {}
        for key, parameter in params.items():
            value = np.asarray(state[key])
            if not is_supported(value.dtype) or isinstance(state[key], np.ma.MaskedArray):
                kind = f"dtype {value.dtype}" if not is_supported(value.dtype) else "a masked array"
                raise TypeError(f"{name}.load_state_dict: {key}: expected floating numbers, got {kind}")
            if value.shape != parameter.shape:
                raise ValueError(f"{name}.load_state_dict: {key}: expected shape {parameter.shape}, got {value.shape}")
            with np.errstate(all="ignore"):
                loaded[key] = value.astype(parameter.dtype)
                same = np.array_equal(loaded[key].astype(FLOAT64), value.astype(FLOAT64), equal_nan=True)
            if not same:
                raise ValueError(
                    f"{name}.load_state_dict: {key}: values of dtype {value.dtype} would lose digits in "
                    f"{parameter.dtype}; load them into layer.astype('{value.dtype}'), or round them yourself"
                )
        for key, parameter in params.items():
            parameter[...] = backend_for(parameter).asarray(loaded[key])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a file: ``.npz``, or ``.safetensors``, for which the package of that name is needed.

        A file appears whole or not at all. NumPy's format does not know bfloat16, which is stored as float32.
        """
        state, target = self.state_dict(), self._path("save", path)
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.", suffix=".part", dir=target.parent) as folder:
            part = Path(folder) / target.name
            if target.suffix == ".npz":
                plain = {key: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for key, a in state.items()}
                np.savez(part, allow_pickle=False, **plain)
            else:
                part.write_bytes(_safetensors().save(state))
            part.replace(target)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the parameters from such a file; nothing in it is ever run.

        Raises
        ------
        TypeError, ValueError
            As for `load_state_dict`, and a `ValueError` if the file is not of its kind.
        """
        source = self._path("load", path)
        shapes = {name: parameter.shape for name, parameter in self.named_params()}
        read = partial(_read_npz, shapes=shapes) if source.suffix == ".npz" else _safetensors().load_file
        with source.open("rb"):
            pass  # an error that tells if there is none, or it cannot be read
        try:
            state = read(source)
        except MemoryError:
            raise
        except Exception as error:  # of the format: zipfile, NumPy and safetensors each have exceptions of their own
            raise ValueError(
                f"{type(self).__name__}.load: {path}: cannot be read as {source.suffix}: {error}"
            ) from error
        self.load_state_dict(state)

    def _path(self, method: str, path: str | os.PathLike[str]) -> Path:
        """The path of a file for parameters."""
        file = Path(path)
        if file.suffix not in (".npz", ".safetensors"):
            kind = type(self).__name__
            raise ValueError(f"{kind}.{method}: path: expected a name in .npz or .safetensors, got {path}")
        return file


def _read_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What is in a file; of what has another name or shape than a parameter, the shape: it could be of any size."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is none")
    state: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as file:
        for member, key in zip(file.zip.namelist(), file.files, strict=True):
            if key in state:
                raise ValueError(f"it has several arrays named {key!r}")
            with file.zip.open(member) as opened:
                version = np.lib.format.read_magic(opened)
                shape, *_ = NPY_HEADERS[version](opened)
            fits = shape == shapes.get(key)
            state[key] = file[key] if fits else np.broadcast_to(np.float32(0), shape)
    return state


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "files in .safetensors need the package of that name; install it with: python -m pip install safetensors, "
            "or take a name in .npz"
        ) from error


class _Computing(Layer):
    """A layer of this module, with the memory that it computes in."""

    def __init__(self) -> None:
        self._results, self._gradients = Buffers(), Buffers()


class Affine(_Computing):
    """Affine layer, ``y = x w + b``; `MatMul` if there is no bias.

    Parameters
    ----------
    w : array_like
        Weights, shape ``(in, out)``. They are copied.
    b : array_like, optional
        Biases, shape ``(out,)``. They are copied.

    Attributes
    ----------
    w, b, dw, db : array
        The parameters, and their gradients by the last `backward`.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Affine([[1.0, 0.0], [0.0, 1.0]], [10.0, 20.0])
    >>> layer.forward([[1.0, 2.0]])
    array([[11., 22.]])
    >>> layer.backward([[1.0, 1.0]])
    array([[1., 1.]])
    >>> layer.dw
    array([[1., 1.],
           [2., 2.]])
    """

    names: tuple[str, ...] = ("w", "b")

    def __init__(self, w: Any, b: Any = None) -> None:
        super().__init__()
        name = type(self).__name__
        backend = backend_for(w)
        w = floating(name, "w", w, backend)
        if w.ndim != 2:
            raise ValueError(f"{name}: w: expected shape (in, out), got {w.shape}")
        b = None if b is None else biases(name, b, w, backend)
        if b is None:
            self.names = ("w",)
        elif b.dtype != w.dtype:
            w, b = promoted((w, b))
        self.w: Array = w.copy()
        self.b: Array = None if b is None else b.copy()
        self.dw: Array = _zeros(w)
        self.db: Array = None if b is None else _zeros(b)

    @classmethod
    def init(cls, inputs: int, outputs: int, *, rng: Any = None, scheme: str = "he", dtype: Any = np.float32) -> Self:
        """A layer with weights drawn at random, and biases of 0, on the current backend.

        Parameters
        ----------
        inputs, outputs : int
            The shape of the weights.
        rng : numpy.random.Generator or int, optional
            What draws them, or a seed: the same numbers on every backend.
        scheme : {"he", "xavier"}
            The variance: ``2 / inputs``, which keeps that of activations from layer to layer under ReLU (He et al.,
            "Delving deep into rectifiers", 2015), or ``2 / (inputs + outputs)``, for sigmoid and softmax (Glorot and
            Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010). The numbers
            are normal.
        dtype : dtype
            Of the parameters.

        Examples
        --------
        >>> from plugrad.kernels import layers
        >>> layers.Affine.init(784, 128, rng=0)
        Affine(784, 128)
        """
        for name, size in (("inputs", inputs), ("outputs", outputs)):
            if isinstance(size, bool) or not isinstance(size, int | np.integer):
                raise TypeError(f"{cls.__name__}.init: {name}: expected a positive integer, got {size!r}")
            if size < 1:
                raise ValueError(f"{cls.__name__}.init: {name}: expected a positive integer, got {size}")
        if scheme not in SCHEMES:
            raise ValueError(f"{cls.__name__}.init: scheme: expected one of {', '.join(SCHEMES)}; got {scheme!r}")
        if not is_supported(np.dtype(dtype)):
            raise TypeError(f"{cls.__name__}.init: dtype: expected a floating dtype, got {np.dtype(dtype)}")
        variance = 2 / inputs if scheme == "he" else 2 / (inputs + outputs)
        w = np.random.default_rng(rng).normal(scale=np.sqrt(variance), size=(inputs, outputs)).astype(dtype)
        return cls._of(backends.asarray(w), backends.asarray(np.zeros(outputs, dtype)))

    @classmethod
    def _of(cls, w: Array, b: Array) -> Self:
        return cls(w, b)

    def __repr__(self) -> str:
        inputs, outputs = self.w.shape
        without = ", no bias" if self.b is None and type(self) is Affine else ""
        return f"{type(self).__name__}({inputs}, {outputs}{without})"

    def forward(self, x: Any) -> Array:
        """Compute ``x w + b`` for inputs of shape ``(..., in)``; a vector is one row."""
        self._saved = None
        w = self.w
        backend = backend_for(w)
        x = floating("affine", "x", x, backend)
        out = self._results.take(backend, x.shape[:-1] + w.shape[1:], w.dtype) if x.dtype == w.dtype else None
        y = affine(x, w, self.b, out=out)
        self._saved = x
        return y

    def backward(self, dy: Any, *, use_jacobian: bool = False, needs_dx: bool = True) -> Array:
        """Compute ``dw = x^T dy`` and ``db``, which are kept, and return ``dx = dy w^T``, if that is needed."""
        x, w = self.saved(), self.w
        backend = backend_for(w)
        dy = floating("affine_backward", "dy", dy, backend)
        if use_jacobian:
            return self._by_jacobian(dy, x)
        has_bias = self.b is not None
        needs = GRADIENTS if needs_dx and has_bias else ("dw", *("dx",) * needs_dx, *("db",) * has_bias)
        if not dy.dtype == x.dtype == w.dtype:
            dx, dw, db = affine_backward(dy, x, w, needs=needs)
            with np.errstate(all="ignore"):  # what the dtype of the parameters cannot hold becomes infinite, or 0
                self.dw[...] = dw
                if db is not None:
                    self.db[...] = db
            return dx
        dx = self._gradients.take(backend, x.shape, x.dtype) if needs_dx else None
        return affine_backward(dy, x, w, needs=needs, out=(dx, self.dw, self.db))[0]

    def _by_jacobian(self, dy: Array, x: Array) -> Array:
        shape = x.shape[:-1] + self.w.shape[1:]
        dy_dx, dy_dw, dy_db = affine_jacobian(x, self.w)
        self.dw[...] = _through(dy, dy_dw, shape).reshape(-1, *self.w.shape).sum(axis=0)
        if self.b is not None:
            self.db[...] = _through(dy, dy_db, shape).reshape(-1, *self.b.shape).sum(axis=0)
        return _through(dy, dy_dx, shape).astype(dy_dx.dtype, copy=False)


class MatMul(Affine):
    """Matrix product, ``y = x w``.

    Parameters
    ----------
    w : array_like
        Weights, shape ``(in, out)``. They are copied.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layers.MatMul([[1.0], [2.0]]).forward([[3.0, 4.0]])
    array([[11.]])
    """

    def __init__(self, w: Any) -> None:
        super().__init__(w)

    @classmethod
    def _of(cls, w: Array, b: Array) -> Self:
        return cls(w)


class _Activation(_Computing):
    """A layer without parameters, whose backward pass needs its result."""

    _kernel: Callable[..., Array]
    _backward_kernel: Callable[..., Array]
    _jacobian: Callable[..., Array]
    axis: int | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.axis in (None, -1) else self.axis})"

    def forward(self, x: Any) -> Array:
        """Compute the result for inputs `x`."""
        return _lent(self.unprotected(x))

    def unprotected(self, x: Any, in_place: bool = False) -> Array:
        """The result itself, for those who do not write to it; if `in_place`, where the argument was."""
        self._saved = None  # first of all, so that its memory can be used again
        backend, kernel = backend_for(x), self._kernel
        x = floating(kernel.__name__, "x", x, backend)
        out = x if in_place else self._results.take(backend, x.shape, x.dtype)
        self._saved = kernel(x, out=out) if self.axis is None else kernel(x, axis=self.axis, out=out)
        return self._saved

    def backward(self, dy: Any, *, use_jacobian: bool = False, in_place: bool = False) -> Array:
        """Compute the gradient of the inputs; if `in_place`, where `dy` was."""
        y, kernel, axis = self.saved(), self._backward_kernel, self.axis
        backend = backend_for(y)
        dy = floating(kernel.__name__, "dy", dy, backend)
        if use_jacobian:
            return _by_rows(dy, y, self._jacobian, -1 if axis is None else axis)
        out = dy if in_place else self._gradients.take(backend, y.shape, y.dtype)
        out = out if dy.dtype == y.dtype else None
        return kernel(dy, y, out=out) if axis is None else kernel(dy, y, axis=axis, out=out)


class Relu(_Activation):
    """Rectified linear unit, ``y = max(x, 0)``; ``dx = dy`` where ``y > 0``, else 0.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Relu()
    >>> layer.forward([-1.0, 2.0])
    array([0., 2.])
    >>> layer.backward([5.0, 5.0])
    array([0., 5.])
    """

    _kernel = staticmethod(relu)
    _backward_kernel = staticmethod(relu_backward)
    _jacobian = staticmethod(relu_jacobian)


class Sigmoid(_Activation):
    """Logistic sigmoid, ``y = 1 / (1 + exp(-x))``; ``dx = dy y (1 - y)``.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Sigmoid()
    >>> layer.forward([0.0])
    array([0.5])
    >>> layer.backward([4.0])
    array([1.])
    """

    _kernel = staticmethod(sigmoid)
    _backward_kernel = staticmethod(sigmoid_backward)
    _jacobian = staticmethod(sigmoid_jacobian)


class Softmax(_Activation):
    """Softmax, ``y_j = exp(x_j) / sum(exp(x_k))``; ``dx_j = y_j (dy_j - sum(dy_k y_k))``.

    Parameters
    ----------
    axis : int
        The axis of the classes.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.Softmax()
    >>> layer.forward([[0.0, 0.0]])
    array([[0.5, 0.5]])
    >>> layer.backward([[1.0, 0.0]])
    array([[ 0.25, -0.25]])
    """

    _kernel = staticmethod(softmax)
    _backward_kernel = staticmethod(softmax_backward)
    _jacobian = staticmethod(softmax_jacobian)

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = integer("Softmax", "axis", axis, "one integer")


class Loss(_Computing):
    """A layer at the end, which also takes labels.

    Parameters
    ----------
    axis : int
        The axis of the classes.
    weight : array_like, optional
        One weight per class.
    ignore_index : int, optional
        The label of rows that do not count.
    label_smoothing : float
        The share in [0, 1] of each label that is spread over all classes.
    reduction : {"mean", "sum", "none"}
        What becomes of the losses of the rows.
    """

    def __init__(
        self,
        *,
        axis: int = -1,
        weight: Any = None,
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
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
        }

    def __repr__(self) -> str:
        default = type(self)().options
        given = (f"{key}={value!r}" for key, value in self.options.items() if value is not default[key])
        return f"{type(self).__name__}({', '.join(given)})"

    @abstractmethod
    def forward(self, x: Any, t: Any = None) -> Array:
        """Compute the loss of `x` against labels `t`."""

    @abstractmethod
    def backward(self, dloss: Any = 1.0, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient of `x`, given that of the loss."""

    def _upstream(self, dloss: Any, x: Array, loss: Array) -> Any:
        """The gradient of the loss, which is 1 for each if it is 1."""
        backend = backend_for(x)
        if self.options["reduction"] == "none" and _is_one(dloss):
            return backend.asarray(np.ones(loss.shape, COMPUTE[x.dtype]))
        name = type(self).__name__
        return upstream(name, dloss, x, loss_options(name, "x", x, backend=backend, **self.options), backend)


class CrossEntropy(Loss):
    """Cross-entropy of probabilities against labels; the options are those of `plugrad.kernels.cross_entropy`.

    Parameters
    ----------
    axis, weight, ignore_index, label_smoothing, reduction
        As for `plugrad.kernels.cross_entropy`.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.CrossEntropy()
    >>> loss = layer.forward([[0.5, 0.5]], [1])
    >>> layer.backward()
    array([[ 0., -2.]])
    """

    def forward(self, x: Any, t: Any = None) -> Array:
        """Compute the loss of probabilities `x` against labels `t`: indices, one-hot or probabilities."""
        self.forget()
        p = floating(type(self).__name__, "x", x, backend_for(x))
        loss = cross_entropy(p, t, **self.options)
        self._saved = p, t, loss
        return loss

    def backward(self, dloss: Any = 1.0, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient with respect to the probabilities, which is the Jacobian of a loss."""
        p, t, loss = self.saved()
        dloss = self._upstream(dloss, p, loss)
        if use_jacobian:
            return cross_entropy_backward(dloss, p, t, **self.options)
        out = self._gradients.take(backend_for(p), p.shape, p.dtype)
        return cross_entropy_backward(dloss, p, t, out=out, **self.options)


class SoftmaxWithLoss(Loss):
    """Softmax and cross-entropy in one, for logits; the gradient is ``y - t``.

    Parameters
    ----------
    axis, weight, ignore_index, label_smoothing, reduction
        As for `plugrad.kernels.softmax_cross_entropy`.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> layer = layers.SoftmaxWithLoss()
    >>> loss = layer.forward([[0.0, 0.0]], [1])
    >>> layer.backward()
    array([[ 0.5, -0.5]])
    """

    def forward(self, x: Any, t: Any = None) -> Array:
        """Compute the loss of logits `x` against labels `t` (indices, one-hot or probabilities), and its gradient."""
        self.forget()
        backend = backend_for(x)
        x = floating(type(self).__name__, "x", x, backend)
        dx = self._gradients.take(backend, x.shape, x.dtype)
        loss, dx = softmax_cross_entropy_value_and_grad(x, t, out=dx, **self.options)
        self._saved = x, t, loss, dx
        return loss

    def backward(self, dloss: Any = 1.0, *, use_jacobian: bool = False) -> Array:
        """Compute the gradient with respect to the logits; for 1, the default, it is there already, once."""
        x, t, loss, dx = self.saved()
        if use_jacobian:
            return self._by_jacobian(self._upstream(dloss, x, loss), x, t)
        if _is_one(dloss) and dx is not None:
            self._saved = x, t, loss, None  # it is the caller's now, who may write to it
            return dx
        wide = x.astype(COMPUTE[x.dtype], copy=False)  # what underflows in 16 bits is not to be had back by a factor
        _, dx = softmax_cross_entropy_value_and_grad(wide, t, **self.options)
        with np.errstate(all="ignore"):
            dx = dx if _is_one(dloss) else dx * self._factors(self._upstream(dloss, x, loss), x, t)
            return dx.astype(x.dtype, copy=False)

    def _factors(self, dloss: Any, x: Array, t: Any) -> Any:
        """A gradient that arrives, in a form that the gradients of all rows can be multiplied by."""
        axis, ignore, backend = self.options["axis"] % x.ndim, self.options["ignore_index"], backend_for(x)
        rows = x.shape[:axis] + x.shape[axis + 1 :]
        if ignore is not None:  # 0 for rows that do not count, whatever arrives there
            each = backend.empty(rows, COMPUTE[x.dtype])
            each[...] = dloss
            each[backend.take("t", t) == ignore] = 0
            dloss = each
        return dloss.reshape((*rows[:axis], 1, *rows[axis:])) if getattr(dloss, "ndim", 0) else dloss

    def _by_jacobian(self, dloss: Any, x: Array, t: Any) -> Array:
        wide = x.astype(COMPUTE[x.dtype], copy=False)
        y = softmax(wide, axis=self.options["axis"])
        dy = cross_entropy_backward(dloss, y, t, **self.options)
        return _by_rows(dy, y, softmax_jacobian, self.options["axis"]).astype(x.dtype, copy=False)


class Sequential(Layer):
    """Layers one after another.

    Parameters
    ----------
    *layers : Layer
        In the order of the forward pass.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> net = layers.Sequential(layers.Affine.init(2, 8, rng=0), layers.Relu(), layers.Affine.init(8, 3, rng=1))
    >>> net.forward([[1.0, 2.0]]).shape
    (1, 3)
    >>> [p.shape for p in net.params]
    [(2, 8), (8,), (8, 3), (3,)]
    """

    def __init__(self, *layers: Layer) -> None:
        for position, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"Sequential: layer {position}: expected a Layer, got {type(layer).__qualname__}")
            if isinstance(layer, Loss):
                raise TypeError(
                    f"Sequential: layer {position}: {layer!r} needs labels as well; keep it beside the network"
                )
        seen: set[int] = set()
        for layer in _all_layers(layers):
            if id(layer) in seen:
                raise ValueError(f"Sequential: expected each layer once, also inside of others, got {layer!r} twice")
            seen.add(id(layer))
        self._arrange(layers)

    def _arrange(self, layers: tuple[Layer, ...]) -> None:
        self.layers = layers
        # Between layers of this module nobody else sees what goes to and fro: results need no protection there, and
        # between a product and a ReLU, the result of the latter and its gradient take the place of what they come from.
        # (Other activations would need other memory, which some backends take anew each time.)
        own = [type(layer) in OWN for layer in layers]
        is_product = [type(layer) in (Affine, MatMul) for layer in layers]
        self._forwards: list[Callable[..., Array]] = []
        self._backwards: list[Callable[..., Array]] = []
        for position, layer in enumerate(layers):
            is_inner = isinstance(layer, _Activation) and own[position] and own[position + 1 : position + 2] == [True]
            takes_x = type(layer) is Relu and is_product[max(0, position - 1)]
            takes_dy = type(layer) is Relu and is_product[position + 1 : position + 2] == [True]
            forward: Callable[..., Array] = layer.forward
            backward: Callable[..., Array] = layer.backward
            if is_inner and isinstance(layer, _Activation):
                forward = partial(layer.unprotected, in_place=True) if takes_x else layer.unprotected
            self._forwards.append(forward)
            self._backwards.append(partial(backward, in_place=True) if takes_dy else backward)
        self._first = next((i for i, layer in enumerate(layers) if layer.params), len(layers))  # that has parameters
        self._saves_dx = False
        if self._first < len(layers):
            self._saves_dx = "needs_dx" in inspect.signature(layers[self._first].backward).parameters

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, position: int) -> Layer:
        return self.layers[position]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @property
    def params(self) -> tuple[Array, ...]:
        """The parameters of all layers."""
        return tuple([parameter for layer in self.layers for parameter in layer.params])

    @property
    def grads(self) -> tuple[Array, ...]:
        """Their gradients, in the same order."""
        return tuple([gradient for layer in self.layers[self._first :] for gradient in layer.grads])

    def named_params(self) -> Iterator[tuple[str, Array]]:
        """The parameters with their names: the number of the layer, a full stop and the name there."""
        for position, layer in enumerate(self.layers):
            for name, parameter in layer.named_params():
                yield f"{position}.{name}", parameter

    def forget(self) -> None:
        """Let go of what the forward pass has kept."""
        for layer in self.layers:
            layer.forget()

    def astype(self, dtype: Any) -> Self:
        """A network of its own that has these parameters in another dtype."""
        other = copy.copy(self)
        other._arrange(tuple(layer.astype(dtype) for layer in self.layers))
        return other

    def forward(self, x: Any) -> Array:
        """Compute the result of the last layer."""
        self.forget()  # so that no layer holds what another one is about to compute anew
        for forward in self._forwards:
            x = forward(x)
        return x

    def backward(self, dy: Any, *, use_jacobian: bool = False, needs_dx: bool = True) -> Array:
        """Compute all gradients; None is returned, and the work saved, if that of the inputs is not needed."""
        given = {"use_jacobian": True} if use_jacobian else {}
        for backward in reversed(self._backwards[0 if needs_dx else self._first + 1 :]):
            dy = backward(dy, **given)
        if needs_dx:
            return dy
        for backward in self._backwards[self._first : self._first + 1]:
            backward(dy, **given, **({"needs_dx": False} if self._saves_dx else {}))
        return None


def _all_layers(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Layers, and those inside of them."""
    for layer in layers:
        yield layer
        if isinstance(layer, Sequential):
            yield from _all_layers(layer.layers)


OWN = frozenset({Affine, MatMul, Relu, Sigmoid, Softmax})  # layers of this module, not of classes derived from them


def _is_one(dloss: Any) -> bool:
    """Whether a gradient that arrives is the number 1; arrays are not looked into, they may lie on a GPU."""
    return isinstance(dloss, float | int) and dloss == 1


def _zeros(parameter: Array) -> Array:
    """The gradient of a parameter to begin with."""
    gradient = parameter.copy()
    gradient[...] = 0
    return gradient


def _lent(y: Array) -> Array:
    """An array that the caller cannot overwrite, of what a layer needs itself."""
    if not isinstance(y, np.ndarray):
        return y.copy()
    view = y.view()
    view.flags.writeable = False
    return view


def _by_rows(dy: Array, y: Array, jacobian: Callable[..., Array], axis: int) -> Array:
    """The gradient by the Jacobians of rows along an axis."""
    if y.ndim < 2:
        return _through(dy, jacobian(y), y.shape).astype(y.dtype, copy=False)
    rows = y.swapaxes(axis, -1)
    if dy.shape == y.shape:
        dy = dy.swapaxes(axis, -1)
    return _through(dy, jacobian(rows), rows.shape).swapaxes(axis, -1).astype(y.dtype, copy=False)


def _through(dy: Array, jacobian: Array, expected: tuple[int, ...]) -> Array:
    """The gradient of each row by its Jacobian, ``sum_i dy_i jacobian_i``, in the shape of the argument's row."""
    if dy.shape != expected:
        raise ValueError(f"use_jacobian: dy: expected shape {expected}, got {dy.shape}")
    dtype, arguments = COMPUTE[jacobian.dtype], jacobian.shape[len(expected) :]
    rows, outputs, inputs = math.prod(expected[:-1]), expected[-1], math.prod(arguments)
    factors = dy.astype(dtype, copy=False).reshape(rows, 1, outputs)
    found = factors @ jacobian.astype(dtype, copy=False).reshape(rows, outputs, inputs)
    return found.reshape(*expected[:-1], *arguments)
