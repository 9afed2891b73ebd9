"""The protocol of an engine of messages, and the block that ends the job when a rank fails."""

import logging
import os
import socket
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

from plugrad.backends.host import name_of

MEMBERS = ("rank", "size", "allreduce", "broadcast", "barrier")

_log = logging.getLogger("plugrad")


class Communicator(Protocol):
    """The ranks that work together, and the messages between them.

    `plugrad.distributed.mpi` returns one. Another engine needs these members, for NumPy arrays of integers and floating
    numbers in any case, since the ranks compare their arguments in host memory, and for the arrays of the backend.

    Optional members: ``check`` (False: the ranks do not compare their arguments), ``start_allreduce(array)``, a sum in
    the background that returns a function to wait for it, and ``abort(status)``, which ends the processes of all ranks.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        How many there are.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def allreduce(self, array: Any, op: str = "sum") -> None:
        """Replace each element by the sum (``"sum"``) or the maximum (``"max"``) of those of all ranks."""

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Replace the elements by those of the rank `root`."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""


def checks(comm: Communicator) -> bool:
    """Whether the ranks compare their arguments in every call."""
    return comm.size > 1 and bool(getattr(comm, "check", True))


def check_communicator(call: str, comm: object) -> None:
    """Refuse an object without the members of a `Communicator`, such as mpi4py's own, which sums otherwise."""
    if missing := [name for name in MEMBERS if not hasattr(comm, name)]:
        raise TypeError(
            f"{call}: comm: expected a plugrad.distributed.Communicator, got {name_of(type(comm))}, without "
            f"{missing[0]}; pass plugrad.distributed.mpi(), or mpi(comm) for a communicator of mpi4py"
        )


@contextmanager
def guard(comm: Communicator) -> Generator[None]:
    """End the job, with the traceback, if this rank leaves the block by an exception.

    Without it the other ranks would wait for messages of this one for ever. With one rank, and for an engine without
    ``abort``, the exception goes on. At the beginning the logger ``plugrad`` says, at the level INFO, which process of
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
