"""Weightings by name."""

from __future__ import annotations

from ..registry import Registry
from .base import Weighting

__all__ = ["as_weighting", "register", "register_around"]

register: Registry[Weighting] = Registry(
    "weighting", Weighting, "those of mt2o_ext.contrib are passed as instances, mt2o_ext.contrib.X()"
)
"""The decorator of methods, and the mapping from their names to their classes."""

register_around: Registry[Weighting] = Registry("weighting around another one", Weighting)
"""The same for weightings that go around another one."""


def as_weighting(weighting: Weighting | str | None) -> Weighting:
    """Return a weighting itself, a new one with this name and its default settings, or `LinearWeighting` for None.

    Args:
        weighting: an instance, a name such as "cagrad" or "nash-mtl", or None.

    Raises:
        TypeError: for anything else, such as a class.
        ValueError: for an unknown name, with those that are near.

    Example:
        >>> as_weighting("nash-mtl")
        NashMTL(every=1, max_norm=1.0)
    """
    if weighting is None:
        return register.make("ls")
    if isinstance(weighting, str) and weighting in register_around:
        return register_around.make(weighting)  # which tells what it has to go around
    return register.make(weighting)
