"""The memory that a kernel may work in: how much, and who uses it."""

import operator
import re
import threading
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import Any

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def bytes_of(what: str, size: Any) -> int:
    """A size in bytes, given as an integer or as text, such as ``"64MB"``; `what` it is called in messages."""
    if isinstance(size, str):
        found = _TEXT.fullmatch(size)
        if found is None:
            raise ValueError(f"{what}: expected a size such as 64MB or 1GiB, got {size!r}")
        count = int(Fraction(found[1]) * UNITS[(found[2] or "").lower()])
    else:
        number: Any = None if isinstance(size, bool) else size
        try:
            count = operator.index(number)
        except TypeError:
            given = type(size).__qualname__ if hasattr(size, "shape") else repr(size)
            raise TypeError(
                f"{what}: expected bytes as an integer, text such as '64MB', or a Workspace, got {given}"
            ) from None
    if count < 1:
        raise ValueError(f"{what}: expected at least 1 byte, got {size!r}")
    return count


class Workspace:
    """Memory for kernels to work in, kept from call to call, so that a training loop allocates nothing for it.

    It belongs to the thread that uses it first, as long as that lives: a kernel that another thread calls with it is
    refused, since one would write over the work of the other. Threads of a pool need one each, as in a
    `threading.local`.

    Parameters
    ----------
    size : int or str
        How much it may be at the most: bytes, or text such as ``"64MB"`` (of 1000 x 1000 bytes) or ``"1GiB"`` (of
        1024 x 1024 x 1024). Memory is taken when a kernel first needs it, and then only as much.

    Attributes
    ----------
    size : int
        The bound in bytes.

    Raises
    ------
    TypeError, ValueError
        If `size` is no size.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> workspace = K.Workspace("64MB")
    >>> loss = K.linear_cross_entropy([[1.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], None, [1], max_workspace=workspace)
    >>> round(float(loss), 6), workspace
    (0.693147, Workspace(64000000))
    """

    def __init__(self, size: int | str) -> None:
        self.size = bytes_of("Workspace: size", size)
        self._memory: dict[Hashable, Any] = {}
        self._owner: threading.Thread | None = None
        self._claiming = threading.Lock()

    def __repr__(self) -> str:
        return f"Workspace({self.size})"

    def claim(self, what: str) -> None:
        """Make it this thread's; an error where it is another's. `what` it is called in messages."""
        thread = threading.current_thread()
        with self._claiming:
            owner = self._owner
            if owner is thread:
                return
            if owner is not None and owner.is_alive():
                raise ValueError(
                    f"{what}: expected a Workspace of this thread, {thread.name!r}, got one that thread "
                    f"{owner.name!r} uses; make one for each thread"
                )
            self._owner = thread

    def memory(self, place: Hashable, count: int, empty: Callable[[int], Any]) -> Any:
        """So many bytes at a place, such as a device: what was used there before, or what `empty` makes."""
        found = self._memory.get(place)
        if found is None or len(found) < count:
            self._memory[place] = None  # given back first, so that both never exist at once
            found = self._memory[place] = empty(count)
        return found
