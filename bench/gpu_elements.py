"""What is timed on a GPU of weightings that change gradients, and of random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench.gpu_cases import Case, Run, layout
from mt2o_ext import ops


class Elements(Case):
    """Base: gradients [1, T, P] and what is remembered of them, float32"""

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        self.shape = {"T": num_tasks, "P": columns}
        row, self.chunks = layout(columns, device)
        self.grads = torch.randn(1, num_tasks, row, device=device)
        self.memory = torch.rand_like(self.grads)
        self.finite = torch.ones(1, dtype=torch.bool, device=device)
        self.half = torch.full((1, num_tasks), 0.5, dtype=torch.float64, device=device)
        self.num_bytes = 4 * columns * self.moved(num_tasks)

    @staticmethod
    def moved(num_tasks: int) -> int:
        """Numbers of a column that are read or written."""
        raise NotImplementedError


class Track(Elements):
    """A running average of the gradients, which takes their place"""

    family = "track"

    @staticmethod
    def moved(num_tasks: int) -> int:
        return 4 * num_tasks

    def ours(self) -> Run:
        return lambda: ops.track_(self.grads, self.memory, self.half, self.half, self.finite, self.chunks, shown=True)


class Feed(Elements):
    """A combination of averages, made the gradient whose own average it is"""

    family = "feed"

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        super().__init__(num_tasks, columns, device)
        self.last, self.one = torch.zeros_like(self.grads[:, 0]), self.half[:, 0].contiguous()

    @staticmethod
    def moved(num_tasks: int) -> int:
        return 2 * num_tasks + 2

    def ours(self) -> Run:
        return lambda: ops.feed_(
            self.grads, self.last, self.memory, self.half, self.one, self.one, self.finite, self.chunks, beta=0.9
        )


class Excess(Elements):
    """Sums of squares, and of squares over their roots"""

    family = "excess"

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        super().__init__(num_tasks, columns, device)
        self.out = torch.zeros(1, 1, num_tasks, dtype=torch.float64, device=device)
        self.partials = torch.zeros(1, len(self.chunks), num_tasks, dtype=torch.float64, device=device)

    @staticmethod
    def moved(num_tasks: int) -> int:
        return 3 * num_tasks

    def ours(self) -> Run:
        return lambda: ops.excess_(self.out, self.partials, self.memory, self.grads, self.finite, self.chunks)


class DropSigns(Elements):
    """One sign of each column, by chance"""

    family = "drop_signs"

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        super().__init__(num_tasks, columns, device)
        self.key = torch.tensor(7, device=device)

    @staticmethod
    def moved(num_tasks: int) -> int:
        return 2 * num_tasks

    def ours(self) -> Run:
        return lambda: ops.drop_signs_(self.grads, self.key, self.finite, self.chunks, stream=0, leak=0.5)


class Draw(Case):
    """Random numbers, of two ids each"""

    family = "draw"

    def __init__(self, columns: int, device: torch.device) -> None:
        self.shape = {"P": columns}
        self.out, self.key = torch.zeros(columns, dtype=torch.float64, device=device), torch.tensor(7, device=device)
        self.ids = [torch.arange(columns, device=device), self.key.expand(columns)]
        self.num_bytes = 16 * columns

    def ours(self) -> Run:
        return lambda: ops.draw_(self.out, self.key, self.ids, stream=0)


def element_cases(elements: int) -> Iterator[partial[Any]]:
    """Of each kernel one."""
    for case in (Track, Feed, Excess, DropSigns):
        yield partial(case, 3, elements // 3)
    yield partial(Draw, elements)
