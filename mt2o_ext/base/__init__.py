"""The base rules: the update that one subproblem makes with its combined gradient.

Names in parameter groups and state dicts are those of torch.optim.  Every option may differ between parameter groups;
the kernel still runs once.
"""

from __future__ import annotations

from .adam import Adam, AdamW
from .lion import Lion
from .rule import BaseRule
from .sgd import SGD

__all__ = ["BASE_RULES", "SGD", "Adam", "AdamW", "BaseRule", "Lion", "as_base_rule"]

BASE_RULES: dict[str, type[BaseRule]] = {rule.__name__.lower(): rule for rule in (SGD, Adam, AdamW, Lion)}


def as_base_rule(base: BaseRule | str) -> BaseRule:
    """A rule itself, or the one with default options behind its name.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(base, BaseRule):
        return base
    if isinstance(base, str) and base.lower() in BASE_RULES:
        return BASE_RULES[base.lower()]()
    rules = ", ".join(f"{rule.__name__}(...)" for rule in BASE_RULES.values())
    raise ValueError(
        f"expected base as one of {rules} of mt2o_ext.base, or of the names {list(BASE_RULES)}, got {base!r}: take one "
        "of them"
    )
