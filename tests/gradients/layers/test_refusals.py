"""The engine refuses, with the reason, where it could not be right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mt2o_ext import WeightedBackward, weighted_backward
from mt2o_ext.gradients.layers import LayerEngine
from mt2o_ext.weighting import GradDrop, PerSegment, UPGrad
from support.layer_models import batch_of, model_of

SIZE = 7


def call(model: nn.Module, losses: Tensor, engine: LayerEngine) -> Tensor:
    return weighted_backward(losses, model.parameters(), weighting=UPGrad(), engine=engine)


def test_layers_that_mix_samples() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1), nn.Flatten(0)).double()
    x, _ = batch_of(SIZE)
    engine = LayerEngine(model, batch_dim=0)
    with pytest.raises(ValueError, match="'1', a BatchNorm1d in training"):
        call(model, model(x).square(), engine)
    model[1].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="in training"):
        call(model, model(x).square(), engine)
    call(model, model(x).square(), LayerEngine(model))  # losses of any kind: all is well
    model.eval()
    call(model, model(x).square(), engine)


def test_an_engine_that_comes_too_late() -> None:
    model = model_of("perceptron")
    x, _ = batch_of(SIZE)
    losses = model(x).square()
    with pytest.warns(UserWarning, match="before the forward pass"):
        call(model, losses, LayerEngine(model, batch_dim=0))


def centred(z: Tensor) -> Tensor:
    return z - z.mean(0)


def attending(z: Tensor) -> Tensor:
    return torch.softmax(z @ z.T, -1) @ z


def two_alone(z: Tensor) -> Tensor:
    return torch.cat([z[:1] * z[-1:], z[1:]])


@pytest.mark.parametrize("mixing", [centred, attending, two_alone])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_functions_that_mix_samples(mixing: object, dtype: torch.dtype) -> None:
    assert callable(mixing)
    model = nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 1)]).to(dtype)
    x, _ = batch_of(SIZE, dtype)
    engine = LayerEngine(model, batch_dim=0)
    call(model, model[1](torch.tanh(model[0](x))).squeeze(1).square(), engine)  # this is right
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    engine = LayerEngine(model, batch_dim=0)
    with pytest.raises(ValueError, match=r"at the output of '0' \[7, 4\] other samples"):
        call(model, model[1](mixing(model[0](x))).squeeze(1).square(), engine)
    torch.testing.assert_close([p.grad for p in model.parameters()], before)


def test_a_sequence_as_long_as_the_batch() -> None:
    """Dimension 0 has the right size and the wrong meaning."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    engine = LayerEngine(model, batch_dim=0)
    for length in (SIZE + 1, SIZE):  # [length, batch, 6]; the first is left to autograd
        x = torch.randn(length, SIZE, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        losses = model(x).square().sum((0, 2))
        if length == SIZE:
            with pytest.raises(ValueError, match="batch-first"):
                call(model, losses, engine)
        else:
            call(model, losses, engine)
            assert set(engine.ways.values()) == {"autograd"}


def test_checks_come_again() -> None:
    """At the first, the 10th, the 100th call, and with each new shape."""
    model = model_of("perceptron")
    engine = LayerEngine(model, batch_dim=0)
    mixed: list[int] = []
    for number in range(1, 12):
        x, y = batch_of(SIZE)
        z = model(x)
        losses = (z - y).square() if number == 1 else (z - z.mean() - y).square()
        try:
            call(model, losses, engine)
        except ValueError:
            mixed.append(number)
    assert mixed == [10]
    x, y = batch_of(SIZE - 1)
    z = model(x)
    with pytest.raises(ValueError, match="other samples"):
        call(model, (z - z.mean()).square(), engine)


@pytest.mark.parametrize("batch_dim", [0, None])
def test_hidden_parameters(batch_dim: int | None) -> None:
    model = model_of("perceptron")
    x, _ = batch_of(SIZE)
    engine = LayerEngine(model, batch_dim=batch_dim)
    h = checkpoint(lambda z: torch.tanh(model.first(z)), x.requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant"):
        call(model, model.last(h).squeeze(1).square(), engine)


def test_inputs_that_were_changed() -> None:
    """As in torch's own backward."""
    layer = nn.Linear(6, 1).double()
    engine = LayerEngine(layer, batch_dim=0)
    x, _ = batch_of(SIZE)
    losses = layer(x).squeeze(1).square()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        call(layer, losses, engine)


def test_arguments() -> None:
    model = model_of("perceptron")
    with pytest.raises(TypeError, match="expected modules"):
        LayerEngine()
    with pytest.raises(TypeError, match="expected modules"):
        LayerEngine(model.first.weight)  # type: ignore[arg-type]
    for wrong in (-1, True, "0"):
        with pytest.raises(ValueError, match="batch_dim"):
            LayerEngine(model, batch_dim=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="engine="):
        WeightedBackward(model.parameters(), num_tasks=2, weighting="upgrad", engine="layers")  # type: ignore[arg-type]
    engine = LayerEngine(model)
    with pytest.raises(ValueError, match="no engine= with UncertaintyWeighting"):
        WeightedBackward(model.parameters(), num_tasks=2, weighting="uw", engine=engine)
    for weighting in (GradDrop(), PerSegment(UPGrad())):
        with pytest.raises(ValueError, match="for engine="):
            WeightedBackward(model.parameters(), num_tasks=2, weighting=weighting, engine=engine)
    backward = WeightedBackward(model.parameters(), num_tasks=2, weighting="upgrad", engine=engine)
    with pytest.raises(RuntimeError, match="got engine="):
        next(backward.tasks())
    x, _ = batch_of(SIZE)
    with pytest.raises(ValueError, match="engine="):
        backward([model(x).mean(), model(x).max()], backward=lambda loss, **_: loss.backward())
