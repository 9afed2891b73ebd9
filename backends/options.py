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


class DropoutOptions(NamedTuple):
    """The options of `dropout` and its gradient, checked.

    The word ``i mod 4`` of the block of Philox4x32-10 (see `PHILOX`) whose counter is ``i // 4``, in two words of 32
    bits, the low one first, then two zeros, and whose key is the seed, in two words likewise, belongs to the element at
    position `i` in C order. The element is kept if the word is at least `threshold`, and multiplied with `factor`.

    Attributes
    ----------
    p : float
        The probability in [0, 1] that an element is dropped.
    seed : int or array
        An integer in [0, 2**64), or an array of the backend, uint64 without dimensions, to be read at each run.
    """

    p: float = 0.5
    seed: Any = 0

    @property
    def threshold(self) -> int:
        """The smallest word of an element that is kept, in [0, 2**32]."""
        return math.ceil(self.p * 2**32)

    @property
    def factor(self) -> float:
        """By what elements that are kept are multiplied."""
        return 1 / (1 - self.p) if self.p < 1 else 0.0


class Philox(NamedTuple):
    """The constants of a generator of random words."""

    rounds: int
    multipliers: tuple[int, int]
    increments: tuple[int, int]  # of the key, from round to round


# Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
PHILOX = Philox(10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85))


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
