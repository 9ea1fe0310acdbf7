"""Weightings: how T task gradients become one."""

from mt2o_ext.weighting.base import Weighting
from mt2o_ext.weighting.context import Needs, WeightingContext
from mt2o_ext.weighting.draw import Draw
from mt2o_ext.weighting.linear import LinearWeighting

__all__ = ["Draw", "LinearWeighting", "Needs", "Weighting", "WeightingContext"]
