"""Weightings that keep something for each element of the task gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .base import Weighting
from .context import WeightingContext
from .elements import kernels_of
from .present import selected
from .state import State

_PREFIX = "memory."


class MemoryWeighting(Weighting):
    """Base of weightings with memory [K, T, P] (or [K, P]) beside the gradients, one tensor for each dtype.

    The memory begins as zeros with the first step, and is changed in place: a subproblem that skips a step keeps it
    So does a task that is absent, whose rows are left where they are: those of the others are
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

    def _track_(
        self,
        rows: Sequence[Tensor],
        name: str,
        keep: Tensor,
        fresh: Tensor,
        context: WeightingContext,
        *,
        shown: bool = True,
    ) -> list[Tensor]:
        """Renews the memory of this name, keep times itself + fresh times the rows, which become it where ``shown``.

        keep, fresh: float64 [K, T].
        """
        assert context.finite is not None
        memory, (kernels, columns) = self._remembered(name, rows), kernels_of(rows, context)
        for one, matrix, (chunks, _) in zip(memory, rows, columns, strict=True):
            kernels.track_(matrix, one, keep, fresh, context.finite, chunks, shown=shown)
        return memory

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
