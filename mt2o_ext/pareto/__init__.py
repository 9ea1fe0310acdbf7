"""Pareto fronts: what K models have reached on T tasks, and networks that hold a whole front in one set of weights.

`ParetoFront` is a snapshot of losses, preferences, metrics and, where they were given, the models themselves:
hypervolume, choice, tables, files, plots. `hypervolume` is the number alone. All losses are minimised.
"""

from .front import ParetoFront as ParetoFront
from .volume import hypervolume as hypervolume

__all__ = ["ParetoFront", "hypervolume"]
