"""The reasons why weights were refused, found in each step and told when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..loss_domain import Reason, first_offence
from .present import widened

DOMAIN, OVERFLOW = 1, 2  # a weighting's own reasons, counted from 1; those of its parts follow


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
        refused: bool [K], finite rows without weights.
        outside: bool [K, T], losses outside of the domain; None: there can be none.
        losses: [K, T] float64, or None.
        unusable: bool, the shape of the weights [K, T] or [K, S, T], where these are too large or no numbers.
        weights: float64 [K, T] or [K, S, T].
    """

    refused: Tensor
    outside: Tensor | None
    losses: Tensor | None
    unusable: Tensor
    weights: Tensor

    def among(self, present: Tensor, num_tasks: int) -> Outcome:
        """The same with the numbers of all tasks, of which only these were present."""

        def wide(part: Tensor | None) -> Tensor | None:
            return None if part is None else widened(part, present, num_tasks)

        return replace(
            self,
            outside=wide(self.outside),
            losses=wide(self.losses),
            unusable=widened(self.unusable, present, num_tasks),
            weights=widened(self.weights, present, num_tasks),
        )

    def refusals(self, parts: Iterable[tuple[int, Tensor | None]]) -> Tensor:
        """Return the findings as numbers.

        Args:
            parts: the number of reasons of each part and what it refused itself; the last part that did is told of.

        Returns:
            float64 [K, 3]: number of the reason (0: not refused), task, value.
        """
        rows, tasks = len(self.weights), self.weights.shape[-1]
        found = first_offence(self.unusable.flatten(1), self.weights.flatten(1), OVERFLOW, tasks)
        offset = OVERFLOW
        for count, refusals in parts:
            if refusals is not None:
                inner = _first_told(refusals, rows)
                inner = torch.cat([torch.where(inner[:, :1] > 0, inner[:, :1] + offset, 0.0), inner[:, 1:]], 1)
                found = torch.where(inner[:, :1] > 0, inner, found)
            offset += count
        if self.outside is not None and self.losses is not None:
            of_losses = first_offence(self.outside, self.losses, DOMAIN, tasks)
            found = torch.where(of_losses[:, :1] > 0, of_losses, found)
        return torch.where(self.refused[:, None], found, 0.0)


def _first_told(refusals: Tensor, rows: int) -> Tensor:
    """[K, 3] of [K, 3], or of [K S, 3]: for each row the first of its S that is not 0."""
    segments = refusals.view(rows, -1, 3)
    at = (segments[..., 0] > 0).to(torch.uint8).argmax(1)
    return segments.gather(1, at.view(-1, 1, 1).expand(-1, 1, 3)).squeeze(1)
