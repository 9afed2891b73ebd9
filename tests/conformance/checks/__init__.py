"""The requirements on a backend. Each module enters its functions into the table `CHECKS`."""

from plugrad.tests.conformance.checks import (
    accuracies,
    elements,
    errors,
    gradients,
    largest,
    memory,
    precision,
    special,
    values,
    work,
    workspace,
)
from plugrad.tests.conformance.checks._check import CHECKS, Check

__all__ = [
    "CHECKS",
    "Check",
    "accuracies",
    "elements",
    "errors",
    "gradients",
    "largest",
    "memory",
    "precision",
    "special",
    "values",
    "work",
    "workspace",
]
