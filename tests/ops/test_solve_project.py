"""``project_`` (PCGrad, GradVac) against vectors, and ``eigen_`` against LAPACK."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.ops import project_
from support.backends import CPU, Backend
from support.gram_samplers import KINDS, GramProblem, gram_problem
from support.ops.solve_calls import draw, eigen, empty, orders, project, scratch
from support.samplers import same_bits


def vectors_of(problem: GramProblem, order: Tensor, targets: Tensor | None, decay: float) -> Tensor:
    """The sum of the changed rows, with vectors instead of inner products; changes targets."""
    changed = []
    for i, row in enumerate(problem.rows):
        g = row.clone()
        for j in order[i].tolist():
            other = problem.rows[j]
            if j == i or not bool(other.any()) or not bool(row.any()):
                continue
            if targets is None:
                g -= (g @ other).clamp_max(0) / (other @ other) * other
                continue
            cosine, goal = float(g @ other / (g.norm() * other.norm())), float(targets[i, j])
            cosine = min(max(cosine, -1.0), 1.0)
            if cosine < goal < 1:
                factor = goal * math.sqrt(1 - cosine**2) - cosine * math.sqrt(1 - goal**2)
                g += g.norm() / other.norm() * factor / math.sqrt(1 - goal**2) * other
            targets[i, j] = (1 - decay) * goal + decay * cosine
        changed.append(g)
    return torch.stack(changed).sum(0)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_projections_of_vectors(backend: Backend, data: st.DataObject) -> None:
    problem = draw(data, backend, [kind for kind in KINDS if kind not in ("widely scaled", "opposite")], most=24)
    order = orders(1, problem.tasks)
    actual = problem.rows.T @ project(backend, problem.gram[None], order)[0]
    expected = vectors_of(problem, order[0], None, 0.0)
    assert (actual - expected).norm() <= 1e-11 * problem.lengths.sum()


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_vaccinations_of_vectors(backend: Backend, data: st.DataObject) -> None:
    problem = draw(data, backend, ["random", "conflicting", "scaled", "duplicate", "zero"], most=12)
    generator = torch.Generator().manual_seed(problem.tasks)
    targets = 0.8 * torch.rand(1, problem.tasks, problem.tasks, dtype=torch.float64, generator=generator) - 0.4
    expected_targets, order = targets[0].clone(), orders(1, problem.tasks)
    weights = project(backend, problem.gram[None], order, targets, decay=0.3)[0]
    expected = vectors_of(problem, order[0], expected_targets, 0.3)
    assert (problem.rows.T @ weights - expected).norm() <= 1e-8 * problem.lengths.sum()
    assert bool(((targets[0] - expected_targets).abs() <= 1e-8).all())


def test_the_cosine_after_a_vaccination_is_the_target(backend: Backend) -> None:
    for goal in (-0.9, 0.0, 0.5, 0.999):
        problem = gram_problem("conflicting", 2)
        targets = torch.full((1, 2, 2), goal, dtype=torch.float64)
        targets[0, 1] = -1.0  # the second row stays
        order = torch.tensor([[[0, 1], [0, 1]]])
        weights = project(backend, problem.gram[None], order, targets, decay=0.0)[0]
        first = problem.rows.T @ weights - problem.rows[1]
        cosine = float(first @ problem.rows[1] / (first.norm() * problem.rows[1].norm()))
        own = float(problem.gram[0, 1] / problem.lengths.prod())
        assert math.isclose(cosine, max(goal, own), abs_tol=1e-12)


def test_two_projected_rows_are_orthogonal_to_the_other(backend: Backend) -> None:
    problem = gram_problem("conflicting", 2)
    w = project(backend, problem.gram[None])[0]
    a, b, ab = problem.gram[0, 0], problem.gram[1, 1], problem.gram[0, 1]
    assert torch.allclose(w, torch.stack([1 - ab / a, 1 - ab / b]), rtol=1e-14)


def test_a_target_of_one_is_not_acted_on(backend: Backend) -> None:
    problem = gram_problem("conflicting", 3)
    targets = torch.ones(1, 3, 3, dtype=torch.float64)
    assert torch.equal(project(backend, problem.gram[None], None, targets), torch.ones(1, 3, dtype=torch.float64))


def test_a_row_that_became_rounding_meets_no_other(backend: Backend) -> None:
    """Row 0 and its near opposite, made orthogonal: |J'c|^2 = 2 angle - angle^2, of parts 1 + (1 - angle)^2."""

    def weight_of_the_third(angle: float, rtol: float) -> float:
        gram = torch.eye(3, dtype=torch.float64)
        gram[0, 1] = gram[1, 0] = angle - 1
        targets = torch.full((1, 3, 3), -1.0, dtype=torch.float64)
        targets[0, 0] = torch.tensor([-1.0, 0.0, 0.5])
        order = torch.tensor([[[0, 1, 2]] * 3])
        return float(project(backend, gram[None], order, targets, rtol=rtol)[0, 2])

    for angle in (2.0**-20, 2.0**-40):
        assert weight_of_the_third(angle, rtol=angle * (1 + 2.0**-4)) == 1
        assert weight_of_the_third(angle, rtol=angle * (1 - 2.0**-4)) > 1
    # Whatever rtol says, of T rows 8 T 2^-52 is rounding.
    assert weight_of_the_third(2.0**-50, rtol=0.0) == 1
    assert weight_of_the_third(2.0**-46, rtol=0.0) > 1


