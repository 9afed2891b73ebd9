"""What is demanded of a backend. `CHECKS` is the table; the modules enter their functions into it."""

from plugrad.tests.conformance.checks import errors, gradients, memory, precision, special, values, work, workspace
from plugrad.tests.conformance.checks._check import CHECKS, Check

__all__ = ["CHECKS", "Check", "errors", "gradients", "memory", "precision", "special", "values", "work", "workspace"]
