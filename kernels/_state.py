"""Loading arrays by name, as `state_dict` of layers and of optimizers returns them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from plugrad.backends.options import FLOAT64, is_supported
from plugrad.kernels._arguments import Array, ArrayLike

State = Mapping[str, ArrayLike]


def checked_state(method: str, state: Any, targets: Mapping[str, Array], other: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a state in the dtypes of the arrays that they are to be copied to.

    Raises
    ------
    TypeError
        If the state is not a dictionary, or a value is not an array of numbers of the kind of its target.
    ValueError
        If a name is missing or unknown, a shape differs, or a value would lose digits. The message names `other`, which
        would take the digits.
    """
    check_mapping(method, state)
    if missing := targets.keys() - state.keys():
        raise ValueError(f"{method}: missing: {', '.join(sorted(missing))}")
    if unknown := state.keys() - targets.keys():
        found = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"{method}: unknown: {found}; expected {', '.join(targets)}")
    return {key: _loaded(f"{method}: {key}", state[key], target, other) for key, target in targets.items()}


def check_mapping(method: str, state: Any) -> None:
    """Raise a TypeError unless a state is a dictionary."""
    if not isinstance(state, Mapping):
        kind = type(state).__qualname__
        raise TypeError(f"{method}: state: expected a dictionary, as state_dict returns, got {kind}")


def _loaded(name: str, given: Any, target: Array, other: str) -> np.ndarray[Any, Any]:
    """Convert an array to the dtype of its target, if that loses nothing."""
    value = np.asarray(given)
    takes_floats = is_supported(target.dtype)
    is_of_kind = is_supported(value.dtype) if takes_floats else value.dtype.kind in "biu"
    if not is_of_kind or isinstance(given, np.ma.MaskedArray):
        kind = f"dtype {value.dtype}" if not is_of_kind else "a masked array"
        raise TypeError(f"{name}: expected {'floating numbers' if takes_floats else 'integers'}, got {kind}")
    if value.shape != target.shape:
        raise ValueError(f"{name}: expected shape {target.shape}, got {value.shape}")
    with np.errstate(all="ignore"):
        converted = value.astype(target.dtype)
        if takes_floats:
            same = np.array_equal(converted.astype(FLOAT64), value.astype(FLOAT64), equal_nan=True)
        else:
            same = np.array_equal(converted, value)  # exact for integers of any two dtypes, as they are
    if not same:
        raise ValueError(
            f"{name}: values of dtype {value.dtype} would lose digits in {target.dtype}; "
            f"load them into {other.format(value.dtype)}, or round them yourself"
        )
    return converted
