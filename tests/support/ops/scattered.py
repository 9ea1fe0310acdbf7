"""Gradients in memory of their own: each tensor read-only, and behind its last element a page that nobody can read.

Who reads past the end of a tensor (by more than the fifteen bytes that its beginning at a multiple of 16 may cost),
or writes to it, ends the process.  On a GPU they are ordinary tensors.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from mt2o_ext.ops import address_table
from support.samplers import Layout

PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ = 0, 1


def protect(memory: mmap.mmap, begin: int, length: int, how: int) -> None:
    """mprotect, which Python's mmap does not have."""
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + begin
    if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(length), how) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def guarded(values: Tensor) -> Tensor:
    """A copy of a contiguous tensor [n] that ends where a page ends, but for what is missing to a multiple of 16 bytes;
    NaN there."""
    size = values.numel() * values.element_size()
    if size == 0:
        return values.clone()
    length = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, length + PAGE)
    everything = torch.frombuffer(memory, dtype=values.dtype, count=length // values.element_size())
    everything.fill_(torch.nan)
    begin = (length - -(-size // 16) * 16) // values.element_size()
    result = everything[begin : begin + values.numel()].copy_(values)
    protect(memory, 0, length, PROT_READ)
    protect(memory, length, PAGE, PROT_NONE)
    return result


@dataclass
class Scattered:
    """What a kernel is given instead of a buffer [K, T, P], and the tensors, which must live as long."""

    like: Tensor  # [K, T, P] without memory
    addresses: Tensor  # int64 [K, T, S]
    tensors: list[list[list[Tensor | None]]]


def scattered(
    grads: Tensor, layout: Layout, missing: Tensor | None = None, device: torch.device | None = None
) -> Scattered:
    """The same gradients, each tensor of them for itself; missing: bool [K, T, S], those that are not there."""
    where = torch.device("cpu") if device is None else device
    chosen = torch.zeros(*grads.shape[:2], len(layout.numels)) if missing is None else missing
    tensors: list[list[list[Tensor | None]]] = []
    for row, flags_of_row in zip(grads, chosen.tolist(), strict=True):
        tensors.append([])
        for task, flags in zip(row, flags_of_row, strict=True):
            parts = [task[begin : begin + numel] for begin, numel in zip(layout.offsets, layout.numels, strict=True)]
            own = [guarded(part) if where.type == "cpu" else part.to(where, copy=True) for part in parts]
            tensors[-1].append([None if absent else part for part, absent in zip(own, flags, strict=True)])
    like = torch.empty(1, dtype=grads.dtype).expand(grads.shape)
    return Scattered(like, address_table(tensors, layout.offsets), tensors)


def with_zeros(grads: Tensor, layout: Layout, missing: Tensor) -> Tensor:
    """The buffer that says the same: zeros where a gradient is missing."""
    return torch.where(missing.bool()[..., layout.segment_of] & layout.inside, torch.zeros_like(grads), grads)
