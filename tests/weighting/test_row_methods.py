"""Weightings that change the task gradients, against their recurrences on explicit vectors in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import (
    DBMTL,
    ConFIG,
    Draw,
    ExcessMTL,
    GradDrop,
    MoCo,
    MomentumConFIG,
    Weighting,
    WeightingContext,
)
from support.weighting.problems import assert_close, normal, rows_of

TASKS, COLUMNS = 3, 12


def gradients(step: int) -> Tensor:
    return rows_of("conflicting", TASKS, COLUMNS, seed=step)


def losses(step: int) -> Tensor:
    return 0.2 + normal(TASKS, seed=100 + step).abs()


class Loop:
    """What an optimizer does with one subproblem and gradients of one or more dtypes."""

    def __init__(
        self, weighting: Weighting, parts: int = 1, dtypes: tuple[torch.dtype, ...] = (torch.float64,)
    ) -> None:
        self.weighting, self.parts, self.dtypes, self.count = weighting, parts, dtypes, 0
        weighting.bind(1, TASKS, 1, "cpu")

    def step(self, rows: Tensor, row_losses: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """The changed gradients [T, P] and the weights [T]."""
        pieces = [
            part.to(dtype)[None].clone() for part, dtype in zip(rows.chunk(self.parts, 1), self.dtypes, strict=True)
        ]
        given = {
            "preferences": torch.full((1, TASKS), 1 / TASKS, dtype=torch.float64),
            "losses": row_losses[None],
            "draw": Draw.new(torch.Generator().manual_seed(seed)),
            "step": self.count,
            "epoch": epoch,
        }
        self.weighting.transform_(pieces, WeightingContext(**given))
        changed = torch.cat([piece.double() for piece in pieces], -1)
        weights = self.weighting.weights(WeightingContext(**given, gram=changed @ changed.mT))
        self.count += 1
        return changed[0], weights[0]


def onto_simplex(vector: Tensor) -> Tensor:
    low, high = vector.min() - 1, vector.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (vector - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (vector - low).clamp(min=0)


@pytest.mark.parametrize("projection", ["simplex", "softmax"])
@pytest.mark.parametrize("relative", [False, True])
def test_moco_tracks_normalised_gradients_and_descends_for_w(projection, relative):
    loop = Loop(MoCo(beta=0.6, gamma=0.4, rho=0.1, projection=projection, scale_free=relative))
    tracked = torch.zeros(TASKS, COLUMNS, dtype=torch.float64)
    w = torch.full((TASKS,), 1 / TASKS, dtype=torch.float64)
    for step in range(4):
        rows, row_losses = gradients(step), losses(step)
        rate = 0.6 * (step + 1) ** -0.5
        unit = row_losses[:, None] * rows / rows.norm(dim=1, keepdim=True)
        tracked = tracked - rate * (tracked - unit)
        gram = tracked @ tracked.T
        if relative:
            gram = gram / gram.diagonal().mean()
        moved = w - 0.4 * (step + 1) ** -0.5 * (gram @ w + 0.1 * w)
        w = onto_simplex(moved) if projection == "simplex" else torch.softmax(moved, 0)
        changed, weights = loop.step(rows, row_losses)
        assert_close(changed, tracked)
        assert_close(weights, w, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_db_mtl_averages_gradients_of_logs_and_makes_them_equally_long(decay):
    loop = Loop(DBMTL(beta=0.8, beta_decay=decay))
    average = torch.zeros(TASKS, COLUMNS, dtype=torch.float64)
    for step in range(4):
        rows, row_losses = gradients(step), losses(step)
        fresh = rows / row_losses[:, None]
        average = fresh + 0.8 * (step + 1) ** -decay * (average - fresh)
        changed, weights = loop.step(rows, row_losses)
        assert_close(changed, average)
        lengths = (weights[:, None] * changed).norm(dim=1)
        assert_close(lengths, average.norm(dim=1).max().expand(TASKS))


def test_m_config_gives_adam_the_gradient_whose_moment_is_configs():
    beta, loop = 0.8, Loop(MomentumConFIG(beta=0.8))
    moment = torch.zeros(TASKS, COLUMNS, dtype=torch.float64)
    direction = torch.zeros(COLUMNS, dtype=torch.float64)
    adam = torch.zeros(COLUMNS, dtype=torch.float64)
    for step in range(1, 6):
        rows = gradients(step)
        moment = beta * moment + (1 - beta) * rows
        corrected = moment / (1 - beta**step)
        previous, direction = direction, corrected.T @ ConFIG()(corrected @ corrected.T)
        fed = (direction * (1 - beta**step) - beta * previous * (1 - beta ** (step - 1))) / (1 - beta)
        changed, weights = loop.step(rows, losses(step))
        combined = changed.T @ weights
        assert_close(combined, fed, atol=1e-12)
        # And Adam's first moment of it, with the same beta, is ConFIG's direction.
        adam = beta * adam + (1 - beta) * combined
        assert_close(adam / (1 - beta**step), direction, atol=1e-12)


@pytest.mark.parametrize("warmup", [0, 1])
def test_excess_mtl_weighs_by_the_estimated_excess_risk(warmup):
    loop = Loop(ExcessMTL(eta=0.7, warmup_epochs=warmup))
    squares = torch.zeros(TASKS, COLUMNS, dtype=torch.float64)
    weights, warm = torch.ones(TASKS, dtype=torch.float64), []
    for step in range(5):
        rows = gradients(step)
        rows[:, 0] = 0  # 0 / 0
        squares = squares + rows**2
        excess = torch.where(squares > 0, rows**2 / squares.sqrt(), 0.0).sum(1)
        if step // 2 < warmup or not warm:
            warm.append(excess)
        if step // 2 >= warmup:
            first = torch.stack(warm).mean(0)
            weights = weights * (0.7 * excess / first).exp()
            weights = TASKS * weights / weights.sum()
        changed, found = loop.step(rows, losses(step), epoch=step // 2)
        assert torch.equal(changed, rows)
        assert_close(found, weights)


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_graddrop_keeps_one_sign_in_each_element(leak):
    rows = normal(TASKS, 4000)
    changed, weights = Loop(GradDrop(leak=leak)).step(rows, losses(0))
    assert torch.equal(weights, torch.ones(TASKS, dtype=torch.float64))
    kept = (changed - leak * rows) / (1 - leak)
    dropped = kept.abs() < 1e-12
    assert_close(kept, torch.where(dropped, 0.0, rows), atol=1e-12)
    assert not ((kept > 1e-12).any(0) & (kept < -1e-12).any(0)).any()
    # Exactly one sign stays, all of it.
    sign = kept.sum(0).sign()
    assert torch.equal(~dropped, rows.sign() == sign)


def test_graddrop_keeps_the_positive_sign_with_the_chance_of_its_purity():
    column = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    changed, _ = Loop(GradDrop()).step(column.expand(TASKS, 50_000), losses(0))
    chance = (1 + 2 / 4) / 2
    share = float((changed[0] > 0).double().mean())
    assert abs(share - chance) < 4 * (chance * (1 - chance) / 50_000) ** 0.5


def test_graddrop_without_conflict_changes_nothing():
    rows = normal(TASKS, 100).abs() * normal(100).sign()
    changed, _ = Loop(GradDrop()).step(rows, losses(0))
    assert torch.equal(changed, rows)


@pytest.mark.parametrize("make", [MoCo, DBMTL, MomentumConFIG, ExcessMTL, GradDrop], ids=lambda make: make.__name__)
def test_gradients_of_several_dtypes_and_few_bits(make):
    """Half the columns in bfloat16 and half in float32, against all in float64 on the rounded numbers."""
    mixed, exact = Loop(make(), 2, (torch.bfloat16, torch.float32)), Loop(make(), 2, (torch.float64,) * 2)
    for step in range(3):
        rows = gradients(step)
        rounded = torch.cat([rows[:, :6].bfloat16().double(), rows[:, 6:].float().double()], 1)
        found, expected = mixed.step(rounded, losses(step)), exact.step(rounded, losses(step))
        assert_close(found[0][:, 6:], expected[0][:, 6:], rtol=1e-4, atol=1e-5)
        assert_close(found[0], expected[0], rtol=0.02, atol=0.02)
    memory = [name for name in mixed.weighting.state_dict() if "memory." in name]
    assert all(mixed.weighting.state_dict()[name].dtype == torch.float32 for name in memory)
    assert bool(memory) == (make is not GradDrop)


@pytest.mark.parametrize("make", [MoCo, DBMTL], ids=lambda make: make.__name__)
@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_lengths_of_extreme_float32_gradients(make, scale):
    """Squares of such numbers are no float32 numbers."""
    small, plain = Loop(make(), dtypes=(torch.float32,)), Loop(make())
    found = small.step(scale * gradients(0), losses(0))
    expected = plain.step(gradients(0), losses(0))
    assert found[0].isfinite().all() and found[0].any()
    direction, want = found[0].T @ found[1], expected[0].T @ expected[1]
    assert_close(direction / direction.norm(), want / want.norm(), rtol=1e-4, atol=1e-5)


def test_memory_of_another_model_is_refused():
    loop = Loop(DBMTL())
    loop.step(gradients(0), losses(0))
    with pytest.raises(ValueError, match="remembers average"):
        loop.step(gradients(0)[:, :5], losses(0))
