"""torch.compile: the step without a graph break, few compilations over a schedule, our operators in the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from mt2o_ext import MT2OFused, _native, ops
from support.optim.problems import TWINS, Batches, assert_same, make_model, snapshot, task_losses
from support.optim.towers import WEIGHTINGS, Towers, batch_of, values, weighted

pytestmark = [
    pytest.mark.skipif(_native.C is None, reason="the operators are there with the compiled part only"),
    pytest.mark.filterwarnings("ignore:Profiler record function"),
]


class Frames:
    """A backend of torch.compile that keeps the graphs and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, _: list[Tensor]) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def operators(self) -> set[str]:
        return {str(node.target) for graph in self.graphs for node in graph.graph.nodes if node.op == "call_function"}


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(optimizer: MT2OFused, model: torch.nn.Module, step: Any, schedule: str) -> None:
    batches = Batches()
    for _ in range(5):
        for _ in optimizer.subproblems():
            x, y = next(batches)
            optimizer.backward(task_losses(model(x), y))
        step()
        optimizer.zero_grad()
        lr = optimizer.param_groups[0]["lr"]
        if schedule == "tensor":
            lr.mul_(0.5)
        else:
            optimizer.param_groups[0]["lr"] = 0.5 * lr


# Each base with both schedules and both numbers, and each schedule with each number.
HALVES = [(base, schedule, 3 if (index + (schedule == "tensor")) % 2 else 1)
          for index, base in enumerate(["adamw", "amsgrad", "nesterov", "lion"])
          for schedule in ("float", "tensor")]  # fmt: skip


@pytest.mark.parametrize(("base", "schedule", "num_subproblems"), HALVES)
def test_step_compiles_without_a_break_and_twice_at_most(base: str, schedule: str, num_subproblems: int) -> None:
    frames, results = Frames(), []
    for compiled in (False, True):
        model = make_model()
        lr: Any = torch.tensor(0.125) if schedule == "tensor" else 0.125
        optimizer = TWINS[base].ours(
            model.parameters(), lr=lr, num_tasks=2, num_subproblems=num_subproblems, transfer=None, ema=0.9
        )
        step = torch.compile(optimizer.step, backend=frames, fullgraph=True) if compiled else optimizer.step
        run(optimizer, model, step, schedule)
        results.append(snapshot(optimizer))
    assert len(frames.graphs) <= 2
    assert {"mt2o_ext.step_", "mt2o_ext.finite_"} <= frames.operators()
    assert_same(results[1], results[0])


@pytest.mark.parametrize("name", ["losses", "gram, random order", "rows, memory"])
def test_weighted_steps_compile_without_a_break_and_twice_at_most(name: str) -> None:
    frames, results = Frames(), []
    for compiled in (False, True):
        model = Towers()
        optimizer = weighted(model, WEIGHTINGS[name](), ema=0.9)
        step = torch.compile(optimizer.step, backend=frames, fullgraph=True) if compiled else optimizer.step
        for seed in range(5):
            optimizer.backward(model.losses(batch_of(seed)))
            step()
            optimizer.param_groups[0]["lr"] *= 0.5
        results.append([values(model), optimizer.state_dict()])
    assert len(frames.graphs) <= 2
    assert {"mt2o_ext.step_", "mt2o_ext.finite_"} <= frames.operators()
    assert "mt2o_ext.gram_" not in frames.operators()  # weighed in backward
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-6, atol=1e-7)


def test_step_through_functionalization() -> None:
    results = []
    for compiled in (False, True):
        model = make_model()
        optimizer = TWINS["adamw"].ours(model.parameters(), num_tasks=2, num_subproblems=3, transfer=None)
        step = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        run(optimizer, model, step, "float")
        results.append(snapshot(optimizer))
    assert_same(results[1], results[0])


def test_operators_in_a_training_step_of_the_users() -> None:
    _, row, chunks = ops.plan_layout([40, 7])
    table = torch.tensor(chunks)
    theta, segments = torch.randn(3, row), torch.zeros(2, len(ops.FIELDS), dtype=torch.float64)
    segments[:, ops.FIELDS.index("lr")] = 0.1
    mix = torch.full((3, 3), 1 / 3, dtype=torch.float64)

    def training_step(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        task_grads = torch.stack([2 * (theta - x), theta + x], 1)
        combined, found = torch.zeros_like(theta), torch.zeros(3)
        ops.combine_(combined, task_grads, torch.full((3, 2), 0.5, dtype=torch.float64), table)
        gram = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
        partials = torch.zeros(1, len(chunks), 6, dtype=torch.float64)
        ops.gram_(gram, partials, theta.unsqueeze(0), None, table, centre=True)
        ops.finite_(found, combined.unsqueeze(1), table)
        ops.step_(
            theta, None, None, None, None, None, torch.zeros(3, 2),
            torch.zeros(3, 2, ops.NUM_CONSTANTS, dtype=torch.float64), combined.unsqueeze(1), None, None, segments,
            table, None, None, found, rule=ops.Rule.SGD,
        )  # fmt: skip
        ops.transfer_(theta, mix, table)
        return theta.square().sum(), gram

    x = torch.randn(3, row)
    eager, compiled = theta.clone(), theta.clone()
    expected = training_step(eager, x)
    frames = Frames()
    actual = torch.compile(training_step, backend=frames, fullgraph=True)(compiled, x)
    assert_same(actual, expected)
    assert_same(compiled, eager)
    assert {f"mt2o_ext.{name}_" for name in ("combine", "gram", "finite", "step", "transfer")} <= frames.operators()
    again = theta.clone()
    assert_same(torch.compile(training_step, backend="aot_eager", fullgraph=True)(again, x), expected)
    assert_same(again, eager)
