"""PaMaL: its weights against loops and autograd, its regulariser and the rule when it counts, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import Ema, Every, PaMaL, PerSegment, Relative, WeightingContext
from support.weighting.problems import assert_close, normal

POINTS = torch.tensor(
    [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.3, 0.6, 0.1], [0.25, 0.35, 0.4]], dtype=torch.float64
)  # fmt: skip


def regulariser(points: Sequence[Sequence[float]], losses: Tensor, sharpness: float = 1.0, *, code: bool = False):
    """R with its graph, task after task and pair after pair."""
    total = torch.zeros((), dtype=torch.float64)
    for task in range(losses.shape[1]):
        order = sorted(range(len(points)), key=lambda k, task=task: points[k][task])
        terms = []
        for smaller, larger in pairwise(order):
            growth = losses[larger, task] - losses[smaller, task]
            terms.append(torch.exp(sharpness * torch.relu(-growth if code else growth)))
        total = total + torch.log(torch.stack(terms).mean())
    return total


def losses_at(points: Tensor, seed: int = 0) -> Tensor:
    return 5 + normal(*points.shape, seed=seed)


@pytest.mark.parametrize("code", [False, True])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_regulariser_adds_its_derivative_by_the_losses(sharpness, code):
    losses = losses_at(POINTS).requires_grad_()
    value = regulariser(POINTS.tolist(), losses, sharpness, code=code)
    (slopes,) = torch.autograd.grad(value, losses)
    assert slopes.abs().max() > 0.05, "the problem has growing losses"
    weights = PaMaL(regularization=0.5, sharpness=sharpness, code_parity=code)(
        losses=losses.detach(), preferences=POINTS
    )
    assert_close(weights, POINTS + 0.5 * slopes)


def test_losses_that_fall_with_their_share_are_as_they_should_be():
    """The sign of the paper's intent; the published code's punishes exactly this order."""
    falling = 3 - POINTS
    assert_close(PaMaL(regularization=1.0)(losses=falling, preferences=POINTS), POINTS)
    punished = PaMaL(regularization=1.0, code_parity=True)(losses=falling, preferences=POINTS)
    assert not torch.allclose(punished, POINTS)
    # The loss of task 0 is pushed down where its share is smallest, and up where it is largest: a flat front.
    assert punished[0, 0] > POINTS[0, 0] and punished[1, 0] < POINTS[1, 0]
    growing = 3 + POINTS
    asked = PaMaL(regularization=1.0)(losses=growing, preferences=POINTS)
    assert asked[0, 0] < POINTS[0, 0] and asked[1, 0] > POINTS[1, 0]


def test_the_safety_rule():
    """Lam R counts only below sum_kt u_kt l_kt."""
    losses = losses_at(POINTS)
    value = float(regulariser(POINTS.tolist(), losses))
    total = float((POINTS * losses).sum())
    for factor, counts in ((0.99, True), (1.01, False)):
        weighting = PaMaL(regularization=factor * total / value)
        assert torch.equal(weighting(losses=losses, preferences=POINTS), POINTS) != counts


def test_equal_shares_have_no_order():
    centre = torch.full((4, 3), 1 / 3, dtype=torch.float64)
    assert_close(PaMaL(regularization=1.0)(losses=losses_at(centre), preferences=centre), centre)


def test_a_point_that_is_skipped_takes_no_part():
    """The others are compared with each other, and so is a point whose losses are infinite."""
    weighting, losses = PaMaL(regularization=0.5), losses_at(POINTS)
    for skipped in range(4):
        others = [k for k in range(4) if k != skipped]
        broken = losses.clone()
        broken[skipped, 1] = math.inf
        found = weighting(losses=broken, preferences=POINTS)
        assert found[skipped].isnan().all()
        expected = PaMaL(regularization=0.5)(losses=losses[others], preferences=POINTS[others])
        assert_close(found[others], expected)
        value = float(regulariser(POINTS[others].tolist(), losses[others]))
        total = float((POINTS * losses)[others].sum())
        for factor, counts in ((0.99, True), (1.01, False)):  # nor in the rule for when the regulariser counts
            found = PaMaL(regularization=factor * total / value)(losses=broken, preferences=POINTS)
            assert torch.equal(found[others], POINTS[others]) != counts
    for alone in (1, 0):  # one point has nobody to be compared with
        weighting.bind(4, 3, 1, "cpu")
        finite = torch.arange(4) < alone
        found = weighting.weights(WeightingContext(preferences=POINTS, losses=losses, finite=finite))
        assert_close(found[:alone], POINTS[:alone]) and found[alone:].isnan().all()


def test_balancing_by_losses_goes_by_the_last_25_steps():
    weighting, history = PaMaL(balancing="losses"), []
    for step in range(40):
        history.append(normal(4, 3, seed=step) + torch.tensor([4.0, 1.0, -2.0]))
        weights = weighting(losses=history[-1], preferences=POINTS)
        for k in range(4):
            means = [abs(sum(float(each[k, t]) for each in history[-25:]) / len(history[-25:])) for t in range(3)]
            for t in range(3):
                assert float(weights[k, t]) == pytest.approx(
                    float(POINTS[k, t]) * (1 - means[t] / sum(means)), rel=1e-9
                )
    zero = PaMaL(balancing="losses")(losses=torch.zeros(4, 3), preferences=POINTS)
    assert_close(zero, POINTS * 2 / 3)


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_balancing_by_norms_counts_the_gradient_of_all_vertices(floor):
    """Each vertex t of a point has u_t times its gradient: all of them together are |u| |g| long."""
    rows = normal(4, 3, 10, seed=3) * torch.tensor([1.0, 10.0, 0.01]).double()[None, :, None]
    weights = PaMaL(balancing="norms", norm_floor=floor)(rows @ rows.mT, preferences=POINTS)
    for k in range(4):
        of_vertices = [torch.cat([share * rows[k, t] for share in POINTS[k]]).norm() for t in range(3)]
        added = floor * sum(of_vertices) / 3
        expected = [POINTS[k, t] / (of_vertices[t] + added) for t in range(3)]
        assert_close(weights[k], torch.stack(expected), rtol=1e-9)
    assert not PaMaL(balancing="norms")(torch.zeros(4, 3, 3), preferences=POINTS).any()


def test_balancing_by_both_is_the_product_and_the_regulariser_comes_on_top():
    rows, losses = normal(4, 3, 10, seed=3), losses_at(POINTS)
    gram, given = rows @ rows.mT, {"losses": losses, "preferences": POINTS}
    product = PaMaL(balancing="losses")(**given) * PaMaL(balancing="norms")(gram, preferences=POINTS) / POINTS
    assert_close(PaMaL(balancing="both")(gram, **given), product)
    added = PaMaL(regularization=0.5)(**given) - POINTS
    assert_close(PaMaL(balancing="both", regularization=0.5)(gram, **given), product + added)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_in_relative_the_regulariser_has_no_unit(scale):
    losses = losses_at(POINTS)
    found = []
    for factor in (1.0, scale):
        weighting = Relative(PaMaL(regularization=0.5))
        weighting(losses=factor * losses, preferences=POINTS)
        found.append(factor * weighting(losses=factor * losses_at(POINTS, 1), preferences=POINTS))
    assert_close(found[1], found[0], rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PaMaL(balancing="all"), "balancing as one of"),
        (lambda: PaMaL(regularization=-1.0), "regularization"),
        (lambda: PaMaL(regularization=1.0, sharpness=0.0), "sharpness > 0"),
        (lambda: PaMaL(sharpness=2.0), "sharpness= would have no effect"),
        (lambda: PaMaL(code_parity=True), "code_parity= would have no effect"),
        (lambda: PaMaL(norm_floor=0.1), "norm_floor= would have no effect.*give balancing="),
        (lambda: PaMaL()(losses=torch.ones(1)), "at least 2 tasks with PaMaL, got 1"),
        (lambda: PaMaL(regularization=1.0)(losses=torch.ones(2)), "at least 2 points with regularization"),
        (lambda: PerSegment(PaMaL()), "PaMaL"),
        (lambda: Ema(PaMaL()), "use it without Ema"),
        (lambda: Every("pamal", 2), "use it without Every"),
    ],
)
def test_it_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
