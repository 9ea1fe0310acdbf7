"""The rate of a transfer over time, in [0, 1]: 0 no transfer, 1 all of it.

Transfer that fades leaves no bias; transfer that stays while the learning rate decays draws the front together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..checks import check_count, check_positive, check_real

if TYPE_CHECKING:
    from .base import TransferContext


class Schedule(ABC):
    """Gives the rate in [0, 1] for a step: a float, or a 0-d tensor where it follows a value on the device.

    Attributes:
        counts_steps: the rate depends on ``context.step``.

    Example:
        >>> class OnAndOff(Schedule):
        ...     counts_steps = True
        ...
        ...     def __call__(self, context):
        ...         return float(context.step % 100 < 50)
        ...
        >>> rule = Mean(OnAndOff())
    """

    counts_steps: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, context: TransferContext) -> float | Tensor: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """rate = ``value``.

    Example:
        >>> Hat(rate=Constant(0.5)).rate
        Constant(value=0.5)
    """

    value: float

    def __post_init__(self) -> None:
        check_real("value", self.value, maximum=1.0)

    def __call__(self, context: TransferContext) -> float:
        return float(self.value)


@dataclass(frozen=True)
class _Decay(Schedule):
    """From ``start`` to ``end`` in ``steps`` steps, then ``end``."""

    counts_steps = True

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        check_real("start", self.start, maximum=1.0)
        check_count("steps", self.steps)
        check_real("end", self.end, maximum=1.0)

    def __call__(self, context: TransferContext) -> float:
        share = self.share_left(min(context.step / self.steps, 1.0))
        return share * self.start + (1 - share) * self.end

    @abstractmethod
    def share_left(self, progress: float) -> float:
        """From 1 at progress 0 to 0 at progress 1."""


class LinearDecay(_Decay):
    """From ``start`` to ``end`` on a straight line in ``steps`` steps, then ``end``.

    Example:
        >>> Mean(LinearDecay(0.8, steps=1000)).rate
        LinearDecay(start=0.8, steps=1000, end=0.0)
    """

    def share_left(self, progress: float) -> float:
        return 1 - progress


class CosineDecay(_Decay):
    """From ``start`` to ``end`` on half a cosine in ``steps`` steps, then ``end``.

    Example:
        >>> Mean(CosineDecay(0.8, steps=1000, end=0.1)).rate
        CosineDecay(start=0.8, steps=1000, end=0.1)
    """

    def share_left(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """rate = max(``end``, ``start`` * 2^(-step / ``half_life``)), the half-life in steps.

    Example:
        >>> Mean(ExponentialDecay(0.8, half_life=100)).rate
        ExponentialDecay(start=0.8, half_life=100, end=0.0)
    """

    counts_steps = True

    start: float
    half_life: float
    end: float = 0.0

    def __post_init__(self) -> None:
        check_real("start", self.start, maximum=1.0)
        check_positive("half_life", self.half_life)
        check_real("end", self.end, maximum=1.0)

    def __call__(self, context: TransferContext) -> float:
        return max(self.end, self.start * math.exp(-math.log(2) * context.step / self.half_life))


@dataclass(frozen=True)
class WithLearningRate(Schedule):
    """rate = ``value`` * lr / initial lr, at most 1: the coupling per unit of learning rate stays the same.

    Example:
        >>> Mean(WithLearningRate(0.8)).rate
        WithLearningRate(value=0.8)
    """

    value: float

    def __post_init__(self) -> None:
        check_real("value", self.value, maximum=1.0)

    def __call__(self, context: TransferContext) -> Tensor:
        check_positive("the initial learning rate of WithLearningRate", context.initial_lr)
        return (self.value / context.initial_lr * context.lr).clamp(max=1.0)


def as_schedule(value: float | Schedule, name: str = "rate") -> Schedule:
    """``value`` itself when it is a schedule, else `Constant`; ``name`` is that of the option, for messages."""
    return value if isinstance(value, Schedule) else Constant(check_real(name, value, maximum=1.0))
