"""Optimizer state in torch's own form: tensors per parameter, which are views into the flat buffers.

``state_dict()`` has torch.optim's keys and shapes (with one subproblem, dicts go both ways), never the flat buffer.  Of
K > 1 subproblems every tensor has a leading dimension K, and the parameters of all of them are in it under
``subproblems``; float32 masters of 16-bit parameters are under ``master``.  What belongs to no parameter is under the
key of the optimizer's family in the first parameter group, where torch's distributed state dicts carry it along.

``optimizer.state`` shows views of the buffers.  What others do to it is taken in before the next step: a missing entry
starts anew (zero moments, a counter of 0, a running average where the parameter is), another tensor is copied in.  Only
``subproblems`` cannot be missed: the K models are parameters, they stay.  Where ``master`` does not round to the
parameter, the parameter counts.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..base import BaseRule
from ..flat import FlatParameters
from .entries import ENTRIES, check_entry
from .now import Now

__all__ = ["StateInBuffers", "cloned"]


class StateInBuffers(torch.optim.Optimizer):
    """The part of an optimizer that keeps ``self.state`` and the buffers one and the same."""

    _base: BaseRule
    _flat: list[FlatParameters]
    _groups: list[list[int]]  # for each buffer, the parameter group of each of its segments
    _stateless: list[list[int]]  # for each buffer, the segments whose state is not complete
    _attached: dict[Tensor, dict[str, Any]]  # of each parameter in a buffer, the views that ``self.state`` was given
    _seen: list[Any] | None  # all that ``self.state`` held when it was last found to be these
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
        self._attached = {}
        self._seen = None
        for flat in self._flat:
            for segment, p in enumerate(flat.parameters):
                if self._keeps_rows:
                    self._attach_row(flat, segment)
                self._remember(p)

    def _attach_row(self, flat: FlatParameters, segment: int) -> None:
        state = self.state.setdefault(flat.parameters[segment], {})
        state["subproblems"] = self._view(flat, flat.theta, segment)
        for name in self._copies:
            state[name] = self._view(flat, flat.buffer(name), segment)

    def _remember(self, p: Tensor) -> None:
        """Notes what stands in the state of a parameter, to see at the next step what somebody else did to it."""
        if not torch.compiler.is_compiling():  # else the next step takes its own views in, which changes nothing
            self._seen = None
            self._attached[p] = {key: value for key, value in self.state.get(p, {}).items() if key in ENTRIES}

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

    def _attach_all(self) -> None:
        """The same for every parameter in the buffers, also without a step: zeros, where nothing was learned."""
        moments = [self._base.moments(group) for group in self.param_groups]
        for flat, groups in zip(self._flat, self._groups, strict=True):
            for segment, group in enumerate(groups):
                self._attach_one(flat, segment, moments[group])

    def _attach_one(self, flat: FlatParameters, segment: int, moments: dict[str, str]) -> None:
        state = self.state.setdefault(flat.parameters[segment], {})
        if self._base.counts_steps or self._num_rows > 1:
            state.setdefault("step", self._step_view(flat, segment))
        for key, name in moments.items():
            if state.get(key) is None:
                state[key] = self._view(flat, flat.buffer(name), segment)
        for key in self._base.shown if self._num_rows == 1 else ():
            state.setdefault(key, None)
        for name in self._copies:
            if name not in state:
                state[name] = self._view(flat, flat.buffer(name), segment)
        rows_key = self._rows_key(flat)
        if rows_key and rows_key not in state:
            state[rows_key] = self._view(flat, flat.theta, segment)
        self._remember(flat.parameters[segment])

    # ------------------------------------------------------------------ what others did to the state
    def _read_state(self) -> None:
        """Takes in what was done to ``self.state`` since the last step, as torch.optim would: what is missing starts
        anew, what was replaced counts.  (The rows of K subproblems are parameters: without their entry they stay.)

        Compares identities only.  Raises TypeError or ValueError, before anything is changed, for what fits no entry.
        """
        if not isinstance(self.state, dict):
            raise TypeError(f"expected optimizer.state as a dict, got {type(self.state).__name__}")
        states = self.state.values()
        plain = set(map(type, states)) <= {dict}
        shown = [*states, *chain.from_iterable(map(dict.values, states))] if plain else []
        if self._seen is not None and plain and len(shown) == len(self._seen) and all(map(is_, shown, self._seen)):
            return
        get, nothing = self.state.get, dict[str, Any]()
        changed = {p for p, own in self._attached.items() if not _same(get(p, nothing), own)}
        if not changed:
            self._seen = shown
            return
        groups = {p: group for group, p in self._parameters()}
        found = []
        for index, flat in enumerate(self._flat):
            for segment, p in enumerate(flat.parameters):
                if p in changed and p in groups:
                    found.append((index, segment, groups[p], self._changes(p, groups[p])))
        with torch.no_grad():
            for index, segment, group, changes in found:
                self._take_changes(index, segment, group, changes)

    def _changes(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor | None]:
        """The entries of a parameter's state that are not the ones they were; None: missing."""
        shown, own = self.state.get(p, {}), self._attached[p]
        if not isinstance(shown, dict):
            raise TypeError(f"expected optimizer.state[p] as a dict, got {type(shown).__name__}")
        changes: dict[str, Tensor | None] = {}
        for key, shape in self._expected(group, p).items():
            value = shown.get(key)
            if value is not own.get(key):
                where = f"a parameter of shape {list(p.shape)}"
                changes[key] = None if value is None else check_entry(key, value, shape, where).detach().clone()
        return changes  # copies: a value may be the view of another parameter's

    def _take_changes(self, index: int, segment: int, group: dict[str, Any], changes: dict[str, Tensor | None]) -> None:
        flat = self._flat[index]
        p, buffers = flat.parameters[segment], self._buffers(group)
        state = self.state.setdefault(p, {})
        for key, value in changes.items():
            if value is not None:
                state[key] = self._take(flat, segment, key, buffers, value)
            else:
                state.pop(key, None)
                self._start_anew(flat, segment, key, buffers)
        if self._keeps_rows:
            self._attach_row(flat, segment)
        missing = any(value is None for value in changes.values())
        if missing and segment not in self._stateless[index]:
            self._stateless[index].append(segment)
        self._remember(p)

    def _buffers(self, group: dict[str, Any]) -> dict[str, str]:
        """State key -> buffer, of a parameter in this group."""
        return {**self._base.moments(group), **{name: name for name in self._copies}}

    def _take(self, flat: FlatParameters, segment: int, key: str, buffers: dict[str, str], value: Tensor) -> Tensor:
        """Copies one entry into the buffers; the view of them that the state shows."""
        if key == "step":
            flat.step[:, segment] = value.to(flat.step).reshape(-1)
            return self._step_view(flat, segment)
        if key == self._rows_key(flat):
            flat.load_theta(segment, value, keep_values=not self._keeps_rows)
            return self._view(flat, flat.theta, segment)
        view = self._view(flat, flat.buffer(buffers[key]), segment)
        view.copy_(value)
        if key in self._base.counted_by:  # torch.optim.SGD does not count: enough that the next step is not the first
            flat.step[:, segment].clamp_(min=1)
        return view

    def _start_anew(self, flat: FlatParameters, segment: int, key: str, buffers: dict[str, str]) -> None:
        if key == self._rows_key(flat):
            if not self._keeps_rows:
                flat.load_theta(segment, flat.rows_of(flat.values, segment), keep_values=False)
        elif key in self._copies:
            flat.rows_of(flat.buffer(key), segment).copy_(flat.rows_of(flat.theta, segment))
        elif key in buffers and buffers[key] in flat.buffers:
            flat.rows_of(flat.buffers[buffers[key]], segment).zero_()
        if key in ("step", *self._base.counted_by):  # without its buffer, SGD's next step is the first
            flat.step[:, segment] = 0

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
                if state := self._import_one(flat, segment, group, saved):
                    self.state[p] = state
        self._attach_rows()

    def _import_one(self, flat: FlatParameters, segment: int, group: int, saved: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        buffers, rows_key = self._buffers(self.param_groups[group]), self._rows_key(flat)
        for key in [*([rows_key] if rows_key else []), *buffers, "step"]:  # first the rows, which copies begin from
            if saved.get(key) is not None:
                value = torch.as_tensor(saved[key], dtype=torch.float32 if key == "step" else None)
                state[key] = self._take(flat, segment, key, buffers, value)
            elif key in self._copies:
                self._start_anew(flat, segment, key, buffers)
        for key in self._base.shown:
            if key in saved:
                state.setdefault(key, None)
        ours = {"step", "subproblems", "master", *buffers}
        state.update((key, value) for key, value in saved.items() if key not in ours and value is not None)
        return state

    def _expected(self, group: dict[str, Any], p: Tensor) -> dict[str, torch.Size]:
        """The entries that the state of a parameter may have, and their shapes; first the rows, last the counter."""
        rows = (self._num_rows,) if self._keeps_rows else ()
        rows_key = "subproblems" if rows else "master" if p.dtype.itemsize == 2 else None
        keys = [*([rows_key] if rows_key else []), *self._buffers(group)]
        step = torch.Size((self._num_rows,) if self._num_rows > 1 else ())
        return {**dict.fromkeys(keys, torch.Size((*rows, *p.shape))), "step": step}

    def _check_entries(self, shown: Any, group: dict[str, Any], p: Tensor) -> None:
        """Raises TypeError or ValueError unless a state is one that this parameter can have."""
        if not isinstance(shown, dict):
            raise TypeError(f"expected optimizer.state[p] as a dict, got {type(shown).__name__}")
        for key, shape in self._expected(group, p).items():
            if shown.get(key) is not None:
                check_entry(key, shown[key], shape, f"a parameter of shape {list(p.shape)}")

    def _read_shown(self) -> None:
        """Takes in what others did to the state and to the groups since the last step."""
        raise NotImplementedError

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        raise NotImplementedError

    def _build(self) -> None:
        raise NotImplementedError


def _same(shown: Any, own: dict[str, Any]) -> bool:
    """True if a state still is the tensors that it was given (in any case if these are all, in their order)."""
    return isinstance(shown, dict) and len(shown) == len(own) and all(map(is_, shown.values(), own.values()))


def cloned(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: cloned(value) for key, value in state.items()}
    if isinstance(state, list):
        return [cloned(value) for value in state]
    return state
