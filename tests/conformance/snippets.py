"""Python code that repeats a call: for messages, where a case goes wrong."""

import math
import os
from typing import Any

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.subject import Case, Made, Subject

SMALL = 64  # numbers that are still written out, and elements in which an array may differ from a sample


def snippet(subject: Subject, case: Case) -> str:
    """Code for the values of a case, in the memory layouts of the last call, if that was one like it."""
    last = subject.last if _fits(subject.last, case) else None
    moves = subject.backend.arrays != "numpy"
    body: list[str] = []
    for place, name in enumerate(case.kernel.arguments):
        x = case.inputs.get(name)
        if last is not None:
            x = _as_passed(x, last.arrays[place])
        body += _value(case, name, x)
        if moves and isinstance(x, np.ndarray):
            body.append(f"{name} = backends.asarray({name})")
        if last is not None and isinstance(x, np.ndarray):
            body += _layout(subject, name, x, last.arrays[place])
    given = [*case.kernel.arguments]
    for name, value in case.options.items():
        if isinstance(value, np.ndarray) and name != "out":
            body += _value(case, name, value)
            given.append(f"{name}=backends.asarray({name})" if moves else f"{name}={name}")
        elif value is not None:
            given.append(f"{name}={literal(value)}")
    if last is not None and "out" not in case.options and any(x is not None for x in last.out):
        places = []
        for result, x, held in zip(case.kernel.results, last.out, last.held, strict=True):
            lines, place_of = _out(subject, case, last, f"out_{result}", x, held)
            body += lines
            places.append(place_of)
        given.append(f"out={places[0]}" if len(places) == 1 else f"out=({', '.join(places)})")
    body += [f"got = K.{case.kernel.name}({', '.join(given)})", "print(got)"]
    check = ", check=True" if last is not None and last.check else ""
    with_block = [f"with backends.use({subject.name!r}{check}):", *(f"    {line}" for line in body)]
    return "\n".join([*_imports("\n".join(body)), *with_block])


def _imports(code: str) -> list[str]:
    """The imports that the snippet needs."""
    lines = ["import numpy as np", "from numpy import array, inf, nan"]
    if "bfloat16" in code:
        lines.append("from ml_dtypes import bfloat16")
    lines.append("from plugrad import backends, kernels as K")
    if "cases." in code:
        lines.append("from plugrad.tests.conformance import cases")
    if "RECORDS[" in code:
        lines.append("from plugrad.tests.records import RECORDS")
    if "Subject(" in code:
        lines.append("from plugrad.tests.conformance.subject import Subject")
    return lines


def _fits(last: Made | None, case: Case) -> bool:
    """Whether the last call was one of the kernel of `case`, with arguments of these shapes."""
    return (
        last is not None
        and last.kernel is case.kernel
        and len(last.arrays) == len(case.kernel.arguments)
        and all(
            np.shape(x) == value.shape
            for x, value in zip(last.arrays, (case.inputs.get(n) for n in case.kernel.arguments), strict=True)
            if isinstance(value, np.ndarray)
        )
    )


def _as_passed(x: Any, passed: Any) -> Any:
    """The value of an argument in the type it was passed in, which may be another than what it counts as."""
    if not isinstance(x, np.ndarray):
        return x
    if isinstance(passed, list | tuple | int | float):
        return passed
    dtype = np.dtype(passed.dtype).newbyteorder("=")
    return x if x.dtype == dtype else x.astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


def literal(value: Any) -> str:
    """A value as Python code, however long."""
    if isinstance(value, tuple):
        return f"({''.join(literal(item) + ', ' for item in value).strip()})"
    if not isinstance(value, np.ndarray | np.generic):
        return repr(value)
    x = np.asarray(value)
    if not x.size:
        return f"np.zeros({x.shape}, {_dtype(x.dtype)})"
    numbers = x.astype(np.float64) if x.dtype.name == "bfloat16" else x
    if x.size > 1 and x.dtype.kind in "fiub" and (x == x.reshape(-1)[0]).all() and not (x == 0).any():
        return f"np.full({x.shape}, {numbers.reshape(-1)[0].item()!r}, {_dtype(x.dtype)})"
    return f"array({numbers.tolist()!r}, {_dtype(x.dtype)})"


def _dtype(dtype: np.dtype[Any]) -> str:
    if dtype.name == "bfloat16":
        return "bfloat16"
    return f"np.{dtype.name}" if dtype.kind in "fiuc" else repr(dtype.str)


def _value(case: Case, name: str, x: Any) -> list[str]:
    """Lines that make an argument in memory of its own: written out, repeated, or out of a sample."""
    if not isinstance(x, np.ndarray) or x.size <= SMALL:
        return [f"{name} = {literal(x)}"]
    core, repeats = _repeated(x)
    if core.size <= SMALL:
        return [f"{name} = np.tile({literal(core)}, {repeats})"]
    return _out_of_sample(case, name, x) or [
        f"# {name}, {_dtype(x.dtype)} of shape {x.shape}, is too large to be shown; it is made by the test",
        f"# {os.environ.get('PYTEST_CURRENT_TEST', 'that fails').rpartition(' ')[0].partition('@')[0]}",
    ]


