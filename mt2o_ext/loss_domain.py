"""Declarations of the losses that a method takes: the check, and the words in warnings and in the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

__all__ = ["LossDomain", "Reason", "first_offence"]

SHIFT = "Add a constant to this loss, which changes no gradient, or choose a method that takes any loss."


class LossDomain(Enum):
    """The losses that a formula exists for; the value says it in words.

    "at first": of the step, or of each step until the method knows the losses that it measures later ones by.

    Example:
        >>> GLS().loss_domain
        <LossDomain.POSITIVE: 'positive losses'>
        >>> LossDomain.POSITIVE.outside(torch.tensor([2.0, -0.5]))
        tensor([False,  True])
    """

    ANY = "any losses"
    NON_NEGATIVE = "losses that are not negative"
    POSITIVE = "positive losses"
    ABOVE_LOWER_BOUND = "losses above its lower_bound"
    POSITIVE_AT_FIRST = "positive losses at first"
    POSITIVE_AT_FIRST_THEN_NON_NEGATIVE = "positive losses at first, and later ones that are not negative"

    def outside(self, losses: Tensor, known: Tensor | None = None) -> Tensor | None:
        """Return where losses are outside (NaN is not); None where nothing can be.

        Args:
            losses: [..., T].
            known: bool [..., T], where the first losses are known; None: nowhere.

        Returns:
            bool [..., T], or None.
        """
        if self is LossDomain.ANY:
            return None
        if self is LossDomain.NON_NEGATIVE:
            return losses < 0
        wrong = losses <= 0
        if self in (LossDomain.POSITIVE, LossDomain.ABOVE_LOWER_BOUND) or known is None:
            return wrong
        later = losses < 0 if self is LossDomain.POSITIVE_AT_FIRST_THEN_NON_NEGATIVE else torch.zeros_like(wrong)
        return torch.where(known, later, wrong)

    def reason(self, name: str) -> Reason:
        """Return the words for a method of this name that meets a loss outside."""
        lower = self is LossDomain.ABOVE_LOWER_BOUND
        remedy = "Give it a lower_bound below all losses, or choose a method that takes any loss." if lower else SHIFT
        return Reason(f"{name} needs {self.value}; task {{task}}{{where}} had {{value:.3g}}", remedy)


@dataclass(frozen=True)
class Reason:
    """A reason why a step was not made, in words.

    fact: with places for ``where`` (the subproblem, if there are several), and for ``task`` and ``value``.
    remedy: what to do about it, if that is known.
    """

    fact: str
    remedy: str = ""

    def of(self, rows: Sequence[int] | None, task: int, value: float) -> str:
        """The fact about these subproblems (None: there is one model only), of which the first had this value."""
        if not rows:
            return self.fact.format(where="", task=task, value=value)
        if "{task}" not in self.fact:
            return self.fact.format(where=f" of subproblem {', '.join(map(str, rows))}")
        fact = self.fact.format(where=f" of subproblem {rows[0]}", task=task, value=value)
        return fact + (f" (others: subproblem {', '.join(map(str, rows[1:]))})" if rows[1:] else "")


def first_offence(wrong: Tensor, values: Tensor, number: int, num_tasks: int) -> Tensor:
    """Return the first thing that is wrong in each row, as numbers.

    Args:
        wrong: bool [K, N] of N = T entries, or several times T.
        values: [K, N], the entries.
        number: of the reason.
        num_tasks: T.

    Returns:
        float64 [K, 3]: ``number`` (0 where nothing is wrong), and the task and the value of the first that is.
    """
    at = wrong.to(torch.uint8).argmax(-1, keepdim=True)
    found = torch.cat([torch.full_like(at, number), at % num_tasks, values.gather(-1, at)], -1)
    return torch.where(wrong.any(-1, keepdim=True), found, 0.0)
