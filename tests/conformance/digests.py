"""Print hashes of the results of a backend: ``python -m plugrad.tests.conformance.digests NAME [MODULE]``.

A check runs this in processes with different numbers of threads and compares. MODULE is the module of a backend that is
not installed as a plug-in.
"""

import hashlib
import json
import sys

import numpy as np

from plugrad import backends
from plugrad.tests.conformance.cases import LARGE, is_product, sample
from plugrad.tests.conformance.subject import DTYPES, Subject
from plugrad.tests.records import RECORDS

LARGE_IN = (np.dtype(np.float16), np.dtype(np.float32))


def digests(subject: Subject) -> dict[str, str]:
    """Kernel and dtype -> the hash of its results, for arrays that threads share and smaller ones."""
    found = {}
    for kernel in RECORDS.values():
        if not subject.has(kernel.name):
            continue
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
    if len(sys.argv) > 2:
        backends.register(sys.argv[1], sys.argv[2], replace=True)
    print(json.dumps(digests(Subject(sys.argv[1]))))
