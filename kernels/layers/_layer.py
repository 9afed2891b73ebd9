"""The base class of all layers, and that of the layers of this package."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from plugrad import backends
from plugrad.backends.options import is_supported
from plugrad.backends.selection import backend_for, recorder
from plugrad.kernels import _files
from plugrad.kernels._arguments import Array
from plugrad.kernels._state import State, checked_state
from plugrad.kernels.layers._memory import ResultMemory


class Deferred(ABC):
    """Stands for what a layer has kept until it is asked for."""

    @abstractmethod
    def of(self, layer: Layer) -> Any:
        """Return what a layer has kept, in arrays of its own; None if that is gone."""


class Layer(ABC):
    """The base class of layers; derive your own from it.

    ``forward`` keeps what ``backward`` needs (see `keep` and `saved`). Neither writes to its arguments. `names` lists
    the attributes that hold parameters. The attribute for the gradient of ``w`` is ``dw``: it exists from the
    beginning, and ``backward`` overwrites it: ``self.dw = ...`` copies to the array that is there. Derive a layer that
    consists of layers from `Sequential`. A layer need not accept ``use_jacobian``, unless it is to be checked by
    Jacobians.

    Attributes
    ----------
    names : tuple of str
        The attributes that hold the parameters.
    buffers : tuple of str
        The attributes that hold other arrays or numbers to be stored with the parameters, such as running means.
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
    buffers: tuple[str, ...] = ()
    training: bool = True
    _saved: Any = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Have gradients of layers of other packages written where they are (see `_set_attribute`)."""
        super().__init_subclass__(**options)
        is_of_this_package = cls.__module__.startswith("plugrad.kernels.")
        if not is_of_this_package and cls.__setattr__ is object.__setattr__:
            cls.__setattr__ = _set_attribute  # type: ignore[method-assign, assignment]

    def __getstate__(self) -> Any:
        """Leave what the layer has computed out of pickles, which have the size of the parameters."""
        computed = self._computed()
        return {name: value for name, value in vars(self).items() if name not in computed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with gradients of 0."""
        vars(self).update(state)
        for name in self.names:
            if not hasattr(self, f"d{name}"):
                vars(self)[f"d{name}"] = zeros_like(getattr(self, name))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy what the layer has computed, too: a copy goes on where the layer is."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        state = self.__getstate__()
        if isinstance(state, dict):
            state = {**state, **self._computed()}
        other.__setstate__(copy.deepcopy(state, memo))
        return other

    def _computed(self) -> dict[str, Any]:
        """The attributes that the layer has computed, and computes anew: gradients, and what it has saved."""
        self._fetch_saved()
        names = {"_saved", "_library", *(f"d{name}" for name in self.names)}
        return {name: value for name, value in vars(self).items() if name in names}

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
        self._fetch_saved()
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__}: backward: call forward first")
        return self._saved

    def _fetch_saved(self) -> None:
        if isinstance(self._saved, Deferred):
            self._saved = self._saved.of(self)

    def astype(self, dtype: Any) -> Self:
        """Return a copy of the layer whose parameters have another dtype."""
        dtype = floating_dtype(f"{type(self).__name__}.astype", dtype)
        other = copy.deepcopy(self)
        other.forget()
        for name, parameter in zip(self.names, self.params, strict=True):
            setattr(other, name, parameter.astype(dtype))
            vars(other)[f"d{name}"] = zeros_like(getattr(other, name))
        for name in self.buffers:
            buffer = getattr(other, name)
            if is_supported(getattr(buffer, "dtype", np.dtype(bool))):
                setattr(other, name, buffer.astype(dtype))
        return other

    # -----------------------------------------------------------------------------------------------------------------
    # Parameters by name
    # -----------------------------------------------------------------------------------------------------------------

    def named_params(self) -> Iterator[tuple[str, Array]]:
        """Iterate over the parameters with their names."""
        yield from zip(self.names, self.params, strict=True)

    def _places_of_buffers(self) -> Iterator[tuple[str, Layer, str]]:
        """Iterate over the buffers: the name in a state, and the layer that has the attribute with its name there."""
        for name in self.buffers:
            yield name, self, name

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return copies of the parameters and buffers by name, as NumPy arrays."""
        state = {name: np.array(backends.to_numpy(parameter), order="C") for name, parameter in self.named_params()}
        return state | {key: np.array(_buffer(layer, name)) for key, layer, name in self._places_of_buffers()}

    def load_state_dict(self, state: State) -> None:
        """Copy the arrays of a dictionary, as `state_dict` returns it, into the parameters and buffers.

        Raises
        ------
        TypeError
            If a value is not an array of float16, bfloat16, float32 or float64, or of integers for such a buffer.
        ValueError
            If a name is missing or unknown, a shape differs, or a value would lose digits in the parameter's dtype.
            Nothing is changed in either case.
        """
        method = f"{type(self).__name__}.load_state_dict"
        params = dict(self.named_params())
        buffers = {key: (layer, name) for key, layer, name in self._places_of_buffers()}
        targets = {**params, **{key: np.asarray(_buffer(*place)) for key, place in buffers.items()}}
        loaded = checked_state(method, state, targets, "layer.astype('{}')")
        for key, parameter in params.items():
            parameter[...] = backend_for(parameter).asarray(loaded[key])
        for key, (layer, name) in buffers.items():
            _set_buffer(layer, name, loaded[key])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters and buffers to a ``.npz`` file, or to ``.safetensors``, which needs that package.

        The file appears whole or not at all. NumPy's format does not know bfloat16, which is stored as float32.
        """
        _files.write(f"{type(self).__name__}.save", path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the parameters and buffers from a file that `save` has written; no code in the file is ever run.

        Raises
        ------
        TypeError, ValueError
            As for `load_state_dict`, and a `ValueError` if the contents of the file do not fit its suffix. The message
            names the file.
        """
        shapes = {key: array.shape for key, array in self.state_dict().items()}
        state = _files.read(f"{type(self).__name__}.load", path, shapes)
        with _files.naming(path):
            self.load_state_dict(state)


class ComputingLayer(Layer):
    """A layer that calls kernels, with the memory for their results."""

    def __init__(self) -> None:
        self._results, self._gradients = ResultMemory(), ResultMemory()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory out of copies and pickles."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_results", "_gradients")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without memory."""
        super().__setstate__(state)
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


def _set_attribute(layer: Layer, name: str, value: Any) -> None:
    """Set an attribute; a gradient is copied to the array that is there, which an optimizer or a loop may hold."""
    if name[:1] == "d" and name[1:] in layer.names and _is_update(vars(layer), name, value):
        _copy(vars(layer)[name], value)
        recording = recorder()
        if recording is not None and not isinstance(value, np.generic):
            gradient = vars(layer)[name]
            recording.record("", _copy, (gradient, value), (gradient,), is_fixed=True)
        return
    object.__setattr__(layer, name, value)


def _is_update(attributes: dict[str, Any], name: str, value: Any) -> bool:
    """Return whether a value is another array, for the gradient of a parameter that has its shape and dtype."""
    gradient: Any = attributes.get(name)
    parameter: Any = attributes.get(name[1:])
    return (
        gradient is not value
        and hasattr(value, "shape")
        and hasattr(value, "dtype")
        and (type(value) is type(gradient) or isinstance(value, np.generic))
        and getattr(gradient, "dtype", None) == getattr(parameter, "dtype", None)
        and getattr(gradient, "shape", None) == getattr(parameter, "shape", None) == value.shape
        and getattr(getattr(gradient, "flags", None), "writeable", True)
    )


def _copy(gradient: Any, value: Any) -> None:
    with np.errstate(all="ignore"):  # values that the dtype cannot hold become infinite or 0
        gradient[...] = value


def _buffer(layer: Layer, name: str) -> np.ndarray[Any, Any]:
    """Return a buffer as a NumPy array."""
    value = getattr(layer, name)
    array = np.asarray(backends.to_numpy(value) if hasattr(value, "dtype") else value)
    if isinstance(value, list | tuple) or not (is_supported(array.dtype) or array.dtype.kind in "biu"):
        kind = getattr(value, "dtype", type(value).__qualname__)
        raise TypeError(f"{type(layer).__name__}: buffers: {name}: expected an array or a number, got {kind}")
    return array


def _set_buffer(layer: Layer, name: str, value: np.ndarray[Any, Any]) -> None:
    """Copy a value to a buffer that is an array, else replace the number."""
    buffer: Any = getattr(layer, name)
    if hasattr(buffer, "dtype") and not isinstance(buffer, np.generic):
        buffer[...] = backend_for(buffer).asarray(value)
    else:
        setattr(layer, name, type(buffer)(value[()]))
