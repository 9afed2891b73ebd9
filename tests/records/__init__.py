"""The records of the kernels: all that tests and benchmarks know of each, one file per kernel and its gradient.

Each file defines ``RECORDS``. Users of the library import none of this; the benchmarks do.
"""

import importlib
import pkgutil

from plugrad.tests.records._record import Budget, Mistake, Record, double

__all__ = ["RECORDS", "Budget", "Mistake", "Record", "double"]

RECORDS: dict[str, Record] = {
    record.name: record
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
    for record in importlib.import_module(f"{__name__}.{module.name}").RECORDS
}