def test_targets_stay_where_something_is_not_finite(backend: Backend) -> None:
    gram = torch.stack([gram_problem("conflicting", 3).gram] * 2)
    gram[0, 1, 2] = torch.nan
    targets = torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    weights = project(backend, gram, None, targets, decay=0.5)
    assert bool(weights[0].isnan().all()) and not bool(weights[1].isnan().any())
    assert bool((targets[0] == 0.5).all()) and not bool((targets[1] == 0.5).all())


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
def test_a_task_that_is_not_there_is_refused() -> None:
    gram, order = gram_problem("random", 3).gram[None], orders(1, 3)
    for wrong in (-1, 3):
        order[0, 1, 2] = wrong
        with pytest.raises(RuntimeError, match="order must hold tasks, 0 to 2"):
            project_(empty(1, 3), None, gram, order)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_eigenvalues(backend: Backend, data: st.DataObject) -> None:
    problem = draw(data, backend)
    gram, tasks = problem.gram, problem.tasks
    (values,), (vectors,) = eigen(backend, gram[None])
    largest = gram.abs().max()
    eye = torch.eye(tasks, dtype=torch.float64)
    assert bool((values.diff() >= 0).all())
    assert bool(((vectors.T @ vectors - eye).abs() <= 1e-14 * tasks).all())
    assert bool(((vectors * values @ vectors.T - gram).abs() <= 4e-15 * tasks * largest).all())
    assert bool(((values - torch.linalg.eigvalsh(gram)).abs() <= 4e-15 * tasks * largest).all())


def test_eigenvalues_of_a_diagonal_matrix_are_exact(backend: Backend) -> None:
    diagonal = torch.tensor([3.0, 0.0, 1e-300, 7.0, 3.0], dtype=torch.float64)
    values, vectors = eigen(backend, torch.diag(diagonal)[None])
    assert torch.equal(values[0], diagonal.sort().values)
    assert bool((vectors.abs().sum(1) == 1).all())


def test_small_eigenvalues_of_short_rows_keep_their_digits(backend: Backend) -> None:
    """Two rows, one of them short: the product of the eigenvalues is the determinant s^2 (1 - c^2)."""
    for length in (2.0**-10, 2.0**-70, 2.0**-200):
        gram = torch.tensor([[[1.0, 0.5 * length], [0.5 * length, length**2]]], dtype=torch.float64)
        for each in (gram, gram.flip(1, 2)):
            (values,), _ = eigen(backend, each)
            assert math.isclose(float(values.prod()), 0.75 * length**2, rel_tol=1e-14)


def test_only_the_lower_triangle_counts() -> None:
    """Where the two triangles differ by rounding, results are those of one of them, bit for bit."""
    gram = gram_problem("random", 6).gram[None]
    altered = gram.tril() + (gram * (1 + 2.0**-50)).triu(1)
    assert same_bits(eigen(CPU, gram)[0], eigen(CPU, altered.contiguous())[0])
    assert scratch(gram).shape[0] == 1
