"""WeightedFused: the step is the base rule on the weighted gradient; what each kind of weighting reads, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import WeightedFused
from mt2o_ext.base import SGD
from mt2o_ext.gradients import table
from mt2o_ext.weighting import (
    CAGrad,
    Every,
    GradVac,
    NashMTL,
    Needs,
    PerSegment,
    UPGrad,
    WeightingContext,
)
from support.optim.problems import TWINS, assert_same
from support.optim.towers import WEIGHTINGS, Towers, batch_of, run, values, weighted


def weighted_by_hand(model: Towers, batch: Tensor, weights: Tensor, heads: str) -> list[Tensor]:
    """The combined gradient of each parameter in float64; weights [T] or [S, T]."""
    parameters = list(model.parameters())
    grads = model.gradients(batch, parameters)
    shared = len(list(model.trunk.parameters()))
    table = weights if weights.dim() == 2 else weights.expand(shared, -1)
    result = []
    for segment in range(len(parameters)):
        if segment < shared:
            result.append(sum(w * g[segment].double() for w, g in zip(table[segment], grads, strict=True)))
        else:
            task = (segment - shared) // 2
            own = grads[task][segment].double()
            result.append(own if heads == "plain" else weights[task] * own)
    return result  # type: ignore[return-value]


@pytest.mark.parametrize("collect", ["sequential", "batched"])
@pytest.mark.parametrize("heads", ["plain", "weighted"])
@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if not name.startswith("rows")])
def test_the_step_is_the_base_rule_on_the_weighted_gradient(name: str, heads: str, collect: str) -> None:
    weighting = WEIGHTINGS[name]()
    if heads == "weighted" and weighting.per_segment:
        with pytest.raises(ValueError, match="one for each tensor"):
            WeightedFused(Towers().groups(), num_tasks=3, weighting=weighting, heads="weighted")
        return
    model = Towers()
    optimizer = WeightedFused(
        model.groups(), num_tasks=3, weighting=weighting, heads=heads, collect=collect, base=SGD(), lr=0.1
    )
    for seed in range(3):
        before, batch = values(model), batch_of(seed)
        expected_losses = torch.stack(model.losses(batch)).detach().double()
        copy = Towers()
        copy.load_state_dict(model.state_dict())
        losses = optimizer.step(lambda: model.losses(batch))  # noqa: B023
        assert losses is not None and losses.dtype == torch.float64
        torch.testing.assert_close(losses, expected_losses, rtol=1e-6, atol=0)
        weights = optimizer.weights
        assert weights is not None and weights.isfinite().all()
        grads = weighted_by_hand(copy, batch, weights[0], heads)
        for p, old, grad in zip(model.parameters(), before, grads, strict=True):
            torch.testing.assert_close(p.double(), old.double() - 0.1 * grad, rtol=1e-5, atol=1e-6)
    assert optimizer.skipped_steps.tolist() == [0]


@pytest.mark.parametrize("name", ["gram", "losses", "rows, memory"])
def test_weights_are_those_of_the_weighting_alone(name: str) -> None:
    model, weighting, alone = Towers(dtype=torch.float64), WEIGHTINGS[name](), WEIGHTINGS[name]()
    optimizer = weighted(model, weighting, preferences=[0.5, 0.3, 0.2])
    preferences = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for seed in range(3):
        batch = batch_of(seed, torch.float64)
        grads = model.gradients(batch, list(model.trunk.parameters()))
        rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
        losses = torch.stack(model.losses(batch)).detach()
        if Needs.ROWS in alone.needs:
            if seed == 0:
                alone.bind(1, 3, 4, "cpu")
            context = _context(preferences, losses, seed)
            changed = rows.unsqueeze(0).clone()
            alone.transform_([changed], context)
            rows = changed[0]
            expected = alone.weights(_context(preferences, losses, seed, rows @ rows.T))[0]
        else:
            expected = alone(rows @ rows.T, losses=losses, preferences=preferences)
        optimizer.step(lambda: model.losses(batch))  # noqa: B023
        torch.testing.assert_close(optimizer.weights[0], expected, rtol=1e-9, atol=1e-12)  # type: ignore[index]


def _context(preferences: Tensor, losses: Tensor, step: int, gram: Tensor | None = None) -> Any:
    return WeightingContext(
        preferences=preferences[None], losses=losses[None], gram=None if gram is None else gram[None], step=step
    )


# ---------------------------------------------------------------------- only what is needed
@pytest.mark.filterwarnings("ignore:no loss has a gradient")
def test_weightings_of_losses_run_no_gram_pass_and_keep_no_task_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("no weighting asked for products of gradients")

    monkeypatch.setattr(table, "gram_", never)
    for name in ("sum", "random", "losses", "epochs", "feedback"):
        model = Towers()
        optimizer = weighted(model, WEIGHTINGS[name]())
        run(optimizer, model, range(2))
        assert [flat.tasks.num_tasks for flat in optimizer._buffers.flats] == [1, 1]
    optimizer = weighted(Towers(), "cagrad")
    assert [flat.tasks.num_tasks for flat in optimizer._buffers.flats] == [3, 1]
    p = optimizer.param_groups[0]["params"][0]
    with pytest.raises(AssertionError, match="asked"):
        optimizer.step(lambda: [p.sum(), p.square().sum(), (3 * p).sum()])


def test_one_backward_through_the_trunk_where_losses_are_enough() -> None:
    for name, expected in (("losses", 1), ("gram", 3)):
        model = Towers()
        optimizer = weighted(model, WEIGHTINGS[name]())
        calls: list[int] = []
        model.trunk[0].weight.register_hook(lambda grad: calls.append(1))  # noqa: B023
        run(optimizer, model, range(2))
        assert len(calls) == 2 * expected


def test_old_weights_take_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, grams = Towers(), []
    optimizer = weighted(model, Every(NashMTL(), 3))
    gram_ = table.gram_
    monkeypatch.setattr(table, "gram_", lambda *a, **k: (grams.append(1), gram_(*a, **k)))
    calls: list[int] = []
    model.trunk[0].weight.register_hook(lambda grad: calls.append(1))
    seen = []
    for seed in range(6):
        run(optimizer, model, range(seed, seed + 1))
        seen.append((len(grams), len(calls), optimizer.weights))
    assert [(g, c) for g, c, _ in seen] == [(1, 3), (1, 4), (1, 5), (2, 8), (2, 9), (2, 10)]
    assert_same(seen[1][2], seen[0][2])
    assert not torch.equal(seen[3][2], seen[2][2])


def test_squares_alone_read_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    gram_ = table.gram_
    monkeypatch.setattr(table, "gram_", lambda *a, **k: (kinds.append(k.get("diagonal")), gram_(*a, **k)))
    model = Towers()
    run(weighted(model, WEIGHTINGS["squares"]()), model, range(1))
    assert kinds == [True]


# ---------------------------------------------------------------------- parameters of all kinds
@pytest.mark.filterwarnings("ignore:no loss has a gradient")
def test_frozen_unused_and_sparse_parameters() -> None:
    embedding = nn.Embedding(5, 7, sparse=True)
    model = Towers()
    unused, frozen = nn.Parameter(torch.ones(4)), model.trunk[0].bias.requires_grad_(False)
    optimizer = WeightedFused(
        [*model.trunk.parameters(), unused, embedding.weight], num_tasks=3, weighting=UPGrad(), lr=1e-2
    )
    before = frozen.detach().clone()
    rows = embedding.weight.detach().clone()
    for _ in range(2):
        optimizer.step(lambda: model.losses(embedding(torch.tensor([0, 2, 2]))))
    assert_same(frozen.detach(), before)
    assert unused not in optimizer.state and (unused == 1).all()
    moved = (embedding.weight.detach() != rows).any(1)
    assert moved[[0, 2]].all()
    assert optimizer.state[embedding.weight]["step"] == 2
    frozen.requires_grad_(True)
    optimizer.step(lambda: model.losses(batch_of(0)))
    assert optimizer.state[frozen]["step"] == 1


def test_two_dtypes_in_one_trunk() -> None:
    results = []
    for mixed in (False, True):
        model = Towers(dtype=torch.float64)
        if mixed:
            model.trunk[2].float()
        forward = model.trunk[2].forward

        def cast(x: Tensor, forward: Any = forward, mixed: bool = mixed) -> Tensor:
            return forward(x.float()).double() if mixed else forward(x)

        model.trunk[2].forward = cast  # type: ignore[method-assign]
        optimizer = weighted(model, PerSegment(GradVac()), base=SGD())
        run(optimizer, model, range(3), torch.float64)
        results.append([p.double() for p in values(model)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_several_heads_of_one_task_and_none_of_another() -> None:
    model = Towers()
    groups = model.groups()
    optimizer = WeightedFused(
        [groups[0], {**groups[1], "lr": 0.5}, {"params": list(model.heads[2].parameters()), "task": 2}],
        num_tasks=3, weighting="upgrad", base=SGD(), lr=0.1,
    )  # fmt: skip
    before = values(model)
    batch = batch_of(0)
    rows = model.gradients(batch, list(model.parameters()))
    run(optimizer, model, range(1))
    after = values(model)
    torch.testing.assert_close(after[4], before[4] - 0.5 * rows[0][4])
    assert_same(after[6], before[6])  # a head in no group
    torch.testing.assert_close(after[8], before[8] - 0.1 * rows[2][8])
    nobodys = set(model.heads[1].parameters())
    assert all((p.grad is None) != (p in nobodys) for p in model.parameters())


@pytest.mark.parametrize("base", ["sgd", "momentum", "adam", "amsgrad", "adamw", "lion"])
def test_one_task_is_torch(base: str) -> None:
    twin = TWINS[base]
    models = [Towers(1), Towers(1)]
    optimizer = WeightedFused(models[0].parameters(), num_tasks=1, base=twin.base, lr=twin.lr)
    other = twin.torch(models[1].parameters())
    for seed in range(10):
        run(optimizer, models[0], range(seed, seed + 1))
        other.zero_grad()
        models[1].losses(batch_of(seed))[0].backward()
        other.step()
    torch.testing.assert_close(values(models[0]), values(models[1]), rtol=1e-5, atol=1e-6)
    mine, theirs = (one.state_dict()["state"] for one in (optimizer, other))
    there = {key: sorted(name for name in state if state[name] is not None) for key, state in theirs.items() if state}
    own = {key: sorted(name for name in state if state[name] is not None) for key, state in mine.items()}
    assert {key: names for key, names in own.items() if names} == there  # ours shows a momentum that is None


def test_running_average() -> None:
    model = Towers()
    optimizer = weighted(model, CAGrad(), ema=0.5)
    average = values(model)
    for seed in range(3):
        run(optimizer, model, range(seed, seed + 1))
        average = [old + 0.5 * (new - old) for old, new in zip(average, values(model), strict=True)]
    torch.testing.assert_close([optimizer.state[p]["ema"] for p in model.parameters()], average)


def test_steady_state_makes_no_new_buffers() -> None:
    model = Towers()
    optimizer = weighted(model, CAGrad())

    def places() -> list[int]:
        buffers = [
            tensor
            for flat in optimizer._buffers.flats
            for tensor in (flat.theta, *flat.buffers.values(), *flat.tasks._grams.get(False, ()))
        ]
        return [tensor.data_ptr() for tensor in (*model.parameters(), *buffers)]

    run(optimizer, model, range(3))
    before = places()
    run(optimizer, model, range(3, 6))
    assert places() == before
