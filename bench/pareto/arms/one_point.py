"""Pareto Manifold Learning, the rival of fronts on vertices, in plain torch: one point of the simplex a step."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.scalarization import Linear

from ..layers import FlatRows, flat_rows
from .base import Arm, Averages, Front, Setting


class OnePoint(Arm):
    """T vertices C [T, P]; each step draws w ~ Dirichlet(1), trains the net w C, and gives its gradient back:

        g = gradient of the scalarized losses at w C        C <- AdamW(C, w^T g)

    (Dimitriadis et al., ICML 2023.)
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.linear = isinstance(self.problem.scalarization, Linear)
        self.template = self.new_net()
        self.model = FlatRows(self.template, 1)
        self.vertices = flat_rows(self.template).expand(self.problem.num_tasks, -1).clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.vertices], lr=setting.lr, fused=True)
        self.generator = torch.Generator().manual_seed(5000 + setting.seed)
        self.averages = Averages([self.vertices], 1, self.problem.rows)

    def draw(self) -> Tensor:
        """w, float64 [1, T]."""
        uniform = torch.rand(1, self.problem.num_tasks, generator=self.generator, dtype=torch.float64)
        exponential = -uniform.clamp_min(1e-12).log()
        return exponential / exponential.sum(1, keepdim=True)

    def step(self) -> None:
        model, vertices = self.model, self.vertices
        preferences = self.draw()
        mixture = preferences.to(vertices.dtype)
        torch.mm(mixture, vertices.detach(), out=model.values)
        model.gradients.zero_()
        x, y = self.batches(1)
        losses = self.problem.losses(model.net(x), x, y)
        coefficients = mixture if self.linear else self.problem.scalarization.coefficients(losses.detach(), preferences)
        (coefficients.to(losses.dtype) * losses).sum().backward()
        vertices.grad = mixture.T @ model.gradients
        self.optimizer.param_groups[0]["lr"] = self.rate
        self.optimizer.step()
        self.averages.update()
        self.spent += 1
        self.steps += 1

    def fronts(self) -> list[Front]:
        mixture = self.problem.preferences.to(self.vertices.dtype)
        return [Front(self.template, mixture @ average) for _, [average] in self.averages.kept]
