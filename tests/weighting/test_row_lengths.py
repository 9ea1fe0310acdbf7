"""Every Gram method with its default arguments on rows whose lengths differ by 1 .. 1e8, against 50 digits.

Also rows that cancel: opposite, nearly opposite, of one element, of every dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import mpmath
import pytest
import torch
from torch import Tensor

from mt2o_ext import WeightedFused, weighted_backward
from mt2o_ext.base import SGD
from mt2o_ext.ops import length_accuracy
from mt2o_ext.weighting import (
    EDM,
    IMTLG,
    MGDA,
    PIVRG,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradVac,
    NashMTL,
    PCGrad,
    SDMGrad,
    UPGrad,
)
from support.weighting.problems import normal

mp = mpmath.mp
Weights = list[mpmath.mpf]
HALF = mp.mpf(1) / 2
RATIOS = (1.0, 1e-2, 1e-4, 1e-6, 1e-8)
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mpmath.workdps(50):
        yield


# ---------------------------------------------------------------- exact solutions on the rows as they are stored
def exact_gram(rows: Tensor) -> mpmath.matrix:
    exact = mp.matrix(rows.double().tolist())
    return exact * exact.T


def solved(q: mpmath.matrix, right: Sequence) -> Weights:
    return list(mp.lu_solve(q, mp.matrix(right)))


def quadratic(q: mpmath.matrix, w: Weights) -> mpmath.mpf:
    return (mp.matrix([w]) * q * mp.matrix(w))[0]


def least_norm(q: mpmath.matrix, linear: Sequence | None = None) -> Weights:
    """min w'Qw/2 + q'w over the simplex: the best of the stationary points of all faces that lie in it."""
    tasks = q.rows
    linear = [mp.mpf(0)] * tasks if linear is None else linear
    best, least = None, mp.inf
    for count in range(1, tasks + 1):
        for face in combinations(range(tasks), count):
            system = mp.matrix(count + 1, count + 1)
            for a, i in enumerate(face):
                for b, j in enumerate(face):
                    system[a, b] = q[i, j]
                system[a, count] = system[count, a] = 1
            try:
                found = solved(system, [*(-linear[i] for i in face), 1])
            except ZeroDivisionError:
                continue
            if min(found[:count]) < 0:
                continue
            w = [mp.mpf(0)] * tasks
            for a, i in enumerate(face):
                w[i] = found[a]
            value = quadratic(q, w) / 2 + sum(a * b for a, b in zip(linear, w, strict=True))
            if value < least:
                best, least = w, value
    assert best is not None
    return best


def in_cone(q: mpmath.matrix, lower: Weights) -> Weights:
    """min v'Qv over v >= u, by all active sets."""
    tasks = q.rows
    best, least = None, mp.inf
    for count in range(tasks + 1):
        for free in combinations(range(tasks), count):
            v = list(lower)
            fixed = [i for i in range(tasks) if i not in free]
            if free:
                system = mp.matrix([[q[i, j] for j in free] for i in free])
                right = [-sum(q[i, j] * lower[j] for j in fixed) for i in free]
                for i, value in zip(free, solved(system, right), strict=True):
                    v[i] = value
            if any(v[i] < lower[i] for i in free):
                continue
            value = quadratic(q, v)
            if value < least:
                best, least = v, value
    assert best is not None
    return best


def scaled(q: mpmath.matrix, by: Weights) -> mpmath.matrix:
    return mp.matrix([[by[i] * by[j] * q[i, j] for j in range(q.rows)] for i in range(q.rows)])


def lengths_of(q: mpmath.matrix) -> Weights:
    return [mp.sqrt(q[i, i]) for i in range(q.rows)]


def mean_of(q: mpmath.matrix) -> Weights:
    return [mp.mpf(1) / q.rows] * q.rows


def mgda(q):
    return least_norm(q)


def edm(q):
    s = lengths_of(q)
    w = [a / b for a, b in zip(least_norm(scaled(q, [1 / own for own in s])), s, strict=True)]
    return [each / sum(w) for each in w]


def dualproj(q):
    return in_cone(q, mean_of(q))


def upgrad(q):
    parts = [in_cone(q, [mean_of(q)[0] if i == t else mp.mpf(0) for i in range(q.rows)]) for t in range(q.rows)]
    return [sum(column) for column in zip(*parts, strict=True)]


def imtlg(q):
    v = solved(q, lengths_of(q))
    return [each / sum(v) for each in v] if sum(v) > 0 else [mp.mpf(0)] * q.rows


def config(q):
    s = lengths_of(q)
    c = scaled(q, [1 / own for own in s])
    y = solved(c, mean_of(q))
    image = list(c * mp.matrix(y))
    size = sum(a * b for a, b in zip(s, image, strict=True)) / sum(a * b for a, b in zip(y, image, strict=True))
    return [a / b * size for a, b in zip(y, s, strict=True)]


