"""Weightings of losses that are measured otherwise: each task's gradient times a number r_t."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...checks import PerTask, check_per_task
from ...loss_domain import LossDomain
from ..base import Weighting
from ..context import Needs, WeightingContext
from ..registry import register_around
from ..solvers import scaled
from ..state import State
from .base import Combinator


class _RowScaling(Combinator):
    """Row scalings compose: ``inner`` solves on diag(r) Q diag(r) for w~; w = r w~."""

    def __init__(self, inner: Weighting | str) -> None:
        super().__init__(inner)
        unfit = self.inner.needs & (Needs.ROWS | Needs.FEEDBACK)
        if unfit:
            name = type(self.inner).__name__
            raise ValueError(
                f"expected a weighting of losses and Gram matrices, got {name}, which needs {unfit}: take another one"
            )
        self.needs |= Needs.LOSSES

    @abstractmethod
    def _factor_and_losses(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """r [K, T], and the losses as ``inner`` sees them."""

    def _weights(self, context: WeightingContext) -> Tensor:
        assert context.losses is not None
        factor, losses = self._factor_and_losses(context.losses)
        inner = replace(
            context,
            losses=losses,
            gram=None if context.gram is None else scaled(context.gram, factor),
            cross=None if context.cross is None else scaled(context.cross, factor),
            segments=None if context.segments is None else scaled(context.segments, factor[:, None]),
            largest=None if context.largest is None else context.largest / factor,
        )
        weights = self.inner.weights(inner)
        return weights * (factor[:, None] if self.per_segment else factor)


@register_around("log-losses")
class LogLosses(_RowScaling):
    """``inner`` on the logarithms of the losses: rows g / l. Degree 0.

    Raises:
        ValueError: for weightings that change gradients or learn from feedback.

    Example:
        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> LogLosses(MGDA())(gram, losses=torch.tensor([2.0, 0.5]))
        tensor([0.3571, 0.5714], dtype=torch.float64)
    """

    loss_domain = LossDomain.POSITIVE

    def __init__(self, inner: Weighting | str) -> None:
        super().__init__(inner)
        self.degree = 0.0

    def _factor_and_losses(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / losses, losses.log()


@register_around("relative")
class Relative(_RowScaling):
    """``inner`` on losses in units of ``loss_ref``: rows g / loss_ref, losses l / loss_ref.

    Args:
        loss_ref: one number for all tasks or one for each; None: each task's first loss. With it methods that know no
            scale law, such as `UncertaintyWeighting`, get one: degree 0. A given one takes any losses.

    State:
        Where ``loss_ref`` is None: ``loss_ref`` [K, T], 0 until known.

    Raises:
        ValueError: for weightings that change gradients or learn from feedback.

    Example:
        >>> weighting = Relative(UncertaintyWeighting())
        >>> weighting(losses=torch.tensor([200.0, 0.5]))
        tensor([0.0025, 1.0000], dtype=torch.float64)
    """

    def __init__(self, inner: Weighting | str, loss_ref: float | Sequence[float] | None = None) -> None:
        super().__init__(inner)
        self.loss_ref = None if loss_ref is None else check_per_task("loss_ref", loss_ref, positive=True)
        if loss_ref is None:
            self.degree = 0.0
            self.loss_domain = LossDomain.POSITIVE_AT_FIRST

    def _settings_of_tasks(self) -> dict[str, PerTask | None]:
        return {"loss_ref": self.loss_ref}

    def _initial_state(self, ones: Tensor) -> State:
        return {"loss_ref": torch.zeros_like(ones)} if self.loss_ref is None else {}

    def _first_known(self) -> Tensor | None:
        return self._state["loss_ref"] > 0 if self.loss_ref is None else None

    def _factor_and_losses(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss_ref is None:
            known = self._state["loss_ref"]
            reference = self._state["loss_ref"] = torch.where(known > 0, known, losses)
        else:
            reference = self._numbers["loss_ref"]
        return (1 / reference).expand_as(losses), losses / reference
