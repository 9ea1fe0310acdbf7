"""GradDrop: gradient sign dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_real
from .base import Weighting
from .context import Needs, WeightingContext
from .draw import drawn
from .elements import kernels_of
from .registry import register


@register("graddrop")
class GradDrop(Weighting):
    """Gradient sign dropout (Chen et al., NeurIPS 2020, arXiv 2010.06808).

    In each element p = (1 + sum_t g_t / sum_t |g_t|) / 2 and one U ~ U(0, 1) for all tasks: the positive g_t stay where
    p > U, the negative ones where p < U; without ``leak`` no element keeps two signs. The update is the sum of what
    stays. Homogeneous.

    On the rows, as in TorchJD; on the gradients of a shared representation it is LibMTL's form without its factor
    sign(activation).

    Args:
        leak: share of the gradient that stays in any case, leak g + (1 - leak) kept; 0 in LibMTL, 0.5 in
            SamsungLabs/MTL (which has it the other way round).

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = mt2o_ext.WeightedFused([p], num_tasks=2, weighting=GradDrop(), base="sgd", lr=0.1)
        >>> losses = optimizer.step(lambda: [p.square().sum(), (p - 1).square().sum()])
        >>> p.detach()
        tensor([0.8000, 1.4000])
    """

    reads_preferences = False
    needs = Needs.ROWS | Needs.DRAWS

    def __init__(self, *, leak: float = 0.0) -> None:
        super().__init__()
        self.leak = check_real("leak", leak, 0.0, 1.0)

    def _transform_(self, rows: Sequence[Tensor], context: WeightingContext) -> None:
        assert context.finite is not None
        kernels, columns = kernels_of(rows, context)
        key = drawn(context).key_on(rows[0].device)
        for stream, (matrix, (chunks, _)) in enumerate(zip(rows, columns, strict=True)):
            kernels.drop_signs_(matrix, key, context.finite, chunks, stream=stream, leak=self.leak)

    def _weights(self, context: WeightingContext) -> Tensor:
        return torch.ones_like(context.preferences)
