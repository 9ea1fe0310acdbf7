"""Loops that other people's code makes: closures of every kind, wrapped optimizers, loops left half-way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.base import SGD, AdamW
from support.optim.problems import seeded

K = 3
BATCH = torch.linspace(-1, 1, 20).reshape(5, 4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def losses(model: nn.Module, scale: float = 1.0) -> list[Tensor]:
    out = model(scale * BATCH)
    return [out[:, 0].square().mean(), (out[:, 1] - 1).square().mean()]


def mt2o(model: nn.Module, **options: Any) -> MT2OFused:
    given = {"num_tasks": 2, "num_subproblems": K, "transfer": None, "lr": 0.1}
    return MT2OFused(model.parameters(), **seeded(**{**given, **options}))


def vertices(model: nn.Module, **options: Any) -> MT2OFused:
    return mt2o(model, front="vertices", **options)


def weighted(model: nn.Module, **options: Any) -> WeightedFused:
    return WeightedFused(model.parameters(), num_tasks=2, lr=0.1, **{"weighting": "upgrad", **options})


def rows(optimizer: MT2OFused, model: nn.Module) -> list[Tensor]:
    found = []
    for k in range(K):
        with optimizer.subproblem(k):
            found.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    return found


class Proxy:
    """As Lightning wraps optimizers: of a class derived from theirs, with the attributes that they had by then."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key != "step"}
        self.__class__ = type("Proxy", (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure if closure is not None else lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


# ---------------------------------------------------------------- closures
@pytest.mark.parametrize("make", [mt2o, vertices, weighted])
def test_a_closure_that_returns_none_leaves_the_gradients_to_the_loop(make: Any) -> None:
    model, other = network(), network()
    plain, closed = make(model), make(other)
    for step in range(3):
        for optimizer, net in ((plain, model), (closed, other)):
            for _ in optimizer.subproblems() if isinstance(optimizer, MT2OFused) else [0]:
                optimizer.backward(losses(net, 1 + step))
        plain.step()
        assert closed.step(lambda: None) is None
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("make", [mt2o, weighted])
def test_of_one_task_closures_are_those_of_torch(make: Any) -> None:
    model, other = network(), network()
    options = {"num_subproblems": 1} if make is mt2o else {}
    kind = MT2OFused if make is mt2o else WeightedFused
    optimizer = kind(model.parameters(), num_tasks=1, base=AdamW(), lr=1e-2, **options)
    twin = torch.optim.AdamW(other.parameters(), lr=1e-2)
    for _ in range(3):
        for one, net in ((optimizer, model), (twin, other)):

            def closure(one: Any = one, net: nn.Module = net) -> Tensor:
                one.zero_grad()
                loss = sum(losses(net))
                loss.backward()
                return loss

            result = one.step(closure)
            assert result.dim() == 0
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_closure_that_changes_its_mind_is_an_error(front: str) -> None:
    model = network()
    optimizer = mt2o(model, front=front)
    before, calls = rows(optimizer, model), iter([losses(model), None])
    with pytest.raises(TypeError, match="losses of subproblem 1"):
        optimizer.step(lambda: next(calls))
    assert all(torch.equal(a, b) for a, b in zip(rows(optimizer, model), before, strict=True))
    optimizer.step(lambda: losses(model))


def test_a_closure_that_raises_forgets_nothing() -> None:
    model, other = network(), network()
    one, twin = weighted(model), weighted(other)
    for optimizer, net in ((one, model), (twin, other)):
        optimizer.backward(losses(net))
    with pytest.raises(ZeroDivisionError):
        one.step(lambda: 1 / 0)
    one.step()
    twin.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


# ---------------------------------------------------------------- wrapped
@pytest.mark.parametrize("weighting", [None, "upgrad"])
def test_a_wrapped_optimizer_trains_as_the_plain_one(weighting: str | None, front: str) -> None:
    model, other = network(), network()
    plain = mt2o(model, weighting=weighting, front=front)
    wrapped = Proxy(mt2o(other, weighting=weighting, front=front))
    for step in range(3):
        for optimizer, net in ((plain, model), (wrapped, other)):
            optimizer.zero_grad()
            for _ in optimizer.subproblems():
                optimizer.backward(losses(net, 1 + step))
            optimizer.step()
    for a, b in zip(rows(plain, model), rows(wrapped, other), strict=True):
        assert torch.equal(a, b)


def test_a_wrapped_weighted_optimizer_trains_as_the_plain_one() -> None:
    model, other = network(), network()
    plain, wrapped = weighted(model), Proxy(weighted(other))
    for step in range(3):
        for optimizer, net in ((plain, model), (wrapped, other)):
            optimizer.backward(losses(net, 1 + step))
            optimizer.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(plain.weights, wrapped.weights)


# ---------------------------------------------------------------- gradients are used up
@pytest.mark.parametrize("weighting", [None, "upgrad"])
def test_a_step_uses_gradients_up(weighting: str | None, front: str) -> None:
    """Whoever calls zero_grad, or nobody: the same."""
    results = []
    for clear in (lambda o, m: o.zero_grad(), lambda o, m: m.zero_grad(), lambda o, m: None):
        model = network()
        optimizer = mt2o(model, weighting=weighting, base=SGD(), front=front)
        for step in range(3):
            for _ in optimizer.subproblems():
                optimizer.backward(losses(model, 1 + step))
            optimizer.step()
            clear(optimizer, model)
        results.append(rows(optimizer, model))
        with pytest.raises(RuntimeError, match="needs gradients"):
            optimizer.step()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_subproblems_without_gradients_are_named_and_stay() -> None:
    model = network()
    optimizer = mt2o(model, base=AdamW())
    optimizer.step(lambda: losses(model))  # momentum
    before = rows(optimizer, model)
    sum(losses(model)).backward()  # by habit: of the subproblem that the model shows
    with pytest.warns(UserWarning, match="subproblems 1, 2 have no gradients"):
        optimizer.step()
    after = rows(optimizer, model)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1]) and torch.equal(after[2], before[2])


