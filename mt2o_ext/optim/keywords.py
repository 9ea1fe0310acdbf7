"""Keywords that a constructor does not have: what to write in their place."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable

from ..base import BASE_RULES, AdamW

__all__ = ["check_keywords"]

LEFT_OUT = {
    "fused": "every step is fused",
    "foreach": "every step is fused",
    "capturable": "no step needs it to be captured in a CUDA graph",
    "differentiable": "the step is made by kernels without a backward",
}
"""Flags of torch.optim that mean nothing here, and why."""


def check_keywords(cls: type, given: Iterable[str]) -> None:
    """Check the keywords of a constructor before Python does, whose message says nothing of what to do.

    Raises:
        TypeError: for one that the constructor does not have.
    """
    known = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return  # a class of the user's, which takes what it likes
    for name in given:
        if name not in known:
            raise TypeError(f"{cls.__name__} has no argument {name}=: {_advice(name, [*known])}")


def _advice(name: str, known: list[str]) -> str:
    if name in LEFT_OUT:
        return f"leave it out, because {LEFT_OUT[name]}"
    rules = [rule.__name__ for rule in BASE_RULES.values() if name in rule().defaults()]
    if rules:
        example = AdamW.__name__ if AdamW.__name__ in rules else rules[0]
        return f"it is an option of the base rule, so write base=mt2o_ext.base.{example}({name}=...)"
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}=?" if near else f"its arguments are {', '.join(known[1:])}"
