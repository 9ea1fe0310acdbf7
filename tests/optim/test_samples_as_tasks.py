"""UPGrad on the losses of single samples: more tasks than parameters, so that their Gram matrix is singular."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from mt2o_ext import WeightedFused
from mt2o_ext.base import SGD, AdamW
from mt2o_ext.weighting import DualProj, PerSegment, UPGrad, Weighting


def exact_direction(rows: np.ndarray) -> np.ndarray:
    """UPGrad's: each row projected on its own by non-negative least squares, then the sum."""
    direction = np.zeros(rows.shape[1])
    for own in rows / len(rows):
        z, _ = nnls(rows.T, -own)
        direction += own + rows.T @ z
    return direction


def problem(samples: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, columns, generator=generator)
    target = x @ torch.randn(columns, generator=generator) + 0.03 * torch.randn(samples, generator=generator)
    return x, target


@pytest.mark.parametrize(("samples", "columns"), [(8, 3), (16, 5), (32, 5), (16, 8)])
def test_a_linear_model_trains_as_with_an_exact_solver(samples: int, columns: int) -> None:
    x, target = problem(samples, columns)
    w = nn.Parameter(torch.zeros(columns))
    optimizer = WeightedFused([w], num_tasks=samples, weighting=UPGrad(), base=SGD(), lr=0.05)
    wide_x, wide_target, exact = x.double().numpy(), target.double().numpy(), np.zeros(columns)
    for _ in range(150):
        losses = (x @ w - target).square()
        ours, theirs = float(losses.detach().mean()), float(((wide_x @ exact - wide_target) ** 2).mean())
        # The exact direction becomes zero at a point that is optimal for all samples at once; float32 passes it by.
        assert ours <= 1.02 * theirs
        optimizer.backward(losses)
        optimizer.step()
        residual = wide_x @ exact - wide_target
        exact = exact - 0.05 * exact_direction(2 * residual[:, None] * wide_x)
    assert ours < 0.1 * float(target.square().mean())


@pytest.mark.parametrize("method", [UPGrad, DualProj])
@pytest.mark.parametrize(("tasks", "width"), [(4, 2), (8, 4), (10, 8)])
def test_tensors_with_fewer_elements_than_tasks(method: type[Weighting], tasks: int, width: int) -> None:
    """A narrow layer's bias, weighted on its own."""
    torch.manual_seed(tasks)
    x, target = torch.randn(32, 6), torch.randn(32, tasks)
    trunk, head = nn.Linear(6, width), nn.Linear(width, tasks)
    optimizer = WeightedFused(
        trunk.parameters(), num_tasks=tasks, weighting=PerSegment(method()), base=AdamW(), lr=1e-2
    )
    for _ in range(100):
        optimizer.backward(list((head(trunk(x).tanh()) - target).square().mean(0)))
        optimizer.step()
        assert all(bool(p.isfinite().all()) and float(p.detach().abs().max()) < 100 for p in trunk.parameters())
    assert optimizer.skipped_steps == 0
