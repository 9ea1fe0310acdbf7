"""Closures of every make, given to the optimizer itself and to what Lightning, Fabric and Accelerate make of it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.clients.foreign import NOISE, library
from support.clients.loops import LOOPS, LR, Loop, Net, assert_same, everything, loader, losses, run

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

CLOSED = ["weighted, closure", "mt2o, closure"]
Closure = Callable[[], Any]


def through_accelerate(optimizer: torch.optim.Optimizer) -> Any:
    accelerate = library("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


def through_fabric(optimizer: torch.optim.Optimizer) -> Any:
    fabric = library("lightning").Fabric(accelerator="cpu", devices=1)
    return fabric.setup(nn.Linear(1, 1), optimizer)[1]


def through_lightning(optimizer: torch.optim.Optimizer) -> Any:
    """As in ``self.optimizers()``: a proxy whose ``step`` hands on another closure."""
    library("lightning")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    proxy = LightningOptimizer(optimizer)

    class Strategy:
        def optimizer_step(self, inner: Any, closure: Closure, **options: Any) -> Any:
            def wrapped(model: Any, one: Any, given: Closure) -> Any:
                return given()

            return inner.step(closure=functools.partial(wrapped, None, inner, closure), **options)

    proxy._strategy = Strategy()
    return proxy


WAYS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda optimizer: optimizer,
    "accelerate": through_accelerate,
    "fabric": through_fabric,
    "lightning": through_lightning,
}
EACH_WAY = pytest.mark.parametrize("way", WAYS)


def each_way_of(*names: str) -> pytest.MarkDecorator:
    both = [(name, way) for name in names for way in WAYS]
    return pytest.mark.parametrize(("name", "way"), both)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from accelerate.state import AcceleratorState, GradientState
        except ImportError:
            return
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Call:
    """A callable object, and a bound method."""

    def __init__(self, compute: Closure) -> None:
        self.compute = compute

    def __call__(self) -> Any:
        return self.compute()

    def method(self) -> Any:
        return self.compute()


MAKES: dict[str, Callable[[Closure], Closure]] = {
    "a function": lambda compute: compute,
    "a partial": lambda compute: functools.partial(lambda f, unused: f(), compute, unused=None),
    "an object": Call,
    "a method": lambda compute: Call(compute).method,
    "of a tensor": lambda compute: lambda: torch.stack(compute()),
    "of a tuple": lambda compute: lambda: tuple(compute()),
}


@EACH_WAY
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", CLOSED)
def test_closures_of_losses(name: str, make: str, way: str) -> None:
    loop = LOOPS[name](Net())
    optimizer = WAYS[way](loop.optimizer)
    for x, y in loader():
        optimizer.step(MAKES[make](lambda x=x, y=y: losses(loop.model, x, y)))
    assert_same(everything(loop), run(name), 0.0 if make != "of a tensor" else 1e-6)


@EACH_WAY
@pytest.mark.parametrize("name", ["weighted", "heads", "weighting of losses", "mt2o", "mt2o, weighting"])
def test_closures_that_have_done_backward(name: str, way: str) -> None:
    """They return None, as those that Lightning's manual optimization makes of none."""
    loop = LOOPS[name](Net())
    optimizer = WAYS[way](loop.optimizer)
    for x, y in loader():
        loop.backward(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        assert optimizer.step(lambda: None) is None
        optimizer.zero_grad()
    assert_same(everything(loop), run(name))


@EACH_WAY
@pytest.mark.parametrize("name", ["one task", "one subproblem"])
def test_closures_of_torch(name: str, way: str) -> None:
    """zero_grad, backward, and the loss: as torch's AdamW, for which they are written."""
    loop, twin = LOOPS[name](Net()), Net()
    optimizer, theirs = WAYS[way](loop.optimizer), torch.optim.AdamW(twin.parameters(), lr=LR)
    for x, y in loader():
        returned = []
        for one, net in ((optimizer, loop.model), (theirs, twin)):

            def closure(one: Any = one, net: Any = net, x: Tensor = x, y: Tensor = y) -> Tensor:
                one.zero_grad()
                loss = sum(losses(net, x, y))
                loss.backward()
                return loss

            returned.append(one.step(closure))
        if way != "accelerate":  # whose step returns nothing
            torch.testing.assert_close(returned[0], returned[1], rtol=1e-4, atol=1e-6)
    assert_same(dict(loop.model.state_dict()), dict(twin.state_dict()), 1e-5)


@each_way_of("weighted, closure", "mt2o, closure", "connection strength")
def test_hooks_around_a_step(name: str, way: str) -> None:
    """Each of torch's hooks runs once, with our optimizer."""
    loop, seen = LOOPS[name](Net()), []
    loop.optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(("before", optimizer)))
    loop.optimizer.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(("after", optimizer)))
    optimizer = WAYS[way](loop.optimizer)
    x, y = next(iter(loader()))
    loop.step(optimizer, lambda: losses(loop.model, x, y))
    assert seen == [("before", loop.optimizer), ("after", loop.optimizer)]


@EACH_WAY
@pytest.mark.parametrize("name", CLOSED)
def test_the_losses_are_returned(name: str, way: str) -> None:
    if way == "accelerate":
        pytest.skip("AcceleratedOptimizer.step returns nothing")
    loop = LOOPS[name](Net())
    x, y = next(iter(loader()))
    expected = torch.stack(losses(loop.model, x, y)).detach().double()
    found = WAYS[way](loop.optimizer).step(lambda: losses(loop.model, x, y))
    torch.testing.assert_close(found, expected.expand(found.shape))


@each_way_of(*LOOPS)
def test_no_warning_about_the_order_of_schedulers(name: str, way: str) -> None:
    """torch patches ``step`` to see whether it was called before the scheduler's."""
    loop: Loop = LOOPS[name](Net())
    schedule = torch.optim.lr_scheduler.StepLR(loop.optimizer, 1)
    optimizer: Any = WAYS[way](loop.optimizer)
    x, y = next(iter(loader()))
    mine = optimizer.optimizer if way == "accelerate" and name not in CLOSED else optimizer
    loop.step(mine, lambda: losses(loop.model, x, y))
    schedule.step()


BAD: dict[str, tuple[Closure, str]] = {
    "a dict": (lambda: {"a": torch.ones(()), "b": torch.ones(())}, "sequence of tensors"),
    "numbers": (lambda: [1.0, 2.0], "tensors"),
    "one loss": (lambda: torch.ones((), requires_grad=True), r"\[2\]"),
    "constants": (lambda: [torch.ones(()), torch.ones(())], "graph|constants"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", CLOSED)
def test_what_is_not_losses_is_refused_and_changes_nothing(name: str, what: str) -> None:
    loop = LOOPS[name](Net())
    x, y = next(iter(loader()))
    loop.step(loop.optimizer, lambda: losses(loop.model, x, y))
    before = everything(loop)
    closure, match = BAD[what]
    with pytest.raises((TypeError, ValueError), match=match):
        loop.optimizer.step(closure)
    assert_same(everything(loop), before)
