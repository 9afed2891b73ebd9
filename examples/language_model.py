"""Train a small transformer to predict the next word of the docstrings of Python's standard library, in PyTorch.

    python examples/language_model.py

`language_model_bridged.py` runs this script again with one import changed.
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F
from words import docstrings, numbered

CONTEXT, WIDTH, HEADS = 32, 64, 4


class Block(nn.Module):
    """Attention to the words before, then two layers for each word, both added to their input."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.register_buffer("later", torch.ones(CONTEXT, CONTEXT).triu(1).bool())

    def forward(self, x):
        """Return the states after the block; rows, words, width."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(self.later, -torch.inf)
        x = x + self.project((F.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(-2))
        return x + self.contract(F.relu(self.expand(self.norm2(x))))


class Model(nn.Module):
    """Embeddings, blocks, and the loss of the last layer."""

    def __init__(self, classes):
        super().__init__()
        self.words, self.places = nn.Embedding(classes, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x, y):
        """Return the mean loss of predicting the words `y` that follow the words `x`."""
        h = self.blocks(self.words(x) + self.places.weight)
        return F.linear_cross_entropy(h.flatten(0, 1), self.head.weight, y.flatten(), linear_bias=self.head.bias)


def main(steps, batch):
    """Train, and print the loss at each tenth step."""
    torch.manual_seed(0)
    numbers, vocabulary = numbered(docstrings())
    text = torch.from_numpy(numbers).long()
    model = Model(len(vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    print(f"words: {len(text):,}   vocabulary: {len(vocabulary):,}   rows: {batch * CONTEXT}", flush=True)
    for step in range(steps):
        if step == 1:  # the first step compiles code, and allocates memory
            start = time.perf_counter()
        first = torch.randint(len(text) - CONTEXT, (batch, 1)) + torch.arange(CONTEXT)
        loss = model(text[first], text[first + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3}   loss {loss.item():.4f}", flush=True)
    print(f"{(time.perf_counter() - start) / (steps - 1) * 1e3:.0f} ms per step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64, help="sequences in a step, of 32 words each")
    chosen = parser.parse_args()
    if chosen.steps < 2 or chosen.batch < 1:
        parser.error("expected at least two steps and one sequence")
    main(chosen.steps, chosen.batch)
