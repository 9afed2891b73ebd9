"""The Gaussian error linear unit."""

import math
from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import Array, Budget, Mistake, Record, double
from plugrad.tests.records.relu import sample
from plugrad.tests.records.silu import FAR, terms_of_slope

VARIANTS = ({"approximate": "tanh"},)
ROOT = math.sqrt(2 / math.pi)

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _normal(x: Array) -> Array:
    return _erfc(-x / math.sqrt(2)) / 2


def _logistic(x: Array) -> tuple[Array, Array]:
    """``1 / (1 + exp(-2 u))`` of the approximation, by the root of the exponential, and 1 minus it."""
    root = np.exp(-ROOT * (np.abs(x) + 0.044715 * np.abs(x) ** 3))
    small, large = root**2 / (1 + root**2), 1 / (1 + root**2)
    return np.where(x < 0, small, large), np.where(x < 0, large, small)


def _oracle(x: Any, approximate: str = "none") -> tuple[Array, ...]:
    x = np.maximum(double(x), -FAR)
    return (x * (_normal(x) if approximate == "none" else _logistic(np.minimum(x, FAR))[0]),)


def _terms(x: Any, approximate: str = "none") -> tuple[Array, ...]:
    """The result, in float64 times what the rounding of an exponential's argument is worth, the oracle's as well."""
    (y,) = _oracle(x, approximate)
    if x.dtype != np.float64:
        return (y,)
    logarithm = np.abs(np.log(np.abs(y / x)))
    return (np.abs(y) * np.where(np.isfinite(logarithm), np.maximum(1, logarithm), 1),)


def _oracle_backward(dy: Any, x: Any, approximate: str = "none") -> tuple[Array, ...]:
    x = np.clip(double(x), -FAR, FAR)
    if approximate == "none":
        return (double(dy) * (_normal(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)),)
    s, rest = _logistic(x)
    return (double(dy) * (s + x * s * rest * 2 * ROOT * (1 + 3 * 0.044715 * x**2)),)


def _tanh(library: Any, v: Any, of_pi: Any) -> Any:
    """``2 u`` of the approximation, in numbers of mpmath or sympy."""
    cubic = library.mpf("0.044715") if hasattr(library, "mpf") else library.Rational(44715, 1000000)
    return 2 * library.sqrt(2 / of_pi) * (v + cubic * v**3), 2 * library.sqrt(2 / of_pi) * (1 + 3 * cubic * v**2)


def _exact(mpmath: Any, x: list[Any], label: int, approximate: str = "none") -> list[Any]:
    if approximate == "none":
        return [v * mpmath.erfc(-v / mpmath.sqrt(2)) / 2 for v in x]
    return [v / (1 + mpmath.exp(-_tanh(mpmath, v, mpmath.pi)[0])) for v in x]


def _exact_backward(mpmath: Any, x: list[Any], label: int, approximate: str = "none") -> list[Any]:
    if approximate == "none":
        return [mpmath.ncdf(v) + v * mpmath.npdf(v) for v in x]
    slopes = []
    for v in x:
        u, slope = _tanh(mpmath, v, mpmath.pi)
        s = 1 / (1 + mpmath.exp(-u))
        slopes.append(s + v * s * (1 - s) * slope)
    return slopes


def _symbolic(sympy: Any, x: list[Any], approximate: str = "none") -> list[Any]:
    if approximate == "none":
        return [a * (1 + sympy.erf(a / sympy.sqrt(2))) / 2 for a in x]
    return [a * (1 + sympy.tanh(_tanh(sympy, a, sympy.pi)[0] / 2)) / 2 for a in x]


def _textbook(x: Any) -> Any:
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def _textbook_backward(dy: Any, x: Any) -> Any:
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return dy * ((1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2 + x * density)


_TIMED = {"tanh": lambda rng, sample: {"approximate": "tanh"}}

RECORDS = (
    Record(
        function=K.gelu,
        sample=sample,
        oracle=_oracle,
        textbook=_textbook,
        terms=_terms,
        exact=_exact,
        symbolic=_symbolic,
        variants=VARIANTS,
        timed=_TIMED,
        mistakes=(
            Mistake({"x": "text"}, TypeError, "gelu: x: expected .*, got dtype <U4"),
            Mistake({"approximate": "erf"}, ValueError, "gelu: approximate: expected 'none' or 'tanh', got 'erf'"),
            Mistake({"approximate": None}, TypeError, "gelu: approximate: expected 'none' or 'tanh', got None"),
        ),
        passes=2,
        operations=30,
        tolerance=4,
        budget=Budget(ulp=4.0, of="exponent"),
    ),
    Record(
        function=K.gelu_backward,
        sample=lambda rng, *given: {"dy": sample(rng, *given)["x"], "x": sample(rng, *given)["x"]},
        oracle=_oracle_backward,
        textbook=_textbook_backward,
        terms=terms_of_slope(_oracle_backward),
        exact=_exact_backward,
        variants=VARIANTS,
        timed=_TIMED,
        mistakes=(
            Mistake({"x": [1.0]}, ValueError, r"gelu_backward: x: expected the shape of dy, \(2, 3\), got \(1"),
            Mistake({"approximate": True}, TypeError, "gelu_backward: approximate: expected 'none' or 'tanh'"),
        ),
        passes=3,
        operations=32,
        tolerance=4,
        budget=Budget(ulp=4.0, of="upstream"),
    ),
)
