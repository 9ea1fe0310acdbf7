"""The solvers as torch sees them: schemas, fakes, tracing, version counters, and what they say to wrong arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mt2o_ext import ops
from mt2o_ext.ops import workspace_size
from support.backends import CPU
from support.gram_samplers import gram_problem
from support.ops.solve_calls import orders
from support.samplers import same_bits

pytestmark = pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
K, T = 2, 4

Arguments = dict[str, Any]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def common(results: Arguments, others: Arguments) -> Arguments:
    """In the order of the schema."""
    gram = torch.stack([gram_problem("conflicting", T, seed).gram for seed in range(K)])
    return {**results, "workspace": zeros(K, workspace_size(T)), "gram": gram, **others}


def project_arguments(targets: Tensor | None) -> Arguments:
    return common({"weights": zeros(K, T), "targets": targets}, {"order": orders(K, T), "decay": 0.3, "rtol": 1e-12})


def descent_arguments() -> Arguments:
    losses = 1 + torch.arange(K * T, dtype=torch.float64).reshape(K, T)
    return common({"weights": zeros(K, T)}, {"losses": losses, "rays": ones(K, T), "tolerance": 1e-4, "relax": False})


CASES: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "minimum norm": ("minimum_norm_", lambda: common({"weights": zeros(K, T)}, {"linear": None})),
    "linear term": ("minimum_norm_", lambda: common({"weights": zeros(K, T)}, {"linear": ones(K, T)})),
    "conflict averse": (
        "conflict_averse_",
        lambda: common({"weights": zeros(K, T)}, {"preferences": ones(K, T), "radius": 0.5, "rtol": 1e-12}),
    ),
    "barrier": (
        "power_barrier_",
        lambda: common(
            {"weights": zeros(K, T), "residual": zeros(K)}, {"target": ones(K, T), "power": 0.5, "rtol": 1e-12}
        ),
    ),
    "cone": ("dual_cone_", lambda: common({"weights": zeros(K, 3, T)}, {"lower": ones(K, 3, T), "rtol": 1e-12})),
    "eigen": ("eigen_", lambda: common({"values": zeros(K, T), "vectors": zeros(K, T, T)}, {})),
    "project": ("project_", lambda: project_arguments(None)),
    "vaccinate": ("project_", lambda: project_arguments(0.5 * ones(K, T, T))),
    "descent": ("descent_", descent_arguments),
}


@pytest.fixture(autouse=True)
def _forget_compilations() -> None:
    """torch.compile counts those of all cases together."""
    torch._dynamo.reset()


EACH_CASE = pytest.mark.parametrize("case", CASES)


def operator_of(case: str) -> Any:
    return getattr(torch.ops.mt2o_ext, CASES[case][0])


def split(case: str, arguments: Arguments) -> tuple[list[Any], Arguments]:
    """Positional and named arguments of the operator."""
    named = {a.name for a in operator_of(case).default._schema.arguments if a.kwarg_only}
    positional = [value for name, value in arguments.items() if name not in named]
    return positional, {name: value for name, value in arguments.items() if name in named}


def copied(arguments: Arguments) -> Arguments:
    return {name: a.clone() if isinstance(a, Tensor) else a for name, a in arguments.items()}


@EACH_CASE
def test_opcheck(case: str) -> None:
    positional, named = split(case, CASES[case][1]())
    report = torch.library.opcheck(operator_of(case).default, tuple(positional), named)
    assert set(report.values()) == {"SUCCESS"}
    assert len(report) == 4


@EACH_CASE
def test_compiles_without_a_break(case: str) -> None:
    function, arguments = getattr(ops, CASES[case][0]), CASES[case][1]()
    eager, compiled = copied(arguments), copied(arguments)
    function(**eager)
    torch.compile(lambda given: function(**given), fullgraph=True, backend="aot_eager")(compiled)
    for name, a in eager.items():
        assert not isinstance(a, Tensor) or same_bits(a, compiled[name]), name


@EACH_CASE
def test_what_was_written_to_has_a_new_version(case: str) -> None:
    arguments = CASES[case][1]()
    tensors = {name: a for name, a in arguments.items() if isinstance(a, Tensor) and name != "workspace"}
    before = {name: a._version for name, a in tensors.items()}
    getattr(ops, CASES[case][0])(**arguments)
    written = {a.name for a in operator_of(case).default._schema.arguments if a.is_write}
    for name, a in tensors.items():
        assert (a._version > before[name]) == (name in written), name


WRONG: dict[str, tuple[str, str, Callable[[Tensor], Tensor], str]] = {
    "gram of two dimensions": ("minimum norm", "gram", lambda a: a[0], "gram must be [K, T, T]"),
    "gram not square": (
        "minimum norm",
        "gram",
        lambda a: a[:, :3].contiguous(),
        "gram must be contiguous, of shape [2, 4, 4]",
    ),
    "float32": ("minimum norm", "gram", Tensor.float, "gram must be contiguous, of shape [2, 4, 4] and its documented"),
    "too many tasks": ("minimum norm", "gram", lambda a: zeros(2, 1025, 1025), "1 to 1024 tasks, not 1025"),
    "no task": ("minimum norm", "gram", lambda a: zeros(2, 0, 0), "1 to 1024 tasks, not 0"),
    "short workspace": (
        "cone",
        "workspace",
        lambda a: a[:, :-1].contiguous(),
        f"workspace must be float64, contiguous, of shape [2, at least {workspace_size(T)}]",
    ),
    "workspace of one problem": ("cone", "workspace", lambda a: a[:1], "workspace must be float64"),
    "weights": ("conflict averse", "weights", lambda a: a[:1], "weights must be contiguous, of shape [2, 4]"),
    "linear": ("linear term", "linear", lambda a: a[:, :2].contiguous(), "linear must be contiguous, of shape [2, 4]"),
    "preferences": ("conflict averse", "preferences", Tensor.float, "preferences must be contiguous"),
    "residual": ("barrier", "residual", lambda a: a[:1], "residual must be contiguous, of shape [2]"),
    "target": ("barrier", "target", lambda a: a[:1], "target must be contiguous, of shape [2, 4]"),
    "lower of two dimensions": ("cone", "lower", lambda a: a[0], "lower must be [K, M, T]"),
    "weights of the cone": ("cone", "weights", lambda a: a[:, :2].contiguous(), "weights must be contiguous, of shape"),
    "vectors": ("eigen", "vectors", lambda a: a[:, :2].contiguous(), "vectors must be contiguous, of shape [2, 4, 4]"),
    "order": ("project", "order", Tensor.int, "order must be contiguous, of shape [2, 4, 4]"),
    "targets": ("vaccinate", "targets", lambda a: a[:1], "targets must be contiguous, of shape [2, 4, 4]"),
    "losses": ("descent", "losses", lambda a: a[:1], "losses must be contiguous, of shape [2, 4]"),
    "rays": ("descent", "rays", lambda a: a.T.contiguous().T, "rays must be contiguous, of shape [2, 4]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str) -> None:
    case, name, change, message = WRONG[wrong]
    arguments = CASES[case][1]()
    arguments[name] = change(arguments[name])
    before = copied(arguments)
    positional, named = split(case, arguments)
    with pytest.raises(RuntimeError, match=re.escape(message)) as raised:
        operator_of(case)(*positional, **named)
    assert not re.search(r"(^|\s)/\w", str(raised.value)), raised.value
    assert all(not isinstance(a, Tensor) or same_bits(a, arguments[key]) for key, a in before.items())


@EACH_CASE
def test_shapes_are_checked_while_tracing(case: str) -> None:
    arguments = CASES[case][1]()
    first = next(iter(arguments))
    arguments[first] = arguments[first][:1].contiguous()
    function = getattr(ops, CASES[case][0])
    with pytest.raises(Exception, match=rf"{first} must be \["):
        torch.compile(lambda given: function(**given), fullgraph=True, backend="aot_eager")(arguments)
