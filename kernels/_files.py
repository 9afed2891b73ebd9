"""Files of arrays by name: ``.npz`` and ``.safetensors``."""

import contextlib
import errno
import importlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

State = Mapping[str, np.ndarray[Any, Any]]

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def write(method: str, path: str | os.PathLike[str], state: State) -> None:
    """Write arrays by name to a file, which appears whole or not at all."""
    target = _checked_path(method, path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", suffix=".part", dir=target.parent) as folder:
        part = Path(folder) / target.name
        if target.suffix == ".npz":
            # The format does not know bfloat16.
            plain = {key: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for key, a in state.items()}
            np.savez(part, allow_pickle=False, **plain)
        else:
            part.write_bytes(_safetensors().save(state))
        part.replace(target)


def read(method: str, path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read the arrays of a file; `shapes` are those of the arrays that are to be read."""
    source = _checked_path(method, path)
    reader = partial(_read_npz, shapes=shapes) if source.suffix == ".npz" else _safetensors().load_file
    with source.open("rb"):
        pass  # raises the usual OSError if the file is missing or cannot be read
    try:
        state: dict[str, Any] = reader(source)
    except MemoryError:
        raise
    except Exception as error:  # zipfile, NumPy and safetensors each raise exceptions of their own
        raise ValueError(f"{method}: {path}: cannot be read as {source.suffix}: {error}") from error
    return state


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Begin the message of an error for the contents of a file with its path."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.args = (f"{path}: {error}",)
        raise


def _checked_path(method: str, path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if file.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{method}: path: expected a name in .npz or .safetensors, got {path}")
    return file


def _read_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read an ``.npz`` file; of an array with another name or shape than expected, which could be huge, the shape.

    Such an array is replaced by a broadcast zero of its shape, which takes no memory and which `load_state_dict`
    refuses.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("not a zip file")
    state: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as file:
        for member, key in zip(file.zip.namelist(), file.files, strict=True):
            if key in state:
                raise ValueError(f"it has several arrays named {key!r}")
            with file.zip.open(member) as opened:
                version = np.lib.format.read_magic(opened)
                shape, *_ = NPY_HEADERS[version](opened)
            fits = shape == shapes.get(key)
            state[key] = file[key] if fits else np.broadcast_to(np.float32(0), shape)
    return state


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "files in .safetensors need the package of that name; install it with: python -m pip install safetensors, "
            "or choose a name in .npz"
        ) from error
