"""SubproblemBank: K copies in one call are K models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, SubproblemBank


class Tied(nn.Module):
    """Tied weights, a buffer that is not saved, a layer with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor, *, negative: bool = False) -> Tensor:
        out = self.last(self.norm(self.first(x)).tanh()) * self.scale
        return -out if negative else out


def make(num_subproblems: int = 3) -> tuple[Tied, SubproblemBank]:
    torch.manual_seed(0)
    model = Tied()
    bank = SubproblemBank(model, num_subproblems)
    with torch.no_grad():
        for tensor in [*bank.parameters(), *bank.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model, bank


def test_each_slice_is_a_model_of_its_own() -> None:
    _, bank = make()
    x = torch.randn(3, 8, 4)
    singles = []
    for k in range(3):
        with bank.subproblem(k) as single:
            singles.append(single)
    outputs = bank(x)
    expected = torch.stack([single(part) for single, part in zip(singles, x, strict=True)])
    torch.testing.assert_close(outputs, expected)
    for k, single in enumerate(singles):  # running statistics are updated in place, K of them
        with bank.subproblem(k) as after:
            torch.testing.assert_close(dict(after.named_buffers()), dict(single.named_buffers()))
            assert after.last.weight is after.first.weight
    outputs.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(
        bank.get_parameter("first/weight").grad[1], singles[1].first.weight.grad, rtol=1e-4, atol=1e-5
    )


def test_a_shared_batch_and_options() -> None:
    _, bank = make()
    bank.eval()
    x = torch.randn(8, 4)
    torch.testing.assert_close(bank(x, shared=True), bank(x.expand(3, 8, 4)))
    torch.testing.assert_close(bank(x, shared=True, negative=True), -bank(x, shared=True))


def test_modes_of_single_layers_are_kept() -> None:
    model = Tied()
    model.norm.eval()
    bank = SubproblemBank(model, 2)
    before = bank.get_buffer("norm/running_mean").clone()
    bank(torch.randn(2, 8, 4))
    assert torch.equal(bank.get_buffer("norm/running_mean"), before)
    bank.train()
    bank(torch.randn(2, 8, 4))
    assert not torch.equal(bank.get_buffer("norm/running_mean"), before)


def test_the_model_is_copied_and_the_dict_has_what_its_own_has() -> None:
    model, bank = make()
    before = copy.deepcopy(model.state_dict())
    bank(torch.randn(3, 8, 4)).sum().backward()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    expected = {key.replace(".", "/") for key in before} - {"last/weight"}
    assert set(bank.state_dict()) == expected
    other = SubproblemBank(model, 3)
    other.load_state_dict(bank.state_dict())
    for p, q in zip(bank.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_moves_copies_and_pickles() -> None:
    _, bank = make()
    x = torch.randn(3, 8, 4)
    bank.eval()
    expected = bank(x)
    assert torch.equal(copy.deepcopy(bank)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(bank))(x), expected)
    bank.double()
    torch.testing.assert_close(bank(x.double()), expected.double(), rtol=1e-4, atol=1e-5)


def test_random_layers_draw_for_each_copy() -> None:
    bank = SubproblemBank(nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)), 2)
    torch.manual_seed(0)
    first, second = bank(torch.ones(1, 4), shared=True)
    assert not torch.equal(first == 0, second == 0)


def test_bad_input() -> None:
    model, bank = make()
    with pytest.raises(ValueError, match="num_subproblems >= 1"):
        SubproblemBank(model, 0)
    with pytest.raises(ValueError, match="with parameters"):
        SubproblemBank(nn.Tanh(), 2)
    with pytest.raises(ValueError, match="shared=True"):
        bank(torch.randn(8, 4))
    with pytest.raises(IndexError, match=r"0 \.\. 2"), bank.subproblem(3):
        pass
    with pytest.raises(ValueError, match="leading dimension 5"):
        MT2OFused(bank.parameters(), num_tasks=2, num_subproblems=5, stacked=True)
