"""Multi-task optimizers on fused kernels: K trade-offs trained together, one run, a Pareto front of models.

``torch.optim.Optimizer`` subclasses; see :class:`MT2OFused`.  ``python -m mt2o_ext`` tells what was built and checks
it.
"""

from ._native import backend_info
from .bank import SubproblemBank
from .optim import SGD, Adam, AdamW, BaseRule, Moments, MT2OFused
from .pareto import ParetoFront, hypervolume
from .preferences import das_dennis, default_preferences, even, riesz_energy
from .scalarization import PBI, Linear, Log, Scalarization, SmoothTchebycheff, Tchebycheff
from .streams import repeat, stack
from .transfer import (
    MGD,
    CrossLearning,
    DistanceDecrease,
    Hat,
    Identity,
    Mean,
    Neighbours,
    Spectral,
    TransferContext,
    TransferRule,
)

__version__ = "0.1.0"

__all__ = [
    "MGD",
    "PBI",
    "SGD",
    "Adam",
    "AdamW",
    "BaseRule",
    "CrossLearning",
    "DistanceDecrease",
    "Hat",
    "Identity",
    "Linear",
    "Log",
    "MT2OFused",
    "Mean",
    "Moments",
    "Neighbours",
    "ParetoFront",
    "Scalarization",
    "SmoothTchebycheff",
    "Spectral",
    "SubproblemBank",
    "Tchebycheff",
    "TransferContext",
    "TransferRule",
    "backend_info",
    "das_dennis",
    "default_preferences",
    "even",
    "hypervolume",
    "repeat",
    "riesz_energy",
    "stack",
]
