"""Random calls of layers, optimizers, schedules and Jacobians.

A layer must return the results of its kernels, bit for bit, or reject the same arguments. The others are compared with
their formulas in float64. A difference raises `AssertionError`; other errors are findings too (see `fuzz`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from plugrad.kernels import jacobians, layers, optim
from plugrad.tests import oracles
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.judging import share_memory
from plugrad.tests.conformance.random_calls import Call, Dice, random_call
from plugrad.tests.conformance.repeated_calls import Verdict, is_on_host, repeated
from plugrad.tests.conformance.spoiling import ARGUMENTS, spoil, spoiled
from plugrad.tests.conformance.subject import DTYPES, Subject, as_tuple, close, epsilon, finfo
from plugrad.tests.records import RECORDS, double

Array = Any


def outcome(call: Callable[[], Any], *names: str) -> tuple[Any, str]:
    """The result of a call, or the message of its error, which must begin with one of the names."""
    try:
        return call(), ""
    except (TypeError, ValueError) as error:
        begins = tuple(f"{name}{end}" for name in names for end in (":", "."))
        assert str(error).startswith(begins), f"the message begins with none of {', '.join(names)}: {error}"
        return None, str(error)


def same(name: str, got: Any, expected: Any) -> None:
    """Assert that two NumPy arrays or numbers have the same bits."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype, f"{name}: expected {expected.dtype}, got {got.dtype}"
    assert got.shape == expected.shape, f"{name}: expected shape {expected.shape}, got {got.shape}"
    assert got.tobytes() == expected.tobytes(), f"{name}: expected {expected}, got {got}"


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------

# Kernel of the forward pass -> layer.
LAYERS: dict[str, type[layers.Affine | layers.Relu | layers.Sigmoid | layers.Softmax | layers.Loss]] = {
    "affine": layers.Affine,
    "relu": layers.Relu,
    "sigmoid": layers.Sigmoid,
    "softmax": layers.Softmax,
    "cross_entropy": layers.CrossEntropy,
    "softmax_cross_entropy_value_and_grad": layers.SoftmaxWithLoss,
    "sigmoid_cross_entropy_value_and_grad": layers.SigmoidWithLoss,
}


def layer(dice: Dice, subject: Subject, about: list[str]) -> None:
    """Call a layer forward twice and backward, and compare with its kernels."""
    kernel = RECORDS[dice.choice(list(LAYERS))]
    kind = LAYERS[kernel.name]
    call = random_call(dice, subject, kernel)
    about.append(f"{kind.__name__}, {call.case.about}")
    if dice.flag():
        about.append(spoil(dice, subject, call))
    call.options.pop("out", None)
    parameters, inputs = (call.arrays[1:], call.arrays[:1]) if kernel.name == "affine" else ([], call.arrays)
    given = [x for x in call.arrays if isinstance(x, np.ndarray)]
    before = [np.array(x).tobytes() for x in given]
    names = kind.__name__, kernel.name
    made, refused = outcome(lambda: kind(*parameters, **call.options), *names)
    if isinstance(made, layers.Affine):  # a copy in another memory order would round products differently
        parameters = [made.w, made.b]
    expected, _ = outcome(lambda: as_tuple(kernel.function(*inputs, *parameters, **call.options)), *names)
    y = None
    if made is not None:
        y, refused = outcome(lambda: made.forward(*inputs), *names)
    assert (y is None) == (expected is None), f"its kernel returns {expected}, and the layer {refused or y!r}"
    if expected is not None:
        held = np.array(subject.numpy(y))
        same("y", held, subject.numpy(expected[0]))
        made.forward(*inputs)
        same("y, after another forward", subject.numpy(y), held)
        _backward(dice, subject, made, call, expected)
    assert [np.array(x).tobytes() for x in given] == before, "an argument was written to"


