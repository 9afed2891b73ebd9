"""Say which digits are on a picture: a label for each of ten, on the backend you select.

    PLUGRAD_BACKEND=numpy python examples/pairs.py

Each picture shows two of the 1,797 scanned digits that scikit-learn ships, side by side. A picture has ten labels, one
for each digit: 1 if it is on the picture. The network is affine, ReLU, affine, and the loss that of ten times two
classes, `SigmoidWithLoss`; its step is captured once and then replayed. Eight of ten labels are 0, so those of 1 weigh
more (`pos_weight`). Pictures for the test are made of digits that the network has not seen.
"""

import argparse
import time

import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from plugrad import backends, kernels as K
from plugrad.kernels import layers, optim

DIGITS, HIDDEN, BATCH, RATE, PICTURES = 10, 128, 64, 0.003, 6400


def pictures(rng: np.random.Generator, images, labels, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of images side by side, and for each pair which digits are on it."""
    chosen = rng.integers(0, len(images), (number, 2))
    on_picture = np.zeros((number, DIGITS), bool)
    for side in (0, 1):
        on_picture[np.arange(number), labels[chosen[:, side]]] = True
    return images[chosen].reshape(number, -1), on_picture


def main(epochs: int, seed: int) -> None:
    """Train the network, and print its progress."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    images, order = (images / 16).astype(np.float32), rng.permutation(len(labels))
    train, test = order[:1437], order[1437:]
    x, t = pictures(rng, images[train], labels[train], PICTURES)
    test_x, test_t = pictures(rng, images[test], labels[test], 1000)

    net = layers.Sequential(
        layers.Affine.init(x.shape[1], HIDDEN, rng=rng), layers.Relu(), layers.Affine.init(HIDDEN, DIGITS, rng=rng)
    )
    pos_weight = backends.asarray(np.full(DIGITS, 2, np.float32))
    training = layers.TrainingStep(net, layers.SigmoidWithLoss(pos_weight=pos_weight), optim.Adam(net.params, RATE))
    print(f"backend: {backends.current()}   pictures: {PICTURES}   labels each: {DIGITS}")
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in tqdm(rng.permutation(PICTURES).reshape(-1, BATCH), desc=f"epoch {epoch}", leave=False):
            loss = training.step(backends.asarray(x[batch]), backends.asarray(t[batch]))
            total += float(backends.to_numpy(loss)) * BATCH / PICTURES
        y = backends.to_numpy(K.sigmoid(net.forward(backends.asarray(test_x))))
        right = (y > 0.5) == test_t
        print(
            f"epoch {epoch:2}   loss {total:.4f}   labels {right.mean():.2%}   pictures {right.all(axis=1).mean():.2%}"
        )
    print(f"{(time.perf_counter() - start) / epochs:.2f} s per epoch")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="instead of the environment variable PLUGRAD_BACKEND")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.epochs < 1:
        parser.error("--epochs: expected at least 1")
    try:
        if chosen.backend:
            backends.set_default(chosen.backend)
        backends.current()
    except (ValueError, backends.BackendUnavailableError) as error:
        parser.error(str(error))
    main(chosen.epochs, chosen.seed)
