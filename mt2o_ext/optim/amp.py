"""What ``torch.amp.GradScaler`` asks of an optimizer that divides by its factor inside of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .now import Now

__all__ = ["ScaledGradients"]


class ScaledGradients(torch.optim.Optimizer):
    """``scaler.step(optimizer)`` calls ``step`` with two attributes set: ``grad_scale`` and ``found_inf``.

    The scaler looks for infinities in ``.grad``.  Gradients that lie in buffers only it does not see: it is told what
    the step itself found, before ``scaler.update()`` asks.  That needs the scaler itself, so ``backward`` takes it.
    """

    _step_supports_amp_scaling = True
    _now: Now

    def _scale(self, losses: list[Tensor], scaler: Any) -> list[Tensor]:
        """The losses times the scaler's factor."""
        if scaler is None or not scaler.is_enabled():
            return losses
        self._now.scaler = scaler
        return [scaler.scale(loss) for loss in losses]

    @property
    def _under_scaler(self) -> bool:
        """True within ``scaler.step(optimizer)``."""
        return hasattr(self, "found_inf")

    def _factor(self, device: torch.device) -> Tensor | None:
        """float32 [1], what the gradients have still to be divided by."""
        scale = getattr(self, "grad_scale", None)
        return None if scale is None else scale.to(device, torch.float32).reshape(1)

    def _remembered_factor(self, device: torch.device) -> Tensor | None:
        """The same of gradients that nobody but ``step`` can have unscaled."""
        if self._now.scaler is None:
            return self._factor(device)
        factor = self._factor(device)
        one = torch.ones(1, dtype=torch.float32, device=device)
        return self._now.scaler.scale(one) if factor is None else factor

    def _with_infinities(self, found: Tensor) -> Tensor:
        """found, float32 [K], with what the scaler has found in ``.grad``."""
        other = getattr(self, "found_inf", None)
        return torch.maximum(found, other.to(found).reshape(1)) if isinstance(other, Tensor) else found

    def _check_scaler(self) -> None:
        """Raises RuntimeError where the scaler could not be told what the step finds."""
        if self._under_scaler and not isinstance(self.found_inf, Tensor) and self._now.scaler is None:  # type: ignore[attr-defined]
            raise RuntimeError(
                "scaler.step(optimizer) needs the scaler at backward already: optimizer.backward(losses, scaler=scaler)"
            )

    def _check_not_unscaled(self) -> None:
        """Raises RuntimeError where the scaler has divided the ``.grad`` of one of several rows."""
        if self._under_scaler and self.grad_scale is None:  # type: ignore[attr-defined]
            raise RuntimeError(
                "scaler.unscale_(optimizer) sees the gradients of one subproblem only: divide each by "
                "scaler.get_scale() in the loop, and call optimizer.step(), or leave it to scaler.step(optimizer)"
            )

    def _tell_scaler(self, found: Tensor) -> None:
        if self._under_scaler and self._now.scaler is not None:
            # There is no public way to report what was found outside of `.grad`.
            self._now.scaler._found_inf_per_device(self)[found.device] = found.amax()
        self._now.scaler = None
