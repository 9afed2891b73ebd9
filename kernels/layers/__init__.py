"""Layers: objects that keep what the backward pass needs, for shorter training loops.

A layer calls the kernels on the backend in force. ``forward`` keeps its inputs, without copying them, until the next
``forward``: do not write to them before ``backward``. A layer reuses the memory of a result as soon as nobody refers
to that result: from the third step of a training loop on no layer allocates memory, and a result that the caller keeps
never changes. (The NumPy backend takes up to 2 MiB for intermediate results.) Results that the layer still needs are
read-only; on a GPU, where arrays cannot be read-only, they are copies. A layer may be used by one thread at a time.

`TrainingStep` captures the steps of a training loop, so that nothing runs between the kernels.

Errors begin with the name of the layer: ``Affine: affine: x: expected ...``, and in a network with its position,
counted from 0: ``Sequential: layer 2 (Affine): affine: x: expected ...``.
"""

from plugrad.kernels.layers._activations import Gelu, LeakyRelu, Relu, Sigmoid, Silu, Softmax, Tanh
from plugrad.kernels.layers._affine import Affine, MatMul
from plugrad.kernels.layers._dropout import Dropout
from plugrad.kernels.layers._layer import Layer
from plugrad.kernels.layers._losses import CrossEntropy, Loss, SigmoidWithLoss, SoftmaxWithLoss
from plugrad.kernels.layers._sequential import Sequential
from plugrad.kernels.layers._training import TrainingStep

__all__ = [
    "Affine",
    "CrossEntropy",
    "Dropout",
    "Gelu",
    "Layer",
    "LeakyRelu",
    "Loss",
    "MatMul",
    "Relu",
    "Sequential",
    "Sigmoid",
    "SigmoidWithLoss",
    "Silu",
    "Softmax",
    "SoftmaxWithLoss",
    "Tanh",
    "TrainingStep",
]

for _name in __all__:  # pickles and tracebacks name the public module, wherever the class is defined
    globals()[_name].__module__ = __name__
