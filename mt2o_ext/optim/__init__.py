"""The optimizers."""

from .moments import Moments
from .mt2o import MT2OFused
from .rules import SGD, Adam, AdamW, BaseRule
from .weighted import WeightedFused

__all__ = ["SGD", "Adam", "AdamW", "BaseRule", "MT2OFused", "Moments", "WeightedFused"]
