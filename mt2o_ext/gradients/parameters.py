"""Checks of the parameters that an optimizer over flat buffers can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..sharding import is_sharded, local_of

__all__ = ["check_memory", "check_parameters"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_parameters(
    tensors: Sequence[Any], device: torch.device | None, num_rows: int | None, *, whole: str | None = None
) -> None:
    """Checks that these tensors can be optimized.

    Args:
        tensors: dense, float32, float64, bfloat16 or float16.
        device: where the other parameters are; None: there are no others.
        num_rows: K, where every parameter has a leading dimension K; None elsewhere.
        whole: why parameters must not be sharded; None: they may be DTensors.

    Raises:
        TypeError: for anything but such tensors, and for parameters that are sharded where they must not be.
        ValueError: for parameters without values, on different devices, expanded, without the leading dimension, or
            given twice.
    """
    for p in tensors:
        if not isinstance(p, Tensor):
            raise TypeError(f"expected tensors to optimize, got {type(p).__name__}")
        if is_sharded(p):
            _check_shard(p, "the slices of a bank are models of their own" if num_rows is not None else whole)
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise ValueError(
                "expected initialized parameters, got a lazy one: run the model once before making the optimizer"
            )
        if p.layout != torch.strided or p.dtype not in DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise TypeError(f"expected dense parameters of {names}, got {p.dtype} with layout {p.layout}")
        if p.device.type == "meta" or (device is not None and p.device != device):
            expected = "a real device" if device is None else str(device)
            raise ValueError(
                f"expected all parameters on one device, {expected}, got one on {p.device}; move the model first"
            )
        if any(stride == 0 and size > 1 for stride, size in zip(p.stride(), p.shape, strict=True)):
            raise ValueError(
                f"expected parameters with an element of memory for each of theirs, got an expanded one of shape "
                f"{list(p.shape)}: clone() it"
            )
        device = p.device
        if num_rows is not None and (p.dim() < 1 or p.shape[0] != num_rows):
            raise ValueError(
                f"expected parameters with a leading dimension {num_rows} (num_subproblems) for stacked=True, got one "
                f"of shape {list(p.shape)}: make them with SubproblemBank"
            )
    if len(set(map(id, tensors))) < len(tensors):
        raise ValueError("expected every parameter once, got one twice in the same group")


def _check_shard(p: Any, whole: str | None) -> None:
    if whole is not None:
        raise TypeError(
            f"expected parameters that lie in this process whole, because {whole}, got one of type {type(p).__name__}: "
            "for data parallelism leave the model as it is and pass process_group=True; a model that is sharded by "
            "FSDP2 (fully_shard) or tensor parallelism takes WeightedFused, MT2OFused of one model, or WeightedBackward"
        )
    if any(placement.is_partial() for placement in p.placements):
        raise TypeError(f"expected parameters that are sharded or replicated, got one of placements {p.placements}")
    if p.device.type not in ("meta", p.device_mesh.device_type):
        raise ValueError(
            f"expected shards on the device of their mesh, {p.device_mesh.device_type}, got one on {p.device}: leave "
            "the offload_policy= of fully_shard out"
        )


def check_memory(parameters: Sequence[Tensor]) -> None:
    """Checks that no two parameters have elements in common.

    Raises:
        ValueError: if two of them have.
    """
    reaching: list[Tensor] = []  # may reach beyond the start of the next one
    here = map(local_of, parameters)
    for p in sorted((p for p in here if p.numel() > 0), key=Tensor.data_ptr):
        reaching = [other for other in reaching if _end(other) > p.data_ptr()]
        for other in reaching:
            if bool(torch.isin(_addresses(p), _addresses(other)).any()):
                raise ValueError(
                    f"expected parameters with memory of their own, got two of shapes {list(other.shape)} and "
                    f"{list(p.shape)} that share memory: tie weights by using one nn.Parameter in both places"
                )
        reaching.append(p)


def _end(p: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    return p.data_ptr() + (last + 1) * p.element_size()


def _addresses(p: Tensor) -> Tensor:
    """The address of every element."""
    span = (_end(p) - p.data_ptr()) // p.element_size()
    return (
        p.data_ptr()
        + p.element_size() * torch.arange(span, dtype=torch.int64).as_strided(p.shape, p.stride()).flatten()
    )
