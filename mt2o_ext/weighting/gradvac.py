"""GradVac: gradient vaccine."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_flag, check_real
from ..ops import solve
from .base import Weighting
from .context import Needs, WeightingContext
from .draw import meeting_orders
from .registry import register
from .solvers import aligned, present
from .state import State


@register("gradvac")
class GradVac(Weighting):
    """Gradient vaccine (Wang, Tsvetkov, Firat and Cao, ICLR 2021, arXiv 2010.05874).

    Each g_i meets the others in random order; where the cosine rho with g_j is below phi_ij, g_j is added to g_i until
    it is phi_ij; then phi_ij <- (1 - beta) phi_ij + beta rho, rho from before. w are the coefficients of the sum.
    Homogeneous. A g_i that is zero to the accuracy of the gradients by then has no cosine, and meets nobody.

    The paper keeps a phi for each layer: `PerSegment(GradVac())`.

    Args:
        beta: 0.5 in LibMTL and TorchJD; the paper's 1e-2 (inferred).
        only_on_action: phi moves only when g_i was changed (SamsungLabs/MTL), not at each meeting (LibMTL, TorchJD).

    State:
        ``targets`` [K, T, T], phi, 0 at first.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> GradVac(beta=0.1)(gram)
        tensor([1.2500, 2.0000], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.GRAM | Needs.DRAWS

    def __init__(self, *, beta: float = 0.5, only_on_action: bool = False) -> None:
        super().__init__()
        self.beta = check_real("beta", beta, 0.0, 1.0)
        self.only_on_action = check_flag("only_on_action", only_on_action)

    def _initial_state(self, ones: Tensor) -> State:
        return {"targets": torch.zeros_like(ones[:, :, None] * ones[:, None])}

    def _axes_of_tasks(self, name: str) -> tuple[int, ...]:
        return (1, 2)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        order = meeting_orders(context)
        if self.only_on_action:
            rows, self._state["targets"] = aligned(
                context.gram, order, self._state["targets"], self.beta, context.rtol()
            )
            return present(context.gram, rows.sum(1))
        targets = self._state["targets"].clone()
        weights = context.gram.new_empty(context.gram.shape[:2])
        solve.project_(weights, targets, context.gram, order, decay=self.beta, rtol=context.rtol())
        self._state["targets"] = targets
        return weights
