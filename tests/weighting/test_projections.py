"""PCGrad, GradVac and CDTT on Gram matrices, against the same rules on explicit vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import (
    EDM,
    GradVac,
    PCGrad,
    PerSegment,
    TaskTensioner,
    UPGrad,
)
from mt2o_ext.weighting.draw import meeting_orders, shared_order
from support.weighting.problems import (
    KINDS,
    assert_close,
    assert_parallel,
    assert_same_direction,
    bound,
    context,
    normal,
    pcgrad,
    rows_of,
)

SIZES = (2, 3, 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("visit_self", [False, True])
def test_pcgrad_is_its_rule_on_vectors(kind, num_tasks, visit_self):
    rows = rows_of(kind, num_tasks, seed=num_tasks)
    given = context(rows)
    weights = bound(PCGrad(visit_self=visit_self), num_tasks).weights(given)
    changed = pcgrad(rows, meeting_orders(given)[0], visit_self=visit_self)
    assert_same_direction(weights, rows, changed.sum(0))


def test_pcgrad_with_one_order_for_all():
    rows = rows_of("conflicting", 6)
    given = context(rows)
    weights = bound(PCGrad(shared=True), 6).weights(given)
    changed = pcgrad(rows, shared_order(given)[0].expand(6, 6))
    assert_same_direction(weights, rows, changed.sum(0))


def test_pcgrad_of_two_tasks_makes_each_row_orthogonal_to_the_other():
    rows = rows_of("conflicting", 2)
    weights = PCGrad()(rows @ rows.T)
    first, second = pcgrad(rows, torch.tensor([[0, 1], [0, 1]]))
    assert abs(first @ rows[1]) < 1e-12 and abs(second @ rows[0]) < 1e-12
    assert_close(rows.T @ weights, first + second)
    assert_close(rows.T @ weights, 2 * rows.T @ UPGrad()(rows @ rows.T))


def test_pcgrad_without_conflicts_is_the_sum():
    rows = rows_of("correlated", 5)
    assert torch.equal(PCGrad()(rows @ rows.T), torch.ones(5, dtype=torch.float64))


def test_visiting_oneself_acts_after_two_projections():
    """Row 0 without its components along 1 and then 2 points away from its original."""
    near, far = math.radians(10), math.radians(20)
    rows = torch.tensor(
        [[1, 0], [-math.cos(near), math.sin(near)], [-math.cos(far), -math.sin(far)]], dtype=torch.float64
    )
    order = torch.tensor([[1, 2, 0], [0, 2, 1], [0, 1, 2]])
    plain, visiting = pcgrad(rows, order), pcgrad(rows, order, visit_self=True)
    assert plain[0] @ rows[0] < 0
    assert abs(visiting[0] @ rows[0]) < 1e-12
    seeds = [context(rows, seed=seed) for seed in range(40)]
    both = [[bound(PCGrad(visit_self=own), 3).weights(given) for own in (False, True)] for given in seeds]
    assert 0 < sum(not torch.allclose(*pair) for pair in both) < 40


def gradvac(rows: Tensor, orders: Tensor, phi: Tensor, beta: float, only_on_action: bool) -> Tensor:
    """The changed rows; phi is changed in place."""
    changed = rows.clone()
    for i in range(len(rows)):
        for j in orders[i].tolist():
            lengths = [float(row.norm()) for row in (changed[i], rows[j])]
            if j == i or 0 in lengths:
                continue
            rho = max(-1.0, min(1.0, float(changed[i] @ rows[j]) / (lengths[0] * lengths[1])))
            goal = float(phi[i, j])
            acts = rho < goal and goal**2 < 1
            if acts:
                above = lengths[0] * (goal * math.sqrt(1 - rho**2) - rho * math.sqrt(1 - goal**2))
                changed[i] += above / (lengths[1] * math.sqrt(1 - goal**2)) * rows[j]
                if abs(rho) < 1 - 1e-9:
                    reached = float(changed[i] @ rows[j] / (changed[i].norm() * lengths[1]))
                    assert abs(reached - goal) < 1e-6
            if acts or not only_on_action:
                phi[i, j] = (1 - beta) * goal + beta * rho
    return changed


@pytest.mark.parametrize("kind", ["random", "conflicting", "scaled", "correlated", "zero row"])
@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("only_on_action", [False, True])
def test_gradvac_is_its_rule_on_vectors(kind, num_tasks, only_on_action):
    weighting = bound(GradVac(beta=0.3, only_on_action=only_on_action), num_tasks)
    start = 0.3 * normal(1, num_tasks, num_tasks, seed=77).tanh()
    weighting.load_state_dict({"targets": start})
    phi = start[0].clone()
    for step in range(3):
        rows = rows_of(kind, num_tasks, seed=10 * num_tasks + step)
        given = context(rows, seed=step)
        weights = weighting.weights(given)
        changed = gradvac(rows, meeting_orders(given)[0], phi, 0.3, only_on_action)
        assert_same_direction(weights, rows, changed.sum(0))
        assert_close(weighting.state_dict()["targets"][0], phi, rtol=0, atol=1e-12)


def test_gradvac_per_segment_keeps_targets_for_each():
    weighting = PerSegment(GradVac())
    segments = torch.stack([(rows @ rows.T) for rows in (rows_of("random", 3, seed=i) for i in range(4))])
    weights = weighting(segments=segments, generator=torch.Generator().manual_seed(0))
    assert weights.shape == (4, 3)
    targets = weighting.state_dict()["inner.targets"]
    assert targets.shape == (4, 3, 3)
    assert len({round(float(each.sum()), 9) for each in targets}) == 4


class Tension:
    """CDTT on explicit vectors."""

    def __init__(self, a: float, relative: bool) -> None:
        self.a, self.relative = a, relative
        self.norms: list[Tensor] = []
        self.losses: list[Tensor] = []

    def direction(self, rows: Tensor, losses: Tensor) -> Tensor:
        self.norms.append(rows.norm(dim=1))
        self.losses.append(losses)
        centre = rows.T @ EDM()(rows @ rows.T)
        v = centre.clone()
        if len(self.norms) > 10:
            now, before = sum(self.norms[-10:]), sum(self.norms[-11:-1])
            unit = sum(self.losses[:10]) / 10 if self.relative else 1.0
            x = now / before + (losses / unit).log10()
            tau = (self.a / (1 + (2.718 * (1 - x)).exp()) + 1 - self.a).clamp(min=0)
            size = float(centre.norm()) if self.relative else 1.0
            for t, row in enumerate(rows):
                if float((row - centre).norm()) > 0 and float(row.norm()) > 0:
                    v += size * tau[t] * (row - centre) / (row - centre).norm()
        return self.repaired(rows, v)

    @staticmethod
    def repaired(rows: Tensor, v: Tensor) -> Tensor:
        for row in rows:
            if row @ v < 0:
                lam = -(row @ v) / (row @ row)
                v = (v + lam * row) / (1 + lam)
        return v


@pytest.mark.parametrize("kind", ["random", "conflicting", "scaled", "zero row"])
@pytest.mark.parametrize("tension", ["relative", "unit"])
def test_cdtt_is_its_rule_on_vectors(kind, tension):
    weighting, vectors = bound(TaskTensioner(a=0.4, tension=tension), 4), Tension(0.4, tension == "relative")
    for step in range(14):
        rows, losses = rows_of(kind, 4, seed=step), 0.1 + normal(4, seed=step).abs()
        weights = weighting.weights(context(rows, losses, step=step))
        assert_same_direction(weights, rows, vectors.direction(rows, losses))


def test_the_repair_of_cdtt_ends_in_no_conflict_with_the_last_task_it_touched():
    rows = rows_of("conflicting", 2, num_columns=3)
    v = torch.tensor([-1.0, 0.2, 0.1], dtype=torch.float64)
    for row in rows:
        before = row @ v
        v = Tension.repaired(row[None], v)
        assert row @ v >= -1e-12
        assert before >= 0 or abs(float(row @ v)) < 1e-12


def test_cdtt_before_its_window_is_full_is_edm():
    rows = rows_of("conflicting", 5)
    weights = TaskTensioner()(rows @ rows.T, losses=normal(5).abs())
    assert_parallel(rows.T @ weights, rows.T @ EDM()(rows @ rows.T))
