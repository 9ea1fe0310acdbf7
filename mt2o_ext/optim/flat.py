"""Flat parameter buffers: all tensors of one dtype side by side in one row, one row for each subproblem.

The user's ``nn.Parameter`` objects stay the truth: they lie in the row that is active, each with a storage of its own
over that memory.  Their addresses are compared at every step (cheap integers); a parameter that was replaced in the
meantime is copied into the buffer and put there again.  One that lies in shared memory stays there, where other
processes look for it: it is copied in before a step and back after it.  So is the shard of a DTensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import in_shared_memory, with_own_storage
from ..gradients.layout import Layout
from ..gradients.table import GradientTable
from ..ops import FIELDS, NUM_CONSTANTS, gram_
from ..sharding import Gathered, is_sharded, local_of, sum_shards

__all__ = ["FlatParameters"]

AT_ONCE = 2**24  # elements whose masters are compared at once: the memory for it stays small


class FlatParameters(Layout):
    """Parameters of one dtype on one device, their gradients and optimizer state, one row for each subproblem.

    Args:
        parameters: tensors of one dtype (float32, float64, bfloat16, float16) on one device.
        num_rows: K, the number of subproblems.
        num_tasks: T, the number of gradients of each row that are kept apart.
        stacked: the parameters have a leading dimension K themselves, one slice for each subproblem.
        row: the row that the parameters become views of (if not stacked).

    Attributes:
        num_trained: the number of rows that the base rule updates: K here.
        theta: [K, P] float32 (of 16-bit parameters: their masters) or float64.
        values: what the parameters are views of: ``theta``, or for 16-bit parameters a [K, P] of their dtype.
        tasks: the gradients of T tasks.
        combined: one gradient of all of them, where it was combined before the step.
        buffers: further [K, P] like ``theta``: moments, running average, ...
        gathered: what was made of shards and has to be made anew after a change of these; None: nothing.
        step: float32 [K, S], the number of steps that each row of each tensor has taken.
        segments: float64 [S, fields], the hyper-parameters.
        transfer_chunks: int64 [C, 3], the chunks of the tensors that take part in the transfer.
        transferred: which these are.
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
        super().__init__(parameters, num_rows, stacked=stacked)
        self.num_trained = self._trained_rows()
        self.tasks = GradientTable(self, num_tasks)
        self.combined = GradientTable(self)
        self.transferred = list(range(len(self.parameters)))
        self.transfer_chunks = self.chunks
        low = self.dtype in (torch.bfloat16, torch.float16)
        self.theta = self._zeros(self.num_trained, torch.float32 if low else self.dtype)
        self.values = self._zeros(num_rows, self.dtype) if low or self._shows_others() else self.theta
        self.buffers: dict[str, Tensor] = {}
        num_segments, trained = len(self.parameters), self.num_trained
        self.step = torch.zeros(trained, num_segments, dtype=torch.float32, device=self.device)
        self.constants = torch.zeros(trained, num_segments, NUM_CONSTANTS, dtype=torch.float64, device=self.device)
        self.segments = torch.zeros(num_segments, len(FIELDS), dtype=torch.float64, device=self.device)
        self._partials: Tensor | None = None
        self._shards = [segment for segment, p in enumerate(self.parameters) if is_sharded(p)]
        self._shown_row = row
        self.gathered: Gathered | None = None
        self._outside: list[tuple[Tensor, Tensor]] = []  # parameters in shared memory, and their places in the row
        self._value_views = self.views(self.values)
        self._shown = [list(map(with_own_storage, views)) for views in self._value_views]  # what parameters become
        self._places = [self._inside(_places(views)) for views in self._value_views]
        self._begin()
        self.activate(row)

    def _trained_rows(self) -> int:
        return self.num_rows

    def _shows_others(self) -> bool:
        """True if the parameters show other values than rows of theta."""
        return False

    @property
    def shows_rounded(self) -> bool:
        """True if the parameters show the rows of theta rounded to 16 bits."""
        return self.values is not self.theta and not self._shows_others()

    def _begin(self) -> None:
        """Lets every row begin where the parameters are."""
        for k in range(len(self._value_views)):
            self.adopt(k)

    def _zeros(self, num_rows: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(num_rows, self.width, dtype=dtype, device=self.device)

    def buffer(self, name: str) -> Tensor:
        """The buffer of this name, made of zeros where it is new."""
        if name not in self.buffers:
            self.buffers[name] = torch.zeros_like(self.theta)
        return self.buffers[name]

    # ------------------------------------------------------------------ values
    def activate(self, row: int) -> None:
        """Makes the parameters views of this row (of all rows, if stacked)."""
        shown = self._shown[row]
        self._outside = []
        for segment, (p, view) in enumerate(zip(self.parameters, self._value_views[row], strict=True)):
            if is_sharded(p):
                continue
            if in_shared_memory(p):
                self._outside.append((p, view))
                continue
            if shown[segment].data_ptr() != view.data_ptr():  # share_memory() moves the storage itself
                shown[segment] = with_own_storage(view)
            p.data = shown[segment]
        self._shown_row = row
        self.write_back()
        self.mark_changed()  # backward through a graph of another row would use this row's values

    def write_back(self, segments: Sequence[int] | None = None) -> None:
        """Copies the values of the active row to the parameters (or some of them) that do not lie in it."""
        wanted = None if segments is None else {id(self.parameters[segment]) for segment in segments}
        for p, view in self._outside:
            if wanted is None or id(p) in wanted:
                p.data.copy_(view)
        shards = self._shards if segments is None else [segment for segment in segments if segment in self._shards]
        if shards:
            with torch.no_grad():
                torch._foreach_copy_(self._local(shards), [self._value_views[self._shown_row][i] for i in shards])
            self._drop_gathered()

    def _drop_gathered(self) -> None:
        if self.gathered is not None:
            self.gathered.drop()

    def _local(self, segments: Sequence[int]) -> list[Tensor]:
        return [local_of(self.parameters[segment]) for segment in segments]

    @torch.no_grad()
    def adopt_shards(self, row: int) -> None:
        """Takes the present values of shards into this row, whether or not anybody has changed them."""
        if self._shards:
            views = [self._value_views[row][segment] for segment in self._shards]
            torch._foreach_copy_(views, self._local(self._shards))

    def adopt(self, row: int) -> None:
        """Takes the present values of the parameters into this row (into all rows, if stacked)."""
        self.adopt_shards(row)
        for p, view in zip(self.parameters, self._value_views[row], strict=True):
            if self._shards and is_sharded(p):
                continue
            if p.data_ptr() != view.data_ptr():
                view.copy_(p.data)
            elif p.stride() != view.stride():  # `p.data = p.data.T`: the same memory in another order
                view.copy_(p.data.clone())
        self.adopt_rounded(row)

    def adopt_rounded(self, row: int) -> None:
        """Takes in 16-bit values of this row (all rows, if stacked) that somebody has changed.

        Their float32 masters yield where they round to something else.  By value: what is written
        through ``p.data`` counts up no version of the parameter.  Nobody waits for a device.
        """
        if self.values is self.theta:
            return
        masters, values = (self.theta, self.values) if self.stacked else (self.theta[row], self.values[row])
        for master, low in zip(masters.view(-1).split(AT_ONCE), values.view(-1).split(AT_ONCE), strict=True):
            yield_to_(master, low)

    def detach_values(self, name: str | None, row: int) -> None:
        """Gives the parameters tensors of their own: copies of this row (all rows, if stacked) of a buffer."""
        source = self.values if name is None else self.buffers[name]
        self.show(source if self.stacked else source[row : row + 1])

    def show(self, rows: Tensor) -> None:
        """Gives the parameters tensors of their own with the values of a row [1, P] (all rows [K, P], if stacked)."""
        for segment, p in enumerate(self.parameters):
            own = self.rows_of(rows, segment, int(rows.storage_offset()))
            values = own if self.stacked else own[0]
            if is_sharded(p):
                with torch.no_grad():
                    local_of(p).copy_(values)
                continue
            if in_shared_memory(p):
                p.data.copy_(values)
                continue
            p.data = values.to(self.dtype, copy=True, memory_format=torch.preserve_format)
        self._drop_gathered()

    def load_theta(self, segment: int, rows: Tensor, *, keep_values: bool) -> None:
        """Sets all rows of one parameter, or (keep_values) only the float32 masters of its 16-bit values."""
        theta = self.rows_of(self.theta, segment)
        theta.copy_(rows)
        if keep_values:
            yield_to_(theta, self.rows_of(self.values, segment))
            return
        if self.values is not self.theta:
            self.rows_of(self.values, segment).copy_(theta)
        self.write_back([segment])

    def rows_loaded(self) -> None:
        """Called when `load_theta` has set all that is to be set; the parameters show it already."""

    def replaced(self, row: int) -> bool:
        """True if a parameter is no longer the view that this row gave it."""
        return self._inside(_places(self.parameters)) != self._places[row]

    def reshaped(self) -> tuple[list[int], list[int]] | None:
        """The old and the new shape of a parameter that has changed it."""
        lead = (self.num_rows,) if self.stacked else ()
        for p, shape in zip(map(local_of, self.parameters), self.shapes, strict=True):
            if p.shape != (*lead, *shape):
                return [*lead, *shape], list(p.shape)
        return None

    def _inside(self, places: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The places of parameters that lie in the buffer: not those of shards."""
        if not self._shards:
            return places
        shards = set(self._shards)
        return [place for segment, place in enumerate(places) if segment not in shards]

    def moved(self) -> bool:
        """True if a parameter has changed its dtype or device."""
        return any(p.dtype != self.dtype or p.device != self.device for p in self.parameters)

    def mark_changed(self) -> None:
        """Tells autograd that the parameters were written to (they have counters of their own, not the buffer's)."""
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(self.parameters)

    # ------------------------------------------------------------------ transfer
    def set_transfer(self, takes_part: Sequence[bool]) -> None:
        """Names the parameters (by position) whose rows are blended."""
        transferred = [segment for segment, takes in enumerate(takes_part) if takes]
        if transferred == self.transferred:
            return
        self.transferred = transferred
        if all(takes_part):
            self.transfer_chunks = self.chunks
        else:
            self.transfer_chunks = torch.cat([self.chunks[:0], *(self.chunks_of[i] for i in self.transferred)])

    def centred_gram(self, rows: Tensor | None = None) -> Tensor:
        """float64 [S, K, K]: inner products of the rows of theta (or of another [K, P]) less their mean, per tensor."""
        chunks, pairs = self.gram_chunks(self.num_rows), self.num_rows * (self.num_rows + 1) // 2
        if self._partials is None:
            self._partials = torch.empty(1, len(chunks), pairs, dtype=torch.float64, device=self.device)
        out = torch.empty(
            1, len(self.parameters), self.num_rows, self.num_rows, dtype=torch.float64, device=self.device
        )
        values = (self.theta if rows is None else rows).unsqueeze(0)
        gram_(out, self._partials, values, None, chunks, centre=True)
        return sum_shards(out, self.parameters)[0] if self.sharded else out[0]

    def slopes(self, gradients: Tensor) -> Tensor:
        """float64 [S, K, K]: <g_k, theta_j - theta_0> per tensor, for gradients [K, P]; 0 for those not blended."""
        rows, chunks = self.num_rows, self.transfer_chunks
        out = torch.empty(1, len(self.parameters), rows, rows, dtype=torch.float64, device=self.device)
        partials = torch.empty(1, len(chunks), rows * rows, dtype=torch.float64, device=self.device)
        differences = self.theta - self.theta[:1]
        gram_(out, partials, gradients.to(differences.dtype).unsqueeze(0), differences.unsqueeze(0), chunks)
        return sum_shards(out, self.parameters)[0] if self.sharded else out[0]


def yield_to_(master: Tensor, low: Tensor) -> None:
    """master <- low where it does not round to that."""
    torch.where(master.to(low.dtype) == low, master, low.to(master.dtype), out=master)


def _places(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Places and forms of tensors: equal for views of the same elements."""
    return [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]
