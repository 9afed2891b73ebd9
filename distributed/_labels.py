"""The labels of a loss whose classes are spread over the ranks: class indices, or one label per class."""

import importlib
import math
from typing import Any

import numpy as np

from plugrad.backends import Backend
from plugrad.distributed._class_indices import ClassIndices
from plugrad.distributed._labels_per_class import LabelsPerClass
from plugrad.distributed._spread import Classes, Labels, Options


def labels_of(t: Any, options: Options, classes: Classes, shape: tuple[int, ...], backend: Backend) -> Labels:
    """The labels of rows of this shape; with one more axis `t` has one label for each of this rank's classes."""
    xp, is_host = importlib.import_module(backend.arrays), backend.native is np.ndarray
    if t.ndim > len(shape):
        return LabelsPerClass(t.reshape(math.prod(shape), classes.own), options, classes, is_host, xp)
    return ClassIndices(t.reshape(-1), options, classes, is_host, xp, shape, backend)
