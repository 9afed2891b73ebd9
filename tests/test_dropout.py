"""The random words of dropout, and what is dropped: the same on every backend, for any layout and position."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends.cpu import blocks
from plugrad.backends.numpy import elementwise
from plugrad.kernels import layers, optim
from plugrad.tests.records.dropout import philox, words

CPU = [name for name in ("numpy", "numba") if backends.available()[name]]
ONES = 2**32 - 1


# The known answers of Random123, the authors' library: kat_vectors, philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_words_are_those_of_random123(counter: Any, key: Any, expected: Any) -> None:
    np.testing.assert_array_equal(philox(counter, key), expected)


@pytest.mark.parametrize("backend", CPU)
def test_a_word_decides_that_is_as_large_as_the_threshold(backend: str) -> None:
    """``u >= ceil(p 2**32)``: p that give the first word of seed 0 itself, and numbers next to it."""
    first = int(words(0, 1)[0])
    with backends.use(backend):
        for p, is_kept in ((first / 2**32, True), ((first + 0.5) / 2**32, False), ((first - 0.5) / 2**32, True)):
            assert bool(K.dropout([1.0], p=p, seed=0)[0]) is is_kept
        assert K.dropout([np.nan, np.inf], p=1.0, seed=0).tolist() == [0, 0]
        assert K.dropout(np.float32(3), seed=3) == 6 * (words(3, 1)[0] >= 2**31)
        x = np.array([np.nan, -0.0, np.inf, 5e-324])
        assert K.dropout(x, p=0.0, seed=0).tobytes() == x.tobytes()


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_mask_of_large_arrays(backend: str, seed: int) -> None:
    """More than one block, of contiguous and of other arrays, and a number of elements that 4 does not divide."""
    shape = (3, 171, 211)
    kept = (words(seed, 3 * 171 * 211) >= 2**31).reshape(shape)
    with backends.use(backend):
        for dtype in (np.float32, np.float16):
            wide = np.ones((3, 171, 430), dtype)
            for x in (np.ones(shape, dtype), np.ones(shape[::-1], dtype).T, wide[..., 1:423:2]):
                np.testing.assert_array_equal(K.dropout(x, seed=seed), 2 * kept)
                out = np.full_like(wide, 7)[..., :422:2]
                np.testing.assert_array_equal(K.dropout_backward(x, seed=seed, out=out), 2 * kept)


def test_positions_whose_counter_has_more_than_32_bits() -> None:
    position = 2**34 + 20
    block = position // 4
    expected = philox((block % 2**32, block // 2**32, 0, 0), (9, 0))
    np.testing.assert_array_equal(elementwise._words(9, position, 4), expected)


def test_positions_of_blocks() -> None:
    for lead in ((2**20,), (3, 2**19), (5, 7, 2**18), (2**21 + 3, 2)):
        numbers = np.arange(np.prod(lead)).reshape(lead)
        for index in blocks.cut(lead, 1):
            assert blocks.position(index, lead) == numbers[index].flat[0]


def test_a_seed_that_is_written_over_is_refused() -> None:
    seed = np.zeros((), np.uint64)
    with backends.use("numpy"), pytest.raises(ValueError, match="dropout: out: shares part of its memory with an arg"):
        K.dropout(np.float64(1.0), seed=seed, out=seed.view(np.float64))


@pytest.mark.parametrize("backend", CPU)
def test_a_captured_seed_is_read_at_each_replay(backend: str) -> None:
    x, seed = np.ones((40, 30), np.float32), np.array(1, np.uint64)
    with backends.use(backend):
        with K.capture() as graph:
            y = K.dropout(x, seed=seed)
        for value in (5, 2**63):
            seed[...] = value
            graph.replay()
            np.testing.assert_array_equal(y, K.dropout(x, seed=value))
        with (
            K.capture(),
            pytest.raises(TypeError, match="dropout: seed: expected an integer or an array of"),
        ):
            K.dropout(x, seed=np.array(1))


# ---------------------------------------------------------------------------------------------------------------------
# The layer
# ---------------------------------------------------------------------------------------------------------------------


def network() -> layers.Sequential:
    """A network that drops half of the hidden activations."""
    inner = layers.Sequential(layers.Gelu(), layers.Dropout(0.5, rng=3))
    return layers.Sequential(layers.Affine.init(6, 40, rng=0), inner, layers.Affine.init(40, 3, rng=1))


@pytest.mark.parametrize("backend", CPU)
def test_the_layer_drops_other_elements_at_each_forward_pass(backend: str) -> None:
    layer, twin, x = layers.Dropout(0.25, rng=7), layers.Dropout(0.25, np.random.default_rng(7)), np.ones((50, 40))
    with backends.use(backend):
        masks = [layer.forward(x) for _ in range(3)]
        assert all((twin.forward(x) == mask).all() for mask in masks)
        assert len({mask.tobytes() for mask in masks}) == 3
        assert all(0.7 < (mask != 0).mean() < 0.8 for mask in masks)
        np.testing.assert_array_equal(layer.backward(x), masks[-1])
        np.testing.assert_array_equal(layer.backward(x, use_jacobian=True), masks[-1])
    assert (layers.Dropout(rng=8).forward(x) != layers.Dropout(rng=9).forward(x)).any()


def test_the_switch_reaches_nested_layers() -> None:
    net, x = network(), np.ones((5, 6), np.float32)
    assert net.training
    assert (net.forward(x) != net.forward(x)).any()
    net.training = False
    assert not net.training
    assert not net[1].training
    np.testing.assert_array_equal(net.forward(x), net.forward(x))
    dx = net.backward(np.ones((5, 3), np.float32))
    np.testing.assert_array_equal(net.backward(np.ones((5, 3), np.float32)), dx)
    assert not pickle.loads(pickle.dumps(net)).training
    net.training = True
    assert (net.forward(x) != net.forward(x)).any()


@pytest.mark.parametrize("backend", CPU)
def test_a_replay_draws_what_the_loop_without_a_capture_draws(backend: str) -> None:
    plain, captured = network(), network()
    x, dy = np.ones((5, 6), np.float32), np.ones((5, 3), np.float32)
    with backends.use(backend):
        with K.capture() as graph:
            y = captured.forward(x)
            dx = captured.backward(dy)
        assert [name for name in graph.kernels if "dropout" in name] == ["dropout", "dropout_backward"]
        found = set()
        for step in range(3):
            if step:
                graph.replay()
            np.testing.assert_array_equal(y, plain.forward(x))
            np.testing.assert_array_equal(dx, plain.backward(dy))
            found.add(y.tobytes())
        assert len(found) == 3


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_network_that_is_stored_and_loaded_goes_on_with_the_same_elements(suffix: str, tmp_path: Path) -> None:
    net, other, x = network(), network(), np.ones((5, 6), np.float32)
    net.forward(x)
    net.save(tmp_path / f"net{suffix}")
    other.load(tmp_path / f"net{suffix}")
    for twin in (other, pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        np.testing.assert_array_equal(twin.state_dict()["1.1.seed"], net.state_dict()["1.1.seed"])
    y = net.forward(x)
    np.testing.assert_array_equal(other.forward(x), y)
    dy = np.ones((5, 3), np.float32)
    np.testing.assert_array_equal(other.backward(dy), net.backward(dy))


@pytest.mark.parametrize("backend", CPU)
def test_training_steps_are_always_in_training(backend: str) -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(8, 6)).astype(np.float32), rng.integers(0, 3, 8)) for _ in range(4)]
    with backends.use(backend):
        plain, net = network(), network()
        optimizer, loss = optim.SGD(plain.params, lr=0.1), layers.SoftmaxWithLoss()
        training = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optim.SGD(net.params, lr=0.1))
        net.training = False
        for x, t in batches:
            expected = loss.forward(plain.forward(x), t)
            plain.backward(loss.backward(), needs_dx=False)
            optimizer.step(plain.grads)
            assert training.step(x, t) == expected
            assert not net.training


def test_mistakes_of_the_layer() -> None:
    for p, error in ((1.5, ValueError), ("half", TypeError)):
        with pytest.raises(error, match=r"Dropout: p: expected a number in \[0, 1\]"):
            layers.Dropout(p)  # type: ignore[arg-type]
    for rng, error in (("a", TypeError), (-1, ValueError)):
        with pytest.raises(error, match="Dropout: rng: expected a generator, a seed or None, got"):
            layers.Dropout(0.5, rng)  # type: ignore[arg-type]
    layer = layers.Dropout(0.5, rng=0)
    with pytest.raises(RuntimeError, match="Dropout: backward: call forward first"):
        layer.backward([1.0])
    layer.forward([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"Dropout: dropout_backward: dy: expected the shape of the result, \(1, 2\)"):
        layer.backward([1.0, 2.0])
    with pytest.raises(ValueError, match="Gelu: approximate: expected 'none' or 'tanh', got 'erf'"):
        layers.Gelu(approximate="erf")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LeakyRelu: negative_slope: expected a finite number, got None"):
        layers.LeakyRelu(negative_slope=None)  # type: ignore[arg-type]


def test_a_stored_seed_that_is_negative_is_refused() -> None:
    layer = layers.Dropout(0.5, rng=0)
    before = int(layer.seed)
    with pytest.raises(ValueError, match="seed: values of dtype int64 would lose digits in uint64"):
        layer.load_state_dict({"seed": np.array(-1)})
    layer.load_state_dict({"seed": np.array(before, np.uint64)})
    assert int(layer.seed) == before
