"""Train a two-layer network on the 1,797 scanned digits that scikit-learn ships, on the backend you select.

    PLUGRAD_BACKEND=numpy python examples/digits.py --plot digits.png

The network is affine, ReLU, affine, softmax with cross-entropy, trained by stochastic gradient descent with momentum.
The script has it three times: with kernels alone, in arrays that are allocated once; with layers (`--style layers`),
which keep the arrays of the backward pass and reuse their memory; and with layers whose step is captured once and then
replayed (`--style captured`). All call the same kernels and print the same numbers. `backends.asarray` moves the data
to the selected backend, and `backends.to_numpy` moves results back.

    mpiexec -n 2 python examples/digits.py --distributed

trains with the rows of each batch split over the processes that `mpiexec` starts, and prints the same numbers as one.
"""

import argparse
import contextlib
import os
import statistics
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from plugrad import backends, distributed, kernels as K
from plugrad.kernels import layers, optim

HIDDEN, CLASSES, BATCH, RATE, MOMENTUM = 128, 10, 64, 0.1, 0.9


class WithFunctions:
    """The network with kernels alone. Results go to arrays allocated once: a step allocates none for the batch."""

    def __init__(self, w1, b1, w2, b2) -> None:
        self.w1, self.b1, self.w2, self.b2 = self.parameters = w1, b1, w2, b2
        self.h, self.dh, self.z, *self.gradients = (
            backends.asarray(np.empty(shape, np.float32))
            for shape in ((BATCH, HIDDEN), (BATCH, HIDDEN), (BATCH, CLASSES), *(p.shape for p in self.parameters))
        )
        self.optimizer = optim.SGD(self.parameters, RATE, momentum=MOMENTUM)

    def logits(self, x):
        """Predict."""
        return K.affine(K.relu(K.affine(x, self.w1, self.b1)), self.w2, self.b2)

    def step(self, x, t):
        """Forward, backward, update: the loss of a batch."""
        h, dh, z, (dw1, db1, dw2, db2) = self.h, self.dh, self.z, self.gradients
        K.relu(K.affine(x, self.w1, self.b1, out=h), out=h)
        loss, dz = K.softmax_cross_entropy_value_and_grad(K.affine(h, self.w2, self.b2, out=z), t, out=z)
        K.affine_backward(dz, h, self.w2, out=(dh, dw2, db2))
        K.relu_backward(dh, h, out=dh)
        K.affine_backward(dh, x, self.w1, needs=("dw", "db"), out=(None, dw1, db1))
        self.optimizer.step(self.gradients)
        return loss


class WithLayers:
    """The network with layers."""

    def __init__(self, w1, b1, w2, b2) -> None:
        self.net = layers.Sequential(layers.Affine(w1, b1), layers.Relu(), layers.Affine(w2, b2))
        self.loss = layers.SoftmaxWithLoss()
        self.optimizer = optim.SGD(self.net.params, RATE, momentum=MOMENTUM)

    def logits(self, x):
        """Predict."""
        return self.net.forward(x)

    def step(self, x, t):
        """Forward, backward, update: the loss of a batch."""
        loss = self.loss.forward(self.net.forward(x), t)
        self.net.backward(self.loss.backward(), needs_dx=False)
        self.optimizer.step(self.net.grads)
        return loss


class Captured(WithLayers):
    """The network with layers, whose step is captured at the first batch: a replay has no cost between the kernels."""

    def __init__(self, w1, b1, w2, b2) -> None:
        super().__init__(w1, b1, w2, b2)
        self.training = layers.TrainingStep(self.net, self.loss, self.optimizer)

    def step(self, x, t):
        """Forward, backward, update: the loss of a batch."""
        return self.training.step(x, t)


class OnRanks(WithFunctions):
    """The network on several processes: each has some rows of the batch, and all have the parameters."""

    def __init__(self, w1, b1, w2, b2, comm) -> None:
        super().__init__(w1, b1, w2, b2)
        self.comm, self.trainer = comm, distributed.DataParallel(self.optimizer, comm)

    def step(self, x, t):
        """Forward and backward of this process's rows, then the update of all: the loss of the whole batch."""
        rank, size = self.comm.rank, self.comm.size
        mine = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
        x, t = x[mine], t[mine]
        h = K.relu(K.affine(x, self.w1, self.b1))
        loss, dz = K.softmax_cross_entropy_value_and_grad(K.affine(h, self.w2, self.b2), t, reduction="sum")
        dh, dw2, db2 = K.affine_backward(dz, h, self.w2)
        _, dw1, db1 = K.affine_backward(K.relu_backward(dh, h), x, self.w1, needs=("dw", "db"))
        self.trainer.step([dw1, db1, dw2, db2], count=len(t))
        total = backends.asarray(np.zeros(1))
        total[0] = loss
        self.comm.allreduce(total)
        return total[0] / BATCH


STYLES = {"functions": WithFunctions, "layers": WithLayers, "captured": Captured}


def main(style: str, epochs: int, seed: int, plot: str | None, comm=None) -> None:
    """Train the network, test it after every epoch, and draw the results."""
    is_first = comm is None or comm.rank == 0  # the process that shows the progress
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

    w1, w2 = weights(images.shape[1], HIDDEN), weights(HIDDEN, CLASSES)
    b1, b2 = np.zeros(HIDDEN, np.float32), np.zeros(CLASSES, np.float32)
    parameters = map(backends.asarray, (w1, b1, w2, b2))
    model = OnRanks(*parameters, comm) if comm else STYLES[style](*parameters)

    print(f"backend: {backends.current()}   train: {split}   test: {len(test_t)}")
    losses, accuracies, times = [], [], []
    steps = split // BATCH
    for epoch in range(1, epochs + 1):
        order = backends.asarray(rng.permutation(split))
        x, t = train_x[order], train_t[order]  # shuffled once, so that the batches are views
        total = 0.0
        start = time.perf_counter()
        for first in tqdm(range(0, steps * BATCH, BATCH), desc=f"epoch {epoch}", leave=False, disable=not is_first):
            total = total + model.step(x[first : first + BATCH], t[first : first + BATCH])  # on a GPU it stays there
        losses.append(float(backends.to_numpy(total)) / steps)  # this waits for the GPU, if there is one
        times.append((time.perf_counter() - start) / steps)
        predicted = backends.to_numpy(model.logits(test_x)).argmax(axis=1)
        accuracies.append(float((predicted == test_t).mean()))
        print(f"epoch {epoch:3}   loss {losses[-1]:.4f}   test accuracy {accuracies[-1]:.2%}")
    print(f"{statistics.median(times) * 1e6:.0f} us per step")  # the first epoch may have compiled
    if plot and is_first:
        draw(plot, losses, accuracies, images[split:], test_t, predicted)


def draw(path, losses, accuracies, images, labels, predicted) -> None:
    """Draw the loss, the accuracy, and a few test digits with their predictions, the wrong ones first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(10, 5.2), layout="constrained")
    curves, gallery = figure.subfigures(2, 1, height_ratios=[2.6, 1])
    gallery.suptitle("Predictions, the wrong ones first", fontsize=11)
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
    parser.add_argument("--style", choices=STYLES, default="functions", help="how the network is written")
    parser.add_argument("--distributed", action="store_true", help="on the processes that mpiexec started")
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
    if chosen.distributed:
        ranks = distributed.mpi()
        with distributed.guard(ranks), open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
            if ranks.rank:  # one process tells
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            main(chosen.style, chosen.epochs, chosen.seed, chosen.plot, ranks)
    else:
        main(chosen.style, chosen.epochs, chosen.seed, chosen.plot)
