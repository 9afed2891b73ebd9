"""Ways to spoil a call: arguments that are not arrays, unusual arrays, options out of range, wrong ``out``."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.checks.memory import packed
from plugrad.tests.conformance.random_calls import Call, Dice
from plugrad.tests.conformance.subject import DTYPES, Subject


class Subclass(np.ndarray):
    """An array of another type, whose operators are not NumPy's."""

    def __add__(self, other: Any) -> Any:
        raise AssertionError("an operator of a subclass was used")

    __mul__ = __sub__ = __truediv__ = __radd__ = __rmul__ = __add__


class Arrayable:
    """An object that converts to an array."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.x, dtype)


class Failing:
    """An object that does not convert to an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise ValueError("no array today")


def _payload(x: Any) -> Any:
    """NaN of an unusual kind in the first place."""
    x = np.array(x, np.float32)
    if x.size:
        x.reshape(-1).view(np.uint32)[0] = 0xFFC12345
    return x


# By what name, and what becomes of an argument, a NumPy array.
ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "list": lambda x: x.tolist(),
    "tuples": lambda x: tuple(x.tolist()) if x.ndim else x.item(),
    "ragged": lambda x: [[1.0], [1.0, 2.0]],
    "number": lambda x: 1.5,
    "no dimensions": lambda x: np.array(1.5, np.float32),
    "None": lambda x: None,
    "text": lambda x: "text",
    "bytes": lambda x: b"bytes",
    "objects": lambda x: x.astype(object),
    "complex": lambda x: x.astype(complex),
    "longdouble": lambda x: x.astype(np.longdouble),
    "small integers": lambda x: np.ones(x.shape, np.int8),
    "booleans": lambda x: np.ones(x.shape, bool),
    "times": lambda x: np.ones(x.shape, "m8[s]"),
    "records": lambda x: np.zeros(x.shape, [("a", "f4")]),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()) if x.dtype.isbuiltin == 1 else x,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "matrix": lambda x: np.matrix(x) if x.ndim == 2 else x,
    "mask": lambda x: np.ma.masked_array(x),
    "some masked": lambda x: np.ma.masked_array(x, mask=np.ones(x.shape, bool)),
    "subclass": lambda x: x.view(Subclass),
    "arrayable": Arrayable,
    "failing": lambda x: Failing(),
    "memory view": lambda x: _lent(x),
    "read-only": lambda x: _read_only(x),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim else x,
    "no rows": lambda x: x[:0] if x.ndim else x,
    "no classes": lambda x: x[..., :0] if x.ndim else x,
    "another axis": lambda x: x[np.newaxis],
    "an axis less": lambda x: x[0] if x.ndim and len(x) else x,
    "a row less": lambda x: x[:-1] if x.ndim else x,
    "turned": lambda x: x.T,
    "many axes": lambda x: x.reshape((1,) * (31 - x.ndim) + x.shape),
    "NaN": lambda x: _payload(x),
    "large": lambda x: np.full(x.shape, 1e4, np.float32),
    "large float16": lambda x: np.full(x.shape, 6e4, np.float16),
    "small": lambda x: np.full(x.shape, 1e-15, np.float32),
    "dict": lambda x: {"x": 1},
    "itself": lambda x: np.asarray,
}

OPTIONS: dict[str, tuple[Any, ...]] = {
    "axis": (10**30, -(10**30), 7, -7, 0, 1, 1.0, "1", None, True, np.int8(0), np.int64(-1), [0], (0,)),
    "label_smoothing": (
        float("nan"), -0.1, 1.1, float("inf"), "0.1", None, True, 10**400, Fraction(1, 3), np.float16(0.1), [0.1], 1,
    ),
    "ignore_index": (2**70, -(2**70), 1.5, "a", True, np.uint64(2**64 - 1), np.int8(1), None, 0, [1]),
    "reduction": ("Mean", None, b"mean", "", 3, "none ", ["mean"], "mean", "sum", "none"),
    "weight": (1.0, [1.0], np.ones((2, 2)), "w", np.ones(3, complex), np.ma.masked_array([1.0, 2.0]), np.array(1.0)),
    "pos_weight": (2, [1.0], np.ones((3, 2)), b"w", np.ones(3, complex), np.ma.masked_array([1.0]), np.array([[0.5]])),
    "needs": ((), ("dx",), ("dw", "dw"), "dx", None, ("dy",), 5, ("db", "dx"), ["dw"], {"db"}, ("dx", None)),
    "max_workspace": (1, 0, -1, "1KB", "64MB", "lots", 2**80, 1.5, None, True, "1GiB", b"1KB", "999999999TB"),
}  # fmt: skip


def _lent(x: Any) -> Any:
    contiguous: Any = np.ascontiguousarray(x)
    return memoryview(contiguous) if x.dtype.isbuiltin == 1 else x


