"""Scalarizations: T losses and a preference become one number, the objective of a subproblem.

Which one to take, for losses l and a preference w on the simplex:

* `Linear`: sum w l. Smooth, no parameter; reaches only the convex parts of a front and collapses to the ends of a
  concave one.
* `SmoothTchebycheff`: the default wherever the shape of the front is unknown. Reaches concave parts too and stays
  smooth.
* `Tchebycheff`: its limit mu -> 0: the worst weighted loss alone. Exact, but only one task trains in each step.
* `PBI`: holds the losses on the ray of the preference; some coefficients may be negative.
* `Log`: sum w log l, for positive losses of very different or drifting units.

An optimizer asks for `coefficients`, the derivatives by the losses, and combines the task gradients with them. No
scalarization contains an absolute tolerance: multiplying the losses (and `mu`, `ideal`) by any a > 0 changes no
direction. A row of losses with NaN or infinity gives NaN coefficients and never raises, because the optimizers skip
non-finite steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from .loss_domain import LossDomain, first_offence

PerTask: TypeAlias = "float | Sequence[float] | Tensor"
"""One number for all tasks, or one for each task [T]."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Scalarization(ABC):
    """Base class: a subclass gives `_value` and its analytic gradient, both on float64 losses divided by `loss_scale`.
    `loss_domain` says for which losses they exist; others give NaN in all coefficients of their row.

    `loss_scale` (float or [T], positive) divides the losses, so that tasks with different units can be compared; a good
    choice is the losses of a constant predictor. `ideal`, where there is one, is in the units of the losses; `mu` in
    those of the scaled losses.
    """

    loss_scale: PerTask = 1.0

    loss_domain: ClassVar[LossDomain] = LossDomain.ANY

    def __post_init__(self) -> None:
        self._normalise("loss_scale", positive=True)

    def __call__(self, losses: Tensor, preferences: Tensor) -> Tensor:
        """The values [...] for losses [..., T] and preferences [..., T], which broadcast. Differentiable by both.

        Computed in float64, returned in the losses' dtype. Raises TypeError or ValueError for tensors that do not fit
        together.
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
    def refusals(self, losses: Tensor) -> Tensor | None:
        """float64 [K, 3] of losses [K, T]: 1 in the rows that are finite and have one outside of `loss_domain`, its
        task and its value; else 0. None: there cannot be any.
        """
        outside = self.loss_domain.outside(losses)
        if outside is None:
            return None
        finite = losses.isfinite().all(-1, keepdim=True)
        return first_offence(outside & finite, losses.double(), 1, losses.shape[-1])

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
                raise TypeError(f"{name} must be a floating-point tensor [..., T], got {got}")
        if losses.ndim == 0 or preferences.ndim == 0 or losses.shape[-1] != preferences.shape[-1]:
            raise ValueError(
                "losses and preferences must have the same number of tasks in their last dimension, "
                f"got shapes {tuple(losses.shape)} and {tuple(preferences.shape)}"
            )
        if losses.device != preferences.device:
            raise ValueError(
                f"losses are on {losses.device} but preferences on {preferences.device}: "
                "move the preferences once, before the first step, with preferences.to(losses.device)"
            )
        try:
            shape = torch.broadcast_shapes(losses.shape, preferences.shape)
        except RuntimeError:
            raise ValueError(
                f"losses {tuple(losses.shape)} and preferences {tuple(preferences.shape)} do not broadcast: "
                "give one row of preferences for each row of losses, or one for all"
            ) from None
        scaled = self._above_ideal(losses.double()) / self._per_task("loss_scale", losses)
        return scaled.expand(shape), preferences.double().expand(shape)

    def _above_ideal(self, losses: Tensor) -> Tensor:
        """The losses themselves here: only some scalarizations have an ideal point."""
        return losses

    def _per_task(self, name: str, losses: Tensor) -> float | Tensor:
        """The option `name` as a float, or as a tensor [T] beside the losses."""
        value = getattr(self, name)
        if isinstance(value, float):
            return value
        if len(value) != losses.shape[-1]:
            raise ValueError(f"{name} has {len(value)} entries, expected one for each of the {losses.shape[-1]} tasks")
        return _on_device(value, losses.device)

    def _normalise(self, name: str, positive: bool) -> None:
        """Replaces the option by a float or a tuple of floats: comparable, printable, independent of the caller's
        tensor.
        """
        value = getattr(self, name)
        if hasattr(value, "tolist"):  # a tensor or an array
            value = value.tolist()
        try:
            value = tuple(float(v) for v in value) if isinstance(value, Sequence) else float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a number or one number per task, got {getattr(self, name)!r}") from None
        numbers = (value,) if isinstance(value, float) else value
        if not numbers or not all(math.isfinite(v) and (v > 0.0 or not positive) for v in numbers):
            raise ValueError(f"{name} must be finite{' and positive' if positive else ''}, got {value}")
        object.__setattr__(self, name, value)


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, because copying from the host in each step would make it wait for the device."""
    return torch.tensor(values, dtype=torch.float64, device=device)


