"""Parity with TorchJD, an independent implementation, on its own conventions and through its public functions."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from mt2o_ext.weighting import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    Draw,
    DualProj,
    Ema,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradVac,
    LinearWeighting,
    MoDo,
    NashMTL,
    PCGrad,
    SDMGrad,
    UPGrad,
    WeightingContext,
)
from support.gram_samplers import gram_problem
from support.weighting.problems import assert_close

aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed: pip install mt2o_ext[test]")

KINDS = ("random", "conflicting", "correlated")
EXACT = {
    "Mean": (lambda: LinearWeighting(), lambda _: aggregation.Mean()),
    "Sum": (lambda: LinearWeighting(1.0), lambda _: aggregation.Sum()),
    "UPGrad": (lambda: UPGrad(), lambda _: aggregation.UPGrad()),
    "DualProj": (lambda: DualProj(), lambda _: aggregation.DualProj()),
    "IMTLG": (lambda: IMTLG(), lambda _: aggregation.IMTLG()),
    "AlignedMTL": (lambda: AlignedMTL(), lambda _: aggregation.AlignedMTL()),
    "AlignedMTL median": (lambda: AlignedMTL(scale="median"), lambda _: aggregation.AlignedMTL(scale_mode="median")),
    "AlignedMTL rmse": (lambda: AlignedMTL(scale="mean"), lambda _: aggregation.AlignedMTL(scale_mode="rmse")),
    "ConFIG": (lambda: ConFIG(), lambda _: aggregation.ConFIG()),
    "CAGrad 0.5": (lambda: CAGrad(0.5, rescale=0), lambda _: aggregation.CAGrad(0.5)),
    "CAGrad 0": (lambda: CAGrad(0.0, rescale=0), lambda _: aggregation.CAGrad(0.0)),
    "MGDA": (lambda: MGDA(), lambda _: aggregation.MGDA(epsilon=1e-5, max_iters=1000)),
    "FairGrad 1": (lambda: FairGrad(1.0), lambda _: aggregation.FairGrad(1.0)),
    "FairGrad 2": (lambda: FairGrad(2.0), lambda _: aggregation.FairGrad(2.0)),
    "NashMTL": (lambda: NashMTL(), lambda tasks: aggregation.NashMTL(n_tasks=tasks)),
}
# What their own solvers leave (UPGrad and DualProj have a ridge of 1e-4); the others are direct, and agree to rounding.
TOLERANCE = {
    "MGDA": 1e-2, "CAGrad 0.5": 1e-3, "FairGrad 1": 1e-4, "FairGrad 2": 1e-4, "NashMTL": 1e-2, "UPGrad": 0.03,
    "DualProj": 0.03,
}  # fmt: skip


# Whatever a method's own solver needs beside TorchJD.
SOLVER = {
    "UPGrad": "qpsolvers", "DualProj": "qpsolvers", "NashMTL": "ecos", "CAGrad 0.5": "cvxpy", "CAGrad 0": "cvxpy",
}  # fmt: skip


def unit_rows(kind: str, tasks: int, seed: int = 0) -> Tensor:
    """Rows of about length one: tolerances of the other side are absolute."""
    rows = gram_problem(kind, tasks, seed=seed).rows
    return rows / rows.norm(dim=1).mean()


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


# Their twenty convex programs for Nash-MTL do not come to rest where rows conflict; test_equations has ours.
@pytest.mark.parametrize(
    ("name", "kind"), [pair for pair in product(EXACT, KINDS) if pair != ("NashMTL", "conflicting")]
)
@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.filterwarnings("ignore")
def test_the_same_direction_and_length(name, kind, tasks):
    if name in SOLVER:
        pytest.importorskip(SOLVER[name], reason=f"TorchJD's {name} needs {SOLVER[name]}, which is not installed")
    ours, theirs = EXACT[name]
    rows = unit_rows(kind, tasks)
    expected = theirs(tasks)(rows)
    assert_near(rows.T @ ours()(rows @ rows.T), expected, TOLERANCE.get(name, 1e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_pcgrad_and_gradvac_of_two_tasks(kind):
    """With two tasks no order is random."""
    pcgrad, gradvac = aggregation.PCGradWeighting(), aggregation.GradVacWeighting(beta=0.4, eps=0.0)
    ours = GradVac(beta=0.4)
    for seed in range(4):
        rows = unit_rows(kind, 2, seed)
        gram = rows @ rows.T
        assert_close(PCGrad()(gram), pcgrad(gram), rtol=1e-9)
        assert_close(ours(gram), gradvac(gram), rtol=1e-9)


def test_cr_mogm():
    ours, theirs = Ema(IMTLG(), 0.7), aggregation.CRMOGMWeighting(aggregation.IMTLGWeighting(), alpha=0.7)
    for seed in range(4):
        rows = unit_rows("conflicting", 5, seed)
        assert_close(ours(rows @ rows.T), theirs(rows @ rows.T), rtol=1e-6)


def test_sdmgrad_of_two_batches():
    """Rows of length one, where both units of the cross matrix are the same."""
    ours = SDMGrad(lam=0.3, two_batches=True, iterations=20, lr=0.5, momentum=0.5)
    theirs = aggregation.SDMGradWeighting(lr=0.5, momentum=0.5, n_iter=20, lambda_=0.3)
    for seed in range(3):
        rows = unit_rows("conflicting", 4, seed)
        rows = rows / rows.norm(dim=1, keepdim=True)
        assert_near(ours(cross=rows @ rows.T), theirs(rows @ rows.T), 1e-6)


def test_modo():
    ours, theirs = MoDo(gamma=0.1, rho=0.1, scale_free=False), aggregation.MoDoWeighting(gamma=0.1, rho=0.1)
    for seed in range(4):
        rows, others = (unit_rows("random", 4, 2 * seed + batch) for batch in range(2))
        assert_close(ours(cross=rows @ others.T), theirs(rows @ others.T), rtol=1e-6, atol=1e-9)


def transformed(weighting, rows: Tensor, seed: int = 0) -> Tensor:
    """The direction of a weighting that changes the gradients, which must be bound."""
    pieces = [rows[None].clone()]
    preferences = torch.full((1, len(rows)), 1 / len(rows), dtype=torch.float64)
    context = WeightingContext(preferences=preferences, draw=Draw.new(torch.Generator().manual_seed(seed)))
    weighting.transform_(pieces, context)
    return pieces[0][0].T @ weighting.weights(context)[0]


def test_excess_mtl():
    """Their first weights come from the excess risk itself, in its units; ours are equal. From then on both agree."""
    ours, theirs = ExcessMTL(eta=0.5), aggregation.ExcessMTLWeighting(robust_step_size=0.5)
    ours.bind(1, 4, 1, "cpu")
    first = None
    for seed in range(4):
        rows = unit_rows("random", 4, seed)
        expected = theirs(rows)
        first = expected if first is None else first
        expected = expected / first
        # Their 1e-7 beside the squares.
        assert_near(transformed(ours, rows), rows.T @ (4 * expected / expected.sum()), 1e-4)


def test_graddrop_where_signs_agree_and_in_the_mean():
    ours = GradDrop()
    ours.bind(1, 3, 1, "cpu")
    agreeing = unit_rows("random", 3).abs()
    assert_close(transformed(ours, agreeing), aggregation.GradDrop()(agreeing))
    rows = torch.tensor([[1.0], [2.0], [-0.5]], dtype=torch.float64).expand(3, 40_000)
    torch.manual_seed(0)
    means = [float(direction.mean()) for direction in (transformed(ours, rows), aggregation.GradDrop()(rows))]
    # Both are 3 with chance 6 / 7, else -0.5.
    deviation = 3.5 * (6 / 49 / 40_000) ** 0.5
    assert abs(means[0] - means[1]) < 4 * 2**0.5 * deviation
