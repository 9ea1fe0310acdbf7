"""The optimizers."""

from .connection_strength import ConnectionStrengthFused
from .harmony import HarmonyFused
from .mt2o import MT2OFused
from .weighted import WeightedFused

__all__ = ["ConnectionStrengthFused", "HarmonyFused", "MT2OFused", "WeightedFused"]
