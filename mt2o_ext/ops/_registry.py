"""Common parts of all families: the choice between compiled and reference, fakes, version counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .. import _native


def register_fake(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a shape check as the fake of an operator that returns nothing, if the operator exists.

    Without CUDA kernels, tensors on a GPU get an error that says so; the functions of :mod:`mt2o_ext.ops` do not come
    there, they run on the reference.
    """

    def register(check: Callable[..., None]) -> Callable[..., None]:
        if _native.C is not None:
            torch.library.register_fake(f"mt2o_ext::{name}", check)
            if _native.C_cuda is None:
                torch.library.impl(f"mt2o_ext::{name}", "cuda", _refuse)
        return check

    return register


def _refuse(*arguments: object, **options: object) -> None:
    raise RuntimeError(_native.without_cuda())


def compiled(tensor: Tensor) -> bool:
    """True if compiled kernels take this tensor."""
    return _native.available(tensor.device)


def check_addresses(addresses: Tensor | None, grads: Tensor, name: str, segments: int | None = None) -> None:
    """Checks the shape of a table of addresses, for fakes."""
    if addresses is not None:
        torch._check(
            addresses.dim() == 3
            and addresses.shape[:2] == grads.shape[:2]
            and (segments is None or addresses.shape[2] == segments),
            lambda: f"addresses must be [K, T, S] where {name} are {list(grads.shape)}, not {list(addresses.shape)}",
        )


def check_masks(masks: Tensor, tasks: int, columns: int) -> None:
    """Checks the shape of a table of masks, for fakes."""
    expected = (tasks, -(-columns // 8))
    torch._check(masks.shape == expected, lambda: f"masks must be {list(expected)}, not {list(masks.shape)}")


def changed(tensors: Iterable[Tensor | None]) -> None:
    """Tells autograd that tensors were written to.

    An operator from C++ does not do so itself, and a later backward through an overwritten value would be silently
    wrong.
    """
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([tensor for tensor in tensors if tensor is not None])
