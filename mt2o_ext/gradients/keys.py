"""The random numbers of one step after another, the same on all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import capturing, graph_generator
from ..ranks import Ranks
from ..weighting import Draw
from .options import own_generator

__all__ = ["StepKeys"]


class StepKeys:
    """Gives each step a key, from which a weighting makes all its random numbers.

    Args:
        generator: that keys are drawn from; None: one that begins with a number of torch's default generator.
        used: whether anybody draws: if not, torch's own numbers go on as if nobody had been here.
    """

    def __init__(self, generator: torch.Generator | None, *, used: bool) -> None:
        self.generator = own_generator(generator, used=used)
        self._ranks: Ranks | None = None
        self._key: Tensor | None = None

    def share(self, ranks: Ranks) -> None:
        """From now on all ranks draw the numbers that the first one would have drawn."""
        self._ranks = ranks
        self.generator = ranks.generator(self.generator)

    def draw_ahead(self, device: torch.device) -> None:
        """Draws the key of the next step, so that a compiled step need not know generators."""
        if self._key is None or capturing(device):
            self._key = self._new(device)

    def draw(self, device: torch.device) -> Draw:
        """The random numbers of this step, the same however often it is weighed."""
        if self._key is None:
            self._key = self._new(device)
        return Draw(self._key)

    def _new(self, device: torch.device) -> Tensor:
        """A key also for steps that are skipped, the same on all ranks.

        In a CUDA graph it comes from torch's generator of the device, which draws anew at each replay, on each rank
        something else.
        """
        if not capturing(device):
            return Draw.new(self.generator).key
        key = Draw.new(graph_generator(device)).key
        return key if self._ranks is None else self._ranks.from_first_(key.to(device))

    def forget(self) -> None:
        """Drops the key: the next step draws another one."""
        self._key = None

    def fingerprint(self) -> int:
        """A number that tells the state of the generator from others."""
        return hash(tuple(self.generator.get_state().view(torch.int64).tolist()))
