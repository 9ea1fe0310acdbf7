"""K = 1 is torch.optim: 20 steps in lock step with it and with float64, over sizes, dtypes, groups, rates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext import MT2OFused
from mt2o_ext.base import BASE_RULES, AdamW
from support.optim.problems import TWINS, Batches, Kind, Twin, assert_same, make_model, rows, set_gradients, task_losses

SIZES = [0, 1, 3, 15, 16, 17, 4097]
STEPS = 20


@pytest.fixture(params=TWINS, ids=str)
def twin(request: pytest.FixtureRequest, twins: dict[str, Twin]) -> Twin:
    return twins[request.param]


def test_every_base_rule_has_a_twin() -> None:
    assert {type(twin.base) for twin in TWINS.values()} == set(BASE_RULES.values())


def make_parameters(sizes: list[int], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def copies(parameters: list[torch.nn.Parameter], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().to(dtype, copy=True)) for p in parameters]


def run_all(
    twin: Twin, sizes: list[int], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], list[Tensor], torch.optim.Optimizer]:
    """Parameters after 20 steps with the same gradients: ours, torch's in the same dtype, torch's in float64."""
    ours = make_parameters(sizes, dtype)
    theirs, exact = copies(ours, dtype), copies(ours, torch.float64)
    optimizer = twin.ours(ours)
    others = [twin.torch(theirs), twin.torch(exact)]
    for step in range(STEPS):
        set_gradients(ours, step)
        for parameters in (theirs, exact):
            for p, q in zip(parameters, ours, strict=True):
                p.grad = q.grad.to(p.dtype, copy=True)  # type: ignore[union-attr]
        for one in (optimizer, *others):
            one.step()
    return [p.detach() for p in ours], [p.detach() for p in theirs], [p.detach() for p in exact], optimizer


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


@pytest.mark.parametrize("sizes", [SIZES, [278011]], ids=["small", "large"])
def test_float32_is_as_near_to_float64_as_torch(twin: Twin, sizes: list[int]) -> None:
    for p, q, exact in zip(*run_all(twin, sizes, torch.float32)[:3], strict=True):
        floor = torch.finfo(torch.float32).eps * largest(exact)
        assert largest(p - exact) <= 2 * largest(q - exact) + floor


def test_float64_differs_from_torch_by_rounding(twin: Twin) -> None:
    for p, q, _ in zip(*run_all(twin, SIZES, torch.float64)[:3], strict=True):
        assert largest(p - q) <= STEPS * torch.finfo(torch.float64).eps * largest(q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_parameters_follow_float32_masters(twin: Twin, dtype: torch.dtype) -> None:
    ours, theirs, exact, optimizer = run_all(twin, SIZES, dtype)
    parameters = optimizer.param_groups[0]["params"]
    for p, q, reference, parameter in zip(ours, theirs, exact, parameters, strict=True):
        master = optimizer.state[parameter]["master"]
        assert master.dtype == torch.float32
        assert_same(p, master.to(dtype))  # written out rounded to nearest
        floor = torch.finfo(torch.float32).eps * largest(reference)
        assert largest(master - reference) <= STEPS * floor
        assert largest(p.double() - reference) <= largest(q.double() - reference)


def test_groups_with_options_of_their_own_in_one_launch(twins: dict[str, Twin]) -> None:
    options = [
        {"lr": 1e-1, "betas": (0.5, 0.9)},
        {"eps": 1e-3, "weight_decay": 0.3},
        {"maximize": True, "lr": 3e-3},
        {"amsgrad": True},
        {},
    ]
    ours = make_parameters([17, 3, 4097, 16, 5], torch.float32)
    theirs = copies(ours, torch.float32)
    optimizer = twins["adamw"].ours([{"params": [p], **o} for p, o in zip(ours, options, strict=True)])
    other = twins["adamw"].torch([{"params": [p], **o} for p, o in zip(theirs, options, strict=True)])
    check_steps(optimizer, other, ours, theirs)
    assert [("max_exp_avg_sq" in optimizer.state[p]) for p in ours] == [False, False, False, True, False]


def test_groups_of_sgd_with_and_without_momentum(twins: dict[str, Twin]) -> None:
    options = [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5, "nesterov": True}, {"maximize": True}]
    ours = make_parameters([17, 3, 40, 16], torch.float32)
    theirs = copies(ours, torch.float32)
    optimizer = twins["sgd"].ours([{"params": [p], **o} for p, o in zip(ours, options, strict=True)])
    other = twins["sgd"].torch([{"params": [p], **o} for p, o in zip(theirs, options, strict=True)])
    check_steps(optimizer, other, ours, theirs)


def check_steps(
    optimizer: torch.optim.Optimizer,
    other: torch.optim.Optimizer,
    ours: list[torch.nn.Parameter],
    theirs: list[torch.nn.Parameter],
) -> None:
    for step in range(STEPS):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-element"])
def test_learning_rate_as_a_tensor_changed_in_place(shape: tuple[int, ...], twins: dict[str, Twin]) -> None:
    ours = make_parameters([17, 300], torch.float32)
    theirs = copies(ours, torch.float32)
    lr = torch.full(shape, 0.1)
    optimizer, other = twins["adamw"].ours(ours, lr=lr), twins["adamw"].torch(theirs, lr=0.1)
    for step in range(STEPS):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        lr.mul_(0.9)
        other.param_groups[0]["lr"] = lr.item()
        optimizer.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_channels_last_parameters_keep_their_strides(twins: dict[str, Twin]) -> None:
    ours = [torch.nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))]
    theirs = copies(ours, torch.float32)
    optimizer, other = twins["adamw"].ours(ours), twins["adamw"].torch(theirs)
    check_steps(optimizer, other, ours, theirs)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[ours[0]]["exp_avg"].stride() == ours[0].stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", TWINS)
def test_rows_without_transfer_are_runs_of_their_own(base: str, dtype: torch.dtype) -> None:
    twin, model = TWINS[base], make_model(dtype)
    singles = [make_model(dtype) for _ in range(3)]
    weights = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    optimizer = twin.ours(
        model.parameters(), num_tasks=2, num_subproblems=3, preferences=weights, transfer=None, ema=0.9
    )
    alone = [
        twin.ours(single.parameters(), num_tasks=2, preferences=weights[k : k + 1], ema=0.9)
        for k, single in enumerate(singles)
    ]
    batches = Batches(dtype=dtype)
    for _ in range(8):
        drawn = [next(batches) for _ in range(3)]
        queue = iter(drawn)
        optimizer.step(lambda: task_losses(model(x := next(queue)[0]), x[:, 0]))  # noqa: B023
        for single, other, (x, _) in zip(singles, alone, drawn, strict=True):
            other.step(lambda: task_losses(single(x), x[:, 0]))  # noqa: B023
    for k, row in enumerate(rows(optimizer, model)):
        assert_same(row, [p.detach() for p in singles[k].parameters()])
        for p, q in zip(model.parameters(), singles[k].parameters(), strict=True):
            there = {
                key: value for key, value in alone[k].state[q].items() if value is not None
            }  # as torch's SGD shows
            for key, value in there.items():
                if key != "master":
                    assert_same(optimizer.state[p][key][k], value)


def test_defaults_are_those_of_torch(kind: Kind) -> None:
    p = [torch.nn.Parameter(torch.ones(2))]
    options = {"num_subproblems": 1} if kind is MT2OFused else {}
    ours, theirs = kind(p, num_tasks=1, base=AdamW(), **options), torch.optim.AdamW(p)
    shared = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"}
    assert {key: ours.defaults[key] for key in shared} == {key: theirs.defaults[key] for key in shared}
