"""K nets side by side in MT2OFused, as rows or on vertices; before that, if wanted, one net that they are copies of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.transfer import TransferRule
from mt2o_ext.weighting import Weighting

from ..layers import copies, flat_rows
from .base import EMA, Arm, Front, Setting

Rule = Callable[[int], TransferRule | None]
"""Makes the transfer rule of a run with so many steps; None: independent runs."""


class Subproblems(Arm):
    """Args:
    rule: of transfer.
    trunk: share of the budget for one net with equal weights, before K copies of its running average go on.
    wide: the one net draws K times the mini-batch, which costs K gradient evaluations a step.
    vertices: the K nets of a step are points between T vertices, which are what is trained; no transfer rule.
    warm_up: share of the steps in which the vertices stay equal.
    weighting: makes a weighting of the task gradients, which costs T evaluations for each net and step.
    options: further ones of MT2OFused.
    """

    def __init__(
        self,
        setting: Setting,
        rule: Rule = lambda steps: None,
        *,
        trunk: float = 0.0,
        wide: bool = False,
        vertices: bool = False,
        warm_up: float = 0.0,
        weighting: Callable[[], Weighting] | None = None,
        **options: object,
    ) -> None:
        super().__init__(setting)
        self.rule, self.wide, self.weighting, self.options = rule, wide, weighting, options
        self.vertices, self.warm_up = vertices, round(warm_up * setting.steps)
        self.branches_at = trunk * setting.budget
        self.template = self.new_net()
        self._start(self.template, 1 if trunk else self.problem.rows)

    def _start(self, net: nn.Module, rows: int) -> None:
        self.rows, self.net = rows, copies(net, rows)
        one, problem = rows == 1, self.problem
        options: dict[str, Any] = {"transfer": None} if one else {**self.options, "preferences": problem.preferences}
        if self.vertices and not one:
            generator = torch.Generator().manual_seed(5000 + self.setting.seed)
            options |= {"front": "vertices", "generator": generator, "warm_up": self.warm_up}
        elif not one:
            options["transfer"] = self.rule(self.setting.steps)
        if self.weighting is not None and not one:
            options |= {"scalarization": None, "weighting": self.weighting()}
        self.optimizer = MT2OFused(
            self.net.parameters(),
            num_tasks=problem.num_tasks,
            num_subproblems=rows,
            stacked=True,
            lr=self.rate,
            ema=EMA,
            **{"scalarization": problem.scalarization, **options},
        )

    def step(self) -> None:
        if self.rows == 1 and self.spent >= self.branches_at:
            with self.optimizer.all_subproblems(ema=True):
                trained = copies(self.net, 1)
            self._start(trained, self.problem.rows)
        optimizer = self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        factor = self.problem.rows if self.wide and self.rows == 1 else 1
        x, y = self.batches(self.rows, factor)
        optimizer.backward(self.problem.losses(self.net(x), x, y))
        optimizer.step()
        optimizer.zero_grad()
        self.spent += self.rows * factor * (1 if self.weighting is None else self.problem.num_tasks)
        self.steps += 1

    def fronts(self) -> list[Front]:
        return [Front(self.template, self.averages())]

    def averages(self) -> Tensor:
        """[K, P]."""
        with self.optimizer.all_subproblems(ema=True):
            return flat_rows(self.net).expand(self.problem.rows, -1)
