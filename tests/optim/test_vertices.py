"""Fronts on vertices: against a loop in float64, in every usage; what they show, keep and refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mt2o_ext import MT2OFused, SubproblemBank
from mt2o_ext.base import SGD
from mt2o_ext.optim.flat_vertices import FlatVertices
from mt2o_ext.scalarization import SmoothTchebycheff
from mt2o_ext.transfer import Mean, Moments, Spectral
from mt2o_ext.weighting import UPGrad
from support.optim.problems import Batches, assert_same, make_model, snapshot, task_losses

K = 5


def make(model: nn.Module, **options: Any) -> MT2OFused:
    given = {"num_tasks": 2, "num_subproblems": K, "lr": 1e-2, "front": "vertices", **options}
    given.setdefault("generator", torch.Generator().manual_seed(3))
    return MT2OFused(model.parameters(), **given)


def vertices(optimizer: MT2OFused, model: nn.Module) -> list[Tensor]:
    """Copies of the vertices [2, *shape] of each parameter."""
    return [optimizer.state[p]["vertices"].clone() for p in model.parameters()]


def step(optimizer: MT2OFused, model: nn.Module, batches: Batches, usage: str) -> None:
    def losses() -> Tensor:
        x, y = next(batches)
        return task_losses(model(x), y)

    if usage == "closure":
        optimizer.step(losses)
    else:
        for _ in optimizer.subproblems():
            optimizer.backward(losses())
        optimizer.step()


class Exact:
    """The same in float64, from the definition: one point after the other, and torch's optimizer for the vertices."""

    def __init__(self, model: nn.Module, kind: Any, **options: Any) -> None:
        self.model = copy.deepcopy(model).double()
        self.names = [name for name, _ in model.named_parameters()]
        pairs = [torch.stack([p.detach().double()] * 2) for p in model.parameters()]
        self.vertices = [nn.Parameter(pair) for pair in pairs]
        self.optimizer = kind(self.vertices, **options)

    def losses(self, weights: Tensor, batches: Batches) -> Tensor:
        x, y = next(batches)
        blended = [torch.tensordot(weights, c, 1) for c in self.vertices]
        named = dict(zip(self.names, blended, strict=True))
        return task_losses(torch.func.functional_call(self.model, named, (x.double(),)), y.double())

    def step(self, points: Tensor, batches: Batches, preferences: Tensor | None = None) -> None:
        self.optimizer.zero_grad()
        for weights in points:
            (2 / len(points) * (weights * self.losses(weights, batches)).sum()).backward()
        self.optimizer.step()


