"""The affine layer."""

from plugrad.backends.cpu.affine import backward, forward
from plugrad.backends.cpu.blocks import Array, quietly


@quietly
def affine(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``."""
    forward(x, w, b, out)


@quietly
def affine_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; None for a gradient that is not wanted."""
    backward(dy, x, w, dx, dw, db)
