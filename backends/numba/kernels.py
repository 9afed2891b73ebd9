"""The kernels of the backend by name: the public functions of the modules that have kernels."""

from plugrad.backends.cpu import kernel_functions
from plugrad.backends.numba import (
    accuracies,
    binary_losses,
    elementwise,
    last_layer,
    losses,
    products,
    rowwise,
    updates,
)

FUNCTIONS = kernel_functions(accuracies, binary_losses, elementwise, rowwise, losses, products, last_layer, updates)
