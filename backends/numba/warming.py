"""Compiling ahead: a call of each function, in each of its compiled forms, on arrays as small as can be."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from plugrad.backends.numba import biases, kernels, team
from plugrad.backends.numba.layout import FEW_CLASSES
from plugrad.backends.options import COMPUTE, LossOptions
from plugrad.backends.workspace import Workspace


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Have the functions of these names compiled for these dtypes, and for class indices of NumPy's own integers."""
    dtypes = tuple(dtypes)
    team.look_out(np.zeros(1, np.int64), 0, 1)
    for name in names:
        for dtype in dtypes:
            for arguments in _calls(name, dtype):
                getattr(kernels, name)(*arguments)


def _calls(name: str, dtype: np.dtype[Any]) -> Iterator[tuple[Any, ...]]:
    """Arguments that lead to each compiled form: rows of few classes, and of many."""
    for classes in (2, FEW_CLASSES + 1):
        x, out = np.ones((2, classes), dtype), np.empty((2, classes), dtype)
        if name.startswith("linear"):
            yield from _calls_of_layer_with_loss(name, x)
        elif "cross_entropy" in name:
            yield from _calls_of_loss(name, x, out)
        elif name == "affine":
            yield (
                x,
                np.ones((classes, biases.COLUMNS), dtype),
                np.ones(biases.COLUMNS, dtype),
                np.empty((2, biases.COLUMNS), dtype),
            )
        elif name == "affine_backward":
            dy, w = np.ones((2, biases.COLUMNS), dtype), np.ones((classes, biases.COLUMNS), dtype)
            yield dy, x, w, out, np.empty_like(w), np.empty(biases.COLUMNS, dtype)
        else:
            along = (1,) if "softmax" in name else ()
            yield (x, x.copy(), *along, out) if name.endswith("_backward") else (x, *along, out)


def _calls_of_layer_with_loss(name: str, x: Any) -> Iterator[tuple[Any, ...]]:
    """The same for a layer with its loss."""
    classes = x.shape[1]
    w, b = np.ones((classes, classes), x.dtype), np.ones(classes, x.dtype)
    out = (np.empty_like(x), np.empty_like(w), np.empty_like(b)) if name.endswith("value_and_grad") else ()
    for _, t, options, loss, _ in _calls_of_loss("softmax_cross_entropy", x.astype(COMPUTE[x.dtype]), None):
        yield x, w, b, t, options._replace(kernel=name), Workspace(2**20), loss, *out


def _calls_of_loss(name: str, x: Any, out: Any) -> Iterator[tuple[Any, ...]]:
    """The same for class indices and for labels for each class."""
    plain = LossOptions(name, 1, None, None, 0.0, "mean")
    smoothed = plain._replace(label_smoothing=0.1, ignore_index=-1)
    for t, options in ((np.zeros(2, np.int64), plain), (np.zeros(2, np.int64), smoothed), (np.ones_like(x), plain)):
        if name.endswith("_backward"):
            yield 1.0, x, t, options, out
        else:
            loss = np.empty((), COMPUTE[x.dtype])
            yield (x, t, options, loss) if name == "cross_entropy" else (x, t, options, loss, out)
