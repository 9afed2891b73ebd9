"""What must not be left half done is done in a thread of its own, where nothing breaks it off."""

import functools
import os
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")
_working: dict[threading.Thread, threading.Event] = {}


def done_apart(function: Callable[[], _Result]) -> Callable[[], _Result]:
    """Have a function done once in a process, in a thread of its own; it must raise nothing.

    Python handles signals in its main thread, so that what their handlers raise, Ctrl-C among it, ends the waiting and
    not the work; nor does an exception that another thread sends to the caller, or too little of the caller's stack.
    Who calls again waits for the rest.
    """
    results: list[_Result] = []
    begun: list[threading.Event] = []

    def work(done: threading.Event) -> None:
        _working[threading.current_thread()] = done
        try:
            results.append(function())
        finally:
            done.set()
            del _working[threading.current_thread()]

    @functools.wraps(function)
    def call() -> _Result:
        if not results and not begun:
            done = threading.Event()
            thread = threading.Thread(target=work, args=(done,), name=f"plugrad {function.__name__}")
            try:
                thread.start()  # two callers may both start one: imports wait for each other
            except RuntimeError:  # there can be no more threads, or the interpreter is being shut down
                work(done)
            begun.append(done)
        if not results:
            begun[0].wait()  # not the thread's end: its `join`, once interrupted, takes it to have ended
        return results[0]

    return call


def _wait() -> None:
    """Let a fork wait for what is being done: in the child it would stay half done."""
    for thread, done in list(_working.items()):
        if thread is not threading.current_thread():
            done.wait()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait)
