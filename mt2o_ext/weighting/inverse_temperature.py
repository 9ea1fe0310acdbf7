"""InverseTemperature: the tasks of a soft actor-critic, by their entropy temperatures."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Weighting
from .context import Needs, WeightingContext
from .registry import register


@register("inverse-temperature")
class InverseTemperature(Weighting):
    """w = T softmax(-log alpha), for the entropy temperatures alpha of T tasks (Yang, Xu, Wu and Wang, NeurIPS 2020).

    Of soft modularization (arXiv 2003.13661) with soft actor-critic: a task whose policy is still spread out has a
    larger temperature, and counts less. w is in proportion to 1 / alpha, and sums to T. Homogeneous.

    As in the published code. At second hand, the paper has softmax(-alpha), which depends on the unit of the rewards.
    Without temperatures all are alike.

    Args:
        log_alpha: [T], or [K, T] for K subproblems: the tensor that the temperatures are learned in. It is read in each
            step and belongs to its own optimizer and checkpoint. An attribute, which can be set later.

    Example:
        >>> log_alpha = torch.tensor([0.2, 0.05]).log().requires_grad_()  # which another optimizer trains
        >>> InverseTemperature(log_alpha)(losses=torch.tensor([2.0, 0.5]))
        tensor([0.4000, 1.6000], dtype=torch.float64)
    """

    reads_preferences = False
    needs = Needs.NOTHING

    def __init__(self, log_alpha: Tensor | None = None) -> None:
        super().__init__()
        if log_alpha is not None and not (isinstance(log_alpha, Tensor) and log_alpha.is_floating_point()):
            got = log_alpha.dtype if isinstance(log_alpha, Tensor) else type(log_alpha).__name__
            raise TypeError(f"expected log_alpha as a floating-point tensor, got {got}: pass the one that is learned")
        self.log_alpha = log_alpha

    def bind(self, num_rows: int, num_tasks: int, num_segments: int, device: torch.device | str) -> None:
        self._check_shape(num_rows, num_tasks)
        super().bind(num_rows, num_tasks, num_segments, device)

    def _weights(self, context: WeightingContext) -> Tensor:
        if self.log_alpha is None:
            return torch.ones_like(context.preferences)
        rows, tasks = context.preferences.shape
        self._check_shape(rows, tasks)
        return (tasks * torch.softmax(-self.log_alpha.detach().to(context.preferences), -1)).expand(rows, tasks)

    def _check_shape(self, rows: int, tasks: int) -> None:
        if self.log_alpha is not None and self.log_alpha.shape not in ((tasks,), (rows, tasks)):
            raise ValueError(
                f"expected log_alpha of shape ({tasks},) or ({rows}, {tasks}), got {tuple(self.log_alpha.shape)}: give "
                "one temperature for each task"
            )
