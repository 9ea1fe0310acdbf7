"""Optimizers around optimizers: SAM, Lookahead, schedule-free, averaged models, schedulers of timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mt2o_ext import WeightedBackward
from support.clients.foreign import NOISE, library, timm_module
from support.clients.loops import LOOPS, LR, Loop, Net, assert_same, everything, loader, losses

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

ONE_MODEL = ["weighted", "heads", "weighting of losses", "one task", "one subproblem"]
Wrap = Callable[[torch.optim.Optimizer], Any]


class Theirs(Loop):
    """The same gradients in front of an optimizer of torch."""

    def __init__(self, name: str, rule: Any = torch.optim.AdamW) -> None:
        self.name, self.rule = name, rule
        super().__init__(Net())

    def make(self, **options: Any) -> torch.optim.Optimizer:
        model: Any = self.model
        weighting = "uw" if self.name == "weighting of losses" else "upgrad"
        groups: Any = list(model.parameters())
        if self.name == "heads":
            heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(model.heads)]
            groups = [{"params": list(model.trunk.parameters())}, *heads]
        self.weigh = WeightedBackward(groups, num_tasks=2, weighting=weighting)
        return self.rule(model.parameters(), **options)

    def backward(self, optimizer: Any, compute: Any) -> None:
        if self.name.startswith("one"):
            sum(compute()).backward()
        else:
            self.weigh(compute())


def ours_and_theirs(name: str) -> list[Loop]:
    return [LOOPS[name](Net()), Theirs(name)]


def train(loop: Loop, wrap: Wrap) -> Any:
    """Backward of ours, and all else of the wrapper."""
    wrapper = wrap(loop.optimizer)
    for x, y in loader():
        loop.backward(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        wrapper.step()
        wrapper.zero_grad()
    return wrapper


def assert_close(first: Loop, second: Loop, tolerance: float = 2e-5) -> None:
    assert_same(dict(first.model.state_dict()), dict(second.model.state_dict()), tolerance)
    assert not torch.equal(first.model.state_dict()["trunk.0.weight"], Net().state_dict()["trunk.0.weight"])


# ---------------------------------------------------------------- wrappers of the step
class Sharpness:
    """SAM as it is mostly written: up by ``p.data``, back by re-pointing ``p.data``."""

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float = 0.05) -> None:
        self.optimizer, self.rho = optimizer, rho
        self.old: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def up(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            self.old[p] = p.data.clone()
            p.add_(p.grad * (self.rho / norm))
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        for p, old in self.old.items():
            p.data = old
        self.optimizer.step()


@pytest.mark.parametrize("name", ["weighted", "heads", "one task", "one subproblem"])
def test_sam(name: str) -> None:
    ours, theirs = ours_and_theirs(name)
    for loop in (ours, theirs):
        sam = Sharpness(loop.optimizer)
        for x, y in loader():
            for move in (sam.up, sam.step):
                loop.backward(loop.optimizer, lambda x=x, y=y, m=loop.model: losses(m, x, y))
                move()
            loop.optimizer.zero_grad()
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ONE_MODEL)
def test_lookahead_of_timm(name: str) -> None:
    lookahead = timm_module("timm.optim.lookahead").Lookahead
    ours, theirs = ours_and_theirs(name)
    for loop in (ours, theirs):
        train(loop, lambda optimizer: lookahead(optimizer, alpha=0.5, k=3))
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ONE_MODEL)
def test_schedule_free(name: str) -> None:
    check_schedule_free(name, library("schedulefree").ScheduleFreeWrapper)


@pytest.mark.parametrize("name", ONE_MODEL)
def test_schedule_free_reference(name: str) -> None:
    check_schedule_free(name, library("schedulefree").ScheduleFreeWrapperReference)


def check_schedule_free(name: str, wrapped: Any) -> None:
    ours, theirs = LOOPS[name](Net(), base="sgd"), Theirs(name, torch.optim.SGD)  # AdamW of torch cannot be wrapped

    def wrap(optimizer: torch.optim.Optimizer) -> Any:
        wrapper = wrapped(optimizer, momentum=0.9)
        wrapper.train()
        return wrapper

    for loop in (ours, theirs):
        train(loop, wrap).eval()
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ONE_MODEL)
def test_gradients_are_there_after_the_step(name: str) -> None:
    """Until zero_grad, as in torch.optim: wrappers, loggers and callbacks look at them then."""
    loop = LOOPS[name](Net())
    x, y = next(iter(loader()))
    loop.backward(loop.optimizer, lambda: losses(loop.model, x, y))
    before = [p.grad.clone() for p in loop.model.parameters()]
    loop.optimizer.step()
    for p, gradient in zip(loop.model.parameters(), before, strict=True):
        assert p.grad is not None and torch.equal(p.grad, gradient)
    loop.optimizer.zero_grad()
    assert all(p.grad is None for p in loop.model.parameters())


# ---------------------------------------------------------------- averaged models
@pytest.mark.parametrize("name", LOOPS)
def test_averaged_models(name: str) -> None:
    """AveragedModel reads the parameters, and leaves the run as it is."""
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    average = AveragedModel(loop.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    by_hand = {key: value.clone() for key, value in twin.model.named_parameters()}
    for index, (x, y) in enumerate(loader()):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        average.update_parameters(loop.model)
        twin.step(twin.optimizer, lambda x=x, y=y: losses(twin.model, x, y))
        for key, p in twin.model.named_parameters():
            by_hand[key] = p.detach().clone() if index == 0 else 0.5 * by_hand[key] + 0.5 * p.detach()
    assert_same(everything(loop), everything(twin))
    assert_same(dict(average.module.named_parameters()), by_hand, 1e-6)


@pytest.mark.parametrize("name", ["weighted", "mt2o", "one task"])
def test_averages_put_into_the_model_and_back(name: str) -> None:
    """For an evaluation, by re-pointing, by ``copy_`` and by ``load_state_dict``: the run goes on as if nothing was."""
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    for index, (x, y) in enumerate(loader()):
        for one in (loop, twin):
            one.step(one.optimizer, lambda x=x, y=y, m=one.model: losses(m, x, y))
        kept = {key: value.clone() for key, value in loop.model.state_dict().items()}
        other = {key: value + 1 for key, value in kept.items()}
        for values in (other, kept):
            if index % 3 == 0:
                loop.model.load_state_dict(values)
            for key, p in loop.model.named_parameters():
                if index % 3 == 1:
                    p.data = values[key]
                elif index % 3 == 2:
                    p.data.copy_(values[key])
            with torch.no_grad():
                losses(loop.model, x, y)
    assert_same(everything(loop), everything(twin))


# ---------------------------------------------------------------- schedulers
KINDS: dict[str, dict[str, Any]] = {
    "CosineLRScheduler": {"t_initial": 8},
    "StepLRScheduler": {"decay_t": 2, "decay_rate": 0.5},
    "PlateauLRScheduler": {"patience_t": 0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["weighted", "heads", "mt2o", "connection strength", "one task"])
def test_schedulers_of_timm(name: str, kind: str) -> None:
    make = getattr(timm_module("timm.scheduler"), kind)
    options = {"warmup_t": 2, "warmup_lr_init": 1e-4, **KINDS[kind]}
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    schedule = make(loop.optimizer, **options)
    theirs = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=LR)
    expected = make(theirs, **options)
    rates = []
    for step, (x, y) in enumerate(loader()):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        for group in twin.optimizer.param_groups:
            group["lr"] = theirs.param_groups[0]["lr"]
        twin.step(twin.optimizer, lambda x=x, y=y: losses(twin.model, x, y))
        for one in (schedule, expected):
            one.step(step + 1, 1.0)
        rates.append(loop.optimizer.param_groups[0]["lr"])
        assert rates[-1] == theirs.param_groups[0]["lr"]
    assert len(set(rates)) > 2
    found, wanted = everything(loop), everything(twin)
    assert_same({k: v for k, v in found.items() if k in wanted}, wanted)
