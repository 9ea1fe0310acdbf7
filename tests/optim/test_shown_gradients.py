"""The combined gradient in ``.grad`` between backward and step: what others do to it counts; ``max_norm``."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedBackward, WeightedFused
from mt2o_ext.base import SGD
from mt2o_ext.priority import mixed
from support.optim.priority_model import Batches, network, optimizer_of
from support.optim.towers import Towers, batch_of, values, weighted

# From the losses alone, from the Gram matrix, from the rows, per tensor, of one task.
WEIGHTINGS = ("ls", "dwa", "upgrad", "cagrad", "moco", "graddrop", "pcgrad")
EVERY = pytest.mark.parametrize("weighting", WEIGHTINGS)
HEADS = pytest.mark.parametrize("heads", ["plain", "weighted"])


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def moved(model: nn.Module, before: list[Tensor], lr: float) -> list[Tensor]:
    return [(old - p.detach()) / lr for p, old in zip(model.parameters(), before, strict=True)]


@EVERY
@HEADS
def test_grad_is_that_of_weighted_backward(weighting: str, heads: str) -> None:
    model, other = Towers(), Towers()
    options = {"num_tasks": 3, "weighting": weighting, "heads": heads}
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    optimizer = WeightedFused(model.groups(), base=SGD(), lr=0.1, generator=first, **options)
    backward = WeightedBackward(other.groups(), generator=second, **options)
    for seed in range(3):
        optimizer.backward(model.losses(batch_of(seed)))
        other.zero_grad()
        backward(other.losses(batch_of(seed)))
        torch.testing.assert_close(grads(model), grads(other), rtol=1e-5, atol=1e-7)
        before = values(model)
        found = grads(model)
        optimizer.step()
        torch.testing.assert_close(moved(model, before, 0.1), found, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                q.copy_(p)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "clip_grad_norm_": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    "clip_grad_value_": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01),
    "noise": lambda model: [p.grad.add_(0.01) for p in model.parameters()],
    "replaced": lambda model: [setattr(p, "grad", p.grad * 0.5) for p in model.parameters()],
    "masked": lambda model: [p.grad.mul_(p.grad > 0) for p in model.parameters()],
    "one taken away": lambda model: setattr(model.trunk[0].weight, "grad", None),
}


@EVERY
@pytest.mark.parametrize("change", CHANGES)
def test_a_step_applies_what_stands_in_grad(weighting: str, change: str) -> None:
    model = Towers()
    optimizer = weighted(model, weighting, base=SGD(), lr=0.1)
    for seed in range(3):
        optimizer.backward(model.losses(batch_of(seed)))
        CHANGES[change](model)
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
        before = values(model)
        optimizer.step()
        torch.testing.assert_close(moved(model, before, 0.1), found, rtol=1e-4, atol=1e-6)
        kept = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        assert all(map(torch.equal, kept, found))  # for others to see (Lookahead, schedule-free, logs of norms) ...
    with pytest.raises(RuntimeError, match="needs gradients"):  # ... but used up
        optimizer.step()


def test_clipping_has_the_norm_that_torch_measures() -> None:
    model = Towers()
    optimizer = weighted(model, "upgrad", base=SGD(), lr=1.0)
    optimizer.backward(model.losses(batch_of(0)))
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)) > 0.1
    before = values(model)
    optimizer.step()
    step = torch.cat([each.flatten() for each in moved(model, before, 1.0)])
    assert abs(float(step.norm()) - 0.1) < 1e-4


@pytest.mark.parametrize("weighting", ["ls", "upgrad"])
def test_a_regulariser_of_the_users_adds_up(weighting: str) -> None:
    """Before and after the optimizer's backward, as with any optimizer."""
    plain, model = Towers(), Towers()
    alone, optimizer = (weighted(m, weighting, base=SGD(), lr=0.1) for m in (plain, model))
    for seed in range(2):
        alone.backward(plain.losses(batch_of(seed)))
        expected = [grad + 3e-2 for grad in grads(plain)]
        sum(0.01 * p.sum() for p in model.parameters()).backward()
        optimizer.backward(model.losses(batch_of(seed)))
        sum(0.02 * p.sum() for p in model.parameters()).backward()
        torch.testing.assert_close(grads(model), expected, rtol=1e-5, atol=1e-6)
        alone.step()
        optimizer.step()
        optimizer.zero_grad()  # for the user's own backward, which adds to what stands in .grad; ours would not
        with torch.no_grad():
            for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                q.copy_(p)


@pytest.mark.parametrize("weighting", ["ls", "upgrad", "graddrop"])
def test_several_backwards_add_up(weighting: str) -> None:
    options = {"accumulate": weighting == "graddrop"}
    model, other = Towers(), Towers()
    parts, whole = weighted(model, weighting, **options), weighted(other, weighting, **options)
    for seed in range(3):
        for half in batch_of(seed).chunk(2):
            parts.backward([loss / 2 for loss in model.losses(half)])
        if weighting != "graddrop":
            assert all(p.grad is not None for p in model.parameters())
        whole.backward(other.losses(batch_of(seed)))
        parts.step()
        whole.step()
    if weighting != "graddrop":  # which draws by columns, where signs of sums are near zero
        torch.testing.assert_close(values(model), values(other), rtol=1e-4, atol=1e-5)


def test_what_remembers_rows_must_be_told_of_several_backwards() -> None:
    model = Towers()
    optimizer = weighted(model, "moco")
    optimizer.backward(model.losses(batch_of(0)))
    with pytest.raises(RuntimeError, match="accumulate=True"):
        optimizer.backward(model.losses(batch_of(1)))
    optimizer.step()


