"""The memory that a kernel may work in, its bound, and the thread that it belongs to."""

import operator
import re
import threading
from collections.abc import Callable, Hashable
from typing import Any

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_TEXT = re.compile(r"\s*(\d+)(?:\.(\d+))?\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def bytes_of(what: str, size: Any) -> int:
    """A size in bytes, given as an integer or as text such as ``"64MB"``; messages call it `what`."""
    if isinstance(size, str):
        found = _TEXT.fullmatch(size)
        if found is None:
            raise ValueError(f"{what}: expected a size such as 64MB or 1GiB, got {size!r}")
        whole, decimals, unit = found[1], found[2] or "", (found[3] or "").lower()
        count = int(whole + decimals) * UNITS[unit] // int("1" + "0" * len(decimals))
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

    A workspace belongs to the first thread that uses it, as long as that thread lives: a call with it from another
    thread is a `ValueError`, since the two would overwrite each other's work. The threads of a pool need one each, for
    instance in a `threading.local`.

    Parameters
    ----------
    size : int or str
        The upper bound: bytes, or text such as ``"64MB"`` (of 1000 x 1000 bytes) or ``"1GiB"`` (of 1024 x 1024 x
        1024). Memory is allocated when a kernel first needs it, and only as much as it needs.

    Attributes
    ----------
    size : int
        The bound in bytes.

    Raises
    ------
    TypeError, ValueError
        If `size` is not a size.

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

    def __reduce__(self) -> tuple[type["Workspace"], tuple[int]]:
        """Make copies and pickles workspaces of their own: threads that shared memory would overwrite each other's."""
        return Workspace, (self.size,)

    def claim(self, what: str, advice: str = "make one for each thread") -> None:
        """Make it this thread's, or raise an error if it is another's; messages call it `what`, and end in advice."""
        thread = threading.current_thread()
        with self._claiming:
            owner = self._owner
            if owner is thread:
                return
            if owner is not None and owner.is_alive():
                raise ValueError(
                    f"{what}: expected a Workspace of this thread, {thread.name!r}, got one that thread "
                    f"{owner.name!r} uses; {advice}"
                )
            self._owner = thread

    def memory(self, place: Hashable, count: int, empty: Callable[[int], Any]) -> Any:
        """`count` bytes or more at a place, such as a device: the memory used there before, or that of `empty`."""
        found = self._memory.get(place)
        if found is None or len(found) < count:
            self._memory[place] = None  # freed first, so that both never exist at once
            found = self._memory[place] = empty(count)
        return found
