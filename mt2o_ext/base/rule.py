"""The base class of all base rules, and how a rule states its options.

A rule is a frozen dataclass: its fields are the options of a parameter group, with their defaults, and a few class
attributes say which of the kernels' rules it uses and under which names its state is shown.  All else follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..ops import MOMENTS, Rule

__all__ = ["BaseRule", "flag", "number"]


@dataclass(frozen=True)
class Option:
    """The range of an option's numbers, and the columns of the kernels' table that they fill.

    columns: names in ``ops.FIELDS``; none: the option's own name.
    low, below: the range [low, below); None: the option is True or False.
    """

    columns: tuple[str, ...]
    low: float | None = None
    below: float = math.inf

    def check(self, name: str, value: Any, default: Any) -> None:
        """Checks that a value is like the default and in the range.

        Args:
            name: of the option, for the message.
            value: of the option.
            default: that of the option; a tuple asks for as many numbers.

        Raises:
            TypeError: for a value of another kind.
            ValueError: for a number out of the range, or another count of numbers.
        """
        if self.low is None:
            if isinstance(value, str) or value not in (False, True):
                raise TypeError(f"expected {name} as True or False, got {value!r:.80}: pass one of them")
        elif not isinstance(default, tuple):
            self._check_number(name, value, self.low)
        elif not isinstance(value, (tuple, list)) or len(value) != len(default):
            words = {2: "two"}.get(len(default), str(len(default)))
            raise ValueError(
                f"expected {name} as {words} numbers {self._range(self.low)}, got {value!r:.80}: pass a tuple of them"
            )
        else:
            for index, one in enumerate(value):
                self._check_number(f"{name}[{index}]", one, self.low)

    def _check_number(self, name: str, value: Any, low: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
            raise TypeError(f"expected {name} as a number, got {value!r:.80}: pass a float")
        if not math.isfinite(float(value)) or not low <= float(value) < self.below:
            raise ValueError(f"expected {name} {self._range(low)}, got {value}: choose a value in that range")

    def _range(self, low: float) -> str:
        if self.below < math.inf:
            return f"in [{low:g}, {self.below:g})"
        return "finite" if low == -math.inf else f"finite and at least {low:g}"


def number(default: float | tuple[float, ...], *columns: str, low: float = 0.0, below: float = math.inf) -> Any:
    """An option of a rule that is a number, or several, in [low, below)."""
    return field(default=default, metadata={"option": Option(columns, low, below)})


def flag(default: bool, *columns: str) -> Any:
    """An option of a rule that is True or False."""
    return field(default=default, metadata={"option": Option(columns)})


class BaseRule:
    """The update that one subproblem makes with its combined gradient.  Subclasses are frozen dataclasses of options.

    rules: the kernels' rules that serve it, each with the option that asks for it; first the one that is always there,
        without an option, then those that keep more.
    keys: names in ``optimizer.state`` of the moments that these rules keep, in the order of ``ops.MOMENTS``.
    counts_steps: the state has a ``step``.
    shown: entries that torch.optim shows (as None) also where they are not used.
    always: columns of the kernels' table that no option fills.
    lr: the learning rate to begin with, of its authors or of torch.optim.
    source: the paper, or the optimizer of torch.optim that it equals.
    """

    rules: ClassVar[Mapping[Rule, str | None]]
    keys: ClassVar[tuple[str, ...]] = MOMENTS
    counts_steps: ClassVar[bool] = False
    shown: ClassVar[tuple[str, ...]] = ()
    always: ClassVar[Mapping[str, float]] = {}
    lr: ClassVar[float] = 1e-3
    source: ClassVar[str]

    # These follow from the above.  They are worked out once for each class, as every step reads them for every group.
    _options: ClassVar[dict[str, tuple[Option, Any]]] = {}  # each option by its name, with its default
    _columns: ClassVar[list[tuple[str, str]]]  # a column of the table, and the option of one number that fills it
    _several: ClassVar[list[tuple[tuple[str, ...], str]]]  # several columns, and the option of as many numbers
    _first: ClassVar[tuple[Rule, dict[str, str]]]  # the first rule, and its moments: state key -> buffer
    _asked_for: ClassVar[list[tuple[str, Rule, dict[str, str]]]]  # the option, the rule and its moments; longest first

    def __init_subclass__(cls) -> None:
        own = {name: one for name, one in vars(cls).items() if isinstance(one, Field)}  # dataclass comes after this
        cls._options = {**cls._options, **{name: (one.metadata["option"], one.default) for name, one in own.items()}}
        columns = [(option.columns or (name,), name) for name, (option, _) in cls._options.items()]
        cls._columns = [(names[0], name) for names, name in columns if len(names) == 1]
        cls._several = [(names, name) for names, name in columns if len(names) > 1]
        kept = [(option, rule, dict(zip(cls.keys, rule.moments, strict=False))) for rule, option in cls.rules.items()]
        cls._first = kept[0][1:]
        cls._asked_for = [(option, rule, moments) for option, rule, moments in kept[::-1] if option is not None]

    def defaults(self) -> dict[str, Any]:
        """Options of a parameter group, but for ``lr``."""
        return asdict(self)  # type: ignore[call-overload]

    def check(self, group: Mapping[str, Any]) -> None:
        """Checks the options of a parameter group.

        Raises:
            TypeError: for an option of the wrong kind.
            ValueError: for an option out of range.
        """
        for name, (option, default) in self._options.items():
            option.check(name, group[name], default)

    def rule(self, groups: Sequence[Mapping[str, Any]]) -> Rule:
        """The kernels' rule that serves all these groups."""
        for option, rule, _ in self._asked_for:
            for group in groups:
                if group[option] != 0:
                    return rule
        return self._first[0]

    def moments(self, group: Mapping[str, Any]) -> dict[str, str]:
        """State key -> buffer, of a parameter in this group."""
        for option, _, moments in self._asked_for:
            if group[option] != 0:
                return moments.copy()
        return self._first[1].copy()

    def fields(self, group: Mapping[str, Any]) -> dict[str, float]:
        """The columns of the kernels' hyper-parameter table that this rule fills, but for ``lr``."""
        values = dict(self.always)
        for column, name in self._columns:
            values[column] = group[name]
        for columns, name in self._several:
            for column, value in zip(columns, group[name], strict=True):
                values[column] = value
        return values

    @classmethod
    def state_keys(cls) -> dict[str, str]:
        """State key -> buffer, of a parameter in any group."""
        return (cls._asked_for[0][2] if cls._asked_for else cls._first[1]).copy()

    @property
    def needed(self) -> tuple[str, ...]:
        """The entries of a state that come together."""
        return ("step",) * self.counts_steps + tuple(self._first[1])

    @property
    def counted_by(self) -> tuple[str, ...]:
        """The entries that tell, where no ``step`` does, that the next step of a parameter is not its first."""
        return () if self.counts_steps else tuple(self.state_keys())
