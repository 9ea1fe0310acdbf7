"""What every torch.optim.Optimizer does, ours too: closures, hooks, groups, gradients, versions."""

from __future__ import annotations

import importlib.resources
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mt2o_ext import MT2OFused, SubproblemBank, _native
from mt2o_ext.base import AdamW
from mt2o_ext.transfer import Hat
from support.optim.problems import (
    Batches,
    Single,
    assert_same,
    make_model,
    parameters,
    rows,
    seeded,
    set_gradients,
    several,
    task_losses,
    train,
)


# ---------------------------------------------------------------------- closure, hooks
def test_closure_runs_under_grad_mode_once_per_subproblem_and_losses_are_returned(front: str) -> None:
    model = make_model()
    optimizer = several(model, front=front)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        x, y = next(batches)
        seen.append(task_losses(model(x), y))
        return seen[-1]

    batches = Batches()
    with torch.no_grad():
        losses = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert losses is not None and losses.dtype == torch.float64 and not losses.requires_grad
    assert_same(losses, torch.stack(seen).detach().double())


def test_step_hooks_run_once_local_and_global(single: Single) -> None:
    calls: list[str] = []
    p = parameters(3)
    optimizer = single(p)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    try:
        set_gradients(p, 0)
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global pre", "pre", "post", "global post"]


def test_state_dict_hooks_see_all_of_the_dict(front: str) -> None:
    model = make_model()
    optimizer = several(model, front=front)
    train(optimizer, model, Batches(), 1)
    seen: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, saved: seen.append("mt2o" in saved["param_groups"][0]))
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(
        lambda _, loaded: seen.append(loaded["param_groups"][0]["mt2o"]["steps"])
    )
    optimizer.register_load_state_dict_post_hook(lambda self: seen.append(len(self.state)))
    optimizer.load_state_dict(saved)
    assert seen == ["saving", True, 0, 4]


def test_a_load_hook_may_change_the_dict(single: Single) -> None:
    p = parameters(3)
    optimizer = single(p)
    set_gradients(p, 0)
    optimizer.step()
    saved = optimizer.state_dict()

    def double(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
        state = {0: {**loaded["state"][0], "exp_avg": 2 * loaded["state"][0]["exp_avg"]}}
        return {**loaded, "state": state}

    optimizer.register_load_state_dict_pre_hook(double)
    optimizer.load_state_dict(saved)
    assert_same(optimizer.state[p[0]]["exp_avg"].clone(), 2 * saved["state"][0]["exp_avg"])


# ---------------------------------------------------------------------- groups
def test_an_empty_group_is_legal(single: Single) -> None:
    p, q = parameters(3, 4)
    optimizer = single([{"params": []}, {"params": [p]}, {"params": []}, {"params": [q], "lr": 0.5}])
    set_gradients([p, q], 0)
    optimizer.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 1, 0, 1]
    assert optimizer.state[p]["step"] == 1


def test_only_empty_groups_step_without_effect(single: Single) -> None:
    optimizer = single([{"params": []}])
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("steps", [0, 3])
def test_add_param_group_keeps_state(steps: int, single: Single) -> None:
    first, second = parameters(5, 18)
    others = [nn.Parameter(first.detach().clone()), nn.Parameter(second.detach().clone())]
    ours, theirs = single([first]), torch.optim.AdamW([others[0]], lr=1e-2)
    for step in range(steps + 4):
        if step == steps:
            ours.add_param_group({"params": [second], "lr": 0.1})
            theirs.add_param_group({"params": [others[1]], "lr": 0.1})
        set_gradients([first, second], step)
        set_gradients(others, step)
        ours.step()
        theirs.step()
    torch.testing.assert_close([first, second], others, rtol=1e-6, atol=1e-6)
    assert ours.state[first]["step"] == steps + 4
    assert ours.state[second]["step"] == 4


@pytest.mark.filterwarnings("ignore:no loss has a gradient")
def test_add_param_group_keeps_the_gradients_and_rows_of_all_subproblems(front: str) -> None:
    model, late = make_model(), make_model()
    extra = nn.Parameter(torch.ones(3))
    options = {"num_tasks": 2, "num_subproblems": 3, "lr": 1e-2, "transfer": None, "ema": 0.9, "front": front}
    before = MT2OFused([*late.parameters(), extra], **seeded(**options))
    early = several(model, ema=0.9, front=front)
    for optimizer, one in ((early, model), (before, late)):
        train(optimizer, one, Batches(), 3)
        optimizer.zero_grad()
        batches = Batches(5)
        for _ in optimizer.subproblems():
            x, y = next(batches)
            optimizer.backward(task_losses(one(x), y))
    early.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    early.step()
    before.step()
    ours, theirs = rows(early, model), rows(before, late)
    assert_same(ours, theirs)


