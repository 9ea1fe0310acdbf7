"""State dicts of subproblems that several ranks share: the part of one rank, and the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..entries import ENTRIES
from ..ranks import SubproblemRanks
from .share import Share

__all__ = ["check_share", "own_part", "whole_of"]

PER_VERTEX = "grad_norm"  # of what a history has of vertices, the one thing that is not of their points


def check_share(shared: Any, share: Share) -> None:
    """Checks that a state is that of these subproblems.

    Raises:
        ValueError: for that of others.
    """
    given = shared.get("share") if isinstance(shared, dict) else None
    own = [share.own.start, share.own.stop, share.total]
    if given is None or list(given) == own:
        return
    here = f"this rank, which trains {share}" if share.is_part else f"all {share.total}"
    raise ValueError(
        f"expected the state of the subproblems of {here}, got that of {given[0]} .. {given[1] - 1} of {given[2]}: "
        "load what the same rank of as many ranks has saved, or save whole_state_dict(), which any number of ranks "
        "can load"
    )


# ---------------------------------------------------------------------- from the whole to a part
def own_part(loaded: Any, family: str, share: Share, *, vertices: bool) -> Any:
    """The part of a rank of a whole state dict, a new dict; what is no such dict is left to other checks.

    Args:
        loaded: a state dict.
        family: key of what belongs to no parameter.
        share: of the rank, of the subproblems (of vertices: of the points of a step).
        vertices: each parameter's state is of vertices, which all ranks have.
    """
    groups = loaded.get("param_groups") if isinstance(loaded, dict) else None
    if not share.is_part or not isinstance(groups, list) or not isinstance(loaded.get("state"), dict):
        return loaded
    whole = [isinstance(g, dict) and isinstance(g.get(family), dict) and "share" not in g[family] for g in groups]
    if not any(whole):
        return loaded
    state = loaded["state"]
    if not vertices:
        state = {i: _own_entries(own, share) if isinstance(own, dict) else own for i, own in state.items()}
    groups = [
        {**group, family: _own_shared(group[family], share, vertices=vertices)} if one else group
        for group, one in zip(groups, whole, strict=True)
    ]
    return {**loaded, "state": state, "param_groups": groups}


def _own_entries(own: dict[Any, Any], share: Share) -> dict[Any, Any]:
    return {key: _rows(value, share) if key in ENTRIES else value for key, value in own.items()}


def _rows(value: Any, share: Share) -> Any:
    """The rows of a rank of what has a row for each subproblem."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == share.total:
        return share.rows(value)
    return value


def _own_shared(shared: dict[str, Any], share: Share, *, vertices: bool) -> dict[str, Any]:
    own = dict(shared)
    if not vertices:
        own["skipped"] = _rows(own.get("skipped"), share)
        if isinstance(own.get("buffers"), list) and len(own["buffers"]) == share.total:
            own["buffers"] = own["buffers"][share.own.start : share.own.stop]
    if isinstance(own.get("weighting"), dict) and isinstance(own["weighting"].get("weighting"), dict):
        learned = {key: _rows(value, share) for key, value in own["weighting"]["weighting"].items()}
        own["weighting"] = {**own["weighting"], "weighting": learned}
    if isinstance(own.get("history"), dict):
        own["history"] = _history(own["history"], lambda ring: _rows(ring, share), vertices=vertices)
    return own


def _history(state: dict[str, Any], change: Callable[[Tensor], Tensor], *, vertices: bool) -> dict[str, Any]:
    """A state of the history with other rings [N, K, ...]; change: of a ring [K, N, ...]."""
    found = dict(state)
    for name in ("rings", "missing"):
        if isinstance(found.get(name), dict):
            found[name] = {
                key: change(ring.transpose(0, 1)).transpose(0, 1).contiguous()
                if isinstance(ring, Tensor) and ring.dim() > 1 and not (vertices and key == PER_VERTEX)
                else ring
                for key, ring in found[name].items()
            }
    return found


# ---------------------------------------------------------------------- from the parts to the whole
def whole_of(state: dict[str, Any], family: str, ranks: SubproblemRanks, *, vertices: bool) -> dict[str, Any] | None:
    """The state dict of one process that has all subproblems, on the first rank; None on the others.

    state: the rank's own dict, on which it is built.  Parameter after parameter travels, on the hosts.
    """
    ranks.agree({"call": "whole_state_dict()", "number of parameters": len(state["state"])})
    first, entries = ranks.place == 0, {}
    for i, own in state["state"].items():
        if vertices:
            entries[i] = own
        elif (parts := ranks.told_to_first({key: _on_host(value) for key, value in own.items()})) is not None:
            entries[i] = {key: _joined([part[key] for part in parts]) for key in own}
    groups = []
    for group in state["param_groups"]:
        if family in group:
            shared = ranks.told_to_first(_on_host(group[family]))
            group = {**group, family: None if shared is None else _joined_shared(shared, vertices=vertices)}
        groups.append(group)
    return {**state, "state": entries, "param_groups": groups} if first else None


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_host(one) for key, one in value.items()}
    return [_on_host(one) for one in value] if isinstance(value, (list, tuple)) else value


def _joined(parts: Sequence[Any]) -> Any:
    """The rows of all ranks one after the other; of what has no rows the first rank's."""
    there = [part for part in parts if isinstance(part, Tensor) and part.dim() > 0]
    return torch.cat(there) if len(there) == len(parts) else parts[0]


def _joined_shared(parts: list[dict[str, Any]], *, vertices: bool) -> dict[str, Any]:
    whole = {key: value for key, value in parts[0].items() if key != "share"}
    if not vertices:
        whole["skipped"] = _joined([part["skipped"] for part in parts])
        whole["buffers"] = [row for part in parts for row in part["buffers"]]
        if any("evaluated_buffers" in part for part in parts):
            whole["evaluated_buffers"] = _evaluated([part.get("evaluated_buffers", {}) for part in parts])
    if "weighting" in whole:
        learned = [part["weighting"]["weighting"] for part in parts]
        joined = {key: _joined([one[key] for one in learned]) for key in learned[0]}
        whole["weighting"] = {**whole["weighting"], "weighting": joined}
    if "history" in whole and all(part["history"]["rings"] for part in parts):
        histories = [iter(_rings(part["history"], vertices=vertices)) for part in parts]
        whole["history"] = _history(
            whole["history"], lambda ring: torch.cat([next(own) for own in histories]), vertices=vertices
        )
    return whole


def _rings(history: dict[str, Any], *, vertices: bool) -> list[Tensor]:
    """The rings [K, N, ...] in the order in which `_history` asks for them."""
    found: list[Tensor] = []

    def note(ring: Tensor) -> Tensor:
        found.append(ring)
        return ring

    _history(history, note, vertices=vertices)
    return found


def _evaluated(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The buffers that ranks have computed for their own subproblems."""
    found: dict[str, list[Any]] = {}
    for part in parts:
        for key, sets in part.items():
            before = found.get(key, [None] * len(sets))
            found[key] = [own if own is not None else one for own, one in zip(sets, before, strict=True)]
    return found
