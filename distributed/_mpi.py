"""Messages by MPI, and for arrays in GPU memory by NCCL."""

import importlib
import socket
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends.backend import is_array_of
from plugrad.backends.host import name_of
from plugrad.backends.options import COMPUTE, is_supported

OPERATIONS = ("sum", "max")


def mpi(comm: Any = None, check: bool = True) -> "Mpi":
    """The ranks of a job that ``mpiexec`` started.

    Arrays in host memory go by MPI. CuPy arrays go by NCCL, on the current stream, one rank for each GPU; without NCCL
    by MPI, if it says in ``mpi_memory_alloc_kinds`` that it reads the memory of GPUs. They are never copied through
    host memory: without either a call is a `RuntimeError`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        The ranks; by default all ranks of the job.
    check : bool
        Whether the ranks compare shapes, dtypes, options and labels in every call of `plugrad.distributed`, by one
        small message, so that an error is an error on all ranks. Without it, wrong calls give wrong results or wait
        for ever.

    Returns
    -------
    comm : Communicator
        With ``rank``, ``size``, ``allreduce``, ``broadcast`` and ``barrier``. Integers and floating numbers are sent;
        float16 and bfloat16 are summed in float32. Of a NaN no maximum is defined.

    Raises
    ------
    ImportError
        If mpi4py is not installed, or finds no MPI.
    TypeError, ValueError
        If `comm` is no communicator of mpi4py, or was freed.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import distributed
    >>> comm = distributed.mpi()
    >>> x = np.array([1.0, 2.0])
    >>> comm.allreduce(x)
    >>> x / comm.size
    array([1., 2.])
    """
    try:
        found: Any = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:  # a RuntimeError if there is no library of MPI
        raise ImportError(
            f"mpi: mpi4py cannot be used ({str(error).splitlines()[0]}); install it and an MPI with: "
            f"python -m pip install 'plugrad[mpi]'"
        ) from error
    if comm is None:
        comm = found.COMM_WORLD
    if not isinstance(comm, found.Comm) or isinstance(comm, found.Intercomm):
        raise TypeError(f"mpi: comm: expected an mpi4py.MPI.Intracomm or None, got {name_of(type(comm))}")
    return Mpi(found, comm, check)


