"""Fake backend modules and arrays for tests."""

import threading
import types
from typing import Any

import numpy as np


def counting_module(**members: Any) -> types.SimpleNamespace:
    """A backend module whose relu records the thread of each call in `calls`."""

    def relu(x: Any, out: Any) -> None:
        calls.append(threading.get_ident())
        np.maximum(x, 0, out=out)

    calls: list[int] = []
    return types.SimpleNamespace(relu=relu, calls=calls, **members)


class DeviceArray:
    """An array that the DLPack protocol places on a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("moved to the host")
