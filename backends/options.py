"""The interface between kernels and backends apart from arrays: the dtypes, and the options of a loss."""

from typing import Any, NamedTuple

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
    sample_weight : array or None
        The weight of each row, of the shape of a loss without reduction, in the dtype that the loss is computed in.
        Rows of weight 0 do not count.
    z_loss : float
        What the square of the logarithm of each row's sum of exponentials is multiplied by; 0 for losses of
        probabilities.
    softcap : float or None
        What the logits of a layer stay below; None for losses without a layer.
    """

    kernel: str
    axis: int
    weight: Any
    ignore_index: int | None
    label_smoothing: float
    reduction: str
    divisor: Any = None
    sample_weight: Any = None
    z_loss: float = 0.0
    softcap: float | None = None

    def with_weights(self, weight: Any, sample_weight: Any) -> "LossOptions":
        """These options, with arrays of the same weights in place of theirs."""
        if weight is self.weight and sample_weight is self.sample_weight:
            return self
        return self._replace(weight=weight, sample_weight=sample_weight)


def bad_label(label: int, row: tuple[int, ...], classes: int, options: LossOptions) -> ValueError:
    """The error for a label that names no class; the same text whichever backend finds it."""
    ignored = "" if options.ignore_index is None else f" or the ignored label {options.ignore_index}"
    where = _at(row)
    hint = ""
    if label == classes:
        hint = "; labels count from 0"
    elif label < 0 and options.ignore_index is None:
        hint = "; pass ignore_index for rows that shall not count"
    return ValueError(f"{options.kernel}: t: expected labels in [0, {classes}){ignored}, got {label}{where}{hint}")


def bad_probability(value: float, row: tuple[int, ...], options: LossOptions) -> ValueError:
    """The error for a number that is no probability; the same text whichever backend finds it."""
    return ValueError(
        f"{options.kernel}: p: expected probabilities in [0, 1], got {value:.6g}{_at(row)}; "
        f"logits are for softmax_cross_entropy"
    )


def _at(row: tuple[int, ...]) -> str:
    return f" at row {row[0] if len(row) == 1 else row}" if row else ""
