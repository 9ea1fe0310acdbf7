"""What is timed on a GPU: each kernel family on one device, beside torch's ways to do the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.bench_priority import Network
from bench.network_shapes import Shape
from bench.step_problem import StepProblem
from mt2o_ext import ops

Run = Callable[[], object]
Peers = dict[str, Callable[[], Run]]


class Case(ABC):
    """Tensors of one size for one family, on a device."""

    family: str
    shape: dict[str, Any]
    dtype: torch.dtype = torch.float32  # of the rows that are read; parameters and moments are float32
    num_bytes: int  # what must move: every input read once, every output written once
    ceiling = "copy"  # or "read": of what bandwidth it could reach

    @abstractmethod
    def ours(self) -> Run: ...

    def peers(self) -> Peers:
        """Makers of torch's variants: each may take memory of its own, so they are made one at a time."""
        return {}


class Combine(Case):
    """out[k] = sum_t W_kt J_kt"""

    family = "combine"

    def __init__(self, num_rows: int, num_tasks: int, dtype: torch.dtype, columns: int, device: torch.device) -> None:
        self.shape = {"K": num_rows, "T": num_tasks, "P": columns}
        self.dtype = dtype
        self.num_bytes = dtype.itemsize * num_rows * columns * (num_tasks + 1)
        row, self.chunks = layout(columns, device)
        self.grads = torch.randn(num_rows, num_tasks, row, device=device).to(dtype)
        self.out = torch.zeros(num_rows, row, dtype=dtype, device=device)
        self.weights = torch.rand(num_rows, num_tasks, dtype=torch.float64, device=device)

    def ours(self) -> Run:
        return lambda: ops.combine_(self.out, self.grads, self.weights, self.chunks)

    def peers(self) -> Peers:
        single, out = self.weights.to(self.dtype).unsqueeze(1), self.out.unsqueeze(1)
        return {"bmm": lambda: lambda: torch.bmm(single, self.grads, out=out)}


class Gram(Case):
    """Inner products of the rows of a matrix"""

    family = "gram"
    ceiling = "read"

    def __init__(
        self, num_rows: int, dtype: torch.dtype, columns: int, device: torch.device, centre: bool = False
    ) -> None:
        self.shape = {"R": num_rows, "P": columns} | ({"rows": "centred"} if centre else {})
        self.dtype, self.centre = dtype, centre
        self.num_bytes = dtype.itemsize * num_rows * columns
        row, self.chunks = layout(columns, device)
        self.rows = torch.randn(1, num_rows, row, device=device).to(dtype)
        pairs = num_rows * (num_rows + 1) // 2
        self.out = torch.zeros(1, 1, num_rows, num_rows, dtype=torch.float64, device=device)
        self.partials = torch.zeros(1, len(self.chunks), pairs, dtype=torch.float64, device=device)

    def ours(self) -> Run:
        return lambda: ops.gram_(self.out, self.partials, self.rows, None, self.chunks, centre=self.centre)

    def peers(self) -> Peers:
        def product() -> Tensor:
            rows = self.rows[0] - self.rows[0].mean(0) if self.centre else self.rows[0]
            return rows @ rows.mT

        return {"mm": lambda: product}


class Transfer(Case):
    """theta <- M theta"""

    family = "transfer"

    def __init__(self, num_rows: int, dtype: torch.dtype, columns: int, device: torch.device) -> None:
        self.shape = {"K": num_rows, "P": columns}
        self.dtype = dtype
        self.num_bytes = 2 * dtype.itemsize * num_rows * columns
        row, self.chunks = layout(columns, device)
        self.theta = torch.randn(num_rows, row, device=device).to(dtype)
        self.mix = (0.9 * torch.eye(num_rows, dtype=torch.float64) + 0.1 / num_rows).to(device)

    def ours(self) -> Run:
        return lambda: ops.transfer_(self.theta, self.mix, self.chunks)

    def peers(self) -> Peers:
        def product() -> Run:
            single, out = self.mix.to(self.dtype), torch.empty_like(self.theta)
            return lambda: self.theta.copy_(torch.mm(single, self.theta, out=out))

        return {"mm": product}


