"""Gradients that the reference reads where it is given a table of addresses."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .addresses import NO_GRADIENT


def gathered(grads: Tensor, addresses: Tensor | None, chunks: Tensor) -> Tensor:
    """The gradients [K, T, P]: ``grads``, or what lies behind the addresses; zeros outside of the chunks.

    Raises:
        RuntimeError: if there are addresses and the gradients are not on the CPU.
    """
    if addresses is None:
        return grads
    if grads.device.type != "cpu":
        raise RuntimeError(
            f"expected gradients in a buffer for the reference on {grads.device}, got addresses: pass the gradients "
            "themselves"
        )
    result = torch.zeros(grads.shape, dtype=grads.dtype)
    size = grads.element_size()
    for segment, begin, end in chunks.tolist():
        for k, row in enumerate(addresses[..., segment].tolist()):
            for t, address in enumerate(row):
                if address != NO_GRADIENT and end > begin:
                    memory = (ctypes.c_char * ((end - begin) * size)).from_address(address + begin * size)
                    result[k, t, begin:end] = torch.frombuffer(memory, dtype=grads.dtype)
    return result
