"""Layers in sequence."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeGuard, cast

import numpy as np

from plugrad.backends.calls import foreign_of, in_library
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels.layers._activations import Activation, Relu
from plugrad.kernels.layers._affine import Affine
from plugrad.kernels.layers._errors import name_place
from plugrad.kernels.layers._layer import Layer, floating_dtype
from plugrad.kernels.layers._losses import Loss
from plugrad.kernels.layers._passes import BY_LAYERS, Passes

# The methods of a layer, which a user may replace: on the layer, or on its class.
METHODS = operator.attrgetter("forward", "backward")

# The attributes of a network that are made of its layers.
ARRANGED = ("_methods", "_forwards", "_backwards", "_passes")


class Sequential(Layer):
    """Layers in sequence.

    Parameters
    ----------
    *layers : Layer
        The layers, in the order of the forward pass; or one list of them.

    Attributes
    ----------
    layers : tuple of Layer
        The layers.
    training : bool
        Whether the layers are in training (see `Layer`); set it to False to use the network.

    Raises
    ------
    TypeError
        If an argument is not a layer, or is a loss, which also takes labels.
    ValueError
        If a layer occurs twice.

    Examples
    --------
    >>> from plugrad.kernels import layers
    >>> net = layers.Sequential(layers.Affine.init(2, 8, rng=0), layers.Relu(), layers.Affine.init(8, 3, rng=1))
    >>> net.forward([[1.0, 2.0]]).shape
    (1, 3)
    >>> [p.shape for p in net.params]
    [(2, 8), (8,), (8, 3), (3,)]
    """

    def __init__(self, *layers: Layer | Iterable[Layer]) -> None:
        name = type(self).__name__
        if len(layers) == 1 and isinstance(layers[0], list | tuple):
            layers = tuple(layers[0])
        for position, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                kind = type(layer).__qualname__
                got = f"the class {layer.__name__}; call it" if isinstance(layer, type) else kind
                raise TypeError(f"{name}: layer {position}: expected a Layer, got {got}")
            if isinstance(layer, Loss):
                raise TypeError(
                    f"{name}: layer {position}: expected a layer without labels, got {layer!r}; "
                    f"call the loss with the result of the network"
                )
        seen: set[int] = set()
        for layer in _all_layers(cast("tuple[Layer, ...]", layers)):
            if id(layer) in seen:
                raise ValueError(f"{name}: expected each layer once, nested ones included, got {layer!r} twice")
            seen.add(id(layer))
        self._arrange(cast("tuple[Layer, ...]", layers))

    def _arrange(self, layers: tuple[Layer, ...]) -> None:
        """Choose the method that each layer computes by."""
        self.layers = layers
        self._methods = [*map(METHODS, layers)]
        self._forwards = [_forward_of(layers, position) for position in range(len(layers))]
        self._backwards = [_backward_of(layers, position) for position in range(len(layers))]
        self._first_with_params = next((i for i, layer in enumerate(layers) if layer.params), len(layers))
        self._passes = Passes(layers) if layers and all(map(_can_be_captured, layers)) else None
        first = layers[self._first_with_params : self._first_with_params + 1]
        self._first_takes_needs_dx = any("needs_dx" in inspect.signature(layer.backward).parameters for layer in first)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the methods of layers, and what was captured of them, out of copies and pickles."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ARRANGED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Choose the methods of the layers anew."""
        super().__setstate__(state)
        self._arrange(self.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, position: int) -> Layer:
        return self.layers[position]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @property
    def training(self) -> bool:
        """Whether all layers are in training; to set it sets it for all of them."""
        return all(layer.training for layer in self.layers)

    @training.setter
    def training(self, value: bool) -> None:
        for layer in self.layers:
            layer.training = value

    @property
    def params(self) -> tuple[Array, ...]:
        """The parameters of all layers."""
        return tuple([parameter for layer in self.layers for parameter in layer.params])

    @property
    def grads(self) -> tuple[Array, ...]:
        """The gradients of the parameters, in the same order."""
        return tuple([gradient for layer in self.layers[self._first_with_params :] for gradient in layer.grads])

    def named_params(self) -> Iterator[tuple[str, Array]]:
        """Iterate over the parameters with their names, such as ``0.w``: the layer's position and the name there."""
        for position, layer in enumerate(self.layers):
            for name, parameter in layer.named_params():
                yield f"{position}.{name}", parameter

    def _places_of_buffers(self) -> Iterator[tuple[str, Layer, str]]:
        """Iterate over the buffers of all layers, with names as of parameters."""
        for position, layer in enumerate(self.layers):
            for key, owner, name in layer._places_of_buffers():
                yield f"{position}.{key}", owner, name

    def forget(self) -> None:
        """Release everything that the forward pass has kept."""
        if self._passes is not None:
            self._passes.clear()
        for layer in self.layers:
            layer.forget()

    def astype(self, dtype: Any) -> Self:
        """Return a copy of the network whose parameters have another dtype."""
        dtype = floating_dtype(f"{type(self).__name__}.astype", dtype)
        other = copy.copy(self)
        other._arrange(tuple(layer.astype(dtype) for layer in self.layers))
        return other

    def forward(self, x: ArrayLike) -> Array:
        """Compute the result of the last layer."""
        if [*map(METHODS, self.layers)] != self._methods:  # replaced since, by a user who looks into the passes
            self._arrange(self.layers)
        y: Any = BY_LAYERS
        if type(x) is np.ndarray:
            if self._passes is not None:
                y = self._passes.forward(self, x)
        elif (foreign := foreign_of(x)) is not None:
            converted = backend_for(x).take(f"{type(self).__name__}: x", x)  # in a capture that of the capture
            return in_library(foreign, x, self.forward, converted)
        if y is not BY_LAYERS:
            replayed: Array = y
            return replayed
        for layer in self.layers:  # so that no layer keeps a result that another layer is about to overwrite
            layer.forget()
        y = x
        del x  # its memory is free as soon as no layer needs it
        for position, forward in enumerate(self._forwards):
            try:
                y = forward(y)
            except (TypeError, ValueError) as error:
                self._name_place(error, position)
                raise
        result: Array = y
        return result

    def backward(self, dy: ArrayLike, *, use_jacobian: bool = False, needs_dx: bool = True) -> Array:
        """Compute all gradients, and return that of the inputs; None, with less work, if it is not needed."""
        gradient: Any = BY_LAYERS
        if type(dy) is np.ndarray:
            if self._passes is not None and not use_jacobian:
                gradient = self._passes.backward(self, dy, bool(needs_dx))
        elif (foreign := foreign_of(dy)) is not None:
            converted = backend_for(dy).take(f"{type(self).__name__}: dy", dy)
            return in_library(foreign, dy, self.backward, converted, use_jacobian=use_jacobian, needs_dx=needs_dx)
        if gradient is not BY_LAYERS:
            replayed: Array = gradient
            return replayed
        gradient = dy
        del dy  # its memory is free as soon as the last layer has used it
        options = {"use_jacobian": True} if use_jacobian else {}
        backwards = [layer.backward for layer in self.layers] if use_jacobian else self._backwards
        first = 0 if needs_dx else self._first_with_params
        for position in reversed(range(first, len(backwards))):
            if position == first and not needs_dx and self._first_takes_needs_dx:
                options["needs_dx"] = False
            try:
                gradient = backwards[position](gradient, **options)
            except (TypeError, ValueError) as error:
                self._name_place(error, position)
                raise
        unneeded: Any = None
        dx: Array = gradient if needs_dx else unneeded
        return dx

    # In a capture, where nothing captured is in use. A derived class may override `forward` and `backward` themselves.
    _forward_by_layers, _backward_by_layers = forward, backward

    def _name_place(self, error: Exception, position: int) -> None:
        layer = type(self.layers[position]).__name__
        name_place(error, f"{type(self).__name__}: layer {position} ({layer})", layer)


