"""M-ConFIG: ConFIG on moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_real
from .config import conflict_free
from .context import Needs, WeightingContext
from .elements import gram_of, kernels_of
from .memory import MemoryWeighting
from .registry import register
from .solvers import scaled
from .state import State


@register("m-config")
class MomentumConFIG(MemoryWeighting):
    """M-ConFIG (Liu, Chu and Thuerey, ICLR 2025, arXiv 2408.11104).

    G_k = ConFIG of the bias-corrected first moments of the task gradients. The combined gradient is the one whose own
    first moment in Adam is G_k: f = (G_k (1 - b^k) - b G_(k-1) (1 - b^(k-1))) / (1 - b), b = beta; its square feeds the
    second moment. So the base rule must be Adam or AdamW with beta1 = ``beta``. Homogeneous.

    All moments are renewed in each step, where the paper also renews one task at a time. After `transform_` the first
    row holds f and the others 0, and the weights are (1, 0, ..., 0): f is not in the span of the gradients.

    Args:
        rtol: what counts as zero, see `CAGrad`.

    State:
        ``steps`` [K], ``task_steps`` [K, T]; ``memory.moment`` [K, T, P]; ``memory.previous`` [K, P], G.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = mt2o_ext.WeightedFused([p], num_tasks=2, weighting=MomentumConFIG(), lr=0.1)
        >>> losses = optimizer.step(lambda: [p.square().sum(), (p - 1).square().sum()])
        >>> p.detach()
        tensor([0.8990, 1.8980])
    """

    reads_preferences = True
    undoes_factors = True
    needs = Needs.ROWS

    def __init__(self, *, beta: float = 0.9, rtol: float | None = None) -> None:
        super().__init__()
        if check_real("beta", beta) >= 1:
            raise ValueError(f"expected beta in [0, 1), got {beta}")
        self.beta = float(beta)
        self.rtol = None if rtol is None else check_real("rtol", rtol)

    def _initial_state(self, ones: Tensor) -> State:
        return {"steps": torch.zeros_like(ones[:, 0]), "task_steps": torch.zeros_like(ones)}

    def _transform_(self, rows: Sequence[Tensor], context: WeightingContext) -> None:
        assert context.finite is not None
        finite, steps = context.finite, self._state["steps"] + 1
        self._state.update({"steps": steps, "task_steps": self._state["task_steps"] + 1})
        keep = torch.full_like(context.preferences, self.beta)
        moments = self._track_(rows, "moment", keep, 1 - keep, context, shown=False)
        # The correction of the bias: ConFIG's weights do not depend on a common factor of the rows, so that of the task
        # with the most steps comes last, and the others' own factors, 1 where they have as many, before.
        grown = 1 - self.beta ** self._state["task_steps"]
        most = grown.amax(-1, keepdim=True)
        gram = scaled(gram_of(moments, context), most / grown)
        weights = conflict_free(gram, context.preferences, context.rtol(self.rtol))
        weights = weights * (most / grown) / most
        weights = torch.where(finite[:, None], weights, 0.0)
        now, before = (1 - self.beta**count for count in (steps, steps - 1))
        previous = self._remembered("previous", rows, per_task=False)
        kernels, columns = kernels_of(rows, context)
        for moment, matrix, last, (chunks, _) in zip(moments, rows, previous, columns, strict=True):
            kernels.feed_(matrix, last, moment, weights, now, before, finite, chunks, beta=self.beta)

    def _weights(self, context: WeightingContext) -> Tensor:
        weights = torch.zeros_like(context.preferences)
        weights[:, 0] = 1.0
        return weights
