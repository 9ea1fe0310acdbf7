"""The rules of ``step_``: which moments each keeps, and its formula in plain torch.

The numbers are those of the list in ``csrc/core/arguments.h``, the formulas those of ``csrc/core/rules``.  With float64
tensors they are exact; they are also what runs where nothing was compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

# Columns of the table of hyper-parameters, one row per segment; for SGD, beta1 is the momentum.
FIELDS = (
    "lr", "weight_decay", "decoupled", "beta1", "beta2", "eps", "dampening", "nesterov", "maximize", "amsgrad",
    "transfer", "ema",
)  # fmt: skip
NUM_CONSTANTS = 14
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # arguments of ``step_``; a rule keeps the first few
SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq"})  # the moments that are never negative


class Rule(IntEnum):
    """The base rule, by its number in the kernels."""

    SGD = 0
    MOMENTUM = 1
    ADAM = 2
    AMSGRAD = 3
    LION = 4

    @property
    def moments(self) -> tuple[str, ...]:
        """The arguments of ``step_`` that it needs, a part of MOMENTS."""
        return MOMENTS[: _RULES[self][0]]


# From the gradient, the moments (both [K, P], of one tensor), the hyper-parameters by name and the number of this step,
# float64 [K, 1]: what is added to the parameter, but for a decoupled decay, and the new moments.
Fields = dict[str, Tensor]
Formula = Callable[[Tensor, list[Tensor], Fields, Tensor], tuple[Tensor, list[Tensor]]]


def _sgd(g: Tensor, moments: list[Tensor], f: Fields, count: Tensor) -> tuple[Tensor, list[Tensor]]:
    return -f["lr"] * g, []


def _momentum(g: Tensor, moments: list[Tensor], f: Fields, count: Tensor) -> tuple[Tensor, list[Tensor]]:
    first = (count == 1) | (f["beta1"] == 0)
    m = torch.where(first, g, f["beta1"] * moments[0] + (1 - f["dampening"]) * g)
    return -f["lr"] * torch.where(f["nesterov"] != 0, g + f["beta1"] * m, m), [m]


def _adam(g: Tensor, moments: list[Tensor], f: Fields, count: Tensor) -> tuple[Tensor, list[Tensor]]:
    m, v = _advanced(g, moments, f)
    return _adapted(m, v, f, count), [m, v]


def _amsgrad(g: Tensor, moments: list[Tensor], f: Fields, count: Tensor) -> tuple[Tensor, list[Tensor]]:
    m, v = _advanced(g, moments, f)
    top = torch.where(f["amsgrad"] != 0, torch.maximum(moments[2], v), v)
    return _adapted(m, top, f, count), [m, v, top]


def _advanced(g: Tensor, moments: list[Tensor], f: Fields) -> tuple[Tensor, Tensor]:
    m = f["beta1"] * moments[0] + (1 - f["beta1"]) * g
    return m, f["beta2"] * moments[1] + (1 - f["beta2"]) * g * g


def _adapted(m: Tensor, v: Tensor, f: Fields, count: Tensor) -> Tensor:
    root = (1 / (1 - f["beta2"] ** count).sqrt()).to(m.dtype)
    size = (f["lr"] / (1 - f["beta1"] ** count)).to(m.dtype)
    return -size * m / (root * v.sqrt() + f["eps"])


def _lion(g: Tensor, moments: list[Tensor], f: Fields, count: Tensor) -> tuple[Tensor, list[Tensor]]:
    direction = f["beta1"] * moments[0] + (1 - f["beta1"]) * g
    sign = torch.where(direction.isnan(), direction, direction.sign())  # torch's sign of NaN is 0, which would hide it
    return -f["lr"] * sign, [f["beta2"] * moments[0] + (1 - f["beta2"]) * g]


# How many moments a rule keeps, and its formula.
_RULES: dict[Rule, tuple[int, Formula]] = {
    Rule.SGD: (0, _sgd),
    Rule.MOMENTUM: (1, _momentum),
    Rule.ADAM: (2, _adam),
    Rule.AMSGRAD: (3, _amsgrad),
    Rule.LION: (1, _lion),
}


def reference_update(
    rule: int, x: Tensor, g: Tensor, moments: list[Tensor], f: Fields, count: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The change of x, and the new moments.  Weight decay and ``maximize`` are the same for every rule."""
    g = torch.where(f["maximize"] != 0, -g, g)
    decoupled = f["decoupled"] != 0
    decay = torch.where(decoupled, -f["lr"] * f["weight_decay"], 0.0) * x
    g = g + torch.where(decoupled, 0.0, f["weight_decay"]) * x
    _, formula = _RULES[Rule(rule)]
    update, new = formula(g, moments, f, count)
    return decay + update, new
