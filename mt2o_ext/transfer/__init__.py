"""Transfer rules: how the parameters of the K subproblems are blended, ``Theta <- M Theta - update``.

A rule turns the preferences, the distances between the subproblems and the step into M, whose rows sum to 1.
`Spectral` is the default; `Identity` gives K independent runs.
"""

from mt2o_ext.transfer.base import Identity, TransferContext, TransferRule
from mt2o_ext.transfer.checks import check_mix
from mt2o_ext.transfer.cross_learning import CrossLearning
from mt2o_ext.transfer.distance_decrease import DistanceDecrease
from mt2o_ext.transfer.hat import Hat
from mt2o_ext.transfer.mixing import MGD, Mean, Neighbours
from mt2o_ext.transfer.moments import Moments
from mt2o_ext.transfer.schedule import Constant, CosineDecay, ExponentialDecay, LinearDecay, Schedule, WithLearningRate
from mt2o_ext.transfer.spectral import Spectral
from mt2o_ext.transfer.user import UserTransfer, as_transfer_rule

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
