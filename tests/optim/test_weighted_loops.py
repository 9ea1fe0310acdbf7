"""Training loops around WeightedFused: micro-batches, closures, feedback, epochs, failures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import FAMO, CAGrad, UncertaintyWeighting
from support.optim.problems import assert_same
from support.optim.towers import WEIGHTINGS, Towers, batch_of, run, values, weighted


@pytest.mark.parametrize("name", ["gram", "rows, memory", "each tensor", "sum", "losses"])
def test_micro_batches_add_up(name: str) -> None:
    results = []
    for parts in (1, 2):
        model = Towers(dtype=torch.float64)
        optimizer = weighted(model, WEIGHTINGS[name](), accumulate=True)
        for seed in range(3):
            for part in batch_of(seed, torch.float64).chunk(parts):
                optimizer.backward([loss / parts for loss in model.losses(part)])
            optimizer.step()  # uses the gradients up: no zero_grad
        results.append(values(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)


def test_one_backward_for_each_step_where_losses_come_first() -> None:
    model = Towers()
    optimizer = weighted(model, UncertaintyWeighting())
    optimizer.backward(model.losses(batch_of(0)))
    state = optimizer.state_dict()
    with pytest.raises(RuntimeError, match="accumulate=True"):
        optimizer.backward(model.losses(batch_of(1)))
    assert_same(optimizer.state_dict(), state)
    optimizer.step()
    fixed = weighted(other := Towers(), "rlw")
    for part in batch_of(0).chunk(2):
        fixed.backward(other.losses(part))  # weights without losses are drawn once
    fixed.step()
    assert fixed.weights is not None


def test_zero_grad_drops_a_batch_and_what_was_learned_from_it() -> None:
    for name in ("losses", "gram", "gram, previous weights"):
        results = []
        for dropped in (False, True):
            model = Towers()
            optimizer = weighted(model, WEIGHTINGS[name]())
            run(optimizer, model, range(2))
            if dropped:
                optimizer.backward(model.losses(batch_of(9)))
                optimizer.zero_grad()
            run(optimizer, model, range(2, 4))
            results.append(values(model))
        assert_same(results[1], results[0])


@pytest.mark.parametrize("how", ["list", "tensor"])
def test_closure_and_loop_are_the_same(how: str) -> None:
    models = [Towers(), Towers()]
    closure, loop = (weighted(model, CAGrad()) for model in models)
    for seed in range(3):
        run(closure, models[0], range(seed, seed + 1))
        losses = models[1].losses(batch_of(seed))
        loop.backward(losses if how == "list" else torch.stack(losses))
        loop.step()
    torch.testing.assert_close(values(models[1]), values(models[0]), rtol=1e-6, atol=1e-7)


def test_a_backward_that_fails_leaves_nothing_behind() -> None:
    for name in ("losses", "gram"):
        model = Towers()
        optimizer = weighted(model, WEIGHTINGS[name]())
        run(optimizer, model, range(2))
        before, state = values(model), optimizer.state_dict()

        def fail(grad: Tensor) -> Tensor:
            raise ValueError("no gradient today")

        handle = model.trunk[0].weight.register_hook(fail)
        with pytest.raises(ValueError, match="today"):
            optimizer.step(lambda: model.losses(batch_of(2)))  # noqa: B023
        handle.remove()
        assert_same([values(model), optimizer.state_dict()], [before, state])
        with pytest.raises(RuntimeError, match="needs gradients"):
            optimizer.step()


def test_a_step_without_any_gradient() -> None:
    model = Towers()
    optimizer = weighted(model, CAGrad())
    with pytest.raises(RuntimeError, match="backward"):
        optimizer.step()
    run(optimizer, model, range(1))
    with pytest.raises(RuntimeError, match="backward"):  # used up
        optimizer.step()


@pytest.mark.parametrize("how", ["closure", "call"])
def test_feedback(how: str) -> None:
    model, weighting = Towers(), FAMO()
    optimizer = weighted(model, weighting)
    batch, seen = batch_of(0), []

    def closure() -> list[Tensor]:
        seen.append(torch.is_grad_enabled())
        return model.losses(batch)

    if how == "closure":
        before = optimizer.step(closure)
        assert seen == [True, False]
    else:
        before = torch.stack(model.losses(batch)).detach().double()
        optimizer.backward(model.losses(batch))
        optimizer.step()
        optimizer.feedback([loss.detach() for loss in model.losses(batch)])
    after = torch.stack(model.losses(batch)).detach().double()
    alone = FAMO()
    alone.bind(1, 3, 4, "cpu")
    alone.after_step(before[None], after[None])  # type: ignore[index]
    torch.testing.assert_close(weighting.state_dict(), alone.state_dict(), rtol=1e-6, atol=1e-9)
    with pytest.raises(RuntimeError, match="after a step"):
        optimizer.feedback(after)
    with pytest.raises(RuntimeError, match="learns nothing from it"):
        weighted(Towers(), CAGrad()).feedback(after)


def test_epochs_are_counted_by_the_user() -> None:
    model = Towers()
    optimizer = weighted(model, "dwa")
    seen = []
    for seed in range(9):
        run(optimizer, model, range(seed, seed + 1))  # ends an epoch after each third
        seen.append(optimizer.weights)
    assert all(torch.equal(weights, seen[0]) for weights in seen[:6])  # type: ignore[arg-type]
    assert not torch.equal(seen[6], seen[0])  # type: ignore[arg-type]
