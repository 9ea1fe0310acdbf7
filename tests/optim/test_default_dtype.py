"""``torch.set_default_dtype`` changes nothing: every tensor of the package is made with a dtype."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mt2o_ext
from mt2o_ext import MT2OFused, WeightedBackward
from mt2o_ext.weighting import CAGrad
from support.optim import priority_model
from support.optim.problems import Batches, assert_same, make_model, task_losses
from support.optim.towers import WEIGHTINGS, Towers, batch_of, weighted

PACKAGE = Path(mt2o_ext.__file__).parent
# Those that take torch's default dtype where they are given none; randint and randperm never do.
FACTORIES = [
    *("zeros", "ones", "full", "empty", "tensor", "arange", "range", "linspace", "logspace", "rand", "randn", "eye"),
    *("as_tensor", "scalar_tensor", "asarray", "normal", "empty_strided", "empty_permuted", "hann_window"),
]


def factory_calls(source: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source)):
        function = node.func if isinstance(node, ast.Call) else None
        if isinstance(function, ast.Attribute) and function.attr in FACTORIES and isinstance(node, ast.Call):
            of = function.value
            if isinstance(of, ast.Name) and of.id == "torch":
                yield node


def without_dtype(source: str) -> list[int]:
    return [call.lineno for call in factory_calls(source) if "dtype" not in {word.arg for word in call.keywords}]


@pytest.mark.parametrize("name", FACTORIES[:4])
def test_the_gate_sees(name: str) -> None:
    assert without_dtype(f"import torch\nx = torch.{name}(3)\ny = torch.{name}(3, dtype=torch.float32)") == [2]


def test_every_tensor_is_made_with_a_dtype() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    calls = sum(len(list(factory_calls(path.read_text()))) for path in files)
    assert calls > 50
    found = {str(path.relative_to(PACKAGE)): without_dtype(path.read_text()) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def other_default(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets the other default when it is called."""
    yield lambda: torch.set_default_dtype(request.param)
    torch.set_default_dtype(torch.float32)


def mt2o(options: dict[str, Any], start: Callable[[], None]) -> Any:
    model, batches = make_model(), [next(batches) for batches in [Batches()] for _ in range(20)]
    start()
    optimizer = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=5, ema=0.9, **options)
    stream = iter(batches)
    losses = [optimizer.step(lambda: (lambda x, y: task_losses(model(x), y))(*next(stream))) for _ in range(4)]
    return (
        losses,
        optimizer.state_dict(),
        optimizer.skipped_steps,
        optimizer.front(lambda: task_losses(model(batches[0][0]), batches[0][1])).losses,
    )


def weighting(name: str, start: Callable[[], None]) -> Any:
    model, batches = Towers(), [batch_of(seed) for seed in range(4)]
    generator = torch.Generator().manual_seed(1)
    start()
    optimizer = weighted(model, WEIGHTINGS[name](), ema=0.9, generator=generator)
    losses = [optimizer.step(lambda: model.losses(batch)) for batch in batches]  # noqa: B023
    return losses, optimizer.weights, optimizer.state_dict(), [p.detach().clone() for p in model.parameters()]


def connection(dtype: torch.dtype, start: Callable[[], None]) -> Any:
    model, batches = priority_model.network(dtype=dtype), priority_model.Batches(dtype=dtype)
    start()
    optimizer = priority_model.optimizer_of(model, shuffle=True, schedule=lambda progress: 0.5)
    losses = [optimizer.step(batches.loss(model)) for _ in range(4)]
    history = optimizer.history()
    return losses, optimizer.state_dict(), history.shares, history.conflicts


def backward(_: Any, start: Callable[[], None]) -> Any:
    model, batch = Towers(), batch_of(0)
    start()
    WeightedBackward(model.groups(), num_tasks=3, weighting=CAGrad())(model.losses(batch))
    return [p.grad for p in model.parameters()]


CASES: dict[str, tuple[Callable[..., Any], Any]] = {
    "mt2o": (mt2o, {"front": "rows"}),
    "mt2o, vertices": (mt2o, {"front": "vertices", "generator": torch.Generator()}),
    "mt2o, vertices, weighting": (mt2o, {"front": "vertices", "weighting": "PCGrad", "generator": torch.Generator()}),
    "mt2o, weighting": (mt2o, {"front": "rows", "weighting": "PCGrad", "generator": torch.Generator()}),
    "mt2o, relative": (mt2o, {"transfer": mt2o_ext.transfer.Spectral(relative=True)}),
    "mt2o, batched": (mt2o, {"front": "rows", "weighting": "CAGrad", "collect": "batched"}),
    "connection strength": (connection, torch.float32),
    "connection strength of bfloat16": (connection, torch.bfloat16),
    "backward": (backward, None),
    **{name: (weighting, name) for name in WEIGHTINGS},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_under_another_default(case: str, other_default: Callable[[], None]) -> None:
    run, argument = CASES[case]
    results = []
    for start in (lambda: None, other_default):
        if isinstance(argument, dict) and "generator" in argument:
            argument = {**argument, "generator": torch.Generator().manual_seed(3)}
        results.append(run(argument, start))
    assert_same(results[1], results[0])
