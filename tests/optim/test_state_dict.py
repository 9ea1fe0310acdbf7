"""State dicts: torch.optim's keys, both ways; resume, copies and pickles are bitwise as if never stopped."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from mt2o_ext import MT2OFused
from mt2o_ext.base import SGD, Adam, AdamW, Lion
from mt2o_ext.transfer import CrossLearning, DistanceDecrease, Hat, Spectral
from support.optim.problems import (
    TWINS,
    Batches,
    Twin,
    assert_same,
    make_model,
    rows,
    seeded,
    set_gradients,
    snapshot,
    task_losses,
    train,
)


@pytest.fixture(params=TWINS, ids=str)
def twin(request: pytest.FixtureRequest, twins: dict[str, Twin]) -> Twin:
    return twins[request.param]


def make_parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in (17, 0, 4097)]


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        set_gradients(parameters, seed)
        optimizer.step()


# ---------------------------------------------------------------------- both ways with torch.optim
def test_keys_and_shapes_are_those_of_torch(twin: Twin) -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizers = [twin.ours(ours), twin.torch(theirs)]
    for optimizer, parameters in zip(optimizers, (ours, theirs), strict=True):
        steps(optimizer, parameters, range(2))
    mine, other = (optimizer.state_dict()["state"] for optimizer in optimizers)
    for index, state in other.items():
        expected = {key: (value.shape, value.dtype) for key, value in state.items() if value is not None}
        assert {key: (value.shape, value.dtype) for key, value in mine.get(index, {}).items()} == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_torch_goes_on_from_our_dict_and_we_from_theirs(twin: Twin, dtype: torch.dtype) -> None:
    ours, theirs = make_parameters(dtype), make_parameters(dtype)
    mine, other = twin.ours(ours), twin.torch(theirs)
    steps(mine, ours, range(5))
    steps(other, theirs, range(5))
    first, second = mine.state_dict(), other.state_dict()
    swapped_ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    swapped_theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine, other = twin.ours(swapped_ours), twin.torch(swapped_theirs)
    mine.load_state_dict(second)
    other.load_state_dict(first)
    steps(mine, swapped_ours, range(5, 9))
    steps(other, swapped_theirs, range(5, 9))
    tolerance = {"rtol": 0, "atol": 100 * torch.finfo(dtype).eps}
    torch.testing.assert_close(swapped_ours, swapped_theirs, **tolerance)


def test_old_dicts_without_our_options_load() -> None:
    p = make_parameters()
    optimizer = MT2OFused(p, num_tasks=1, num_subproblems=1, ema=0.9, lr=0.5)
    old: dict[str, Any] = {
        "state": {0: {"step": 3, "exp_avg": torch.ones(17), "exp_avg_sq": torch.ones(17)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "params": [0, 1, 2]}],
    }
    optimizer.load_state_dict(old)
    group = optimizer.param_groups[0]
    assert group["transfer"] is True and group["amsgrad"] is False and group["lr"] == 0.1
    steps(optimizer, p, range(1))
    assert optimizer.state[p[0]]["step"] == 4 and optimizer.state[p[2]]["step"] == 1


def test_ids_of_a_dict_are_only_names(twin: Twin) -> None:
    """Which state is whose says the place in the groups: ids may be any numbers, in any order, as torch takes them."""
    ours, theirs = make_parameters(), make_parameters()
    mine, other = twin.ours(ours), twin.torch(theirs)
    steps(mine, ours, range(3))
    steps(other, theirs, range(3))
    loaded = []
    for optimizer, make_one, p in ((mine, twin.ours, ours), (other, twin.torch, theirs)):
        saved, names = optimizer.state_dict(), [7, 9, 2]
        [group] = saved["param_groups"]
        saved["state"] = {names[i]: state for i, state in saved["state"].items() if isinstance(i, int)}
        group["params"] = names
        q = [nn.Parameter(x.detach().clone()) for x in p]
        loaded.append((make_one(q), q))
        loaded[-1][0].load_state_dict(saved)
    states = [optimizer.state_dict()["state"] for optimizer in (loaded[0][0], mine)]
    assert_same(*({i: state for i, state in each.items() if state} for each in states))
    for optimizer, q in loaded:
        steps(optimizer, q, range(3, 5))
    torch.testing.assert_close(loaded[0][1], loaded[1][1], rtol=0, atol=1e-5)


def test_what_a_dict_does_not_have_starts_anew() -> None:
    ours, fresh = make_parameters(), make_parameters()
    options: dict[str, Any] = {"num_tasks": 1, "num_subproblems": 1, "ema": 0.9}
    optimizer, other = MT2OFused(ours, **options), MT2OFused(fresh, **options)
    saved = optimizer.state_dict()
    steps(optimizer, ours, range(3))
    optimizer.load_state_dict(saved)
    for p, q in zip(ours, fresh, strict=True):
        q.data.copy_(p)
    other.load_state_dict(saved)
    steps(optimizer, ours, range(4, 6))
    steps(other, fresh, range(4, 6))
    assert_same(snapshot(optimizer), snapshot(other))


def test_a_dict_has_no_views_of_the_buffers(twins: dict[str, Twin]) -> None:
    p = make_parameters()
    optimizer = twins["adamw"].ours(p)
    steps(optimizer, p, range(1))
    state = optimizer.state_dict()["state"]
    for i in (0, 2):
        for value in state[i].values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    before = copy.deepcopy(state)
    steps(optimizer, p, range(1, 2))
    assert_same(state, before)


def test_float32_state_of_16_bit_parameters_is_not_rounded(twins: dict[str, Twin]) -> None:
    p = make_parameters(torch.bfloat16)
    optimizer = twins["adamw"].ours(p)
    steps(optimizer, p, range(3))
    saved = optimizer.state_dict()
    q = [nn.Parameter(x.detach().clone()) for x in p]
    other = twins["adamw"].ours(q)
    other.load_state_dict(saved)
    assert_same(other.state_dict(), saved)
    assert other.state[q[0]]["exp_avg"].dtype == other.state[q[0]]["master"].dtype == torch.float32
    steps(optimizer, p, range(3, 6))
    steps(other, q, range(3, 6))
    assert_same(snapshot(other), snapshot(optimizer))


# ---------------------------------------------------------------------- resume
CASES: dict[str, dict[str, Any]] = {
    "spectral": {"transfer": lambda: Spectral(every=3)},
    "spectral of changes": {"transfer": lambda: Spectral(every=3, relative=True)},
    "hat": {"transfer": lambda: Hat(every=2), "base": Adam(amsgrad=True)},
    "distance decrease": {"transfer": lambda: DistanceDecrease(every=2), "base": SGD(momentum=0.9, dampening=0.5)},
    "lion": {"transfer": lambda: Spectral(every=3), "base": Lion(weight_decay=0.1)},
    "cross-learning": {"transfer": lambda: CrossLearning(0.01, every=2), "base": SGD()},
    "none": {"transfer": lambda: None},
    "vertices": {"transfer": lambda: None, "front": "vertices", "weighting": "pcgrad", "warm_up": 3},
}


def make(case: str, dtype: torch.dtype, seed: int = 0) -> tuple[nn.Module, MT2OFused]:
    model = make_model(dtype, norm=True, seed=seed)
    options = {"base": AdamW(), **CASES[case]}
    options["transfer"] = options["transfer"]()
    given = {"num_tasks": 2, "num_subproblems": 5, "lr": 2e-2, "ema": 0.9, "buffers": model.buffers()}
    return model, MT2OFused(model.parameters(), **seeded(**given, **options))


@pytest.mark.filterwarnings("ignore:inside of at")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_resume_is_bitwise_the_same_as_never_stopping(case: str, dtype: torch.dtype) -> None:
    model, optimizer = make(case, dtype)
    batches = Batches(dtype=dtype)
    train(optimizer, model, batches, 7)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other_model, other = make(case, dtype, seed=3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(snapshot(other), snapshot(optimizer))
    # The parameters of all subproblems are in the dict; the model's own dict is not needed.
    others = Batches(dtype=dtype)
    others.generator.set_state(batches.generator.get_state())
    assert_same(train(other, other_model, others, 6), train(optimizer, model, batches, 6))
    assert_same(snapshot(other), snapshot(optimizer))
    assert_same(rows(other, other_model), rows(optimizer, model))
    assert_same(dict(other_model.named_buffers()), dict(model.named_buffers()))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("num_subproblems", [1, 5])
@pytest.mark.filterwarnings("ignore:inside of at")
def test_copies_go_on_alike_and_apart(how: str, before: int, num_subproblems: int, front: str) -> None:
    model = make_model(norm=True)
    options = {"num_tasks": 2, "num_subproblems": num_subproblems, "ema": 0.9, "front": front}
    optimizer = MT2OFused(model.parameters(), buffers=model.buffers(), **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)  # puts a wrapper on the object
    batches = Batches()
    train(optimizer, model, batches, before)
    if how == "deepcopy":
        other_model, other = copy.deepcopy((model, optimizer))
    elif how == "pickle":
        other_model, other = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        file = io.BytesIO()
        torch.save((model, optimizer), file)
        file.seek(0)
        other_model, other = torch.load(file, weights_only=False)
    assert_same(snapshot(other), snapshot(optimizer))
    untouched = snapshot(other)
    others = Batches()
    others.generator.set_state(batches.generator.get_state())
    losses = train(optimizer, model, batches, 5)
    scheduler.step()
    assert_same(snapshot(other), untouched)
    assert_same(train(other, other_model, others, 5), losses)
    assert_same(rows(other, other_model), rows(optimizer, model))


def test_a_copy_inside_a_loop_shows_the_same_subproblem() -> None:
    model = make_model(norm=True)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=5, buffers=model.buffers(), front="rows")
    train(optimizer, model, Batches(), 3)
    with optimizer.subproblem(2):
        other_model, other = copy.deepcopy((model, optimizer))
        assert_same(other_model.state_dict(), model.state_dict())
    x = torch.randn(4, 7)
    other.zero_grad()
    other.backward(task_losses(other_model(x), x[:, 0]))
    with pytest.warns(UserWarning, match="subproblems 0, 1, 3, 4 have no gradients"):
        other.step()
    assert [int(n) for n in other.state[next(other_model.parameters())]["step"]] == [3, 3, 4, 3, 3]


# ---------------------------------------------------------------------- what does not fit
def trained(num_subproblems: int, num_tasks: int, sizes: tuple[int, ...], **options: Any) -> MT2OFused:
    p = [nn.Parameter(torch.randn(size)) for size in sizes]
    given = {"num_tasks": num_tasks, "num_subproblems": num_subproblems, "front": "rows"}
    optimizer = MT2OFused(p, **seeded(**{**given, **options}))
    for k in optimizer.subproblems():
        set_gradients(p, k)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "other",
    [
        lambda: trained(6, 2, (5, 17)),
        lambda: trained(1, 2, (5, 17)),
        lambda: trained(5, 3, (5, 17), preferences=torch.eye(3).repeat(2, 1)[:5], transfer=None),
        lambda: trained(5, 2, (5, 17, 3)),
        lambda: trained(5, 2, (5, 18)),
        lambda: trained(5, 2, (5,)),
        lambda: trained(5, 2, (5, 17), buffers=[torch.zeros(3)]),
        lambda: trained(5, 2, (5, 17), transfer=DistanceDecrease()),
        lambda: trained(5, 2, (5, 17), front="vertices"),
    ],
    ids=["K=6", "K=1", "T", "more tensors", "another shape", "fewer tensors", "buffers", "transfer rule", "vertices"],
)
def test_a_dict_that_does_not_fit_changes_nothing(other: Any) -> None:
    optimizer = trained(5, 2, (5, 17))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="expected"):
        optimizer.load_state_dict(other().state_dict())
    assert_same(snapshot(optimizer), before)
    assert_same(copy.deepcopy(optimizer).state_dict(), optimizer.state_dict())


def test_the_dict_of_several_subproblems_does_not_fit_one() -> None:
    optimizer = trained(1, 2, (5, 17))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="1 subproblems"):
        optimizer.load_state_dict(trained(5, 2, (5, 17)).state_dict())
    assert_same(snapshot(optimizer), before)
