"""Scalarizations by name."""

from __future__ import annotations

from ..registry import Registry
from .base import Scalarization

__all__ = ["as_scalarization", "register"]

register: Registry[Scalarization] = Registry("scalarization", Scalarization)
"""The decorator of scalarizations, and the mapping from their names to their classes."""


def as_scalarization(scalarization: Scalarization | str) -> Scalarization:
    """Return a scalarization itself, or a new one with this name and its default settings.

    Args:
        scalarization: an instance, or a name such as "smooth-tchebycheff".

    Raises:
        TypeError: for anything else, such as a class.
        ValueError: for an unknown name, with those that are near.
    """
    return register.make(scalarization)