def test_named_parameters_keep_their_names(single: Single) -> None:
    model = make_model()
    optimizer = single(model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    set_gradients(list(model.parameters()), 0)
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == names
    optimizer.load_state_dict(saved)


def test_repr_shows_options_and_defaults(front: str) -> None:
    text = repr(MT2OFused(parameters(2), num_tasks=2, num_subproblems=5, ema=0.98, front=front))
    for part in (
        "num_tasks=2",
        "num_subproblems=5",
        f"front='{front}'",
        "transfer=Spectral, order=consensus" if front == "rows" else "points=5, concentration=1.0",
        "Linear",
        "ema=0.98",
        "lr: 0.001",
        "betas: (0.9, 0.999)",
    ):
        assert part in text


# ---------------------------------------------------------------------- gradients
@pytest.mark.filterwarnings("ignore:no loss has a gradient")
def test_no_gradient_no_state_and_no_step_until_it_appears(single: Single) -> None:
    p, q = parameters(5, 6)
    optimizer = single([p, q])
    before = q.detach().clone()
    set_gradients([p], 0)
    optimizer.step()
    assert q not in optimizer.state
    assert_same(q.detach(), before)
    set_gradients([p, q], 1)
    optimizer.step()
    assert (optimizer.state[p]["step"], optimizer.state[q]["step"]) == (2, 1)
    other = nn.Parameter(before)
    set_gradients([nn.Parameter(p.detach()), other], 1)
    other.grad = q.grad
    torch.optim.AdamW([other], lr=1e-2).step()
    torch.testing.assert_close(q, other)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("num_subproblems", [1, 3])
def test_zero_grad(set_to_none: bool, num_subproblems: int, front: str) -> None:
    model = make_model()
    optimizer = several(model, num_subproblems=num_subproblems, front=front)
    for _ in optimizer.subproblems():
        optimizer.backward(task_losses(model(x := torch.randn(4, 7)), x[:, 0]))
    optimizer.zero_grad(set_to_none)
    for p in model.parameters():
        if set_to_none or num_subproblems > 1:
            assert p.grad is None
        else:
            assert p.grad is not None and not p.grad.any()
    if set_to_none:
        with pytest.raises(RuntimeError, match="needs gradients"):
            optimizer.step()


def test_gradients_stay_ordinary_tensors(single: Single) -> None:
    p = parameters(5)
    optimizer = single(p)
    set_gradients(p, 0)
    grad = p[0].grad
    optimizer.step()
    assert p[0].grad is grad


# ---------------------------------------------------------------------- determinism, versions
@pytest.mark.skipif(_native.C is None, reason="torch's own kernels, the reference's, depend on the number of threads")
@pytest.mark.parametrize("stacked", [False, True])
def test_bits_do_not_depend_on_the_number_of_threads(stacked: bool, front: str) -> None:
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            p = parameters(5 * 30000 if stacked else 30000, 17)
            params = [nn.Parameter(q.detach().reshape(5, -1)) for q in p[:1]] if stacked else p
            if stacked and front == "vertices":  # begins with equal models
                params[0].data.copy_(params[0].data[:1].expand_as(params[0]))
            options = {"num_tasks": 1, "transfer": Hat(every=1)} if front == "rows" else {"num_tasks": 2}
            optimizer = MT2OFused(params, num_subproblems=5, stacked=stacked, ema=0.9, **seeded(front=front, **options))
            for step in range(3):
                if stacked:
                    set_gradients(params, step)
                else:
                    for k in optimizer.subproblems():
                        set_gradients(params, 10 * step + k)
                optimizer.step()
            results.append(optimizer.state_dict())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("num_subproblems", [1, 3])
def test_backward_through_overwritten_parameters_raises(num_subproblems: int, front: str) -> None:
    model = make_model()
    optimizer = several(model, num_subproblems=num_subproblems, front=front)
    versions = [p._version for p in model.parameters()]
    for _ in optimizer.subproblems():
        loss = task_losses(model(x := torch.randn(4, 7)), x[:, 0])
        optimizer.backward(loss, retain_graph=True)
    kept = task_losses(model(x := torch.randn(4, 7)), x[:, 0]).sum()
    optimizer.step()
    assert all(p._version > old for p, old in zip(model.parameters(), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_backward_of_another_subproblem_raises(front: str) -> None:
    model = make_model()
    optimizer = several(model, front=front)
    losses = [task_losses(model(x := torch.randn(4, 7)), x[:, 0]).sum() for _ in optimizer.subproblems()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.stack(losses).sum().backward()


def test_the_package_is_typed() -> None:
    assert importlib.resources.files("mt2o_ext").joinpath("py.typed").is_file()
    assert issubclass(MT2OFused, torch.optim.Optimizer)


def test_learning_rate_of_zero_changes_nothing_but_state(single: Single) -> None:
    p = parameters(9)
    before = p[0].detach().clone()
    optimizer = single(p, lr=0.0, base=AdamW())
    set_gradients(p, 0)
    optimizer.step()
    assert_same(p[0].detach(), before)
    assert math.isfinite(optimizer.state[p[0]]["exp_avg_sq"].sum().item())


def test_bank_parameters_have_state_of_all_copies() -> None:
    bank = SubproblemBank(make_model(), 3)
    optimizer = MT2OFused(bank.parameters(), num_tasks=2, num_subproblems=3, stacked=True, transfer=None)
    x = torch.randn(3, 8, 7)
    optimizer.backward(task_losses(bank(x), x[..., 0]))
    optimizer.step()
    for p in bank.parameters():
        assert optimizer.state[p]["exp_avg"].shape == p.shape
        assert_same(optimizer.state[p]["step"].clone(), torch.ones(3))
        assert "subproblems" not in optimizer.state[p]
