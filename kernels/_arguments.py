"""The checks of every call, which return arguments in the canonical form for backends.

The order is the same in every call: choose the backend, check every argument without reading its data, and then
compute. Each function returns the canonical argument or raises an error that names the kernel and the argument, the
expected and the actual value, and the remedy. Arguments in canonical form pass each check early, because on small
arrays the checks are most of the cost of a call.
"""

import functools
import math
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from plugrad.backends import Backend, libraries, log, tensors
from plugrad.backends.options import COMPUTE, FLOAT64, LossOptions, is_supported
from plugrad.backends.recording import would_be_converted

# An array of the backend in force. Signatures name NumPy's; on `cupy` and on plug-ins it is an array of theirs.
Array: TypeAlias = npt.NDArray[Any]

# Arguments: an array of the backend in force, or numbers in nested sequences.
ArrayLike: TypeAlias = npt.ArrayLike

# A loss: a scalar, or an array with one entry for each row.
Loss: TypeAlias = np.floating[Any] | npt.NDArray[Any]

# Where to write several results: a tuple with an entry for each, or an array for the one that the kernel says.
Out: TypeAlias = Array | tuple[Array | None, ...] | None

REDUCTIONS = ("mean", "sum", "none")


# ---------------------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------------------


def floating(kernel: str, name: str, x: Any, backend: Backend) -> Any:
    """`x` as an array of the backend with a floating dtype in native byte order; of integers float64."""
    x = real(kernel, name, x, backend)
    return x if x.dtype in COMPUTE else x.astype(FLOAT64)


def real(kernel: str, name: str, x: Any, backend: Backend) -> Any:
    """`x` as an array of the backend with real numbers in native byte order; integers and booleans stay."""
    if type(x) is backend.native and x.dtype in COMPUTE:
        return x
    is_sequence = isinstance(x, list | tuple | float | int)
    x = backend.take(f"{kernel}: {name}", x)
    dtype = x.dtype
    if is_supported(dtype):
        return x
    if backend.recorder is not None and dtype.kind in "iubf":
        raise would_be_converted(f"{kernel}: {name}", "a floating dtype in native byte order", f"dtype {dtype}")
    if dtype.kind in "iub":
        return x.astype(FLOAT64) if is_sequence else x
    if dtype.kind == "f" and is_supported(dtype.newbyteorder("=")):
        return x.astype(dtype.newbyteorder("="))
    raise TypeError(
        f"{kernel}: {name}: expected float16, bfloat16, float32, float64, integers or booleans, got dtype {dtype}"
    )


def promoted(kernel: str, backend: Backend, **named: Any) -> tuple[Any, ...]:
    """Arrays of real numbers in one floating dtype, by NumPy's promotion; integers alone become float64.

    The arrays are given by the names of the arguments. uint8 with float32 gives float32, and int64 with float32
    float64, as for NumPy's ``@`` and ``+``. NumPy has no common dtype for float16 and bfloat16: they give float32.
    """
    arrays = tuple(named.values())
    dtype = arrays[0].dtype
    for array in arrays:
        if array.dtype is not dtype and array.dtype != dtype:
            break
    else:
        if dtype in COMPUTE:
            return arrays
    dtype = _common(tuple([array.dtype for array in arrays]))
    if backend.recorder is not None:
        name = next(name for name, array in named.items() if array.dtype != dtype)
        wide = next((name for name, array in named.items() if array.dtype == dtype), "the call")
        raise would_be_converted(f"{kernel}: {name}", f"dtype {dtype}, that of {wide}", f"dtype {named[name].dtype}")
    return tuple([array if array.dtype == dtype else array.astype(dtype) for array in arrays])


@functools.lru_cache(1024)
def _common(dtypes: tuple[np.dtype[Any], ...]) -> np.dtype[Any]:
    """The dtype of `promoted`: pair by pair in order, as in ``x @ w + b``."""
    common = functools.reduce(_pair, dtypes)
    return common if common in COMPUTE else FLOAT64


