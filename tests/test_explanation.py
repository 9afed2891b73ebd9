"""What `explain` says of the choice of a backend."""

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.tests.fakes import DeviceArray, counting_module


def test_explain() -> None:
    backends.register("mine", counting_module())
    with backends.use("mine"):
        told = backends.explain(K.relu, np.ones(2))
        assert told.backend == "mine"
        assert told.reasons["mine"] == "selected by use('mine')"
        assert told.reasons["numpy"] == "not among the backends of use('mine')"
        assert str(told).startswith("relu runs on mine (use('mine'))\n")
        told = backends.explain("softmax")
        assert told.backend is None
        assert "has no kernel 'softmax'" in told.reasons["mine"]
        assert "no backend: the call would fail" in str(told)
    told = backends.explain("softmax", [1.0])
    assert told.backend in ("numpy", "numba")
    assert told.reasons["cupy"] == "auto does not give it arrays of type builtins.list"
    assert told.reasons["mine"] == "auto does not consider it; select it by its name"
    with backends.use("mine,numpy"):
        assert backends.explain("relu").reasons["numpy"] == "mine comes first"
    with backends.use("cupy,numpy"):
        told = backends.explain("relu", DeviceArray())
        assert told.backend is None
        assert "expected an array in host memory" in told.reasons["numpy"]
    with pytest.raises(ValueError, match="explain: kernel: expected one of affine, .*; got 'sofmax'"):
        backends.explain("sofmax")
