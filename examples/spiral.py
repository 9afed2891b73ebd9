"""Train a small network to classify the three arms of a spiral, on the backend you select, and draw its regions.

    PLUGRAD_BACKEND=numpy python examples/spiral.py --plot spiral.png

No straight lines separate the arms, so the network has two hidden layers with ReLU. Adam trains it on all points at
once, with a learning rate that falls like half a cosine. The points are few, so the script computes in float64, and
every backend prints the same digits. In float32, rounding moves some points over the kinks of ReLU, and after a few
hundred steps the third digit of the loss may differ.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plugrad import backends, kernels as K
from plugrad.kernels import layers, optim

ARMS, POINTS, NOISE, HIDDEN, RATE = 3, 150, 0.25, 32, 0.01


def spiral(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points along arms that turn once around the centre, and the number of the arm of each as its label."""
    labels = np.repeat(np.arange(ARMS), POINTS)
    radius = np.tile(np.linspace(0.02, 1, POINTS), ARMS)
    angle = 2 * np.pi * (labels / ARMS + radius) + rng.normal(scale=NOISE, size=labels.size)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), labels


def main(steps: int, seed: int, plot: str | None) -> None:
    """Train the network, print its progress, and draw."""
    rng = np.random.default_rng(seed)
    points, labels = spiral(rng)
    x, t = backends.asarray(points), backends.asarray(labels)
    net = layers.Sequential(
        layers.Affine.init(2, HIDDEN, rng=rng, dtype=np.float64),
        layers.Relu(),
        layers.Affine.init(HIDDEN, HIDDEN, rng=rng, dtype=np.float64),
        layers.Relu(),
        layers.Affine.init(HIDDEN, ARMS, rng=rng, dtype=np.float64),
    )
    loss = layers.SoftmaxWithLoss()
    optimizer = optim.Adam(net.params, optim.cosine(RATE, steps=steps))

    print(f"backend: {backends.current()}   points: {len(points)}   arms: {ARMS}")
    losses, times, interval = [], [], max(1, steps // 10)
    for first in range(0, steps, interval):
        last = min(steps, first + interval)
        start = time.perf_counter()
        for _ in tqdm(range(first, last), desc=f"steps to {last}", leave=False):
            losses.append(loss.forward(net.forward(x), t))  # on a GPU it stays there
            net.backward(loss.backward(), needs_dx=False)
            optimizer.step(net.grads)
        logits = net.forward(x)
        predicted = backends.to_numpy(logits).argmax(axis=1)  # this waits for the GPU, if there is one
        accuracy = float((predicted == labels).mean())
        times.append((time.perf_counter() - start) / (last - first))
        print(f"step {last:5}   loss {backends.to_numpy(loss.forward(logits, t)):.4f}   accuracy {accuracy:.2%}")
    print(f"{statistics.median(times) * 1e6:.0f} us per step")  # the first steps may have compiled
    if plot:
        draw(plot, points, labels, net, [float(backends.to_numpy(value)) for value in losses], accuracy)


def draw(path, points, labels, net, losses, accuracy) -> None:
    """Draw the probabilities of the plane with the points, and the curve of the loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(name) for name in ("#c44e52", "#4c72b0", "#dda032")])
    edge, pixels = 1.1 * np.abs(points).max(), 320
    ticks = np.linspace(-edge, edge, pixels)
    places = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    y = backends.to_numpy(K.softmax(net.forward(backends.asarray(places))))

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    shades = 0.55 + 0.45 * y @ colours  # pale, so that the points stand out; mixed where the network is not sure
    left.imshow(shades.reshape(pixels, pixels, 3), origin="lower", extent=(-edge, edge, -edge, edge))
    left.scatter(*points.T, c=colours[labels], s=14, edgecolors="white", linewidths=0.4)
    left.set(title=f"What the network says: {accuracy:.1%} of the points right", xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    right.plot(range(1, len(losses) + 1), losses, color="#444444")
    right.set(title="Training loss", xlabel="step", ylabel="nats", yscale="log")
    right.grid(alpha=0.3)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    print(f"drawn: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="instead of the environment variable PLUGRAD_BACKEND")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE.png", help="draw the regions of the classes, and the loss")
    chosen = parser.parse_args()
    if chosen.steps < 1:
        parser.error("--steps: expected at least 1")
    if chosen.plot and not (Path(chosen.plot).suffix == ".png" and Path(chosen.plot).resolve().parent.is_dir()):
        parser.error(f"--plot: expected FILE.png in a folder that exists, got {chosen.plot}")
    try:
        if chosen.backend:
            backends.set_default(chosen.backend)
        backends.current()
    except (ValueError, backends.BackendUnavailableError) as error:
        parser.error(str(error))
    main(chosen.steps, chosen.seed, chosen.plot)
