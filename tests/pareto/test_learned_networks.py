"""PreferenceNetwork: whose weights it makes, how many parameters it has. PreferenceInput: where the preference goes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.demo.lenet import LeNet, task_losses
from mt2o_ext.pareto.learned import PreferenceInput, PreferenceNetwork
from mt2o_ext.weighting import EPO

PREFERENCE = torch.tensor([0.3, 0.7])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def moved(network: PreferenceNetwork) -> PreferenceNetwork:
    """One whose models differ, as after some steps."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.generator.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator))
    return network


# ---------------------------------------------------------------------- the hypernetwork
def test_it_is_as_large_as_the_published_one() -> None:
    """3,243,410 parameters for the LeNet with 31,910, as counted in the published code."""
    model = LeNet()
    assert count(model) == 31_910
    assert count(PreferenceNetwork(model, 2)) == 3_243_410
    in_chunks = PreferenceNetwork(model, 2, chunk=1000, start="random")
    assert count(in_chunks) == 20_500 + 32 * 32 + (100 + 32 + 1) * 100 + 101 * 1000
    assert count(PreferenceNetwork(model, 2, chunk=1000)) == count(in_chunks) + 31_910


@pytest.mark.parametrize("chunk", [None, 7, 10**6])
def test_all_models_begin_as_the_template(chunk: int | None) -> None:
    model, images = LeNet(), torch.rand(2, 1, 36, 36)
    network = PreferenceNetwork(model, 2, chunk=chunk)
    for preference in ([1.0, 0.0], [0.3, 0.7]):
        assert torch.equal(network(images, preference=preference), model(images))
    random = PreferenceNetwork(model, 2, chunk=chunk, start="random")
    assert not torch.allclose(random(images, preference=[1.0, 0.0]), random(images, preference=[0.0, 1.0]))


def test_weights_are_those_of_the_formula() -> None:
    """Each tensor by a linear head of its own from the features, in float64 loops."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    network = PreferenceNetwork(model, 2, start="random", hidden=5)
    features = PREFERENCE.double().tolist()
    for layer, last in ((network.features[0], False), (network.features[2], False), (network.features[4], True)):
        rows = [sum(w * f for w, f in zip(row, features, strict=True)) for row in layer.weight.tolist()]
        rows = [value + bias for value, bias in zip(rows, layer.bias.tolist(), strict=True)]
        features = rows if last else [max(value, 0.0) for value in rows]
    head = network.generator.linear
    numbers = [
        sum(w * f for w, f in zip(row, features, strict=True)) + bias
        for row, bias in zip(head.weight.tolist(), head.bias.tolist(), strict=True)
    ]
    found = network.generate(PREFERENCE)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        taken, numbers = numbers[: p.numel()], numbers[p.numel() :]
        torch.testing.assert_close(found[name], torch.tensor(taken, dtype=torch.float64).view(p.shape))


def test_chunks_are_those_of_the_formula() -> None:
    network = moved(PreferenceNetwork(nn.Linear(3, 4), 2, chunk=5, embedding=3, hidden=6))
    generator, features = network.generator, network.features(PREFERENCE)
    rows = []
    for chunk in generator.chunks:
        hidden = torch.relu(generator.hidden(torch.cat([features, chunk])))
        rows.append(generator.linear(hidden))
    expected = torch.cat(rows)[:16] + generator.start
    found = torch.cat([tensor.flatten() for tensor in network.generate(PREFERENCE).values()])
    torch.testing.assert_close(found, expected)


class Various(nn.Module):
    """Tied and frozen parameters, a BatchNorm, a recurrent layer, a keyword, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("shift", torch.ones(6))

    def forward(self, tokens: Tensor, *, scale: float = 1.0) -> Tensor:
        features = self.rnn(self.embed(tokens))[0][:, -1]
        return scale * self.out(self.frozen(self.norm(features))) + self.shift


