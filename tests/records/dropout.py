"""Dropout."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import Array, Mistake, Record, double
from plugrad.tests.records.relu import sample

SEED = 0x9B00DBD8_6627E8D5
GIVEN = {"seed": SEED}
VARIANTS = (
    {"p": 0.1, "seed": 2**64 - 1},
    {"p": 0.0},
    {"p": 1},
    {"seed": np.array(7, np.uint64)},
)


def _multiplied(multiplier: int, word: Array) -> tuple[Array, Array]:
    """The high and the low word of a product, by 16 bits at a time."""
    low, high = word & 0xFFFF, word >> 16
    bottom, top = multiplier * low, multiplier * high
    carried = top + (bottom >> 16)
    return carried >> 16, ((carried & 0xFFFF) << 16) | (bottom & 0xFFFF)


def words(seed: int, count: int) -> Array:
    """The first words of Philox4x32-10 with a key, as the paper writes it: its S-box, its permutation and its keys."""
    counters = np.arange(-(-count // 4), dtype=np.int64)
    left, right = [counters % 2**32, 0 * counters], [counters // 2**32, 0 * counters]
    return philox((left[0], right[0], left[1], right[1]), (seed % 2**32, seed // 2**32))[:count]


def philox(counter: tuple[Any, ...], key: tuple[int, int]) -> Array:
    """The words of blocks, block after block."""
    r0, l0, r1, l1 = (np.asarray(word, np.int64) for word in counter)
    for step in range(10):
        k0, k1 = (key[0] + step * 0x9E3779B9) % 2**32, (key[1] + step * 0xBB67AE85) % 2**32
        high0, low0 = _multiplied(0xD2511F53, r0)
        high1, low1 = _multiplied(0xCD9E8D57, r1)
        r0, l0, r1, l1 = high1 ^ l0 ^ k0, low1, high0 ^ l1 ^ k1, low0
    return np.stack([r0, l0, r1, l1], axis=-1).reshape(-1)


def _oracle(x: Any, p: float = 0.5, seed: Any = SEED) -> tuple[Array, ...]:
    x = double(x)
    is_kept = (words(int(seed), x.size) >= p * 2**32).reshape(x.shape)
    return (np.where(is_kept, x / (1 - p) if p < 1 else 0, 0.0),)


def _textbook(x: Any) -> Any:
    return np.where(np.random.default_rng(SEED).random(x.shape, np.float32) >= 0.5, 2 * x, 0)


MISTAKES = (
    ({"p": 1.5}, ValueError, r"p: expected a number in \[0, 1\], got 1.5"),
    ({"p": np.nan}, ValueError, r"p: expected a number in \[0, 1\], got nan"),
    ({"p": "half"}, TypeError, r"p: expected a number in \[0, 1\], got 'half'"),
    ({"seed": -1}, ValueError, r"seed: expected an integer in \[0, 2\*\*64\), got -1"),
    ({"seed": 2**64}, ValueError, r"seed: expected an integer in \[0, 2\*\*64\), got 18446744073709551616"),
    ({"seed": 1.0}, TypeError, "seed: expected an integer or an array of dtype uint64 without dimensions, got 1.0"),
    ({"seed": None}, TypeError, "seed: expected an integer or an array of dtype uint64 without dimensions, got None"),
    ({"seed": np.array(7)}, TypeError, "seed: expected an integer or an array of dtype uint64, got dtype int64"),
    ({"seed": np.array([7], np.uint64)}, ValueError, r"seed: expected an array without dimensions, got shape \(1,\)"),
)


def _mistakes(kernel: str) -> tuple[Mistake, ...]:
    return tuple(Mistake(changed, error, f"{kernel}: {message}") for changed, error, message in MISTAKES)


RECORDS = (
    Record(
        function=K.dropout,
        sample=sample,
        oracle=_oracle,
        textbook=_textbook,
        given=GIVEN,
        variants=VARIANTS,
        mistakes=(*_mistakes("dropout"), Mistake({"x": "text"}, TypeError, "dropout: x: expected .*, got dtype <U4")),
        passes=2,
        operations=20,
        tolerance=2,
    ),
    Record(
        function=K.dropout_backward,
        sample=lambda *arguments: {"dy": sample(*arguments)["x"]},
        oracle=_oracle,
        textbook=_textbook,
        given=GIVEN,
        variants=VARIANTS,
        mistakes=(
            *_mistakes("dropout_backward"),
            Mistake({"dy": "text"}, TypeError, "dropout_backward: dy: expected .*, got dtype <U4"),
        ),
        passes=2,
        operations=20,
        tolerance=2,
    ),
)
