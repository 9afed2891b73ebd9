"""Why the cupy backend cannot run, and that it is not touched before it is selected."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

module = importlib.import_module("plugrad.backends.cupy")


class CudaError(RuntimeError):
    """The error that CuPy raises for a status other than success."""


def raising(error: Exception) -> Any:
    """A function that fails."""

    def fail(*arguments: Any) -> None:
        raise error

    return fail


def library(**given: Any) -> Any:
    """A CuPy on a machine where all is well, but for what is given."""
    runtime = {"getDeviceCount": lambda: 1, "driverGetVersion": lambda: 13000, "runtimeGetVersion": lambda: 13020}
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(CUDARuntimeError=CudaError, **{k: given.pop(k, v) for k, v in runtime.items()}),
        nvrtc=SimpleNamespace(getVersion=given.pop("nvrtc", lambda: (13, 0))),
        **({} if given.pop("without_cublas", False) else {"cublas": object()}),
    )
    return SimpleNamespace(__version__="14.2.0", cuda=cuda)


def probed(monkeypatch: pytest.MonkeyPatch, cupy: Any, packages: tuple[str, ...] = ("cupy-cuda13x 14.2.0",)) -> Any:
    """The answer of the probe for a CuPy."""
    monkeypatch.setattr(module, "find_spec", lambda name: cupy)
    monkeypatch.setattr(module, "installed_packages", lambda: list(packages))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return module.probe()


def test_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probed(monkeypatch, library()) is None


def test_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = probed(monkeypatch, None)
    assert reason.startswith("cupy is not installed; install it with: python -m pip install 'plugrad[cuda13]'")


def test_two_packages_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = probed(monkeypatch, library(), ("cupy-cuda12x 13.6.0", "cupy-cuda13x 14.2.0"))
    assert "cupy-cuda12x 13.6.0, cupy-cuda13x 14.2.0; uninstall all but one" in reason


NO_LIBRARY = ImportError("libnvrtc.so.13: cannot open shared object file\nand much more")


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        (
            library(getDeviceCount=raising(CudaError("status 35")), driverGetVersion=lambda: 0),
            "cupy 14.2.0 is installed, but no NVIDIA driver was found",
        ),
        (
            library(getDeviceCount=raising(CudaError("status 35")), driverGetVersion=lambda: 12040),
            "the NVIDIA driver is too old: it supports CUDA 12.4, and this cupy needs CUDA 13.0 or later; update",
        ),
        (
            library(getDeviceCount=raising(CudaError("cudaErrorNoDevice: no CUDA-capable device"))),
            "cupy 14.2.0 is installed, but no GPU was found: cudaErrorNoDevice",
        ),
        (library(getDeviceCount=lambda: 0), "cupy 14.2.0 is installed, but no GPU was found"),
        (
            library(nvrtc=raising(NO_LIBRARY)),
            "NVRTC, CUDA's run-time compiler, was not found (libnvrtc.so.13: cannot open shared object file); "
            "install it with: python -m pip install 'plugrad[cuda13]'",
        ),
        (library(without_cublas=True), "cuBLAS, CUDA's matrix products, was not found"),
    ],
)
def test_what_is_missing_is_reason(monkeypatch: pytest.MonkeyPatch, cupy: Any, reason: str) -> None:
    assert reason in probed(monkeypatch, cupy)


def test_a_cupy_that_fails_to_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise OSError('libcuda.so.1 has a wrong size')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(module, "installed_packages", lambda: ["cupy-cuda13x 14.2.0"])
    reason = module.probe()
    assert reason == "cupy-cuda13x 14.2.0 is installed, but fails to import: libcuda.so.1 has a wrong size"


def test_importing_plugrad_and_calling_a_kernel_leave_cupy_alone(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise AssertionError('imported')")
    code = (
        "import sys, plugrad.backends as backends, plugrad.kernels as K; K.relu([1.0]); backends.current(); "
        "print('cupy' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "PLUGRAD_BACKEND": "auto"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
    assert not (tmp_path / ".cupy").exists()


def test_the_table_of_backends_tells_it(tmp_path: Path) -> None:
    stand_in = Path(__file__).parent / "cuda_on_cpu" / "stand_in"
    environment = {**os.environ, "PYTHONPATH": str(stand_in), "CUPY_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "plugrad.backends", "cupy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("cupy"))
    assert row.split()[1:3] == ["yes", "14.2.0"]
    assert "a device on the CPU" in row
