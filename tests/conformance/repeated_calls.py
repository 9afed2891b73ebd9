"""A plain call, and again with one thing changed.

Kernels and backends have quick ways through for the plain calls of training loops: small arrays that are contiguous,
aligned and writable and own their memory. An error of such a way shows when a call differs from the one before in one
thing: a shape, strides, a flag, a dtype, an overlap, a label or an option. After each changed call the plain one must
return the bits that it returned at first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.checks.memory import bits, packed
from plugrad.tests.conformance.judging import judge, right_or_refused, share_memory, slack_for
from plugrad.tests.conformance.random_calls import LABELS, Call, Dice
from plugrad.tests.conformance.spoiling import spoil
from plugrad.tests.conformance.subject import DTYPES, Case, Subject, as_tuple
from plugrad.tests.records import Record

Array: TypeAlias = Any

MOST_CHANGES = 6

# Options of losses, other than the default ones. The weights are drawn for the number of classes.
OPTIONS: tuple[Mapping[str, Any], ...] = (
    {"reduction": "sum"},
    {"reduction": "none"},
    {"ignore_index": 0},
    {"ignore_index": -1},
    {"label_smoothing": 0.1},
    {"weight": ...},
    {"sample_weight": ...},
)

WRONG_FOR_OUT = (cases.read_only, cases.other_byte_order)  # layouts that arguments may have, and results may not

INTEGERS = tuple(np.dtype(t) for t in (np.int8, np.int64, bool))

WORD = 8  # bytes: parts of memory begin at multiples of the size of a float64

Verdict: TypeAlias = bool | None  # whether a call must be accepted; None where it may be accepted or refused


@dataclass(frozen=True)
class Form:
    """The sizes, the dtype and the options of a plain call."""

    lead: tuple[int, ...]  # the shape of the rows
    classes: int
    dtype: np.dtype[Any]
    seed: int
    options: Mapping[str, Any]
    has_out: bool
    axis: int  # of the classes
    is_square: bool  # whether weights have as many rows as columns, so that one array may be argument and result

    def call(self, subject: Subject, kernel: Record) -> Call:
        """The call, of arrays that are contiguous and own their memory."""
        plain = cases.sample(kernel, prod(self.lead), self.classes, self.dtype, self.seed)
        case = cases.reshaped(plain, self.lead, self.axis)
        rng = np.random.default_rng(self.seed)
        inputs, options = dict(case.inputs), {**case.options, **self.options}
        if "weight" in options:
            options["weight"] = rng.random(self.classes).astype(np.float32)
        if "sample_weight" in options:
            options["sample_weight"] = rng.random(self.lead).astype(np.float32)
        of_each = (*self.lead, self.classes) if cases.is_binary(kernel) else self.lead
        if "dloss" in inputs and options.get("reduction") == "none" and of_each:
            inputs["dloss"] = rng.normal(size=of_each).astype(np.float32)
        if self.is_square and cases.is_product(kernel):
            inputs |= {"x": inputs["x"][..., : self.classes], "w": inputs["w"][: self.classes]}
        inputs = {name: np.array(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
        case = Case(kernel, inputs, options, about=f"{self.lead} rows of {self.classes} classes, {self.dtype}")
        more = {name: subject.array(value) for name, value in options.items()}
        if self.has_out:
            more["out"] = packed(_stale(subject, case))
        return Call(case, [subject.array(inputs[name]) for name in kernel.arguments], more)


def repeat(dice: Dice, subject: Subject, kernel: Record, about: list[str]) -> None:
    """Make a plain call of a kernel, then changed calls, and after each of them the plain one again."""
    lead = tuple(dice.integer(1, 9) for _ in range(dice.choice((0, 1, 1, 1, 2))))
    is_square = dice.flag()
    options = _options_of(kernel) if cases.is_any_loss(kernel) else ()
    form = Form(
        lead=lead,
        classes=lead[0] if lead and is_square else dice.integer(1, 30),
        dtype=dice.choice(DTYPES),
        seed=dice.integer(0, 1000),
        options=dice.choice(({},) * max(1, len(options)) + options),
        has_out=dice.flag(),
        axis=-1,
        is_square=is_square,
    )
    call = form.call(subject, kernel)
    about.append(f"{call.case.about}, {dict(form.options)}{', out' if form.has_out else ''}")
    first = judge(subject, call, slack=slack_for(form.dtype))
    held = [bits(subject, y) for y in first]
    plain = [np.array(subject.numpy(x)) for x in call.arrays]
    changes = [*CHANGES]
    if cases.is_any_loss(kernel):
        changes += CHANGES_OF_LOSSES
    if len(kernel.results) > 1:
        changes.append(_results_together)
    for _ in range(dice.integer(2, MOST_CHANGES)):
        changed = Call(call.case, [*call.arrays], {**call.options})
        what, verdict = dice.choice(changes)(dice, subject, form, changed)
        about[1:] = [what]
        results, message = right_or_refused(subject, changed)
        if results is not None:
            assert verdict is not False, "it was not refused"
            _check_memory(subject, changed, results, first)
        else:
            assert verdict is not True, f"it was refused: {message}"
        about[1:] = [f"again after: {what}"]
        _refill(subject, call, plain)
        again = subject.call_on(kernel, call.arrays, call.options)
        for name, one, other, expected in zip(kernel.results, again, first, held, strict=True):
            assert bits(subject, one) == expected, f"{name} has other bits than at first"
            assert bits(subject, other) == expected, f"{name} of the first call was written to"


def _refill(subject: Subject, call: Call, plain: list[Any]) -> None:
    """Undo what changed calls may do to the arrays of the plain one: arguments get their values, and `out` another."""
    out = as_tuple(call.options.get("out", ()))
    arguments = [(x, subject.array(value)) for x, value in zip(call.arrays, plain, strict=True) if subject.is_array(x)]
    for array, value in (*arguments, *((y, 7) for y in out)):
        if is_on_host(subject):
            array.flags.writeable = True
        array[...] = value


def _check_memory(subject: Subject, call: Call, results: tuple[Any, ...], earlier: tuple[Any, ...]) -> None:
    """Assert that results lie in the arrays given for them, or in memory of their own."""
    out = call.options.get("out")
    given = (None,) * len(results) if out is None else as_tuple(out)
    if len(given) != len(results):  # an array by itself, for the last result
        given = (None,) * (len(results) - 1) + given
    for result, array in zip(results, given, strict=True):
        if array is not None:
            assert result is array, "a result is not the array that was given for it"
        elif subject.is_array(result):
            others = [x for x in (*call.arrays, *earlier) if subject.is_array(x)]
            assert not any(share_memory(subject, result, x) for x in others), "a new result shares memory"


def _stale(subject: Subject, case: Case) -> tuple[Array, ...]:
    """Arrays for the results, full of another number."""
    shapes = [np.shape(true) for true in case.expected()]
    dtypes = [cases.result_dtype(name, case.dtype) for name in case.kernel.results]
    return tuple(subject.full(shape, dtype, 7) for shape, dtype in zip(shapes, dtypes, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Changes: each changes a call, and returns a description and the verdict
# ---------------------------------------------------------------------------------------------------------------------


def _sizes(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Change the number of rows or classes in all arguments, and perhaps not in the arrays for the results."""
    first, rest = (form.lead or (1,))[0], form.lead[1:]
    forms = {
        "a row more": replace(form, lead=(first + 1, *rest)),
        "a row less": replace(form, lead=(first - 1, *rest)),
        "one row": replace(form, lead=()),
        "no rows": replace(form, lead=(0, *rest)),
        "an axis more": replace(form, lead=(dice.integer(1, 2), *form.lead)),
        "a class more": replace(form, classes=form.classes + 1),
        "a class less": replace(form, classes=max(1, form.classes - 1)),
    }
    if cases.has_axis(call.case.kernel):
        forms["classes along the first axis"] = replace(form, axis=0)
    what = dice.choice(list(forms))
    other = forms[what].call(subject, call.case.kernel)
    call.case, call.arrays = other.case, other.arrays
    if form.has_out and dice.flag():
        shapes = [tuple(given.shape) for given in as_tuple(call.options["out"])]
        fits = shapes == [np.shape(true) for true in other.case.expected()]
        call.options = {**other.options, "out": call.options["out"]}
        return f"{what}, and out as before", fits
    call.options = other.options
    return what, True


