"""Print hashes of the results of a backend: ``python -m plugrad.tests.conformance.digests NAME --kernel softmax``.

A check runs this in processes with different numbers of threads and compares. ``--module`` names the module of a
backend that is not installed as a plug-in.
"""

import argparse
import hashlib
import json

import numpy as np

from plugrad import backends
from plugrad.tests.conformance.cases import LARGE, is_product, sample
from plugrad.tests.conformance.subject import DTYPES, Subject
from plugrad.tests.records import RECORDS

LARGE_IN = (np.dtype(np.float16), np.dtype(np.float32))


def digests(subject: Subject) -> dict[str, str]:
    """Kernel under test and dtype -> the hash of its results, for arrays that threads share and smaller ones."""
    found = {}
    for kernel in (RECORDS[name] for name in subject.kernels if subject.has(name)):
        for dtype in DTYPES:
            digest = hashlib.sha256()
            # Large arrays take time where a device is emulated: two dtypes, and no products.
            large = LARGE if dtype in LARGE_IN and not is_product(kernel) else ()
            for rows, classes in ((300, 257), *large):
                for result in subject.call(sample(kernel, rows, classes, dtype)):
                    digest.update(np.ascontiguousarray(subject.numpy(result)).tobytes())
            found[f"{kernel.name} {dtype}"] = digest.hexdigest()[:16]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m plugrad.tests.conformance.digests")
    parser.add_argument("name")
    parser.add_argument("--kernel", action="append", choices=list(RECORDS), required=True)
    parser.add_argument("--module")
    given = parser.parse_args()
    if given.module is not None:
        backends.register(given.name, given.module, replace=True)
    print(json.dumps(digests(Subject(given.name, given.kernel))))