def test_a_change_between_two_backwards_is_an_error() -> None:
    model = Towers()
    optimizer = weighted(model, "upgrad")
    optimizer.backward(model.losses(batch_of(0)))
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    with pytest.raises(RuntimeError, match="between two calls of backward"):
        optimizer.backward(model.losses(batch_of(1)))


@pytest.mark.parametrize("weighting", ["ls", "upgrad", "pcgrad"])
@pytest.mark.parametrize("by", ["optimizer", "model", "zeros"])
def test_a_dropped_batch_counts_no_more(weighting: str, by: str) -> None:
    model, other = Towers(), Towers()
    optimizer, plain = weighted(model, weighting), weighted(other, weighting)
    optimizer.backward(model.losses(batch_of(9)))
    if by == "optimizer":
        optimizer.zero_grad()
    elif by == "zeros":
        optimizer.zero_grad(set_to_none=False)
    else:
        model.zero_grad()
    for seed in range(2):
        optimizer.backward(model.losses(batch_of(seed)))
        plain.backward(other.losses(batch_of(seed)))
        if weighting != "pcgrad":  # which has drawn for the dropped batch
            torch.testing.assert_close(grads(model), grads(other), rtol=1e-6, atol=1e-7)
        optimizer.step()
        plain.step()


def test_copies_go_on_as_the_original() -> None:
    model = Towers()
    optimizer = weighted(model, "gradvac")
    optimizer.backward(model.losses(batch_of(0)))
    optimizer.step()
    other_model, other = copy.deepcopy((model, optimizer))
    for seed in range(1, 4):
        for one, net in ((optimizer, model), (other, other_model)):
            one.backward(net.losses(batch_of(seed)))
            one.step()
    assert all(torch.equal(p, q) for p, q in zip(values(model), values(other_model), strict=True))


def test_the_scaler_unscales_and_clips() -> None:
    results = []
    for enabled in (False, True):
        model = Towers()
        optimizer = weighted(model, "upgrad")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for seed in range(3):
            optimizer.backward(model.losses(batch_of(seed)), scaler=scaler)
            scaler.unscale_(optimizer)
            assert float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)) > 0.05
            scaler.step(optimizer)
            scaler.update()
        results.append(values(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_an_infinite_gradient_of_the_users_skips_the_step() -> None:
    model = Towers()
    optimizer = weighted(model, "gradvac")
    optimizer.backward(model.losses(batch_of(0)))
    optimizer.step()
    before = [values(model), optimizer.state_dict()["param_groups"][0]["weighted"]["weighting"]]
    optimizer.backward(model.losses(batch_of(1)))
    model.trunk[0].weight.grad[0, 0] = torch.inf
    with pytest.warns(UserWarning, match="infinite or NaN"):
        optimizer.step()
    after = [values(model), optimizer.state_dict()["param_groups"][0]["weighted"]["weighting"]]
    assert all(torch.equal(p, q) for p, q in zip(before[0], after[0], strict=True))
    assert all(torch.equal(before[1][key], after[1][key]) for key in before[1])  # and nothing was learned


# ---------------------------------------------------------------- max_norm
@pytest.mark.parametrize("weighting", ["ls", "upgrad", "moco"])
@pytest.mark.parametrize("closure", [False, True])
def test_max_norm_is_clipping(weighting: str, closure: bool) -> None:
    model, other = Towers(), Towers()
    ours = weighted(model, weighting, max_norm=0.05)
    theirs = weighted(other, weighting)
    for seed in range(3):
        theirs.backward(other.losses(batch_of(seed)))
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        theirs.step()
        if closure:
            ours.step(lambda seed=seed: model.losses(batch_of(seed)))
        else:
            ours.backward(model.losses(batch_of(seed)))
            ours.step()
        torch.testing.assert_close(ours.grad_norm[0].float(), norm, rtol=1e-4, atol=0)
        torch.testing.assert_close(values(model), values(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", [None, "upgrad"])
def test_max_norm_is_of_each_subproblem(weighting: str | None) -> None:
    model = Towers()
    options = {"num_tasks": 3, "num_subproblems": 4, "transfer": None, "base": SGD(), "lr": 1.0, "weighting": weighting}
    optimizer = MT2OFused(model.groups() if weighting else model.parameters(), max_norm=0.2, **options)
    start = torch.cat([p.flatten() for p in values(model)])
    optimizer.step(lambda: [100.0**task * loss for task, loss in enumerate(model.losses(batch_of(0)))])
    lengths = []
    for k in range(4):
        with optimizer.subproblem(k):
            lengths.append(float((torch.cat([p.flatten() for p in values(model)]) - start).norm()))
    norms = optimizer.grad_norm
    expected = norms.clamp(max=0.2)
    torch.testing.assert_close(torch.tensor(lengths, dtype=torch.float64), expected, rtol=1e-4, atol=1e-5)
    assert float(norms.max()) > 0.2


def test_max_norm_of_connection_strength() -> None:
    model, batches = network(), Batches()
    optimizer = optimizer_of(model, base=SGD(), lr=1.0, max_norm=0.01, schedule=mixed)
    for _ in range(6):
        before = values(model)
        optimizer.step(batches.draw().loss(model))
        assert optimizer.grad_norm is not None
        steps = 3 if optimizer.last_phase == 1 else 1
        length = torch.cat([(p - q).flatten() for p, q in zip(values(model), before, strict=True)]).norm()
        assert float(length) <= steps * 0.01 * 1.001


@pytest.mark.parametrize("value", [0.0, -1.0, "1", float("nan")])
def test_max_norm_must_be_positive(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="max_norm"):
        WeightedFused(Towers().parameters(), num_tasks=3, max_norm=value)
