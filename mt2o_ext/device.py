"""Devices: all that the package knows of GPUs outside of its kernels.

* Tables of the host on their way to a device, and tensors of a device on their way to the host, without anybody
  waiting.
* CUDA graphs: a capture records work that runs again without the host, which then counts, draws and copies nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LateCopy",
    "LateFlags",
    "capturing",
    "graph_generator",
    "has_addresses",
    "host_knows",
    "in_shared_memory",
    "is_gpu",
    "kept_in_place",
    "refuse_in_graph",
    "to_device",
    "warn_in_graph",
    "with_own_storage",
]


def host_knows(tensor: Tensor) -> bool:
    """True if reading the tensor here makes nobody wait, neither a compiler nor a device."""
    compiling = torch.compiler.is_compiling()
    return tensor.device.type == "cpu" and not compiling and not capturing(tensor.device)


def is_gpu(device: torch.device) -> bool:
    """True of a device that the package has CUDA kernels for."""
    return device.type == "cuda"


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A table of the host on a device; on a GPU through pinned memory, so that nobody waits for it.

    Raises:
        RuntimeError: during a capture, because a replay would copy from memory that is used otherwise by then.
    """
    refuse_in_graph(
        device,
        "the first step, or one with other options or other missing gradients than the step before",
        "take one such step outside of the capture first, and give lr as a tensor on the device if it changes",
    )
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def with_own_storage(view: Tensor) -> Tensor:
    """The same memory as a tensor with a storage of its own, which ends where the tensor does.

    Code that saves models takes tensors of one storage for tied weights and drops all but one, and writes the whole
    storage with each of them.  The buffer lives as long as the tensor does.
    """
    return torch.from_dlpack(view) if view.numel() > 0 and view.device.type in ("cpu", "cuda") else view


def in_shared_memory(tensor: Tensor) -> bool:
    """True if other processes see what is written to a tensor of the host; torch does not tell on a GPU."""
    return tensor.device.type == "cpu" and tensor.is_shared()


def has_addresses(device: torch.device) -> bool:
    """True if the host may say where a tensor lies: it lies somewhere, and will not be elsewhere in a replay."""
    return device.type in ("cpu", "cuda") and not capturing(device)


# ---------------------------------------------------------------------- CUDA graphs
def capturing(device: torch.device) -> bool:
    """True while work of this device is recorded for a CUDA graph instead of being done."""
    return not torch.compiler.is_compiling() and _records(device)


def _records(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def graph_generator(device: torch.device) -> torch.Generator:
    """The generator that a graph may draw from: a replay draws new numbers."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


def kept_in_place(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of ``after`` in the tensors of ``before``: a replay finds them where the recorded step did."""
    new = {name: tensor.clone() for name, tensor in after.items()}  # some may be others of before
    return {name: before[name].copy_(tensor) for name, tensor in new.items()}


def refuse_in_graph(device: torch.device, what: str, remedy: str) -> None:
    """Refuses, during a capture, something that a replay would not do again.

    Args:
        device: whose capture is meant.
        what: a graph cannot record, for the message.
        remedy: the advice that ends the message.

    Raises:
        RuntimeError: during a capture.
    """
    if capturing(device):
        raise RuntimeError(f"a CUDA graph cannot record {what}: {remedy}")


def warn_in_graph(device: torch.device, what: str, remedy: str) -> None:
    """Warns (UserWarning) during a capture of what each replay does as it was in the recorded steps."""
    if capturing(device):
        warnings.warn(f"a CUDA graph repeats {what} as recorded: {remedy}", UserWarning, stacklevel=2)


# ---------------------------------------------------------------------- what the host learns late
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
        elif not capturing(self._all.device) and (self._event is None or self._event.query()):
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
        if self._all is None or self._arriving is None or capturing(self._all.device):
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