def test_step_inside_of_a_loop_is_an_error(front: str) -> None:
    model = network()
    optimizer = mt2o(model, front=front)
    for _ in optimizer.subproblems():
        optimizer.backward(losses(model))
        with pytest.raises(RuntimeError, match="behind the loop"):
            optimizer.step()
    optimizer.step()


# ---------------------------------------------------------------- loops that end late
def left(optimizer: MT2OFused) -> Iterator[int]:
    """A loop that was left after two rounds and whose generator lives on."""
    rounds = optimizer.subproblems()
    for k in rounds:
        if k == 1:
            break
    return rounds


def test_a_loop_that_ends_inside_of_another_moves_nothing() -> None:
    model = network()
    optimizer = mt2o(model)
    kept = left(optimizer)
    expected, seen = [], []
    for k in range(K):
        with optimizer.subproblem(k):
            expected.append(next(model.parameters()).detach().clone().add_(k))
            next(model.parameters()).data.add_(k)
    for k in optimizer.subproblems():
        if k == 1:
            del kept  # the collector ends it now
            assert sys.getrefcount(optimizer) > 0
        seen.append(next(model.parameters()).detach().clone())
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert torch.equal(next(model.parameters()), expected[0])  # and back at the first, where the kept loop began


def test_a_loop_inside_of_a_loop_must_end_first(front: str) -> None:
    model = network()
    optimizer = mt2o(model, front=front)
    outer = optimizer.subproblems()
    next(outer)
    inner = optimizer.subproblems()
    next(inner)
    with pytest.raises(RuntimeError, match="inside of this one"):
        next(outer)
    inner.close()
    assert list(optimizer.subproblems()) == list(range(K))
