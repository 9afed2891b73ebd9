"""Derivatives by central differences, and gradients checked against them.

Differences are computed in float64, whatever the dtype of the gradient; arrays of a device are moved to the host and
back.
"""

from plugrad.kernels.gradcheck._check import check
from plugrad.kernels.gradcheck._descent import gradient_descent
from plugrad.kernels.gradcheck._differences import gradient, jacobian
from plugrad.kernels.gradcheck._report import Entry, Gradient, Report

__all__ = ["Entry", "Gradient", "Report", "check", "gradient", "gradient_descent", "jacobian"]

for _name in __all__:  # pickles and tracebacks name the public module, wherever the object is defined
    globals()[_name].__module__ = __name__
