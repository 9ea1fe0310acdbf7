"""Accelerate: prepare, accumulate, clipping, mixed precision, and everything that it saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.clients.foreign import NOISE, library
from support.clients.loops import LOOPS, Loop, Net, assert_same, everything, loader, losses, run

accelerate: Any = library("accelerate")
safetensors: Any = library("safetensors.torch")

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Accelerate keeps its state for the process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def fit(loop: Loop, accelerator: Any, batches: Any, net: nn.Module, optimizer: Any) -> None:
    """Our own methods are those of ``optimizer.optimizer``; what Accelerate counts, and skips, goes through its own."""
    for x, y in batches:
        with accelerator.accumulate(net):
            loop.backward(optimizer.optimizer, lambda x=x, y=y: losses(net, x, y))
            optimizer.step()
            optimizer.zero_grad()


BY_CALLS = ["weighted", "heads", "mt2o", "mt2o, weighting", "one task", "one subproblem"]
CLOSURES = ["weighted, closure", "mt2o, closure", "connection strength"]


@pytest.mark.parametrize("name", LOOPS)
def test_the_loops_of_the_pages(name: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    loop = LOOPS[name](Net())
    net, optimizer, batches = accelerator.prepare(loop.model, loop.optimizer, loader())
    if name in CLOSURES:
        for x, y in batches:
            loop.step(optimizer, lambda x=x, y=y: losses(net, x, y))
    else:
        fit(loop, accelerator, batches, net, optimizer)
    assert_same(everything(loop), run(name))


@pytest.mark.parametrize("name", LOOPS)
def test_mixed_precision(name: str) -> None:
    """The model that ``prepare`` returns runs in autocast, and its outputs are float32."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    net, optimizer = accelerator.prepare(loop.model, loop.optimizer)

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return twin.model(x)

    class Float(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(x).float()

    for x, y in loader():
        mine = optimizer if name in CLOSURES else optimizer.optimizer
        loop.step(mine, lambda x=x, y=y: losses(net, x, y))
        twin.step(twin.optimizer, lambda x=x, y=y: losses(Float(), x, y))
    assert_same(everything(loop), everything(twin))


@pytest.mark.parametrize(
    "name",
    ["weighted", "mt2o", "mt2o, closure", "connection strength", "connection strength, loop", "weighted backward"],
)
def test_its_own_backward(name: str) -> None:
    """Which divides by the number of mini-batches for a step, 1 here."""
    accelerator = accelerate.Accelerator(cpu=True)
    loop = LOOPS[name](Net(), backward=accelerator.backward)
    net, optimizer, batches = accelerator.prepare(loop.model, loop.optimizer, loader())
    for x, y in batches:
        loop.step(optimizer.optimizer, lambda x=x, y=y: losses(net, x, y))
    assert_same(everything(loop), run(name))


@pytest.mark.parametrize("name", BY_CALLS)
def test_accumulation(name: str) -> None:
    """Two mini-batches for each step: as two calls of ``backward`` in a plain loop."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    net, optimizer, batches = accelerator.prepare(loop.model, loop.optimizer, loader())
    fit(loop, accelerator, batches, net, optimizer)
    for index, (x, y) in enumerate(loader()):
        twin.backward(twin.optimizer, lambda x=x, y=y: losses(twin.model, x, y))
        if index % 2 == 1:
            twin.optimizer.step()
            twin.optimizer.zero_grad()
    assert_same(everything(loop), everything(twin))


@pytest.mark.parametrize("name", ["weighted", "heads", "weighting of losses", "weighted backward", "one task"])
def test_clipping(name: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    net, optimizer, batches = accelerator.prepare(loop.model, loop.optimizer, loader())
    for (x, y), (a, b) in zip(batches, loader(), strict=True):
        loop.backward(optimizer.optimizer, lambda x=x, y=y: losses(net, x, y))
        norm = accelerator.clip_grad_norm_(net.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
        twin.backward(twin.optimizer, lambda a=a, b=b: losses(twin.model, a, b))
        assert torch.equal(norm, nn.utils.clip_grad_norm_(twin.model.parameters(), 0.05))
        assert norm > 0.05
        twin.optimizer.step()
        twin.optimizer.zero_grad()
    assert_same(everything(loop), everything(twin))


@pytest.mark.parametrize("name", LOOPS)
def test_state_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """``save_state`` in the middle, with its defaults, and ``load_state`` into a new run: bitwise."""
    accelerator = accelerate.Accelerator(cpu=True)
    loop = LOOPS[name](Net())
    net, _ = accelerator.prepare(loop.model, loop.optimizer)
    batches = list(loader())
    for step, (x, y) in enumerate(batches):
        if step == 4:
            accelerator.save_state(str(tmp_path / "state"))
        loop.step(loop.optimizer, lambda x=x, y=y: losses(net, x, y))

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    again = accelerate.Accelerator(cpu=True)
    fresh = LOOPS[name](Net())
    other, _ = again.prepare(fresh.model, fresh.optimizer)
    again.load_state(str(tmp_path / "state"))
    for x, y in batches[4:]:
        fresh.step(fresh.optimizer, lambda x=x, y=y: losses(other, x, y))
    assert_same(everything(fresh), everything(loop))


@pytest.mark.parametrize("name", LOOPS)
def test_the_saved_model_is_whole(name: str, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    loop = LOOPS[name](Net())
    net, _ = accelerator.prepare(loop.model, loop.optimizer)
    for x, y in loader():
        loop.step(loop.optimizer, lambda x=x, y=y: losses(net, x, y))
    accelerator.save_model(net, str(tmp_path))
    saved = safetensors.load_file(tmp_path / "model.safetensors")
    assert_same(saved, dict(loop.model.state_dict()))
    size = sum(value.numel() * value.element_size() for value in saved.values())
    assert (tmp_path / "model.safetensors").stat().st_size < 1.5 * size + 4096


@pytest.mark.parametrize("name", ["mt2o", "mt2o, weighting"])
def test_one_model_of_the_front_is_saved(name: str, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    loop: Any = LOOPS[name](Net())
    net, optimizer = accelerator.prepare(loop.model, loop.optimizer)
    for x, y in loader():
        loop.step(loop.optimizer, lambda x=x, y=y: losses(net, x, y))
    with optimizer.optimizer.subproblem(3):
        accelerator.save_model(net, str(tmp_path))
        expected = {key: value.clone() for key, value in loop.model.state_dict().items()}
    saved = safetensors.load_file(tmp_path / "model.safetensors")
    assert_same(saved, expected)
    assert not torch.equal(saved["trunk.0.weight"], loop.model.state_dict()["trunk.0.weight"])


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_schedulers(name: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    schedule = torch.optim.lr_scheduler.LinearLR(loop.optimizer, 0.1, total_iters=5)
    other = torch.optim.lr_scheduler.LinearLR(twin.optimizer, 0.1, total_iters=5)
    net, optimizer, schedule = accelerator.prepare(loop.model, loop.optimizer, schedule)
    for x, y in loader():
        loop.backward(optimizer.optimizer, lambda x=x, y=y: losses(net, x, y))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        twin.step(twin.optimizer, lambda x=x, y=y: losses(twin.model, x, y))
        other.step()
    assert_same(everything(loop), everything(twin))
