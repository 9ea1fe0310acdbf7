"""Which subproblems had a non-finite gradient, read on the host without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LateFlags"]


class LateFlags:
    """Flags that the host may learn of late.

    Where they are on a GPU, they travel to pinned memory while the host goes on; what has arrived is known at a later
    step.  On the CPU everything is known at once.
    """

    def __init__(self) -> None:
        self._all: Tensor | None = None  # whatever was raised, where the flags are
        self._arriving: Tensor | None = None  # a copy of it on the host
        self._event: torch.cuda.Event | None = None  # when that copy is complete

    def add(self, flags: Tensor) -> None:
        """Adds float32 [K], not zero where raised."""
        self._all = flags.clone() if self._all is None else torch.maximum(self._all, flags)
        if flags.device.type != "cuda":
            self._arriving = self._all
        elif not torch.cuda.is_current_stream_capturing() and (self._event is None or self._event.query()):
            self._send()

    def _send(self) -> None:
        assert self._all is not None
        if self._arriving is None:
            self._arriving = torch.zeros(self._all.shape, pin_memory=True)
        with torch.cuda.device(self._all.device):
            self._arriving.copy_(self._all, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def raised(self, *, wait: bool = False) -> list[int]:
        """The positions that are known to be raised; all of them, if the host may wait for the device."""
        if wait and self._event is not None:
            self._event.synchronize()
            self._send()
            self._event.synchronize()
        if self._arriving is None or (self._event is not None and not self._event.query()):
            return []
        return self._arriving.nonzero().flatten().tolist()
