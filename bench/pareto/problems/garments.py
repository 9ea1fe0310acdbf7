"""Multi-Fashion: two garments on one canvas, and the class of each. Once plain, once with BatchNorm."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import BatchNorm, Conv2d, Flatten, Linear, MaxPool2d
from .base import Part, Problem, mean_cross_entropy, with_preferences
from .sources import fashion_mnist

SIZES = {"train": 60_000, "validation": 1_000, "test": 2_000}


class LeNet(nn.Module):
    """Images [R, B, 1, 18, 18] -> logits [R, B, 2, 10]; 7,150 parameters."""

    def __init__(self, extra: int = 0, *, norm: bool = False) -> None:
        super().__init__()
        norms = [[BatchNorm(channels)] if norm else [] for channels in (10, 20, 50)]
        self.trunk = nn.Sequential(
            *[Conv2d(1 + extra, 10, 5), *norms[0], MaxPool2d(2), nn.ReLU()],
            *[Conv2d(10, 20, 3), *norms[1], MaxPool2d(2), nn.ReLU()],
            *[Flatten(), Linear(80, 50), *norms[2], nn.ReLU()],
        )
        self.heads = nn.ModuleList(Linear(50, 10) for _ in range(2))

    def forward(self, x: Tensor, w: Tensor | None = None) -> Tensor:
        features = self.trunk(with_preferences(x, w))
        return torch.stack([head(features) for head in self.heads], 2)


def two_labels(logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropies [R, 2] of logits [R, B, 2, 10] for labels [R, B, 2]."""
    return torch.stack([mean_cross_entropy(logits[:, :, t], labels[:, :, t]) for t in range(2)], 1)


_garments = lru_cache(maxsize=1)(fashion_mnist)  # decoding takes a second


def garment_pools(generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """50,000 garments for training, 10,000 for validation, and the test set: no garment is in two of them."""
    parts = _garments()
    images, labels = parts["train"]
    order = torch.randperm(len(images), generator=generator)
    train, validation = order[:50_000], order[50_000:]
    return {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": parts["test"],
    }


@lru_cache(maxsize=1)
def _pairs() -> dict[str, Part]:
    generator = torch.Generator().manual_seed(12345)
    parts = {}
    for part, (images, labels) in garment_pools(generator).items():
        pairs = torch.randint(len(images), (SIZES[part], 2), generator=generator)
        pooled = []
        for some in pairs.split(5_000):
            canvas = torch.zeros(2, len(some), 36, 36)
            canvas[0, :, :28, :28] = images[some[:, 0]] / 255
            canvas[1, :, 8:, 8:] = images[some[:, 1]] / 255
            pooled.append(F.avg_pool2d(canvas.amax(0)[:, None], 2))
        parts[part] = torch.cat(pooled), labels[pairs]
    mean, deviation = parts["train"][0].mean(), parts["train"][0].std()
    return {part: ((images - mean) / deviation, labels) for part, (images, labels) in parts.items()}


MF = Problem(
    name="mf",
    title="Multi-Fashion: two garments on an 18 x 18 canvas, the class of each (weak conflict); LeNet",
    tasks=("left-top garment", "right-bottom garment"),
    rows=5,
    batch=16,
    steps=1000,
    main=(1.4, 1.4),
    tight=(1.0, 1.0),
    parts=_pairs,
    net=LeNet,
    losses=two_labels,
)

NORM = Problem(
    name="norm",
    title="Multi-Fashion again; LeNet with BatchNorm after each layer of its trunk",
    tasks=MF.tasks,
    rows=5,
    batch=16,
    steps=1000,
    main=(1.4, 1.4),
    tight=(1.0, 1.0),
    parts=_pairs,
    net=partial(LeNet, norm=True),
    losses=two_labels,
    calibrates=True,
)
