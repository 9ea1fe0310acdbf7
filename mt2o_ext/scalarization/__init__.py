"""Scalarizations: T losses and a preference become one number, the objective of a subproblem.

Which one to take, for losses l and a preference w on the simplex:

* `Linear`: sum w l. Smooth, no parameter; reaches only the convex parts of a front and collapses to the ends of a
  concave one.
* `SmoothTchebycheff`: the default wherever the shape of the front is unknown. Reaches concave parts too and stays
  smooth.
* `Tchebycheff`: its limit mu -> 0: the worst weighted loss alone. Exact, but only one task trains in each step.
* `PBI`: holds the losses on the ray of the preference; some coefficients may be negative.
* `Log`: sum w log l, for positive losses of very different or drifting units.
* `COSMOS`: the weighted sum less the cosine between losses and preference, for networks that learn a whole front.
* `FewForMany`: K models for many tasks, each of which counts at the model that suits it best. The only one that looks
  at the losses of all models together.

An optimizer asks for `coefficients`, the derivatives by the losses, and combines the task gradients with them. No
scalarization contains an absolute tolerance: multiplying the losses (and `mu`, `ideal`, `lam`) by any a > 0 changes no
direction. A row of losses with NaN or infinity gives NaN coefficients and never raises, because the optimizers skip
non-finite steps.
"""

from .base import Scalarization as Scalarization
from .cosmos import COSMOS as COSMOS
from .few_for_many import FewForMany as FewForMany
from .linear import Linear as Linear
from .log import Log as Log
from .pbi import PBI as PBI
from .registry import as_scalarization as as_scalarization
from .registry import register as register
from .tchebycheff import SmoothTchebycheff as SmoothTchebycheff
from .tchebycheff import Tchebycheff as Tchebycheff

__all__ = ["Scalarization", "as_scalarization", "register", *sorted(cls.__name__ for cls in register.values())]
