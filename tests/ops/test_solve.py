"""What all solvers have in common: zeros, what is not finite, scale, order of the tasks, batches, repetition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mt2o_ext import ops
from support.backends import CPU, Backend
from support.gram_samplers import KINDS, NOT_FINITE, gram_problem, spoiled
from support.ops.solve_calls import (
    DEGREES,
    SOLVERS,
    draw,
    dual_cone,
    eigen,
    empty,
    minimum_norm,
    power_barrier,
    scratch,
    sizes,
)
from support.samplers import same_bits

EACH_SOLVER = pytest.mark.parametrize("name", SOLVERS)
# Their result is a combination of the rows that does not depend on the order of the tasks.
UNORDERED = ("minimum norm", "conflict averse", "barrier", "barrier, p = 0.3", "dual cone", "unconflicting")


def stacked(tasks: int, kinds: tuple[str, ...] = tuple(KINDS)) -> torch.Tensor:
    return torch.stack([gram_problem(kind, tasks).gram for kind in kinds])


@EACH_SOLVER
def test_every_kind_of_gram_matrix_gives_numbers(backend: Backend, name: str) -> None:
    for tasks in (t for t in sizes(backend) if t <= 40):
        result = SOLVERS[name](backend, stacked(tasks))
        assert bool(torch.isfinite(result).all()), tasks


@EACH_SOLVER
def test_zero_rows_get_no_weight(backend: Backend, name: str) -> None:
    gram = stacked(7, ("zero", "all zero"))
    result = SOLVERS[name](backend, gram)
    if name != "eigenvalues":
        assert bool((result[gram.diagonal(dim1=-2, dim2=-1) == 0] == 0).all())
    assert not bool(result[1].any())


@EACH_SOLVER
@given(
    kind=st.sampled_from(list(KINDS)),
    tasks=st.integers(1, 8),
    value=st.sampled_from(NOT_FINITE),
    where=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
@settings(max_examples=10, deadline=None)
def test_what_is_not_finite_stays_in_its_problem(
    backend: Backend, name: str, kind: str, tasks: int, value: float, where: tuple[int, int]
) -> None:
    gram = gram_problem(kind, tasks).gram
    bad = spoiled(gram, value, where[0] % tasks, where[1] % tasks)
    result = SOLVERS[name](backend, torch.stack([gram, bad, gram]))
    alone = SOLVERS[name](backend, torch.stack([gram] * 3))
    assert bool(result[1].isnan().all())
    assert same_bits(result[0], alone[0]) and same_bits(result[2], alone[2])


def test_other_inputs_that_are_not_finite(backend: Backend) -> None:
    gram = gram_problem("random", 3).gram[None]
    for value in NOT_FINITE:
        vector = torch.tensor([[1.0, value, 1.0]], dtype=torch.float64)
        assert bool(minimum_norm(backend, gram, vector)[0].isnan().all())
        assert bool(dual_cone(backend, gram, vector[None]).isnan().all())
        x, residual = power_barrier(backend, gram, vector)
        assert bool(x.isnan().all()) and bool(residual.isnan().all())
        for name in ("losses", "rays"):
            given_ = {"losses": torch.ones_like(vector), "rays": torch.ones_like(vector)} | {name: vector}
            weights = empty(1, 3)
            backend.solve.descent_(weights, scratch(gram), gram, *given_.values(), tolerance=1e-4, relax=False)
            assert bool(weights.isnan().all())


@EACH_SOLVER
def test_powers_of_two_change_no_bit(backend: Backend, name: str) -> None:
    """Of anything that does not depend on the length of the rows."""
    for tasks in sizes(backend, 8):
        gram = stacked(tasks)
        plain = SOLVERS[name](backend, gram)
        for factor in (2.0**-200, 2.0**26):
            scaled = SOLVERS[name](backend, factor * gram)
            expected = factor ** DEGREES.get(name, 0.0) * plain
            exact = name != "barrier, p = 0.3" and backend.name != "reference"
            assert same_bits(scaled, expected) if exact else torch.allclose(scaled, expected, rtol=1e-9, atol=0)


@EACH_SOLVER
@pytest.mark.parametrize("kind", ["random", "conflicting", "scaled"])
def test_scale_of_the_losses(backend: Backend, name: str, kind: str) -> None:
    """1e-8 to 1e8 times the rows: the same direction, and the length that the formula says."""
    for tasks in sizes(backend, 8):
        problem = gram_problem(kind, tasks)
        plain = SOLVERS[name](backend, problem.gram[None])[0]
        for factor in (1e-8, 1e8):
            scaled = SOLVERS[name](backend, problem.scaled(factor).gram[None])[0]
            expected = factor ** (2 * DEGREES.get(name, 0.0)) * plain
            assert (scaled - expected).norm() <= 1e-9 * expected.norm()


@given(data=st.data(), name=st.sampled_from(UNORDERED), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_order_of_the_tasks(backend: Backend, data: st.DataObject, name: str, seed: int) -> None:
    problem = draw(data, backend, most=8)
    permutation = torch.randperm(problem.tasks, generator=torch.Generator().manual_seed(seed))
    permuted = problem.permuted(permutation)
    plain = problem.rows.T @ SOLVERS[name](backend, problem.gram[None])[0]
    other = permuted.rows.T @ SOLVERS[name](backend, permuted.gram[None])[0]
    size = plain.norm() if name.startswith("barrier") else problem.lengths.max()
    assert (plain - other).norm() <= 1e-6 * size


@EACH_SOLVER
def test_a_batch_is_its_problems_and_runs_repeat(backend: Backend, name: str) -> None:
    gram = stacked(6)
    together = SOLVERS[name](backend, gram)
    assert same_bits(together, SOLVERS[name](backend, gram))
    for k in range(len(gram)):
        alone = SOLVERS[name](backend, gram[k : k + 1])[0]
        if name in ("project", "vaccinated"):
            continue  # each problem of a batch has an order of its own
        assert same_bits(together[k], alone), k


def test_threads_change_no_bit() -> None:
    gram = stacked(12).repeat(4, 1, 1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append([SOLVERS[name](CPU, gram) for name in SOLVERS])
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
def test_many_tasks() -> None:
    """More than anybody has; workspace is all that it takes."""
    problem = gram_problem("conflicting", 150)
    w = minimum_norm(CPU, problem.gram[None])[0]
    gradient = problem.gram @ w
    assert w @ gradient - gradient.min() <= 1e-11 * (w @ gradient)
    v = dual_cone(CPU, problem.gram[None])[0, 0]
    assert bool((problem.gram @ v >= -1e-12).all())
    values, _ = eigen(CPU, problem.gram[None])
    assert torch.allclose(values[0], torch.linalg.eigvalsh(problem.gram), rtol=1e-11, atol=1e-11)


def test_workspace_is_allocated_where_none_is_given() -> None:
    gram = gram_problem("random", 4).gram[None]
    weights, again = empty(1, 4), empty(1, 4)
    ops.minimum_norm_(weights, gram)
    ops.minimum_norm_(again, gram, workspace=scratch(gram))
    assert same_bits(weights, again)
