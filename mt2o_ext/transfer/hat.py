"""Projection of the subproblems on polynomials of their preferences."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_count
from .mixing import FixedMix
from .polynomial import orthonormal_polynomials, symmetrized
from .registry import register
from .schedule import Schedule


@register("hat")
class Hat(FixedMix):
    """P = H = B (B^T B)^-1 B^T, B the polynomials of ``degree`` in the preferences (our derivation).

    With the same task gradients g_t at all subproblems a step sum_t w_kt g_t is linear in w_k, so H leaves it alone and
    removes the noise outside: symmetric, eigenvalues 0 and 1, entries may be negative. The bias is what the front bends
    beyond ``degree``. Needs at least twice as many subproblems as columns of B (degree 1: T), else it transfers nothing
    and warns.

    Args:
        degree: >= 1.
        rate: how much of P is applied, in [0, 1], a number or a `Schedule`.

    Example:
        >>> preferences = mt2o_ext.preferences.even(4)
        >>> rule = Hat(degree=1, rate=0.5)
        >>> rule.bind(preferences)
        >>> context = TransferContext(preferences, None, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[ 0.8500,  0.2000,  0.0500, -0.1000],
                [ 0.2000,  0.6500,  0.1000,  0.0500],
                [ 0.0500,  0.1000,  0.6500,  0.2000],
                [-0.1000,  0.0500,  0.2000,  0.8500]], dtype=torch.float64)
    """

    def __init__(self, degree: int = 1, rate: float | Schedule = 1.0, *, every: int = 10) -> None:
        super().__init__(rate, every=every)
        self.degree = check_count("degree", degree)

    def target(self, preferences: Tensor) -> Tensor | None:
        phi, _ = orthonormal_polynomials(preferences, self.degree)
        num_subproblems, columns = phi.shape
        if num_subproblems < 2 * columns:
            self._without_transfer(
                f"expected at least {2 * columns} subproblems, twice the {columns} polynomials of degree "
                f"{self.degree}, got {num_subproblems}; use more subproblems or a lower degree"
            )
            return None
        return symmetrized(phi @ phi.T)
