"""What all arms have in common: a setting, mini-batches, a budget, and fronts to evaluate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..problems.base import Part, Problem

EMA = 0.98


@dataclass(frozen=True)
class Setting:
    """One run: what to train, how long, and with which seed.

    `batch` multiplies the problem's mini-batch, `cosine` lets the rate fall to 0, and `shared` gives all subproblems of
    a step the same mini-batch.
    """

    problem: Problem
    lr: float
    seed: int
    steps: int
    batch: int = 1
    cosine: bool = False
    shared: bool = False

    @property
    def budget(self) -> int:
        """Gradient evaluations."""
        return self.problem.rows * self.steps


@dataclass(frozen=True)
class Front:
    """K models to evaluate: `net` (of one row) with the parameters `rows` [K, P] or one set [1, P] for all.

    `preferences` [K, T] are further inputs of a net that takes them.
    """

    net: nn.Module
    rows: Tensor
    preferences: Tensor | None = None


class Batches:
    """Random mini-batches, the same ones for the same seed; indices are drawn many at a time, which is faster."""

    def __init__(self, setting: Setting) -> None:
        self.x, self.y = setting.problem.data["train"]
        self.size, self.shared = setting.problem.batch * setting.batch, setting.shared
        self.generator = torch.Generator().manual_seed(1000 + setting.seed)
        self.drawn = torch.empty(0, dtype=torch.int64)

    def __call__(self, rows: int, factor: int = 1) -> Part:
        """x and y [rows, B, ...]; B is `factor` times the usual size."""
        size, number = self.size * factor, 1 if self.shared else rows
        if len(self.drawn) < number * size:
            self.drawn = torch.randint(len(self.x), (max(number * size, 1 << 15),), generator=self.generator)
        chosen, self.drawn = self.drawn[: number * size].view(number, size), self.drawn[number * size :]
        if number < rows:
            chosen = chosen.expand(rows, -1)
        return self.x[chosen], self.y[chosen]


class Arm(ABC):
    """A way to train; `step` once and again until the budget is spent.

    Attributes:
        spent: gradient evaluations so far: backward passes of one mini-batch through one net.
        steps: steps so far, each of which waits for the one before.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.problem = setting, setting.problem
        self.batches = Batches(setting)
        self.spent = self.steps = 0

    @abstractmethod
    def step(self) -> None:
        """One step at the rate `self.rate`; adds to `spent` and `steps`."""

    @abstractmethod
    def fronts(self) -> list[Front]:
        """Running averages to evaluate, of each decay that the arm keeps: the one that validates best counts."""

    @property
    def rate(self) -> float:
        if not self.setting.cosine:
            return self.setting.lr
        done = torch.tensor(min(1.0, self.spent / self.setting.budget), dtype=torch.float64)
        return self.setting.lr * float((1 + torch.cos(torch.pi * done)) / 2)

    def new_net(self, extra: int = 0) -> nn.Module:
        """The initial net: the same for all arms at one seed."""
        torch.manual_seed(self.setting.seed)
        return self.problem.net(extra)


class Averages:
    """Running averages of some tensors.

    An arm with K times as many steps also keeps one whose memory is as long in gradient evaluations as that of the
    arms with K nets.
    """

    def __init__(self, tensors: list[Tensor], points: int, rows: int) -> None:
        self.tensors = tensors
        decays = [EMA] if points == rows else [EMA, EMA ** (points / rows)]
        self.kept = [(decay, [tensor.detach().clone() for tensor in tensors]) for decay in decays]

    def update(self) -> None:
        for decay, average in self.kept:
            torch._foreach_lerp_(average, [tensor.detach() for tensor in self.tensors], 1 - decay)
