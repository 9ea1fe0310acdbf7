"""The solvers of :mod:`mt2o_ext.ops.solve` in plain torch.

They are the oracle of the tests, and run where nothing was compiled.
Float64 on the CPU, one subproblem after the other, the same problems as ``csrc/core/solve`` through torch's own linear
algebra (least squares, eigenvalues).  Signatures are those of the operators; ``workspace`` is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .reference_program import program
from .reference_rows import EPSILON, Rows, least_rtol, power_of_four, solved
from .reference_simplex import on_simplex, towards


def minimum_norm_(weights: Tensor, workspace: Tensor, gram: Tensor, linear: Tensor | None) -> None:
    """The operator of :func:`mt2o_ext.ops.minimum_norm_`."""

    def solver(rows: Rows, q: Tensor) -> Tensor:
        return rows.all_tasks(on_simplex(rows, q[rows.present] / rows.scale, 1.0))

    solved(weights, solver, gram, torch.zeros_like(weights) if linear is None else linear)


def conflict_averse_(
    weights: Tensor, workspace: Tensor, gram: Tensor, preferences: Tensor, *, radius: float, rtol: float
) -> None:
    """The operator of :func:`mt2o_ext.ops.conflict_averse_`."""

    def solver(rows: Rows, preferences: Tensor) -> Tensor:
        u, q = preferences[rows.present], rows.gram @ preferences[rows.present]
        least = on_simplex(rows, torch.zeros_like(q), 1.0)
        shortest = float((least @ rows.gram @ least).clamp_min(0))
        if shortest <= rtol * float((least * rows.lengths).square().sum()):
            return torch.zeros(rows.tasks, dtype=torch.float64)
        reach = radius * math.sqrt(max(float(u @ q), 0.0))
        if reach == 0.0:
            return rows.all_tasks(u)
        low, high = math.log(reach / float(rows.lengths.max())), math.log(reach / math.sqrt(shortest))
        v = on_simplex(rows, q, math.exp(_crossing(lambda m: _excess(rows, q, m, reach), low, high)))
        return rows.all_tasks(u + v)

    solved(weights, solver, gram, preferences)


def _excess(rows: Rows, q: Tensor, log_size: float, reach: float) -> float:
    """log |J'v| / reach of the minimum with sum v = exp(log_size); grows with it."""
    v = on_simplex(rows, q, math.exp(log_size))
    return math.log(float(v @ rows.gram @ v) / reach**2) / 2