def _backward(dice: Dice, subject: Subject, made: Any, call: Call, expected: tuple[Any, ...]) -> None:
    """Compare the gradients of a layer with those of the kernels."""
    kernel = call.case.kernel
    if isinstance(made, layers.SoftmaxWithLoss | layers.SigmoidWithLoss):
        dx = subject.numpy(expected[1])
        same("dx", subject.numpy(made.backward()), dx)
        each = call.options.get("reduction", "mean") == "none"
        twice = subject.numpy(made.backward(subject.array(np.full(expected[0].shape, 2.0)) if each else 2.0))
        if dx.itemsize > 2:  # 16-bit results are doubled before they are rounded
            with np.errstate(all="ignore"):
                same("dx of twice the loss", twice, 2 * dx)
        return
    rng = np.random.default_rng(dice.integer(0, 1000))
    y = subject.numpy(expected[0])
    dy = subject.array(np.asarray(rng.normal(size=y.shape)).astype(y.dtype))
    function = RECORDS[f"{kernel.name}_backward"].function
    if isinstance(made, layers.Affine):
        x, has_bias = call.arrays[0], made.b is not None
        gradients = function(dy, x, made.w, needs=("dx", "dw", "db") if has_bias else ("dx", "dw"))
        same("dx", subject.numpy(made.backward(dy)), subject.numpy(gradients[0]))
        for name, gradient in (("dw", gradients[1]), ("db", gradients[2])):
            if gradient is not None:
                own = getattr(made, name)
                with np.errstate(all="ignore"):
                    same(name, subject.numpy(own), subject.numpy(gradient).astype(own.dtype))
        return
    saved = call.arrays if isinstance(made, layers.CrossEntropy) else [expected[0]]
    same("dx", subject.numpy(made.backward(dy)), subject.numpy(function(dy, *saved, **call.options)))


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers and schedules
# ---------------------------------------------------------------------------------------------------------------------

NUMBERS = (float("nan"), float("inf"), -0.1, -1, 1, 1.5, "0.1", None, True, [0.1], 10**400, np.float16(0.5), 1j)


def _number(dice: Dice, right: tuple[Any, ...]) -> Any:
    """A valid number, or any of NUMBERS."""
    return dice.choice(right if dice.flag() else NUMBERS)


def optimizer(dice: Dice, subject: Subject, about: list[str]) -> None:
    """Take a few steps of an optimizer, and compare with its formula."""
    kind, formula = dice.choice(
        [
            (optim.SGD, oracles.sgd),
            (optim.Adam, oracles.adam),
            (optim.AdamW, oracles.adamw),
            (optim.RMSprop, oracles.rmsprop),
        ]
    )
    rng = np.random.default_rng(dice.integer(0, 1000))
    params, steps = [], dice.integer(1, 3)
    grads: list[list[Any]] = [[] for _ in range(steps)]
    for _ in range(dice.integer(1, 3)):
        shape = tuple(dice.integer(0, 9) for _ in range(dice.integer(0, 3)))
        dtype, layout = dice.choice(DTYPES), dice.choice((None, *cases.ANYWHERE))
        arrays = [subject.array(np.asarray(rng.normal(size=shape)).astype(dtype)) for _ in range(steps + 1)]
        parameter, *rest = [layout(subject, x) if layout is not None and x.ndim else x for x in arrays]
        params.append(parameter)
        for gradients, gradient in zip(grads, rest, strict=True):
            gradients.append(gradient)
    options: dict[str, Any] = {
        "lr": dice.choice((0, 0.1, 1e-3, 2.0, np.float32(0.1))),
        "weight_decay": dice.choice((0, 0.05)),
    }
    if kind is optim.SGD:
        options["momentum"] = dice.choice((0, 0.5, 0.9))
        options["nesterov"] = bool(options["momentum"]) and dice.flag()
    elif kind is optim.RMSprop:
        options |= {"alpha": dice.choice((0.5, 0.99)), "momentum": dice.choice((0, 0.5)), "eps": 1e-3}
    else:
        options |= {"betas": dice.choice(((0.9, 0.999), (0.0, 0.5))), "eps": dice.choice((1e-8, 1e-3))}
    about.append(f"{kind.__name__}, {', '.join(f'{name}={value!r}' for name, value in options.items())}")
    if dice.flag():
        about.append(_spoil_step(dice, subject, params, grads, options))
    before = [np.array(subject.numpy(p)) if subject.backend.owns(type(p)) else p for p in params]
    trace = [[np.array(subject.numpy(g)) if subject.backend.owns(type(g)) else g for g in step] for step in grads]
    made, refused = outcome(lambda: kind(params, **options), kind.__name__)
    done = 0
    for step in grads if made is not None else ():
        _, refused = outcome(partial(made.step, step), kind.__name__)
        if refused:
            break
        done += 1
    for step, held_step in zip(grads, trace, strict=True):
        for gradient, held in zip(step, held_step, strict=True):
            if subject.backend.owns(type(gradient)):
                same("a gradient that was given", np.array(subject.numpy(gradient)), held)
    assert made is None or made.steps == done, f"{made.steps} steps are counted, and {done} were done"
    if not done:
        for p, held in zip(params, before, strict=True):
            if isinstance(held, np.ndarray):
                same("a parameter of what was refused", np.array(subject.numpy(p)), held)
        return
    _compare_steps(subject, formula, options, params, before, trace[:done])


