"""Arrays between guard pages: ``python -m plugrad.tests.guarded BACKEND`` calls every kernel on them.

An inaccessible page precedes and follows each argument and result, so that the process crashes if a kernel reads or
writes one byte outside an array. Linux only, for `mprotect`.
"""

import ctypes
import itertools
import mmap
import sys
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.tests.conformance import cases
from plugrad.tests.conformance.checks.memory import packed
from plugrad.tests.conformance.subject import DTYPES, Case, Subject
from plugrad.tests.records import RECORDS

SHAPES = (
    (1, 1), (1, 3), (2, 2), (3, 5), (7, 10), (5, 17), (2, 31), (3, 33), (2, 67), (33, 17), (5, 129), (65, 10),
    (1, 1000), (300, 7), (40, 257),
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(x: Any, at_end: bool) -> Any:
    """A copy of an array that ends where its last page does, or begins where its first does."""
    x = np.asarray(x)
    page = mmap.PAGESIZE
    size = max(1, -(-x.nbytes // page)) * page
    region = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for place in (address, address + page + size):
        if _libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = page + (size - x.nbytes if at_end else 0)
    copy = np.frombuffer(region, x.dtype, x.size, start).reshape(x.shape)
    copy[...] = x
    return copy


def calls(subject: Subject, at_end: bool) -> int:
    """Call every kernel for every dtype and shape, compare the results, and return the number of calls."""
    made = 0
    for kernel, dtype, (rows, classes) in itertools.product(RECORDS.values(), DTYPES, SHAPES):
        plain = cases.sample(kernel, rows, classes, dtype)
        turned = [cases.reshaped(plain, (rows,), 0)] if cases.has_axis(kernel) else []
        others = _others(plain) if cases.is_any_loss(kernel) else []
        for case in (plain, *turned, *others):
            given = {n: guarded(x, at_end) if isinstance(x, np.ndarray) else x for n, x in case.inputs.items()}
            options = {n: guarded(x, at_end) if isinstance(x, np.ndarray) else x for n, x in case.options.items()}
            exact = case.expected()
            names = zip(kernel.results, exact, strict=True)
            out = [guarded(np.zeros(np.shape(x), cases.result_dtype(name, dtype)), at_end) for name, x in names]
            options["out"] = packed(tuple(out))
            arrays = [given[name] for name in kernel.arguments]
            subject.compare(case, subject.call_on(kernel, arrays, options), exact)
            made += 1
    return made


def _others(plain: Case) -> list[Case]:
    """The other samples of a loss: other labels; weights and a loss for each row or element."""
    case = list(cases.samples(plain.kernel, *_sizes(plain), plain.dtype))
    return case[1:]


def _sizes(plain: Case) -> tuple[int, int]:
    rows = len(plain.inputs["t"])
    return rows, plain.inputs["w"].shape[1] if "w" in plain.inputs else plain.inputs[cases.rows_of(plain.kernel)].shape[
        1
    ]


def main() -> None:
    """Call every kernel on the backend of the command line."""
    (name,) = sys.argv[1:]
    backends.get(name)
    print(sum(calls(Subject(name), at_end) for at_end in (True, False)), "calls")


if __name__ == "__main__":
    main()
