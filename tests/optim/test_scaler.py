"""torch.amp.GradScaler with every optimizer: unscaled inside of the step, told what the step found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext import ConnectionStrengthFused, MT2OFused, WeightedBackward, WeightedFused
from mt2o_ext.weighting import CAGrad
from support.optim.problems import Batches, assert_same, make_model, rows, several, task_losses, train
from support.optim.towers import WEIGHTINGS, Towers, batch_of, run, values, weighted

SCALE = 1024.0  # a power of two: scaled gradients have the same bits, but for the exponent


def scaler_of(**options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **{"init_scale": SCALE, **options})


@pytest.mark.filterwarnings("ignore:FAMO.* there was no feedback")
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weighted(name: str) -> None:
    models = [Towers(), Towers()]
    scaled, plain = (weighted(model, WEIGHTINGS[name]()) for model in models)
    scaler = scaler_of()
    for seed in range(4):
        scaled.backward(models[0].losses(batch_of(seed)), scaler=scaler)
        assert scaler.step(scaled) is None
        scaler.update()
        plain.backward(models[1].losses(batch_of(seed)))
        plain.step()
    assert scaler.get_scale() == SCALE
    torch.testing.assert_close(values(models[0]), values(models[1]), rtol=1e-6, atol=1e-7)
    assert not hasattr(scaled, "grad_scale") and scaled._now.batch.scaler is None


@pytest.mark.parametrize("name", ["gram", "losses", "rows, memory"])
def test_infinities_halve_the_scale_and_change_nothing(name: str) -> None:
    model = Towers()
    optimizer = weighted(model, WEIGHTINGS[name]())
    scaler = scaler_of()
    before = values(model)
    handle = model.trunk[0].weight.register_hook(lambda grad: grad * float("inf"))
    optimizer.backward(model.losses(batch_of(0)), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    handle.remove()
    assert scaler.get_scale() == SCALE / 2
    assert_same(values(model), before)
    assert optimizer.skipped_steps.tolist() == [1]
    assert all("step" not in state or state["step"] == 0 for state in optimizer.state.values())
    optimizer.backward(model.losses(batch_of(1)), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == SCALE / 2
    assert all(not torch.equal(a, b) for a, b in zip(values(model), before, strict=True))


def test_float16_gradients_that_vanish_without_a_scale() -> None:
    models = [Towers(dtype=torch.float16), Towers(dtype=torch.float64)]
    models[1].load_state_dict(models[0].state_dict())
    half, exact = (weighted(model, CAGrad(), lr=1e-3) for model in models)
    scaler = scaler_of(init_scale=2.0**14)
    batch = batch_of(0, torch.float16)
    half.backward([1e-6 * loss.float() for loss in models[0].losses(batch)], scaler=scaler)
    scaler.step(half)
    exact.step(lambda: [1e-6 * loss for loss in models[1].losses(batch.double())])
    assert half.weights is not None and exact.weights is not None
    torch.testing.assert_close(half.weights, exact.weights, rtol=0.05, atol=0.01)
    assert half.skipped_steps.tolist() == [0]


def test_losses_scaled_by_hand() -> None:
    """The scaler finds the gradients in ``.grad``; CAGrad's direction does not depend on the scale."""
    results = []
    for by_hand in (False, True):
        model = Towers()
        optimizer = weighted(model, CAGrad())
        scaler = scaler_of()
        losses = model.losses(batch_of(0))
        if by_hand:
            optimizer.backward([scaler.scale(loss) for loss in losses])
        else:
            optimizer.backward(losses, scaler=scaler)
        scaler.step(optimizer)
        results.append(values(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("unscale", [False, True])
def test_unscale_before_the_step_and_disabled_scalers(unscale: bool) -> None:
    results = []
    for enabled in (False, True):
        model = Towers()
        optimizer = weighted(model, CAGrad())
        scaler = scaler_of(enabled=enabled)
        for seed in range(3):
            optimizer.backward(model.losses(batch_of(seed)), scaler=scaler)
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append(values(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [MT2OFused, WeightedFused])
@pytest.mark.parametrize("unscale", [False, True])
def test_gradients_in_grad(kind: Any, unscale: bool) -> None:
    """K = 1, T = 1: as with any optimizer of torch."""
    results = []
    for scaled in (False, True):
        model = Towers(1)
        optimizer = kind(model.parameters(), num_tasks=1, **({"num_subproblems": 1} if kind is MT2OFused else {}))
        scaler = scaler_of(enabled=scaled)
        for seed in range(3):
            optimizer.zero_grad()
            scaler.scale(model.losses(batch_of(seed))[0]).backward()
            if unscale:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        results.append(values(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighting", [None, "cagrad"])
@pytest.mark.parametrize("num_subproblems", [1, 3])
def test_subproblems(num_subproblems: int, weighting: str | None, front: str) -> None:
    model, other = make_model(), make_model()
    options: dict[str, Any] = {"num_subproblems": num_subproblems, "weighting": weighting, "front": front}
    scaled, plain = several(model, **options), several(other, **options)
    scaler, batches = scaler_of(), Batches()
    for _ in range(3):
        for _ in scaled.subproblems():
            x, y = next(batches)
            scaled.backward(task_losses(model(x), y), scaler=scaler)
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()
    train(plain, other, Batches(), 3)
    torch.testing.assert_close(rows(scaled, model), rows(plain, other), rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == SCALE


def test_an_infinity_in_one_subproblem_halves_the_scale(front: str) -> None:
    model = make_model()
    optimizer = several(model, front=front)
    scaler, batches = scaler_of(), Batches()
    before = rows(optimizer, model)
    for k in optimizer.subproblems():
        x, y = next(batches)
        optimizer.backward(task_losses(model(x), y), scaler=scaler)
        if k == 1:
            grad = next(model.parameters()).grad
            assert isinstance(grad, Tensor)
            grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == SCALE / 2
    after = rows(optimizer, model)
    assert_same(after[1], before[1])
    assert torch.equal(after[0][0], before[0][0]) == (front == "vertices")  # of which all have a part in each point
    assert optimizer.skipped_steps.tolist() == ([0, 1, 0] if front == "rows" else [1, 1, 1])


def test_unscale_of_one_of_several_subproblems_is_an_error(front: str) -> None:
    model = make_model()
    optimizer = several(model, front=front)
    scaler, batches = scaler_of(), Batches()
    for _ in optimizer.subproblems():
        x, y = next(batches)
        optimizer.backward(task_losses(model(x), y), scaler=scaler)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="one subproblem only"):
        scaler.step(optimizer)


def test_a_scale_of_the_users_own_is_multiplied() -> None:
    models = [Towers(), Towers()]
    scaled, plain = (weighted(model, CAGrad()) for model in models)
    scaler = scaler_of()
    scaled.grad_scale = torch.tensor(2.0)  # type: ignore[attr-defined]
    scaled.backward([2 * loss for loss in models[0].losses(batch_of(0))], scaler=scaler)
    scaler.step(scaled)
    run(plain, models[1], range(1))
    torch.testing.assert_close(values(models[0]), values(models[1]), rtol=1e-6, atol=1e-7)


def twice(optimizer: Any, *scalers: Any) -> None:
    """Calls backward once with each scaler; in the loop over tasks, subproblems or none, as the optimizer has it."""
    p = optimizer.param_groups[0]["params"][0]
    if isinstance(optimizer, MT2OFused):
        for _, scaler in zip(optimizer.subproblems(), scalers, strict=True):
            optimizer.backward([(p - 1).square().sum(), (p + 1).square().sum()], scaler=scaler)
    elif isinstance(optimizer, ConnectionStrengthFused):
        for _, scaler in zip(optimizer.tasks(), scalers, strict=True):
            optimizer.backward((p - 1).square().sum(), scaler=scaler)
    else:
        for scaler in scalers:
            optimizer.backward([(p - 1).square().sum(), (p + 1).square().sum()], scaler=scaler)


def turns(optimizer: WeightedFused | WeightedBackward, *scalers: Any) -> None:
    """The same in the loop over tasks of one model."""
    p = optimizer.param_groups[0]["params"][0] if isinstance(optimizer, WeightedFused) else optimizer._members[0][0]
    call: Any = optimizer.backward if isinstance(optimizer, WeightedFused) else optimizer
    for _, scaler in zip(optimizer.tasks(), scalers, strict=True):
        call((p - 1).square().sum(), scaler=scaler)


MIXED: dict[str, Any] = {
    "weighted": (lambda p: WeightedFused([p], num_tasks=2, weighting="upgrad"), twice),
    "tasks": (lambda p: WeightedFused([p], num_tasks=2, weighting="upgrad"), turns),
    "backward": (lambda p: WeightedBackward([p], num_tasks=2, weighting="upgrad"), turns),
    "vertices": (lambda p: MT2OFused([p], num_tasks=2, num_subproblems=2, front="vertices"), twice),
    "rows": (lambda p: MT2OFused([p], num_tasks=2, num_subproblems=2, transfer=None), twice),
    "weighted rows": (lambda p: MT2OFused([p], num_tasks=2, num_subproblems=2, weighting="cagrad"), twice),
    "priority": (lambda p: ConnectionStrengthFused([p], connections=[], num_tasks=2, total_steps=4), twice),
}


@pytest.mark.filterwarnings("ignore:no connections")
@pytest.mark.filterwarnings("ignore:tasks 1 have no gradients")
@pytest.mark.parametrize("name", MIXED)
def test_one_scaler_in_all_calls_of_a_step(name: str) -> None:
    """Gradients with the factor and gradients without it were divided by the factor together."""
    make, calls = MIXED[name]
    p = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
    optimizer, scaler = make(p), scaler_of()
    for pair, words in (
        ((scaler, None), "got none after a GradScaler"),
        ((None, scaler), "got a GradScaler after none"),
        ((scaler, scaler_of()), "got another one after a GradScaler"),
    ):
        with pytest.raises(ValueError, match=words):
            calls(optimizer, *pair)
        getattr(optimizer, "zero_grad", lambda: None)()
        with pytest.raises(TypeError, match=r"expected scaler= as a torch\.amp\.GradScaler, got float"):
            calls(optimizer, 1024.0, 1024.0)
        getattr(optimizer, "zero_grad", lambda: None)()
    calls(optimizer, None, scaler_of(enabled=False))  # which is none
    getattr(optimizer, "step", lambda: None)()
    calls(optimizer, scaler, scaler)