def _size_of_one(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Change the shape of one argument."""
    place = _place(dice, call)
    x = np.array(subject.numpy(call.arrays[place]))
    changes: dict[str, Callable[[], Any]] = {
        "a row more": lambda: np.concatenate([x, x[:1]]),
        "a row less": lambda: x[:-1],
        "one row": lambda: x[:1],
        "no rows": lambda: x[:0],
        "an axis more": lambda: x[np.newaxis],
        "an axis less": lambda: x[0],
        "a class more": lambda: np.concatenate([x, x[..., :1]], -1),
        "a class less": lambda: x[..., :-1],
    }
    what = dice.choice(list(changes))
    changed = np.array(changes[what]())
    call.arrays[place] = subject.array(changed)
    name = call.case.kernel.arguments[place]
    is_one_of_two = set(call.case.kernel.arguments) == {"dy", "y"}  # which must have one shape
    return f"{name}: {what}", False if is_one_of_two and changed.shape != x.shape else None


def _layout(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Change the strides, a flag or the byte order of one argument, or give a view of it."""
    place = _place(dice, call)
    layout = dice.choice((*cases.layouts(subject), _view, *((repeated,) if is_on_host(subject) else ())))
    call.arrays[place] = layout(subject, call.arrays[place])
    return f"{call.case.kernel.arguments[place]}: {layout.__name__.strip('_')}", True


def _dtype(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Change the dtype of one argument; of labels, see `_label`."""
    place = _place(dice, call, but="t")
    name, dtype = call.case.kernel.arguments[place], dice.choice((*DTYPES, *INTEGERS))
    with np.errstate(all="ignore"):
        call.arrays[place] = subject.array(np.array(subject.numpy(call.arrays[place])).astype(dtype))
    is_as_before = dtype == form.dtype or name == "dloss"
    return f"{name}: {dtype}", True if is_as_before or not form.has_out else None


def _in_place(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Leave all arrays, but write other values to the arguments, or make one of the arrays read-only."""
    arguments = [x for x in call.arrays if subject.is_array(x)]
    out = as_tuple(call.options.get("out", ()))
    if is_on_host(subject) and dice.flag():
        array = dice.choice((*arguments, *out))
        array.flags.writeable = False
        is_argument = all(array is not y for y in out)
        return f"{'an argument' if is_argument else 'out'} is read-only now", is_argument
    other = replace(form, seed=form.seed + 1).call(subject, call.case.kernel)
    for x, value in zip(arguments, (x for x in other.arrays if subject.is_array(x)), strict=True):
        x[...] = value
    return "other values in the same arrays", True


def _out(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Give arrays for the results, one of them in another layout, or one that must be refused."""
    out = [*_stale(subject, call.case)]
    place = dice.integer(0, len(out) - 1)
    array = out[place]
    right = (_same, _view, *(layout for layout in cases.layouts(subject) if layout not in WRONG_FOR_OUT))
    wrong = (_wider, _longer, *(WRONG_FOR_OUT if is_on_host(subject) else ()))
    is_right = dice.flag() or not array.ndim
    layout = dice.choice(right if is_right else wrong) if array.ndim else _same
    out[place] = layout(subject, array)
    if layout is cases.other_byte_order:  # bfloat16 has none
        is_right = out[place] is array
    if len(out) > 1 and dice.flag():
        out[place - 1] = None
    call.options["out"] = packed(tuple(out))
    return f"out {call.case.kernel.results[place]}: {layout.__name__.strip('_')}", is_right


def _overlap(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Give arrays for the results, one of which is an argument or shares memory with one."""
    place = _place(dice, call)
    out = [*_stale(subject, call.case)]
    other = dice.integer(0, len(out) - 1)
    x, y = np.array(subject.numpy(call.arrays[place])), out[other]
    argument = subject.array(x)
    if _is_like(subject, y, x) and dice.flag():
        what = dice.choice(("is", "is a view of", "is viewed by", "is read in reverse by", "is written in reverse of"))
        out[other] = argument
        if what == "is a view of":
            out[other] = _view(subject, argument)
        elif what == "is viewed by":
            argument = _view(subject, argument)
        elif what == "is read in reverse by":
            argument = argument[::-1]
            argument[...] = subject.array(x)
        elif what == "is written in reverse of":
            out[other] = argument[::-1]
        verdict = None if "reverse" in what else True
        if dice.flag():  # dy and y, for example
            what = f"{what} all like"
            call.arrays = [argument if _is_like(subject, z, x) else z for z in call.arrays]
            if cases.is_binary(call.case.kernel) and not ((x >= 0) & (x <= 1)).all():
                verdict = None  # the labels may be logits now
    else:
        start = dice.integer(0, max(x.nbytes, y.nbytes) // WORD) * WORD
        if dice.flag():
            what = "lies in one array with"
            memory = subject.empty((2 * max(x.nbytes, y.nbytes) + WORD,), np.dtype(np.uint8))
            out[other], argument = _within(memory, 0, y), _within(memory, start, x)
        elif y.nbytes <= x.nbytes:
            what = "lies in"
            out[other] = _within(argument.reshape(-1).view(np.uint8), min(start, x.nbytes - y.nbytes), y)
        else:
            what = "holds"
            argument = _within(y.reshape(-1).view(np.uint8), min(start, y.nbytes - x.nbytes), x)
        argument[...] = subject.array(x)
        verdict = None
    call.arrays[place] = argument
    call.options["out"] = packed(tuple(out))
    return f"out {call.case.kernel.results[other]} {what} {call.case.kernel.arguments[place]}", verdict


def _results_together(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Give arrays for the results that share memory, or that lie side by side in one array."""
    out = [*_stale(subject, call.case)]
    one, other = (dice.integer(0, len(out) - 1) for _ in range(2))
    other = other if other != one else one - 1
    x, y = out[one], out[other]
    if is_apart := dice.flag():
        memory = subject.empty((x.nbytes + y.nbytes + WORD,), np.dtype(np.uint8))
        start = -(-x.nbytes // WORD) * WORD
        out[one], out[other] = _within(memory, 0, x), _within(memory, start, y)
    elif _is_like(subject, x, y):
        out[other] = x
    elif x.nbytes > y.nbytes:
        out[other] = _within(x.reshape(-1).view(np.uint8), 0, y)
    else:
        out[one] = _within(y.reshape(-1).view(np.uint8), 0, x)
    call.options["out"] = packed(tuple(out))
    names = f"{call.case.kernel.results[one]} and {call.case.kernel.results[other]}"
    return f"out: {names} {'in one array' if is_apart else 'over each other'}", is_apart


def _label(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Change a label, or the dtype of all labels."""
    place = call.case.kernel.arguments.index("t")
    t = np.array(subject.numpy(call.arrays[place]))
    ignored = form.options.get("ignore_index")
    classes = 2 if cases.is_binary(call.case.kernel) else form.classes
    label = dice.choice((None, 0, classes - 1, classes, -1, 10**6, 2**63, -(2**63), 2**64 - 1, ignored))
    fitting = [d for d in LABELS if label is None or np.iinfo(d).min <= label <= np.iinfo(d).max]
    dtype = t.dtype.name if t.dtype.name in fitting and dice.flag() else dice.choice(fitting)
    t = t.astype(dtype)
    if label is not None:
        t.reshape(-1)[dice.integer(0, t.size - 1)] = label
    call.arrays[place] = subject.array(t)
    is_right = label is None or 0 <= label < classes or label == ignored
    return f"labels of {dtype}{'' if label is None else f', one is {label}'}", is_right


def _options_of(kernel: Record) -> tuple[Mapping[str, Any], ...]:
    return tuple(options for options in OPTIONS if options.keys() <= set(kernel.options))


def _option(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Change an option of a loss."""
    options = dice.choice(_options_of(call.case.kernel))
    other = replace(form, options=options).call(subject, call.case.kernel)
    call.options |= {name: other.options[name] for name in options}
    is_free = "reduction" not in options or not (form.has_out or "dloss" in call.case.inputs)
    return f"{options}", True if is_free else None


def _anything(dice: Dice, subject: Subject, form: Form, call: Call) -> tuple[str, Verdict]:
    """Spoil the call as `spoil` does."""
    return spoil(dice, subject, call), None


CHANGES = (_sizes, _size_of_one, _layout, _dtype, _in_place, _out, _overlap, _anything)
CHANGES_OF_LOSSES = (_label, _option)


def is_on_host(subject: Subject) -> bool:
    """Whether the arrays are NumPy's, which may be read-only, repeated and of another byte order."""
    return subject.backend.arrays == "numpy"


def _place(dice: Dice, call: Call, but: str = "") -> int:
    """The place of an argument that has dimensions."""
    names = call.case.kernel.arguments
    return dice.choice([i for i, x in enumerate(call.arrays) if np.ndim(x) and names[i] != but])


def _is_like(subject: Subject, x: Any, y: Array) -> bool:
    """Whether `x` is an array of the shape and the dtype of `y`."""
    return subject.is_array(x) and x.shape == y.shape and x.dtype == y.dtype


def _within(memory: Array, start: int, like: Array) -> Array:
    """A part of bytes, as an array of the shape and dtype of another."""
    return memory[start : start + like.nbytes].view(like.dtype).reshape(like.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts beside those of `cases`
# ---------------------------------------------------------------------------------------------------------------------


def _same(subject: Subject, x: Array) -> Array:
    return x


def _view(subject: Subject, x: Array) -> Array:
    return x[...]


def repeated(subject: Subject, x: Array) -> Array:
    """The first row for each row, at one address."""
    return np.broadcast_to(x[:1], x.shape)


def _wider(subject: Subject, x: Array) -> Array:
    return subject.empty((*x.shape, 1), x.dtype)


def _longer(subject: Subject, x: Array) -> Array:
    return subject.empty((x.shape[0] + 1, *x.shape[1:]), x.dtype)
