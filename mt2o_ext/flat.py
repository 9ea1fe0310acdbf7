"""Flat parameter buffers: all tensors of one dtype side by side in one row, one row for each subproblem.

The user's ``nn.Parameter`` objects stay the truth: they are views into the row that is active.  Their addresses are
compared at every step (cheap integers); a parameter that was replaced in the meantime is copied into the buffer and
made a view again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .ops import FIELDS, NUM_CONSTANTS, finite_, gram_, plan_layout

__all__ = ["FlatParameters"]


def dense_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The same strides if they cover the elements without gaps (as channels_last does), else contiguous ones."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != expected:
            return torch.empty(shape, device="meta").stride()
        expected *= size
    return tuple(strides)


class FlatParameters:
    """Parameters of one dtype on one device, their gradients and optimizer state, one row for each subproblem.

    Args:
        parameters: tensors of one dtype (float32, float64, bfloat16, float16) on one device.
        num_rows: K, the number of subproblems.
        num_tasks: T, the number of gradients kept of each row.
        stacked: the parameters have a leading dimension K themselves, one slice for each subproblem.
        row: the row that the parameters become views of (if not stacked).

    Attributes:
        theta: [K, P] float32 (of 16-bit parameters: their masters) or float64.
        values: what the parameters are views of: ``theta``, or for 16-bit parameters a [K, P] of their dtype.
        grads: [K, T, P] in the parameters' dtype.
        buffers: further [K, P] like ``theta``: moments, running average, ...
        step: float32 [K, S], the number of steps that each row of each tensor has taken.
        segments: float64 [S, fields], the hyper-parameters.
        filled: which gradients are there: for each row (or once, if stacked) and task, row after row, of each tensor.
        chunks, transfer_chunks: int64 [C, 3], of all tensors and of those that take part in the transfer.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        num_rows: int,
        *,
        num_tasks: int = 1,
        stacked: bool = False,
        row: int = 0,
    ) -> None:
        self.parameters = list(parameters)
        self.num_rows = num_rows
        self.num_tasks = num_tasks
        self.stacked = stacked
        first = self.parameters[0]
        self.dtype, self.device = first.dtype, first.device
        shapes = [p.shape[1:] if stacked else p.shape for p in self.parameters]
        strides = [p.stride()[1:] if stacked else p.stride() for p in self.parameters]
        self.shapes = shapes
        self.strides = [dense_strides(shape, stride) for shape, stride in zip(shapes, strides, strict=True)]
        self.numels = [shape.numel() for shape in shapes]
        self.offsets, self.row, chunks = plan_layout(self.numels)
        self.chunks = torch.tensor(chunks, dtype=torch.int64, device=self.device).reshape(-1, 3)
        self.transfer_chunks = self.chunks
        low = self.dtype in (torch.bfloat16, torch.float16)
        self.theta = self._zeros(torch.float32 if low else self.dtype)
        self.values = self._zeros(self.dtype) if low else self.theta
        self.grads = torch.zeros(num_rows, num_tasks, self.row, dtype=self.dtype, device=self.device)
        self.buffers: dict[str, Tensor] = {}
        num_segments = len(self.parameters)
        self.step = torch.zeros(num_rows, num_segments, device=self.device)
        self.constants = torch.zeros(num_rows, num_segments, NUM_CONSTANTS, dtype=torch.float64, device=self.device)
        self.segments = torch.zeros(num_segments, len(FIELDS), dtype=torch.float64, device=self.device)
        self.filled = [[False] * num_segments for _ in range(num_tasks * (1 if stacked else num_rows))]
        self._partials: Tensor | None = None
        self._value_views = self._views(self.values)
        of_tasks = [self._views(self.grads, task * self.row) for task in range(num_tasks)]
        self._grad_views = [views for row_views in zip(*of_tasks, strict=True) for views in row_views]  # as `filled`
        self._places = [_places(views) for views in self._value_views]
        self._versions: list[int] = []
        for k in range(len(self._value_views)):
            self.adopt(k)
        self.activate(row)

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.num_rows, self.row, dtype=dtype, device=self.device)

    def _views(self, buffer: Tensor, first: int = 0) -> list[list[Tensor]]:
        """Views of the shape of each parameter: one list for each row, or one list of all rows if stacked."""
        if self.stacked:
            return [[self.rows_of(buffer, i, first) for i in range(len(self.parameters))]]
        return [[self.rows_of(buffer, i, first)[k] for i in range(len(self.parameters))] for k in range(self.num_rows)]

    def rows_of(self, buffer: Tensor, segment: int, first: int = 0) -> Tensor:
        """All K rows of one parameter, a view [K, *shape] of a [K, P] buffer that begins at this element."""
        shape = (self.num_rows, *self.shapes[segment])
        return buffer.as_strided(shape, (buffer.stride(0), *self.strides[segment]), first + self.offsets[segment])

    def buffer(self, name: str) -> Tensor:
        """The buffer of this name, made of zeros where it is new."""
        if name not in self.buffers:
            self.buffers[name] = torch.zeros_like(self.theta)
        return self.buffers[name]

    # ------------------------------------------------------------------ values
    def activate(self, row: int) -> None:
        """Makes the parameters views of this row (of all rows, if stacked)."""
        for p, view in zip(self.parameters, self._value_views[row], strict=True):
            p.data = view
        self.mark_changed()  # backward through a graph of another row would use this row's values

    def adopt(self, row: int) -> None:
        """Takes the present values of the parameters into this row (into all rows, if stacked)."""
        for segment, (p, view) in enumerate(zip(self.parameters, self._value_views[row], strict=True)):
            if p.data_ptr() != view.data_ptr():
                view.copy_(p.data)
            elif p.stride() != view.stride():  # `p.data = p.data.T`: the same memory in another order
                view.copy_(p.data.clone())
            if self.values is not self.theta:
                self._round_to_master(segment, None if self.stacked else row)

    def _round_to_master(self, segment: int, row: int | None) -> None:
        """Sets float32 masters where they do not round to the 16-bit value (which somebody has changed)."""
        master, low = self.rows_of(self.theta, segment), self.rows_of(self.values, segment)
        if row is not None:
            master, low = master[row], low[row]
        master.copy_(torch.where(master.to(low.dtype) == low, master, low.to(master.dtype)))

    def detach_values(self, name: str | None, row: int) -> None:
        """Gives the parameters tensors of their own: copies of this row (all rows, if stacked) of a buffer."""
        source = self.values if name is None else self.buffers[name]
        for segment, p in enumerate(self.parameters):
            rows = self.rows_of(source, segment)
            values = rows if self.stacked else rows[row]
            p.data = values.to(self.dtype, copy=True, memory_format=torch.preserve_format)

    def load_theta(self, segment: int, rows: Tensor, *, keep_values: bool) -> None:
        """Sets all rows of one parameter, or (keep_values) only the float32 masters of its 16-bit values."""
        theta = self.rows_of(self.theta, segment)
        theta.copy_(rows)
        if keep_values:
            self._round_to_master(segment, None)
        elif self.values is not self.theta:
            self.rows_of(self.values, segment).copy_(theta)

    def replaced(self, row: int) -> bool:
        """True if a parameter is no longer the view that this row gave it."""
        return _places(self.parameters) != self._places[row]

    def reshaped(self) -> tuple[list[int], list[int]] | None:
        """The old and the new shape of a parameter that has changed it."""
        lead = (self.num_rows,) if self.stacked else ()
        for p, shape in zip(self.parameters, self.shapes, strict=True):
            if p.shape != (*lead, *shape):
                return [*lead, *shape], list(p.shape)
        return None

    def moved(self) -> bool:
        """True if a parameter has changed its dtype or device."""
        return any(p.dtype != self.dtype or p.device != self.device for p in self.parameters)

    def adopt_rounded(self, row: int) -> None:
        """Takes in 16-bit values that were changed in place since the last step: their masters do not know."""
        if self.values is not self.theta and [p._version for p in self.parameters] != self._versions:
            self.adopt(row)

    def mark_changed(self) -> None:
        """Tells autograd that the parameters were written to (they have counters of their own, not the buffer's)."""
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(self.parameters)
            if self.values is not self.theta:
                self._versions = [p._version for p in self.parameters]

    # ------------------------------------------------------------------ gradients
    def collect_gradients(self, row: int, *, task: int = 0, detach: bool) -> None:
        """Copies every ``.grad`` into the buffer's row of this task.

        detach: adds to what is there since the last ``forget_gradients`` and takes ``.grad`` away, so that the next
        subproblem starts from none; otherwise ``.grad`` stays as it is, the whole gradient.

        Raises TypeError, before anything is copied, for gradients that are not dense.
        """
        grads = [p.grad for p in self.parameters]
        there = [grad is not None for grad in grads]
        for grad in grads:
            if grad is not None and grad.layout != torch.strided:
                raise TypeError(
                    f"expected dense gradients, got one of layout {grad.layout} for a parameter of shape "
                    f"{list(grad.shape)}; build the embedding with sparse=False"
                )
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

    def take_gradients(self, segment: int, other: FlatParameters, other_segment: int) -> None:
        """Copies the gradients of a parameter, where they are there, from the buffer it was in before."""
        if self.num_tasks != other.num_tasks:
            return
        for row, filled in enumerate(other.filled):
            if filled[other_segment]:
                self._grad_views[row][segment].copy_(other._grad_views[row][other_segment])
                self.filled[row][segment] = True

    def forget_gradients(self) -> None:
        self.filled = [[False] * len(self.parameters) for _ in self.filled]

    def any_filled(self) -> bool:
        return any(map(any, self.filled))

    def active(self) -> Tensor | None:
        """bool [K, S], where a tensor has a gradient of at least one task; None where all have."""
        rows = [self.filled[first : first + self.num_tasks] for first in range(0, len(self.filled), self.num_tasks)]
        there = [[any(of_tasks) for of_tasks in zip(*tasks, strict=True)] for tasks in rows]
        if all(map(all, there)):
            return None
        return torch.tensor(there, device=self.device).expand_as(self.step).contiguous()

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

    # ------------------------------------------------------------------ transfer
    def set_transfer(self, takes_part: Sequence[bool]) -> None:
        """Names the parameters (by position) whose rows are blended."""
        chosen = torch.tensor(takes_part, device=self.device)[self.chunks[:, 0]]
        self.transfer_chunks = self.chunks if all(takes_part) else self.chunks[chosen].contiguous()

    def centred_gram(self, rows: Tensor | None = None) -> Tensor:
        """float64 [S, K, K]: inner products of the rows of theta (or of another [K, P]) less their mean, per tensor."""
        num_chunks, pairs = self.chunks.shape[0], self.num_rows * (self.num_rows + 1) // 2
        if self._partials is None:
            self._partials = torch.empty(1, num_chunks, pairs, dtype=torch.float64, device=self.device)
        out = torch.empty(
            1, len(self.parameters), self.num_rows, self.num_rows, dtype=torch.float64, device=self.device
        )
        gram_(out, self._partials, (self.theta if rows is None else rows).unsqueeze(0), self.chunks, centre=True)
        return out[0]


def _places(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Where tensors lie, and how: equal for views of the same elements."""
    return [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]
