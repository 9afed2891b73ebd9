"""The table of `docs/arrays.md`: what becomes of the arrays of each library on each backend, as it is observed.

``python -m plugrad.tests.arrays`` makes a call for each cell and prints the table. It looks at the addresses of
the arrays that the caller has, and of those that the function of the backend gets.
"""

import contextlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from plugrad import backends, kernels as K

DTYPES = ("float16", "bfloat16", "float32", "float64", "int32")
STAND_IN = Path(__file__).parent / "cuda_on_cpu" / "stand_in"
ROWS, CLASSES = 3, 5


def _numbers(dtype: str) -> Any:
    return np.arange(-7, 8).reshape(ROWS, CLASSES).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _tensor(dtype: str) -> Any:
    torch = importlib.import_module("torch")
    return torch.arange(-7, 8).reshape(ROWS, CLASSES).to(getattr(torch, dtype))


def _jax(dtype: str) -> Any:
    found = importlib.import_module("jax.numpy").asarray(_numbers(dtype))
    return found if found.dtype == dtype else None


def _cupy(dtype: str) -> Any:
    return importlib.import_module("cupy").asarray(_numbers(dtype))


def _sparse(dtype: str) -> Any:
    return None if "16" in dtype else importlib.import_module("scipy.sparse").csr_array(_numbers(dtype))


MAKERS: dict[str, Callable[[str], Any]] = {
    "NumPy array": _numbers,
    "PyTorch tensor": _tensor,
    "JAX array": _jax,
    "JAX array, x64 mode": _jax,
    "masked array": lambda dtype: np.ma.masked_less(_numbers(dtype), 0),
    "SciPy sparse array": _sparse,
    "Dask array": lambda dtype: importlib.import_module("dask.array").from_array(_numbers(dtype)),
}
MAKERS_OF_CUPY: dict[str, Callable[[str], Any]] = {
    "CuPy array": _cupy,
    "NumPy array": _numbers,
    "PyTorch tensor": _tensor,
    "JAX array": _jax,
}


def address_of(x: Any) -> int:
    """The address of the first byte of an array of any library."""
    if hasattr(x, "data_ptr"):
        return int(x.data_ptr())
    if hasattr(x, "unsafe_buffer_pointer"):
        return int(x.unsafe_buffer_pointer())
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


@contextlib.contextmanager
def seen(backend: str, kernel: str) -> Iterator[list[tuple[Any, ...]]]:
    """The arguments that the function of a backend gets in the calls of a block."""
    functions, calls = backends.get(backend).functions, list[tuple[Any, ...]]()
    function = functions[kernel]

    def watched(*arguments: Any) -> None:
        calls.append(arguments)
        function(*arguments)

    functions[kernel] = watched
    try:
        yield calls
    finally:
        functions[kernel] = function


def cell(backend: str, array: Any) -> str:
    """Whether `relu` copies its argument and its result, or the error that it raises."""
    if array is None:
        return ""
    try:
        with backends.use(backend), seen(backend, "relu") as calls:
            result = K.relu(array)
    except TypeError as error:
        call = re.search(r"\bcall (?:its )?([\w.]+(?:\([^)]*\))?)", str(error))
        if call is None:
            raise
        return f"TypeError: `{call[1]}`"
    ((x, y),) = calls
    if type(result) is not type(array):
        raise AssertionError(f"expected a result of {type(array)}, got {type(result)}")
    is_read, is_shared = address_of(x) == address_of(array), address_of(y) == address_of(result)
    copies = [*["argument copied"] * (not is_read), *["result copied"] * (not is_shared)]
    given, found = (str(x.dtype).removeprefix("torch.") for x in (array, result))
    return f"{' and '.join(copies) or 'no copy'}{'' if given == found else f', to {found}'}"


def rows(backend: str, makers: dict[str, Callable[[str], Any]]) -> Iterator[str]:
    """The rows of the table for one backend."""
    for kind, make in makers.items():
        with contextlib.ExitStack() as stack:
            if "x64" in kind:
                stack.enter_context(importlib.import_module("jax").enable_x64(True))
            cells = [cell(backend, make(dtype)) for dtype in DTYPES]
        yield f"| {kind} | {backend} | {' | '.join(cells)} |"


def table() -> str:
    """The table; the rows of cupy come from the emulated device, in a process of its own."""
    head = [f"| array | backend | {' | '.join(DTYPES)} |", "|---" * (len(DTYPES) + 2) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        variables = {**os.environ, "PYTHONPATH": str(STAND_IN), "CUPY_CACHE_DIR": folder}
        command = [sys.executable, "-m", "plugrad.tests.arrays", "cupy"]
        on_device = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    return "\n".join([*head, *rows("numpy", MAKERS), *rows("numba", MAKERS), on_device.strip()])


if __name__ == "__main__":
    print("\n".join(rows("cupy", MAKERS_OF_CUPY)) if "cupy" in sys.argv else table())
