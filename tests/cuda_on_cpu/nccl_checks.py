"""The work of each rank with arrays of the emulated device, its messages by a stand-in for NCCL (see `test_mpi.py`)."""

import ctypes
import sys
import types
from typing import Any

import cupy
import cupyx
import numpy as np

from plugrad import backends, distributed, kernels as K
from plugrad.kernels import optim

TYPES = {"FLOAT32": np.float32, "FLOAT64": np.float64, "INT8": np.int8, "UINT8": np.uint8}
TYPES |= {"INT32": np.int32, "UINT32": np.uint32, "INT64": np.int64, "UINT64": np.uint64}


class _Communicator:
    """NCCL's communicator, by MPI on the memory of the emulated device."""

    def __init__(self, size: int, group: tuple[int, ...], rank: int) -> None:
        from mpi4py import MPI

        assert (size, group, rank) == (MPI.COMM_WORLD.size, (1, 2, 3), MPI.COMM_WORLD.rank)
        self._mpi = MPI

    @staticmethod
    def _at(address: int, count: int, kind: str) -> Any:
        raw = (ctypes.c_uint8 * (count * np.dtype(TYPES[kind]).itemsize)).from_address(address)
        return np.frombuffer(raw, TYPES[kind])

    def allReduce(self, send: int, receive: int, count: int, kind: str, op: str, stream: int) -> None:  # noqa: N802
        assert (send, stream) == (receive, cupy.cuda.get_current_stream().ptr)
        operation = {"sum": self._mpi.SUM, "max": self._mpi.MAX}[op]
        self._mpi.COMM_WORLD.Allreduce(self._mpi.IN_PLACE, self._at(send, count, kind), operation)

    def bcast(self, address: int, count: int, kind: str, root: int, stream: int) -> None:
        self._mpi.COMM_WORLD.Bcast(self._at(address, count, kind), root)


def install(bus: str) -> None:
    """Put the stand-in where CuPy has NCCL, with a GPU of this name."""
    nccl: Any = types.ModuleType("cupy.cuda.nccl")
    for kind in TYPES:
        setattr(nccl, f"NCCL_{kind}", kind)
    nccl.NCCL_SUM, nccl.NCCL_MAX = "sum", "max"
    nccl.NcclCommunicator, nccl.get_unique_id = _Communicator, lambda: (1, 2, 3)
    cupy.cuda.nccl = nccl
    sys.modules["cupy.cuda.nccl"] = nccl
    cupy.cuda.Device.pci_bus_id = bus


def refused(comm: Any) -> str:
    try:
        comm.allreduce(cupy.asarray(np.zeros(3)))
    except RuntimeError as error:
        return str(error)
    raise AssertionError("no error")


def messages(comm: Any) -> None:
    """Sums, maxima and broadcasts of all dtypes that are sent."""
    for dtype in (np.float16, np.float32, np.float64, np.int64):
        x = cupy.asarray(np.full((3, 2), comm.rank + 1, dtype))
        comm.allreduce(x)
        assert (x.get() == sum(range(comm.size + 1))).all()
        comm.broadcast(y := cupy.asarray(np.full((3, 2), comm.rank, dtype)), root=1)
        assert (y.get() == 1).all()
        comm.allreduce(y := cupy.asarray(np.full((3, 2), comm.rank, dtype)), op="max")
        assert (y.get() == comm.size - 1).all()


