"""wPCGrad: PCGrad whose order follows the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_choice, check_real
from ..weighting.base import Weighting
from ..weighting.context import Needs, WeightingContext
from ..weighting.draw import drawn, subproblem_and_task
from ..weighting.learning import EpochMeans
from ..weighting.solvers import are_rounding, present
from ..weighting.state import State
from .registry import register


@register("wpcgrad")
class WPCGrad(Weighting):
    """Weighted PCGrad (Bohn, Freeman, Tercan and Meisen, arXiv 2409.01793).

    The tasks are drawn without replacement, with chances in proportion to (mean loss of the last epoch)^gamma. Each in
    turn is the reference r: every g_k that conflicts with r loses its component along r. w are the coefficients of the
    sum. The task drawn first keeps its gradient. Homogeneous.

    From the abstract, there is no official code: the order and gamma are not verified. Needs the user's count of
    epochs, without it all tasks stay alike.

    Args:
        gamma: 0 draws all tasks alike, as the first epoch does.
        protect: "visited": a task that was a reference is changed no more; "none": all are changed each time; "first":
            only the first task is a reference.
        reference: "original": r is the task's gradient; "current": as it is by then. "none" with "original" is PCGrad
            with one shared order.

    State:
        See `EpochMeans`.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> WPCGrad()(gram, losses=torch.tensor([2.0, 0.5]), generator=torch.Generator().manual_seed(0))
        tensor([1., 2.], dtype=torch.float64)
    """

    needs = Needs.GRAM | Needs.LOSSES | Needs.EPOCHS | Needs.DRAWS

    def __init__(self, *, gamma: float = 1.0, protect: str = "visited", reference: str = "current") -> None:
        super().__init__()
        self.gamma = check_real("gamma", gamma)
        self.protect = check_choice("protect", protect, ("visited", "none", "first"))
        self.reference = check_choice("reference", reference, ("original", "current"))
        self.means = EpochMeans()

    def _initial_state(self, ones: Tensor) -> State:
        return self.means.start(ones)

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.gram is not None and context.losses is not None
        self.means.see(self._state, context.epoch, context.losses)
        order = self.order(context)
        rows = projected_in_turn(
            context.gram,
            order[:, :1] if self.protect == "first" else order,
            protect_visited=self.protect == "visited",
            current=self.reference == "current",
            rtol=context.rtol(),
        )
        return present(context.gram, rows.sum(1))

    def order(self, context: WeightingContext) -> Tensor:
        """int64 [K, T]: the tasks as they are drawn (Gumbel's trick: the smallest of exponential numbers / chance)."""
        last = self._state["epoch_last"].clamp(min=0)
        # In units of the largest, so that no power overflows; all alike where nothing is known.
        largest = last.amax(-1, keepdim=True)
        chance = torch.where(largest > 0, last / torch.where(largest > 0, largest, 1.0), 1.0) ** self.gamma
        return (drawn(context).exponential(0, *subproblem_and_task(context)) / chance).argsort(stable=True, dim=-1)


def projected_in_turn(gram: Tensor, order: Tensor, *, protect_visited: bool, current: bool, rtol: float) -> Tensor:
    """Coefficients [K, T, T] after every row has met the references in the order of ``order``, int64 [K, R]."""
    original = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    rows = original
    visited = torch.zeros_like(gram[:, 0], dtype=torch.bool)
    for turn in order.unbind(-1):
        own = turn[:, None]
        at = own[..., None].expand(-1, 1, gram.shape[-1])
        reference = (rows if current else original).gather(1, at)
        visited = visited.scatter(1, own, True)
        image = reference @ gram
        squared = (image * reference).sum(-1)
        product = (rows * image).sum(-1)
        kept = visited if protect_visited else torch.zeros_like(visited).scatter(1, own, True)
        acts = (product < 0) & ~are_rounding(gram, reference, rtol) & ~kept
        step = torch.where(acts, product / torch.where(acts, squared, 1.0), 0.0)
        rows = rows - step[..., None] * reference
    return rows
