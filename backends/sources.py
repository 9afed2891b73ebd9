"""The files of this package, which may lie in a folder, in a zip archive, or in a frozen program."""

import hashlib
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path


def named(folder: Traversable, suffix: str) -> list[Traversable]:
    """The files of a folder whose names end with `suffix`, in the order of their names."""
    return sorted((file for file in folder.iterdir() if file.name.endswith(suffix)), key=lambda file: file.name)


def place() -> Path:
    """The file in which this source lies: itself, or the archive or program that it is part of."""
    if getattr(sys, "frozen", False):
        return Path(sys.executable)
    path = Path(__file__)
    while not path.exists():
        path = path.parent
    return path


def stamp(package: str) -> bytes:
    """A hash that changes with the sources of a package. A frozen program has none: there that of the program's age."""
    sources = [] if getattr(sys, "frozen", False) else named(files(package), ".py")
    if not sources:
        about = place().stat()
        return repr((about.st_size, about.st_mtime_ns)).encode()
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).digest()
