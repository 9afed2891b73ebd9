"""Compile every kernel of the cupy backend with NVRTC, and print registers and spills: ``python registers.py [sm_90]``.

It needs CuPy and NVRTC, but no GPU.
"""

import itertools
import re
import sys
from concurrent.futures import ProcessPoolExecutor

import ml_dtypes
import numpy as np

from plugrad.backends.cupy import compiling, kernels, updates
from plugrad.backends.cupy.compiling import Instance
from plugrad.backends.options import is_supported
from plugrad.kernels import KERNELS

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
ARCHITECTURES = ("sm_80", "sm_90")  # A100, H100 and H200

FOUND = re.compile(
    r"Function properties for (\w+)\s+ptxas.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.S,
)


def report(instance: Instance, architecture: str) -> list[str]:
    """A line for each kernel of an instance."""
    _, log = compiling.compile(instance, architecture)
    macros = " ".join(f"{name}={value}" for name, value in instance.macros)
    found = FOUND.findall(log)
    assert found, log
    return [
        f"{architecture} {name} {macros}: {registers} registers, spills {int(stores) + int(loads)} bytes"
        for name, stores, loads, registers in found
    ]


def main(architectures: list[str]) -> None:
    """Print the report of every instance."""
    names = [(name, dtype) for name in KERNELS for dtype in DTYPES if is_supported(dtype)]
    instances = dict.fromkeys(i for name, dtype in names for i, _ in kernels.instances(name, dtype))
    instances |= dict.fromkeys(i for dtype in DTYPES for i, _ in updates.instances(dtype))
    pairs = list(itertools.product(instances, architectures))
    with ProcessPoolExecutor() as pool:
        for lines in pool.map(report, *zip(*pairs, strict=True), chunksize=8):
            print(*lines, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(ARCHITECTURES))
