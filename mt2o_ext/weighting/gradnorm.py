"""GradNorm: learned weights that balance gradient norms."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_flag, check_real
from ..loss_domain import LossDomain
from .base import Weighting
from .context import Needs, WeightingContext
from .learning import EpochMeans, TableAdam
from .registry import register
from .state import State


@register("gradnorm")
class GradNorm(Weighting):
    """GradNorm (Chen, Badrinarayanan, Lee and Rabinovich, ICML 2018, arXiv 1711.02257).

    w = T softmax(a), s_t = |g_t|. With rho = l / l_0 and the target nt = mean(w s) (rho / mean rho)^alpha, a descends
    sum |w s - nt| for a constant target: sg = sign(w s - nt) s, p = softmax(a), da = T (p sg - p (p . sg)), divided by
    the mean of s (ours: it makes the step free of scale) and given to Adam. The norms come from the diagonal of the
    Gram matrix: no second derivative. The sum is T. Homogeneous.

    l_0 is a unit, so it has to be positive, and rho^alpha takes no rho below 0. A loss of exactly 0 later on (a hinge
    that is satisfied) is in order; where all are 0, rho / mean rho counts as 1.

    Args:
        alpha: 1.5 in LibMTL, 2 in SamsungLabs/MTL.
        lr: of the Adam that learns a.
        first_epoch: l_0 is the mean loss of the first epoch (LibMTL), in which w = 1, not the first loss (of the first
            epoch in which no mean is 0); needs the user's count of epochs.

    State:
        ``logits``, ``first_losses`` [K, T] (0 until known), Adam's moments; with ``first_epoch`` `EpochMeans`.

    Example:
        >>> weighting = GradNorm(lr=0.1)
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> weighting(gram, losses=torch.tensor([2.0, 0.5]))
        tensor([1., 1.], dtype=torch.float64)
        >>> weighting(gram, losses=torch.tensor([1.0, 0.5]))
        tensor([0.9003, 1.0997], dtype=torch.float64)
    """

    reads_preferences = False

    def __init__(self, *, alpha: float = 1.5, lr: float = 0.025, first_epoch: bool = False) -> None:
        super().__init__()
        self.alpha = check_real("alpha", alpha)
        self.adam = TableAdam(lr)
        self.first_epoch = check_flag("first_epoch", first_epoch)
        self.means = EpochMeans()
        self.needs = Needs.LOSSES | Needs.DIAGONAL | (Needs.EPOCHS if first_epoch else Needs.NOTHING)
        at_first = LossDomain.POSITIVE_AT_FIRST_THEN_NON_NEGATIVE
        self.loss_domain = LossDomain.NON_NEGATIVE if first_epoch else at_first

    def _initial_state(self, ones: Tensor) -> State:
        zeros = torch.zeros_like(ones)
        means = self.means.start(ones) if self.first_epoch else {}
        return {"logits": zeros, "first_losses": zeros.clone(), **self.adam.start(ones), **means}

    def _first_known(self) -> Tensor:
        return self._state["first_losses"] > 0

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None and context.gram is not None
        self._find_first_losses(context.epoch, context.losses)
        first = self._state["first_losses"]
        known = self._first_known().all(-1)
        share = torch.softmax(self._state["logits"], -1)
        weights = share.shape[1] * share
        norms = context.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        rate = context.losses / torch.where(known[:, None], first, 1.0)
        average = rate.mean(-1, keepdim=True)
        rate = torch.where(average > 0, rate / torch.where(average > 0, average, 1.0), 1.0)
        weighted = weights * norms
        target = weighted.mean(-1, keepdim=True) * rate**self.alpha
        mean = norms.mean(-1, keepdim=True)
        slope = torch.where(mean > 0, torch.sign(weighted - target) * norms / mean, 0.0)
        before = dict(self._state)
        self.adam.step(self._state, "logits", weights * (slope - (share * slope).sum(-1, keepdim=True)))
        self._keep(known, before)
        return weights

    def _find_first_losses(self, epoch: int, losses: Tensor) -> None:
        first = self._state["first_losses"]
        candidate = losses
        if self.first_epoch:
            self.means.see(self._state, epoch, losses)
            # Zero until an epoch is over.
            last = self._state["epoch_last"]
            candidate = torch.where((last > 0).all(-1, keepdim=True), last, 0.0)
        self._state["first_losses"] = torch.where(first == 0, candidate, first)
