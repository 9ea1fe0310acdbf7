"""New weights at every n-th step only."""

from __future__ import annotations

from torch import Tensor

from ...checks import check_count
from ..base import Weighting
from ..context import Needs, WeightingContext
from ..registry import register_around
from ..state import State
from .base import Combinator


@register_around("every")
class Every(Combinator):
    """The weights of ``inner`` at each ``every``-th step, the same ones between: no Gram matrix is read then.

    Until the first usable step the weights are 1 / T.

    State:
        ``kept`` [K, T] (or [K, S, T]).

    Raises:
        ValueError: for a weighting that goes by points, as `PaMaL` does.

    Example:
        >>> weighting = Every("mgda", 10)
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> weighting(gram)
        tensor([0.2857, 0.7143], dtype=torch.float64)
        >>> weighting(torch.eye(2))  # as before
        tensor([0.2857, 0.7143], dtype=torch.float64)
    """

    def __init__(self, inner: Weighting | str, every: int) -> None:
        super().__init__(inner)
        self._refuse_points()
        self.every = check_count("every", every)
        self.needs |= Needs.STEPS

    def needs_at(self, step: int) -> Needs:
        if step % self.every == 0:
            return self.needs
        return self.needs & (Needs.ROWS | Needs.FEEDBACK | Needs.EPOCHS | Needs.STEPS)

    def _initial_state(self, ones: Tensor) -> State:
        return {"kept": self._empty_weights(ones) + 1 / ones.shape[1]}

    def _axes_of_tasks(self, name: str) -> tuple[int, ...]:
        return (-1,)

    def _weights(self, context: WeightingContext) -> Tensor:
        if context.step % self.every == 0:
            self._state["kept"] = self.inner.weights(context)
        return self._state["kept"]
