"""Each task has a data set of its own, and a loader of its own length: a loop over the tasks, some of them absent."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from problem import DEVICE, Model, accuracies, loader, pairs
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mt2o_ext import WeightedFused


def own_sets(data: TensorDataset) -> list[TensorDataset]:
    """The first 800 pictures are labelled for the first task, the others for the second."""
    x, y = data.tensors
    return [TensorDataset(x[:800], y[:800, 0]), TensorDataset(x[800:], y[800:, 1])]


def main(epochs: int = 20) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    model = Model().to(DEVICE)
    groups = [
        {"params": model.trunk.parameters()},
        {"params": model.heads[0].parameters(), "task": 0},
        {"params": model.heads[1].parameters(), "task": 1},
    ]
    optimizer = WeightedFused(groups, num_tasks=2, weighting="upgrad", lr=3e-3)
    loaders = [loader(data) for data in own_sets(train)]
    alone = 0

    def loss_of(task: int, batch: tuple[Tensor, Tensor] | None) -> Tensor | None:
        if batch is None:
            return None  # this task's loader has ended: the task is absent, its head stays as it is
        x, y = batch
        return nn.functional.cross_entropy(model.heads[task](model.trunk(x)), y)

    for _ in range(epochs):
        streams: list[Iterator[tuple[Tensor, ...]]] = [iter(batches) for batches in loaders]
        for _ in range(max(map(len, loaders))):
            for task in optimizer.tasks():
                optimizer.backward(loss_of(task, next(streams[task], None)))  # its graph is freed here
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # the combined gradient is in .grad
            optimizer.step()
            alone += int((optimizer.weights == 0).any())
    found = accuracies(model, test)
    print(f"accuracies {found[0]:.2f} and {found[1]:.2f}; {alone} steps had data of one task only")
    return found


if __name__ == "__main__":
    main()
