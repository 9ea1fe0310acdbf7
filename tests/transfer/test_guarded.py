"""Transfers that raise a subproblem's own loss are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext import MT2OFused
from mt2o_ext.preferences import even
from mt2o_ext.transfer import Guarded, Mean, Sequence, Spectral, TransferContext
from support.optim.problems import Batches, assert_same, make_model, snapshot, train

K, P = 5, 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def context(slopes: Tensor, gram: Tensor | None = None) -> TransferContext:
    lr = torch.tensor(0.1, dtype=torch.float64)
    return TransferContext(even(K), gram, None, 0, lr, 0.1, slopes)


@pytest.mark.parametrize("seed", range(20))
def test_a_refused_transfer_would_have_raised_the_loss(seed: int) -> None:
    """On quadratics h |theta - own optimum|^2 / 2, and for a transfer so small that the first order decides."""
    theta, optima = normal(K, P, seed=seed), normal(K, P, seed=100 + seed)
    curvature = 0.5 + normal(K, 1, seed=200 + seed).abs()
    gradients = curvature * (theta - optima)
    rule = Guarded(Mean(1e-6), decay=0.0)
    rule.bind(even(K))
    slopes = (gradients @ (theta - theta[0]).T)[None]
    mix = rule.matrix(context(slopes))
    plain = Mean(1e-6)
    plain.bind(even(K))
    moved = plain.matrix(context(slopes)) @ theta

    def losses(at: Tensor) -> Tensor:
        return (curvature * (at - optima).square()).sum(1) / 2

    rises = losses(moved) > losses(theta)
    assert torch.equal(rule.refused, rises.double())
    assert torch.equal((mix == torch.eye(K, dtype=torch.float64)).all(1), rises)


def test_a_mean_over_transfers_decides() -> None:
    """One transfer that would raise the loss is not enough, after others that lowered it."""
    rule = Guarded(Mean(0.5), decay=0.9)
    rule.bind(even(K))
    falls = -torch.ones(1, K, K, dtype=torch.float64) + torch.eye(K, dtype=torch.float64)
    for slopes, refused in ((falls, 0), (falls, 0), (-falls, 0), (-falls, 1)):
        mix = rule.matrix(context(slopes))
        assert mix is not None
        assert torch.equal(rule.refused, torch.full((K,), float(refused), dtype=torch.float64))
        assert torch.equal(mix, torch.eye(K, dtype=torch.float64)) == bool(refused)


def test_slopes_that_are_not_finite_teach_nothing() -> None:
    rule = Guarded(Mean(0.5))
    rule.bind(even(K))
    slopes = torch.ones(1, K, K, dtype=torch.float64)
    slopes[0, 2] = torch.nan
    rule.matrix(context(slopes))
    assert bool(rule.state_dict()["mean"].isfinite().all())
    assert float(rule.state_dict()["mean"][2]) == 0.0


def test_the_optimizer_measures_the_slopes() -> None:
    """Against gradients and parameters of the rows, in two dtypes and with tensors that take no part."""
    seen: list[TransferContext] = []

    class Seen(Guarded):
        def matrix(self, context: TransferContext) -> Tensor | None:
            seen.append(context)
            return super().matrix(context)

    groups = [[torch.nn.Parameter(normal(3, seed=1))], [torch.nn.Parameter(normal(40, 2, seed=2).float())]]
    parameters = groups[0] + groups[1]
    optimizer = MT2OFused(
        [{"params": groups[0]}, {"params": groups[1], "transfer": False}],
        num_tasks=2, num_subproblems=K, transfer=Seen(Mean(0.1)), base="sgd", lr=0.1, max_norm=1.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)

    def losses() -> list[Tensor]:
        factor = 1 + torch.rand((), generator=generator)
        return [sum(((p - t) ** 2).sum().double() for p in parameters) * factor for t in (-1.0, 1.0)]

    for _ in range(3):
        before, gradients = [], []
        for _ in optimizer.subproblems():
            optimizer.backward(losses())
            before.append([p.detach().double().flatten().clone() for p in parameters])
            gradients.append([p.grad.double().flatten().clone() for p in parameters])
        optimizer.step()
        optimizer.zero_grad()
        for segment in range(2):
            theta, own = (torch.stack([row[segment] for row in rows]) for rows in (before, gradients))
            expected = own @ (theta - theta[0]).T * (segment == 0)
            torch.testing.assert_close(seen[-1].slopes[segment], expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 3
    assert bool(seen[-1].slopes.any())


def test_resume_is_bitwise_and_the_scale_of_a_scaler_changes_nothing() -> None:
    def make(seed: int) -> tuple[torch.nn.Module, MT2OFused]:
        model = make_model(seed=seed)
        rule = Guarded(Spectral(every=2))
        return model, MT2OFused(model.parameters(), num_tasks=2, num_subproblems=6, lr=1e-2, transfer=rule)

    model, optimizer = make(0)
    train(optimizer, model, Batches(), 5)
    other_model, other = make(1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, model, Batches(1), 4)
    train(other, other_model, Batches(1), 4)
    assert_same(snapshot(other), snapshot(optimizer))


def test_it_is_a_stage_of_a_sequence() -> None:
    rule = Sequence([(Mean(1.0), 2), (Guarded(Spectral()), None)])
    rule.bind(even(K))
    assert rule.needs_slopes
    assert rule.needs_gram


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Guarded(Spectral(relative=True)), "about positions, got Spectral with relative=True"),
        (lambda: Guarded(Mean(0.1), decay=1.0), "decay < 1, got 1.0"),
        (lambda: Guarded("nothing"), "nothing"),
    ],
    ids=["changes", "decay", "name"],
)
def test_rules_that_cannot_be_guarded(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
