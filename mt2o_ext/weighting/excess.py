"""ExcessMTL: weights by how far the tasks are from convergence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_count, check_real
from .context import Needs, WeightingContext
from .elements import kernels_of
from .memory import MemoryWeighting
from .registry import register
from .state import State


@register("excessmtl")
class ExcessMTL(MemoryWeighting):
    """ExcessMTL (He, Zhou, Zhang, Yao, Chen and Zhao, ICML 2024, arXiv 2402.02009).

    A += g^2 over all steps; e_t = sum_j g_tj^2 / sqrt(A_tj) estimates the excess risk of task t (a term 0 / 0 is 0;
    published codes add 1e-7 to A); w <- w exp(eta e / e_0), sum T, from w = 1; e_0 is the first e. Homogeneous.

    Args:
        eta: 1e-2 in LibMTL, 1 in TorchJD.
        warmup_epochs: w stays 1 in them and e_0 is the mean of e over them (3 in the authors' experiments). Needs the
            user's count of epochs.

    State:
        ``log_weights``, ``first_excess``, ``warmup_steps`` [K, T]; ``memory.squares`` [K, T, P], A.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = mt2o_ext.WeightedFused([p], num_tasks=2, weighting=ExcessMTL(), base="sgd", lr=0.1)
        >>> losses = optimizer.step(lambda: [p.square().sum(), (p - 1).square().sum()])
        >>> p.detach()
        tensor([0.8000, 1.4000])
    """

    reads_preferences = False

    def __init__(self, *, eta: float = 1e-2, warmup_epochs: int = 0) -> None:
        super().__init__()
        self.eta = check_real("eta", eta)
        self.warmup_epochs = check_count("warmup_epochs", warmup_epochs, 0)
        self.needs = Needs.ROWS | (Needs.EPOCHS if warmup_epochs else Needs.NOTHING)

    def _initial_state(self, ones: Tensor) -> State:
        zeros = torch.zeros_like(ones)
        return {"log_weights": zeros, "first_excess": zeros.clone(), "warmup_steps": zeros.clone()}

    def _transform_(self, rows: Sequence[Tensor], context: WeightingContext) -> None:
        assert context.finite is not None
        excess = torch.zeros_like(context.preferences)
        kernels, columns = kernels_of(rows, context)
        for squares, matrix, (chunks, num_segments) in zip(
            self._remembered("squares", rows), rows, columns, strict=True
        ):
            out = excess.new_empty(len(matrix), num_segments, matrix.shape[1])
            partials = excess.new_empty(len(matrix), len(chunks), matrix.shape[1])
            kernels.excess_(out, partials, squares, matrix, context.finite, chunks)
            excess = excess + out.sum(1)
        if context.epoch < self.warmup_epochs:
            self._average_excess(excess)
            return
        first = self._state["first_excess"]
        known = first > 0
        ratio = torch.where(known, excess / torch.where(known, first, 1.0), (excess > 0).double())
        self._state["first_excess"] = torch.where(known, first, excess)
        moved = self._state["log_weights"] + self.eta * ratio
        # The weights do not feel a common factor, and without one the numbers do not grow; but of some tasks alone it
        # would be no common one.
        self._state["log_weights"] = moved if self._some_absent else moved - moved.amax(-1, keepdim=True)

    def _average_excess(self, excess: Tensor) -> None:
        first, count = self._state["first_excess"], self._state["warmup_steps"] + 1
        self._state["first_excess"] = first + (excess - first) / count
        self._state["warmup_steps"] = count

    def _weights(self, context: WeightingContext) -> Tensor:
        logs = self._state["log_weights"]
        return logs.shape[1] * torch.softmax(logs, -1)