def _is_plain(subject: Subject, x: Any) -> bool:
    """Whether an argument is not spoiled yet."""
    return isinstance(x, float) or (subject.backend.owns(type(x)) and (x.dtype.kind in "fiu" or x.dtype in DTYPES))


def _read_only(x: Any) -> Any:
    x = x.copy()
    x.flags.writeable = False
    return x


def spoiled(subject: Subject, name: str, x: Any) -> Any:
    """The spoiled argument; on a device if the backend can hold such an array."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return _there(subject, ARGUMENTS[name](np.asarray(subject.numpy(x))))


def _there(subject: Subject, x: Any) -> Any:
    """An array where the backend computes, but for those that only NumPy has."""
    is_numbers = type(x) is np.ndarray and (x.dtype in DTYPES or x.dtype.str[1:] in ("i4", "i8", "u1"))
    return subject.array(x) if is_numbers and subject.backend.arrays != "numpy" else x


def spoil(dice: Dice, subject: Subject, call: Call) -> str:
    """Change something about a call; what, in words."""
    kernel = call.case.kernel
    what = dice.integer(0, 9)
    if what < 5:
        place = dice.integer(0, len(kernel.arguments) - 1)
        name = dice.choice(list(ARGUMENTS))
        if not _is_plain(subject, call.arrays[place]):
            return "nothing more"
        call.arrays[place] = spoiled(subject, name, call.arrays[place])
        return f"{kernel.arguments[place]}: {name}"
    if what < 6 and "t" in kernel.arguments:
        return _spoil_labels(dice, subject, call)
    options = [name for name in kernel.options if name in OPTIONS]
    if what < 8 and options:
        name = dice.choice(options)
        call.options[name] = dice.choice(OPTIONS[name])
        return f"{name}={call.options[name]!r}"
    return _spoil_out(dice, subject, call)


def _spoil_labels(dice: Dice, subject: Subject, call: Call) -> str:
    place = call.case.kernel.arguments.index("t")
    if not _is_plain(subject, call.arrays[place]):
        return "nothing more"
    t = np.array(subject.numpy(call.arrays[place]))
    label = dice.choice((-1, 10**6, -(2**63), 2**63 - 1, 70, 2**64 - 1))
    if t.dtype.kind in "iu" and t.size and np.iinfo(t.dtype).min <= label <= np.iinfo(t.dtype).max:
        t.reshape(-1)[dice.integer(0, t.size - 1)] = label
        call.arrays[place] = subject.array(t)
        return f"a label of {label}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that the dtype does not have
        call.arrays[place] = subject.array(np.ceil(t).astype(dice.choice(("f4", "u8", "?", "i1"))))
    return f"labels of {call.arrays[place].dtype}"


def _spoil_out(dice: Dice, subject: Subject, call: Call) -> str:
    kernel = call.case.kernel
    results = [np.asarray(true) for true in call.case.expected()]
    dtypes = [cases.result_dtype(name, call.case.dtype) for name in kernel.results]
    out: list[Any] = [np.full(r.shape, 7, d) for r, d in zip(results, dtypes, strict=True)]
    place = dice.integer(0, len(out) - 1)
    array = out[place]
    changes: dict[str, Callable[[], Any]] = {
        "read-only": lambda: _read_only(array),
        "another dtype": lambda: array.astype("f8" if array.dtype != np.float64 else "f4"),
        "another shape": lambda: np.zeros((*array.shape, 2), array.dtype),
        "over itself": lambda: as_strided(np.zeros(1, array.dtype), array.shape, (0,) * array.ndim),
        "an argument": lambda: call.arrays[dice.integer(0, len(call.arrays) - 1)],
        "part of an argument": lambda: _moved(call.arrays[0], array),
        "a list": array.tolist,
        "a subclass": lambda: array.view(Subclass),
        "None": lambda: None,
        "text": lambda: "out",
        "turned": lambda: np.zeros(array.shape[::-1], array.dtype).T,
        "between others": lambda: np.zeros((*array.shape, 3), array.dtype)[..., 1],
        "another result": lambda: out[(place + 1) % len(out)],
        "unaligned": lambda: _unaligned(array),
    }
    name = dice.choice(list(changes))
    out[place] = changes[name]()
    out = [_there(subject, x) for x in out]
    call.options["out"] = packed(tuple(out)) if dice.integer(0, 9) else tuple(out[:-1])
    return f"out {kernel.results[place]}: {name}"


def _moved(x: Any, like: Any) -> Any:
    """An array like `like` whose memory begins within that of `x`, if there is any such place."""
    flat = (
        x.reshape(-1).view(np.uint8) if type(x) is np.ndarray and x.flags.c_contiguous and x.dtype != object else None
    )
    if flat is None or flat.size < like.nbytes + like.itemsize or not like.nbytes:
        return like
    return flat[like.itemsize : like.itemsize + like.nbytes].view(like.dtype).reshape(like.shape)


def _unaligned(x: Any) -> Any:
    return np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape) if x.nbytes else x
