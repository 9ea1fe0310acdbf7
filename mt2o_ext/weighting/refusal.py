"""The reasons why weights were refused, found in each step and told when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..loss_domain import Reason
from ..ops.judge import DOMAIN, OVERFLOW
from .present import widened


def overflow(name: str) -> Reason:
    """Return the reason of a weight that is out of range."""
    return Reason(
        f"the weight that {name} gives task {{task}}{{where}} is out of range: {{value:.3g}}",
        f"It is too large for the gradients' type: see what the documentation of {name} says of such losses, and if it "
        "was learned, begin with a new one.",
    )


@dataclass(frozen=True)
class Outcome:
    """The findings of `Weighting.weights`.

    Attributes:
        weights: float64 [K, T] or [K, S, T]; NaN in rows that do not take part.
        applied: the same, but 0 in rows that are refused.
        took_part: bool [K], rows that take part in the step.
        refused: bool [K], finite rows without weights.
        refusals: float64 [K, 3]: number of the weighting's own reason (`DOMAIN`, `OVERFLOW`; 0: none), task, value.
        found: float32 [K], 0 in rows that take part, else the number of what was found.
        losses: float64 [K, T], or None.
        sums: float64 [K, T, T] (of squares alone [K, T]), the Gram matrix as it is, or None.
    """

    weights: Tensor
    applied: Tensor
    took_part: Tensor
    refused: Tensor
    refusals: Tensor
    found: Tensor
    losses: Tensor | None
    sums: Tensor | None

    def among(self, present: Tensor, num_tasks: int) -> Outcome:
        """The same with the numbers of all tasks, of which only these were present; 0 for the others."""

        def wide(part: Tensor) -> Tensor:
            return torch.where(part.isnan().any(-1, keepdim=True), math.nan, widened(part, present, num_tasks))

        number, task, value = self.refusals.unbind(1)
        named = torch.where(number > 0, present[task.long()].double(), 0.0)
        return replace(
            self,
            weights=wide(self.weights),
            applied=wide(self.applied),
            refusals=torch.stack([number, named, value], 1),
            losses=None,
            sums=None,
        )

    def refusals_with(self, parts: Iterable[tuple[int, Tensor | None]]) -> Tensor:
        """Return the refusals where other weightings are parts of this one.

        Args:
            parts: the number of reasons of each part and what it refused itself; the last part that did is told of.

        Returns:
            float64 [K, 3]: number of the reason (0: not refused), task, value.
        """
        found, offset = self.refusals, OVERFLOW
        for count, refusals in parts:
            if refusals is not None:
                inner = _first_told(refusals, len(found))
                told = (inner[:, :1] > 0) & self.refused[:, None] & (self.refusals[:, :1] != DOMAIN)
                found = torch.where(told, torch.cat([inner[:, :1] + offset, inner[:, 1:]], 1), found)
            offset += count
        return found


def _first_told(refusals: Tensor, rows: int) -> Tensor:
    """[K, 3] of [K, 3], or of [K S, 3]: for each row the first of its S that is not 0."""
    segments = refusals.view(rows, -1, 3)
    at = (segments[..., 0] > 0).to(torch.uint8).argmax(1)
    return segments.gather(1, at.view(-1, 1, 1).expand(-1, 1, 3)).squeeze(1)
