"""Backends that are broken on purpose, in one way each, which the conformance suite must catch.

A mutant starts as a backend module with all functions of the numpy backend; its function here breaks one of them. The
table lists the check that must catch each mutant, and the kernel.
"""

import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias
from weakref import WeakSet

import ml_dtypes
import numpy as np

from plugrad import backends
from plugrad.backends import host, threads
from plugrad.backends.options import BinaryLossOptions, DropoutOptions, GeluOptions, LossOptions
from plugrad.backends.workspace import Workspace
from plugrad.kernels import KERNELS
from plugrad.tests.records.dropout import words

BackendModule: TypeAlias = Any
Array: TypeAlias = Any

finfo: Any = ml_dtypes.finfo  # knows bfloat16 too


@dataclass(frozen=True)
class Mutant:
    """A way to break a backend, and the check that must catch it."""

    spoil: Callable[[BackendModule], None]
    kernel: str
    caught_by: str

    @property
    def name(self) -> str:
        """The name of the function that breaks the backend."""
        return self.spoil.__name__

    def module(self) -> BackendModule:
        """A backend module that is broken in this way."""
        module = sound_module()
        self.spoil(module)
        return module


MUTANTS: list[Mutant] = []


def sound_module() -> BackendModule:
    """A correct backend module: every function calls that of the numpy backend."""
    numpy_module = backends.get("numpy").module

    def own(name: str) -> Callable[..., None]:
        function = getattr(numpy_module, name)
        return lambda *arguments: function(*arguments)

    return SimpleNamespace(**{name: own(name) for name in KERNELS})


def mutant(kernel: str, caught_by: str) -> Callable[[Callable[[BackendModule], None]], Callable[[BackendModule], None]]:
    """Enter a function that spoils a backend module into the table."""

    def enter(spoil: Callable[[BackendModule], None]) -> Callable[[BackendModule], None]:
        MUTANTS.append(Mutant(spoil, kernel, caught_by))
        return spoil

    return enter


def afterwards(module: BackendModule, kernel: str, change: Callable[..., None]) -> None:
    """Call `change` with all arguments after `kernel` has computed the correct result."""
    sound = getattr(module, kernel)

    def broken(*arguments: Any) -> None:
        sound(*arguments)
        change(*arguments)

    setattr(module, kernel, broken)


