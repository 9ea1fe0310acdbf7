"""Tables of addresses: how kernels read gradients that lie in no buffer, but where autograd left them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain, repeat
from math import prod
from operator import sub

import torch
from torch import Tensor

from .. import _native

__all__ = ["NO_GRADIENT", "address_table", "can_read_addresses", "table_of"]

NO_GRADIENT = 1  # in a table of addresses: there is no gradient.  (No address of a gradient is odd.)
ALIGNMENT = 16  # bytes


def can_read_addresses(device: torch.device) -> bool:
    """Tells whether the functions of :mod:`mt2o_ext.ops` can follow a table of addresses there.

    They can on the CPU and where kernels are compiled, but not while ``torch.compile`` traces: tensors have no address
    then.
    """
    return not torch.compiler.is_compiling() and (device.type == "cpu" or _native.available(device))


def address_table(
    gradients: Sequence[Sequence[Sequence[Tensor | None]]],
    offsets: Sequence[int],
    device: torch.device | None = None,
) -> Tensor:
    """Makes the argument ``addresses`` of the functions that read gradients, int64 [K, T, S].

    An entry says where column 0 of a flat row would be if the gradient were a part of one: the address of its first
    element, less ``offsets[s]`` elements.  So a column is found alike in a buffer and behind an address.

    The table keeps nothing alive: the tensors must stay as they are until the kernels that read them are done.

    Args:
        gradients: for each of K rows and each of T tasks the gradients of the S tensors: contiguous, all of one dtype,
            each of the size that the layout was planned for.  (This is not checked here.)  None: there is no gradient;
            it counts as zeros, and nothing is read.
        offsets: the first column of each tensor, from :func:`plan_layout`.
        device: that of the gradients, whose kernels read the table; None: the CPU.

    Raises:
        ValueError: if the gradients are on another device than the CPU and one of them does not begin at a multiple of
            16 bytes, which kernels there could not refuse.  (Those on the CPU do.)
    """
    size = next((g.element_size() for row in gradients for task in row for g in task if g is not None), 1)
    behind = [offset * size for offset in offsets]
    found = [0 if g is None else g.data_ptr() for row in gradients for task in row for g in task]
    shape = len(gradients), len(gradients[0]) if len(gradients) > 0 else 0, len(offsets)
    if device is not None and device.type != "cpu" and any(address % ALIGNMENT for address in found):
        raise ValueError(
            f"expected gradients that begin at multiples of {ALIGNMENT} bytes: copy (clone) those that do not"
        )
    return table_of(found, behind, shape, device)


def table_of(
    addresses: Sequence[int], behind: Sequence[int], shape: Sequence[int], device: torch.device | None = None
) -> Tensor:
    """The same table, of addresses that are known.

    Args:
        addresses: of K T S gradients, in this order; 0: there is none.  On another device than the CPU they are
            multiples of 16.
        behind: for each of the S tensors, the number of bytes from column 0 to its first one.
        shape: K, T, S.
        device: as of `address_table`.

    Raises:
        ValueError: for another number of gradients.
    """
    if len(addresses) != prod(shape) or len(behind) != shape[-1]:
        raise ValueError(
            f"expected addresses of {list(shape)} gradients, got {len(addresses)}: give one of each tensor"
        )
    each = chain.from_iterable(repeat(behind, len(addresses) // len(behind))) if behind else ()
    entries = array("q", map(sub, addresses, each))
    if 0 in addresses:
        for place, address in enumerate(addresses):
            if address == 0:
                entries[place] = NO_GRADIENT
    if not entries:
        return torch.empty(tuple(shape), dtype=torch.int64, device=device)
    table = torch.frombuffer(entries, dtype=torch.int64).view(tuple(shape))
    if device is None or device.type == "cpu":
        return table
    return table.pin_memory().to(device, non_blocking=True)
