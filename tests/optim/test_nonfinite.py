"""Infinite and NaN gradients or losses: the step of a subproblem, or of all, is skipped whole."""

from __future__ import annotations

import warnings

import pytest
import torch

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.gradients import table
from mt2o_ext.transfer import Hat, Mean, Moments, Spectral
from support.optim.problems import (
    Batches,
    assert_same,
    make_model,
    rows,
    set_gradients,
    several,
    snapshot,
    task_losses,
    train,
)

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize("skip", ["subproblem", "all"])
@pytest.mark.parametrize("transfer", ["none", "hat", "changes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nonfinite_skips_the_subproblem(value: float, where: str, skip: str, transfer: str, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    rules = {"none": None, "hat": Hat(every=1), "changes": Spectral(every=1, relative=True)}
    optimizer = several(model, num_subproblems=5, lr=0.05, ema=0.9, skip_nonfinite=skip, transfer=rules[transfer])
    train(optimizer, model, Batches(dtype=dtype), 2)
    before = {p: {key: value.clone() for key, value in state.items()} for p, state in optimizer.state.items()}
    batches = Batches(3, dtype)
    with pytest.warns(UserWarning, match="subproblem 2 was infinite or NaN"):  # noqa: PT031
        for k in optimizer.subproblems():
            x, y = next(batches)
            losses = task_losses(model(x), y)
            if k == 2 and where == "loss":
                losses = losses + torch.tensor([value, 0.0], dtype=dtype)
            optimizer.backward(losses)
            if k == 2 and where == "gradient":
                next(model.parameters()).grad[0, 3] = value  # type: ignore[index]
        optimizer.step()
    for p, state in before.items():
        for key, old in state.items():
            new = optimizer.state[p][key]
            for k in range(5):
                if k == 2 or skip == "all":
                    assert_same(new[k].clone(), old[k])
                elif key != "transfer_base":
                    assert not torch.equal(new[k], old[k]), (key, k)
    expected = torch.tensor([0, 0, 1, 0, 0]) if skip == "subproblem" else torch.ones(5, dtype=torch.int64)
    assert_same(optimizer.skipped_steps, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # warned once; and the way is clear again
        train(optimizer, model, Batches(4, dtype), 2)
        for k in optimizer.subproblems():
            set_gradients(list(model.parameters()), k)
            next(model.parameters()).grad[0, 0] = value  # type: ignore[index]
        middle = snapshot(optimizer)["parameters"]
        optimizer.step()
    assert_same(optimizer.skipped_steps, expected + 1)
    assert_same(snapshot(optimizer)["parameters"], middle)
    assert all(torch.isfinite(p).all() for row in rows(optimizer, model) for p in row)


@pytest.mark.parametrize("moments", [Moments.MIX, Moments.MIX_SQUARED])
def test_a_skipped_subproblem_keeps_its_moments_where_a_tensor_has_no_gradient(moments: Moments) -> None:
    """Moments are blended beside the fused step, which does not know of them: rows that it skips must be held."""
    model = make_model()
    optimizer = several(model, num_subproblems=5, transfer=Mean(0.5, every=1), moments=moments)
    train(optimizer, model, Batches(), 2)
    before = {p: {key: value.clone() for key, value in state.items()} for p, state in optimizer.state.items()}
    first, *_, last = model.parameters()
    optimizer.zero_grad()
    for k in optimizer.subproblems():
        set_gradients(list(model.parameters()), k)
        if k == 1:
            last.grad = None
        elif k == 3:
            first.grad[0, 0] = torch.nan  # type: ignore[index]
    with pytest.warns(UserWarning, match="subproblem 3 was infinite or NaN"):
        optimizer.step()
    for p, state in before.items():
        for key in ("exp_avg", "exp_avg_sq", "step", "subproblems"):
            for k in range(5):
                held = k == 3 or (k == 1 and p is last)
                assert torch.equal(optimizer.state[p][key][k], state[key][k]) == held, (key, k)


@pytest.mark.parametrize("looks", [True, False])
def test_gradients_are_looked_at_only_if_asked_for(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``skip_nonfinite=False`` saves the read, and lets an infinity through as torch.optim does; not one of a loss."""
    read: list[int] = []
    finite_ = table.finite_
    monkeypatch.setattr(table, "finite_", lambda *a, **k: (read.append(1), finite_(*a, **k)))
    for make in (
        lambda p: MT2OFused([p], num_tasks=1, num_subproblems=1, skip_nonfinite="subproblem" if looks else False),
        lambda p: WeightedFused([p], num_tasks=1, skip_nonfinite=looks),
    ):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = make(p)
        p.grad = torch.tensor([1.0, torch.inf, 1.0])
        if looks:
            with pytest.warns(UserWarning, match="infinite or NaN"):
                optimizer.step()
        else:
            optimizer.step()
        assert torch.equal(p, torch.ones(3)) == looks
        p.data.fill_(1.0)
        optimizer.state.clear()
        if not looks:
            with pytest.warns(UserWarning, match="infinite or NaN"):
                optimizer.step(lambda: [(p * torch.inf).sum()])  # noqa: B023
            assert torch.equal(p, torch.ones(3))
    assert bool(read) == looks
    with pytest.raises(TypeError, match="skip_nonfinite"):
        WeightedFused([torch.nn.Parameter(torch.ones(3))], num_tasks=1, skip_nonfinite="all")  # type: ignore[arg-type]
