"""Transfer rules: how the parameters of the K subproblems are blended, ``Theta <- M Theta - update``.

A rule turns the preferences, the distances between the subproblems and the step into M, whose rows sum to 1.
`Spectral` is the default; `Identity` gives K independent runs.
"""

from ..checks import check_mix as check_mix
from .base import TransferContext as TransferContext
from .base import TransferRule as TransferRule
from .cross_learning import CrossLearning as CrossLearning
from .distance_decrease import DistanceDecrease as DistanceDecrease
from .guarded import Guarded as Guarded
from .gumbel_prior import GumbelPrior as GumbelPrior
from .hat import Hat as Hat
from .identity import Identity as Identity
from .mixing import MGD as MGD
from .mixing import Mean as Mean
from .mixing import Neighbours as Neighbours
from .moments import Moments as Moments
from .registry import register as register
from .schedule import Constant as Constant
from .schedule import CosineDecay as CosineDecay
from .schedule import ExponentialDecay as ExponentialDecay
from .schedule import LinearDecay as LinearDecay
from .schedule import Schedule as Schedule
from .schedule import WithLearningRate as WithLearningRate
from .sequence import Sequence as Sequence
from .spectral import Spectral as Spectral
from .user import UserTransfer as UserTransfer
from .user import as_transfer_rule as as_transfer_rule

__all__ = [
    "Constant",
    "CosineDecay",
    "ExponentialDecay",
    "Guarded",
    "LinearDecay",
    "Moments",
    "Schedule",
    "Sequence",
    "TransferContext",
    "TransferRule",
    "UserTransfer",
    "WithLearningRate",
    "as_transfer_rule",
    "check_mix",
    "register",
    *sorted(cls.__name__ for cls in register.values()),
]
