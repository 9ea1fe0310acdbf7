"""Flat buffers of all parameters of an optimizer, and the kernels' tables of hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import BaseRule
from ..device import to_device
from ..ops import FIELDS
from ..ranks import SubproblemRanks
from ..sharding import Gathered
from .exchange import Exchange
from .flat import FlatParameters
from .flat_masked import FlatMasked
from .flat_vertices import FlatVertices
from .share import Share

if TYPE_CHECKING:
    from .vertices import Vertices

__all__ = ["Buffers"]

LR, TRANSFER = FIELDS.index("lr"), FIELDS.index("transfer")


class Buffers:
    """One buffer for each dtype, apart for shared parameters and for heads (groups with ``task``).

    A frozen parameter lies in none of them: it has no rows, no gradients and no moments, and may be of any dtype.

    Args:
        num_rows: K, the number of subproblems; of those that lie here, where other ranks have some.
        num_tasks: T, the number of gradients of each row of the shared parameters that are kept apart.
        stacked: the parameters have a leading dimension K.
        vertices: of the simplex whose points the K rows are, or None: the rows themselves are trained.
        masked: the parameters can show what a task sees of them (K = 1).
        exchange: with the ranks that have other subproblems, or None: all are here.

    Attributes:
        flats: the buffers.
        groups: for each of them, the parameter group of each of its parameters.
        tasks: likewise, the task that a parameter belongs to, or None.
        options: of each group, the row of the kernels' tables.
        built: whether the groups are complete and the buffers made.
    """

    def __init__(
        self,
        num_rows: int,
        num_tasks: int,
        *,
        stacked: bool,
        vertices: Vertices | None = None,
        masked: bool = False,
        exchange: Exchange | None = None,
    ) -> None:
        self.num_rows = num_rows
        self.num_tasks = num_tasks
        self.stacked = stacked
        self.vertices = vertices
        self.masked = masked
        self.exchange = exchange
        self.flats: list[FlatParameters] = []
        self.groups: list[list[int]] = []
        self.tasks: list[list[int | None]] = []
        self.options: list[list[float]] = []
        self.built = False
        self._tables: list[tuple[Tensor, Tensor]] = []  # float64 [groups, fields], and each segment's group
        self._frozen: list[Tensor] = []
        self._members: list[Any] = []

    @property
    def keeps_rows(self) -> bool:
        """True if the parameters show one of several rows, of which the others may lie elsewhere."""
        several = self.num_rows > 1 or (self.exchange is not None and self.vertices is None)
        return several and not self.stacked

    @property
    def share(self) -> Share:
        """The subproblems (of vertices: the points of a step) that lie here."""
        return Share(self.num_rows) if self.exchange is None else self.exchange.share

    @property
    def peers(self) -> SubproblemRanks | None:
        """The ranks that have the others, or None."""
        return None if self.exchange is None else self.exchange.ranks

    @property
    def kind(self) -> str:
        """The front, "rows" or "vertices", as of ``front=``."""
        return "rows" if self.vertices is None else "vertices"

    @property
    def num_trained(self) -> int:
        """The number of rows that the base rule updates."""
        return self.num_rows if self.vertices is None else self.vertices.num_vertices

    @property
    def leads(self) -> bool:
        """True if the state has all trained rows in each entry, with a leading dimension for them."""
        return self.num_trained > 1 or self.rows_key is not None

    @property
    def rows_key(self) -> str | None:
        """Key of all trained rows in the state, where the parameters do not show all of them."""
        if self.vertices is not None:
            return "vertices"
        return "subproblems" if self.keeps_rows else None

    @property
    def device(self) -> torch.device:
        """The device of the parameters; the host, where there are none."""
        return self.flats[0].device if self.flats else torch.device("cpu")

    def build(self, param_groups: Sequence[dict[str, Any]], held: Callable[[Tensor], bool], row: int) -> None:
        """Makes the buffers anew, and the parameters views of them.

        held: whether a parameter needs a place in the buffers.  row: the row that the parameters show.
        """
        kinds: dict[tuple[torch.dtype, bool], list[tuple[int, Tensor]]] = {}
        self._frozen = []
        for index, group in enumerate(param_groups):
            for p in group["params"]:
                if held(p):
                    kinds.setdefault((p.dtype, group.get("task") is not None), []).append((index, p))
                else:
                    self._frozen.append(p)
        self.flats = [
            self._flat([p for _, p in members], 1 if head else self.num_tasks, row)
            for (_, head), members in kinds.items()
        ]
        if any(flat.sharded for flat in self.flats):
            gathered = Gathered(self.parameters())
            for flat in self.flats:
                flat.gathered = gathered
        self.groups = [[index for index, _ in members] for members in kinds.values()]
        self.tasks = [[param_groups[index].get("task") for index in groups] for groups in self.groups]
        self._tables = []
        for flat, groups in zip(self.flats, self.groups, strict=True):
            table = torch.zeros(len(param_groups), len(FIELDS), dtype=torch.float64, device=flat.device)
            self._tables.append((table, torch.tensor(groups, dtype=torch.int64, device=flat.device)))
        self.options = []
        self._members = _membership(param_groups)
        self.built = True

    def _flat(self, parameters: list[Tensor], num_tasks: int, row: int) -> FlatParameters:
        if self.vertices is not None:
            self.vertices.to(parameters[0].device)
            points = self.vertices.own
            return FlatVertices(parameters, points, num_tasks=num_tasks, stacked=self.stacked, row=row)
        kind = FlatMasked if self.masked else FlatParameters
        return kind(parameters, self.num_rows, num_tasks=num_tasks, stacked=self.stacked, row=row)

    def is_of(self, param_groups: Sequence[dict[str, Any]], held: Callable[[Tensor], bool]) -> bool:
        """True if the buffers are made for these groups as they are: the same parameters, nothing thawed."""
        return _membership(param_groups) == self._members and not any(map(held, self._frozen))

    def parameters(self) -> list[Tensor]:
        """All parameters that have a place here."""
        return [p for flat in self.flats for p in flat.parameters]

    def refresh(self, param_groups: Sequence[dict[str, Any]], base: BaseRule, ema: float | None) -> None:
        """Writes the hyperparameters of the groups to the kernels' tables, if they have changed."""
        options, lrs = [], []
        for index, group in enumerate(param_groups):
            fields = base.fields(group)
            lr = group["lr"]
            if isinstance(lr, Tensor):  # stays on its device: no host value to wait for or to compile for
                lrs.append((index, lr))
                lr = 0.0
            fields.update(lr=lr, transfer=group.get("transfer", True), ema=ema or 0.0)
            options.append([fields.get(name, 0.0) for name in FIELDS])
        compiling = torch.compiler.is_compiling()  # a program for each of the options that were would be many
        changed = compiling or options != self.options
        if not changed and not lrs:
            return
        for flat, groups, (table, group_of) in zip(self.flats, self.groups, self._tables, strict=True):
            if changed:
                table.copy_(to_device(torch.tensor(options, dtype=torch.float64), flat.device))
            for index, lr in lrs:
                table[index, LR].fill_(lr.reshape(()))
            flat.segments.copy_(table[group_of])
            flat.set_transfer([bool(options[index][TRANSFER]) for index in groups])
        if not compiling:
            self.options = options

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the buffers are left out and made anew from the state."""
        return {**self.__dict__, "flats": [], "groups": [], "tasks": [], "_tables": [], "_frozen": [], "_members": []}

    def forget_gradients(self) -> None:
        """Drops all gradients, of tasks and combined."""
        for flat in self.flats:
            flat.tasks.forget()
            flat.combined.forget()


def _membership(param_groups: Sequence[Any]) -> list[Any]:
    """Parameters of each group, and whose head it is: all that the buffers are made for."""
    return [
        (group.get("task"), *map(id, group["params"]))
        if isinstance(group, dict) and isinstance(group.get("params"), list)
        else None
        for group in param_groups
    ]
