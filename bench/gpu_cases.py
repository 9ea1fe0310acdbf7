"""What bench_gpu times: each kernel family on one device, beside torch's ways to do the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.bench_priority import Network
from bench.step_problem import StepProblem
from mt2o_ext import ops

Run = Callable[[], object]


class Case(ABC):
    """Tensors of one size for one family, on a device."""

    family: str
    shape: dict[str, Any]
    num_bytes: int  # what must move: every input read once, every output written once

    @abstractmethod
    def ours(self) -> Run: ...

    @abstractmethod
    def peers(self) -> dict[str, Callable[[], Run]]:
        """Makers of torch's variants: each may take memory of its own, so they are made one at a time."""


class Combine(Case):
    """out[k] = sum_t W_kt J_kt"""

    family = "combine"

    def __init__(self, num_rows: int, num_tasks: int, columns: int, device: torch.device) -> None:
        self.shape = {"K": num_rows, "T": num_tasks, "P": columns}
        self.num_bytes = 4 * num_rows * columns * (num_tasks + 1)
        row, self.chunks = layout(columns, device)
        self.grads = torch.randn(num_rows, num_tasks, row, device=device)
        self.out = torch.zeros(num_rows, row, device=device)
        self.weights = torch.rand(num_rows, num_tasks, dtype=torch.float64, device=device)

    def ours(self) -> Run:
        return lambda: ops.combine_(self.out, self.grads, self.weights, self.chunks)

    def peers(self) -> dict[str, Callable[[], Run]]:
        single, out = self.weights.float().unsqueeze(1), self.out.unsqueeze(1)
        return {"bmm": lambda: lambda: torch.bmm(single, self.grads, out=out)}


class Gram(Case):
    """Inner products of the rows of four matrices; four, so that two rows do not fit into a cache."""

    family = "gram"
    batch = 4

    def __init__(self, num_rows: int, centre: bool, columns: int, device: torch.device) -> None:
        self.shape = {"R": num_rows, "P": columns, "rows": "centred" if centre else "plain"}
        self.num_bytes = 4 * self.batch * num_rows * columns
        self.centre = centre
        row, self.chunks = layout(columns, device)
        self.rows = torch.randn(self.batch, num_rows, row, device=device)
        pairs = num_rows * (num_rows + 1) // 2
        self.out = torch.zeros(self.batch, 1, num_rows, num_rows, dtype=torch.float64, device=device)
        self.partials = torch.zeros(self.batch, len(self.chunks), pairs, dtype=torch.float64, device=device)

    def ours(self) -> Run:
        return lambda: ops.gram_(self.out, self.partials, self.rows, None, self.chunks, centre=self.centre)

    def peers(self) -> dict[str, Callable[[], Run]]:
        def product() -> Tensor:
            rows = self.rows - self.rows.mean(1, keepdim=True) if self.centre else self.rows
            return rows @ rows.mT

        return {"mm": lambda: product}


class Transfer(Case):
    """theta <- M theta"""

    family = "transfer"

    def __init__(self, num_rows: int, columns: int, device: torch.device) -> None:
        self.shape = {"K": num_rows, "P": columns}
        self.num_bytes = 8 * num_rows * columns
        row, self.chunks = layout(columns, device)
        self.theta = torch.randn(num_rows, row, device=device)
        self.mix = (0.9 * torch.eye(num_rows, dtype=torch.float64) + 0.1 / num_rows).to(device)

    def ours(self) -> Run:
        return lambda: ops.transfer_(self.theta, self.mix, self.chunks)

    def peers(self) -> dict[str, Callable[[], Run]]:
        def product() -> Run:
            single, out = self.mix.float(), torch.empty_like(self.theta)
            return lambda: self.theta.copy_(torch.mm(single, self.theta, out=out))

        return {"mm": product}


class Finite(Case):
    """Which rows of gradients hold an infinity or a NaN"""

    family = "finite"

    def __init__(self, num_rows: int, num_tasks: int, columns: int, device: torch.device) -> None:
        self.shape = {"K": num_rows, "T": num_tasks, "P": columns}
        self.num_bytes = 4 * num_rows * num_tasks * columns
        row, self.chunks = layout(columns, device)
        self.grads = torch.randn(num_rows, num_tasks, row, device=device)
        self.found = torch.zeros(num_rows, device=device)

    def ours(self) -> Run:
        return lambda: ops.finite_(self.found, self.grads, self.chunks)

    def peers(self) -> dict[str, Callable[[], Run]]:
        return {"isfinite": lambda: lambda: self.grads.isfinite().all()}


class Priority(Case):
    """Products with the gradients of the channels' owners, then the corrected sum"""

    family = "priority"
    layers, channels = 4, 64

    def __init__(self, num_tasks: int, columns: int, device: torch.device) -> None:
        length = max(1, columns // (self.layers * self.channels))
        self.shape = {"T": num_tasks, "P": columns}
        # Gradients twice: there is no coefficient before all of a layer has been read.
        self.num_bytes = 4 * self.layers * self.channels * length * (2 * num_tasks + 1)
        self.network = Network([(self.channels, length)] * self.layers, num_tasks, device)

    def ours(self) -> Run:
        return self.network.ours

    def peers(self) -> dict[str, Callable[[], Run]]:
        return {"layers": lambda: self.network.by_layers}


class Step(Case):
    """Combination, AdamW and transfer in one pass"""

    family = "step"

    def __init__(
        self, num_rows: int, num_tasks: int, dtype: torch.dtype, compiled: bool, columns: int, device: torch.device
    ) -> None:
        self.shape = {"K": num_rows, "T": num_tasks, "P": columns, "J": str(dtype).removeprefix("torch.")}
        self.problem = StepProblem(num_rows, num_tasks, columns, dtype, device)
        self.num_bytes = self.problem.num_bytes
        self.compiled = compiled

    def ours(self) -> Run:
        return self.problem.ours()

    def peers(self) -> dict[str, Callable[[], Run]]:
        if self.problem.grads.dtype != torch.float32:  # torch's matrix products want one dtype
            return {}
        peers: dict[str, Callable[[], Run]] = {"fused": partial(self.problem.optimizer, fused=True)}
        return peers | ({"compiled": partial(self.problem.eager, compile_it=True)} if self.compiled else {})


def layout(columns: int, device: torch.device) -> tuple[int, Tensor]:
    """The distance between rows, and the chunks, of one tensor."""
    _, row, chunks = ops.plan_layout([columns])
    return row, torch.tensor(chunks, device=device)


def makers(columns: int, compiled: bool) -> Iterator[partial[Any]]:
    """Every case at one size; compiled: with torch.compile too, which takes seconds for each shape."""
    for num_rows, num_tasks in ((1, 1), (5, 2), (8, 3), (16, 2)):
        yield partial(Step, num_rows, num_tasks, torch.float32, compiled, columns)
    yield partial(Step, 5, 2, torch.bfloat16, False, columns)
    for num_rows, num_tasks in ((1, 8), (5, 2), (8, 3)):
        yield partial(Combine, num_rows, num_tasks, columns)
    for num_rows in (2, 3, 8):
        yield partial(Gram, num_rows, False, columns)
    for num_rows in (5, 8):
        yield partial(Gram, num_rows, True, columns)
    for num_rows in (5, 8, 16):
        yield partial(Transfer, num_rows, columns)
    for num_tasks in (2, 3):
        yield partial(Priority, num_tasks, columns)
    yield partial(Finite, 5, 2, columns)
