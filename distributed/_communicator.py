"""The protocol of an engine of messages."""

from typing import Any, Protocol

from plugrad.backends.host import name_of

# Ends the error of a call in a capture.
UNRECORDED = ": a capture does not record messages; call it outside of the block"

MEMBERS = ("rank", "size", "allreduce", "broadcast", "barrier")


class Communicator(Protocol):
    """The ranks that work together, and the messages between them.

    `plugrad.distributed.mpi` returns one. Another engine needs these members, for NumPy arrays of integers and floating
    numbers in any case, since the ranks compare their arguments in host memory, and for the arrays of the backend.

    Optional members: ``check`` (False: the ranks do not compare their arguments), ``start_allreduce(array)``, a sum in
    the background that returns a function to wait for it, ``abort(status)``, which ends the processes of all ranks, and
    ``is_over`` (True: no more messages can be sent).

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
