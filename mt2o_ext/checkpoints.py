"""Checkpoints that are whole or not there: written beside the last one, which takes its place at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import is_sharded

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "mt2o_ext.checkpoint/1"
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_MAPPINGS = (dict, OrderedDict, Counter)  # the types that torch.load(..., weights_only=True) makes of such


def save_checkpoint(path: str | os.PathLike[str], **objects: Any) -> None:
    """Writes a checkpoint; a process that is killed meanwhile leaves the one that was there before.

    The file is written under a temporary name in the same folder, brought to the disk, and renamed then.  (A killed
    process leaves a file ``<name>.<random>.partial``, which may be deleted.)  `load_checkpoint` runs no code of it when
    it reads it, and ``torch.load(path, weights_only=True)`` reads it as well.

        save_checkpoint("run.pt", model=model, optimizer=optimizer, scheduler=scheduler, epoch=epoch)

    With several ranks, state dicts of the optimizers with ``process_group=`` are the same on all: let one rank call
    this.  With ``subproblem_mesh=`` pass what ``whole_state_dict()`` has given the first rank.  Nobody waits for
    another rank here.  What is each rank's own (BatchNorm statistics, the state of a sampler) goes into files of each
    rank, with a name of its own.

    Args:
        path: of the file; one that is there is replaced.
        objects: anything with a ``state_dict()`` (a model, an optimizer, a scheduler, a scaler, a `WeightedBackward`),
            whose state dict is saved; and tensors, numbers, strings, and lists, tuples and dicts of these.

    Raises:
        TypeError: for anything else, in a state dict too: the error says where it is.  Nothing is written then.
        ValueError: if there is nothing to save.
        OSError: if the file cannot be written; the one before is left as it was.

    Example:
        >>> import os, tempfile
        >>> model, folder = torch.nn.Linear(2, 1), tempfile.mkdtemp()
        >>> mt2o_ext.save_checkpoint(os.path.join(folder, "run.pt"), model=model, epoch=3)
        >>> mt2o_ext.load_checkpoint(os.path.join(folder, "run.pt"))["epoch"]
        3
    """
    if not objects:
        raise ValueError("expected objects to save, got none: save_checkpoint(path, model=model, optimizer=optimizer)")
    content = {}
    for name, value in objects.items():
        has_state = callable(getattr(value, "state_dict", None))
        content[name] = value.state_dict() if has_state else value
        if has_state:
            _warn_of_part(content[name], name)
        _check(content[name], name)
    _write({"format": _FORMAT, "objects": content}, Path(path))


def load_checkpoint(path: str | os.PathLike[str], **objects: Any) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, without running any code of the file.

        epoch = load_checkpoint("run.pt", model=model, optimizer=optimizer)["epoch"]

    Args:
        path: of the file.
        objects: with a ``load_state_dict``, which is called with what was saved under that name, in this order.

    Returns:
        All that was saved, by name: state dicts and values, tensors on the CPU.

    Raises:
        TypeError: for an object without ``load_state_dict``, before anything is loaded.
        ValueError: for another file, one that is not whole, and names that are not in it, before anything is loaded.
    """
    for name, value in objects.items():
        if not callable(getattr(value, "load_state_dict", None)):
            raise TypeError(
                f"expected {name} with a load_state_dict(), got {type(value).__name__}: leave it out, and take it from "
                "the dict that load_checkpoint returns"
            )
    saved = _read(path)
    if missing := [name for name in objects if name not in saved]:
        raise ValueError(
            f"expected {missing[0]} in {os.fspath(path)}, got {sorted(saved)}: save it too, or leave it out"
        )
    for name, value in objects.items():
        value.load_state_dict(saved[name])
    return saved


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, "rb") as file:  # a file that is not there is an error of its own
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"expected a whole file of save_checkpoint, got {os.fspath(path)}, which cannot be read "
                f"({error!s:.200}): was it copied in part, or written by another program?"
            ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"expected a file in the format {_FORMAT!r}, got {os.fspath(path)}, which was not written by "
            "save_checkpoint: load another one"
        )
    saved: dict[str, Any] = content["objects"]
    return saved


def _write(content: dict[str, Any], path: Path) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # else the name may reach the disk before what it stands for
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Brings a new name to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _warn_of_part(state: Any, name: str) -> None:
    """Warns of a state of some of K subproblems, the others of which lie on other ranks."""
    groups = state.get("param_groups", ()) if isinstance(state, dict) else ()
    shared = [group["mt2o"] for group in groups if isinstance(group.get("mt2o"), dict)]
    for first, end, total in (one["share"] for one in shared if "share" in one):
        warnings.warn(
            f"save_checkpoint(..., {name}={name}) saves the subproblems {first} .. {end - 1} of {total}, those of this "
            f"rank. For all in one file pass {name}={name}.whole_state_dict(), which all ranks call and the first one "
            f"saves; for a file of each rank pass {name}={name}.state_dict()",
            UserWarning,
            stacklevel=3,
        )


def _check(value: Any, where: str) -> None:
    """Checks that ``torch.load(..., weights_only=True)`` reads a value.

    where: the way to it.
    """
    kind = type(value)
    if is_sharded(value):
        raise TypeError(
            f"expected whole tensors, got a shard at {where}: save sharded models with torch.distributed.checkpoint, "
            "which writes the shards of all ranks"
        )
    if kind in _MAPPINGS:
        _check_items(value, where)
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif kind not in (Tensor, nn.Parameter, *_PLAIN) and kind not in torch.serialization.get_safe_globals():
        raise TypeError(
            f"expected tensors, numbers, strings, and lists, tuples and dicts of these, got {kind.__module__}."
            f"{kind.__qualname__} at {where}: {_remedy(value)}"
        )


def _check_items(items: Mapping[Any, Any], where: str) -> None:
    for key, item in items.items():
        if type(key) not in _PLAIN and not isinstance(key, tuple):
            raise TypeError(f"expected keys as strings or numbers, got {type(key).__qualname__} at {where}: rename it")
        _check(item, f"{where}[{key!r}]")


def _remedy(value: Any) -> str:
    """The thing to do about a value that cannot be saved."""
    if isinstance(value, Sequence | Mapping):
        return f"make it a {'dict' if isinstance(value, Mapping) else 'list or tuple'} first"
    if isinstance(value, int | float | complex) or hasattr(value, "item"):
        return "make it a number first (value.item()), or a tensor"
    return "leave it out, or save what it is made of"
