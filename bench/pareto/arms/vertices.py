"""The front as T sets of weights, its vertices: every model is a mixture of them. In plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.scalarization import Linear

from ..layers import FlatRows, flat_rows
from .base import Arm, Averages, Front, Setting


class Vertices(Arm):
    """T vertices C [T, P]; each step draws W [points, T] ~ Dirichlet(1) and trains the nets W C together:

        G = gradients of the scalarized losses at W C, [points, P]        C <- AdamW(C, W^T G)

    With one point a step this is Pareto Manifold Learning (Dimitriadis et al., ICML 2023); with K points it takes as
    many steps as K independent runs.

    Args:
        points: of each step.
        trunk: share of the budget in which all weights are equal, so that the vertices stay one net.
    """

    def __init__(self, setting: Setting, *, points: int, trunk: float = 0.0) -> None:
        super().__init__(setting)
        self.points, self.trunk = points, trunk * setting.budget
        self.linear = isinstance(self.problem.scalarization, Linear)
        self.template = self.new_net()
        self.models = FlatRows(self.template, points)
        self.vertices = flat_rows(self.template).expand(self.problem.num_tasks, -1).clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.vertices], lr=setting.lr, fused=True)
        self.generator = torch.Generator().manual_seed(5000 + setting.seed)
        self.averages = Averages([self.vertices], points, self.problem.rows)

    def draw(self) -> Tensor:
        """W, float64 [points, T]."""
        if self.spent < self.trunk:
            return torch.full((self.points, self.problem.num_tasks), 1 / self.problem.num_tasks, dtype=torch.float64)
        uniform = torch.rand(self.points, self.problem.num_tasks, generator=self.generator, dtype=torch.float64)
        exponential = -uniform.clamp_min(1e-12).log()
        return exponential / exponential.sum(1, keepdim=True)

    def step(self) -> None:
        models, vertices = self.models, self.vertices
        preferences = self.draw()
        mixture = preferences.to(vertices.dtype)
        torch.mm(mixture, vertices.detach(), out=models.values)
        models.gradients.zero_()
        x, y = self.batches(self.points)
        losses = self.problem.losses(models.net(x), x, y)
        coefficients = mixture if self.linear else self.problem.scalarization.coefficients(losses.detach(), preferences)
        (coefficients.to(losses.dtype) * losses).sum().backward()
        vertices.grad = mixture.T @ models.gradients
        self.optimizer.param_groups[0]["lr"] = self.rate
        self.optimizer.step()
        self.averages.update()
        self.spent += self.points
        self.steps += 1

    def fronts(self) -> list[Front]:
        mixture = self.problem.preferences.to(self.vertices.dtype)
        return [Front(self.template, mixture @ average) for _, [average] in self.averages.kept]
