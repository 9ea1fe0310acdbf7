"""Buffers of the user's model (BatchNorm statistics, mostly) that go with its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..checks import check_list
from ..ranks import Ranks, SubproblemRanks

__all__ = ["ModelBuffers"]

Rows = list[list[Tensor]]


class ModelBuffers:
    """The buffers of one model, kept for each row that the model shows in turn.

    They are few and small: they are copied in and out.

    Args:
        buffers: as ``model.buffers()`` gives them.
        num_rows: K, the rows that keep buffers of their own while they are trained; 1: all share those of the model.
        num_subproblems: the models that can be evaluated.

    Attributes:
        shown: the model's own.
        evaluated: for each subproblem the buffers of its averaged (key "ema") or mixed (key "theta") parameters, or
            None where nobody has computed them.
    """

    def __init__(self, buffers: Iterable[Tensor], num_rows: int, num_subproblems: int) -> None:
        self.shown = check_list("buffers=", buffers, "pass model.buffers()")
        if any(not isinstance(buffer, Tensor) for buffer in self.shown):
            raise TypeError("expected buffers= as tensors, got other things: pass model.buffers()")
        self._first = self._copied()  # as they were before the first step
        self._rows: Rows = [self._copied() for _ in range(num_rows)]
        self.evaluated: dict[str, list[list[Tensor] | None]] = {
            key: [None] * num_subproblems for key in ("theta", "ema")
        }

    def share(self, ranks: Ranks) -> None:
        """Takes the first rank's values on all ranks."""
        shapes = [{"shape": list(buffer.shape), "dtype": str(buffer.dtype)} for buffer in self.shown]
        ranks.agree({"call": "buffers=", "number of buffers": len(shapes), "buffer": shapes})
        ranks.share_(self.shown)
        self._first = self._copied()
        self._rows = [self._copied() for _ in self._rows]

    def _copied(self) -> list[Tensor]:
        return [buffer.detach().clone() for buffer in self.shown]

    def _of(self, row: int) -> list[Tensor]:
        return self._rows[min(row, len(self._rows) - 1)]

    @torch.no_grad()
    def store(self, row: int) -> None:
        """Keeps the model's buffers as those of a row."""
        for kept, buffer in zip(self._of(row), self.shown, strict=True):
            kept.copy_(buffer)

    @torch.no_grad()
    def show(self, row: int) -> None:
        """Gives the model the buffers of a row."""
        for kept, buffer in zip(self._of(row), self.shown, strict=True):
            buffer.copy_(kept)

    @torch.no_grad()
    def show_evaluated(self, key: str, k: int) -> None:
        """Gives the model the buffers that were computed for subproblem k, if they were."""
        for kept, buffer in zip(self.evaluated[key][k] or (), self.shown, strict=False):
            buffer.copy_(kept)

    def keep_evaluated(self, key: str, k: int) -> None:
        """Keeps the model's buffers as those that were computed for subproblem k."""
        self.evaluated[key][k] = self._copied()

    def gather_evaluated(self, key: str, ranks: SubproblemRanks) -> None:
        """Takes what the ranks have computed for their own subproblems, on all of them."""
        own = [None if kept is None else [buffer.cpu() for buffer in kept] for kept in self.evaluated[key]]
        for place, told in enumerate(ranks.told_by_all(own)):
            for k, kept in enumerate(told):
                if kept is not None and place != ranks.place:
                    pairs = zip(kept, self.shown, strict=True)
                    self.evaluated[key][k] = [buffer.to(shown) for buffer, shown in pairs]

    def shows_those_of_steps(self) -> bool:
        """True if the model has the buffers that the steps have left, and these have changed in the steps.

        Reads values on the host.
        """
        kept = self._rows[0]
        changed = not all(map(torch.equal, kept, (first.to(own) for first, own in zip(self._first, kept, strict=True))))
        return changed and all(torch.equal(buffer, own) for buffer, own in zip(self.shown, kept, strict=True))

    def forget_evaluated(self) -> None:
        """Drops what was computed for subproblems, which are others now."""
        for key, sets in self.evaluated.items():
            self.evaluated[key] = [None] * len(sets)

    # ------------------------------------------------------------------ state
    def state_dict(self, row: int) -> dict[str, Any]:
        """Copies of all buffers; row: the one whose buffers the model shows."""
        rows = [[buffer.clone() for buffer in kept] for kept in self._rows]
        rows[min(row, len(rows) - 1)] = self._copied()
        evaluated = {
            key: [None if kept is None else [buffer.clone() for buffer in kept] for kept in sets]
            for key, sets in self.evaluated.items()
            if any(kept is not None for kept in sets)
        }
        return {"buffers": rows, **({"evaluated_buffers": evaluated} if evaluated else {})}

    def check(self, state: dict[str, Any]) -> None:
        """Checks what `state_dict` gave.

        Raises:
            TypeError: for anything but lists of tensors of real numbers.
            ValueError: for other numbers of rows or other shapes, and for NaN.
        """
        self._check_rows(state.get("buffers"), len(self._rows))
        evaluated = state.get("evaluated_buffers", {})
        if not isinstance(evaluated, dict) or not evaluated.keys() <= self.evaluated.keys():
            raise TypeError(
                f"expected `evaluated_buffers` as a dict with {list(self.evaluated)}, got {evaluated!r:.80}"
            )
        for key, sets in evaluated.items():
            expected = len(self.evaluated[key])
            if not isinstance(sets, (list, tuple)) or len(sets) != expected:
                raise TypeError(f"expected `evaluated_buffers` of {expected} subproblems, got {sets!r:.80}")
            there = [kept for kept in sets if kept is not None]
            self._check_rows(there, len(there))

    def _check_rows(self, rows: Any, num_rows: int) -> None:
        expected = [[list(buffer.shape) for buffer in self.shown]] * num_rows
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in rows):
            raise TypeError(f"expected `buffers` as a list of those of each subproblem, got {rows!r:.80}")
        for buffer in (buffer for row in rows for buffer in row):
            if not isinstance(buffer, Tensor) or buffer.is_complex() or buffer.device.type == "meta":
                raise TypeError(f"expected model buffers as tensors of real numbers with values, got {buffer!r:.80}")
            if buffer.is_floating_point() and bool(buffer.isnan().any()):
                raise ValueError("expected model buffers as numbers, got NaN")
        shapes = [[list(buffer.shape) for buffer in row] for row in rows]
        if shapes != expected:
            got = shapes[0] if shapes else shapes
            wanted = expected[0] if expected else expected
            raise ValueError(f"expected model buffers of shapes {wanted}, got {got}: pass the same buffers=")

    @torch.no_grad()
    def load(self, state: dict[str, Any], row: int) -> None:
        """Takes over what `check` has found right."""
        rows = state["buffers"]
        for kept, saved in zip([*self._rows, self.shown], [*rows, rows[min(row, len(rows) - 1)]], strict=True):
            for buffer, value in zip(kept, saved, strict=True):
                buffer.copy_(value)
        given = state.get("evaluated_buffers", {})
        for key, own in self.evaluated.items():
            sets = given.get(key, [None] * len(own))
            self.evaluated[key] = [
                None
                if kept is None
                else [value.to(buffer).clone() for value, buffer in zip(kept, self.shown, strict=True)]
                for kept in sets
            ]