def _repeated(x: Any) -> tuple[Any, tuple[int, ...]]:
    """The part of an array that is repeated along its axes, and how often."""
    repeats = []
    for axis, length in enumerate(x.shape):
        periods = [n for n in range(1, min(length, SMALL) + 1) if length % n == 0]
        x = np.moveaxis(x, axis, 0)
        period = next((n for n in periods if _same(x[n:], x[:-n] if n < length else x[:0])), length)
        x = np.moveaxis(x[:period], 0, axis)
        repeats.append(length // period)
    return x, tuple(repeats)


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays are the same, bit for bit."""
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _out_of_sample(case: Case, name: str, x: Any) -> list[str] | None:
    """Lines that take an argument from a sample of the kernel's record and change some elements."""
    kernel, options = case.kernel, case.options
    first = next(n for n in kernel.arguments if n not in ("t", "dloss"))
    shape = case.inputs[first].shape
    axis = options.get("axis", -1) % len(shape)
    lead = shape[:axis] + shape[axis + 1 :]
    classes = case.inputs["w"].shape[1] if cases.is_product(kernel) else shape[axis]
    if name not in kernel.arguments or not all(shape):
        return None
    made = cases.sample(kernel, math.prod(lead), classes, case.dtype, case.seed)
    code = f"cases.sample(RECORDS[{kernel.name!r}], {math.prod(lead)}, {classes}, np.dtype({_dtype(case.dtype)})"
    code += f", seed={case.seed})"
    if len(shape) != 2 or axis != 1:
        made, code = cases.reshaped(made, lead, axis), f"cases.reshaped({code}, {lead}, {axis})"
    like = made.inputs[name]
    code += f".inputs[{name!r}]"
    if like.shape != x.shape:
        return None
    if like.dtype != x.dtype:
        like, code = like.astype(x.dtype), f"{code}.astype({_dtype(x.dtype)})"
    as_bytes = [np.ascontiguousarray(a).view(np.uint8).reshape(*x.shape, x.itemsize) for a in (x, like)]
    different = np.argwhere((as_bytes[0] != as_bytes[1]).any(axis=-1))
    if len(different) > SMALL:
        return None
    changes = [tuple(int(i) for i in place) for place in different]
    return [f"{name} = {code}", *(f"{name}[{', '.join(map(str, i))}] = {x[i].item()!r}" for i in changes)]


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def _layout(subject: Subject, name: str, value: Any, array: Any) -> list[str]:
    """Lines that bring an argument from memory of its own into the layout of `array`."""
    plain = subject.array(np.ascontiguousarray(value).reshape(value.shape))
    traits = _traits(array)
    if traits is None or traits == _traits(plain):
        return []
    if 0 in (array.strides[axis] for axis, length in enumerate(array.shape) if length > 1) and array.size:
        rows = tuple(slice(1) if stride == 0 else slice(None) for stride in array.strides)
        index = ", ".join("0:1" if row.stop else ":" for row in rows)
        return [f"{name} = np.broadcast_to({name}[{index}].copy(), {array.shape})"]
    for layout in cases.layouts(subject):
        if traits == _traits(layout(subject, plain)):
            return [f"{name} = cases.{layout.__name__}(Subject({subject.name!r}), {name})"]
    turned = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)
    if traits == _traits(plain[turned].copy()[turned]):
        index = ", ".join("::-1" if stride < 0 else ":" for stride in array.strides)
        return [f"{name} = {name}[{index}].copy()[{index}]"]
    return [f"# {name} had the strides {array.strides}"]


def _traits(x: Any) -> tuple[Any, ...] | None:
    """The memory layout of an array, to compare; None if the array does not expose it."""
    if not isinstance(x, np.ndarray):
        return (x.strides,) if hasattr(x, "strides") else None
    base: Any = x
    while isinstance(base.base, np.ndarray):
        base = base.base
    first, start = (a.__array_interface__["data"][0] for a in (x, base))
    return x.strides, first - start, x.flags.writeable, x.flags.aligned, x.dtype.str


def _out(subject: Subject, case: Case, last: Made, name: str, x: Any, held: Any) -> tuple[list[str], str]:
    """Lines that make an array for a result, and what to pass."""
    if x is None:
        return [], "None"
    for argument, array in zip(case.kernel.arguments, last.arrays, strict=True):
        if x is array:
            return [], argument
        overlap = subject.backend.overlap(x, array) if subject.backend.owns(type(array)) else "none"
        if overlap == "same":
            return [], f"{argument}[...]"
        if overlap == "partial":
            return [f"# it was written over a part of {argument}, which is not repeated here"], "None"
    lines = _value(case, name, held)
    if subject.backend.arrays != "numpy":
        lines.append(f"{name} = backends.asarray({name})")
    return [*lines, *_layout(subject, name, held, x)], name
