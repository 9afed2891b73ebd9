"""The explanation of the choice of a backend."""

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.tests.fakes import DeviceArray, counting_module


def test_explain() -> None:
    backends.register("mine", counting_module())
    with backends.use("mine"):
        explanation = backends.explain(K.relu, np.ones(2))
        assert explanation.backend == "mine"
        assert explanation.reasons["mine"] == "selected by use('mine')"
        assert explanation.reasons["numpy"] == "not among the backends of use('mine')"
        assert str(explanation).startswith("relu runs on mine (use('mine'))\n")
        explanation = backends.explain("softmax")
        assert explanation.backend is None
        assert "has no kernel 'softmax'" in explanation.reasons["mine"]
        assert "no backend: the call would fail" in str(explanation)
    explanation = backends.explain("softmax", [1.0])
    assert explanation.backend in ("numpy", "numba")
    assert explanation.reasons["cupy"] == "auto does not give it arrays of type builtins.list"
    assert explanation.reasons["mine"] == "auto does not consider it; select it by its name"
    with backends.use("mine,numpy"):
        assert backends.explain("relu").reasons["numpy"] == "mine comes first"
    with backends.use("cupy,numpy"):
        explanation = backends.explain("relu", DeviceArray())
        assert explanation.backend is None
        assert "expected an array in host memory" in explanation.reasons["numpy"]
    with pytest.raises(ValueError, match="explain: kernel: expected one of affine, .*; got 'sofmax'"):
        backends.explain("sofmax")
