"""Learning of a weighting that may have to be taken back, and learning from what comes after the step."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..device import capturing
from ..weighting import Needs, Weighting

__all__ = ["Feedback", "Undo"]


class Undo:
    """Takes back what a weighting has learned from losses whose step is not made."""

    def __init__(self, weighting: Weighting) -> None:
        self._weighting = weighting
        self._before: dict[str, Tensor] | None = None

    def remember(self, device: torch.device) -> None:
        """Notes what the weighting knows, until `forget`."""
        self._before = self._weighting.state_dict()
        if capturing(device):  # which changes the state in place
            self._before = {key: tensor.clone() for key, tensor in self._before.items()}

    def undo(self) -> None:
        """Restores what was noted, if anything was."""
        if self._before is not None:
            self._weighting.load_state_dict(self._before)
            self._before = None

    def undo_where(self, skipped: Tensor) -> None:
        """The same where this tensor is not zero, which the host need not know."""
        if self._before:
            now, missed = self._weighting.state_dict(), skipped.amax() != 0
            self._weighting.load_state_dict({key: torch.where(missed, self._before[key], now[key]) for key in now})
        self._before = None

    def forget(self) -> None:
        """Keeps what was learned."""
        self._before = None

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: a copy keeps what was learned."""
        return {**self.__dict__, "_before": None}


class Feedback:
    """The losses of one mini-batch before and after a step, from which a weighting learns.

    Attributes:
        losses: float64 [K, T], of the last step until there was feedback, or None; NaN where it was skipped.
    """

    def __init__(self, weighting: Weighting) -> None:
        self._weighting = weighting
        self._warned = False
        self.losses: Tensor | None = None
        self._present: Tensor | None = None

    def expect(self, losses: Tensor | None, present: Tensor | None) -> None:
        """Waits for the losses after a step.

        losses: of the step just made, which feedback belongs to.  present: int64 [P], its tasks; None: all.
        """
        missed = not torch.compiler.is_compiling() and self.losses is not None and not self._warned
        if missed and Needs.FEEDBACK in self._weighting.needs:
            self._warned = True
            warnings.warn(
                f"{self._weighting!r} learns from the losses of each mini-batch after the step, and there was no "
                "feedback(losses) between the last two steps: without it, it learns nothing. After each step, call "
                "feedback(losses) with the losses of the same mini-batch, computed anew",
                UserWarning,
                stacklevel=5,
            )
        self.losses, self._present = losses, present

    def check(self) -> Tensor:
        """The losses of the last step, which feedback belongs to.

        Raises:
            RuntimeError: if the weighting learns nothing from feedback, or there was no step with losses.
        """
        if Needs.FEEDBACK not in self._weighting.needs:
            raise RuntimeError(
                f"expected a weighting that learns from feedback, got {type(self._weighting).__name__}, which "
                "learns nothing from it: leave the call out"
            )
        if self.losses is None:
            raise RuntimeError(
                "expected feedback(losses) after a step with losses, got it before one: call it after step()"
            )
        return self.losses

    def learn(self, after: Tensor) -> None:
        """after: losses of the last mini-batch, float64, after the step."""
        before = self.check()
        self._weighting.after_step(before, after.reshape(before.shape), self._present)
        self.losses = None