def _compare_steps(
    subject: Subject,
    formula: Callable[..., Any],
    options: dict[str, Any],
    params: list[Array],
    before: list[Any],
    steps: list[list[Any]],
) -> None:
    """Compare parameters with the formula for what they were before, and the gradients of all steps."""
    for i, p in enumerate(params):
        grads = [double(step[i]) for step in steps]
        path = [formula(double(before[i]), grads[:count], **options) for count in range(1, len(grads) + 1)]
        exact = path[-1]
        largest = max(np.fmax.reduce(abs(np.ravel(double(x))), initial=1.0) for x in (before[i], *path))  # but for NaN
        if largest > float(finfo(p.dtype).max):  # an intermediate value may have been infinite
            continue
        got, off = double(subject.numpy(p)), 16 * epsilon(p.dtype) * largest
        close(f"parameter {i}", got, np.asarray(exact), 0.0, off)


def repeated_steps(dice: Dice, subject: Subject, about: list[str]) -> None:
    """Take plain steps of an optimizer, and after each of them one with one thing changed (see `repeated_calls`)."""
    kind, formula, options = dice.choice(
        (
            (optim.SGD, oracles.sgd, {"lr": 0.1}),
            (optim.SGD, oracles.sgd, {"lr": 0.1, "momentum": 0.9}),
            (optim.Adam, oracles.adam, {"lr": 0.01}),
            (optim.AdamW, oracles.adamw, {"lr": 0.01}),
            (optim.RMSprop, oracles.rmsprop, {"lr": 0.01, "eps": 0.1, "centered": True}),
        )
    )
    rng, dtype = np.random.default_rng(dice.integer(0, 1000)), dice.choice(DTYPES)
    shapes = [tuple(dice.integer(1, 9) for _ in range(dice.integer(1, 2))) for _ in range(dice.integer(1, 3))]

    def drawn() -> list[Array]:
        return [subject.array(rng.normal(size=shape).astype(dtype)) for shape in shapes]

    def values(arrays: list[Array]) -> list[Any]:
        return [np.array(subject.numpy(x)) for x in arrays]

    params = drawn()
    before, done, made = values(params), list[list[Any]](), kind(params, **options)
    about.append(f"{kind.__name__}, {options}, {shapes} of {dtype}")
    for is_changed in (False, True) * dice.integer(1, 3):
        grads = drawn()
        what, verdict = _change_step(dice, subject, params, grads) if is_changed else ("plain", True)
        about[1:] = [what]
        held, slopes = values(params), values(grads)
        _, refused = outcome(partial(made.step, grads), kind.__name__)
        assert verdict is None or verdict is not bool(refused), refused or "it was not refused"
        if is_on_host(subject):
            for p in params:
                p.flags.writeable = True
        if refused:
            for p, value in zip(params, held, strict=True):
                same("a parameter of what was refused", np.array(subject.numpy(p)), value)
        for p, g, value in zip(params, grads, slopes, strict=True):
            if not share_memory(subject, g, p):
                same("a gradient that was given", np.array(subject.numpy(g)), value)
        if not refused:
            done.append(slopes)
    assert made.steps == len(done), f"{made.steps} steps are counted, and {len(done)} were done"
    _compare_steps(subject, formula, options, params, before, done)