def losses(comm: Any) -> None:
    """The losses with spread classes, against those of the NumPy backend; none waits for the device."""
    rng = np.random.default_rng(0)
    part = slice(4 * comm.rank, 4 * comm.rank + 4)
    for dtype in (np.float16, np.float32, np.float64):
        x, w, b = (rng.normal(size=s).astype(dtype) for s in ((9, 5), (5, 4 * comm.size), (4 * comm.size,)))
        indices, weight = rng.integers(0, 4 * comm.size, 9), rng.random(4 * comm.size).astype(np.float32)
        indices[2] = -100
        z = x.astype(np.float64) @ w + b
        per_class, rows = rng.dirichlet(np.ones(4 * comm.size), 9), rng.random(9)
        per_class[3], per_class[4], rows[5] = 0, np.eye(4 * comm.size)[1], 0
        ignoring, smoothing = {"ignore_index": -100}, {"label_smoothing": 0.1, "reduction": "sum"}
        for t, options in (
            (indices, ignoring),
            (indices, ignoring | smoothing),
            (indices, {**ignoring, "weight": weight, "reduction": "none"}),
            (indices, {**ignoring, "weight": weight}),
            (indices, {**ignoring, **smoothing, "weight": weight}),
            (indices, {**ignoring, "sample_weight": rows, "z_loss": 0.01}),
            (per_class, smoothing),
            (per_class, {"weight": weight, "sample_weight": rows, "z_loss": 0.01}),
        ):
            with backends.use("numpy"):
                exact = K.softmax_cross_entropy_value_and_grad(z, t, **options)
                layer = K.linear_cross_entropy_value_and_grad(*(a.astype(float) for a in (x, w, b)), t, **options)
            arrays = {"weight": weight[part], "sample_weight": rows}
            mine = {name: cupy.asarray(arrays[name]) if name in arrays else value for name, value in options.items()}
            labels = t if t.ndim == 1 else t[:, part]
            own = [cupy.asarray(a) for a in (z[:, part].astype(dtype), x, w[:, part], b[part], labels)]
            with cupyx.allow_synchronize(False):
                loss, dx = distributed.softmax_cross_entropy_value_and_grad(own[0], own[4], comm=comm, **mine)
                found = distributed.linear_cross_entropy_value_and_grad(
                    *own[1:], comm=comm, max_workspace="4kB" if comm.rank else "1MB", **mine
                )
            eps = float(np.finfo(dtype).eps)
            for got, expected in (
                (loss, exact[0]),
                (dx, exact[1][:, part]),
                (found[0], layer[0]),
                (found[1], layer[1]),
                (found[2], layer[2][:, part]),
                (found[3], layer[3][part]),
            ):
                largest = float(np.abs(expected).max())
                np.testing.assert_allclose(got.get().astype(float), expected, rtol=0, atol=32 * eps * largest)


def wrong_labels(comm: Any) -> None:
    """NaN for the row, or in the checking mode an error."""
    x, t = cupy.asarray(np.zeros((3, 2))), cupy.asarray(np.array([0, 2 * comm.size, 1]))
    call = distributed.softmax_cross_entropy_value_and_grad
    loss, dx = call(x, t, comm=comm, reduction="none")
    assert np.isnan(loss.get()).tolist() == [False, True, False]
    assert np.isnan(dx.get()).all(axis=1).tolist() == [False, True, False]
    with backends.use("cupy", check=True):
        try:
            call(x, t, comm=comm)
        except ValueError as error:
            assert "got 4 at row 1" in str(error)  # noqa: PT017
        else:
            raise AssertionError("no error")


def training(comm: Any) -> None:
    """A step of an optimizer."""
    w = cupy.asarray(np.full(3, 1.0 + comm.rank, np.float32))
    trainer = distributed.DataParallel(optim.SGD([w], lr=1.0), comm)
    trainer.step([cupy.asarray(np.full(3, 1.0, np.float32))], 2)
    assert (w.get() == 0.5).all()
    count = cupy.asarray(np.array(4.0))
    with cupyx.allow_synchronize(False):
        trainer.step([cupy.asarray(np.full(3, 1.0, np.float32))], count)
    assert (w.get() == 0.25).all()


def main() -> None:
    """Make all checks."""
    comm = distributed.mpi()
    with distributed.guard(comm):
        told = refused(comm)
        assert "messages of CuPy arrays need NCCL, which cannot be used (rank 0: " in told, told
        assert "to_numpy" in told
        install("the same")
        assert "expected one GPU for each rank, but ranks 0 and 1 both use GPU the same" in refused(distributed.mpi())
        cupy.cuda.Device.pci_bus_id = f"GPU {comm.rank}"
        comm = distributed.mpi()
        for check in (messages, losses, wrong_labels, training):
            check(comm)
            comm.barrier()
            if comm.rank == 0:
                print("passed:", check.__name__, flush=True)


if __name__ == "__main__":
    main()
