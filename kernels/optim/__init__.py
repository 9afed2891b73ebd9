"""Optimizers, which update parameters in place in one pass over each, and schedules for their learning rate.

An optimizer holds the parameters and takes their gradients in each step: those of layers
(``optimizer.step(net.grads)``) or those that kernels returned. The rate is a number, or a schedule: a function of the
number of steps done.
"""

from plugrad.kernels.optim._optimizers import SGD, Adam, Optimizer
from plugrad.kernels.optim._penalty import l2_penalty
from plugrad.kernels.optim._schedules import Schedule, cosine, exponential_decay, step_decay

__all__ = ["SGD", "Adam", "Optimizer", "Schedule", "cosine", "exponential_decay", "l2_penalty", "step_decay"]

for _object in (SGD, Adam, Optimizer, cosine, exponential_decay, l2_penalty, step_decay):
    _object.__module__ = __name__  # pickles and tracebacks name the public module