def _pair(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    try:
        return np.promote_types(a, b)
    except TypeError:  # bfloat16 with float16 or integers of 16 bits and more: as float32
        return np.promote_types(COMPUTE.get(a, a), COMPUTE.get(b, b))


def axis_index(kernel: str, axis: Any, ndim: int) -> int:
    """`axis` counted from the front."""
    if type(axis) is int and axis == -1 and ndim:
        return ndim - 1
    index = integer(kernel, "axis", axis, "one integer")
    if not -ndim <= index < ndim:
        span = f"in [{-ndim}, {ndim})" if ndim else "of an array of at least one dimension"
        raise ValueError(f"{kernel}: axis: expected an axis {span}, got {index}")
    return index % ndim


def integer(kernel: str, name: str, value: Any, expected: str) -> int:
    """`value` as a Python integer."""
    if not isinstance(value, bool | np.bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{kernel}: {name}: expected {expected}, got {value!r}")


def number(kernel: str, name: str, value: Any, expected: str, is_right: Callable[[float], bool]) -> float:
    """`value` as a Python float, if that is right."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{kernel}: {name}: expected {expected}, got {value!r}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not is_right(found):
        raise ValueError(f"{kernel}: {name}: expected {expected}, got {value}")
    return found


def number_of_largest(kernel: str, k: Any, classes: int) -> int:
    """The option `k`, a number of classes."""
    number = integer(kernel, "k", k, f"an integer in [1, {classes}]")
    if not 1 <= number <= classes:
        raise ValueError(f"{kernel}: k: expected an integer in [1, {classes}], the number of classes, got {number}")
    return number


def same_shape(kernel: str, name: str, x: Any, other: str, shape: tuple[int, ...]) -> None:
    """Refuse `x` unless it has the shape of the argument called `other`."""
    if x.shape != shape:
        raise ValueError(f"{kernel}: {name}: expected the shape of {other}, {shape}, got {x.shape}")


def some_classes(kernel: str, name: str, x: Any, axis: int) -> None:
    """Refuse an array whose class axis is empty."""
    if not x.shape[axis]:
        raise ValueError(f"{kernel}: {name}: expected at least one class along axis {axis}, got shape {x.shape}")


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def result(
    kernel: str,
    name: str,
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    backend: Backend,
    reads: tuple[Any, ...],
    writes: tuple[Any, ...] = (),
) -> tuple[Any, tuple[Any, ...]]:
    """The array for a result, and the arrays that are read: `out` if the caller gave one that fits, else a new array.

    `out` may have exactly the memory of one of `reads`. In the tuple that is returned `out` itself takes the place of
    that array, so that the backend recognises it by ``is``. `out` must not overlap one of `reads` in another way, nor
    `writes`, the other results. None in `reads` and `writes` stands for an array that is not there.
    """
    if isinstance(out, tuple) and len(out) == 1:
        out = out[0]
    if out is None:
        return backend.empty(shape, dtype), reads
    owns_memory = backend.native is np.ndarray and can_take(out, shape, dtype)
    if not owns_memory and (
        type(out) is not backend.native
        or (out.dtype is not dtype and out.dtype != dtype)
        or out.shape != shape
        or not ((flags := out.flags).c_contiguous and getattr(flags, "writeable", True))  # CuPy's arrays always are
    ):
        out = _checked_result(f"{kernel}: {name}", out, shape, dtype, backend)
    for written in writes:
        if written is None or (owns_memory and written is not out and written.base is None):
            continue
        if backend.overlap(out, written) != "none":
            raise ValueError(f"{kernel}: {name}: shares memory with another result; pass an array of its own")
    for read in reads:
        if read is None or read is out:
            continue
        if owns_memory and (read.base is None or not views(read, out)):
            continue
        overlap = backend.overlap(out, read)
        if overlap == "partial":
            raise ValueError(
                f"{kernel}: {name}: shares part of its memory with an argument; pass that very array, or another"
            )
        if overlap == "same":
            reads = tuple([out if other is read else other for other in reads])
    return out, reads


def can_take(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *reads: Any) -> bool:
    """Whether `out` is an array of NumPy's that takes a result as it is, and arrays that are read do not overlap it.

    `result` finds out the same of any arrays, and takes longer. `out` owns its memory; an array that is read does so
    too, or is a view, such as a batch of all the data, of one that does, or it is `out` itself.
    """
    if not (
        type(out) is np.ndarray and out.base is None and out.dtype is dtype and out.shape == shape and out.flags.carray
    ):
        return False
    for read in reads:
        if read is not None and (type(read) is not np.ndarray or (read.base is not None and views(read, out))):
            return False
    return True


def views(read: Any, out: Any) -> bool:
    """Whether a view may share memory with `out`, which owns its own: it is a view of it, or of no array of NumPy's."""
    base = read.base
    return type(base) is not np.ndarray or base.base is not None or base is out


def _checked_result(what: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], backend: Backend) -> Any:
    """`out` as an array of the backend; an array that a result cannot be written to is refused."""
    if tensors.is_tensor(out):
        out = backend.take(what, out)
    libraries.refuse_immutable(what, out, "call without out=, and use the array that is returned")
    if not backend.owns(type(out)):
        raise TypeError(f"{what}: expected a plain array of backend {backend.name!r}, got {type(out).__qualname__}")
    backend.take(what, out)  # refuses what lies on another device
    if out.dtype != dtype:
        raise TypeError(f"{what}: expected dtype {dtype}, the dtype of the result, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{what}: expected shape {shape}, the shape of the result, got {out.shape}")
    if not getattr(out.flags, "writeable", True):
        raise ValueError(f"{what}: expected an array that can be written, got a read-only one")
    if not out.flags.c_contiguous and overlaps_itself(out):
        raise ValueError(f"{what}: expected an array without repeated elements, got strides {out.strides}")
    return out


def overlaps_itself(x: Any) -> bool:
    """Whether two elements of `x` may have the same address: some stride lies inside the extent of the others."""
    extent = x.dtype.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride < extent:
            return bool(x.size)
        extent += stride * (length - 1)
    return False


def given_results(kernel: str, out: Any, names: tuple[str, ...], lone: str | None) -> tuple[Any, ...]:
    """`out` as one entry per result; an array by itself stands for the result called `lone`."""
    if out is None:
        return (None,) * len(names)
    if isinstance(out, tuple):
        if len(out) != len(names):
            raise ValueError(f"{kernel}: out: expected one entry for each of {', '.join(names)}; got {len(out)}")
        return out
    if lone is None or isinstance(out, list):
        raise TypeError(f"{kernel}: out: expected a tuple ({', '.join(names)}), got {type(out).__qualname__}")
    return tuple([out if name == lone else None for name in names])


def given_back(array: Any, out: Any, backend: Backend) -> Array:
    """The result as the caller gets it: the array that it gave, or a new one, a scalar if that has no dimensions.

    In a capture it stays an array, which each replay overwrites.
    """
    is_given = out is not None and not (type(out) is tuple and out[0] is None)
    result: Array = array if is_given or array.ndim or backend.recorder is not None else array[()]
    return result


def fill(kernel: str, value: Any, results: tuple[Any, ...], backend: Backend) -> None:
    """Write what a kernel computes from empty arrays, which no backend sees: a number, or one for each column."""
    results = tuple([array for array in results if array is not None])
    _fill(value, *results)
    if backend.recorder is not None:
        backend.recorder.record(kernel, _fill, (value, *results), results, is_fixed=True)


def _fill(value: Any, *results: Any) -> None:
    for array in results:
        array[...] = value


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def loss_arguments(
    kernel: str,
    name: str,
    x: Any,
    t: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any,
    backend: Backend,
) -> tuple[Any, Any, LossOptions]:
    """The argument called `name`, whose rows are those of the loss, their labels, and the options, checked."""
    if type(x) is not backend.native or x.dtype not in COMPUTE:
        x = floating(kernel, name, x, backend)
    if weight is None and sample_weight is None and type(t) is backend.native:
        try:
            options = _options_of_indices(
                kernel, x.shape, t.shape, t.dtype, axis, ignore_index, label_smoothing, z_loss, reduction
            )
        except (TypeError, ValueError):  # raised again below, with its message
            options = None
        if options is not None:
            return x, t, options
    weights = weight, sample_weight
    options = loss_options(kernel, name, x, axis, *weights, ignore_index, label_smoothing, z_loss, reduction, backend)
    return x, labels(kernel, t, x, options, backend), options


@functools.lru_cache(1024, typed=True)
def _options_of_indices(
    kernel: str,
    shape: tuple[int, ...],
    labels_shape: tuple[int, ...],
    labels_dtype: np.dtype[Any],
    axis: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any,
) -> LossOptions | None:
    """The options that `loss_options` and `labels` find, kept for equal calls; None where labels need conversion."""
    index = axis_index(kernel, axis, len(shape))
    is_plain = labels_dtype.kind in "iu" and labels_dtype.isnative and 0 not in shape
    if not is_plain or labels_shape != shape[:index] + shape[index + 1 :] or shape[index] == 1:
        return None
    return _checked_options(kernel, index, ignore_index, label_smoothing, z_loss, reduction)


def loss_options(
    kernel: str,
    name: str,
    x: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any,
    backend: Backend,
) -> LossOptions:
    """The options of a loss of the rows of `x`, the argument called `name`, checked."""
    index = axis_index(kernel, axis, x.ndim)
    if not x.size:
        some_classes(kernel, name, x, index)
    if x.shape[index] == 1:
        _warn_of_one_class()
    options = checked_options(kernel, index, ignore_index, label_smoothing, reduction, z_loss)
    if weight is None and sample_weight is None:
        return options
    classes, rows = x.shape[index : index + 1], x.shape[:index] + x.shape[index + 1 :]
    return options._replace(
        weight=_weights(kernel, "weight", weight, "class", classes, x, backend),
        sample_weight=_weights(kernel, "sample_weight", sample_weight, "row", rows, x, backend),
    )


def _weights(kernel: str, name: str, weight: Any, each: str, shape: tuple[int, ...], x: Any, backend: Backend) -> Any:
    """The weights of classes or rows in the dtype that the loss of `x` is computed in; None stays None."""
    if weight is None:
        return None
    weight = floating(kernel, name, weight, backend)
    if weight.shape != shape:
        raise ValueError(f"{kernel}: {name}: expected one weight per {each}, shape {shape}, got {weight.shape}")
    return in_dtype_of_loss(kernel, name, weight, x, backend)


def in_dtype_of_loss(kernel: str, name: str, weight: Any, x: Any, backend: Backend) -> Any:
    """Weights, the argument called `name`, in the dtype in which the loss of `x` is computed."""
    if weight.dtype != COMPUTE[x.dtype]:
        if backend.recorder is not None:
            expected = f"dtype {COMPUTE[x.dtype]}, in which the loss is computed"
            raise would_be_converted(f"{kernel}: {name}", expected, f"dtype {weight.dtype}")
        with np.errstate(all="ignore"):  # a weight that float32 cannot hold becomes infinite, or 0
            weight = weight.astype(COMPUTE[x.dtype])
    return weight


def checked_options(
    kernel: str, axis: int, ignore_index: Any, label_smoothing: Any, reduction: Any, z_loss: Any = 0.0
) -> LossOptions:
    """The options of a loss, but for the weights, checked."""
    try:
        return _checked_options(kernel, axis, ignore_index, label_smoothing, z_loss, reduction)
    except TypeError:  # of the checks, or because an argument has no hash: then the checks name it
        return _checked_options.__wrapped__(kernel, axis, ignore_index, label_smoothing, z_loss, reduction)


@functools.cache
def _warn_of_one_class() -> None:
    """Log, once, that a loss over one class is always 0."""
    log.warn("a loss over a single class is always 0; two classes by one output want sigmoid_cross_entropy")


@functools.lru_cache(256, typed=True)
def _checked_options(
    kernel: str, axis: int, ignore_index: Any, label_smoothing: Any, z_loss: Any, reduction: Any
) -> LossOptions:
    """The options of a loss, but for the weights, checked once for all calls that have the same."""
    if ignore_index is not None:
        ignore_index = integer(kernel, "ignore_index", ignore_index, "an integer or None")
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        expected = "a number in [0, 1]"
        label_smoothing = number(kernel, "label_smoothing", label_smoothing, expected, lambda share: 0 <= share <= 1)
    if type(z_loss) is not float or z_loss != 0.0:
        z_loss = number(kernel, "z_loss", z_loss, "a finite number of at least 0", lambda c: 0 <= c < np.inf)
    if not isinstance(reduction, str):
        raise TypeError(f"{kernel}: reduction: expected one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{kernel}: reduction: expected one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return LossOptions(kernel, axis, None, ignore_index, label_smoothing, reduction, z_loss=z_loss)


def labels(kernel: str, t: Any, x: Any, options: LossOptions, backend: Backend) -> Any:
    """The labels of the rows of `x`: integers without the class axis, or numbers of the shape of `x`."""
    if type(t) is not backend.native:
        given, t = t, backend.take(f"{kernel}: t", t)
        if t.dtype.kind in "OSUmM":
            raise TypeError(
                f"{kernel}: t: expected class indices or one number per class, got "
                f"{f'dtype {t.dtype}' if t.ndim else type(given).__qualname__}"
            )
    axis = options.axis
    rows = x.shape[:-1] if axis == x.ndim - 1 else x.shape[:axis] + x.shape[axis + 1 :]
    if t.shape == rows:
        if t.dtype.kind not in "iu":
            if t.size or t.dtype.kind != "f":
                raise TypeError(
                    f"{kernel}: t: expected class indices of an integer dtype, got dtype {t.dtype}; {_as_indices(t)}"
                )
            if backend.recorder is not None:
                raise would_be_converted(f"{kernel}: t", "class indices of an integer dtype", f"dtype {t.dtype}")
            t = t.astype(np.intp)  # an empty list of labels comes as floats
    elif t.shape != x.shape:
        raise ValueError(
            f"{kernel}: t: expected class indices of shape {rows} or one label per class of shape {x.shape}, "
            f"got shape {t.shape}{_hint_for_labels(t, x, rows)}"
        )
    else:
        if options.ignore_index is not None:
            raise ValueError(
                f"{kernel}: ignore_index: expected None with one label per class, got {options.ignore_index}; "
                f"give class indices, or sample_weight with a 0 for each row that shall not count"
            )
        if t.dtype.kind not in "iub":
            t = floating(kernel, "t", t, backend)
            if backend.recorder is not None and t.dtype != x.dtype:
                raise would_be_converted(f"{kernel}: t", f"dtype {x.dtype}, that of x", f"dtype {t.dtype}")
    if backend.recorder is not None and not t.dtype.isnative:
        raise would_be_converted(f"{kernel}: t", "labels in native byte order", f"dtype {t.dtype}")
    return t if t.dtype.isnative else t.astype(t.dtype.newbyteorder("="))


def _as_indices(t: Any) -> str:
    """How to make class indices of labels that are not integers, as far as host memory tells."""
    if isinstance(t, np.ndarray) and t.dtype.kind == "f" and not bool((np.isfinite(t) & (t == np.floor(t))).all()):
        return "give rows without a label a number of their own, and pass it as ignore_index"
    if t.dtype.kind in "SU":
        return "np.unique(t, return_inverse=True)[1] numbers them"
    return "use t.astype(int)"


def _hint_for_labels(t: Any, x: Any, rows: tuple[int, ...]) -> str:
    if t.shape == (*rows, 1):
        return "; pass t.ravel()" if len(rows) == 1 else "; pass t[..., 0]"
    if t.ndim > x.ndim and t.dtype.kind not in "iub":
        return "; the labels come second"
    return ""


def loss_shape(x: Any, options: LossOptions) -> tuple[int, ...]:
    """The shape of the loss of the rows of `x`."""
    if options.reduction != "none":
        return ()
    shape: tuple[int, ...] = x.shape
    return shape[: options.axis] + shape[options.axis + 1 :]


def upstream(kernel: str, dloss: Any, x: Any, options: LossOptions, backend: Backend) -> Any:
    """The gradient of the loss: a Python float, or an array of the backend of the shape of the loss."""
    return gradient_of_loss(kernel, dloss, loss_shape(x, options), options.reduction, backend)


def gradient_of_loss(kernel: str, dloss: Any, shape: tuple[int, ...], reduction: str, backend: Backend) -> Any:
    """The gradient of a loss of that shape: a Python float, or an array of the backend."""
    if isinstance(dloss, float | int | np.floating | np.integer):
        if shape:
            raise ValueError(_upstream_shape(kernel, reduction, shape, ()))
        try:
            return float(dloss)
        except OverflowError as error:
            raise ValueError(f"{kernel}: dloss: expected a number that a float can hold, got {dloss}") from error
    dloss = floating(kernel, "dloss", dloss, backend)
    if dloss.shape != shape:
        raise ValueError(_upstream_shape(kernel, reduction, shape, dloss.shape))
    return dloss


def _upstream_shape(kernel: str, reduction: str, expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    return f"{kernel}: dloss: expected the shape of the loss with reduction={reduction!r}, {expected}, got {got}"
