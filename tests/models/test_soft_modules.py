"""SoftModules against loops in plain Python, and its laws."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from torch import nn

from mt2o_ext.models import SoftModules

Vector = list[float]


def made(layers: int, modules: int, num_tasks: int = 3) -> SoftModules:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SoftModules(4, 2, layers=layers, modules=modules, width=5, num_tasks=num_tasks).double()


def linear(layer: nn.Linear, x: Vector) -> Vector:
    rows, biases = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * value for w, value in zip(row, x, strict=True)) + b for row, b in zip(rows, biases, strict=True)]


def relu(x: Vector) -> Vector:
    return [max(value, 0.0) for value in x]


def softmax(x: Vector) -> Vector:
    total = sum(math.exp(value) for value in x)
    return [math.exp(value) / total for value in x]


def by_hand(network: SoftModules, x: Vector, task: int) -> tuple[Vector, list[list[Vector]], Vector]:
    """The output, the routes between layers, and those to the output."""
    m, num_layers = network.num_modules, len(network.layers)
    f = linear(network.features, x)
    e = [a * b for a, b in zip(f, network.tasks.weight[task].tolist(), strict=True)]
    routes: list[list[Vector]] = []
    for layer in range(num_layers):
        hidden = e
        if layer > 0:
            flat = list(chain.from_iterable(row for route in routes for row in route))
            hidden = [a * b for a, b in zip(e, linear(network.conditions[layer - 1], flat), strict=True)]
        logits = linear(network.logits[layer], relu(hidden))
        rows = [logits[i * m : (i + 1) * m] for i in range(m)] if layer < num_layers - 1 else [logits]
        routes.append([softmax(row) for row in rows])
    outputs = [linear(module, relu(f)) for module in network.layers[0]]
    for layer, route in zip(list(network.layers)[1:], routes[:-1], strict=True):
        inputs = []
        for row in route:
            inputs.append(relu([sum(p * out[d] for p, out in zip(row, outputs, strict=True)) for d in range(len(f))]))
        outputs = [linear(module, each) for module, each in zip(layer, inputs, strict=True)]
    (last,) = routes[-1]
    joined = relu([sum(p * out[d] for p, out in zip(last, outputs, strict=True)) for d in range(len(f))])
    return linear(network.last, joined), routes[:-1], last


@pytest.mark.parametrize(("layers", "modules"), [(2, 2), (2, 1), (4, 3)])
def test_it_is_the_formula(layers: int, modules: int) -> None:
    network = made(layers, modules)
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tasks = torch.tensor([0, 1, 2, 2, 1, 0])
    outputs, routes = network(x, tasks), network.routes(x, tasks)
    for sample in range(6):
        output, between, last = by_hand(network, x[sample].tolist(), int(tasks[sample]))
        assert outputs[sample].tolist() == pytest.approx(output, rel=1e-12)
        for found, expected in zip(routes[:-1], between, strict=True):
            torch.testing.assert_close(found[sample], torch.tensor(expected, dtype=torch.float64))
        assert routes[-1][sample].tolist() == pytest.approx(last, rel=1e-12)


def test_routes_are_probabilities_and_depend_on_task_and_input() -> None:
    network = made(3, 4)
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    routes = [network.routes(x, task) for task in range(3)]
    for route in chain.from_iterable(routes):
        torch.testing.assert_close(route.sum(-1), torch.ones_like(route.sum(-1)))
        assert (route > 0.0).all()
    for one, other in zip(routes[0], routes[1], strict=True):
        assert not torch.allclose(one, other) and not torch.allclose(one[0], one[1])


def test_one_task_for_all_samples_is_that_task_for_each() -> None:
    network, x = made(2, 2), torch.rand(2, 3, 4, dtype=torch.float64)
    assert torch.equal(network(x, 1), network(x, torch.ones(2, 3, dtype=torch.int64)))
    assert network(x, 1).shape == (2, 3, 2) and network(x[0, 0], 1).shape == (2,)


def test_the_order_of_modules_does_not_matter() -> None:
    """Two modules of the first layer change places, with the routes from them and the conditions on these routes."""
    network, x = made(2, 2), torch.rand(5, 4, dtype=torch.float64)
    before = network(x, 0)
    swapped = torch.tensor([1, 0, 3, 2])  # the entries (i, j) of a route, with j turned round
    with torch.no_grad():
        network.layers[0][0], network.layers[0][1] = network.layers[0][1], network.layers[0][0]
        for p in network.logits[0].parameters():
            p.copy_(p[swapped])
        network.conditions[0].weight.copy_(network.conditions[0].weight[:, swapped])
    torch.testing.assert_close(network(x, 0), before)


def test_every_parameter_learns_and_a_task_only_its_own_vector() -> None:
    network = made(3, 2)
    network(torch.rand(20, 4, dtype=torch.float64) - 0.5, 1).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad.abs().sum() > 0.0, name
    assert network.tasks.weight.grad[[0, 2]].abs().sum() == 0.0


def test_what_does_not_fit_is_refused() -> None:
    network = made(2, 2)
    with pytest.raises(IndexError, match=r"a task 0 \.\. 2, got 3"):
        network(torch.rand(5, 4).double(), 3)
    with pytest.raises(ValueError, match=r"tasks of samples \(5,\), got the shape \(4,\)"):
        network(torch.rand(5, 4).double(), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected layers >= 2, got 1"):
        SoftModules(4, 2, layers=1, num_tasks=2)
    with pytest.raises(TypeError, match="expected width as an int"):
        SoftModules(4, 2, width=2.5, num_tasks=2)
