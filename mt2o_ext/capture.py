"""CUDA graphs: what a capture records runs again without the host, which then counts, draws and copies nothing."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = ["generator", "in_place", "refuse", "running", "warn"]


def running(device: torch.device) -> bool:
    """True while work of this device is recorded for a CUDA graph instead of being done."""
    compiling = torch.compiler.is_compiling()
    return device.type == "cuda" and not compiling and torch.cuda.is_current_stream_capturing()


def generator(device: torch.device) -> torch.Generator:
    """The one that a graph may draw from: a replay draws new numbers."""
    return torch.cuda.default_generators[device.index]


def in_place(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of ``after`` in the tensors of ``before``: a replay finds them where the recorded step did."""
    new = {name: tensor.clone() for name, tensor in after.items()}  # some may be others of before
    return {name: before[name].copy_(tensor) for name, tensor in new.items()}


def refuse(device: torch.device, what: str, remedy: str) -> None:
    """Raises RuntimeError during a capture, for ``what`` a replay would not do again."""
    if running(device):
        raise RuntimeError(f"a CUDA graph cannot record {what}: {remedy}")


def warn(device: torch.device, what: str, remedy: str) -> None:
    """Warns (UserWarning) during a capture of what each replay does as it was in the recorded steps."""
    if running(device):
        warnings.warn(f"a CUDA graph repeats {what} as recorded: {remedy}", UserWarning, stacklevel=2)
