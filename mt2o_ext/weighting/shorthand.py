"""Weightings by name: a shorthand for the classes with their defaults."""

from __future__ import annotations

from collections.abc import Callable

from mt2o_ext.weighting.aligned_mtl import AlignedMTL
from mt2o_ext.weighting.base import Weighting
from mt2o_ext.weighting.cagrad import CAGrad
from mt2o_ext.weighting.combinator import checked_part
from mt2o_ext.weighting.config import ConFIG
from mt2o_ext.weighting.dbmtl import DBMTL
from mt2o_ext.weighting.dual_cone import DualProj, UPGrad
from mt2o_ext.weighting.dwa import DWA
from mt2o_ext.weighting.edm import EDM
from mt2o_ext.weighting.epo import EPO
from mt2o_ext.weighting.excess import ExcessMTL
from mt2o_ext.weighting.fairgrad import FairGrad
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
from mt2o_ext.weighting.pivrg import PIVRG
from mt2o_ext.weighting.random_weights import RGW, RLW
from mt2o_ext.weighting.sdmgrad import SDMGrad
from mt2o_ext.weighting.stch import STCH
from mt2o_ext.weighting.tension import TaskTensioner
from mt2o_ext.weighting.uncertainty import IMTLL, UncertaintyWeighting
from mt2o_ext.weighting.wpcgrad import WPCGrad

METHODS: dict[str, Callable[[], Weighting]] = {
    "ls": LinearWeighting,
    "rlw": RLW,
    "rgw": RGW,
    "uw": UncertaintyWeighting,
    "imtl-l": IMTLL,
    "dwa": DWA,
    "gls": GLS,
    "stch": STCH,
    "famo": FAMO,
    "ldc-mtl": LDCMTL,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "wpcgrad": WPCGrad,
    "gradvac": GradVac,
    "mgda": MGDA,
    "edm": EDM,
    "cdtt": TaskTensioner,
    "cagrad": CAGrad,
    "imtl-g": IMTLG,
    "config": ConFIG,
    "m-config": MomentumConFIG,
    "aligned-mtl": AlignedMTL,
    "nash-mtl": NashMTL,
    "fairgrad": FairGrad,
    "pivrg": PIVRG,
    "dualproj": DualProj,
    "upgrad": UPGrad,
    "sdmgrad": SDMGrad,
    "modo": MoDo,
    "moco": MoCo,
    "db-mtl": DBMTL,
    "excessmtl": ExcessMTL,
    "graddrop": GradDrop,
    "epo": EPO,
}
"""The names that `as_weighting` knows; "-" and "_" and the case do not matter."""


def as_weighting(weighting: Weighting | str | None) -> Weighting:
    """A weighting itself, the one with this name ("cagrad", "nash-mtl") and its defaults, or LS for None.

    Raises ValueError for an unknown name, TypeError for anything else, such as a class.
    """
    if weighting is None:
        return LinearWeighting()
    if not isinstance(weighting, str):
        return checked_part(weighting)
    plain = {_plain(name): method for name, method in METHODS.items()}
    found = plain.get(_plain(weighting))
    if found is None:
        raise ValueError(f"expected the name of a weighting, one of {', '.join(METHODS)}, got {weighting!r}")
    return found()


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