class Mpi:
    """The ranks of an MPI communicator (see `mpi`)."""

    def __init__(self, found: Any, comm: Any, check: bool) -> None:
        self._mpi, self._comm = found, comm
        self._living("mpi: comm")
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.check = bool(check)
        self._gpu: Any = None  # an `Nccl`, or the communicator itself

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.size}, by MPI>"

    def allreduce(self, array: Any, op: str = "sum") -> None:
        """Replace each element by the sum (``"sum"``) or the maximum (``"max"``) of those of all ranks."""
        if op not in OPERATIONS:
            raise ValueError(f"allreduce: op: expected one of {', '.join(OPERATIONS)}; got {op!r}")
        engine = self._engine("allreduce", array)
        message = _summable("allreduce", array)
        if engine is self._comm:
            engine.Allreduce(self._mpi.IN_PLACE, message, self._mpi.SUM if op == "sum" else self._mpi.MAX)
        else:
            engine.allreduce(message, op)
        _put(array, message)

    def start_allreduce(self, array: Any) -> Callable[[], None]:
        """Begin to sum the elements of all ranks; the function that is returned waits until the sums are there."""
        engine = self._engine("allreduce", array)
        message = _summable("allreduce", array)
        if engine is self._comm:
            request = engine.Iallreduce(self._mpi.IN_PLACE, message, self._mpi.SUM)
        else:  # queued behind the work of the stream
            engine.allreduce(message, "sum")
            request = None

        def wait() -> None:
            if request is not None:
                request.Wait()
            _put(array, message)

        return wait

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Replace the elements by those of the rank `root`."""
        if not 0 <= root < self.size:
            raise ValueError(f"broadcast: root: expected a rank in [0, {self.size}), got {root}")
        engine = self._engine("broadcast", array)
        message = _contiguous("broadcast", array)
        engine_message = message.reshape(-1).view(np.uint8)
        if engine is self._comm:
            engine.Bcast(engine_message, root)
        else:
            engine.broadcast(engine_message, root)
        if self.rank != root:
            _put(array, message)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._living("barrier")
        self._comm.Barrier()

    def abort(self, status: int) -> None:
        """End the processes of all ranks."""
        (self._mpi.COMM_WORLD if self.is_over else self._comm).Abort(status)

    @property
    def is_over(self) -> bool:
        """Whether the communicator was freed, or MPI has ended."""
        return bool(self._mpi.Is_finalized() or self._comm == self._mpi.COMM_NULL)

    def _living(self, what: str) -> None:
        """Refuse a communicator that was freed."""
        if self._mpi.Is_finalized():
            raise ValueError(f"{what}: expected MPI to be in use, but MPI.Finalize was called")
        if self._comm == self._mpi.COMM_NULL:
            raise ValueError(f"{what}: expected the communicator of some ranks, got one that was freed (COMM_NULL)")

    def _engine(self, call: str, array: Any) -> Any:
        """The library that sends arrays of this type."""
        self._living(call)
        kind = type(array)
        if kind is np.ndarray:
            return self._comm
        if not is_array_of(kind, "cupy"):
            raise TypeError(f"{call}: array: expected an array of NumPy or CuPy, got {name_of(kind)}")
        if self._gpu is None:
            self._gpu = self._gpu_engine()
        if self._gpu is self._comm:  # MPI does not know of streams
            importlib.import_module("cupy").cuda.get_current_stream().synchronize()
        return self._gpu

    def _gpu_engine(self) -> Any:
        """NCCL, or an MPI that reads GPU memory; the same on all ranks, or an error on all."""
        try:
            from plugrad.distributed import _nccl

            place, missing = (socket.gethostname(), _nccl.gpu()), ""
        except (ImportError, RuntimeError, AttributeError) as error:
            place, missing = ("", ""), f"rank {self.rank}: {error}"
        told: list[tuple[tuple[str, str], str]] = self._comm.allgather((place, missing))
        reason = next((missing for _, missing in told if missing), "")
        if not reason:
            places = [place for place, _ in told]
            for rank, place in enumerate(places):
                if place in places[:rank]:
                    raise RuntimeError(
                        f"mpi: expected one GPU for each rank, but ranks {places.index(place)} and {rank} both use GPU "
                        f"{place[1]} of {place[0]}; call cupy.cuda.Device(number).use() with a number for each rank"
                    )
            return _nccl.Nccl(self._comm)
        kinds = self._mpi.COMM_WORLD.Get_info().get("mpi_memory_alloc_kinds") or ""
        if all(self._comm.allgather("cuda" in kinds.split(","))):
            return self._comm
        raise RuntimeError(
            f"mpi: messages of CuPy arrays need NCCL, which cannot be used ({reason}), or an MPI that reads the memory "
            f"of GPUs, which this one does not say of itself (mpi_memory_alloc_kinds: {kinds or 'none'}); install: "
            f"python -m pip install nvidia-nccl-cu13, or move the arrays with plugrad.backends.to_numpy"
        )


def _contiguous(call: str, array: Any) -> Any:
    """`array`, or a copy of it without gaps in native byte order."""
    dtype = array.dtype
    if not getattr(array.flags, "writeable", True):
        raise ValueError(f"{call}: array: expected an array that can be written, got a read-only one")
    if not is_supported(dtype) and dtype.kind not in "iubf":
        raise TypeError(f"{call}: array: expected integers or floating numbers, got dtype {dtype}")
    return array if array.flags.c_contiguous and dtype.isnative else array.astype(dtype.newbyteorder("=")).copy()


def _summable(call: str, array: Any) -> Any:
    """The same in a dtype that can be summed: float16 and bfloat16 as float32."""
    message = _contiguous(call, array)
    if message.dtype.kind == "b":
        raise TypeError(f"{call}: array: expected integers or floating numbers, got dtype bool; use .astype(int)")
    wide = COMPUTE.get(message.dtype, message.dtype)
    return message if wide == message.dtype else message.astype(wide)


def _put(array: Any, message: Any) -> None:
    """Copy what came back to the caller's array, unless it came there."""
    if message is not array:
        with np.errstate(all="ignore"):  # sums that the dtype cannot hold become infinite
            array[...] = message.astype(array.dtype)
