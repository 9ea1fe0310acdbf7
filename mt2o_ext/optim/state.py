"""Optimizer state in torch's own form: tensors per parameter, which are views into the flat buffers.

``state_dict()`` has torch.optim's keys and shapes (with one subproblem, dicts go both ways), never the flat buffer.  Of
K > 1 subproblems every tensor has a leading dimension K, and the parameters of all of them are in it under
``subproblems``; float32 masters of 16-bit parameters are under ``master``.  What belongs to no parameter is under the
key of the optimizer's family.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from ..flat import FlatParameters
from .now import Now
from .rules import BaseRule

__all__ = ["StateInBuffers"]


class StateInBuffers(torch.optim.Optimizer):
    """The part of an optimizer that keeps ``self.state`` and the buffers one and the same."""

    _base: BaseRule
    _flat: list[FlatParameters]
    _groups: list[list[int]]  # for each buffer, the parameter group of each of its segments
    _stateless: list[list[int]]  # for each buffer, the segments whose state is not complete
    _moments: list[dict[str, str]]  # of each group
    _num_rows: int
    _stacked: bool
    _now: Now
    _copies: list[str]  # buffers that begin as copies of theta, also their keys in the state

    @property
    def _keeps_rows(self) -> bool:
        """True if the parameters show one of several rows, so that the state has to hold them all."""
        return self._num_rows > 1 and not self._stacked

    def _start_copies(self) -> None:
        for flat in self._flat:
            for name in self._copies:
                flat.buffer(name).copy_(flat.theta)

    def _rows_key(self, flat: FlatParameters) -> str | None:
        """State key of theta itself, where the parameters alone do not hold it."""
        if self._keeps_rows:
            return "subproblems"
        return None if flat.values is flat.theta else "master"

    def _view(self, flat: FlatParameters, buffer: Tensor, segment: int) -> Tensor:
        rows = flat.rows_of(buffer, segment)
        return rows if self._num_rows > 1 else rows[0] if not self._stacked else rows

    def _step_view(self, flat: FlatParameters, segment: int) -> Tensor:
        return flat.step[:, segment] if self._num_rows > 1 else flat.step[0, segment]

    # ------------------------------------------------------------------ views
    def _attach_rows(self) -> None:
        """Makes ``self.state`` views of what is there before the first step: all rows of theta, and its copies."""
        self._stateless = [list(range(len(flat.parameters))) for flat in self._flat]
        self._moments = [self._base.moments(group) for group in self.param_groups]
        if not self._keeps_rows:
            return
        for flat in self._flat:
            for segment, p in enumerate(flat.parameters):
                state = self.state[p]
                state["subproblems"] = self._view(flat, flat.theta, segment)
                for name in self._copies:
                    state[name] = self._view(flat, flat.buffer(name), segment)

    def _attach_state(self, moments: list[dict[str, str]]) -> None:
        """Makes ``self.state`` views of the buffers, for every parameter that has taken its first step.

        moments: of each group, state key -> buffer.
        """
        if moments != self._moments:  # a group has switched something on
            self._stateless = [list(range(len(flat.parameters))) for flat in self._flat]
            self._moments = moments
        for index, (flat, groups) in enumerate(zip(self._flat, self._groups, strict=True)):
            without = []
            for segment in self._stateless[index]:
                if any(filled[segment] for filled in flat.filled):
                    self._attach_one(flat, segment, moments[groups[segment]])
                else:
                    without.append(segment)
            self._stateless[index] = without

    def _attach_one(self, flat: FlatParameters, segment: int, moments: dict[str, str]) -> None:
        state = self.state[flat.parameters[segment]]
        if self._base.counts_steps or self._num_rows > 1:
            state.setdefault("step", self._step_view(flat, segment))
        for key, name in moments.items():
            if state.get(key) is None:
                state[key] = self._view(flat, flat.buffer(name), segment)
        for name in self._copies:
            if name not in state:
                state[name] = self._view(flat, flat.buffer(name), segment)
        rows_key = self._rows_key(flat)
        if rows_key and rows_key not in state:
            state[rows_key] = self._view(flat, flat.theta, segment)

    # ------------------------------------------------------------------ in and out
    def _export_state(self) -> dict[Tensor, dict[str, Any]]:
        return {p: dict(state) for p, state in self.state.items() if isinstance(p, Tensor)}

    def _import_state(self, values: dict[Tensor, dict[str, Any]]) -> None:
        """Copies state into the buffers and makes ``self.state`` views of them; what is not in it starts anew."""
        for flat, groups in zip(self._flat, self._groups, strict=True):
            flat.step.zero_()
            for buffer in flat.buffers.values():
                buffer.zero_()
            for segment, (p, group) in enumerate(zip(flat.parameters, groups, strict=True)):
                saved = values.get(p, {})
                self.state.pop(p, None)
                if state := self._import_one(flat, segment, self._base.moments(self.param_groups[group]), saved):
                    self.state[p] = state
        self._attach_rows()

    def _import_one(
        self, flat: FlatParameters, segment: int, moments: dict[str, str], saved: dict[str, Any]
    ) -> dict[str, Any]:
        state: dict[str, Any] = {}
        theta, rows_key = flat.rows_of(flat.theta, segment), self._rows_key(flat)
        if rows_key and rows_key in saved:
            flat.load_theta(segment, saved[rows_key], keep_values=not self._keeps_rows)
            state[rows_key] = self._view(flat, flat.theta, segment)
        names = {**moments, **{name: name for name in self._copies}}
        for key, name in names.items():
            if saved.get(key) is not None:
                state[key] = self._view(flat, flat.buffer(name), segment)
                state[key].copy_(saved[key])
            elif name in self._copies:
                flat.rows_of(flat.buffer(name), segment).copy_(theta)
        if "step" in saved:
            flat.step[:, segment] = torch.as_tensor(saved["step"], dtype=torch.float32).to(flat.device).reshape(-1)
            state["step"] = self._step_view(flat, segment)
        elif "momentum_buffer" in state:
            flat.step[:, segment] = 1  # torch.optim.SGD does not count: enough that the next step is not the first
        ours = {"step", "subproblems", "master", *names}
        state.update((key, value) for key, value in saved.items() if key not in ours and value is not None)
        return state

    # ------------------------------------------------------------------ torch.optim's interface
    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as plain tensors and numbers (copies, not views of the buffers).

        With one subproblem the dict is that of torch.optim's SGD, Adam or AdamW, and theirs can be loaded.
        """

        def complete(_: torch.optim.Optimizer, result: dict[str, Any]) -> None:
            result["state"] = {**_cloned(result["state"]), **self._export_shared()}

        handle = self.register_state_dict_post_hook(complete, prepend=True)  # the user's hooks see all of it
        try:
            return super().state_dict()
        finally:
            handle.remove()

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` gave; also a dict of torch.optim's SGD, Adam or AdamW, if there is one subproblem.

        Raises ValueError, before anything is changed, for a dict of another number of subproblems or another set of
        parameters.
        """
        final: dict[str, Any] = {}

        def check(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> None:
            self._check_state_dict(loaded)
            final.update(loaded)

        def import_(_: torch.optim.Optimizer) -> None:
            # torch casts state to the parameter's dtype, which would round float32 moments: take the dict's own.
            ids = [i for group in final["param_groups"] for i in group["params"]]
            values = {p: final["state"].get(i, {}) for i, (_, p) in zip(ids, self._parameters(), strict=True)}
            self.state = defaultdict(dict)
            self._import_state(values)
            self._import_shared(final["state"])

        # Ours come after the user's pre hooks, to see what those made of the dict, and before the user's post hooks.
        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(import_, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _export_shared(self) -> dict[str, Any]:
        """What is kept for no parameter in particular, under one key."""
        return {}

    def _import_shared(self, state: dict[Any, Any]) -> None:
        """Takes in what ``_export_shared`` gave."""

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        groups = self.param_groups
        sizes, expected_sizes = (
            [len(group["params"]) for group in groups_] for groups_ in (loaded["param_groups"], groups)
        )
        if sizes != expected_sizes:
            raise ValueError(f"expected the state of groups of {expected_sizes} parameters, got one of {sizes}")
        ids = [i for group in loaded["param_groups"] for i in group["params"]]
        for index, (i, (group, p)) in enumerate(zip(ids, self._parameters(), strict=True)):
            self._check_state(index, loaded["state"].get(i, {}), group, p)

    def _check_state(self, index: int, saved: dict[str, Any], group: dict[str, Any], p: Tensor) -> None:
        rows = (self._num_rows,) if self._keeps_rows else ()
        expected = dict.fromkeys(
            ("subproblems", "master", *self._base.moments(group), *self._copies), torch.Size((*rows, *p.shape))
        )
        expected["step"] = torch.Size((self._num_rows,) if self._num_rows > 1 else ())
        if rows and "subproblems" not in saved:
            raise ValueError(
                f"expected the parameters of {self._num_rows} subproblems (`subproblems`) for parameter {index}"
            )
        for key, shape in expected.items():
            if saved.get(key) is None:
                continue
            value = torch.as_tensor(saved[key])
            if value.shape != shape and not (key == "step" and value.numel() == shape.numel()):
                raise ValueError(
                    f"expected `{key}` of shape {list(shape)} for parameter {index} ({self._num_rows} subproblems), "
                    f"got {list(value.shape)}: the state belongs to another number of subproblems or another model"
                )

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the buffers are left out and made anew from ``state``."""
        left_out = {
            "_flat",
            "_groups",
            "_late_flags",
            "_tables",
            "_shown",
            "_stateless",
            "_zero_grad_profile_name",
            "step",
        }  # step: a scheduler's wrapper of it
        own = {key: value for key, value in self.__dict__.items() if key not in left_out and not key.endswith("_hooks")}
        own["_now"] = Now(row=self._now.row)
        own["state"] = {p: _cloned(state) for p, state in self.state.items()}
        return own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # dicts of torch.optim and of older versions lack some of our options
            for key, value in self.defaults.items():
                if key != "differentiable":  # which torch has just put there
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
