"""The block that ends the job when a rank fails."""

import logging
import os
import socket
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager

from plugrad.distributed._agreement import agreed
from plugrad.distributed._communicator import Communicator, check_communicator

_log = logging.getLogger("plugrad")


@contextmanager
def guard(comm: Communicator) -> Generator[None]:
    """End the job, with the traceback, if this rank leaves the block by an exception, or before the others.

    Without it the other ranks would wait for messages of this one for ever. The block is a collective call: all ranks
    enter it. A rank that has no more calls to make, such as one with fewer batches, waits for the others at its end. If
    one of them makes another call of this package, that is an error on all of them; the methods of the communicator
    itself, such as ``barrier``, are not compared. With one rank, and for an engine without ``abort``, the exception
    goes on, and ranks do not wait. At the beginning the logger ``plugrad`` says, at the level INFO, which process of
    which machine this rank is: if one is killed, MPI names a process.

    Parameters
    ----------
    comm : Communicator
        The ranks.

    Returns
    -------
    context manager
        For a ``with`` statement around all calls of this rank.

    Raises
    ------
    TypeError
        If `comm` is no `Communicator`.
    ValueError
        If another rank makes a call when this one has come to the end of the block.
    Exception
        With one rank, whatever the block raises.

    Examples
    --------
    >>> from plugrad import distributed
    >>> comm = distributed.mpi()
    >>> with distributed.guard(comm):
    ...     total = comm.rank
    """
    check_communicator("guard", comm)
    _log.info("rank %d of %d is process %d on %s", comm.rank, comm.size, os.getpid(), socket.gethostname())
    try:
        with _end_of_all(comm):
            yield
    except BaseException as error:
        is_exit = isinstance(error, SystemExit)
        status = (0 if error.code is None else error.code) if isinstance(error, SystemExit) else 1
        abort = getattr(comm, "abort", None)
        if comm.size == 1 or abort is None or status == 0:
            raise
        if not is_exit or not isinstance(status, int):
            lines = [f"{error}\n"] if is_exit else traceback.format_exception(error)
            text = "".join(lines)
            # One write, so that the lines of several ranks do not mix.
            sys.stderr.write(f"rank {comm.rank} of {comm.size} failed, and the job ends:\n{text}")
        sys.stdout.flush()
        sys.stderr.flush()
        abort(status if isinstance(status, int) else 1)
        raise


@contextmanager
def _end_of_all(comm: Communicator) -> Generator[None]:
    """At the end of a block that does not fail, meet the other ranks, as in a call that is made by all."""
    try:
        yield
    except SystemExit as error:
        if error.code in (None, 0):
            _meet(comm)
        raise
    _meet(comm)


def _meet(comm: Communicator) -> None:
    """Compare this end with what the other ranks call, unless messages have come to an end before."""
    if hasattr(comm, "abort") and not getattr(comm, "is_over", False):
        agreed(comm, "the end of guard", {})