@dataclass(frozen=True, repr=False, kw_only=True)
class _FromIdeal(Scalarization):
    """A scalarization of the distances f = (l - ideal) / loss_scale; `ideal` (float or [T]) is a lower bound of the
    losses.
    """

    ideal: PerTask = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._normalise("ideal", positive=False)

    def _above_ideal(self, losses: Tensor) -> Tensor:
        return losses - self._per_task("ideal", losses)


@dataclass(frozen=True, repr=False)
class Linear(Scalarization):
    """sum_t w_t l_t; coefficients w."""

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return (preferences * losses).sum(-1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return preferences


@dataclass(frozen=True, repr=False)
class Tchebycheff(_FromIdeal):
    """max_t w_t f_t with f = l - ideal; the coefficient is w_t at the maximum (the lowest task on ties) and 0
    elsewhere.
    """

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted = preferences * losses
        return weighted.gather(-1, weighted.argmax(-1, keepdim=True)).squeeze(-1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        worst = (preferences * losses).argmax(-1, keepdim=True)
        return torch.zeros_like(losses).scatter(-1, worst, preferences.gather(-1, worst))


@dataclass(frozen=True, repr=False)
class SmoothTchebycheff(_FromIdeal):
    """mu log sum_t exp(w_t f_t / mu) with f = l - ideal; coefficients w softmax(w f / mu).

    Between `Tchebycheff` and `Tchebycheff` + mu log T. `mu` (positive) has the units of the losses: far below the
    differences between the weighted losses it is `Tchebycheff`, far above them it is `Linear` divided by T. Source: Lin
    et al., "Smooth Tchebycheff scalarization for multi-objective optimization", ICML 2024.
    """

    mu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("mu", self.mu)
        if not self.mu > 0.0:
            raise ValueError(f"mu must be positive, got {self.mu}: for the limit mu -> 0 take Tchebycheff()")

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted = preferences * losses
        worst = weighted.detach().amax(-1, keepdim=True)
        return worst.squeeze(-1) + self.mu * torch.logsumexp((weighted - worst) / self.mu, -1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        weighted = preferences * losses
        worst = weighted.amax(-1, keepdim=True)  # subtracted first, so that no quotient overflows for a small mu
        return preferences * torch.softmax((weighted - worst) / self.mu, -1)


@dataclass(frozen=True, repr=False)
class PBI(_FromIdeal):
    """Penalty boundary intersection, d1 + theta d2: the distance along the ray of w and the distance from it.

    With f = l - ideal and h = w / |w|: d1 = f . h and d2 = |f - d1 h|. Coefficients h + theta (f - d1 h) / d2, and h on
    the ray itself. They may be negative: a task that is ahead of the preference is held back, the more the larger
    `theta` (not negative). Source: Zhang and Li, "MOEA/D", IEEE Trans. Evol. Comput. 2007. Unlike the other
    scalarizations, a *larger* entry of w asks for a *larger* share of the loss.
    """

    theta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("theta", self.theta)
        if self.theta < 0.0:
            raise ValueError(f"theta must not be negative, got {self.theta}")

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        _, along, across, off_ray = self._split(losses, preferences)
        distance: Tensor = torch.linalg.vector_norm(
            across.where(off_ray, 1.0), dim=-1
        )  # 1: the norm has no derivative at zero
        return along.squeeze(-1) + self.theta * distance.where(off_ray.squeeze(-1), 0.0)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        direction, _, across, off_ray = self._split(losses, preferences)
        distance: Tensor = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
        return direction + self.theta * (across / distance).where(off_ray, 0.0)

    @staticmethod
    def _split(losses: Tensor, preferences: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The direction h [..., T], d1 [..., 1], f - d1 h [..., T] and whether that is more than rounding [..., 1]."""
        direction = preferences / torch.linalg.vector_norm(preferences, dim=-1, keepdim=True)
        along = (losses * direction).sum(-1, keepdim=True)
        across = losses - along * direction
        rounding = losses.shape[-1] * torch.finfo(losses.dtype).eps * losses.abs().amax(-1, keepdim=True)
        return direction, along, across, across.abs().amax(-1, keepdim=True) > rounding


@dataclass(frozen=True, repr=False)
class Log(Scalarization):
    """sum_t w_t log l_t; coefficients w / l, so that each task counts by its relative progress.

    A loss that is not positive gives NaN, in the value and in all coefficients of its row. `loss_scale` shifts the
    value and changes no coefficient: the logarithm needs no common unit.
    """

    loss_domain: ClassVar[LossDomain] = LossDomain.POSITIVE

    def _value(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return (preferences * torch.log(losses.where(losses > 0.0, math.nan))).sum(-1)

    def _gradient(self, losses: Tensor, preferences: Tensor) -> Tensor:
        return preferences / losses


def as_scalarization(scalarization: object) -> Scalarization:
    """Returns a `Scalarization` as it is; raises a TypeError that lists the available ones for everything else."""
    if isinstance(scalarization, Scalarization):
        return scalarization
    known = ", ".join(f"{cls.__name__}()" for cls in (Linear, SmoothTchebycheff, Tchebycheff, PBI, Log))
    raise TypeError(f"expected a scalarization, one of {known} or your own Scalarization, got {scalarization!r}")
