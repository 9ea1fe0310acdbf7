"""CUDA, native and emulated, gives the CPU's bits in every element-wise family, and of every solver; where the result
is a NaN, any NaN.

Reductions do not: a GPU sums a chunk over 256 threads and then over warps, the CPU over sixteen lanes and tiles of 1024
columns.  Those of `gram` and `priority` are compared with sums in float64 (test_gram.py, test_priority.py), within the
same bounds on every backend.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mt2o_ext.ops import Order, Rule
from support.backends import CPU, CUDA, EMULATED, Backend, each, usable
from support.gram_samplers import KINDS, gram_problem
from support.ops.priority_problem import PriorityProblem
from support.ops.solve_calls import SOLVERS
from support.samplers import FLOATS, HALVES, Layout, Sampler, StepProblem, same_bits

pytestmark = pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
LAYOUT = Layout((9000, 1, 4097, 33))
DTYPES = [(torch.float32, dtype) for dtype in (torch.float32, *HALVES)] + [(torch.float64, torch.float64)]
ROWS = (1, 2, 3, 5, 8, 16, 17)


@pytest.fixture(params=each(CUDA, EMULATED))
def other(request: pytest.FixtureRequest) -> Backend:
    return usable(request.param)


def assert_same(ours: Iterator[Tensor], theirs: Iterator[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert LAYOUT.same_results(a, b), f"result {index}: {int((a != b).sum())} of {a.numel()} differ"


def combined(backend: Backend) -> Iterator[Tensor]:
    sampler = Sampler(LAYOUT, seed=7)
    for dtype in FLOATS + HALVES:
        grads = sampler.rows(5, 3, dtype=dtype)
        for out_dtype in {dtype, dtype if dtype == torch.float64 else torch.float32}:
            out = sampler.poisoned(5, dtype=out_dtype)
            backend.combine_(out, grads, sampler.weights(5, 3), LAYOUT.chunks)
            yield out


def transferred(backend: Backend) -> Iterator[Tensor]:
    """Sparse mixes included: of a column from which none of four rows takes, no NaN may come."""
    sampler = Sampler(LAYOUT, seed=7)
    for dtype in FLOATS:
        for rows in ROWS:
            for density in (1.0, 0.3):
                theta = sampler.rows(rows, dtype=dtype)
                theta[rows - 1, 100:110] = torch.nan
                theta[:, 5] = -0.0
                backend.transfer_(theta, sampler.mix(rows, rows, density=density), LAYOUT.chunks)
                yield theta


def stepped(backend: Backend, rule: Rule, order: Order) -> Iterator[Tensor]:
    sampler = Sampler(LAYOUT, seed=7)
    for theta_dtype, grads_dtype in DTYPES:
        for rows in (1, 5, 17):
            for mix in (None, sampler.mix(rows, rows, density=0.6), sampler.mix(4, rows, rows)):
                low = sampler.poisoned(rows, dtype=torch.bfloat16) if theta_dtype == torch.float32 else None
                active = sampler.uniform(rows, 4) < 0.8
                problem = StepProblem.sample(
                    sampler, rows, 2, rule, theta_dtype=theta_dtype, grads_dtype=grads_dtype, mix=mix,
                    segments=sampler.segments(transfer=[1.0, 1.0, 0.0, 1.0]), low_precision=low,
                    ema=sampler.rows(rows, dtype=theta_dtype), active=active, grad_scale=torch.tensor([64.0]),
                )  # fmt: skip
                yield from problem.run(backend, rule, order).tensors().values()


def elementwise(backend: Backend) -> Iterator[Tensor]:
    sampler, finite = Sampler(LAYOUT, seed=7), torch.tensor([True, False, True])
    for dtype in FLOATS + HALVES:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for tasks in (1, 2, 5):
            grads, memory = sampler.rows(3, tasks, dtype=dtype), sampler.rows(3, tasks, dtype=wide)
            keep, fresh, weights = (sampler.weights(3, tasks) for _ in range(3))
            for shown in (False, True):
                backend.track_(grads, memory, keep, fresh, finite, LAYOUT.chunks, shown=shown)
                yield from (grads.clone(), memory.clone())
            last, now, before = sampler.rows(3, dtype=wide), sampler.uniform(3), sampler.uniform(3)
            backend.feed_(grads, last, memory, weights, now, before, finite, LAYOUT.chunks, beta=0.9)
            yield from (grads, last)
            grads = sampler.rows(3, tasks, dtype=dtype)
            backend.drop_signs_(grads, torch.tensor(-5), finite, LAYOUT.chunks, stream=1, leak=0.3)
            yield grads


def test_priority_with_the_same_coefficients(other: Backend) -> None:
    """Products of small integers have exact sums, in any order: then all is the same."""
    for dtype in FLOATS + HALVES:
        for tasks in (1, 2, 3, 7):
            ours, theirs = PriorityProblem.sample(tasks, dtype), PriorityProblem.sample(tasks, dtype)
            for problem in (ours, theirs):
                problem.grads.mul_(4).round_()
            assert ours.layout.same_results(ours.run(CPU), theirs.run(other))
            assert same_bits(ours.coefficients, theirs.coefficients)
            assert tasks == 1 or bool((ours.coefficients > 0).any())


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(other: Backend, name: str) -> None:
    for tasks in (1, 2, 3, 8, 17):
        gram = torch.stack([gram_problem(kind, tasks).gram for kind in KINDS])
        assert same_bits(SOLVERS[name](CPU, gram), SOLVERS[name](other, gram))


def test_combine(other: Backend) -> None:
    assert_same(combined(CPU), combined(other))


def test_elements(other: Backend) -> None:
    assert_same(elementwise(CPU), elementwise(other))


def test_transfer(other: Backend) -> None:
    assert_same(transferred(CPU), transferred(other))


@pytest.mark.parametrize("order", Order, ids=lambda order: order.name.lower())
@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_step(other: Backend, rule: Rule, order: Order) -> None:
    """Counters, constants, moments, averages and rounded copies too."""
    assert_same(stepped(CPU, rule, order), stepped(other, rule, order))
