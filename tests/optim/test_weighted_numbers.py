"""Scale, 16-bit parameters, conflict: from losses to the update."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mt2o_ext import WeightedFused
from mt2o_ext.base import SGD
from mt2o_ext.weighting import (
    EDM,
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradVac,
    NashMTL,
    PCGrad,
    UPGrad,
    Weighting,
)
from support.optim.towers import Towers, batch_of, weighted

METHODS: list[Callable[[], Weighting]] = [
    MGDA, EDM, CAGrad, IMTLG, ConFIG, AlignedMTL, NashMTL, FairGrad, UPGrad, DualProj, PCGrad, GradVac,
]  # fmt: skip


def update_of(weighting: Weighting, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The combined gradient of the trunk, float64."""
    model = Towers(4, dtype)
    optimizer = weighted(model, weighting)
    batch = batch_of(0, dtype)
    losses: list[Tensor] = [loss * scale for loss in model.losses(batch)]
    optimizer.backward(losses)
    rows = optimizer._buffers.flats[0].tasks.flat()[0].double()
    assert optimizer.weights is not None and optimizer.weights.isfinite().all()
    return optimizer.weights[0] @ rows


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_scaled_losses_change_no_direction(method: Callable[[], Weighting], scale: float) -> None:
    one, scaled = update_of(method()), update_of(method(), scale)
    cosine = one @ scaled / (one.norm() * scaled.norm())
    assert cosine >= 1 - 1e-8
    degree = method().degree
    assert degree is not None
    torch.testing.assert_close(scaled.norm() / one.norm(), torch.tensor(scale**degree).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_weights_of_16_bit_gradients_are_those_of_their_values(
    method: Callable[[], Weighting], dtype: torch.dtype
) -> None:
    model = Towers(4, dtype)
    optimizer = weighted(model, method())
    batch = batch_of(0, dtype)
    optimizer.backward(model.losses(batch))
    rows = optimizer._buffers.flats[0].tasks.flat()[0].double()
    losses = torch.stack(model.losses(batch)).detach().double()
    optimizer.step()
    assert optimizer.weights is not None and model.trunk[0].weight.dtype == dtype
    generator = torch.Generator().manual_seed(7)  # as towers.weighted
    expected = method()(rows @ rows.T, losses=losses, generator=generator)
    torch.testing.assert_close(optimizer.weights[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("method", [UPGrad, DualProj], ids=lambda method: method.__name__)
def test_no_task_gets_worse(method: Callable[[], Weighting], scale: float) -> None:
    model = Towers(4, torch.float64)
    optimizer = weighted(model, method(), base=SGD(), lr=1e-6 / scale)
    for seed in range(5):
        batch = batch_of(seed, torch.float64)
        shared = list(model.trunk.parameters())
        rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in model.gradients(batch, shared)]) * scale
        optimizer.step(lambda: [loss * scale for loss in model.losses(batch)])  # noqa: B023
        assert optimizer.weights is not None
        products = rows @ (optimizer.weights[0] @ rows)
        size = rows.norm(dim=1) * (optimizer.weights[0] @ rows).norm()
        assert (products >= -1e-9 * size).all()


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    results, threads = [], torch.get_num_threads()
    p = torch.nn.Parameter(torch.randn(50000, generator=torch.Generator().manual_seed(0)))
    start = p.detach().clone()
    centres = torch.randn(5, 50000, generator=torch.Generator().manual_seed(1))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            q = torch.nn.Parameter(start.clone())
            optimizer = WeightedFused([q], num_tasks=5, weighting=CAGrad())
            for step in range(2):
                for task in range(5):  # without backward, whose own sums depend on threads
                    optimizer._buffers.flats[0].tasks.put(0, task, 0, centres[task] * (1 + step))
                optimizer._now.batch.losses[0] = torch.ones(1, 5, dtype=torch.float64)
                optimizer.step()
            results.append(q.detach().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0]) and torch.equal(results[2], results[0])
    assert not torch.equal(results[0], start)
