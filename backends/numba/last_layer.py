"""The last layer and its loss in chunks of rows."""

from plugrad.backends.chunks import functions
from plugrad.backends.cpu.linear_cross_entropy import ChunkKernels, in_chunks
from plugrad.backends.numba.column_sums import column_sums
from plugrad.backends.numba.elementwise import tanh, tanh_backward
from plugrad.backends.numba.losses import softmax_cross_entropy, softmax_cross_entropy_value_and_grad

CHUNK_KERNELS = ChunkKernels(
    softmax_cross_entropy, softmax_cross_entropy_value_and_grad, column_sums, tanh, tanh_backward
)

linear_cross_entropy, linear_cross_entropy_value_and_grad = functions(lambda *call: in_chunks(CHUNK_KERNELS, *call))
