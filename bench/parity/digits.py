"""One network for two digits, by a sum of losses, CAGrad and Nash-MTL: the setting of PaLoRA's published results."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mt2o_ext import WeightedFused
from mt2o_ext.base import Adam
from mt2o_ext.demo.lenet import task_losses
from mt2o_ext.weighting import CAGrad, NashMTL, Weighting

from .pairs import Pairs
from .records import Record

EPOCHS, BATCH, RATE = 10, 256, 1e-3

METHODS: dict[str, Callable[[], Weighting | None]] = {"sum": lambda: None, "CAGrad": CAGrad, "Nash-MTL": NashMTL}


class Network(nn.Module):
    """Images [B, 1, 28, 28] -> logits [B, 2, 10]; 27,450 parameters. Convolutions of 5 x 5, heads of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *[nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()],
            *[nn.Flatten(), nn.Linear(320, 50), nn.ReLU()],
        )
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10)) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        return torch.stack([head(features) for head in self.heads], 1)


@torch.no_grad()
def accuracies(net: nn.Module, pairs: Pairs) -> list[float]:
    """In per cent, of both tasks."""
    right = [
        (net(images).argmax(-1) == labels).sum(0)
        for images, labels in zip(pairs.images.split(1000), pairs.labels.split(1000), strict=True)
    ]
    return [round(100 * float(each) / len(pairs.labels), 2) for each in torch.stack(right).sum(0)]


def run(method: str, seed: int, train: Pairs, test: Pairs, epochs: int = EPOCHS) -> Record:
    """The test accuracies after the last epoch; nothing is chosen on the way, as in the published results."""
    begin = time.process_time()
    torch.manual_seed(seed)
    net = Network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(net.heads)]
    optimizer = WeightedFused(
        [{"params": list(net.trunk.parameters())}, *heads],
        num_tasks=2,
        weighting=METHODS[method](),
        base=Adam(),
        lr=RATE,
        heads="weighted" if method == "Nash-MTL" else "plain",  # its published form weights the losses
    )
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(train.labels), generator=order).split(BATCH):
            optimizer.backward(list(task_losses(net(train.images[rows]), train.labels[rows])))
            optimizer.step()
    return {
        "data": "digits",
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "accuracy": accuracies(net, test),
        "train accuracy": accuracies(net, train),
        "seconds": round(time.process_time() - begin, 1),
    }
