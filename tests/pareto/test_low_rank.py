"""LowRankFront: its weights against the sum in float64, what is shared, frozen, merged and trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.pareto.learned import LowRankFront

PREFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4, 3))
    return model.double()


def moved(network: LowRankFront) -> LowRankFront:
    """One whose changes are not zero, as after some steps."""
    with torch.no_grad():
        for index, left in enumerate(network.left):
            left.copy_(normal(*left.shape, seed=index).to(left))
    return network


def made(**options: Any) -> LowRankFront:
    return moved(LowRankFront(images_model(), 3, **{"rank": 2, "scale": 0.7, **options}))


IMAGES = normal(5, 2, 4, 4, seed=9)


# ---------------------------------------------------------------------- the formula
def test_weights_are_the_explicit_sum() -> None:
    network = made()
    found = network.weights(PREFERENCE)
    assert list(found) == ["0.weight", "4.weight"]
    for index, (name, weight) in enumerate(found.items()):
        own = dict(network.model.named_parameters())[name]
        left, right = network.left[index].tolist(), network.right[index].tolist()
        flat = own.detach().clone().flatten(1)
        for i in range(flat.shape[0]):
            for j in range(flat.shape[1]):
                for t, share in enumerate(PREFERENCE.tolist()):
                    flat[i, j] += 0.7 / 2 * share * sum(left[t][i][r] * right[t][r][j] for r in range(2))
        torch.testing.assert_close(weight, flat.view_as(own), rtol=1e-12, atol=1e-12)


def test_the_output_is_that_of_a_model_with_these_weights() -> None:
    network = made().eval()
    plain = copy.deepcopy(network.model)
    plain.load_state_dict({**plain.state_dict(), **network.weights(PREFERENCE)})
    expected = plain(IMAGES)
    assert torch.equal(network(IMAGES, preference=PREFERENCE), expected)
    assert torch.equal(network.at(PREFERENCE)(IMAGES), expected)
    merged = network.merged(PREFERENCE)
    assert torch.equal(merged(IMAGES), expected) and type(merged) is nn.Sequential
    assert [p.numel() for p in merged.parameters()] == [p.numel() for p in network.model.parameters()]
    assert not merged.training and not {id(p) for p in merged.parameters()} & {id(p) for p in network.parameters()}
    with torch.no_grad():
        for p in merged.parameters():
            p.zero_()
    assert torch.equal(network(IMAGES, preference=PREFERENCE), expected)


def test_all_models_begin_as_the_model() -> None:
    model = images_model().eval()
    network = LowRankFront(model, 3)
    for corner in torch.eye(3):
        assert torch.equal(network(IMAGES, preference=corner), model(IMAGES))
    still = moved(LowRankFront(model, 3, scale=0.0))
    assert torch.equal(still(IMAGES, preference=PREFERENCE), model(IMAGES))


def test_its_size_is_that_of_the_model_and_t_changes() -> None:
    network = LowRankFront(images_model(), 3, rank=2)
    own = sum(p.numel() for p in images_model().parameters())
    assert sum(p.numel() for p in network.parameters()) == own + 3 * 2 * ((4 + 9) + (3 + 16))


def test_gradients_are_those_of_finite_differences() -> None:
    network = made().eval()
    names, tensors = zip(*network.named_parameters(), strict=True)
    values = tuple(p.detach().clone().requires_grad_() for p in tensors)

    def call(*given: Tensor) -> Tensor:
        parameters = dict(zip(names, given, strict=True))
        return torch.func.functional_call(network, parameters, (IMAGES[:2],), {"preference": PREFERENCE})

    assert torch.autograd.gradcheck(call, values, fast_mode=True)
    assert torch.equal(call(*values), network(IMAGES[:2], preference=PREFERENCE))


@pytest.mark.parametrize("task", range(3))
def test_a_corner_uses_its_own_change_only(task: int) -> None:
    network, corner = made().eval(), torch.eye(3, dtype=torch.float64)[task]
    output = network(IMAGES, preference=corner)
    output.square().sum().backward()
    for part in (*network.left, *network.right):
        used = part.grad.flatten(1).abs().sum(1) > 0
        assert used.tolist() == [t == task for t in range(3)]
    assert all(p.grad.abs().sum() > 0 for p in network.model.parameters())
    with torch.no_grad():
        for part in (*network.left, *network.right):
            part[torch.arange(3) != task] = 1e3
    assert torch.equal(network(IMAGES, preference=corner), output)


# ---------------------------------------------------------------------- which layers
class Various(nn.Module):
    """Tied and frozen weights, an embedding, an attention, a layer with computed weights, and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.conv = nn.Conv1d(4, 4, 1)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor, *, scale: float = 1.0) -> Tensor:
        features = self.embed(tokens)
        features = features + self.attention(features, features, features)[0]
        features = self.conv(self.frozen(self.normed(features)).mT).mT
        return scale * self.out(features.mean(1))


