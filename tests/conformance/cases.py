"""Inputs for the checks: sizes near every boundary, memory layouts, options of the losses, special values."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from plugrad.tests.conformance.subject import Case, Subject, loss_dtype, result_dtype as result_dtype
from plugrad.tests.records import RECORDS, Record

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

# Numbers of classes near the widths of vectors, warps and blocks, and those of language models.
CLASSES = (*range(1, 66), 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4096, 9000, 32_000, 50_257)

# Rows and classes near the sizes at which a backend may switch its algorithm: one row, many, an odd number of them.
SHAPES = ((1, 1), (2, 3), (1, 1000), (7, 10), (33, 24), (40, 25), (64, 10), (65, 10), (129, 7), (300, 7), (1000, 3))

# More than one block of most backends: few classes, and many.
LARGE = ((90_000, 10), (1_100, 1_001))

INDICES, ONE_HOT, SOFT = "class indices", "one-hot labels", "soft labels"


def is_any_loss(kernel: Record) -> bool:
    """Whether the kernel is a loss, or the gradient of one: of rows of classes, or of single elements."""
    return "reduction" in kernel.options


def is_binary(kernel: Record) -> bool:
    """Whether the kernel is a loss of each element by itself, which has a label in [0, 1], or the gradient of one."""
    return "pos_weight" in kernel.options


def is_loss(kernel: Record) -> bool:
    """Whether the kernel is a loss of rows of classes, or the gradient of one."""
    return is_any_loss(kernel) and not is_binary(kernel)


def is_accuracy(kernel: Record) -> bool:
    """Whether the kernel compares class indices with the largest logits."""
    return kernel.results == ("accuracy",)


def has_classes(kernel: Record) -> bool:
    """Whether the kernel returns the classes of the largest logits."""
    return "indices" in kernel.results


def has_axis(kernel: Record) -> bool:
    """Whether the classes may lie along any axis."""
    return "axis" in kernel.options


def is_product(kernel: Record) -> bool:
    """Whether the kernel multiplies matrices: sums may then be taken in another order for other strides."""
    return "w" in kernel.arguments


def rows_of(kernel: Record) -> str:
    """The argument of a loss that has the rows: logits, probabilities, or the inputs of a layer."""
    return next(name for name in kernel.arguments if name not in ("dloss", "t"))


def with_rows(kernel: Record, rows: Any) -> dict[str, Any]:
    """The argument of a loss that has the rows; for a layer, with weights that make logits of them as they are."""
    inputs = {rows_of(kernel): rows}
    if is_product(kernel):
        inputs |= {"w": np.eye(rows.shape[-1], dtype=rows.dtype), "b": np.zeros(rows.shape[-1], rows.dtype)}
    return inputs


def sample(kernel: Record, rows: int, classes: int, dtype: np.dtype[Any], seed: int = 0, about: str = "") -> Case:
    """The record's sample inputs."""
    inputs = kernel.sample(np.random.default_rng(seed), rows, classes, dtype)
    return Case(kernel, inputs, about=about or f"{rows} rows of {classes} classes")


def samples(kernel: Record, rows: int, classes: int, dtype: np.dtype[Any]) -> Iterator[Case]:
    """The sample; for losses also one with other labels, and one with weights and a loss for each row or element."""
    plain = sample(kernel, rows, classes, dtype)
    yield plain
    if is_binary(kernel):
        yield from _other_samples_of_elements(plain, dtype)
    if not is_loss(kernel):
        return
    rng = np.random.default_rng(9)
    soft = rng.random((rows, classes)).astype(dtype)
    yield Case(kernel, {**plain.inputs, "t": soft}, about=f"{plain.about}, soft labels")
    each = {"dloss": rng.normal(size=rows).astype(loss_dtype(dtype))} if "dloss" in plain.inputs else {}
    options = {"weight": rng.random(classes).astype(loss_dtype(dtype)), "reduction": "none"}
    yield Case(kernel, {**plain.inputs, **each}, options, about=f"{plain.about}, a loss for each, weights")


def variants(case: Case) -> Iterator[Case]:
    """A call, and that with each of the other options that its kernel is checked with."""
    yield case
    for options in case.kernel.variants:
        yield Case(case.kernel, case.inputs, {**case.options, **options}, f"{case.about}, {options}", case.seed)


