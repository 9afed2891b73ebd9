"""The backends by name: which there are, whether they can run here, and how they are registered."""

import copy
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends import BackendUnavailableError, host, registry
from plugrad.tests.fakes import counting_module


def test_available_tells_true_or_why_not() -> None:
    output = backends.available()
    assert list(output)[:3] == ["numpy", "numba", "cupy"]
    assert output["numpy"] is True
    for reason in (reason for reason in output.values() if reason is not True):
        assert isinstance(reason, str)
        assert len(reason) > 20
        assert not reason  # so that `if available()[name]` means what it says
    with pytest.raises(ValueError, match="available: unknown backend 'nubma'"):
        backends.available("nubma")


def test_a_backend_is_its_name() -> None:
    numpy = backends.get("numpy")
    assert numpy == "numpy"
    assert numpy != "numba"
    assert {numpy: 1}["numpy"] == 1
    with backends.use(numpy) as selected:
        assert selected is numpy
    assert (str(numpy), repr(numpy), numpy.name) == ("numpy", "<plugrad backend 'numpy'>", "numpy")


def test_register() -> None:
    mine = counting_module()
    backends.register("mine", mine)
    assert backends.available()["mine"] is True
    with pytest.raises(ValueError, match="register: name: 'mine' is taken; choose another, or pass replace=True"):
        backends.register("mine", counting_module())
    with pytest.raises(ValueError, match="'numpy' is taken"):
        backends.register("numpy", counting_module())
    other = counting_module()
    backends.register("mine", other, replace=True)
    with backends.use("mine"):
        K.relu([1.0])
    assert (len(mine.calls), len(other.calls)) == (0, 1)
    for wrong in ("", "auto", "a,b", "a b"):
        with pytest.raises(ValueError, match="register: name: expected letters, digits"):
            backends.register(wrong, mine)
    with pytest.raises(TypeError, match="register: name: expected a string, got int"):
        backends.register(1, mine)  # type: ignore[arg-type]


def test_a_kernel_that_a_backend_lacks_is_an_error_unless_another_stands_in() -> None:
    backends.register("mine", counting_module())
    with backends.use("mine"), pytest.raises(NotImplementedError, match="backend 'mine' has no kernel 'softmax'"):
        K.softmax([1.0])
    backends.register("helped", counting_module(STAND_INS={"softmax": "numpy"}))
    with backends.use("helped"):
        np.testing.assert_array_equal(K.softmax([1.0]), [1.0])
        output = backends.explain("softmax")
        assert output.backend == "numpy"
        assert output.reasons["numpy"] == "stands in for helped, which has no kernel 'softmax'"
        with pytest.raises(NotImplementedError, match="backend 'helped' has no kernel 'sigmoid'"):
            K.sigmoid([1.0])


def test_a_stand_in_that_cannot_help_is_named() -> None:
    backends.register("off", counting_module(probe=lambda: "it is off"))
    backends.register("empty", types.SimpleNamespace())
    backends.register("circle", types.SimpleNamespace(STAND_INS={"relu": "circle"}))
    for name, why in (("off", "cannot: backend 'off' cannot run here: it is off"), ("empty", "has none either")):
        backends.register(f"by-{name}", types.SimpleNamespace(STAND_INS={"relu": name}))
        output = f"backend 'by-{name}' has no kernel 'relu', and '{name}', which stands in for it, {why}"
        with backends.use(f"by-{name}"):
            with pytest.raises(NotImplementedError, match=output):
                K.relu([1.0])
            assert backends.explain("relu").reasons[f"by-{name}"].startswith(output)
    with backends.use("circle"), pytest.raises(NotImplementedError, match="has none either"):
        K.relu([1.0])


def test_a_module_with_malformed_attributes_is_named_and_breaks_nobody_else() -> None:
    backends.register("malformed", counting_module(OPTIONS=3))
    assert "backend 'malformed' declares OPTIONS or another attribute wrongly" in backends.available()["malformed"]
    assert backends.available()["numpy"] is True


def test_a_failing_probe_names_the_backend() -> None:
    backends.register("broken", counting_module(probe=lambda: 1 / 0))
    backends.register("absent", counting_module(probe=lambda: "no licence was found"))
    backends.register("true", counting_module(probe=lambda: True))
    assert backends.available()["true"] == "backend 'true' is malformed: its probe returned True, not a reason or None"
    output = backends.available()
    assert output["broken"] == "backend 'broken' failed in its probe: ZeroDivisionError: division by zero"
    assert output["absent"] == "backend 'absent' cannot run here: no licence was found"
    with pytest.raises(BackendUnavailableError, match="no licence was found"), backends.use("absent"):
        pass
    output = "none of these backends can run here: backend 'absent' cannot .* was found; backend 'broken' failed"
    with pytest.raises(BackendUnavailableError, match=output), backends.use("absent,broken"):
        pass
    with backends.use("absent,numpy") as backend:
        assert backend == "numpy"
    assert K.relu([1.0])[0] == 1


def test_a_backend_can_be_sent_to_another_process() -> None:
    backend = backends.get("numpy")
    assert pickle.loads(pickle.dumps(backend)) is backend
    assert copy.deepcopy({"backend": backend})["backend"] is backend


@pytest.mark.parametrize("error", [MemoryError, RecursionError, KeyboardInterrupt])
def test_errors_that_are_unrelated_to_a_backend_come_through(error: type[BaseException]) -> None:
    def probe() -> None:
        raise error

    backends.register("unlucky", counting_module(probe=probe))
    with pytest.raises(error):
        backends.get("unlucky")


def test_system_exit_comes_through_a_built_in_backend_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe() -> None:
        raise SystemExit

    backends.register("exiting", counting_module(probe=probe))
    assert backends.available()["exiting"] == "backend 'exiting' failed in its probe: SystemExit: "
    monkeypatch.setattr(backends.get("numpy").module, "probe", probe)
    monkeypatch.delitem(registry._loaded, "numpy")
    with pytest.raises(SystemExit):
        backends.get("numpy")


def test_a_module_gets_the_default_hooks_that_it_lacks() -> None:
    backends.register("mine", counting_module(OPTIONS={"fast": True}, ARRAYS="boxes", empty=None))
    mine = backends.get("mine")
    assert (mine.arrays, mine.native, mine.options) == ("boxes", None, {"check": False, "fast": True})
    assert mine.empty is host.empty
    assert (mine.describe(), mine.stand_ins) == ({}, {})


# The command


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plugrad.backends", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_what_runs_here_and_why_not() -> None:
    done = command(PLUGRAD_BACKEND="numpy", PLUGRAD_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["numpy"][:4] == ["numpy", "yes", np.__version__, "1,"]
    assert rows["cupy"][1] in ("yes", "no")
    if rows["cupy"][1] == "no":
        assert "backend 'cupy' cannot run here: cupy " in done.stdout
    assert done.stdout.splitlines()[-1] == "NumPy arrays are computed by numpy (PLUGRAD_BACKEND=numpy)"
    assert "unknown backend 'nubma'; did you mean 'numba'?" in command("nubma").stderr
    done = command(PLUGRAD_BACKEND="nubma")
    assert done.returncode == 1
    assert "python -m plugrad.backends: PLUGRAD_BACKEND=nubma: unknown backend" in done.stderr
    assert "numpy" in done.stdout