def _crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a growing function, between function(low) <= 0 <= function(high): regula falsi (Illinois)."""
    at_low, at_high = function(low), function(high)
    for _ in range(60):
        if at_low >= 0 or at_high <= 0 or high - low <= 4 * EPSILON:
            break
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = function(middle)
        if abs(value) <= 16 * EPSILON:
            return middle
        if value < 0:
            low, at_low, at_high = middle, value, at_high / 2
        else:
            high, at_high, at_low = middle, value, at_low / 2
    return low if abs(at_low) < abs(at_high) else high


def power_barrier_(
    weights: Tensor, residual: Tensor, workspace: Tensor, gram: Tensor, target: Tensor, *, power: float, rtol: float
) -> None:
    """The operator of :func:`mt2o_ext.ops.power_barrier_`."""
    residual.zero_()

    def solver(rows: Rows, given: Tensor) -> Tensor:
        b = given[rows.present]
        if bool((b <= 0).any()):
            return torch.full((rows.tasks + 1,), math.nan, dtype=torch.float64)
        if _cancel(rows, max(rtol, least_rtol(len(rows)))):
            return torch.cat([torch.zeros(rows.tasks, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
        barrier = rows.lengths ** (power - 1) * b**power
        y = barrier ** (1 / (1 + power))
        y = _barrier_newton(rows.cosines, barrier, y, power)
        x = y / rows.lengths * rows.scale ** (-1 / (1 + power))
        return torch.cat([rows.all_tasks(x), _barrier_residual(rows.cosines, barrier, y, power)[None]])

    both = torch.zeros(len(gram), gram.shape[1] + 1, dtype=torch.float64)
    solved(both, solver, gram, target)
    weights.copy_(both[:, :-1])
    residual.copy_(both[:, -1])


def _cancel(rows: Rows, rtol: float) -> bool:
    """The least norm in the convex hull of the rows, all of length one, is rounding."""
    units = Rows(rows.cosines)
    least = on_simplex(units, torch.zeros(len(rows), dtype=torch.float64), 1.0)
    return bool(least @ rows.cosines @ least <= rtol * least.square().sum())


def _barrier_residual(c: Tensor, barrier: Tensor, y: Tensor, power: float) -> Tensor:
    return ((c @ y) * y**power / barrier - 1).abs().max()


def _barrier_newton(c: Tensor, barrier: Tensor, start: Tensor, power: float) -> Tensor:
    """y > 0 with C y = barrier / y^power, by a damped Newton method; the best iterate."""
    y, best, least = start, start, math.inf
    for _ in range(50):
        residual = float(_barrier_residual(c, barrier, y, power))
        if residual < least:
            best, least = y, residual
        if residual <= 1e-13:
            break
        gradient = c @ y - barrier * y**-power
        hessian = c + torch.diag(power * barrier * y ** (-power - 1))
        step = -torch.linalg.solve(hessian * y * y[:, None], y * gradient)  # of log y
        length = min(1.0, 0.9 / float((-step).max().clamp_min(0.9)))
        slope = float((step * y) @ gradient)
        for _ in range(40):
            trial = y * (1 + length * step)
            if float((step * y) @ (c @ trial - barrier * trial**-power)) <= -0.5 * slope:
                break
            length /= 2
        y = trial
    return best


def dual_cone_(weights: Tensor, workspace: Tensor, gram: Tensor, lower: Tensor, *, rtol: float) -> None:
    """The operator of :func:`mt2o_ext.ops.dual_cone_`."""

    def solver(rows: Rows, lower: Tensor) -> Tensor:
        # The penalty also makes up for what rounding took from the least eigenvalue.
        eigenvalue = float(torch.linalg.eigvalsh(rows.cosines)[0])
        penalty = max(rtol, least_rtol(len(rows)), -2.0 * eigenvalue)
        return torch.stack([rows.all_tasks(_in_dual_cone(rows, u[rows.present], penalty)) for u in lower])

    solved(weights, solver, gram, lower)


def _in_dual_cone(rows: Rows, lower: Tensor, penalty: float) -> Tensor:
    """argmin v'Qv + penalty z'z, v >= lower: Lawson and Hanson's active set for z = s (v - lower) >= 0."""
    u, c = rows.lengths * lower, rows.cosines
    penalised = c + penalty * torch.eye(len(c), dtype=torch.float64)
    z = torch.zeros_like(u)
    support: list[int] = []
    tolerance = 1e-13 * float((u @ c @ u).clamp_min(0)) ** 0.5
    for _ in range(4 * len(rows) + 16):
        gradient = c @ u + penalised @ z
        rounding = 8 * EPSILON * (c.abs() @ (u.abs() + z))
        gradient[support] = torch.inf
        entering = int(gradient.argmin())
        if gradient[entering] >= -tolerance - rounding[entering]:
            break
        support.append(entering)
        while support:
            target = torch.zeros_like(z)
            right = -(c @ u)[support]
            system = penalised[support][:, support]
            target[support] = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:, 0]
            if bool((target[support] > 0).all()):
                z = target
                break
            z = towards(z, target, support)
        if entering not in support:
            break
    return lower + z / rows.lengths


def eigen_(values: Tensor, vectors: Tensor, workspace: Tensor, gram: Tensor) -> None:
    """The operator of :func:`mt2o_ext.ops.eigen_`."""
    for k, matrix in enumerate(gram):
        if bool(torch.isfinite(matrix).all()):
            own, vectors[k] = _rotated(matrix.cpu())
            values[k] = own
        else:
            values[k] = vectors[k] = torch.nan


