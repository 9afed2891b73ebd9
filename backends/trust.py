"""Protection against code that another user placed on disk: it is run only if no other user could have placed it."""

import functools
import os
import stat
from pathlib import Path

from plugrad.backends import sources


@functools.cache
def untrusted_part(folder: str) -> str | None:
    """The first component of the path to `folder` that another user could modify or replace, as a sentence, or None.

    `folder` contains no links (`os.path.realpath`). The path to plugrad's own source is not checked: a user who can
    change that source is trusted.
    """
    path, package = Path(folder), Path(__file__).resolve().parents[1]
    parents = [step for step in path.parents if package not in (step, *step.parents) and step not in package.parents]
    found = [untrusted(path), *(untrusted(step, is_parent=True) for step in parents)]
    return next(filter(None, found), None)


def untrusted(path: str | Path, is_parent: bool = False) -> str | None:
    """Why a file or directory is not exclusively ours, or None.

    Of a parent of the path that matters, only the entry on that path must be safe from replacement.
    """
    if not hasattr(os, "getuid"):
        return None
    about = os.lstat(path)
    if about.st_uid not in (0, os.getuid(), os.stat(sources.place()).st_uid):
        return f"{path} belongs to another user"
    if is_parent and about.st_mode & stat.S_ISVTX:
        return None  # a directory for temporary files: only the owner of an entry can replace it
    if about.st_mode & stat.S_IWOTH or (about.st_mode & stat.S_IWGRP and about.st_gid != about.st_uid):
        return f"{path} can be written to by other users"
    return None
