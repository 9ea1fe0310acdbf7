"""The optimizers."""

from .connection_strength import ConnectionStrengthFused
from .mt2o import MT2OFused
from .weighted import WeightedFused

__all__ = ["ConnectionStrengthFused", "MT2OFused", "WeightedFused"]
