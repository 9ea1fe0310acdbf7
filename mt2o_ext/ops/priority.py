"""``priority``: gradients of T tasks and an owner for each channel -> one gradient without conflicts against owners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from ._registry import changed, compiled, register_fake

CHUNK = 16_384  # columns; partial sums are made over chunks, so results depend on this number


class PriorityRecord(NamedTuple):
    """Channels that the columns of one tensor belong to: a range that is dense as [runs, channels, length].

    Run r of channel q is ``offset + (r * channels + q) * length``, ``length`` columns of it; the channel has the number
    ``first_channel + q`` in ``owners``.  layer -1: these columns belong to no channel.
    """

    layer: int
    first_channel: int
    channels: int
    offset: int
    length: int
    runs: int

    @property
    def numel(self) -> int:
        """The columns of the tensor."""
        return self.runs * self.channels * self.length


def plan_priority(records: Sequence[PriorityRecord]) -> tuple[Tensor, Tensor]:
    """The tables of :func:`priority_`.

    Returns:
        Records int64 [R, 6] in the order of layers, and chunks int64 [C, 3] ``(record, begin, end)``, which depend on
        the records alone.
    """
    ordered = sorted(records, key=lambda record: (record.layer, record.offset))
    chunks = [
        (index, begin, min(begin + CHUNK, record.offset + record.numel))
        for index, record in enumerate(ordered)
        for begin in range(record.offset, record.offset + record.numel, CHUNK)
    ]
    tables = torch.tensor(ordered, dtype=torch.int64), torch.tensor(chunks, dtype=torch.int64)
    return tables[0].reshape(-1, 6), tables[1].reshape(-1, 3)


def priority_(
    out: Tensor, dots: Tensor, coefficients: Tensor, grads: Tensor, owners: Tensor, records: Tensor, chunks: Tensor
) -> None:
    """out = sum_j G_j + c_i G_i for the columns of channels that task i owns, out = sum_j G_j for all others.

    c_i = sum_{j != i} max(0, -<G_i, G_j>) / |G_i|^2, or 0 where G_i is zero, with G_j the gradient of task j on all
    channels of a layer that task i owns, as one vector: the closed form of taking from each G_j that conflicts with G_i
    its part along G_i (Jeong & Yoon, CVPR 2024, Algorithm 1).

    Products are summed in float64, over fixed chunks that are added in order (on a GPU in another, also fixed one):
    results depend neither on the number of threads nor on the instruction set.  Where c_i is 0 the result is the plain
    sum, bit for bit that of :func:`combine_` with weights of one.

    Args:
        out: [P], written; dtype of ``grads``, or float32 where those have 16 bits.  It may be a row of ``grads``
            (every column is read before it is written); the gradient that was in that row is then gone.
        dots: float64 [C, T, T], scratch: of each chunk <G_i, G_j> over its columns that task i owns.
        coefficients: float64 [layers, T], written: c_i.
        grads: [T, P], T <= 64; float32, float64, bfloat16 or float16.
        owners: int64 [N], the task of each channel, or -1 for none.
        records: int64 [R, 6], :class:`PriorityRecord`, in the order of layers.
        chunks: int64 [C, 3], in the order of records; columns outside of them are not written.
    """
    (torch.ops.mt2o_ext.priority_ if compiled(grads) else reference.priority_)(
        out, dots, coefficients, grads, owners, records, chunks
    )
    changed([out, dots, coefficients])


@register_fake("priority_")
def _(
    out: Tensor, dots: Tensor, coefficients: Tensor, grads: Tensor, owners: Tensor, records: Tensor, chunks: Tensor
) -> None:
    tasks, columns = grads.shape
    torch._check(out.shape == (columns,), lambda: f"out must be [{columns}], not {list(out.shape)}")
    expected = (chunks.shape[0], tasks, tasks)
    torch._check(dots.shape == expected, lambda: f"dots must be {list(expected)}, not {list(dots.shape)}")
    torch._check(
        coefficients.dim() == 2 and coefficients.shape[1] == tasks,
        lambda: f"coefficients must be [layers, {tasks}], not {list(coefficients.shape)}",
    )
    torch._check(
        records.dim() == 2 and records.shape[1] == 6, lambda: f"records must be [R, 6], not {list(records.shape)}"
    )
