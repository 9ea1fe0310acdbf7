"""Shrinkage of the front's noisy modes."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import TransferContext, TransferRule
from .polynomial import orthonormal_polynomials, symmetrized
from .registry import register


@register("spectral")
class Spectral(TransferRule):
    """M_s = Phi diag(lambda_s) Phi^T per segment s, with the shrinkage read from the subproblems themselves.

    Phi are the orthonormal polynomials of the preferences. E_m = Phi_m^T C_s Phi_m is the energy of the subproblems in
    mode m; a smooth front has next to none in the top third of the degrees, so their mean energy is the noise sigma^2,
    and lambda_m = max(0, 1 - sigma^2 / E_m) is the James-Stein shrinkage of the others; the mean (m = 0) stays. Our
    derivation. Without noise (sigma^2 = 0, as at a common start) M = I exactly. Needs more than T + 1 subproblems with
    different preferences, else it transfers nothing and warns.

    M is symmetric with eigenvalues in [0, 1]; subproblems with the same preference are averaged.

    Args:
        relative: filter only the change since the last transfer; the positions are not pulled.

    Example:
        >>> preferences = mt2o_ext.preferences.even(5)
        >>> rule = Spectral()
        >>> rule.bind(preferences)
        >>> theta = torch.tensor([[0.0], [1.1], [1.9], [3.1], [4.0]]).double()  # nearly a line over the preferences
        >>> theta = theta - theta.mean()
        >>> gram = (theta @ theta.T)[None]
        >>> context = TransferContext(preferences, gram, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> (rule.matrix(context) @ theta)[0].T
        tensor([[-2.0072, -0.9586, -0.0600,  1.0386,  1.9872]], dtype=torch.float64)
    """

    needs_gram = True

    def __init__(self, *, every: int = 10, relative: bool = False) -> None:
        super().__init__(every=every)
        self.relative = bool(relative)
        self._phi: Tensor | None = None
        self._num_noise_modes = 0

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        phi, degrees = orthonormal_polynomials(preferences)
        num_tasks, num_modes = preferences.shape[1], len(degrees)
        self.needs_gram = num_modes > num_tasks + 1
        if not self.needs_gram:
            self._phi = None
            self._without_transfer(
                f"expected more than {num_tasks + 1} subproblems with different preferences for {num_tasks} tasks, got "
                f"{num_modes}: no mode is left to measure the noise in; use more subproblems"
            )
            return
        self._phi = phi
        self._num_noise_modes = sum(3 * degree > 2 * degrees[-1] for degree in degrees)

    def matrix(self, context: TransferContext) -> Tensor | None:
        self._check_bound()
        if self._phi is None:
            return None
        phi, gram = self._phi, self._gram(context)
        energy = (phi * (gram @ phi)).sum(-2)  # [S, R]
        # Below the rounding of the product above is no energy: equal rows stay bitwise equal, and untouched.
        rounding = len(phi) * torch.finfo(torch.float64).eps * gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        energy = torch.where(energy > rounding, energy, 0.0)
        noise = energy[:, -self._num_noise_modes :].mean(-1, keepdim=True)
        kept = torch.where(energy > noise, 1 - noise / energy, 0.0)
        kept[:, 0] = 1.0
        identity = torch.eye(len(phi), dtype=torch.float64, device=phi.device)
        return torch.where(noise[:, :, None] == 0, identity, symmetrized(phi * kept[:, None, :] @ phi.T))
