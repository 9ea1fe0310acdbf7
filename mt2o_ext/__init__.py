"""Multi-task optimizers on fused kernels: trade-offs trained together, one run, a Pareto front of models.

``torch.optim.Optimizer`` subclasses; see :class:`MT2OFused`, :class:`WeightedFused`,
:class:`ConnectionStrengthFused` and :class:`HarmonyFused`.
What they are made with is in modules: ``weighting``, ``transfer``,
``scalarization``, ``preferences``, ``priority``, ``base`` (base rules), ``pareto``, ``models`` (parts of models),
``variational`` (layers that are distributions), ``masks`` (of tasks over one model), and ``contrib`` (methods that
nobody has validated).
``python -m mt2o_ext`` tells what was built and checks it.
"""

from . import (
    base,
    contrib,
    masks,
    models,
    pareto,
    preferences,
    priority,
    scalarization,
    transfer,
    variational,
    weighting,
)
from ._native import backend_info
from .bank import SubproblemBank
from .checkpoints import load_checkpoint, save_checkpoint
from .gradients.weighted_backward import WeightedBackward, weighted_backward
from .optim import ConnectionStrengthFused, HarmonyFused, MT2OFused, WeightedFused
from .pareto import ParetoFront
from .streams import repeat, stack

__version__ = "0.1.0"

__all__ = [
    "ConnectionStrengthFused",
    "HarmonyFused",
    "MT2OFused",
    "ParetoFront",
    "SubproblemBank",
    "WeightedBackward",
    "WeightedFused",
    "backend_info",
    "base",
    "contrib",
    "load_checkpoint",
    "masks",
    "models",
    "pareto",
    "preferences",
    "priority",
    "repeat",
    "save_checkpoint",
    "scalarization",
    "stack",
    "transfer",
    "variational",
    "weighted_backward",
    "weighting",
]
