"""Methods that nobody has validated yet, not even their numbers.

They work, keep to everything that all weightings keep to, and are tested against the formulas in their docstrings. What
is not known is whether these formulas are what their authors ran.

**A method enters** with its formula and its source in the docstring, with what of it is inferred or ours, and with the
tests of all weightings, if it cannot stand in `mt2o_ext.weighting` yet: its formula is known from an abstract or at
second hand, or an essential part of it is not the paper's.

**It leaves for `mt2o_ext.weighting`** when a test compares it with an independent implementation, or checks a closed
form that stands in the paper, or when a published number has been reproduced. If its paper turns out to say something
else, it is changed or removed, without a release in between.

**Names are not taken as strings**, so that the word contrib stands in the code that uses such a method:
``weighting=mt2o_ext.contrib.WPCGrad()``.
"""

from .ldc_mtl import LDCMTL as LDCMTL
from .registry import register as register
from .wpcgrad import WPCGrad as WPCGrad

__all__ = ["register", *sorted(cls.__name__ for cls in register.values())]
