"""The solvers of :mod:`mt2o_ext.ops.solve` as functions that return their results, and small algebra beside them.

Gram matrices are float64 [K, T, T], vectors [K, T]. rtol: what is rounding, see `are_rounding`; it comes from
`WeightingContext.rtol`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import solve


def times(gram: Tensor, vector: Tensor) -> Tensor:
    """Q v."""
    return (gram @ vector[..., None])[..., 0]


def squared_norm(gram: Tensor, vector: Tensor) -> Tensor:
    """v' Q v >= 0, [K, 1]: the squared length of J' v."""
    return (vector * times(gram, vector)).sum(-1, keepdim=True).clamp(min=0)


def are_rounding(gram: Tensor, vectors: Tensor, rtol: float) -> Tensor:
    """Return which vectors J' v are zero to the accuracy of the rows: |J'v|^2 <= rtol sum_t (v_t |g_t|)^2.

    Args:
        gram: [K, T, T].
        vectors: N vectors v, [K, N, T].
        rtol: relative to the rows' own squares.

    Returns:
        bool [K, N].
    """
    parts = times(vectors.square(), gram.diagonal(dim1=-2, dim2=-1))
    return (vectors * (vectors @ gram)).sum(-1) <= rtol * parts


def row_norms(gram: Tensor) -> Tensor:
    """s_t = sqrt(Q_tt)."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def inverse(values: Tensor) -> Tensor:
    """1 / values, 0 for 0: a row that is zero leaves the system."""
    return torch.where(values == 0, 0.0, 1 / values)


def scaled(gram: Tensor, by: Tensor) -> Tensor:
    """diag(r) Q diag(r): the Gram matrix of the rows r_t g_t."""
    return gram * by[..., :, None] * by[..., None, :]


def minimum_norm(gram: Tensor, linear: Tensor | None = None) -> Tensor:
    """argmin over the simplex of w'Qw/2 + q'w."""
    weights = gram.new_empty(gram.shape[:2])
    solve.minimum_norm_(weights, gram, linear)
    return weights


def conflict_averse(gram: Tensor, preferences: Tensor, radius: float, rtol: float) -> Tensor:
    """CAGrad's weights for a ball of ``radius`` |J'u|, before they are rescaled."""
    weights = gram.new_empty(gram.shape[:2])
    solve.conflict_averse_(weights, gram, preferences, radius, rtol=rtol)
    return weights


def power_barrier(gram: Tensor, target: Tensor, power: float, rtol: float) -> Tensor:
    """x > 0 with (Qx)_i = (b_i / x_i)^p; b_i = 0 leaves task i out of it (the limit b_i -> 0), x_i = 0."""
    present = target > 0
    weights = gram.new_empty(gram.shape[:2])
    residual = gram.new_empty(len(gram))
    solve.power_barrier_(
        weights, residual, scaled(gram, present.double()), torch.where(present, target, 1.0), power=power, rtol=rtol
    )
    return weights


def dual_cone(gram: Tensor, lower: Tensor, rtol: float) -> Tensor:
    """argmin v'Qv over v >= u for each of the rows u of lower [K, M, T]."""
    weights = torch.empty_like(lower)
    solve.dual_cone_(weights, gram, lower, rtol=rtol)
    return weights


