"""The base of all scalarizations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from ..checks import check_per_task, per_task
from ..loss_domain import LossDomain, first_offence

PerTask: TypeAlias = "float | Sequence[float] | Tensor"
"""One number for all tasks, or one for each task [T]."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Scalarization(ABC):
    """The base class: a subclass gives `_value` and its analytic gradient, both on float64 losses over `loss_scale`.

    `ideal`, where there is one, is in the units of the losses; `mu` in those of the scaled losses.

    Args:
        loss_scale: divides the losses, so that tasks with different units can be compared; positive, one number for all
            tasks or one for each. A good choice is the losses of a constant predictor.

    Attributes:
        loss_domain: the losses that the formula exists for; others give NaN in all coefficients of their row.
        whole_table: one value for all K subproblems: the coefficients of each depend on the losses of the others, and
            losses have the shape [..., K, T]. See `coefficients_of_row` for subproblems that run one by one.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, repr=False)
        ... class Squares(Scalarization):
        ...     def _value(self, losses, preferences):
        ...         return (preferences * losses**2).sum(-1) / 2
        ...
        ...     def _gradient(self, losses, preferences):
        ...         return preferences * losses
        ...
        >>> Squares().coefficients(torch.tensor([2.0, 0.5]), torch.tensor([0.5, 0.5]))
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    loss_scale: PerTask = 1.0

    loss_domain: ClassVar[LossDomain] = LossDomain.ANY
    whole_table: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss_scale", check_per_task("loss_scale", self.loss_scale, positive=True))

    def __call__(self, losses: Tensor, preferences: Tensor) -> Tensor:
        """The values [...] for losses [..., T] and preferences [..., T], which broadcast. Differentiable by both.

        Of a `whole_table`, the values [...] for losses [..., K, T].

        Computed in float64, returned in the losses' dtype.

        Raises:
            TypeError, ValueError: for tensors that do not fit together.
        """
        scaled, preferences = self._prepare(losses, preferences)
        return self._value(scaled, preferences).to(losses.dtype)

    @torch.no_grad()
    def coefficients(self, losses: Tensor, preferences: Tensor) -> Tensor:
        """d value / d losses, [..., T] float64 on the losses' device, detached; the host never waits for the device."""
        scaled, preferences = self._prepare(losses, preferences)
        gradient = self._gradient(scaled, preferences) / self._per_task("loss_scale", losses)
        usable = scaled.isfinite()
        outside = self.loss_domain.outside(scaled)
        if outside is not None:
            usable = usable & ~outside
        return gradient.where(usable.all(-1, keepdim=True), math.nan)

    @torch.no_grad()
    def coefficients_of_row(self, row: int, losses: Tensor, preferences: Tensor, last: Tensor) -> Tensor:
        """Return the coefficients [T] of one of K subproblems, float64, detached.

        Args:
            row: the subproblem.
            losses: [T], its own ones now.
            preferences: [K, T], of all.
            last: [K, T], the last losses of all, read for a `whole_table` only; NaN where they are not known yet. The
                row itself is replaced by ``losses``.
        """
        if not self.whole_table:
            return self.coefficients(losses, preferences[row])
        table = last.to(losses.device, torch.float64).clone()
        table[row] = losses
        return self.coefficients(table, preferences)[row]

    @torch.no_grad()
    def refusals(self, losses: Tensor) -> Tensor | None:
        """Return what is outside of `loss_domain`, as numbers.

        Args:
            losses: [K, T].

        Returns:
            float64 [K, 3]: 1 in the rows that are finite and have a loss outside, its task and its value; else 0. None:
            there cannot be any.
        """
        outside = self.loss_domain.outside(losses)
        if outside is None:
            return None
        finite = losses.isfinite().all(-1, keepdim=True)
        return first_offence(outside & finite, losses.double(), 1, losses.shape[-1])

    def of_tasks(self, tasks: Sequence[int]) -> Scalarization:
        """The same for some of the tasks, as if there were no others.

        (A subclass with other options of each task than `loss_scale` and `ideal` picks theirs here too.)
        """
        given = {name: getattr(self, name, None) for name in ("loss_scale", "ideal")}
        of_each = {name: value for name, value in given.items() if isinstance(value, tuple)}
        picked = {name: tuple(value[task] for task in tasks) for name, value in of_each.items()}
        return replace(self, **picked) if picked else self

    def __repr__(self) -> str:
        options = (f"{field.name}={getattr(self, field.name)!r}" for field in reversed(fields(self)))
        return f"{type(self).__name__}({', '.join(options)})"

    @abstractmethod
    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        """Values [...] of scaled losses."""

    @abstractmethod
    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        """Derivative [..., T] of `_value` by the scaled losses."""

    def _prepare(self, losses: Tensor, preferences: Tensor) -> tuple[Tensor, Tensor]:
        """Both as float64 of one shape, the losses scaled. Checks no values: those stay on the device."""
        for name, tensor in (("losses", losses), ("preferences", preferences)):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"expected {name} as a floating-point tensor [..., T], got {got}: convert it")
        if losses.ndim == 0 or preferences.ndim == 0 or losses.shape[-1] != preferences.shape[-1]:
            raise ValueError(
                "expected losses and preferences with the same number of tasks in their last dimension, got shapes "
                f"{tuple(losses.shape)} and {tuple(preferences.shape)}: give one number for each task"
            )
        if losses.device != preferences.device:
            raise ValueError(
                f"expected preferences on {losses.device} like the losses, got {preferences.device}: move them once, "
                "before the first step, with preferences.to(losses.device)"
            )
        if self.whole_table and losses.ndim < 2:
            raise ValueError(
                f"expected the losses of all subproblems [K, T], got the shape {tuple(losses.shape)}: "
                f"{type(self).__name__} looks at them together, call coefficients_of_row for one of them"
            )
        try:
            shape = torch.broadcast_shapes(losses.shape, preferences.shape)
        except RuntimeError:
            raise ValueError(
                "expected losses and preferences that broadcast, got shapes "
                f"{tuple(losses.shape)} and {tuple(preferences.shape)}: give one row of preferences for each row of "
                "losses, or one for all"
            ) from None
        scaled = self._above_ideal(losses.double()) / self._per_task("loss_scale", losses)
        return scaled.expand(shape), preferences.double().expand(shape)

    def _above_ideal(self, losses: Tensor) -> Tensor:
        """The losses themselves here: only some scalarizations have an ideal point."""
        return losses

    def _per_task(self, name: str, losses: Tensor) -> float | Tensor:
        """The option `name` as a float, or as a tensor [T] beside the losses."""
        value = getattr(self, name)
        return value if isinstance(value, float) else _on_device(name, value, losses.shape[-1], losses.device)


@lru_cache(maxsize=64)
def _on_device(name: str, values: tuple[float, ...], num_tasks: int, device: torch.device) -> Tensor:
    """Return `per_task`, kept: copying from the host in each step would make it wait for the device."""
    return per_task(name, values, num_tasks, device)


@dataclass(frozen=True, repr=False, kw_only=True)
class FromIdeal(Scalarization):
    """A scalarization of the distances f = (l - ideal) / loss_scale.

    Args:
        ideal: a lower bound of the losses, one number for all tasks or one for each.
    """

    ideal: PerTask = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ideal", check_per_task("ideal", self.ideal))

    def _above_ideal(self, losses: Tensor) -> Tensor:
        return losses - self._per_task("ideal", losses)