def _other_samples_of_elements(plain: Case, dtype: np.dtype[Any]) -> Iterator[Case]:
    """Labels that are booleans; weights of two shapes, and a loss for each element."""
    rng = np.random.default_rng(9)
    yield Case(plain.kernel, {**plain.inputs, "t": plain.inputs["t"] > 0.5}, about=f"{plain.about}, booleans")
    shape, work = plain.inputs["t"].shape, loss_dtype(dtype)
    each = {"dloss": rng.normal(size=shape).astype(work)} if "dloss" in plain.inputs else {}
    weights = {"weight": rng.random(shape).astype(work), "pos_weight": rng.random(shape[-1]).astype(work)}
    options = {**weights, "reduction": "none"}
    yield Case(plain.kernel, {**plain.inputs, **each}, options, about=f"{plain.about}, a loss for each, weights")


def with_a_loss_for_each(case: Case) -> Case:
    """A sample of a loss without reduction, and 0.7 as the gradient of each loss."""
    shape = case.inputs["t"].shape
    inputs = {n: np.full(shape, 0.7, np.float32) if n == "dloss" else x for n, x in case.inputs.items()}
    return Case(case.kernel, inputs, {**case.options, "reduction": "none"}, case.about)


def squares(kernel: Record, dtype: np.dtype[Any]) -> list[Case]:
    """Arguments of a kernel that multiplies matrices, every one of them with the shape of every result."""
    rng = np.random.default_rng(0)
    found = []
    for n in (3, 200) if is_product(kernel) else ():
        shapes = {name: (n,) if name == "b" else (n, n) for name in kernel.arguments if name != "k"}
        numbers = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        if has_classes(kernel):  # no order of classes may depend on rounding
            numbers = {name: np.rint(x) for name, x in numbers.items()}
        inputs: dict[str, Any] = {name: x.astype(dtype) for name, x in numbers.items()}
        found.append(Case(kernel, {**inputs, "k": n} if "k" in kernel.arguments else inputs, about="squares"))
    return found


def reshaped(case: Case, lead: tuple[int, ...], axis: int = -1) -> Case:
    """A sample with its rows along several axes `lead`, and the classes along `axis`."""
    inputs = {}
    for name, x in case.inputs.items():
        rows = int(np.prod(lead))
        if isinstance(x, np.ndarray) and x.ndim and len(x) == rows and name not in ("w", "b"):
            x = x.reshape((*lead, *x.shape[1:]))
            if x.ndim > len(lead):
                x = np.ascontiguousarray(np.moveaxis(x, -1, axis))
        inputs[name] = x
    options = {**case.options, "axis": axis} if has_axis(case.kernel) else case.options
    return Case(case.kernel, inputs, options, about=f"shape {lead} and classes along axis {axis}")


def label_forms(t: Any, classes: int, axis: int, rng: np.random.Generator) -> dict[str, Any]:
    """Labels given as indices, one-hot, and as numbers that need not sum to 1."""
    one_hot = np.moveaxis(np.eye(classes, dtype=np.int32)[t], -1, axis)
    return {INDICES: t, ONE_HOT: one_hot, SOFT: rng.random(one_hot.shape).astype(np.float32)}


def options_of_losses(kernel: Record, dtype: np.dtype[Any], form: str) -> Iterator[Case]:
    """Every combination of options, with labels of one form."""
    rng = np.random.default_rng(5)
    lead, classes = (2, 4), 5
    plain = sample(kernel, 8, classes, dtype, seed=3)
    for axis, weighted, ignored, smoothing, reduction in itertools.product(
        (0, 1, -1) if has_axis(kernel) else (-1,),
        (False, True),
        (None, 1, -100),
        (0.0, 0.1, 1.0),
        ("mean", "sum", "none"),
    ):
        if ignored is not None and form != INDICES:
            continue
        case = reshaped(plain, lead, axis)
        inputs = dict(case.inputs)
        integers = "int16" if ignored == -100 else rng.choice(["int8", "uint16", "int32", "int64"])
        t = np.array(inputs["t"]).astype(integers)
        if ignored is not None:
            t[0, 1] = t[1, 2] = ignored
        inputs["t"] = t if form == INDICES else label_forms(t, classes, axis, rng)[form]
        if "dloss" in inputs and reduction == "none":
            inputs["dloss"] = rng.normal(size=lead).astype(np.float32)
        options = {
            **({"axis": axis} if has_axis(kernel) else {}),
            "weight": rng.random(classes).astype(np.float32) if weighted else None,
            "ignore_index": ignored,
            "label_smoothing": smoothing,
            "reduction": reduction,
        }
        shown = [f"{name}={value}" for name, value in options.items() if name != "weight"]
        about = f"{form}, {', '.join(shown)}, {'with' if weighted else 'without'} weights"
        yield Case(kernel, inputs, options, about)
        more = options_of_rows(kernel, rng, lead)
        yield Case(kernel, inputs, {**options, **more}, f"{about}, {', '.join(more)}")


