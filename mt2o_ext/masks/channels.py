"""Channels of tensors: the slices of their first dimension, weight and bias of a module together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Channels"]


class Channels:
    """The channels of several tensors, layer after layer.

    A layer is a tensor, or the weight and the bias of one module with as many channels.  A channel is a slice of the
    first dimension: an output channel of a convolution, a unit of a linear layer.  A number alone is one channel.

    Args:
        names: of the tensors, with the module's before the last dot.
        shapes: of the tensors.

    Attributes:
        layers: the number of channels and the places of the tensors, of each layer.
        number: of all channels.
    """

    def __init__(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
        found: dict[tuple[str, int], list[int]] = {}
        self._sizes = [shape[0] if shape else 1 for shape in shapes]
        self._lengths = [shape.numel() // size for shape, size in zip(shapes, self._sizes, strict=True)]
        for place, (name, size) in enumerate(zip(names, self._sizes, strict=True)):
            module, _, last = name.rpartition(".")
            together = last in ("weight", "bias")
            found.setdefault((module if together else f"{name} alone", size), []).append(place)
        self.layers = [(size, places) for (_, size), places in found.items()]
        self.number = sum(size for size, _ in self.layers)

    def shares(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """For each layer its channels, and how many of them have about as many elements as its tensors should.

        counts: of elements, of each tensor.
        """
        found = []
        for size, places in self.layers:
            length = sum(self._lengths[place] for place in places)
            found.append((size, round(sum(counts[place] for place in places) / length)))
        return found

    def sums(self, parts: Sequence[Tensor]) -> Tensor:
        """Sums over the elements of each channel, float64 [n, channels]; parts: [n, *shape] of each tensor."""
        found = [
            torch.stack([self._split(parts[place], place).sum(2, dtype=torch.float64) for place in places]).sum(0)
            for _, places in self.layers
        ]
        return torch.cat(found, 1)

    def firsts(self, parts: Sequence[Tensor]) -> Tensor:
        """The first element of each channel, [n, channels]; parts as of `sums`."""
        return torch.cat([self._split(parts[places[0]], places[0])[..., 0] for _, places in self.layers], 1)

    def spread(self, channels: Tensor) -> list[Tensor]:
        """For each tensor [n, numel] of the values [n, channels] of its channels."""
        parts: list[Tensor] = [channels] * len(self._sizes)
        for values, (_, places) in zip(channels.split([size for size, _ in self.layers], 1), self.layers, strict=True):
            for place in places:
                parts[place] = values.repeat_interleave(self._lengths[place], 1)
        return parts

    def _split(self, part: Tensor, place: int) -> Tensor:
        """[n, channels, length]."""
        return part.reshape(len(part), self._sizes[place], self._lengths[place])
