"""The polynomials behind the activations, and numbers that are known."""

from typing import Any

import mpmath
import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends import normal


@pytest.mark.parametrize(("tail", "error"), [(normal.SINGLE, 2.7e-9), (normal.DOUBLE, 4.2e-18)])
def test_the_tail_of_the_normal_distribution(tail: normal.Tail, error: float) -> None:
    largest = 14.5 if tail is normal.SINGLE else tail.end
    with mpmath.workdps(60):
        for a in np.linspace(0, largest, 200):
            number, shift = mpmath.mpf(float(a)), mpmath.mpf(normal.SHIFT)
            exact = mpmath.exp(number**2 / 2) * mpmath.erfc(number / mpmath.sqrt(2)) / 2
            u = (number - shift) / (number + shift)
            got = mpmath.polyval([mpmath.mpf(c) for c in tail.coefficients], u) / (number + shift)
            rounding = sum(abs(c * u**k) for k, c in enumerate(reversed(tail.coefficients))) * mpmath.mpf(2) ** -53
            assert abs(got / exact - 1) <= error + (rounding if tail is normal.DOUBLE else 0)


def test_gelu_far_below_zero() -> None:
    with backends.use("numpy"):
        np.testing.assert_allclose(K.gelu(np.array([-30.0, -38.0])), [-1.4720141773e-196, -1.0964628e-314], rtol=1e-5)
        np.testing.assert_array_equal(K.gelu(np.array([-np.inf, -1e300, np.inf, np.nan])), [0, 0, np.inf, np.nan])
        np.testing.assert_array_equal(K.silu(np.array([-np.inf, -1e300, np.inf, np.nan])), [0, 0, np.inf, np.nan])
        assert K.silu(np.float32(-100)) == np.float32(-3.7200760e-42)


def test_what_a_product_loses_where_multiplications_are_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from plugrad.backends.numba import compiling, vector

    monkeypatch.setattr(vector, "FUSES", False)
    product_error = vector._product_error(vector.SINGLE)

    @compiling.compiled()
    def errors(x: Any, y: Any, out: Any) -> None:
        for j in range(x.size):
            out[j] = product_error(x[j], y[j], x[j] * y[j])

    x, y = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    out = np.empty_like(x)
    errors(x, y, out)
    np.testing.assert_allclose(out, x.astype(np.float64) * y - (x * y), rtol=0.02, atol=1e-11)
    assert out.any()
