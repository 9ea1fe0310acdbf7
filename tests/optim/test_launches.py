"""A step costs the host next to nothing beside autograd: the operations that it dispatches are few, and counted here.

On a GPU each is a launch of some microseconds, which small models would wait for.  Views, allocations and `detach` are
none.  The compiled part counts an operation of a family as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mt2o_ext import MT2OFused, WeightedFused
from mt2o_ext.dirichlet import uniform_on_simplex
from mt2o_ext.transfer import Hat, Mean
from support.backends import CPU

pytestmark = pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)

FREE = ("aten.empty", "aten.new_empty", "aten.detach", "profiler.")


class Launches(TorchDispatchMode):
    """Counts the operations that are dispatched, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        views = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        if not views and not name.startswith(FREE):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def launched(function: Callable[[], Any]) -> Counter[str]:
    with Launches() as launches:
        function()
    return launches.names


def problem(num_tasks: int) -> tuple[list[nn.Parameter], Callable[[], list[Tensor]]]:
    """Parameters, and T losses of all of them."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(40)) for _ in range(5)]
    directions = [torch.randn(200) for _ in range(num_tasks)]

    def losses() -> list[Tensor]:
        return [(torch.cat(parameters) * direction).sum() ** 2 for direction in directions]

    return parameters, losses


def own(losses: Callable[[], list[Tensor]], *, together: bool) -> Counter[str]:
    """What autograd launches for these losses, in a pass for each or in one; each begins with a one."""

    def passes() -> None:
        for loss in given:
            loss.backward()

    given = losses()
    if together:
        weights = [torch.ones(()) for _ in given]
        return launched(lambda: (torch.ones_like(weights[0]), torch.autograd.backward(given, weights)))
    return launched(passes)


LIMITS = {"cagrad": 8, "mgda": 8, "dualproj": 8, "upgrad": 9, "pcgrad": 13, None: 4}


@pytest.mark.parametrize("weighting", LIMITS)
def test_a_weighted_step(weighting: str | None) -> None:
    parameters, losses = problem(3)
    optimizer = WeightedFused(parameters, num_tasks=3, weighting=weighting)
    for _ in range(2):
        optimizer.backward(losses())
        optimizer.step()
    optimizer.zero_grad()
    given = losses()
    found = launched(lambda: (optimizer.backward(given), optimizer.step()))
    for p in parameters:
        p.grad = None
    beyond = found - own(losses, together=weighting is None)
    assert sum(beyond.values()) <= LIMITS[weighting], beyond


@pytest.mark.parametrize("who", ["the optimizer's backward", "the user's backward"])
def test_a_step_of_one_task(who: str) -> None:
    parameters, losses = problem(1)
    optimizer = WeightedFused(parameters, num_tasks=1)

    def step() -> None:
        if who == "the user's backward":
            losses()[0].backward()
        else:
            optimizer.backward(losses())
        optimizer.step()

    step()
    step()
    optimizer.zero_grad()
    found = launched(step)
    for p in parameters:
        p.grad = None
    forward = launched(losses)
    beyond = found - own(losses, together=True) - forward
    assert sum(beyond.values()) <= 4, beyond


def test_random_weights_cost_a_draw_more_and_their_formula() -> None:
    parameters, losses = problem(3)
    optimizer = WeightedFused(parameters, num_tasks=3, weighting="rlw")
    for _ in range(2):
        optimizer.backward(losses())
        optimizer.step()
    optimizer.zero_grad()
    given = losses()
    found = launched(lambda: (optimizer.backward(given), optimizer.step()))
    of_package = {name: count for name, count in found.items() if name.startswith("mt2o_ext")}
    draws = of_package.pop("mt2o_ext.draw_.default")
    assert draws == 2  # of a normal number
    assert sum(of_package.values()) == 4, of_package


# ---------------------------------------------------------------------- K subproblems
K = 4
ROWS = {"front": "rows", "transfer": None}
OF_MT2O = {  # options, and the limits of all backwards together and of the step
    "rows": (ROWS, 1, 4),
    "rows, no transfer due": ({"front": "rows", "transfer": Hat(every=100)}, 1, 4),
    "rows, a transfer": ({"front": "rows", "transfer": Mean(0.5)}, 1, 8),
    "rows that skip together": ({**ROWS, "skip_nonfinite": "all"}, 1, 5),
    "rows, cagrad": ({**ROWS, "weighting": "cagrad"}, 1, 6),
    "rows, upgrad": ({**ROWS, "weighting": "upgrad"}, 1, 7),
    "vertices": ({"front": "vertices"}, 1, 9),
    "vertices, cagrad": ({"front": "vertices", "weighting": "cagrad"}, 1, 12),
    "vertices, pamal": ({"front": "vertices", "weighting": "pamal", "scalarization": None}, 0, 11),
}


@pytest.mark.parametrize("name", OF_MT2O)
def test_a_step_of_several_subproblems(name: str) -> None:
    """The draw of the points is the host's on every device, and left out."""
    options, of_backward, of_step = OF_MT2O[name]
    parameters, of_batch = problem(2)
    batches = count(1)
    optimizer = MT2OFused(parameters, num_tasks=2, num_subproblems=K, **options)

    def losses() -> list[Tensor]:
        batch = next(batches)
        return [loss * batch for loss in of_batch()]

    found: list[Counter[str]] = []
    for _ in range(3):
        backwards: Counter[str] = Counter()
        for _ in optimizer.subproblems():
            backwards += launched(partial(optimizer.backward, losses()))
        found = [backwards, launched(optimizer.step)]
    optimizer.zero_grad()
    alone: Counter[str] = Counter()
    for _ in range(K):
        alone += own(losses, together="weighting" not in options)
        optimizer.zero_grad()
    beyond = found[0] - alone
    assert sum(beyond.values()) <= of_backward, beyond
    if options["front"] == "vertices":
        found[1] -= launched(lambda: uniform_on_simplex((K, 2)))
    assert sum(found[1].values()) <= of_step, found[1]


def test_a_bank_takes_two_for_its_losses_and_as_many_as_rows_for_its_step() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(40).expand(K, -1).clone()) for _ in range(5)]
    directions = torch.randn(2, 200)
    optimizer = MT2OFused(parameters, num_tasks=2, num_subproblems=K, stacked=True, **ROWS)

    def losses() -> Tensor:
        return (torch.cat(parameters, 1) @ directions.T).square()

    for _ in range(2):
        backward = launched(partial(optimizer.backward, losses()))
        step = launched(optimizer.step)
    given = losses()
    beyond = backward - launched(lambda: given.backward(torch.ones_like(given)))
    assert sum(beyond.values()) <= 2, beyond
    assert sum(step.values()) <= 4, step
