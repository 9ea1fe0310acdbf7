"""A transfer rule that the package does not have: the placebo."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2o_ext.transfer import Spectral


class Placebo(Spectral):
    """`Spectral` with preferences that belong to other rows: it shows what any averaging would gain."""

    def bind(self, preferences: Tensor) -> None:
        order = torch.randperm(len(preferences), generator=torch.Generator().manual_seed(7))
        super().bind(preferences[order.to(preferences.device)])
