"""``solve``: the small problems behind weightings, from Gram matrices alone.

Each function solves K independent problems of T tasks, in float64, where the Gram matrix is, without waiting for it.
For all of them:

* gram: float64 [K, T, T], symmetric: Q = J J' of the task gradients J [T, P], as ``gram_`` makes it; T <= 1024.
* Multiplying Q by a number changes the results exactly as the formulas say: no tolerance is absolute.
* A task with Q_tt = 0 takes no part and gets weight 0.  All zero: all weights are 0.
* An input that is not finite gives NaN in all results of its subproblem (the optimizer skips the step); no error.
* rtol: a combination of rows J'w is taken for rounding where |J'w|^2 <= rtol sum_t (w_t |g_t|)^2.  None: T 2^-52, for
  Q of float64 rows; T times :func:`length_accuracy` for other rows, in ``dual_cone_`` :func:`gram_accuracy`.
* workspace: float64 [K, >= ``workspace_size(T)``], scratch; allocated if None.
* CPU and CUDA give the same bits.  On a GPU one thread solves each problem: many tasks (T > 30, say) take long there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference_solve
from ._registry import changed, compiled, register_fake


def workspace_size(tasks: int) -> int:
    """float64 numbers of scratch that one subproblem of T tasks needs, whatever the solver."""
    return 3 * tasks * tasks + 32 * tasks + 64


def _scratch(workspace: Tensor | None, gram: Tensor) -> Tensor:
    if workspace is not None:
        return workspace
    return torch.empty(gram.shape[0], workspace_size(gram.shape[-1]), dtype=torch.float64, device=gram.device)


def _tolerance(rtol: float | None, gram: Tensor) -> float:
    return gram.shape[-1] * torch.finfo(gram.dtype).eps if rtol is None else rtol


def _problems(gram: Tensor, workspace: Tensor) -> tuple[int, int]:
    """K and T."""
    torch._check(gram.dim() == 3, lambda: f"gram must be [K, T, T], not {list(gram.shape)}")
    batch, _, tasks = gram.shape
    _check("gram", gram, batch, tasks, tasks)
    torch._check(
        workspace.dim() == 2 and workspace.shape[0] == batch and workspace.shape[1] >= workspace_size(tasks),
        lambda: f"workspace must be [{batch}, at least {workspace_size(tasks)}], not {list(workspace.shape)}",
    )
    return batch, tasks


def _check(name: str, tensor: Tensor | None, *shape: int) -> None:
    if tensor is not None:
        torch._check(tensor.shape == shape, lambda: f"{name} must be {list(shape)}, not {list(tensor.shape)}")


def minimum_norm_(
    weights: Tensor, gram: Tensor, linear: Tensor | None = None, *, workspace: Tensor | None = None
) -> None:
    """w = argmin w'Qw/2 + q'w over w >= 0, sum w = 1: the quadratic program of MGDA (Désidéri, 2012) and SDMGrad.

    A primal active set: exact up to rounding (the gap w'(Qw + q) - min (Qw + q) is at most 1e-12 of w'(Qw + q), where
    that is not lost in rounding), also for rows of very different lengths, equal, opposite or dependent rows.

    Args:
        weights: float64 [K, T], written.
        gram: float64 [K, T, T].
        linear: float64 [K, T], q; None: zero, and w gives the vector of least norm in the convex hull of the rows.
        workspace: scratch, see the module.
    """
    function = torch.ops.mt2o_ext.minimum_norm_ if compiled(gram) else reference_solve.minimum_norm_
    function(weights, _scratch(workspace, gram), gram, linear)
    changed([weights])


@register_fake("minimum_norm_")
def _(weights: Tensor, workspace: Tensor, gram: Tensor, linear: Tensor | None) -> None:
    batch, tasks = _problems(gram, workspace)
    _check("weights", weights, batch, tasks)
    _check("linear", linear, batch, tasks)


def conflict_averse_(
    weights: Tensor,
    gram: Tensor,
    preferences: Tensor,
    radius: float,
    *,
    rtol: float | None = None,
    workspace: Tensor | None = None,
) -> None:
    """CAGrad (Liu et al., 2021): weights = u + m w of the best direction in a ball.

    That is the d with the largest min_t <g_t, d> in |d - g0| <= radius |g0|, g0 = J'u, before any rescaling:
    d = g0 + radius |g0| g_w / |g_w|.  w minimises <g0, g_w> + radius |g0| |g_w| over the simplex.  With v = m w, v
    minimises |J'(u + v)|^2 over v >= 0, sum v = m, for the one m with |J'v| = radius |g0|: found in an exact bracket,
    to the last digits.

    Args:
        weights: float64 [K, T], written; all 0 where the rows are stationary: the shortest vector of their convex hull
            is rounding.
        gram: float64 [K, T, T].
        preferences: float64 [K, T], u.
        radius: the paper's c, >= 0.
        rtol: see the module.
        workspace: scratch, see the module.
    """
    function = torch.ops.mt2o_ext.conflict_averse_ if compiled(gram) else reference_solve.conflict_averse_
    function(weights, _scratch(workspace, gram), gram, preferences, radius=radius, rtol=_tolerance(rtol, gram))
    changed([weights])


@register_fake("conflict_averse_")
def _(weights: Tensor, workspace: Tensor, gram: Tensor, preferences: Tensor, *, radius: float, rtol: float) -> None:
    batch, tasks = _problems(gram, workspace)
    _check("weights", weights, batch, tasks)
    _check("preferences", preferences, batch, tasks)


def power_barrier_(
    weights: Tensor,
    residual: Tensor,
    gram: Tensor,
    target: Tensor,
    *,
    power: float,
    rtol: float | None = None,
    workspace: Tensor | None = None,
) -> None:
    """x > 0 with (Qx)_i = (b_i / x_i)^p.

    Nash-MTL (Navon et al., 2022; p = 1), FairGrad (Ban & Ji, 2024; p = 1/alpha), PIVRG (p = 1/2).  Newton's
    method on the strictly convex x'Qx/2 - sum b_i^p psi_p(x_i), psi_1 = log, psi_p = x^(1-p)/(1-p).

    Args:
        weights: float64 [K, T], x, written; all 0 where positive combinations of rows cancel, so that there is no
            solution (the shortest vector in the convex hull of the rows, each divided by its length, is rounding).
        residual: float64 [K], written: the largest |(Qx)_i x_i^p / b_i^p - 1|; about 1e-13 for norms within a factor of
            1e4 and p <= 2; 1 where there is no solution.
        gram: float64 [K, T, T].
        target: float64 [K, T], b > 0 (else NaN).
        power: p > 0.
        rtol: see the module.
        workspace: scratch, see the module.
    """
    function = torch.ops.mt2o_ext.power_barrier_ if compiled(gram) else reference_solve.power_barrier_
    function(weights, residual, _scratch(workspace, gram), gram, target, power=power, rtol=_tolerance(rtol, gram))
    changed([weights, residual])


@register_fake("power_barrier_")
def _(
    weights: Tensor, residual: Tensor, workspace: Tensor, gram: Tensor, target: Tensor, *, power: float, rtol: float
) -> None:
    batch, tasks = _problems(gram, workspace)
    _check("weights", weights, batch, tasks)
    _check("residual", residual, batch)
    _check("target", target, batch, tasks)


def dual_cone_(
    weights: Tensor,
    gram: Tensor,
    lower: Tensor,
    *,
    rtol: float | None = None,
    workspace: Tensor | None = None,
) -> None:
    """v = argmin v'Qv over v >= u: the projection of J'u onto the cone of directions that conflict with no row.

    DualProj takes u, UPGrad the sum over i of the solutions for u_i e_i (Quinton & Rey, 2024).

    To v'Qv is added rtol sum_t (z_t |g_t|)^2, z = v - u: otherwise a Gram matrix that is singular to rounding leaves v
    undetermined, and one that rounding made indefinite sends it to infinity.  So |J'v| <= |J'u|, and
    (Qv)_i >= -rtol |g_i|^2 z_i.  Where Q is less accurate than rtol says, and shows it, a larger rtol takes its place.
    Lawson and Hanson's active set in Gram form.

    Args:
        weights: float64 [K, M, T], v, written; 0 for tasks with Q_tt = 0.
        gram: float64 [K, T, T].
        lower: float64 [K, M, T], u: M problems that share one Q.
        rtol: see the module.
        workspace: scratch, see the module.
    """
    function = torch.ops.mt2o_ext.dual_cone_ if compiled(gram) else reference_solve.dual_cone_
    function(weights, _scratch(workspace, gram), gram, lower, rtol=_tolerance(rtol, gram))
    changed([weights])


@register_fake("dual_cone_")
def _(weights: Tensor, workspace: Tensor, gram: Tensor, lower: Tensor, *, rtol: float) -> None:
    batch, tasks = _problems(gram, workspace)
    _check("weights", weights, batch, lower.shape[1], tasks)
    _check("lower", lower, batch, lower.shape[1], tasks)


def eigen_(values: Tensor, vectors: Tensor, gram: Tensor, *, workspace: Tensor | None = None) -> None:
    """Eigenvalues in ascending order and eigenvectors, by Jacobi's rotations: Q = V diag(values) V'.

    Small eigenvalues are accurate to all digits where they are small because rows are short (Demmel & Veselic, 1992).

    Args:
        values: float64 [K, T], written.
        vectors: float64 [K, T, T], V, written; eigenvectors are its columns, of length one and of any sign.
        gram: float64 [K, T, T]; any symmetric matrix.
        workspace: scratch, see the module.
    """
    function = torch.ops.mt2o_ext.eigen_ if compiled(gram) else reference_solve.eigen_
    function(values, vectors, _scratch(workspace, gram), gram)
    changed([values, vectors])


@register_fake("eigen_")
def _(values: Tensor, vectors: Tensor, workspace: Tensor, gram: Tensor) -> None:
    batch, tasks = _problems(gram, workspace)
    _check("values", values, batch, tasks)
    _check("vectors", vectors, batch, tasks, tasks)


def project_(
    weights: Tensor,
    targets: Tensor | None,
    gram: Tensor,
    order: Tensor,
    *,
    decay: float = 0.0,
    rtol: float | None = None,
    workspace: Tensor | None = None,
) -> None:
    """Each row meets the others in turn and is changed by them; weights of the sum of all changed rows.

    PCGrad (Yu et al., 2020; targets None): where g_i (as it is by then) and g_j conflict, g_i loses its component along
    g_j.  GradVac (Wang et al., 2021): where their cosine is below targets[i, j], g_j is added to g_i until it is equal;
    then targets[i, j] <- (1 - decay) targets[i, j] + decay (the cosine before that).  A g_i that is rounding by then
    has no cosine: it meets nobody.

    Args:
        weights: float64 [K, T], written.
        targets: float64 [K, T, T] in [-1, 1], changed (not where an input of its subproblem is not finite); or None.
        gram: float64 [K, T, T].
        order: int64 [K, T, T]: row i lists the tasks in the order in which g_i meets them; i itself is passed over.
            Other numbers than those of tasks are an error on the CPU and passed over on a GPU.
        decay: GradVac's beta.
        rtol: see the module.
        workspace: scratch, see the module.
    """
    function = torch.ops.mt2o_ext.project_ if compiled(gram) else reference_solve.project_
    function(weights, targets, _scratch(workspace, gram), gram, order, decay=decay, rtol=_tolerance(rtol, gram))
    changed([weights, targets])


@register_fake("project_")
def _(
    weights: Tensor,
    targets: Tensor | None,
    workspace: Tensor,
    gram: Tensor,
    order: Tensor,
    *,
    decay: float,
    rtol: float,
) -> None:
    batch, tasks = _problems(gram, workspace)
    _check("weights", weights, batch, tasks)
    _check("targets", targets, batch, tasks, tasks)
    _check("order", order, batch, tasks, tasks)


def descent_(
    weights: Tensor,
    gram: Tensor,
    losses: Tensor,
    rays: Tensor,
    *,
    tolerance: float = 1e-4,
    relax: bool = False,
    workspace: Tensor | None = None,
) -> None:
    """EPO search's linear program (Mahapatra & Rajan, 2020): weights w >= 0, sum w = 1.

    With h = r l / sum(r l), mu = sum h log(T h) (how far the losses are from the ray) and a = r (log(T h) - mu):
    mu > tolerance (balance): max w'Qa with (Qw)_j >= 0 where r l is largest and (Qw)_j >= (Qa)_j where (Qa)_j <= 0;
    only Qw >= 0 if no (Qa)_j > 0.  Else (descent): max 1'Qw with Qw >= 0 and w'Qa >= min(0, max Qa).  Where this has no
    solution: the weights of ``minimum_norm_``.

    Args:
        weights: float64 [K, T], written; NaN where some r l < 0 or all are 0, for which mu is not defined.
        gram: float64 [K, T, T].
        losses: float64 [K, T], l; an entry of 0 counts as 2^-52 of sum(r l) in the logarithm.
        rays: float64 [K, T], r: *inverse* preferences; l is wanted proportional to 1/r.
        tolerance: of mu.
        relax: leaves out the condition on w'Qa in descent.
        workspace: scratch, see the module.
    """
    function = torch.ops.mt2o_ext.descent_ if compiled(gram) else reference_solve.descent_
    function(weights, _scratch(workspace, gram), gram, losses, rays, tolerance=tolerance, relax=relax)
    changed([weights])


@register_fake("descent_")
def _(
    weights: Tensor, workspace: Tensor, gram: Tensor, losses: Tensor, rays: Tensor, *, tolerance: float, relax: bool
) -> None:
    batch, tasks = _problems(gram, workspace)
    _check("weights", weights, batch, tasks)
    _check("losses", losses, batch, tasks)
    _check("rays", rays, batch, tasks)
