"""Weightings around a weighting."""

from __future__ import annotations

from ..base import Weighting


class Combinator(Weighting):
    """Base of a weighting that changes what another one answers."""

    def __init__(self, inner: Weighting) -> None:
        super().__init__()
        self.inner = checked_part(inner)
        self.needs = inner.needs
        self.degree = inner.degree
        self.per_segment = inner.per_segment

    def _parts(self) -> dict[str, Weighting]:
        return {"inner": self.inner}


def checked_part(part: object) -> Weighting:
    if not isinstance(part, Weighting):
        got = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
        raise TypeError(f"expected a weighting, got {got}: pass an instance such as CAGrad()")
    return part
