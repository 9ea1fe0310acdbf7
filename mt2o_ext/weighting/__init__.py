"""Weightings: how T task gradients become one.

Most read only the Gram matrix of the task gradients, T x T numbers; the others the losses, or they change the gradients
first. All are usable alone, ``CAGrad()(jacobian @ jacobian.T)``, and from K subproblems at once.
"""

from mt2o_ext.loss_domain import LossDomain
from mt2o_ext.weighting.aligned_mtl import AlignedMTL
from mt2o_ext.weighting.base import Weighting
from mt2o_ext.weighting.cagrad import CAGrad
from mt2o_ext.weighting.config import ConFIG
from mt2o_ext.weighting.context import Needs, WeightingContext
from mt2o_ext.weighting.dbmtl import DBMTL
from mt2o_ext.weighting.draw import Draw
from mt2o_ext.weighting.dual_cone import DualProj, UPGrad
from mt2o_ext.weighting.dwa import DWA
from mt2o_ext.weighting.edm import EDM
from mt2o_ext.weighting.ema import Ema
from mt2o_ext.weighting.epo import EPO
from mt2o_ext.weighting.every import Every
from mt2o_ext.weighting.excess import ExcessMTL
from mt2o_ext.weighting.fairgrad import FairGrad
from mt2o_ext.weighting.fallback import Fallback
from mt2o_ext.weighting.famo import FAMO
from mt2o_ext.weighting.gls import GLS
from mt2o_ext.weighting.graddrop import GradDrop
from mt2o_ext.weighting.gradnorm import GradNorm
from mt2o_ext.weighting.gradvac import GradVac
from mt2o_ext.weighting.imtlg import IMTLG
from mt2o_ext.weighting.ldc import LDCMTL
from mt2o_ext.weighting.linear import LinearWeighting
from mt2o_ext.weighting.mgda import MGDA
from mt2o_ext.weighting.moco import MoCo
from mt2o_ext.weighting.modo import MoDo
from mt2o_ext.weighting.momentum_config import MomentumConFIG
from mt2o_ext.weighting.nash import NashMTL
from mt2o_ext.weighting.pcgrad import PCGrad
from mt2o_ext.weighting.per_segment import PerSegment
from mt2o_ext.weighting.pivrg import PIVRG
from mt2o_ext.weighting.random_weights import RGW, RLW
from mt2o_ext.weighting.rescale import Rescale
from mt2o_ext.weighting.row_scaling import LogLosses, Relative
from mt2o_ext.weighting.sdmgrad import SDMGrad
from mt2o_ext.weighting.shorthand import as_weighting
from mt2o_ext.weighting.stch import STCH
from mt2o_ext.weighting.tension import TaskTensioner
from mt2o_ext.weighting.uncertainty import IMTLL, UncertaintyWeighting
from mt2o_ext.weighting.wpcgrad import WPCGrad

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
