"""One model that shows one of K subproblems: the ways to use it, contexts, loops that end early, buffers."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from problems import Batches, assert_same, make_model, rows, snapshot, task_losses, train
from torch import Tensor, nn

from mt2o_ext import SGD, MT2OFused, SubproblemBank, repeat, stack

K = 5


def make(model: nn.Module, **options: Any) -> MT2OFused:
    return MT2OFused(model.parameters(), **{"num_tasks": 2, "num_subproblems": K, "lr": 1e-2, **options})


def loader() -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 7, generator=generator)
    data = torch.utils.data.TensorDataset(x, x[:, 0] + x[:, 1])
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, generator=generator)


# ---------------------------------------------------------------------- the three usages
def test_closure_loop_and_bank_are_the_same_run() -> None:
    """Usages 1, 2 and 3: the same batches give the same models (1 and 2 bitwise; vmap sums in another order)."""
    models = [make_model() for _ in range(2)]
    bank = SubproblemBank(make_model(), K)
    closure, loop = (make(model, ema=0.9) for model in models)
    stacked = make(bank, ema=0.9, stacked=True)
    streams = [repeat(loader()) for _ in range(3)]
    for _ in range(12):
        first = closure.step(lambda: (batch := next(streams[0]), task_losses(models[0](batch[0]), batch[1]))[1])
        for _ in loop.subproblems():
            x, y = next(streams[1])
            loop.backward(task_losses(models[1](x), y))
        loop.step()
        loop.zero_grad()
        x, y = stack(next(streams[2]) for _ in range(K))
        losses = task_losses(bank(x), y)
        stacked.backward(losses)
        stacked.step()
        stacked.zero_grad()
        torch.testing.assert_close(losses.detach().double(), first, rtol=1e-4, atol=1e-5)
    assert_same(snapshot(loop), snapshot(closure))
    for k, row in enumerate(rows(closure, models[0])):
        with bank.subproblem(k) as copy:
            torch.testing.assert_close(list(copy.parameters()), [nn.Parameter(p) for p in row], rtol=1e-3, atol=1e-4)
    evaluation = loader().dataset.tensors
    front = closure.front(lambda: task_losses(models[0](evaluation[0]), evaluation[1]), reference=[9.0, 9.0])
    with torch.no_grad():
        banked = stacked.front(lambda: task_losses(bank(evaluation[0], shared=True), evaluation[1]))
    torch.testing.assert_close(front.losses, banked.losses, rtol=1e-3, atol=1e-4)
    assert front.hypervolume() > 0
    averaged = stacked.front(lambda: task_losses(bank(evaluation[0], shared=True), evaluation[1]), ema=True)
    assert not torch.equal(averaged.losses, banked.losses)
    with closure.subproblem(front.choose([0.8, 0.2])):
        file = io.BytesIO()
        torch.save(models[0].state_dict(), file)
    single = io.BytesIO()
    torch.save(make_model().state_dict(), single)
    assert file.tell() == single.tell()


def test_losses_as_a_list_of_scalars() -> None:
    model, other = make_model(), make_model()
    first, second = make(model), make(other)
    batches = Batches()

    def as_list() -> list[Tensor]:
        x, y = next(batches)
        return list(task_losses(model(x), y))

    for _ in range(2):
        first.step(as_list)
    train(second, other, Batches(), 2)
    assert_same(snapshot(first), snapshot(second))


def test_accumulation_over_micro_batches() -> None:
    model, other = make_model(), make_model()
    whole, parts = make(model, base=SGD()), make(other, base=SGD())
    batches = Batches()
    for _ in range(3):
        drawn = [next(batches) for _ in range(K)]
        for k in whole.subproblems():
            whole.backward(task_losses(model(drawn[k][0]), drawn[k][1]))
        for half in (slice(0, 8), slice(8, 16)):
            for k in parts.subproblems():
                parts.backward(task_losses(other(drawn[k][0][half]), drawn[k][1][half]) / 2)
        for optimizer in (whole, parts):
            optimizer.step()
            optimizer.zero_grad()
    for row, other_row in zip(rows(whole, model), rows(parts, other), strict=True):
        torch.testing.assert_close(row, other_row, rtol=1e-5, atol=1e-6)
    both = make_model()
    inner = make(both, base=SGD())
    batches = Batches()
    for _ in range(3):
        drawn = [next(batches) for _ in range(K)]
        for k in inner.subproblems():
            for half in (slice(0, 8), slice(8, 16)):
                inner.backward(task_losses(both(drawn[k][0][half]), drawn[k][1][half]) / 2)
        inner.step()
        inner.zero_grad()
    for row, other_row in zip(rows(inner, both), rows(parts, other), strict=True):
        torch.testing.assert_close(row, other_row, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_for_each_subproblem() -> None:
    model = make_model()
    optimizer = make(model, base=SGD(), lr=1.0, transfer=None)
    before = rows(optimizer, model)
    batches = Batches()
    for _ in optimizer.subproblems():
        x, y = next(batches)
        optimizer.backward(100 * task_losses(model(x), y))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    optimizer.step()
    for row, old_row in zip(rows(optimizer, model), before, strict=True):
        moved = torch.cat([(p - old).flatten() for p, old in zip(row, old_row, strict=True)])
        assert moved.norm().item() == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("num_subproblems", [1, K])
def test_scaled_losses_unscaled_by_hand(num_subproblems: int) -> None:
    model, other = make_model(), make_model()
    options: dict[str, Any] = {"num_subproblems": num_subproblems, "transfer": None}
    scaled, plain = make(model, **options), make(other, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = Batches()
    for _ in range(3):
        for _ in scaled.subproblems():
            x, y = next(batches)
            scaled.backward(task_losses(model(x), y), scaler=scaler)
            for p in model.parameters():
                assert p.grad is not None
                p.grad.div_(scaler.get_scale())
        scaled.step()
        scaled.zero_grad()
    train(plain, other, Batches(), 3)
    assert_same(snapshot(scaled), snapshot(plain))  # powers of two are exact


def test_one_subproblem_with_a_grad_scaler() -> None:
    model, other = make_model(), make_model()
    scaled, plain = make(model, num_subproblems=1), make(other, num_subproblems=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = Batches()
    for _ in range(3):
        x, y = next(batches)
        scaled.zero_grad()
        scaled.backward(task_losses(model(x), y), scaler=scaler)
        scaler.step(scaled)
        scaler.update()
    train(plain, other, Batches(), 3)
    assert_same(snapshot(scaled), snapshot(plain))


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


def test_a_subproblem_inside_a_loop_keeps_gradients_apart() -> None:
    model, other = make_model(), make_model()
    first, second = make(model), make(other)
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
def test_evaluating_between_backward_and_step_loses_no_gradient(num_subproblems: int) -> None:
    model, other = make_model(), make_model()
    first, second = (make(one, num_subproblems=num_subproblems, ema=0.9) for one in (model, other))
    evaluation = torch.ones(3, 7)
    gradients_of(first, model, Batches())
    for ema in (False, True):
        first.front(lambda: task_losses(model(evaluation), evaluation[:, 0]), ema=ema)
    first.step()
    gradients_of(second, other, Batches())
    second.step()
    assert_same(snapshot(first), snapshot(second))


@pytest.mark.parametrize("num_subproblems", [1, K])
def test_running_averages(num_subproblems: int) -> None:
    model = make_model()
    optimizer = make(model, num_subproblems=num_subproblems, ema=0.75)
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
            with pytest.raises(RuntimeError, match="running averages"), optimizer.subproblem(0):
                pass
    assert_same(rows(optimizer, model), expected)


def test_averages_of_a_bank() -> None:
    bank = SubproblemBank(make_model(), K)
    optimizer = make(bank, stacked=True, ema=0.5)
    x = torch.randn(K, 8, 7)
    for _ in range(2):
        optimizer.step(lambda: task_losses(bank(x), x[..., 0]))
    before = [p.detach().clone() for p in bank.parameters()]
    with optimizer.averaged():
        for p, old in zip(bank.parameters(), before, strict=True):
            assert not torch.equal(p, old)
            assert_same(p.detach(), optimizer.state[p]["ema"].clone())
        with pytest.raises(RuntimeError, match="running averages"):
            optimizer.step(lambda: task_losses(bank(x), x[..., 0]))
    assert_same([p.detach() for p in bank.parameters()], before)
    optimizer.zero_grad()
    optimizer.step(lambda: task_losses(bank(x), x[..., 0]))


def test_contexts_under_inference_mode() -> None:
    model = make_model()
    optimizer = make(model)
    train(optimizer, model, Batches(), 1)
    x = torch.ones(2, 7)
    with torch.inference_mode():
        front = optimizer.front(lambda: task_losses(model(x), x[:, 0]))
    assert front.losses.shape == (K, 2)
    train(optimizer, model, Batches(), 1)


# ---------------------------------------------------------------------- buffers
def test_every_subproblem_has_its_own_running_statistics() -> None:
    model = make_model(norm=True)
    optimizer = make(model, transfer=None, buffers=model.buffers())
    singles = [make_model(norm=True) for _ in range(K)]
    alone = [
        MT2OFused(single.parameters(), num_tasks=2, num_subproblems=1, lr=1e-2, preferences=optimizer.preferences[k : k + 1])
        for k, single in enumerate(singles)
    ]
    bank = SubproblemBank(make_model(norm=True), K)
    stacked = make(bank, transfer=None, stacked=True)
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
