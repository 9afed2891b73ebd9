"""The sizes of the benchmarks: kernels whose arguments have the same shapes are measured at the same sizes."""

from dataclasses import dataclass, replace

from plugrad.kernels import KERNELS

STEP = "step"  # one step of training, measured like a kernel
NAMES = (*KERNELS, STEP)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a group of kernels.

    Attributes
    ----------
    form : str
        The format of a size, with an example, for error messages.
    smallest : str
        A size at which the call itself takes most of the time.
    usual : tuple of str
        The sizes of the table.
    quick : tuple of str
        The sizes of the table with ``--quick``: together they take a minute or two.
    rows, classes : tuple of (str, int)
        For curves: the size with ``{}`` for the number that grows, and the largest number.
    threads : str
        For curves: the size that the threads share.
    """

    form: str
    smallest: str
    usual: tuple[str, ...]
    quick: tuple[str, ...]
    rows: tuple[str, int]
    classes: tuple[str, int]
    threads: str


_CLASSES = "rows x classes, such as 4096x1024,"
_PRODUCT = "rows x inputs x outputs, such as 64x784x128,"

# Few classes and many. Curves end with arrays that exceed the caches.
ELEMENTWISE = Sizes(
    form=_CLASSES,
    smallest="32x10",
    usual=("256x10", "1024x1024", "4096x1024", "512x50257"),
    quick=("256x10", "1024x1024"),
    rows=("{}x100", 2**15),
    classes=("64x{}", 2**16),
    threads="4096x1024",
)
# Also few rows of a vocabulary, many rows of few classes, and images.
ALONG_AXIS = replace(ELEMENTWISE, usual=(*ELEMENTWISE.usual, "4x256000", "65536x10", "8x21x256x256"))
# A network for handwritten digits, and a square layer.
LAYER = Sizes(
    form=_PRODUCT,
    smallest="32x16x10",
    usual=("64x784x128", "256x1024x1024"),
    quick=("64x784x128",),
    rows=("{}x784x128", 2**12),
    classes=("64x784x{}", 2**12),
    threads="1024x784x512",
)
# The vocabularies of GPT-2 and Llama 2.
LAST_LAYER = Sizes(
    form=_PRODUCT,
    smallest="32x16x10",
    usual=("1024x768x50257", "4096x512x32000"),
    quick=("256x64x10000",),
    rows=("{}x64x5000", 2**10),
    classes=("128x64x{}", 2**15),
    threads="512x256x5000",
)
# A network for handwritten digits, with one hidden layer.
TRAINING = Sizes(
    form="rows-inputs-hidden-classes, such as 64-784-128-10,",
    smallest="32-16-32-10",
    usual=("64-784-128-10", "256-784-512-10", "1024-784-1024-10"),
    quick=("64-784-128-10",),
    rows=("{}-784-128-10", 2**12),
    classes=("64-784-128-{}", 2**12),
    threads="1024-784-512-10",
)


def sizes_of(name: str) -> Sizes:
    """Return the sizes of a kernel, whose name may be followed by that of options, or of a step of training."""
    if name == STEP:
        return TRAINING
    kernel = KERNELS[name.partition("+")[0]]
    if "max_workspace" in kernel.options:
        return LAST_LAYER
    if "w" in kernel.arguments:
        return LAYER
    return ALONG_AXIS if "axis" in kernel.options else ELEMENTWISE
