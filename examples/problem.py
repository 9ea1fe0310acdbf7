"""What the examples train: two digits in one picture, a task for each of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def digits() -> tuple[Tensor, Tensor]:
    """Pictures float32 [N, 64] and labels int64 [N]: scikit-learn's 1,797 digits, else noisy patterns of ten kinds."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        torch.manual_seed(0)
        labels = torch.arange(1800) % CLASSES
        return torch.rand(CLASSES, 64)[labels] + 0.3 * torch.randn(1800, 64), labels
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()


def pairs(seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """Training and test data on DEVICE: pictures [N, 144] in which a second digit overlaps the first, labels [N, 2]."""
    pixels, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    sets = []
    order = torch.randperm(len(pixels), generator=generator)
    for part in (order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]):  # no digit is in both
        other = part[torch.randperm(len(part), generator=generator)]
        canvas = torch.zeros(2, len(part), 12, 12)
        canvas[0, :, :8, :8] = pixels[part].view(-1, 8, 8)
        canvas[1, :, 4:, 4:] = pixels[other].view(-1, 8, 8)
        pictures, both = canvas.amax(0).flatten(1), torch.stack([labels[part], labels[other]], 1)
        sets.append(TensorDataset(pictures.to(DEVICE), both.to(DEVICE)))
    return sets[0], sets[1]


def loader(data: TensorDataset, batch: int = 64) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size=batch, shuffle=True, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A trunk that both tasks share, and a head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(144, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(64, CLASSES), nn.Linear(64, CLASSES)])

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]


def task_losses(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """One loss for each digit."""
    return [nn.functional.cross_entropy(out, y[:, task]) for task, out in enumerate(model(x))]


@torch.no_grad()
def accuracies(model: nn.Module, data: TensorDataset) -> list[float]:
    """The share of right answers of each task."""
    x, y = (tensor.to(next(model.parameters()).device) for tensor in data.tensors)
    return [(out.argmax(1) == y[:, task]).float().mean().item() for task, out in enumerate(model(x))]
