"""Places of tensors side by side in the rows of a flat buffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..device import is_gpu
from ..ops import cut_chunks, plan_layout
from ..sharding import is_sharded, local_of

__all__ = ["Layout", "dense_strides"]

# Of models with fewer columns a GPU takes inner products of up to so many rows by pieces of chunks.
SMALL, ROWS_OF_A_BLOCK, PIECE = 1_000_000, 48, 2048


def dense_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The same strides if they cover the elements without gaps (as channels_last does), else contiguous ones."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != expected:
            return torch.empty(shape, dtype=torch.float32, device="meta").stride()
        expected *= size
    return tuple(strides)


class Layout:
    """Places of the parameters of one dtype on one device in buffers [K, P].

    Args:
        parameters: tensors of one dtype (float32, float64, bfloat16, float16) on one device.
        num_rows: K, the number of subproblems.
        stacked: the parameters have a leading dimension K themselves, one slice for each subproblem.

    Attributes:
        shapes, strides, numels: of each parameter (of one slice, if stacked); strides are without gaps.
        offsets: the column where each parameter begins.
        width: P, the columns of a row, with the padding between parameters.
        chunks: int64 [C, 3], the pieces that kernels work on.
        sharded: there are DTensors among the parameters; shapes and so on are those of this rank's shards.
    """

    def __init__(self, parameters: Sequence[Tensor], num_rows: int = 1, *, stacked: bool = False) -> None:
        self.parameters = list(parameters)
        self.num_rows = num_rows
        self.stacked = stacked
        first = self.parameters[0]
        self.dtype, self.device = first.dtype, first.device
        self.sharded = any(map(is_sharded, self.parameters))
        here = list(map(local_of, self.parameters)) if self.sharded else self.parameters
        self.shapes = [p.shape[1:] if stacked else p.shape for p in here]
        strides = [p.stride()[1:] if stacked else p.stride() for p in here]
        self.strides = [dense_strides(shape, stride) for shape, stride in zip(self.shapes, strides, strict=True)]
        self.numels = [shape.numel() for shape in self.shapes]
        self.offsets, self.width, chunks = plan_layout(self.numels)
        self.chunks = torch.tensor(chunks, dtype=torch.int64, device=self.device).reshape(-1, 3)
        self._chunk_counts = Counter(segment for segment, _, _ in chunks)
        self._pieces = self.chunks
        if is_gpu(self.device) and self.width < SMALL:
            self._pieces = torch.tensor(cut_chunks(chunks, PIECE), dtype=torch.int64, device=self.device).reshape(-1, 3)

    @cached_property
    def chunks_of(self) -> tuple[Tensor, ...]:
        """The chunks of each parameter."""
        return self.chunks.split([self._chunk_counts[segment] for segment in range(len(self.parameters))])

    def gram_chunks(self, num_rows: int) -> Tensor:
        """The chunks for inner products of so many rows: on a GPU, those of a small model in pieces of 2,048 columns.

        A GPU has more multiprocessors than such a model has chunks, and a block takes a chunk of up to 48 rows.  The
        pieces depend on the sizes of the tensors alone, so the products are the same on every GPU.
        """
        return self._pieces if num_rows <= ROWS_OF_A_BLOCK else self.chunks

    def views(self, buffer: Tensor, first: int = 0) -> list[list[Tensor]]:
        """Views of the shape of each parameter: one list for each row, or one list of all rows if stacked.

        first: the element at which the first row begins.
        """
        if self.stacked:
            return [[self.rows_of(buffer, i, first) for i in range(len(self.parameters))]]
        return [[self.rows_of(buffer, i, first)[k] for i in range(len(self.parameters))] for k in range(self.num_rows)]

    def rows_of(self, buffer: Tensor, segment: int, first: int = 0) -> Tensor:
        """All rows of one parameter, a view [K, *shape] of a [K, P] buffer that begins at this element."""
        shape = (buffer.shape[0], *self.shapes[segment])
        return buffer.as_strided(shape, (buffer.stride(0), *self.strides[segment]), first + self.offsets[segment])
