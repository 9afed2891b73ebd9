"""Modules of backends, and arrays, that tests make up."""

import threading
import types
from typing import Any

import numpy as np


def counting_module(**members: Any) -> types.SimpleNamespace:
    """A module of a backend whose relu records the thread of each call in `calls`."""

    def relu(x: Any, out: Any) -> None:
        calls.append(threading.get_ident())
        np.maximum(x, 0, out=out)

    calls: list[int] = []
    return types.SimpleNamespace(relu=relu, calls=calls, **members)


class DeviceArray:
    """An array on a GPU, as far as the DLPack protocol shows it."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("moved to the host")
