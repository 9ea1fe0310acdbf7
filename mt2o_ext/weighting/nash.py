"""Nash-MTL: the bargaining solution."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_count, check_positive
from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register
from .solvers import clipped, power_barrier
from .state import State


@register("nash-mtl")
class NashMTL(Weighting):
    """Nash-MTL (Navon et al., ICML 2022, arXiv 2202.01017).

    w > 0 with (Qw)_t = b_t / w_t, b = T u (1 without preferences; asymmetric bargaining with them): a direction of
    squared length T. Degree 0: the update does not depend on the scale of the losses; its direction not on the lengths
    of the rows. All weights are 0 where positive combinations of the gradients cancel.

    Args:
        every: new weights at each ``every``-th step only, the old ones between.
        max_norm: the direction is shortened to this length; None: never. 1 in published codes, where it always acts.

    State:
        ``weights`` [K, T], before they are shortened; 1 at first.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> NashMTL()(gram)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    reads_preferences = True
    undoes_factors = True
    needs = Needs.GRAM
    degree = 0.0

    def __init__(self, *, every: int = 1, max_norm: float | None = 1.0) -> None:
        super().__init__()
        self.every = check_count("every", every)
        if self.every > 1:
            self.needs = Needs.GRAM | Needs.STEPS
        self.max_norm = None if max_norm is None else check_positive("max_norm", max_norm)

    def _initial_state(self, ones: Tensor) -> State:
        return {"weights": ones}

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None
        if context.step % self.every == 0:
            target = context.preferences.shape[1] * context.preferences
            self._state["weights"] = power_barrier(context.gram, target, 1.0, context.rtol())
        weights = self._state["weights"]
        return weights if self.max_norm is None else clipped(weights, context.gram, self.max_norm)
