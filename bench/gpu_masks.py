"""What is timed on a GPU of masks: a step with them, the view of a task, scores, and an exchange of bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_cases import Case, Run, Step, layout
from mt2o_ext import ops

DENSITY = 0.8
CHANGED = 100  # bits of an exchange


def packed(tasks: int, columns: int, device: torch.device) -> Tensor:
    """Random masks [tasks, columns / 8]."""
    bits = torch.rand(tasks, columns // 8, 8, device=device) < DENSITY
    return (bits * 2 ** torch.arange(8, device=device)).sum(-1).to(torch.uint8)


class MaskedStep(Step):
    """AdamW with masks, one row"""

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        super().__init__(1, num_tasks, torch.float32, columns, device)
        self.shape |= {"masks": num_tasks}
        self.masks = packed(num_tasks, self.problem.theta.shape[1], device)
        self.num_bytes += self.masks.numel()

    def ours(self) -> Run:
        p = self.problem
        return lambda: ops.step_(
            p.theta, p.m, p.v, None, None, None, p.step, p.constants, p.grads, p.weights, None, p.segments, p.chunks,
            masks=self.masks, rule=ops.Rule.ADAM,
        )  # fmt: skip


class Mask(Case):
    """A row as a task sees it"""

    family = "mask"

    def __init__(self, dtype: torch.dtype, columns: int, device: torch.device) -> None:
        self.shape, self.dtype = {"P": columns}, dtype
        row, self.chunks = layout(columns, device)
        self.values = torch.randn(1, row, device=device).to(dtype)
        self.out, self.masks = torch.zeros_like(self.values), packed(1, row, device)
        self.num_bytes = columns * (2 * dtype.itemsize) + columns // 8

    def ours(self) -> Run:
        return lambda: ops.mask_(self.out, self.values, self.masks, None, self.chunks)


class Scores(Case):
    """Harmony and agreement of each element with T gradients"""

    family = "harmony"

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        self.shape = {"T": num_tasks, "P": columns}
        row, self.chunks = layout(columns, device)
        self.grads, self.values = torch.randn(1, num_tasks, row, device=device), torch.randn(1, row, device=device)
        self.factors = torch.ones(num_tasks, dtype=torch.float64, device=device)
        self.scores, self.masks = torch.zeros(num_tasks, row, device=device), packed(num_tasks, row, device)
        self.num_bytes = columns * 4 * (2 * num_tasks + 1)

    def ours(self) -> Run:
        return lambda: ops.harmony_(
            self.scores, self.grads, self.values, self.factors, self.masks, None, self.chunks, gamma=10.0,
            magnitude=False, dense=True,
        )  # fmt: skip


class Exchange(Case):
    """Bits of masks that change places: scores read seventeen times, a pass for each digit"""

    family = "exchange"
    ceiling = "read"

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        self.shape = {"T": num_tasks, "P": columns}
        row, self.chunks = layout(columns, device)
        self.scores, self.masks = torch.randn(num_tasks, row, device=device), packed(num_tasks, row, device)
        self.counts = torch.zeros(num_tasks, len(self.chunks), ops.EXCHANGE_BINS, dtype=torch.int32, device=device)
        self.state = torch.zeros(num_tasks, ops.EXCHANGE_STATE, dtype=torch.int64, device=device)
        self.num_bytes = 17 * 4 * num_tasks * columns

    def ours(self) -> Run:
        return lambda: ops.exchange_(
            self.masks, self.counts, self.state, self.scores, self.chunks, amount=CHANGED
        )  # fmt: skip


def mask_cases(elements: int) -> Iterator[partial[Any]]:
    """Of each kernel one or two."""
    for tasks in (1, 5):
        yield partial(MaskedStep, tasks, elements // tasks)
    for dtype in (torch.float32, torch.bfloat16):
        yield partial(Mask, dtype, elements)
    yield partial(Scores, 5, elements // 5)
    yield partial(Exchange, 5, elements // 5)
