"""The base class of all layers, and that of the layers of this package."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from plugrad import backends
from plugrad.backends.options import FLOAT64, is_supported
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels.layers import _files
from plugrad.kernels.layers._memory import ResultMemory


class Layer(ABC):
    """The base class of layers; derive your own from it.

    ``forward`` keeps what ``backward`` needs (see `keep` and `saved`). Neither writes to its arguments. `names` lists
    the attributes that hold parameters. The attribute for the gradient of ``w`` is ``dw``: it exists from the
    beginning, and ``backward`` overwrites it. Derive a layer that consists of layers from `Sequential`. A layer need
    not accept ``use_jacobian``, unless it is to be checked by Jacobians.

    Attributes
    ----------
    names : tuple of str
        The attributes that hold the parameters.
    training : bool
        Whether the network is being trained, or used: layers such as `Dropout` compute differently. True at first;
        `Sequential` passes it on to its layers.

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
    training: bool = True
    _saved: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`: ``net(x)`` is ``net.forward(x)``."""
        return self.forward(*args, **kwargs)

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Compute the result for inputs `x`."""

    @abstractmethod
    def backward(self, dy: Any) -> Any:
        """Return the gradient of the inputs, and store those of the parameters, given the gradient of the result.

        The layers of this package also accept ``use_jacobian=True`` and then use explicit Jacobians, which is slow
        and meant for checking.
        """

    @property
    def params(self) -> tuple[Array, ...]:
        """The parameters: the arrays themselves, to be updated in place."""
        return tuple([getattr(self, name) for name in self.names])

    @property
    def grads(self) -> tuple[Array, ...]:
        """The gradients of the parameters, in the same order: zeros at first, overwritten by each backward."""
        return tuple([getattr(self, f"d{name}") for name in self.names])

    def forget(self) -> None:
        """Release everything that `forward` has kept."""
        self._saved = None

    def keep(self, value: Any) -> Any:
        """Keep a value for `backward`, and return it."""
        self._saved = value
        return value

    def saved(self) -> Any:
        """Return the value that `forward` has kept; raise a RuntimeError if `forward` has not been called."""
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__}: backward: call forward first")
        return self._saved

    def astype(self, dtype: Any) -> Self:
        """Return a copy of the layer whose parameters have another dtype."""
        dtype = floating_dtype(f"{type(self).__name__}.astype", dtype)
        other = copy.deepcopy(self)
        other.forget()
        for name, parameter in zip(self.names, self.params, strict=True):
            setattr(other, name, parameter.astype(dtype))
            setattr(other, f"d{name}", zeros_like(getattr(other, name)))
        return other

    # -----------------------------------------------------------------------------------------------------------------
    # Parameters by name
    # -----------------------------------------------------------------------------------------------------------------

    def named_params(self) -> Iterator[tuple[str, Array]]:
        """Iterate over the parameters with their names."""
        yield from zip(self.names, self.params, strict=True)

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return copies of the parameters by name, as NumPy arrays."""
        return {name: np.array(backends.to_numpy(parameter), order="C") for name, parameter in self.named_params()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Copy the arrays of a dictionary, as `state_dict` returns it, into the parameters of this layer.

        Raises
        ------
        TypeError
            If a value is not an array of float16, bfloat16, float32 or float64.
        ValueError
            If a name is missing or unknown, a shape differs, or a value would lose digits in the parameter's dtype.
            No parameter is changed in either case.
        """
        method = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state, Mapping):
            kind = type(state).__qualname__
            raise TypeError(f"{method}: state: expected a dictionary, as state_dict returns, got {kind}")
        params = dict(self.named_params())
        if missing := params.keys() - state.keys():
            raise ValueError(f"{method}: missing: {', '.join(sorted(missing))}")
        if unknown := state.keys() - params.keys():
            found = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"{method}: unknown: {found}; expected {', '.join(params)}")
        loaded = {key: _loaded(f"{method}: {key}", state[key], parameter) for key, parameter in params.items()}
        for key, parameter in params.items():
            parameter[...] = backend_for(parameter).asarray(loaded[key])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a ``.npz`` file, or to ``.safetensors``, which needs the package of that name.

        The file appears whole or not at all. NumPy's format does not know bfloat16, which is stored as float32.
        """
        _files.write(f"{type(self).__name__}.save", path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the parameters from a file that `save` has written; no code in the file is ever run.

        Raises
        ------
        TypeError, ValueError
            As for `load_state_dict`, and a `ValueError` if the contents of the file do not fit its suffix.
        """
        shapes = {name: parameter.shape for name, parameter in self.named_params()}
        self.load_state_dict(_files.read(f"{type(self).__name__}.load", path, shapes))


class ComputingLayer(Layer):
    """A layer that calls kernels, with the memory for their results."""

    def __init__(self) -> None:
        self._results, self._gradients = ResultMemory(), ResultMemory()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory out of copies and pickles."""
        return {name: value for name, value in vars(self).items() if name not in ("_results", "_gradients")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without memory."""
        vars(self).update(state)
        ComputingLayer.__init__(self)


def floating_dtype(method: str, dtype: Any) -> np.dtype[Any]:
    """Return a dtype that parameters can have, or raise a TypeError."""
    found: np.dtype[Any] = np.dtype(dtype)
    if not is_supported(found):
        raise TypeError(f"{method}: dtype: expected a floating dtype, got {found}")
    return found


def zeros_like(parameter: Array) -> Array:
    """Return zeros of the shape and dtype of a parameter, on its device."""
    gradient = parameter.copy()
    gradient[...] = 0
    return gradient


def _loaded(name: str, given: Any, parameter: Array) -> np.ndarray[Any, Any]:
    """Convert an array to the dtype of its parameter, if that loses nothing."""
    value = np.asarray(given)
    if not is_supported(value.dtype) or isinstance(given, np.ma.MaskedArray):
        kind = f"dtype {value.dtype}" if not is_supported(value.dtype) else "a masked array"
        raise TypeError(f"{name}: expected floating numbers, got {kind}")
    if value.shape != parameter.shape:
        raise ValueError(f"{name}: expected shape {parameter.shape}, got {value.shape}")
    with np.errstate(all="ignore"):
        converted = value.astype(parameter.dtype)
        same = np.array_equal(converted.astype(FLOAT64), value.astype(FLOAT64), equal_nan=True)
    if not same:
        raise ValueError(
            f"{name}: values of dtype {value.dtype} would lose digits in {parameter.dtype}; "
            f"load them into layer.astype('{value.dtype}'), or round them yourself"
        )
    return converted
