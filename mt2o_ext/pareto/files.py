"""Files of fronts: tensors and strings, which `torch.load(..., weights_only=True)` reads."""

from __future__ import annotations

import os
from typing import Any

import torch

__all__ = ["read", "write"]

_FORMAT = "mt2o_ext.ParetoFront/2"
_FIELDS = ("losses", "preferences", "reference", "task_names", "metrics", "states")


def write(front: Any, path: str | os.PathLike[str]) -> None:
    """Writes the fields of a front with `torch.save`."""
    content = {name: getattr(front, name) for name in _FIELDS}
    # Plain lists, which every reader of tensors knows.
    content |= {"task_names": list(front.task_names), "states": list(front.states)}
    torch.save({"format": _FORMAT, **content}, path)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the fields, running no code from the file; raise ValueError for any other content."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"expected a file in the format {_FORMAT!r}, got {os.fspath(path)}, which was not written by "
            "ParetoFront.save: load another one"
        )
    return {name: content[name] for name in _FIELDS}