def options_of_rows(kernel: Record, rng: np.random.Generator, rows: tuple[int, ...]) -> dict[str, Any]:
    """Some of the options that a row has for itself, at least one of them: its weight, its z loss, its softcap."""
    weights = np.where(rng.random(rows) < 0.3, 0.0, rng.random(rows)).astype(np.float32)
    drawn = {"sample_weight": weights, "z_loss": 0.3, "softcap": 2.5}
    known = [name for name in drawn if name in kernel.options]
    first = rng.choice(known)
    return {name: drawn[name] for name in known if name == first or rng.random() < 0.5}


def options_of_elements(kernel: Record, dtype: np.dtype[Any]) -> Iterator[Case]:
    """Options of losses of elements: labels of every dtype, weights of every shape that broadcasts."""
    rng = np.random.default_rng(5)
    lead, classes = (2, 3, 4), 5
    plain = reshaped(sample(kernel, 24, classes, dtype, seed=3), lead)
    shape = (*lead, classes)
    labels = ("bool", "int8", "uint8", "int32", "uint64", "int64", "float16", "float32", "float64", dtype)
    shapes: tuple[tuple[int, ...] | None, ...] = (None, (), (5,), (1, 1), (4, 1), (3, 1, 5), (2, 1, 1, 1), shape)
    for number, (ignored, smoothing, reduction) in enumerate(
        itertools.product((None, 1, -1, -100, 2**70), (0.0, 0.1, 1.0), ("mean", "sum", "none"))
    ):
        name = labels[number % len(labels)]
        t = (rng.integers(0, 2, shape) if np.dtype(name).kind in "biu" else rng.random(shape)).astype(name)
        if ignored in (1, -1, -100) and (ignored > 0 or t.dtype.kind not in "bu"):
            t[0, 1] = t[1, 2, 3, 4] = ignored
        inputs = {**plain.inputs, "t": t}
        if "dloss" in inputs and reduction == "none":
            inputs["dloss"] = rng.normal(size=shape).astype(np.float32)
        weights = {
            of: None if size is None else rng.random(size).astype(np.float32)
            for of, size in (
                ("weight", shapes[number % len(shapes)]),
                ("pos_weight", shapes[number // len(shapes) % len(shapes)]),
            )
        }
        options = {"ignore_index": ignored, "label_smoothing": smoothing, "reduction": reduction}
        shown = [f"{of}={value}" for of, value in options.items()]
        shown += [f"{of} {value.shape}" for of, value in weights.items() if value is not None]
        yield Case(kernel, inputs, {**options, **weights}, f"labels of {t.dtype}, {', '.join(shown)}")


def options_of_large_losses(kernel: Record, dtype: np.dtype[Any]) -> Iterator[Case]:
    """Some combinations of options where there are many rows, and where there are many classes."""
    rng = np.random.default_rng(6)
    for rows, classes in ((3001, 7), (5, 2050)):
        plain = sample(kernel, rows, classes, dtype)
        weight = rng.random(classes).astype(np.float32)
        indices = plain.inputs["t"].copy()
        indices[1::3] = -100
        soft = label_forms(plain.inputs["t"], classes, -1, rng)[SOFT]
        for t, options in (
            (indices, {"ignore_index": -100, "weight": weight}),
            (indices, {"ignore_index": -100, "weight": weight, "label_smoothing": 0.1}),
            (soft, {"weight": weight, "label_smoothing": 0.1}),
        ):
            for reduction in ("mean", "sum", "none"):
                inputs = {**plain.inputs, "t": t}
                if "dloss" in inputs and reduction == "none":
                    inputs["dloss"] = (0.1 * rng.normal(size=rows)).astype(np.float32)  # what float16 can hold
                about = f"{plain.about}, {SOFT if t is soft else INDICES}, {[*options]}, {reduction}"
                yield Case(kernel, inputs, {**options, "reduction": reduction}, about)
                more = options_of_rows(kernel, rng, (rows,))
                yield Case(kernel, inputs, {**options, **more, "reduction": reduction}, f"{about}, {', '.join(more)}")


def logits_of(case: Case, classes: Any) -> Any:
    """The exact logits of some classes of each row, where the results of the case are the largest logits."""
    every = Case(case.kernel, {**case.inputs, "k": case.inputs["w"].shape[1]}).expected()
    logits = np.empty(every[0].shape)
    np.put_along_axis(logits, every[1], every[0], -1)
    return np.take_along_axis(logits, classes, -1)


def sums_are_exact(case: Case) -> bool:
    """Whether the logits of a layer are sums of whole numbers, none of which is rounded: no order depends on it."""
    x, w, b = (np.asarray(0 if case.inputs.get(n) is None else case.inputs[n], np.float64) for n in ("x", "w", "b"))
    largest = [np.abs(numbers).max(initial=0) for numbers in (x, w, b)]
    is_whole = all(np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all() for numbers in (x, w, b))
    return is_whole and largest[0] * largest[1] * len(w) + largest[2] < 2**24


def overflowed(x: Any, dtype: np.dtype[Any]) -> Any:
    """`x`, exact results in float64, but infinite where they are too large for `dtype`."""
    with np.errstate(all="ignore"):
        return np.where(np.isinf(np.asarray(x).astype(dtype).astype(np.float64)), np.copysign(np.inf, x), x)


# ---------------------------------------------------------------------------------------------------------------------
# Memory layouts
# ---------------------------------------------------------------------------------------------------------------------

Layout = Callable[[Subject, Any], Any]


def fortran(subject: Subject, x: Any) -> Any:
    """The last axis apart, the first one together."""
    y = subject.empty(x.shape[::-1], x.dtype).T
    y[...] = x
    return y


def sliced(subject: Subject, x: Any) -> Any:
    """Every third element of a larger array."""
    y = subject.empty(tuple(3 * n for n in x.shape), x.dtype)[tuple([slice(None, None, 3)] * x.ndim)]
    y[...] = x
    return y


def negative(subject: Subject, x: Any) -> Any:
    """From the last element to the first."""
    y = subject.empty(x.shape, x.dtype)[tuple([slice(None, None, -1)] * x.ndim)]
    y[...] = x
    return y


def offset(subject: Subject, x: Any) -> Any:
    """Starting one element behind where an array would: not on the boundary of a vector."""
    y = subject.empty((x.size + 1,), x.dtype)[1:].reshape(x.shape)
    y[...] = x
    return y


def columns(subject: Subject, x: Any) -> Any:
    """Some columns of a wider array, as a batch out of a table is."""
    y = subject.empty((*x.shape[:-1], x.shape[-1] + 5), x.dtype)[..., 2:-3]
    y[...] = x
    return y


def read_only(subject: Subject, x: Any) -> Any:
    """A NumPy array that cannot be written."""
    y = x.copy()
    y.flags.writeable = False
    return y


def other_byte_order(subject: Subject, x: Any) -> Any:
    """Bytes the other way round, as files of other machines have them."""
    return x.astype(x.dtype.newbyteorder()) if x.dtype.kind in "fiu" else x


def unaligned(subject: Subject, x: Any) -> Any:
    """An address that is no multiple of the size of an element, as in packed records."""
    y = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


ANYWHERE: tuple[Layout, ...] = (fortran, sliced, negative, offset, columns)  # what any array library can do
ON_HOST: tuple[Layout, ...] = (read_only, other_byte_order, unaligned)  # what only NumPy's arrays can be


def layouts(subject: Subject) -> tuple[Layout, ...]:
    """The layouts that arrays of the backend can have."""
    return (*ANYWHERE, *ON_HOST) if subject.backend.arrays == "numpy" else ANYWHERE


LOSSES = [kernel for kernel in RECORDS.values() if is_loss(kernel)]
