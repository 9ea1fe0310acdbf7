"""Models in a ParetoFront: given back as they were, saved at their own size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.pareto import ParetoFront
from mt2o_ext.preferences import even


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Linear(50, 2))


def front_of(states: Any) -> ParetoFront:
    return ParetoFront(torch.rand(len(states), 2), even(len(states)), states=states)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_models_come_back_from_a_file(tmp_path: Path) -> None:
    models = [network(seed) for seed in range(3)]
    for model in models:
        model(torch.rand(8, 40))  # the statistics of BatchNorm are part of a model
    front_of([model.state_dict() for model in models]).save(tmp_path / "front.pt")
    loaded = ParetoFront.load(tmp_path / "front.pt")
    template = network(9)
    before = {name: tensor.clone() for name, tensor in template.state_dict().items()}
    for k, model in enumerate(models):
        found = loaded.model(k, template)
        assert equal(found.state_dict(), model.state_dict())
        assert torch.equal(found.eval()(torch.ones(1, 40)), model.eval()(torch.ones(1, 40)))
        assert loaded.states[k]._metadata == model.state_dict()._metadata, "the versions of the modules"
    assert equal(template.state_dict(), before), "the template changed"


def test_a_model_shares_no_memory_with_the_front() -> None:
    model = network()
    front = front_of([model.state_dict(), model.state_dict()])
    kept = front.states[0]["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.zero_()
        front.model(0, model)[0].weight.fill_(7.0)
    assert torch.equal(front.states[0]["0.weight"], kept)
    assert torch.equal(front.model(1, model)[0].weight, kept)


def test_a_saved_model_has_its_own_size(tmp_path: Path) -> None:
    """Though its parameters were rows of a buffer that holds all of them."""

    def size(content: Any) -> int:
        torch.save(content, tmp_path / "x.pt")
        return (tmp_path / "x.pt").stat().st_size

    own = size(network().state_dict())
    flat = torch.rand(5, 40 * 50)
    states = [network(k).state_dict() for k in range(5)]
    for state, row in zip(states, flat, strict=True):
        state["0.weight"] = row.view(50, 40)
    assert size(states[0]) > 3 * own, "the sources are views"
    front = front_of(states)
    assert size(front.states[2]) == size(front.model(2, network()).state_dict()) == own
    front.save(tmp_path / "front.pt")
    assert (tmp_path / "front.pt").stat().st_size < 5.5 * own


def test_shared_memory_is_kept_once() -> None:
    trunk, heads = torch.rand(1000), torch.rand(3, 4)
    states = [{"trunk": trunk, "tied": trunk, "head": head} for head in heads]
    front = front_of(states)
    assert len({state[name].data_ptr() for state in front.states for name in ("trunk", "tied")}) == 1
    assert len({state["head"].data_ptr() for state in front.states}) == 3


class Passing(Mapping[str, Tensor]):
    """A state dict that makes its tensors when they are asked for, so that the memory of one is soon another's."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __getitem__(self, name: str) -> Tensor:
        return torch.full((1000,), self.value + int(name))

    def __iter__(self) -> Iterator[str]:
        return iter("0123456789")

    def __len__(self) -> int:
        return 10


def test_tensors_that_pass_are_no_shared_memory() -> None:
    front = front_of([Passing(0.0), Passing(10.0)])
    for k, state in enumerate(front.states):
        assert [tensor[0].item() for tensor in state.values()] == [10.0 * k + i for i in range(10)]


def test_models_of_an_optimizer() -> None:
    model = nn.Linear(3, 2)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=3, lr=0.1, transfer="identity")
    for _ in range(3):
        optimizer.step(lambda: (model(torch.rand(4, 3)) - 1.0).square().mean(0))
    states = []
    for k in range(3):
        with optimizer.subproblem(k):
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    front = front_of(states)
    for k in range(3):
        with optimizer.subproblem(k):
            expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert equal(front.model(k, model).state_dict(), expected)


def test_models_refuse() -> None:
    model = network()
    with pytest.raises(ValueError, match="a front with models, got one without state dicts"):
        ParetoFront(torch.rand(2, 2), even(2)).model(0, model)
    front = front_of([model.state_dict()] * 2)
    with pytest.raises(IndexError, match=r"a subproblem 0 \.\. 1, got 2"):
        front.model(2, model)
    with pytest.raises(IndexError, match=r"a subproblem 0 \.\. 1, got -1"):
        front.model(-1, model)
    with pytest.raises(TypeError, match=r"template as an nn\.Module, got type"):
        front.model(0, nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        front.model(0, nn.Linear(3, 2))
    with pytest.raises(ValueError, match="state dicts of 3 subproblems, got 2"):
        ParetoFront(torch.rand(3, 2), even(3), states=[model.state_dict()] * 2)
    with pytest.raises(TypeError, match=r"state dict of subproblem 1 as a mapping .* got Linear"):
        front_of([{}, nn.Linear(2, 2)])
    with pytest.raises(TypeError, match=r"tensors in the state dict of subproblem 0, got int at 'x'"):
        front_of([{"x": 3}, {}])