def _change_step(dice: Dice, subject: Subject, params: list[Array], grads: list[Array]) -> tuple[str, Verdict]:
    """Change a parameter or a gradient of a step; return a description and the verdict."""
    place = dice.integer(0, len(params) - 1)
    p, g = params[place], grads[place]
    layouts = {layout.__name__: layout for layout in cases.layouts(subject)}
    changes: dict[str, tuple[Callable[[], Any], Verdict]] = {
        "the parameter": (lambda: p, True),
        "a view of the parameter": (lambda: p[...], True),
        "the parameter in reverse": (lambda: p[::-1], None if len(p) == 1 else False),
        "a row less": (lambda: g[:-1].copy(), False),
        "an axis more": (lambda: g[np.newaxis].copy(), False),
        "another dtype": (lambda: g.astype(np.float32 if g.dtype != np.float32 else np.float64), False),
        **{name: (partial(layout, subject, g), True) for name, layout in layouts.items()},
    }
    if is_on_host(subject):
        changes["a row of the parameter"] = partial(repeated, subject, p), None if len(p) == 1 else False
        if not dice.integer(0, len(changes)):
            p.flags.writeable = False
            return f"parameter {place} is read-only now", False
    name = dice.choice(list(changes))
    change, verdict = changes[name]
    grads[place] = change()
    if name == "other_byte_order":
        verdict = grads[place] is g  # bfloat16 has none
    return f"gradient {place}: {name}", verdict


def penalty(dice: Dice, subject: Subject, about: list[str]) -> None:
    """Compare the L2 penalty of some parameters and its gradient with the formula."""
    rng, factor = np.random.default_rng(dice.integer(0, 1000)), _number(dice, (0.5, 2))
    given: list[list[Any]] = [[], []]
    for _ in range(dice.integer(0, 3)):
        shape, dtype = tuple(dice.integer(0, 9) for _ in range(dice.integer(0, 3))), dice.choice(DTYPES)
        for arrays in given:
            arrays.append(subject.array(np.asarray(rng.normal(size=shape)).astype(dtype)))
    params, grads = given
    about.append(f"{[f'{p.dtype}{list(p.shape)}' for p in params]}, factor={factor!r}")
    if params and dice.flag():
        name, array = dice.choice(list(ARGUMENTS)), dice.choice(given)
        place = dice.integer(0, len(params) - 1)
        array[place] = spoiled(subject, name, array[place])
        about.append(f"{'parameter' if array is params else 'gradient'} {place}: {name}")
    before = [double(subject.numpy(g)) if subject.backend.owns(type(g)) and g.dtype in DTYPES else g for g in grads]
    total, _ = outcome(lambda: optim.l2_penalty(params, factor, grads=grads), "l2_penalty")
    if total is None:
        return
    plain = [double(subject.numpy(p)) for p in params]
    total = np.asarray(subject.numpy(total))
    exact = float(factor) * sum(float((p * p).sum()) for p in plain)
    close("penalty", double(total), cases.overflowed(exact, total.dtype), 4 * epsilon(total.dtype), 0.0)
    for p, g, held in zip(plain, grads, before, strict=True):
        slope = held + 2 * float(factor) * p
        size = float(np.nan_to_num(abs(held) + 2 * float(factor) * abs(p), posinf=0.0).max(initial=0.0))
        close(
            "gradient",
            double(subject.numpy(g)),
            cases.overflowed(slope, g.dtype),
            0.0,
            4 * epsilon(g.dtype) * size,
        )


