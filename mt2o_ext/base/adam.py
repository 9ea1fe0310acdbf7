"""Adam and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops import Rule
from .rule import BaseRule, flag, number


@dataclass(frozen=True)
class Adam(BaseRule):
    """Adam (Kingma & Ba, 2015), AMSGrad with ``amsgrad=True`` (Reddi et al., 2018); as ``torch.optim.Adam``."""

    betas: tuple[float, float] = number((0.9, 0.999), "beta1", "beta2", below=1.0)
    eps: float = number(1e-8)
    weight_decay: float = number(0.0)
    amsgrad: bool = flag(False)
    maximize: bool = flag(False)
    decoupled_weight_decay: bool = flag(False, "decoupled")

    rules: ClassVar = {Rule.ADAM: None, Rule.AMSGRAD: "amsgrad"}
    counts_steps = True
    source = "torch.optim.Adam"


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019); as ``torch.optim.AdamW``."""

    weight_decay: float = number(1e-2)
    decoupled_weight_decay: bool = flag(True, "decoupled")

    source = "torch.optim.AdamW"
