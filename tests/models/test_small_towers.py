"""Small towers: their layers, and the rows of a Gram matrix with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import WeightedBackward
from mt2o_ext.models import self_auxiliary, with_auxiliaries
from mt2o_ext.weighting import MGDA, CAGrad, UPGrad


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in module.parameters()]


# ---------------------------------------------------------------------- towers
def test_hidden_layers_are_narrower() -> None:
    head = nn.Sequential(nn.Linear(20, 16), nn.LayerNorm(16), nn.Sequential(nn.GELU(), nn.Linear(16, 12)), nn.Tanh(),
                         nn.Linear(12, 3, bias=False)).double()  # fmt: skip
    before = {name: p.clone() for name, p in head.named_parameters()}
    small = self_auxiliary(head)
    assert shapes(small) == [(4, 20), (4,), (4,), (4,), (3, 4), (3,), (3, 3)]
    x = torch.rand(5, 20, dtype=torch.float64)
    assert small(x).shape == head(x).shape and small(x).dtype == torch.float64
    assert all(torch.equal(before[name], p) for name, p in head.named_parameters())
    assert shapes(self_auxiliary(head, shrink=100))[0] == (1, 20), "a width is left"
    assert [type(layer) for layer in small] == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear, nn.Tanh, nn.Linear]


def test_convolutions_too_and_what_is_flattened_behind_them() -> None:
    head = nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8, momentum=0.3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip
    small, x = self_auxiliary(head, shrink=2), torch.rand(4, 6, 8, 8)
    assert small(x).shape == head(x).shape == (4, 3)
    assert (small[0].padding, small[0].stride, small[0].bias, small[1].momentum) == ((1, 1), (2, 2), None, 0.3)
    assert shapes(small) == [(4, 6, 3, 3), (4,), (4,), (6, 64), (6,), (3, 6), (3,)]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(4, 2), "a head with a hidden layer, .* got 1"),
        (nn.Sequential(nn.Linear(4, 2), nn.ReLU()), "a head with a hidden layer, .* got 1"),
        (nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Linear(8, 2)), "got GroupNorm: write"),
        (nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2)), "got Conv2d: write"),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(9, 2)), r"got Linear\(in_features=9.* behind 8 channels"),
    ],
)
def test_heads_that_cannot_shrink(head: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        self_auxiliary(head)


# ---------------------------------------------------------------------- losses
class Towers(nn.Module):
    """A shared layer; a head and a small tower for each of three tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(3))
        self.small = nn.ModuleList(self_auxiliary(head) for head in self.heads)

    def losses(self) -> tuple[list[Tensor], list[Tensor]]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(20, 5, generator=generator).to(self.trunk[0].weight)
        y = torch.randn(20, 3, generator=generator).to(x)
        features = self.trunk(x)
        return tuple(
            [(tower(features)[:, 0] - y[:, t]).square().mean() for t, tower in enumerate(towers)]
            for towers in (self.heads, self.small)
        )


@pytest.fixture
def model() -> Towers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Towers().double()


def gram_of(losses: list[Tensor] | Tensor, trunk: nn.Module) -> Tensor:
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trunk.parameters()), retain_graph=True)])
        for loss in losses
    ]
    return torch.stack(rows) @ torch.stack(rows).T


@pytest.mark.parametrize("gamma", [0.0, 0.3, [0.1, 0.5, 2.0]])
def test_rows_are_reduced_before_the_gram_matrix(model: Towers, gamma: float | list[float]) -> None:
    """Q' = E Q E^T with E = [I, gamma I], and weightings see Q'."""
    main, small = model.losses()
    factors = torch.as_tensor(gamma, dtype=torch.float64).expand(3)
    expansion = torch.cat([torch.eye(3).double(), torch.diag(factors)], 1)
    whole = gram_of([*main, *small], model.trunk)
    reduced = expansion @ whole @ expansion.T
    torch.testing.assert_close(gram_of(with_auxiliaries(main, small, gamma), model.trunk), reduced)
    for weighting in (CAGrad(), MGDA(), UPGrad()):
        weights = weighting(reduced)
        backward = WeightedBackward(
            [{"params": model.trunk.parameters()}]
            + [{"params": [*model.heads[t].parameters(), *model.small[t].parameters()], "task": t} for t in range(3)],
            num_tasks=3,
            weighting=type(weighting)(),
        )
        model.zero_grad()
        main, small = model.losses()
        backward(with_auxiliaries(main, small, gamma))
        found = torch.cat([p.grad.flatten() for p in model.trunk.parameters()])
        expected = torch.autograd.grad((weights * with_auxiliaries(*model.losses(), gamma)).sum(),
                                       list(model.trunk.parameters()))  # fmt: skip
        torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]))
        for t in range(3):  # each tower has the gradient of its own loss
            own = torch.autograd.grad(model.losses()[0][t], list(model.heads[t].parameters()))
            for p, g in zip(model.heads[t].parameters(), own, strict=True):
                torch.testing.assert_close(p.grad, g)
            own = torch.autograd.grad(factors[t] * model.losses()[1][t], list(model.small[t].parameters()))
            for p, g in zip(model.small[t].parameters(), own, strict=True):
                torch.testing.assert_close(p.grad, g)


def test_to_weigh_all_rows_is_another_method(model: Towers) -> None:
    """Otherwise the order of reducing and weighing would not have to be said."""
    main, small = model.losses()
    expansion = torch.cat([torch.eye(3), 0.5 * torch.eye(3)], 1).double()
    whole = gram_of([*main, *small], model.trunk)
    reduced = MGDA()(expansion @ whole @ expansion.T) @ expansion
    of_all = MGDA()(whole)
    cosine = (reduced @ whole @ of_all) / ((reduced @ whole @ reduced) * (of_all @ whole @ of_all)).sqrt()
    assert cosine < 0.99


def test_losses_that_do_not_fit() -> None:
    two: Callable[[], Tensor] = lambda: torch.ones(2)  # noqa: E731
    for losses, auxiliary in (
        (two(), torch.ones(3)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        (torch.ones(2, 2), two()),
    ):
        with pytest.raises(ValueError, match="a loss and an auxiliary loss for each of T tasks"):
            with_auxiliaries(losses, auxiliary, 0.1)
    with pytest.raises(ValueError, match="expected gamma >= 0, got -1"):
        with_auxiliaries(two(), two(), -1.0)
    with pytest.raises(ValueError, match="gamma for 2 tasks, got 3 numbers"):
        with_auxiliaries(two(), two(), [0.1, 0.1, 0.1])
    losses = with_auxiliaries([torch.tensor(1.0), torch.tensor(2.0)], list(two()), 0.5)
    assert losses.tolist() == [1.5, 2.5]


def test_a_task_without_data_is_told_how_to_say_so() -> None:
    with pytest.raises(TypeError, match="put None into the list for the optimizer"):
        with_auxiliaries([torch.ones(()), None], [torch.ones(()), None], gamma=0.1)  # type: ignore[list-item]
