"""Optimizer state in torch's own form: tensors per parameter, which are views into the flat buffers.

``state_dict()`` has torch.optim's keys and shapes (with one subproblem, dicts go both ways), never the flat buffer.  Of K > 1
subproblems every tensor has a leading dimension K, and the parameters of all of them are in it under ``subproblems``; float32
masters of 16-bit parameters are under ``master``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from ..flat import FlatParameters
from .rules import BaseRule

__all__ = ["StateInBuffers"]


class StateInBuffers(torch.optim.Optimizer):
    """The part of an optimizer that keeps ``self.state`` and the buffers one and the same."""

    _base: BaseRule
    _flat: list[FlatParameters] | None
    _groups: list[list[dict[str, Any]]]
    _num_rows: int
    _stacked: bool

    def _named_buffers(self, group: dict[str, Any]) -> dict[str, str]:
        """State key -> buffer, of everything that is kept for a parameter of this group."""
        return self._base.moments(group)

    @property
    def _keeps_rows(self) -> bool:
        """True if the parameters show one of several rows, so that the state has to hold them all."""
        return self._num_rows > 1 and not self._stacked

    def _rows_key(self, flat: FlatParameters) -> str | None:
        """State key of theta itself, where the parameters alone do not hold it."""
        if self._keeps_rows:
            return "subproblems"
        return None if flat.values is flat.theta else "master"

    def _view(self, flat: FlatParameters, buffer: Tensor, segment: int) -> Tensor:
        rows = flat.rows_of(buffer, segment)
        return rows if self._stacked or self._keeps_rows else rows[0]

    def _attach_state(self) -> None:
        """Makes ``self.state`` views of the buffers, for every parameter that has taken a step."""
        for flat, groups in zip(self._flat or [], self._groups, strict=True):
            for segment, (p, group) in enumerate(zip(flat.parameters, groups, strict=True)):
                stepped = any(filled[segment] for filled in flat.filled)
                if not stepped and not self._keeps_rows:
                    continue
                state = self.state[p]
                rows_key = self._rows_key(flat)
                if rows_key and rows_key not in state:
                    state[rows_key] = self._view(flat, flat.theta, segment)
                if not stepped:
                    continue
                if self._base.counts_steps and "step" not in state:
                    state["step"] = flat.step[0, segment] if self._num_rows == 1 else flat.step[:, segment]
                for key, name in self._named_buffers(group).items():
                    if key not in state:
                        state[key] = self._view(flat, flat.buffer(name), segment)

    # ------------------------------------------------------------------ in and out
    def _export_state(self) -> dict[Tensor, dict[str, Any]]:
        return {p: dict(state) for p, state in self.state.items() if isinstance(p, Tensor)}

    def _import_state(self, values: dict[Tensor, dict[str, Any]]) -> None:
        """Copies state into the buffers and makes ``self.state`` views of them."""
        for flat, groups in zip(self._flat or [], self._groups, strict=True):
            for segment, (p, group) in enumerate(zip(flat.parameters, groups, strict=True)):
                saved = values.get(p)
                self.state.pop(p, None)
                if saved:
                    self.state[p] = self._import_one(flat, segment, group, saved)
        self._attach_state()

    def _import_one(
        self, flat: FlatParameters, segment: int, group: dict[str, Any], saved: dict[str, Any]
    ) -> dict[str, Any]:
        state: dict[str, Any] = {}
        names = self._named_buffers(group)
        for key, value in saved.items():
            if key == "step":
                flat.step[:, segment] = torch.as_tensor(value, dtype=torch.float32).to(flat.device).reshape(-1)
                state[key] = flat.step[0, segment] if self._num_rows == 1 else flat.step[:, segment]
            elif key == self._rows_key(flat):
                flat.load_theta(segment, value, keep_values=not self._keeps_rows)
                state[key] = self._view(flat, flat.theta, segment)
            elif key in names and value is not None:
                view = self._view(flat, flat.buffer(names[key]), segment)
                view.copy_(value)
                state[key] = view
            elif key not in ("subproblems", "master") and value is not None:
                state[key] = value
        if not self._base.counts_steps and "momentum_buffer" in state:
            flat.step[:, segment].clamp_(min=1)  # the next step is not the first
        return state

    # ------------------------------------------------------------------ torch.optim's interface
    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as plain tensors and numbers (copies, not views of the buffers).

        With one subproblem the dict is that of torch.optim's SGD, Adam or AdamW, and theirs can be loaded.
        """
        result = super().state_dict()
        result["state"] = {key: _cloned(value) for key, value in result["state"].items()}
        return result

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` gave; also a dict of torch.optim's SGD, Adam or AdamW, if there is one subproblem.

        Raises ValueError, before anything is changed, for a dict of another number of subproblems or another set of
        parameters.
        """
        final: dict[str, Any] = {}

        def capture(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> None:
            self._check_state_dict(loaded)
            final.update(loaded)

        def import_(_: torch.optim.Optimizer) -> None:
            # torch casts state to the parameter's dtype, which would round float32 moments to 16 bits: take the dict's own.
            ids = [i for group in final["param_groups"] for i in group["params"]]
            values = {p: final["state"].get(i, {}) for i, (_, p) in zip(ids, self._parameters(), strict=True)}
            self._groups_changed()
            self._import_state(values)
            self._import_shared(final["state"])

        # Ours come after the user's pre hooks, to see what those have made of the dict, and before the user's post hooks.
        handles = [
            self.register_load_state_dict_pre_hook(capture),
            self.register_load_state_dict_post_hook(import_, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _import_shared(self, state: dict[Any, Any]) -> None:
        """Takes in what is kept for no parameter in particular."""

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        ids = [i for group in loaded["param_groups"] for i in group["params"]]
        parameters = self._parameters()
        if len(ids) != len(parameters):
            raise ValueError(f"expected the state of {len(parameters)} parameters, got one of {len(ids)}")
        for index, (i, (group, p)) in enumerate(zip(ids, parameters, strict=True)):
            lead = (self._num_rows,) if self._keeps_rows else ()
            known = {"step", "subproblems", "master", *self._named_buffers(group)}
            for key, value in loaded["state"].get(i, {}).items():
                expected = (*lead, *p.shape) if key != "step" else () if self._num_rows == 1 else (self._num_rows,)
                shape = tuple(torch.as_tensor(value).shape) if value is not None else expected
                if key in known and shape != expected and not (key == "step" and shape == (1,) and expected == ()):
                    raise ValueError(
                        f"expected `{key}` of shape {list(expected)} for parameter {index} ({self._num_rows} subproblems), got "
                        f"{list(shape)}: the state belongs to another number of subproblems or another model"
                    )
            if lead and "subproblems" not in loaded["state"].get(i, {}):
                raise ValueError(
                    f"expected the parameters of {self._num_rows} subproblems (`subproblems`) for parameter {index}"
                )

    def _groups_changed(self) -> None:
        """Loading has replaced the dicts of the groups."""
        position = {id(p): group for group, p in self._parameters()}
        self._groups = [[position[id(p)] for p in flat.parameters] for flat in self._flat or []]

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the buffers are left out and made anew from ``state``."""
        left_out = {"_flat", "_groups"}
        hooks = {name for name in self.__dict__ if name.endswith("_hooks") or name == "_zero_grad_profile_name"}
        own = {key: value for key, value in self.__dict__.items() if key not in left_out | hooks}
        own["state"] = {p: _cloned(state) for p, state in self.state.items()}
        return own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # dicts of torch.optim and of older versions lack some of our options
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        if "_num_rows" in state:  # unpickled or copied; load_state_dict comes by here with two keys only
            self.state = defaultdict(dict, self.state)
            kept = self._export_state()
            self._build()
            self._import_state(kept)

    def _build(self) -> None:
        raise NotImplementedError


def _cloned(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _cloned(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_cloned(value) for value in state]
    return state
