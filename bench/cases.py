"""A case of a benchmark: a kernel on arrays of one shape and dtype, or one step of training."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugrad.bench.sizes import NAMES, STEP, Sizes, sizes_of
from plugrad.tests.records import RECORDS, Record

DTYPES = ("float16", "bfloat16", "float32", "float64")

LARGEST = 5  # logits of each row that `linear_top_k` returns, as a beam search or a measure of accuracy does

# The kernels, and those with options that their records name.
TIMED = tuple(f"{name}+{options}" for name, record in RECORDS.items() for options in record.timed)
ALL_NAMES = (*NAMES, *TIMED)

# The distance from 1 to the next number, the bytes of a number, and the smallest normal one.
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes
    ----------
    name : str
        A kernel, such as ``"gelu"``; one with options of `timed` in its record, such as ``"gelu+tanh"``; or ``"step"``:
        forward pass, backward pass and update of a network with one hidden layer.
    size : str
        ``rows x classes``, such as ``4096x1024``. With more dimensions, such as ``8x21x256x256``, the classes lie along
        axis 1, as for images. Layers also take ``rows x inputs x outputs``, steps ``rows-inputs-hidden-classes``.
    dtype : str
        The dtype of the arrays.
    new : bool
        Whether results go to new arrays rather than to ``out=``.
    captured : bool
        Whether our step of training is captured, and replayed.
    rate : float
        The learning rate of a step of training. It is small, so that thousands of steps do not change how long one
        takes.
    """

    name: str
    size: str
    dtype: str = "float32"
    new: bool = False
    captured: bool = False
    rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.name not in ALL_NAMES:
            raise ValueError(f"kernel: expected one of {', '.join(ALL_NAMES)}; got {self.name!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if self.captured and (self.name != STEP or self.new):
            raise ValueError("--captured: expected 'step', without --new: only steps of training are captured")
        dimensions = len(self.shape)
        fits = dimensions == 4 if self.name == STEP else dimensions in (2, 3) if self.is_product else dimensions >= 2
        if not fits or min(self.shape) < 1:
            raise ValueError(self._expected_size)

    @property
    def title(self) -> str:
        """The name in tables."""
        return f"{self.name} captured" if self.captured else self.name

    @property
    def kernel(self) -> str:
        """The name without options."""
        return self.name.partition("+")[0]

    @property
    def record(self) -> Record:
        """The record of the kernel."""
        return RECORDS[self.kernel]

    @property
    def sizes(self) -> Sizes:
        """The sizes of the kernel."""
        return sizes_of(self.kernel)

    @property
    def _expected_size(self) -> str:
        return f"size: expected {self.sizes.form} for {self.name}, got {self.size!r}"

    @property
    def is_product(self) -> bool:
        """Whether the arguments are matrices to multiply."""
        return self.name != STEP and "w" in self.record.arguments

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers in `size`."""
        try:
            return tuple(int(number) for number in self.size.split("-" if self.name == STEP else "x"))
        except ValueError:
            raise ValueError(self._expected_size) from None

    @property
    def axis(self) -> int:
        """The axis of the classes."""
        return -1 if len(self.shape) == 2 else 1

    @property
    def options(self) -> dict[str, Any]:
        """The options of the kernel's call."""
        axis = {"axis": self.axis} if "axis" in self.record.options else {}
        return {**self.record.given, **axis, **self.chosen()}

    def chosen(self) -> dict[str, Any]:
        """Return the options in the name of the case, which peers take too."""
        _, _, options = self.name.partition("+")
        inputs = self._inputs() if options else {}
        return {name: value for name, value in inputs.items() if name in self.record.options}

    def arguments(self) -> list[Any]:
        """Return the arguments of the kernel: random numbers with outliers among them."""
        inputs = self._inputs()
        return [inputs[name] for name in self.record.arguments]

    def _inputs(self) -> dict[str, Any]:
        """Return the arguments, and the options in the name of the case, by their names."""
        _, _, options = self.name.partition("+")
        batch, classes, *inner = self.shape
        if self.is_product and inner:
            sample, inner = self._matrices(), []
        else:
            rng = np.random.default_rng(0)
            sample = self.record.sample(rng, batch * math.prod(inner), classes, as_dtype(self.dtype))
        if options:
            sample |= self.record.timed[options](np.random.default_rng(1), sample)
        return {name: self._as_images(x) for name, x in sample.items()} if inner else sample

    def _matrices(self) -> dict[str, Any]:
        """Return arguments of rows x inputs x outputs; a sample of the record has rows and classes only."""
        rows, inputs, outputs = self.shape
        rng, dtype = np.random.default_rng(0), as_dtype(self.dtype)
        shapes = {"x": (rows, inputs), "w": (inputs, outputs), "b": (outputs,), "dy": (rows, outputs)}
        found: dict[str, Any] = {}
        for name in self.record.arguments:
            if name == "t":
                found[name] = rng.integers(0, outputs, rows)
            elif name == "k":
                found[name] = min(LARGEST, outputs)
            else:
                numbers = rng.standard_normal(shapes[name], np.float32) / np.float32(inputs**0.5)
                found[name] = numbers.astype(dtype)
        return found

    def _as_images(self, x: Any) -> Any:
        """Reshape an array with one row, or one number, per pixel to images, and one with a number per class."""
        batch, classes, *inner = self.shape
        if not isinstance(x, np.ndarray) or not x.ndim:
            return x
        if x.ndim == 1:
            return (
                x.reshape(batch, *inner)
                if x.size == batch * math.prod(inner)
                else x.reshape(classes, *[1] * len(inner))
            )
        return np.ascontiguousarray(np.moveaxis(x.reshape(batch, *inner, classes), -1, 1))

    @property
    def rows(self) -> int:
        """The number of rows of classes."""
        batch, _, *inner = self.shape
        return batch if self.name == STEP or self.is_product else batch * math.prod(inner)

    @property
    def wanted_products(self) -> tuple[bool, bool, bool]:
        """Which matrix products a layer needs: ``x w``, and those for the gradients of ``x`` and of ``w``."""
        results = self.record.results if self.is_product else ()
        return any(name in results for name in ("y", "loss", "values")), "dx" in results, "dw" in results

    @property
    def products(self) -> int:
        """The number of matrix products, where these take most of the time."""
        return 5 if self.name == STEP else sum(self.wanted_products)

    @property
    def is_random(self) -> bool:
        """Whether each side draws numbers of its own, so that results differ."""
        return self.name != STEP and "seed" in self.record.options

    @property
    def has_exact_elements(self) -> bool:
        """Whether errors are relative to each element rather than to the largest one."""
        if self.name == STEP:
            return False
        kernel = self.record
        return kernel.tolerance == 0 or (kernel.budget is not None and kernel.budget.of != "logits")

    @property
    def operations(self) -> float:
        """The number of floating-point operations, of the formula or of the matrix products; 0 if unknown."""
        if self.name == STEP:
            rows, inputs, hidden, classes = self.shape
            return 2.0 * rows * (2 * inputs * hidden + 3 * hidden * classes)
        if self.is_product:
            return 2.0 * math.prod(self.shape) * self.products if len(self.shape) == 3 else 0.0
        return self.record.operations * math.prod(self.shape)

    @property
    def elements(self) -> int:
        """The number of elements of the result or, for layers and steps, of the logits and the hidden layer."""
        rows, *others = self.shape
        if self.name == STEP:
            return rows * sum(others[1:])
        return rows * others[-1] if self.is_product else math.prod(self.shape)

    @property
    def least_bytes(self) -> float:
        """The bytes of arguments and results, each counted once; of a step, those of its layers."""
        rows, *others = self.shape
        if self.name == STEP:
            numbers = rows * sum(others) + sum(a * b for a, b in itertools.pairwise(others))
        else:
            inputs, outputs = others[0], others[-1]
            sizes = {"x": rows * inputs, "w": inputs * outputs, "b": outputs, "y": rows * outputs}
            names = [*self.record.arguments, *self.record.results]
            numbers = sum(sizes.get(name.removeprefix("d"), 0) for name in names)
        return float(numbers * ITEMSIZE[self.dtype])

    @property
    def bytes(self) -> float | None:
        """The least number of bytes to move; None where matrix products take most of the time."""
        if self.name == STEP or self.is_product:
            return None
        return self.record.passes * math.prod(self.shape) * ITEMSIZE[self.dtype]


def with_options(kernel: str, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return the entries of a peer's table for a kernel without and with the options that its record has timed."""
    return dict.fromkeys((kernel, *(name for name in TIMED if name.partition("+")[0] == kernel)), function)


def as_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of this name; ``bfloat16`` comes from ml_dtypes.

    Raises
    ------
    ValueError
        If the name is ``bfloat16`` and ml_dtypes is not installed.
    """
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ValueError("dtype: bfloat16 needs ml_dtypes: python -m pip install ml_dtypes") from error
        name = ml_dtypes.bfloat16
    return np.dtype(name)


@dataclass(frozen=True)
class Network:
    """The data, the parameters (w1, b1, w2, b2) and the learning rate of a step of training."""

    x: Any
    t: Any
    parameters: tuple[Any, Any, Any, Any]
    rate: float


def network(case: Case) -> Network:
    """Return the network and the batch from which a step of training starts."""
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
