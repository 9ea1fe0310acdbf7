"""Stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..ops import Rule
from .rule import BaseRule, flag, number


@dataclass(frozen=True)
class SGD(BaseRule):
    """Stochastic gradient descent, with momentum (plain or Nesterov); formulas and defaults of ``torch.optim.SGD``."""

    momentum: float = number(0.0, "beta1")
    dampening: float = number(0.0, low=-math.inf)
    weight_decay: float = number(0.0)
    nesterov: bool = flag(False)
    maximize: bool = flag(False)

    rules: ClassVar = {Rule.SGD: None, Rule.MOMENTUM: "momentum"}
    keys = ("momentum_buffer",)
    shown = ("momentum_buffer",)
    source = "torch.optim.SGD"

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"expected momentum > 0 and dampening = 0 for nesterov=True, got momentum={group['momentum']} and "
                f"dampening={group['dampening']}: change them, or pass nesterov=False"
            )
