"""Transfer towards a random mixture of the other subproblems, with learned chances."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_positive, check_real
from ..gumbel import by_logits, gumbel_noise, mixing_weights, new_key
from .base import TransferContext, TransferRule
from .registry import register
from .schedule import Schedule, as_schedule

LOWEST_TEMPERATURE = 0.01  # below, a draw is one of the others as well, up to rounding


@register("gumbel-prior")
class GumbelPrior(TransferRule):
    """theta_k <- (1 - rate) theta_k + rate sum_{j != k} alpha_kj theta_j with drawn weights alpha and learned chances.

    alpha_k = softmax((logits_k + Gumbel noise) / temperature) over all j != k. After each transfer the logits make a
    gradient step on D_k = |theta_k - sum_j alpha_kj theta_j|^2 / (2 s), where s is the mean squared distance of the
    subproblems from their mean: dD_k / dalpha_kj = <theta_j, sum_l alpha_kl theta_l - theta_k> / s, from the K x K
    Gram matrix. So the others that resemble subproblem k are drawn more and more. With two subproblems alpha is 1.

    The mixture is the prior of variational multi-task learning (VMTL: Shen, Zhen, Worring and Shao, NeurIPS 2021, arXiv
    2111.05323, read in an account of its published code), reduced by us to parameters without variances: with one
    variance for all posteriors and priors, the KL divergence is D_k up to a factor. Ours as well: the rate, the
    division by s, and plain gradient steps for the paper's Adam. `mt2o_ext.variational` has the means and variances.
    For a row for each task, take ``preferences=torch.eye(T)``.

    Args:
        rate: how much of the mixture is applied, in [0, 1], a number or a `Schedule`.
        temperature: in (0, 1], a number or a `Schedule`; high: the mean of the others, low: one of them. The published
            one falls from 1 to 0.5: ``ExponentialDecay(1.0, half_life=23105, end=0.5)``. Below 0.01 it counts as 0.01.
        logits_lr: length of the logits' gradient steps; 0: all others keep the same chance.
        noise: False leaves the noise out, so that alpha is the softmax of the logits.
        generator: the noise starts from one number of it; None: of torch's default one.

    State:
        ``logits`` [K, K] float64; ``key`` and ``draws``, int64 [], of which the noise is made.

    Example:
        >>> preferences = torch.eye(3, dtype=torch.float64)
        >>> rule = GumbelPrior(0.1, generator=torch.Generator().manual_seed(0))
        >>> rule.bind(preferences)
        >>> gram = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]]).double()
        >>> context = TransferContext(preferences, gram, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[0.9000, 0.0261, 0.0739],
                [0.0609, 0.9000, 0.0391],
                [0.0344, 0.0656, 0.9000]], dtype=torch.float64)
        >>> rule.probabilities[0]  # 1 is nearer to 0 than 2 is
        tensor([0.0000, 0.5251, 0.4749], dtype=torch.float64)
    """

    needs_gram = True
    nonnegative = True

    def __init__(
        self,
        rate: float | Schedule = 0.1,
        *,
        temperature: float | Schedule = 1.0,
        logits_lr: float = 0.1,
        noise: bool = True,
        every: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(every=every)
        self.rate = as_schedule(rate)
        if not isinstance(temperature, Schedule):
            check_positive("temperature", temperature)
        self.temperature = as_schedule(temperature, "temperature")
        self.logits_lr = check_real("logits_lr", logits_lr)
        self.noise = bool(noise)
        self.needs_gram = self.logits_lr > 0
        self.counts_steps = self.rate.counts_steps or self.temperature.counts_steps
        self._first_key = new_key(generator) if self.noise else 0
        self._logits = torch.empty(0, dtype=torch.float64)
        self._key = self._draws = torch.empty(0, dtype=torch.int64)

    def bind(self, preferences: Tensor) -> None:
        super().bind(preferences)
        num_subproblems, device = len(preferences), preferences.device
        self._logits = preferences.new_zeros(num_subproblems, num_subproblems)
        self._key = torch.tensor(self._first_key, dtype=torch.int64, device=device)
        self._draws = torch.zeros((), dtype=torch.int64, device=device)

    def matrix(self, context: TransferContext) -> Tensor | None:
        self._check_bound()
        gram = self._gram(context).sum(0) if self.needs_gram else None
        num_subproblems = len(self._logits)
        if num_subproblems == 1:
            return None
        temperature = self._temperature(context)
        noise = gumbel_noise(self._key, self._draws, num_subproblems) if self.noise else None
        weights = mixing_weights(self._logits, temperature, noise)
        if gram is not None:
            slope = by_logits(weights, distance_slopes(weights, gram), temperature)
            self._logits = self._logits - self.logits_lr * slope
        self._draws = self._draws + 1
        rate = self.rate(context)
        return (1 - rate) * torch.eye(num_subproblems, dtype=torch.float64, device=weights.device) + rate * weights

    def _temperature(self, context: TransferContext) -> float | Tensor:
        temperature = self.temperature(context)
        if isinstance(temperature, Tensor):
            return temperature.clamp(min=LOWEST_TEMPERATURE)
        return max(temperature, LOWEST_TEMPERATURE)

    @property
    def probabilities(self) -> Tensor:
        """float64 [K, K], the chances of the others in each row, softmax of the logits; rows sum to 1, K > 1."""
        self._check_bound()
        return mixing_weights(self._logits, 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"logits": self._logits, "key": self._key, "draws": self._draws}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._check_bound()
        self._check_state(state, {name: value.shape for name, value in self.state_dict().items()})
        self._logits = state["logits"].to(self._logits)
        self._key, self._draws = state["key"].to(self._key), state["draws"].to(self._draws)


def distance_slopes(weights: Tensor, gram: Tensor) -> Tensor:
    """The gradient by alpha [K, K] of sum_k |theta_k - sum_j alpha_kj theta_j|^2 / (2 s); 0 where all rows are equal.

    Each row is right up to a number that all its entries share, which changes nothing where the row's sum is kept.

    Args:
        weights: alpha [K, K], rows sum to 1.
        gram: centred, [K, K]; s is its mean diagonal.
    """
    scale = gram.diagonal().mean()
    slopes = weights @ gram - gram
    return torch.where(scale > 0, slopes / torch.where(scale > 0, scale, 1.0), 0.0)