def test_any_model_is_a_target() -> None:
    model, tokens = Various(), torch.randint(0, 6, (5, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = PreferenceNetwork(model, 2)
    assert network.target.size == count(model) - count(model.frozen), "tied parameters count once"
    model.eval(), network.eval()
    assert torch.equal(network(tokens, preference=PREFERENCE, scale=2.0), model(tokens, scale=2.0))
    moved(network)
    made = network.at(PREFERENCE)
    assert made.out.weight is made.embed.weight, "still tied"
    assert not torch.equal(made.embed.weight, model.embed.weight)
    assert torch.equal(made(tokens), network(tokens, preference=PREFERENCE))
    assert torch.equal(made.frozen.weight, model.frozen.weight)
    network.train()
    network(tokens, preference=PREFERENCE)
    assert network.target.model.norm.num_batches_tracked == 1, "statistics are shared and kept"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "the template changed"
    again = copy.deepcopy(network).eval()
    assert torch.equal(again(tokens, preference=PREFERENCE), network.eval()(tokens, preference=PREFERENCE))
    network.target.model.frozen.bfloat16()
    assert network.sample().dtype == torch.float32, "that of the hypernetwork"
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any(name.startswith("target") for name in trainable)


def test_a_made_model_shares_nothing() -> None:
    network = moved(PreferenceNetwork(nn.Linear(3, 2), 2))
    expected = network(torch.ones(1, 3), preference=PREFERENCE)
    made = network.at(PREFERENCE)
    with torch.no_grad():
        made.weight.zero_()
    assert torch.equal(network(torch.ones(1, 3), preference=PREFERENCE), expected)
    assert all(p.requires_grad and p.is_leaf for p in made.parameters())
    for p in made.parameters():  # so that saving one tensor writes one
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_every_parameter_learns() -> None:
    for chunk in (None, 4):
        network = moved(PreferenceNetwork(nn.Linear(3, 2), 2, chunk=chunk))
        network.loss(network(torch.ones(4, 3), preference=PREFERENCE).square().mean(0), PREFERENCE).backward()
        assert all(p.grad.abs().sum() > 0.0 for p in network.parameters())


def test_epo_weighs_by_the_gradients_of_the_target_network() -> None:
    network = moved(PreferenceNetwork(LeNet(), 2, solver="epo"))
    images, labels = torch.rand(4, 1, 36, 36), torch.randint(0, 10, (4, 2))
    weights = network.generate(PREFERENCE)
    losses = task_losses(network.call(weights, images), labels)
    loss = network.loss(losses, PREFERENCE, weights=weights)
    (factors,) = torch.autograd.grad(loss, losses, retain_graph=True)
    model = network.at(PREFERENCE)
    rows = []
    for loss_of_task in task_losses(model(images), labels):
        grads = torch.autograd.grad(loss_of_task, list(model.parameters()), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    jacobian = torch.stack(rows)
    expected = EPO()(jacobian @ jacobian.T, losses=losses.detach().double(), preferences=PREFERENCE.double())
    torch.testing.assert_close(factors.double(), expected, rtol=1e-4, atol=1e-5)
    assert math.isclose(factors.sum().item(), 1.0, rel_tol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_epo_needs_weights_and_gives_nan_for_losses_that_are_not_finite() -> None:
    network = PreferenceNetwork(nn.Linear(3, 2), 2, solver="epo")
    with pytest.raises(ValueError, match=r"expected the weights that gave these losses.*weights=weights"):
        network.loss(torch.ones(2), PREFERENCE)
    weights = network.generate(PREFERENCE)
    losses = network.call(weights, torch.full((4, 3), math.inf)).square().mean(0)
    assert network.loss(losses, PREFERENCE, weights=weights).isnan()


def test_the_hypernetwork_refuses() -> None:
    with pytest.raises(ValueError, match="with trainable parameters, got none"):
        PreferenceNetwork(nn.ReLU(), 2)
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"of one dtype, got \['torch.float32', 'torch.float64'\]"):
        PreferenceNetwork(mixed, 2)
    with pytest.raises(ValueError, match="expected start as one of"):
        PreferenceNetwork(nn.Linear(2, 2), 2, start="zero")
    with pytest.raises(ValueError, match="expected solver as one of"):
        PreferenceNetwork(nn.Linear(2, 2), 2, solver="mgda")
    with pytest.raises(ValueError, match="expected chunk >= 1"):
        PreferenceNetwork(nn.Linear(2, 2), 2, chunk=0)
    with pytest.raises(ValueError, match="no scalarization with solver"):
        PreferenceNetwork(nn.Linear(2, 2), 2, solver="epo", scalarization="log")


# ---------------------------------------------------------------------- the preference as an input
@pytest.mark.parametrize(
    ("shape", "dim", "expected"),
    [
        ((4, 3), 1, (4, 5)),
        ((4, 3), -1, (4, 5)),
        ((4, 1, 6, 7), 1, (4, 3, 6, 7)),
        ((4, 9, 3), 2, (4, 9, 5)),
        ((4, 9, 3), -1, (4, 9, 5)),
    ],
)
def test_the_preference_goes_behind_the_features(shape: tuple[int, ...], dim: int, expected: tuple[int, ...]) -> None:
    network = PreferenceInput(nn.Linear(5, 2), 2, dim=dim)
    x = torch.rand(shape)
    joined = network.joined(x, PREFERENCE)
    assert joined.shape == expected
    features = joined.movedim(dim, -1)
    assert torch.equal(features[..., :-2], x.movedim(dim, -1))
    assert (features[..., -2:] == PREFERENCE).all()


def test_the_model_sees_it() -> None:
    model = nn.Linear(3 + 2, 2)
    network, x = PreferenceInput(model, 2), torch.rand(4, 3)
    expected = x @ model.weight[:, :3].T + PREFERENCE @ model.weight[:, 3:].T + model.bias
    torch.testing.assert_close(network(x, preference=PREFERENCE), expected)
    torch.testing.assert_close(network.at([0.3, 0.7])(x), expected)
    fixed = network.at(PREFERENCE)
    assert {p.data_ptr() for p in fixed.parameters()} == {p.data_ptr() for p in model.parameters()}, "shares weights"
    with pytest.raises(TypeError, match=r"inputs of floating point, got torch\.uint8"):
        network.joined(torch.ones(4, 3, dtype=torch.uint8), PREFERENCE)
    with pytest.raises(ValueError, match="a model with parameters, got one without"):
        PreferenceInput(nn.ReLU(), 2)
    for shape, dim in (((4,), 1), ((4, 3), 0), ((4, 3), 2)):
        with pytest.raises(ValueError, match=r"expected inputs \[B, \.\.\.\] with a dimension"):
            PreferenceInput(model, 2, dim=dim).joined(torch.rand(shape), PREFERENCE)
