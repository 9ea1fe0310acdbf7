"""The optimizers."""

from .connection_strength import ConnectionStrengthFused
from .moments import Moments
from .mt2o import MT2OFused
from .rules import SGD, Adam, AdamW, BaseRule
from .weighted import WeightedFused

__all__ = ["SGD", "Adam", "AdamW", "BaseRule", "ConnectionStrengthFused", "MT2OFused", "Moments", "WeightedFused"]
