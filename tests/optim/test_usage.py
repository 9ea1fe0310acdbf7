"""The three ways to use MT2OFused, and what training loops do beside: accumulation, clipping, scaled losses."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, SubproblemBank, repeat, stack
from mt2o_ext.base import SGD
from mt2o_ext.transfer import TransferContext
from mt2o_ext.weighting import CAGrad
from support.optim.problems import Batches, assert_same, make_model, rows, seeded, snapshot, task_losses, train

K = 5


def make(model: nn.Module, **options: Any) -> MT2OFused:
    given = {"num_tasks": 2, "num_subproblems": K, "lr": 1e-2, "front": "rows"}
    return MT2OFused(model.parameters(), **seeded(**{**given, **options}))


def loader() -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 7, generator=generator)
    data = torch.utils.data.TensorDataset(x, x[:, 0] + x[:, 1])
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, generator=generator)


def test_closure_loop_and_bank_are_the_same_run(front: str) -> None:
    """Usages 1, 2 and 3: the same batches give the same models (1 and 2 bitwise; vmap sums in another order)."""
    models = [make_model() for _ in range(2)]
    bank = SubproblemBank(make_model(), K)
    closure, loop = (make(model, ema=0.9, front=front) for model in models)
    stacked = make(bank, ema=0.9, stacked=True, front=front)
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
        with stacked.all_subproblems(), bank.subproblem(k) as copy:
            torch.testing.assert_close(list(copy.parameters()), [nn.Parameter(p) for p in row], rtol=1e-3, atol=1e-4)
    evaluation = loader().dataset.tensors
    found = closure.front(lambda: task_losses(models[0](evaluation[0]), evaluation[1]), reference=[9.0, 9.0])
    with torch.no_grad():
        banked = stacked.front(lambda: task_losses(bank(evaluation[0], shared=True), evaluation[1]))
    torch.testing.assert_close(found.losses, banked.losses, rtol=1e-3, atol=1e-4)
    assert found.hypervolume() > 0
    averaged = stacked.front(lambda: task_losses(bank(evaluation[0], shared=True), evaluation[1]), ema=True)
    assert not torch.equal(averaged.losses, banked.losses)
    with closure.subproblem(found.choose([0.8, 0.2])):
        file = io.BytesIO()
        torch.save(models[0].state_dict(), file)
    single = io.BytesIO()
    torch.save(make_model().state_dict(), single)
    assert file.tell() == single.tell()


def test_losses_as_a_list_of_scalars(front: str) -> None:
    model, other = make_model(), make_model()
    first, second = make(model, front=front), make(other, front=front)
    batches = Batches()

    def as_list() -> list[Tensor]:
        x, y = next(batches)
        return list(task_losses(model(x), y))

    for _ in range(2):
        first.step(as_list)
    train(second, other, Batches(), 2)
    assert_same(snapshot(first), snapshot(second))


def test_accumulation_over_micro_batches(front: str) -> None:
    model, other = make_model(), make_model()
    whole, parts = make(model, base=SGD(), front=front), make(other, base=SGD(), front=front)
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
    inner = make(both, base=SGD(), front=front)
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


def test_losses_of_micro_batches_add_up() -> None:
    """As gradients do: the transfer rule and the weighting see the sums, and one infinity among them skips the step."""
    model = make_model()
    seen: list[Tensor] = []

    def rule(context: TransferContext) -> None:
        assert context.losses is not None
        seen.append(context.losses)

    optimizer = make(model, transfer=rule, scalarization=None, weighting=CAGrad())
    batches = Batches()
    for bad in (0.0, torch.inf):
        expected = torch.zeros(K, 2, dtype=torch.float64)
        for k in optimizer.subproblems():
            for part in range(3):
                x, y = next(batches)
                losses = task_losses(model(x), y) / 3
                if k == 1 and part == 0:
                    losses = losses + torch.tensor([bad, 0.0])
                optimizer.backward(losses)
                expected[k] += losses.detach()
        if bad:
            with pytest.warns(UserWarning, match="subproblem 1 was infinite or NaN"):
                optimizer.step()
        else:
            optimizer.step()
        torch.testing.assert_close(seen[-1], expected, rtol=1e-15, atol=0.0)
    assert optimizer.skipped_steps.tolist() == [0, 1, 0, 0, 0]


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
def test_scaled_losses_unscaled_by_hand(num_subproblems: int, front: str) -> None:
    model, other = make_model(), make_model()
    options: dict[str, Any] = {"num_subproblems": num_subproblems, "transfer": None, "front": front}
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


def test_one_subproblem_with_a_grad_scaler(front: str) -> None:
    model, other = make_model(), make_model()
    scaled, plain = (make(one, num_subproblems=1, front=front) for one in (model, other))
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
