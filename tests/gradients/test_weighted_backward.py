"""weighted_backward: the weighted gradient in .grad, for any optimizer; stored or not, through features or not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import WeightedBackward, weighted_backward
from mt2o_ext.weighting import (
    MGDA,
    CAGrad,
    Every,
    GradDrop,
    LinearWeighting,
    MoCo,
    NashMTL,
    PerSegment,
    UncertaintyWeighting,
    UPGrad,
    Weighting,
)
from support.optim.problems import assert_same
from support.optim.towers import Towers, batch_of

METHODS: list[Callable[[], Weighting]] = [LinearWeighting, UncertaintyWeighting, CAGrad, UPGrad, NashMTL]
WAYS: dict[str, dict[str, Any]] = {"stored": {}, "batched": {"collect": "batched"}, "not stored": {"store": False}}


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def by_hand(model: Towers, batch: Tensor, weights: Tensor, heads: str = "plain") -> list[Tensor]:
    parameters = list(model.parameters())
    rows = model.gradients(batch, parameters)
    shared = len(list(model.trunk.parameters()))
    result = []
    for at, p in enumerate(parameters):
        factors = weights if at < shared or heads == "weighted" else torch.ones_like(weights)
        result.append(sum((w.to(p) * row[at] for w, row in zip(factors, rows, strict=True)), torch.zeros_like(p)))
    return result


def weights_by_hand(model: Towers, batch: Tensor, weighting: Weighting) -> Tensor:
    rows = model.gradients(batch, list(model.trunk.parameters()))
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    return weighting(J @ J.T, losses=torch.stack(model.losses(batch)).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_the_weighted_gradient(method: Callable[[], Weighting], way: str, dtype: torch.dtype) -> None:
    model, batch = Towers(dtype=dtype), batch_of(0, dtype)
    weights = weighted_backward(model.losses(batch), model.groups(), weighting=method(), **WAYS[way])
    tolerance = {"rtol": 30 * torch.finfo(dtype).eps, "atol": 30 * torch.finfo(dtype).eps}
    torch.testing.assert_close(gradients(model), by_hand(model, batch, weights), **tolerance)
    if dtype != torch.bfloat16:
        expected = weights_by_hand(model, batch, method())
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [GradDrop, MoCo, lambda: PerSegment(UPGrad())])
def test_collected_either_way(method: Callable[[], Weighting]) -> None:
    results = []
    for how in ("sequential", "batched"):
        model = Towers(dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        batch = batch_of(0, torch.float64)
        weighted_backward(model.losses(batch), model.groups(), weighting=method(), collect=how, generator=generator)
        results.append(gradients(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="store=False"):
        weighted_backward(model.losses(batch), model.groups(), weighting=method(), store=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heads", ["plain", "weighted"])
def test_heads_and_gradients_that_are_there(heads: str, way: str) -> None:
    model, batch = Towers(dtype=torch.float64), batch_of(0, torch.float64)
    for p in list(model.parameters())[::2]:
        p.grad = torch.ones_like(p)
    kept = [p.grad for p in model.parameters()]
    weights = weighted_backward(model.losses(batch), model.groups(), weighting="cagrad", heads=heads, **WAYS[way])
    for p, old, grad in zip(model.parameters(), kept, by_hand(model, batch, weights, heads), strict=True):
        assert p.grad is not None and (old is None or p.grad is old)  # added in place
        torch.testing.assert_close(p.grad, grad if old is None else grad + 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_training_loop_of_torch(way: str) -> None:
    model, other = Towers(), Towers()
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=NashMTL(), **WAYS[way])
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-2) for one in (model, other)]
    alone = NashMTL()
    for seed in range(4):
        optimizers[0].zero_grad(set_to_none=seed % 2 == 0)
        weights = backward(model.losses(batch_of(seed)))
        optimizers[0].step()
        expected = weights_by_hand(other, batch_of(seed), alone)
        torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
        for p, grad in zip(other.parameters(), by_hand(other, batch_of(seed), expected), strict=True):
            p.grad = grad
        optimizers[1].step()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()), rtol=1e-3, atol=1e-4)


def test_frozen_unused_and_mixed_parameters() -> None:
    model, batch = Towers(), batch_of(0)
    model.trunk[0].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(4, dtype=torch.float64))
    for options in WAYS.values():
        model.zero_grad()
        weights = weighted_backward(
            model.losses(batch), [*model.trunk.parameters(), unused], weighting=UPGrad(), **options
        )
        assert unused.grad is None and model.trunk[0].bias.grad is None
        [expected] = torch.autograd.grad(
            (weights.float() * torch.stack(model.losses(batch))).sum(), [model.trunk[2].bias]
        )
        torch.testing.assert_close(model.trunk[2].bias.grad, expected, rtol=1e-5, atol=1e-6)


def test_weights_by_features() -> None:
    """MGDA-UB: the Gram matrix of dl_t/dz, then one pass through the trunk."""
    model, batch = Towers(dtype=torch.float64), batch_of(0, torch.float64)
    passes: list[int] = []
    model.trunk[0].weight.register_hook(lambda grad: passes.append(1))
    z = model.trunk(batch)

    def losses(z: Tensor) -> list[Tensor]:
        return [
            (head(z)[:, 0] - (-1) ** task * (1 + task) * batch[:, 0]).square().mean() + 0.1
            for task, head in enumerate(model.heads)
        ]

    weights = weighted_backward(losses(z), model.groups(), weighting=MGDA(), features=z)
    assert len(passes) == 1
    detached = z.detach().requires_grad_()
    rows = torch.stack(
        [torch.autograd.grad(loss, detached, retain_graph=True)[0].flatten() for loss in losses(detached)]
    )
    torch.testing.assert_close(weights, MGDA()(rows @ rows.T), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(model), by_hand(model, batch, weights), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="features="):
        weighted_backward(losses(model.trunk(batch)), model.groups(), weighting=GradDrop(), features=z)
    with pytest.raises(ValueError, match="graph"):
        weighted_backward(losses(model.trunk(batch)), model.groups(), weighting=MGDA(), features=z.detach())


@pytest.mark.parametrize(
    ("method", "way"),
    [*((method, way) for method in (CAGrad, NashMTL, UncertaintyWeighting) for way in WAYS), (MoCo, "stored")],
)
def test_gradients_carry_the_factor_of_a_scaler(method: Callable[[], Weighting], way: str) -> None:
    results = []
    for enabled in (False, True):
        model = Towers(dtype=torch.float64)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=enabled)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        backward = WeightedBackward(model.groups(), num_tasks=3, weighting=method(), **WAYS[way])
        for seed in range(3):
            optimizer.zero_grad()
            backward(model.losses(batch_of(seed, torch.float64)), scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


def test_an_instance_keeps_its_state_from_call_to_call() -> None:
    batches = [batch_of(seed) for seed in range(3)]
    model, weighting = Towers(), NashMTL()
    one_by_one = [weighted_backward(model.losses(x), model.groups(), weighting=weighting) for x in batches]
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=NashMTL())
    assert_same([backward(model.losses(x)) for x in batches], one_by_one)
    saved = backward.state_dict()
    other = WeightedBackward(model.groups(), num_tasks=3, weighting=NashMTL())
    other.load_state_dict(saved)
    assert_same(other(model.losses(batches[0])), backward(model.losses(batches[0])))
    with pytest.raises(ValueError, match="expected the state"):
        WeightedBackward(model.groups(), num_tasks=3, weighting=CAGrad()).load_state_dict(saved)
    steps = WeightedBackward(model.groups(), num_tasks=3, weighting=Every(MGDA(), 2))
    seen = [steps(model.losses(x)) for x in batches]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_infinities_are_not_hidden() -> None:
    model = Towers()
    losses = model.losses(batch_of(0))
    losses[1] = losses[1] * float("inf")
    weights = weighted_backward(losses, model.groups(), weighting=CAGrad())
    assert weights.isnan().all()
    assert all(p.grad is not None and p.grad.isnan().all() for p in model.trunk.parameters())


BAD: dict[str, tuple[Callable[[Towers], Any], type[Exception], str]] = {
    "tensor": (lambda m: weighted_backward(m.losses(batch_of(0)), m.trunk[0].weight), TypeError, "list"),
    "twice": (
        lambda m: weighted_backward(m.losses(batch_of(0)), [*m.parameters(), m.trunk[0].bias]),
        ValueError,
        "twice",
    ),
    "task": (
        lambda m: weighted_backward(m.losses(batch_of(0)), [{"params": m.parameters(), "task": 3}]),
        ValueError,
        "expected task",
    ),
    "heads": (lambda m: weighted_backward(m.losses(batch_of(0)), m.parameters(), heads="own"), ValueError, "heads"),
    "collect": (
        lambda m: weighted_backward(m.losses(batch_of(0)), m.parameters(), collect="all"),
        ValueError,
        "collect",
    ),
    "number": (
        lambda m: WeightedBackward(m.parameters(), num_tasks=2)(m.losses(batch_of(0))),
        ValueError,
        "num_tasks=2",
    ),
    "preferences": (
        lambda m: weighted_backward(m.losses(batch_of(0)), m.parameters(), preferences=[1.0, 1.0, 1.0]),
        ValueError,
        "sum to 1",
    ),
    "generator": (
        lambda m: weighted_backward(m.losses(batch_of(0)), m.parameters(), generator=3),  # type: ignore[arg-type]
        TypeError,
        "generator",
    ),
    "process group": (
        lambda m: WeightedBackward(m.parameters(), num_tasks=3, process_group="nccl"),
        TypeError,
        "process_group as a ProcessGroup",
    ),
    "epochs": (
        lambda m: weighted_backward(m.losses(batch_of(0)), m.parameters(), weighting="dwa"),
        ValueError,
        "DWA has to be told of epochs",
    ),
    "feedback": (
        lambda m: weighted_backward(m.losses(batch_of(0)), m.parameters(), weighting="famo"),
        ValueError,
        "feedback",
    ),
    "only heads": (
        lambda m: weighted_backward(m.losses(batch_of(0)), [{"params": m.heads[0].parameters(), "task": 0}]),
        ValueError,
        "only those of heads",
    ),
    "two batches": (
        lambda m: weighted_backward(m.losses(batch_of(0)), m.parameters(), weighting="modo"),
        NotImplementedError,
        "two mini-batches",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_changes_nothing(name: str) -> None:
    function, error, text = BAD[name]
    model = Towers()
    with pytest.raises(error, match=text):
        function(model)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("collect", ["sequential", "batched"])
def test_losses_of_other_parameters_are_refused(collect: str) -> None:
    """Else ``.grad`` of the new ones would be that of the plain sum, without a word."""
    model = Towers()
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=MGDA(), collect=collect)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match=r"reached none of them.*assign=True"):
        backward(model.losses(batch_of(0)))
    if collect == "sequential":
        turns = backward.tasks()
        for task in range(3):
            assert next(turns) == task
            backward(model.losses(batch_of(0))[task])
        with pytest.raises(RuntimeError, match="reached none of them"):
            next(turns)  # the end of the loop


def test_heads_of_no_group_are_trained_behind_a_frozen_trunk_too() -> None:
    model = Towers()
    backward = WeightedBackward(model.trunk.parameters(), num_tasks=3, weighting=MGDA())
    model.trunk.requires_grad_(False)
    backward(model.losses(batch_of(0)))
    grads = gradients(model)
    assert grads[0] is None and grads[-1] is not None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [MoCo, UPGrad, lambda: Every(NashMTL(), 3)])
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_from_where_it_was(
    twin: Callable[[Any], Any], method: Callable[[], Weighting], way: str
) -> None:
    """Copies had no buffers, and failed at their first call."""
    model = Towers()
    if way == "not stored" and method is MoCo:
        pytest.skip("a weighting that changes stored gradients")
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=method(), **WAYS[way])
    for seed in range(2):
        model.zero_grad()
        backward(model.losses(batch_of(seed)))
    other, again = twin((model, backward))
    for seed in (2, 3):
        model.zero_grad()
        other.zero_grad()
        weights = backward(model.losses(batch_of(seed)))
        assert_same(again(other.losses(batch_of(seed))), weights)
        assert_same(gradients(other), gradients(model))


def test_arguments_of_another_kind() -> None:
    model = Towers()
    for options, words in (
        ({"store": "no"}, "expected store as True or False"),
        ({"forget": 0}, "expected forget as True or False"),
        ({"preferences": 1.0}, "expected preferences as a list"),
    ):
        with pytest.raises(TypeError, match=words):
            WeightedBackward(model.groups(), num_tasks=3, **options)
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=MGDA())
    with pytest.raises(TypeError, match=r"expected features as a list.*got int"):
        backward(model.losses(batch_of(0)), features=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected the state of the weighting MGDA as a dict, got list"):
        backward.load_state_dict([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of fewer tasks or samples a list, with None for each"):
        backward(torch.stack(model.losses(batch_of(0))[:2]))
    assert gradients(model) == [None] * len(gradients(model))
