"""The gradients of T tasks by all parameters of one dtype, where autograd made them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import chain
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor

from ..device import has_addresses, to_device
from ..ops import can_read_addresses, combine_, finite_, gram_
from ..ops.addresses import table_of
from ..sharding import local_gradient, of_all_shards_
from .layout import Layout

__all__ = ["GradientTable", "Source", "check_dense"]

ALIGNMENT = 16  # bytes: kernels read a gradient where it lies if its address is a multiple of this


class Source(NamedTuple):
    """Gradients as kernels read them: in a buffer [K, T, P], or at addresses, int64 [K, T, S].

    With addresses only the shape, dtype and device of ``grads`` count.
    """

    grads: Tensor
    addresses: Tensor | None


def check_dense(grads: Iterable[Tensor | None]) -> None:
    """Checks that gradients are dense.

    Raises:
        TypeError: for one that is not.
    """
    for grad in grads:
        if grad is not None and grad.layout != torch.strided:
            raise TypeError(
                f"expected dense gradients, got one of layout {grad.layout} for a parameter of shape "
                f"{list(grad.shape)}; build the embedding with sparse=False"
            )


class GradientTable:
    """For each row, task and parameter a gradient, or None.

    Tensors are taken as they are; kernels read them through their addresses.  Where somebody needs all of them in one
    buffer [K, T, P] (data parallelism, methods that change the gradients, a compiler), `flat` copies them there.

    Args:
        layout: where the parameters lie.
        num_tasks: T.

    Attributes:
        tensors: for each row and task, row after row (for each task, if stacked), the gradients by each parameter, of
            the parameter's shape.
    """

    def __init__(self, layout: Layout, num_tasks: int = 1) -> None:
        self.layout = layout
        self.num_tasks = num_tasks
        self._lead = (layout.num_rows,) if layout.stacked else ()
        self._slots = num_tasks * (1 if layout.stacked else layout.num_rows)
        self.tensors: list[list[Tensor | None]] = [[None] * len(layout.parameters) for _ in range(self._slots)]
        shape = (layout.num_rows, num_tasks, layout.width)
        self._like = torch.zeros((), dtype=layout.dtype, device=layout.device).expand(shape)
        self._size = self._like.element_size()
        self._behind = [offset * self._size for offset in layout.offsets]
        self._flat: Tensor | None = None
        self._views: list[list[Tensor]] = []  # of the buffer, as `tensors`
        self._of_one_step = False  # the buffer was made in a step that is compiled, and ends with it
        self._source: Source | None = None  # until something else goes in
        self._there: list[list[bool]] | None = None  # likewise
        self._is_bare = True  # nothing has gone in since the last `forget`
        self._addresses: tuple[list[int], Tensor] | None = None
        self._active: tuple[list[list[bool]], Tensor] | None = None
        self._places: dict[tuple[int, int], Tensor] = {}  # for gradients that lie at odd addresses
        self._grams: dict[bool, tuple[Tensor, Tensor]] = {}  # result and scratch, of squares alone and of all products

    # ------------------------------------------------------------------ what goes in
    def _touch(self) -> None:
        """Forgets what was found out about the gradients, which change now."""
        self._source = self._there = None
        self._is_bare = False

    def at(self, row: int, task: int, segment: int) -> Tensor | None:
        """The gradient of one task by one parameter."""
        return self.tensors[row * self.num_tasks + task][segment]

    def put(self, row: int, task: int, segment: int, grad: Tensor, *, copy: bool = False) -> None:
        """Takes a gradient over (or a copy of it), or adds it to the one that is there already."""
        self._touch()
        if self.layout.sharded:
            grad = local_gradient(self.layout.parameters[segment], grad)
        tensors = self.tensors[row * self.num_tasks + task]
        old = tensors[segment]
        if old is None:
            tensors[segment] = self._fitting(segment, grad.clone() if copy else grad)
        elif old is not grad:
            old.add_(grad)

    def fits(self, segment: int, grad: Tensor) -> bool:
        """True if a gradient can be read as the buffers are: of their dtype, device and order of elements."""
        layout = self.layout
        strides = grad.stride()[1:] if layout.stacked else grad.stride()
        return (
            strides == layout.strides[segment]
            and grad.dtype == layout.dtype
            and grad.layout == torch.strided
            and grad.device == layout.device
            and grad.shape == (*self._lead, *layout.shapes[segment])
        )

    def _fitting(self, segment: int, grad: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or self.fits(segment, grad):
            return grad
        layout = self.layout
        shape, strides = layout.shapes[segment], layout.strides[segment]
        if layout.stacked:
            shape, strides = torch.Size((*self._lead, *shape)), (layout.numels[segment], *strides)
        place = torch.empty_strided(shape, strides, dtype=layout.dtype, device=layout.device)
        return place.copy_(grad.to_dense() if grad.layout != torch.strided else grad)

    def take(self, row: int = 0, task: int = 0, *, keep: bool = False) -> None:
        """Takes every ``.grad`` over, or adds it to what is there since the last ``forget``.

        Args:
            row: the subproblem.
            task: whose gradients these are.
            keep: ``.grad`` stays as it is, and what was in the table before does not count.  Else it becomes None.

        Raises:
            TypeError: for gradients that are not dense, before anything is taken.
        """
        grads = [p.grad for p in self.layout.parameters]
        self._touch()
        if torch.compiler.is_compiling():
            before = [None] * len(grads) if keep else self.tensors[row * self.num_tasks + task]
            self.tensors[row * self.num_tasks + task] = [
                grad if old is None else old if grad is None else old + grad
                for grad, old in zip(grads, before, strict=True)
            ]
            return
        check_dense(grads)
        if keep:
            if self.layout.sharded:
                pairs = zip(self.layout.parameters, grads, strict=True)
                grads = [None if grad is None else local_gradient(p, grad) for p, grad in pairs]
            self.tensors[row * self.num_tasks + task] = [
                None if grad is None else self._fitting(segment, grad) for segment, grad in enumerate(grads)
            ]
            return
        for segment, (p, grad) in enumerate(zip(self.layout.parameters, grads, strict=True)):
            if grad is not None:
                self.put(row, task, segment, grad)
                p.grad = None

    def leave_out(self, segment: int) -> None:
        """Drops the gradients by one parameter."""
        self._touch()
        for tensors in self.tensors:
            tensors[segment] = None

    def take_over(self, segment: int, other: GradientTable, other_segment: int) -> None:
        """Takes the gradients of a parameter from the table that it was in before."""
        if self.num_tasks != other.num_tasks or len(self.tensors) != len(other.tensors):
            return
        self._touch()
        for tensors, before in zip(self.tensors, other.tensors, strict=True):
            grad = before[other_segment]
            tensors[segment] = None if grad is None else self._fitting(segment, grad)

    def forget(self, row: int | None = None) -> None:
        """Drops all gradients, or those of one row."""
        if not torch.compiler.is_compiling() and self._is_bare:
            return
        self._touch()
        self._is_bare = row is None
        slots = range(self._slots) if row is None else range(row * self.num_tasks, (row + 1) * self.num_tasks)
        for slot in slots:
            self.tensors[slot] = [None] * len(self.layout.parameters)
        if self._of_one_step:
            self._flat, self._views, self._of_one_step = None, [], False

    # ------------------------------------------------------------------ what is there
    @property
    def filled(self) -> list[list[bool]]:
        """True for each gradient that is there, as ``tensors``."""
        return [[grad is not None for grad in tensors] for tensors in self.tensors]

    def _reached(self) -> list[list[bool]]:
        """For each row (one, if stacked), whether a parameter has a gradient of at least one task."""
        if self._there is not None and not torch.compiler.is_compiling():
            return self._there
        there, tasks = self.filled, self.num_tasks
        if tasks > 1:
            rows = [there[first : first + tasks] for first in range(0, len(there), tasks)]
            there = [list(map(any, zip(*of_tasks, strict=True))) for of_tasks in rows]
        self._there = there
        return there

    def rows_with_gradients(self) -> list[bool]:
        """For each row, whether it has any gradient."""
        return list(map(any, self._reached()))

    def reached(self) -> list[bool]:
        """For each parameter, whether it has a gradient of any row and task."""
        first, *others = self._reached()
        return list(map(any, zip(first, *others, strict=True))) if others else first.copy()

    def is_empty(self) -> bool:
        """True if there is no gradient."""
        return not any(map(any, self._reached()))

    def active(self) -> Tensor | None:
        """bool [K, S], where a parameter has a gradient of at least one task; None where all have."""
        there = self._reached()
        if all(map(all, there)):
            return None
        compiling = torch.compiler.is_compiling()
        if self._active is not None and self._active[0] == there and not compiling:
            return self._active[1]  # on the device already
        rows = torch.tensor(there, dtype=torch.bool)
        active = to_device(rows, self.layout.device).expand(self.layout.num_rows, -1).contiguous()
        if not compiling:
            self._active = there, active
        return active

    # ------------------------------------------------------------------ as kernels read it
    def source(self) -> Source:
        """The gradients for a kernel: where they lie, if that is possible."""
        if self._source is None or torch.compiler.is_compiling():
            found = self._find_source()  # which may move gradients
            self._source = found
            return found
        return self._source

    def _find_source(self) -> Source:
        if self._flat_only():
            return Source(self.flat(), None)
        addresses = self._gradients_lie_at()
        if reduce(or_, addresses, 0) % ALIGNMENT:
            self._align()
            addresses = self._gradients_lie_at()
        if self._addresses is None or self._addresses[0] != addresses:
            shape = self.layout.num_rows, self.num_tasks, len(self.layout.parameters)
            self._addresses = addresses, table_of(addresses, self._behind, shape, self.layout.device)
        return Source(self._like, self._addresses[1])

    def _gradients_lie_at(self) -> list[int]:
        """The address of each gradient (if stacked, of its slice of each row), row after row; 0: there is none."""
        if not self.layout.stacked:
            return [0 if grad is None else grad.data_ptr() for grad in chain.from_iterable(self.tensors)]
        firsts = [0 if grad is None else grad.data_ptr() for grad in chain.from_iterable(self.tensors)]
        bytes_ = [0 if grad is None else grad.stride(0) * self._size for grad in chain.from_iterable(self.tensors)]
        rows = range(self.layout.num_rows)
        return [first + k * size for k in rows for first, size in zip(firsts, bytes_, strict=True)]

    def _align(self) -> None:
        """Moves gradients that kernels cannot read where they lie, mostly rows of small tensors of a bank."""
        moved: list[tuple[Tensor, Tensor]] = []
        for slot, tensors in enumerate(self.tensors):
            for segment, grad in enumerate(tensors):
                if grad is not None and self._lies_apart(grad):
                    place = self._place(slot, segment)
                    if place is not grad:
                        moved.append((place, grad))
                        tensors[segment] = place
        torch._foreach_copy_([place for place, _ in moved], [grad for _, grad in moved])

    def _lies_apart(self, grad: Tensor) -> bool:
        """True if a gradient, or a row of it, does not begin at a multiple of `ALIGNMENT`."""
        rows = self.layout.num_rows if self.layout.stacked else 1
        size = grad.stride(0) * self._size if rows > 1 else 0
        return any((grad.data_ptr() + k * size) % ALIGNMENT for k in range(rows))

    def _place(self, slot: int, segment: int) -> Tensor:
        """Memory of the same form in which every row begins at a multiple of `ALIGNMENT`."""
        if (slot, segment) not in self._places:
            layout = self.layout
            row = -(-layout.numels[segment] // ALIGNMENT) * ALIGNMENT
            memory = self._like.new_zeros((layout.num_rows if layout.stacked else 1, row))
            rows = layout.rows_of(memory, segment, -layout.offsets[segment])
            self._places[slot, segment] = rows if layout.stacked else rows[0]
        return self._places[slot, segment]

    def _flat_only(self) -> bool:
        """True where nobody may ask for addresses, and where all gradients lie in the buffer anyway."""
        device = self.layout.device
        if not can_read_addresses(device) or not has_addresses(device):
            return True
        return self._flat is not None and all(
            grad is view
            for tensors, views in zip(self.tensors, self._views, strict=True)
            for grad, view in zip(tensors, views, strict=True)
        )

    @torch.no_grad()
    def flat(self) -> Tensor:
        """[K, T, P], all gradients in one buffer, zeros where there is none; ``tensors`` become views of it."""
        buffer = self._buffer()
        self._touch()
        for slot, (views, tensors) in enumerate(zip(self._views, self.tensors, strict=True)):
            pairs = [(view, grad) for view, grad in zip(views, tensors, strict=True) if grad is not view]
            if new := [(view, grad) for view, grad in pairs if grad is not None]:
                torch._foreach_copy_([view for view, _ in new], [grad for _, grad in new])
            if missing := [view for view, grad in pairs if grad is None]:
                torch._foreach_zero_(missing)
            self.tensors[slot] = [None if grad is None else view for view, grad in zip(views, tensors, strict=True)]
        return buffer

    def _buffer(self) -> Tensor:
        if self._flat is None:
            layout = self.layout
            shape = (layout.num_rows, self.num_tasks, layout.width)
            buffer = torch.zeros(shape, dtype=layout.dtype, device=layout.device)
            of_tasks = [layout.views(buffer, task * layout.width) for task in range(self.num_tasks)]
            rows = [views for row_views in zip(*of_tasks, strict=True) for views in row_views]  # as `tensors`
            # Tensors with version counters of their own: `.grad` may be one of them.
            self._views = [[view.data for view in views] for views in rows]
            self._flat = buffer
            self._of_one_step = torch.compiler.is_compiling()  # else a second step would be another program
        return self._flat

    def fill(self, filled: Sequence[Sequence[bool]]) -> Tensor:
        """The same buffer, and gradients of zeros where there should be some as well."""
        buffer = self.flat()
        self._there = None
        for slot, (views, there) in enumerate(zip(self._views, filled, strict=True)):
            self.tensors[slot] = [view if one else None for view, one in zip(views, there, strict=True)]
        return buffer

    # ------------------------------------------------------------------ kernels
    def find_nonfinite(self, found: Tensor) -> None:
        """Sets found[k] = 1 (float32 [K]) where a gradient of row k is infinite or NaN, in the shards of any rank."""
        grads, addresses = self.source()
        finite_(found, grads, self.layout.chunks, addresses=addresses)
        if self.layout.sharded:
            of_all_shards_(found, self.layout.parameters)

    def combine(self, out: Tensor, weights: Tensor) -> None:
        """out [K, P] <- gradients combined with weights, float64 [K, T]; of each tensor, [K, S, T]."""
        grads, addresses = self.source()
        if weights.dim() == 2:
            combine_(out, grads, weights, self.layout.chunks, addresses=addresses)
            return
        for segment, chunks in enumerate(self.layout.chunks_of):
            combine_(out, grads, weights[:, segment].contiguous(), chunks, addresses=addresses)

    def gram(self, *, diagonal: bool = False) -> Tensor:
        """float64 [K, S, T, T]: inner products of the task gradients, per tensor; written anew by the next call.

        What is not there counts as zero.  diagonal: only the squares, float64 [K, S, T].
        """
        layout, tasks = self.layout, self.num_tasks
        chunks = layout.gram_chunks(tasks)
        if diagonal not in self._grams:
            rows, segments = layout.num_rows, len(layout.parameters)
            sums = tasks if diagonal else tasks * (tasks + 1) // 2
            shape = (rows, segments, tasks) if diagonal else (rows, segments, tasks, tasks)
            out = self._like.new_empty(shape, dtype=torch.float64)
            self._grams[diagonal] = out, out.new_empty(rows, len(chunks), sums)
        out, partials = self._grams[diagonal]
        grads, addresses = self.source()
        gram_(out, partials, grads, None, chunks, diagonal=diagonal, addresses=addresses)
        return out
