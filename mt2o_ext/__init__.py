"""Multi-task optimizers on fused kernels: K trade-offs trained together, one run, a Pareto front of models.

``torch.optim.Optimizer`` subclasses; see :class:`MT2OFused`.  ``python -m mt2o_ext`` tells what was built and checks
it.
"""

from ._native import backend_info
from .bank import SubproblemBank
from .optim import SGD, Adam, AdamW, BaseRule, ConnectionStrengthFused, Moments, MT2OFused
from .pareto import ParetoFront, hypervolume
from .preferences import das_dennis, default_preferences, even, riesz_energy
from .priority import (
    Connection,
    Connections,
    PriorityHistory,
    TaskBatchNorm,
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
    TaskNorm,
    TaskRMSNorm,
    find_connections,
    select_task,
)
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
    "Connection",
    "ConnectionStrengthFused",
    "Connections",
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
    "PriorityHistory",
    "Scalarization",
    "SmoothTchebycheff",
    "Spectral",
    "SubproblemBank",
    "TaskBatchNorm",
    "TaskBatchNorm1d",
    "TaskBatchNorm2d",
    "TaskBatchNorm3d",
    "TaskGroupNorm",
    "TaskLayerNorm",
    "TaskNorm",
    "TaskRMSNorm",
    "Tchebycheff",
    "TransferContext",
    "TransferRule",
    "backend_info",
    "das_dennis",
    "default_preferences",
    "even",
    "find_connections",
    "hypervolume",
    "repeat",
    "riesz_energy",
    "select_task",
    "stack",
]
