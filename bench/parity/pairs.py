"""Two pictures on one canvas, in the two forms in which they are published."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mt2o_ext.demo.digits import load_digits, overlay, split_digits

from ..pareto.problems.sources import fashion_mnist

CHUNK = 5000
"""Pairs that are made at once."""


class Pairs(NamedTuple):
    """Standardised images [N, 1, S, S], channels last, and labels [N, 2]."""

    images: Tensor
    labels: Tensor


def shifted(first: Tensor, second: Tensor) -> Tensor:
    """PaLoRA's MultiMNIST, [N, 1, 28, 28] from digits [N, 28, 28].

    The second digit is moved by 6 pixels to the right and down and cut off where the first one's picture ends. Both lie
    on a canvas of 36 x 36, the brighter pixel in front, which is then made smaller.
    """
    canvas = torch.zeros(len(first), 1, 36, 36)
    canvas[:, 0, :28, :28] = first
    canvas[:, 0, 6:28, 6:28] = torch.maximum(first[:, 6:, 6:], second[:, :22, :22])
    return F.interpolate(canvas, size=(28, 28), mode="bicubic", antialias=True).clamp(0, 1)


def paired(images: Tensor, labels: Tensor, size: int, generator: torch.Generator, *, small: bool) -> Pairs:
    """Random pairs; `small`: those of PaLoRA, else those of Pareto MTL, 36 x 36."""
    chosen = torch.randint(len(images), (size, 2), generator=generator)
    put = shifted if small else overlay
    canvases = [put(images[some[:, 0]], images[some[:, 1]]) for some in chosen.split(CHUNK)]
    return Pairs(torch.cat(canvases), labels[chosen])


def standardised(parts: list[Pairs]) -> list[Pairs]:
    """By mean and deviation of the first part's pixels."""
    mean, deviation = parts[0].images.mean(), parts[0].images.std()
    return [
        Pairs(((images - mean) / deviation).contiguous(memory_format=torch.channels_last), labels)
        for images, labels in parts
    ]


@cache
def digit_pairs(train: int = 50_000, test: int = 10_000) -> list[Pairs]:
    """Training and test pairs of our 5,000 digits: four fifths of them for training, the others for the test."""
    generator = torch.Generator().manual_seed(0)
    digits, labels = load_digits()
    first, second, rest = split_digits(labels, generator)
    return standardised(
        [
            paired(digits[part], labels[part], size, generator, small=True)
            for part, size in ((torch.cat([first, second]), train), (rest, test))
        ]
    )


@cache
def garment_pairs(train: int = 108_000, validation: int = 12_000, test: int = 20_000) -> list[Pairs]:
    """Multi-Fashion: training and validation pairs of its 60,000 training garments, test pairs of its 10,000 others."""
    generator = torch.Generator().manual_seed(0)
    garments = fashion_mnist()
    made = []
    for part, size in (("train", train + validation), ("test", test)):
        images, labels = garments[part]
        made.append(paired(images.float() / 255, labels, size, generator, small=False))
    both, last = made
    return standardised([Pairs(both.images[:train], both.labels[:train]),
                         Pairs(both.images[train:], both.labels[train:]), last])  # fmt: skip