def aligned(q):
    values, vectors = mp.eigsy(q)
    least = min(values)
    inner = [sum(vectors[t, k] for t in range(q.rows)) / q.rows * mp.sqrt(least / values[k]) for k in range(q.rows)]
    return [sum(vectors[t, k] * inner[k] for k in range(q.rows)) for t in range(q.rows)]


def cagrad(q, c=HALF):
    """Two tasks: the derivative of <g0, g_w> + k |g_w| along w = (x, 1 - x) changes its sign once."""
    u = mean_of(q)
    image = list(q * mp.matrix(u))
    k = c * mp.sqrt(quadratic(q, u))

    def slope(x):
        w = [x, 1 - x]
        along = list(q * mp.matrix(w))
        return image[0] - image[1] + k * (along[0] - along[1]) / mp.sqrt(quadratic(q, w))

    low, high = mp.mpf(0), mp.mpf(1)
    if slope(low) >= 0:
        high = low
    elif slope(high) <= 0:
        low = high
    for _ in range(170):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    w = [low, 1 - low]
    size = k / mp.sqrt(quadratic(q, w))
    return [(a + size * b) / (1 + c**2) for a, b in zip(u, w, strict=True)]


def pcgrad(q):
    """Two tasks."""
    conflict = min(q[0, 1], mp.mpf(0))
    return [1 - conflict / q[0, 0], 1 - conflict / q[1, 1]]


def sdmgrad(q):
    lam = mp.mpf("0.3")
    u = [lam * each for each in mean_of(q)]
    v = least_norm(q, list(q * mp.matrix(u)))
    return [(a + b) / (1 + lam) for a, b in zip(v, u, strict=True)]


SOLUTIONS: dict[str, tuple[Callable, Callable, tuple[int, ...]]] = {
    "MGDA": (MGDA, mgda, (2, 3)),
    "EDM": (EDM, edm, (2, 3)),
    "DualProj": (DualProj, dualproj, (2, 3, 4)),
    "UPGrad": (UPGrad, upgrad, (2, 3, 4)),
    "IMTL-G": (IMTLG, imtlg, (2, 3)),
    "ConFIG": (ConFIG, config, (2, 3, 4)),
    "Aligned-MTL": (AlignedMTL, aligned, (2, 3)),
    "CAGrad": (CAGrad, cagrad, (2,)),
    "PCGrad": (PCGrad, pcgrad, (2,)),
    "GradVac": (GradVac, pcgrad, (2,)),  # whose first targets are 0
    "SDMGrad": (SDMGrad, sdmgrad, (2, 3)),
}


