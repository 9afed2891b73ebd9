"""Optimizers, which update parameters in place in one pass over each, and schedules for their learning rate.

An optimizer holds the parameters and takes their gradients in each step: those of layers
(``optimizer.step(net.grads)``) or those that kernels returned. The rate is a number, or a schedule: a function of the
number of steps done.
"""

from plugrad.kernels.optim._clipping import clip_by_global_norm
from plugrad.kernels.optim._optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from plugrad.kernels.optim._penalty import l2_penalty
from plugrad.kernels.optim._schedules import Schedule, cosine, exponential_decay, step_decay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "clip_by_global_norm",
    "cosine",
    "exponential_decay",
    "l2_penalty",
    "step_decay",
]

for _name in __all__:
    if _name != "Schedule":
        globals()[_name].__module__ = __name__  # pickles and tracebacks name the public module
