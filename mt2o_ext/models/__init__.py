"""Parts of models that methods for several tasks ask for: small towers beside the heads, and modules with routes.

They are plain torch and need none of the optimizers; the norms of `mt2o_ext.priority` are the other such parts.
"""

from .small_towers import self_auxiliary as self_auxiliary
from .small_towers import with_auxiliaries as with_auxiliaries
from .soft_modules import SoftModules as SoftModules

__all__ = ["SoftModules", "self_auxiliary", "with_auxiliaries"]
