"""Rules whose M does not depend on the data: (1 - rate) I + rate P with a P made from the preferences."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..checks import check_count, check_mix, check_positive, check_real
from ..device import capturing
from .base import TransferContext, TransferRule
from .polynomial import symmetrized
from .registry import register
from .schedule import Schedule, as_schedule


class FixedMix(TransferRule):
    """M = (1 - rate) I + rate P.

    Args:
        rate: how much of P is applied, in [0, 1], a number or a `Schedule`.
        every: the rule is due at each ``every``-th step.
    """

    fixed = True

    def __init__(self, rate: float | Schedule, *, every: int) -> None:
        super().__init__(every=every)
        self.rate = as_schedule(rate)
        self.counts_steps = self.rate.counts_steps
        self._target: Tensor | None = None
        self._made: tuple[float, Tensor] | None = None  # a rate, and M
        self._sources: list[list[int]] | None = None

    @abstractmethod
    def target(self, preferences: Tensor) -> Tensor | None:
        """P [K, K] with rows that sum to 1; None where there is nothing to mix."""

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        self._target, self._made = self.target(preferences), None
        self._sources = None if self._target is None else [_nonzero(row) for row in self._target.tolist()]
        self.nonnegative = self._target is None or not bool((self._target < 0).any())

    def sources(self) -> list[list[int]] | None:
        return self._sources

    def matrix(self, context: TransferContext) -> Tensor | None:
        self._check_bound()
        if self._target is None:
            return None
        rate = self.rate(context)
        if isinstance(rate, float) and rate == 0:
            return None
        if isinstance(rate, Tensor) or torch.compiler.is_compiling() or capturing(self._target.device):
            return mixed(self._target, rate)
        if self._made is None or self._made[0] != rate:
            self._made = rate, mixed(self._target, rate)
        return self._made[1]


def _nonzero(row: list[float]) -> list[int]:
    return [j for j, entry in enumerate(row) if entry != 0]


def mixed(target: Tensor, rate: float | Tensor) -> Tensor:
    """(1 - rate) I + rate P, [K, K]."""
    return (1 - rate) * torch.eye(*target.shape, dtype=torch.float64, device=target.device) + rate * target


@register("mean")
class Mean(FixedMix):
    """P = 1 1^T / K: every subproblem moves to the mean of all. Biased where the tasks conflict.

    Args:
        rate: how much of P is applied, in [0, 1], a number or a `Schedule`.

    Example:
        >>> preferences = mt2o_ext.preferences.even(3)
        >>> rule = Mean(0.3)
        >>> rule.bind(preferences)
        >>> context = TransferContext(preferences, None, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[0.8000, 0.1000, 0.1000],
                [0.1000, 0.8000, 0.1000],
                [0.1000, 0.1000, 0.8000]], dtype=torch.float64)
    """

    def __init__(self, rate: float | Schedule, *, every: int = 1) -> None:
        super().__init__(rate, every=every)

    def target(self, preferences: Tensor) -> Tensor:
        num_subproblems = len(preferences)
        return preferences.new_full((num_subproblems, num_subproblems), 1 / num_subproblems)


@register("neighbours")
class Neighbours(FixedMix):
    """P_kj ~ exp(-|w_k - w_j|^2 / (2 width^2)) for j != k, rows normalised. Biased where the tasks conflict.

    Args:
        rate: how much of P is applied, in [0, 1], a number or a `Schedule`.
        width: distance in preference space at which the influence has fallen to exp(-1/2).
        nearest: only that many nearest subproblems count, and all those at the same distance as the last of them.

    Example:
        >>> preferences = mt2o_ext.preferences.even(3)
        >>> rule = Neighbours(0.5, width=0.5)
        >>> rule.bind(preferences)
        >>> context = TransferContext(preferences, None, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[0.5000, 0.4763, 0.0237],
                [0.2500, 0.5000, 0.2500],
                [0.0237, 0.4763, 0.5000]], dtype=torch.float64)
    """

    def __init__(self, rate: float | Schedule, width: float, nearest: int | None = None, *, every: int = 1) -> None:
        super().__init__(rate, every=every)
        self.width = check_positive("width", width)
        self.nearest = None if nearest is None else check_count("nearest", nearest)

    def target(self, preferences: Tensor) -> Tensor | None:
        others = len(preferences) - 1
        if others == 0:
            return None
        distance = torch.cdist(preferences, preferences, compute_mode="donot_use_mm_for_euclid_dist")
        distance.fill_diagonal_(torch.inf)
        if self.nearest is not None:
            if self.nearest > others:
                raise ValueError(f"expected nearest <= {others}, the other subproblems, got {self.nearest}: lower it")
            last = distance.kthvalue(self.nearest, dim=1, keepdim=True).values
            distance[distance > last * (1 + 1e-9)] = torch.inf  # equal distances differ by rounding
        # softmax: a width far below the spacing leaves the nearest ones, not 0/0.
        return torch.softmax(-((distance / self.width) ** 2) / 2, dim=1)


@register("mgd")
class MGD(FixedMix):
    """theta_k += rate * sum_j r_kj (theta_j - theta_k), the rule of MT2O's predecessor (read in its published code).

    Args:
        relation: r [K, K], its diagonal does not count; None: the cosines of the preferences.
        rate: of each step, in [0, 1]; not multiplied by the learning rate.

    Example:
        >>> preferences = mt2o_ext.preferences.even(3)
        >>> rule = MGD(rate=0.1)
        >>> rule.bind(preferences)
        >>> context = TransferContext(preferences, None, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[0.9293, 0.0707, 0.0000],
                [0.0707, 0.8586, 0.0707],
                [0.0000, 0.0707, 0.9293]], dtype=torch.float64)
    """

    def __init__(self, relation: Tensor | None = None, rate: float = 1e-3, *, every: int = 1) -> None:
        super().__init__(check_real("rate", rate, maximum=1.0), every=every)
        if relation is not None and not isinstance(relation, Tensor):
            raise TypeError(f"expected relation as a tensor [K, K] or None, got {type(relation).__name__}: convert it")
        self.relation = relation
        self._number = float(rate)

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        assert self._target is not None
        matrix = mixed(self._target, self._number)
        try:
            check_mix(matrix, len(preferences))
        except ValueError as error:
            raise ValueError(f"MGD: rate {self._number:g} does not fit the relation, lower it ({error})") from error
        self.nonnegative = not bool((matrix < 0).any())  # also where P has negative entries on its diagonal

    def target(self, preferences: Tensor) -> Tensor:
        relation = self._relation(preferences)
        return relation + (1 - relation.sum(1)).diag()

    def _relation(self, preferences: Tensor) -> Tensor:
        if self.relation is None:
            unit = torch.nn.functional.normalize(preferences, dim=1)
            return symmetrized(unit @ unit.T)
        expected = [len(preferences)] * 2
        if list(self.relation.shape) != expected:
            raise ValueError(
                f"expected relation of shape {expected}, got {list(self.relation.shape)}: give one row per subproblem"
            )
        return self.relation.detach().to(preferences)
