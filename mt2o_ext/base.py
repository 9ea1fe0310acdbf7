"""The base rules: what one subproblem does with its combined gradient.

Formulas and defaults are those of ``torch.optim.SGD``, ``Adam`` and ``AdamW``, so are the names in parameter groups and
state dicts.  Every option may differ between parameter groups; the kernel still runs once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .ops import Rule

__all__ = ["SGD", "Adam", "AdamW", "BaseRule", "as_base_rule"]


class BaseRule(ABC):
    """What an optimizer asks of its base rule."""

    counts_steps: bool  # the state has a `step`
    needed: tuple[str, ...]  # the entries of a state that come together
    shown: tuple[str, ...] = ()  # entries that torch.optim shows (as None) also where they are not used

    def defaults(self) -> dict[str, Any]:
        """Options of a parameter group, but for ``lr``."""
        return asdict(self)  # type: ignore[call-overload]

    @abstractmethod
    def check(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError where an option of this group is out of range."""

    @abstractmethod
    def rule(self, groups: Sequence[Mapping[str, Any]]) -> Rule:
        """The kernel's rule that serves all these groups."""

    @abstractmethod
    def moments(self, group: Mapping[str, Any]) -> dict[str, str]:
        """State key -> buffer, of a parameter in this group."""

    @abstractmethod
    def fields(self, group: Mapping[str, Any]) -> dict[str, float]:
        """The columns of the kernel's hyper-parameter table that this rule fills, but for ``lr``."""


def _check_range(group: Mapping[str, Any], name: str, value: float, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name} must be a number, not {value!r:.80}")
    if not 0.0 <= float(value) < below:
        limit = "finite and at least 0" if below == math.inf else f"in [0, {below:g})"
        raise ValueError(f"{name} must be {limit}, not {value}")


@dataclass(frozen=True)
class SGD(BaseRule):
    """Stochastic gradient descent, with momentum (plain or Nesterov)."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    counts_steps = False
    needed = ()
    shown = ("momentum_buffer",)

    def check(self, group: Mapping[str, Any]) -> None:
        _check_range(group, "momentum", group["momentum"])
        if not isinstance(group["dampening"], (int, float)) or not math.isfinite(group["dampening"]):
            raise ValueError(f"dampening must be a finite number, not {group['dampening']!r:.80}")
        _check_range(group, "weight_decay", group["weight_decay"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum needs momentum > 0 and dampening = 0")

    def rule(self, groups: Sequence[Mapping[str, Any]]) -> Rule:
        return Rule.MOMENTUM if any(group["momentum"] != 0 for group in groups) else Rule.SGD

    def moments(self, group: Mapping[str, Any]) -> dict[str, str]:
        return {"momentum_buffer": "exp_avg"} if group["momentum"] != 0 else {}

    def fields(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {
            "weight_decay": group["weight_decay"],
            "beta1": group["momentum"],
            "dampening": group["dampening"],
            "nesterov": group["nesterov"],
            "maximize": group["maximize"],
        }


@dataclass(frozen=True)
class Adam(BaseRule):
    """Adam (Kingma & Ba, 2015), AMSGrad with ``amsgrad=True`` (Reddi et al., 2018)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False
    decoupled_weight_decay: bool = False
    counts_steps = True
    needed = ("step", "exp_avg", "exp_avg_sq")

    def check(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), not {group['betas']!r:.80}")
        for index in range(2):
            _check_range(group, f"betas[{index}]", group["betas"][index], below=1.0)
        _check_range(group, "eps", group["eps"])
        _check_range(group, "weight_decay", group["weight_decay"])

    def rule(self, groups: Sequence[Mapping[str, Any]]) -> Rule:
        return Rule.AMSGRAD if any(group["amsgrad"] for group in groups) else Rule.ADAM

    def moments(self, group: Mapping[str, Any]) -> dict[str, str]:
        names = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if group["amsgrad"] else [])
        return {name: name for name in names}

    def fields(self, group: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        return {
            "weight_decay": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "maximize": group["maximize"],
            "amsgrad": group["amsgrad"],
        }


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    weight_decay: float = 1e-2
    decoupled_weight_decay: bool = True


_BY_NAME = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def as_base_rule(base: BaseRule | str) -> BaseRule:
    """A rule itself, or the one with default options behind its name."""
    if isinstance(base, BaseRule):
        return base
    if isinstance(base, str) and base.lower() in _BY_NAME:
        return _BY_NAME[base.lower()]()
    raise ValueError(
        f"base must be SGD(...), Adam(...) or AdamW(...) of mt2o_ext.base, or one of {sorted(_BY_NAME)}; got {base!r}"
    )
