"""Flat parameter buffers: all tensors of one dtype side by side in one row, one row for each subproblem.

The user's ``nn.Parameter`` objects stay the truth: they are views into the row that is active.  Their addresses are compared at
every step (cheap integers); a parameter that was replaced in the meantime is copied into the buffer and made a view again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .ops import NUM_CONSTANTS, finite_, gram_, plan_layout

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
    """Parameters of one dtype on one device, their gradients and optimizer state, as matrices with one row per subproblem.

    Args:
        parameters: tensors of one dtype (float32, float64, bfloat16, float16) on one device.
        num_rows: K, the number of subproblems.
        stacked: the parameters have a leading dimension K themselves, one slice for each subproblem.

    Attributes:
        theta: [K, P] float32 (of 16-bit parameters: their masters) or float64.
        values: what the parameters are views of: ``theta``, or for 16-bit parameters a [K, P] of their dtype.
        grads: [K, 1, P] in the parameters' dtype.
        buffers: further [K, P] like ``theta``: moments, running average, ...
        step: float32 [K, S], the number of steps that each row of each tensor has taken.
        segments: float64 [S, fields], the hyper-parameters.
        active: bool [K, S], which gradients are there.
        chunks, transfer_chunks: int64 [C, 3], of all tensors and of those that take part in the transfer.
    """

    def __init__(self, parameters: Sequence[Tensor], num_rows: int, *, stacked: bool = False) -> None:
        self.parameters = list(parameters)
        self.num_rows = num_rows
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
        self.grads = self._zeros(self.dtype).unsqueeze(1)
        self.buffers: dict[str, Tensor] = {}
        num_segments = len(self.parameters)
        self.step = torch.zeros(num_rows, num_segments, device=self.device)
        self.constants = torch.zeros(num_rows, num_segments, NUM_CONSTANTS, dtype=torch.float64, device=self.device)
        self.segments = torch.zeros(0)
        self.segment_values: list[list[float]] = []
        self.active = torch.zeros(num_rows, num_segments, dtype=torch.bool, device=self.device)
        self.filled = [[False] * num_segments for _ in range(1 if stacked else num_rows)]  # self.active on the host
        self._partials: Tensor | None = None
        self._value_views = self._views(self.values)
        self._grad_views = self._views(self.grads.squeeze(1))
        self._addresses = [[view.data_ptr() for view in views] for views in self._value_views]
        self._versions = [p._version for p in self.parameters]
        for row in range(len(self._value_views)):
            self.adopt(row)
        self.activate(0)

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.num_rows, self.row, dtype=dtype, device=self.device)

    def _views(self, buffer: Tensor) -> list[list[Tensor]]:
        """Views of the shape of each parameter: one list for each row, or one list of all rows if stacked."""
        if self.stacked:
            return [[self.rows_of(buffer, i) for i in range(len(self.parameters))]]
        return [[self.rows_of(buffer, i)[k] for i in range(len(self.parameters))] for k in range(self.num_rows)]

    def rows_of(self, buffer: Tensor, segment: int) -> Tensor:
        """All K rows of one parameter, a view [K, *shape] of a [K, P] buffer."""
        shape = (self.num_rows, *self.shapes[segment])
        return buffer.as_strided(shape, (buffer.stride(0), *self.strides[segment]), self.offsets[segment])

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

    def adopt(self, row: int) -> None:
        """Takes the present values of the parameters into this row (into all rows, if stacked)."""
        for segment, (p, view) in enumerate(zip(self.parameters, self._value_views[row], strict=True)):
            if p.data_ptr() != view.data_ptr():
                view.copy_(p.data)
            if self.values is not self.theta:
                self._round_to_master(segment, None if self.stacked else row)

    def _round_to_master(self, segment: int, row: int | None) -> None:
        """Sets float32 masters where they do not round to the 16-bit value (which somebody has changed)."""
        master, low = self.rows_of(self.theta, segment), self.rows_of(self.values, segment)
        if row is not None:
            master, low = master[row], low[row]
        master.copy_(torch.where(master.to(low.dtype) == low, master, low.to(master.dtype)))

    def detach_values(self, name: str | None, row: int) -> None:
        """Gives the parameters tensors of their own, with the values of this row (all rows, if stacked) or of a buffer's."""
        source = self.values if name is None else self.buffers[name]
        for segment, p in enumerate(self.parameters):
            rows = self.rows_of(source, segment)
            values = rows if self.stacked else rows[row]
            p.data = values.to(self.dtype, copy=True, memory_format=torch.preserve_format)

    def load_theta(self, segment: int, rows: Tensor, *, keep_values: bool) -> None:
        """Sets all rows of one parameter, or (keep_values) only the float32 masters of the 16-bit values that it has."""
        theta = self.rows_of(self.theta, segment)
        theta.copy_(rows)
        if keep_values:
            self._round_to_master(segment, None)
        elif self.values is not self.theta:
            self.rows_of(self.values, segment).copy_(theta)

    def moved(self) -> bool:
        """True if a parameter has changed its dtype, device or shape."""
        lead = (self.num_rows,) if self.stacked else ()
        return any(
            p.dtype != self.dtype or p.device != self.device or p.shape != (*lead, *shape)
            for p, shape in zip(self.parameters, self.shapes, strict=True)
        )

    def synchronize(self, row: int) -> None:
        """Takes in what was done to the parameters since the last step: replaced tensors, changed 16-bit values."""
        if torch.compiler.is_compiling():
            return
        if [p.data_ptr() for p in self.parameters] != self._addresses[row]:
            self.adopt(row)
            self.activate(row)
        elif self.values is not self.theta and [p._version for p in self.parameters] != self._versions:
            self.adopt(row)

    def mark_changed(self) -> None:
        """Tells autograd that the parameters were written to (a parameter has a counter of its own, not the buffer's)."""
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(self.parameters)
            self._versions = [p._version for p in self.parameters]

    # ------------------------------------------------------------------ gradients
    def collect_gradients(self, row: int, *, detach: bool) -> None:
        """Copies every ``.grad`` into the buffer's row.

        detach: adds to what is there since the last ``forget_gradients`` and takes ``.grad`` away, so that the next subproblem
        starts from none; otherwise ``.grad`` stays as it is, the whole gradient.
        """
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        filled = self.filled[row]
        for segment, p in enumerate(self.parameters):
            grad = p.grad
            if grad is None:
                if not detach:
                    filled[segment] = False
                continue
            check_gradient(p, grad)
            view = self._grad_views[row][segment]
            if detach and filled[segment]:
                view.add_(grad)
            else:
                targets.append(view)
                sources.append(grad)
            filled[segment] = True
            if detach:
                p.grad = None
        if targets:
            torch._foreach_copy_(targets, sources)

    def forget_gradients(self) -> None:
        self.filled = [[False] * len(self.parameters) for _ in self.filled]

    def all_filled(self) -> bool:
        return all(map(all, self.filled))

    def any_filled(self) -> bool:
        return any(map(any, self.filled))

    def update_active(self) -> Tensor | None:
        """bool [K, S] of the gradients that are there, or None where all are."""
        if self.all_filled():
            return None
        self.active.copy_(torch.tensor(self.filled, device=self.device).expand_as(self.active))
        return self.active

    def find_nonfinite(self, found_inf: Tensor) -> None:
        """Sets found_inf[k] = 1 (float32 [K]) where a gradient of row k that will be used is infinite or NaN."""
        if not self.all_filled():  # what is left from an earlier step does not count
            for views, filled in zip(self._grad_views, self.filled, strict=True):
                for view, there in zip(views, filled, strict=True):
                    if not there:
                        view.zero_()
        finite_(found_inf, self.grads, self.chunks)

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

    def for_each_row(self, function: Callable[[int], None]) -> None:
        """Calls ``function(k)`` with the parameters on row k, and takes over what it has written."""
        for row in range(len(self._value_views)):
            self.activate(row)
            function(row)
            self.adopt(row)
        self.activate(0)


def check_gradient(parameter: Tensor, grad: Tensor) -> None:
    if grad.layout != torch.strided:
        raise TypeError(
            f"expected dense gradients, got one of layout {grad.layout} for a parameter of shape {list(parameter.shape)}; "
            "build the embedding with sparse=False"
        )
