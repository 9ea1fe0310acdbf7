"""Arguments about masks, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..checks import check_list
from ..sharding import is_sharded

__all__ = ["check_words", "checked_parameters", "chosen_tasks"]


def chosen_tasks(tasks: Any) -> list[Any]:
    """A task, or several, as a list.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(tasks, str) or not isinstance(tasks, (int, Sequence)):
        raise TypeError(f"expected a task or a list of tasks, got {type(tasks).__name__}: pass their numbers")
    return [tasks] if isinstance(tasks, int) else list(tasks)


def check_words(whole: Sequence[str]) -> list[str]:
    """Return ``whole=`` as a list, if it has words only."""
    words = None if isinstance(whole, (str, Tensor)) or not isinstance(whole, Iterable) else list(whole)
    if words is None or not all(isinstance(word, str) for word in words):
        raise TypeError(
            f"expected whole as a list of words, got {whole!r:.80}: put names, or parts of them, into a list"
        )
    return words


def checked_parameters(named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return named parameters as a dict.

    Raises:
        TypeError: for things that are no named parameters, or not of floating point.
        ValueError: for none, for one that comes twice, is sharded or has no size yet.
    """
    named: dict[str, Tensor] = {}
    for item in check_list("named parameters", named_parameters, "pass model.named_parameters()"):
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor)):
            raise TypeError(
                f"expected named parameters, pairs of a name and a parameter, got {type(item).__name__}: pass "
                "model.named_parameters()"
            )
        name, p = item
        if isinstance(p, nn.parameter.UninitializedParameter) or is_sharded(p):
            raise ValueError(f"expected ordinary parameters, got {name}, sharded or without a size: leave it out")
        if not p.is_floating_point():
            raise TypeError(f"expected parameters of floating point, got {name} of {p.dtype}: leave it out")
        if name in named or any(p is other for other in named.values()):
            raise ValueError(f"expected every parameter once, got {name} twice: leave it out once")
        named[name] = p
    if not named:
        raise ValueError("expected at least one parameter, got none: pass model.named_parameters()")
    return named
