"""Weightings that see the points of a front on vertices: PaMaL, against finite differences; the draw of the points."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.base import SGD
from mt2o_ext.weighting import Needs, PaMaL, Weighting, WeightingContext
from support.optim.problems import Batches, assert_same, make_model, snapshot, task_losses

K = 4
GENERAL = PaMaL(balancing="both", regularization=0.1)


def make(model: nn.Module, **options: Any) -> MT2OFused:
    given = {"num_tasks": 2, "num_subproblems": K, "lr": 1e-2, "front": "vertices", "scalarization": None, **options}
    given.setdefault("weighting", PaMaL())
    given.setdefault("generator", torch.Generator().manual_seed(3))
    return MT2OFused(model.parameters(), **given)


def step(optimizer: MT2OFused, model: nn.Module, batches: Batches) -> Tensor:
    def losses() -> Tensor:
        x, y = next(batches)
        return task_losses(model(x), y)

    found = optimizer.step(losses)
    assert found is not None
    return found


class Watcher(Weighting):
    """Equal weights; notes what it saw."""

    needs = Needs.LOSSES | Needs.ROWS | Needs.GRAM

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.losses: list[Tensor] = []

    def _transform_(self, rows: Any, context: WeightingContext) -> None:
        self.seen.append(context.preferences.clone())

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        self.seen.append(context.preferences.clone())
        self.losses.append(context.losses.clone())
        return torch.ones_like(context.preferences)


# ---------------------------------------------------------------------- what the weighting sees
def test_the_weighting_sees_the_points_of_each_step_and_the_plain_losses() -> None:
    model = make_model()
    optimizer, batches = make(model, weighting=Watcher()), Batches()
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    for case in ("as it is", "after a load", "copied", "pickled"):
        if case == "after a load":
            optimizer.load_state_dict(saved)
        elif case == "copied":
            model, optimizer = copy.deepcopy((model, optimizer))
        elif case == "pickled":
            model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
        for _ in range(2):
            watcher: Any = optimizer._tasks.weigher.weighting  # type: ignore[union-attr]
            watcher.seen.clear(), watcher.losses.clear()
            points = optimizer.points
            losses = step(optimizer, model, batches)
            assert len(watcher.seen) == 2 and torch.equal(watcher.losses[0], losses)
            assert all(torch.equal(seen, points) for seen in watcher.seen), case
            assert not torch.equal(optimizer.points, points)


def test_subproblems_that_are_rows_have_their_preferences_as_points() -> None:
    model, watcher = make_model(), Watcher()
    optimizer = make(model, weighting=watcher, front="rows", transfer=None)
    step(optimizer, model, Batches())
    assert torch.equal(watcher.seen[-1], optimizer.preferences)


def test_without_balancing_it_is_the_linear_scalarization() -> None:
    model, same = make_model(torch.float64), make_model(torch.float64)
    optimizer = make(model)
    linear = make(same, weighting=None, scalarization="linear")
    ours, theirs = Batches(dtype=torch.float64), Batches(dtype=torch.float64)
    for _ in range(5):
        points = optimizer.points
        torch.testing.assert_close(step(optimizer, model, ours), step(linear, same, theirs))
        torch.testing.assert_close(optimizer.weights, points)
    for p, q in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(optimizer.state[p]["vertices"], linear.state[q]["vertices"], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- PaMaL
def objective(model: nn.Module, vertices: list[Tensor], points: Tensor, batches: Batches, lam: float) -> Tensor:
    """T / K (sum_s sum_t alpha_st l_t(theta(alpha_s)) + lam R), from the vertices of each parameter."""
    names, rows = [name for name, _ in model.named_parameters()], []
    for weights in points:
        x, y = next(batches)
        blended = [torch.tensordot(weights, pair, 1) for pair in vertices]
        rows.append(task_losses(torch.func.functional_call(model, dict(zip(names, blended, strict=True)), (x,)), y))
    losses = torch.stack(rows)
    total = (points * losses).sum()
    for t in range(points.shape[1]):
        ordered = losses[points[:, t].argsort(), t]
        total = total + lam * (ordered[1:] - ordered[:-1]).clamp(min=0).exp().mean().log()
    return points.shape[1] / len(points) * total


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_the_whole_objective_against_finite_differences(lam: float) -> None:
    model = make_model(torch.float64)
    optimizer = make(model, weighting=PaMaL(regularization=lam), base=SGD(), lr=1.0)
    for _ in range(3):  # vertices that differ
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        step(optimizer, model, Batches(dtype=torch.float64))
    optimizer.param_groups[0]["lr"] = 1.0
    before = [optimizer.state[p]["vertices"].clone() for p in model.parameters()]
    points = optimizer.points
    frozen = copy.deepcopy(model)
    without = objective(frozen, before, points, Batches(7, dtype=torch.float64), 0.0)
    added = objective(frozen, before, points, Batches(7, dtype=torch.float64), lam) - without
    assert (added > 1e-3 and added < without) if lam else added == 0, "the regulariser is at work, and counts"
    step(optimizer, model, Batches(7, dtype=torch.float64))
    moved = [old - optimizer.state[p]["vertices"] for old, p in zip(before, model.parameters(), strict=True)]
    for index, gradient in enumerate(moved):
        flat = before[index].view(-1)
        for place in {0, flat.numel() // 2, flat.numel() // 2 + 1, flat.numel() - 1}:
            value, ends = flat[place].item(), []
            for side in (1e-6, -1e-6):
                flat[place] = value + side
                ends.append(float(objective(frozen, before, points, Batches(7, dtype=torch.float64), lam)))
            flat[place] = value
            assert gradient.reshape(-1)[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("corner", [0, 1])
@pytest.mark.parametrize("balancing", ["none", "losses", "norms", "both"])
def test_a_corner_moves_its_own_vertex_only(balancing: str, corner: int) -> None:
    model = make_model()
    optimizer = make(model, weighting=PaMaL(balancing=balancing), base=SGD(), points=1)
    step(optimizer, model, Batches())
    state = optimizer.state_dict()
    state["param_groups"][0]["mt2o"]["vertices"]["points"] = torch.eye(2, dtype=torch.float64)[corner : corner + 1]
    optimizer.load_state_dict(state)
    before = [optimizer.state[p]["vertices"].clone() for p in model.parameters()]
    step(optimizer, model, Batches())
    assert optimizer.weights is not None and optimizer.weights[0, 1 - corner] == 0
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(optimizer.state[p]["vertices"][1 - corner], old[1 - corner])
        assert not torch.equal(optimizer.state[p]["vertices"][corner], old[corner])


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
            self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

    def losses(self) -> list[Tensor]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
        return [
            (head(self.trunk(x)) - target).square().mean() for head, target in zip(self.heads, (1, -1), strict=True)
        ]

    def groups(self) -> list[dict[str, Any]]:
        heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(self.heads)]
        return [{"params": list(self.trunk.parameters())}, *heads]


@pytest.mark.parametrize("balancing", ["none", "losses"])
def test_heads_are_weighed_too(balancing: str) -> None:
    found = []
    for groups in (False, True):
        model, options = TwoHeads(), {"num_tasks": 2, "num_subproblems": K, "front": "vertices", "scalarization": None}
        optimizer = MT2OFused(
            model.groups() if groups else model.parameters(),
            **options,
            heads="weighted" if groups else "plain",
            weighting=PaMaL(balancing=balancing, regularization=0.1),
            generator=torch.Generator().manual_seed(3),
            base=SGD(),
            lr=0.1,
        )
        for _ in range(3):
            optimizer.step(model.losses)
        found.append([optimizer.state[p]["vertices"] for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='expected heads="weighted" for groups with task='):
        MT2OFused(TwoHeads().groups(), **options, weighting=PaMaL())


@pytest.mark.parametrize("weighting", [GENERAL, "cagrad", "excessmtl"], ids=["pamal", "cagrad", "excessmtl"])
@pytest.mark.parametrize("concentration", [1.0, 2.5])
def test_resume_is_bitwise_and_losses_fall(weighting: Any, concentration: float) -> None:
    def made(seed: int) -> tuple[nn.Module, MT2OFused]:
        model = make_model(seed=seed)
        options = {"scalarization": "linear"} if weighting == "excessmtl" else {}  # which sees no preferences itself
        return model, make(model, weighting=copy.deepcopy(weighting), concentration=concentration, **options)

    model, optimizer = made(0)
    x, y = next(Batches(9))
    first = optimizer.front(lambda: task_losses(model(x), y)).losses.mean()
    batches = Batches()
    for _ in range(60):
        step(optimizer, model, batches)
    assert optimizer.front(lambda: task_losses(model(x), y)).losses.mean() < 0.9 * first
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    other, resumed = made(1)
    resumed.load_state_dict(saved)
    copied = copy.deepcopy((model, optimizer))
    for one, of in ((model, optimizer), (other, resumed), copied):
        batches = Batches(5)
        for _ in range(4):
            step(of, one, batches)
    assert_same(snapshot(resumed), snapshot(optimizer))
    assert_same(snapshot(copied[1]), snapshot(optimizer))


def test_a_point_with_an_infinite_loss_skips_the_step() -> None:
    model = make_model()
    optimizer = make(model, weighting=copy.deepcopy(GENERAL))
    vertices = [optimizer.state[p]["vertices"].clone() for p in model.parameters()]
    for k in optimizer.subproblems():
        x, y = next(Batches())
        optimizer.backward(task_losses(model(x), y) * (torch.inf if k == 1 else 1.0))
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step()
    for p, old in zip(model.parameters(), vertices, strict=True):
        assert torch.equal(optimizer.state[p]["vertices"], old)


# ---------------------------------------------------------------------- the draw
@pytest.mark.parametrize("concentration", [0.3, 1.0, 2.0, 7.0])
def test_points_have_the_moments_of_the_dirichlet_distribution(concentration: float) -> None:
    """Mean 1 / T, variance (T - 1) / (T^2 (T p + 1)) of each share; 4 standard errors of 800 draws."""
    model = nn.Linear(2, 3)
    optimizer = make(model, num_tasks=3, num_subproblems=40, concentration=concentration)
    drawn = []
    for _ in range(20):
        drawn.append(optimizer.points)
        for _ in optimizer.subproblems():
            optimizer.backward(model(torch.ones(2)).square())
        optimizer.step()
    shares = torch.cat(drawn)
    variance = 2 / (9 * (3 * concentration + 1))
    assert ((shares.mean(0) - 1 / 3).abs() < 4 * (variance / 800) ** 0.5).all()
    assert ((shares.var(0) / variance - 1).abs() < 0.25).all()
    assert f"concentration={concentration}" in repr(optimizer)


def test_the_concentration_is_saved_and_described() -> None:
    model = make_model()
    state = make(model, concentration=3.0).state_dict()
    other = make(make_model())
    other.load_state_dict(state)
    assert other.state_dict()["param_groups"][0]["mt2o"]["vertices"]["concentration"] == 3.0
    assert other._description()["concentration"] == 3.0
    state["param_groups"][0]["mt2o"]["vertices"]["concentration"] = -1.0
    with pytest.raises(ValueError, match="concentration"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concentration": 0.0}, "concentration > 0"),
        ({"front": "rows", "concentration": 2.0}, "concentration= would have no effect"),
        ({"front": "rows", "concentration": 2.0, "points": 3}, "points=, concentration= would have no effect"),
        ({"scalarization": "linear"}, "scalarization=None with PaMaL"),
        ({"weighting": None}, "give one, or a scalarization"),
        ({"num_tasks": 1}, "at least 2 tasks"),
        ({"front": "rows", "transfer": None, "num_tasks": 1}, "at least 2 tasks with PaMaL"),
        ({"points": 1, "weighting": PaMaL(regularization=1.0)}, "at least 2 points"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_what_would_have_no_effect_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(make_model(), **options)
