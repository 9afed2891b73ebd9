"""A stand-in for the one function of cupyx that the tests use."""

import contextlib
from collections.abc import Iterator

import cupy


@contextlib.contextmanager
def allow_synchronize(allow: bool) -> Iterator[None]:
    """Within the block, waiting for the device is an error unless `allow`."""
    before = cupy.waiting_is_allowed[0]
    cupy.waiting_is_allowed[0] = allow
    try:
        yield
    finally:
        cupy.waiting_is_allowed[0] = before
