"""Weightings that keep something for each element of the task gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .base import Weighting
from .present import selected
from .state import State

_PREFIX = "memory."
# Columns that are worked on at a time: what is needed beside the gradients stays small.
_BLOCK = 1 << 18


class MemoryWeighting(Weighting):
    """Base of weightings with memory [K, T, P] (or [K, P]) beside the gradients, one tensor for each dtype.

    The memory begins as zeros with the first step, and is changed in place: a subproblem that skips a step keeps it
    through ``torch.where``. So does a task that is absent, whose rows are left where they are: those of the others are
    copied for the step then. It is float32, or float64 for float64 gradients. In the state: ``memory.<name>.<i>``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory: State = {}

    def bind(self, num_rows: int, num_tasks: int, num_segments: int, device: torch.device | str) -> None:
        self._memory = {}
        super().bind(num_rows, num_tasks, num_segments, device)

    def state_dict(self) -> State:
        return super().state_dict() | {_PREFIX + name: tensor for name, tensor in self._memory.items()}

    def forget_columns(self) -> bool:
        forgotten = bool(self._memory)
        self._memory = {}
        return super().forget_columns() or forgotten

    def check_columns(self, widths: Sequence[int]) -> None:
        super().check_columns(widths)
        assert self._shape is not None
        rows, tasks, _ = self._shape
        for key, table in self._memory.items():
            index = key.rpartition(".")[2]
            fits = index.isdigit() and int(index) < len(widths)
            shapes = [[rows, tasks, widths[int(index)]], [rows, widths[int(index)]]] if fits else []
            if list(table.shape) not in shapes or not table.is_floating_point():
                raise ValueError(
                    f"{type(self).__name__} expected {key} as real numbers of a shape of {shapes}, got {table.dtype} "
                    f"{list(table.shape)}: load the state of the same model"
                )

    @contextmanager
    def _without_absent(self, present: Tensor) -> Iterator[None]:
        assert self._shape is not None
        before, (rows, tasks, _) = self._memory, self._shape
        self._memory = {key: selected(table, (1,) if table.ndim > 2 else (), present) for key, table in before.items()}
        try:
            with super()._without_absent(present):
                yield
        except BaseException:
            self._memory = before
            raise
        for key, part in self._memory.items():
            if part.ndim < 3:
                before[key] = part
                continue
            if key not in before:
                before[key] = part.new_zeros(rows, tasks, part.shape[2])
            before[key].index_copy_(1, present, part)
        self._memory = before

    def _check_state(self, state: State) -> None:
        super()._check_state({key: tensor for key, tensor in state.items() if not key.startswith(_PREFIX)})

    def _load(self, state: State) -> None:
        memory = {key: tensor for key, tensor in state.items() if key.startswith(_PREFIX)}
        super()._load({key: tensor for key, tensor in state.items() if key not in memory})
        self._memory = {key[len(_PREFIX) :]: table.detach().clone().to(self._device) for key, table in memory.items()}

    def _remembered(self, name: str, rows: Sequence[Tensor], *, per_task: bool = True) -> list[Tensor]:
        """The memory of this name, one tensor beside each of the rows [K, T, P], or [K, P] if not ``per_task``."""
        return [self._one(f"{name}.{i}", matrix if per_task else matrix[:, 0]) for i, matrix in enumerate(rows)]

    def _one(self, key: str, like: Tensor) -> Tensor:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        found = self._memory.get(key)
        if found is None:
            found = self._memory[key] = torch.zeros(like.shape, dtype=dtype, device=like.device)
        if found.shape != like.shape or found.dtype != dtype:
            raise ValueError(
                f"{type(self).__name__} remembers {key} as {found.dtype} {list(found.shape)}, got gradients "
                f"{like.dtype} {list(like.shape)}: bind it again, or load the state of the same model"
            )
        return found


def update_(table: Tensor, new: Tensor, finite: Tensor) -> None:
    """table [K, ...] <- new where ``finite`` [K]."""
    table.copy_(torch.where(finite.view(-1, *[1] * (table.ndim - 1)), new.to(table.dtype), table))


def blocks(num_columns: int) -> list[slice]:
    """Return slices that cover the columns, a block at a time."""
    return [slice(begin, begin + _BLOCK) for begin in range(0, num_columns, _BLOCK)]


def norms_of(rows: Sequence[Tensor]) -> Tensor:
    """|g_t| over all dtypes, float64 [K, T]: squares of float32 numbers neither vanish nor overflow."""
    parts = [torch.linalg.vector_norm(matrix, dim=-1, dtype=torch.float64) for matrix in rows]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def gram_of(rows: Sequence[Tensor]) -> Tensor:
    """float64 [K, T, T], summed in float64."""
    total = rows[0].new_zeros((*rows[0].shape[:2], rows[0].shape[1]), dtype=torch.float64)
    for matrix in rows:
        for block in blocks(matrix.shape[-1]):
            part = matrix[..., block].double()
            total = total + part @ part.mT
    return total
