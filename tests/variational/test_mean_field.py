"""MeanField: its distribution, its gradients, its state."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext.variational import MeanField
from mt2o_ext.variational.mean_field import softplus_inverse


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_weights_are_drawn_with_the_means_and_deviations() -> None:
    field = MeanField(nn.Linear(3, 2), std=0.2, generator=generator()).double()
    with torch.no_grad():
        field.rho[1].copy_(softplus_inverse(torch.tensor([0.5, 2.0], dtype=torch.float64)))
    draws: dict[str, list[Tensor]] = {"weight": [], "bias": []}
    for _ in range(4000):
        for name, value in field.drawn().items():
            draws[name].append(value.detach())
    for name, std in {"weight": [0.2], "bias": [0.5, 2.0]}.items():
        found = torch.stack(draws[name])
        wanted = torch.tensor(std, dtype=torch.float64).expand(found.shape[1:])
        torch.testing.assert_close(found.std(0), wanted, rtol=0.06, atol=0)
        assert ((found.mean(0) - field.module.get_parameter(name)).abs() < 0.08 * wanted).all()


def test_a_call_is_the_module_with_drawn_weights_and_gradients_reach_mean_and_rho() -> None:
    """The reparametrisation by hand: gradients by the mean are those by the weights, those by rho have the noise."""
    field = MeanField(nn.Linear(3, 2), std=0.3, generator=generator(1)).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator(2))
    field(x).square().sum().backward()
    source = generator(1)
    noise = [torch.empty_like(p).normal_(generator=source) for p in field.means()]
    weight, bias = ((mean + 0.3 * n).detach().requires_grad_() for mean, n in zip(field.means(), noise, strict=True))
    (x @ weight.mT + bias).square().sum().backward()
    slope = torch.sigmoid(field.rho[0].detach())[0, 0]  # of softplus
    for own, rho, drawn, n in zip(field.means(), field.rho, (weight, bias), noise, strict=True):
        torch.testing.assert_close(own.grad, drawn.grad)
        torch.testing.assert_close(rho.grad, drawn.grad * n * slope)
        assert rho.grad.abs().sum() > 0


def test_any_module_with_its_buffers_and_tied_weights() -> None:
    model = network()
    field = MeanField(model)
    x = torch.randn(6, 3, dtype=torch.float64, generator=generator())
    assert not torch.equal(field(x), field(x))
    assert int(model[1].num_batches_tracked) == 2
    field.eval()
    assert torch.equal(field(x), model(x))
    assert field.outputs(x, draws=7).shape == (7, 6, 2) and field.outputs(x).std(0).min() > 0

    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    field = MeanField(tied, generator=generator())
    assert field.names == ["0.weight", "0.bias", "1.bias"]
    weight, first, second = field.drawn().values()
    field.generator = generator()  # the same numbers again
    x = torch.ones(1, 3)
    torch.testing.assert_close(field(x), (x @ weight.mT + first) @ weight.mT + second)


def test_the_start_is_the_module_with_the_published_deviation() -> None:
    module = nn.Linear(3, 2)
    field = MeanField(module)
    assert field.module is module
    torch.testing.assert_close(field.rho[0], torch.full((2, 3), -3.0))
    mean, variance = field.posterior()
    assert torch.equal(mean, torch.cat([module.weight.flatten(), module.bias]))
    torch.testing.assert_close(variance, torch.full((8,), nn.functional.softplus(torch.tensor(-3.0)).item() ** 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_posterior_that_is_set_is_the_one_that_is_read(dtype: torch.dtype) -> None:
    field = MeanField(nn.Linear(3, 2)).to(dtype)
    mean = torch.randn(8, dtype=dtype, generator=generator())
    variance = torch.logspace(-8, 3, 8, dtype=dtype)
    field.set_posterior(mean, variance)
    found = field.posterior()
    assert torch.equal(found[0], mean)
    torch.testing.assert_close(found[1], variance, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


def test_copies_and_checkpoints() -> None:
    field = MeanField(nn.Linear(3, 2), generator=generator())
    x = torch.ones(2, 3)
    for other in (copy.deepcopy(field), pickle.loads(pickle.dumps(field))):
        assert torch.equal(other(x), MeanField(field.module, generator=generator())(x))
    file = io.BytesIO()
    torch.save((field.state_dict(), field.generator.get_state()), file)
    file.seek(0)
    state, numbers = torch.load(file, weights_only=True)
    resumed = MeanField(nn.Linear(3, 2), std=1.0, generator=generator(9))
    resumed.load_state_dict(state)
    resumed.generator.set_state(numbers)
    assert torch.equal(resumed(x), field(x)) and torch.equal(resumed(x), field(x))


def test_torch_seeds_count_without_a_generator() -> None:
    field, x = MeanField(nn.Linear(3, 2)), torch.ones(2, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [field(x) for _ in range(2)]
        torch.manual_seed(0)
        assert torch.equal(field(x), first[0])
    assert not torch.equal(*first)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"module as an nn\.Module, got Tensor"):
        MeanField(torch.ones(2))
    with pytest.raises(ValueError, match="with parameters, got ReLU without"):
        MeanField(nn.ReLU())
    with pytest.raises(ValueError, match="with a size, got weight without"):
        MeanField(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="std > 0, got 0"):
        MeanField(nn.Linear(2, 2), std=0.0)
    with pytest.raises(TypeError, match=r"generator as a torch\.Generator"):
        MeanField(nn.Linear(2, 2), generator=3)
    with pytest.raises(ValueError, match="draws >= 1"):
        MeanField(nn.Linear(2, 2)).outputs(torch.ones(1, 2), draws=0)
