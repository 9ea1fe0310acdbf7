"""Gram matrices that are singular to rounding: a projection never lengthens, and leaves no conflict beyond rounding.

Rows of every dtype and rank, their Gram matrices as the backend's own ``gram_`` makes them (or as float32 products,
which are worse): 25,000 problems for the compiled backend.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mt2o_ext.ops import gram_accuracy
from mt2o_ext.weighting import DualProj, UPGrad
from support.backends import Backend
from support.ops.solve_calls import MOST_TASKS, dual_cone
from support.samplers import HALVES, Layout

DTYPES = (torch.float32, torch.float64, *HALVES)
TASKS = (2, 3, 4, 8, 16, 32, 64)
KINDS = ("any", "sum zero", "opposite", "unequal")


def rows_of(kind: str, batch: int, tasks: int, rank: int, seed: int) -> Tensor:
    """float64 [batch, T, rank]: of this rank, and nearly all with conflicts."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(batch, tasks, rank, dtype=torch.float64, generator=generator)
    lengths = torch.rand(batch, tasks, 1, dtype=torch.float64, generator=generator)
    if kind == "sum zero":  # 0 lies in the convex hull
        rows[:, -1] = -rows[:, :-1].sum(1)
    if kind == "opposite":
        rows[:, 1::2] = -3 * lengths[:, 1::2] * rows[:, 0 : tasks // 2 * 2 : 2]
    if kind == "unequal":
        rows *= 10 ** (-4 * lengths)
    return rows


def gram_of(backend: Backend, rows: Tensor) -> Tensor:
    """By the kernel, all columns in one segment."""
    batch, tasks, columns = rows.shape
    layout = Layout((columns,))
    padded = torch.zeros(batch, tasks, layout.row, dtype=rows.dtype)
    padded[..., :columns] = rows
    out = torch.zeros(batch, 1, tasks, tasks, dtype=torch.float64)
    partials = torch.zeros(batch, len(layout.chunks), tasks * (tasks + 1) // 2, dtype=torch.float64)
    backend.gram_(out, partials, padded, None, layout.chunks, centre=False, diagonal=False)
    return out[:, 0]


def check_projections(rows: Tensor, weights: Tensor, accuracy: float) -> None:
    """weights [batch, T] of float64 rows: not longer than the rows' mean length, and no conflict beyond rounding.

    Rounding of <g_t, d> is measured by the parts of d, which may be longer than d."""
    lengths = rows.norm(dim=2)
    direction = (weights[:, None] @ rows)[:, 0]
    assert bool((direction.norm(dim=1) <= lengths.mean(1) * (1 + 16 * accuracy)).all())
    parts = (weights * lengths).sum(1, keepdim=True)
    conflict = -(rows @ direction[..., None])[..., 0] / lengths
    allowed = max(16 * rows.shape[1] * accuracy, 2e-13)  # the solver's own tolerance in float64
    assert bool((conflict <= allowed * parts).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_projection_never_lengthens(backend: Backend, kind: str, dtype: torch.dtype) -> None:
    accuracy = gram_accuracy(dtype)
    quick = backend.name != "cpu"
    for tasks in (t for t in TASKS if t <= MOST_TASKS.get(backend.name, 16 if quick else 64)):
        for rank in sorted({1, 2, tasks // 2, tasks - 1, tasks} - {0}):
            batch = 4 if quick else 32 if tasks <= 32 else 8
            rows = rows_of(kind, batch, tasks, rank, seed=100 * tasks + rank).to(dtype)
            gram = gram_of(backend, rows)
            each = torch.eye(tasks, dtype=torch.float64).expand(batch, tasks, tasks) / tasks
            mean = torch.full((batch, 1, tasks), 1 / tasks, dtype=torch.float64)
            for lower in (each.contiguous(), mean):  # UPGrad's and DualProj's
                weights = dual_cone(backend, gram, lower, rtol=tasks * accuracy).sum(1)
                check_projections(rows.double(), weights, accuracy)


@pytest.mark.parametrize("method", [UPGrad, DualProj])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "as float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_float32_are_as_safe(method: type, kind: str, wide: bool) -> None:
    """``J @ J.T`` in float32 is indefinite; as float64 it pretends to be more accurate than it is."""
    for tasks in TASKS[:6]:
        for rank in {1, max(tasks // 2, 1), tasks}:
            for seed in range(10):
                rows = rows_of(kind, 1, tasks, rank, seed)[0].float()
                gram = rows @ rows.T
                weights = method()(gram.double() if wide else gram)
                check_projections(rows[None].double(), weights[None], 2.0**-20)


def test_the_examples_of_the_report() -> None:
    rows = 0.1 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])
    assert (UPGrad()(rows @ rows.T) - 1).abs().max() < 1e-4
    for other in (1 - 1e-7, 1 + 1e-7):
        gram = torch.tensor([[1.0, -1.0], [-1.0, other]], dtype=torch.float64)
        assert (UPGrad()(gram) - 1).abs().max() < 1e-5


def test_a_penalty_that_rounding_exceeds_is_raised(backend: Backend) -> None:
    """An eigenvalue of -1e-6 where 1e-15 is claimed: without more, the weights would be 1e6 and longer."""
    gram = torch.tensor([[[1.0, -1, 0], [-1, 1 - 2e-6, 0], [0, 0, 1]]], dtype=torch.float64)
    weights = dual_cone(backend, gram, torch.eye(3, dtype=torch.float64)[None], rtol=1e-15)
    assert bool((weights.abs() <= 4).all())
    # No Gram matrix of anything.
    gram = torch.tensor([[[1.0, -2.0], [-2.0, 1.0]]], dtype=torch.float64)
    weights = dual_cone(backend, gram, torch.eye(2, dtype=torch.float64)[None], rtol=1e-15)
    assert bool((weights.abs() <= 4).all())


def test_the_penalty_is_what_it_is_said_to_be(backend: Backend) -> None:
    """Two rows at an obtuse angle: z = c / (1 + rtol), for c = -cosine."""
    gram = torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
    lower = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    for rtol, penalty in ((0.0, 16 * 2.0**-52), (1e-3, 1e-3), (0.5, 0.5)):  # of T rows, at least 8 T 2^-52
        z = dual_cone(backend, gram, lower, rtol=rtol)[0, 0, 1]
        assert abs(float(z) - 1 / (1 + penalty)) <= 2.0**-50


def test_a_conflict_below_a_part_in_1e13_is_none(backend: Backend) -> None:
    for cosine, acts in ((-3e-13, True), (-3e-14, False)):
        gram = torch.tensor([[[1.0, cosine], [cosine, 1.0]]], dtype=torch.float64)
        z = float(dual_cone(backend, gram, torch.tensor([[[1.0, 0.0]]], dtype=torch.float64))[0, 0, 1])
        assert abs(z - (-cosine if acts else 0.0)) <= 1e-15 * abs(cosine) * 16
