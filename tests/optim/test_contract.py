"""What every torch.optim.Optimizer does, ours too: groups, gradients, schedulers, hooks, replaced parameters, versions."""

from __future__ import annotations

import importlib.resources
import math
import warnings
from typing import Any

import pytest
import torch
from problems import TWINS, Batches, assert_same, make_model, rows, set_gradients, task_losses, train
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mt2o_ext import SGD, AdamW, Hat, MT2OFused, SubproblemBank

lr_scheduler = torch.optim.lr_scheduler
Schedule = lr_scheduler.LRScheduler


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def single(params: Any, **options: Any) -> MT2OFused:
    return MT2OFused(params, **{"num_tasks": 1, "num_subproblems": 1, "lr": 1e-2, **options})


def several(model: nn.Module, **options: Any) -> MT2OFused:
    return MT2OFused(model.parameters(), **{"num_tasks": 2, "num_subproblems": 3, "lr": 1e-2, "transfer": None, **options})


# ---------------------------------------------------------------------- closure, hooks
def test_closure_runs_under_grad_mode_once_per_subproblem_and_losses_are_returned() -> None:
    model = make_model()
    optimizer = several(model)
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


def test_step_hooks_run_once_local_and_global() -> None:
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


def test_state_dict_hooks_see_all_of_the_dict() -> None:
    model = make_model()
    optimizer = several(model)
    train(optimizer, model, Batches(), 1)
    seen: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, saved: seen.append(sorted(map(str, saved["state"]))))
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded["state"]["mt2o"]["steps"]))
    optimizer.register_load_state_dict_post_hook(lambda self: seen.append(len(self.state)))
    optimizer.load_state_dict(saved)
    assert seen == ["saving", ["0", "1", "2", "3", "mt2o"], 0, 4]


def test_a_load_hook_may_change_the_dict() -> None:
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
def test_an_empty_group_is_legal() -> None:
    p, q = parameters(3, 4)
    optimizer = single([{"params": []}, {"params": [p]}, {"params": []}, {"params": [q], "lr": 0.5}])
    set_gradients([p, q], 0)
    optimizer.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 1, 0, 1]
    assert optimizer.state[p]["step"] == 1


def test_only_empty_groups_step_without_effect() -> None:
    optimizer = single([{"params": []}])
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("steps", [0, 3])
def test_add_param_group_keeps_state(steps: int) -> None:
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


def test_add_param_group_keeps_the_gradients_and_rows_of_all_subproblems() -> None:
    model, late = make_model(), make_model()
    extra = nn.Parameter(torch.ones(3))
    before = MT2OFused(
        [*late.parameters(), extra], num_tasks=2, num_subproblems=3, lr=1e-2, transfer=None, ema=0.9
    )
    early = several(model, ema=0.9)
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


def test_named_parameters_keep_their_names() -> None:
    model = make_model()
    optimizer = single(model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    set_gradients(list(model.parameters()), 0)
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == names
    optimizer.load_state_dict(saved)


def test_repr_shows_options_and_defaults() -> None:
    text = repr(MT2OFused(parameters(2), num_tasks=2, num_subproblems=5, ema=0.98))
    for part in ("num_tasks=2", "num_subproblems=5", "Spectral", "Linear", "ema=0.98", "lr: 0.001", "betas: (0.9, 0.999)"):
        assert part in text


# ---------------------------------------------------------------------- gradients
def test_no_gradient_no_state_and_no_step_until_it_appears() -> None:
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
def test_zero_grad(set_to_none: bool, num_subproblems: int) -> None:
    model = make_model()
    optimizer = several(model, num_subproblems=num_subproblems)
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


def test_gradients_stay_ordinary_tensors() -> None:
    p = parameters(5)
    optimizer = single(p)
    set_gradients(p, 0)
    grad = p[0].grad
    optimizer.step()
    assert p[0].grad is grad


# ---------------------------------------------------------------------- schedulers
SCHEDULES: dict[str, Any] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, step_size_up=2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.ConstantLR(o)]),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_schedulers_without_a_warning(name: str, base: str) -> None:
    ours, theirs = parameters(20), parameters(20)
    optimizers = [TWINS[base].ours(ours), TWINS[base].torch(theirs)]
    with warnings.catch_warnings():
        if name == "sequential":  # torch calls a deprecated form of its own step()
            warnings.filterwarnings("ignore", category=UserWarning, message="The epoch parameter")
        schedulers = [SCHEDULES[name](optimizer) for optimizer in optimizers]
        for step in range(6):
            for p, optimizer, scheduler in zip((ours, theirs), optimizers, schedulers, strict=True):
                set_gradients(p, step)
                optimizer.step()
                scheduler.step(*([1.0] if name == "plateau" else []))
    first, second = (optimizer.param_groups[0] for optimizer in optimizers)
    assert first["lr"] == second["lr"] and first.get("initial_lr") == second.get("initial_lr")
    assert first.get("betas") == second.get("betas") and first.get("momentum") == second.get("momentum")
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