def _all_layers(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Iterate over layers and those nested in them."""
    for layer in layers:
        yield layer
        if isinstance(layer, Sequential):
            yield from _all_layers(layer.layers)


# ---------------------------------------------------------------------------------------------------------------------
# Memory: between two layers of this package nobody else sees a result, which then needs no protection from writing.
# Next to a matrix product, ReLU also overwrites its inputs and the gradient that it gets. Other activations do not:
# some backends would allocate memory for the copy that they need.
# ---------------------------------------------------------------------------------------------------------------------


def _forward_of(layers: tuple[Layer, ...], position: int) -> Callable[[Any], Any]:
    layer = layers[position]
    following = layers[position + 1 : position + 2]
    if _is_affine(layer):
        return _bare(layer, "forward")
    if not _is_activation(layer) or not any(_is_activation(other) or _is_affine(other) for other in following):
        return layer.forward
    is_behind_affine = position > 0 and _is_affine(layers[position - 1])
    return layer.forward_in_place if is_behind_affine and isinstance(layer, Relu) else layer.forward_unprotected


def _backward_of(layers: tuple[Layer, ...], position: int) -> Callable[..., Any]:
    layer = layers[position]
    is_before_affine = any(map(_is_affine, layers[position + 1 : position + 2]))
    if is_before_affine and _is_activation(layer) and isinstance(layer, Relu):
        return layer.backward_in_place
    return _bare(layer, "backward")


# The methods of this package, also if a class has others later. They name their layer in errors, as `Sequential` does.
METHODS_OF: dict[type[Layer], Any] = {kind: METHODS(kind) for kind in (Affine, Activation)}
NAMING = (*METHODS_OF[Affine], *METHODS_OF[Activation])


def _bare(layer: Layer, name: str) -> Callable[..., Any]:
    """Return a method of a layer: of this package's own ones, unless replaced, what lies below `errors_name_layer`."""
    method: Callable[..., Any] = getattr(layer, name)
    function: Any = getattr(method, "__func__", None)
    if function in NAMING:
        return functools.partial(function.__wrapped__, layer)
    return method


def _can_be_captured(layer: Layer) -> bool:
    """Return whether a layer is one of this package that computes by kernels, the same ones for each batch."""
    is_of_this_package = type(layer).__module__.startswith("plugrad.kernels.")
    return is_of_this_package and (_is_affine(layer) or _is_activation(layer))


def _is_activation(layer: Layer) -> TypeGuard[Activation]:
    """Return whether a layer runs the methods of `Activation`, not others in their place."""
    return _runs_methods_of(Activation, layer)


def _is_affine(layer: Layer) -> bool:
    """Return whether a layer runs the methods of `Affine`, not others in their place."""
    return _runs_methods_of(Affine, layer)


def _runs_methods_of(kind: type[Layer], layer: Layer) -> bool:
    return METHODS(type(layer)) == METHODS_OF[kind] and not {"forward", "backward"} & vars(layer).keys()
