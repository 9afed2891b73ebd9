"""Random calls of kernels: shapes, dtypes, strides, options and values, and whether their results are right."""

import math
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.checks.memory import packed
from plugrad.tests.conformance.checks.special import is_elementwise
from plugrad.tests.conformance.subject import DTYPES, Case, Subject
from plugrad.tests.records import Record

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4, 1e-7)
LABELS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")

_T = TypeVar("_T")


class Dice:
    """Random choices, the same for the same seed and number of a call.

    Python's generator is faster for single numbers than NumPy's.
    """

    def __init__(self, seed: int, number: int) -> None:
        self._random = random.Random(f"{seed}:{number}")

    def integer(self, least: int, most: int) -> int:
        """An integer in [least, most]."""
        return self._random.randint(least, most)

    def choice(self, options: Sequence[_T]) -> _T:
        """One of some."""
        return self._random.choice(options)

    def flag(self) -> bool:
        """True or False."""
        return self._random.random() < 0.5


class Call:
    """A case, its arguments as arrays of the backend in some memory layout, and options such as ``out``."""

    def __init__(self, case: Case, arrays: list[Any], options: dict[str, Any]) -> None:
        self.case, self.arrays, self.options = case, arrays, options

    def __repr__(self) -> str:
        return repr(self.case)


def random_call(dice: Dice, subject: Subject, kernel: Record) -> Call:
    """Any call of a kernel that is right."""
    lead = tuple(dice.integer(1, 9) for _ in range(dice.integer(0, 3)))
    classes = dice.integer(1, 70)
    dtype = dice.choice(DTYPES)
    axis = dice.integer(-len(lead) - 1, len(lead)) if cases.has_axis(kernel) else -1
    seed = dice.integer(0, 1000)
    plain = cases.sample(kernel, math.prod(lead), classes, dtype, seed)
    case = cases.reshaped(plain, lead, axis)
    inputs = dict(case.inputs)
    for name in kernel.arguments:
        if name not in ("t", "k", "dloss", "w", "b", "p") and not (name == "y" and not is_elementwise(kernel)):
            _put_special_values(dice, inputs, name)
    options = dict(case.options)
    if cases.is_loss(kernel):
        options |= _options(dice, inputs, lead, classes, axis)
        if not cases.has_axis(kernel):
            del options["axis"]
    elif cases.is_accuracy(kernel):
        options["ignore_index"] = dice.choice((None, 0, classes - 1, -1))
    elif cases.is_binary(kernel):
        options |= _options_of_elements(dice, inputs)
    if kernel.variants:
        options |= dice.choice(({}, *kernel.variants))
    case = Case(kernel, inputs, options, seed=seed)
    layouts = [dice.choice((None, *cases.layouts(subject))) for _ in kernel.arguments]
    arrays = [
        layout(subject, x) if layout is not None and np.ndim(x) else x
        for x, layout in zip((subject.array(inputs[n]) for n in kernel.arguments), layouts, strict=True)
    ]
    used = [f"{n} {layout.__name__}" for n, layout in zip(kernel.arguments, layouts, strict=True) if layout]
    more = {name: subject.array(value) for name, value in options.items()}
    if dice.flag():
        layout = dice.choice((None, *cases.ANYWHERE))
        results = [np.asarray(true) for true in case.expected()]
        dtypes = [cases.result_dtype(name, dtype) for name in kernel.results]
        stale = [subject.full(r.shape, d, 7) for r, d in zip(results, dtypes, strict=True)]
        more["out"] = packed(tuple(layout(subject, a) if layout and a.ndim else a for a in stale))
        used.append(f"out {layout.__name__ if layout else 'contiguous'}")
    case.about = f"{', '.join(used) or 'plain arrays'}"
    return Call(case, arrays, more)


def _put_special_values(dice: Dice, inputs: dict[str, Any], name: str) -> None:
    x = np.array(inputs[name])
    for _ in range(dice.integer(0, 3)) if x.size and x.ndim else ():
        x.reshape(-1)[dice.integer(0, x.size - 1)] = dice.choice(SPECIAL)
    inputs[name] = x if x.ndim else inputs[name]


def _options(dice: Dice, inputs: dict[str, Any], lead: tuple[int, ...], classes: int, axis: int) -> dict[str, Any]:
    """Options of a loss; changes the labels and the upstream gradient to fit them."""
    rng = np.random.default_rng(dice.integer(0, 1000))
    form = dice.choice((cases.INDICES, cases.ONE_HOT, cases.SOFT))
    ignored = dice.choice((None, 0, classes - 1, classes, -1, -100)) if form == cases.INDICES else None
    t = np.array(inputs["t"])
    if form != cases.INDICES:
        t = cases.label_forms(t, classes, axis, rng)[form]
    elif ignored is not None:
        t = np.where(rng.random(lead) < 0.3, ignored, t)
    else:
        t = t.astype(dice.choice(LABELS))
    inputs["t"] = t if np.ndim(t) else np.asarray(t)
    reduction = dice.choice(("mean", "sum", "none"))
    if "dloss" in inputs and reduction == "none" and lead:
        inputs["dloss"] = rng.normal(size=lead).astype(np.float32)
    return {
        "axis": axis,
        "weight": rng.random(classes).astype(np.float32) if dice.flag() else None,
        "ignore_index": ignored,
        "label_smoothing": dice.choice((0.0, 0.1, 1.0)),
        "reduction": reduction,
    }


def _options_of_elements(dice: Dice, inputs: dict[str, Any]) -> dict[str, Any]:
    """Options of a loss of elements; changes the labels and the upstream gradient to fit them."""
    rng = np.random.default_rng(dice.integer(0, 1000))
    shape = np.shape(inputs["t"])
    dtype = dice.choice((*LABELS, "bool", "float16", "float32", "float64"))
    is_whole = np.dtype(dtype).kind != "f"
    t = np.asarray(rng.integers(0, 2, shape) if is_whole else rng.random(shape)).astype(dtype)
    ignored = dice.choice((None, 0, 1, -1, -100, 2**70))
    if ignored is not None and -128 < ignored < 0 and np.dtype(dtype).kind in "if":
        t = np.where(rng.random(shape) < 0.3, ignored, t).astype(dtype)
    inputs["t"] = t
    reduction = dice.choice(("mean", "sum", "none"))
    if "dloss" in inputs and reduction == "none" and shape:
        inputs["dloss"] = rng.normal(size=shape).astype(np.float32)
    weights = {}
    for name in ("weight", "pos_weight"):
        of = tuple(length if dice.flag() else 1 for length in shape)[dice.integer(0, len(shape)) :]
        weights[name] = np.asarray(rng.random(of)).astype(np.float32) if dice.flag() else None
    return {
        **weights,
        "ignore_index": ignored,
        "label_smoothing": dice.choice((0.0, 0.1, 1.0)),
        "reduction": reduction,
    }
