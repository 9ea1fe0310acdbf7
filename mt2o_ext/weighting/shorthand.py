"""Weightings by name: a shorthand for the classes with their defaults."""

from __future__ import annotations

from collections.abc import Callable

from .aligned_mtl import AlignedMTL
from .around.base import checked_part
from .base import Weighting
from .cagrad import CAGrad
from .config import ConFIG
from .dbmtl import DBMTL
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
from .stch import STCH
from .tension import TaskTensioner
from .uncertainty import IMTLL, UncertaintyWeighting
from .wpcgrad import WPCGrad

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
