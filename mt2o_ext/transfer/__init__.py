"""Transfer rules: how the parameters of the K subproblems are blended, ``Theta <- M Theta - update``.

A rule turns the preferences, the distances between the subproblems and the step into M, whose rows sum to 1.
`Spectral` is the default; `Identity` gives K independent runs.
"""

from ..checks import check_mix
from .base import Identity, TransferContext, TransferRule
from .cross_learning import CrossLearning
from .distance_decrease import DistanceDecrease
from .hat import Hat
from .mixing import MGD, Mean, Neighbours
from .moments import Moments
from .schedule import Constant, CosineDecay, ExponentialDecay, LinearDecay, Schedule, WithLearningRate
from .spectral import Spectral
from .user import UserTransfer, as_transfer_rule

__all__ = [
    "MGD",
    "Constant",
    "CosineDecay",
    "CrossLearning",
    "DistanceDecrease",
    "ExponentialDecay",
    "Hat",
    "Identity",
    "LinearDecay",
    "Mean",
    "Moments",
    "Neighbours",
    "Schedule",
    "Spectral",
    "TransferContext",
    "TransferRule",
    "UserTransfer",
    "WithLearningRate",
    "as_transfer_rule",
    "check_mix",
]
