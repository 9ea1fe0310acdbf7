"""Flat gradient buffers: the gradients of T tasks by all tensors of one dtype, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from . import capture
from .ops import combine_, finite_, gram_, plan_layout

__all__ = ["FlatGradients", "check_dense", "dense_strides", "to_device"]


def dense_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The same strides if they cover the elements without gaps (as channels_last does), else contiguous ones."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != expected:
            return torch.empty(shape, dtype=torch.float32, device="meta").stride()
        expected *= size
    return tuple(strides)


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A table of the host on a device; on a GPU through pinned memory, so that nobody waits for it.

    Raises RuntimeError during a capture: the memory that a replay would copy from is used otherwise by then.
    """
    capture.refuse(
        device,
        "the first step, or one with other options or other missing gradients than the step before",
        "take one such step outside of the capture first, and give lr as a tensor on the device if it changes",
    )
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def check_dense(grads: Iterable[Tensor | None]) -> None:
    """Raises TypeError for a gradient that is not dense."""
    for grad in grads:
        if grad is not None and grad.layout != torch.strided:
            raise TypeError(
                f"expected dense gradients, got one of layout {grad.layout} for a parameter of shape "
                f"{list(grad.shape)}; build the embedding with sparse=False"
            )


class FlatGradients:
    """Gradients of parameters of one dtype on one device; T of each of K rows.

    Args:
        parameters: tensors of one dtype (float32, float64, bfloat16, float16) on one device.
        num_rows: K, the number of subproblems.
        num_tasks: T, the number of gradients kept of each row.
        stacked: the parameters have a leading dimension K themselves, one slice for each subproblem.

    Attributes:
        grads: [K, T, P] in the parameters' dtype.
        filled: which gradients are there: for each row (or once, if stacked) and task, row after row, of each tensor.
        chunks: int64 [C, 3].
    """

    def __init__(
        self, parameters: Sequence[Tensor], num_rows: int = 1, *, num_tasks: int = 1, stacked: bool = False
    ) -> None:
        self.parameters = list(parameters)
        self.num_rows = num_rows
        self.num_tasks = num_tasks
        self.stacked = stacked
        first = self.parameters[0]
        self.dtype, self.device = first.dtype, first.device
        self.shapes = [p.shape[1:] if stacked else p.shape for p in self.parameters]
        strides = [p.stride()[1:] if stacked else p.stride() for p in self.parameters]
        self.strides = [dense_strides(shape, stride) for shape, stride in zip(self.shapes, strides, strict=True)]
        self.numels = [shape.numel() for shape in self.shapes]
        self.offsets, self.row, chunks = plan_layout(self.numels)
        self.chunks = torch.tensor(chunks, dtype=torch.int64, device=self.device).reshape(-1, 3)
        self._chunk_counts = Counter(segment for segment, _, _ in chunks)
        self.grads = torch.zeros(num_rows, num_tasks, self.row, dtype=self.dtype, device=self.device)
        self.filled = [[False] * len(self.parameters) for _ in range(num_tasks * (1 if stacked else num_rows))]
        of_tasks = [self._views(self.grads, task * self.row) for task in range(num_tasks)]
        self._grad_views = [views for row_views in zip(*of_tasks, strict=True) for views in row_views]  # as `filled`
        self._grams: dict[bool, tuple[Tensor, Tensor]] = {}  # result and scratch, of squares alone and of all products
        self._active: tuple[list[list[bool]], Tensor] | None = None

    @cached_property
    def chunks_of(self) -> tuple[Tensor, ...]:
        """The chunks of each parameter."""
        return self.chunks.split([self._chunk_counts[segment] for segment in range(len(self.parameters))])

    def _views(self, buffer: Tensor, first: int = 0) -> list[list[Tensor]]:
        """Views of the shape of each parameter: one list for each row, or one list of all rows if stacked."""
        if self.stacked:
            return [[self.rows_of(buffer, i, first) for i in range(len(self.parameters))]]
        return [[self.rows_of(buffer, i, first)[k] for i in range(len(self.parameters))] for k in range(self.num_rows)]

    def rows_of(self, buffer: Tensor, segment: int, first: int = 0) -> Tensor:
        """All K rows of one parameter, a view [K, *shape] of a [K, P] buffer that begins at this element."""
        shape = (self.num_rows, *self.shapes[segment])
        return buffer.as_strided(shape, (buffer.stride(0), *self.strides[segment]), first + self.offsets[segment])

    # ------------------------------------------------------------------ where gradients go
    def place(self, row: int, task: int, segment: int) -> Tensor:
        """Where the gradient of one task by one parameter lies, of its shape; with a version counter of its own."""
        return self._grad_views[row * self.num_tasks + task][segment].data

    def places(self, row: int, segment: int) -> Tensor:
        """Where the gradients of all tasks by one parameter lie: [T, *shape], or [T, K, *shape] if stacked."""
        one = self._grad_views[row * self.num_tasks][segment]
        return one.as_strided((self.num_tasks, *one.shape), (self.row, *one.stride()), one.storage_offset())

    def collect_gradients(self, row: int, *, task: int = 0, detach: bool) -> None:
        """Copies every ``.grad`` into the buffer's row of this task.

        detach: adds to what is there since the last ``forget_gradients`` and takes ``.grad`` away, so that the next
        subproblem starts from none; otherwise ``.grad`` stays as it is, the whole gradient.

        Raises TypeError, before anything is copied, for gradients that are not dense.
        """
        grads = [p.grad for p in self.parameters]
        check_dense(grads)
        there = [grad is not None for grad in grads]
        row = row * self.num_tasks + task
        before = self.filled[row] if detach else [False] * len(grads)
        pairs = list(zip(self._grad_views[row], grads, before, strict=True))
        new = [(view, grad) for view, grad, old in pairs if grad is not None and not old]
        more = [(view, grad) for view, grad, old in pairs if grad is not None and old]
        if new:
            torch._foreach_copy_([view for view, _ in new], [grad for _, grad in new])
        if more:
            torch._foreach_add_([view for view, _ in more], [grad for _, grad in more])
        self.filled[row] = [one or old for one, old in zip(there, before, strict=True)]
        if detach:
            for p in self.parameters:
                p.grad = None

    def take_gradients(self, segment: int, other: FlatGradients, other_segment: int) -> None:
        """Copies the gradients of a parameter, where they are there, from the buffer it was in before."""
        if self.num_tasks != other.num_tasks:
            return
        for row, filled in enumerate(other.filled):
            if filled[other_segment]:
                self._grad_views[row][segment].copy_(other._grad_views[row][other_segment])
                self.filled[row][segment] = True

    # ------------------------------------------------------------------ what is there
    def forget_gradients(self) -> None:
        self.filled = [[False] * len(self.parameters) for _ in self.filled]

    def any_filled(self) -> bool:
        return any(map(any, self.filled))

    def rows_with_gradients(self) -> list[bool]:
        """For each row, whether it has a gradient of any tensor and task."""
        rows = [self.filled[first : first + self.num_tasks] for first in range(0, len(self.filled), self.num_tasks)]
        return [any(map(any, of_tasks)) for of_tasks in rows]

    def active(self) -> Tensor | None:
        """bool [K, S], where a tensor has a gradient of at least one task; None where all have."""
        rows = [self.filled[first : first + self.num_tasks] for first in range(0, len(self.filled), self.num_tasks)]
        there = [[any(of_tasks) for of_tasks in zip(*tasks, strict=True)] for tasks in rows]
        if all(map(all, there)):
            return None
        if self._active is not None and self._active[0] == there and not torch.compiler.is_compiling():
            return self._active[1]  # on the device already
        active = to_device(torch.tensor(there, dtype=torch.bool), self.device).expand(self.num_rows, -1).contiguous()
        if not torch.compiler.is_compiling():
            self._active = there, active
        return active

    def clear_missing(self, num_tasks: int | None = None) -> None:
        """Sets gradients (of the first tasks only) that are not there to zero: the buffer may hold what is left from an
        earlier step."""
        for index, (views, filled) in enumerate(zip(self._grad_views, self.filled, strict=True)):
            if not all(filled) and (num_tasks is None or index % self.num_tasks < num_tasks):
                torch._foreach_zero_([view for view, there in zip(views, filled, strict=True) if not there])

    def find_nonfinite(self, found_inf: Tensor, num_tasks: int | None = None) -> None:
        """Sets found_inf[k] = 1 (float32 [K]) where a gradient of row k that will be used (of the first tasks only) is
        infinite or NaN."""
        self.clear_missing(num_tasks)
        finite_(found_inf, self.grads[:, :num_tasks], self.chunks)

    def combine_by_segment(self, out: Tensor, weights: Tensor) -> None:
        """out [K, P] <- gradients combined with weights of each tensor, float64 [K, S, T]."""
        for segment, chunks in enumerate(self.chunks_of):
            combine_(out, self.grads, weights[:, segment].contiguous(), chunks)

    def gram(self, *, diagonal: bool = False) -> Tensor:
        """float64 [K, S, T, T]: inner products of the task gradients, per tensor; written anew by the next call.

        What is not there counts as zero.  diagonal: only the squares, float64 [K, S, T].
        """
        self.clear_missing()
        if diagonal not in self._grams:
            rows, tasks, segments, chunks = self.num_rows, self.num_tasks, len(self.parameters), len(self.chunks)
            shape = (rows, segments, tasks) if diagonal else (rows, segments, tasks, tasks)
            out = self.grads.new_empty(shape, dtype=torch.float64)
            self._grams[diagonal] = out, out.new_empty(rows, chunks, tasks if diagonal else tasks * (tasks + 1) // 2)
        out, partials = self._grams[diagonal]
        gram_(out, partials, self.grads, None, self.chunks, diagonal=diagonal)
        return out
