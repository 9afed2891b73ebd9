"""The backend itself computes, and its results are the same each time."""

import functools
import json
import subprocess
import sys
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.backends import registry
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.cases import sample
from plugrad.tests.conformance.checks._check import check
from plugrad.tests.conformance.checks.memory import bits
from plugrad.tests.conformance.subject import Case, Subject, environment, witness
from plugrad.tests.records import Record

DType = np.dtype[Any]


@check()
def the_backend_does_the_work(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Each call calls the backend's own function once, and no function of another backend."""
    for rows, classes in ((1, 1), (5, 4), (300, 40), (5, 1025)):
        inputs = sample(kernel, rows, classes, dtype).inputs
        with backends.use(subject.name):
            chosen = backends.current().name
            explained = backends.explain(kernel.function, *(subject.array(inputs[name]) for name in kernel.arguments))
        assert chosen == subject.name, f"use({subject.name!r}) selected {chosen!r}"
        assert explained.backend == subject.name, f"explain names {explained.backend!r}, not {subject.name!r}"
        for options in _options(kernel):
            with witness(subject, kernel) as calls:
                subject.call(Case(kernel, inputs, options))
            assert calls == {kernel.name: 1}, f"{kernel.name}: the calls of the backend's own functions were {calls}"


def _options(kernel: Record) -> tuple[dict[str, Any], ...]:
    return (
        ({}, {"ignore_index": 0}, {"label_smoothing": 0.1, "reduction": "sum"}) if cases.is_any_loss(kernel) else ({},)
    )


@check()
def the_same_bits_each_time(subject: Subject, kernel: Record, dtype: DType) -> None:
    """The same call gives the same results, bit for bit, in the checking mode too."""
    for rows, classes in ((7, 10), (300, 257), (5000, 10)):
        case = sample(kernel, rows, classes, dtype)
        first = subject.call(case)
        for mode, where in ((False, ""), (True, ", in the checking mode")):
            for name, one, other in zip(kernel.results, subject.call(case, mode), first, strict=True):
                assert bits(subject, one) == bits(subject, other), (
                    f"{kernel.name}: {name} differs from call to call{where}"
                )


THREADS = (1, 2, 4, 4)


@check(lambda kernel: not cases.is_product(kernel))
def the_same_bits_for_any_number_of_threads(subject: Subject, kernel: Record, dtype: DType) -> None:
    """In processes with ``PLUGRAD_NUM_THREADS`` of 1, 2 and 4 the results are the same, bit for bit.

    Products are exempt: the BLAS decides the order of their sums, and OpenBLAS splits them by the number of threads.
    """
    found = [digests[f"{kernel.name} {dtype}"] for digests in _digests(subject.name, subject.kernels)]
    assert len(set(found)) == 1, (
        f"{kernel.name}: results differ with the number of threads: {THREADS} threads gave {found}"
    )


@check()
def the_same_bits_in_another_process(subject: Subject, kernel: Record, dtype: DType) -> None:
    """Two processes with the same number of threads return the same results, bit for bit, while other processes run."""
    one, other = (digests[f"{kernel.name} {dtype}"] for digests in _digests(subject.name, subject.kernels)[-2:])
    assert one == other, f"{kernel.name}: results differ from process to process"


@functools.cache
def _digests(name: str, kernels: tuple[str, ...]) -> list[dict[str, str]]:
    """The hashes of results in concurrent processes, one for each number of threads."""
    module = registry._registered.get(name)
    command = [
        sys.executable,
        "-m",
        "plugrad.tests.conformance.digests",
        name,
        *(f"--kernel={kernel}" for kernel in kernels),
        *([f"--module={module}"] if isinstance(module, str) else []),
    ]
    processes = [
        subprocess.Popen(command, env=environment(threads), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for threads in THREADS
    ]
    outputs = [process.communicate(timeout=900) for process in processes]
    for threads, process, (_, errors) in zip(THREADS, processes, outputs, strict=True):
        assert process.returncode == 0, f"the process with {threads} threads failed:\n{errors}"
    return [json.loads(out) for out, _ in outputs]
