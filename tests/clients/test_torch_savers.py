"""Everything that saves or copies: distributed checkpoints, safetensors, torch.save, copies, shared memory."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)

from support.clients.foreign import NOISE, library
from support.clients.loops import LOOPS, K, Loop, Net, assert_same, everything, loader, losses

safetensors: Any = library("safetensors.torch")

pytestmark = [pytest.mark.filterwarnings(text) for text in (*NOISE, "ignore:torch.distributed is disabled:UserWarning")]
ALL = pytest.mark.parametrize("name", LOOPS)
HALF = 4


def train(loop: Loop, batches: Any) -> None:
    for x, y in batches:
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))


def halves() -> tuple[list[Any], list[Any]]:
    batches = list(loader())
    return batches[:HALF], batches[HALF:]


def through(name: str) -> Loop:
    loop = LOOPS[name](Net())
    train(loop, loader())
    return loop


# ---------------------------------------------------------------- runs that are resumed
@ALL
def test_distributed_state_dicts(name: str) -> None:
    """``get_state_dict`` in the middle, ``set_state_dict`` into a new run: bitwise."""
    first, second = halves()
    loop, fresh = LOOPS[name](Net()), LOOPS[name](Net())
    train(loop, first)
    model, optimizer = get_state_dict(loop.model, loop.optimizer, options=StateDictOptions(full_state_dict=True))
    set_state_dict(fresh.model, fresh.optimizer, model_state_dict=copy.deepcopy(model),
                   optim_state_dict=copy.deepcopy(optimizer))  # fmt: skip
    train(fresh, second)
    assert_same(everything(fresh), everything(through(name)))


@ALL
def test_distributed_checkpoints(name: str, tmp_path: Path) -> None:
    """``dcp.save`` and ``dcp.load`` into a run that has not made a step: bitwise."""
    first, second = halves()
    loop, fresh = LOOPS[name](Net()), LOOPS[name](Net())
    train(loop, first)
    model, optimizer = get_state_dict(loop.model, loop.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path / "saved", no_dist=True)

    model, optimizer = get_state_dict(fresh.model, fresh.optimizer)
    state = {"model": model, "optimizer": optimizer}
    dcp.load(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    set_state_dict(fresh.model, fresh.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(fresh, second)
    assert_same(everything(fresh), everything(through(name)))


@ALL
def test_distributed_checkpoints_of_plain_dicts(name: str, tmp_path: Path) -> None:
    first, second = halves()
    loop, fresh = LOOPS[name](Net()), LOOPS[name](Net())
    train(loop, first)
    state = {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}
    dcp.save(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    train(fresh, first[:1])  # moments are there, to be overwritten
    state = {"model": fresh.model.state_dict(), "optimizer": fresh.optimizer.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    fresh.model.load_state_dict(state["model"])
    fresh.optimizer.load_state_dict(state["optimizer"])
    train(fresh, second)
    assert_same(everything(fresh), everything(through(name)))


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "weighted backward"])  # torch's counts a step
def test_asking_for_the_state_changes_nothing(name: str) -> None:
    """Before the first step the API calls ``step`` itself, with zero gradients and a learning rate of zero."""
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    get_optimizer_state_dict(loop.model, loop.optimizer)
    train(loop, loader())
    train(twin, loader())
    assert_same(everything(loop), everything(twin))
    assert {g["lr"] for g in loop.optimizer.param_groups} == {g["lr"] for g in twin.optimizer.param_groups}


@ALL
def test_torch_save_of_plain_tensors(name: str) -> None:
    first, second = halves()
    loop, fresh = LOOPS[name](Net()), LOOPS[name](Net())
    train(loop, first)
    file = io.BytesIO()
    torch.save({"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh.model.load_state_dict(saved["model"])
    fresh.optimizer.load_state_dict(saved["optimizer"])
    train(fresh, second)
    assert_same(everything(fresh), everything(through(name)))


@pytest.mark.parametrize("name", ["weighted", "mt2o", "connection strength"])
def test_parameters_that_the_optimizer_no_longer_has(name: str) -> None:
    """After ``load_state_dict(assign=True)`` the model has other parameters: the error says just that."""
    loop = LOOPS[name](Net())
    train(loop, halves()[0][:1])
    loop.model.load_state_dict({key: value.clone() for key, value in loop.model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match=r"parameter.* of this optimizer|this optimizer's parameters"):
        train(loop, halves()[1][:1])


@ALL
def test_parameters_in_shared_memory_are_trained_there(name: str) -> None:
    """Other processes see the weights of each step (Hogwild, actors, evaluations)."""
    first, second = halves()
    loop = LOOPS[name](Net())
    train(loop, first)
    loop.model.share_memory()
    seen_elsewhere = {key: value.detach() for key, value in loop.model.state_dict().items()}
    train(loop, second)
    assert_same(seen_elsewhere, dict(through(name).model.state_dict()))
    assert all(p.is_shared() for p in loop.model.parameters())


@pytest.mark.parametrize(
    "name", [name for name in LOOPS if name != "weighted backward" and not name.startswith("connection strength")]
)
def test_a_copy_goes_on(name: str) -> None:
    first, second = halves()
    loop = LOOPS[name](Net())
    train(loop, first)
    twin = copy.deepcopy(loop)
    train(twin, second)
    assert_same(everything(twin), everything(through(name)))
    train(loop, second)
    assert_same(everything(loop), everything(twin))


# ---------------------------------------------------------------- models that are saved
@ALL
@pytest.mark.parametrize("how", ["save_model", "save_file", "torch.save", "get_model_state_dict"])
def test_the_saved_model_is_whole(name: str, how: str, tmp_path: Path) -> None:
    loop = through(name)
    expected = {key: value.clone() for key, value in loop.model.state_dict().items()}
    file = tmp_path / "model"
    if how == "save_model":
        safetensors.save_model(loop.model, str(file))
        found = safetensors.load_file(file)
    elif how == "save_file":
        safetensors.save_file(loop.model.state_dict(), file)
        found = safetensors.load_file(file)
    elif how == "torch.save":
        torch.save(loop.model.state_dict(), file)
        found = torch.load(file, weights_only=True)
    else:
        found = get_model_state_dict(loop.model)
    assert_same(found, expected)
    if file.exists():
        size = sum(value.numel() * value.element_size() for value in expected.values())
        assert file.stat().st_size < size + 500 * len(expected) + 4096


@ALL
def test_each_part_is_as_large_as_it_is(name: str) -> None:
    model: Any = through(name).model
    for p in model.parameters():
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


@pytest.mark.parametrize("name", ["mt2o", "mt2o, weighting", "mt2o, closure"])
def test_a_model_of_the_front_is_saved(name: str, tmp_path: Path) -> None:
    loop: Any = through(name)
    seen = []
    for k in range(K):
        with loop.optimizer.subproblem(k):
            safetensors.save_model(loop.model, str(tmp_path / f"{k}"))
            x, y = next(iter(loader()))
            seen.append([one.item() for one in losses(loop.model, x, y)])
    assert len({tuple(one) for one in seen}) == K
    for k in range(K):
        net: nn.Module = Net()
        safetensors.load_model(net, str(tmp_path / f"{k}"))
        assert [one.item() for one in losses(net, x, y)] == seen[k]
