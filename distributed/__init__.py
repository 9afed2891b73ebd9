"""Several processes: data-parallel training, and losses whose classes are spread over the processes.

Each process is a *rank*. Every call is collective: all ranks make it, in the same order.
"""

from plugrad.distributed._communicator import Communicator as Communicator
from plugrad.distributed._data_parallel import (
    DataParallel as DataParallel,
    broadcast as broadcast,
    sum_gradients as sum_gradients,
)
from plugrad.distributed._guard import guard as guard
from plugrad.distributed._linear_cross_entropy import (
    linear_cross_entropy_value_and_grad as linear_cross_entropy_value_and_grad,
)
from plugrad.distributed._mpi import mpi as mpi
from plugrad.distributed._softmax_cross_entropy import (
    softmax_cross_entropy_value_and_grad as softmax_cross_entropy_value_and_grad,
)

__all__ = [
    "Communicator",
    "DataParallel",
    "broadcast",
    "guard",
    "linear_cross_entropy_value_and_grad",
    "mpi",
    "softmax_cross_entropy_value_and_grad",
    "sum_gradients",
]
