"""The interface between kernels and backends apart from arrays: the dtypes, and the options of a loss."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

# dtype of the arrays -> dtype they are computed and reduced in, and that of a loss. bfloat16, which belongs to
# ml_dtypes, joins when the first such array comes (`is_supported`): plugrad does not import that package.
COMPUTE: dict[np.dtype[Any], np.dtype[Any]] = {np.dtype(np.float16): FLOAT32, FLOAT32: FLOAT32, FLOAT64: FLOAT64}


def is_supported(dtype: np.dtype[Any]) -> bool:
    """Whether kernels compute on arrays of this dtype as they are."""
    if dtype not in COMPUTE and dtype.name == "bfloat16":
        COMPUTE[dtype] = FLOAT32
    return dtype in COMPUTE


class LossOptions(NamedTuple):
    """The options of a loss, checked.

    Attributes
    ----------
    kernel : str
        The kernel's name, for messages.
    axis : int
        The axis of the classes, not negative.
    weight : array of shape (classes,), or None
        The weight of each class, in the dtype that the loss is computed in.
    ignore_index : int or None
        The label of rows that do not count.
    label_smoothing : float
        The share in [0, 1] of each label that is spread evenly over all classes.
    reduction : str
        ``"mean"``, ``"sum"`` or ``"none"``.
    divisor : float or None
        What the mean divides by, where the rows are some of more, in the form that the backend has for it; None where
        it is to be counted, as for every call from outside of a backend.
    """

    kernel: str
    axis: int
    weight: Any
    ignore_index: int | None
    label_smoothing: float
    reduction: str
    divisor: Any = None

    def with_weight(self, weight: Any) -> "LossOptions":
        """These options, with `weight` in place of an array of the same weights."""
        return self if weight is self.weight else self._replace(weight=weight)


class LeakyReluOptions(NamedTuple):
    """The options of `leaky_relu` and its gradient, checked.

    Attributes
    ----------
    negative_slope : float
        The slope where the argument is not positive.
    """

    negative_slope: float = 0.01


class GeluOptions(NamedTuple):
    """The options of `gelu` and its gradient, checked.

    Attributes
    ----------
    approximate : {"none", "tanh"}
        The formula: that by the error function, or that by the hyperbolic tangent.
    """

    approximate: Literal["none", "tanh"] = "none"


# The formula by the hyperbolic tangent, y = x (1 + tanh(u)) / 2, is x / (1 + exp(-v)) with v = 2u = x (A + B x^2).
GELU_A = 2 * math.sqrt(2 / math.pi)
GELU_B = 0.044715 * GELU_A


def bad_label(label: int, row: tuple[int, ...], classes: int, options: LossOptions) -> ValueError:
    """The error for a label that names no class; the same text whichever backend finds it."""
    ignored = "" if options.ignore_index is None else f" or the ignored label {options.ignore_index}"
    where = f" at row {row[0] if len(row) == 1 else row}" if row else ""
    hint = ""
    if label == classes:
        hint = "; labels count from 0"
    elif label < 0 and options.ignore_index is None:
        hint = "; pass ignore_index for rows that shall not count"
    return ValueError(f"{options.kernel}: t: expected labels in [0, {classes}){ignored}, got {label}{where}{hint}")
