"""Turns: one thread at a time does some work, and the call of another is refused at once."""

import threading
from collections.abc import Callable
from typing import Any


class BusyError(Exception):
    """Another call has the turn: of `thread`."""

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread


class _Holder:
    """A call that has the turn."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.current_thread()

    def is_alive(self) -> bool:
        """Whether the call goes on: not in a child that another thread has forked."""
        try:
            return self.thread.is_alive()
        except (AssertionError, RuntimeError):  # in such a child, of a thread that `threading` did not start
            return False


class Turn:
    """The turn to do something. A lock that is waited for could be left taken by Ctrl-C, or by a fork in a child."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        self._holders: dict[str, _Holder] = {}  # the one that there is, under "now"

    def take(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call.

        Raises
        ------
        BusyError
            If another call has the turn.
        """
        own, holders = _Holder(), self._holders
        try:
            holder = holders.setdefault("now", own)  # one operation: an interrupt finds the turn taken or not
            if holder is not own:
                if holder.is_alive():
                    raise BusyError(holder.thread)
                holders["now"] = own  # in a forked child, where that thread does not exist
            return call(*arguments)
        finally:
            # Python handles no Ctrl-C between these steps, none of which is a call.
            if "now" in holders and holders["now"] is own:
                del holders["now"]
