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

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..base import BaseRule
from ..entries import ENTRIES, check_entry
from ..sharding import like_parameter, local_values
from .buffers import Buffers
from .flat import FlatParameters

__all__ = ["StateViews", "cloned"]

State = dict[Any, Any]  # ``optimizer.state``
Groups = Sequence[dict[str, Any]]  # ``optimizer.param_groups``


class StateViews:
    """Keeps ``optimizer.state`` and the buffers one and the same.

    Args:
        buffers: of the optimizer.
        base: its base rule.
        copies: names of buffers that begin as copies of theta; also their keys in the state.
    """

    def __init__(self, buffers: Buffers, base: BaseRule, copies: Sequence[str]) -> None:
        self._buffers = buffers
        self._base = base
        self._copies = list(copies)
        self._stateless: list[list[int]] = []  # for each buffer, the segments whose state is not complete
        self._moments: list[dict[str, str]] = []  # of each group
        self._attached: dict[Tensor, dict[str, Any]] = {}  # of each parameter, the views that ``state`` was given
        self._seen: list[Any] | None = None  # all that ``state`` held when it was last found to be these

    def holds(self, p: Tensor) -> bool:
        """True if a parameter has views here, so that it was in the buffers."""
        return p in self._attached

    @property
    def shows_any(self) -> bool:
        """True if the state shows anything."""
        return any(self._attached.values())

    def start_copies(self) -> None:
        """Lets the copies begin where theta is."""
        for flat in self._buffers.flats:
            for name in self._copies:
                flat.buffer(name).copy_(flat.theta)

    def _rows_key(self, flat: FlatParameters) -> str | None:
        """State key of theta itself, where the parameters alone do not hold it."""
        if self._buffers.rows_key is not None:
            return self._buffers.rows_key
        return None if flat.values is flat.theta else "master"

    def _local_view(self, flat: FlatParameters, buffer: Tensor, segment: int) -> Tensor:
        rows = flat.rows_of(buffer, segment)
        return rows if self._buffers.leads or self._buffers.stacked else rows[0]

    def _view(self, flat: FlatParameters, buffer: Tensor, segment: int) -> Tensor:
        """The place of a parameter in a buffer as the state shows it: of a DTensor, a DTensor."""
        return like_parameter(flat.parameters[segment], self._local_view(flat, buffer, segment))

    def _step_view(self, flat: FlatParameters, segment: int) -> Tensor:
        return flat.step[:, segment] if self._buffers.leads else flat.step[0, segment]

    # ------------------------------------------------------------------ views
    def attach_rows(self, state: State, groups: Groups) -> None:
        """Makes ``state`` views of what is there before the first step: all rows of theta, and its copies."""
        flats = self._buffers.flats
        self._stateless = [list(range(len(flat.parameters))) for flat in flats]
        self._moments = [self._base.moments(group) for group in groups]
        self._attached = {}
        self._seen = None
        for flat in flats:
            for segment, p in enumerate(flat.parameters):
                if self._buffers.rows_key is not None:
                    self._attach_row(state, flat, segment)
                self._remember(state, p)

    def _attach_row(self, state: State, flat: FlatParameters, segment: int) -> None:
        own = state.setdefault(flat.parameters[segment], {})
        assert self._buffers.rows_key is not None
        own[self._buffers.rows_key] = self._view(flat, flat.theta, segment)
        for name in self._copies:
            own[name] = self._view(flat, flat.buffer(name), segment)

    def _remember(self, state: State, p: Tensor) -> None:
        """Notes what stands in the state of a parameter, to see at the next step what somebody else did to it."""
        if not torch.compiler.is_compiling():  # else the next step takes its own views in, which changes nothing
            self._seen = None
            self._attached[p] = {key: value for key, value in state.get(p, {}).items() if key in ENTRIES}

    def attach(self, state: State, moments: list[dict[str, str]], reached: Sequence[Sequence[bool]]) -> None:
        """Makes ``state`` views of the buffers, for every parameter that has taken its first step.

        moments: of each group, state key -> buffer.  reached: for each buffer, the parameters with a gradient.
        """
        if moments != self._moments:  # a group has switched something on
            self._stateless = [list(range(len(flat.parameters))) for flat in self._buffers.flats]
            self._moments = moments
        for index, (flat, groups) in enumerate(zip(self._buffers.flats, self._buffers.groups, strict=True)):
            without = []
            for segment in self._stateless[index]:
                if reached[index][segment]:
                    self._attach_one(state, flat, segment, moments[groups[segment]])
                else:
                    without.append(segment)
            self._stateless[index] = without

    def attach_all(self, state: State, groups: Groups) -> None:
        """The same for every parameter in the buffers, also without a step: zeros, where nothing was learned."""
        moments = [self._base.moments(group) for group in groups]
        for flat, of_segments in zip(self._buffers.flats, self._buffers.groups, strict=True):
            for segment, group in enumerate(of_segments):
                self._attach_one(state, flat, segment, moments[group])

    def _attach_one(self, state: State, flat: FlatParameters, segment: int, moments: dict[str, str]) -> None:
        leads = self._buffers.leads
        own = state.setdefault(flat.parameters[segment], {})
        if self._base.counts_steps or leads:
            own.setdefault("step", self._step_view(flat, segment))
        for key, name in moments.items():
            if own.get(key) is None:
                own[key] = self._view(flat, flat.buffer(name), segment)
        for key in () if leads else self._base.shown:
            own.setdefault(key, None)
        for name in self._copies:
            if name not in own:
                own[name] = self._view(flat, flat.buffer(name), segment)
        rows_key = self._rows_key(flat)
        if rows_key and rows_key not in own:
            own[rows_key] = self._view(flat, flat.theta, segment)
        self._remember(state, flat.parameters[segment])

    # ------------------------------------------------------------------ what others did to the state
    def read(self, state: Any, groups: Groups) -> None:
        """Takes in what was done to ``state`` since the last step, as torch.optim would.

        What is missing starts anew, and what was replaced counts.  (The rows of K subproblems are parameters: without
        their entry they stay.)  Compares identities only.

        Raises:
            TypeError: for an entry of another kind, before anything is changed.
            ValueError: for an entry of another shape or out of range, before anything is changed.
        """
        if not isinstance(state, dict):
            raise TypeError(f"expected optimizer.state as a dict, got {type(state).__name__}")
        states = state.values()
        plain = set(map(type, states)) <= {dict}
        shown = [*states, *chain.from_iterable(map(dict.values, states))] if plain else []
        if self._seen is not None and plain and len(shown) == len(self._seen) and all(map(is_, shown, self._seen)):
            return
        nothing = dict[str, Any]()
        changed = {p for p, own in self._attached.items() if not _same(state.get(p, nothing), own)}
        if not changed:
            self._seen = shown
            return
        group_of = {p: group for group in groups for p in group["params"]}
        found = []
        for index, flat in enumerate(self._buffers.flats):
            for segment, p in enumerate(flat.parameters):
                if p in changed and p in group_of:
                    found.append((index, segment, group_of[p], self._changes(state, p, group_of[p])))
        with torch.no_grad():
            for index, segment, group, changes in found:
                self._take_changes(state, index, segment, group, changes)
            for index in {index for index, *_ in found}:
                self._buffers.flats[index].rows_loaded()

    def _changes(self, state: State, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor | None]:
        """The entries of a parameter's state that are not the ones they were; None: missing."""
        shown, own = state.get(p, {}), self._attached[p]
        if not isinstance(shown, dict):
            raise TypeError(f"expected optimizer.state[p] as a dict, got {type(shown).__name__}")
        changes: dict[str, Tensor | None] = {}
        for key, shape in self.expected(group, p).items():
            value = shown.get(key)
            if value is not own.get(key):
                where = f"a parameter of shape {list(p.shape)}"
                changes[key] = None if value is None else check_entry(key, value, shape, where).detach().clone()
        return changes  # copies: a value may be the view of another parameter's

    def _take_changes(
        self, state: State, index: int, segment: int, group: dict[str, Any], changes: dict[str, Tensor | None]
    ) -> None:
        flat = self._buffers.flats[index]
        p, buffers = flat.parameters[segment], self._buffers_of(group)
        own = state.setdefault(p, {})
        for key, value in changes.items():
            if value is not None:
                own[key] = self._take(flat, segment, key, buffers, value)
            else:
                own.pop(key, None)
                self._start_anew(flat, segment, key, buffers)
        if self._buffers.rows_key is not None:
            self._attach_row(state, flat, segment)
        missing = any(value is None for value in changes.values())
        if missing and segment not in self._stateless[index]:
            self._stateless[index].append(segment)
        self._remember(state, p)

    def _buffers_of(self, group: dict[str, Any]) -> dict[str, str]:
        """State key -> buffer, of a parameter in this group."""
        return {**self._base.moments(group), **{name: name for name in self._copies}}

    def _take(self, flat: FlatParameters, segment: int, key: str, buffers: dict[str, str], value: Tensor) -> Tensor:
        """Copies one entry into the buffers; the view of them that the state shows."""
        if key == "step":
            flat.step[:, segment] = value.to(flat.step).reshape(-1)
            return self._step_view(flat, segment)
        if key == self._rows_key(flat):
            local = local_values(flat.parameters[segment], value)
            flat.load_theta(segment, local, keep_values=self._buffers.rows_key is None)
            return self._view(flat, flat.theta, segment)
        buffer = flat.buffer(buffers[key])
        self._local_view(flat, buffer, segment).copy_(local_values(flat.parameters[segment], value))
        if key in self._base.counted_by:  # torch.optim.SGD does not count: enough that the next step is not the first
            flat.step[:, segment].clamp_(min=1)
        return self._view(flat, buffer, segment)

    def _start_anew(self, flat: FlatParameters, segment: int, key: str, buffers: dict[str, str]) -> None:
        if key == self._rows_key(flat):
            if self._buffers.rows_key is None:
                flat.load_theta(segment, flat.rows_of(flat.values, segment), keep_values=False)
        elif key in self._copies:
            flat.rows_of(flat.buffer(key), segment).copy_(flat.rows_of(flat.theta, segment))
        elif key in buffers and buffers[key] in flat.buffers:
            flat.rows_of(flat.buffers[buffers[key]], segment).zero_()
        if key in ("step", *self._base.counted_by):  # without its buffer, SGD's next step is the first
            flat.step[:, segment] = 0

    # ------------------------------------------------------------------ in
    def import_(self, state: State, values: dict[Tensor, dict[str, Any]], groups: Groups) -> None:
        """Copies state into the buffers and makes ``state`` views of them; what is not in it starts anew."""
        for flat, of_segments in zip(self._buffers.flats, self._buffers.groups, strict=True):
            flat.step.zero_()
            for buffer in flat.buffers.values():
                buffer.zero_()
            for segment, (p, group) in enumerate(zip(flat.parameters, of_segments, strict=True)):
                saved = values.get(p, {})
                state.pop(p, None)
                if own := self._import_one(flat, segment, groups[group], saved):
                    state[p] = own
            flat.rows_loaded()
        self.attach_rows(state, groups)

    def _import_one(
        self, flat: FlatParameters, segment: int, group: dict[str, Any], saved: dict[str, Any]
    ) -> dict[str, Any]:
        own: dict[str, Any] = {}
        buffers, rows_key = self._buffers_of(group), self._rows_key(flat)
        for key in [*([rows_key] if rows_key else []), *buffers, "step"]:  # first the rows, which copies begin from
            if saved.get(key) is not None:
                value = torch.as_tensor(saved[key], dtype=torch.float32 if key == "step" else None)
                own[key] = self._take(flat, segment, key, buffers, value)
            elif key in self._copies:
                self._start_anew(flat, segment, key, buffers)
        for key in self._base.shown:
            if key in saved:
                own.setdefault(key, None)
        ours = {"step", "subproblems", "vertices", "master", *buffers}
        own.update((key, value) for key, value in saved.items() if key not in ours and value is not None)
        return own

    # ------------------------------------------------------------------ checks
    def expected(self, group: dict[str, Any], p: Tensor) -> dict[str, torch.Size]:
        """The entries that the state of a parameter may have, and their shapes; first the rows, last the counter."""
        num_rows = self._buffers.num_trained
        rows_key = self._buffers.rows_key
        rows = () if rows_key is None else (num_rows,)
        rows_key = rows_key or ("master" if p.dtype.itemsize == 2 else None)
        keys = [*([rows_key] if rows_key else []), *self._buffers_of(group)]
        step = torch.Size((num_rows,) if self._buffers.leads else ())
        shape = p.shape[1:] if rows and self._buffers.stacked else p.shape
        return {**dict.fromkeys(keys, torch.Size((*rows, *shape))), "step": step}

    def check_entries(self, shown: Any, group: dict[str, Any], p: Tensor) -> None:
        """Checks that a state is one that this parameter can have.

        Raises:
            TypeError: for anything but a dict, and for an entry of another kind.
            ValueError: for an entry of another shape or out of range.
        """
        if not isinstance(shown, dict):
            raise TypeError(f"expected optimizer.state[p] as a dict, got {type(shown).__name__}")
        for key, shape in self.expected(group, p).items():
            if shown.get(key) is not None:
                check_entry(key, shown[key], shape, f"a parameter of shape {list(p.shape)}")


def _same(shown: Any, own: dict[str, Any]) -> bool:
    """True if a state still is the tensors that it was given (in any case if these are all, in their order)."""
    return isinstance(shown, dict) and len(shown) == len(own) and all(map(is_, shown.values(), own.values()))


def cloned(state: Any) -> Any:
    """A copy of a state with tensors of its own, also in dicts and lists."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: cloned(value) for key, value in state.items()}
    if isinstance(state, list):
        return [cloned(value) for value in state]
    return state
