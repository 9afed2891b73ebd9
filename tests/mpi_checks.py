"""The work of each rank of a job: `test_mpi.py` starts it with ``mpiexec -n N python -m plugrad.tests.mpi_checks``.

One start makes all checks, in order. Each is a function of the communicator; the names of those that passed are printed
by the rank 0. A rank that fails ends the job.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad import backends, distributed, kernels as K
from plugrad.kernels import optim
from plugrad.tests.conformance.subject import DTYPES


def allreduce_sums_and_takes_the_maximum_in_place(c: Any) -> None:
    ranks = range(c.size)
    for dtype in (*DTYPES, np.dtype(np.int64), np.dtype(np.uint8)):
        x = np.full((2, 3), c.rank + 1, dtype)
        c.allreduce(x)
        assert (x == sum(r + 1 for r in ranks)).all(), (dtype, x)
        y = np.full(5, c.rank - 1 if dtype.kind != "u" else c.rank, dtype)
        c.allreduce(y, op="max")
        assert (y == (c.size - 2 if dtype.kind != "u" else c.size - 1)).all(), (dtype, y)


def arrays_of_any_layout_are_summed(c: Any) -> None:
    base = np.zeros((4, 6))
    base[::2, ::-2] = np.arange(6.0).reshape(2, 3)
    c.allreduce(base[::2, ::-2])
    assert (base[::2, ::-2] == c.size * np.arange(6.0).reshape(2, 3)).all()
    assert not base[1::2].any()
    other_order = np.full(3, 1.0, ">f4")
    c.allreduce(other_order)
    assert (other_order == c.size).all()
    scalar = np.array(2.0)
    c.allreduce(scalar)
    assert scalar == 2 * c.size
    c.allreduce(np.zeros((0, 3)))


def sixteen_bits_are_summed_in_float32(c: Any) -> None:
    x = np.array([2048.0 if c.rank == 0 else 1.0], np.float16)
    c.allreduce(x)
    assert float(x[0]) == {1: 2048.0, 2: 2048.0, 3: 2050.0}[c.size]  # 2049 is rounded once


def a_sum_in_the_background_is_the_sum(c: Any) -> None:
    first, second = np.full(1000, 1.0), np.full(1000, 2.0, np.float16)
    waits = [c.start_allreduce(first), c.start_allreduce(second)]
    between = np.array([1])
    c.allreduce(between)
    for wait in waits:
        wait()
    assert (first == c.size).all()
    assert (second == 2 * c.size).all()
    assert between[0] == c.size


def broadcast_sends_those_of_the_root(c: Any) -> None:
    for dtype in (*DTYPES, np.dtype(np.int32)):
        x = np.full((2, 3), c.rank, dtype).T
        c.broadcast(x, root=c.size - 1)
        assert (x == c.size - 1).all()
    c.barrier()


def wrong_arrays_are_refused(c: Any) -> None:
    from mpi4py import MPI

    read_only = np.zeros(3)
    read_only.flags.writeable = False
    for call, message in (
        (lambda: c.allreduce([1.0]), "expected an array of NumPy or CuPy, got list"),
        (lambda: c.allreduce(np.zeros(3), op="min"), "op: expected one of sum, max; got 'min'"),
        (lambda: c.allreduce(np.zeros(3, complex)), "expected integers or floating numbers, got dtype complex128"),
        (lambda: c.allreduce(np.zeros(3, bool)), "got dtype bool"),
        (lambda: c.allreduce(read_only), "expected an array that can be written"),
        (lambda: c.broadcast(np.zeros(3), root=c.size), f"root: expected a rank in [0, {c.size}), got {c.size}"),
        (lambda: distributed.sum_gradients([], MPI.COMM_WORLD), "got mpi4py.MPI.Intracomm, without broadcast; pass"),
        (lambda: distributed.mpi("world"), "comm: expected an mpi4py.MPI.Intracomm or None, got str"),
    ):
        assert message in refused(call), message


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("no error")


def a_freed_communicator_is_an_error_on_every_rank(c: Any) -> None:
    from mpi4py import MPI

    copy = MPI.COMM_WORLD.Dup()
    freed = distributed.mpi(copy)
    freed.barrier()
    copy.Free()
    for call in (lambda: freed.allreduce(np.zeros(3)), freed.barrier, lambda: distributed.mpi(copy)):
        assert "got one that was freed" in refused(call)
    if c.size > 1:
        assert "got one that was freed" in refused(lambda: distributed.sum_gradients([np.zeros(3)], freed))


def part_of_the_ranks_may_be_a_job_of_their_own(c: Any) -> None:
    from mpi4py import MPI

    some = MPI.COMM_WORLD.Split(c.rank % 2)
    own = distributed.mpi(some)
    x = np.ones(2)
    own.allreduce(x)
    assert (x == own.size).all()
    some.Free()


def data_parallel_training_is_that_of_one_process(c: Any) -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        x, t = rng.normal(size=(50, 8)).astype(dtype), rng.integers(-1, 5, 50)
        w, b = rng.normal(size=(8, 5)).astype(dtype), np.zeros(5, dtype)
        one = [w.astype(np.float64), b.astype(np.float64)]
        alone = optim.Adam(one, lr=0.01)
        trainer = distributed.DataParallel(optim.Adam([w, b], lr=0.01), c)
        rows = slice(0, 50) if c.size == 1 else [slice(0, 43), slice(43, 50), slice(0, 0)][c.rank]
        for _ in range(20):
            _, dz = K.softmax_cross_entropy_value_and_grad(
                K.affine(x[rows], w, b), t[rows], ignore_index=-1, reduction="sum"
            )
            trainer.step(K.affine_backward(dz, x[rows], w)[1:], int((t[rows] != -1).sum()))
            z = K.affine(x.astype(np.float64), *one)
            _, dz = K.softmax_cross_entropy_value_and_grad(z, t, ignore_index=-1)
            alone.step(K.affine_backward(dz, x.astype(np.float64), one[0])[1:])
        np.testing.assert_allclose(w, one[0], rtol=0, atol=2e-4 if dtype == np.float32 else 1e-12)
        same_bits(c, w)


def same_bits(c: Any, *arrays: Any) -> None:
    """Fail unless the arrays have the same bits on all ranks."""
    for array in arrays:
        bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        most, least = bits.astype(np.int16), -bits.astype(np.int16)
        c.allreduce(most, op="max")
        c.allreduce(least, op="max")
        assert (most == -least).all()


def spread_classes_are_the_plain_kernels_of_all(c: Any) -> None:
    rng = np.random.default_rng(1)
    for sizes in ([7], [3, 4], [2, 0, 5])[c.size - 1], ([7], [7, 0], [0, 0, 7])[c.size - 1]:
        bounds = np.cumsum([0, *sizes])
        part = slice(int(bounds[c.rank]), int(bounds[c.rank + 1]))
        for dtype in DTYPES:
            x, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((40, 6), (6, 7), (7,)))
            t, weight = rng.integers(0, 7, 40), rng.random(7).astype(np.float32) + 0.5
            logits = (x.astype(np.float64) @ w.astype(np.float64) + b.astype(np.float64)).astype(dtype)
            options: dict[str, Any] = {"ignore_index": 3, "label_smoothing": 0.1}
            loss, dx = distributed.softmax_cross_entropy_value_and_grad(
                logits[:, part], t, comm=c, weight=weight[part], **options
            )
            wide = [a.astype(np.float64) for a in (logits, x, w, b)]
            expected = K.softmax_cross_entropy_value_and_grad(wide[0], t, weight=weight, **options)
            near(loss, expected[0], dtype)
            near(dx, expected[1][:, part], dtype)
            same_bits(c, loss)
            space = 3000 if c.size > 1 else "1MB"
            found = distributed.linear_cross_entropy_value_and_grad(
                x, w[:, part], b[part], t, comm=c, weight=weight[part], max_workspace=space, **options
            )
            loss, dx, dw, db = K.linear_cross_entropy_value_and_grad(*wide[1:], t, weight=weight, **options)
            for got, exact in zip(found, (loss, dx, dw[:, part], db[part]), strict=True):
                near(got, exact, dtype)
            same_bits(c, found[0], found[1])


def labels_per_class_are_spread_as_the_logits_are(c: Any) -> None:
    rng = np.random.default_rng(3)
    for sizes in ([7], [3, 4], [2, 0, 5])[c.size - 1], ([7], [7, 0], [0, 0, 7])[c.size - 1]:
        first = sum(sizes[: c.rank])
        part = slice(first, first + sizes[c.rank])
        for dtype in DTYPES:
            x, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((40, 6), (6, 7), (7,)))
            t, weight, rows = rng.dirichlet(np.ones(7), 40), rng.random(7) + 0.5, rng.random(40)
            t[::2] = np.eye(7)[rng.integers(0, 7, 20)]
            rows[::5] = 0
            options: dict[str, Any] = {"sample_weight": rows, "label_smoothing": 0.1, "z_loss": 0.01}
            logits = (x.astype(np.float64) @ w.astype(np.float64) + b.astype(np.float64)).astype(dtype)
            loss, dx = distributed.softmax_cross_entropy_value_and_grad(
                logits[:, part], t[:, part], comm=c, weight=weight[part], **options
            )
            wide = [a.astype(np.float64) for a in (logits, x, w, b)]
            expected = K.softmax_cross_entropy_value_and_grad(wide[0], t, weight=weight, **options)
            near(loss, expected[0], dtype)
            near(dx, expected[1][:, part], dtype)
            options["softcap"] = 3.0
            found = distributed.linear_cross_entropy_value_and_grad(
                x, w[:, part], b[part], t[:, part], comm=c, weight=weight[part], max_workspace=3000, **options
            )
            loss, dx, dw, db = K.linear_cross_entropy_value_and_grad(*wide[1:], t, weight=weight, **options)
            for got, exact in zip(found, (loss, dx, dw[:, part], db[part]), strict=True):
                near(got, exact, dtype)
            same_bits(c, found[0], found[1])


def weights_of_any_magnitude_give_the_same_mean(c: Any) -> None:
    rng = np.random.default_rng(4)
    sizes = ([7], [3, 4], [2, 0, 5])[c.size - 1]
    first = sum(sizes[: c.rank])
    part = slice(first, first + sizes[c.rank])
    for dtype, magnitudes in ((np.float32, (2.0**-149, 1e-41, 2.0**127)), (np.float64, (2.0**-1074, 2.0**1019))):
        x, w, t = rng.normal(size=(9, 5)).astype(dtype), rng.normal(size=(5, 7)).astype(dtype), rng.integers(0, 7, 9)
        logits = x @ w
        options: dict[str, Any] = {"label_smoothing": 0.1}
        loss, dx = K.softmax_cross_entropy_value_and_grad(logits, t, **options)
        layer = K.linear_cross_entropy_value_and_grad(x, w, None, t, **options)
        for magnitude in magnitudes:
            mine = np.full(7, magnitude, dtype)[part]
            found = distributed.softmax_cross_entropy_value_and_grad(logits[:, part], t, comm=c, weight=mine, **options)
            near(found[0], loss, np.dtype(dtype))
            near(found[1], dx[:, part], np.dtype(dtype))
            found = distributed.linear_cross_entropy_value_and_grad(
                x, w[:, part], None, t, comm=c, weight=mine, max_workspace=3000, **options
            )
            for got, exact in zip(found, (*layer[:2], layer[2][:, part], layer[3][part]), strict=True):
                near(got, exact, np.dtype(dtype))


def near(got: Any, exact: Any, dtype: np.dtype[Any]) -> None:
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[dtype.name]
    largest = float(np.abs(exact).max(initial=0))
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=0, atol=16 * eps * max(largest, 1e-3))


def what_differs_is_an_error_on_every_rank(c: Any) -> None:
    if c.size == 1:
        return
    last = c.rank == c.size - 1
    x, t = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    softmax = distributed.softmax_cross_entropy_value_and_grad
    for call, message in (
        (
            lambda: softmax(x, t, comm=c, reduction="sum" if last else "mean"),
            "reduction: expected the same on all ranks",
        ),
        (lambda: softmax(x[:3] if last else x, t, comm=c), f"rank {c.size - 1}: "),
        (
            lambda: softmax(x, t + 9 * last, comm=c),
            "values of t: expected the same on all ranks, but rank 0 has values",
        ),
        (lambda: softmax(x, x if last else t, comm=c), f"rank {c.size - 1} has float64, one label per class"),
        (
            lambda: softmax(x, t + 2 * c.size, comm=c),
            f"t: expected labels in [0, {2 * c.size}), got {2 * c.size} at row 0",
        ),
        (lambda: distributed.sum_gradients([np.zeros(3, np.float32 if last else float)], c), "float32"),
        (lambda: distributed.broadcast([np.zeros(3)] * (1 + last), c), "number of arrays"),
    ):
        assert message in refused(call), message
    c.barrier()


def without_the_comparison_results_are_the_same(c: Any) -> None:
    bare = distributed.mpi(check=False)
    rng = np.random.default_rng(2)
    x, t = rng.normal(size=(9, 4 * c.size)), rng.integers(0, 4 * c.size, 9)
    part = slice(4 * c.rank, 4 * c.rank + 4)
    for call in (distributed.softmax_cross_entropy_value_and_grad,):
        one, two = (call(x[:, part], t, comm=each) for each in (c, bare))
        assert float(one[0]) == float(two[0])
        np.testing.assert_array_equal(one[1], two[1])


def guard_lets_go_on_what_goes_well(c: Any) -> None:
    from mpi4py import MPI

    with distributed.guard(c):
        c.barrier()
    some = MPI.COMM_WORLD.Dup()
    with distributed.guard(distributed.mpi(some)):
        some.Free()


CHECKS: list[Callable[[Any], None]] = [
    allreduce_sums_and_takes_the_maximum_in_place,
    arrays_of_any_layout_are_summed,
    sixteen_bits_are_summed_in_float32,
    a_sum_in_the_background_is_the_sum,
    broadcast_sends_those_of_the_root,
    wrong_arrays_are_refused,
    a_freed_communicator_is_an_error_on_every_rank,
    part_of_the_ranks_may_be_a_job_of_their_own,
    data_parallel_training_is_that_of_one_process,
    spread_classes_are_the_plain_kernels_of_all,
    labels_per_class_are_spread_as_the_logits_are,
    weights_of_any_magnitude_give_the_same_mean,
    what_differs_is_an_error_on_every_rank,
    without_the_comparison_results_are_the_same,
    guard_lets_go_on_what_goes_well,
]


def raises(c: Any) -> None:
    """The last rank fails while the others wait for it."""
    if c.rank == c.size - 1:
        raise ArithmeticError("the last rank has had enough")
    c.barrier()


def exits(c: Any) -> None:
    """The last rank leaves while the others wait for it."""
    if c.rank == c.size - 1:
        sys.exit(7)
    c.barrier()


def has_fewer_batches(c: Any) -> None:
    """The last rank leaves regularly while the others make another call."""
    if c.rank == c.size - 1:
        sys.exit(0)
    distributed.sum_gradients([np.ones(3)], c)


def killed(c: Any) -> None:
    """The last rank is killed while the others wait for it."""
    c.barrier()
    if c.rank == c.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    c.barrier()
    time.sleep(600)


FAILURES = {function.__name__: function for function in (raises, exits, has_fewer_batches, killed)}


def main(arguments: list[str]) -> None:
    """Make all checks, or fail in the way that is asked for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    comm = distributed.mpi()
    with distributed.guard(comm), backends.use("numpy"):
        for check in [FAILURES[name] for name in arguments] or CHECKS:
            check(comm)
            comm.barrier()
            if comm.rank == 0:
                print("passed:", check.__name__, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
