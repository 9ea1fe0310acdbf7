"""The methods of this package, for its documentation and tests; no optimizer looks names up here."""

from __future__ import annotations

from ..registry import Registry
from ..weighting import Weighting

__all__ = ["register"]

register: Registry[Weighting] = Registry("weighting of mt2o_ext.contrib", Weighting)
"""The decorator of methods, and the mapping from their names to their classes."""
