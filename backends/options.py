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


class BinaryLossOptions(NamedTuple):
    """The options of a loss whose elements are two classes each, checked.

    Attributes
    ----------
    kernel : str
        The kernel's name, for messages.
    weight : array, or None
        The weight of each element, in a shape that broadcasts to that of the logits, and in the dtype that the loss is
        computed in.
    pos_weight : array, or None
        The same for the part of each label that is 1.
    ignore_index : int or None
        The label of elements that do not count.
    label_smoothing : float
        The share in [0, 1] of each label that is replaced by 1/2.
    reduction : str
        ``"mean"``, ``"sum"`` or ``"none"``.
    """

    kernel: str
    weight: Any
    pos_weight: Any
    ignore_index: int | None
    label_smoothing: float
    reduction: str

    def ignored_label(self, dtype: np.dtype[Any]) -> float | None:
        """The label of ignored elements, a float for floating labels; None if no label of `dtype` can equal it."""
        label = self.ignore_index
        if label is None or dtype.kind == "b":
            return label if label in (0, 1) else None
        if dtype.kind in "iu":
            return label if np.iinfo(dtype).min <= label <= np.iinfo(dtype).max else None
        if abs(label) >= 2**1023:
            return None
        with np.errstate(all="ignore"):
            return float(label) if float(np.asarray(label, FLOAT64).astype(dtype)) == label else None

    def bad_label(self, label: Any, place: tuple[int, ...]) -> ValueError:
        """The error for a label outside [0, 1]; the same text whichever backend finds it."""
        ignored = "" if self.ignore_index is None else f" or the ignored label {self.ignore_index}"
        where = f" at {place[0] if len(place) == 1 else place}" if place else ""
        if label != label or (label < 0 and self.ignore_index is None):
            hint = "; give elements that shall not count an integer such as -1, and pass it as ignore_index"
        elif label > 1:
            hint = "; give one label in [0, 1] for each logit, or softmax_cross_entropy class indices"
        else:
            hint = "; give one label in [0, 1] for each logit"
        return ValueError(f"{self.kernel}: t: expected labels in [0, 1]{ignored}, got {label}{where}{hint}")
