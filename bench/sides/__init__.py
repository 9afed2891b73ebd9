"""The sides of the benchmarks: plugrad, its peers, and the bounds of a kernel's speed; a module for each.

A peer has a table from kernel name to function. A kernel that is missing there is not measured on that side, and the
table of results shows ``-``.
"""

from collections.abc import Callable, Collection
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

from plugrad.bench.cases import Case

PEERS = ("textbook", "torch", "torch_compile", "jax", "scipy")

# The sides that --bridges adds for a peer: its own version of what a bridge replaces, where it is another than that of
# the peer's side, and the bridge.
BRIDGES = {"torch": ("torch_chunked", "torch_bridge"), "jax": ("jax_bridge",)}


class Side(Protocol):
    """The contract of a module in this folder."""

    NAMES: Collection[str]  # the kernels of this side, and "step" if it has steps of training

    def prepare(self, case: Case) -> Callable[[], Any]:
        """Return the function to time, which computes the case once.

        It returns what the kernel returns, or, of a step of training, the parameters.
        """

    def to_numpy(self, x: Any, /) -> Any:
        """Return a result as a NumPy array."""


def load(name: str) -> Side:
    """Import the module of a side."""
    return cast(Side, import_module(f"plugrad.bench.sides.{name}"))


def is_installed(peer: str) -> bool:
    """Whether the library of a side is installed, such as torch for `torch_bridge`; the textbook needs NumPy only."""
    return peer == "textbook" or find_spec(peer.partition("_")[0]) is not None