# ---------------------------------------------------------------------- parameters replaced, moved, tied
@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_replaced_data_is_what_gets_updated(base: str) -> None:
    ours, theirs = parameters(20, 5), parameters(20, 5)
    optimizers = [TWINS[base].ours(ours), TWINS[base].torch(theirs)]
    stale = ours[0].data
    for step in range(4):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            if step == 2:
                p[0].data = torch.linspace(-1, 1, 20)
                p[1].data.mul_(2)
            set_gradients(p, step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert stale.data_ptr() == ours[0].data_ptr()  # a view into the buffer again


def test_the_same_memory_in_another_order_is_a_replacement() -> None:
    p = nn.Parameter(torch.arange(9.0).reshape(3, 3))
    optimizer = single([p], base=SGD(), lr=1.0)
    p.data = p.data.T
    p.grad = torch.zeros(3, 3).index_fill_(0, torch.tensor([0]), 1.0)
    optimizer.step()
    assert_same(p.detach().contiguous(), torch.arange(9.0).reshape(3, 3).T - p.grad)


@pytest.mark.parametrize("num_subproblems", [1, 3])
@pytest.mark.parametrize(
    "path", [[torch.float32, torch.float64], [torch.float32, torch.bfloat16], [torch.bfloat16, torch.float32]], ids=str
)
def test_a_model_moved_to_another_dtype_keeps_rows_and_moments(num_subproblems: int, path: list[torch.dtype]) -> None:
    model = make_model(path[0])
    optimizer = several(model, num_subproblems=num_subproblems, ema=0.9)
    train(optimizer, model, Batches(dtype=path[0]), 3)
    before, moments = rows(optimizer, model), [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    model.to(path[1])
    train(optimizer, model, Batches(dtype=path[1]), 1)
    assert all(p.dtype == path[1] for p in model.parameters())
    for row, old_row in zip(rows(optimizer, model), before, strict=True):
        for p, old in zip(row, old_row, strict=True):
            assert 0 < (p.double() - old.double()).abs().max() < 0.05
    for p, old in zip(model.parameters(), moments, strict=True):
        state = optimizer.state[p]
        assert (state["step"] == 4).all()
        assert state["exp_avg"].dtype == (torch.float64 if path[1] == torch.float64 else torch.float32)
        torch.testing.assert_close(state["exp_avg"].double(), old.double(), rtol=0, atol=1.0)
        assert state["exp_avg"].abs().sum() > 0


def test_values_loaded_into_the_model_count() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(dtype)
        optimizer = several(model, base=SGD(), lr=0.0)
        train(optimizer, model, Batches(dtype=dtype), 1)
        new = make_model(dtype, seed=7)
        with optimizer.subproblem(1):
            model.load_state_dict(new.state_dict())
        model.load_state_dict(make_model(dtype, seed=8).state_dict())
        train(optimizer, model, Batches(dtype=dtype), 1)
        expected = [make_model(dtype, seed=8), new, make_model(dtype)]
        assert_same(rows(optimizer, model), [[p.detach() for p in one.parameters()] for one in expected])


def test_frozen_between_steps() -> None:
    model = make_model()
    optimizer = several(model)
    train(optimizer, model, Batches(), 2)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = rows(optimizer, model)
    train(optimizer, model, Batches(1), 2)
    for row, old_row in zip(rows(optimizer, model), before, strict=True):
        assert_same(row[0], old_row[0])
        assert not torch.equal(row[1], old_row[1])
    assert (optimizer.state[frozen]["step"] == 2).all()


def test_tied_weights_are_one_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    optimizer = single(model.parameters())
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert model[2].weight is model[0].weight
    assert len(optimizer.state) == 3


# ---------------------------------------------------------------------- determinism, versions
@pytest.mark.parametrize("stacked", [False, True])
def test_bits_do_not_depend_on_the_number_of_threads(stacked: bool) -> None:
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            p = parameters(5 * 30000 if stacked else 30000, 17)
            params = [nn.Parameter(q.detach().reshape(5, -1)) for q in p[:1]] if stacked else p
            optimizer = MT2OFused(params, num_tasks=1, num_subproblems=5, stacked=stacked, transfer=Hat(every=1), ema=0.9)
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
def test_backward_through_overwritten_parameters_raises(num_subproblems: int) -> None:
    model = make_model()
    optimizer = several(model, num_subproblems=num_subproblems)
    versions = [p._version for p in model.parameters()]
    for _ in optimizer.subproblems():
        loss = task_losses(model(x := torch.randn(4, 7)), x[:, 0])
        optimizer.backward(loss, retain_graph=True)
    kept = task_losses(model(x := torch.randn(4, 7)), x[:, 0]).sum()
    optimizer.step()
    assert all(p._version > old for p, old in zip(model.parameters(), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_backward_of_another_subproblem_raises() -> None:
    model = make_model()
    optimizer = several(model)
    losses = [task_losses(model(x := torch.randn(4, 7)), x[:, 0]).sum() for _ in optimizer.subproblems()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.stack(losses).sum().backward()


def test_the_package_is_typed() -> None:
    assert importlib.resources.files("mt2o_ext").joinpath("py.typed").is_file()
    assert issubclass(MT2OFused, torch.optim.Optimizer)


def test_learning_rate_of_zero_changes_nothing_but_state() -> None:
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
