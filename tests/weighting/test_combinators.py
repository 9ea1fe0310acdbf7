"""Weightings around weightings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import (
    DBMTL,
    FAMO,
    GLS,
    IMTLG,
    MGDA,
    CAGrad,
    Ema,
    Every,
    Fallback,
    GradNorm,
    GradVac,
    LinearWeighting,
    LogLosses,
    MoDo,
    NashMTL,
    Needs,
    PCGrad,
    PerSegment,
    Relative,
    Rescale,
    UPGrad,
)
from support.weighting.problems import assert_close, normal, rows_of


def gram(seed: int = 0, tasks: int = 4) -> Tensor:
    rows = rows_of("conflicting", tasks, seed=seed)
    return rows @ rows.T


def test_ema_averages_the_weights_from_the_first_ones():
    weighting, average = Ema(UPGrad(), decay=0.8), None
    for step in range(4):
        fresh = UPGrad()(gram(step))
        average = fresh if average is None else 0.8 * average + 0.2 * fresh
        assert_close(weighting(gram(step)), average)


def test_what_is_inside_may_be_given_by_name():
    assert_close(Ema("upgrad")(gram()), Ema(UPGrad())(gram()))
    assert_close(Fallback("nash-mtl", "ls")(gram()), NashMTL()(gram()))


def test_every_keeps_the_weights_between():
    weighting = Every(MGDA(), 3)
    weights = [weighting(gram(step)) for step in range(5)]
    assert torch.equal(weights[1], weights[0]) and torch.equal(weights[2], weights[0])
    assert torch.equal(weights[3], MGDA()(gram(3)))
    assert torch.equal(weights[4], weights[3])
    assert weighting.needs_at(3) == Needs.GRAM | Needs.STEPS
    assert weighting.needs_at(4) == Needs.STEPS


def test_what_combinators_read_when_nothing_is_due():
    assert Rescale(Every(MGDA(), 2), "T").needs_at(1) == Needs.STEPS
    assert Rescale(Every(MGDA(), 2), max_norm=1.0).needs_at(1) == Needs.GRAM | Needs.STEPS
    assert PerSegment(Every(GradVac(), 2)).needs_at(1) == Needs.STEPS
    assert PerSegment(Every(GradVac(), 2)).needs_at(2) == Needs.SEGMENTS | Needs.DRAWS | Needs.STEPS
    assert Fallback(Every(MGDA(), 2), Every(UPGrad(), 3)).needs_at(3) == Needs.GRAM | Needs.STEPS
    assert Fallback(Every(MGDA(), 2), Every(UPGrad(), 3)).needs_at(1) == Needs.STEPS


@pytest.mark.parametrize(("scale", "factor"), [("sum", 1.0), ("mean", 0.25), ("T", 4.0)])
def test_rescale_multiplies(scale, factor):
    assert_close(Rescale(CAGrad(), scale)(gram()), factor * CAGrad()(gram()))


def test_rescale_to_the_simplex_keeps_the_direction():
    weights = Rescale(UPGrad(), "simplex")(gram())
    assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    assert_close(weights, UPGrad()(gram()) / UPGrad()(gram()).sum())
    negative = Rescale(LinearWeighting([-2.0, 1.0]), "simplex")(gram(tasks=2))
    assert_close(negative, torch.tensor([-2.0, 1.0], dtype=torch.float64))
    assert not Rescale(LinearWeighting([-1.0, 1.0]), "simplex")(gram(tasks=2)).any()


def test_a_norm_is_only_shortened():
    q = gram()
    norm = (LinearWeighting()(q) @ q @ LinearWeighting()(q)).sqrt()
    for limit in (0.5 * float(norm), 2 * float(norm)):
        weights = Rescale(LinearWeighting(), max_norm=limit)(q)
        assert_close((weights @ q @ weights).sqrt(), norm.clamp(max=limit))


def test_a_norm_of_weights_per_segment_is_that_of_the_whole_direction():
    rows = [rows_of("conflicting", 3, seed=seed) for seed in range(4)]
    segments = torch.stack([each @ each.T for each in rows])
    weights = Rescale(PerSegment(UPGrad()), max_norm=0.1)(segments=segments)
    direction = torch.cat([each.T @ own for each, own in zip(rows, weights, strict=True)])
    assert_close(direction.norm(), torch.tensor(0.1, dtype=torch.float64))


def test_per_segment_is_the_weighting_of_each_segment():
    segments = torch.stack([gram(seed) for seed in range(5)])
    weights = PerSegment(NashMTL())(segments=segments)
    for own, each in zip(weights, segments, strict=True):
        assert_close(own, NashMTL()(each))


def test_per_segment_draws_for_each_segment_anew():
    segments = gram(tasks=8).expand(6, 8, 8)
    weights = PerSegment(PCGrad())(segments=segments, generator=torch.Generator().manual_seed(1))
    assert len({tuple(own.tolist()) for own in weights}) > 1


def test_per_segment_with_losses():
    segments, losses = torch.stack([gram(seed) for seed in range(3)]), 0.2 + normal(4).abs()
    weights = PerSegment(GradNorm(lr=0.1))(segments=segments, losses=losses)
    assert_close(weights, torch.ones(3, 4, dtype=torch.float64))


def test_fallback_answers_where_the_first_does_not():
    rows = rows_of("random", 4)
    stationary = torch.cat([rows[:3], -rows[:3].sum(0, keepdim=True)])
    grams = torch.stack([rows @ rows.T, stationary @ stationary.T])
    weights = Fallback(CAGrad(), LinearWeighting())(grams)
    assert_close(weights[0], CAGrad()(grams[0]))
    assert_close(weights[1], torch.full((4,), 0.25, dtype=torch.float64))


def test_fallback_for_losses_that_the_first_does_not_take():
    losses = torch.tensor([[1.0, 2.0], [1.0, -2.0]], dtype=torch.float64)
    weights = Fallback(GLS(), LinearWeighting())(losses=losses)
    assert_close(weights[0], GLS()(losses=losses[0]))
    assert_close(weights[1], torch.full((2,), 0.5, dtype=torch.float64))
    nan = Fallback(GLS(), LinearWeighting())(losses=torch.tensor([1.0, torch.nan]))
    assert nan.isnan().all()


def test_log_losses_solve_on_rows_over_losses():
    rows, losses = rows_of("conflicting", 4), 0.2 + normal(4).abs()
    scaled = rows / losses[:, None]
    weights = LogLosses(MGDA())(rows @ rows.T, losses=losses)
    assert_close(rows.T @ weights, scaled.T @ MGDA()(scaled @ scaled.T), atol=1e-12)
    assert LogLosses(MGDA())(rows @ rows.T, losses=-losses).isnan().all()


def test_log_losses_per_segment():
    segments, losses = torch.stack([gram(seed) for seed in range(3)]), 0.2 + normal(4).abs()
    weights = LogLosses(PerSegment(UPGrad()))(segments=segments, losses=losses)
    inner = PerSegment(UPGrad())(segments=segments / losses[:, None] / losses)
    assert_close(weights, inner / losses)


def test_relative_scales_rows_and_losses():
    rows, losses = rows_of("conflicting", 3), 0.2 + normal(3).abs()
    reference = [1.0, 10.0, 0.1]
    scaled = rows / torch.tensor(reference, dtype=torch.float64)[:, None]
    weights = Relative(MGDA(), reference)(rows @ rows.T, losses=losses)
    assert_close(rows.T @ weights, scaled.T @ MGDA()(scaled @ scaled.T), atol=1e-12)


def test_combinators_nest_with_their_states():
    weighting = Ema(Rescale(Fallback(NashMTL(), IMTLG()), "mean"), 0.5)
    weighting(gram())
    assert set(weighting.state_dict()) == {"average", "started", "inner.inner.first.weights"}


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Ema(UPGrad), TypeError, "the class UPGrad"),
        (lambda: Ema(None), TypeError, "got None"),
        (lambda: Ema("upgard"), ValueError, "did you mean 'upgrad'"),
        (lambda: PerSegment(DBMTL()), ValueError, "one Gram matrix"),
        (lambda: PerSegment(FAMO()), ValueError, "one Gram matrix"),
        (lambda: PerSegment(MoDo()), ValueError, "one Gram matrix"),
        (lambda: PerSegment(PerSegment(UPGrad())), ValueError, "one Gram matrix"),
        (lambda: LogLosses(FAMO()), ValueError, "FAMO"),
        (lambda: Relative(DBMTL()), ValueError, "DBMTL"),
        (lambda: Relative(UPGrad(), 0.0), ValueError, "> 0"),
        (lambda: Fallback(PerSegment(UPGrad()), UPGrad()), ValueError, "same kind"),
        (lambda: Every(UPGrad(), 0), ValueError, ">= 1"),
        (lambda: Ema(UPGrad(), 1.5), ValueError, "decay"),
        (lambda: Rescale(UPGrad(), "max"), ValueError, "'simplex'"),
        (lambda: Rescale(UPGrad(), max_norm=0.0), ValueError, "max_norm"),
    ],
)
def test_combinators_refuse_what_does_not_fit(make, error, match):
    with pytest.raises(error, match=match):
        make()
