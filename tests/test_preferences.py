"""Preferences: on the simplex, well spread, ordered, and checked."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.preferences import check_preferences, das_dennis, default_preferences, even, riesz_energy


def assert_on_simplex(preferences: Tensor, num_subproblems: int, num_tasks: int) -> None:
    assert preferences.shape == (num_subproblems, num_tasks)
    assert preferences.dtype == torch.float64
    assert (preferences >= 0.0).all()
    torch.testing.assert_close(preferences.sum(1), torch.ones(num_subproblems).double(), rtol=0.0, atol=1e-14)
    assert len({tuple(row) for row in preferences.tolist()}) == num_subproblems, "two rows are equal"


def test_even_runs_from_task_0_to_task_1() -> None:
    assert even(5).tolist() == [[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
    assert even(3, eps=0.1).tolist() == [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]
    assert even(1).tolist() == [[0.5, 0.5]]


@given(num_subproblems=st.integers(2, 200), fraction=st.floats(0.0, 0.49))
def test_even_is_symmetric(num_subproblems: int, fraction: float) -> None:
    eps = fraction / (num_subproblems - 1)
    preferences = even(num_subproblems, eps)
    assert_on_simplex(preferences, num_subproblems, 2)
    assert torch.equal(preferences.flip(0), preferences.flip(1))
    assert preferences.min() >= eps
    assert (preferences[:, 0].diff() < 0.0).all()


@pytest.mark.parametrize("eps", [-0.1, 0.25, math.nan])
def test_even_rejects_eps_that_makes_rows_equal(eps: float) -> None:
    with pytest.raises(ValueError, match=r"eps >= 0 and below 0.25, the spacing of the rows"):
        even(5, eps)


@pytest.mark.parametrize(("num_tasks", "partitions"), [(1, 4), (2, 7), (3, 4), (4, 3), (5, 5)])
def test_das_dennis_is_the_lattice(num_tasks: int, partitions: int) -> None:
    rows = das_dennis(num_tasks, partitions)
    assert_on_simplex(rows, math.comb(partitions + num_tasks - 1, num_tasks - 1), num_tasks)
    torch.testing.assert_close((rows * partitions).round(), rows * partitions)
    assert rows.tolist() == sorted(rows.tolist(), reverse=True)


def test_das_dennis_for_two_tasks_is_even() -> None:
    assert torch.equal(das_dennis(2, 6), even(7))


def test_das_dennis_of_four_tasks_has_no_interior_row() -> None:
    """Twenty rows for four tasks (three partitions) leave some task without weight in each."""
    assert len(das_dennis(4, 3)) == 20
    assert (das_dennis(4, 3) == 0.0).any(1).all()


def test_riesz_energy_is_spread_and_repeatable() -> None:
    pytest.importorskip("pymoo", reason="riesz_energy needs pymoo")
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    rows = riesz_energy(10, 3)
    assert (np.random.get_state()[1] == state).all(), "the global generator moved"  # noqa: NPY002
    assert_on_simplex(rows, 10, 3)
    assert rows[0].tolist() == [1.0, 0.0, 0.0]
    assert rows[-1].tolist() == [0.0, 0.0, 1.0]
    # The lattice of ten rows has distance sqrt(2) / 3 everywhere; equal energy comes close to that.
    assert torch.pdist(rows).min() > 0.8 * math.sqrt(2.0) / 3.0
    rows.zero_()
    assert riesz_energy(10, 3).sum() > 9.0, "the cache was changed through a returned tensor"


def test_riesz_energy_needs_a_row_per_task() -> None:
    with pytest.raises(ValueError, match="2 subproblems and 3 tasks"):
        riesz_energy(2, 3)
    with pytest.raises(ValueError, match="at least 2 tasks"):
        riesz_energy(2, 1)


def test_riesz_energy_without_pymoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo.util.ref_dirs", None)
    with pytest.raises(ImportError, match=r"pip install \"mt2o_ext\[pareto\]\".*das_dennis"):
        riesz_energy(17, 3)


@given(num_subproblems=st.integers(2, 300))
def test_default_for_two_tasks(num_subproblems: int) -> None:
    preferences = default_preferences(num_subproblems, 2)
    assert_on_simplex(preferences, num_subproblems, 2)
    assert 0.0 < preferences.min() <= 0.01
    inner = even(num_subproblems)[1:-1]
    assert torch.equal(preferences[1:-1], inner), "only the two ends are clipped"


def test_default_for_one_row_or_one_task() -> None:
    assert default_preferences(1, 2).tolist() == [[0.5, 0.5]]
    assert default_preferences(1, 4).tolist() == [[0.25] * 4]
    assert default_preferences(3, 1).tolist() == [[1.0]] * 3


def test_default_for_more_tasks_gives_every_task_weight() -> None:
    pytest.importorskip("pymoo", reason="riesz_energy needs pymoo")
    preferences = default_preferences(10, 3)
    assert_on_simplex(preferences, 10, 3)
    assert preferences.min().item() == pytest.approx(0.01)
    # An affine image of the spread rows: polynomials of the preferences keep their degree.
    torch.testing.assert_close((preferences - 0.01) / 0.97, riesz_energy(10, 3))
    with pytest.raises(ValueError, match="5 subproblems and 14 tasks"):
        default_preferences(5, 14)


@pytest.mark.parametrize("count", [0, -1])
def test_counts_are_positive_integers(count: int) -> None:
    for make in (lambda n: even(n), lambda n: das_dennis(3, n), lambda n: das_dennis(n, 3)):
        with pytest.raises(ValueError, match=f">= 1, got {count}"):
            make(count)
        with pytest.raises(TypeError, match=r"as an int, got 2\.0"):
            make(2.0)
    with pytest.raises(ValueError, match="num_tasks >= 1"):
        default_preferences(3, count)


def test_check_copies() -> None:
    rows = even(4)
    checked = check_preferences(rows, 4, 2)
    assert torch.equal(checked, rows)
    assert checked.data_ptr() != rows.data_ptr()
    assert torch.equal(check_preferences(rows.requires_grad_(), 4, 2), even(4))
    assert torch.equal(check_preferences(rows.tolist(), 4, 2), even(4))
    assert torch.equal(check_preferences(rows.detach().numpy(), 4, 2), even(4))
    assert check_preferences([[0.3, 0.7]], 1, 2).tolist() == [[0.3, 0.7]], "a list must not pass through float32"


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), num_tasks=st.integers(1, 40))
def test_check_makes_sums_exact_once(seed: int, num_tasks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(6, num_tasks, generator=generator, dtype=torch.float64) + 1e-3
    float32 = (rows / rows.sum(1, keepdim=True)).float()
    checked = check_preferences(float32, 6, num_tasks)
    torch.testing.assert_close(checked.sum(1), torch.ones(6).double(), rtol=0.0, atol=num_tasks * 2.3e-16)
    assert torch.equal(check_preferences(checked, 6, num_tasks), checked)


@pytest.mark.parametrize(
    ("preferences", "message"),
    [
        ([[0.5, 0.5]], r"shape \(2, 2\), got \(1, 2\)"),
        ([0.5, 0.5], r"shape \(2, 2\), got \(2,\)"),
        ([[0.5, 0.5], [1.5, -0.5]], r"got \[1.5, -0.5\] in row 1"),
        ([[math.nan, 0.5], [0.5, 0.5]], "in row 0: give each"),
        ([[math.inf, 0.5], [0.5, 0.5]], "in row 0: give each"),
        ([[0.5, 0.5], [0.4, 0.5]], r"a sum of 0.9 in row 1: divide the rows by their sums"),
        ([[0.0, 0.0], [0.5, 0.5]], "a sum of 0 in row 0"),
    ],
)
def test_check_rejects(preferences: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_preferences(preferences, 2, 2)


@pytest.mark.parametrize("wrong", ["even", None, [[0.5, 0.5], [1.0]], [["a", "b"]]])
def test_check_rejects_what_is_no_matrix(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"expected preferences as a tensor or nested list \[K, T\] of numbers"):
        check_preferences(wrong, 2, 2)
