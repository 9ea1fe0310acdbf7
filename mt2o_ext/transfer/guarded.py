"""Transfers that no subproblem is harmed by."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_real
from .base import TransferContext, TransferRule
from .user import as_transfer_rule

__all__ = ["Guarded"]


class Guarded(TransferRule):
    """Another rule, without the transfers that raise a subproblem's own loss to first order.

    A transfer moves subproblem k by d_k = (M Theta - Theta)_k, which changes its loss by <g_k, d_k>, to first order.  A
    running mean of these numbers decides: where it is above 0, row k of M is that of the identity.  Ours, from the
    condition under which a transfer beats none on a quadratic.

    Args:
        rule: an instance or a name; not one that filters changes (``relative``).
        decay: of the running mean, over the transfers that are due.

    In our measurements (six problems, five seeds; docs/mt2o.md) it took away the harm that `Spectral` did on two of
    them, and cost a little of the gain on others.

    State:
        ``mean`` [K]: the running mean.  ``refused`` [K]: how many transfers each subproblem was kept out of.

    Raises:
        ValueError: for a rule that filters changes, and for a decay outside of [0, 1).

    Example:
        >>> preferences, lr = mt2o_ext.preferences.even(3), torch.tensor(0.1)
        >>> rule = Guarded(Mean(0.1), decay=0.0)
        >>> rule.bind(preferences)
        >>> slopes = torch.tensor([[[0.0, 1.0, 1.0], [0.0, 0.0, -1.0], [0.0, -1.0, 1.0]]]).double()
        >>> context = TransferContext(preferences, None, losses=None, step=0, lr=lr, initial_lr=0.1, slopes=slopes)
        >>> rule.matrix(context)[0]  # the first one's loss would rise
        tensor([1., 0., 0.], dtype=torch.float64)
        >>> rule.refused
        tensor([1., 0., 0.], dtype=torch.float64)
    """

    needs_slopes = True

    def __init__(self, rule: TransferRule | str, *, decay: float = 0.9) -> None:
        self.rule = as_transfer_rule(rule)
        super().__init__(every=self.rule.every)
        if self.rule.relative:
            raise ValueError(
                f"expected a rule about positions, got {type(self.rule).__name__} with relative=True: leave it out"
            )
        if check_real("decay", decay, 0.0, 1.0) == 1.0:
            raise ValueError("expected decay < 1, got 1.0: the mean would never move; choose a smaller one, 0.9, say")
        self.decay = float(decay)
        self.order, self.fixed, self.nonnegative = self.rule.order, self.rule.fixed, self.rule.nonnegative
        self.counts_steps = self.rule.counts_steps
        self._state: dict[str, Tensor] = {}

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        self.rule.bind(preferences)
        self.needs_gram = self.rule.needs_gram
        zeros = torch.zeros(len(preferences), dtype=torch.float64, device=preferences.device)
        self._state = {"mean": zeros, "refused": zeros.clone()}

    @property
    def refused(self) -> Tensor:
        """float64 [K], how many transfers each subproblem was kept out of."""
        self._check_bound()
        return self._state["refused"].clone()

    def due(self, step: int) -> bool:
        return self.rule.due(step)

    def matrix(self, context: TransferContext) -> Tensor | None:
        self._check_bound()
        mix = self.rule.matrix(context)
        if mix is None or context.slopes is None:
            return mix
        identity = torch.eye(len(context.preferences), dtype=torch.float64, device=context.slopes.device)
        change = ((mix - identity) * context.slopes).sum((0, 2))
        # The slope of a row that is not finite teaches nothing; its step is skipped.
        finite, before = change.isfinite(), self._state
        mean = torch.where(finite, self.decay * before["mean"] + (1 - self.decay) * change, before["mean"])
        refused = mean > 0
        self._state = {"mean": mean, "refused": before["refused"] + refused.double()}
        return torch.where(refused[:, None], identity, mix)

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._state, **{f"rule.{name}": value for name, value in self.rule.state_dict().items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._check_state(state, {name: value.shape for name, value in self.state_dict().items()})
        own = {name[len("rule.") :]: value for name, value in state.items() if name.startswith("rule.")}
        self.rule.load_state_dict(own)
        self._state = {name: state[name].clone() for name in self._state}
