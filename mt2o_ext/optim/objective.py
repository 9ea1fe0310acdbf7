"""The objective of each subproblem: its scalarized losses, of which backward needs the coefficients only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..device import capturing, to_device
from ..gradients.skipped import RefusedLosses
from ..scalarization import Linear, Scalarization
from ..weighting.present import selected_share, widened

__all__ = ["Objective"]


class _Ready(NamedTuple):
    """Factors for one backward of each row.

    preferences: that they are of.  key: their dtype, the number that multiplies them, the version of the preferences.
    table: [K, T].  taken: the rows that have had theirs (None: of all at once).
    """

    preferences: Tensor
    key: tuple[torch.dtype, int, int]
    table: Tensor
    taken: set[int | None]


class Objective:
    """Coefficients of the losses in the scalarized sum.

    Args:
        scalarization: of losses and preferences, or None: the losses as they are, a weighting has the preferences.
        num_rows: K, the number of subproblems.
        num_tasks: T.

    Attributes:
        refused: the losses of a step that the scalarization is not defined for, or None.
    """

    def __init__(self, scalarization: Scalarization | None, num_rows: int, num_tasks: int) -> None:
        self.scalarization = scalarization
        self._num_tasks = num_tasks
        self._narrowed: dict[frozenset[int], tuple[Tensor, Scalarization | None]] = {}
        self.refused = None if scalarization is None else RefusedLosses(scalarization, num_rows)
        self._last: Tensor | None = None  # [K, T], inf: not known
        self._ready: _Ready | None = None
        if scalarization is not None and scalarization.whole_table:
            self._last = torch.full((num_rows, num_tasks), torch.inf, dtype=torch.float64)

    @property
    def goes_by_losses(self) -> bool:
        """True if the coefficients depend on the losses."""
        return self.scalarization is not None and not isinstance(self.scalarization, Linear)

    @property
    def reads_losses(self) -> bool:
        """True if anything of this object asks for the values of the losses, in backward."""
        return self.scalarization is not None and (not self._is_constant or torch.compiler.is_compiling())

    @property
    def _is_constant(self) -> bool:
        return type(self.scalarization) is Linear

    def factors(
        self,
        losses: Tensor | None,
        preferences: Tensor,
        row: int | None,
        absent: frozenset[int] = frozenset(),
        *,
        dtype: torch.dtype,
        times: int = 1,
    ) -> Tensor | None:
        """The coefficients for a backward, [T] of one subproblem, [K, T] of all; None: there is no scalarization.

        Nobody else has the tensor: autograd may hand it on as the gradient of a parameter, which others write to.

        Args:
            losses: as of `coefficients`; None where `reads_losses` says that nobody reads them.
            preferences: as of `coefficients`.
            row: as of `coefficients`.
            absent: as of `coefficients`.
            dtype: of the result.
            times: multiplies the coefficients.
        """
        if self.scalarization is None:
            return None
        if losses is None and not absent:
            return self._constant_factors(preferences, row, dtype, times)
        if losses is None:
            losses = preferences.new_zeros(self._num_tasks)
        found = self.coefficients(losses, preferences, row, absent)
        return (found * times if times != 1 else found).to(dtype, copy=True)

    def _constant_factors(self, preferences: Tensor, row: int | None, dtype: torch.dtype, times: int) -> Tensor:
        """The same of coefficients that no losses change: made once for all rows, which take theirs once each."""
        assert isinstance(self.scalarization, Linear)
        ready, key = self._ready, (dtype, times, preferences._version)
        captured = capturing(preferences.device)  # a replay has to find the preferences of its time
        if ready is None or ready.key != key or ready.preferences is not preferences or row in ready.taken or captured:
            table = self.scalarization.weights(preferences)
            if times == 1:
                table = table.to(dtype, copy=True)
            else:  # multiplied in float64, and rounded once
                table = torch.mul(table, times, out=torch.empty_like(table, dtype=dtype))
            ready = _Ready(preferences, key, table, set())
            self._ready = None if captured else ready
        ready.taken.add(row)
        return ready.table if row is None else ready.table[row]

    def coefficients(
        self, losses: Tensor, preferences: Tensor, row: int | None, absent: frozenset[int] = frozenset()
    ) -> Tensor:
        """float64, like losses: the factors of the losses in the scalarized sum.

        Args:
            losses: float64 [T] of one subproblem, [K, T] of all.
            preferences: float64 [K, T].
            row: the subproblem; None: all.
            absent: tasks without a loss (in losses of one subproblem).  Their coefficients are 0; the others are those
                that they would be without these tasks, with preferences in the same proportions; 0 where the
                subproblem prefers absent tasks only.
        """
        if absent and row is not None:
            present, scalarization = self._of_others(absent, losses.device)
            shares, last = selected_share(preferences, present), None if self._last is None else self._last[:, present]
            found = _coefficients(scalarization, losses[present], shares, row, last)
            some = preferences[row].index_select(0, present).sum() > 0
            return widened(torch.where(some, found, 0.0), present, self._num_tasks)
        return _coefficients(self.scalarization, losses, preferences, row, self._last)

    def _of_others(self, absent: frozenset[int], device: torch.device) -> tuple[Tensor, Scalarization | None]:
        """int64 [P], the tasks that have a loss, and the scalarization of these."""
        if absent not in self._narrowed or self._narrowed[absent][0].device != device:
            there = [task for task in range(self._num_tasks) if task not in absent]
            narrow = None if self.scalarization is None else self.scalarization.of_tasks(there)
            self._narrowed[absent] = to_device(torch.tensor(there, dtype=torch.int64), device), narrow
        return self._narrowed[absent]

    def see(self, losses: Tensor | None, row: int | None, absent: frozenset[int] = frozenset()) -> None:
        """Notes the losses of a backward: those that the scalarization is not defined for, and the last ones.

        Arguments as of `factors`.
        """
        if losses is None:
            return
        present = self._of_others(absent, losses.device)[0] if absent else None
        if self._last is not None:
            self._last = self._last.to(losses.device)
            known = torch.where(losses.isnan(), torch.inf, losses)
            if present is None:
                self._last[slice(None) if row is None else row] = known
            else:
                self._last[row, present] = known[present]
        if self.refused is not None:
            self.refused.see(losses, row, present)

    def forget(self, row: int | None = None) -> None:
        """Forgets what was refused, in a row or in all."""
        self._ready = None
        if self.refused is not None:
            self.refused.forget(row)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Tensor]:
        """The last losses of all subproblems, where the scalarization looks at them."""
        return {} if self._last is None else {"last_losses": self._last.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave; without it nothing is known of the other subproblems."""
        if self._last is not None:
            last = state.get("last_losses")
            self._last = torch.full_like(self._last, torch.inf) if last is None else last.to(self._last).clone()


def _coefficients(
    scalarization: Scalarization | None, losses: Tensor, preferences: Tensor, row: int | None, last: Tensor | None
) -> Tensor:
    """The factors of losses [T] of one subproblem or [K, T] of all; ``last``: those of all that are known."""
    if scalarization is None:
        return torch.ones_like(losses)
    if row is None:
        return scalarization.coefficients(losses, preferences)
    if last is None:
        return scalarization.coefficients(losses, preferences[row])
    return scalarization.coefficients_of_row(row, losses, preferences, last)
