"""Transfer rules that the package does not have: the placebo, and one rule after another."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.transfer import Spectral, TransferContext, TransferRule


class Placebo(Spectral):
    """`Spectral` with preferences that belong to other rows: it shows what any averaging would gain."""

    def bind(self, preferences: Tensor) -> None:
        order = torch.randperm(len(preferences), generator=torch.Generator().manual_seed(7))
        super().bind(preferences[order.to(preferences.device)])


class OneThenTheOther(TransferRule):
    """`first` for so many steps, `then` after them."""

    def __init__(self, first: TransferRule, steps: int, then: TransferRule) -> None:
        super().__init__()
        self.first, self.steps, self.then = first, steps, then
        self.counts_steps = True
        self.needs_gram = first.needs_gram or then.needs_gram

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        self.first.bind(preferences)
        self.then.bind(preferences)

    def at(self, step: int) -> TransferRule:
        return self.first if step < self.steps else self.then

    def due(self, step: int) -> bool:
        return self.at(step).due(step)

    def matrix(self, context: TransferContext) -> Tensor | None:
        return self.at(context.step).matrix(context)
