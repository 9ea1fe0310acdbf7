"""The models of a front: their state dicts as a snapshot, and models made from them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..checks import check_index

__all__ = ["States", "checked_states", "restored"]

States: TypeAlias = "Sequence[Mapping[str, Tensor]]"
"""One state dict for each subproblem, or none at all."""


def checked_states(states: Sequence[Mapping[str, Any]], num_subproblems: int) -> States:
    """Return copies on the CPU, in the dtypes of the sources.

    Each copy has a storage of its own, so that saving one state dict writes its own size, however large the buffers
    are that the sources lie in. Sources that are one and the same memory (tied weights; a frozen trunk that all
    subproblems share) become one copy.
    """
    if len(states) not in (0, num_subproblems):
        raise ValueError(
            f"expected state dicts of {num_subproblems} subproblems, got {len(states)}: give one for each, or none"
        )
    copies: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}  # with the sources: their memory is not used anew
    return tuple(_copied(k, state, copies) for k, state in enumerate(states))


def _copied(
    k: int, state: Mapping[str, Any], copies: dict[tuple[Any, ...], tuple[Tensor, Tensor]]
) -> Mapping[str, Tensor]:
    if not isinstance(state, Mapping):
        raise TypeError(
            f"expected the state dict of subproblem {k} as a mapping from names to tensors, got "
            f"{type(state).__name__}: give model.state_dict()"
        )
    found: OrderedDict[str, Tensor] = OrderedDict()
    if hasattr(state, "_metadata"):  # the versions of the modules, which load_state_dict reads
        vars(found)["_metadata"] = copy.deepcopy(state._metadata)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"expected tensors in the state dict of subproblem {k}, got {type(tensor).__name__} at {name!r}: "
                "leave it out"
            )
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in copies:
            copies[place] = (tensor, tensor.detach().to("cpu", copy=True).contiguous())
        found[name] = copies[place][1]
    return found


def restored(states: States, k: int, template: nn.Module) -> nn.Module:
    """Return a copy of `template` that is subproblem `k`."""
    if not states:
        raise ValueError(
            "expected a front with models, got one without state dicts: make it with ParetoFront(..., states=...)"
        )
    if not isinstance(template, nn.Module):
        raise TypeError(
            f"expected template as an nn.Module, got {type(template).__name__}: give a model of the same architecture"
        )
    k = check_index("subproblem", k, len(states))
    model = copy.deepcopy(template)
    model.load_state_dict(states[k])
    return model
