"""Exponential, logarithm and maximum of single numbers, written so that a loop over them is done in vector registers.

Library functions are called for one number after another. These are a few dozen instructions without branches, so
that the compiler computes four to sixteen numbers at once, in the vector registers of the machine. They exist for
float32 and for float64, and keep NaN and infinities. 16-bit numbers are kept as the integers of the same
bits, int16 for float16 and uint16 for bfloat16, and are widened to float32 to be computed with.

Sources: J.-M. Muller, "Elementary Functions", 3rd edition, sections 11.1 (reduction of the argument) and 4.3
(polynomials), and for the logarithm P. T. P. Tang, "Table-driven implementation of the logarithm function" (1990),
whose series in ``s = f / (2 + f)`` this is, without the table.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from plugrad.backends import normal
from plugrad.backends.numba.compiling import chosen_by_type, inlined


@dataclass(frozen=True)
class Format:
    """The constants of the functions for float32 or float64."""

    float: Any
    integer: Any
    mantissa: int  # bits after the point
    bias: int  # of the exponent
    ln2: tuple[float, float]  # log(2) in two parts, the first of which has so few digits that its multiples are exact
    lowest: float  # below this, exp is less than half the smallest number
    highest: float  # above this, it is infinite
    scale: int  # by which power of 2 `exp` scales
    exp: tuple[float, ...]  # coefficients of the polynomial for exp, that of the highest power first
    log: tuple[float, ...]  # the same for the series of log in s**2
    log1p: tuple[float, ...]  # of Q, for log(1 + x)
    tail: normal.Tail  # of the normal distribution


# The polynomial of degree 6 that differs least from exp on [-log(2)/2, log(2)/2], relative to it: by 3.1e-9, which is a
# twentieth of a unit in the last place. By Remez' algorithm in 50 digits, with the first two coefficients kept at 1.
# Taylor's series would take a term more.
EXP6 = (0.00138145986467, 0.00836871687973, 0.0416683880453, 0.166665206317, 0.499999934478, 1.0, 1.0)

# ``log(1 + x) = x + x**2 Q(x)`` for x in [0, 1], with a polynomial Q that interpolates at Chebyshev's points, in
# 60 digits; the coefficient of the highest power first. Off by at most 3.7e-9 and 1.5e-18 of the logarithm.
LOG1P_SINGLE = (
    0.0028016419928,
    -0.0171842669824,
    0.0493099734345,
    -0.0913941377401,
    0.130333642382,
    -0.163651528692,
    0.199567079523,
    -0.249967599083,
    0.333332373462,
    -0.499999995222,
)
LOG1P_DOUBLE = (
    0.0000150784378022262097,
    -0.000181883032550026499,
    0.00104335487663481403,
    -0.00380465172531796931,
    0.00996898283807688167,
    -0.0201796680433391269,
    0.0332784549172643602,
    -0.0467981825498931053,
    0.0585868525295707886,
    -0.0679932038532237117,
    0.0757303563380737805,
    -0.0829993175812777185,
    0.0908347041395853154,
    -0.0999870542807500653,
    0.111109389604675664,
    -0.124999830197218674,
    0.142857130927915508,
    -0.166666666103281294,
    0.199999999983612106,
    -0.24999999999974621,
    0.333333333333331765,
    -0.499999999999999998,
)

SINGLE = Format(
    float=np.float32,
    integer=np.int32,
    mantissa=23,
    bias=127,
    ln2=(0.693359375, -2.12194440e-4),
    lowest=-104.0,
    highest=100.0,
    scale=64,
    exp=EXP6,
    log=tuple(2 / (2 * k + 1) for k in range(5, 0, -1)),  # the next term is 3e-9 of the sum
    log1p=LOG1P_SINGLE,
    tail=normal.SINGLE,
)
DOUBLE = Format(
    float=np.float64,
    integer=np.int64,
    mantissa=52,
    bias=1023,
    ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
    lowest=-746.0,
    highest=800.0,
    scale=512,
    exp=tuple(1 / math.factorial(k) for k in range(13, -1, -1)),  # Taylor's: the next term is 4e-18
    log=tuple(2 / (2 * k + 1) for k in range(11, 0, -1)),
    log1p=LOG1P_DOUBLE,
    tail=normal.DOUBLE,
)
FORMATS = {types.float32: SINGLE, types.float64: DOUBLE}


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and their bits
# ---------------------------------------------------------------------------------------------------------------------


def _conversion(kinds: dict[Any, Any], emit: Callable[[Any, Any, Any], Any]) -> Any:
    """A function of one number, by the type that it makes of each type, that is one instruction of LLVM."""

    def typed(typing_context: Any, x: Any) -> Any:
        to = kinds.get(x)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, arguments[0], context.get_value_type(to))

        return None if to is None else (to(x), generate)

    return intrinsic(typed)


def _bitcast(builder: Any, x: Any, to: Any) -> Any:
    return builder.bitcast(x, to)


bits = _conversion({types.float32: types.int32, types.float64: types.int64}, _bitcast)
number = _conversion({types.int32: types.float32, types.int64: types.float64}, _bitcast)
_of_half = _conversion(
    {types.int16: types.float32}, lambda builder, x, to: builder.fpext(builder.bitcast(x, ir.HalfType()), to)
)
_to_half = _conversion(
    {types.float32: types.int16}, lambda builder, x, to: builder.bitcast(builder.fptrunc(x, ir.HalfType()), to)
)


@intrinsic
def muladd(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """``x y + z`` in one instruction, rounded once, where the machine has it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, arguments)

    return x(x, y, z), generate


