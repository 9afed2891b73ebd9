"""Train a two-layer network on the 1,797 scanned digits that scikit-learn ships, on the backend you select.

    PLUGRAD_BACKEND=numpy python examples/digits.py --plot digits.png

The network is affine, ReLU, affine, softmax with cross-entropy, trained by stochastic gradient descent with momentum.
All arrays are the selected backend's own: they go there by `backends.asarray` and come back by `backends.to_numpy`.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from plugrad import backends
from plugrad import kernels as K

HIDDEN, CLASSES, BATCH, RATE, MOMENTUM = 128, 10, 64, 0.1, 0.9


def main(epochs: int, seed: int, plot: str | None) -> None:
    """Train, test after every epoch, and draw."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = digits.target[order]
    split = len(labels) * 4 // 5
    train_x, test_x = backends.asarray(images[:split]), backends.asarray(images[split:])
    train_t, test_t = backends.asarray(labels[:split]), labels[split:]

    def weights(inputs: int, outputs: int) -> np.ndarray:
        scale = np.sqrt(2 / inputs)  # He et al., 2015: keeps the variance from layer to layer under ReLU
        return (rng.normal(size=(inputs, outputs)) * scale).astype(np.float32)

    w1, w2 = (backends.asarray(w) for w in (weights(images.shape[1], HIDDEN), weights(HIDDEN, CLASSES)))
    b1, b2 = (backends.asarray(np.zeros(size, np.float32)) for size in (HIDDEN, CLASSES))
    parameters = (w1, b1, w2, b2)
    velocities = [0 * parameter for parameter in parameters]

    def logits(x):
        return K.affine(K.relu(K.affine(x, w1, b1)), w2, b2)

    def train_step(x, t):
        h = K.relu(K.affine(x, w1, b1))
        loss, dz = K.softmax_cross_entropy_value_and_grad(K.affine(h, w2, b2), t)
        dh, dw2, db2 = K.affine_backward(dz, h, w2)
        _, dw1, db1 = K.affine_backward(K.relu_backward(dh, h), x, w1, needs=("dw", "db"))
        for parameter, velocity, gradient in zip(parameters, velocities, (dw1, db1, dw2, db2), strict=True):
            velocity *= MOMENTUM
            velocity -= RATE * gradient
            parameter += velocity
        return loss

    print(f"backend: {backends.current()}   train: {split}   test: {len(test_t)}")
    losses, accuracies, times = [], [], []
    for epoch in range(1, epochs + 1):
        batches = [backends.asarray(rows) for rows in np.array_split(rng.permutation(split), split // BATCH)]
        total = 0.0
        start = time.perf_counter()
        for rows in tqdm(batches, desc=f"epoch {epoch}", leave=False):
            total = total + train_step(train_x[rows], train_t[rows])  # on a GPU the sum stays there
        losses.append(float(backends.to_numpy(total)) / len(batches))  # this waits for the GPU, if there is one
        times.append((time.perf_counter() - start) / len(batches))
        predicted = backends.to_numpy(logits(test_x)).argmax(axis=1)
        accuracies.append(float((predicted == test_t).mean()))
        print(f"epoch {epoch:3}   loss {losses[-1]:.4f}   test accuracy {accuracies[-1]:.2%}")
    print(f"{statistics.median(times) * 1e6:.0f} us per step")  # the first epoch may have compiled
    if plot:
        draw(plot, losses, accuracies, images[split:], test_t, predicted)


def draw(path, losses, accuracies, images, labels, predicted) -> None:
    """Draw the curves of loss and accuracy, and a few test digits with their predictions, the wrong ones first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(10, 6), layout="constrained")
    curves, gallery = figure.subfigures(2, 1, height_ratios=[2, 1.1])
    left, right = curves.subplots(1, 2)
    epochs = range(1, len(losses) + 1)
    left.plot(epochs, losses, marker="o", markersize=3, color="#c44e52")
    left.set(title="Training loss", xlabel="epoch", ylabel="nats", yscale="log")
    right.plot(epochs, np.array(accuracies) * 100, marker="o", markersize=3, color="#4c72b0")
    right.set(title=f"Test accuracy: {accuracies[-1]:.1%}", xlabel="epoch", ylabel="%")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    wrong_first = np.argsort(predicted == labels, kind="stable")[:12]
    for axes, index in zip(gallery.subplots(1, 12), wrong_first, strict=True):
        axes.imshow(images[index].reshape(8, 8), cmap="gray_r")
        right_guess = predicted[index] == labels[index]
        label = f"{predicted[index]}" if right_guess else f"{predicted[index]}, not {labels[index]}"
        axes.set_title(label, fontsize=9, color="black" if right_guess else "#c44e52")
        axes.axis("off")
    figure.savefig(path, dpi=120)
    print(f"drawn: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="instead of the environment variable PLUGRAD_BACKEND")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE.png", help="draw loss, accuracy and some digits with predictions")
    chosen = parser.parse_args()
    if chosen.epochs < 1:
        parser.error("--epochs: expected at least 1")
    if chosen.plot and not (Path(chosen.plot).suffix == ".png" and Path(chosen.plot).resolve().parent.is_dir()):
        parser.error(f"--plot: expected FILE.png in a folder that exists, got {chosen.plot}")
    try:
        if chosen.backend:
            backends.set_default(chosen.backend)
        backends.current()
    except (ValueError, backends.BackendUnavailableError) as error:
        parser.error(str(error))
    main(chosen.epochs, chosen.seed, chosen.plot)
