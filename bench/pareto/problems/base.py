"""What a problem has to tell: its data, its net, its losses, and the budget and reference points of its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt2o_ext.preferences import default_preferences
from mt2o_ext.scalarization import Linear, Scalarization

Part = tuple[Tensor, Tensor]  # inputs [N, ...], labels [N, ...]


@dataclass(frozen=True)
class Problem:
    """A problem with T tasks.

    Attributes:
        rows, batch, steps: K subproblems; samples in a mini-batch; steps of the methods with K nets side by side. The
            budget of every arm is rows * steps gradient evaluations.
        main, tight: reference points [T] of the hypervolume. Main: what a useless model has; tight: near the front.
        parts: makes the data, "train", "validation" and "test".
        net: called as net(extra) with torch's global generator seeded; a module of `layers` with one row. With extra >
            0 its forward takes a second argument, preferences [R, B, extra].
        losses: (outputs [R, B, ...], inputs, labels) -> [R, T], means over the samples.
        optimum: the best hypervolume from `main` that K points can have, where it is known.
        calibrates: the net has BatchNorm.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: int
    batch: int
    steps: int
    main: tuple[float, ...]
    tight: tuple[float, ...]
    parts: Callable[[], dict[str, Part]]
    net: Callable[[int], nn.Module]
    losses: Callable[[object, Tensor, Tensor], Tensor]
    scalarization: Scalarization = field(default_factory=Linear)
    optimum: float | None = None
    calibrates: bool = False
    conditioned: bool = True

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    @property
    def preferences(self) -> Tensor:
        return default_preferences(self.rows, self.num_tasks)

    @property
    def inner(self) -> list[int]:
        """The rows that are no ends: no weight below 0.19 (two tasks) or 0.1 (three)."""
        least = 0.19 if self.num_tasks == 2 else 0.1
        return [k for k, row in enumerate(self.preferences.tolist()) if min(row) >= least]

    @property
    def data(self) -> dict[str, Part]:
        return _data(self)

    def __hash__(self) -> int:
        return hash(self.name)


@lru_cache(maxsize=4)
def _data(problem: Problem) -> dict[str, Part]:
    return problem.parts()


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [R, B, ..., C], labels [R, B, ...] -> [R]."""
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return each.view(len(labels), -1).mean(1)


def with_preferences(x: Tensor, w: Tensor | None) -> Tensor:
    """x [R, B, n] or images [R, B, channels, h, w], with preferences [R, B, T] as further numbers or channels."""
    if w is None:
        return x
    if x.dim() == 5:
        w = w[..., None, None].expand(*w.shape, *x.shape[3:])
    return torch.cat([x, w], 2)
