"""The small convolutional network of Pareto MTL (Lin et al., NeurIPS 2019), and one for images of half the size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["LeNet", "task_losses"]


SHAPES = {36: (9, 5, 500), 18: (5, 3, 80)}  # image size -> both kernels, features behind the convolutions


class LeNet(nn.Module):
    """Images [B, 1, size, size] -> logits [B, 2, 10]: a shared trunk, and a head for each of the two digits.

    Args:
        size: 36, the network of the paper with 31,910 parameters; or 18, smaller kernels and 7,150 parameters.
    """

    def __init__(self, size: int = 36) -> None:
        super().__init__()
        first, second, features = SHAPES[size]
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 10, first),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, second),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(features, 50),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Linear(50, 10) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        return torch.stack([head(features) for head in self.heads], dim=1)


def task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropies [2] of logits [B, 2, 10] for labels [B, 2]."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(-1, 2).mean(0)
