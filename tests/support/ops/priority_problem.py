"""Random gradients, owners and records for ``priority_``, and Algorithm 1 as the paper writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mt2o_ext.ops import PriorityRecord, plan_priority
from support.backends import Backend
from support.samplers import Layout, Sampler

# (runs, channels, length) of tensors, by layer (-1: plain): a convolution with bias, depthwise, a transposed
# convolution, attention heads of a joint projection, one channel over several chunks, elements side by side.
SHAPES = (
    (0, (1, 7, 162)), (0, (1, 7, 1)), (-1, (1, 1, 37)), (1, (1, 40, 9)), (2, (6, 5, 25)), (3, (3, 4, 96)),
    (4, (1, 2, 20_000)), (5, (300, 9, 1)), (-1, (1, 1, 5000)), (6, (1, 1, 16)),
)  # fmt: skip


@dataclass
class PriorityProblem:
    """The arguments of ``priority_``."""

    layout: Layout
    plan: list[PriorityRecord]
    grads: Tensor
    owners: Tensor
    dots: Tensor
    coefficients: Tensor
    records: Tensor
    chunks: Tensor

    @staticmethod
    def sample(
        tasks: int,
        dtype: torch.dtype = torch.float32,
        shapes: Sequence[tuple[int, tuple[int, int, int]]] = SHAPES,
        seed: int = 0,
        scale: float = 1.0,
    ) -> PriorityProblem:
        """Channels of random owners, one in seven without."""
        layout = Layout([runs * channels * length for _, (runs, channels, length) in shapes])
        sampler = Sampler(layout, seed)
        plan, first_of = [], dict[int, int]()
        num_channels = 0
        for (layer, (runs, channels, length)), offset in zip(shapes, layout.offsets, strict=True):
            if layer >= 0 and layer not in first_of:
                first_of[layer] = num_channels
                num_channels += channels
            plan.append(PriorityRecord(layer, first_of.get(layer, 0), channels, offset, length, runs))
        owners = torch.randint(tasks, (num_channels,), generator=sampler.generator)
        owners[torch.rand(num_channels, generator=sampler.generator) < 1 / 7] = -1
        records, chunks = plan_priority(plan)
        return PriorityProblem(
            layout=layout,
            plan=plan,
            grads=sampler.rows(tasks, dtype=dtype, scale=scale),
            owners=owners,
            dots=torch.full((len(chunks), tasks, tasks), torch.nan, dtype=torch.float64),
            coefficients=torch.full((len(first_of), tasks), torch.nan, dtype=torch.float64),
            records=records,
            chunks=chunks,
        )

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return self.owners, self.records, self.chunks

    def run(self, backend: Backend, out_dtype: torch.dtype | None = None) -> Tensor:
        """The result, NaN outside of the tensors; ``coefficients`` and ``dots`` are set."""
        out = torch.full((self.layout.row,), torch.nan, dtype=out_dtype or self.grads.dtype)
        backend.priority_(out, self.dots, self.coefficients, self.grads, *self.tables)
        return out

    def owner_of_column(self, layer: int) -> Tensor:
        """The owner of each column that belongs to a channel of this layer, -2 elsewhere."""
        owner = torch.full((self.layout.row,), -2)
        for record in self.plan:
            if record.layer == layer:
                of = self.owners[record.first_channel : record.first_channel + record.channels]
                columns = of[None, :, None].expand(record.runs, record.channels, record.length).reshape(-1)
                owner[record.offset : record.offset + record.numel] = columns
        return owner

    def projected(self) -> Tensor:
        """float64 [T, P]: every task's gradient after Algorithm 1, projected explicitly, one pair after another."""
        grads = self.grads.double().clone()
        for layer in range(len(self.coefficients)):
            owner = self.owner_of_column(layer)
            for i in range(len(grads)):
                group = owner == i
                reference = grads[i, group]
                for j in range(len(grads)):
                    product = reference @ grads[j, group]
                    if i != j and product < 0:
                        grads[j, group] -= product / (reference @ reference) * reference
        return grads
