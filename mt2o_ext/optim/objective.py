"""The objective of each subproblem: its scalarized losses, of which backward needs the coefficients only."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients.skipped import RefusedLosses
from ..scalarization import Linear, Scalarization

__all__ = ["Objective"]


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
        self.refused = None if scalarization is None else RefusedLosses(scalarization, num_rows)
        self._last: Tensor | None = None  # [K, T], inf: not known
        self._constant: tuple[Tensor, int, Tensor] | None = None  # preferences, their version, coefficients
        if scalarization is not None and scalarization.whole_table:
            self._last = torch.full((num_rows, num_tasks), torch.inf, dtype=torch.float64)

    @property
    def goes_by_losses(self) -> bool:
        """True if the coefficients depend on the losses."""
        return self.scalarization is not None and not isinstance(self.scalarization, Linear)

    def coefficients(self, losses: Tensor, preferences: Tensor, row: int | None) -> Tensor:
        """float64, like losses: the factors of the losses in the scalarized sum.

        Args:
            losses: float64 [T] of one subproblem, [K, T] of all.
            preferences: float64 [K, T].
            row: the subproblem; None: all.
        """
        if self.scalarization is None:
            return torch.ones_like(losses)
        if type(self.scalarization) is Linear and not torch.compiler.is_compiling():
            table = self._constants(self.scalarization, preferences)
            return table if row is None else table[row]
        if row is None:
            return self.scalarization.coefficients(losses, preferences)
        if self._last is None:
            return self.scalarization.coefficients(losses, preferences[row])
        return self.scalarization.coefficients_of_row(row, losses, preferences, self._last)

    def _constants(self, scalarization: Linear, preferences: Tensor) -> Tensor:
        """float64 [K, T], coefficients that no losses change (a step of losses that are not finite is not made)."""
        known = self._constant
        if known is None or known[0] is not preferences or known[1] != preferences._version:
            table = scalarization.coefficients(torch.zeros_like(preferences), preferences)
            known = self._constant = preferences, preferences._version, table
        return known[2]

    def see(self, losses: Tensor, row: int | None) -> None:
        """Notes the losses of a backward: those that the scalarization is not defined for, and the last ones.

        Arguments as of `coefficients`.
        """
        if self._last is not None:
            self._last = self._last.to(losses.device)
            self._last[slice(None) if row is None else row] = torch.where(losses.isnan(), torch.inf, losses)
        if self.refused is not None:
            self.refused.see(losses, row)

    def forget(self, row: int | None = None) -> None:
        """Forgets what was refused, in a row or in all."""
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
