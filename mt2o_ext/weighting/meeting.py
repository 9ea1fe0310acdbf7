"""Rows that meet in turn, on the Gram matrix: the variants of PCGrad and GradVac that ``project_`` does not have.

By the span lemma a changed row is J' c: its coefficients c, and inner products from Q alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.weighting.solvers import are_rounding


def projected(gram: Tensor, order: Tensor, *, visit_self: bool) -> Tensor:
    """PCGrad: coefficients [K, T, T] of the rows after each has met those in its order (int64 [K, T, T]).

    visit_self: a row meets its own original too, from which it may by then point away.
    """
    rows = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    own = torch.arange(gram.shape[-1], dtype=torch.int64, device=gram.device)
    for met in order.unbind(-1):
        other, squared = _met(gram, met)
        product = (rows * other).sum(-1)
        step = torch.where((product < 0) & (squared > 0), -product / torch.where(squared > 0, squared, 1.0), 0.0)
        if not visit_self:
            step = torch.where(met == own, 0.0, step)
        rows = rows.scatter_add(-1, met[..., None], step[..., None])
    return rows


def aligned(gram: Tensor, order: Tensor, targets: Tensor, decay: float, rtol: float) -> tuple[Tensor, Tensor]:
    """GradVac whose targets move only when it acts: coefficients and targets, both [K, T, T]."""
    rows = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    own = torch.arange(gram.shape[-1], dtype=torch.int64, device=gram.device)
    for met in order.unbind(-1):
        other, squared = _met(gram, met)
        length = torch.where(are_rounding(gram, rows, rtol), 0.0, (rows * (rows @ gram)).sum(-1).clamp(min=0).sqrt())
        product, unit = (rows * other).sum(-1), length * squared.sqrt()
        cosine = (product / torch.where(unit > 0, unit, 1.0)).clamp(-1, 1)
        goal = targets.gather(-1, met[..., None])[..., 0]
        acts = (cosine < goal) & (goal * goal < 1) & (unit > 0) & (met != own)
        sine, goal_sine = (1 - cosine * cosine).sqrt(), (1 - goal * goal).clamp(min=0).sqrt()
        step = length * (goal * sine - cosine * goal_sine) / torch.where(acts, squared.sqrt() * goal_sine, 1.0)
        rows = rows.scatter_add(-1, met[..., None], torch.where(acts, step, 0.0)[..., None])
        moved = torch.where(acts, (1 - decay) * goal + decay * cosine, goal)
        targets = targets.scatter(-1, met[..., None], moved[..., None])
    return rows, targets


def _met(gram: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of Q of the tasks met [K, T], and their squared norms."""
    rows = gram.gather(1, met[..., None].expand_as(gram))
    return rows, gram.diagonal(dim1=-2, dim2=-1).gather(-1, met)


def present(gram: Tensor, weights: Tensor) -> Tensor:
    """The weights, 0 for rows that are zero."""
    return torch.where(gram.diagonal(dim1=-2, dim2=-1) == 0, 0.0, weights)
