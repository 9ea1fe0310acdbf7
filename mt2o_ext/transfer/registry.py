"""Transfer rules by name."""

from __future__ import annotations

from ..registry import Registry
from .base import TransferRule

__all__ = ["register"]

register: Registry[TransferRule] = Registry("transfer rule", TransferRule, "or pass a function of the context")
"""The decorator of rules, and the mapping from their names to their classes."""
