"""What code that saves models finds: parameters that share no storage, each as large as the tensor is."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from mt2o_ext import ConnectionStrengthFused, MT2OFused, SubproblemBank, WeightedFused

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5), nn.Linear(5, 2)).to(dtype)
    layers[0].weight.data = layers[0].weight.data.to(memory_format=torch.channels_last)
    return layers


def weighted(model: nn.Module) -> WeightedFused:
    return WeightedFused(model.parameters(), num_tasks=2, weighting="cagrad")


def mt2o(model: nn.Module) -> MT2OFused:
    return MT2OFused(model.parameters(), num_tasks=2, num_subproblems=4, front="rows")


def vertices(model: nn.Module) -> MT2OFused:
    return MT2OFused(model.parameters(), num_tasks=2, num_subproblems=4, front="vertices")


def connections(model: nn.Module) -> ConnectionStrengthFused:
    with pytest.warns(UserWarning, match="no connections"):
        return ConnectionStrengthFused(model.parameters(), connections=[], num_tasks=2, total_steps=10)


MAKERS = pytest.mark.parametrize("make", [weighted, mt2o, vertices, connections])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def losses(model: nn.Module) -> list[Tensor]:
    p = next(model.parameters())
    out = model(torch.ones(2, *((3, 6, 6) if p.dim() == 4 else (4,)), dtype=p.dtype)).float()
    return [out.square().mean(), (out - 1).square().mean()]


def train(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    if isinstance(optimizer, ConnectionStrengthFused):
        optimizer.step(lambda task: losses(model)[task])
    else:
        optimizer.step(lambda: losses(model))


def check_storages(parameters: list[Tensor]) -> None:
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    for p in parameters:
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
        assert p.storage_offset() == 0


def saved_size(state: dict[str, Tensor]) -> int:
    file = io.BytesIO()
    torch.save(state, file)
    return len(file.getvalue())


@MAKERS
@EACH_DTYPE
@pytest.mark.filterwarnings("ignore:all 4 subproblems started")
def test_each_parameter_has_a_storage_of_its_own(make: Callable, dtype: torch.dtype, tmp_path: Path) -> None:
    model = network(dtype)
    strides = [p.stride() for p in model.parameters()]
    plain = saved_size(model[3].state_dict())
    optimizer = make(model)
    for _ in range(2):
        check_storages(list(model.parameters()))
        check_storages(list(copy.deepcopy(model).parameters()))
        assert [p.stride() for p in model.parameters()] == strides
        assert saved_size(model[3].state_dict()) <= plain + 64
        train(optimizer, model)
    file = tmp_path / "model.safetensors"
    save_model(model, file)
    other = network(dtype)
    load_model(other, file)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("make", [mt2o, vertices])
def test_every_subproblem_of_a_loop_has_storages_of_its_own(make: Callable) -> None:
    model = network(torch.float32)
    optimizer = make(model)
    seen = set()
    for _ in optimizer.subproblems():
        check_storages(list(model.parameters()))
        seen.add(next(model.parameters()).data_ptr())
    assert len(seen) == 4


def test_a_bank_has_them_where_its_rows_have_no_gaps(front: str) -> None:
    """The K rows of a tensor lie apart in the buffer: each storage begins and ends with its own tensor."""
    bank = SubproblemBank(nn.Linear(4, 3), 3)
    MT2OFused(bank.parameters(), num_tasks=2, num_subproblems=3, transfer=None, stacked=True, front=front)
    parameters = list(bank.parameters())
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    assert all(p.storage_offset() == 0 for p in parameters)


def test_parameters_outlive_the_optimizer() -> None:
    model = network(torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = weighted(model)
    del optimizer
    torch.randn(100_000)  # where the buffer was, if it were gone
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
