"""Random numbers that depend on a key and on what they are for, not on the device or on the order of drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device import to_device
from ..ops import draw_

if TYPE_CHECKING:
    from .context import WeightingContext


class Draw:
    """The random numbers of one step: functions of (key, stream, ids).

    Every number is a hash of the step's key, a stream (one number per purpose) and the ids of what it is for
    (subproblem, task, element). Orders are the same on every device bit for bit; normal numbers up to the rounding of
    the device's logarithm. Ranks that were given the same key agree.

    Args:
        key: int64 [], on the CPU or on the device; it is never read on the host.

    Example:
        >>> draw = Draw.new(torch.Generator().manual_seed(0))
        >>> draw.uniform(0, torch.arange(3))  # of purpose 0, for the ids 0, 1, 2
        tensor([0.4375, 0.4565, 0.5699], dtype=torch.float64)
        >>> draw.uniform(0, torch.tensor([2]))  # the same number again
        tensor([0.5699], dtype=torch.float64)
    """

    def __init__(self, key: Tensor) -> None:
        if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.ndim != 0:
            got = f"{key.dtype} {list(key.shape)}" if isinstance(key, Tensor) else type(key).__name__
            raise TypeError(f"expected the key as an int64 tensor [], got {got}: use Draw.new(generator)")
        self.key = key

    @classmethod
    def new(cls, generator: torch.Generator | None = None) -> Draw:
        """A new key from ``generator`` (torch's default one for the CPU if None), which advances by one number."""
        device = torch.device("cpu") if generator is None else generator.device
        return cls(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device, generator=generator))

    def bits(self, stream: int, *ids: Tensor) -> Tensor:
        """int64 numbers of the shape that the ids (int64) broadcast to; all 64 bits are random."""
        return self._drawn(torch.int64, stream, ids)

    def uniform(self, stream: int, *ids: Tensor) -> Tensor:
        """float64 numbers in (0, 1), never 0 or 1."""
        return self._drawn(torch.float64, stream, ids)

    def normal(self, stream: int, *ids: Tensor) -> Tensor:
        """float64 numbers from N(0, 1); uses the streams ``stream`` and ``stream + 1`` (Box and Muller)."""
        radius = self.uniform(stream, *ids).log().mul(-2).sqrt()
        return radius * (2 * torch.pi * self.uniform(stream + 1, *ids)).cos()

    def exponential(self, stream: int, *ids: Tensor) -> Tensor:
        """float64 numbers from the exponential distribution of mean 1."""
        return -self.uniform(stream, *ids).log()

    def key_on(self, device: torch.device) -> Tensor:
        """The key on a device."""
        return self.key if self.key.device == device else to_device(self.key, device)

    def _drawn(self, dtype: torch.dtype, stream: int, ids: tuple[Tensor, ...]) -> Tensor:
        shape = torch.broadcast_shapes(*(each.shape for each in ids))
        device = ids[0].device if ids else self.key.device
        out = torch.empty(shape, dtype=dtype, device=device)
        draw_(out, self.key_on(device), [each.expand(shape) for each in ids], stream=stream)
        return out


# ---------------------------------------------------------------------- of a step


def drawn(context: WeightingContext) -> Draw:
    """``context.draw``, which `Weighting.weights` has found to be there."""
    assert context.draw is not None
    return context.draw


def task_names(context: WeightingContext) -> Tensor:
    """int64 [T]."""
    if context.tasks is not None:
        return context.tasks
    return torch.arange(context.preferences.shape[1], dtype=torch.int64, device=context.preferences.device)


def subproblem_and_task(context: WeightingContext) -> tuple[Tensor, Tensor]:
    """int64 [K, 1] and [1, T]: the ids of numbers [K, T]."""
    return torch.arange(len(context.preferences), dtype=torch.int64, device=context.preferences.device)[
        :, None
    ], task_names(context)[None]


def meeting_orders(context: WeightingContext, stream: int = 0) -> Tensor:
    """int64 [K, T, T]: in row i a random order of all tasks, for the task i that meets the others."""
    subproblem, task = subproblem_and_task(context)
    return drawn(context).bits(stream, subproblem[..., None], task[..., None], task[:, None]).argsort(-1)


def shared_order(context: WeightingContext, stream: int = 0) -> Tensor:
    """int64 [K, T]: one random order of the tasks."""
    return drawn(context).bits(stream, *subproblem_and_task(context)).argsort(-1)
