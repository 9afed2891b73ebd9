"""The last layer in chunks of rows: its loss, and its largest logits."""

from plugrad.backends.chunks import Layer, functions
from plugrad.backends.cpu.affine import column_sums
from plugrad.backends.cpu.blocks import Array
from plugrad.backends.cpu.linear_cross_entropy import ChunkKernels, in_chunks, largest_in_chunks
from plugrad.backends.numpy.elementwise import tanh, tanh_backward
from plugrad.backends.numpy.largest import largest
from plugrad.backends.numpy.softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_value_and_grad
from plugrad.backends.workspace import Workspace

CHUNK_KERNELS = ChunkKernels(
    softmax_cross_entropy, softmax_cross_entropy_value_and_grad, column_sums, tanh, tanh_backward, largest
)

linear_cross_entropy, linear_cross_entropy_value_and_grad = functions(lambda *call: in_chunks(CHUNK_KERNELS, *call))


def linear_top_k(
    x: Array, w: Array, b: Array | None, k: int, workspace: Workspace, values: Array, indices: Array
) -> None:
    """The `k` largest logits ``x w + b`` of each row, and their classes."""
    largest_in_chunks(CHUNK_KERNELS, Layer(x, w, b, None), k, workspace, values, indices)
