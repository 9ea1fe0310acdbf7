"""What all networks of a whole front keep to: they find a known front, resume bitwise, train with any optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import ParetoFront, WeightedBackward, WeightedFused
from mt2o_ext.dirichlet import dirichlet
from mt2o_ext.pareto.learned import LearnedFront, LowRankFront, PreferenceInput, PreferenceNetwork
from mt2o_ext.preferences import even
from mt2o_ext.scalarization import COSMOS, Linear, SmoothTchebycheff
from support.pareto.convex import (
    BEST_OF_10,
    BEST_OF_20,
    BEST_OF_ALL,
    Made,
    Point,
    evaluation,
    loss_of,
    losses_of,
    trained,
)

MAKERS: dict[str, Callable[[], LearnedFront]] = {
    "PHN-LS": lambda: PreferenceNetwork(Point(), 2),
    "PHN-LS in chunks": lambda: PreferenceNetwork(Point(), 2, chunk=4),
    "PHN-LS from a random start": lambda: PreferenceNetwork(Point(), 2, start="random"),
    "PHN by a smooth maximum": lambda: PreferenceNetwork(Point(), 2, scalarization=SmoothTchebycheff(mu=0.02)),
    "PHN-EPO": lambda: PreferenceNetwork(Point(), 2, solver="epo"),
    "COSMOS": lambda: PreferenceInput(Made(), 2, scalarization=COSMOS(lam=0.1)),
    "COSMOS without the cosine": lambda: PreferenceInput(Made(), 2, scalarization="linear"),
    "PaLoRA": lambda: LowRankFront(nn.Linear(1, 10), 2, rank=2),
}
EACH = pytest.mark.parametrize("name", MAKERS)


def made(name: str) -> LearnedFront:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKERS[name]()


# ---------------------------------------------------------------------- the known front
@EACH
def test_a_convex_front_is_found(name: str) -> None:
    """25 models of one network are better than the best 20 that there are; where it keeps away from the ends, 10."""
    pytest.importorskip("moocore", reason="the hypervolume needs moocore")
    network = made(name)
    lr = 1e-3 if name == "PHN-EPO" else 3e-3  # its weights jump
    least = BEST_OF_10 if name in ("PHN-EPO", "PHN by a smooth maximum") else BEST_OF_20
    list(trained(network, torch.optim.Adam(network.parameters(), lr=lr), 1000))
    front = network.front(evaluation(network), reference=[1.0, 1.0])
    assert len(front) == 25
    assert least < front.hypervolume() < BEST_OF_ALL
    assert front.losses[0, 0] < front.losses[-1, 0], "preferences are in order"
    distance = front.losses.sqrt().sum(1) - 1.0  # 0 on the front
    assert distance.abs().max() < 0.02


def test_epo_finds_the_model_on_the_ray() -> None:
    """w_1 l_1 = w_2 l_2 on the front: t^2 w_1 = (1 - t)^2 w_2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PreferenceNetwork(Point(), 2, solver="epo", concentration=3.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in trained(network, optimizer, 1000):
        schedule.step()
    preferences = even(11)[2:9]
    front = network.front(evaluation(network), preferences)
    shares = preferences.sqrt().flip(1) / preferences.sqrt().sum(1, keepdim=True)
    torch.testing.assert_close(front.losses.sqrt(), shares, atol=0.02, rtol=0.0)


def test_a_strong_cosine_turns_the_order_of_preferences_round() -> None:
    """As the docstring of COSMOS warns: here losses are at most 1, and lam = 2 outweighs them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PreferenceInput(Made(), 2)
    list(trained(network, torch.optim.Adam(network.parameters(), lr=3e-3), 500))
    front = network.front(evaluation(network))
    assert front.losses[0, 0] > front.losses[-1, 0] + 0.1


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize("scalarization", [Linear(), COSMOS(lam=2.0), COSMOS(lam=0.1)], ids=repr)
def test_gradients_of_the_loss_are_those_of_finite_differences(scalarization: Any) -> None:
    network = PreferenceInput(nn.Linear(5, 1).double(), 3, scalarization=scalarization)
    generator = torch.Generator().manual_seed(1)
    losses = torch.rand(3, dtype=torch.float64, generator=generator) + 0.1
    preference = network.sample(generator)
    losses.requires_grad_()
    network.loss(losses, preference).backward()
    for t, step in enumerate(1e-6 * torch.eye(3, dtype=torch.float64)):
        ahead, behind = (network.loss((losses + side * step).detach(), preference) for side in (1.0, -1.0))
        assert losses.grad[t].item() == pytest.approx(((ahead - behind) / 2e-6).item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["PHN-LS", "PHN-LS in chunks", "COSMOS", "PaLoRA"])
def test_gradients_of_the_parameters_are_those_of_finite_differences(name: str) -> None:
    network = made(name).double()
    with torch.no_grad():
        for p in network.parameters():  # heads that begin at zero hide what is below them
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))

    def loss() -> Tensor:
        return loss_of_double(network)

    loss().backward()
    for p in network.parameters():
        flat, slope = p.data.view(-1), p.grad.view(-1)
        for i in {0, p.numel() // 2, p.numel() - 1}:
            before = flat[i].item()
            values = []
            for side in (1.0, -1.0):
                flat[i] = before + side * 1e-6
                values.append(loss().item())
            flat[i] = before
            assert slope[i].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def loss_of_double(network: LearnedFront) -> Tensor:
    preference = torch.tensor([0.3, 0.7], dtype=torch.float64)
    inputs = () if isinstance(network, PreferenceNetwork) else (torch.ones(1, 1, dtype=torch.float64),)
    return network.loss(losses_of(network(*inputs, preference=preference)), preference)


# ---------------------------------------------------------------------- training
@EACH
def test_resume_is_bitwise(name: str, tmp_path: Path) -> None:
    def parts() -> tuple[LearnedFront, torch.optim.Optimizer, torch.Generator]:
        network = made(name)
        return network, torch.optim.Adam(network.parameters(), lr=1e-2), torch.Generator().manual_seed(3)

    network, optimizer, generator = parts()
    list(trained(network, optimizer, 5, generator))
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "draws": generator.get_state()}
    torch.save(state, tmp_path / "x.pt")
    expected = list(trained(network, optimizer, 5, generator))
    network, optimizer, generator = parts()
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    network.load_state_dict(loaded["network"])
    optimizer.load_state_dict(loaded["optimizer"])
    generator.set_state(loaded["draws"])
    assert list(trained(network, optimizer, 5, generator)) == expected


@pytest.mark.parametrize("name", ["PHN-LS in chunks", "COSMOS", "PaLoRA"])
def test_the_fused_optimizer_trains_it_as_torch_does(name: str) -> None:
    network, twin = made(name), made(name)
    expected = list(trained(twin, torch.optim.Adam(twin.parameters(), lr=1e-2), 10))
    optimizer = WeightedFused(network.parameters(), num_tasks=1, lr=1e-2, base="adam")
    generator = torch.Generator().manual_seed(0)
    found = [optimizer.step(lambda: [loss_of(network, generator)]).item() for _ in range(10)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_task_gradients_of_a_hypernetwork_are_weighed_like_those_of_any_model() -> None:
    network = made("PHN-LS")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    backward = WeightedBackward(network.parameters(), num_tasks=2, weighting="upgrad")
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(100):
        losses = losses_of(network(preference=network.sample(generator)))
        optimizer.zero_grad()
        backward(losses)
        optimizer.step()
        seen.append(losses.sum().item())
    assert seen[-1] < 0.2 * seen[0]


# ---------------------------------------------------------------------- draws
def test_draws_have_the_moments_of_the_distribution() -> None:
    concentration, generator = torch.tensor([0.2, 1.2, 3.0]).double(), torch.Generator().manual_seed(0)
    draws = torch.stack([dirichlet(concentration, generator) for _ in range(5000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(5000).double())
    total = concentration.sum()
    mean = concentration / total
    variance = mean * (1.0 - mean) / (total + 1.0)
    error = (variance / 5000).sqrt()
    assert ((draws.mean(0) - mean).abs() < 4.0 * error).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("concentration", [1e-6, 1e-3, 1.0, 1e6])
def test_draws_of_any_concentration_are_on_the_simplex(concentration: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        draw = dirichlet(torch.full((4,), concentration, dtype=torch.float64), generator)
        assert draw.isfinite().all() and (draw >= 0.0).all() and math.isclose(draw.sum().item(), 1.0)


def test_draws_come_from_the_generator() -> None:
    network = made("PHN-LS")
    first, second = (network.sample(torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float32
    assert made("COSMOS").double().sample().dtype == torch.float64


# ---------------------------------------------------------------------- fronts
@EACH
def test_the_front_is_that_of_the_models(name: str, tmp_path: Path) -> None:
    network = made(name)
    list(trained(network, torch.optim.Adam(network.parameters(), lr=1e-2), 20))
    evaluate = evaluation(network)
    front = network.front(evaluate, rays=4, task_names=("a", "b"), models=True)
    assert front.task_names == ("a", "b")
    for k, preference in enumerate(front.preferences):
        assert torch.equal(front.losses[k], evaluate(network.at(preference)).detach().double())
    front.save(tmp_path / "front.pt")
    template = copy.deepcopy(network).at([0.5, 0.5])
    for k, model in enumerate(ParetoFront.load(tmp_path / "front.pt").model(k, template) for k in range(4)):
        assert torch.equal(evaluate(model).detach().double(), front.losses[k])
    given = network.front(evaluate, [[1.0, 0.0]])
    assert given.preferences.tolist() == [[1.0, 0.0]] and given.states == ()


def test_the_front_goes_by_the_mode_of_the_network() -> None:
    network = made("COSMOS")
    seen = []
    for mode in (True, False):
        network.train(mode)
        network.front(lambda model: seen.append(model.training) or torch.ones(2), rays=2)
    assert seen == [True, True, False, False]


@EACH
def test_what_does_not_fit_is_refused(name: str) -> None:
    network = made(name)
    with pytest.raises(ValueError, match=r"a preference of shape \(2,\), got \(3,\)"):
        network.at([0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match="expected 2 losses, got the shape"):
        MAKERS["COSMOS"]().loss(torch.ones(3), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="from evaluate"):
        network.front(lambda model: torch.ones(3), rays=2)
    with pytest.raises(ValueError, match="sum to 1"):
        network.front(lambda model: torch.ones(2), [[1.0, 1.0]])
    make = type(network)
    for concentration in (0.0, [1.0, -1.0]):
        with pytest.raises(ValueError, match="concentration finite and > 0"):
            make(Point(), 2, concentration=concentration)
    with pytest.raises(ValueError, match="concentration for 2 tasks, got 3"):
        make(Point(), 2, concentration=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="name of a scalarization"):
        make(Point(), 2, scalarization="square")
    with pytest.raises(TypeError, match=r"model as an nn\.Module, got type"):
        make(Point, 2)