def _rotated(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors by Jacobi's rotations, where LAPACK loses those of short rows."""
    count = len(matrix)
    q, vectors = matrix / power_of_four(float(matrix.abs().max())), torch.eye(count, dtype=torch.float64)
    for _ in range(40):
        rotated = False
        for i in range(count):
            for j in range(i + 1, count):
                pp, qq, pq = (float(q[a, b]) for a, b in ((i, i), (j, j), (i, j)))
                negligible = pq * pq <= 2.0**-106 * pp * qq if min(pp, qq) > 0 else abs(pq) <= 2.0**-60
                if negligible:
                    continue
                theta = (qq - pp) / (2 * pq)
                t = math.copysign(1.0, theta) / (abs(theta) + math.hypot(theta, 1.0))
                c = 1 / math.hypot(t, 1.0)
                turn = torch.tensor([[c, -t * c], [t * c, c]], dtype=torch.float64)
                q[[i, j]] = turn @ q[[i, j]]
                q[:, [i, j]] = q[:, [i, j]] @ turn.T
                q[i, i], q[j, j], q[i, j], q[j, i] = pp - t * pq, qq + t * pq, 0.0, 0.0
                vectors[:, [i, j]] = vectors[:, [i, j]] @ turn.T
                rotated = True
        if not rotated:
            break
    order = q.diagonal().argsort()
    return q.diagonal()[order] * power_of_four(float(matrix.abs().max())), vectors[:, order]


def project_(
    weights: Tensor,
    targets: Tensor | None,
    workspace: Tensor,
    gram: Tensor,
    order: Tensor,
    *,
    decay: float,
    rtol: float,
) -> None:
    """The operator of :func:`mt2o_ext.ops.project_`."""
    for k in range(len(gram)):
        phi = None if targets is None else targets[k].cpu()
        q = gram[k].cpu()
        if not bool(torch.isfinite(q).all()) or (phi is not None and not bool(torch.isfinite(phi).all())):
            weights[k] = math.nan
            continue
        total = torch.zeros(len(q), dtype=torch.float64)
        for i in range(len(q)):
            if q[i, i] > 0:
                total += _projected(q, i, order[k, i].tolist(), phi, decay, max(rtol, least_rtol(len(q))))
        weights[k] = total
        if targets is not None and phi is not None:
            targets[k] = phi


def _projected(q: Tensor, i: int, order: list[int], phi: Tensor | None, decay: float, rtol: float) -> Tensor:
    """Coefficients of row i after it has met the others; updates phi[i]."""
    c = torch.zeros(len(q), dtype=torch.float64)
    c[i] = 1.0
    for j in order:
        if j == i or q[j, j] <= 0:
            continue
        product = float(q[j] @ c)
        if phi is None:
            c[j] -= min(product, 0.0) / q[j, j]
            continue
        square, other = float(c @ q @ c), float(q[j, j]) ** 0.5
        if square <= rtol * float(c.square() @ q.diagonal()):
            continue
        length = square**0.5
        cosine, goal = min(max(product / (length * other), -1.0), 1.0), float(phi[i, j])
        if cosine < goal and goal * goal < 1.0:
            sine, goal_sine = math.sqrt(1 - cosine * cosine), math.sqrt(1 - goal * goal)
            c[j] += length * (goal * sine - cosine * goal_sine) / (other * goal_sine)
        phi[i, j] = (1 - decay) * goal + decay * cosine
    return c


def descent_(
    weights: Tensor, workspace: Tensor, gram: Tensor, losses: Tensor, rays: Tensor, *, tolerance: float, relax: bool
) -> None:
    """The operator of :func:`mt2o_ext.ops.descent_`."""

    def solver(rows: Rows, losses: Tensor, rays: Tensor) -> Tensor:
        weighted = rays * losses
        if bool((weighted < 0).any()) or not bool((weighted > 0).any()):
            return torch.full((rows.tasks,), math.nan, dtype=torch.float64)
        w = _exact_pareto(rows, weighted, rays, tolerance, relax)
        return rows.all_tasks(on_simplex(rows, torch.zeros_like(rows.lengths), 1.0) if w is None else w)

    solved(weights, solver, gram, losses, rays)


def _exact_pareto(rows: Rows, weighted: Tensor, rays: Tensor, tolerance: float, relax: bool) -> Tensor | None:
    """EPO's linear program over the simplex; None where it has no solution."""
    share = weighted / weighted.sum()
    logs = (rows.tasks * share.clamp_min(EPSILON)).log()
    non_uniformity = share @ logs
    rounding = (logs - non_uniformity).abs() <= 4 * rows.tasks * EPSILON
    steering = torch.where(rounding, 0.0, rays * (logs - non_uniformity))[rows.present]
    # As inner products with rows of length one, in units of the longest row.
    q = rows.cosines * rows.lengths / rows.lengths.max()
    moved = q @ steering
    if non_uniformity > tolerance:
        objective = moved * rows.lengths
        bound = torch.where(moved <= 0, moved, -torch.inf)
        if not bool((moved > 0).any()):
            bound = torch.zeros_like(moved)
        else:
            worst = weighted[rows.present] == weighted[rows.present].max()
            bound = torch.where(worst, bound.clamp_min(0.0), bound)
        kept = bound > -torch.inf
        return program(objective, q[kept], bound[kept])
    objective = rows.lengths @ q
    if relax:
        return program(objective, q, torch.zeros_like(moved))
    along = moved * rows.lengths
    if not bool(along.any()):
        return program(objective, q, torch.zeros_like(moved))
    extra = along / along.abs().max()
    bound = torch.cat([torch.zeros_like(moved), extra.max().clamp_max(0)[None]])
    return program(objective, torch.cat([q, extra[None]]), bound)
