"""What a step found out on the device (a gradient that is not finite), read on the host without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import capture

__all__ = ["LateCopy", "LateFlags"]


class LateCopy:
    """A tensor that the host may learn of late.

    Where it is on a GPU, it travels to pinned memory while the host goes on; what has arrived is known at a later step,
    after a CUDA graph only to who waits.  On the CPU everything is known at once.
    """

    def __init__(self) -> None:
        self._all: Tensor | None = None  # whatever was found, where it was
        self._arriving: Tensor | None = None  # a copy of it on the host
        self._event: torch.cuda.Event | None = None  # when that copy is complete

    def _changed(self) -> None:
        """After a change of ``_all``, which keeps its place: a graph changes it at each replay."""
        assert self._all is not None
        if self._all.device.type == "cpu":
            self._arriving = self._all
        elif not capture.running(self._all.device) and (self._event is None or self._event.query()):
            self._send()

    def _send(self) -> None:
        assert self._all is not None
        if self._arriving is None:
            self._arriving = torch.zeros(self._all.shape, dtype=self._all.dtype, pin_memory=True)
        with torch.cuda.device(self._all.device):
            self._arriving.copy_(self._all, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def known(self) -> bool:
        """True once something that was added has arrived (during a capture nobody may ask)."""
        if self._all is None or self._arriving is None or capture.running(self._all.device):
            return False
        return self._event is None or self._event.query()

    def arrived(self, *, wait: bool = False) -> Tensor | None:
        """The copy on the host, if it is known; the newest, if the host may wait for the device."""
        if wait and self._event is not None:
            self._event.synchronize()
            self._send()
            self._event.synchronize()
        return self._arriving if self.known() else None

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, which events do not know."""
        return {**self.__dict__, "_arriving": None, "_event": None}


class LateFlags(LateCopy):
    """Flags that the host may learn of late."""

    def add(self, flags: Tensor) -> None:
        """Adds float32 [K], not zero where raised."""
        if self._all is None:
            self._all = flags.clone()
        else:
            torch.maximum(self._all, flags, out=self._all)
        self._changed()

    def raised(self, *, wait: bool = False) -> list[int]:
        """The positions that are known to be raised; all of them, if the host may wait for the device."""
        arrived = self.arrived(wait=wait)
        return [] if arrived is None else arrived.nonzero().flatten().tolist()
