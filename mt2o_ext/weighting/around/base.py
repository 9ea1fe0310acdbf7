"""Weightings around a weighting."""

from __future__ import annotations

from ..base import Weighting
from ..context import Needs
from ..registry import register


class Combinator(Weighting):
    """Base of a weighting that changes what another one answers."""

    def __init__(self, inner: Weighting | str) -> None:
        super().__init__()
        self.inner = register.make(inner)
        self.needs = self.inner.needs
        self.degree = self.inner.degree
        self.per_segment = self.inner.per_segment
        self.reads_preferences = self.inner.reads_preferences
        self.undoes_factors = self.inner.undoes_factors

    def _refuse_points(self) -> None:
        """Refuse an ``inner`` that goes by points, whose weights do not fit the points of later steps."""
        if Needs.POINTS in self.inner.needs:
            raise ValueError(
                f"expected a weighting whose weights fit later steps, got {type(self.inner).__name__}, whose points "
                f"may be others in each step: use it without {type(self).__name__}"
            )

    def _parts(self) -> dict[str, Weighting]:
        return {"inner": self.inner}
