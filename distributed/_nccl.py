"""Messages between GPUs by NCCL, through CuPy. It has been run with a stand-in for NCCL only, not yet on GPUs."""

from typing import Any

import cupy
from cupy.cuda import nccl

TYPES = {
    "int8": nccl.NCCL_INT8,
    "uint8": nccl.NCCL_UINT8,
    "int32": nccl.NCCL_INT32,
    "uint32": nccl.NCCL_UINT32,
    "int64": nccl.NCCL_INT64,
    "uint64": nccl.NCCL_UINT64,
    "float32": nccl.NCCL_FLOAT32,
    "float64": nccl.NCCL_FLOAT64,
}
OPERATIONS = {"sum": nccl.NCCL_SUM, "max": nccl.NCCL_MAX}


def gpu() -> str:
    """The name on the bus of the GPU that this process uses."""
    name: str = cupy.cuda.Device().pci_bus_id
    return name


class Nccl:
    """The ranks of an MPI communicator, each with a GPU.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The ranks; it tells them the number of the group.
    """

    def __init__(self, comm: Any) -> None:
        rank = comm.Get_rank()
        group = comm.bcast(nccl.get_unique_id() if rank == 0 else None)
        self._ranks = nccl.NcclCommunicator(comm.Get_size(), group, rank)

    def allreduce(self, message: Any, op: str) -> None:
        """Sum, or take the maximum, in place, on the current stream."""
        if message.dtype.name not in TYPES:
            raise TypeError(f"allreduce: array: expected one of {', '.join(TYPES)}; got dtype {message.dtype}")
        there, kind = message.data.ptr, TYPES[message.dtype.name]
        self._ranks.allReduce(there, there, message.size, kind, OPERATIONS[op], _stream())

    def broadcast(self, message: Any, root: int) -> None:
        """Send the bytes of the rank `root` to all, on the current stream."""
        self._ranks.bcast(message.data.ptr, message.size, nccl.NCCL_UINT8, root, _stream())


def _stream() -> int:
    address: int = cupy.cuda.get_current_stream().ptr
    return address
