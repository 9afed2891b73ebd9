"""Types of command-line arguments that the commands share: `argparse` names the argument in the error."""

import argparse
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from plugrad.backends import BackendUnavailableError, get
from plugrad.bench.cases import DTYPES, as_dtype

T = TypeVar("T")


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Return the type of an argument that is one of these names."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}; got {text!r}")
        return text

    return name


def comma_separated(item: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return the type of a list: items of this type with commas between them, each kept once."""
    return lambda text: list(dict.fromkeys(map(item, filter(None, text.split(",")))))


def backend(text: str) -> str:
    """The name of a backend that can run here."""
    try:
        get(text)
    except (BackendUnavailableError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("get: ")) from error
    return text


def network(text: str) -> str:
    """The numbers of rows, inputs, hidden neurons and classes, such as ``32-64-100-10``."""
    widths = text.split("-")
    if len(widths) < 3 or not all(width.isdecimal() and int(width) > 0 for width in widths):
        raise argparse.ArgumentTypeError(f"expected rows-inputs-hidden-classes, such as 32-64-100-10, got {text!r}")
    return text


def dtype(text: str) -> str:
    """The name of a dtype."""
    try:
        as_dtype(one_of(DTYPES)(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("dtype: ")) from error
    return text


def rounds(text: str) -> int:
    """The number of processes for each side."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return int(text)


def seconds(text: str) -> float:
    """The time spent in each process."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
    return float(text)


def share(text: str) -> float:
    """A share such as ``10%`` or ``0.1``."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not value >= 0 or (value > 1 and not text.endswith("%")):
        raise argparse.ArgumentTypeError(f"expected a share such as 10% or 0.1, got {text}")
    return value


def writable_file(text: str) -> Path:
    """The path of a file that can be written: found out before hours are spent on its content."""
    path = Path(text)
    folder = path.resolve().parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder for {path}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, but {path} is a folder")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def writable_folder(text: str) -> Path:
    """The path of a folder that exists or can be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, but {path} is a file")
    return path
