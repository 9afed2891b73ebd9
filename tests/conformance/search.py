"""Calls that nobody thought of: random shapes, dtypes, strides, options and values; the simplest that goes wrong."""

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from plugrad.kernels import Kernel
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.checks.memory import packed, takes_out
from plugrad.tests.conformance.checks.special import is_elementwise
from plugrad.tests.conformance.subject import DTYPES, Case, Subject, told

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4, 1e-7)
LABELS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


class Call:
    """A case, its arguments as arrays of the backend in some memory layout, and options such as ``out``."""

    def __init__(self, case: Case, arrays: list[Any], options: dict[str, Any]) -> None:
        self.case, self.arrays, self.options = case, arrays, options

    def __repr__(self) -> str:
        return repr(self.case)


@st.composite
def calls(draw: st.DrawFn, subject: Subject, kernel: Kernel) -> Call:
    """Any call of a kernel that is right."""
    lead = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    classes = draw(st.integers(1, 70))
    dtype = draw(st.sampled_from(DTYPES))
    axis = draw(st.integers(-len(lead) - 1, len(lead))) if cases.has_axis(kernel) else -1
    seed = draw(st.integers(0, 1000))
    plain = cases.sample(kernel, math.prod(lead), classes, dtype, seed)
    case = cases.reshaped(plain, lead, axis)
    inputs = dict(case.inputs)
    for name in kernel.arguments:
        if name not in ("t", "dloss", "w", "b", "p") and not (name == "y" and not is_elementwise(kernel)):
            _put_special_values(draw, inputs, name)
    options = dict(case.options)
    if cases.is_loss(kernel):
        options |= _options(draw, inputs, lead, classes, axis)
        if not cases.has_axis(kernel):
            del options["axis"]
    case = Case(kernel, inputs, options, seed=seed)
    layouts = [draw(st.sampled_from((None, *cases.layouts(subject)))) for _ in kernel.arguments]
    arrays = [
        layout(subject, x) if layout is not None and np.ndim(x) else x
        for x, layout in zip((subject.array(inputs[n]) for n in kernel.arguments), layouts, strict=True)
    ]
    used = [f"{n} {layout.__name__}" for n, layout in zip(kernel.arguments, layouts, strict=True) if layout]
    more = {name: subject.array(value) for name, value in options.items()}
    if takes_out(kernel) and draw(st.booleans()):
        layout = draw(st.sampled_from((None, *cases.ANYWHERE)))
        results = [np.asarray(true) for true in case.expected()]
        dtypes = [cases.result_dtype(name, dtype) for name in kernel.results]
        stale = [subject.full(r.shape, d, 7) for r, d in zip(results, dtypes, strict=True)]
        more["out"] = packed(tuple(layout(subject, a) if layout and a.ndim else a for a in stale))
        used.append(f"out {layout.__name__ if layout else 'contiguous'}")
    case.about = f"{', '.join(used) or 'plain arrays'}"
    return Call(case, arrays, more)


def _put_special_values(draw: st.DrawFn, inputs: dict[str, Any], name: str) -> None:
    x = np.array(inputs[name])
    for _ in range(draw(st.integers(0, 3)) if x.size and x.ndim else 0):
        x.reshape(-1)[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from(SPECIAL))
    inputs[name] = x if x.ndim else inputs[name]


def _options(draw: st.DrawFn, inputs: dict[str, Any], lead: tuple[int, ...], classes: int, axis: int) -> dict[str, Any]:
    """Options of a loss; changes the labels and the upstream gradient to fit them."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    form = draw(st.sampled_from((cases.INDICES, cases.ONE_HOT, cases.SOFT)))
    ignored = draw(st.sampled_from((None, 0, classes - 1, classes, -1, -100))) if form == cases.INDICES else None
    t = np.array(inputs["t"])
    if form != cases.INDICES:
        t = cases.label_forms(t, classes, axis, rng)[form]
    elif ignored is not None:
        t = np.where(rng.random(lead) < 0.3, ignored, t)
    else:
        t = t.astype(draw(st.sampled_from(LABELS)))
    inputs["t"] = t if np.ndim(t) else np.asarray(t)
    reduction = draw(st.sampled_from(("mean", "sum", "none")))
    if "dloss" in inputs and reduction == "none" and lead:
        inputs["dloss"] = rng.normal(size=lead).astype(np.float32)
    return {
        "axis": axis,
        "weight": rng.random(classes).astype(np.float32) if draw(st.booleans()) else None,
        "ignore_index": ignored,
        "label_smoothing": draw(st.sampled_from((0.0, 0.1, 1.0))),
        "reduction": reduction,
    }


def search(subject: Subject, kernel: Kernel, examples: int, at_random: bool) -> int:
    """Try so many calls; the simplest that goes wrong is raised, with code that repeats it. Returns how many ran."""
    tried = itertools.count()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=not at_random,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls(subject, kernel))
    def agrees_with_the_oracle(call: Call) -> None:
        next(tried)
        case, arrays, more = call.case, call.arrays, call.options
        before = [np.array(subject.numpy(x)) for x in arrays]
        with told(subject, case):
            got = subject.call_on(kernel, arrays, more)
            exact = tuple(
                cases.overflowed(true, cases.result_dtype(name, case.dtype))
                for name, true in zip(kernel.results, case.expected(), strict=True)
            )
            subject.compare(case, got, exact)
            for name, x, held in zip(kernel.arguments, arrays, before, strict=True):
                assert np.array(subject.numpy(x)).tobytes() == held.tobytes(), f"argument {name} was written to"

    agrees_with_the_oracle()
    return next(tried)
