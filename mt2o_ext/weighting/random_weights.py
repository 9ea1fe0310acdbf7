"""RLW and RGW: random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_flag
from .base import Weighting
from .context import Needs, WeightingContext
from .draw import drawn, subproblem_and_task
from .registry import register


@register("rlw")
class RLW(Weighting):
    """Random loss weighting (Lin, Ye, Zhang and Tsang, TMLR 2022, arXiv 2111.10603).

    w = softmax(z), z ~ N(0, I); with ``dirichlet`` w is uniform on the simplex, Dirichlet(1). New in each step and for
    each subproblem; the sum is 1 and the mean of many draws is 1 / T. Homogeneous.

    Example:
        >>> RLW()(losses=torch.tensor([2.0, 0.5]), generator=torch.Generator().manual_seed(0))
        tensor([0.5600, 0.4400], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.DRAWS

    def __init__(self, *, dirichlet: bool = False) -> None:
        super().__init__()
        self.dirichlet = check_flag("dirichlet", dirichlet)

    def _weights(self, context: WeightingContext) -> Tensor:
        ids = subproblem_and_task(context)
        if self.dirichlet:
            parts = drawn(context).exponential(0, *ids)
            return parts / parts.sum(-1, keepdim=True)
        return torch.softmax(drawn(context).normal(0, *ids), -1)


@register("rgw")
class RGW(RLW):
    """Random gradient weighting (Lin, Ye, Zhang and Tsang, TMLR 2022, arXiv 2111.10603).

    The weights of `RLW`, on the gradients of the shared parameters only.

    The heads are meant to train with plain gradients: ``heads="plain"`` of the optimizer (inferred, the paper is not
    explicit).

    Example:
        >>> RGW()(losses=torch.tensor([2.0, 0.5]), generator=torch.Generator().manual_seed(0))
        tensor([0.5600, 0.4400], dtype=torch.float64)
    """
