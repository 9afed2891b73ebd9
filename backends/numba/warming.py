"""Compiling ahead: calls of a function that compile all its loops, on arrays as small as can be.

The calls follow from the names of the function's parameters: `options` stands for a loss, or by its annotation for the
options of an elementwise kernel, `w` for a layer, `axis` for rows along an axis. Of each pair of loops, over rows and
over tiles, one is for few classes and one for many.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from plugrad.backends.numba import column_sums, kernels, targets, team, tiling
from plugrad.backends.options import COMPUTE, BinaryLossOptions, LossOptions
from plugrad.backends.workspace import Workspace


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Compile the functions of these names for these dtypes, and for class indices of NumPy's default integer."""
    dtypes = tuple(dtypes)
    team.serve(np.zeros(1, np.int64), team.address_of_conduct(), 0, 0, 0)
    targets.total_of_blocks(np.zeros(2))
    for name in names:
        function = kernels.FUNCTIONS[name]
        for dtype in dtypes:
            for classes in (2, tiling.FEW_CLASSES + 1):
                for arguments in _calls(function, classes, dtype):
                    function(*arguments.values())


def _calls(function: Callable[..., Any], classes: int, dtype: np.dtype[Any]) -> Iterator[dict[str, Any]]:
    """Arguments for each compiled form of a function."""
    names = inspect.signature(function).parameters
    kind = names["options"].annotation if "options" in names else None
    if kind in (LossOptions, BinaryLossOptions):
        for t, options in _labels(function.__name__, classes, dtype):
            arguments = _arrays(classes, classes, dtype) | {"t": t, "options": options}
            yield {name: arguments[name] for name in names}
    else:
        arguments = _arrays(classes, column_sums.COLUMNS if "w" in names else classes, dtype)
        for arguments["options"] in _forms(kind) if kind else (None,):
            yield {name: arguments[name] for name in names}


def _forms(kind: Any) -> Iterator[Any]:
    """The options of an elementwise kernel: those by default, with each value that a name in them may have."""
    hints = get_type_hints(kind)
    names = [name for name, hint in hints.items() if get_origin(hint) is Literal]
    for values in itertools.product(*(get_args(hints[name]) for name in names)):
        yield kind(**dict(zip(names, values, strict=True)))


def _arrays(inputs: int, outputs: int, dtype: np.dtype[Any]) -> dict[str, Any]:
    """An argument for each name, of two rows; `inputs` and `outputs` differ for a layer only."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("dy", "y", "p", "dp", "out"), (2, outputs))
    shapes |= {"x": (2, inputs), "dx": (2, inputs), "w": (inputs, outputs), "dw": (inputs, outputs)}
    shapes |= {"b": (outputs,), "db": (outputs,)}
    arrays: dict[str, Any] = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    arrays |= {"loss": np.empty((), COMPUTE[dtype]), "accuracy": np.empty(())}
    arrays |= {"values": np.empty((2, 1), dtype), "indices": np.empty((2, 1), np.int64)}
    return arrays | {"axis": 1, "dloss": 1.0, "k": 1, "workspace": Workspace(2**20)}


def _labels(kernel: str, classes: int, dtype: np.dtype[Any]) -> Iterator[tuple[Any, LossOptions | BinaryLossOptions]]:
    """Labels and options for each compiled form of a kernel."""
    if kernel.startswith("sigmoid_cross_entropy"):
        yield from _labels_of_elements(kernel, classes, dtype)
    elif kernel == "top_k_accuracy":
        yield np.zeros(2, np.int64), LossOptions(kernel, 1, None, None, 0.0, "mean")
    else:
        yield from _labels_of_rows(kernel, classes, COMPUTE[dtype])


def _labels_of_rows(kernel: str, classes: int, compute: np.dtype[Any]) -> Iterator[tuple[Any, LossOptions]]:
    """Class indices, without and with smoothing, and labels for each class."""
    plain = LossOptions(kernel, 1, None, None, 0.0, "mean")
    yield np.zeros(2, np.int64), plain
    yield np.zeros(2, np.int64), plain._replace(label_smoothing=0.1, ignore_index=-1)
    yield np.ones((2, classes), compute), plain


def _labels_of_elements(kernel: str, classes: int, dtype: np.dtype[Any]) -> Iterator[tuple[Any, BinaryLossOptions]]:
    """Labels of each element: integers, and numbers of the dtypes of the logits and of what is computed in."""
    options = BinaryLossOptions(kernel, None, None, None, 0.0, "mean")
    for kind in dict.fromkeys((np.dtype(np.int64), dtype, COMPUTE[dtype])):
        yield np.ones((2, classes), kind), options
