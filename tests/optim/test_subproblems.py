"""One model that shows one of K subproblems: loops that end early, contexts, running averages, buffers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import MT2OFused, ParetoFront, SubproblemBank, stack
from mt2o_ext.base import SGD
from support.optim.problems import Batches, assert_same, make_model, rows, seeded, snapshot, task_losses, train

K = 5


def make(model: nn.Module, **options: Any) -> MT2OFused:
    given = {"num_tasks": 2, "num_subproblems": K, "lr": 1e-2, "front": "rows"}
    return MT2OFused(model.parameters(), **seeded(**{**given, **options}))


# ---------------------------------------------------------------------- loops
def gradients_of(optimizer: MT2OFused, model: nn.Module, batches: Batches) -> None:
    for _ in optimizer.subproblems():
        x, y = next(batches)
        optimizer.backward(task_losses(model(x), y))


def test_a_loop_left_early_updates_what_was_done() -> None:
    model = make_model()
    optimizer = make(model, transfer=None)
    batches = Batches()
    for k in optimizer.subproblems():
        x, y = next(batches)
        optimizer.backward(task_losses(model(x), y))
        if k == 2:
            break
    weight = next(model.parameters())
    assert weight.data_ptr() == optimizer.state[weight]["subproblems"].data_ptr()  # subproblem 0 again
    with pytest.warns(UserWarning, match="subproblems 3, 4 have no gradients"):
        optimizer.step()
    assert_same(optimizer.state[weight]["step"].clone(), torch.tensor([1.0, 1, 1, 0, 0]))


def test_nested_loops_come_back() -> None:
    model = make_model()
    optimizer = make(model)
    with torch.no_grad():
        for k in optimizer.subproblems():
            next(model.parameters()).fill_(k)
    seen = []
    for _ in optimizer.subproblems():
        for j in optimizer.subproblems():
            seen.append((j, next(model.parameters())[0, 0].item()))
        with optimizer.subproblem(3):
            assert next(model.parameters())[0, 0] == 3
        seen.append((-1, next(model.parameters())[0, 0].item()))
    assert seen == [pair for k in range(K) for pair in [*((j, float(j)) for j in range(K)), (-1, float(k))]]


def test_a_subproblem_inside_a_loop_keeps_gradients_apart(front: str) -> None:
    model, other = make_model(), make_model()
    first, second = make(model, front=front), make(other, front=front)
    batches = Batches()
    for k in first.subproblems():
        x, y = next(batches)
        first.backward(task_losses(model(x), y))
        with first.subproblem((k + 1) % K), torch.no_grad():
            model(x)
    gradients_of(second, other, Batches())
    first.step()
    second.step()
    assert_same(snapshot(first), snapshot(second))


# ---------------------------------------------------------------------- contexts
def test_a_subproblem_is_one_model_and_changes_are_kept() -> None:
    model = make_model()
    optimizer = make(model, transfer=None)
    train(optimizer, model, Batches(), 2)
    expected = rows(optimizer, model)
    for k in (0, 3):
        with optimizer.subproblem(k):
            for p in model.parameters():
                assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
                with torch.no_grad():
                    p.add_(1)
        expected[k] = [p + 1 for p in expected[k]]
    assert_same(rows(optimizer, model), expected)
    assert_same([p.detach() for p in model.parameters()], expected[0])


def test_nested_contexts_give_back_models_of_their_own() -> None:
    model = make_model()
    optimizer = make(model, transfer=None)
    train(optimizer, model, Batches(), 2)
    expected = rows(optimizer, model)
    with optimizer.subproblem(1):
        with optimizer.subproblem(2):
            assert_same([p.detach() for p in model.parameters()], expected[2])
        assert_same([p.detach() for p in model.parameters()], expected[1])
        assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in model.parameters())
    assert_same([p.detach() for p in model.parameters()], expected[0])


@pytest.mark.parametrize("num_subproblems", [1, K])
def test_evaluating_between_backward_and_step_loses_no_gradient(num_subproblems: int, front: str) -> None:
    model, other = make_model(), make_model()
    first, second = (make(one, num_subproblems=num_subproblems, ema=0.9, front=front) for one in (model, other))
    evaluation = torch.ones(3, 7)
    gradients_of(first, model, Batches())
    for ema in (False, True):
        first.front(lambda: task_losses(model(evaluation), evaluation[:, 0]), ema=ema)
    first.step()
    gradients_of(second, other, Batches())
    second.step()
    assert_same(snapshot(first), snapshot(second))


@pytest.mark.parametrize("num_subproblems", [1, K])
@pytest.mark.filterwarnings("ignore:parameters were changed inside of at")
def test_running_averages(num_subproblems: int, front: str) -> None:
    model = make_model()
    optimizer = make(model, num_subproblems=num_subproblems, ema=0.75, front=front)
    batches = Batches()
    average = rows(optimizer, model)
    for _ in range(3):
        train(optimizer, model, batches, 1)
        for old_row, row in zip(average, rows(optimizer, model), strict=True):
            for old, new in zip(old_row, row, strict=True):
                old.add_(new - old, alpha=0.25)
    expected = rows(optimizer, model)
    for k in range(num_subproblems):
        with optimizer.subproblem(k, ema=True):
            torch.testing.assert_close([p.detach() for p in model.parameters()], average[k])
            with torch.no_grad():
                next(model.parameters()).zero_()  # dropped
            with pytest.raises(RuntimeError, match="running averages"):
                optimizer.step(lambda: task_losses(model(torch.ones(2, 7)), torch.ones(2)))
            if front == "rows":
                with pytest.raises(RuntimeError, match="running averages"), optimizer.subproblem(0):
                    pass
    assert_same(rows(optimizer, model), expected)


def test_averages_of_a_bank(front: str) -> None:
    bank = SubproblemBank(make_model(), K)
    optimizer = make(bank, stacked=True, ema=0.5, front=front)
    x = torch.randn(K, 8, 7)
    for _ in range(2):
        optimizer.step(lambda: task_losses(bank(x), x[..., 0]))
    before = [p.detach().clone() for p in bank.parameters()]
    with optimizer.all_subproblems(ema=True):
        for p, old in zip(bank.parameters(), before, strict=True):
            assert not torch.equal(p, old)
            average = optimizer.state[p]["ema"].clone()
            if front == "vertices":
                average = torch.tensordot(optimizer.preferences.float(), average, 1)
            torch.testing.assert_close(p.detach(), average)
        with pytest.raises(RuntimeError, match="running averages"):
            optimizer.step(lambda: task_losses(bank(x), x[..., 0]))
    assert_same([p.detach() for p in bank.parameters()], before)
    optimizer.zero_grad()
    optimizer.step(lambda: task_losses(bank(x), x[..., 0]))


@pytest.mark.parametrize("ema", [False, True])
def test_all_subproblems_of_a_bank_can_be_shown_and_saved(front: str, ema: bool) -> None:
    """The same models as those that an optimizer of one model shows one by one."""
    bank, model = SubproblemBank(make_model(), K), make_model()
    optimizer, one = make(bank, stacked=True, ema=0.5, front=front), make(model, ema=0.5, front=front)
    x = torch.randn(K, 8, 7, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.step(lambda: task_losses(bank(x), x[..., 0]))
        for k in one.subproblems():
            one.backward(task_losses(model(x[k]), x[k, :, 0]))
        one.step()
    before = [p.detach().clone() for p in bank.parameters()]
    with optimizer.all_subproblems(ema=ema):
        for k in range(K):
            with one.subproblem(k, ema=ema), bank.subproblem(k) as shown:
                for p, expected in zip(shown.parameters(), model.parameters(), strict=True):
                    torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-3, atol=1e-4)
        next(bank.parameters()).data.zero_()  # dropped
        with pytest.raises(RuntimeError, match="leave the context"):
            optimizer.step(lambda: task_losses(bank(x), x[..., 0]))
    assert_same([p.detach() for p in bank.parameters()], before)
    optimizer.step(lambda: task_losses(bank(x), x[..., 0]))
    with pytest.raises(RuntimeError, match="stacked=True"), one.all_subproblems():
        pass


def test_contexts_under_inference_mode(front: str) -> None:
    model = make_model()
    optimizer = make(model, front=front)
    train(optimizer, model, Batches(), 1)
    x = torch.ones(2, 7)
    with torch.inference_mode():
        front = optimizer.front(lambda: task_losses(model(x), x[:, 0]))
    assert front.losses.shape == (K, 2)
    train(optimizer, model, Batches(), 1)


# ---------------------------------------------------------------------- buffers
def test_every_subproblem_has_its_own_running_statistics() -> None:
    model = make_model(norm=True)
    # Adam would turn the rounding of the bias before the normalisation, whose gradient is zero, into steps.
    optimizer = make(model, base=SGD(), transfer=None, buffers=model.buffers())
    singles = [make_model(norm=True) for _ in range(K)]
    alone = [
        make(single, base=SGD(), num_subproblems=1, preferences=optimizer.preferences[k : k + 1])
        for k, single in enumerate(singles)
    ]
    bank = SubproblemBank(make_model(norm=True), K)
    stacked = make(bank, base=SGD(), transfer=None, stacked=True)
    batches = Batches()
    for _ in range(3):
        drawn = [next(batches) for _ in range(K)]
        for k in optimizer.subproblems():
            optimizer.backward(task_losses(model(drawn[k][0]), drawn[k][1]))
        optimizer.step()
        optimizer.zero_grad()
        for single, other, (x, y) in zip(singles, alone, drawn, strict=True):
            other.step(lambda: task_losses(single(x), y))  # noqa: B023
        x, y = stack(drawn)
        stacked.step(lambda: task_losses(bank(x), y))  # noqa: B023
    for k, single in enumerate(singles):
        with optimizer.subproblem(k):
            assert_same(dict(model.state_dict()), dict(single.state_dict()))
        with bank.subproblem(k) as copy:
            torch.testing.assert_close(dict(copy.named_buffers()), dict(single.named_buffers()), rtol=1e-3, atol=1e-4)


def test_shared_running_statistics_are_reported_once() -> None:
    model = make_model(norm=True)
    optimizer = make(model, transfer=None)
    with pytest.warns(UserWarning, match=r"buffers=model\.buffers\(\)"):
        train(optimizer, model, Batches(), 1)
    train(optimizer, model, Batches(), 1)
    model = make_model(norm=True).eval()
    train(make(model, transfer=None), model, Batches(), 1)


# ---------------------------------------------------------------------- fronts that keep more than losses
@pytest.mark.parametrize("front", ["rows", "vertices"])
@pytest.mark.parametrize("ema", [False, True])
def test_a_front_keeps_metrics_and_gives_back_models(ema: bool, front: str, tmp_path: Any) -> None:
    model = make_model(norm=True)
    frozen = model[3]
    frozen.requires_grad_(False)
    optimizer = make(model, ema=0.9, buffers=model.buffers(), front=front)
    train(optimizer, model, Batches(), 4)
    model.train()
    optimizer.update_buffers(lambda: model(next(Batches(3))[0]), ema=ema)
    model.eval()
    x, y = next(Batches(9))

    def evaluate() -> Any:
        output = model(x)
        return task_losses(output, y), {"largest": output.max(), "half": 0.5}

    found = optimizer.front(evaluate, ema=ema, model=model)
    assert found.metrics["largest"].shape == (K,) and found.metrics["half"].tolist() == [0.5] * K
    found.save(tmp_path / "front.pt")
    loaded = ParetoFront.load(tmp_path / "front.pt")
    for k in range(K):
        one = loaded.model(k, make_model(norm=True, seed=1)).eval()
        with torch.no_grad():
            assert_same(task_losses(one(x), y).double(), found.losses[k])
    first, last = loaded.states[0], loaded.states[K - 1]
    assert first["3.weight"].data_ptr() == last["3.weight"].data_ptr()  # the frozen layer is kept once
    assert first["0.weight"].data_ptr() != last["0.weight"].data_ptr()


def test_a_front_of_a_bank_gives_back_models(front: str) -> None:
    bank = SubproblemBank(make_model(), K)
    optimizer = make(bank, stacked=True, ema=0.9, front=front)
    x, y = next(Batches(9))
    optimizer.backward(task_losses(bank(x, shared=True), y))
    optimizer.step()
    found = optimizer.front(
        lambda: (task_losses(bank(x, shared=True), y), {"size": torch.ones(K)}), ema=True, model=bank
    )
    with torch.no_grad():
        losses = torch.stack([task_losses(found.model(k, make_model())(x), y) for k in range(K)])
    torch.testing.assert_close(losses.double(), found.losses)
    with pytest.raises(TypeError, match="SubproblemBank"):
        optimizer.front(lambda: task_losses(bank(x, shared=True), y), model=nn.ModuleList([bank]))


def test_metrics_have_the_same_names_each_time(front: str) -> None:
    model = make_model()
    optimizer = make(model, front=front)
    x, y = next(Batches(9))
    names = iter("abcde")
    with pytest.raises(ValueError, match="expected the metrics"):
        optimizer.front(lambda: (task_losses(model(x), y), {next(names): 1.0}))


def test_models_of_a_front_are_those_that_are_trained(front: str) -> None:
    model = make_model()
    optimizer = make(model, front=front)
    x, y = next(Batches(9))
    with pytest.raises(ValueError, match="pass the model that is trained"):
        optimizer.front(lambda: task_losses(model(x), y), model=make_model())
    compiled = torch.compile(model, backend="eager")
    found = optimizer.front(lambda: task_losses(model(x), y), model=compiled)
    with optimizer.subproblem(1):
        assert_same(found.model(1, make_model())[0].weight.detach(), model[0].weight.detach())


def test_a_front_keeps_states_of_its_own_model_only() -> None:
    model = make_model()
    optimizer = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=3, transfer=None)
    with pytest.raises(ValueError, match="a copy"):
        optimizer.front(lambda: torch.zeros(2), model=copy.deepcopy(model))
