"""A whole front from an ordinary loop: two vertices are trained, and every trade-off between them is a model."""

from __future__ import annotations

import torch
from problem import DEVICE, Model, accuracies, loader, pairs, task_losses
from torch import Tensor

from mt2o_ext import MT2OFused


def main(epochs: int = 15) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    model = Model().to(DEVICE)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, points=1, warm_up=50, lr=3e-3, ema=0.95)
    for _ in range(epochs):
        for x, y in loader(train):
            optimizer.backward(task_losses(model, x, y))  # the model is a random point of the front here
            optimizer.step()

    def evaluate() -> list[Tensor]:
        return task_losses(model, *test.tensors)

    print(optimizer.front(evaluate, ema=True, task_names=["first digit", "second digit"]))
    for share in (0.9, 0.6, 0.35):  # any trade-off, also those that are in no list
        with optimizer.at([share, 1 - share], ema=True):
            first, second = accuracies(model, test)
        print(f"weight of the first digit {share:4.0%}: accuracies {first:.2f} and {second:.2f}")
    with optimizer.at([0.5, 0.5], ema=True):  # torch.save(model.state_dict(), ...) in here writes this model
        return accuracies(model, test)


if __name__ == "__main__":
    main()