def with_options(module: BackendModule, kernel: str, change: Callable[[LossOptions], LossOptions]) -> None:
    """Pass changed options to `kernel`."""
    sound = getattr(module, kernel)
    setattr(
        module,
        kernel,
        lambda *arguments: sound(*(change(a) if isinstance(a, LossOptions) else a for a in arguments)),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Formulas
# ---------------------------------------------------------------------------------------------------------------------


@mutant("softmax_cross_entropy", "gradients_along_directions")
def gradient_of_the_wrong_sign(module: BackendModule) -> None:
    afterwards(module, "softmax_cross_entropy_backward", lambda dloss, y, t, options, dx: np.negative(dx, out=dx))


@mutant("sigmoid", "jacobians_by_sympy")
def slope_of_the_input_for_that_of_the_output(module: BackendModule) -> None:
    def broken(dy: Array, y: Array, out: Array) -> None:
        out[...] = dy * np.exp(-y) / (1 + np.exp(-y)) ** 2

    module.sigmoid_backward = broken


@mutant("softmax_backward", "shapes")
def diagonal_of_the_jacobian_only(module: BackendModule) -> None:
    def broken(dy: Array, y: Array, axis: int, out: Array) -> None:
        out[...] = dy * y * (1 - y)

    module.softmax_backward = broken


@mutant("leaky_relu_backward", "shapes")
def option_of_an_elementwise_kernel_ignored(module: BackendModule) -> None:
    sound = module.leaky_relu_backward
    module.leaky_relu_backward = lambda dy, x, options, out: sound(dy, x, type(options)(), out)


@mutant("dropout", "shapes")
def stream_shifted_by_a_word(module: BackendModule) -> None:
    def broken(x: Array, options: DropoutOptions, out: Array) -> None:
        is_kept = words(int(options.seed), x.size + 1)[1:].reshape(x.shape) >= options.threshold
        out[...] = np.where(is_kept, x.astype(np.float64) * options.factor, 0)

    module.dropout = broken


@mutant("dropout_backward", "layouts_of_arguments")
def mask_by_place_in_memory(module: BackendModule) -> None:
    sound = module.dropout_backward

    def broken(dy: Array, options: DropoutOptions, out: Array) -> None:
        is_turned = dy.flags.f_contiguous and not dy.flags.c_contiguous
        sound(*((dy.T, options, out.T) if is_turned else (dy, options, out)))

    module.dropout_backward = broken


@mutant("dropout", "seeds_that_change")
def seed_read_once(module: BackendModule) -> None:
    sound, kept = module.dropout, dict[int, int]()

    def broken(x: Array, options: DropoutOptions, out: Array) -> None:
        if isinstance(options.seed, np.ndarray):
            options = options._replace(seed=kept.setdefault(id(options.seed), int(options.seed)))
        sound(x, options, out)

    module.dropout = broken


@mutant("softmax_cross_entropy_value_and_grad", "shapes")
def mean_not_divided_by_the_rows(module: BackendModule) -> None:
    with_options(module, "softmax_cross_entropy_value_and_grad", lambda o: o._replace(reduction="sum"))


@mutant("cross_entropy", "options_with_class_indices")
def label_smoothing_ignored(module: BackendModule) -> None:
    with_options(module, "cross_entropy", lambda o: o._replace(label_smoothing=0.0))


@mutant("softmax_cross_entropy", "options_with_one_hot_labels")
def weight_applied_twice(module: BackendModule) -> None:
    with_options(module, "softmax_cross_entropy", lambda o: o if o.weight is None else o._replace(weight=o.weight**2))


@mutant("softmax_cross_entropy_backward", "options_with_soft_labels")
def labels_taken_to_sum_to_one(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_backward

    def broken(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
        if t.ndim == y.ndim:
            t = t / np.maximum(t.astype(float).sum(axis=options.axis, keepdims=True), 1e-9)
        sound(dloss, y, t, options, dx)

    module.softmax_cross_entropy_backward = broken


@mutant("cross_entropy_backward", "shapes")
def upstream_gradient_ignored(module: BackendModule) -> None:
    sound = module.cross_entropy_backward
    module.cross_entropy_backward = lambda dloss, *rest: sound(1.0, *rest)


@mutant("softmax", "any_axis")
def always_along_the_first_axis(module: BackendModule) -> None:
    sound = module.softmax
    module.softmax = lambda x, axis, out: sound(x, 0, out)


@mutant("softmax_cross_entropy_value_and_grad", "any_axis")
def rows_of_square_matrices_only(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_value_and_grad

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        is_square = x.ndim == 2 and x.shape[0] == x.shape[1]
        sound(x, t, options._replace(axis=1) if is_square else options, loss, dx)

    module.softmax_cross_entropy_value_and_grad = broken


@mutant("affine", "leading_axes")
def bias_forgotten_for_a_single_row(module: BackendModule) -> None:
    sound = module.affine
    module.affine = lambda x, w, b, out: sound(x, w, b if x.ndim > 1 else None, out)


@mutant("affine_backward", "shapes")
def gradient_of_the_bias_averaged(module: BackendModule) -> None:
    def change(dy: Array, x: Array, w: Array, dx: Array, dw: Array, db: Array) -> None:
        if db is not None:
            db /= max(1, len(dy))

    afterwards(module, "affine_backward", change)


@mutant("affine", "without_biases")
def no_biases_taken_for_ones(module: BackendModule) -> None:
    sound = module.affine
    module.affine = lambda x, w, b, out: sound(x, w, np.ones(w.shape[1], w.dtype) if b is None else b, out)


@mutant("affine_backward", "some_gradients_only")
def gradient_of_the_biases_only_along_with_that_of_the_weights(module: BackendModule) -> None:
    sound = module.affine_backward

    def broken(dy: Array, x: Array, w: Array, dx: Array, dw: Array, db: Array) -> None:
        sound(dy, x, w, dx, dw, db)
        if dw is None and db is not None:
            db[...] = dy.reshape(-1, dy.shape[-1])[0]

    module.affine_backward = broken


@mutant("softmax_cross_entropy_value_and_grad", "fused_equals_composed")
def fused_gradient_of_smoothed_labels_not_smoothed(module: BackendModule) -> None:
    sound, plain = module.softmax_cross_entropy_value_and_grad, module.softmax_cross_entropy

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        kept = x.copy()
        sound(x, t, options._replace(label_smoothing=0.0), loss, dx)
        plain(kept, t, options, loss, np.empty_like(kept))

    module.softmax_cross_entropy_value_and_grad = broken


@mutant("log_softmax", "rows_are_independent")
def rows_shifted_by_the_largest_logit_of_all(module: BackendModule) -> None:
    @np.errstate(all="ignore")
    def broken(x: Array, axis: int, out: Array) -> None:
        z = x.astype(np.float64)
        z -= z.max()
        z = z.astype(x.dtype)
        out[...] = z - np.log(np.exp(z.astype(np.float32)).sum(axis=axis, keepdims=True))

    module.log_softmax = broken


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and dtypes
# ---------------------------------------------------------------------------------------------------------------------


@mutant("softmax_backward", "numbers_of_classes")
def off_by_one_behind_a_whole_vector(module: BackendModule) -> None:
    def change(dy: Array, y: Array, axis: int, out: Array) -> None:
        if out.shape[-1] > 16 and out.shape[-1] % 16 == 1:
            out[..., -1] = 0

    afterwards(module, "softmax_backward", change)


@mutant("sigmoid_backward", "large_arrays")
def last_block_forgotten(module: BackendModule) -> None:
    def change(dy: Array, y: Array, out: Array) -> None:
        if out.size > 2**19:
            out.reshape(-1)[2**19 :] = 0

    afterwards(module, "sigmoid_backward", change)


@mutant("softmax", "large_arrays")
def last_rows_forgotten_where_classes_lie_apart(module: BackendModule) -> None:
    def change(x: Array, axis: int, out: Array) -> None:
        if axis == 0 and out.size > 2**19 and out.dtype == np.float64:
            out[:, -1:] = 0

    afterwards(module, "softmax", change)


@mutant("log_softmax_backward", "large_arrays")
def bfloat16_summed_class_by_class_in_bfloat16(module: BackendModule) -> None:
    def change(dy: Array, y: Array, axis: int, out: Array) -> None:
        if out.dtype.name == "bfloat16" and out.shape[axis] > 1000 and axis == 1 and out.ndim == 3:
            total = dy[:, 0].copy()
            for column in range(1, dy.shape[1]):
                total += dy[:, column]
            out[...] = dy - np.exp(y) * total[:, None]

    afterwards(module, "log_softmax_backward", change)


@mutant("softmax_cross_entropy_backward", "options_of_large_arrays")
def weights_forgotten_for_many_classes(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_backward

    def broken(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
        many = y.shape[options.axis] > 1024
        sound(dloss, y, t, options._replace(weight=None) if many else options, dx)

    module.softmax_cross_entropy_backward = broken


@mutant("cross_entropy", "options_of_large_arrays")
def smoothing_forgotten_behind_the_first_block(module: BackendModule) -> None:
    sound = module.cross_entropy

    def broken(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
        sound(p, t, options, loss)
        if options.reduction == "none" and options.label_smoothing and len(p) > 2048:
            sound(p[2048:], t[2048:], options._replace(label_smoothing=0.0), loss[2048:])

    module.cross_entropy = broken


@mutant("softmax_cross_entropy_backward", "weights_and_upstream_gradients_of_every_dtype")
def upstream_gradient_taken_for_float32(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_backward

    def broken(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
        if isinstance(dloss, np.ndarray) and dloss.dtype == np.float64 and y.dtype != np.float64:
            dloss = np.ascontiguousarray(dloss).view(np.float32)[: dloss.size].reshape(dloss.shape)
        with np.errstate(all="ignore"):
            sound(dloss, y, t, options, dx)

    module.softmax_cross_entropy_backward = broken


@mutant("cross_entropy", "weights_and_upstream_gradients_of_every_dtype")
def weights_cut_to_integers(module: BackendModule) -> None:
    with_options(module, "cross_entropy", lambda o: o if o.weight is None else o._replace(weight=np.trunc(o.weight)))


@mutant("relu", "no_rows")
def empty_results_are_float64(module: BackendModule) -> None:
    module.empty = lambda shape, dtype: np.empty(shape, dtype if 0 not in shape else np.float64)


@mutant("softmax", "no_classes")
def empty_results_lose_their_axes(module: BackendModule) -> None:
    module.empty = lambda shape, dtype: np.empty(shape if 0 not in shape else 0, dtype)


@mutant("softmax", "shapes")
def results_silently_widened(module: BackendModule) -> None:
    module.empty = lambda shape, dtype: np.empty(shape, np.float64)


@mutant("relu", "shapes")
def results_of_another_library(module: BackendModule) -> None:
    module.empty = lambda shape, dtype: np.ma.empty(shape, dtype)


@mutant("affine", "sequences_and_integers")
def integers_become_float32(module: BackendModule) -> None:
    def take(what: str, x: Any) -> Array:
        array = host.take(what, x)
        return array.astype(np.float32) if array.dtype.kind in "iub" else array

    module.take = take


@mutant("sigmoid_backward", "mixed_dtypes")
def promotion_goes_down(module: BackendModule) -> None:
    def take(what: str, x: Any) -> Array:
        array = host.take(what, x)
        return array.astype(np.float32) if array.dtype == np.float64 and what.endswith(": y") else array

    class Unknown(np.ndarray):
        """The type of no argument, so that each one is passed to `take`."""

    module.take, module.NATIVE = take, Unknown


@mutant("sigmoid_backward", "integers_with_floats")
def integers_become_float64_before_they_are_promoted(module: BackendModule) -> None:
    def take(what: str, x: Any) -> Array:
        array = host.take(what, x)
        return array.astype(np.float64) if array.dtype.kind in "iub" else array

    module.take = take


@mutant("softmax_cross_entropy", "mean_of_many_rows")
def losses_summed_in_float16(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        if x.dtype == np.float16 and not loss.ndim:
            with np.errstate(all="ignore"):
                total = loss * (1 if options.reduction == "sum" else len(x))
                loss[...] = np.float16(total) / np.float16(1 if options.reduction == "sum" else len(x))

    afterwards(module, "softmax_cross_entropy", change)


@mutant("cross_entropy", "mean_of_many_rows")
def losses_summed_in_float32(module: BackendModule) -> None:
    def change(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
        loss[...] = np.float32(loss)

    afterwards(module, "cross_entropy", change)


@mutant("affine_backward", "gradients_of_parameters_over_many_rows")
def rows_added_one_by_one_in_float32(module: BackendModule) -> None:
    def change(dy: Array, x: Array, w: Array, dx: Array, dw: Array, db: Array) -> None:
        if db is not None and dy.ndim == 2:
            db[...] = np.add.accumulate(dy.astype(np.float32), axis=0)[-1]

    afterwards(module, "affine_backward", change)


@mutant("softmax_cross_entropy", "labels_of_every_dtype")
def unsigned_labels_read_as_signed(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        t = t.view(np.int8).astype(int) % x.shape[options.axis] if t.dtype == np.uint8 else t
        sound(x, t, options, loss, y)

    module.softmax_cross_entropy = broken


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


@mutant("cross_entropy", "losses_of_rows_go_to_out")
def losses_of_rows_not_written_to_other_strides(module: BackendModule) -> None:
    sound = module.cross_entropy

    def broken(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
        sound(p, t, options, loss if loss.flags.c_contiguous else np.empty_like(loss))

    module.cross_entropy = broken


@mutant("relu", "results_go_to_out")
def result_written_elsewhere(module: BackendModule) -> None:
    module.relu = lambda x, out: np.maximum(x, 0, out=out.copy()) is None


@mutant("softmax_cross_entropy", "some_results_go_to_out")
def loss_written_to_the_array_of_the_call_before(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy
    kept: list[Array] = []

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        kept.append(loss)
        sound(x, t, options, kept[0], y)

    module.softmax_cross_entropy = broken


@mutant("sigmoid", "nothing_beside_out_is_written")
def whole_vectors_written(module: BackendModule) -> None:
    def change(x: Array, out: Array) -> None:
        if out.base is not None and out.base.size >= out.size + 16:
            out.base.reshape(-1)[-16:] = 0

    afterwards(module, "sigmoid", change)


@mutant("softmax_backward", "in_place")
def result_written_before_the_argument_is_read(module: BackendModule) -> None:
    def broken(dy: Array, y: Array, axis: int, out: Array) -> None:
        compute = np.float64 if out.dtype == np.float64 else np.float32
        product = dy.astype(compute) * y.astype(compute)
        out[...] = product
        out[...] = product - y.astype(compute) * product.sum(axis=axis, keepdims=True)

    module.softmax_backward = broken


@mutant("softmax_cross_entropy_backward", "in_place")
def labels_overwritten_before_they_are_read(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_backward

    def broken(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
        if dx is t:
            dx[...] = y
        sound(dloss, y, t, options, dx)

    module.softmax_cross_entropy_backward = broken


@mutant("softmax_cross_entropy", "in_place_of_the_weights")
def weights_overwritten_before_they_are_read(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        if y is options.weight:
            module.softmax(x, options.axis, y)
        sound(x, t, options, loss, y)

    module.softmax_cross_entropy = broken


@mutant("relu_backward", "one_array_for_two_arguments")
def gradient_of_an_array_by_itself_taken_for_its_square(module: BackendModule) -> None:
    sound = module.relu_backward

    def broken(dy: Array, y: Array, out: Array) -> None:
        sound(dy, y, out)
        if dy is y:
            np.multiply(out, out, out=out)

    module.relu_backward = broken


@mutant("softmax_cross_entropy_backward", "one_array_for_two_arguments")
def probabilities_written_over_labels_that_they_are(module: BackendModule) -> None:
    def change(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
        if t is y and dx is not y:
            dx[...] = 0

    afterwards(module, "softmax_cross_entropy_backward", change)


@mutant("relu", "out_in_another_order")
def other_orders_not_looked_for(module: BackendModule) -> None:
    def broken(x: Array, out: Array) -> None:
        for i in np.ndindex(out.shape[:1]):
            out[i] = np.maximum(x[i], x.dtype.type(0))  # before the next row is read

    module.relu = broken
    module.overlap = lambda a, b: "none"


@mutant("relu", "out_in_another_order")
def rows_between_taken_for_the_rows_themselves(module: BackendModule) -> None:
    sound = module.relu

    def overlap(a: Array, b: Array) -> str:
        return "same" if np.may_share_memory(a, b) and a.strides == b.strides else host.overlap(a, b)

    module.relu, module.overlap = lambda x, out: sound(x, out), overlap


@mutant("affine_backward", "results_over_each_other")
def results_over_each_other_not_looked_for(module: BackendModule) -> None:
    module.overlap = lambda a, b: "none"


@mutant("sigmoid_backward", "overlapping_out")
def overlaps_not_looked_for(module: BackendModule) -> None:
    sound = module.sigmoid_backward

    def broken(dy: Array, y: Array, out: Array) -> None:
        for i in np.ndindex(out.shape[:1]):  # row by row, so that what is written is read again
            sound(dy[i], y[i], out[i])

    module.sigmoid_backward = broken
    module.overlap = lambda a, b: "none"


@mutant("relu_backward", "layouts_of_arguments")
def strides_ignored(module: BackendModule) -> None:
    sound = module.relu_backward

    def broken(dy: Array, y: Array, out: Array) -> None:
        sound(dy, y.ravel(order="K").reshape(y.shape), out)

    module.relu_backward = broken


@mutant("softmax_cross_entropy", "layouts_of_arguments")
def strides_of_the_weights_ignored(module: BackendModule) -> None:
    def contiguous(options: LossOptions) -> LossOptions:
        weight = options.weight
        if weight is None or weight.flags.c_contiguous or weight.base is None or weight.strides[0] < 0:
            return options
        start = np.lib.stride_tricks.as_strided(weight, weight.shape, (weight.itemsize,))
        return options._replace(weight=start)

    with_options(module, "softmax_cross_entropy", contiguous)


@mutant("cross_entropy_backward", "layouts_of_arguments")
def strides_of_the_upstream_gradient_ignored(module: BackendModule) -> None:
    sound = module.cross_entropy_backward

    def broken(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
        if isinstance(dloss, np.ndarray) and dloss.strides and dloss.strides[0] < 0:
            dloss = dloss[::-1]
        sound(dloss, p, t, options, dp)

    module.cross_entropy_backward = broken


@mutant("softmax_cross_entropy_value_and_grad", "layouts_of_arguments")
def strides_of_labels_for_each_class_ignored(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_value_and_grad

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        sound(x, t.ravel(order="K").reshape(t.shape) if t.ndim == 2 else t, options, loss, dx)

    module.softmax_cross_entropy_value_and_grad = broken


@mutant("softmax", "broadcast_arguments")
def strides_of_zero_taken_for_contiguous(module: BackendModule) -> None:
    def change(x: Array, axis: int, out: Array) -> None:
        if 0 in x.strides:
            out[1:] = 0

    afterwards(module, "softmax", change)


@mutant("log_softmax", "arguments_are_not_written")
def maximum_subtracted_from_the_argument(module: BackendModule) -> None:
    sound = module.log_softmax

    def broken(x: Array, axis: int, out: Array) -> None:
        sound(x, axis, out)
        if x.flags.writeable and out is not x:
            x -= x.max(axis=axis, keepdims=True)

    module.log_softmax = broken


@mutant("softmax_cross_entropy_value_and_grad", "new_results_are_written_whole")
def gradient_of_ignored_rows_left_as_it_was(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_value_and_grad

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        held = dx.copy()
        sound(x, t, options, loss, dx)
        if options.ignore_index is not None and t.ndim == 1:
            dx[t == options.ignore_index] = held[t == options.ignore_index]

    module.softmax_cross_entropy_value_and_grad = broken


# ---------------------------------------------------------------------------------------------------------------------
# Special values
# ---------------------------------------------------------------------------------------------------------------------


@mutant("softmax", "special_logits")
def exponentials_of_the_logits_themselves(module: BackendModule) -> None:
    @np.errstate(all="ignore")
    def broken(x: Array, axis: int, out: Array) -> None:
        e = np.exp(x.astype(np.float64))
        out[...] = e / e.sum(axis=axis, keepdims=True)

    module.softmax = broken


@mutant("log_softmax", "special_logits")
def logarithm_of_the_softmax(module: BackendModule) -> None:
    softmax = module.softmax

    @np.errstate(all="ignore")
    def broken(x: Array, axis: int, out: Array) -> None:
        y = np.empty(x.shape, np.float64)
        softmax(x.astype(np.float64), axis, y)
        out[...] = np.log(y)

    module.log_softmax = broken


@mutant("sigmoid", "special_numbers")
def sigmoid_of_the_textbook(module: BackendModule) -> None:
    @np.errstate(all="ignore")
    def broken(x: Array, out: Array) -> None:
        compute = np.float64 if x.dtype == np.float64 else np.float32
        out[...] = 1 / (1 + np.exp(-x.astype(compute)))

    module.sigmoid = broken


@mutant("relu_backward", "special_numbers")
def gradient_passed_at_zero(module: BackendModule) -> None:
    @np.errstate(all="ignore")
    def broken(dy: Array, y: Array, out: Array) -> None:
        out[...] = np.where(y >= 0, dy, np.zeros_like(dy))

    module.relu_backward = broken


@mutant("relu_backward", "special_numbers")
def infinite_gradient_times_zero(module: BackendModule) -> None:
    @np.errstate(all="ignore")
    def broken(dy: Array, y: Array, out: Array) -> None:
        out[...] = dy * (y > 0).astype(dy.dtype)

    module.relu_backward = broken


@mutant("relu", "special_numbers")
def nan_swallowed(module: BackendModule) -> None:
    @np.errstate(all="ignore")
    def broken(x: Array, out: Array) -> None:
        out[...] = np.where(x > 0, x, np.zeros_like(x))

    module.relu = broken


@mutant("softmax", "nan_stays_in_its_row")
def nan_leaks_to_the_next_row(module: BackendModule) -> None:
    def change(x: Array, axis: int, out: Array) -> None:
        if out.ndim == 2:
            poisoned = np.isnan(out.astype(np.float32)).any(axis=1).nonzero()[0]
            out[np.minimum(poisoned + 1, len(out) - 1)] = np.nan

    afterwards(module, "softmax", change)


@mutant("cross_entropy", "nan_stays_in_its_row")
def undefined_probabilities_taken_for_certain(module: BackendModule) -> None:
    sound = module.cross_entropy
    module.cross_entropy = lambda p, *rest: sound(np.where(np.isnan(p), p.dtype.type(1), p), *rest)


@mutant("softmax_backward", "nan_stays_in_its_row")
def undefined_probabilities_taken_for_impossible(module: BackendModule) -> None:
    sound = module.softmax_backward

    def broken(dy: Array, y: Array, axis: int, out: Array) -> None:
        sound(dy, np.where(np.isnan(y), y.dtype.type(0), y), axis, out)

    module.softmax_backward = broken


@mutant("affine", "nan_stays_in_its_row")
def weights_that_are_not_finite_left_out(module: BackendModule) -> None:
    sound = module.affine
    module.affine = lambda x, w, b, out: sound(x, np.where(np.isfinite(w), w, w.dtype.type(0)), b, out)


@mutant("cross_entropy", "special_probabilities")
def probabilities_kept_away_from_zero(module: BackendModule) -> None:
    sound = module.cross_entropy

    def broken(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
        with np.errstate(all="ignore"):
            sound(np.maximum(p, p.dtype.type(1e-12)), t, options, loss)

    module.cross_entropy = broken


@mutant("log_softmax_backward", "impossible_classes")
def impossible_classes_give_nan(module: BackendModule) -> None:
    def change(dy: Array, y: Array, axis: int, out: Array) -> None:
        with np.errstate(all="ignore"):
            out += np.exp(y) * y * 0  # as p log p has it

    afterwards(module, "log_softmax_backward", change)


def flushed(out: Array) -> None:
    """Set subnormal numbers to 0, as processors and compilers do that are told to."""
    with np.errstate(all="ignore"):
        out[np.abs(out) < finfo(out.dtype).smallest_normal] = 0


@mutant("relu", "special_numbers")
def subnormal_numbers_taken_for_zero(module: BackendModule) -> None:
    afterwards(module, "relu", lambda x, out: flushed(out))


@mutant("relu_backward", "numbers_come_through_bit_for_bit")
def subnormal_gradients_taken_for_zero(module: BackendModule) -> None:
    afterwards(module, "relu_backward", lambda dy, y, out: flushed(out))


@mutant("softmax", "subnormal_rows")
def subnormal_probabilities_flushed_to_zero(module: BackendModule) -> None:
    afterwards(module, "softmax", lambda x, axis, out: flushed(out))


@mutant("softmax_backward", "subnormal_rows")
def subnormal_gradients_flushed_to_zero(module: BackendModule) -> None:
    afterwards(module, "softmax_backward", lambda dy, y, axis, out: flushed(out))


@mutant("log_softmax", "confident_rows_keep_their_accuracy")
def subnormal_logarithms_flushed_to_zero(module: BackendModule) -> None:
    afterwards(module, "log_softmax", lambda x, axis, out: flushed(out))


@mutant("softmax_cross_entropy", "ignored_rows_count_for_nothing")
def ignored_rows_counted_in_the_mean(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        if options.reduction == "mean" and options.ignore_index is not None and t.size:
            loss *= np.count_nonzero(t != options.ignore_index) / t.size

    afterwards(module, "softmax_cross_entropy", change)


@mutant("softmax_cross_entropy_backward", "ignored_rows_count_for_nothing")
def ignored_rows_multiplied_by_zero(module: BackendModule) -> None:
    def change(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
        if options.ignore_index is not None:
            with np.errstate(all="ignore"):
                dx += (y * np.zeros_like(y)).astype(dx.dtype)

    afterwards(module, "softmax_cross_entropy_backward", change)


@mutant("softmax_cross_entropy_value_and_grad", "rows_without_weight_count_for_nothing")
def rows_without_weight_multiplied_by_zero(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        if options.sample_weight is not None:
            with np.errstate(all="ignore"):
                dx += (x * np.zeros_like(x)).astype(dx.dtype)

    afterwards(module, "softmax_cross_entropy_value_and_grad", change)


@mutant("linear_cross_entropy_value_and_grad", "rows_without_weight_count_for_nothing")
def rows_without_weight_multiplied_into_the_weights(module: BackendModule) -> None:
    def change(
        x: Array, w: Array, b: Array, t: Array, options: LossOptions, space: Workspace, loss: Array, *grads: Array
    ) -> None:
        if options.sample_weight is not None and grads[1] is not None:
            with np.errstate(all="ignore"):
                grads[1][...] += (np.zeros_like(x).T @ x)[:, :1].astype(grads[1].dtype)

    afterwards(module, "linear_cross_entropy_value_and_grad", change)


@mutant("softmax_cross_entropy", "options_with_class_indices")
def mean_with_weights_of_rows_divided_by_their_number(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        if options.reduction == "mean" and options.sample_weight is not None:
            loss *= options.sample_weight.mean()

    afterwards(module, "softmax_cross_entropy", change)


@mutant("cross_entropy_backward", "options_with_soft_labels")
def weights_of_rows_forgotten(module: BackendModule) -> None:
    with_options(module, "cross_entropy_backward", lambda options: options._replace(sample_weight=None))


@mutant("softmax_cross_entropy_value_and_grad", "options_with_class_indices")
def z_loss_forgotten(module: BackendModule) -> None:
    with_options(module, "softmax_cross_entropy_value_and_grad", lambda options: options._replace(z_loss=0.0))


@mutant("softmax_cross_entropy_value_and_grad", "gradients_along_directions")
def z_loss_without_a_gradient(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_value_and_grad

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        given = x.copy()
        sound(x, t, options, loss, dx)
        if options.z_loss:
            sound(given, t, options._replace(z_loss=0.0), np.empty_like(loss), dx)

    module.softmax_cross_entropy_value_and_grad = broken


@mutant("softmax_cross_entropy", "options_with_one_hot_labels")
def z_loss_with_the_divisor_of_the_labels(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        without = np.empty_like(loss)
        sound(x.copy(), t, options._replace(z_loss=0.0), without, np.empty_like(y))
        sound(x, t, options, loss, y)
        if options.z_loss and options.weight is not None and options.reduction == "mean":
            loss[...] = without + (loss - without) / options.weight.mean()

    module.softmax_cross_entropy = broken


@mutant("linear_cross_entropy", "options_of_large_arrays")
def softcap_forgotten_for_many_rows(module: BackendModule) -> None:
    sound = module.linear_cross_entropy

    def broken(x: Array, w: Array, b: Array, t: Array, options: LossOptions, *others: Any) -> None:
        sound(x, w, b, t, options._replace(softcap=None) if len(x) > 100 else options, *others)

    module.linear_cross_entropy = broken


@mutant("cross_entropy", "numbers_that_are_no_probabilities")
def logits_taken_for_probabilities(module: BackendModule) -> None:
    sound = module.cross_entropy
    module.cross_entropy = lambda p, *others: sound(np.clip(p, 0, 1), *others)


@mutant("cross_entropy_backward", "numbers_that_are_no_probabilities")
def probabilities_checked_that_no_label_selects(module: BackendModule) -> None:
    def change(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
        if dp is not p and p.shape == dp.shape:
            dp[((p < 0) | (p > 1.001)).any(axis=options.axis)] = np.nan

    afterwards(module, "cross_entropy_backward", change)


@mutant("cross_entropy", "where_nothing_counts")
def mean_over_nothing(module: BackendModule) -> None:
    def change(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
        if options.reduction == "mean" and options.ignore_index is not None and (t == options.ignore_index).all():
            loss[...] = np.nan

    afterwards(module, "cross_entropy", change)


@mutant("softmax_cross_entropy_backward", "where_nothing_counts")
def nothing_written_where_all_labels_are_zero(module: BackendModule) -> None:
    sound = module.softmax_cross_entropy_backward

    def broken(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
        if t.ndim < y.ndim or t.any():
            sound(dloss, y, t, options, dx)

    module.softmax_cross_entropy_backward = broken


@mutant("softmax_cross_entropy", "labels_of_zero_on_impossible_classes")
def zero_times_infinity(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        if t.ndim == x.ndim and loss.ndim:
            loss[((t == 0) & np.isneginf(x)).any(axis=options.axis)] = np.nan

    afterwards(module, "softmax_cross_entropy", change)


@mutant("softmax_cross_entropy", "confident_rows_keep_their_accuracy")
def loss_as_a_difference_of_large_numbers(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        if loss.ndim == 1 and t.ndim == 1:
            with np.errstate(all="ignore"):
                label = y[np.arange(len(t)), t].astype(loss.dtype)
                loss[...] = -np.log(label)

    afterwards(module, "softmax_cross_entropy", change)


@mutant("softmax_cross_entropy_value_and_grad", "confident_rows_keep_their_accuracy")
def gradient_at_the_label_as_the_difference_from_one(module: BackendModule) -> None:
    sound, softmax = module.softmax_cross_entropy_value_and_grad, module.softmax

    def broken(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        y = np.empty_like(x)
        softmax(x, options.axis, y)
        sound(x, t, options, loss, dx)
        if t.ndim == 1 and options.axis == 1 and options.reduction == "none":
            rows = np.arange(len(t))
            dx[rows, t] = y[rows, t] - y.dtype.type(1)

    module.softmax_cross_entropy_value_and_grad = broken


@mutant("softmax_cross_entropy_value_and_grad", "tiny_weights")
def weights_divided_by_their_float32_sum(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
        if options.weight is not None:
            with np.errstate(all="ignore"):
                loss *= np.float32(1) / options.weight.sum(dtype=np.float32) * options.weight.sum(dtype=np.float32)

    afterwards(module, "softmax_cross_entropy_value_and_grad", change)


@mutant("gelu", "errors_within_the_budget")
def tail_by_a_difference_from_one(module: BackendModule) -> None:
    def broken(x: Array, options: GeluOptions, out: Array) -> None:
        wide = x.astype(np.float64)
        out[...] = wide * (1 + np.vectorize(math.erf, otypes=[np.float64])(wide / math.sqrt(2))) / 2

    module.gelu = broken


@mutant("silu_backward", "errors_within_the_budget")
def slope_of_the_sigmoid_alone(module: BackendModule) -> None:
    def broken(dy: Array, x: Array, out: Array) -> None:
        np.divide(dy, 1 + np.exp(-np.clip(x, -80, 80)), out=out, casting="same_kind")

    module.silu_backward = broken


@mutant("sigmoid", "errors_within_the_budget")
def sigmoid_by_the_hyperbolic_tangent(module: BackendModule) -> None:
    def change(x: Array, out: Array) -> None:
        out[...] = (0.5 * np.tanh(0.5 * x.astype(np.float64)) + 0.5).astype(out.dtype)

    afterwards(module, "sigmoid", change)


@mutant("sigmoid", "errors_within_the_budget")
def sigmoid_of_float16_in_float16(module: BackendModule) -> None:
    @np.errstate(all="ignore")
    def change(x: Array, out: Array) -> None:
        if x.dtype == np.float16:
            out[...] = 1 / (1 + np.exp(-x))

    afterwards(module, "sigmoid", change)


@mutant("softmax", "errors_beside_the_formula")
def sums_that_lose_some_bits(module: BackendModule) -> None:
    def change(x: Array, axis: int, out: Array) -> None:
        if out.dtype == np.float32:
            out *= np.float32(1 + 2.0**-20)

    afterwards(module, "softmax", change)


@mutant("log_softmax", "errors_over_many_classes")
def many_classes_added_up_one_by_one(module: BackendModule) -> None:
    def change(x: Array, axis: int, out: Array) -> None:
        if x.shape[axis] > 10_000:
            with np.errstate(all="ignore"):
                z = (x - x.max(axis=axis, keepdims=True)).astype(np.float32)
                total = np.add.accumulate(np.exp(z), axis=axis, dtype=np.float32).take([-1], axis=axis)
                out[...] = z - np.log(total)

    afterwards(module, "log_softmax", change)


@mutant("softmax", "small_elements_keep_their_accuracy")
def small_probabilities_cut_off(module: BackendModule) -> None:
    def change(x: Array, axis: int, out: Array) -> None:
        if out.dtype == np.float64:
            out[out < 1e-17] = 0

    afterwards(module, "softmax", change)


@mutant("softmax_cross_entropy", "small_elements_keep_their_accuracy")
def probabilities_no_smaller_than_the_rounding_of_one(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        y[y < finfo(y.dtype).eps] = 0

    afterwards(module, "softmax_cross_entropy", change)


# ---------------------------------------------------------------------------------------------------------------------
# Bounded workspaces
# ---------------------------------------------------------------------------------------------------------------------

LAYER_WITH_LOSS = "linear_cross_entropy_value_and_grad"


@mutant(LAYER_WITH_LOSS, "chunks_of_any_size")
def last_chunk_left_out(module: BackendModule) -> None:
    sound = getattr(module, LAYER_WITH_LOSS)

    def broken(x: Array, w: Array, b: Any, t: Array, options: LossOptions, workspace: Workspace, *results: Any) -> None:
        some = slice(None) if workspace.size >= 10**6 or len(x) < 2 else slice(0, -1)
        loss, dx, *parameters = results
        if options.reduction == "none":
            loss = loss[some]
        sound(x[some], w, b, t[some], options, workspace, loss, dx if dx is None else dx[some], *parameters)

    setattr(module, LAYER_WITH_LOSS, broken)


@mutant(LAYER_WITH_LOSS, "chunks_of_any_layout")
def weights_read_after_their_gradient_was_written(module: BackendModule) -> None:
    def change(*arguments: Any) -> None:
        x, w, dx, dw = arguments[0], arguments[1], arguments[-3], arguments[-2]
        if dw is w and dx is not None:
            dx[...] = x @ w.T

    afterwards(module, LAYER_WITH_LOSS, change)


@mutant(LAYER_WITH_LOSS, "the_least_that_works")
def twice_the_least_named(module: BackendModule) -> None:
    sound = getattr(module, LAYER_WITH_LOSS)

    def broken(*arguments: Any) -> None:
        try:
            sound(*arguments)
        except ValueError as error:
            raise ValueError(re.sub(r"at least (\d+)", lambda m: f"at least {2 * int(m[1])}", str(error))) from None

    setattr(module, LAYER_WITH_LOSS, broken)


@mutant(LAYER_WITH_LOSS, "a_workspace_is_kept")
def what_the_last_call_left_counts(module: BackendModule) -> None:
    seen: WeakSet[Workspace] = WeakSet()

    def change(*arguments: Any) -> None:
        workspace, loss = arguments[5], arguments[6]
        if workspace in seen:
            loss[...] *= 1.5
        seen.add(workspace)

    afterwards(module, LAYER_WITH_LOSS, change)


# ---------------------------------------------------------------------------------------------------------------------
# Losses of elements
# ---------------------------------------------------------------------------------------------------------------------

OF_ELEMENTS = "sigmoid_cross_entropy_value_and_grad"


def with_options_of_elements(
    module: BackendModule, kernel: str, change: Callable[[BinaryLossOptions], BinaryLossOptions]
) -> None:
    """Pass changed options to `kernel`."""
    sound = getattr(module, kernel)

    def broken(*arguments: Any) -> None:
        sound(*(change(a) if isinstance(a, BinaryLossOptions) else a for a in arguments))

    setattr(module, kernel, broken)


@mutant(OF_ELEMENTS, "options_with_a_label_for_each_element")
def weights_of_positive_labels_forgotten_where_labels_are_smoothed(module: BackendModule) -> None:
    with_options_of_elements(
        module, OF_ELEMENTS, lambda o: o._replace(pos_weight=None) if 0 < o.label_smoothing < 1 else o
    )


@mutant("sigmoid_cross_entropy_backward", "options_with_a_label_for_each_element")
def labels_of_elements_smoothed_towards_zero(module: BackendModule) -> None:
    sound = module.sigmoid_cross_entropy_backward

    def broken(dloss: Any, y: Array, t: Array, options: BinaryLossOptions, dx: Array) -> None:
        counts = t != options.ignore_index if options.ignore_index in (-1, -100) else np.ones(t.shape, bool)
        kept = np.where(counts, t.astype(np.float64) * (1 - options.label_smoothing), t.astype(np.float64))
        sound(dloss, y, kept, options._replace(label_smoothing=0.0), dx)

    module.sigmoid_cross_entropy_backward = broken


@mutant("sigmoid_cross_entropy", "options_of_many_elements")
def weights_of_rows_taken_for_weights_of_columns(module: BackendModule) -> None:
    sound = module.sigmoid_cross_entropy

    def broken(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
        weight = options.weight
        if weight is not None and weight.ndim == 2 and weight.shape[1] == 1 and x.size > 2**14:
            flat = np.resize(weight, x.size)  # repeated along the columns, whatever the shape of the logits
            options = options._replace(weight=flat.reshape(x.shape))
        sound(x, t, options, loss, y)

    module.sigmoid_cross_entropy = broken


@mutant(OF_ELEMENTS, "labels_outside_of_zero_and_one")
def labels_cut_to_zero_and_one(module: BackendModule) -> None:
    sound = getattr(module, OF_ELEMENTS)

    def broken(x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array) -> None:
        with np.errstate(invalid="ignore"):
            cut = t if options.ignore_index is not None else np.clip(t, t.dtype.type(0), t.dtype.type(1))
        sound(x, cut, options, loss, dx)

    setattr(module, OF_ELEMENTS, broken)


@mutant(OF_ELEMENTS, "ignored_elements_count_for_nothing")
def ignored_elements_multiplied_by_zero(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array) -> None:
        ignored = t == options.ignore_index
        with np.errstate(all="ignore"):
            dx[ignored] = (x * np.zeros_like(x))[ignored]

    afterwards(module, OF_ELEMENTS, change)


@mutant("sigmoid_cross_entropy", "ignored_elements_count_for_nothing")
def ignored_elements_counted_in_the_mean(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
        if options.reduction == "mean" and options.ignore_index is not None:
            loss *= np.count_nonzero(t != options.ignore_index) / t.size

    afterwards(module, "sigmoid_cross_entropy", change)


@mutant("sigmoid_cross_entropy", "where_no_element_counts")
def mean_over_no_elements(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
        if options.reduction == "mean" and (t == options.ignore_index).all():
            loss[...] = np.nan

    afterwards(module, "sigmoid_cross_entropy", change)


@mutant(OF_ELEMENTS, "confident_elements_keep_their_accuracy")
def gradient_of_elements_as_the_difference_from_one(module: BackendModule) -> None:
    sound = getattr(module, OF_ELEMENTS)
    forward, backward = module.sigmoid_cross_entropy, module.sigmoid_cross_entropy_backward

    def broken(x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array) -> None:
        y = np.empty_like(x)
        forward(x, t, options, loss, y)
        if options.reduction == "none":
            backward(np.ones(x.shape, loss.dtype), y, t, options, dx)
        else:
            sound(x, t, options, loss, dx)

    setattr(module, OF_ELEMENTS, broken)


@mutant("sigmoid_cross_entropy", "confident_elements_keep_their_accuracy")
def loss_of_elements_by_the_logarithm_of_rounded_probabilities(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
        if loss.ndim == 1 and t.dtype == np.int8:
            with np.errstate(all="ignore"):
                loss[...] = -np.log(np.where(t == 1, y, 1 - y).astype(loss.dtype))

    afterwards(module, "sigmoid_cross_entropy", change)


@mutant(OF_ELEMENTS, "in_place_of_the_weights_of_elements")
def weights_read_after_the_gradient_was_written(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array) -> None:
        if options.weight is dx and loss.ndim:
            loss *= options.weight

    afterwards(module, OF_ELEMENTS, change)


@mutant(OF_ELEMENTS, "special_numbers")
def infinite_logits_of_the_right_sign_give_nan(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array) -> None:
        if loss.ndim:
            with np.errstate(all="ignore"):
                loss += np.where(t == (x > 0), (0 * np.abs(x)).astype(loss.dtype), 0)

    afterwards(module, OF_ELEMENTS, change)


# ---------------------------------------------------------------------------------------------------------------------
# Accuracies
# ---------------------------------------------------------------------------------------------------------------------


@mutant("top_k_accuracy", "the_order_of_logits")
def equal_logits_all_among_the_largest(module: BackendModule) -> None:
    def broken(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
        rows = np.moveaxis(x, options.axis, -1).reshape(-1, x.shape[options.axis]).astype(np.float64)
        label = np.take_along_axis(rows, t.reshape(-1, 1).astype(np.int64), 1)
        accuracy[...] = (((rows > label).sum(axis=1) < k) & ~np.isnan(rows).any(axis=1)).mean()

    module.top_k_accuracy = broken


@mutant("top_k_accuracy", "the_order_of_logits")
def nan_smaller_than_all_numbers(module: BackendModule) -> None:
    sound = module.top_k_accuracy

    def broken(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
        sound(np.where(np.isnan(x), x.dtype.type(-np.inf), x), t, k, options, accuracy)

    module.top_k_accuracy = broken


@mutant("top_k_accuracy", "rows_that_count")
def ignored_rows_counted_as_wrong(module: BackendModule) -> None:
    def change(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
        if options.ignore_index is not None:
            accuracy *= np.count_nonzero(t != options.ignore_index) / t.size

    afterwards(module, "top_k_accuracy", change)


@mutant("top_k_accuracy", "labels_of_accuracies_that_name_no_class")
def labels_of_accuracies_wrapped(module: BackendModule) -> None:
    sound = module.top_k_accuracy

    def broken(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
        wrapped = t if options.ignore_index is not None else t.astype(np.int64) % x.shape[options.axis]
        sound(x, wrapped, k, options, accuracy)

    module.top_k_accuracy = broken


# ---------------------------------------------------------------------------------------------------------------------
# The largest logits of a layer
# ---------------------------------------------------------------------------------------------------------------------


def largest_by(
    module: BackendModule, key: Callable[[Array], tuple[Array, ...]], most: int = 10**9, rounds: bool = False
) -> None:
    """Replace `linear_top_k` by one that sorts rows by keys, the last of them first, and reads `most` rows."""

    def broken(x: Array, w: Array, b: Array, k: int, workspace: Any, values: Array, indices: Array) -> None:
        with np.errstate(all="ignore"):
            z = np.asarray(x.astype(np.float64) @ w.astype(np.float64) + (0 if b is None else b.astype(np.float64)))
            order = np.lexsort(key(z.astype(values.dtype).astype(np.float64) if rounds else z), axis=-1)[..., :k]
            largest = np.take_along_axis(z, order, -1)
        indices[...], values[...] = 0, 0
        indices[:most], values[:most] = order[:most], largest[:most]

    module.linear_top_k = broken


@mutant("linear_top_k", "the_order_of_largest_logits")
def equal_logits_in_falling_order_of_classes(module: BackendModule) -> None:
    largest_by(module, lambda z: (np.broadcast_to(-np.arange(z.shape[-1]), z.shape), -z, ~np.isnan(z)))


@mutant("linear_top_k", "the_order_of_largest_logits")
def undefined_logits_behind_all_numbers(module: BackendModule) -> None:
    largest_by(module, lambda z: (-z,))


@mutant("linear_top_k", "logits_are_compared_before_they_are_rounded")
def logits_compared_after_they_were_rounded(module: BackendModule) -> None:
    largest_by(module, lambda z: (-z, ~np.isnan(z)), rounds=True)


@mutant("linear_top_k", "large_arrays")
def rows_beyond_the_first_thousands_forgotten(module: BackendModule) -> None:
    largest_by(module, lambda z: (-z, ~np.isnan(z)), most=5000)


@mutant("linear_top_k", "any_number_of_largest")
def more_than_a_hundred_largest_logits_in_any_order(module: BackendModule) -> None:
    def change(x: Array, w: Array, b: Array, k: int, workspace: Any, values: Array, indices: Array) -> None:
        if k > 100:
            values[...], indices[...] = values[..., ::-1].copy(), indices[..., ::-1].copy()

    afterwards(module, "linear_top_k", change)


@mutant("linear_top_k", "real_logits")
def class_of_the_next_logit(module: BackendModule) -> None:
    def change(x: Array, w: Array, b: Array, k: int, workspace: Any, values: Array, indices: Array) -> None:
        if not (x == np.rint(x)).all():
            indices[...] = np.roll(indices, 1, axis=-1)

    afterwards(module, "linear_top_k", change)


# ---------------------------------------------------------------------------------------------------------------------
# Errors, and who does the work
# ---------------------------------------------------------------------------------------------------------------------


@mutant("softmax", "mistakes")
def complex_numbers_cut_to_their_real_parts(module: BackendModule) -> None:
    module.take = lambda what, x: host.take(what, x).real


@mutant("cross_entropy", "labels_that_name_no_class")
def negative_labels_wrapped(module: BackendModule) -> None:
    sound = module.cross_entropy

    def broken(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
        if t.ndim < p.ndim and t.dtype.kind == "i":
            t = np.where(t < 0, t.astype(np.int64) % p.shape[options.axis], t)
        sound(p, t, options, loss)

    module.cross_entropy = broken


@mutant("softmax", "arrays_that_are_elsewhere")
def arrays_moved_in_silence(module: BackendModule) -> None:
    module.take = lambda what, x: np.zeros((3, 4), np.float32) if host.on_device(x) else host.take(what, x)


@mutant("softmax", "the_backend_does_the_work")
def silent_fallback(module: BackendModule) -> None:
    """Leave the sound module as it is: the numpy backend computes behind it."""


@mutant("softmax_cross_entropy", "the_same_bits_each_time")
def sums_in_an_order_of_their_own(module: BackendModule) -> None:
    calls = iter(range(10**9))

    def change(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
        if next(calls) % 2:
            loss[...] = np.nextafter(loss, np.inf)

    afterwards(module, "softmax_cross_entropy", change)


def sums_that_depend_on_the_threads(module: BackendModule) -> None:
    def change(x: Array, t: Array, options: LossOptions, loss: Array) -> None:
        if threads.count() > 2:
            loss[...] = np.nextafter(loss, np.inf)

    afterwards(module, "cross_entropy", change)


def products_that_depend_on_the_process(module: BackendModule) -> None:
    def change(x: Array, w: Array, b: Array, y: Array) -> None:
        y[...] = os.getpid() % 251  # which every dtype can hold

    afterwards(module, "affine", change)


IN_PROCESSES = (
    Mutant(sums_that_depend_on_the_threads, "cross_entropy", "the_same_bits_for_any_number_of_threads"),
    Mutant(products_that_depend_on_the_process, "affine", "the_same_bits_in_another_process"),
)


@functools.cache
def _module_in_processes() -> BackendModule:
    module = sound_module()
    for mutant in IN_PROCESSES:
        mutant.spoil(module)
    return module


def __getattr__(name: str) -> Any:
    """The functions broken by `IN_PROCESSES`: other processes import this file as their backend module."""
    if name in KERNELS:
        return getattr(_module_in_processes(), name)
    raise AttributeError(name)
