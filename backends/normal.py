"""The tail of the normal distribution, as a polynomial that all backends share.

For ``a >= 0`` the tail is ``Phi(-a) = exp(-a^2 / 2) G(a)``, and ``(a + K) G(a)`` is a polynomial in
``u = (a - K) / (a + K)``. So mapped, one polynomial covers all ``a`` to the same relative accuracy, without branches
(M. M. Shepherd and J. G. Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < infinity",
Mathematics of Computation 36, 1981). The coefficients interpolate at Chebyshev's points, in 40 digits.
"""

import math
from typing import NamedTuple

INVERSE_ROOT = 1 / math.sqrt(2 * math.pi)  # of the density, exp(-x^2 / 2) / sqrt(2 pi)


SHIFT = 4.0  # K: twice K is a power of 2, by which u = 1 - 2K / (a + K) loses nothing


class Tail(NamedTuple):
    """A polynomial for `G`.

    Attributes
    ----------
    end : float
        An ``a`` so large that ``exp(-a^2 / 2)`` is 0.
    coefficients : tuple of float
        That of the highest power first.
    """

    end: float
    coefficients: tuple[float, ...]


# For float32. Off by at most 2.7e-9, a twentieth of a unit in the last place.
SINGLE = Tail(
    end=16.0,
    coefficients=(
        -5.2645649784e-5,
        -0.00023462176113,
        0.000169355458277,
        0.00164629561186,
        -0.0034880755301,
        -0.00754526816419,
        0.0603972939059,
        -0.186521307461,
        0.387137382301,
        -0.607896657764,
        0.755285130489,
    ),
)

# For float64. Off by at most 4.2e-18, a twentieth of a unit in the last place.
DOUBLE = Tail(
    end=39.0,
    coefficients=(
        -7.24547937033790985e-10,
        -2.5168191619926508e-9,
        1.91813946836078413e-9,
        1.96040493990377268e-8,
        1.32707869739611057e-8,
        -8.53898597427761187e-8,
        -1.54946042464582715e-7,
        2.71793439788748867e-7,
        1.02153742618240522e-6,
        -6.29693516039342578e-7,
        -5.92016487909155337e-6,
        7.16666373663619845e-7,
        0.0000351446834211625441,
        -1.90825875793517962e-6,
        -0.000231094934664636102,
        0.000133344312488674937,
        0.00163081845753126692,
        -0.00347969236740357266,
        -0.00754018896672323833,
        0.060396574890937138,
        -0.186521857959657347,
        0.387137400742214529,
        -0.607896641971892107,
        0.755285130415751493,
    ),
)
