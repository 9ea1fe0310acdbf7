"""One net that is told the preference: as further inputs (COSMOS), or by a net that makes its weights (PHN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import FlatRows, flat_rows
from .base import Arm, Averages, Front, Setting


class _OneDrawAStep(Arm):
    """Every step draws one preference from Dirichlet(`concentration`), and costs one gradient evaluation."""

    concentration = 1.0

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.draws = torch.Generator().manual_seed(5000 + setting.seed)

    def draw(self) -> Tensor:
        alpha = torch.full((self.problem.num_tasks,), self.concentration)
        return torch._sample_dirichlet(alpha, self.draws)

    def keep(self, parameters: list[Tensor]) -> None:
        self.optimizer = torch.optim.AdamW(parameters, lr=self.setting.lr, fused=True)
        self.averages = Averages(parameters, 1, self.problem.rows)

    def done(self) -> None:
        self.optimizer.param_groups[0]["lr"] = self.rate
        self.optimizer.step()
        self.averages.update()
        self.spent += 1
        self.steps += 1


class Cosmos(_OneDrawAStep):
    """COSMOS (Ruchte and Grabocka, ICDM 2021): w^T L - 2 cos(w, L), with w as further inputs of the net."""

    concentration = 1.2
    penalty = 2.0

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.net = self.new_net(self.problem.num_tasks)
        self.keep(list(self.net.parameters()))

    def step(self) -> None:
        w = self.draw()
        x, y = self.batches(1)
        losses = self.problem.losses(self.net(x, w.expand(1, x.shape[1], -1)), x, y)[0]
        self.optimizer.zero_grad()
        ((w * losses).sum() - self.penalty * F.cosine_similarity(w, losses, dim=0)).backward()
        self.done()

    def fronts(self) -> list[Front]:
        preferences = self.problem.preferences.float()
        averages = [torch.cat([each.flatten(1) for each in average], 1) for _, average in self.averages.kept]
        return [Front(self.net, average, preferences) for average in averages]


class Hypernetwork(_OneDrawAStep):
    """Pareto hypernetwork with linear scalarization (Navon et al., ICLR 2021), compact: preference -> 32 -> P.

    Its last layer starts as zero weights and the initial net as offset: at first every preference has the net that the
    other arms start with.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.template = self.new_net()
        self.model = FlatRows(self.template, 1)
        start = flat_rows(self.template)[0]
        self.hyper = nn.Sequential(nn.Linear(self.problem.num_tasks, 32), nn.ReLU(), nn.Linear(32, len(start)))
        with torch.no_grad():
            self.hyper[2].weight.zero_()
            self.hyper[2].bias.copy_(start)
        self.keep(list(self.hyper.parameters()))

    def step(self) -> None:
        w = self.draw()
        x, y = self.batches(1)
        made = self.hyper(w[None])
        self.model.values.copy_(made.detach())
        self.model.gradients.zero_()
        (w * self.problem.losses(self.model.net(x), x, y)).sum().backward()
        self.optimizer.zero_grad()
        made.backward(self.model.gradients)
        self.done()

    @torch.no_grad()
    def fronts(self) -> list[Front]:
        preferences, fronts = self.problem.preferences.float(), []
        for _, (inner, shift, outer, offset) in self.averages.kept:
            rows = torch.addmm(offset, (preferences @ inner.T + shift).relu(), outer.T)
            fronts.append(Front(self.template, rows))
        return fronts