def _spoil_step(
    dice: Dice, subject: Subject, params: list[Any], grads: list[list[Any]], options: dict[str, Any]
) -> str:
    """Spoil an optimizer or its first step, and return a description."""
    place, what = dice.integer(0, len(params) - 1), dice.integer(0, 4)
    argument = dice.choice(list(ARGUMENTS))
    if what == 0:
        params[place] = spoiled(subject, argument, params[place])
        return f"parameter {place}: {argument}"
    if what == 1:
        grads[0][place] = spoiled(subject, argument, grads[0][place])
        return f"gradient {place}: {argument}"
    if what == 2:
        name = dice.choice([name for name in options if name != "nesterov"])
        options[name] = dice.choice((*NUMBERS, (0.5, 1.0), (0.5,), (float("nan"), 0.5)))
        return f"{name}={options[name]!r}"
    if what == 3:
        params.append(params[place])
        return f"parameter {place} twice"
    grads[0].pop()
    return "a gradient less"


SCHEDULES: tuple[tuple[str, str, Any], ...] = (
    ("step_decay", "every", 2),
    ("exponential_decay", "factor", 0.5),
    ("cosine", "steps", 4),
)


def schedule(dice: Dice, subject: Subject, about: list[str]) -> None:
    """Assert that the rates of a schedule are floats from 0 to the first rate."""
    name, option, value = dice.choice(SCHEDULES)
    given: dict[str, Any] = {option: value, "lr": 1.5}
    given[dice.choice(list(given))] = dice.choice((*NUMBERS, 0, 1, 3, 10**30))
    about.append(f"{name}, {given}")
    made, _ = outcome(lambda: getattr(optim, name)(**given), name)
    if made is not None:
        rates = [made(step) for step in (0, 1, 5, 10**6)]
        assert all(type(rate) is float and 0 <= rate <= float(given["lr"]) * (1 + 1e-12) for rate in rates), (
            f"the rates are {rates}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Jacobians
# ---------------------------------------------------------------------------------------------------------------------


def jacobian(dice: Dice, subject: Subject, about: list[str]) -> None:
    """Compare the explicit Jacobian of a kernel with the formula."""
    name = dice.choice(jacobians.__all__)
    rng = np.random.default_rng(dice.integer(0, 1000))
    shape = tuple(dice.integer(0, 5) for _ in range(dice.integer(1, 3)))
    shapes = [shape, (shape[-1], dice.integer(0, 5))] if name == "affine_jacobian" else [shape]
    arrays = [np.asarray(rng.random(size)).astype(dice.choice(DTYPES)) for size in shapes]
    layout = dice.choice((None, *cases.layouts(subject)))
    given: list[Any] = [layout(subject, subject.array(x)) if layout else subject.array(x) for x in arrays]
    about.append(f"{name} of {', '.join(f'{x.dtype}{list(x.shape)}' for x in arrays)}")
    if dice.flag():
        place, argument = dice.integer(0, len(given) - 1), dice.choice(list(ARGUMENTS))
        given[place] = spoiled(subject, argument, arrays[place])
        about.append(argument)
    before = [np.array(x).tobytes() for x in given if isinstance(x, np.ndarray)]
    got, _ = outcome(lambda: as_tuple(getattr(jacobians, name)(*given)), name)
    after = [np.array(x).tobytes() for x in given if isinstance(x, np.ndarray)]
    assert after == before, "an argument was written to"
    if got is None:
        return
    plain = [double(subject.numpy(x)) for x in given]
    if all(np.isfinite(x).all() for x in plain):
        for i, (value, exact) in enumerate(zip(got, oracles.jacobian(name, *plain), strict=True)):
            exact = cases.overflowed(exact, value.dtype)
            assert value.shape == exact.shape, f"expected shape {exact.shape}, got {value.shape}"
            close(f"result {i}", double(subject.numpy(value)), exact, 4 * epsilon(value.dtype), 0.0)


# Name in the report of the fuzzer -> function.
OTHER_CALLS: dict[str, Callable[[Dice, Subject, list[str]], None]] = {
    function.__name__: function for function in (layer, optimizer, repeated_steps, penalty, schedule, jacobian)
}
