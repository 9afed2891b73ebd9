"""What is measured: a kernel on arrays of one shape, or one step of training."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugrad.kernels import KERNELS

STEP = "step"
DTYPES = ("float16", "bfloat16", "float32", "float64")

# The distance from 1 to the next number, the bytes of one, and the smallest normal one.
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}

# The sizes that are measured where none are named: small and large, few classes and many, images and vocabularies.
_ELEMENTWISE = ("256x10", "1024x1024", "4096x1024", "512x50257")
_ROWS = ("256x10", "1024x1024", "4096x1024", "512x50257", "4x256000", "65536x10", "8x21x256x256")
_AFFINE = ("64x784x128", "256x1024x1024")
_LAST_LAYER = ("1024x768x50257", "4096x512x32000")
SIZES = {
    name: _LAST_LAYER
    if "max_workspace" in kernel.options
    else _AFFINE
    if "w" in kernel.arguments
    else _ROWS
    if "axis" in kernel.options
    else _ELEMENTWISE
    for name, kernel in KERNELS.items()
} | {STEP: ("64-784-128-10", "256-784-512-10", "1024-784-1024-10")}

QUICK = {  # a small and a large size, for a run of a minute or two
    name: ("256x64x10000",)
    if "max_workspace" in kernel.options
    else ("64x784x128",)
    if "w" in kernel.arguments
    else ("256x10", "1024x1024")
    for name, kernel in KERNELS.items()
} | {STEP: ("64-784-128-10",)}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes
    ----------
    name : str
        A kernel, or ``"step"``: forward, backward and update of a network with one hidden layer.
    size : str
        ``rows x classes``, such as ``4096x1024``, or with more dimensions, such as ``8x21x256x256``, with the classes
        along axis 1, as for images. For the affine layer also ``rows x inputs x outputs``; for a step
        ``rows-inputs-hidden-classes``.
    dtype : str
        Of the arrays.
    new : bool
        Whether results go to new arrays, rather than to ``out=``.
    rate : float
        How far a step of training goes: little, so that thousands of them change nothing about the time of one.
    """

    name: str
    size: str
    dtype: str = "float32"
    new: bool = False
    rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.name != STEP and self.name not in KERNELS:
            raise ValueError(f"kernel: expected one of {', '.join([*KERNELS, STEP])}; got {self.name!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {self.dtype!r}")
        dimensions = len(self.shape)
        fits = dimensions == 4 if self.name == STEP else dimensions in (2, 3) if self.is_product else dimensions >= 2
        if not fits or min(self.shape) < 1:
            raise ValueError(f"size: expected {self.form} for {self.name}, got {self.size!r}")

    @property
    def form(self) -> str:
        """What a size looks like."""
        if self.name == STEP:
            return "rows-inputs-hidden-classes, such as 64-784-128-10,"
        return (
            "rows x inputs x outputs, such as 64x784x128," if self.is_product else "rows x classes, such as 4096x1024,"
        )

    @property
    def is_product(self) -> bool:
        """Whether the arguments are matrices to multiply."""
        return self.name != STEP and "w" in KERNELS[self.name].arguments

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers in `size`."""
        try:
            return tuple(int(number) for number in self.size.split("-" if self.name == STEP else "x"))
        except ValueError:
            raise ValueError(f"size: expected {self.form} for {self.name}, got {self.size!r}") from None

    @property
    def axis(self) -> int:
        """The axis of the classes."""
        return -1 if len(self.shape) == 2 else 1

    def arguments(self) -> list[Any]:
        """The arrays the kernel is called with, from the samples in its record."""
        kernel, rng, dtype = KERNELS[self.name], np.random.default_rng(0), as_dtype(self.dtype)
        shape = self.shape
        if self.is_product and len(shape) == 3:
            rows, inputs, outputs = shape
            made = {"x": (rows, inputs), "w": (inputs, outputs), "b": (outputs,), "dy": (rows, outputs)}
            return [
                rng.integers(0, outputs, rows)
                if name == "t"
                else (rng.standard_normal(made[name], np.float32) / np.float32(inputs**0.5)).astype(dtype)
                for name in kernel.arguments
            ]
        if len(shape) == 2:
            sample = kernel.sample(rng, *shape, dtype)
            return [sample[name] for name in kernel.arguments]
        batch, classes, *inner = shape
        sample = kernel.sample(rng, batch * int(np.prod(inner)), classes, dtype)
        return [self._as_images(sample[name]) for name in kernel.arguments]

    def _as_images(self, x: Any) -> Any:
        """An array of one row per pixel, or of one number, as one of images."""
        batch, classes, *inner = self.shape
        if not isinstance(x, np.ndarray) or not x.ndim:
            return x
        if x.ndim == 1:
            return x.reshape(batch, *inner)
        return np.ascontiguousarray(np.moveaxis(x.reshape(batch, *inner, classes), -1, 1))

    @property
    def rows(self) -> int:
        """How many rows of classes there are."""
        batch, _, *inner = self.shape
        return batch if self.name == STEP or self.is_product else batch * math.prod(inner)

    @property
    def wanted_products(self) -> tuple[bool, bool, bool]:
        """Which matrix products a layer needs: of inputs and weights, and for the gradient of each."""
        results = KERNELS[self.name].results if self.is_product else ()
        return "y" in results or "loss" in results, "dx" in results, "dw" in results

    @property
    def products(self) -> int:
        """How many of them, where these take most of the time."""
        return sum(self.wanted_products)

    @property
    def has_exact_elements(self) -> bool:
        """Whether each element of the results is held to an error of its own, however small it is beside others."""
        if self.name == STEP:
            return False
        kernel = KERNELS[self.name]
        return kernel.tolerance == 0 or (kernel.budget is not None and kernel.budget.of != "logits")

    @property
    def operations(self) -> float:
        """How many floating-point operations there are: of the formula, or of the matrix products; 0 if unknown."""
        if self.name == STEP:
            rows, inputs, hidden, classes = self.shape
            return 2.0 * rows * (2 * inputs * hidden + 3 * hidden * classes)
        if self.is_product:
            return 2.0 * math.prod(self.shape) * self.products if len(self.shape) == 3 else 0.0
        return KERNELS[self.name].operations * math.prod(self.shape)

    @property
    def elements(self) -> int:
        """How many numbers the result has, or the logits or the hidden and last layers between the arguments and it."""
        rows, *others = self.shape
        if self.name == STEP:
            return rows * sum(others[1:])
        return rows * others[-1] if self.is_product else math.prod(self.shape)

    @property
    def least_bytes(self) -> float:
        """How much memory arguments and results take, each once: of matrix products, or of a step its layers."""
        rows, *others = self.shape
        if self.name == STEP:
            numbers = rows * sum(others) + sum(a * b for a, b in itertools.pairwise(others))
        else:
            inputs, outputs = others[0], others[-1]
            sizes = {"x": rows * inputs, "w": inputs * outputs, "b": outputs, "y": rows * outputs}
            names = [*KERNELS[self.name].arguments, *KERNELS[self.name].results]
            numbers = sum(sizes.get(name.removeprefix("d"), 0) for name in names)
        return float(numbers * ITEMSIZE[self.dtype])

    @property
    def bytes(self) -> float | None:
        """How much memory is moved at the least; None where something else takes the time."""
        if self.name == STEP or self.is_product:
            return None
        return KERNELS[self.name].passes * math.prod(self.shape) * ITEMSIZE[self.dtype]


def as_dtype(name: str) -> np.dtype[Any]:
    """The dtype called so; that of bfloat16 is from ml_dtypes."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ValueError("dtype: bfloat16 needs ml_dtypes: python -m pip install ml_dtypes") from error
        name = ml_dtypes.bfloat16
    return np.dtype(name)


@dataclass(frozen=True)
class Network:
    """Data and parameters of a step of training, and the rate."""

    x: Any
    t: Any
    parameters: tuple[Any, Any, Any, Any]
    rate: float


def network(case: Case) -> Network:
    """What a step starts from."""
    rows, inputs, hidden, classes = case.shape
    rng, dtype = np.random.default_rng(0), as_dtype(case.dtype)
    return Network(
        x=rng.normal(size=(rows, inputs)).astype(dtype),
        t=rng.integers(0, classes, rows),
        parameters=(
            (rng.normal(size=(inputs, hidden)) / inputs**0.5).astype(dtype),
            np.zeros(hidden, dtype),
            (rng.normal(size=(hidden, classes)) / hidden**0.5).astype(dtype),
            np.zeros(classes, dtype),
        ),
        rate=case.rate,
    )
