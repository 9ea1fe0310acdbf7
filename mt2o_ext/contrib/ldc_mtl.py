"""LDC-MTL: balanced losses through one penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_flag, check_real
from ..loss_domain import LossDomain
from ..weighting.base import Weighting
from ..weighting.context import Needs, WeightingContext
from ..weighting.learning import TableAdam
from ..weighting.state import State
from .registry import register

_ROUNDING = 4 * torch.finfo(torch.float64).eps


@register("ldc-mtl")
class LDCMTL(Weighting):
    """LDC-MTL, loss discrepancy control (Xiao, Dong et al., arXiv 2502.08585).

    The gradient of F = sum_t sig_t l_t / r_t / sum sig + lam sum_t |x_t - x_(t+1)|, x_t = sig_t l_t / r_t:
    w_t = (sig_t / r_t) (1 / sum sig + lam (sg_t - sg_(t-1))), sg_t = sign(x_t - x_(t+1)), 0 at both ends. One backward
    of the weighted sum; w may be negative. Homogeneous. The order of the tasks matters.

    Departs from the paper, where sig comes from a router that sees the input.

    Args:
        lam: .1 for Cityscapes, .05 for NYUv2 and QM9, .01 for CelebA.
        by_first_losses: r = l_0 / min l_0 from the first losses, which have to be positive as units; r = 1 if False (as
            for CelebA), for any losses.
        lr: sig = softmax(a) descends the same F by Adam, its gradient divided by the mean of l / r; 0 keeps sig = 1 /
            T.

    State:
        ``logits``, ``first_losses`` [K, T] (0 before the first step) and Adam's moments.

    Example:
        >>> LDCMTL(lam=0.1)(losses=torch.tensor([2.0, 0.5]))
        tensor([0.1250, 0.5000], dtype=torch.float64)
    """

    needs = Needs.LOSSES

    def __init__(self, *, lam: float = 0.1, by_first_losses: bool = True, lr: float = 1e-3) -> None:
        super().__init__()
        self.lam = check_real("lam", lam)
        self.by_first_losses = check_flag("by_first_losses", by_first_losses)
        self.loss_domain = LossDomain.POSITIVE_AT_FIRST if by_first_losses else LossDomain.ANY
        self.adam = TableAdam(lr)

    def _initial_state(self, ones: Tensor) -> State:
        zeros = torch.zeros_like(ones)
        return {"logits": zeros, "first_losses": zeros.clone(), **self.adam.start(ones)}

    def _first_known(self) -> Tensor:
        return self._state["first_losses"] > 0

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        first = self._state["first_losses"]
        first = torch.where(first == 0, context.losses, first)
        self._state["first_losses"] = first
        unit = first / first.amin(-1, keepdim=True) if self.by_first_losses else torch.ones_like(first)
        share = torch.softmax(self._state["logits"], -1)
        losses = context.losses / unit
        pull = self._pull(share * losses)
        # F by sig, where sum sig = 1, then through the softmax.
        by_share = losses * (1 + self.lam * pull)
        mean = losses.abs().mean(-1, keepdim=True)
        by_share = torch.where(mean > 0, by_share / mean, 0.0)
        self.adam.step(self._state, "logits", share * (by_share - (share * by_share).sum(-1, keepdim=True)))
        return share / unit * (1 + self.lam * pull)

    @staticmethod
    def _pull(balanced: Tensor) -> Tensor:
        """sg_t - sg_(t-1), [K, T]; equal up to rounding, as all x are in the first step, counts as equal."""
        left, right = balanced[:, :-1], balanced[:, 1:]
        apart = (left - right).abs() > _ROUNDING * (left.abs() + right.abs())
        sign = torch.where(apart, torch.sign(left - right), 0.0)
        return torch.nn.functional.pad(sign, (0, 1)) - torch.nn.functional.pad(sign, (1, 0))
