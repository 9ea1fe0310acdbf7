"""The last part of a hypernetwork: all numbers of a target network from a vector of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Chunks", "Head"]


class Head(nn.Module):
    """One linear map from H features to all P numbers: the same as a linear head for each tensor.

    Args:
        features: H.
        start: [P], what comes out at first, for any features; None: the default start of nn.Linear.
        size: P.
    """

    def __init__(self, features: int, size: int, start: Tensor | None) -> None:
        super().__init__()
        self.linear = nn.Linear(features, size)
        if start is not None:
            with torch.no_grad():
                self.linear.weight.zero_()
                self.linear.bias.copy_(start)

    def forward(self, features: Tensor) -> Tensor:
        """Numbers [P] from features [H]."""
        numbers: Tensor = self.linear(features)
        return numbers


class Chunks(nn.Module):
    """The P numbers in chunks, all from one small network that is told by a learned vector which chunk is due.

    It holds P / chunk vectors and two layers, and where it has a start those P numbers besides, which are trained too.

    Args:
        features: H, also the width of the layer between.
        size: P.
        chunk: numbers in a chunk; the last chunk is cut off.
        embedding: numbers in the vector of each chunk.
        start: as for `Head`.
    """

    def __init__(self, features: int, size: int, chunk: int, embedding: int, start: Tensor | None) -> None:
        super().__init__()
        self.size = size
        dtype = torch.get_default_dtype()  # as that of the layers
        self.chunks = nn.Parameter(torch.randn(-(-size // chunk), embedding, dtype=dtype))
        self.hidden = nn.Linear(features + embedding, features)
        self.linear = nn.Linear(features, chunk)
        self.start = None if start is None else nn.Parameter(start.clone())
        if start is not None:
            with torch.no_grad():
                self.linear.weight.zero_()
                self.linear.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Numbers [P] from features [H]."""
        rows = torch.cat([features.expand(len(self.chunks), -1), self.chunks], 1)
        numbers: Tensor = self.linear(torch.relu(self.hidden(rows))).flatten()[: self.size]
        return numbers if self.start is None else numbers + self.start
