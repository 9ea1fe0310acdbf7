"""Descriptions that ranks compare: their digests, checksums of tensors, and the words for what differs."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from ..sharding import is_sharded

__all__ = ["checksums", "describe", "difference", "digest"]


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[int]:
    """For each tensor a number that is made from its bits, and is the same on all devices."""
    of_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [tensor.detach().view(of_size[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    found: list[int] = torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []
    return found


def describe(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parameter groups as `Ranks.agree` compares them."""
    of_groups, parameters = [], []
    for group in groups:
        plain = {key: value for key, value in group.items() if isinstance(value, (bool, int, float, str, tuple))}
        of_groups.append({**plain, "lr": float(group["lr"])} if "lr" in group else plain)
        names = group.get("param_names", [None] * len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            kind = {"shape": list(p.shape), "dtype": str(p.dtype), "requires_grad": p.requires_grad}
            if is_sharded(p):
                kind["placements"] = str(p.placements)
            parameters.append({"name": name, **kind} if name else kind)
    return {"number of parameters": len(parameters), "parameter": parameters, "parameter group": of_groups}


def digest(value: Any) -> int:
    """The same number on all ranks for the same plain value."""
    return int.from_bytes(blake2b(repr(value).encode(), digest_size=7).digest(), "little")


def difference(descriptions: dict[int, dict[str, Any]], me: int, argument: str) -> str:
    """The first thing in which descriptions differ, by rank; argument: the user's, that the ranks were given by."""
    failed = {rank: one["error"] for rank, one in descriptions.items() if "error" in one}
    if failed:
        return "; ".join(f"{_ranks([rank])} failed: {error}" for rank, error in failed.items())
    path, values = _descend("", descriptions)
    by_value: dict[str, list[int]] = {}
    for rank, value in values.items():
        by_value.setdefault(_text(value), []).append(rank)
    told = "; ".join(
        f"{_ranks(ranks)} {'has' if len(ranks) == 1 else 'have'} {value}" for value, ranks in by_value.items()
    )
    return (
        f"the ranks of {argument} differ in {path}: {told} (this is rank {me}). All ranks have to make the same "
        "optimizer for the same model, and the same calls"
    )


def _descend(path: str, values: dict[int, Any]) -> tuple[str, dict[int, Any]]:
    """The innermost values that differ, and where they are."""
    first = next(iter(values.values()))
    every = list(values.values())
    keys: Sequence[Any] = ()
    if all(isinstance(value, dict) for value in every):
        keys = list(dict.fromkeys(key for value in every for key in value))
    elif all(isinstance(value, list) and len(value) == len(first) for value in every):
        keys = range(len(first)) if any(isinstance(value, dict) for value in first) else ()
    for key in keys:
        inner = {rank: value.get(key) if isinstance(value, dict) else value[key] for rank, value in values.items()}
        if any(repr(value) != repr(inner[next(iter(inner))]) for value in inner.values()):
            return _descend(f"{path} {key}".strip() if path else str(key), inner)
    return path, values


def _text(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