def spectrum(gram: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues [K, T] in ascending order, eigenvectors in columns, and which count: those that are not rounding.

    An eigenvalue is |J'e|^2 of its eigenvector, in which short rows meet short ones only: so the rank does not depend
    on the lengths of the rows.
    """
    values, vectors = gram.new_empty(gram.shape[:2]), torch.empty_like(gram)
    solve.eigen_(values, vectors, gram)
    parts = times(vectors.mT.square(), gram.diagonal(dim1=-2, dim2=-1))
    return values, vectors, (values > rtol * parts) & (values > 0)


def pseudo_inverse_times(gram: Tensor, vector: Tensor, rtol: float) -> Tensor:
    """Q^+ v over the numerical rank."""
    values, vectors, kept = spectrum(gram, rtol)
    inner = times(vectors.mT, vector)
    return times(vectors, torch.where(kept, inner / torch.where(kept, values, 1.0), 0.0))


def onto_simplex(vector: Tensor) -> Tensor:
    """The nearest point of the simplex (Held, Wolfe and Crowder 1974, by sorting)."""
    ordered = vector.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, vector.shape[-1] + 1, dtype=vector.dtype, device=vector.device)
    used = (ordered * count > excess).sum(-1, keepdim=True)
    return (vector - excess.gather(-1, used - 1) / used).clamp(min=0)


def mean_diagonal(gram: Tensor) -> Tensor:
    """tr(Q) / T in absolute values, [K, 1, 1], 1 where that is 0: the unit of Q."""
    mean = gram.diagonal(dim1=-2, dim2=-1).abs().mean(-1)[:, None, None]
    return torch.where(mean == 0, 1.0, mean)


def clipped(weights: Tensor, gram: Tensor, max_norm: float) -> Tensor:
    """The weights [K, T] (or [K, S, T] with gram [K, S, T, T]), times what makes |J'w| <= max_norm."""
    squared = squared_norm(gram, weights)
    if weights.ndim == 3:
        squared = squared.sum(1, keepdim=True)
    norm = squared.sqrt()
    return weights * torch.where(norm > max_norm, max_norm / torch.where(norm > max_norm, norm, 1.0), 1.0)


def strictly(weights: Tensor, gram: Tensor, strict: bool) -> Tensor:
    """With ``strict`` a row that is zero makes the point stationary, as the formula says: all weights are 0."""
    if not strict:
        return weights
    stationary = (gram.diagonal(dim1=-2, dim2=-1) == 0).any(-1, keepdim=True)
    return torch.where(stationary, 0.0, weights)


# ---------------------------------------------------------------------- rows that meet in turn
# The variants of PCGrad and GradVac that ``project_`` does not have. By the span lemma a changed row is J' c: its
# coefficients c, and inner products from Q alone.


def projected(gram: Tensor, order: Tensor, *, visit_self: bool) -> Tensor:
    """PCGrad: coefficients [K, T, T] of the rows after each has met those in its order (int64 [K, T, T]).

    Args:
        gram: [K, T, T].
        order: int64 [K, T, T].
        visit_self: a row meets its own original too, from which it may by then point away.
    """
    rows = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    own = torch.arange(gram.shape[-1], dtype=torch.int64, device=gram.device)
    for met in order.unbind(-1):
        other, squared = _met(gram, met)
        product = (rows * other).sum(-1)
        step = torch.where((product < 0) & (squared > 0), -product / torch.where(squared > 0, squared, 1.0), 0.0)
        if not visit_self:
            step = torch.where(met == own, 0.0, step)
        rows = rows.scatter_add(-1, met[..., None], step[..., None])
    return rows


def aligned(gram: Tensor, order: Tensor, targets: Tensor, decay: float, rtol: float) -> tuple[Tensor, Tensor]:
    """GradVac whose targets move only when it acts: coefficients and targets, both [K, T, T]."""
    rows = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    own = torch.arange(gram.shape[-1], dtype=torch.int64, device=gram.device)
    for met in order.unbind(-1):
        other, squared = _met(gram, met)
        length = torch.where(are_rounding(gram, rows, rtol), 0.0, (rows * (rows @ gram)).sum(-1).clamp(min=0).sqrt())
        product, unit = (rows * other).sum(-1), length * squared.sqrt()
        cosine = (product / torch.where(unit > 0, unit, 1.0)).clamp(-1, 1)
        goal = targets.gather(-1, met[..., None])[..., 0]
        acts = (cosine < goal) & (goal * goal < 1) & (unit > 0) & (met != own)
        sine, goal_sine = (1 - cosine * cosine).sqrt(), (1 - goal * goal).clamp(min=0).sqrt()
        step = length * (goal * sine - cosine * goal_sine) / torch.where(acts, squared.sqrt() * goal_sine, 1.0)
        rows = rows.scatter_add(-1, met[..., None], torch.where(acts, step, 0.0)[..., None])
        moved = torch.where(acts, (1 - decay) * goal + decay * cosine, goal)
        targets = targets.scatter(-1, met[..., None], moved[..., None])
    return rows, targets


def _met(gram: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of Q of the tasks met [K, T], and their squared norms."""
    rows = gram.gather(1, met[..., None].expand_as(gram))
    return rows, gram.diagonal(dim1=-2, dim2=-1).gather(-1, met)


def present(gram: Tensor, weights: Tensor) -> Tensor:
    """The weights, 0 for rows that are zero."""
    return torch.where(gram.diagonal(dim1=-2, dim2=-1) == 0, 0.0, weights)
