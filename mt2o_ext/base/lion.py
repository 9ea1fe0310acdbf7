"""Lion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops import Rule
from .rule import BaseRule, flag, number


@dataclass(frozen=True)
class Lion(BaseRule):
    """Steps of one size: the sign of an average of gradients, with decoupled weight decay.

    theta <- theta - lr (sign(beta1 m + (1 - beta1) g) + weight_decay theta), then m <- beta2 m + (1 - beta2) g
    (Chen et al., 2023, arXiv 2302.06675, Algorithm 2).  The sign of 0 is 0.  One moment, where Adam has two.  Its
    authors take an ``lr`` 3 to 10 times smaller than AdamW's, and a ``weight_decay`` as many times larger.

    A parameter whose gradient is nothing but rounding errors, such as a bias in front of a batch norm, moves by ``lr``
    at each step too, in a direction that means nothing: leave such parameters out.
    """

    betas: tuple[float, float] = number((0.9, 0.99), "beta1", "beta2", below=1.0)
    weight_decay: float = number(0.0)
    maximize: bool = flag(False)

    rules: ClassVar = {Rule.LION: None}
    always: ClassVar = {"decoupled": 1.0}
    lr = 1e-4
    source = "Chen et al., NeurIPS 2023, arXiv 2302.06675"
