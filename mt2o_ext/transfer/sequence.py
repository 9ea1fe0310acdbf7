"""One transfer rule after another."""

from __future__ import annotations

from collections.abc import Sequence as Stages

from torch import Tensor

from ..checks import check_count
from .base import TransferContext, TransferRule
from .user import as_transfer_rule

__all__ = ["Sequence"]


class Sequence(TransferRule):
    """Rules that follow one another, each for a number of steps.

    Each rule goes by the count of all steps of the optimizer, its ``every`` and its schedule too.

    Args:
        stages: pairs of a rule (or its name) and the number of steps that it lasts; None for the last one: to the end.

    Raises:
        TypeError: for something that is no rule, and for numbers of steps that are no whole numbers.
        ValueError: for no stage, for a last stage that ends or another one that does not, and for rules that filter
            changes (``relative``) or want another order than the others.

    Example:
        >>> rule = Sequence([(Mean(1.0), 100), (Spectral(), None)])  # one model at first
        >>> [type(rule.at(step)).__name__ for step in (99, 100)]
        ['Mean', 'Spectral']
    """

    counts_steps = True

    def __init__(self, stages: Stages[tuple[TransferRule | str, int | None]]) -> None:
        super().__init__()
        if len(stages) == 0:
            raise ValueError("expected at least one stage, a pair of a rule and its number of steps, got none")
        *before, (_, last) = stages
        if last is not None or any(steps is None for _, steps in before):
            raise ValueError(
                f"expected None as the number of steps of the last stage and of no other, got "
                f"{[steps for _, steps in stages]}: the last rule goes on to the end"
            )
        self.rules = [as_transfer_rule(rule) for rule, _ in stages]
        self._ends = [check_count("steps", steps) for _, steps in before if steps is not None]
        if any(rule.relative for rule in self.rules):
            raise ValueError("expected rules about positions in a Sequence, got one with relative=True: leave it out")
        orders = {rule.order for rule in self.rules}
        if len(orders) > 1:
            raise ValueError(f"expected rules of one order in a Sequence, got {sorted(map(str, orders))}: take one")
        [self.order] = orders
        self.nonnegative = all(rule.nonnegative for rule in self.rules)

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        for rule in self.rules:
            rule.bind(preferences)
        self.needs_gram = any(rule.needs_gram for rule in self.rules)
        self.needs_slopes = any(rule.needs_slopes for rule in self.rules)

    def at(self, step: int) -> TransferRule:
        """The rule of the step that follows ``step`` finished ones."""
        for rule, steps in zip(self.rules, self._ends, strict=False):
            if step < steps:
                return rule
            step -= steps
        return self.rules[-1]

    def due(self, step: int) -> bool:
        return self.at(step).due(step)

    def matrix(self, context: TransferContext) -> Tensor | None:
        self._check_bound()
        return self.at(context.step).matrix(context)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": value for i, rule in enumerate(self.rules) for name, value in rule.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._check_state(state, {name: value.shape for name, value in self.state_dict().items()})
        for i, rule in enumerate(self.rules):
            own = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{i}.")}
            rule.load_state_dict(own)
