"""Weightings: how T task gradients become one.

Most read only the Gram matrix of the task gradients, T x T numbers; the others the losses, or they change the gradients
first. All are usable alone, ``CAGrad()(jacobian @ jacobian.T)``, and from K subproblems at once.
"""

from ..loss_domain import LossDomain
from .aligned_mtl import AlignedMTL
from .around.ema import Ema
from .around.every import Every
from .around.fallback import Fallback
from .around.per_segment import PerSegment
from .around.rescale import Rescale
from .around.row_scaling import LogLosses, Relative
from .base import Weighting
from .cagrad import CAGrad
from .config import ConFIG
from .context import Needs, WeightingContext
from .dbmtl import DBMTL
from .draw import Draw
from .dual_cone import DualProj, UPGrad
from .dwa import DWA
from .edm import EDM
from .epo import EPO
from .excess import ExcessMTL
from .fairgrad import FairGrad
from .famo import FAMO
from .gls import GLS
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .gradvac import GradVac
from .imtlg import IMTLG
from .ldc import LDCMTL
from .linear import LinearWeighting
from .mgda import MGDA
from .moco import MoCo
from .modo import MoDo
from .momentum_config import MomentumConFIG
from .nash import NashMTL
from .pcgrad import PCGrad
from .pivrg import PIVRG
from .random_weights import RGW, RLW
from .sdmgrad import SDMGrad
from .shorthand import as_weighting
from .stch import STCH
from .tension import TaskTensioner
from .uncertainty import IMTLL, UncertaintyWeighting
from .wpcgrad import WPCGrad

__all__ = [
    "DBMTL",
    "DWA",
    "EDM",
    "EPO",
    "FAMO",
    "GLS",
    "IMTLG",
    "IMTLL",
    "LDCMTL",
    "MGDA",
    "PIVRG",
    "RGW",
    "RLW",
    "STCH",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "Draw",
    "DualProj",
    "Ema",
    "Every",
    "ExcessMTL",
    "FairGrad",
    "Fallback",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "LinearWeighting",
    "LogLosses",
    "LossDomain",
    "MoCo",
    "MoDo",
    "MomentumConFIG",
    "NashMTL",
    "Needs",
    "PCGrad",
    "PerSegment",
    "Relative",
    "Rescale",
    "SDMGrad",
    "TaskTensioner",
    "UPGrad",
    "UncertaintyWeighting",
    "WPCGrad",
    "Weighting",
    "WeightingContext",
    "as_weighting",
]
