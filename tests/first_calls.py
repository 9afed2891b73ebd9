"""One call of each kernel: ``python -m plugrad.tests.first_calls BACKEND [KERNEL ...]``.

For machines on which compiling takes minutes, so that the conformance suite is out of reach, such as an emulated one.
The results must be those of the oracle, and of the backend `numpy`.
"""

import sys
import time
import traceback
from collections.abc import Iterable

import numpy as np

from plugrad.tests.conformance import cases
from plugrad.tests.conformance.subject import DTYPES, Subject
from plugrad.tests.records import RECORDS, Record


def call(subject: Subject, other: Subject, kernel: Record, dtype: np.dtype[np.generic]) -> None:
    """Call a kernel on both backends, and compare the results."""
    case = cases.sample(kernel, 33, 100, dtype)
    got = subject.call(case)
    subject.compare(case, got)
    expected = tuple(None if x is None else np.asarray(x).astype(np.float64) for x in other.call(case))
    subject.compare(case, got, expected, slack=2.0)  # both may be off by the tolerance


def run(backend: str, kernels: Iterable[str], dtypes: Iterable[np.dtype[np.generic]]) -> int:
    """Call kernels for dtypes, print a line for each call, and return the number of failures."""
    subject, other = Subject(backend), Subject("numpy")
    failures = 0
    for dtype in dtypes:
        for name in kernels:
            start = time.monotonic()
            try:
                call(subject, other, RECORDS[name], dtype)
                outcome = "passed"
            except Exception:
                traceback.print_exc()
                outcome = "failed"
                failures += 1
            print(f"{name} {dtype} on {backend}: {outcome}, {time.monotonic() - start:.0f} s", flush=True)
    return failures


if __name__ == "__main__":
    single = np.dtype(np.float32)
    others = [dtype for dtype in DTYPES if dtype != single]
    sys.exit(bool(run(sys.argv[1], sys.argv[2:] or RECORDS, [single, *others])))
