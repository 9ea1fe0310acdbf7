"""Weightings: how T task gradients become one.

Most read only the Gram matrix of the task gradients, T x T numbers; the others the losses, or they change the gradients
first. All are usable alone, ``CAGrad()(jacobian @ jacobian.T)``, and from K subproblems at once. The examples in this
package assume ``import torch, mt2o_ext`` and ``from mt2o_ext.weighting import *``; likewise in the other packages.
"""

from ..loss_domain import LossDomain as LossDomain
from .aligned_mtl import AlignedMTL as AlignedMTL
from .around.ema import Ema as Ema
from .around.every import Every as Every
from .around.fallback import Fallback as Fallback
from .around.per_segment import PerSegment as PerSegment
from .around.rescale import Rescale as Rescale
from .around.row_scaling import LogLosses as LogLosses
from .around.row_scaling import Relative as Relative
from .base import Weighting as Weighting
from .cagrad import CAGrad as CAGrad
from .config import ConFIG as ConFIG
from .context import Needs as Needs
from .context import WeightingContext as WeightingContext
from .dbmtl import DBMTL as DBMTL
from .draw import Draw as Draw
from .dual_cone import DualProj as DualProj
from .dual_cone import UPGrad as UPGrad
from .dwa import DWA as DWA
from .edm import EDM as EDM
from .epo import EPO as EPO
from .excess import ExcessMTL as ExcessMTL
from .fairgrad import FairGrad as FairGrad
from .famo import FAMO as FAMO
from .gls import GLS as GLS
from .graddrop import GradDrop as GradDrop
from .gradnorm import GradNorm as GradNorm
from .gradvac import GradVac as GradVac
from .imtlg import IMTLG as IMTLG
from .inverse_temperature import InverseTemperature as InverseTemperature
from .linear import LinearWeighting as LinearWeighting
from .mgda import MGDA as MGDA
from .moco import MoCo as MoCo
from .modo import MoDo as MoDo
from .momentum_config import MomentumConFIG as MomentumConFIG
from .nash import NashMTL as NashMTL
from .pamal import PaMaL as PaMaL
from .pcgrad import PCGrad as PCGrad
from .pivrg import PIVRG as PIVRG
from .random_weights import RGW as RGW
from .random_weights import RLW as RLW
from .registry import as_weighting as as_weighting
from .registry import register as register
from .registry import register_around as register_around
from .sdmgrad import SDMGrad as SDMGrad
from .stch import STCH as STCH
from .tension import TaskTensioner as TaskTensioner
from .uncertainty import IMTLL as IMTLL
from .uncertainty import UncertaintyWeighting as UncertaintyWeighting

__all__ = [
    "Draw",
    "LossDomain",
    "Needs",
    "Weighting",
    "WeightingContext",
    "as_weighting",
    "register",
    *sorted(cls.__name__ for registry in (register, register_around) for cls in registry.values()),
]