class Finite(Case):
    """Which rows of gradients hold an infinity or a NaN"""

    family = "finite"
    ceiling = "read"

    def __init__(self, num_rows: int, num_tasks: int, dtype: torch.dtype, columns: int, device: torch.device) -> None:
        self.shape = {"K": num_rows, "T": num_tasks, "P": columns}
        self.dtype = dtype
        self.num_bytes = dtype.itemsize * num_rows * num_tasks * columns
        row, self.chunks = layout(columns, device)
        self.grads = torch.randn(num_rows, num_tasks, row, device=device).to(dtype)
        self.found = torch.zeros(num_rows, device=device)

    def ours(self) -> Run:
        return lambda: ops.finite_(self.found, self.grads, self.chunks)

    def peers(self) -> Peers:
        return {"isfinite": lambda: lambda: self.grads.isfinite().all()}


class Step(Case):
    """Combination, AdamW and, of more than one row, transfer in one pass"""

    family = "step"

    def __init__(
        self,
        num_rows: int,
        num_tasks: int,
        dtype: torch.dtype,
        columns: int,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.shape = {"K": num_rows, "T": num_tasks, "P": columns}
        self.dtype, self.compiled = dtype, compiled
        self.problem = StepProblem(num_rows, num_tasks, columns, dtype, device)
        self.num_bytes = self.problem.num_bytes

    def ours(self) -> Run:
        return self.problem.ours()

    def peers(self) -> Peers:
        if self.compiled:  # takes seconds for each shape
            return {"compiled": partial(self.problem.eager, compile_it=True)}
        return {"fused": partial(self.problem.optimizer, fused=True)}


class Priority(Case):
    """Products with the gradients of the channels' owners, then the corrected sum, over the layers of a network"""

    family = "priority"

    def __init__(self, num_tasks: int, shapes: list[Shape], device: torch.device) -> None:
        self.network = Network(shapes, num_tasks, device)
        columns = self.network.grads.shape[1]
        self.shape = {"T": num_tasks, "P": columns}
        # Gradients twice: there is no coefficient before all of a layer has been read.
        self.num_bytes = 4 * columns * (2 * num_tasks + 1)

    def ours(self) -> Run:
        return self.network.ours

    def peers(self) -> Peers:
        return {"layers": lambda: self.network.by_layers}


def layout(columns: int, device: torch.device) -> tuple[int, Tensor]:
    """The distance between rows, and the chunks, of one tensor."""
    _, row, chunks = ops.plan_layout([columns])
    return row, torch.tensor(chunks, device=device)


def peer_cases(elements: int, shapes: list[Shape]) -> Iterator[partial[Any]]:
    """What is timed beside torch: float32, about so many numbers in every set of rows."""
    f32 = torch.float32
    for num_rows, num_tasks in ((1, 1), (5, 2), (8, 3), (16, 2)):
        yield partial(Step, num_rows, num_tasks, f32, elements // num_rows)
    for num_rows, num_tasks in ((1, 8), (5, 2), (8, 3)):
        yield partial(Combine, num_rows, num_tasks, f32, elements // (num_rows * num_tasks))
    for num_rows in (2, 3, 8, 16, 40):
        yield partial(Gram, num_rows, f32, elements // num_rows)
    for num_rows in (5, 8):
        yield partial(Gram, num_rows, f32, elements // num_rows, centre=True)
    for num_rows in (5, 8, 16):
        yield partial(Transfer, num_rows, f32, elements // num_rows)
    for num_tasks in (2, 3):
        yield partial(Priority, num_tasks, shapes)
    yield partial(Finite, 5, 2, f32, elements // 10)


def compiled_cases(elements: int) -> Iterator[partial[Any]]:
    """Beside torch.compile."""
    for num_rows, num_tasks in ((1, 1), (5, 2), (8, 3), (16, 2)):
        yield partial(Step, num_rows, num_tasks, torch.float32, elements // num_rows, compiled=True)
