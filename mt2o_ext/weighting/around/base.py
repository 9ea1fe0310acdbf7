"""Weightings around a weighting."""

from __future__ import annotations

from ..base import Weighting
from ..registry import register


class Combinator(Weighting):
    """Base of a weighting that changes what another one answers."""

    def __init__(self, inner: Weighting | str) -> None:
        super().__init__()
        self.inner = register.make(inner)
        self.needs = self.inner.needs
        self.degree = self.inner.degree
        self.per_segment = self.inner.per_segment

    def _parts(self) -> dict[str, Weighting]:
        return {"inner": self.inner}
