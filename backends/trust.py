"""Whether another user could have put a file where it is: code that is kept on disk is run only if none could."""

import functools
import os
import stat
from pathlib import Path


@functools.cache
def stranger_on_the_way(folder: str) -> str | None:
    """What another user could change, or put another in the place of, on the way to a folder; None if there is nothing.

    The folder is given without links (`os.path.realpath`). Whoever can change plugrad's source is trusted with what
    comes of it: the way to that is not looked at.
    """
    path, package = Path(folder), Path(__file__).resolve().parents[1]
    around = [step for step in path.parents if package not in (step, *step.parents) and step not in package.parents]
    found = [stranger_at(path), *(stranger_at(step, is_passed=True) for step in around)]
    return next(filter(None, found), None)


def stranger_at(path: str | Path, is_passed: bool = False) -> str | None:
    """Why a file, or a folder, which may be one that is passed on the way to it, is not this user's alone."""
    if not hasattr(os, "getuid"):
        return None
    about = os.lstat(path)
    if about.st_uid not in (0, os.getuid(), os.stat(__file__).st_uid):
        return f"{path} belongs to another user"
    if is_passed and about.st_mode & stat.S_ISVTX:
        return None  # a folder for temporary files: what is in it, only its owner can move
    if about.st_mode & stat.S_IWOTH or (about.st_mode & stat.S_IWGRP and about.st_gid != about.st_uid):
        return f"{path} can be written to by other users"
    return None
