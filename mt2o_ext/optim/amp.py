"""The factor of a ``torch.amp.GradScaler``, which an optimizer divides by inside of its step.

``scaler.step(optimizer)`` calls ``step`` with two attributes set: ``grad_scale`` and ``found_inf``.  The scaler looks
for infinities in ``.grad``.  Gradients that lie elsewhere it does not see: it is told what the step itself found,
before ``scaler.update()`` asks.  That needs the scaler itself, so ``backward`` takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..gradients.skipped import NONFINITE, OF_WEIGHTED_SUM
from ..ranks import SubproblemRanks

__all__ = ["Scaling"]


class Scaling(NamedTuple):
    """The scaler's part in one step.

    under_scaler: the step is called by ``scaler.step(optimizer)``.
    grad_scale: one number, what gradients in ``.grad`` have still to be divided by, or None.
    found_inf: one number, not zero if the scaler has found an infinity in ``.grad``, or None.
    scaler: the one that ``backward`` was given, or None.
    """

    under_scaler: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None
    scaler: Any

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, scaler: Any) -> Scaling:
        """The scaling of the step that begins."""
        found = getattr(optimizer, "found_inf", None)
        return cls(
            hasattr(optimizer, "found_inf"),
            getattr(optimizer, "grad_scale", None),
            found if isinstance(found, Tensor) else None,
            scaler,
        )

    def factor(self, device: torch.device) -> Tensor | None:
        """float32 [1], what gradients in ``.grad`` have still to be divided by, or None."""
        return None if self.grad_scale is None else self.grad_scale.to(device, torch.float32).reshape(1)

    def kept_factor(self, device: torch.device) -> Tensor | None:
        """The same of gradients that nobody but the step can have unscaled."""
        factor = self.factor(device)
        if self.scaler is None or factor is not None:
            return factor
        return self.scaler.scale(torch.ones(1, dtype=torch.float32, device=device))

    def with_infinities(self, found: Tensor) -> Tensor:
        """found, float32 [K], with what the scaler has found in ``.grad``."""
        return found if self.found_inf is None else torch.maximum(found, self.found_inf.to(found).reshape(1))

    def found(self, nothing: Callable[[], Tensor]) -> Tensor | None:
        """The same of what nobody has looked at yet; None: there is no scaler that has."""
        return None if self.found_inf is None else self.with_infinities(nothing())

    def check_known(self) -> None:
        """Checks that the scaler can be told what the step finds.

        Raises:
            RuntimeError: if it could not.
        """
        if self.under_scaler and self.found_inf is None and self.scaler is None:
            raise RuntimeError(
                "scaler.step(optimizer) needs the scaler at backward already: optimizer.backward(losses, scaler=scaler)"
            )

    def check_shared(self, argument: str) -> None:
        """Checks that the scaler can be told what other ranks find; argument: that these were given by.

        Raises:
            RuntimeError: if it could not.
        """
        if self.under_scaler and self.scaler is None:
            raise RuntimeError(
                f"with {argument} a scaler has to know what other ranks find: optimizer.backward(losses, scaler=scaler)"
            )

    def check_not_unscaled(self) -> None:
        """Checks that the scaler has not divided the ``.grad`` of one of several rows.

        Raises:
            RuntimeError: if it has.
        """
        if self.under_scaler and self.grad_scale is None:
            raise RuntimeError(
                "scaler.unscale_(optimizer) sees the gradients of one subproblem only: divide each by "
                "scaler.get_scale() in the loop, and call optimizer.step(), or leave it to scaler.step(optimizer)"
            )

    def tell(self, optimizer: torch.optim.Optimizer, found: Tensor, peers: SubproblemRanks | None = None) -> None:
        """Tells the scaler what the step found, float32 [K]: whether a gradient was infinite or NaN.

        peers: the ranks with other subproblems, whose scalers go by what any of them finds; or None.
        """
        if self.under_scaler and self.scaler is not None:
            largest = infinite(found).amax()
            # There is no public way to report what was found outside of `.grad`.
            told = self.scaler._found_inf_per_device(optimizer)
            told[found.device] = largest if peers is None else peers.most(largest)


def infinite(found: Tensor) -> Tensor:
    """float32 [K], 1 where what was found is an infinity or NaN."""
    return ((found == NONFINITE) | (found == OF_WEIGHTED_SUM)).to(found)