RULES: dict[str, tuple[Any, Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": ("adamw", torch.optim.AdamW, {"lr": 1e-2}),
    "momentum": (
        SGD(momentum=0.9, weight_decay=0.1),
        torch.optim.SGD,
        {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("usage", ["loop", "closure"])
@pytest.mark.parametrize("points", [1, K, 7])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_that_of_a_loop_in_float64(rule: str, points: int, usage: str) -> None:
    base, theirs, options = RULES[rule]
    model = make_model()
    exact = Exact(model, theirs, **options)
    optimizer = make(model, base=base, points=points)
    ours, same = Batches(), Batches()
    for _ in range(10):
        drawn = optimizer.points
        assert drawn.shape == (points, 2) and (drawn.sum(1) - 1).abs().max() < 1e-12
        step(optimizer, model, ours, usage)
        exact.step(drawn, same)
    for found, expected in zip(vertices(optimizer, model), exact.vertices, strict=True):
        torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-4, atol=1e-6)


def test_points_differ_in_every_step_and_cover_the_simplex() -> None:
    model = make_model()
    optimizer = make(model)
    drawn = []
    for _ in range(200):
        drawn.append(optimizer.points)
        step(optimizer, model, Batches(), "closure")
    shares = torch.cat(drawn)[:, 0]
    assert len(shares.unique()) == 200 * K
    # Dirichlet(1, 1) is uniform on [0, 1]: mean 1/2, standard error of 1,000 draws 0.009; variance 1/12.
    assert abs(shares.mean() - 0.5) < 0.04 and abs(shares.var() - 1 / 12) < 0.01


def test_gradients_return_by_the_adjoint() -> None:
    """<W C, G> = <C, W^T G>: SGD moves the vertices by -lr 2/K W^T G, whatever the gradients of the points are."""
    model = make_model(torch.float64)
    optimizer = make(model, base=SGD(), lr=0.5)
    before, points = vertices(optimizer, model), optimizer.points
    generator = torch.Generator().manual_seed(0)
    grads: list[list[Tensor]] = []
    for _ in optimizer.subproblems():
        grads.append([torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()])
        for p, grad in zip(model.parameters(), grads[-1], strict=True):
            p.grad = grad.clone()
    optimizer.step()
    for index, (old, new) in enumerate(zip(before, vertices(optimizer, model), strict=True)):
        of_points = torch.stack([of_point[index] for of_point in grads])
        moved = torch.tensordot(points.T, of_points, 1)
        torch.testing.assert_close(new, old - 0.5 * 2 / K * moved, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- one model at first
def test_while_warming_up_it_is_one_model_with_the_mean_gradient() -> None:
    model, one = make_model(torch.float64), make_model(torch.float64)
    optimizer, plain = make(model, base=SGD(), warm_up=4), torch.optim.SGD(one.parameters(), lr=1e-2)
    ours, same = Batches(dtype=torch.float64), Batches(dtype=torch.float64)
    for _ in range(4):
        assert_same(optimizer.points, torch.full((K, 2), 0.5, dtype=torch.float64))
        step(optimizer, model, ours, "loop")
        plain.zero_grad()
        for _ in range(K):
            x, y = next(same)
            (task_losses(one(x), y).mean() / K).backward()
        plain.step()
    for pair, p in zip(vertices(optimizer, model), one.parameters(), strict=True):
        assert_same(pair[0], pair[1])
        torch.testing.assert_close(pair[0], p.detach(), rtol=1e-12, atol=1e-14)
    assert len(optimizer.points.unique()) > 2


@pytest.mark.parametrize("transfer", ["spectral", None])
def test_rows_can_start_together_too(transfer: Any) -> None:
    model = make_model()
    optimizer = make(model, front="rows", transfer=transfer, warm_up=3, generator=None)
    for count in range(6):
        step(optimizer, model, Batches(), "loop")
        rows = optimizer.state[next(model.parameters())]["subproblems"]
        spread = (rows - rows.mean(0)).abs().max().item()
        if count < 3:  # they differ by the last step only
            assert spread < 0.025
    with pytest.raises(ValueError, match="relative"):
        make(make_model(), front="rows", transfer=Spectral(relative=True), warm_up=3, generator=None)


# ---------------------------------------------------------------------- what the model shows
def trained(model: nn.Module, steps: int = 5, **options: Any) -> MT2OFused:
    optimizer = make(model, **options)
    batches = Batches()
    for _ in range(steps):
        step(optimizer, model, batches, "loop")
    return optimizer


@pytest.mark.parametrize("ema", [None, 0.9])
def test_any_point_of_the_front_can_be_shown(ema: float | None) -> None:
    model = make_model()
    optimizer = trained(model, ema=ema)
    key = "vertices" if ema is None else "ema"
    for weights in (torch.tensor([0.25, 0.75]), [1.0, 0.0]):
        share = torch.as_tensor(weights, dtype=torch.float64)
        expected = [torch.tensordot(share, optimizer.state[p][key].double(), 1) for p in model.parameters()]
        with optimizer.at(weights, ema=ema is not None):
            for p, values in zip(model.parameters(), expected, strict=True):
                torch.testing.assert_close(p.detach().double(), values, rtol=1e-6, atol=1e-7)
    with optimizer.subproblem(1, ema=ema is not None):
        shown = [p.detach().clone() for p in model.parameters()]
        with optimizer.at([0.0, 1.0]):
            assert not torch.equal(next(model.parameters()), shown[0])
        assert_same([p.detach() for p in model.parameters()], shown)
    with optimizer.at(optimizer.preferences[1], ema=ema is not None):
        assert_same([p.detach() for p in model.parameters()], shown)


def test_the_front_is_at_the_preferences_and_the_model_comes_back() -> None:
    model = make_model()
    optimizer = trained(model)
    x, y = next(Batches(9))
    before = [p.detach().clone() for p in model.parameters()]
    front = optimizer.front(lambda: task_losses(model(x), y))
    assert front.losses.shape == (K, 2)
    assert_same(front.preferences, optimizer.preferences)
    for k in range(K):
        with optimizer.at(optimizer.preferences[k]), torch.no_grad():
            torch.testing.assert_close(task_losses(model(x), y).double(), front.losses[k], rtol=1e-6, atol=1e-7)
    assert_same([p.detach() for p in model.parameters()], before)
    point = optimizer.points[0]
    for p in model.parameters():
        expected = torch.tensordot(point, optimizer.state[p]["vertices"].double(), 1)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_changes_of_the_shown_model_move_the_front_and_those_inside_of_at_are_told_of() -> None:
    model = make_model()
    optimizer = make(model, base=SGD(), lr=0.0, points=1)
    before = vertices(optimizer, model)
    with torch.no_grad():
        for p in model.parameters():
            p.data.add_(1.0)
    step(optimizer, model, Batches(), "closure")
    for old, new in zip(before, vertices(optimizer, model), strict=True):
        torch.testing.assert_close(new, old + 1.0)
    moved = vertices(optimizer, model)
    with pytest.warns(UserWarning, match="the changes are dropped"), optimizer.at([0.5, 0.5]):
        next(model.parameters()).data.zero_()
    step(optimizer, model, Batches(), "closure")
    assert_same(vertices(optimizer, model), moved)


def test_a_model_loaded_between_two_steps_is_the_new_centre() -> None:
    model, other = make_model(), make_model(seed=1)
    optimizer = make(model, base=SGD(), lr=0.0)
    model.load_state_dict(other.state_dict())
    step(optimizer, model, Batches(), "loop")
    for pair, p in zip(vertices(optimizer, model), other.parameters(), strict=True):
        torch.testing.assert_close(pair, torch.stack([p.detach()] * 2), rtol=1e-6, atol=1e-6)


def test_start_initialises_each_vertex() -> None:
    model = make_model()

    def start(vertex: int) -> None:
        for p in model.parameters():
            nn.init.constant_(p, float(vertex))

    optimizer = make(model, start=start)
    for pair in vertices(optimizer, model):
        assert (pair[0] == 0).all() and (pair[1] == 1).all()
    share = optimizer.points[0, 1]
    torch.testing.assert_close(next(model.parameters()).detach().double().mean(), share, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------- other forms of training
def test_a_bank_is_trained_as_the_loop_is() -> None:
    model = make_model()
    optimizer = make(model, ema=0.9)
    bank = SubproblemBank(make_model(), K)
    stacked = make(bank, stacked=True, ema=0.9)
    batches = Batches()
    for _ in range(5):
        drawn = [next(batches) for _ in range(K)]
        for k in optimizer.subproblems():
            x, y = drawn[k]
            optimizer.backward(task_losses(model(x), y))
        optimizer.step()
        xs, ys = (torch.stack(list(each)) for each in zip(*drawn, strict=True))
        stacked.backward(task_losses(bank(xs), ys))
        stacked.step()
    for one, other in zip(vertices(optimizer, model), vertices(stacked, bank), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    x, y = next(batches)
    for ema in (False, True):
        front = optimizer.front(lambda: task_losses(model(x), y), ema=ema)
        of_bank = stacked.front(lambda: task_losses(bank(x, shared=True), y), ema=ema)
        torch.testing.assert_close(front.losses, of_bank.losses, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="as many as the bank has models"):
        make(bank, stacked=True, points=3)
    with pytest.raises(ValueError, match="equal models in the bank"):
        make(bank, stacked=True)  # its slices are points of the step that comes next


def test_a_weighting_works_inside_of_each_point() -> None:
    """The gradient of a point is sum_t v_t g_t with UPGrad's weights v of the scalarized gradients times T."""
    model = make_model(torch.float64)
    optimizer = make(model, base=SGD(), lr=0.1, weighting="upgrad")
    before, points = vertices(optimizer, model), optimizer.points
    moved = [torch.zeros_like(pair) for pair in before]
    batches = Batches(dtype=torch.float64)
    for k in optimizer.subproblems():
        x, y = next(batches)
        losses = task_losses(model(x), y)
        parts = 2 * points[k] * losses
        grads = [torch.autograd.grad(part, list(model.parameters()), retain_graph=True) for part in parts]
        jacobian = torch.stack([torch.cat([grad.reshape(-1) for grad in of_task]) for of_task in grads])
        weights = UPGrad()(gram=jacobian @ jacobian.T).reshape(-1)
        for index, pair in enumerate(moved):
            direction = sum(weights[t] * grads[t][index] for t in range(2))
            pair += torch.stack([share * direction for share in points[k]]) * 2 / K
        optimizer.backward(losses)
    optimizer.step()
    assert optimizer.weights is not None and optimizer.weights.shape == (K, 2)
    for old, new, change in zip(before, vertices(optimizer, model), moved, strict=True):
        torch.testing.assert_close(new, old - 0.1 * change, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"scalarization": SmoothTchebycheff(mu=0.5)},
        {"max_norm": 0.1},
        {"base": "lion", "lr": 1e-3},
        {"points": 3},
    ],
    ids=lambda options: ", ".join(options),
)
def test_losses_fall_with_every_option(options: dict[str, Any]) -> None:
    model = make_model()
    optimizer = make(model, **options)
    x, y = next(Batches(9))
    first = optimizer.front(lambda: task_losses(model(x), y)).losses
    batches = Batches()
    for _ in range(60):
        step(optimizer, model, batches, "loop")
    last = optimizer.front(lambda: task_losses(model(x), y)).losses
    assert (last * optimizer.preferences).sum() < 0.8 * (first * optimizer.preferences).sum()
    if "max_norm" in options:
        assert optimizer.grad_norm is not None and optimizer.grad_norm.shape == (2,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_show_the_rounded_points(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimizer = make(model, base=SGD(), lr=1e-4)
    batches = Batches(dtype=dtype)
    for _ in range(3):
        step(optimizer, model, batches, "loop")
    for p in model.parameters():
        pair = optimizer.state[p]["vertices"]
        assert pair.dtype == torch.float32
        expected = torch.tensordot(optimizer.points[0], pair.double(), 1)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-2, atol=1e-3)


# ---------------------------------------------------------------------- bad steps
@pytest.mark.parametrize("points", [1, K])
def test_an_infinite_gradient_in_one_point_skips_the_step(points: int) -> None:
    model = make_model()
    optimizer = trained(model, points=points)
    before = vertices(optimizer, model)
    for k in optimizer.subproblems():
        x, y = next(Batches())
        optimizer.backward(task_losses(model(x), y) * (torch.inf if k == points - 1 else 1.0))
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step()
    assert_same(vertices(optimizer, model), before)
    assert optimizer.skipped_steps.tolist() == [1] * points
    step(optimizer, model, Batches(), "loop")
    assert not torch.equal(vertices(optimizer, model)[0], before[0])


def test_a_scaler_changes_nothing() -> None:
    model, same = make_model(torch.float64), make_model(torch.float64)
    optimizer, plain = make(model), make(same)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    ours, theirs = Batches(dtype=torch.float64), Batches(dtype=torch.float64)
    for _ in range(4):
        for _ in optimizer.subproblems():
            x, y = next(ours)
            optimizer.backward(task_losses(model(x), y), scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        step(plain, same, theirs, "loop")
    torch.testing.assert_close(vertices(optimizer, model), vertices(plain, same), rtol=1e-9, atol=1e-12)


def test_points_without_gradients_are_named() -> None:
    model = make_model()
    optimizer = make(model)
    for k in optimizer.subproblems():
        if k < 3:
            x, y = next(Batches())
            optimizer.backward(task_losses(model(x), y))
    with pytest.warns(UserWarning, match="points 3, 4 have no gradients: this step goes without them"):
        optimizer.step()


def test_a_gradient_is_used_once() -> None:
    model = make_model()
    optimizer = make(model, points=1)
    x, y = next(Batches())
    optimizer.backward(task_losses(model(x), y))
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="needs gradients"):
        optimizer.step()


# ---------------------------------------------------------------------- state
@pytest.mark.parametrize("options", [{}, {"points": 1}, {"weighting": "pcgrad"}, {"ema": 0.9, "warm_up": 7}], ids=str)
def test_resume_is_bitwise(options: dict[str, Any]) -> None:
    model = make_model()
    optimizer = trained(model, **options)
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    other = make_model(seed=1)
    resumed = make(other, **options, generator=torch.Generator().manual_seed(77))
    resumed.load_state_dict(saved)
    assert_same([p.detach() for p in other.parameters()], [p.detach() for p in model.parameters()])
    copied, optimizer_of_copy = copy.deepcopy((model, optimizer))
    for one, of in ((model, optimizer), (other, resumed), (copied, optimizer_of_copy)):
        batches = Batches(5)
        for _ in range(4):
            step(of, one, batches, "loop")
    assert_same(snapshot(resumed), snapshot(optimizer))
    assert_same(snapshot(optimizer_of_copy), snapshot(optimizer))


def test_a_refused_state_changes_nothing() -> None:
    model = make_model()
    optimizer = trained(model)
    before = snapshot(optimizer)
    state = optimizer.state_dict()
    for change in (
        lambda shared: shared["vertices"].pop("points"),
        lambda shared: shared["vertices"].update(points=torch.zeros(2, 2)),
        lambda shared: shared["vertices"].update(generator=torch.zeros(3)),
        lambda shared: shared.pop("vertices"),
    ):
        broken = copy.deepcopy(state)
        change(broken["param_groups"][0]["mt2o"])
        with pytest.raises((TypeError, ValueError)):
            optimizer.load_state_dict(broken)
        assert_same(snapshot(optimizer), before)
    rows = make(make_model(), front="rows", transfer=None, generator=None)
    with pytest.raises(ValueError, match="vertices"):
        rows.load_state_dict(state)
    with pytest.raises(ValueError, match="vertices"):
        optimizer.load_state_dict(rows.state_dict())


def test_parameters_may_come_later() -> None:
    model, late = make_model(), nn.Linear(2, 2)
    optimizer = trained(model)
    before = vertices(optimizer, model)
    optimizer.add_param_group({"params": list(late.parameters()), "lr": 0.0})
    torch.testing.assert_close(vertices(optimizer, model), before, rtol=1e-6, atol=1e-7)
    for _ in optimizer.subproblems():
        x, y = next(Batches())
        optimizer.backward(task_losses(late(model(x)), y))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[late.bias]["vertices"], torch.stack([late.bias.detach()] * 2))
    assert not torch.equal(vertices(optimizer, model)[0], before[0])


# ---------------------------------------------------------------------- running statistics
@pytest.mark.parametrize("front", ["rows", "vertices"])
def test_statistics_are_computed_for_each_subproblem_and_kept(front: str) -> None:
    model = make_model(norm=True)
    generator = torch.Generator().manual_seed(3) if front == "vertices" else None
    options = {"buffers": model.buffers(), "ema": 0.9, "front": front, "generator": generator}
    optimizer = trained(model, **options)
    loader = [next(Batches(seed)) for seed in range(20, 24)]
    running = [buffer.clone() for buffer in model.buffers()]
    for ema in (False, True):
        optimizer.update_buffers(lambda: update_bn(loader, model), ema=ema)
        for k in range(K):
            with optimizer.subproblem(k, ema=ema):
                kept = [buffer.clone() for buffer in model.buffers()]
                update_bn(loader, model)
                torch.testing.assert_close(kept, [buffer.clone() for buffer in model.buffers()])
    if front == "vertices":
        assert_same([buffer.clone() for buffer in model.buffers()], running)
    other = make_model(norm=True, seed=1)
    resumed = make(other, **{**options, "buffers": other.buffers()})
    resumed.load_state_dict(optimizer.state_dict())
    x, y = next(Batches(9))
    model.eval(), other.eval()
    for ema in (False, True):
        found = resumed.front(lambda: task_losses(other(x), y), ema=ema)
        assert_same(found.losses, optimizer.front(lambda: task_losses(model(x), y), ema=ema).losses)


def test_statistics_of_a_bank() -> None:
    bank = SubproblemBank(make_model(norm=True), K)
    optimizer = make(bank, stacked=True, ema=0.9, buffers=bank.buffers())
    x, _ = next(Batches(9))
    before = [buffer.clone() for buffer in bank.buffers()]

    def update() -> None:
        bank.train()
        bank(x, shared=True)

    optimizer.update_buffers(update)
    assert_same([buffer.clone() for buffer in bank.buffers()], before)
    with optimizer.all_subproblems(ema=True):
        assert not torch.equal(next(bank.buffers()), before[0])
    with pytest.raises(RuntimeError, match="buffers="):
        make(make_model()).update_buffers(update)


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"front": "edges"}, ValueError, "front"),
        ({"points": 0}, ValueError, "points"),
        ({"points": 2.5}, TypeError, "points"),
        ({"points": 300}, ValueError, "at most 256 points"),
        ({"points": 250, "weighting": "cagrad", "num_tasks": 5, "num_subproblems": 10}, ValueError, "1250"),
        ({"front": "rows", "points": 3, "generator": None}, ValueError, "no effect"),
        ({"front": "rows", "transfer": None}, ValueError, "generator"),
        ({"transfer": Mean(0.1)}, ValueError, "transfer= would have no effect"),
        ({"order": "adapt_then_combine", "moments": Moments.MIX}, ValueError, "order=, moments="),
        ({"num_tasks": 1}, ValueError, "at least 2 tasks"),
        ({"warm_up": -1}, ValueError, "warm_up"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make(make_model(), **options)


def test_calls_that_do_not_fit() -> None:
    model = make_model()
    rows = make(model, front="rows", transfer=None, generator=None)
    with pytest.raises(RuntimeError, match="vertices"), rows.at([0.5, 0.5]):
        pass
    model = make_model()
    optimizer = make(model)
    with pytest.raises(ValueError, match="sum"), optimizer.at([0.5, 0.6]):
        pass
    with pytest.raises(ValueError, match="running average"), optimizer.at([0.5, 0.5], ema=True):
        pass
    with optimizer.at([0.5, 0.5]), pytest.raises(RuntimeError, match="leave the context"):
        step(optimizer, model, Batches(), "closure")
    for wrong in ([1.0], "ab", None, [[0.5, 0.5]]):
        with pytest.raises(ValueError, match="expected a preference for at"), optimizer.at(wrong):  # type: ignore[arg-type]
            pass
    with pytest.raises(ValueError, match="transfer=False"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "transfer": False})


def gradients_at_a_corner(optimizer: MT2OFused, model: nn.Module, x: Tensor, y: Tensor) -> None:
    with optimizer.at([1.0, 0.0]):
        with pytest.raises(RuntimeError, match="leave the context"):
            optimizer.backward(task_losses(model(x), y))
        task_losses(model(x), y).sum().backward()


@pytest.mark.parametrize("points", [1, K])
def test_gradients_of_a_shown_point_are_refused_or_dropped_with_a_warning(points: int) -> None:
    """They are of a point that is in no step; those made before the context count."""
    model, same = make_model(), make_model()
    optimizer, plain = make(model, points=points), make(same, points=points)
    x, y = next(Batches())
    for k in optimizer.subproblems():
        optimizer.backward(task_losses(model(x), y))
        if k == 0:
            with pytest.warns(UserWarning, match="gradients were made inside"):
                gradients_at_a_corner(optimizer, model, x, y)
    optimizer.step()
    for _ in plain.subproblems():
        plain.backward(task_losses(same(x), y))
    plain.step()
    assert_same(vertices(optimizer, model), vertices(plain, same))


def test_what_it_says_of_itself() -> None:
    text = repr(make(make_model(), points=3))
    assert "front='vertices', points=3" in text and "transfer" not in text and "order" not in text


@pytest.mark.parametrize("weighting", [None, UPGrad])
def test_a_backward_at_another_point_is_refused(weighting: Any) -> None:
    """It would be taken for the gradient at the points of this step."""
    model = make_model()
    optimizer = make(model, points=1, ema=0.9, weighting=None if weighting is None else weighting())
    x, y = next(Batches())
    for context in (optimizer.at([0.2, 0.8]), optimizer.subproblem(0), optimizer.subproblem(0, ema=True)):
        with context, pytest.raises(RuntimeError, match="leave the context"):
            optimizer.backward(task_losses(model(x), y))
    assert all(p.grad is None for p in model.parameters())
    optimizer.backward(task_losses(model(x), y))
    optimizer.step()


def test_a_trainer_may_do_backward_itself_where_a_step_has_one_point() -> None:
    """Its closure returns the scalar that it has gone back from, of T tasks too."""
    model, same = make_model(), make_model()
    optimizer, plain = make(model, points=1), make(same, points=1)
    batches, others = Batches(), Batches()
    for _ in range(3):

        def closure() -> Tensor:
            x, y = next(batches)
            loss = (optimizer.points[0].float() * task_losses(model(x), y)).sum()
            optimizer.zero_grad()
            loss.backward()
            return loss

        value = optimizer.step(closure)
        assert value is not None and value.dim() == 0
        step(plain, same, others, "loop")
    torch.testing.assert_close(vertices(optimizer, model), vertices(plain, same), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("points", [1, K])
def test_vertices_that_somebody_has_written_to_count(points: int) -> None:
    """In the state they lie as they are: the points follow, instead of moving them back."""
    model = make_model()
    optimizer = make(model, base=SGD(), lr=0.0, points=points)
    for p in model.parameters():
        optimizer.state[p]["vertices"].copy_(torch.stack([torch.full_like(p, 1.0), torch.full_like(p, 3.0)]))
    wanted = vertices(optimizer, model)
    step(optimizer, model, Batches(), "loop")
    assert_same(vertices(optimizer, model), wanted)
    for p in model.parameters():
        optimizer.state[p]["vertices"] = optimizer.state[p]["vertices"] + 1.0
    step(optimizer, model, Batches(), "loop")
    assert_same(vertices(optimizer, model), [pair + 1.0 for pair in wanted])
    share = optimizer.points[0, 1].item()
    for p in model.parameters():
        torch.testing.assert_close(p.detach(), torch.full_like(p, 2.0 + 2.0 * share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_writes_the_points_once_for_each_buffer(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(dtype)
    optimizer = make(model)
    state, calls = optimizer.state_dict(), []
    spread = FlatVertices.spread
    monkeypatch.setattr(FlatVertices, "spread", lambda self: (calls.append(self), spread(self)))
    optimizer.load_state_dict(state)
    assert len(calls) == 2  # with the vertices, and with the points of the dict


def test_what_needs_the_same_points_after_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="without feedback"):
        make(make_model(), weighting="famo")
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        make(make_model(), generator="cpu")
