"""Signals that come while something is done which must not be left half done."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Let Python's handlers of signals, that of Ctrl-C among them, wait until the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in its main thread only
        return
    came: list[Any] = []
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers: dict[int, Any] = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        with contextlib.ExitStack() as stack:  # each is called, even if another raises an error
            for number, frame in reversed(came):
                stack.callback(handlers[number], number, frame)
            for number, handler in handlers.items():
                signal.signal(number, handler)