def test_all_linear_and_convolutional_layers_are_adapted_and_tied_weights_stay_tied() -> None:
    network = moved(LowRankFront(Various(), 2))
    assert [names[0] for names in network.names] == [
        "embed.weight", "attention.out_proj.weight", "frozen.weight", "conv.weight",
    ]  # fmt: skip
    assert network.names[0] == ["embed.weight", "out.weight"]
    tokens = torch.randint(0, 6, (5, 3))
    merged = network.merged([0.3, 0.7])
    assert merged.out.weight is merged.embed.weight
    torch.testing.assert_close(merged(tokens, scale=2.0), network(tokens, preference=[0.3, 0.7], scale=2.0))
    again = copy.deepcopy(network)
    assert torch.equal(again(tokens, preference=[0.3, 0.7]), network(tokens, preference=[0.3, 0.7]))


def test_layers_can_be_chosen() -> None:
    network = LowRankFront(Various(), 2, modules=["conv", "frozen"])
    assert network.names == [["frozen.weight"], ["conv.weight"]]
    for modules, error, text in (
        (["embed"], ValueError, r"got \['embed'\]: take some of .*'conv'"),
        (["normed"], ValueError, "normed"),
        ([], ValueError, "got none to adapt"),
        ("conv", TypeError, "put it into a list"),
    ):
        with pytest.raises(error, match=text):
            LowRankFront(Various(), 2, modules=modules)
    with pytest.raises(ValueError, match="got none to adapt"):
        LowRankFront(nn.Sequential(nn.LazyLinear(3), nn.ReLU()), 2)
    for options in ({"rank": 0}, {"scale": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            LowRankFront(nn.Linear(2, 2), 2, **options)


def test_statistics_of_batch_norm_are_the_model_s() -> None:
    network = made()
    network(IMAGES, preference=PREFERENCE)
    assert network.model[1].num_batches_tracked == 1


# ---------------------------------------------------------------------- training
def test_state_dicts_go_round() -> None:
    network = made()
    other = LowRankFront(images_model(), 3, rank=2, scale=0.7)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(IMAGES, preference=PREFERENCE), network.eval()(IMAGES, preference=PREFERENCE))
    with pytest.raises(RuntimeError, match="size mismatch"):
        LowRankFront(images_model(), 3, rank=3).load_state_dict(network.state_dict())


X, Y = normal(64, 3, seed=1).float(), normal(64, 2, seed=2).float()


def two_tasks(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))


def conflict(output: Tensor) -> Tensor:
    """One number for two targets: a front."""
    return (output - Y).square().mean(0)


OPTIMIZERS: dict[str, Callable[[LowRankFront], torch.optim.Optimizer]] = {
    "torch": lambda network: torch.optim.AdamW(network.parameters(), lr=1e-2),
    "weighted": lambda network: WeightedFused(network.parameters(), num_tasks=1, lr=1e-2),
    "mt2o": lambda network: MT2OFused(network.parameters(), num_tasks=1, num_subproblems=1, lr=1e-2),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_it_to_the_same_front(name: str, frozen: bool) -> None:
    fronts = []
    for which in ("torch", name):
        model = two_tasks().requires_grad_(not frozen)
        before = copy.deepcopy(model.state_dict())
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = LowRankFront(model, 2, rank=2, scale=4.0)
        optimizer, generator = OPTIMIZERS[which](network), torch.Generator().manual_seed(0)
        for _ in range(300):
            preference = network.sample(generator)

            def closure(network: LowRankFront = network, preference: Tensor = preference) -> Any:
                return network.loss(conflict(network(X, preference=preference)), preference)

            if which == "torch":
                optimizer.zero_grad()
                closure().backward()
                optimizer.step()
            else:
                optimizer.step(lambda closure=closure: [closure()])
        same = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert same == frozen
        fronts.append(network.front(lambda model: conflict(model(X)), rays=5).losses)
    torch.testing.assert_close(fronts[1], fronts[0], rtol=0.02, atol=0.01)
    first, last = fronts[0][0], fronts[0][-1]  # of the preferences (1, 0) and (0, 1)
    assert first[0] < last[0] - 0.2 and last[1] < first[1] - 0.2


def test_subproblems_with_transfer_train_it() -> None:
    network = LowRankFront(two_tasks(), 2, rank=2, scale=4.0)
    optimizer = MT2OFused(network.parameters(), num_tasks=2, num_subproblems=2, lr=1e-2, transfer=None)
    for _ in range(5):
        for k in optimizer.subproblems():
            optimizer.backward(conflict(network(X, preference=optimizer.preferences[k])))
        optimizer.step()
    rows = optimizer.state[network.left[0]]["subproblems"]
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chosen_preference_is_on_the_simplex(dtype: torch.dtype) -> None:
    network = made().to(dtype)
    for choose in (network.at, network.merged):
        with pytest.raises(ValueError, match="sum to 1"):
            choose([0.5, 0.4, 0.2])
        choose([0.3, 0.3, 0.4])
        choose(network.sample(torch.Generator().manual_seed(0)))