def rows_with(ratio: float, tasks: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Lengths from 1 down to the ratio; all pairs conflict in every second problem."""
    rows = normal(tasks, 12, seed=seed)
    if seed % 2:
        rows = rows - 1.1 * rows.mean(0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return (rows * torch.logspace(0, 1, tasks, base=ratio, dtype=torch.float64)[:, None]).to(dtype)


def weights_of(weighting, rows: Tensor) -> Tensor:
    """With the accuracy that an optimizer gives; the Gram matrix of rows as they are stored."""
    wide = rows.double()
    return weighting(wide @ wide.T, accuracy=length_accuracy(rows.dtype), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_solution_does_not_depend_on_units(name: str, ratio: float, dtype: torch.dtype) -> None:
    """Each row's part of the direction to an error of the accuracy, whatever its length."""
    make, solution, sizes = SOLUTIONS[name]
    for tasks in sizes:
        for seed in range(4):
            rows = rows_with(ratio, tasks, seed, dtype)
            expected = torch.tensor([float(each) for each in solution(exact_gram(rows))], dtype=torch.float64)
            found = weights_of(make(), rows)
            lengths = rows.double().norm(dim=1)
            error = ((found - expected) * lengths).abs().max() / (expected * lengths).abs().max()
            assert error <= 1e-9 if dtype == torch.float64 else error <= 1e-4, (tasks, seed, found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("make", "power"), [(lambda: NashMTL(max_norm=None), 1), (FairGrad, 1), (PIVRG, 0.5)])
def test_the_equation_holds_in_all_units(make, power, ratio, dtype) -> None:
    """(Qw)_t w_t^p = b_t^p is its own certificate: there is one solution w > 0."""
    for tasks in (2, 3, 8):
        for seed in range(4):
            rows = rows_with(ratio, tasks, seed, dtype)
            w = [mp.mpf(float(each)) for each in weights_of(make(), rows)]
            image = list(exact_gram(rows) * mp.matrix(w))
            for own, along in zip(w, image, strict=True):
                assert own > 0
                assert abs(along * own**power - 1) < 1e-8


def test_cagrad_trains_where_one_loss_is_in_small_units() -> None:
    """As the report of the fault: two losses, the second in units of 1e-4, and weight decay."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = torch.stack([x @ torch.randn(6), x @ torch.randn(6)])
    trunk, heads = torch.nn.Linear(6, 16), [torch.nn.Linear(16, 1) for _ in range(2)]
    parameters = [{"params": trunk.parameters()}] + [
        {"params": head.parameters(), "task": task} for task, head in enumerate(heads)
    ]
    optimizer = WeightedFused(parameters, num_tasks=2, weighting=CAGrad(c=0.4), base=SGD(), lr=0.05)
    units = (1.0, 1e-8)
    for _ in range(200):
        hidden = trunk(x).tanh()
        errors = [head(hidden)[:, 0] - own for head, own in zip(heads, y, strict=True)]
        losses = [unit * error.square().mean() for unit, error in zip(units, errors, strict=True)]
        optimizer.backward(losses)
        optimizer.step()
        assert bool((optimizer.weights != 0).all())
    assert float(losses[0].detach()) < 0.2


# ---------------------------------------------------------------- rows that cancel
CAUTIOUS = (
    "upgrad", "dualproj", "mgda", "cagrad", "config", "imtl-g", "nash-mtl", "fairgrad", "pivrg", "edm", "pcgrad",
)  # fmt: skip


def check_no_loss_rises(rows: Tensor, direction: Tensor, name: object) -> None:
    """<g_t, d> >= 0 but for the rounding of rows and direction in their own dtype."""
    rows, direction = rows.double(), direction.double()
    rounding = 4 * float(torch.finfo(torch.float32).eps)
    allowed = rounding * rows.norm(dim=1) * rows.norm(dim=1).sum()
    assert bool((rows @ direction >= -allowed).all()), (name, rows @ direction, allowed)
    assert direction.norm() <= (1 + 1e-3) * rows.norm(dim=1).sum(), name


@pytest.mark.parametrize("size", [1, 2, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*CAUTIOUS, "m-config"])
def test_opposite_rows_give_nothing(name: str, dtype: torch.dtype, size: int) -> None:
    """a g and -b g, each rounded on its own: zero, or what is left of the rows by rounding."""
    for seed in range(25):
        g = normal(size, seed=seed)
        a, b = (5 * torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).tolist()
        rows = torch.stack([(a * g).to(dtype), (-b * g).to(dtype)])
        p = torch.nn.Parameter(torch.zeros(size, dtype=dtype))
        weighted_backward([(p * row).sum() for row in rows], [p], weighting=name)
        assert p.grad is not None
        # The solver's own arithmetic in float64 leaves some more.
        left = 32 * float(torch.finfo(dtype).eps) * rows.double().norm(dim=1).sum()
        assert p.grad.double().norm() <= left, (seed, rows, p.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name in CAUTIOUS if name != "cagrad"])  # which keeps near the mean
def test_nearly_opposite_rows_raise_no_loss(name: str, dtype: torch.dtype) -> None:
    for power in range(1, 18):
        for seed in range(5):
            g, across = normal(2, 9, seed=seed)
            a, b = (0.1 + torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).tolist()
            rows = torch.stack([a * g, -b * (g + 10.0**-power * across)]).to(dtype)
            p = torch.nn.Parameter(torch.zeros(9, dtype=dtype))
            weighted_backward([(p * row).sum() for row in rows], [p], weighting=name)
            assert p.grad is not None
            if name not in ("nash-mtl", "fairgrad", "pivrg"):
                check_no_loss_rises(rows, p.grad, (name, power, seed))
            elif bool(p.grad.any()):  # their lengths do not follow those of the gradients
                unit = p.grad.double() / p.grad.double().norm()
                cosines = (rows.double() / rows.double().norm(dim=1, keepdim=True)) @ unit
                assert bool((cosines >= -1e-3).all()), (power, seed, cosines)


def test_float64_rows_keep_what_float64_knows() -> None:
    """An angle of 1e-6 to the opposite: zero in float32, the bisector in float64."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1e-6]], dtype=torch.float64)
    for make in (ConFIG, IMTLG):
        assert bool((weights_of(make(), rows.float()) == 0).all())
        direction = rows.T @ weights_of(make(), rows)
        direction = direction / direction.norm()
        assert abs(float(direction[1]) - 1) < 1e-6
        assert direction @ rows[0] > 0


def test_imtl_g_gives_nothing_rather_than_go_uphill() -> None:
    """One short row against two long ones: equal projections with a sum of weights of one are negative."""
    rows = torch.tensor([[0.2], [-1.0], [-1.0]], dtype=torch.float64)
    assert bool((IMTLG()(rows @ rows.T) == 0).all())
