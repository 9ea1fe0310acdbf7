"""The losses of a front, and its hypervolumes."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.pareto import hypervolume

from .arms.base import Front
from .layers import FlatRows
from .problems.base import Problem

CALIBRATION = 500
"""Training samples from which BatchNorm's statistics are worked out for the weights that are evaluated."""

WORST = 1e6
"""Stands for losses that are not finite: beyond every reference point."""


@torch.no_grad()
def losses_of(problem: Problem, front: Front, part: str) -> Tensor:
    """Float64 [K, T]. One model after another: the same for every arm, however it was trained."""
    x, y = problem.data[part]
    model = FlatRows(front.net, 1)
    rows = []
    for k in range(problem.rows):
        model.values.copy_(front.rows[min(k, len(front.rows) - 1)])
        if problem.calibrates:
            model.net.train()
            _outputs(model, front, k, problem.data["train"][0][:CALIBRATION])
            model.net.eval()
        rows.append(problem.losses(_outputs(model, front, k, x), x[None], y[None])[0].double())
    return torch.stack(rows).nan_to_num(WORST, WORST, WORST)


def _outputs(model: FlatRows, front: Front, k: int, x: Tensor) -> object:
    if front.preferences is None:
        return model.net(x[None])
    return model.net(x[None], front.preferences[k].expand(1, len(x), -1))


def hypervolumes(problem: Problem, losses: Tensor) -> dict[str, float]:
    """From the main and the tight reference point, and of the inner rows alone from the main one."""
    return {
        "main": hypervolume(losses, problem.main),
        "tight": hypervolume(losses, problem.tight),
        "inner": hypervolume(losses[problem.inner], problem.main),
    }