def _has(feature: str) -> bool:
    """Whether the processor has instructions that every AArch64 has, and some of the x86 family have."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64")) or f"+{feature}" in features.split(",")


CONVERTS_HALVES = _has("f16c")  # float16; without, LLVM calls a library that numba has not
FUSES = _has("fma")  # the multiplication and the addition of `muladd`


@inlined()
def half_to_single(x: Any) -> Any:
    """The float32 of the bits of a float16: moved to their places, and multiplied by the ratio of the two biases."""
    magnitude = np.int32(np.int32(x) & np.int32(0x7FFF))
    finite = number(np.int32(magnitude << np.int32(13))) * np.float32(2.0**112)
    special = np.int32(np.int32(magnitude << np.int32(13)) | np.int32(0x7F800000))
    b = bits(finite) if magnitude < np.int32(0x7C00) else special
    return number(np.int32(b | np.int32(np.int32(np.int32(x) & np.int32(0x8000)) << np.int32(16))))


@inlined()
def single_to_half(x: Any) -> Any:
    """The bits of the nearest float16, of two that are as near the even one."""
    b = bits(x)
    magnitude = np.int32(b & np.int32(0x7FFFFFFF))
    odd = np.int32(np.int32(magnitude >> np.int32(13)) & np.int32(1))
    normal = np.int32(np.int32(magnitude + np.int32(0xFFF - (112 << 23)) + odd) >> np.int32(13))
    # Added to 1/2, a number below the least normal one is rounded at the last bit of a subnormal float16.
    small = np.int32(bits(number(magnitude) + np.float32(0.5)) - np.int32(0x3F000000))
    h = normal if magnitude >= np.int32(0x38800000) else small
    h = h if magnitude < np.int32(0x47800000) else np.int32(0x7C00)
    h = h if magnitude <= np.int32(0x7F800000) else np.int32(0x7E00)
    return np.int16(np.int32(h | np.int32(np.int32(b >> np.int32(16)) & np.int32(0x8000))))


def widen(x: Any) -> Any:
    """A number from memory, in the format to compute in."""
    raise NotImplementedError


def narrow(x: Any, like: Any) -> Any:
    """A number in the format that `like` has in memory, rounded to the nearest."""
    raise NotImplementedError


@chosen_by_type(widen)
def _widen(x: Any) -> Any:
    if x == types.int16:
        return (lambda x: _of_half(x)) if CONVERTS_HALVES else (lambda x: half_to_single(x))
    if x == types.uint16:
        return lambda x: number(np.int32(np.int32(x) << np.int32(16)))
    return lambda x: x


@chosen_by_type(narrow)
def _narrow(x: Any, like: Any) -> Any:
    if like == types.int16:
        return (lambda x, like: _to_half(x)) if CONVERTS_HALVES else (lambda x, like: single_to_half(x))
    if like == types.uint16:
        return lambda x, like: _to_bfloat16(x)
    return lambda x, like: x


@inlined()
def _to_bfloat16(x: Any) -> Any:
    b = bits(x)
    rounded = np.int32(b + np.int32(0x7FFF) + ((b >> np.int32(16)) & np.int32(1)))
    kept = rounded if x == x else np.int32(b | np.int32(0x400000))  # NaN, which rounding could make an infinity
    return np.uint16(kept >> np.int32(16))


# ---------------------------------------------------------------------------------------------------------------------
# Functions of numbers
# ---------------------------------------------------------------------------------------------------------------------


def _for_each_format(name: str, make: Callable[[Format], Any]) -> Any:
    """A function of numbers, or of an array, which `make` makes for float32 and for float64."""
    made = {kind: make(of) for kind, of in FORMATS.items()}

    def stub(x: Any, *more: Any) -> Any:
        raise NotImplementedError(f"{name} is for compiled code")

    @chosen_by_type(stub)
    def chosen(x: Any, *more: Any) -> Any:
        kind = getattr(x, "dtype", x)
        function = made.get(types.float32 if kind in (types.int16, types.uint16) else kind)
        return None if function is None else lambda x, *more: function(x, *more)

    return stub


def _exp_scaling(of: Format) -> Any:
    """The scaling of a row's exponentials, for a row whose largest number is `top`: ``shift, lowest, magic``.

    `shift` is subtracted, differences below `lowest` have the exponential 0, and `magic` rounds to an integer.
    Textbooks subtract `top`, which rounds, and costs 32 ulp of the result where two numbers are 87 apart. Here nothing
    is rounded. Unless `top` is far from 0, the exponentials are taken of the numbers themselves, and the scale
    ``2**(scale - K)``, with ``K`` the integer nearest to ``top / log(2)``, keeps them in range. Far from 0, `top` is
    subtracted, which is exact for all numbers within a factor of 2 of it (Sterbenz), and so for all whose exponentials
    are not 0.
    """
    float_, log2e = of.float, of.float(1 / math.log(2))
    near, lowest, zero = float_(-2 * of.lowest), float_(of.lowest), float_(0)
    magic, up = float_(1.5 * 2.0**of.mantissa), float_(of.bias + of.scale)

    @inlined()
    def exp_scaling(top: Any) -> Any:
        shift = zero if abs(top) < near else top
        left = top - shift
        powers = muladd(left, log2e, magic) - magic
        return shift, left + lowest, magic + (up - powers)

    return exp_scaling


def _parts_of_exp(of: Format) -> Any:
    """Of ``exp(z + rest) = 2**k exp(r)``: ``k`` in the lowest bits of a number, and ``exp(r)``; see `_scaled_exp`."""
    log2e, high, low = of.float(1 / math.log(2)), of.float(of.ln2[0]), of.float(of.ln2[1])
    first, others = of.float(of.exp[0]), tuple(map(of.float, of.exp[1:]))

    @inlined()
    def parts_of_exp(z: Any, rest: Any, magic: Any) -> Any:
        shifted = muladd(z, log2e, magic)
        k = shifted - magic
        r = muladd(k, -low, muladd(k, -high, z)) + rest
        p = first
        for coefficient in others:
            p = muladd(p, r, coefficient)
        return shifted, p

    return parts_of_exp


def _scaled_exp(of: Format) -> Any:
    """``exp(x - top)`` times a number next to ``2**scale``, with the `exp_scaling` of `top`; to 1.1 ulp.

    With ``z = x - shift``, ``k`` the integer nearest to ``z / log(2)`` and ``r = z - k log(2)``,
    ``exp(z) = 2**k exp(r)``. To add a number as large as 1.5 * 2**mantissa rounds to an integer, which then stands in
    the lowest bits; that number is chosen so that they are ``k`` plus bias and scale less ``K``, which shifted to the
    place of the exponent are ``2**(k + scale - K)``. The scale keeps results that would be subnormal whole, and costs
    nothing: it cancels where sums of exponentials are divided by.
    """
    parts_of_exp, integer, shift_, zero = _parts_of_exp(of), of.integer, of.integer(of.mantissa), of.float(0)
    nothing = of.float(-0.0)  # which the compiler leaves out of a sum

    @inlined()
    def scaled_exp(x: Any, shift: Any, lowest: Any, magic: Any) -> Any:
        z = x - shift
        shifted, p = parts_of_exp(z, nothing, magic)
        e = p * number(integer(bits(shifted) << shift_))
        return zero if z < lowest else e  # not a number next to 0, with which processors take a hundred times as long

    return scaled_exp


def _product_rounding(of: Format) -> Any:
    """What `rounded_product` needs of a factor: ``limit, sign, up, magic``.

    Products with numbers from `limit` on are normal. Where the factor is not less than 1, all are taken to be.
    """
    smallest, one, zero, scale = float(np.finfo(of.float).smallest_normal), of.float(1), of.float(0), 2.0**of.scale
    normal, up, magic = of.float(smallest), of.float(scale), of.float(smallest * scale)
    integer, minus = of.integer, of.integer(np.iinfo(of.integer).min)

    @inlined()
    def product_rounding(factor: Any) -> Any:
        size = abs(factor)
        limit = normal / size if size < one else zero
        return limit, integer(bits(factor) & minus), size * up, magic

    return product_rounding


def _rounded_product(of: Format) -> Any:
    """``e * factor``, for a scaled exponential and the `product_rounding` of a factor less than 1.

    Processors take a hundred times as long where a product is subnormal. To the product, scaled, a number is added so
    large that the sum is rounded at the last bit of a subnormal number. Its other bits are then those of the product.
    """
    integer = of.integer

    @inlined()
    def rounded_product(e: Any, factor: Any, limit: Any, sign: Any, up: Any, magic: Any) -> Any:
        is_small = e < limit
        # By a comparison of integers: of one of numbers LLVM makes the multiplication that takes so long.
        product = number(bits(limit + limit) if bits(e) < bits(limit) else bits(e)) * factor
        small = integer(integer(bits(muladd(e, up, magic)) - bits(magic)) | sign)
        return number(small) if is_small else product

    return rounded_product


def _exp(of: Format) -> Any:
    """``exp(z)`` for every ``z``, to 1.1 ulp."""
    exp_of_sum, nothing = _exp_of_sum(of), of.float(-0.0)  # which the compiler leaves out of a sum

    @inlined()
    def exp(z: Any) -> Any:
        return exp_of_sum(z, nothing)

    return exp


def _exp_of_sum(of: Format) -> Any:
    """``exp(z + rest)`` for every ``z``: as `scaled_exp`, but ``2**k`` is multiplied with in two steps."""
    parts_of_exp, float_, integer, shift = _parts_of_exp(of), of.float, of.integer, of.integer(of.mantissa)
    lowest, highest, magic = float_(of.lowest), float_(of.highest), float_(1.5 * 2.0**of.mantissa)
    bias, one, zero = integer(of.bias), integer(1), float_(0)

    @inlined()
    def exp_of_sum(z: Any, rest: Any) -> Any:
        vanishes = z < lowest
        z = zero if vanishes else z
        z = highest if z > highest else z
        shifted, p = parts_of_exp(z, rest, magic)
        power = integer(bits(shifted) - bits(magic))
        half = integer(power >> one)
        p = p * number(integer(integer(half + bias) << shift))
        p = p * number(integer(integer(integer(power - half) + bias) << shift))
        return zero if vanishes else p

    return exp_of_sum


def _log(of: Format) -> Any:
    """``log(x)`` for every ``x``, to 1.2 ulp; -inf for 0 and NaN for less.

    With ``x = 2**k (1 + f)`` and ``1 + f`` between the root of 1/2 and that of 2, ``log(x) = k log(2) + log(1 + f)``.
    With ``s = f / (2 + f)`` the latter is ``2 (s + s**3 / 3 + s**5 / 5 + ...)``, here in the form ``f - s (f - R)``, in
    which the rounding of `s` matters less.
    """
    float_, integer, shift = of.float, of.integer, of.integer(of.mantissa)
    high, low = float_(of.ln2[0]), float_(of.ln2[1])
    first, rest = float_(of.log[0]), tuple(map(float_, of.log[1:]))
    zero, one, two, infinity = float_(0), float_(1), float_(2), float_(np.inf)
    smallest, up, powers = float_(np.finfo(of.float).smallest_normal), float_(2.0 ** (of.mantissa + 2)), of.mantissa + 2
    powers_up, no_powers = float_(powers), float_(0)
    root = integer(np.array(math.sqrt(0.5), of.float).view(of.integer))

    @inlined()
    def log(x: Any) -> Any:
        subnormal = x < smallest
        b = bits(x * up if subnormal else x)
        k = integer(integer(b - root) >> shift)
        f = number(integer(b - integer(k << shift))) - one
        k = float_(k) - (powers_up if subnormal else no_powers)
        s = f / (two + f)
        w = s * s
        series = first
        for coefficient in rest:
            series = muladd(series, w, coefficient)
        y = muladd(k, high, muladd(k, low, muladd(-s, muladd(-series, w, f), f)))
        y = x if x == infinity else y
        y = -infinity if x == zero else y
        return y if x >= zero else zero / zero * x  # NaN for NaN

    return log


def _log1p(of: Format) -> Any:
    """``log(1 + x)`` for ``x >= 0``, to 2 ulp: what ``1 + x`` loses is added to its logarithm, times its slope."""
    log, one = _log(of), of.float(1)

    @inlined()
    def log1p(x: Any) -> Any:
        u = one + x
        return log(u) + (x - (u - one)) / u

    return log1p


def _log1p_to_1(of: Format) -> Any:
    """``log(1 + x)`` for ``0 <= x <= 1``, to 1.2 ulp, without a division."""
    polynomial = _polynomial(of, of.log1p)

    @inlined()
    def log1p_to_1(x: Any) -> Any:
        return muladd(x * x, polynomial(x), x)

    return log1p_to_1


# tanh(x) = x + x^3 P(x^2) for |x| < SMALL_TANH, or in float64 x + x^3 P(x^2) / Q(x^2) with another P, to 1e-17: S. L.
# Moshier, Cephes Mathematical Library, tanhf.c and tanh.c.
SMALL_TANH = 0.625
P_SINGLE = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
Q = (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)


def _small_tanh(of: Format) -> Any:
    """``tanh(x)`` for ``|x| < SMALL_TANH``, to 1 ulp; in float32 without a division."""
    if of is SINGLE:
        polynomial = _polynomial(of, P_SINGLE)

        @inlined()
        def of_single(x: Any) -> Any:
            square = x * x
            return muladd(x, square * polynomial(square), x)

        return of_single
    p, q = _polynomial(of, P), _polynomial(of, Q)

    @inlined()
    def of_double(x: Any) -> Any:
        square = x * x
        return muladd(x, square * (p(square) / q(square)), x)

    return of_double


def _polynomial(of: Format, coefficients: tuple[float, ...]) -> Any:
    first, rest = of.float(coefficients[0]), tuple(map(of.float, coefficients[1:]))

    @inlined()
    def polynomial(x: Any) -> Any:
        p = first
        for coefficient in rest:
            p = muladd(p, x, coefficient)
        return p

    return polynomial


def _product_error(of: Format) -> Any:
    """``x y - p`` for the rounded product `p`; by Dekker's splitting, to a percent, where they are not fused."""
    if FUSES:

        @inlined()
        def fused(x: Any, y: Any, p: Any) -> Any:
            return muladd(x, y, -p)

        return fused
    integer = of.integer
    upper = integer(-(1 << (of.mantissa + 2) // 2))  # keeps the upper half of the digits

    @inlined()
    def product_error(x: Any, y: Any, p: Any) -> Any:
        x_high, y_high = number(integer(bits(x) & upper)), number(integer(bits(y) & upper))
        x_low, y_low = x - x_high, y - y_high
        return ((x_high * y_high - p) + (x_high * y_low + x_low * y_high)) + x_low * y_low

    return product_error


def _gauss(of: Format) -> Any:
    """``exp(-a**2 / 2)``, to 1.1 ulp, with what the square loses, which would cost 50 ulp."""
    exp_of_sum, product_error, minus_half = _exp_of_sum(of), _product_error(of), of.float(-0.5)

    @inlined()
    def gauss(a: Any) -> Any:
        square = a * a
        return exp_of_sum(minus_half * square, minus_half * product_error(a, a, square))

    return gauss


def _normal_tail(of: Format) -> Any:
    """``G(a)`` for ``0 <= a <= end``, where the tail of the normal distribution is ``exp(-a**2 / 2) G(a)``.

    See `plugrad.backends.normal`. It comes in two parts: ``a + K``, its reciprocal, the last step of the polynomial and
    the product are each kept with what their rounding loses, as far as multiplications are fused. Then the first part
    is off by half a unit in the last place, and both together by a quarter.
    """
    shift, minus_twice, one = of.float(normal.SHIFT), of.float(-2 * normal.SHIFT), of.float(1)
    first, *middle = map(of.float, of.tail.coefficients[:-1])
    rest, last = tuple(middle), of.float(of.tail.coefficients[-1])

    @inlined()
    def normal_tail(a: Any) -> Any:
        total = a + shift
        back = total - a
        lost = (a - (total - back)) + (shift - back)
        r = one / total
        r_low = r * (muladd(-total, r, one) - lost * r)
        u = muladd(minus_twice, r, one) + minus_twice * r_low
        p = first
        for coefficient in rest:
            p = muladd(p, u, coefficient)
        top = muladd(p, u, last)
        top_low = muladd(p, u, last - top)
        g = top * r
        return g, muladd(top, r, -g) + (top * r_low + top_low * r)

    return normal_tail


def _tail_end(of: Format) -> Any:
    """The end of what `normal_tail` is made for, in the format of a number."""
    end = of.float(of.tail.end)

    @inlined()
    def tail_end(like: Any) -> Any:
        return end

    return tail_end


def _largest(of: Format) -> Any:
    """The largest of an array; any number where there is a NaN, which then shows in what is computed with it.

    A loop for the maximum of floats is vectorised only where the compiler may take it that there is no NaN, one for
    integers always. Bits of numbers that are not negative are in the order of the numbers; where there are none, it is
    the number whose bits without the sign are the least.
    """
    integer = of.integer
    lowest, highest = of.integer(np.iinfo(of.integer).min), of.integer(np.iinfo(of.integer).max)
    zero = of.integer(0)

    @inlined()
    def largest(x: Any) -> Any:
        top, least = lowest, highest
        for j in range(x.size):
            b = bits(widen(x[j]))
            top = max(top, b)
            least = min(least, integer(b ^ lowest))
        return number(integer(top if top >= zero else least ^ lowest))

    return largest


exp_scaling = _for_each_format("exp_scaling", _exp_scaling)
scaled_exp = _for_each_format("scaled_exp", _scaled_exp)
product_rounding = _for_each_format("product_rounding", _product_rounding)
rounded_product = _for_each_format("rounded_product", _rounded_product)
exp = _for_each_format("exp", _exp)
log = _for_each_format("log", _log)
log1p = _for_each_format("log1p", _log1p)
log1p_to_1 = _for_each_format("log1p_to_1", _log1p_to_1)
small_tanh = _for_each_format("small_tanh", _small_tanh)
product_error = _for_each_format("product_error", _product_error)
gauss = _for_each_format("gauss", _gauss)
normal_tail = _for_each_format("normal_tail", _normal_tail)
tail_end = _for_each_format("tail_end", _tail_end)
largest = _for_each_format("largest", _largest)
