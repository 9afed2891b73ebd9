"""Work that one thread does at a time."""

import _thread
import os
import threading

import pytest

from plugrad.kernels._turn import BusyError, Turn
from plugrad.tests.processes import PATIENCE, forked


def test_another_thread_is_told_who_has_the_turn() -> None:
    turn, has_begun, may_end = Turn(), threading.Event(), threading.Event()
    thread = threading.Thread(target=turn.take, args=(lambda: has_begun.set() or may_end.wait(PATIENCE),))
    thread.start()
    assert has_begun.wait(PATIENCE)
    with pytest.raises(BusyError) as busy:
        turn.take(list)
    assert busy.value.thread is thread
    may_end.set()
    thread.join()
    assert turn.take(list, "ab") == ["a", "b"]


def test_a_call_within_the_turn_is_refused() -> None:
    turn = Turn()
    with pytest.raises(BusyError) as busy:
        turn.take(turn.take, list)
    assert busy.value.thread is threading.current_thread()
    assert turn.take(list) == []


def test_an_exception_gives_the_turn_back() -> None:
    turn = Turn()
    with pytest.raises(ZeroDivisionError):
        turn.take(lambda: 1 / 0)
    assert turn.take(list) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("start", ["threading", "_thread"])
def test_in_a_forked_child_a_thread_that_does_not_exist_has_no_turn(start: str) -> None:
    turn, has_begun, may_end = Turn(), threading.Event(), threading.Event()

    def work() -> None:
        turn.take(lambda: has_begun.set() or may_end.wait(PATIENCE))

    if start == "threading":
        threading.Thread(target=work).start()
    else:
        _thread.start_new_thread(work, ())
    assert has_begun.wait(PATIENCE)
    succeeds = forked(lambda: turn.take(list))
    may_end.set()
    assert succeeds
