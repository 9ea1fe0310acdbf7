"""Optimizers whose parameters are on a GPU: a step waits for nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.device import LateFlags
from mt2o_ext.weighting import GradNorm
from support.backends import CUDA, usable


def test_flags_add_up() -> None:
    flags = LateFlags()
    assert flags.raised() == []
    flags.add(torch.tensor([0.0, 1.0, 0.0]))
    flags.add(torch.tensor([0.0, 0.0, 1.0]))
    assert flags.raised() == [1, 2]
    assert flags.raised(wait=True) == [1, 2]


def test_flags_are_copies() -> None:
    """What is done to the flags afterwards does not matter."""
    flags, found = LateFlags(), torch.tensor([1.0, 0.0])
    flags.add(found)
    found.zero_()
    assert flags.raised() == [0]


def fill_gradients(model: torch.nn.Module, optimizer: MT2OFused, value: float) -> None:
    losses = torch.stack([sum(p.sum() for p in model.parameters()) * factor for factor in (value, 1.0)])
    for _ in optimizer.subproblems():
        optimizer.backward(losses, retain_graph=True)


@pytest.fixture
def model() -> torch.nn.Module:
    usable(CUDA)
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 2)).cuda()


@contextmanager
def nobody_waits() -> Iterator[None]:
    """What waits for the device in here is an error.  (torch warns once that it does not see all of it.)"""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_without_waiting(model: torch.nn.Module, optimizer: MT2OFused, value: float) -> None:
    fill_gradients(model, optimizer, value)
    with nobody_waits():
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.gpu
@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3)], ids=["number", "tensor"])
def test_a_step_does_not_wait(model: torch.nn.Module, lr: float | Tensor) -> None:
    """Also with a schedule, and with a tensor that sometimes has no gradient."""
    optimizer = MT2OFused(model.parameters(), num_tasks=2, front="rows", lr=lr.cuda() if isinstance(lr, Tensor) else lr)
    for index in range(10):
        if isinstance(lr, float):
            optimizer.param_groups[0]["lr"] = lr / (index + 1)
        model[0].bias.requires_grad_(index % 2 == 0)
        if index == 0:
            fill_gradients(model, optimizer, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        else:
            step_without_waiting(model, optimizer, 1.0)


def skip_a_step(model: torch.nn.Module) -> tuple[MT2OFused, Callable[[], None]]:
    """An optimizer after its first step, and the step that it will skip."""
    optimizer = MT2OFused(model.parameters(), num_tasks=2, front="rows")
    step(model, optimizer)
    return optimizer, lambda: step_without_waiting(model, optimizer, torch.inf)


@pytest.mark.gpu
def test_a_skipped_step_is_reported_once(model: torch.nn.Module) -> None:
    """In its own step, if the device is that fast, at a later one, or when somebody asks."""
    optimizer, skipped = skip_a_step(model)
    before = [p.clone() for p in model.parameters()]

    def count() -> list[int]:
        skipped()
        return optimizer.skipped_steps.tolist()

    with pytest.warns(UserWarning, match="was infinite or NaN") as caught:
        counted = count()
    assert counted == [1] * 5 and len(caught) == 1
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.gpu
def test_a_refused_step_is_told_by_name_later(model: torch.nn.Module) -> None:
    optimizer = WeightedFused(model.parameters(), num_tasks=2, weighting=GradNorm())
    added = torch.zeros(2, device="cuda")

    def step(first: float, *, wait: bool) -> None:
        added[0].fill_(first)
        optimizer.backward([p + more for p, more in zip(model(torch.ones(8).cuda()).square(), added, strict=True)])
        torch.cuda.set_sync_debug_mode("default" if wait else "error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(1.0, wait=True)
    before = [p.clone() for p in model.parameters()]
    with pytest.warns(UserWarning, match=r"^GradNorm needs positive losses at first.*; task 0 had -\d\d"):  # noqa: PT031
        for _ in range(3):
            step(-100.0, wait=False)
        assert optimizer.skipped_steps.tolist() == [3]
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.gpu
def test_a_step_does_not_wait_to_know_whether_it_is_skipped(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the flags are on their way, nothing is said; who asks waits for them."""
    arrived = False

    class Awaited(torch.cuda.Event):
        def query(self) -> bool:
            return arrived and super().query()

    monkeypatch.setattr(torch.cuda, "Event", Awaited)
    optimizer, skipped = skip_a_step(model)
    skipped()  # a warning would be an error
    arrived = True
    with pytest.warns(UserWarning, match="was infinite or NaN"):
        counted = optimizer.skipped_steps.tolist()
    assert counted == [1] * 5


def step(model: torch.nn.Module, optimizer: MT2OFused) -> None:
    fill_gradients(model, optimizer, 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs, there is one")
def test_on_another_device_than_the_current_one(model: torch.nn.Module) -> None:
    """The same bits, and nothing on the current device."""
    other = copy.deepcopy(model).to("cuda:1")
    before = torch.cuda.memory_allocated(0)
    optimizer = MT2OFused(other.parameters(), num_tasks=2, front="rows")
    step(other, optimizer)
    assert torch.cuda.memory_allocated(0) == before
    optimizer = MT2OFused(model.parameters(), num_tasks=2, front="rows")
    step(model, optimizer)
    assert all(torch.equal(p, q.to(p.device)) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.gpu
def test_on_another_stream(model: torch.nn.Module) -> None:
    """Behind work that takes long there: the step waits for it, as everything on that stream does."""
    twin = copy.deepcopy(model)
    optimizers = [MT2OFused(each.parameters(), num_tasks=2, front="rows") for each in (model, twin)]
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())  # for what made model and buffers
    with torch.cuda.stream(other):
        torch.cuda._sleep(10_000_000)
        for parameter in model.parameters():
            parameter.data.add_(1.0)
        step(model, optimizers[0])
    torch.cuda.synchronize()
    for parameter in twin.parameters():
        parameter.data.add_(1.0)
    step(twin, optimizers[1])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
