"""A front of five trade-offs in one run; one of them is chosen, saved, and served without this package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from problem import DEVICE, Model, accuracies, loader, pairs, task_losses
from torch import Tensor

from mt2o_ext import MT2OFused, repeat


def train(steps: int, folder: Path) -> Path:
    torch.manual_seed(0)
    data, test = pairs()
    model = Model().to(DEVICE)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=5, lr=3e-3, ema=0.95)
    stream = repeat(loader(data))
    for _ in range(steps):
        optimizer.step(lambda: task_losses(model, *next(stream)))  # once for each of the five, on its own mini-batch

    def evaluate() -> list[Tensor]:
        return task_losses(model, *test.tensors)

    front = optimizer.front(evaluate, ema=True, task_names=["first digit", "second digit"])
    print(front)
    index = front.choose([0.7, 0.3])  # the first digit matters more
    file = folder / "model.pt"
    with optimizer.subproblem(index, ema=True):  # in here the model is that trade-off; outside it is a random one
        torch.save(model.state_dict(), file)
    return file


def serve(file: Path) -> list[float]:
    """What a server does: plain torch."""
    model = Model().to(DEVICE)
    model.load_state_dict(torch.load(file, weights_only=True, map_location=DEVICE))
    model.eval()
    found = accuracies(model, pairs()[1])
    print(f"served: accuracies {found[0]:.2f} and {found[1]:.2f}, {file.stat().st_size / 1e3:.0f} kB")
    return found


def main(steps: int = 200) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        return serve(train(steps, Path(folder)))


if __name__ == "__main__":
    main()
