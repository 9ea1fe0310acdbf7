"""What a step found out on the device (a gradient that is not finite), read on the host without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import capture

__all__ = ["LateFlags"]


class LateFlags:
    """Flags that the host may learn of late.

    Where they are on a GPU, they travel to pinned memory while the host goes on; what has arrived is known at a later
    step, after a CUDA graph only to who waits.  On the CPU everything is known at once.
    """

    def __init__(self) -> None:
        self._all: Tensor | None = None  # whatever was raised, where the flags are
        self._arriving: Tensor | None = None  # a copy of it on the host
        self._event: torch.cuda.Event | None = None  # when that copy is complete

    def add(self, flags: Tensor) -> None:
        """Adds float32 [K], not zero where raised."""
        if self._all is None:
            self._all = flags.clone()
        else:  # in place: a graph adds to it at each replay
            torch.maximum(self._all, flags, out=self._all)
        if flags.device.type == "cpu":
            self._arriving = self._all
        elif not capture.running(flags.device) and (self._event is None or self._event.query()):
            self._send()

    def _send(self) -> None:
        assert self._all is not None
        if self._arriving is None:
            self._arriving = torch.zeros(self._all.shape, pin_memory=True)
        with torch.cuda.device(self._all.device):
            self._arriving.copy_(self._all, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def known(self) -> bool:
        """True once something that was added has arrived (during a capture nobody may ask)."""
        if self._all is None or self._arriving is None or capture.running(self._all.device):
            return False
        return self._event is None or self._event.query()

    def raised(self, *, wait: bool = False) -> list[int]:
        """The positions that are known to be raised; all of them, if the host may wait for the device."""
        if wait and self._event is not None:
            self._event.synchronize()
            self._send()
            self._event.synchronize()
        return self._arriving.nonzero().flatten().tolist() if self.known() else []  # type: ignore[union-attr]
